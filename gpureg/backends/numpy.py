"""Penalties and gradients of NumPy arrays: the readable form of `docs/arithmetic.md`, and its reference.

The weights are taken chunk by chunk: a chunk is a whole, aligned number of tiles, small enough that it stays in the
cache from the moment it is read until its terms are summed and its gradient is written. So memory is passed over
once, and the scratch memory is a few chunks, whatever the size of the tensor.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

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
    compute = arithmetic.compute_dtype(leaf.weights.dtype)
    c1, c2 = arithmetic.gradient_coefficients(leaf.coefficients, strength, upstream, compute)
    if write is Write.ADD and c1 == 0 and c2 == 0:
        write = Write.NOTHING  # not even `g + 0`, which would turn -0.0 into +0.0
    gradient = _Elements(leaf.gradient, axes, compute) if write is not Write.NOTHING else None
    if gradient is None and not any(wanted):
        return 0.0, 0.0
    weights = _Elements(leaf.weights, axes, leaf.weights.dtype)

    size = min(CHUNK, weights.size)
    terms = np.empty(sum(wanted) * size)
    new, scratch = np.empty((2, size if gradient else 0), compute)
    trees = TreeSum(), TreeSum()
    used = [tree for tree, needed in zip(trees, wanted, strict=True) if needed]

    for start in range(0, weights.size, CHUNK):
        stop = min(start + CHUNK, weights.size)
        n = stop - start
        x = weights.open(start, stop)
        if used:
            chunk = _terms(x, wanted, terms[: len(used) * n].reshape(-1, n))
            for tree, subtree in zip(used, _sum_tiles(chunk, x.itemsize), strict=True):
                tree.add(float(subtree))
        if gradient:
            g = gradient.open(start, stop, read=write is Write.ADD)
            if write is Write.STORE:
                _gradient(x, c1, c2, out=g, scratch=scratch[:n])
            else:
                _gradient(x, c1, c2, out=new[:n], scratch=scratch[:n])
                np.add(g, new[:n], out=g)
            gradient.close(start, stop)
    return trees[0].total(), trees[1].total()


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
    elements = _Elements(weights, arithmetic.memory_order(weights), weights.dtype)
    scratch = np.empty((2, min(CHUNK, elements.size)), compute)
    for start in range(0, elements.size, CHUNK):
        stop = min(start + CHUNK, elements.size)
        w = elements.open(start, stop)
        x, signs = scratch[:, : stop - start]
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
        elements.close(start, stop)


class _Elements:
    """The elements of an array in a given order of its axes, opened by range as numbers of a given dtype.

    What is opened is a view where the elements lie side by side and have the dtype; else a buffer, which `close` writes
    back, rounding to the array's dtype.
    """

    def __init__(self, array: Array, axes: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        view = array.transpose(axes)
        contiguous = view.flags.c_contiguous
        self.size = view.size
        self._view = view.reshape(-1) if contiguous else view
        self._buffer = None if contiguous and view.dtype == dtype else np.empty(min(CHUNK, view.size), dtype)

    def open(self, start: int, stop: int, *, read: bool = True) -> Array:
        """Return the elements start to stop, 1-d; of any value, if they are not to be read."""
        if self._buffer is None:
            return self._view[start:stop]
        if read:
            for block, part in self._blocks(start, stop):
                np.copyto(part, block)
        return self._buffer[: stop - start]

    def close(self, start: int, stop: int) -> None:
        """Write what was opened to where it belongs."""
        if self._buffer is not None:
            for block, part in self._blocks(start, stop):
                np.copyto(block, part, casting="unsafe")

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[Array, Array]]:
        """Yield views of the elements start to stop, block by block, each with its part of the buffer."""
        assert self._buffer is not None
        taken = 0
        for block in _blocks(self._view, start, stop):
            yield block, self._buffer[taken : taken + block.size].reshape(block.shape)
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
