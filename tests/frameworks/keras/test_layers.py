"""The losses of real Keras layers against `LayerPenalties`: which there are, in which order, and how large."""

from typing import Any

import keras
import numpy as np
import pytest

import gpureg
from tests.frameworks.keras.sides import number, sum_bound, tensor

PARTS = ("kernel", "bias", "activity")
ONES = np.ones((5, 5), np.float32)


def dense(units: int = 5, **regularizers: Any) -> Any:
    return keras.layers.Dense(units, kernel_initializer="ones", bias_initializer="ones", **regularizers)


def losses(layer: Any, x: Any) -> list[float]:
    """Return a layer's losses of one call."""
    layer(tensor(x))
    return [number(loss) for loss in layer.losses]


def own_losses(layer: Any, x: Any, penalties: gpureg.LayerPenalties, **options: Any) -> list[float]:
    """Return the losses that gpureg gives for the layer's weights and its output."""
    to_numpy = keras.ops.convert_to_numpy
    kernel, bias, output = to_numpy(layer.kernel), to_numpy(layer.bias), to_numpy(layer(tensor(x)))
    return [float(loss) for loss in penalties.losses(kernel=kernel, bias=bias, output=output, **options)]


def of_config(layer: Any) -> gpureg.LayerPenalties:
    """Return the penalties that a layer's configuration describes."""
    config = layer.get_config()
    return gpureg.LayerPenalties.from_config({f"{p}_regularizer": config.get(f"{p}_regularizer") for p in PARTS})


def test_the_example_of_keras_s_documentation() -> None:
    layer = dense(
        kernel_regularizer=keras.regularizers.L1(0.01), activity_regularizer=keras.regularizers.L2(0.01), use_bias=False
    )
    # On the PyTorch backend 0.01 in float32 times 25 is exact as well.
    assert losses(layer, 2 * ONES) == [5.0, 0.25]
    penalties = gpureg.LayerPenalties(kernel_regularizer=gpureg.L1(0.01), activity_regularizer=gpureg.L2(0.01))
    assert penalties.losses(kernel=ONES, output=2 * ONES @ ONES) == [5.0, 0.25]


@pytest.mark.parametrize("penalised", [PARTS, ("kernel", "bias"), ("bias", "activity"), ("activity",), ()], ids=str)
def test_the_same_losses_in_the_same_order(penalised: tuple[str, ...]) -> None:
    strengths = {"kernel": keras.regularizers.L1(0.01), "bias": keras.regularizers.L2(0.5),
                 "activity": keras.regularizers.L1L2(0.25, 0.125)}  # fmt: skip
    layer = dense(7, **{f"{part}_regularizer": strengths[part] for part in penalised})
    x = np.random.default_rng(0).standard_normal((4, 5), dtype=np.float32)
    theirs = losses(layer, x)
    ours = own_losses(layer, x, of_config(layer))
    assert len(ours) == len(theirs) == len(penalised)
    np.testing.assert_allclose(theirs, ours, rtol=sum_bound(35, np.float32), atol=0)
    if "kernel" in penalised:
        assert losses(layer, x)[-2 if "bias" in penalised else -1] == pytest.approx(0.35)


def test_a_frozen_layer_keeps_its_activity_alone() -> None:
    layer = dense(kernel_regularizer="l1", bias_regularizer="l2", activity_regularizer="l2")
    layer.build((None, 5))
    layer.trainable = False
    theirs, ours = losses(layer, ONES), own_losses(layer, ONES, of_config(layer), trainable=False)
    assert len(theirs) == 1
    np.testing.assert_allclose(theirs, ours, rtol=sum_bound(25, np.float32), atol=0)


def test_an_empty_batch_has_an_activity_penalty_of_zero() -> None:
    layer = dense(kernel_regularizer=keras.regularizers.L1(1.0), activity_regularizer="l2")
    assert losses(layer, ONES[:0]) == own_losses(layer, ONES[:0], of_config(layer)) == [0.0, 25.0]


def test_a_users_own_function() -> None:
    def theirs(weight_matrix: Any) -> Any:
        return 0.01 * keras.ops.sum(keras.ops.absolute(weight_matrix))

    def ours(weight_matrix: Any) -> Any:
        return 0.01 * np.sum(np.abs(weight_matrix))

    assert losses(dense(kernel_regularizer=theirs), ONES) == [0.25]
    assert gpureg.LayerPenalties(kernel_regularizer=ours).losses(kernel=ONES) == [0.25]
    # Over the output, divided by the batch: a sum of 25 values of 6.
    activity = losses(dense(activity_regularizer=theirs), ONES)
    np.testing.assert_allclose(activity, [0.3], rtol=sum_bound(25, np.float32))
    own = gpureg.LayerPenalties(activity_regularizer=ours).losses(output=6 * ONES)
    np.testing.assert_allclose(own, activity, rtol=sum_bound(25, np.float32))


def test_a_users_own_class() -> None:
    class Theirs(keras.regularizers.Regularizer):  # type: ignore[misc] # Keras has no types
        def __call__(self, x: Any) -> Any:
            return 0.5 * keras.ops.sum(keras.ops.square(x))

    class Ours(gpureg.Regularizer):
        def __call__(self, x: Any) -> Any:
            return 0.5 * np.sum(np.square(x))

    assert losses(dense(kernel_regularizer=Theirs()), ONES) == [12.5]
    assert gpureg.LayerPenalties(kernel_regularizer=Ours()).losses(kernel=ONES) == [12.5]


def test_several_outputs_have_a_penalty_each() -> None:
    class Twice(keras.layers.Layer):  # type: ignore[misc] # likewise
        def call(self, x: Any) -> Any:
            return [x, 2 * x]

    layer = Twice(activity_regularizer=keras.regularizers.L1(1.0))
    penalties = gpureg.LayerPenalties(activity_regularizer=gpureg.L1(1.0))
    assert losses(layer, ONES) == penalties.losses(output=[ONES, 2 * ONES]) == [5.0, 10.0]


def test_a_regularizer_of_what_is_not_there_is_an_error_here() -> None:
    assert losses(dense(use_bias=False, bias_regularizer="l1"), ONES) == []
    with pytest.raises(ValueError, match="no bias was given"):
        gpureg.LayerPenalties(bias_regularizer="l1").losses(kernel=ONES, output=ONES)
