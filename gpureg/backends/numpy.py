"""Penalties and gradients of NumPy arrays: the readable form of `docs/arithmetic.md`, and its reference.

The weights are taken chunk by chunk: a chunk is a whole, aligned number of tiles, small enough that it stays in the
cache from the moment it is read until its terms are summed and its gradient is written. So memory is passed over
once, and the scratch memory is a few chunks a thread, whatever the size of the tensors.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, threads
from gpureg.arithmetic import ROWS, Coefficients, tree_sum
from gpureg.backends import Leaf, Mode, ModePlan, Plan, Results, Scalar, Values
from gpureg.memory import address_of
from gpureg.statistics import Statistics

Array = NDArray[Any]

CHUNK = 2**17
"""Elements of a chunk, 8 to 32 tiles: 1 MiB as float64. Smaller ones pay NumPy's calls, larger ones leave the cache."""

OVERLAP_WORK = 2**16
"""Candidates tried before two arrays count as overlapping: microseconds, and enough for views of dense arrays."""


class NumpyBackend:
    """The backend of NumPy arrays; see `gpureg.backends.Backend` for each method."""

    name = "numpy"
    trusts_identity = False

    def unusable(self) -> str | None:  # noqa: D102
        return None

    def plan(self, leaves: Sequence[Leaf]) -> Plan:  # noqa: D102
        return NumpyPlan(leaves)

    def proximal_plan(self, leaves: Sequence[Leaf]) -> "NumpySteps":  # noqa: D102
        return NumpySteps(leaves, _proximal)

    def statistics(self, arrays: Sequence[Array], threshold: float) -> list[Statistics]:  # noqa: D102
        from gpureg.backends.numpy_statistics import statistics  # noqa: PLC0415 - it needs this module

        return statistics(arrays, threshold)

    def from_numpy(self, array: Array) -> Array:  # noqa: D102
        return array.copy()

    def to_numpy(self, array: Any) -> Array:  # noqa: D102
        return np.asarray(array)

    def address(self, array: Array) -> int:  # noqa: D102
        return address_of(array)

    def overlap(self, first: Array, second: Array) -> bool:  # noqa: D102
        try:
            return np.shares_memory(first, second, max_work=OVERLAP_WORK)  # type: ignore[arg-type] # any int is taken
        except np.exceptions.TooHardError:
            return True


backend = NumpyBackend()


class NumpyPlan(ModePlan):
    """Tensors cut into chunks, or stacked where they are small, which threads take; see `gpureg.backends.Plan`."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._coefficients = [leaf.coefficients for leaf in leaves]
        self._parts = _parts(leaves)
        self._order = [index for part in self._parts for index in part.members]
        self._work = list(_pieces([part.weights.size for part in self._parts]))

    def bind(self, gradients: Sequence[Array]) -> "_Bound":  # noqa: D102
        return _Bound([part.bind([gradients[index] for index in part.members]) for part in self._parts])

    def _run(
        self,
        mode: Mode,
        dtype: np.dtype[Any],
        gradients: "_Bound | None",
        strength: Scalar,
        upstream: Scalar,
        divisor: int = 1,
        every_sum: bool = False,
    ) -> Values:
        """Pass over all pieces and put together the penalties."""
        strength, upstream = float(strength), float(upstream)
        # Overflow, underflow and NaN are answers here, not accidents, whatever the caller has np.seterr say of them.
        with np.errstate(all="ignore"):
            passes = [
                _Pass(part, mode, gradients.parts[i] if gradients else None, strength, upstream, every_sum)
                for i, part in enumerate(self._parts)
            ]
            if len(self._work) > 1:
                threads.share(self._work, functools.partial(_work_off, passes))
            elif self._work:
                _take(passes, self._work[0], Buffers())
            if len(passes) == 1:
                sums = passes[0].sums()
            else:
                sums = np.empty((len(self._order), 2))
                if passes:
                    sums[self._order] = np.concatenate([one.sums() for one in passes])
            leaves = zip(self._coefficients, sums.tolist(), strict=True)
            each = np.array([arithmetic.penalty(own, strength, *pair) for own, pair in leaves])
            total = arithmetic.round_once(float(tree_sum(each)) / divisor, dtype)
            return Results(total, each, each.astype(np.float32), sums if every_sum else None)


def _work_off(passes: "Sequence[_Pass]", take: Callable[[], "list[_Piece] | None"]) -> None:
    """Take pieces until there are no more."""
    buffers = Buffers()
    with np.errstate(all="ignore"):  # which each thread has for itself
        while (pieces := take()) is not None:
            _take(passes, pieces, buffers)


def _take(passes: "Sequence[_Pass]", pieces: "list[_Piece]", buffers: "Buffers") -> None:
    for which, start, stop in pieces:
        passes[which].take(start, stop, buffers)


_FLOAT64 = np.dtype(np.float64)


class _Bound:
    """The elements of gradients, part by part."""

    keeps_arrays = True

    def __init__(self, parts: "list[Elements | _Stack]") -> None:
        self.parts = parts

    def moved(self, addresses: NDArray[np.int64]) -> None:
        """Return None: the elements are the arrays' own, wherever they are."""


