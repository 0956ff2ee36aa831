"""Penalties and gradients of NumPy arrays by machine code, which LLVM makes for the processor at hand when first used.

It gives the bits of the NumPy backend at the speed of memory. What is passed over is a table of pieces, each a tensor
or some tiles of a large one, by the addresses of their elements and of the kernels of their dtypes. Threads
(`gpureg.threads`) take the pieces, some at a time, without Python's lock. Elements that do not lie side by side are
gathered piece by piece, as the NumPy backend does.
"""

import ctypes
import functools
import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, threads
from gpureg.arithmetic import TILE_BYTES, Coefficients
from gpureg.backends import Leaf, Mode, ModePlan, Plan, Scalar, Values
from gpureg.backends.numpy import Buffers, Elements, NumpyBackend, NumpySteps
from gpureg.memory import address_of
from gpureg.statistics import Statistics

Array = NDArray[Any]
Ints = NDArray[np.int64]

PIECE_TILES = 32
"""Tiles of a piece at most, 1 MiB: an aligned group of them, and so a subtree of its tensor's sum.

It is 30 to 50 microseconds of work, about what it takes to wake a thread.
"""

WORTH_THREADS = 8 * PIECE_TILES
"""Tiles from which on other threads are worth waking: the others begin when an eighth of the work is done."""

UNITS = 8
"""Units of work for each thread, so that one which is held up keeps the others waiting for little."""

PIECE_COST = 512
"""What a piece costs beside its bytes, in bytes."""


class LlvmBackend(NumpyBackend):
    """The fast backend of NumPy arrays; see `gpureg.backends.Backend` for each method."""

    name = "llvm"

    def unusable(self) -> str | None:  # noqa: D102
        return _unusable()

    def plan(self, leaves: Sequence[Leaf]) -> Plan:  # noqa: D102
        if len(leaves) == 1:
            weights = leaves[0].weights
            if weights.nbytes <= PIECE_TILES * TILE_BYTES and weights.flags.c_contiguous:
                return SmallPlan(leaves[0])
        return LlvmPlan(leaves)

    def proximal_plan(self, leaves: Sequence[Leaf]) -> NumpySteps:  # noqa: D102
        return NumpySteps(leaves, _proximal)

    def statistics(self, arrays: Sequence[Array], threshold: float) -> list[Statistics]:  # noqa: D102
        made: list[Statistics] = import_module("gpureg.backends.llvm.statistics").statistics(arrays, threshold)
        return made


backend = LlvmBackend()


@functools.cache
def _unusable() -> str | None:
    try:
        _kernels()
        reason: str | None = import_module("gpureg.backends.llvm.code").unusable()
    except Exception as error:  # llvmlite has its own ways to say what it lacks
        if isinstance(error, ModuleNotFoundError) and error.name == "llvmlite":
            return "llvmlite is not installed: pip install 'gpureg[cpu]'"
        return f"llvmlite fails to import: {str(error).partition(chr(10))[0]}"
    return reason


@functools.cache
def _kernels() -> Any:
    return import_module("gpureg.backends.llvm.kernels")


class _Values:
    """What a pass returns; of the penalties an array is made when somebody asks for one."""

    __slots__ = ("_each", "sums", "total")

    def __init__(self, total: Any, each: Any, sums: NDArray[np.float64] | None) -> None:
        self.total, self._each, self.sums = total, each, sums

    @property
    def each(self) -> NDArray[np.float64]:
        """Return the penalty of each tensor."""
        return np.asarray(self._each)

    @property
    def rounded(self) -> NDArray[np.float32]:
        """Return the penalty of each tensor, rounded to float32."""
        with np.errstate(all="ignore"):
            return self.each.astype(np.float32)


def _total(total: float, rounded: float, dtype: np.dtype[Any]) -> Any:
    """Return a total, which is given rounded to float32 too, as a scalar of a dtype."""
    if dtype.itemsize == 4:
        return np.float32(rounded)
    if dtype.itemsize == 8:
        return np.float64(total)
    with np.errstate(all="ignore"):
        return arithmetic.round_once(total, dtype)


# One small tensor ----------------------------------------------------------------------------------------------------


