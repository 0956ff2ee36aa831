"""The losses module, nn, and sums."""

from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import samples, tf1
from tests.helpers import bits

W = np.array([[1, -2], [-3, 4]], np.float32)
L2 = tf1.l2_regularizer(0.5)
LOSSES = tf1.GraphKeys.REGULARIZATION_LOSSES


def variables(count: int = 2) -> list[tf1.Variable]:
    return [tf1.get_variable(f"w{i}", initializer=W.copy(), regularizer=L2) for i in range(count)]


# losses --------------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_the_collection_and_a_scope_filters_them() -> None:
    for name in ("a", "ab"):
        with tf1.variable_scope(name):
            variables()
    assert tf1.losses.get_regularization_losses() == tf1.get_collection(LOSSES)
    assert [loss.name[:5] for loss in tf1.losses.get_regularization_losses("a/")] == ["a/w0/", "a/w1/"]
    assert float(tf1.losses.get_regularization_loss("a/")) == 15.0
    assert float(tf1.losses.get_regularization_loss("a")) == 30.0
    assert float(tf1.losses.get_regularization_loss("none")) == 0.0


def test_the_total_of_no_losses_is_zero() -> None:
    total = tf1.losses.get_regularization_loss()
    assert total.value == 0
    assert total.dtype == np.float32
    assert total.name == "Const:0"
    assert tf1.losses.get_regularization_losses() == []


def test_the_total_follows_the_weights_but_not_the_collection() -> None:
    w, v = variables()
    total = tf1.losses.get_regularization_loss()
    assert float(total) == 15.0
    w *= 2
    assert float(total) == 37.5
    v.value[...] = 0
    tf1.get_variable("later", initializer=W, regularizer=L2)
    assert float(total) == 30.0


def test_the_total_takes_in_what_else_is_there() -> None:
    [w] = variables(1)
    tf1.apply_regularization(L2, [W])
    tf1.get_variable("own", initializer=W, regularizer=lambda w: np.abs(w).max())
    tf1.losses.add_loss(0.25, LOSSES)
    tf1.add_to_collection(LOSSES, np.float32(0.5))
    tf1.add_to_collection(LOSSES, tf1.get_variable("scalar", initializer=1.0))
    total = tf1.losses.get_regularization_loss()
    assert float(total) == 7.5 + 7.5 + 4 + 0.25 + 0.5 + 1
    w[...] = 0
    assert float(total) == 13.25


def test_names_of_totals() -> None:
    variables(1)
    names = [tf1.losses.get_regularization_loss().name for _ in range(2)]
    assert names == ["total_regularization_loss:0", "total_regularization_loss_1:0"]
    assert tf1.losses.get_regularization_loss(name="mine").name == "mine:0"
    assert tf1.losses.get_regularization_loss(name=None).name == "AddN:0"


@pytest.mark.parametrize("raw", [W, [W, W[0]]], ids=["array", "two"])
def test_raw_weights_are_no_losses(raw: Any) -> None:
    variables(1)
    for array in raw if isinstance(raw, list) else [raw]:
        tf1.add_to_collection(LOSSES, array)
    message = (
        r"^item 1 in REGULARIZATION_LOSSES has shape \(2, 2\), but a loss is a scalar; if it is raw weights, call "
        r"apply_regularization\(regularizer, get_collection\(GraphKeys\.REGULARIZATION_LOSSES\)\) instead$"
    )
    with pytest.raises(ValueError, match=message):
        tf1.losses.get_regularization_loss()


def test_a_raw_variable_and_a_penalty_of_some_rank_are_no_losses_either() -> None:
    tf1.get_variable("w", initializer=W, regularizer=np.square)
    with pytest.raises(ValueError, match=r"^w/Regularizer/square:0 in REGULARIZATION_LOSSES has shape \(2, 2\)"):
        tf1.losses.get_regularization_loss()
    tf1.get_collection_ref(LOSSES)[:] = tf1.trainable_variables()
    with pytest.raises(ValueError, match=r"^w:0 in REGULARIZATION_LOSSES has shape \(2, 2\)"):
        tf1.losses.get_regularization_loss()


def test_add_loss() -> None:
    tf1.losses.add_loss(1.0)
    tf1.losses.add_loss(2.0, LOSSES)
    tf1.losses.add_loss(3.0, None)
    tf1.losses.add_loss(4.0, "mine")
    assert tf1.get_collection("losses") == [1.0]
    assert tf1.losses.get_regularization_losses() == [2.0]
    assert tf1.get_collection("mine") == [4.0]
    odd: Any = None
    assert tf1.get_collection(odd) == []


# nn ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_l2_loss_of_an_array_is_gpuregs(dtype: str) -> None:
    w = samples.weights(20_000, np.dtype(dtype))
    assert bits(tf1.nn.l2_loss(w)) == bits(gpureg.l2_loss(w, dtype=w.dtype))
    assert tf1.nn.l2_loss(W) == 15.0


def test_l2_loss_of_a_variable_follows_it() -> None:
    w = tf1.get_variable("w", initializer=W.copy())
    loss = tf1.nn.l2_loss(w)
    assert isinstance(loss, tf1.DeferredLoss)
    assert (loss.name, loss.value, loss.shape) == ("L2Loss:0", 15.0, ())
    w /= 2
    assert loss == 3.75
    assert tf1.nn.l2_loss(w, name="decay").name == "decay:0"
    assert tf1.nn.l2_loss(loss) == 3.75**2 / 2