class _Part:
    """One tensor of a plan; or small ones of one dtype and coefficients, stacked, so that NumPy is called once for all.

    The elements of a stack are rows of one width, a power of two: a row has the lanes of a tensor of one row of a tile,
    filled up with zeros, which change neither of its sums.
    """

    def __init__(self, leaves: Sequence[Leaf], members: Sequence[int], width: int) -> None:
        arrays = [leaves[index].weights for index in members]
        self.members, self.width = members, width
        self.compute = arithmetic.compute_dtype(arrays[0].dtype)
        self.coefficients = leaves[members[0]].coefficients
        self._axes = [arithmetic.memory_order(array) for array in arrays]
        self.weights = self._elements(arrays, arrays[0].dtype)

    def bind(self, gradients: Sequence[Array]) -> "Elements | _Stack":
        """Return the elements of gradients in the order of the weights."""
        return self._elements(gradients, self.compute)

    def _elements(self, arrays: Sequence[Array], dtype: np.dtype[Any]) -> "Elements | _Stack":
        if self.width:
            views = [array.transpose(axes) for array, axes in zip(arrays, self._axes, strict=True)]
            return _Stack(views, self.width, dtype)
        return Elements(arrays[0], self._axes[0], dtype)


def _parts(leaves: Sequence[Leaf]) -> list[_Part]:
    """Return the parts of a plan."""
    if len(leaves) == 1:
        return [_Part(leaves, [0], 0)]
    stacks: dict[tuple[Any, ...], list[int]] = {}
    for index, (weights, coefficients) in enumerate(leaves):
        small = 0 < weights.size <= arithmetic.lane_count(weights.itemsize)
        width = 1 << (weights.size - 1).bit_length() if small else 0
        stacks.setdefault((weights.dtype, coefficients, width) if small else (index,), []).append(index)
    return [_Part(leaves, members, 0 if len(key) == 1 else key[-1]) for key, members in stacks.items()]


class _Piece(NamedTuple):
    """Elements start to stop of a part: a chunk, or all there are."""

    which: int
    start: int
    stop: int


def _pieces(sizes: Sequence[int]) -> Iterator[list[_Piece]]:
    """Yield the pieces of parts of these sizes, small ones together, so that each list is worth handing to a thread."""
    small: list[_Piece] = []
    room = CHUNK
    for index, elements in enumerate(sizes):
        for start in range(0, elements, CHUNK):
            piece = _Piece(index, start, min(start + CHUNK, elements))
            size = piece.stop - start + CHUNK // 64  # what a call costs, in elements
            if small and size > room:
                yield small
                small, room = [], CHUNK
            small.append(piece)
            room -= size
    if small:
        yield small


