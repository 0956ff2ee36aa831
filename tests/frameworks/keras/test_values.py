"""The penalties of gpureg and of the real Keras on the same weights, and what their arguments may be."""

import math
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

import gpureg
from tests.frameworks.keras.sides import gradient, number, orthogonal_bound, outcome, sum_bound, tensor

W = np.array([[1, -2], [-3, 4]], np.float32)
ARGUMENTS = {"L1": (0.1,), "L2": (0.3,), "L1L2": (0.1, 0.3)}


def both(name: str, *arguments: Any, **named: Any) -> tuple[Any, Any]:
    """Return the regularizer of gpureg and that of Keras."""
    return getattr(gpureg, name)(*arguments, **named), getattr(keras.regularizers, name)(*arguments, **named)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [("L1", (0.5,), 5.0), ("L1", (1,), 10.0), ("L2", (1,), 30.0), ("L2", (0.5,), 15.0), ("L1L2", (0.5, 1.0), 35.0),
     ("L1L2", (), 0.0)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_numbers_that_both_give_exactly(name: str, arguments: tuple[float, ...], expected: float, dtype: str) -> None:
    ours, theirs = both(name, *arguments)
    assert ours(W.astype(dtype)) == number(theirs(tensor(W.astype(dtype)))) == expected


def test_the_default_is_rounded_once_here_and_twice_there() -> None:
    ours, theirs = both("L1")
    assert ours(W) == np.float32(0.1)
    assert number(theirs(tensor(W))) == np.float32(0.099999994)


def test_the_fifty_of_keras_s_documentation() -> None:
    ours, theirs = both("L2", 2.0)
    assert ours(np.ones((5, 5), np.float32)) == number(theirs(tensor(np.ones((5, 5), np.float32)))) == 50


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("shape", [(1,), (7,), (64, 3), (3, 3, 4, 8), (10, 200)])
def test_values_are_equal_within_rounding(name: str, shape: tuple[int, ...]) -> None:
    ours, theirs = both(name, *ARGUMENTS[name])
    w = np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)
    expected = float(ours(w))
    assert abs(number(theirs(tensor(w))) - expected) <= sum_bound(w.size, np.float32) * expected


@pytest.mark.parametrize("name", ARGUMENTS)
def test_half_precision_is_equal_within_rounding_but_wider_here(name: str) -> None:
    ours, theirs = both(name, *ARGUMENTS[name])
    w = np.random.default_rng(0).standard_normal(16).astype(np.float16)
    value, reference = ours(w), theirs(tensor(w))
    assert value.dtype == np.float32
    assert keras.backend.standardize_dtype(reference.dtype) == "float16"
    assert abs(number(reference) - float(value)) <= sum_bound(w.size, np.float16) * float(value)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_nothing_and_what_is_not_finite(name: str) -> None:
    ours, theirs = both(name, *ARGUMENTS[name])
    assert ours(np.zeros((0, 3), np.float32)) == number(theirs(tensor(np.zeros((0, 3), np.float32)))) == 0
    for odd in (math.nan, math.inf):
        w = np.array([1, odd], np.float32)
        np.testing.assert_equal(float(ours(w)), number(theirs(tensor(w))))


# OrthogonalRegularizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5, 5), (2, 40), (40, 2), (3, 0)])
def test_orthogonal_values_are_equal_within_rounding(mode: str, shape: tuple[int, int]) -> None:
    ours, theirs = both("OrthogonalRegularizer", 0.3, mode)
    w = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    count, length = shape if mode == "rows" else shape[::-1]
    value, reference = float(ours(w)), number(theirs(tensor(w)))
    if count == 0:
        assert math.isnan(value)
        assert math.isnan(reference)
    else:
        assert abs(value - reference) <= 0.3 * orthogonal_bound(count, length)


ODD: dict[str, Any] = {
    "one row": [[1, 2, 3]], "no rows": np.zeros((0, 3)), "zeros": np.zeros((3, 3)), "orthogonal": np.eye(3),
    "short rows": [[1e-10, 1e-10], [1e-10, 1e-10]], "a zero row": [[0, 0], [1, 1], [1, 2]],
    "not a number": [[math.nan, 1], [1, 1]], "infinity": [[math.inf, 1], [1, 1]],
}  # fmt: skip


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize("name", ODD)
def test_orthogonal_values_of_odd_matrices(name: str, mode: str) -> None:
    ours, theirs = both("OrthogonalRegularizer", 0.5, mode)
    w = np.asarray(ODD[name], np.float32)
    w = w if mode == "rows" else np.ascontiguousarray(w.T)
    value, reference = float(ours(w)), number(theirs(tensor(w)))
    np.testing.assert_allclose(value, reference, rtol=0, atol=0.5 * orthogonal_bound(3, 3), equal_nan=True)


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 6)])
def test_orthogonal_gradients_are_equal_within_rounding(mode: str, shape: tuple[int, int]) -> None:
    ours, theirs = both("OrthogonalRegularizer", 0.3, mode)
    w = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    count, length = shape if mode == "rows" else shape[::-1]
    # A sum of `count` unit vectors, less its part along another: at most 2 count, over the norm. Its entries are off by
    # as much as products are, and by `count` u for the sum and `length` u for that part.
    norm = np.linalg.norm(w, axis=1 if mode == "rows" else 0).min()
    scale = 0.3 / (count * (count - 1) / 2) * 2 * count / norm
    bound = scale * (orthogonal_bound(count, length) + (count + length) * 2.0**-24)
    np.testing.assert_allclose(ours.grad(w), gradient(theirs, w), rtol=0, atol=bound)


