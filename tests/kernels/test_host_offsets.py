"""Where the kernels find elements: beyond the 2**32th, and those of whole tiles in words of 16 bytes."""

from itertools import product

import numpy as np
import pytest

from gpureg import arithmetic, backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import Mode
from tests.helpers import DTYPES, Array
from tests.host_cuda import Library, far, library
from tests.host_cuda.backend import HostBackend
from tests.host_cuda.cases import PAIRS, numbers
from tests.passes import Leaf

OFFSETS = pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])


@OFFSETS
@pytest.mark.parametrize(("weights", "into"), PAIRS)
def test_a_pass_beyond_two_to_the_32_elements(weights: str, into: str, offset: int) -> None:
    far.check_pass(library(), weights, into, offset)


@OFFSETS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_proximal_step_beyond_two_to_the_32_elements(dtype: str, offset: int) -> None:
    far.check_proximal(library(), dtype, offset)


@OFFSETS
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_beyond_two_to_the_32_elements(dtype: str, offset: int) -> None:
    far.check_statistics(library(), dtype, offset)


# Words ---------------------------------------------------------------------------------------------------------------

BOTH = Coefficients(l1=0.1, l2=0.3, twice_l2=0.6)
TILES = 3
TOUCHED = {Mode.VALUE: 0, Mode.GRADIENT: 1, Mode.VALUE_AND_GRADIENT: 1, Mode.ACCUMULATE: 2}
"""How often a gradient is read or written."""


def placed(dtype: str, size: int, past: int) -> Array:
    """Return numbers that begin so many bytes past a multiple of 32."""
    contents = numbers("weights", size, dtype, seed=0)
    buffer = np.empty(contents.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 32 + past
    array = buffer[start : start + contents.nbytes].view(contents.dtype)
    array[...] = contents
    return array


def check_words_of_pass(kernels: Library, mode: Mode, weights: str, into: str) -> None:
    """Assert that a pass moves whole tiles in words, once, and nothing else; none if what it touches is misaligned."""
    itemsize, grad_itemsize = DTYPES[weights].itemsize, DTYPES[into].itemsize
    whole = TILES * arithmetic.tile_size(itemsize)
    counted = {16: whole * itemsize // 16, 8: 0}
    word = min(16, 16 // itemsize * grad_itemsize)  # of float32 gradients of float64 weights 8 bytes
    counted[word] += TOUCHED[mode] * whole * grad_itemsize // word
    # By value and over a table; alone and before a ragged tile; wherever words fit, and where they do not.
    for seed, rest, past, grad_past in product((0, 1), (0, 5), (0, 16, itemsize), (0, 16, grad_itemsize)):
        leaf = Leaf(placed(weights, whole + rest, past), BOTH, placed(into, whole + rest, grad_past))
        HostBackend(kernels, seed=seed).run(mode, [leaf])
        fits = past % 16 == 0 and (mode is Mode.VALUE or grad_past % 16 == 0)
        assert kernels.vectors() == (counted if fits else {16: 0, 8: 0}), (seed, rest, past, grad_past)


def check_words_of_step(kernels: Library, dtype: str) -> None:
    """Assert the same of a proximal step, which reads and writes its weights."""
    itemsize = DTYPES[dtype].itemsize
    whole = TILES * arithmetic.tile_size(itemsize)
    for rest, past in product((0, 5), (0, 16, itemsize)):
        leaf = backends.Leaf(placed(dtype, whole + rest, past), BOTH)
        HostBackend(kernels).proximal_plan([leaf]).take([0.1])
        assert kernels.vectors() == {16: 0 if past % 16 else 2 * whole * itemsize // 16, 8: 0}, (rest, past)


def check_words_of_statistics(kernels: Library, dtype: str) -> None:
    """Assert the same of statistics, over one tensor and a table; what is NaN or infinite is read once more, not so."""
    itemsize = DTYPES[dtype].itemsize
    whole = TILES * arithmetic.tile_size(itemsize)
    for seed, rest, past in product((0, 1), (0, 5), (0, 16, itemsize)):
        weights = placed(dtype, whole + rest, past)
        for _ in range(2):
            HostBackend(kernels, seed=seed).statistics([weights], 0.1)
            assert kernels.vectors() == {16: 0 if past % 16 else whole * itemsize // 16, 8: 0}, (seed, rest, past)
            weights[::7] = np.nan


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name)
@pytest.mark.parametrize(("weights", "into"), PAIRS)
def test_a_pass_moves_whole_tiles_in_words(weights: str, into: str, mode: Mode) -> None:
    check_words_of_pass(library(), mode, weights, into)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_proximal_step_moves_whole_tiles_in_words(dtype: str) -> None:
    check_words_of_step(library(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_read_whole_tiles_in_words(dtype: str) -> None:
    check_words_of_statistics(library(), dtype)
