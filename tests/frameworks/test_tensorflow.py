"""TensorFlow's tensors: eager ones have the bits of NumPy arrays, symbolic ones TensorFlow's own operations."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tf_slim

import gpureg
from tests.helpers import DTYPES

L2 = gpureg.L2(0.3)
BOTH = gpureg.L1L2(0.1, 0.3)
SHAPES = [(), (0,), (0, 3), (1,), (5, 7), (3, 5, 2, 2), (40_000,)]


def sample(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def bits(array: Any) -> tuple[Any, ...]:
    array = np.asarray(array.numpy() if tf.is_tensor(array) else array)
    return array.dtype.name, array.shape, array.tobytes()


def close(actual: Any, exact: Any, count: int) -> bool:
    """Return whether values agree as far as float32 sums of `count` terms go: (count + 5) roundings, all one sign."""
    return bool((np.abs(np.asarray(actual) - exact) <= (count + 5) * 2.0**-24 * np.abs(exact)).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [tf.constant, tf.Variable])
def test_eager_values_and_gradients_have_numpy_s_bits(kind: Any, shape: tuple[int, ...], dtype: str) -> None:
    w = sample(shape, DTYPES[dtype])
    t = kind(w)
    value, gradient = BOTH.value_and_grad(t)
    for tensor in (BOTH(t), value, gradient, BOTH.grad(t)):
        assert tf.is_tensor(tensor)
        assert tensor.device == tf.convert_to_tensor(t).device
    assert bits(BOTH(t)) == bits(value) == bits(BOTH(w))
    assert bits(gradient) == bits(BOTH.grad(t)) == bits(BOTH.grad(w))
    assert bits(gpureg.l1_loss(t)) == bits(gpureg.l1_loss(w))
    assert bits(gpureg.l2_loss(t)) == bits(gpureg.l2_loss(w))
    if shape:
        assert bits(BOTH.activity(t)) == bits(BOTH.activity(w))


def test_what_a_gradient_is_computed_on_stays_as_it_was() -> None:
    w = sample((40_000,))
    t = tf.constant(w)
    gradient = BOTH.grad(t)
    assert tf.reduce_sum(gradient).shape == ()  # TensorFlow ends the process over memory of its own that is not aligned
    assert bits(t) == bits(w)
    del t
    assert bits(gradient) == bits(BOTH.grad(w))


def test_the_result_s_dtype_may_be_asked_for_as_tensorflow_calls_it() -> None:
    t = tf.constant(sample((300,), np.float16))
    assert gpureg.l2_loss(t, dtype=tf.float64).dtype == tf.float64
    assert gpureg.l2_loss(t, dtype=tf.bfloat16).dtype == tf.bfloat16
    assert np.isinf(tf.nn.l2_loss(tf.constant([300.0], tf.float16)).numpy())  # as its squares are summed in float16
    assert gpureg.l2_loss(tf.constant([300.0], tf.float16)).numpy() == 45_000
    with pytest.raises(TypeError, match=r"dtype is tf.int32; expected one of"):
        gpureg.l2_loss(t, dtype=tf.int32)


@pytest.mark.parametrize("tensor", [tf.constant([1]), tf.constant(["a"]), tf.constant([True]), tf.constant([1j])])
def test_other_dtypes_are_refused(tensor: Any) -> None:
    with pytest.raises(TypeError, match=r"w has dtype .*; expected float16 or bfloat16 or float32 or float64"):
        gpureg.l2_loss(tensor)
    with pytest.raises(TypeError, match=r"w has dtype .*; expected float16 or bfloat16 or float32 or float64"):
        L2.grad(tensor)


def test_sparse_and_ragged_tensors_are_refused() -> None:
    for other in (tf.sparse.from_dense([[1.0, 0.0]]), tf.ragged.constant([[1.0], [2.0, 3.0]])):
        with pytest.raises(TypeError, match=r"w must be an array of numpy, .*, not tensorflow"):
            gpureg.l2_loss(other)


def test_tensors_are_not_written_to() -> None:
    w, gradient = tf.constant([1.0, 2.0]), tf.Variable([0.0, 0.0])
    with pytest.raises(ValueError, match="grad is read-only"):
        L2.accumulate_grad(w, gradient)
    with pytest.raises(ValueError, match="out is read-only"):
        L2.grad(w, out=gradient)
    with pytest.raises(ValueError, match="w is read-only"):
        L2.prox_(gradient, 0.1)
    with pytest.raises(ValueError, match=r"grads\['w'\] is read-only"):
        gpureg.Penalty({"w": w}, L2).accumulate_grad({"w": gradient})
    with pytest.raises(TypeError, match="grad is of numpy, but w is of tensorflow"):
        L2.accumulate_grad(w, np.zeros(2, np.float32))
    assert gradient.numpy().tolist() == [0, 0]


# Tapes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tapes_get_the_fused_gradient(shape: tuple[int, ...], dtype: str) -> None:
    w = sample(shape, DTYPES[dtype])
    v = tf.Variable(w)
    with tf.GradientTape() as tape:
        loss = BOTH(v)
    assert bits(tape.gradient(loss, v)) == bits(BOTH.grad(w))


def test_tapes_scale_the_gradient_by_what_comes_down() -> None:
    w = sample((100,))
    v = tf.Variable(w)
    with tf.GradientTape() as tape:
        loss = 3.0 * BOTH(v) + 4.0 * gpureg.l1_loss(v)
    # Coefficients are scaled before their one rounding; the two gradients are added by TensorFlow.
    expected = [
        gpureg.Penalty({"w": w}, reg).grads(scale=scale)["w"] for reg, scale in ((BOTH, 3.0), (gpureg.L1(1.0), 4.0))
    ]
    assert bits(tape.gradient(loss, v)) in (bits(expected[0] + expected[1]), bits(expected[1] + expected[0]))


def test_the_gradient_of_an_activity_is_over_the_batch() -> None:
    x = tf.constant(sample((4, 8)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = L2.activity(x)
    expected = gpureg.Penalty({"x": x.numpy()}, L2).grads(scale=0.25)["x"]
    assert bits(tape.gradient(loss, x)) == bits(expected)


def test_a_gradient_has_a_gradient() -> None:
    v = tf.Variable([1.0, -2.0, 0.0])
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = gpureg.L1L2(0.5, 0.25)(v) ** 2
        gradient = inner.gradient(loss, v)
        norm = tf.reduce_sum(gradient * tf.constant([1.0, 2.0, 4.0]))
    with tf.GradientTape(persistent=True) as outer2:
        with tf.GradientTape() as inner:
            plain = (0.5 * tf.reduce_sum(tf.abs(v)) + 0.25 * tf.reduce_sum(v * v)) ** 2
        norm2 = tf.reduce_sum(inner.gradient(plain, v) * tf.constant([1.0, 2.0, 4.0]))
    assert bits(norm) == bits(norm2)
    assert bits(outer.gradient(norm, v)) == bits(outer2.gradient(norm2, v))  # all numbers are exact here


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_gradient_s_gradient_does_not_overflow(dtype: str) -> None:
    v = tf.Variable(tf.fill([10_000], tf.constant(50.0, dtype)))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = gpureg.L2(0.5)(v)
            scaled = loss * loss * 1e-8
        norm = tf.reduce_sum(tf.cast(inner.gradient(scaled, v), tf.float32) ** 2)
    exact = 18.75  # of 12.5e6 for the loss
    assert abs(float(outer.gradient(norm, v)[0]) - exact) <= exact * 2.0**-7  # a bfloat16, and gradients in it


def test_jacobians_are_made_of_the_plain_formula() -> None:
    v = tf.Variable([1.0, -2.0])
    with tf.GradientTape() as tape:
        losses = tf.stack([gpureg.L2(0.5)(v), gpureg.L1(1.0)(v), gpureg.L1L2(0.0, 0.0)(v)])
    assert tape.jacobian(losses, v).numpy().tolist() == [[1, -2], [1, -1], [0, 0]]


def test_the_orthogonal_penalty_on_a_tape() -> None:
    w = sample((3, 4))
    v, penalty = tf.Variable(w), gpureg.OrthogonalRegularizer(1.0)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            loss = 2.0 * penalty(v)
        gradient = tape.gradient(loss, v)
    assert bits(gradient) == bits(2 * penalty.grad(w))
    with pytest.raises(LookupError, match="has no gradient of its own"):
        outer.gradient(gradient, v)


def test_a_penalty_of_many_is_differentiated_and_current() -> None:
    weights = {"a": tf.Variable(sample((30, 7))), "b": tf.Variable(sample((5,), seed=1)), "c": tf.constant([2.0])}
    rules = {"b": None, "*": BOTH}
    penalty = gpureg.Penalty(weights, rules)
    for step in range(3):
        arrays = {name: np.asarray(tf.convert_to_tensor(w)).copy() for name, w in weights.items()}
        reference = gpureg.Penalty(arrays, rules)
        with tf.GradientTape() as tape:
            total = penalty()
        gradients = tape.gradient(total, weights)
        assert bits(total) == bits(reference())
        assert gradients["b"] is None
        assert bits(gradients["a"]) == bits(reference.grads()["a"]) == bits(penalty.grads()["a"])
        assert {name: bits(loss) for name, loss in penalty.losses().items()} == {
            name: bits(loss) for name, loss in reference.losses().items()
        }
        assert [row.dtype for row in penalty.explain()] == ["float32"] * 3
        weights["a"].assign_add(tf.ones((30, 7)) * step)  # other memory, under the same variable


def test_the_strength_of_a_penalty_may_be_a_tensor() -> None:
    weights = {"a": tf.Variable(sample((30,)))}
    penalty = gpureg.Penalty(weights, BOTH)
    penalty.set_strength(tf.constant(0.5))
    reference = gpureg.Penalty({"a": weights["a"].numpy()}, BOTH)
    reference.set_strength(0.5)
    with tf.GradientTape() as tape:
        total = penalty()
    assert bits(total) == bits(reference())
    assert bits(tape.gradient(total, weights["a"])) == bits(reference.grads()["a"])


# Functions and graphs


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_functions_are_made_of_tensorflow_s_operations(dtype: str, jit_compile: bool) -> None:
    w = sample((300,), DTYPES[dtype])
    v = tf.Variable(w)

    @tf.function(jit_compile=jit_compile)  # type: ignore[untyped-decorator] # it has no hints
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = BOTH(v)
        return loss, tape.gradient(loss, v)

    loss, gradient = step()
    assert loss.dtype.name == BOTH(w).dtype.name
    assert close(loss, BOTH(w.astype(np.float64)), w.size)
    assert gradient.dtype.name == dtype
    # c1 and c2 are rounded there as the operations have it; a float16 gradient is rounded once, as here.
    unit = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}[dtype]
    exact = BOTH.grad(w.astype(np.float64))
    assert (np.abs(np.asarray(gradient, np.float64) - exact) <= 2 * (unit + 4 * 2.0**-24) * np.abs(exact)).all()


def test_eager_tensors_that_a_function_captures_keep_their_gradient() -> None:
    v = tf.Variable([1.0, 2.0])
    with tf.GradientTape() as tape:
        captured = v * 1.0
        loss = tf.function(lambda: L2(captured))()
    assert close(tape.gradient(loss, v), [0.6, 1.2], 2)


def test_the_batch_may_be_unknown() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])  # type: ignore[untyped-decorator] # likewise
    def activity(x: Any) -> Any:
        return gpureg.L1(0.5).activity(x)

    assert activity(tf.ones((4, 2))).numpy() == 1
    assert activity(tf.ones((0, 2))).numpy() == 0
    with pytest.raises(ValueError, match="unknown rank"):  # TensorFlow's own words
        tf.function(gpureg.L1(0.5).activity, input_signature=[tf.TensorSpec(None, tf.float32)])(tf.ones((4, 2)))
    with pytest.raises(ValueError, match="x is 0-d"):
        tf.function(gpureg.L1(0.5).activity)(tf.constant(1.0))


def test_whole_models_are_functions_too() -> None:
    weights = {"a": tf.Variable([1.0, -2.0]), "b": tf.Variable([3.0])}
    rules = {"b": gpureg.HalvedL2(2.0), "*": gpureg.L1(0.5)}
    eager = gpureg.Penalty(weights, rules)
    assert tf.function(lambda: gpureg.Penalty(weights, rules)(scope=None))().numpy() == eager().numpy() == 10.5
    assert tf.function(eager)().numpy() == 10.5
    with pytest.raises(TypeError, match=r"weights\['a'\] is traced"):
        tf.function(lambda: gpureg.Penalty(weights, rules).losses())()


def test_what_else_functions_ask_for_is_refused() -> None:
    v = tf.Variable([1.0, 2.0])
    for call in (L2.grad, L2.value_and_grad, lambda w: L2.accumulate_grad(w, w), lambda w: L2.prox_(w, 1.0)):
        with pytest.raises(TypeError, match="w is symbolic"):
            tf.function(call)(v)
    with pytest.raises(TypeError, match="w has dtype int32"):
        tf.function(L2)(tf.constant([1]))


def test_coefficients_of_zero_leave_out_their_term() -> None:
    v = tf.Variable([np.inf])
    assert tf.function(gpureg.L1L2(0.0, 0.0))(v).numpy() == 0
    assert gpureg.L1L2(0.0, 0.0)(v).numpy() == 0


@pytest.mark.parametrize("use_resource", [False, True])
def test_get_variable_of_tensorflow_takes_our_regularizers(use_resource: bool) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        w = v1.get_variable(
            "w", initializer=[[1.0, -2.0], [-3.0, 4.0]], regularizer=gpureg.HalvedL2(0.5), use_resource=use_resource
        )
        (loss,) = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
        (gradient,) = v1.gradients(loss, w)
        session.run(v1.global_variables_initializer())
        value, slope = session.run([loss, gradient])
    assert value == 7.5
    assert slope.tolist() == [[0.5, -1], [-1.5, 2]]


@pytest.mark.filterwarnings("ignore:`layer.apply` is deprecated:UserWarning")  # tf_slim's own
def test_fully_connected_of_tf_slim_takes_our_regularizers() -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 5])
        tf_slim.fully_connected(
            x, 5, weights_initializer=v1.ones_initializer(), weights_regularizer=gpureg.L1(0.01), scope="fc"
        )
        (loss,) = v1.losses.get_regularization_losses()
        session.run(v1.global_variables_initializer())
        assert session.run(loss) == np.float32(0.25)


def test_bfloat16_is_known_by_ml_dtypes() -> None:
    gradient = L2.grad(tf.constant([1.0, 2.0], tf.bfloat16))
    assert gradient.dtype == tf.bfloat16
    assert gradient.numpy().dtype == ml_dtypes.bfloat16
