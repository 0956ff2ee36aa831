"""The tree and the scalar formulas, beside the sentences of docs/arithmetic.md that define them."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpureg import arithmetic
from gpureg.arithmetic import Coefficients, tree_sum

terms = st.lists(st.floats(min_value=0, allow_nan=False, allow_subnormal=True), max_size=70)


def padded_tree(leaves: list[float]) -> float:
    """Add the perfect binary tree over the leaves, padded with zeros to a power of two."""
    size = 1
    while size < len(leaves):
        size *= 2
    leaves = leaves + [0.0] * (size - len(leaves))
    while len(leaves) > 1:
        leaves = [leaves[i] + leaves[i + 1] for i in range(0, len(leaves), 2)]
    return leaves[0]


@given(terms)
def test_the_tree_is_the_padded_perfect_tree(leaves: list[float]) -> None:
    with np.errstate(over="ignore"):
        assert tree_sum(np.array(leaves)) == padded_tree(leaves)


@given(terms, st.integers(0, 4))
def test_leaves_may_be_given_in_aligned_groups(leaves: list[float], level: int) -> None:
    groups = [padded_tree(leaves[start : start + 2**level]) for start in range(0, len(leaves), 2**level)]
    with np.errstate(over="ignore"):
        assert tree_sum(np.array(groups)) == padded_tree(leaves)


def test_the_tree_is_not_a_running_sum() -> None:
    tiny = 2.0**-53
    assert padded_tree([1.0, tiny, tiny, tiny]) != math.fsum([1.0, tiny]) + tiny + tiny
    assert tree_sum(np.array([1.0, tiny, tiny, tiny])) == 1.0 + 2 * tiny


def test_the_tree_sums_the_last_axis() -> None:
    leaves = np.arange(21.0).reshape(3, 7)
    assert tree_sum(leaves).tolist() == leaves.sum(axis=1).tolist()
    assert tree_sum(np.empty((2, 0))).tolist() == [0.0, 0.0]


def test_a_tile_is_sixteen_rows_whatever_the_dtype() -> None:
    for itemsize in (2, 4, 8):
        assert arithmetic.tile_size(itemsize) == 16 * arithmetic.lane_count(itemsize)
        assert arithmetic.tile_size(itemsize) * itemsize == arithmetic.TILE_BYTES


@pytest.mark.parametrize("sums", [(math.inf, math.nan), (math.nan, math.inf), (math.inf, math.inf)])
def test_a_zero_coefficient_skips_its_term(sums: tuple[float, float]) -> None:
    zero = arithmetic.penalty(Coefficients(0.0, 0.0, 0.0), 1.0, *sums)
    assert zero == 0
    assert math.copysign(1, zero) == 1
    # A strength of zero makes zero coefficients.
    assert arithmetic.penalty(Coefficients(1.0, 1.0, 2.0), 0.0, *sums) == 0


def test_strength_scales_the_coefficient_before_the_sum() -> None:
    l1, strength, total = 0.1, 0.7, 0.3
    assert (l1 * strength) * total != l1 * (strength * total)
    assert arithmetic.penalty(Coefficients(l1, 0.0, 0.0), strength, total, 0.0) == (l1 * strength) * total
    # Skipped, although the product with the infinite sum would not be zero.
    assert arithmetic.penalty(Coefficients(1e-300, 0.0, 0.0), 1e-300, math.inf, 0.0) == 0


def test_gradient_coefficients_are_rounded_once_from_float64() -> None:
    coefficients = Coefficients(0.1, 0.2, 0.4)
    c1, c2 = arithmetic.gradient_coefficients(coefficients, 0.3, 0.7, np.dtype(np.float32))
    assert (c1, c2) == (np.float32((0.1 * 0.3) * 0.7), np.float32((0.4 * 0.3) * 0.7))
    assert c1.dtype == np.float32
    with np.errstate(over="ignore"):
        c1, c2 = arithmetic.gradient_coefficients(coefficients, 1e300, 1e-10, np.dtype(np.float32))
    assert (c1, c2) == (math.inf, math.inf)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_results_of_16_bits_are_rounded_by_way_of_float32(dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    half_unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    above_tie = 1 + half_unit + 2.0**-40  # rounds up directly, but to even by way of float32
    assert float(arithmetic.round_once(above_tie, kind)) == 1.0
    with np.errstate(over="ignore"):
        assert arithmetic.round_once(1e30, np.dtype(np.float16)) == math.inf
        assert arithmetic.round_once(1e300, np.dtype(np.float32)) == math.inf
    assert arithmetic.round_once(1e300, np.dtype(np.float64)) == 1e300
