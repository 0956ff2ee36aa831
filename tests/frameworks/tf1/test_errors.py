"""What both sides refuse, with which error and message."""

import logging
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpureg import tf1
from tests.frameworks.tf1.sides import THEIRS, Script, ours, penalties, same, theirs

ONES = np.ones((2, 3), np.float32)


def refused(script: Script) -> Script:
    """Return a script that returns the error that another one raises, and its message."""

    def outcome(one: Any) -> tuple[str, str]:
        try:
            return "returned", str(script(one))
        except Exception as error:
            return type(error).__name__, str(error)

    return outcome


def scopes(one: Any, *given: Any, **options: Any) -> Any:
    with one.variable_scope(*given, **options):
        return None


def in_scope(name: str, call: Callable[[Any], Any], **options: Any) -> Script:
    def script(one: Any) -> Any:
        with one.variable_scope("s"):
            one.get_variable("w", initializer=ONES)
        with one.variable_scope(name, **{key: value(one) for key, value in options.items()}):
            return call(one)

    return script


def call(name: str, *given: Any) -> Script:
    return lambda one: getattr(one, name)(*given)


SCALES = (True, False, 1, 0, -1, np.int64(3), -0.5, -1e-300, np.float32(-0.5))
AUTO: Script = lambda one: one.AUTO_REUSE  # noqa: E731 - one word
TRUE: Script = lambda one: True  # noqa: ARG005, E731 - likewise