def test_l2_loss_refuses_what_is_no_array_of_weights() -> None:
    for odd in ([[1.0, 2.0]], 3.0, np.ones(3, np.int32)):
        with pytest.raises(TypeError):
            tf1.nn.l2_loss(odd)
    loss = tf1.nn.l2_loss(tf1.get_variable("w", [2], np.int32))
    with pytest.raises(TypeError, match="int32"):
        float(loss)


def test_scale_regularization_loss() -> None:
    scale = tf1.nn.scale_regularization_loss
    assert scale(np.ones((2, 3), np.float32)) == 6
    assert scale(np.float32(3), 2) == 1.5
    assert scale([np.float32(1), np.float32(2)], num_replicas=4) == 0.75
    assert scale(5) == 5.0
    [w] = variables(1)
    scaled = scale(tf1.losses.get_regularization_losses(), 3)
    assert bits(scaled.value) == bits(tf1.l2_regularizer(0.5 / 3)(W))
    w[...] = 0
    assert scaled == 0


@pytest.mark.parametrize("number", [0, -1, 1.0, True, "2", None])
def test_a_number_of_replicas_is_a_positive_integer(number: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_replicas must be a positive integer, not "):
        tf1.nn.scale_regularization_loss(1.0, number)


# Sums ----------------------------------------------------------------------------------------------------------------


def test_add_n_of_arrays_adds_element_by_element() -> None:
    w = tf1.get_variable("w", initializer=W)
    for inputs in ([w, W, W], (W, w, W), (each for each in (W, W, w))):
        assert np.array_equal(tf1.add_n(inputs), 3 * W)
    assert tf1.add_n([W]) is W
    assert tf1.add_n([1.0, 2.0]) == 3.0
    assert tf1.add_n([np.float32(1), np.float64(2)]).dtype == np.float64


def test_add_n_of_losses_and_numbers() -> None:
    w, _ = variables()
    losses = tf1.losses.get_regularization_losses()
    total = tf1.add_n(losses)
    assert isinstance(total, tf1.DeferredLoss)
    assert (total.name, total.value) == ("AddN:0", 15.0)
    assert tf1.add_n(losses, name="mine").name == "mine:0"
    assert tf1.add_n(losses[:1]) is losses[0]
    assert tf1.add_n(losses[:1], name="one").name == "one:0"
    number = tf1.add_n([np.float32(1), *losses])
    assert number == 16.0
    assert isinstance(number, np.float32)
    w[...] = 0
    assert total == 7.5
    assert number == 16.0


def test_what_add_n_refuses() -> None:
    message = r"^Inputs must be an iterable of at least one Tensor/IndexedSlices with the same dtype and shape\.$"
    empty: Any = ([], iter([]))
    for nothing in empty:
        with pytest.raises(ValueError, match=message):
            tf1.add_n(nothing)
    for odd in (None, 5):
        inputs: Any = odd
        with pytest.raises(TypeError, match="not iterable"):
            tf1.add_n(inputs)
    for unlike in ([W, W[0]], [W, 2.0], [W[0], W[:, :1]], [*tf1.losses.get_regularization_losses(), 1.0, W]):
        with pytest.raises(ValueError, match=r"^Shapes must be equal, but are "):
            tf1.add_n(unlike)


def test_reduce_sum_of_an_array_is_the_librarys() -> None:
    w = tf1.get_variable("w", initializer=W)
    for array in (w, W):
        assert tf1.reduce_sum(array) == 0.0
        assert tf1.reduce_sum(array).dtype == np.float32
        assert tf1.reduce_sum(array, axis=0).tolist() == [-2, 2]
        assert tf1.reduce_sum(array, 1, keepdims=True).tolist() == [[-1], [1]]
        assert tf1.reduce_sum(array, [0, 1]) == 0.0
        assert tf1.reduce_sum(array, keepdims=True).shape == (1, 1)
    with pytest.raises(np.exceptions.AxisError):
        tf1.reduce_sum(W, axis=5)


def test_reduce_sum_of_scalars_is_the_scalar() -> None:
    loss = tf1.nn.l2_loss(variables(1)[0])
    assert tf1.reduce_sum(loss) is loss
    assert tf1.reduce_sum(2.5) == 2.5
    assert tf1.reduce_sum(np.float32(2.5)) == 2.5


def test_reduce_sum_of_a_list() -> None:
    both = [tf1.nn.l2_loss(w) for w in variables()]
    total = tf1.reduce_sum(both)
    assert isinstance(total, tf1.DeferredLoss)
    assert (total.name, total.value) == ("Sum:0", 30.0)
    assert tf1.reduce_sum(both, name="mine").name == "mine:0"
    assert tf1.reduce_sum([1.0, 2.0]) == 3.0
    assert tf1.reduce_sum((W, W, W[::-1])) == 0.0
    assert tf1.reduce_sum([np.square(W), np.square(W)]) == 60.0
    assert tf1.reduce_sum([]) == 0.0


def test_what_reduce_sum_refuses_of_a_list() -> None:
    with pytest.raises(ValueError, match=r"^Shapes must be equal"):
        tf1.reduce_sum([W, W[0]])
    for options in ({"axis": 0}, {"keepdims": True}):
        with pytest.raises(ValueError, match=r"^a list is summed as a whole"):
            tf1.reduce_sum([W, W], **options)


def test_lists_of_numbers_are_arrays() -> None:
    assert tf1.reduce_sum([[1.0, 2.0], [3.0, 4.0]]) == 10.0
    assert tf1.add_n([[1.0, 2.0], [3.0, 4.0]]).tolist() == [4.0, 6.0]
