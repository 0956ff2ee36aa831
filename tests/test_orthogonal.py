"""`OrthogonalRegularizer`: its formula in plain loops, its gradient by differences, and what it refuses."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gpureg
from gpureg import OrthogonalRegularizer, orthogonal

MODES = ("rows", "columns")
DTYPES: list[Any] = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def plain(w: Any, factor: float, mode: str) -> float:
    """Return the penalty by its formula, one product after another."""
    vectors = [list(map(float, vector)) for vector in (w if mode == "rows" else w.T)]
    units = [[x / max(math.hypot(*vector), 1e-7) for x in vector] for vector in vectors]
    products = [abs(math.fsum(x * y for x, y in zip(*pair, strict=True))) for pair in itertools.permutations(units, 2)]
    k = len(vectors)
    return factor * 0.5 * math.fsum(products) / (k * (k - 1) / 2)


def weights(shape: tuple[int, int], dtype: Any = np.float64, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def bound(w: Any, mode: str) -> float:
    """Return how far two ways may be apart, relative to the factor.

    A norm of d squares is off by at most (d / 2 + 2) u relative, u = 2**-53, so an entry of a unit vector by
    (d / 2 + 3) u; a product of two by d + 6 for these and d for its own sum, times sum|a_i b_i| <= 1. A mean is off
    by no more, but for the sum of k * k terms. Both ways are, and the result is rounded once to its dtype.
    """
    k, d = w.shape if mode == "rows" else w.shape[::-1]
    rounding = 2.0**-24 if w.dtype.itemsize < 8 else 0.0
    return float(2 * (2 * d + 10 + k * k) * 2.0**-53 + rounding)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (4, 3), (3, 4), (7, 2), (2, 300)])
def test_it_is_its_formula(mode: str, dtype: Any, shape: tuple[int, int]) -> None:
    w = weights(shape, dtype)
    if min(shape) == 1 and mode == "columns":
        w = w.T
    penalty = OrthogonalRegularizer(0.5, mode)(w)
    assert type(penalty) is (np.float64 if dtype is np.float64 else np.float32)
    assert abs(float(penalty) - plain(w, 0.5, mode)) <= 0.5 * bound(w, mode)


@given(arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(1, 5)), elements=st.floats(-1e3, 1e3)))
def test_it_is_its_formula_for_any_matrix(w: Any) -> None:
    for mode, matrix in (("rows", w), ("columns", w.T)):
        assert abs(float(OrthogonalRegularizer(1.0, mode)(matrix)) - plain(matrix, 1.0, mode)) <= bound(matrix, mode)


def test_known_values() -> None:
    assert OrthogonalRegularizer(0.5)(np.eye(3)) == 0
    assert OrthogonalRegularizer(0.5)(np.ones((2, 1))) == 0.5  # the mean of |cos|, which is 1, times the factor
    assert OrthogonalRegularizer(0.5)(np.zeros((3, 3))) == 0
    assert OrthogonalRegularizer(0.5)(np.zeros((3, 0))) == 0
    assert OrthogonalRegularizer(0.0)(weights((3, 3))) == 0
    assert OrthogonalRegularizer().factor == 0.01
    assert OrthogonalRegularizer().mode == "rows"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_vectors_give_nan_as_in_keras(mode: str, count: int) -> None:
    w = np.ones((count, 3)) if mode == "rows" else np.ones((3, count))
    value, grad = OrthogonalRegularizer(0.5, mode).value_and_grad(w)
    assert math.isnan(value)
    assert np.isnan(grad).all()


def test_a_short_row_is_not_normalised() -> None:
    w = np.full((2, 2), 1e-10)
    assert OrthogonalRegularizer(1.0)(w) == pytest.approx(2 * (1e-10 / 1e-7) ** 2, rel=1e-12)


def test_nan_and_infinity_give_nan() -> None:
    for odd in (math.nan, math.inf, -math.inf):
        assert math.isnan(OrthogonalRegularizer(1.0)(np.array([[odd, 1.0], [1.0, 1.0]])))


def test_squares_of_float32_and_float16_do_not_overflow() -> None:
    w = np.array([[1e30, 1e30], [1e-30, 3e38]], np.float32)
    assert OrthogonalRegularizer(1.0)(w) == pytest.approx(math.sqrt(0.5), rel=1e-6)
    assert OrthogonalRegularizer(1.0)(np.full((2, 2), 6e4, np.float16)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_change_nothing_but_the_last_bit(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights((7, 5))
    value, grad = OrthogonalRegularizer(0.5, mode).value_and_grad(w)
    monkeypatch.setattr(orthogonal, "_BLOCK", 15)  # two or three vectors at a time, the last ones fewer
    again, other = OrthogonalRegularizer(0.5, mode).value_and_grad(w)
    assert abs(value - again) <= 0.5 * bound(w, mode)
    np.testing.assert_allclose(grad, other, rtol=0, atol=1e-14)


# The gradient --------------------------------------------------------------------------------------------------------


def differences(f: Callable[[Any], Any], w: Any, step: float) -> Any:
    """Return the gradient by differences of the fourth order: off by step**4 and by an ulp of f over step."""
    result = np.zeros_like(w)
    for index in np.ndindex(*w.shape):
        moved = np.zeros_like(w)
        moved[index] = step
        near, far = f(w + moved) - f(w - moved), f(w + 2 * moved) - f(w - 2 * moved)
        result[index] = (8 * near - far) / (12 * step)
    return result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "scale"), [((4, 3), 1.0), ((3, 4), 1e3), ((2, 6), 1e-2), ((6, 2), 1.0)])
def test_the_gradient_is_that_of_differences(mode: str, shape: tuple[int, int], scale: float) -> None:
    w = scale * weights(shape, seed=1)
    reg = OrthogonalRegularizer(0.5, mode)
    # The penalty is smooth but where a product changes its sign; of degree 0, so its gradient is of the order 1/scale.
    expected = differences(reg, w, 1e-3 * scale)
    np.testing.assert_allclose(reg.grad(w) * scale, expected * scale, rtol=0, atol=1e-9)


def test_the_gradient_of_short_and_zero_rows() -> None:
    w = np.array([[3e-9, 1e-9], [2.0, 1.0], [0.0, 0.0]])
    reg = OrthogonalRegularizer(1.0)
    grad = reg.grad(w)
    expected = differences(reg, w, 1e-10)
    np.testing.assert_allclose(grad[0], expected[0], rtol=1e-6)
    assert (grad[2] == 0).all()  # as in TensorFlow; JAX and PyTorch have NaN there


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_rounded_once_to_its_dtype(dtype: Any, mode: str) -> None:
    w = weights((4, 3), dtype)
    reg = OrthogonalRegularizer(0.5, mode)
    exact = reg.grad(w.astype(np.float64))
    value, grad = reg.value_and_grad(w)
    assert grad.dtype == w.dtype
    assert (grad == exact.astype(dtype)).all()
    assert value == reg(w)
    there = np.ones((4, 3), dtype)
    assert reg.accumulate_grad(w, there) == value
    assert (there == (1.0 + exact).astype(dtype)).all()
    wide = np.zeros((4, 3), np.float64 if dtype is np.float64 else np.float32, order="F")
    assert reg.grad(w, out=wide) is wide
    assert (wide == exact.astype(wide.dtype)).all()


def test_weights_are_read_in_any_layout() -> None:
    w = weights((4, 6))
    reg = OrthogonalRegularizer(0.5)
    for view in (np.asfortranarray(w), np.ascontiguousarray(w[::-1])[::-1], np.repeat(w, 2, axis=1)[:, ::2]):
        assert reg(view) == pytest.approx(reg(w), rel=1e-14)
        np.testing.assert_allclose(reg.grad(view), reg.grad(w), rtol=0, atol=1e-15)


def test_the_activity_is_over_the_batch() -> None:
    w = weights((4, 3))
    assert OrthogonalRegularizer(0.5).activity(w) == OrthogonalRegularizer(0.5)(w) / 4
    assert OrthogonalRegularizer(0.5, "columns").activity(w[:0]) == 0


# What is refused -----------------------------------------------------------------------------------------------------


def test_arguments_are_checked_as_in_keras() -> None:
    with pytest.raises(
        ValueError, match=r'^Invalid value for argument `mode`\. Expected one of {"rows", "columns"}\. '
    ):
        OrthogonalRegularizer(0.1, "diagonal")
    for factor in (-1, None, math.nan, "0.1", True):
        with pytest.raises(ValueError, match=r"^Invalid value for argument factor: expected a non-negative float"):
            OrthogonalRegularizer(factor)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_only_matrices_are_taken(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^Inputs to OrthogonalRegularizer must have rank 2\. Received: ") as caught:
        OrthogonalRegularizer()(np.ones(shape, np.float64))
    assert str(caught.value).endswith(f" inputs.shape={shape}")


def test_what_any_regularizer_refuses_it_refuses() -> None:
    reg, w = OrthogonalRegularizer(), np.ones((2, 2))
    for odd in ([[1.0, 2.0]], np.ones((2, 2), np.int32)):
        with pytest.raises(TypeError, match=r"^w "):
            reg(odd)
    with pytest.raises(ValueError, match=r"^grad has shape"):
        reg.accumulate_grad(w, np.zeros((2, 3)))
    with pytest.raises(TypeError, match=r"^grad must be an array"):
        reg.accumulate_grad(w, None)
    with pytest.raises(ValueError, match=r"^out shares memory with w"):
        reg.grad(w, out=w)
    with pytest.raises(TypeError, match=r"^OrthogonalRegularizer has no coefficients"):
        reg.prox_(w, 0.1)
    with pytest.raises(TypeError, match=r"^weights\['a'\]: OrthogonalRegularizer has no coefficients"):
        gpureg.Penalty({"a": w}, reg)
    assert (w == 1).all()
