"""Penalties and gradients of NumPy arrays: the readable form of `docs/arithmetic.md`, and its reference.

The weights are taken chunk by chunk: a chunk is a whole, aligned number of tiles, small enough that it stays in the
cache from the moment it is read until its terms are summed and its gradient is written. So memory is passed over
once, and the scratch memory is a few chunks, whatever the size of the tensor.
"""

import functools
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic
from gpureg.arithmetic import ROWS, Coefficients, TreeSum, tree_sum
from gpureg.backends import Leaf, Scalar, Values

Array = NDArray[Any]

CHUNK = 2**17
"""Elements of a chunk, 8 to 32 tiles: 1 MiB as float64. Smaller ones pay NumPy's calls, larger ones leave the cache."""

OVERLAP_WORK = 2**16
"""Candidates tried before two arrays count as overlapping: microseconds, and enough for views of dense arrays."""


class Write(Enum):
    """What a pass does with the gradient."""

    NOTHING = "nothing"
    STORE = "store"
    ADD = "add"


class NumpyBackend:
    """The backend of NumPy arrays; see `gpureg.backends.Backend` for each method."""

    name = "numpy"

    def unusable(self) -> str | None:  # noqa: D102
        return None

    def value(  # noqa: D102
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, divisor: int = 1
    ) -> Values:
        return _run(leaves, Write.NOTHING, dtype, strength, 1.0, divisor)

    def gradient(self, leaves: Sequence[Leaf], *, strength: Scalar = 1.0, upstream: Scalar = 1.0) -> None:  # noqa: D102
        with np.errstate(all="ignore"):
            for leaf in leaves:
                _pass(leaf, Write.STORE, (False, False), float(strength), float(upstream))

    def value_and_gradient(  # noqa: D102
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        return _run(leaves, Write.STORE, dtype, strength, upstream)

    def accumulate(  # noqa: D102
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        return _run(leaves, Write.ADD, dtype, strength, upstream)

    def proximal(self, leaves: Sequence[Leaf], step: Scalar) -> None:  # noqa: D102
        with np.errstate(all="ignore"):
            for leaf in leaves:
                _proximal(leaf.weights, leaf.coefficients, float(step))

    def from_numpy(self, array: Array) -> Array:  # noqa: D102
        return array.copy()

    def to_numpy(self, array: Any) -> Array:  # noqa: D102
        return np.asarray(array)

    def overlap(self, first: Array, second: Array) -> bool:  # noqa: D102
        try:
            return np.shares_memory(first, second, max_work=OVERLAP_WORK)  # type: ignore[arg-type] # any int is taken
        except np.exceptions.TooHardError:
            return True


backend = NumpyBackend()


def _run(
    leaves: Sequence[Leaf], write: Write, dtype: np.dtype[Any], strength: Scalar, upstream: Scalar, divisor: int = 1
) -> Values:
    """Make one pass over each leaf and return the penalties."""
    strength, upstream = float(strength), float(upstream)
    each = np.empty(len(leaves))
    # Overflow, underflow and NaN are answers here, not accidents, whatever the caller has np.seterr say of them.
    with np.errstate(all="ignore"):
        for i, leaf in enumerate(leaves):
            l1, l2 = leaf.coefficients.scaled(strength)
            sums = _pass(leaf, write, (l1 != 0, l2 != 0), strength, upstream)
            each[i] = arithmetic.penalty(leaf.coefficients, strength, *sums)
        total = float(tree_sum(each)) / divisor
        return Values(arithmetic.round_once(total, dtype), each)


def _pass(leaf: Leaf, write: Write, wanted: tuple[bool, bool], strength: float, upstream: float) -> tuple[float, float]:
    """Pass once over a tensor: return the sums wanted of |w| and w*w (+0.0 for the others), and write the gradient."""
    axes = arithmetic.memory_order(leaf.weights)
    weights = _Elements(leaf.weights, axes)
    compute = arithmetic.compute_dtype(leaf.weights.dtype)
    coefficients = arithmetic.gradient_coefficients(leaf.coefficients, strength, upstream, compute)
    if write is Write.ADD and not any(coefficients):
        write = Write.NOTHING  # not even `g + 0`, which would turn -0.0 into +0.0
    gradient = _Elements(leaf.gradient, axes) if write is not Write.NOTHING else None

    size = min(CHUNK, weights.size)
    gathered = np.empty(0 if weights.contiguous else size, leaf.weights.dtype)
    terms = np.empty((sum(wanted), size))
    result, scratch = np.empty((2, size if gradient else 0), compute)
    trees = TreeSum(), TreeSum()

    for start in range(0, weights.size, CHUNK):
        stop = min(start + CHUNK, weights.size)
        x = weights.read(start, stop, gathered)
        _add_chunk(trees, x, wanted, terms)
        if gradient:
            g, s = result[: x.size], scratch[: x.size]
            _gradient(x, *coefficients, out=g, scratch=s)
            if write is Write.ADD:
                gradient.load(start, stop, out=s)
                np.add(s, g, out=g)
            gradient.store(start, g)
    return trees[0].total(), trees[1].total()


def _add_chunk(trees: tuple[TreeSum, TreeSum], x: Array, wanted: tuple[bool, bool], terms: NDArray[np.float64]) -> None:
    """Add the sums wanted of a chunk's |x| and x*x to their trees: the chunk is one subtree of each."""
    itemsize = x.dtype.itemsize
    squares = terms[-1, : x.size] if terms.size else np.empty(0)
    if any(wanted):
        np.copyto(squares, x)  # exact: float64 holds every value of every dtype
    if wanted[0]:
        absolutes = terms[0, : x.size]
        np.abs(squares, out=absolutes)
        trees[0].add(_sum_tiles(absolutes, itemsize))
    if wanted[1]:
        # |x| takes the same square; where both are wanted they lie in two rows, else in one.
        np.multiply(squares, squares, out=squares)
        trees[1].add(_sum_tiles(squares, itemsize))


def _sum_tiles(terms: NDArray[np.float64], itemsize: int) -> float:
    """Sum the terms of consecutive tiles, the last of which may be ragged: rows to lanes, lanes to tiles, tiles to one.

    A lane's sum is never -0.0, for its terms are not; so what is absent may be left out instead of adding +0.0.
    """
    tile, lanes = arithmetic.tile_size(itemsize), arithmetic.lane_count(itemsize)
    whole, rest = divmod(terms.size, tile)
    sums = np.empty(whole + (rest > 0))
    if whole:
        sums[:whole] = tree_sum(_sum_rows(terms[: whole * tile].reshape(whole, ROWS, lanes)))
    if rest:
        rows, part = divmod(rest, lanes)
        ragged = terms[whole * tile :]
        lane_sums = np.zeros(lanes if rows else part)
        if rows:
            lane_sums = _sum_rows(ragged[: rows * lanes].reshape(1, rows, lanes))[0]
        lane_sums[:part] += ragged[rows * lanes :]
        sums[whole] = tree_sum(lane_sums)
    return float(tree_sum(sums))


def _sum_rows(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum (tiles, rows, lanes) over the rows, one after another from row 0 on, as arithmetic.md has it."""
    if _reduces_in_order():
        return cast("NDArray[np.float64]", np.add.reduce(terms, axis=1))
    sums = terms[:, 0].copy()
    for row in range(1, terms.shape[1]):
        sums += terms[:, row]
    return sums


@functools.cache
def _reduces_in_order() -> bool:
    """Whether `np.add.reduce` over a middle axis adds rows in order, as all of NumPy's versions so far do.

    It is a third faster than adding the rows by hand, but its order is not promised. So it is asked, once, with terms
    of such different sizes that any other order gives other bits, in the shapes that are used.
    """
    for tiles in (1, 2):
        for lanes in map(arithmetic.lane_count, (2, 4, 8)):
            index = np.arange(tiles * ROWS * lanes).reshape(tiles, ROWS, lanes)
            terms = np.ldexp(np.abs(np.sin(index)), index % 53)
            by_hand = terms[:, 0].copy()
            for row in range(1, ROWS):
                by_hand += terms[:, row]
                if not np.array_equal(np.add.reduce(terms[:, : row + 1].copy(), axis=1), by_hand):
                    return False
    return True


def _gradient(x: Array, c1: Any, c2: Any, *, out: Array, scratch: Array) -> None:
    """Write `c1 * sign(x) + c2 * x`, each operation rounded in `out`'s dtype; no term for a coefficient of zero."""
    if c1 == 0 and c2 == 0:
        out.fill(0)
        return
    np.copyto(out, x)  # exact
    if c1 == 0:
        np.multiply(out, c2, out=out)
        return
    np.sign(out, out=scratch)  # +0.0 for both zeros, NaN for NaN
    np.multiply(scratch, c1, out=scratch)
    if c2 == 0:
        np.copyto(out, scratch)
    else:
        np.multiply(out, c2, out=out)
        np.add(scratch, out, out=out)


def _proximal(weights: Array, coefficients: Coefficients, step: float) -> None:
    """Take `sign(w) * max(|w| - t, 0) / d` in place, with t = step * l1 and d = 1 + step * 2 * l2."""
    elements = _Elements(weights, arithmetic.memory_order(weights))
    compute = arithmetic.compute_dtype(weights.dtype)
    threshold = compute.type(step * coefficients.l1)
    divisor = compute.type(1 + step * coefficients.twice_l2)
    size = min(CHUNK, elements.size)
    scratch, result = np.empty((2, size), compute), np.empty(size, weights.dtype)
    for start in range(0, elements.size, CHUNK):
        stop = min(start + CHUNK, elements.size)
        x, signs = scratch[:, : stop - start]
        elements.load(start, stop, out=x)
        np.sign(x, out=signs)
        np.abs(x, out=x)
        np.subtract(x, threshold, out=x)
        np.maximum(x, 0, out=x)
        np.multiply(signs, x, out=x)
        if coefficients.twice_l2 != 0:
            np.divide(x, divisor, out=x)
        rounded = result[: stop - start]
        np.copyto(rounded, x, casting="unsafe")
        # A zero result is +0.0, also where rounding a small negative number made the zero.
        np.add(rounded, rounded.dtype.type(0), out=rounded)
        elements.store(start, rounded)


class _Elements:
    """The elements of an array in a given order of its axes, read and written by range, whatever its layout."""

    def __init__(self, array: Array, axes: tuple[int, ...]) -> None:
        view = array.transpose(axes)
        self.size = view.size
        self.contiguous = view.flags.c_contiguous
        self._view = view.reshape(-1) if self.contiguous else view

    def read(self, start: int, stop: int, gathered: Array) -> Array:
        """Return the elements start to stop, 1-d: a view if they lie side by side, else a copy in `gathered`."""
        if self.contiguous:
            return self._view[start:stop]
        self.load(start, stop, out=gathered[: stop - start])
        return gathered[: stop - start]

    def load(self, start: int, stop: int, *, out: Array) -> None:
        """Copy the elements start to stop into `out`, 1-d, converting them."""
        filled = 0
        for block in _blocks(self._view, start, stop):
            np.copyto(out[filled : filled + block.size].reshape(block.shape), block, casting="unsafe")
            filled += block.size

    def store(self, start: int, values: Array) -> None:
        """Copy `values`, 1-d, to the elements from start on, rounding them to the array's dtype."""
        taken = 0
        for block in _blocks(self._view, start, start + values.size):
            np.copyto(block, values[taken : taken + block.size].reshape(block.shape), casting="unsafe")
            taken += block.size


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
