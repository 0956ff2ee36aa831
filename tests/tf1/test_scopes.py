"""Variable scopes: names, what they inherit, and reuse. TensorFlow's answers are compared in tests/frameworks."""

from typing import Any

import numpy as np
import pytest

from gpureg import tf1
from tests.helpers import shown

L1, L2 = tf1.l1_regularizer(0.5), tf1.l2_regularizer(0.5)


def names(scope: str | None = None) -> list[str]:
    return [loss.name for loss in tf1.losses.get_regularization_losses(scope)]


# Names ---------------------------------------------------------------------------------------------------------------


def test_names_of_scopes_go_before_those_of_variables() -> None:
    with tf1.variable_scope("a") as a, tf1.variable_scope("b/c") as c:
        assert tf1.get_variable("w", [1], regularizer=L2).name == "a/b/c/w:0"
    assert (a.name, c.name) == ("a", "a/b/c")
    assert (a.original_name_scope, c.original_name_scope) == ("a/", "a/b/c/")
    assert names() == ["a/b/c/w/Regularizer/l2_regularizer:0"]


def test_a_second_scope_of_a_name_has_its_own_operations_but_the_same_variables() -> None:
    found = []
    for _ in range(3):
        with tf1.variable_scope("a", reuse=tf1.AUTO_REUSE) as scope:
            w = tf1.get_variable("w", [1])
            found.append((scope.original_name_scope, w.name, tf1.nn.l2_loss(w).name, tf1.nn.l2_loss(w).name))
    assert found == [
        ("a/", "a/w:0", "a/L2Loss:0", "a/L2Loss_1:0"),
        ("a_1/", "a/w:0", "a_1/L2Loss:0", "a_1/L2Loss_1:0"),
        ("a_2/", "a/w:0", "a_2/L2Loss:0", "a_2/L2Loss_1:0"),
    ]


def test_a_scope_in_each_step_takes_no_memory(graph: tf1.Graph) -> None:
    def step() -> None:
        with tf1.variable_scope("a", reuse=tf1.AUTO_REUSE), tf1.variable_scope("b"):
            sum([tf1.nn.l2_loss(tf1.get_variable("w", [1])) for _ in range(2)])

    step()
    step()
    kept = len(graph._names), len(graph.scopes.opened)
    for _ in range(10):
        step()
    assert (len(graph._names), len(graph.scopes.opened)) == kept


def test_default_names_are_made_unique_for_variables_too() -> None:
    found = []
    for _ in range(2):
        with tf1.variable_scope(None, "conv") as scope:
            found.append(tf1.get_variable("w", [1]).name)
    with tf1.variable_scope("conv"):
        found.append(tf1.get_variable("v", [1]).name)
    with tf1.variable_scope(None, "conv") as scope:
        found.append(scope.name)
    with tf1.variable_scope("fc", "unused") as scope:
        found.append(scope.name)
    assert found == ["conv/w:0", "conv_1/w:0", "conv/v:0", "conv_2", "fc"]


def test_default_names_are_counted_anew_when_the_scope_around_is_opened_again() -> None:
    def inner() -> str:
        with tf1.variable_scope(None, "conv") as scope:
            return scope.name

    with tf1.variable_scope("p") as p:
        assert [inner(), inner()] == ["p/conv", "p/conv_1"]
    with tf1.variable_scope("p"):
        assert inner() == "p/conv"
    with tf1.variable_scope(p):
        assert [inner(), inner()] == ["p/conv", "p/conv_1"]
    with tf1.variable_scope("p"):
        assert inner() == "p/conv"


def test_other_things_of_a_name_give_a_variable_a_number() -> None:
    with tf1.variable_scope("a"):
        pass
    assert tf1.get_variable("a", [1], regularizer=L2).name == "a_1:0"
    assert tf1.get_variable("X", [1]).name == "X:0"
    assert tf1.get_variable("x", [1]).name == "x_1:0"
    assert tf1.get_variable("x_1", [1]).name == "x_1_1:0"
    assert tf1.get_variable("A", [1], regularizer=L2).name == "A_2:0"
    assert names() == ["a/Regularizer/l2_regularizer:0", "A/Regularizer/l2_regularizer_1:0"]


def test_a_name_is_not_used_up_by_a_variable_that_could_not_be_made() -> None:
    with pytest.raises(TypeError):
        tf1.get_variable("w", initializer=np.ones(3, np.int32), regularizer=L2)
    assert tf1.get_collection("variables") == []
    assert tf1.get_variable("w", [3]).name == "w:0"


