"""The rows of `docs/moving.md` about TensorFlow 2, Keras and JAX that are about more than one regularizer."""

import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import gpureg
import gpureg.keras
from tests.frameworks.keras.sides import gradient, number, sum_bound

W = np.random.default_rng(0).standard_normal((30, 20), dtype=np.float32)


def manual(kind: str) -> Callable[[Any], Any]:
    """Return the penalty as people write it by hand, in Keras's operations."""
    if kind == "square":
        return lambda v: 1e-4 * keras.ops.sum(keras.ops.square(v))
    return lambda v: 0.5 * keras.ops.sum(v**2)  # as tf.nn.l2_loss


@pytest.mark.parametrize(
    ("kind", "ours"), [("square", gpureg.L2(1e-4)), ("halved", gpureg.l2_loss)], ids=["square", "halved"]
)
def test_a_penalty_by_hand_under_differentiation(kind: str, ours: Callable[[Any], Any]) -> None:
    by_hand = manual(kind)
    assert abs(number(by_hand(keras.ops.convert_to_tensor(W))) - float(ours(W))) <= sum_bound(W.size, W.dtype) * float(
        ours(W)
    )
    # A product and a coefficient are rounded on both sides.
    expected = gradient(by_hand, W)
    assert (np.abs(gradient(ours, W) - expected) <= 4 * 2.0**-24 * np.abs(expected)).all()


def test_all_trainable_variables_of_a_model() -> None:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(7), keras.layers.Dense(3, trainable=False)])
    variables = model.trainable_variables
    penalty = gpureg.Penalty([(v.path, v.value) for v in variables], gpureg.HalvedL2(1.0))
    by_hand = sum(number(manual("halved")(v)) for v in variables)
    assert len(variables) == 2
    assert abs(number(penalty()) - by_hand) <= sum_bound(100, np.float32) * by_hand


def test_names_dictionaries_and_registered_classes_without_keras() -> None:
    theirs = keras.regularizers.serialize(keras.regularizers.get("l2"))
    assert gpureg.deserialize(json.loads(json.dumps(theirs))) == gpureg.get("l2") == gpureg.keras.L2()


def test_a_tree_of_jax_in_a_loss() -> None:
    import jax  # noqa: PLC0415 - all frameworks are installed, but not all of these tests need it
    import jax.numpy as jnp  # noqa: PLC0415

    tree = {"a": jnp.asarray(W), "b": {"c": jnp.asarray(W[0])}}
    ours = jax.grad(lambda t: gpureg.Penalty(t, gpureg.HalvedL2(1.0))())(tree)
    theirs = jax.grad(lambda t: 0.5 * sum(jnp.sum(w**2) for w in jax.tree_util.tree_leaves(t)))(tree)
    for one, other in zip(jax.tree_util.tree_leaves(ours), jax.tree_util.tree_leaves(theirs), strict=True):
        assert (np.abs(one - other) <= 2 * 2.0**-24 * np.abs(other)).all()
