"""The regularizers of contrib: values, what they refuse, and what becomes of weights in a list."""

import logging
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import samples, tf1
from tests.helpers import bits, shown

W = np.array([[1, -2], [-3, 4]], np.float32)
RANDOM = samples.weights(20_000, np.dtype(np.float32)).reshape(100, 200)
L1, L2 = tf1.l1_regularizer(0.5), tf1.l2_regularizer(0.5)


def own(w: Any) -> Any:
    return 0.5 * np.abs(w).max()


def _private(w: Any) -> Any:
    return w.sum()


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [(L1, 5.0), (L2, 7.5), (tf1.l2_regularizer(1.0), 15.0), (tf1.l1_l2_regularizer(0.5, 1.0), 20.0),
     (tf1.l1_l2_regularizer(), 25.0), (tf1.l1_l2_regularizer(0.0, 0.5), 7.5), (tf1.l1_l2_regularizer(0.5, 0.0), 5.0),
     (tf1.sum_regularizer([L1, None, L2]), 12.5), (tf1.sum_regularizer([L2]), 7.5),
     (tf1.sum_regularizer([own, L1, own]), 9.0), (tf1.sum_regularizer([gpureg.L2(0.5), L2]), 22.5),
     (tf1.sum_regularizer(each for each in (own, tf1.no_regularizer)), 2.0)],
    ids=shown,
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_known_values_of_arrays_and_of_variables(regularizer: Any, expected: float, dtype: str) -> None:
    w = tf1.get_variable("w", initializer=W.astype(dtype))
    for weights in (w.value, w):
        value = regularizer(weights)
        assert value == expected
        assert isinstance(value, np.floating)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_bits_are_those_of_gpuregs_regularizers(dtype: str) -> None:
    w = RANDOM.astype(dtype)
    for ours, theirs in ((tf1.l1_regularizer(0.1), gpureg.L1(0.1)), (tf1.l2_regularizer(0.3), gpureg.HalvedL2(0.3)),
                         (tf1.l1_l2_regularizer(0.1, 0.3), gpureg.L1L2(0.1, 0.15))):  # fmt: skip
        assert bits(ours(w)) == bits(theirs(w))
        assert ours(w).dtype == theirs(w).dtype


def test_a_sum_of_gpuregs_regularizers_is_one_pass_rounded_once() -> None:
    summed = tf1.sum_regularizer([tf1.l2_regularizer(0.3), gpureg.L1(0.1), tf1.l1_l2_regularizer(0.2, 0.4)])
    assert summed is not None
    assert bits(summed(RANDOM)) == bits(gpureg.L1L2(0.1 + 0.2, 0.15 + 0.2)(RANDOM))


@pytest.mark.parametrize("scale", [np.float32(0.5), np.float64(0.5), Fraction(1, 2), 0.5])
def test_scales_are_real_numbers_of_any_type(scale: Any) -> None:
    assert tf1.l1_regularizer(scale)(W) == 5.0
    assert tf1.l2_regularizer(scale)(W) == 7.5


# Scales that are refused, or disable ---------------------------------------------------------------------------------

INTEGERS = [0, 1, -1, True, False, np.int64(3)]
NOT_FINITE = [math.nan, math.inf, np.float32(math.inf)]
NO_NUMBERS = ["0.5", None, [0.5], 0.5j, np.array(0.5), np.True_]


@pytest.mark.parametrize("scale", INTEGERS, ids=repr)
def test_integers_are_refused(scale: Any) -> None:
    for call, name in ((tf1.l1_regularizer, "scale"), (tf1.l2_regularizer, "scale"),
                       (tf1.l1_l2_regularizer, "scale_l1"),
                       (lambda scale: tf1.l1_l2_regularizer(-0.5, scale), "scale_l2")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name} cannot be an integer: {scale}$"):
            call(scale)


@pytest.mark.parametrize("scale", [-0.5, -1e-300, np.float32(-0.5)])
def test_negative_scales_are_refused(scale: Any) -> None:
    for call, end in ((tf1.l1_regularizer, ""), (tf1.l2_regularizer, "."),
                      (lambda scale: tf1.l1_l2_regularizer(scale, 0.5), ""),
                      (lambda scale: tf1.l1_l2_regularizer(0.5, scale), "."),
                      (lambda scale: tf1.l1_l2_regularizer(scale, 0.0), ""),
                      (lambda scale: tf1.l1_l2_regularizer(0.0, scale), ".")):  # fmt: skip
        with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
            call(scale)
        assert str(raised.value) == f"Setting a scale less than 0 on a regularizer: {scale:g}{end}"


