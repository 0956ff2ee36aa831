"""The values of penalties, losses and sums on both sides, within what each may round."""

import functools
import operator
from typing import Any

import numpy as np
import pytest

import gpureg
from tests.frameworks.tf1.sides import Script, bound, number, ours, same, theirs

W = np.array([[1, -2], [-3, 4]], np.float32)
RANDOM = {
    name: np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    for seed, (name, shape) in enumerate({"a": (64, 3), "b": (7,), "c": (3, 3, 4, 8)}.items())
}


def penalty_of(one: Any, make: Script, array: Any) -> Any:
    """Return the loss that a variable's penalty is."""
    one.get_variable("w", initializer=array, regularizer=make(one))
    [loss] = one.get_collection(one.GraphKeys.REGULARIZATION_LOSSES)
    return loss


REGULARIZERS: dict[str, tuple[Script, float]] = {
    "l1": (lambda one: one.l1_regularizer(0.5), 5.0),
    "l2": (lambda one: one.l2_regularizer(0.5), 7.5),
    "l2 of 1": (lambda one: one.l2_regularizer(1.0), 15.0),
    "both": (lambda one: one.l1_l2_regularizer(0.5, 1.0), 20.0),
    "both by default": (lambda one: one.l1_l2_regularizer(), 25.0),
    "l1 alone": (lambda one: one.l1_l2_regularizer(0.5, 0.0), 5.0),
    "l2 alone": (lambda one: one.l1_l2_regularizer(0.0, 0.5), 7.5),
    "sum": (lambda one: one.sum_regularizer([one.l1_regularizer(0.5), None, one.l2_regularizer(0.5)]), 12.5),
    "sum with one of None": (lambda one: one.sum_regularizer([one.l1_regularizer(0.0), one.l2_regularizer(0.5)]), 7.5),
    "own": (lambda one: lambda w: 0.5 * one.reduce_sum(w * w), 15.0),
    "sum with own": (lambda one: one.sum_regularizer([lambda w: one.reduce_sum(w * w), one.l1_regularizer(0.5)]), 35.0),
}


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_both_give_exactly(name: str, dtype: Any) -> None:
    make, expected = REGULARIZERS[name]

    def script(one: Any) -> Any:
        loss = penalty_of(one, make, W.astype(dtype))
        return float(number(loss)), float(number(make(one)(one.trainable_variables()[0])))

    assert same(script) == (expected, expected)


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("array", RANDOM)
def test_values_are_equal_within_rounding(name: str, array: str) -> None:
    w = RANDOM[array]

    def script(one: Any) -> Any:
        return float(number(penalty_of(one, REGULARIZERS[name][0], w)))

    mine, other = ours(script), theirs(script)
    # gpureg's functions of one's own sum in float32 too: a bound for either side.
    assert abs(mine - other) <= 2 * bound(w.size) * mine


@pytest.mark.parametrize("name", ["l1", "l2", "both"])
def test_odd_weights(name: str) -> None:
    for odd in (np.zeros((0, 3), np.float32), np.array([np.nan, 1], np.float32), np.array([np.inf, 1], np.float32)):

        def script(one: Any, odd: Any = odd) -> Any:
            return float(number(penalty_of(one, REGULARIZERS[name][0], odd)))

        np.testing.assert_equal(ours(script), theirs(script))


def test_half_precision_is_wider_here() -> None:
    def script(one: Any) -> Any:
        return number(penalty_of(one, lambda one: one.l2_regularizer(1.0), np.array([300], np.float16)))

    assert ours(script) == 45_000
    assert ours(script).dtype == np.float32
    assert theirs(script).dtype == np.float16
    assert theirs(script) == np.inf  # 300 * 300 overflows before it is halved


def collected(one: Any) -> list[Any]:
    for name, array in RANDOM.items():
        with one.variable_scope(name, regularizer=one.l1_l2_regularizer(0.01, 0.1)):
            one.get_variable("kernel", initializer=array)
            one.get_variable("bias", [8], regularizer=one.no_regularizer)
    losses: list[Any] = one.losses.get_regularization_losses()
    return losses


def by_hand(one: Any) -> Any:
    collected(one)
    return one.reduce_sum([one.nn.l2_loss(v) for v in one.trainable_variables() if "bias" not in v.name])


