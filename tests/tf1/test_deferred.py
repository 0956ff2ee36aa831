"""Deferred losses: always of the weights as they are, in one pass, and with the bits of a penalty."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpureg
from gpureg import samples, tf1
from gpureg.libraries.numpy import library
from tests.helpers import DTYPES, bits, content

L1, L2 = tf1.l1_regularizer(0.5), tf1.l2_regularizer(0.5)


def losses() -> Any:
    return tf1.losses.get_regularization_losses()


def variable(name: str, array: Any, regularizer: Any = None) -> tf1.Variable:
    return tf1.get_variable(name, initializer=array, regularizer=regularizer)


class Watched:
    """A backend that writes down of how many tensors each plan is, and of how many each pass for values."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.planned: list[int] = []
        self.passes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def plan(self, leaves: Any) -> Any:
        self.planned.append(len(leaves))
        plan, passes = self.backend.plan(leaves), self.passes

        class WatchedPlan:
            def __getattr__(self, name: str) -> Any:
                return getattr(plan, name)

            def value(self, *given: Any, **named: Any) -> Any:
                passes.append(len(leaves))
                return plan.value(*given, **named)

        return WatchedPlan()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """What computes NumPy arrays, watched."""
    result = Watched(library.backend(np.ones(1)))
    monkeypatch.setattr(type(library), "backend", lambda *_: result)
    return result


@pytest.fixture
def passes(watched: Watched) -> list[int]:
    """Of each pass over the weights, how many tensors it was over."""
    return watched.passes


# The two-variable example --------------------------------------------------------------------------------------------

DECAYS = [0.1, 1e-4, 0.0005, 1.0, 3]

MANUAL: dict[str, Callable[[Any, Any], Any]] = {
    "reduce_sum of a list": lambda decay, wanted: decay * tf1.reduce_sum([tf1.nn.l2_loss(v) for v in wanted]),
    "sum": lambda decay, wanted: decay * sum(tf1.nn.l2_loss(v) for v in wanted),
    "sum times": lambda decay, wanted: sum(tf1.nn.l2_loss(v) for v in wanted) * decay,
    "add_n": lambda decay, wanted: decay * tf1.add_n([tf1.nn.l2_loss(v) for v in wanted]),
    "add_n of products": lambda decay, wanted: tf1.add_n([tf1.nn.l2_loss(v) * decay for v in wanted]),
    "plus": lambda decay, wanted: functools.reduce(operator.add, [decay * tf1.nn.l2_loss(v) for v in wanted]),
    "apply_regularization": lambda decay, wanted: tf1.apply_regularization(tf1.l2_regularizer(float(decay)), wanted),
    "Penalty": lambda decay, wanted: gpureg.Penalty({v.name: v.value for v in wanted}, gpureg.HalvedL2(decay))(),
}


def convolution(decay: float) -> None:
    """Make the variables of a batch of images, and a convolution to 64 filters with a bias."""
    with tf1.variable_scope("images"):
        tf1.get_variable("batch", [64, 40, 200, 1], regularizer=tf1.l2_regularizer(float(decay)))
    with tf1.variable_scope("conv2d", regularizer=tf1.l2_regularizer(float(decay))):
        tf1.get_variable("kernel", [3, 3, 1, 64])
        tf1.get_variable("bias", [64], initializer=np.ones, regularizer=tf1.no_regularizer)


@pytest.mark.parametrize("decay", DECAYS)
def test_the_total_of_the_collection_is_that_by_hand_bit_for_bit(decay: float) -> None:
    convolution(decay)
    assert [loss.name for loss in losses()] == [
        "images/batch/Regularizer/l2_regularizer:0",
        "conv2d/kernel/Regularizer/l2_regularizer:0",
    ]
    wanted = [v for v in tf1.trainable_variables() if "bias" not in v.name]
    assert [v.name for v in wanted] == ["images/batch:0", "conv2d/kernel:0"]
    collected = {
        "get_regularization_loss": tf1.losses.get_regularization_loss(),
        "sum": sum(losses()),
        "add_n": tf1.add_n(losses()),
        "reduce_sum": tf1.reduce_sum(losses()),
    }
    manual = {name: make(decay, wanted) for name, make in MANUAL.items()}
    totals = {name: int(bits(np.asarray(total))) for name, total in (collected | manual).items()}
    assert len(set(totals.values())) == 1, totals


