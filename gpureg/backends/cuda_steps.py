"""Proximal steps on CuPy arrays: one launch of the kernel in `kernels/proximal.cu` for each dtype."""

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, compiler
from gpureg.backends import Leaf, Scalar
from gpureg.backends.cuda import (
    FACTOR,
    THREADS,
    _copied,
    _cupy,
    _factor,
    _is_side_by_side,
    _kernel,
    _Stream,
    _Table,
)

# The structures of kernels/proximal.cu, passed by value or in tables.
STEP = np.dtype(
    [
        ("weights", np.uint64),
        ("size", np.uint64),
        ("l1", np.float64),
        ("twice_l2", np.float64),
        ("first_tile", np.uint32),
    ],
    align=True,
)
STEPS = np.dtype(
    [
        ("single", STEP),
        ("tensors", np.uint64),
        ("tensor_of", np.uint64),
        ("lengths", np.uint64),
        ("length", FACTOR),
        ("strength", FACTOR),
        ("skips", FACTOR),
    ],
    align=True,
)


class _StepLaunch:
    """The tensors of a dtype, and so of a launch: which they are, and tables of what does not change."""

    def __init__(self, members: list[int], records: NDArray[Any], dtype: np.dtype[Any]) -> None:
        self.members, self.kernel = members, compiler.proximal_step(dtype.name)
        tiles = -(-records["size"].astype(np.int64) // arithmetic.tile_size(dtype.itemsize))
        records["first_tile"] = np.cumsum(tiles) - tiles
        self.records = records
        self.grid = int(tiles.sum())
        self._tensor_of = np.repeat(np.arange(len(members), dtype=np.uint32), tiles)
        self._tables = _Table(), _Table()  # records and tensor_of
        self._lengths: list[tuple[int, float, bool]] = []
        self._length_table = _Table()

    def tell(
        self, call: NDArray[Any], lengths: list[tuple[int, float, bool]], stream: "_Stream", *, moved: bool
    ) -> None:
        """Tell a launch its tensors and how far to step: by value if there is one, else in tables on the device."""
        call["length"] = lengths[0]
        if len(self.members) == 1:
            call["single"] = self.records[0]
            return
        records, tensor_of = self._tables
        call["tensors"] = (_Table() if moved else records).on(stream, self.records)
        call["tensor_of"] = tensor_of.on(stream, self._tensor_of)
        if any(length != lengths[0] for length in lengths):
            if lengths != self._lengths:
                self._lengths, self._length_table = lengths, _Table()
            call["lengths"] = self._length_table.on(stream, np.array(lengths, FACTOR))


class CudaSteps:
    """Tensors that proximal steps are taken on, a launch for each dtype; see `gpureg.backends.ProximalPlan`."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        views = [leaf.weights.transpose(arithmetic.memory_order(leaf.weights)) for leaf in leaves]
        self._apart = {i: view for i, view in enumerate(views) if not _is_side_by_side(view)}
        parts: dict[np.dtype[Any], list[int]] = {}
        for i, view in enumerate(views):
            if view.size:
                parts.setdefault(view.dtype, []).append(i)
        self._launches = []
        for dtype, members in parts.items():
            records = np.zeros(len(members), STEP)
            for record, i in zip(records, members, strict=True):
                l1, _, twice_l2 = leaves[i].coefficients
                record["weights"], record["size"] = views[i].data.ptr, views[i].size
                record["l1"], record["twice_l2"] = l1, twice_l2
            self._launches.append(_StepLaunch(members, records, dtype))
        self._views = views  # kept, for only their addresses are in the tables
        self._lock = threading.Lock()

    def take(  # noqa: D102
        self, lengths: Sequence[Scalar], *, strength: Scalar = 1.0, skips: Scalar = 0.0
    ) -> None:
        if not self._launches:
            return
        cupy = _cupy()
        with self._views[0].device, self._lock, contextlib.ExitStack() as copies:
            stream = _Stream(cupy)
            call = np.zeros(1, STEPS)
            call["strength"], call["skips"] = _factor(cupy, strength, stream), _factor(cupy, skips, stream)
            told = [_factor(cupy, length, stream) for length in lengths]
            ready = []
            for launch in self._launches:
                argument = call.copy()
                for index, i in enumerate(launch.members):
                    if i in self._apart:
                        copy = copies.enter_context(_copied(self._apart[i], stream))
                        launch.records["weights"][index] = copy.data.ptr
                moved = not self._apart.keys().isdisjoint(launch.members)
                launch.tell(argument, [told[i] for i in launch.members], stream, moved=moved)
                ready.append((_kernel(launch.kernel, stream.device), (launch.grid,), (THREADS,), (argument,)))
            for kernel, *given in ready:
                kernel(*given)