def applied(one: Any) -> Any:
    for array in RANDOM.values():
        one.add_to_collection(
            one.GraphKeys.REGULARIZATION_LOSSES, one.get_variable(f"w{array.size}", initializer=array)
        )
    return one.apply_regularization(one.l2_regularizer(0.1), one.get_collection(one.GraphKeys.REGULARIZATION_LOSSES))


TOTALS: dict[str, Script] = {
    "get_regularization_loss": lambda one: (collected(one), one.losses.get_regularization_loss())[1],
    "of a scope": lambda one: (collected(one), one.losses.get_regularization_loss("b"))[1],
    "sum": lambda one: sum(collected(one)),
    "add_n": lambda one: one.add_n(collected(one)),
    "reduce_sum": lambda one: one.reduce_sum(collected(one)),
    "plus": lambda one: functools.reduce(operator.add, collected(one)),
    "times": lambda one: 0.3 * sum(collected(one)),
    "over": lambda one: one.add_n(collected(one)) / 3,
    "by hand": lambda one: 0.1 * by_hand(one),
    "a loss and the rest": lambda one: np.float32(2.5) + 0.3 * sum(collected(one)),
    "a loss in add_n": lambda one: one.add_n([np.float32(2.5), *collected(one)]),
    "a number and the rest": lambda one: 2.5 + sum(collected(one)),
    "raw weights": applied,
    "penalties penalised": lambda one: one.apply_regularization(one.l2_regularizer(1e-3), collected(one)),
    "replicas": lambda one: one.nn.scale_regularization_loss(collected(one)),
    "an array over replicas": lambda one: one.nn.scale_regularization_loss(np.abs(RANDOM["a"])),
    "minus": lambda one: 1000.0 - sum(collected(one)),
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_equal_within_rounding(name: str) -> None:
    def script(one: Any) -> Any:
        return number(TOTALS[name](one))

    mine, other = ours(script), theirs(script)
    assert mine.shape == other.shape == ()
    assert mine.dtype == other.dtype == np.float32
    # Of all weights, and of some ten roundings of sums and products of losses, on either side, the largest of which is
    # 1000; a loss that is penalised is off twice as much.
    tolerance = 2 * bound(sum(w.size for w in RANDOM.values()) + 10)
    assert abs(float(mine) - float(other)) <= tolerance * max(abs(float(mine)), 1000 * (name == "minus"))


def test_the_values_of_an_apply_with_none_and_of_no_losses() -> None:
    def script(one: Any) -> Any:
        w = one.get_variable("w", initializer=W)
        return [float(number(each)) for each in (
            one.losses.get_regularization_loss(), one.apply_regularization(one.no_regularizer, [w, w]),
            one.apply_regularization(one.l2_regularizer(0.5), [w, w]),
        )]  # fmt: skip

    assert same(script) == [0.0, 0.0, 15.0]


def test_gpuregs_regularizers_take_the_place_of_contribs() -> None:
    def value(one: Any, regularizer: Any) -> float:
        return float(number(penalty_of(one, lambda _: regularizer, W)))

    assert ours(lambda one: value(one, gpureg.L1(0.5))) == theirs(lambda one: value(one, one.l1_regularizer(0.5)))
    assert ours(lambda one: value(one, gpureg.HalvedL2(0.5))) == theirs(lambda one: value(one, one.l2_regularizer(0.5)))


def test_the_default_initial_values_are_of_the_same_distribution() -> None:
    """They are other numbers: both are uniform, within the same limits, to the rounding of a float32."""

    def script(one: Any) -> Any:
        return number(one.get_variable("w", [3, 3, 50, 70]))

    limit = np.sqrt(6 / (9 * 120))
    for values in (ours(script), theirs(script)):
        assert values.dtype == np.float32
        # Of 31,500 values the largest is below 0.999 of the limit with a probability of 0.9995**31500, about 1e-7.
        assert 0.999 * limit < np.abs(values).max() <= limit * (1 + 2.0**-23)
        # A uniform distribution's standard deviation; the mean square of n values is off by 0.9 / sqrt(n), five times.
        assert abs(np.mean(np.square(values)) / (limit**2 / 3) - 1) < 5 * 0.9 / np.sqrt(values.size)
