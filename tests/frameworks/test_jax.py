"""JAX arrays: concrete ones have the bits of NumPy arrays, traced ones JAX's own operations."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpureg
from tests.frameworks.test_tensorflow import bits, close, sample
from tests.helpers import DTYPES

BOTH = gpureg.L1L2(0.1, 0.3)
SHAPES = [(), (0,), (1,), (5, 7), (40_000,)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_have_numpy_s_bits(shape: tuple[int, ...], dtype: str) -> None:
    w = sample(shape, DTYPES[dtype])
    a = jnp.asarray(w)
    value, gradient = BOTH.value_and_grad(a)
    assert all(isinstance(array, jax.Array) for array in (BOTH(a), value, gradient, BOTH.grad(a)))
    assert bits(BOTH(a)) == bits(value) == bits(BOTH(w))
    assert bits(gradient) == bits(BOTH.grad(a)) == bits(BOTH.grad(w))
    assert bits(gpureg.l2_loss(a)) == bits(gpureg.l2_loss(w))
    assert bits(a) == bits(w)


def test_float64_where_jax_is_told_to_have_it() -> None:
    w = sample((100,), np.float64)
    with jax.enable_x64(True):
        a = jnp.asarray(w)
        assert bits(BOTH(a)) == bits(BOTH(w))
        assert bits(BOTH.grad(a)) == bits(BOTH.grad(w))
        assert jax.jit(BOTH)(a).dtype == np.float64


def test_arrays_are_not_written_to() -> None:
    w, gradient = jnp.ones(3), jnp.zeros(3)
    with pytest.raises(ValueError, match="grad is read-only"):
        BOTH.accumulate_grad(w, gradient)
    with pytest.raises(ValueError, match="out is read-only"):
        BOTH.grad(w, out=gradient)
    with pytest.raises(ValueError, match="w is read-only"):
        BOTH.prox_(w, 0.1)
    with pytest.raises(TypeError, match="w has dtype int32"):
        BOTH(jnp.arange(3))


def test_jax_differentiates_and_compiles_the_penalty() -> None:
    w = sample((300,))
    exact = BOTH.grad(w.astype(np.float64))
    for differentiate in (jax.value_and_grad(BOTH), jax.jit(jax.value_and_grad(BOTH))):
        value, gradient = differentiate(jnp.asarray(w))
        assert value.dtype == np.float32
        assert close(value, BOTH(w.astype(np.float64)), w.size)
        # Two coefficients, two products and a sum are rounded to float32 there.
        assert (np.abs(np.asarray(gradient) - exact) <= 5 * 2.0**-24 * (0.1 + 0.6 * np.abs(w))).all()


def test_half_precision_is_widened_before_it_is_squared() -> None:
    assert jax.jit(gpureg.l2_loss)(jnp.asarray([3000.0], jnp.float16)) == 4_500_000
    assert jax.jit(gpureg.l2_loss)(jnp.asarray([3000.0], jnp.float16)).dtype == np.float32


def test_each_of_a_batch_by_vmap() -> None:
    w = sample((4, 30))
    each = jax.vmap(BOTH)(jnp.asarray(w))
    assert each.shape == (4,)
    assert close(each, [BOTH(row.astype(np.float64)) for row in w], 30)


def test_the_derivative_at_zero_is_zero() -> None:
    assert jax.grad(gpureg.L1(0.5))(jnp.asarray([0.0, -0.0, 2.0])).tolist() == [0, 0, 0.5]


def test_whole_trees_inside_a_loss() -> None:
    weights = {"fc": {"kernel": jnp.asarray([[1.0, -2.0]]), "bias": jnp.asarray([5.0])}}
    rules = {"*/bias": None, "*": gpureg.HalvedL2(2.0)}

    def loss(weights: Any, strength: Any) -> Any:
        penalty = gpureg.Penalty(weights, rules)
        penalty.set_strength(strength)
        return penalty()

    assert gpureg.Penalty(weights, rules)() == 5
    value, gradients = jax.jit(jax.value_and_grad(loss))(weights, jnp.float32(0.5))
    assert value == 2.5
    assert gradients["fc"]["kernel"].tolist() == [[1, -2]]
    assert gradients["fc"]["bias"].tolist() == [0]
    assert bits(gpureg.Penalty(weights, rules).grads()["fc/kernel"]) == bits(np.array([[2, -4]], np.float32))


def test_a_strength_may_be_differentiated() -> None:
    penalty = gpureg.Penalty({"a": jnp.asarray([1.0, 2.0])}, gpureg.HalvedL2(1.0))

    def loss(strength: Any) -> Any:
        penalty.set_strength(strength)
        return penalty()

    assert jax.grad(loss)(3.0) == 2.5


def test_keys_are_no_weights() -> None:
    for call in (gpureg.l2_loss, jax.jit(gpureg.l2_loss)):
        with pytest.raises(TypeError, match="w has dtype key<fry>"):
            call(jax.random.key(0))


SPREAD = """
import keras, numpy as np, jax, gpureg, gpureg.keras
keras.distribution.set_distribution(keras.distribution.DataParallel())
layer = keras.layers.Dense(3, kernel_regularizer=gpureg.keras.L2(0.5), kernel_initializer="ones")
model = keras.Sequential([keras.Input((4,)), layer])
model.compile(keras.optimizers.SGD(0.0), "mse")
model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
w = layer.kernel.value
assert len(w.devices()) == 2
assert gpureg.L2(0.5)(w) == gpureg.Penalty({"w": w}, gpureg.L2(0.5))() == layer.losses[0] == 6
try:
    gpureg.L2(0.5).grad(w)
except TypeError as error:
    print(error)
"""


def test_arrays_that_are_spread_over_devices_have_the_plain_formula() -> None:
    environment = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", SPREAD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "w is spread over 2 devices; of such an array there is only the penalty itself\n"


def test_what_else_traced_functions_ask_for_is_refused() -> None:
    for call in (BOTH.grad, BOTH.value_and_grad, lambda w: BOTH.prox_(w, 1.0)):
        with pytest.raises(TypeError, match="w is traced by JAX"):
            jax.jit(call)(jnp.ones(3))
    with pytest.raises(TypeError, match=r"weights\['a'\] is traced"):
        jax.jit(lambda w: gpureg.Penalty({"a": w}, BOTH).losses())(jnp.ones(3))
    with pytest.raises(ValueError, match="x is 0-d"):
        jax.jit(BOTH.activity)(jnp.float32(1))


def test_activities_over_their_batch() -> None:
    x = jnp.ones((4, 2))
    assert jax.jit(gpureg.L1(0.5).activity)(x) == gpureg.L1(0.5).activity(x) == 1
    assert jax.jit(gpureg.L1(0.5).activity)(jnp.ones((0, 2))) == gpureg.L1(0.5).activity(jnp.ones((0, 2))) == 0
