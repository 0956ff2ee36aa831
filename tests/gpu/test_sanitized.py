"""A few calls through every path of the kernels, for the sanitizer to watch: `make gpu-check` runs them under it.

Memory comes from the device itself, not from CuPy's pool, so that the end of each array is the end of an allocation,
and memory that nobody has written is known as such.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from gpureg import backends
from gpureg.arithmetic import tile_size
from gpureg.backends import Mode, cuda
from tests.gpu.device import assert_same, cp
from tests.gpu.test_bits import BOTH, PAIRS, check
from tests.gpu.test_many import COEFFICIENTS, weights
from tests.gpu.test_statistics import check as check_statistics
from tests.helpers import DTYPES, content
from tests.passes import Leaf, run

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _no_pool() -> Iterator[None]:
    with cp.cuda.using_allocator(None):
        yield


@pytest.mark.parametrize(("dtype", "into"), PAIRS)
def test_whole_ragged_and_misaligned_tiles(dtype: str, into: str) -> None:
    size = tile_size(DTYPES[dtype].itemsize) + 5
    for offsets in ((0, 0), (1, 3)):
        check(content("wide", size, dtype), content("weights", size, into, seed=1), BOTH, offsets)


def test_more_than_one_group_of_tiles() -> None:
    host = content("wide", (cuda.GROUP + 1) * tile_size(8) + 5, "float64")
    w, grad, expected = cp.asarray(host), cp.zeros(host.size), np.zeros(host.size)
    assert_same(BOTH.accumulate_grad(w, grad), BOTH.accumulate_grad(host, expected))
    assert_same(grad, expected)


def test_several_tensors() -> None:
    tensors = weights(cuda.GROUP + 2, 300)
    found = [Leaf(cp.asarray(w), COEFFICIENTS[i % 4], cp.ones(w.size, w.dtype)) for i, w in enumerate(tensors)]
    expected = [Leaf(w, COEFFICIENTS[i % 4], np.ones(w.size, w.dtype)) for i, w in enumerate(tensors)]
    result = np.dtype(np.float64)
    values = run(cuda.backend, Mode.ACCUMULATE, found, result)
    assert_same(values.total, run(backends.load("numpy"), Mode.ACCUMULATE, expected, result).total)
    for one, other in zip(found, expected, strict=True):
        assert_same(one.gradient, other.gradient)


def test_statistics_of_groups_and_of_ragged_tiles() -> None:
    arrays = [content("NaN", tile_size(DTYPES[dtype].itemsize) + 5, dtype) for dtype in DTYPES]
    arrays.append(content("wide", (cuda.GROUP + 1) * tile_size(8) + 5, "float64"))
    check_statistics([cp.asarray(array) for array in arrays], arrays)
    check_statistics([cp.asarray(arrays[0])[1:]], [arrays[0][1:]])