def test_a_sum_of_rounded_numbers_would_have_other_bits() -> None:
    """The comparison above can fail: arithmetic on the values of arrays is rounded at each step."""
    differ = 0
    for decay in DECAYS:
        with tf1.Graph().as_default():
            convolution(decay)
            wanted = [v for v in tf1.trainable_variables() if "bias" not in v.name]
            total = tf1.losses.get_regularization_loss().value
            by_numbers = np.float32(decay) * sum(tf1.nn.l2_loss(v.value) for v in wanted)
            # Each loss, their sum, the factor and the product are rounded once, by 2**-24 each, and the total too.
            assert abs(float(by_numbers) - float(total)) <= 6 * 2.0**-24 * float(total)
            differ += bits(by_numbers) != bits(total)
    assert differ


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.sampled_from(list(DTYPES)), st.integers(0, 5)), min_size=1, max_size=9),
    st.sampled_from([1.0, 0.1, 1e-8, 0, 7]),
    st.integers(0, 100),
)
def test_sums_in_any_form_have_the_bits_of_a_penalty(tensors: Any, factor: float, seed: int) -> None:
    regularizers = [tf1.l1_regularizer(0.3), tf1.l2_regularizer(0.1), tf1.l1_l2_regularizer(0.1, 0.7), gpureg.L2(0.3),
                    gpureg.HalvedL2(1e-3), gpureg.L1L2(0.2, 0.1)]  # fmt: skip
    same = [gpureg.L1(0.3), gpureg.L2(0.1 / 2), gpureg.L1L2(0.1, 0.7 / 2), gpureg.L2(0.3), gpureg.L2(1e-3 / 2),
            gpureg.L1L2(0.2, 0.1)]  # fmt: skip
    with tf1.Graph().as_default():
        named = []
        rules = {}
        for number, (size, dtype, kind) in enumerate(tensors):
            array = content("wide", size, dtype, seed=seed + number)
            variable(f"w{number}", array, regularizers[kind])
            named.append((f"w{number}", array))
            own = same[kind].coefficients
            rules[f"w{number}"] = gpureg.L1L2(own.l1 * factor, own.l2 * factor)
        expected = gpureg.Penalty(named, rules)()
        for total in (factor * sum(losses()), sum(factor * loss for loss in losses()), tf1.add_n(losses()) * factor):
            assert total.value.dtype == expected.dtype
            assert bits(total.value) == bits(expected)
        quotient = sum(losses()) / 3
        for name in rules:
            coefficients = same[tensors[int(name[1:])][2]].coefficients
            rules[name] = gpureg.L1L2(coefficients.l1 / 3, coefficients.l2 / 3)
        assert bits(quotient.value) == bits(gpureg.Penalty(named, rules)())


# Passes --------------------------------------------------------------------------------------------------------------


def test_a_loss_reads_its_own_variable_and_a_sum_all_of_them_once(passes: list[int]) -> None:
    for number in range(5):
        variable(f"w{number}", samples.weights(100, np.dtype(np.float32)), L2)
    total = sum(losses())
    names = [(loss.name, loss.get_shape().as_list()) for loss in losses()]
    assert len(names) == 5
    assert passes == []
    assert float(losses()[2]) > 0
    assert passes == [1]
    assert float(total) > 0
    assert passes == [1, 5]
    assert 1.0 + np.float32(2) * sum(losses()) > 1
    assert np.float32(1) + 0.01 * tf1.add_n(losses()) > 1
    assert float(tf1.losses.get_regularization_loss()) > 0
    assert passes == [1, 5, 5, 5, 5]