def test_the_orthogonal_gradient_of_a_zero_row_is_zero_here() -> None:
    ours, theirs = both("OrthogonalRegularizer", 1.0)
    w = np.array([[0, 0], [2, 1], [1, 2]], np.float32)
    assert (ours.grad(w)[0] == 0).all()
    # TensorFlow's gradient of an inverse root at zero is zero, which those of the others are not.
    reference = gradient(theirs, w)[0]
    assert (reference == 0).all() if keras.backend.backend() == "tensorflow" else np.isnan(reference).all()


def test_orthogonal_rows_whose_squares_overflow_are_right_here() -> None:
    ours, theirs = both("OrthogonalRegularizer", 1.0)
    w = np.full((2, 2), 1e20, np.float32)
    assert ours(w) == pytest.approx(1)
    assert number(theirs(tensor(w))) == 0


@pytest.mark.parametrize("name", ARGUMENTS)
def test_weights_that_keras_takes_or_fails_on_are_refused_here(name: str) -> None:
    ours, theirs = both(name, *ARGUMENTS[name])
    assert outcome(lambda: ours([1.0, 2.0]))[0] == "TypeError"
    assert outcome(lambda: theirs([1.0, 2.0]))[0] == "AttributeError"
    integers = np.array([1, 2], np.int32)
    assert outcome(lambda: ours(integers))[0] == "TypeError"
    assert outcome(lambda: theirs(tensor(integers)))[1] == ""


def test_equal_regularizers_are_equal_here() -> None:
    ours, theirs = both("L1", 0.5)
    assert ours == type(ours)(0.5)
    assert theirs != type(theirs)(0.5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_a_wrong_rank_is_the_same_error(shape: tuple[int, ...]) -> None:
    ours, theirs = both("OrthogonalRegularizer")
    w = np.ones(shape, np.float32)
    name, message = outcome(lambda: theirs(w))
    assert outcome(lambda: ours(w)) == (name, message)
    assert name == "ValueError"


# Arguments -----------------------------------------------------------------------------------------------------------

CLASSES = ["L1", "L2", "L1L2", "OrthogonalRegularizer"]


def configuration(make: Any) -> tuple[str, Any]:
    """Return the error that a regularizer's making raises and its message, or its class and configuration."""
    kind, message = outcome(make)
    return kind, message or make().get_config()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [0, 1, 0.5, 2.0, None, np.float64(0.5)], ids=repr)
def test_what_both_take(cls: str, value: Any) -> None:
    # None is 0.01 in Keras too, but as float32: L1's configuration there shows it.
    ours, theirs = configuration(lambda: both(cls, value)[0]), configuration(lambda: both(cls, value)[1])
    assert ours[0] == theirs[0]
    if isinstance(ours[1], dict):
        for name, coefficient in ours[1].items():
            assert coefficient == theirs[1][name] or np.float32(coefficient) == np.float32(theirs[1][name])
    else:
        assert ours == theirs


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [-1, -1e-300, math.nan, math.inf, -math.inf, b"1", [0.1], (0.1,), 1j, {}], ids=repr)
def test_what_both_refuse_in_the_same_words(cls: str, value: Any) -> None:
    theirs = outcome(lambda: getattr(keras.regularizers, cls)(value))
    assert theirs[0] == "ValueError"
    assert outcome(lambda: getattr(gpureg, cls)(value)) == theirs


@pytest.mark.parametrize("cls", CLASSES)
def test_a_string_keeps_its_quotes_here(cls: str) -> None:
    ours, theirs = (outcome(partial(getattr(side, cls), "0.1")) for side in (gpureg, keras.regularizers))
    assert ours[0] == theirs[0] == "ValueError"
    assert ours[1] == theirs[1].replace("=0.1", "='0.1'")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("value", "ours", "theirs"),
    [(True, "ValueError", None), (np.float32(0.5), None, "ValueError"), (np.int64(1), None, "ValueError"),
     (10**400, "ValueError", "OverflowError")],
    ids=["bool", "float32", "int64", "huge"],
)  # fmt: skip
def test_what_only_one_side_takes(cls: str, value: Any, ours: str | None, theirs: str | None) -> None:
    assert outcome(lambda: getattr(gpureg, cls)(value))[0] == (ours or cls)
    assert outcome(lambda: getattr(keras.regularizers, cls)(value))[0] == (theirs or cls)


@pytest.mark.parametrize("arguments", [(0.1, "diagonal"), (0.1, None), (-1, "diagonal")], ids=repr)
def test_a_wrong_mode_is_the_same_error(arguments: tuple[Any, Any]) -> None:
    expected = outcome(lambda: keras.regularizers.OrthogonalRegularizer(*arguments))
    assert outcome(lambda: gpureg.OrthogonalRegularizer(*arguments)) == expected
    assert expected[0] == "ValueError"