@pytest.mark.parametrize("scale", NOT_FINITE, ids=repr)
def test_scales_that_are_not_finite_are_refused(scale: Any) -> None:
    for call, name in ((tf1.l1_regularizer, "scale"), (tf1.l2_regularizer, "scale"),
                       (tf1.l1_l2_regularizer, "scale_l1"),
                       (lambda scale: tf1.l1_l2_regularizer(0.5, scale), "scale_l2")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name} must be finite: {scale}$"):
            call(scale)


@pytest.mark.parametrize("scale", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(scale: Any) -> None:
    for call in (tf1.l1_regularizer, tf1.l2_regularizer, tf1.l1_l2_regularizer):
        with pytest.raises(ValueError, match=r"^scale(_l1)? must be a float, not "):
            call(scale)


@pytest.mark.parametrize("zero", [0.0, -0.0, np.float32(0)])
def test_a_scale_of_zero_disables_and_says_so(zero: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for call in (tf1.l1_regularizer, tf1.l2_regularizer, lambda scale: tf1.l1_l2_regularizer(scale, scale)):
        caplog.clear()
        assert call(zero)(W) is None
        assert caplog.messages == ["Scale of 0 disables regularizer."]


def test_no_upper_bound() -> None:
    assert tf1.l1_regularizer(1e300)(W.astype(float)) == 1e301


# sum_regularizer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [[], [None], (), [None, None]], ids=shown)
def test_a_sum_of_no_regularizers_is_none(nothing: Any) -> None:
    assert tf1.sum_regularizer(nothing) is None


def test_a_sum_of_regularizers_that_return_none_returns_none() -> None:
    off = tf1.l2_regularizer(0.0)
    for regularizers in ([off], [off, tf1.no_regularizer], [lambda _: None], [lambda _: None, off]):
        summed = tf1.sum_regularizer(regularizers)
        assert summed is not None
        assert summed(W) is None
    summed = tf1.sum_regularizer([off, L1, lambda _: None])
    assert summed is not None
    assert summed(W) == 5.0


def test_a_sum_of_something_else_fails_when_it_is_called() -> None:
    odd: Any = [3]
    summed = tf1.sum_regularizer(odd)
    assert summed is not None
    with pytest.raises(TypeError, match="not callable"):
        summed(W)
    summed = tf1.sum_regularizer([lambda w: w, L2])
    assert summed is not None
    with pytest.raises(ValueError, match=r"^Shapes must be equal, but are \(\) and \(2, 2\)$"):
        summed(W)


# Names ---------------------------------------------------------------------------------------------------------------


class Largest(gpureg.Regularizer):
    def __call__(self, w: Any) -> Any:
        return w.max()


@pytest.mark.parametrize(
    ("regularizer", "name"),
    [(L1, "l1_regularizer"), (L2, "l2_regularizer"), (tf1.l1_l2_regularizer(), "l1_l2_regularizer"),
     (tf1.l1_l2_regularizer(0.0), "l1_l2_regularizer"), (tf1.l1_l2_regularizer(1.0, 0.0), "l1_l2_regularizer"),
     (tf1.sum_regularizer([L1]), "sum_regularizer"), (tf1.sum_regularizer([own, L1]), "sum_regularizer"),
     (tf1.l1_regularizer(0.5, "a/b"), "a/b"), (tf1.l2_regularizer(0.5, scope="mine"), "mine"),
     (tf1.l1_l2_regularizer(0.5, 0.5, "mine"), "mine"), (tf1.l1_l2_regularizer(0.5, 0.0, "mine"), "mine"),
     (tf1.sum_regularizer([L1], "mine"), "mine"), (tf1.sum_regularizer([own], scope="mine"), "mine"),
     (own, "own"), (_private, "private"), (lambda w: w.sum(), "lambda"),
     (gpureg.HalvedL2(0.5), "HalvedL2"), (Largest(), "Largest"),
     (gpureg.OrthogonalRegularizer(0.5), "OrthogonalRegularizer")],
    ids=shown,
)  # fmt: skip
def test_the_penalty_of_a_variable_is_named_after_the_regularizer(regularizer: Any, name: str) -> None:
    with tf1.variable_scope("s"):
        w = tf1.get_variable("w", initializer=W, regularizer=regularizer)
    [loss] = tf1.losses.get_regularization_losses()
    assert loss.name == f"s/w/Regularizer/{name}:0"
    assert loss.get_shape().as_list() == []
    assert bits(loss.value) == bits(regularizer(w.value))


def test_a_scope_that_is_no_name_is_refused() -> None:
    for bad in ("bad name", "_bad"):
        with pytest.raises(ValueError, match=rf"^'{bad}' is not a valid root scope name\."):
            tf1.get_variable("w", [1], regularizer=tf1.l2_regularizer(0.5, bad))


@pytest.mark.parametrize("off", [tf1.no_regularizer, tf1.l1_regularizer(0.0), tf1.sum_regularizer([L1, None]),
                                 lambda _: None], ids=shown)  # fmt: skip
def test_a_regularizer_that_returns_none_leaves_no_penalty(off: Any) -> None:
    tf1.get_variable("w", [1], regularizer=off)
    assert len(tf1.losses.get_regularization_losses()) == (off(W) is not None)


# apply_regularization ------------------------------------------------------------------------------------------------


def test_the_sum_over_weights_is_added_to_the_losses_and_returned() -> None:
    penalty = tf1.apply_regularization(L2, [W, np.ones(4, np.float32)])
    assert penalty.value == 8.5
    assert penalty.name == "get_regularization_penalty:0"
    [added] = tf1.losses.get_regularization_losses()
    assert added is penalty
    with tf1.variable_scope("s"):
        assert tf1.apply_regularization(L1, [W]).name == "s/get_regularization_penalty:0"
    assert tf1.apply_regularization(L1, [W]).name == "get_regularization_penalty_1:0"


def test_it_is_computed_at_once() -> None:
    w = tf1.get_variable("w", initializer=W.copy())
    penalty = tf1.apply_regularization(L2, [w])
    w[...] = 0
    assert penalty.value == 7.5


def test_repeated_weights_count_twice() -> None:
    w = tf1.get_variable("w", initializer=W)
    for regularizer in (L2, own):
        assert tf1.apply_regularization(regularizer, [w, W, w]).value == 3 * regularizer(W)


def test_its_bits_are_those_of_a_penalty() -> None:
    arrays = [RANDOM, RANDOM[:50].astype(np.float16), RANDOM[::-1, 3:]]
    expected = gpureg.Penalty([(str(i), array) for i, array in enumerate(arrays)], gpureg.HalvedL2(0.3))()
    assert bits(tf1.apply_regularization(tf1.l2_regularizer(0.3), arrays).value) == bits(expected)


@pytest.mark.parametrize("given", [None, [], ()], ids=shown)
def test_without_weights_it_takes_those_collected(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^No weights to regularize\.$"):
        tf1.apply_regularization(L2, given)
    tf1.add_to_collection(tf1.GraphKeys.WEIGHTS, W)
    tf1.get_variable("w", initializer=W, collections=[tf1.GraphKeys.WEIGHTS])
    penalty = tf1.apply_regularization(L2, given)
    assert (penalty.value, penalty.name) == (15.0, "get_regularization_penalty:0")


@pytest.mark.parametrize("off", [tf1.no_regularizer, tf1.l2_regularizer(0.0), lambda _: None], ids=shown)
def test_a_penalty_of_none_is_zero(off: Any) -> None:
    penalty = tf1.apply_regularization(off, [W, W])
    assert penalty.value == 0
    assert penalty.dtype == np.float32
    assert len(tf1.losses.get_regularization_losses()) == 1
    assert tf1.apply_regularization(lambda w: None if w.ndim == 1 else own(w), [W, W[0]]).value == 2


@pytest.mark.parametrize(("regularizer", "rank"), [(lambda w: w, 2), (lambda w: w[0], 1), (lambda w: [w][0] * 2, 2)])
def test_a_regularizer_must_return_a_scalar(regularizer: Any, rank: int) -> None:
    message = f"^regularizer must return a scalar Tensor instead of a Tensor with rank {rank}\\.$"
    with pytest.raises(ValueError, match=message):
        tf1.apply_regularization(regularizer, [W])
    assert tf1.losses.get_regularization_losses() == []


def test_what_is_no_regularizer_and_what_is_no_array() -> None:
    odd: Any = None
    with pytest.raises(TypeError, match="not callable"):
        tf1.apply_regularization(odd, [W])
    tf1.add_to_collection("mixed", W)
    tf1.add_to_collection("mixed", 3.0)
    with pytest.raises(TypeError, match=r"^weights\['weights_list\[1\]'\] must be an array"):
        tf1.apply_regularization(L2, tf1.get_collection("mixed"))


def test_raw_weights_in_the_collection_are_penalised_together() -> None:
    key = tf1.GraphKeys.REGULARIZATION_LOSSES
    for number, array in enumerate((W, np.ones(4, np.float32))):
        tf1.add_to_collection(key, tf1.get_variable(f"w{number}", initializer=array))
    assert tf1.apply_regularization(L2, tf1.get_collection(key)).value == 8.5


def test_over_penalties_it_penalises_penalties() -> None:
    for number in range(2):
        tf1.get_variable(f"w{number}", initializer=W, regularizer=L2)
    penalties = tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
    assert [float(penalty) for penalty in penalties] == [7.5, 7.5]
    assert tf1.apply_regularization(L2, penalties).value == 2 * 0.5 * 7.5**2 / 2
