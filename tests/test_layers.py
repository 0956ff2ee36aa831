"""The penalties of one layer: their order, the batch, and what is left out; real layers are in tests/frameworks."""

import json
from typing import Any

import numpy as np
import pytest

from gpureg import L1, L2, HalvedL2, LayerPenalties, OrthogonalRegularizer, Regularizer

KERNEL = np.ones((5, 5), np.float32)
OUTPUT = np.full((5, 5), 10, np.float32)


def own_function(w: Any) -> Any:
    return 0.01 * np.sum(np.abs(w))


class Own(Regularizer):
    def __call__(self, x: Any) -> Any:
        return 0.5 * np.sum(np.square(x))


def test_the_example_of_keras() -> None:
    penalties = LayerPenalties(kernel_regularizer=L1(0.01), activity_regularizer=L2(0.01))
    losses = penalties.losses(kernel=KERNEL, output=2 * KERNEL @ KERNEL)
    assert losses == [5.0, 0.25]
    assert sum(losses) == 5.25
    assert {type(loss) for loss in losses} == {np.float32}


def test_the_order_is_activity_kernel_bias() -> None:
    penalties = LayerPenalties(kernel_regularizer="l1", bias_regularizer=L2(0.5), activity_regularizer=L1(1.0))
    assert penalties.losses(bias=np.ones(4), kernel=100 * KERNEL, output=OUTPUT) == [50.0, 25.0, 2.0]


def test_a_frozen_layer_keeps_its_activity_alone() -> None:
    penalties = LayerPenalties(kernel_regularizer="l1", bias_regularizer="l2", activity_regularizer=L1(1.0))
    assert penalties.losses(kernel=KERNEL, bias=KERNEL[0], output=OUTPUT, trainable=False) == [50.0]
    assert penalties.losses(output=OUTPUT, trainable=False) == [50.0]


def test_each_output_has_a_penalty_of_its_own() -> None:
    assert LayerPenalties(activity_regularizer=L1(1.0)).losses(output=[OUTPUT, OUTPUT[:2]]) == [50.0, 50.0]
    assert LayerPenalties(activity_regularizer=L1(1.0)).losses(output=(OUTPUT,)) == [50.0]


def test_what_has_no_regularizer_has_no_penalty() -> None:
    assert LayerPenalties().losses(kernel=KERNEL, bias=KERNEL, output=OUTPUT) == []
    assert LayerPenalties().losses() == []
    assert LayerPenalties(bias_regularizer=L1(1.0)).losses(kernel=KERNEL, bias=KERNEL[0]) == [5.0]


def test_users_own_functions_and_classes() -> None:
    penalties = LayerPenalties(kernel_regularizer=own_function, bias_regularizer=Own, activity_regularizer=own_function)
    assert penalties.losses(kernel=KERNEL, bias=KERNEL, output=KERNEL) == [np.float32(0.05), 0.25, 12.5]
    assert LayerPenalties(activity_regularizer=Own()).losses(output=KERNEL) == [2.5]


@pytest.mark.parametrize(
    "regularizer", [L1(), own_function, Own(), OrthogonalRegularizer()], ids=lambda each: type(each).__name__
)
def test_an_empty_batch_has_no_penalty(regularizer: Any) -> None:
    assert LayerPenalties(activity_regularizer=regularizer).losses(output=OUTPUT[:0]) == [0.0]


@pytest.mark.parametrize("part", ["kernel", "bias", "activity"])
def test_a_regularizer_without_its_array_is_an_error(part: str) -> None:
    penalties = LayerPenalties(**{f"{part}_regularizer": L1(0.5)})
    name = "output" if part == "activity" else part
    with pytest.raises(ValueError, match=rf"^{part}_regularizer is L1\(l1=0.5\), but no {name} was given$"):
        penalties.losses()


@pytest.mark.parametrize("regularizer", [L1(), own_function], ids=lambda each: type(each).__name__)
def test_an_output_needs_a_batch(regularizer: Any) -> None:
    with pytest.raises(ValueError, match=r"^x is 0-d; an activity penalty is divided by x\.shape\[0\]"):
        LayerPenalties(activity_regularizer=regularizer).losses(output=np.float32(1))


def test_what_is_no_regularizer_is_refused() -> None:
    odd: Any
    for odd in ("l1_l2", 0.1, {}):
        with pytest.raises(ValueError, match=r"^(Could not interpret|Unknown)"):
            LayerPenalties(kernel_regularizer=odd)


def test_the_configuration_goes_through_json() -> None:
    penalties = LayerPenalties(kernel_regularizer="l1", activity_regularizer=HalvedL2(0.5))
    config = json.loads(json.dumps(penalties.get_config()))
    assert list(config) == ["kernel_regularizer", "bias_regularizer", "activity_regularizer"]
    assert config["bias_regularizer"] is None
    assert LayerPenalties.from_config(config) == penalties