class _Pass:
    """One pass over a part, piece by piece, in any order and by several threads at once."""

    __slots__ = ("_c1", "_c2", "_gradient", "_leaves", "_part", "_wanted", "_writes")

    def __init__(
        self,
        part: _Part,
        mode: Mode,
        gradient: "Elements | _Stack | None",
        strength: float,
        upstream: float,
        every_sum: bool,
    ) -> None:
        self._part, self._gradient, self._writes = part, gradient, mode
        l1, l2 = part.coefficients.scaled(strength)
        self._wanted = (False, False) if mode is Mode.GRADIENT else (l1 != 0 or every_sum, l2 != 0 or every_sum)
        self._c1, self._c2 = arithmetic.gradient_coefficients(part.coefficients, strength, upstream, part.compute)
        if mode is Mode.ACCUMULATE and self._c1 == 0 and self._c2 == 0:
            self._gradient = None  # not even `g + 0`, which would turn -0.0 into +0.0
        # Each chunk is an aligned group of tiles, and so a leaf of the tree; each row of a stack is a tensor. +0.0 if a
        # sum is not wanted.
        self._leaves = np.zeros((2, -(-part.weights.size // (part.width or CHUNK))))

    def take(self, start: int, stop: int, buffers: "Buffers") -> None:
        """Sum up the elements start to stop, and write their gradient."""
        used = [i for i in (0, 1) if self._wanted[i]]
        if not used and self._gradient is None:
            return
        n, width = stop - start, self._part.width
        x = self._part.weights.open(start, stop, buffers, "weights")
        if used:
            terms = _terms(x, self._wanted, buffers.get("terms", len(used) * n, _FLOAT64).reshape(-1, n))
            if width:
                self._leaves[used, start // width : stop // width] = tree_sum(terms.reshape(len(used), -1, width))
            else:
                self._leaves[used, start // CHUNK] = _sum_tiles(terms, x.itemsize)
        if self._gradient is not None:
            adds, compute = self._writes is Mode.ACCUMULATE, self._part.compute
            g = self._gradient.open(start, stop, buffers, "gradient", read=adds)
            new = buffers.get("new", n, compute) if adds else g
            _gradient(x, self._c1, self._c2, out=new, scratch=buffers.get("signs", n, compute))
            if adds:
                np.add(g, new, out=g)
            self._gradient.close(start, stop, g)

    def sums(self) -> Array:
        """Return the sums of |w| and w*w, a row for each tensor, once all pieces are done."""
        return self._leaves.T if self._part.width else tree_sum(self._leaves)[np.newaxis]


class Buffers:
    """Scratch memory of one thread, by what it is for; it grows to a few MiB and is used again for every piece."""

    def __init__(self) -> None:
        self._memory: dict[str, Array] = {}

    def get(self, name: str, size: int, dtype: np.dtype[Any]) -> Array:
        """Return an array of so many elements of any value, which the next call for the same use overwrites."""
        needed = size * dtype.itemsize
        memory = self._memory.get(name)
        if memory is None or memory.size < needed:
            memory = self._memory[name] = np.empty(needed, np.uint8)
        return memory[:needed].view(dtype)


def _terms(x: Array, wanted: tuple[bool, bool], out: NDArray[np.float64]) -> NDArray[np.float64]:
    """Write the terms of the sums wanted, |x| and then x*x, a row of `out` each, and return it."""
    np.copyto(out[-1], x)  # exact: float64 holds every value of every dtype
    if wanted[0]:
        np.abs(out[-1], out=out[0])
    if wanted[1]:
        np.multiply(out[-1], out[-1], out=out[-1])
    return out


def _sum_tiles(terms: NDArray[np.float64], itemsize: int) -> NDArray[np.float64]:
    """Sum rows of terms of consecutive tiles, the last of which may be ragged: rows of a tile to lanes, lanes to tiles.

    A lane's sum is never -0.0, for its terms are not; so what is absent may be left out instead of adding +0.0.
    """
    tile, lanes = arithmetic.tile_size(itemsize), arithmetic.lane_count(itemsize)
    count, size = terms.shape
    whole, rest = divmod(size, tile)
    sums = np.empty((count, whole + (rest > 0)))
    if whole:
        sums[:, :whole] = tree_sum(_sum_rows(terms[:, : whole * tile].reshape(count, whole, ROWS, lanes)))
    if rest:
        rows, part = divmod(rest, lanes)
        ragged = terms[:, whole * tile :]
        lane_sums = np.zeros((count, lanes if rows else part))
        if rows:
            lane_sums = _sum_rows(ragged[:, : rows * lanes].reshape(count, 1, rows, lanes))[:, 0]
        lane_sums[:, :part] += ragged[:, rows * lanes :]
        sums[:, whole] = tree_sum(lane_sums)
    return tree_sum(sums)


def _sum_rows(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum (sums, tiles, rows, lanes) over the rows, one after another from row 0 on, as arithmetic.md has it."""
    return np.add.reduce(terms, axis=2) if _reduces_in_order() else _sum_rows_by_hand(terms)


def _sum_rows_by_hand(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = terms[:, :, 0].copy()
    for row in range(1, terms.shape[2]):
        sums += terms[:, :, row]
    return sums


@functools.cache
def _reduces_in_order() -> bool:
    """Whether `np.add.reduce` over a middle axis adds rows in order, as all of NumPy's versions so far do.

    It is a third faster than adding the rows by hand, but its order is not promised. So it is asked, once, with terms
    of such different sizes that any other order gives other bits, in arrays that lie as those that are used.
    """
    for shape in itertools.product((1, 2), (1, 2), (ROWS,), map(arithmetic.lane_count, (2, 4, 8))):
        index = np.arange(math.prod(shape)).reshape(shape)
        terms = np.ldexp(np.abs(np.sin(index)), index % 53)
        for rows in (2, 3, ROWS - 1, ROWS):
            if not np.array_equal(np.add.reduce(terms[:, :, :rows], axis=2), _sum_rows_by_hand(terms[:, :, :rows])):
                return False
    return True


def _gradient(x: Array, c1: Any, c2: Any, *, out: Array, scratch: Array) -> None:
    """Write `c1 * sign(x) + c2 * x`, each operation rounded in `out`'s dtype; no term for a coefficient of zero."""
    if c1 == 0 and c2 == 0:
        out.fill(0)
        return
    if x.dtype != out.dtype:
        np.copyto(out, x)  # exact
        x = out
    if c1 == 0:
        np.multiply(x, c2, out=out)
        return
    first = out if c2 == 0 else scratch
    np.sign(x, out=first)  # +0.0 for both zeros, NaN for NaN
    np.multiply(first, c1, out=first)
    if c2 != 0:
        np.multiply(x, c2, out=out)
        np.add(first, out, out=out)


def _proximal(weights: Array, coefficients: Coefficients, step: float) -> None:
    """Take `sign(w) * max(|w| - t, 0) / d` in place, with t = step * l1 and d = 1 + step * 2 * l2."""
    compute = arithmetic.compute_dtype(weights.dtype)
    threshold = compute.type(step * coefficients.l1)
    divisor = compute.type(1 + step * coefficients.twice_l2)
    elements = Elements(weights, arithmetic.memory_order(weights), weights.dtype)
    buffers = Buffers()
    for start in range(0, elements.size, CHUNK):
        stop = min(start + CHUNK, elements.size)
        w = elements.open(start, stop, buffers, "weights")
        x, signs = (buffers.get(name, stop - start, compute) for name in ("numbers", "signs"))
        np.copyto(x, w)
        np.sign(x, out=signs)
        np.abs(x, out=x)
        np.subtract(x, threshold, out=x)
        np.maximum(x, 0, out=x)
        np.multiply(signs, x, out=x)
        if coefficients.twice_l2 != 0:
            np.divide(x, divisor, out=x)
        np.copyto(w, x, casting="unsafe")
        # A zero result is +0.0, also where rounding a small negative number made the zero.
        np.add(w, w.dtype.type(0), out=w)
        elements.close(start, stop, w)


class NumpySteps:
    """Tensors that proximal steps are taken on, one after another; see `gpureg.backends.ProximalPlan`."""

    def __init__(self, leaves: Sequence[Leaf], step: Callable[[Array, Coefficients, float], None]) -> None:
        self._leaves, self._step = leaves, step

    def take(  # noqa: D102
        self, lengths: Sequence[Scalar], *, strength: Scalar = 1.0, skips: Scalar = 0.0
    ) -> None:
        if float(skips) != 0:
            return
        factor = float(strength)
        with np.errstate(all="ignore"):
            for (weights, coefficients), length in zip(self._leaves, lengths, strict=True):
                scaled = Coefficients(*(factor * each for each in coefficients))
                self._step(weights, scaled, float(length))


class Elements:
    """The elements of an array in a given order of its axes, opened by range as numbers of a given dtype.

    What is opened is a view where the elements lie side by side and have the dtype; else a buffer, which `close` writes
    back, rounding to the array's dtype.
    """

    __slots__ = ("_dtype", "_is_view", "_view", "size")

    def __init__(self, array: Array, axes: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        view = array.transpose(axes)
        contiguous = view.flags.c_contiguous
        self.size = view.size
        self._dtype = dtype
        self._view = view.reshape(-1) if contiguous else view
        self._is_view = contiguous and view.dtype == dtype

    def open(self, start: int, stop: int, buffers: Buffers, name: str, *, read: bool = True) -> Array:
        """Return the elements start to stop, 1-d; of any value, if they are not to be read."""
        if self._is_view:
            return self._view[start:stop]
        opened = buffers.get(name, stop - start, self._dtype)
        if read:
            for block, part in self._blocks(start, stop, opened):
                np.copyto(part, block)
        return opened

    def close(self, start: int, stop: int, opened: Array) -> None:
        """Write what was opened to where it belongs."""
        if not self._is_view:
            for block, part in self._blocks(start, stop, opened):
                np.copyto(block, part, casting="unsafe")

    def _blocks(self, start: int, stop: int, opened: Array) -> Iterator[tuple[Array, Array]]:
        """Yield views of the elements start to stop, block by block, each with its part of what was opened."""
        taken = 0
        for block in _blocks(self._view, start, stop):
            yield block, opened[taken : taken + block.size].reshape(block.shape)
            taken += block.size


class _Stack:
    """The elements of small arrays as rows of one width, opened and closed as those of `Elements`."""

    __slots__ = ("_dtype", "_even", "_views", "_width", "size")

    def __init__(self, views: Sequence[Array], width: int, dtype: np.dtype[Any]) -> None:
        self.size = len(views) * width
        self._width, self._dtype = width, dtype
        self._views = [view.reshape(-1) if view.flags.c_contiguous else view for view in views]
        self._even = all(view.shape == (width,) for view in self._views)

    def open(self, start: int, stop: int, buffers: Buffers, name: str, *, read: bool = True) -> Array:
        """Return the rows of the elements start to stop, 1-d; of any value, if they are not to be read."""
        opened = buffers.get(name, stop - start, self._dtype)
        if read and self._even:
            np.concatenate(self._views[start // self._width : stop // self._width], out=opened)
        elif read:
            opened.fill(0)
            for view, row in self._rows(start, opened):
                np.copyto(row, view)
        return opened

    def close(self, start: int, stop: int, opened: Array) -> None:  # noqa: ARG002 - as in `Elements`
        """Write what was opened to where it belongs."""
        for view, row in self._rows(start, opened):
            np.copyto(view, row, casting="unsafe")

    def _rows(self, start: int, opened: Array) -> Iterator[tuple[Array, Array]]:
        """Yield each array with its part of what was opened."""
        first = start // self._width
        for view, row in zip(itertools.islice(self._views, first, None), opened.reshape(-1, self._width), strict=False):
            yield view, row[: view.size].reshape(view.shape)


def _blocks(array: Array, start: int, stop: int) -> Iterator[Array]:
    """Yield views whose elements, one view after another, are the array's elements start to stop in C order.

    At most two for each axis and one more: what is left of a first row, the whole rows, what is needed of a last row.
    """
    if array.ndim == 1:
        yield array[start:stop]
        return
    row = array.size // array.shape[0]
    first, last = -(-start // row), stop // row  # the whole rows are first to last
    if first > last:
        yield from _blocks(array[last], start - last * row, stop - last * row)
        return
    if start < first * row:
        yield from _blocks(array[first - 1], start - (first - 1) * row, row)
    if first < last:
        yield array[first:last]
    if last * row < stop:
        yield from _blocks(array[last], 0, stop - last * row)