def test_a_variable_that_is_made_is_not_read(passes: list[int]) -> None:
    variable("w", np.ones(3), tf1.l1_l2_regularizer())
    assert passes == []


def test_a_sum_is_planned_once_and_only_a_few_are_kept(graph: tf1.Graph, watched: Watched) -> None:
    for number in range(3):
        variable(f"w{number}", np.ones(3, np.float32), L2)
    planned = watched.planned
    del planned[:]
    for _ in range(3):
        assert float(sum(losses())) == float(0.5 * tf1.add_n([tf1.nn.l2_loss(v) for v in tf1.trainable_variables()]))
    assert planned == [3]
    for number in range(20):
        assert float(sum(losses()) * number) == 2.25 * number
    assert len(graph.penalties) == 8
    assert float(sum(losses()) * 19) == 42.75
    assert planned == [3] * 20  # the factor of 1 was there
    assert float(sum(losses())) == 2.25
    assert planned == [3] * 21
    del planned[:]
    for number in range(20, 40):
        assert float(sum(losses()) * number) == number * float(sum(losses()))
    assert planned == [3] * 20  # what is asked for again and again is kept
    kept = list(graph.penalties)
    assert [float(loss) for loss in losses()] == [0.75] * 3
    assert list(graph.penalties) == kept  # a penalty alone needs no plan that is kept


# Values --------------------------------------------------------------------------------------------------------------


def test_values_follow_what_is_written_into_the_weights() -> None:
    array = np.ones((2, 3), np.float32)
    w = variable("w", array, L2)
    variable("v", np.ones(2, np.float32), L1)
    [loss, _] = losses()
    total, scaled = sum(losses()), 2 * sum(losses())
    assert (loss.value, total.value, scaled.value) == (1.5, 2.5, 5.0)
    array *= 2
    assert (loss.value, total.value, scaled.value) == (6.0, 7.0, 14.0)
    w.assign(np.zeros((2, 3)))
    assert (loss.value, total.value, scaled.value) == (0.0, 1.0, 2.0)


def test_an_array_that_two_variables_hold_counts_for_each() -> None:
    array = np.ones(4, np.float32)
    variable("a", array, L2)
    variable("b", array, L1)
    assert sum(losses()) == 3.0


def test_a_loss_may_be_in_a_sum_twice() -> None:
    variable("w", np.ones(4, np.float32), L2)
    [loss] = losses()
    assert (loss + loss).value == tf1.add_n([loss, loss, loss]).value - 1 == 2.0


def test_a_function_of_ones_own_is_evaluated_by_itself(passes: list[int]) -> None:
    calls = []

    def own(w: Any) -> Any:
        calls.append(w)
        return np.abs(w).max()

    w = variable("w", np.ones(4, np.float32), own)
    variable("v", np.ones(4, np.float32), L2)
    assert len(calls) == 1
    total = sum(losses())
    w[0] = -3
    assert total == 4.0
    assert 10 * total == 40.0
    assert calls == [w.value] * 3
    assert all(each is w.value for each in calls)
    assert passes == [1, 1]


def test_a_function_of_ones_own_may_return_a_number_or_a_loss() -> None:
    w = variable("w", np.ones(4, np.float32), lambda _: 0.5)
    variable("v", np.ones(4, np.float32), lambda _: tf1.nn.l2_loss(w))
    assert [loss.shape for loss in losses()] == [(), ()]
    assert sum(losses()) == 2.5


def test_the_value_of_numbers_alone_is_a_number() -> None:
    tf1.losses.add_loss(0.5, tf1.GraphKeys.REGULARIZATION_LOSSES)
    assert tf1.losses.get_regularization_loss().value == 0.5


