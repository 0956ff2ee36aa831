"""The definition of every number gpureg returns, but for the passes over memory that a backend makes.

The sizes that fix the order of a sum, the tree that adds its parts, the formulas on scalars and the bound of the
error stand here once; backends, tests and documentation take them from here. `docs/arithmetic.md` tells the whole,
with the reasons.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TILE_BYTES = 32768
"""A tile is this many bytes of weights; the last tile of a tensor may be shorter."""

ROW_BYTES = 2048
"""A row of a tile is this many bytes: one 16-byte load of each of 128 threads."""

ROWS = TILE_BYTES // ROW_BYTES
"""Rows of a tile, and so the terms that a lane adds."""


def tile_size(itemsize: int) -> int:
    """Elements of a tile for elements of `itemsize` bytes.

    >>> tile_size(4)
    8192
    """
    return TILE_BYTES // itemsize


def lane_count(itemsize: int) -> int:
    """Lanes of a tile, that is the elements of a row, for elements of `itemsize` bytes.

    >>> lane_count(4)
    512
    """
    return ROW_BYTES // itemsize


def memory_order(array: Any) -> tuple[int, ...]:
    """Return the order of axes that sums follow: memory order for a dense array, C order for any other.

    Dense: without its axes of size 1, all strides are positive and there are no gaps, in any order of the axes.

    >>> memory_order(np.empty((2, 3), order="F"))
    (1, 0)
    """
    c_order = tuple(range(array.ndim))
    if array.flags.c_contiguous:
        return c_order
    axes = sorted(c_order, key=lambda axis: -array.strides[axis])
    expected = array.itemsize
    for axis in reversed(axes):
        if array.shape[axis] != 1:
            if array.strides[axis] != expected:
                return c_order
            expected *= array.shape[axis]
    return tuple(axes)


def tree_sum(leaves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum the last axis by the perfect binary tree, neighbours first, padded with +0.0 to a power of two.

    Padding each odd level by one zero gives the bits of padding the leaves once: a tree of zeros is +0.0.

    >>> tree_sum(np.array([1.0, 2.0, 4.0]))  # (1 + 2) + (4 + 0)
    array(7.)
    """
    if leaves.shape[-1] == 0:
        return np.zeros(leaves.shape[:-1])
    while leaves.shape[-1] > 1:
        if leaves.shape[-1] % 2:
            leaves = np.concatenate([leaves, np.zeros((*leaves.shape[:-1], 1))], axis=-1)
        leaves = leaves[..., 0::2] + leaves[..., 1::2]
    return np.asarray(leaves[..., 0])


class Coefficients(NamedTuple):
    """What a regularizer multiplies: `l1 * sum|w| + l2 * sum w*w`, with derivative `l1 * sign(w) + twice_l2 * w`.

    `twice_l2` is kept beside `l2` so that the halved form's derivative is the coefficient as given.
    """

    l1: float
    l2: float
    twice_l2: float

    def scaled(self, strength: float) -> tuple[float, float]:
        """Return the coefficients of sum|w| and sum w*w at a strength; a sum whose coefficient is 0 is not needed."""
        return self.l1 * strength, self.l2 * strength


def penalty(coefficients: Coefficients, strength: float, sum_abs: float, sum_squares: float) -> float:
    """Return `l1 * sum_abs + l2 * sum_squares` in float64; a term whose coefficient is 0 is skipped, so 0 * inf is 0.

    >>> penalty(Coefficients(l1=0.5, l2=0.0, twice_l2=0.0), 1.0, 10.0, math.inf)
    5.0
    """
    l1, l2 = coefficients.scaled(strength)
    if l2 == 0:
        return l1 * sum_abs if l1 != 0 else 0.0
    return l1 * sum_abs + l2 * sum_squares if l1 != 0 else l2 * sum_squares


def gradient_coefficients(
    coefficients: Coefficients, strength: float, upstream: float, compute: np.dtype[Any]
) -> tuple[Any, Any]:
    """Return c1 and c2 of `c1 * sign(w) + c2 * w`: formed in float64, left to right, and rounded once to `compute`.

    An overflow to infinity is meant; call it where NumPy does not warn of that.
    """
    return (
        compute.type((coefficients.l1 * strength) * upstream),
        compute.type((coefficients.twice_l2 * strength) * upstream),
    )


def compute_dtype(weights: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that gradients are formed in: float64 for float64 weights, else float32."""
    return np.dtype(np.float64 if weights.itemsize == 8 else np.float32)


_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def result_dtype(weights: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype of a penalty over tensors of these dtypes: float64 if any is, else float32."""
    return _FLOAT64 if 8 in [dtype.itemsize for dtype in weights] else _FLOAT32


def round_once(value: float, dtype: np.dtype[Any]) -> Any:
    """Round a float64 to a scalar of `dtype`; to the 16-bit dtypes by way of float32, as every backend does.

    An overflow to infinity is meant; call it where NumPy does not warn of that.

    >>> round_once(0.1, np.dtype(np.float32))
    np.float32(0.1)
    """
    return np.float64(value) if dtype.itemsize == 8 else dtype.type(np.float32(value))


def error_bound(size: int, itemsize: int) -> float:
    """Return the relative bound of the error of a sum of `size` elements, before its last rounding.

    A term passes at most 15 additions in its lane (the first is to +0.0, and exact), one for each level of both trees,
    and is itself rounded at most once (a float64 square). Each step is off by at most 2**-53 relative, and one more
    unit covers the products of these errors. All terms are non-negative, so no error is magnified. Float64 squares
    that underflow add at most `size * 2**-1075` to it, absolute; where a sum overflows there is no bound.

    >>> error_bound(2**26, 4) * 2**53
    39.0
    """
    tiles = -(-size // tile_size(itemsize))
    levels = math.log2(lane_count(itemsize)) + math.ceil(math.log2(max(tiles, 1)))
    return (ROWS + levels + 1) * 2.0**-53
