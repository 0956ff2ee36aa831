"""Variables of PyTorch's, TensorFlow's and JAX's arrays: kept, penalised with NumPy's bits, and differentiated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch

import gpureg
from gpureg import samples, tf1
from tests.helpers import bits

SHAPES = {"fc1": (20, 30), "fc2": (30, 7)}
HOST = {
    name: samples.weights(int(np.prod(shape)), np.dtype(np.float32), seed=seed).reshape(shape)
    for seed, (name, shape) in enumerate(SHAPES.items())
}


@pytest.fixture(autouse=True)
def graph() -> Any:
    with tf1.Graph().as_default() as own:
        yield own


def model(place: Any) -> list[tf1.Variable]:
    """Make variables of arrays of a library, under an elastic net, and biases without."""
    regularizer = tf1.l1_l2_regularizer(0.1, 0.3)
    variables = []
    for name, array in HOST.items():
        with tf1.variable_scope(name, regularizer=regularizer):
            variables.append(tf1.get_variable("kernel", initializer=place(array.copy())))
            bias = place(np.zeros(array.shape[1], np.float32))
            tf1.get_variable("bias", initializer=bias, regularizer=tf1.no_regularizer)
    return variables


LIBRARIES = {
    "torch": (torch.from_numpy, torch.Tensor),
    "tensorflow": (tf.constant, tf.Tensor),
    "tensorflow variables": (tf.Variable, tf.Tensor),
    "jax": (jnp.asarray, jax.Array),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_arrays_are_kept_and_penalised_with_numpys_bits(name: str) -> None:
    place, kind = LIBRARIES[name]
    array = place(np.ones(3, np.float32))
    assert tf1.get_variable("kept", initializer=array).value is array
    variables = model(place)
    total = 0.5 * tf1.losses.get_regularization_loss()
    by_hand = sum(tf1.nn.l2_loss(v) for v in variables)
    with tf1.Graph().as_default():
        expected = model(np.asarray)
        own = 0.5 * tf1.losses.get_regularization_loss(), sum(tf1.nn.l2_loss(v) for v in expected)
    for ours, reference in ((total, own[0]), (by_hand, own[1])):
        assert isinstance(ours.value, kind)
        assert bits(np.asarray(ours)) == bits(reference.value)


def test_a_network_of_torch_tensors_and_the_gradient_of_its_loss() -> None:
    kernels = model(lambda array: torch.from_numpy(array).requires_grad_())
    hidden, out = kernels
    bias1, bias2 = tf1.trainable_variables()[1::2]
    x = torch.from_numpy(samples.weights(4 * 20, np.dtype(np.float32)).reshape(4, 20))

    def logits() -> Any:
        return torch.relu(x @ hidden + bias1) @ out + bias2

    functional = torch.nn.functional.linear(x, hidden.T, bias1)
    assert torch.equal(torch.relu(functional) @ out.value + bias2.value, logits())
    loss = torch.mean(torch.square(logits())) + 0.5 * sum(tf1.losses.get_regularization_losses())
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    found = [v.value.grad.clone() for v in kernels]
    for v in tf1.trainable_variables():
        v.grad.zero_()
    torch.mean(torch.square(logits())).backward()
    for v, grad in zip(kernels, found, strict=True):
        expected = v.value.grad.numpy() + gpureg.L1L2(0.05, 0.075).grad(HOST[v.name.split("/")[0]])
        # Of the model's gradient and the penalty's, each rounded; autograd adds them in float32 in its own order.
        np.testing.assert_allclose(
            grad.numpy(), expected, rtol=4 * 2.0**-24, atol=4 * 2.0**-24 * np.abs(expected).max()
        )


def test_an_optimizer_of_torch_changes_what_is_penalised() -> None:
    variables = model(lambda array: torch.from_numpy(array).requires_grad_())
    total = tf1.losses.get_regularization_loss()
    before = float(total)
    optimizer = torch.optim.SGD([v.value for v in variables], lr=0.1)
    optimizer.zero_grad()
    total.value.backward()
    optimizer.step()
    assert float(total) < before
    assert bits(total.value.detach().numpy()) == bits(
        gpureg.Penalty({v.name: v.value.detach().numpy() for v in variables}, gpureg.L1L2(0.1, 0.15))()
    )
    with torch.no_grad():
        for v in variables:
            v -= v  # noqa: PLW2901 - in place
    assert float(total) == 0.0


def test_torch_makes_initial_values_of_its_own_dtypes() -> None:
    w = tf1.get_variable("w", [2, 3], torch.float16, initializer=torch.ones)
    assert w.dtype == torch.float16
    assert w.get_shape().as_list() == [2, 3]
    tf1.get_variable_scope().reuse_variables()
    for dtype in (torch.float16, np.float16, "float16"):
        assert tf1.get_variable("w", [2, 3], dtype) is w
    for dtype in (torch.float32, torch.int32, np.float32, None):
        with pytest.raises(ValueError, match=r"^Trying to share variable w, but specified dtype "):
            tf1.get_variable("w", [2, 3], dtype)


def test_a_torch_dtype_needs_an_initializer_of_torch() -> None:
    with pytest.raises(TypeError, match=r"^dtype is torch\.float32; without an initializer a variable is NumPy's"):
        tf1.get_variable("w", [2], torch.float32)
    with pytest.raises(TypeError):
        tf1.get_variable("w", [2], torch.float32, initializer=np.ones)


def test_integers_of_torch_are_variables_but_not_weights() -> None:
    step = torch.zeros((), dtype=torch.int64)
    assert tf1.get_variable("step", initializer=step, dtype=torch.int64, trainable=False).value is step
    with pytest.raises(ValueError, match=r"^Initializer type 'torch\.int64' and explicit dtype 'torch\.int32' don't"):
        tf1.get_variable("other", initializer=step, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"^weights\['w:0'\] has dtype torch\.int64"):
        tf1.get_variable("w", initializer=step, regularizer=tf1.l2_regularizer(0.5))


@pytest.mark.parametrize("name", ["jax", "tensorflow"])
def test_arrays_that_cannot_be_changed_are_not_left_behind(name: str) -> None:
    place, _ = LIBRARIES[name]
    w = tf1.get_variable("w", initializer=place(np.ones(3, np.float32)))
    with pytest.raises(TypeError, match=r"^w:0 cannot be changed in place"):
        w += 1
    with pytest.raises(TypeError):
        w.assign(np.zeros(3, np.float32))
    assert np.asarray(w).tolist() == [1, 1, 1]


def test_operators_with_arrays_of_a_library_return_its_arrays() -> None:
    for place, kind in LIBRARIES.values():
        with tf1.Graph().as_default():
            w = tf1.get_variable("w", initializer=place(np.full(3, 2, np.float32)), regularizer=tf1.l2_regularizer(1.0))
            [loss] = tf1.losses.get_regularization_losses()
            x = place(np.ones(3, np.float32))
            for made, expected in ((x + w, [3, 3, 3]), (w - x, [1, 1, 1]), (x * w, [2, 2, 2]), (x + loss, [7, 7, 7]),
                                   (loss * x, [6, 6, 6]), (tf1.add_n([x, w]), [3, 3, 3])):  # fmt: skip
                assert isinstance(made, kind)
                assert np.asarray(made).tolist() == expected


LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "model first": lambda model, penalty: model + 0.5 * penalty,
    "penalty first": lambda model, penalty: 0.5 * penalty + model,
    "tf.add": lambda model, penalty: tf.add(model, 0.5 * penalty),
    "tf.add_n": lambda model, penalty: tf.add_n([model, 0.5 * penalty]),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_tensorflow_s_tapes_see_penalties_and_variables(loss: Callable[[Any, Any], Any]) -> None:
    v = tf.Variable([1.0, -2.0])
    with tf1.Graph().as_default():
        w = tf1.get_variable("w", initializer=v, regularizer=tf1.l2_regularizer(0.5))
        with tf.GradientTape(persistent=True) as tape:
            total = loss(tf.reduce_sum(v * 3.0), tf1.losses.get_regularization_loss())
            square = tf.reduce_sum(tf.square(w))
    assert tape.gradient(total, v).numpy().tolist() == [3.25, 2.5]
    assert tape.gradient(square, v).numpy().tolist() == [2, -4]


def test_a_penalty_that_records_is_an_array_of_numpy_too() -> None:
    with tf1.Graph().as_default():
        parameter = torch.nn.Parameter(torch.ones(2))
        tf1.get_variable("w", initializer=parameter, regularizer=tf1.l2_regularizer(0.5))
        [loss] = tf1.losses.get_regularization_losses()
    assert np.asarray(loss) == 0.5
