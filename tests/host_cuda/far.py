"""Tensors of more than 2**32 elements, in memory that is there only where it is written.

They are not run whole: a few groups of their tiles are, the first and the last among them. The rest of the call is as
its other blocks would have left it if all their weights were zero, and its pages are reserved and never touched.
"""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import Mode
from gpureg.backends.cuda_statistics import of_group
from gpureg.backends.numpy import backend as numpy_backend
from gpureg.compiler import penalty_pass, proximal_step, statistics_pass
from gpureg.statistics import marks
from tests.helpers import DTYPES, bits, content
from tests.host_cuda import Library, layout
from tests.passes import Leaf, run

Array = NDArray[Any]

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux; Python knows its name from 3.13 on

COEFFICIENTS = Coefficients(l1=0.1, l2=0.3, twice_l2=0.6)


class Far:
    """A tensor of a little more than 2**32 elements, and where in it the tiles are that are run."""

    def __init__(self, dtype: str, group: int) -> None:
        self.dtype = DTYPES[dtype]
        self.tile = arithmetic.tile_size(self.dtype.itemsize)
        self.size = 2**32 + 2 * self.tile + 77
        self.tiles = 2**32 // self.tile + 3
        # In the first group what is left needs more than 32 bits, and cut to these it is 77 from the third tile on. An
        # offset of 32 bits turns negative in the second group, and is 0 once more in the last, ragged one.
        middle, end = 2**31 // self.tile, 2**32 // self.tile
        assert group >= 3
        assert middle % group == end % group == 0
        self.blocks = [*range(group), *range(middle, middle + group), *range(end, self.tiles)]
        self.groups = -(-self.tiles // group)
        whole = group * self.tile
        self.parts = slice(0, whole), slice(2**31, 2**31 + whole), slice(2**32, self.size)

    def reserve(self, dtype: str, contents: str, offset: int) -> Array:
        """Return zeros but in the parts that are run, so many elements past alignment."""
        kind = DTYPES[dtype]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        array = np.frombuffer(mmap.mmap(-1, (offset + self.size) * kind.itemsize, flags=flags), kind)[offset:]
        for seed, part in enumerate(self.parts):
            array[part] = content(contents, part.stop - part.start, dtype, seed)
        return array


def check_pass(kernels: Library, weights: str, into: str, offset: int = 0) -> None:
    """Assert the bits of a value and an accumulated gradient of the parts that are run."""
    group = kernels.build.row_bytes // 16
    far = Far(weights, group)
    w, gradient = far.reserve(weights, "weights", offset), far.reserve(into, "wide", offset)
    sums, gradients = [], [gradient[part].copy() for part in far.parts]
    for part, added in zip(far.parts, gradients, strict=True):
        run(numpy_backend, Mode.ACCUMULATE, [Leaf(w[part], COEFFICIENTS, added)], DTYPES["float64"])
        ones = [Leaf(w[part], Coefficients(*one)) for one in ((1.0, 0.0, 0.0), (0.0, 1.0, 2.0))]
        sums.append(run(numpy_backend, Mode.VALUE, ones, DTYPES["float64"]).each)
    # With zeros in between and after: the first two groups meet in the half of the tree that the last is not in.
    expected = arithmetic.penalty(COEFFICIENTS, 1.0, *(sums[0] + sums[1] + sums[2]))

    tile_sums, group_sums = np.full((far.tiles, 2), np.nan), np.zeros((far.groups, 2))
    counters, results = np.zeros(far.groups + 2, np.uint32), np.full(6, np.nan)
    counters[far.groups] = far.groups - len(far.parts)
    call = np.zeros((), layout.CALL)
    call["place"] = w.ctypes.data, gradient.ctypes.data
    call["single"], call["count"], call["groups"], call["divisor"] = (
        (far.size, *COEFFICIENTS, 0, 0, 0),
        1,
        far.groups,
        1.0,
    )
    call["strength"]["number"] = call["upstream"]["number"] = 1.0
    call["tile_sums"], call["group_sums"] = tile_sums.ctypes.data, group_sums.ctypes.data
    penalties = np.full(2, np.nan)
    call["penalties"], call["counters"] = penalties.ctypes.data, counters.ctypes.data
    call["each"], call["sums"], call["rounded"] = (results[at:].ctypes.data for at in (0, 2, 4))
    kernels.launch(penalty_pass(weights, into, Mode.ACCUMULATE, l1=True, l2=True), far.tiles, call, blocks=far.blocks)

    assert results[:2].tolist() == [expected, expected]
    assert not counters.any()
    for part, added in zip(far.parts, gradients, strict=True):
        assert np.array_equal(bits(gradient[part]), bits(added))


def check_proximal(kernels: Library, weights: str, offset: int = 0) -> None:
    """Assert the bits of a proximal step on the parts that are run."""
    far = Far(weights, group=4)
    moved = far.reserve(weights, "weights", offset)
    expected = [moved[part].copy() for part in far.parts]
    for numbers in expected:
        numpy_backend.proximal_plan([backends.Leaf(numbers, COEFFICIENTS)]).take([0.1])
    call = np.zeros((), layout.STEPS)
    call["single"] = moved.ctypes.data, far.size, COEFFICIENTS.l1, COEFFICIENTS.twice_l2, 0
    call["length"]["number"], call["strength"]["number"] = 0.1, 1.0
    kernels.launch(proximal_step(weights), far.tiles, call, blocks=far.blocks)
    for part, numbers in zip(far.parts, expected, strict=True):
        assert np.array_equal(bits(moved[part]), bits(numbers))


def check_statistics(kernels: Library, weights: str, offset: int = 0) -> None:
    """Assert the statistics of the groups of tiles that are run."""
    group = kernels.build.row_bytes // 16
    far = Far(weights, group)
    w = far.reserve(weights, "NaN", offset)
    known = marks(far.dtype, 0.03)
    tile_sums, results = np.full((far.tiles, 2), np.nan), np.zeros(far.groups, layout.RESULT)
    counters = np.zeros(far.groups, np.uint32)
    call = np.zeros((), layout.PASS)
    call["single"] = w.ctypes.data, far.size, 0, 0
    call["infinity"], call["threshold"] = known.infinity, known.threshold
    call["tile_sums"], call["counters"] = tile_sums.ctypes.data, counters.ctypes.data
    call["groups"] = results.ctypes.data
    kernels.launch(statistics_pass(weights), far.tiles, call, blocks=far.blocks)
    assert not counters.any()
    for part, expected in zip(far.parts, numpy_backend.statistics([w[part] for part in far.parts], 0.03), strict=True):
        found = of_group(results[part.start // far.tile // group].tolist(), part.stop - part.start, known)
        assert np.array_equal(bits(np.array(found)), bits(np.array(expected)))
