"""Calls of many tensors, and tensors of so many tiles that all levels of the tree are climbed."""

import functools
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import backends, samples
from gpureg.arithmetic import Coefficients, tile_size
from gpureg.backends import Mode, cuda
from tests.gpu.device import assert_same, cp, needs_memory, shifted
from tests.gpu.test_bits import BOTH, PAIRS, check, gradient
from tests.helpers import DTYPES, Array, content, raw
from tests.passes import Leaf, run

pytestmark = pytest.mark.gpu

NUMPY = backends.load("numpy")

# Some tensors have one term, some both, some none.
COEFFICIENTS = (
    Coefficients(0.1, 0.3, 0.6),
    Coefficients(0.1, 0.0, 0.0),
    Coefficients(0.0, 0.3, 0.6),
    Coefficients(0.0, 0.0, 0.0),
)

GROUP = cuda.GROUP
"""Subtrees that one block adds in one go: a level of the tree over tiles, and of that over tensors."""


def weights(count: int, largest: int, *, seed: int = 0) -> list[Array]:
    """Return tensors of all dtypes and of many sizes, empty ones among them."""
    lengths = samples.integers(0, count, seed) % np.uint64(largest + 1)
    lengths[::5] %= np.uint64(3)
    dtypes = list(DTYPES)
    return [content("wide", int(size), dtypes[i * i % 4], seed=i) for i, size in enumerate(lengths)]


def check_together(tensors: list[Array], *, gradients_too: bool = True) -> None:
    """Assert that every pass over tensors in one call gives NumPy's bits."""
    result = np.dtype(np.float64)
    intos = [w.dtype if i % 3 else np.dtype(np.float32) for i, w in enumerate(tensors)]
    for mode in (Mode.VALUE, Mode.VALUE_AND_GRADIENT, Mode.ACCUMULATE) if gradients_too else (Mode.VALUE,):
        found, expected = [], []
        for i, (w, into) in enumerate(zip(tensors, intos, strict=True)):
            start = content("weights", w.size, into.name, seed=i)
            offset = i % 3 if w.size else 0
            coefficients = COEFFICIENTS[i % len(COEFFICIENTS)]
            found.append(Leaf(shifted(w, offset), coefficients, shifted(start, offset)))
            expected.append(Leaf(w, coefficients, start))
        on_device, on_host = run(cuda.backend, mode, found, result), run(NUMPY, mode, expected, result)
        assert_same(on_device.each, on_host.each)
        assert_same(on_device.total, on_host.total)
        if mode is not Mode.VALUE:
            for one, other in zip(found, expected, strict=True):
                assert_same(one.gradient, other.gradient)


@pytest.mark.parametrize("count", [2, 3, 31, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP + 7])
def test_many_tensors_in_one_call(count: int) -> None:
    check_together(weights(count, 40_000 if count < GROUP else 2_000, seed=count))


def test_more_tensors_than_two_levels_add() -> None:
    check_together(weights(GROUP * GROUP + 3, 3), gradients_too=False)


def test_all_tensors_empty() -> None:
    check_together([np.empty(0, dtype) for dtype in DTYPES.values()])


def test_no_tensor_at_all() -> None:
    values = run(cuda.backend, Mode.VALUE, [], np.dtype(np.float32))
    assert_same(values.total, np.float32(0.0))
    assert values.each.shape == (0,)


def test_gradients_of_many_tensors_alone() -> None:
    tensors = weights(50, 20_000)
    found = [Leaf(cp.asarray(w), COEFFICIENTS[0], cp.empty_like(cp.asarray(w))) for w in tensors]
    expected = [Leaf(w, COEFFICIENTS[0], np.empty_like(w)) for w in tensors]
    run(cuda.backend, Mode.GRADIENT, found, upstream=-0.5)
    run(NUMPY, Mode.GRADIENT, expected, upstream=-0.5)
    for one, other in zip(found, expected, strict=True):
        assert_same(one.gradient, other.gradient)


def test_small_and_large_tensors_side_by_side() -> None:
    """Groups of tiles and tensors of one tile take different tickets of the same counters."""
    tiles = (1, GROUP, 1, GROUP + 1, 2, 2 * GROUP + 1, 0, 1)
    tensors = [content("weights", n * tile_size(2) - (n > 1), "float16", seed=i) for i, n in enumerate(tiles)]
    check_together(tensors)
    check_together(tensors[::-1])


# Levels


@pytest.mark.parametrize("tiles", [GROUP - 1, GROUP, GROUP + 1, 3 * GROUP])
@pytest.mark.parametrize(("dtype", "into"), PAIRS)
def test_more_than_one_group_of_tiles(dtype: str, into: str, tiles: int) -> None:
    size = tiles * tile_size(DTYPES[dtype].itemsize) + 5
    check(content("sparse", size, dtype, seed=tiles), gradient(size, into), BOTH)


@functools.cache
def _three_levels(dtype: str) -> Array:
    """Return more tiles than two levels of groups hold: half a gigabyte."""
    size = (GROUP * GROUP + 3) * tile_size(DTYPES[dtype].itemsize) - 7
    pattern = content("wide", 2**22 + 1, dtype)  # of an odd length, so that no two tiles are alike
    return np.resize(pattern, size)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_three_levels_of_groups(dtype: str, offset: int) -> None:
    w = _three_levels(dtype)
    needs_memory(3 * w.nbytes)
    on_device = shifted(w, offset)
    for loss in (gpureg.l1_loss, gpureg.l2_loss):
        assert_same(loss(on_device, dtype="float64"), _loss(loss, dtype))


@functools.cache
def _loss(loss: Any, dtype: str) -> Any:
    return loss(_three_levels(dtype), dtype="float64")


def test_gradients_over_three_levels_of_groups() -> None:
    w = _three_levels("bfloat16")
    needs_memory(4 * w.nbytes)
    on_device, grad = shifted(w, 0), cp.zeros(w.size, w.dtype)
    value = BOTH.accumulate_grad(on_device, grad)
    expected = np.zeros_like(w)
    assert_same(value, BOTH.accumulate_grad(w, expected))
    assert np.array_equal(raw(grad.get()), raw(expected))  # there is no NaN, and this is faster