@pytest.mark.parametrize("name", ["bad name", "_first", "a:0", "/a"])
def test_names_that_tensorflow_refuses(name: str) -> None:
    message = (
        r"is not a valid root scope name\. A root scope name has to match the following pattern: \^\[A-Za-z0-9\.\]"
    )
    with pytest.raises(ValueError, match=message), tf1.variable_scope(name):
        pass
    with pytest.raises(ValueError, match=message):
        tf1.get_variable(name, [1])


def test_within_a_scope_names_may_begin_otherwise() -> None:
    with tf1.variable_scope("a"):
        with tf1.variable_scope("_b") as scope:
            assert scope.original_name_scope == "a/_b/"
        with pytest.raises(ValueError, match=r"^'b c' is not a valid scope name\. A scope"), tf1.variable_scope("b c"):
            pass


def test_a_scope_is_closed_when_its_block_fails() -> None:
    for scope in ("a", tf1.get_variable_scope()):
        with pytest.raises(KeyError), tf1.variable_scope(scope):
            raise KeyError
        assert tf1.get_variable_scope().name == ""
    assert tf1.nn.l2_loss(tf1.get_variable("w", [1])).name == "L2Loss:0"


# What is inherited ---------------------------------------------------------------------------------------------------


def test_regularizers_are_inherited_overridden_and_switched_off() -> None:
    with tf1.variable_scope("a", regularizer=L2):
        tf1.get_variable("inherits", [1])
        tf1.get_variable("none", [1], regularizer=None)
        tf1.get_variable("own", [1], regularizer=L1)
        tf1.get_variable("off", [1], regularizer=tf1.no_regularizer)
        with tf1.variable_scope("inner"):
            tf1.get_variable("inherits", [1])
        with tf1.variable_scope("own", regularizer=L1):
            tf1.get_variable("inherits", [1])
        with tf1.variable_scope("off", regularizer=tf1.no_regularizer):
            tf1.get_variable("inherits", [1])
    assert names() == [
        "a/inherits/Regularizer/l2_regularizer:0",
        "a/none/Regularizer/l2_regularizer:0",
        "a/own/Regularizer/l1_regularizer:0",
        "a/inner/inherits/Regularizer/l2_regularizer:0",
        "a/own/inherits/Regularizer/l1_regularizer:0",
    ]


def test_a_scope_opened_again_by_name_loses_its_regularizer_and_by_object_keeps_it() -> None:
    with tf1.variable_scope("a", regularizer=L2) as scope:
        pass
    with tf1.variable_scope("a"):
        tf1.get_variable("lost", [1])
    with tf1.variable_scope("elsewhere"), tf1.variable_scope(scope) as again:
        tf1.get_variable("kept", [1])
        assert again.original_name_scope == "a/"
    with tf1.variable_scope(scope, regularizer=L1):
        tf1.get_variable("other", [1])
    assert names() == ["a/kept/Regularizer/l2_regularizer:0", "a/other/Regularizer/l1_regularizer:0"]


def test_a_regularizer_set_in_a_scope_counts_from_then_on() -> None:
    with tf1.variable_scope("a") as scope:
        tf1.get_variable("before", [1])
        scope.set_regularizer(L2)
        tf1.get_variable("after", [1])
    assert names() == ["a/after/Regularizer/l2_regularizer:0"]


def test_dtype_and_initializer_are_inherited() -> None:
    with tf1.variable_scope("a", dtype=np.float64, initializer=np.ones), tf1.variable_scope("b"):
        w = tf1.get_variable("w", [2])
    assert w.dtype == np.float64
    assert w.value.tolist() == [1, 1]
    message = r"^If initializer is a constant, do not specify shape\.$"
    with tf1.variable_scope("c", initializer=2.0), pytest.raises(ValueError, match=message):
        tf1.get_variable("w", [2])


# Reuse ---------------------------------------------------------------------------------------------------------------


def test_a_penalty_is_made_once_and_never_on_reuse() -> None:
    calls: list[Any] = []

    def own(w: Any) -> Any:
        calls.append(w)
        return w.sum()

    with tf1.variable_scope("a", regularizer=own) as scope:
        w = tf1.get_variable("w", [2])
    for reuse in (True, tf1.AUTO_REUSE):
        with tf1.variable_scope("a", regularizer=own, reuse=reuse):
            assert tf1.get_variable("w", [2]) is w
        with tf1.variable_scope(scope, reuse=reuse):
            assert tf1.get_variable("w", [2], regularizer=L2) is w
    assert names() == ["a/w/Regularizer/own:0"]
    assert len(calls) == 1


