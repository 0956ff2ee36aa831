"""Statistics of CuPy arrays are NumPy's: every dtype, content, size, layout and alignment, alone and together."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gpureg import backends
from gpureg.arithmetic import tile_size
from gpureg.backends import cuda
from tests.gpu.device import cp, place, shifted
from tests.helpers import CONTENTS, DTYPES, LAYOUTS, Array, bits, content, sizes

pytestmark = pytest.mark.gpu

THRESHOLDS = (0.0, 0.03, math.inf)


def check(on_device: Sequence[Any], on_host: Sequence[Array], threshold: float = 0.03) -> None:
    """Assert that statistics on the device have the bits of NumPy's."""
    found = cuda.backend.statistics(on_device, threshold)
    for one, wanted in zip(found, backends.load("numpy").statistics(on_host, threshold), strict=True):
        assert np.array_equal(bits(np.array(one)), bits(np.array(wanted))), (one, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_content_and_size(dtype: str) -> None:
    arrays = [content(name, size, dtype) for name in CONTENTS for size in sizes(dtype).values()]
    for threshold in THRESHOLDS:
        check([cp.asarray(array) for array in arrays], arrays, threshold)
    for array in arrays:
        check([cp.asarray(array)], [array])


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_that_no_16_byte_word_fits(dtype: str) -> None:
    for name in ("wide", "NaN"):
        w = content(name, sizes(dtype)["3 * tile + 5"], dtype)
        check([shifted(w, offset) for offset in range(8)], [w] * 8)


@pytest.mark.parametrize("layout", [name for name, one in LAYOUTS.items() if not one.offset and not one.extra])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: str, layout: str) -> None:
    numbers = content("NaN", 6 * 31 * 101, dtype).reshape(6, 31, 101)
    placed = place(LAYOUTS[layout], numbers)
    check([placed.array], [LAYOUTS[layout].place(numbers).array])
    assert placed.gaps_are_untouched()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_groups_of_tiles(dtype: str) -> None:
    """Again and again, for what depends on the order of blocks is not seen each time."""
    group = cuda.GROUP * tile_size(DTYPES[dtype].itemsize)
    arrays = [content("random bits", size, dtype) for size in (group - 1, group, 5 * group + 77)]
    on_device = [cp.asarray(array) for array in arrays]
    for _ in range(20):
        check(on_device, arrays)


def test_all_dtypes_in_one_call_of_thousands() -> None:
    arrays = [content("wide", i % 700, list(DTYPES)[i % 4], seed=i) for i in range(3000)]
    check([cp.asarray(array) for array in arrays], arrays, 2.0**-20)


def test_a_stream_of_ones_own() -> None:
    w = content("weights", 10**6, "float32")
    with cp.cuda.Stream(non_blocking=True):
        check([cp.asarray(w)], [w])
