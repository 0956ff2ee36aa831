"""Statistics of CuPy arrays: one launch of the kernel in `kernels/statistics.cu` for each dtype."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, compiler
from gpureg.backends.cuda import (
    _SUMS,
    GROUP,
    THREADS,
    _copied,
    _cupy,
    _is_side_by_side,
    _kernel,
    _Stream,
    backend,
)
from gpureg.statistics import Marks, Statistics, join, marks

# The structures of kernels/statistics.cu, passed by value or in tables, and its results.
TENSOR = np.dtype(
    [("weights", np.uint64), ("size", np.uint64), ("first_tile", np.uint32), ("first_group", np.uint32)], align=True
)
RESULT = np.dtype(
    [
        ("sums", [("abs", np.float64), ("squares", np.float64)]),
        ("zeros", np.uint64),
        ("below", np.uint64),
        ("nan", np.uint64),
        ("inf", np.uint64),
        ("largest", np.uint64),
    ],
    align=True,
)
PASS = np.dtype(
    [
        ("single", TENSOR),
        ("tensors", np.uint64),
        ("tensor_of", np.uint64),
        ("infinity", np.uint64),
        ("threshold", np.uint64),
        ("tile_sums", np.uint64),
        ("counters", np.uint64),
        ("groups", np.uint64),
    ],
    align=True,
)


def statistics(arrays: Sequence[Any], threshold: float) -> list[Statistics]:
    """Return the statistics of each array, once the device has made them; see `gpureg.backends.Backend`."""
    call = _Call(arrays)
    known = {dtype: marks(dtype, threshold) for dtype in dict.fromkeys(array.dtype for array in arrays if array.size)}
    if not known:
        return [join([]) for _ in arrays]
    cupy = _cupy()
    with arrays[0].device, contextlib.ExitStack() as copies:
        stream = _Stream(cupy)
        results = cupy.zeros(call.count * RESULT.itemsize, np.uint8)
        counters = stream.counters(call.count)
        stream.keep(results, counters)
        places = counters.data.ptr, results.data.ptr
        ready = [call.launch(dtype, own, places, stream, copies) for dtype, own in known.items()]
        try:
            for kernel, *given in ready:
                kernel(*given)
        except BaseException:
            stream.forget_counters()
            raise
        told = backend.to_numpy(results).view(RESULT)
    return [join(list(call.groups_of(i, told, known))) for i in range(len(arrays))]


class _Call:
    """Arrays, and how many tiles and groups of tiles each has."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays
        self._sizes = np.array([array.size for array in arrays], np.int64)
        tile = np.array([arithmetic.tile_size(array.itemsize) for array in arrays], np.int64)
        self._tiles = -(-self._sizes // tile)
        self._groups = -(-self._tiles // GROUP)
        self._firsts = np.cumsum(self._groups) - self._groups
        self.count = int(self._groups.sum())

    def launch(
        self, dtype: np.dtype[Any], own: Marks, places: tuple[int, int], stream: _Stream, copies: contextlib.ExitStack
    ) -> tuple[Any, ...]:
        """Return the kernel for the arrays of a dtype and what it is launched with.

        The places are those of the counters and of the results.
        """
        members = [i for i, array in enumerate(self._arrays) if array.dtype == dtype and array.size]
        tiles = self._tiles[members]
        records = np.zeros(len(members), TENSOR)
        for record, i in zip(records, members, strict=True):
            view = self._arrays[i].transpose(arithmetic.memory_order(self._arrays[i]))
            if not _is_side_by_side(view):
                view = copies.enter_context(_copied(view, stream, writes=False))
            record["weights"] = view.data.ptr
        records["size"], records["first_group"] = self._sizes[members], self._firsts[members]
        records["first_tile"] = np.cumsum(tiles) - tiles
        scratch = _cupy().empty(int(tiles.sum()) * _SUMS, np.uint8)
        stream.keep(scratch)
        call = np.zeros(1, PASS)
        if len(members) == 1:
            call["single"] = records[0]
        else:
            tensor_of = np.repeat(np.arange(len(members), dtype=np.uint32), tiles)
            tables = stream.send(records), stream.send(tensor_of)
            stream.keep(*tables)
            call["tensors"], call["tensor_of"] = (table.data.ptr for table in tables)
        call["infinity"], call["threshold"] = own.infinity, own.threshold
        call["tile_sums"], (call["counters"], call["groups"]) = scratch.data.ptr, places
        kernel = _kernel(compiler.statistics_pass(dtype.name), stream.device)
        return kernel, (int(tiles.sum()),), (THREADS,), (call,)

    def groups_of(self, which: int, told: NDArray[Any], known: Mapping[np.dtype[Any], Marks]) -> Iterator[Statistics]:
        """Yield the statistics of the groups of an array: pieces of a power-of-two number of tiles."""
        dtype, first, left = self._arrays[which].dtype, int(self._firsts[which]), int(self._sizes[which])
        for group in told[first : first + int(self._groups[which])].tolist():
            size = min(left, GROUP * arithmetic.tile_size(dtype.itemsize))
            yield of_group(group, size, known[dtype])
            left -= size


def of_group(group: tuple[Any, ...], size: int, own: Marks) -> Statistics:
    """Return the statistics of a group of tiles with so many elements, told by a RESULT."""
    (sum_abs, sum_squares), zeros, below, nan, inf, largest = group
    return Statistics(size, sum_abs, sum_squares, own.number(largest), zeros, below, nan, inf)
