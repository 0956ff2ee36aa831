"""The arrays that contenders run on, and the sums that they must find in them."""

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpureg
from gpureg import samples

with contextlib.suppress(ModuleNotFoundError):
    import ml_dtypes  # noqa: F401 - tells NumPy what bfloat16 is

xp = gpureg.xp()
"""The array module of all contenders."""

ORACLE_CHUNK = 2**16
"""Elements that the oracle adds at a time; up to here it is `math.fsum` alone, and exact."""


class Arrays(NamedTuple):
    """One set of arrays: a call takes all its arrays from one."""

    weights: Any
    gradient: Any
    scratch: Any
    """What a plain expression in its best form keeps instead of making temporaries; in the dtype it computes in."""
    wide: Any
    """Room for the weights in the dtype that plain expressions compute in; the weights themselves if it is theirs."""


class Inputs(NamedTuple):
    """All that is made once for a dtype and a number of elements."""

    sets: tuple[Arrays, ...]
    start: Any
    """What a gradient holds before something is added to it."""
    sum_abs: float
    sum_squares: float


@functools.lru_cache(maxsize=1)
def inputs(dtype: str, elements: int) -> Inputs:
    """Return the inputs of a dtype and size; only the last are kept, for they may be gigabytes."""
    weights = samples.weights(elements, np.dtype(dtype))
    start = xp.asarray(samples.weights(elements, weights.dtype, seed=1))
    count = set_count(weights.nbytes)
    return Inputs(tuple(_arrays(weights, start) for _ in range(count)), start, *_sums(weights))


def set_count(weight_bytes: int) -> int:
    """Return how many sets of arrays calls take turns on, so that no call finds in cache what would not fit there.

    One, if weights, gradient and scratch fill at most half the last-level cache: such a tensor is found in cache in
    practice too. Else so many that between two uses of the same weights twice the cache has been read.
    """
    cache = cache_bytes()
    return 1 if 3 * weight_bytes <= cache // 2 else 1 + math.ceil(2 * cache / weight_bytes)


@functools.cache
def cache_bytes() -> int:
    """Return the size of the last-level cache that a core sees; 64 MiB where the system does not say."""
    try:
        sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        return max(int(size.read_text().strip().removesuffix("K")) * 1024 for size in sizes)
    except (OSError, ValueError):
        return 2**26


def core_count() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks(elements: int, length: int) -> Iterator[slice]:
    """Yield slices of `length` that cover `elements`, the last of which may be shorter."""
    for start in range(0, elements, length):
        yield slice(start, min(start + length, elements))


def oracle_bound(elements: int) -> float:
    """Return the relative bound of the error of `sum_abs` and `sum_squares`.

    A chunk's sum is `math.fsum`, or a pairwise float64 sum: 18 additions in a block of 128 and one for each doubling.
    One unit more is for float64 squares, which are rounded.
    """
    return (1 if elements <= ORACLE_CHUNK else 18 + math.log2(ORACLE_CHUNK / 128) + 1) * 2.0**-53


def _sums(weights: Any) -> tuple[float, float]:
    """Return sum|w| and sum w*w."""
    add = math.fsum if weights.size <= ORACLE_CHUNK else np.sum
    sums_abs, sums_squares = [], []
    for chunk in chunks(weights.size, ORACLE_CHUNK):
        x = weights[chunk].astype(np.float64)
        sums_abs.append(float(add(np.abs(x))))
        sums_squares.append(float(add(x * x)))
    return math.fsum(sums_abs), math.fsum(sums_squares)


def _arrays(weights: Any, start: Any) -> Arrays:
    """Return a set: copies of these, and the rest, every page of which has been written once."""
    w = xp.array(weights)
    if weights.itemsize > 2:
        return Arrays(w, start.copy(), w.copy(), w)
    wide = w.astype(np.float32)
    return Arrays(w, start.copy(), wide.copy(), wide)