@pytest.mark.parametrize(("dtype", "expected"), [("float16", "float32"), ("bfloat16", "float32"),
                                                 ("float32", "float32"), ("float64", "float64")])  # fmt: skip
def test_dtypes_of_values(dtype: str, expected: str) -> None:
    variable("w", np.ones(2, DTYPES[dtype]), L2)
    variable("v", np.ones(2, np.float32), L2)
    assert losses()[0].dtype == sum(losses()).dtype == expected


def test_variables_of_two_libraries_or_of_no_weights_are_an_error_that_names_them() -> None:
    with pytest.raises(TypeError, match=r"^weights\['w:0'\] has dtype int64"):
        variable("w", np.ones(3, np.int64), L2)


# Operators -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loss() -> tf1.DeferredLoss:
    """A loss of 3."""
    variable("w", np.ones(6, np.float32), tf1.l1_regularizer(0.5))
    found: tf1.DeferredLoss = losses()[0]
    return found


def test_sums_and_multiples_with_python_numbers_are_deferred(loss: Any) -> None:
    made = {"add": loss + 1, "add_1": 0.5 + loss, "mul": loss * 2, "mul_1": 0.5 * loss, "truediv": loss / 2}
    assert {name: made[name].value for name in made} == {
        "add": 4, "add_1": 3.5, "mul": 6, "mul_1": 1.5, "truediv": 1.5,
    }  # fmt: skip
    for name, deferred in made.items():
        assert isinstance(deferred, tf1.DeferredLoss)
        assert deferred.name == f"{name}:0"
        assert deferred.dtype == np.float32
    assert loss + 0 is 0.0 + loss is loss
    assert (2 * (loss + 1) / 4).value == 2
    variable("three", np.ones(1), tf1.l1_regularizer(3.0))
    assert (losses()[-1] / 10).value == 3 / 10 != 3 * (1 / 10)
    assert (0 * loss).value == 0


def test_other_operators_and_operands_make_a_number_at_once(loss: Any) -> None:
    for number, expected in [
        (loss - 1, 2), (1 - loss, -2), (-2 * loss, -6), (loss * -2, -6), (loss / -2, -1.5), (6 / loss, 2),
        (loss**2, 9), (2**loss, 8), (-loss, -3), (abs(loss), 3), (True * loss, 3), (loss + True, 4),
        (np.float32(2) * loss, 6), (loss * np.float64(2), 6), (loss + np.float32(1), 4), (np.float32(1) + loss, 4),
        (loss / np.float32(2), 1.5), (loss - loss, 0), (loss * loss, 9), (loss / loss, 1),
        (loss * float("inf"), np.inf),
    ]:  # fmt: skip
        assert isinstance(number, np.floating)
        assert number == expected
    assert np.isnan(loss * float("nan"))
    with np.errstate(divide="ignore"):
        assert loss / 0 == np.inf
    assert np.array_equal(np.ones(2) + loss, [4, 4])
    assert np.array_equal(loss * np.ones(2), [3, 3])
    array = np.ones(2)
    array += loss
    assert np.array_equal(array, [4, 4])


def test_a_loss_and_a_users_loss_make_a_users_loss(loss: Any) -> None:
    for cross_entropy in (np.float32(1), np.float64(1), np.ones(())):
        total = cross_entropy + 0.5 * sum([loss])
        assert total == 2.5
        assert isinstance(total, np.floating)
        assert total.dtype == cross_entropy.dtype


def test_comparisons_are_of_values(loss: Any) -> None:
    variable("v", np.ones(6, np.float32), tf1.l1_regularizer(0.5))
    other = losses()[1]
    assert loss == other == 3 == np.float32(3)
    assert np.float32(3) == loss
    assert bool(loss != other) is False
    assert loss != 2
    assert loss < 4
    assert 4 > loss >= 3
    assert len({loss, other}) == 2


