"""The arrays of the GPU benchmarks: made on the device from a block whose exact sums are known."""

import functools
import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench import torch_contenders
from bench.torch_contenders import tensor
from gpureg import samples, selftest

BLOCK = 2**20
"""Elements made on the host; the rest are copies of them, turned and scaled so that hardly two places are alike."""

SCALES = 8
"""Copies are scaled by powers of two, from 1 down to 2**-7: exact in every dtype."""

LEAN_BYTES = 2**33
"""Weights of so many bytes or more have no room beside them but a gradient: what needs more takes no part."""

FLUSHED = 3
"""Times the second-level cache is read between two rounds."""


class Arrays(NamedTuple):
    """One set of arrays: a call takes all its arrays from one."""

    weights: Any
    gradient: Any
    scratch: Any
    """What a plain expression in its best form keeps instead of making temporaries; in the dtype it computes in.

    None where weights are so large that there is no room.
    """
    wide: Any
    """Room for the weights in the dtype that plain expressions compute in; the weights themselves if it is theirs.

    None likewise.
    """
    w_tensor: Any
    g_tensor: Any
    """Weights and gradient as PyTorch has them; None without it."""


class Exact(NamedTuple):
    """Weights on the host for each scale, and the exact sums of the first; those of the others are scaled."""

    blocks: tuple[NDArray[Any], ...]
    sum_abs: float
    sum_squares: float


class Tensors(NamedTuple):
    """Sets of arrays that hold the same weights, and the exact sums of these."""

    sets: tuple[Arrays, ...]
    sum_abs: float
    sum_squares: float
    sum_words: int
    """Of the weights' bytes read as unsigned integers of 64 bits, modulo 2**64."""


@functools.cache
def cp() -> Any:
    """Return CuPy, which only a machine with a GPU has."""
    return import_module("cupy")


def words(array: Any) -> Any:
    """Return the bytes of an array as unsigned integers of 64 bits."""
    return array.view(np.uint64)


def compute_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype that plain expressions compute in."""
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def cache_bytes() -> int:
    """Return the size of the device's second-level cache."""
    properties = cp().cuda.runtime.getDeviceProperties(cp().cuda.Device().id)
    return int(properties["l2CacheSize"])


def set_count(weight_bytes: int) -> int:
    """Return how many sets a round takes: so many calls that events resolve them, each on weights of its own."""
    return max(1, min(16, 2**30 // weight_bytes))


def is_lean(dtype: str, elements: int) -> bool:
    """Return whether weights are so large that there is room for a gradient alone."""
    return elements * selftest.dtypes()[dtype].itemsize >= LEAN_BYTES


def needed_bytes(dtype: str, elements: int) -> int:
    """Return the memory that a comparison takes, with the temporaries of plain expressions and their checks."""
    itemsize, wide = selftest.dtypes()[dtype].itemsize, compute_dtype(dtype).itemsize
    if is_lean(dtype, elements):
        return 3 * elements * itemsize + 4 * 2**30
    one_set = elements * (2 * itemsize + wide + (wide if wide != itemsize else 0))
    return set_count(elements * itemsize) * one_set + 4 * elements * wide + 4 * 2**30


@functools.cache
def _exact(dtype: str, elements: int) -> Exact:
    block = samples.weights(elements, selftest.dtypes()[dtype])
    numbers = block.astype(np.float64)
    blocks = tuple((numbers * 2.0**-scale).astype(block.dtype) for scale in range(SCALES))
    for scale, scaled in enumerate(blocks):
        if not np.array_equal(scaled.astype(np.float64) * 2.0**scale, numbers):
            raise ArithmeticError(f"{dtype} weights times 2**-{scale} are not exact")
    return Exact(blocks, math.fsum(np.abs(numbers)), math.fsum(numbers * numbers))


def _copies(elements: int, itemsize: int) -> Iterator[tuple[slice, int, int]]:
    """Yield for each copy of the block its place in words, its scale, and the words that it is turned by."""
    block = min(elements, BLOCK)
    length = block * itemsize // 8
    for number in range(elements // block):
        yield slice(number * length, (number + 1) * length), number % SCALES, number * 7919 % length


@functools.lru_cache(maxsize=1)
def tensors(dtype: str, elements: int) -> Tensors:
    """Return the inputs of a dtype and size; only the last are kept, for they may be gigabytes."""
    tensors.cache_clear()
    forget()
    kind = selftest.dtypes()[dtype]
    exact = _exact(dtype, min(elements, BLOCK))
    sets = [with_room(filled(dtype, elements)) for _ in range(set_count(elements * kind.itemsize))]
    scales = [scale for _, scale, _ in _copies(elements, kind.itemsize)]
    return Tensors(
        tuple(sets),
        math.fsum(exact.sum_abs * 2.0**-scale for scale in scales),
        math.fsum(exact.sum_squares * 4.0**-scale for scale in scales),
        sum(int(words(exact.blocks[scale]).sum(dtype=np.uint64)) for scale in scales) % 2**64,
    )


def filled(dtype: str, elements: int) -> Any:
    """Return weights: copies of the block, as many as fit, the only one being as large as there are elements."""
    kind = selftest.dtypes()[dtype]
    blocks = [cp().asarray(words(block)) for block in _exact(dtype, min(elements, BLOCK)).blocks]
    weights = cp().empty(elements, kind)
    for place, scale, turn in _copies(elements, kind.itemsize):
        target, source = words(weights)[place], blocks[scale]
        target[: source.size - turn] = source[turn:]
        target[source.size - turn :] = source[:turn]
    return weights


def with_room(weights: Any) -> Arrays:
    """Return a set of arrays around weights."""
    wide = compute_dtype(weights.dtype.name)
    if is_lean(weights.dtype.name, weights.size):
        gradient = cp().zeros(weights.size, weights.dtype)
        return Arrays(
            weights, gradient, None, None, torch_contenders.tensor(weights), torch_contenders.tensor(gradient)
        )
    room = weights if weights.dtype == wide else cp().zeros(weights.size, wide)
    gradient, scratch = cp().zeros(weights.size, weights.dtype), cp().zeros(weights.size, wide)
    return Arrays(weights, gradient, scratch, room, tensor(weights), tensor(gradient))


def forget() -> None:
    """Give back the memory that nothing uses."""
    cp().cuda.Device().synchronize()
    torch_contenders.forget()
    cp().get_default_memory_pool().free_all_blocks()


@functools.cache
def _to_flush() -> tuple[Any, Any]:
    return cp().ones(max(FLUSHED * cache_bytes(), 2**28) // 4, np.float32), cp().empty((), np.float32)


def flush() -> None:
    """Read so much that the cache holds nothing else, and nothing that it must write back."""
    much, result = _to_flush()
    cp().sum(much, out=result)