_SMALL = struct.Struct("=8q3d2q3d")
"""What is told of a pass in a record of `kernels.SMALL`, which ends with 5 numbers that it makes."""

_SmallMemory = ctypes.c_double * 21


class SmallPlan(ModePlan):
    """One tensor whose elements lie side by side in C order, too few for threads; see `gpureg.backends.Plan`.

    Most of a call on a few elements is to tell the machine code what to do: so all is put into one record.
    """

    def __init__(self, leaf: Leaf) -> None:
        self._leaf = leaf

    def bind(self, gradients: Sequence[Array]) -> "_SmallTarget | _Table":  # noqa: D102
        (gradient,) = gradients
        if not gradient.flags.c_contiguous:
            return LlvmPlan([self._leaf]).bind(gradients)
        kernel = _kernels().gradient_address(self._leaf.weights.dtype, gradient.dtype)
        return _SmallTarget(kernel, address_of(gradient), gradient.itemsize)

    def _run(
        self,
        mode: Mode,
        dtype: np.dtype[Any],
        gradients: "_SmallTarget | _Table | None",
        strength: Scalar,
        upstream: Scalar,
        divisor: int = 1,
        every_sum: bool = False,
    ) -> Values:
        if isinstance(gradients, _Table):
            return LlvmPlan([self._leaf])._run(mode, dtype, gradients, strength, upstream)
        weights, kernels = self._leaf.weights, _kernels()
        kernel, target, target_itemsize = gradients.told if gradients else (0, 0, 0)
        tile = TILE_BYTES // weights.itemsize
        piece = kernels.sums_address(weights.dtype), kernel, address_of(weights), target, weights.size, tile
        memory = _SmallMemory()
        rule, factors = self._leaf.coefficients, (mode, every_sum, strength, upstream, divisor)
        _SMALL.pack_into(memory, 0, *piece, target_itemsize, 0, *rule, *factors)
        kernels.take_small().call(ctypes.addressof(memory))
        total, rounded, *sums, penalty = memory[16:]
        return _Values(_total(total, rounded, dtype), [penalty], np.array([sums]) if every_sum else None)


class _SmallTarget:
    """The kernel that writes the gradient of a small tensor, its address, and the bytes of its elements."""

    keeps_arrays = False

    def __init__(self, kernel: int, address: int, itemsize: int) -> None:
        self.told = kernel, address, itemsize

    def moved(self, addresses: Ints) -> "_SmallTarget":
        """Return the same for another gradient."""
        kernel, _, itemsize = self.told
        return _SmallTarget(kernel, int(addresses[0]), itemsize)


# Any tensors ---------------------------------------------------------------------------------------------------------


_Scattered = tuple[Elements, Elements | None]
"""The elements of weights, and those of their gradient."""