def test_a_loss_is_what_a_number_is_where_one_is_wanted(loss: Any) -> None:
    assert (float(loss), bool(loss), bool(0 * loss)) == (3.0, True, False)
    assert (f"{loss:.2f}", f"{loss}", str(loss), "%.1f" % loss) == ("3.00", "3.0", "3.0", "3.0")  # noqa: UP031 - an idiom
    assert np.asarray(loss).shape == ()
    assert np.array([loss, loss]).tolist() == [3, 3]
    assert max([2 * loss, loss], key=float).value == 6
    assert repr(loss) == "<DeferredLoss 'w/Regularizer/l1_regularizer:0' shape=()>"
    with pytest.raises(TypeError):
        list(loss)


def test_a_penalty_that_is_no_scalar_is_what_the_function_returns() -> None:
    variable("w", np.arange(3.0), np.square)
    [loss] = losses()
    assert loss.get_shape().as_list() == [3]
    assert loss.value.tolist() == [0, 1, 4]
    for made, expected in ((loss + loss, [0, 2, 8]), (loss + 1, [1, 2, 5]), (tf1.add_n([loss, loss]), [0, 2, 8])):
        assert isinstance(made, np.ndarray)
        assert made.tolist() == expected
    assert (2 * loss).get_shape().as_list() == [3]
    assert (2 * loss).value.tolist() == [0, 2, 8]
    assert tf1.reduce_sum(loss) == 5


# Gradients -----------------------------------------------------------------------------------------------------------


def test_the_penalty_behind_a_sum_has_its_gradient() -> None:
    w = variable("w", samples.weights(100, np.dtype(np.float32)), tf1.l2_regularizer(0.3))
    v = variable("v", samples.weights(50, np.dtype(np.float32)), tf1.l1_l2_regularizer(0.1, 0.2))
    total = 2 * tf1.losses.get_regularization_loss()
    penalty = total.as_penalty()
    assert bits(penalty()) == bits(total.value)
    grads = {each.name: np.ones_like(each.value) for each in (w, v)}
    expected = {name: grad.copy() for name, grad in grads.items()}
    penalty.accumulate_grad(grads)
    gpureg.HalvedL2(0.6).accumulate_grad(w.value, expected["w:0"])
    gpureg.L1L2(0.2, 0.2).accumulate_grad(v.value, expected["v:0"])
    for name, grad in grads.items():
        assert np.array_equal(bits(grad), bits(expected[name]))


def test_a_penalty_is_ones_own() -> None:
    variable("w", np.ones(4, np.float32), L2)
    variable("v", np.ones(4, np.float32), L2)
    total = sum(losses())
    total.as_penalty().set_strength(0.0)
    assert total == 2.0
    assert total.as_penalty()() == 2.0


def test_a_sum_of_regularizers_is_part_of_the_one_pass_unless_one_is_of_ones_own(passes: list[int]) -> None:
    for number, regularizer in enumerate(
        (L1, tf1.sum_regularizer([L1, L2]), tf1.sum_regularizer([L1, tf1.no_regularizer]))
    ):
        variable(f"w{number}", np.ones(4, np.float32), regularizer)
    total = tf1.losses.get_regularization_loss()
    assert total == 7.0
    assert passes == [3]
    assert total.as_penalty()() == 7.0
    variable("own", np.ones(4, np.float32), tf1.sum_regularizer([L1, np.max]))
    assert losses()[3] == 3.0
    with pytest.raises(TypeError, match="parts that gpureg does not compute"):
        losses()[3].as_penalty()


def test_what_gpureg_does_not_compute_has_no_penalty() -> None:
    variable("w", np.ones(4, np.float32), L2)
    for loss in (tf1.apply_regularization(L2, [np.ones(2)]), sum(losses()), losses()[0] + 1):
        with pytest.raises(TypeError, match=r":0 has parts that gpureg does not compute, and of which it knows no "):
            loss.as_penalty()