def test_scopes_within_a_reusing_one_reuse_too() -> None:
    def reuse_of(scope: Any, **options: Any) -> Any:
        with tf1.variable_scope(scope, **options) as opened:
            return opened.reuse

    with tf1.variable_scope("a", reuse=True) as a:
        assert reuse_of("b") is True
        assert reuse_of("b", reuse=False) is True
        assert reuse_of("b", reuse=tf1.AUTO_REUSE) is tf1.AUTO_REUSE
    with tf1.variable_scope("a", reuse=tf1.AUTO_REUSE):
        assert reuse_of("b") is tf1.AUTO_REUSE
        assert reuse_of("b", reuse=True) is True
    assert reuse_of(a) is reuse_of(a, reuse=False) is True
    assert reuse_of("a") is False
    with tf1.variable_scope("a", reuse=True):
        assert reuse_of(tf1.VariableScope("c")) is False


def test_reuse_variables() -> None:
    with tf1.variable_scope("a") as scope:
        w = tf1.get_variable("w", [1])
        scope.reuse_variables()
        assert tf1.get_variable("w") is w
    tf1.get_variable_scope().reuse_variables()
    with pytest.raises(ValueError, match=r"^Variable v does not exist"):
        tf1.get_variable("v", [1])


def test_a_variable_must_be_new_unless_it_is_reused() -> None:
    with tf1.variable_scope("s"):
        tf1.get_variable("w", [1])
        message = (
            r"^Variable s/w already exists, disallowed\. Did you mean to set reuse=True or reuse=tf\.AUTO_REUSE in "
            r"VarScope\?$"
        )
        with pytest.raises(ValueError, match=message):
            tf1.get_variable("w", [1])


def test_a_variable_must_be_there_to_be_reused() -> None:
    message = (
        r"^Variable s/w does not exist, or was not created with tf\.get_variable\(\)\. Did you mean to set "
        r"reuse=tf\.AUTO_REUSE in VarScope\?$"
    )
    with tf1.variable_scope("s", reuse=True), pytest.raises(ValueError, match=message):
        tf1.get_variable("w", [1])
    with tf1.variable_scope("s", reuse=tf1.AUTO_REUSE):
        assert tf1.get_variable("w", [1]) is tf1.get_variable("w", [1])


@pytest.mark.parametrize("shape", [[3], [2, 1], [], [2, None]])
def test_a_reused_variable_must_have_the_shape(shape: Any) -> None:
    tf1.get_variable("w", [2])
    tf1.get_variable_scope().reuse_variables()
    shown = str(tuple(shape)).replace("(", r"\(").replace(")", r"\)")
    message = rf"^Trying to share variable w, but specified shape {shown} and found shape \(2,\)\.$"
    with pytest.raises(ValueError, match=message):
        tf1.get_variable("w", shape)


def test_a_length_that_is_not_known_is_any() -> None:
    w = tf1.get_variable("w", [2, 3])
    tf1.get_variable_scope().reuse_variables()
    assert tf1.get_variable("w", [None, 3]) is tf1.get_variable("w", [2, None]) is w


def test_a_reused_variable_must_have_the_dtype_asked_for_or_the_scopes() -> None:
    w = tf1.get_variable("w", initializer=np.ones(2))
    tf1.get_variable_scope().reuse_variables()
    assert tf1.get_variable("w", dtype="float64") is w
    with pytest.raises(ValueError, match=r"^Trying to share variable w, but specified dtype float32 and found dtype "):
        tf1.get_variable("w")


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [((None,), {}, TypeError, "If default_name is None then name_or_scope is required"),
     ((5,), {}, TypeError, "VariableScope: name_or_scope must be a string or VariableScope."),
     (("a",), {"reuse": 1}, ValueError, "The reuse parameter must be True or False or None."),
     ((None, "a"), {"reuse": True}, ValueError, "reuse=True cannot be used without a name_or_scope")],
    ids=shown,
)  # fmt: skip
def test_what_a_scope_refuses(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised, tf1.variable_scope(*arguments, **options):
        pass
    assert str(raised.value) == message


def test_values_are_taken_by_their_place() -> None:
    with tf1.variable_scope("a", "model", [np.ones(2)], reuse=tf1.AUTO_REUSE) as scope:
        assert scope.name == "a"