class LlvmPlan(ModePlan):
    """Tensors cut into pieces; see `gpureg.backends.Plan`."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        kernels = _kernels()
        self._leaves = list(leaves)
        arrays = [leaf.weights for leaf in leaves]
        self._axes = [arithmetic.memory_order(array) for array in arrays]
        self._rules = np.array([tuple(leaf.coefficients) for leaf in leaves], kernels.RULE)
        self._table, self._firsts = _cut(arrays, self._axes, [kernels.sums_address(array.dtype) for array in arrays])

    def bind(self, gradients: Sequence[Array]) -> "_Table":  # noqa: D102
        kernel_of, kernels, scattered = _kernels().gradient_address, [], {}
        for index, (leaf, gradient, axes) in enumerate(zip(self._leaves, gradients, self._axes, strict=True)):
            weights = leaf.weights
            kernels.append(kernel_of(weights.dtype, gradient.dtype))
            if index in self._table.scattered or not gradient.transpose(axes).flags.c_contiguous:
                scattered[index] = Elements(weights, axes, weights.dtype), Elements(gradient, axes, gradient.dtype)
        return self._table.bound(gradients, kernels, scattered)

    def _run(
        self,
        mode: Mode,
        dtype: np.dtype[Any],
        gradients: "_Table | None",
        strength: Scalar,
        upstream: Scalar,
        divisor: int = 1,
        every_sum: bool = False,
    ) -> Values:
        made = _Pass(gradients or self._table, mode, self._rules, self._firsts, strength, upstream, divisor, every_sum)
        return _Values(_total(*made.run(), dtype), made.each, made.sums if every_sum else None)


def _cut(arrays: Sequence[Array], axes: Sequence[tuple[int, ...]], kernels: Sequence[int]) -> "tuple[_Table, Ints]":
    """Return tensors cut into pieces, each summed by a kernel, and where the pieces of each begin, and all end."""
    sizes = np.array([array.size for array in arrays], np.int64)
    itemsizes = np.array([array.itemsize for array in arrays], np.int64)
    tiles = TILE_BYTES // itemsizes
    counts = -(-sizes // (PIECE_TILES * tiles))
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    owners = np.repeat(np.arange(sizes.size), counts)
    lengths = PIECE_TILES * tiles[owners]
    starts = (np.arange(owners.size) - firsts[owners]) * lengths

    pieces = np.zeros(owners.size, _kernels().PIECE)
    pieces["sums"] = np.array(kernels, np.int64)[owners]
    pieces["weights"] = np.array(list(map(address_of, arrays)), np.int64)[owners] + starts * itemsizes[owners]
    pieces["size"] = np.minimum(lengths, sizes[owners] - starts)
    pieces["tile"] = tiles[owners]
    pieces["tensor"] = owners
    scattered: dict[int, _Scattered] = {
        index: (Elements(array, order, array.dtype), None)
        for index, (array, order) in enumerate(zip(arrays, axes, strict=True))
        if not array.transpose(order).flags.c_contiguous
    }
    return _Table(pieces, starts, scattered), firsts


class _Table:
    """Pieces of tensors and of their gradients, if there are any, by where they are.

    What does not lie side by side, weights or gradients, is `scattered`.
    """

    def __init__(
        self,
        pieces: NDArray[Any],
        starts: Ints,
        scattered: Mapping[int, _Scattered],
    ) -> None:
        self.pieces, self.starts, self.scattered = pieces, starts, scattered
        self.address = address_of(pieces)
        self._ends = np.cumsum(pieces["size"] * (TILE_BYTES // pieces["tile"]) + PIECE_COST)

    @property
    def keeps_arrays(self) -> bool:
        """Return whether there are gradients that live as long as this: those that are gathered."""
        return bool(self.scattered)

    def bound(
        self, gradients: Sequence[Array], kernels: Sequence[int], scattered: Mapping[int, _Scattered]
    ) -> "_Table":
        """Return the same with gradients, each written by a kernel."""
        pieces, owners = self.pieces.copy(), self.pieces["tensor"]
        pieces["gradient"] = np.array(kernels, np.int64)[owners]
        pieces["target_itemsize"] = np.array([gradient.itemsize for gradient in gradients], np.int64)[owners]
        addresses = np.array(list(map(address_of, gradients)), np.int64)[owners]
        pieces["target"] = addresses + self.starts * pieces["target_itemsize"]
        return _Table(pieces, self.starts, scattered)

    def moved(self, addresses: Ints) -> "_Table | None":
        """Return the same with other gradients, unless their elements must be gathered from the arrays."""
        if self.scattered:
            return None
        pieces = self.pieces.copy()
        pieces["target"] = addresses[pieces["tensor"]] + self.starts * pieces["target_itemsize"]
        return _Table(pieces, self.starts, {})

    def units(self) -> tuple[list[tuple[int, int]], bool]:
        """Return the work in units, pieces from one to another; and whether it is worth threads.

        What is scattered is taken piece by piece.
        """
        count, number = self.pieces.size, threads.get_num_threads()
        work = int(self._ends[-1]) if count else 0
        worth_threads = number > 1 and work >= WORTH_THREADS * TILE_BYTES
        if not worth_threads and not self.scattered:
            return [(0, count)], False
        parts = min(work // (PIECE_TILES * TILE_BYTES), UNITS * number) if worth_threads else 1
        cuts = {0, count, *np.searchsorted(self._ends, [work * part // parts for part in range(1, parts)]).tolist()}
        if self.scattered:
            alone = np.flatnonzero(np.isin(self.pieces["tensor"], list(self.scattered)))
            cuts.update(alone.tolist(), (alone + 1).tolist())
        return list(itertools.pairwise(sorted(cuts))), worth_threads

    def share(self, work_off: Callable[[Callable[[], tuple[int, int] | None]], None]) -> None:
        """Have all units worked off, by threads if that is worth it; see `gpureg.threads.share`."""
        units, worth_threads = self.units()
        if worth_threads:
            threads.share(units, work_off)
        else:
            work_off(iter([*units, None]).__next__)


_PASS = struct.Struct("=9q5d")
_PassMemory = ctypes.c_double * 14


class _Pass:
    """One pass over a table: what the machine code is told, and what it makes."""

    def __init__(
        self,
        table: _Table,
        mode: Mode,
        rules: NDArray[Any],
        firsts: Ints,
        strength: Scalar,
        upstream: Scalar,
        divisor: int,
        every_sum: bool,
    ) -> None:
        self._table, self._reads = table, mode is Mode.ACCUMULATE
        tensors, room = rules.size, max(2 * table.pieces.size, rules.size)
        memory = np.empty(room + 3 * tensors)
        self.sums = memory[room : room + 2 * tensors].reshape(tensors, 2)
        self.each = memory[room + 2 * tensors :]
        self._totals = address_of(memory)
        self._first = address_of(rules), address_of(firsts), tensors, mode, every_sum
        sums = self._totals + 8 * room
        self._last = sums, sums + 16 * tensors, strength, upstream, divisor, 0.0, 0.0

    def run(self) -> tuple[float, float]:
        """Pass over all pieces, and return the total, and that rounded to float32."""
        self._table.share(self._work_off)
        record = self._record(self._table.address, self._totals)
        _kernels().put_together().call(ctypes.addressof(record))
        return record[12], record[13]

    def _record(self, pieces: int, totals: int) -> Any:
        """Return a record of `kernels.PASS`."""
        record = _PassMemory()
        _PASS.pack_into(record, 0, pieces, *self._first, totals, *self._last)
        return record

    def _work_off(self, take: Callable[[], tuple[int, int] | None]) -> None:
        """Take units of work until there are no more."""
        record, buffers = self._record(self._table.address, self._totals), Buffers()
        while (unit := take()) is not None:
            start, stop = unit
            scattered = self._table.scattered and self._table.scattered.get(int(self._table.pieces["tensor"][start]))
            if scattered:
                self._gather(start, *scattered, buffers)
            else:
                _kernels().take().call(ctypes.addressof(record), start, stop)

    def _gather(self, index: int, weights: Elements, gradient: Elements | None, buffers: Buffers) -> None:
        """Pass over a piece whose elements, or those of its gradient, do not lie side by side."""
        piece, first = self._table.pieces[index : index + 1].copy(), int(self._table.starts[index])
        last = first + int(piece["size"][0])
        piece["weights"] = address_of(weights.open(first, last, buffers, "weights"))
        if gradient is not None:
            opened = gradient.open(first, last, buffers, "gradient", read=self._reads)
            piece["target"] = address_of(opened)
        record = self._record(address_of(piece), self._totals + 16 * index)
        _kernels().take().call(ctypes.addressof(record), 0, 1)
        if gradient is not None:
            gradient.close(first, last, opened)


# Proximal steps ------------------------------------------------------------------------------------------------------


def _proximal(weights: Array, coefficients: Coefficients, step: float) -> None:
    """Take the proximal step on a tensor's weights."""
    l1, _, twice_l2 = coefficients
    kernel = _kernels().step(weights.dtype)
    elements = Elements(weights, arithmetic.memory_order(weights), weights.dtype)
    length = PIECE_TILES * arithmetic.tile_size(weights.itemsize)
    told = step * l1, 1 + step * twice_l2, twice_l2 != 0

    def work_off(take: Callable[[], int | None]) -> None:
        buffers = Buffers()
        while (start := take()) is not None:
            stop = min(start + length, elements.size)
            opened = elements.open(start, stop, buffers, "weights")
            kernel(address_of(opened), stop - start, *told)
            elements.close(start, stop, opened)

    threads.share(range(0, elements.size, length), work_off)