SAME: dict[str, Script] = {
    **{f"l1_regularizer({scale!r})": call("l1_regularizer", scale) for scale in SCALES},
    **{f"l2_regularizer({scale!r})": call("l2_regularizer", scale) for scale in SCALES},
    **{f"l1_l2_regularizer{scales!r}": call("l1_l2_regularizer", *scales)
       for scales in ((1, 0.5), (0.5, 1), (True, 0.5), (0, 0), (-0.5, 0.0), (0.0, -0.5), (-0.5, 0.5), (0.5, -0.5),
                      (-0.5, True))},
    "sum_regularizer of no list": lambda one: one.sum_regularizer(None),
    "sum_regularizer of no functions": lambda one: one.get_variable(
        "w", initializer=ONES, regularizer=one.sum_regularizer([3])),
    "no weights": lambda one: one.apply_regularization(one.l2_regularizer(0.5)),
    "no weights in a list": lambda one: one.apply_regularization(one.l2_regularizer(0.5), []),
    "no regularizer": lambda one: one.apply_regularization(None, [one.get_variable("w", initializer=ONES)]),
    "sum of none as regularizer": lambda one: one.apply_regularization(
        one.sum_regularizer([]), [one.get_variable("w", initializer=ONES)]),
    "rank 2": lambda one: one.apply_regularization(lambda w: w * w, [one.get_variable("w", initializer=ONES)]),
    "rank 1": lambda one: one.apply_regularization(lambda w: (w * w)[0], [one.get_variable("w", initializer=ONES)]),
    "a name and no name": lambda one: scopes(one, None),
    "a number as name": lambda one: scopes(one, 5),
    "reuse of 1": lambda one: scopes(one, "a", reuse=5),
    "reuse of a default name": lambda one: scopes(one, None, "a", reuse=True),
    "bad scope": lambda one: scopes(one, "bad name"),
    "bad first letter": lambda one: scopes(one, "_bad"),
    "bad inner scope": in_scope("s", lambda one: scopes(one, "a:b")),
    "bad variable": lambda one: one.get_variable("bad name", [1]),
    "bad name of a regularizer": lambda one: one.get_variable(
        "w", [1], regularizer=one.l2_regularizer(0.5, "bad name")),
    "bad first letter of a regularizer's name": lambda one: one.get_variable(
        "w", [1], regularizer=one.l1_regularizer(0.5, "_bad")),
    "a variable that is there": in_scope("s", lambda one: one.get_variable("w", [2, 3])),
    "a variable that is not there": in_scope("s", lambda one: one.get_variable("v", [1]), reuse=TRUE),
    "another shape": in_scope("s", lambda one: one.get_variable("w", [3, 2]), reuse=TRUE),
    "another rank": in_scope("s", lambda one: one.get_variable("w", [2]), reuse=AUTO),
    "an unknown length": in_scope("s", lambda one: one.get_variable("w", [None, 4]), reuse=AUTO),
    "another dtype": in_scope("s", lambda one: one.get_variable("w", dtype=np.float64), reuse=TRUE),
    "the dtype of the scope": in_scope(
        "s", lambda one: one.get_variable("w"), reuse=AUTO, dtype=lambda one: "float64"),  # noqa: ARG005
    "a shape and an array": lambda one: one.get_variable("w", [2, 3], initializer=ONES),
    "a negative length": lambda one: one.get_variable("w", [-1]),
    "a string as regularizer": lambda one: one.get_variable("w", [1], regularizer="l2"),
    "a number as regularizer": lambda one: one.get_variable("w", [1], regularizer=5),
    "a name for collections": lambda one: one.get_variable("w", [1], collections="mine"),
    "sum of nothing": lambda one: one.add_n([]),
    "sum of None": lambda one: one.add_n(None),
    "sum of a number": lambda one: one.add_n(5),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_error_and_message(name: str) -> None:
    kind, _ = same(refused(SAME[name]))
    assert kind.endswith("Error")


# TensorFlow's messages tell of its own types here, and of operations.
SAME_KIND: dict[str, Script] = {
    "no shape": lambda one: one.get_variable("w"),
    "a length that is not known": lambda one: one.get_variable("w", [2, None]),
    "a word as length": lambda one: one.get_variable("w", ["a"]),
    "a function without a shape": lambda one: one.get_variable("w", initializer=lambda shape, dtype: ONES),  # noqa: ARG005
    "a function without dtype": lambda one: one.get_variable("w", [2, 3], initializer=lambda shape: ONES),  # noqa: ARG005
    "an initial value of another shape": lambda one: one.get_variable(
        "w", [3, 2], initializer=lambda shape, dtype: ONES),  # noqa: ARG005
    "an initial value of another dtype": lambda one: one.get_variable("w", initializer=ONES, dtype=np.float64),
    "no dtype": lambda one: one.get_variable("w", [1], "nope"),
    "assigned another shape": lambda one: one.get_variable("w", initializer=ONES).assign(np.ones(3, np.float32)),
    "integers as weights": lambda one: one.get_variable("w", [1], np.int32, regularizer=one.l2_regularizer(0.5)),
    "integers in l2_loss": lambda one: float(one.nn.l2_loss(one.get_variable("w", [1], np.int32))),
    "sum of unlike shapes": lambda one: one.add_n([ONES, ONES[0]]),
    "sum of unlike ranks": lambda one: one.add_n([ONES, 2.0]),
    "reduce_sum of unlike shapes": lambda one: one.reduce_sum([ONES, ONES[0]]),
    "reduce_sum over a fifth axis": lambda one: one.reduce_sum(ONES, axis=5),
    "sums of unlike penalties": lambda one: one.get_variable(
        "w", initializer=ONES, regularizer=one.sum_regularizer([lambda w: w * w, one.l2_regularizer(0.5)])),
    "losses and raw weights": lambda one: (
        one.get_variable("w", initializer=ONES, regularizer=one.l2_regularizer(0.5)),
        one.add_to_collection(one.GraphKeys.REGULARIZATION_LOSSES, ONES), one.losses.get_regularization_loss()),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME_KIND)
def test_the_same_kind_of_error(name: str) -> None:
    (mine, _), (other, _) = ours(refused(SAME_KIND[name])), theirs(refused(SAME_KIND[name]))
    assert mine.endswith("Error")
    # An error of NumPy's axes is a ValueError too.
    assert mine == other or (mine, other) == ("AxisError", "ValueError")


def test_a_graph_that_is_open_is_not_reset() -> None:
    def script(one: Any) -> Any:
        one.reset_default_graph()

    assert same(refused(script))[0] == "AssertionError"


@pytest.mark.parametrize("scales", [(0.0,), (-0.0,), (0.0, 0.0)], ids=str)
def test_a_scale_of_zero_says_that_it_disables(scales: tuple[float, ...], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tensorflow")
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, logger="tensorflow")
    said = {}
    for name, one in (("ours", tf1), ("theirs", THEIRS)):
        logger.addHandler(caplog.handler)
        try:
            caplog.clear()
            function = one.l1_l2_regularizer(*scales) if len(scales) == 2 else one.l2_regularizer(*scales)
        finally:
            logger.removeHandler(caplog.handler)
        assert function(ONES) is None
        said[name] = set(caplog.messages)
    assert said["ours"] == said["theirs"] == {"Scale of 0 disables regularizer."}


# Where gpureg is stricter, or more lenient, and says so in its documentation.


def test_scales_that_no_coefficient_is_are_refused_at_once_here() -> None:
    for scale in (math.nan, math.inf, [0.5], np.array(0.5), np.True_, "0.5", None):
        assert callable(THEIRS.l2_regularizer(scale))
        with pytest.raises(ValueError, match=r"^scale must be "):
            tf1.l2_regularizer(scale)  # type: ignore[arg-type]


def test_raw_weights_of_one_shape_have_a_total_there_and_are_refused_here() -> None:
    def script(one: Any) -> Any:
        for _ in range(2):
            one.add_to_collection(one.GraphKeys.REGULARIZATION_LOSSES, ONES)
        return one.losses.get_regularization_loss()

    assert theirs(script).shape == (2, 3)
    with pytest.raises(ValueError, match="call apply_regularization"):
        ours(script)


def test_penalties_of_two_dtypes_have_a_total_here_alone() -> None:
    def script(one: Any) -> Any:
        for dtype in (np.float32, np.float64):
            one.get_variable(np.dtype(dtype).name, initializer=ONES.astype(dtype), regularizer=one.l2_regularizer(0.5))
        return float(one.losses.get_regularization_loss())

    assert ours(script) == 3.0
    with pytest.raises(TypeError, match="don't all match"):
        theirs(script)


def test_a_penalty_that_is_a_python_number_has_a_name_here_alone() -> None:
    def script(one: Any) -> Any:
        one.get_variable("w", initializer=ONES, regularizer=lambda w: 0.5)  # noqa: ARG005
        return penalties(one)

    assert ours(script) == ["w/Regularizer/lambda:0"]
    assert theirs(script) == [None]
    assert re.match("AttributeError", theirs(refused(lambda one: one.apply_regularization(lambda w: 1.0, [ONES])))[0])  # noqa: ARG005
    assert float(ours(lambda one: one.apply_regularization(lambda w: 1.0, [ONES]))) == 1.0  # noqa: ARG005
