"""Names and dictionaries of regularizers: gpureg and the real Keras read each other's."""

import json
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

import gpureg
from gpureg import regularizers
from tests.frameworks.keras.sides import outcome

THEIRS = keras.regularizers
ARGUMENTS = {"L1": (0.5,), "L2": (0.25,), "L1L2": (0.5, 0.25), "OrthogonalRegularizer": (0.5, "columns")}


def l1_reg(weight_matrix: Any) -> Any:
    return 0.01 * np.sum(np.abs(weight_matrix))


class OursL2(gpureg.Regularizer):
    def __init__(self, l2: float = 0.0) -> None:
        self.l2 = l2

    def __call__(self, x: Any) -> Any:
        return self.l2 * np.sum(np.square(x))

    def get_config(self) -> dict[str, Any]:
        return {"l2": float(self.l2)}


class TheirsL2(keras.regularizers.Regularizer):  # type: ignore[misc] # Keras has no types
    def __init__(self, l2: float = 0.0) -> None:
        self.l2 = l2

    def __call__(self, x: Any) -> Any:
        return self.l2 * keras.ops.sum(keras.ops.square(x))

    def get_config(self) -> dict[str, Any]:
        return {"l2": float(self.l2)}


OursL2.__name__ = TheirsL2.__name__ = "OwnL2"
regularizers.register("both")(OursL2)
regularizers.register("both")(l1_reg)
keras.saving.register_keras_serializable("both")(TheirsL2)
keras.saving.register_keras_serializable("both")(l1_reg)


def test_the_module_has_all_names_of_keras_s() -> None:
    names = {name for name in vars(THEIRS) if not name.startswith("_")}
    assert names <= set(vars(regularizers))
    assert regularizers.l1_l2 is regularizers.L1L2
    assert THEIRS.l1_l2 is THEIRS.L1L2


@pytest.mark.parametrize("name", ARGUMENTS)
def test_dictionaries_are_equal_and_read_by_the_other_side(name: str) -> None:
    ours, theirs = getattr(gpureg, name)(*ARGUMENTS[name]), getattr(THEIRS, name)(*ARGUMENTS[name])
    written = gpureg.serialize(ours)
    assert written == THEIRS.serialize(theirs)
    text = json.dumps(written)
    assert text == json.dumps(THEIRS.serialize(theirs))
    for read in (gpureg.deserialize, gpureg.get):
        assert read(json.loads(text)) == ours
    for read in (THEIRS.deserialize, THEIRS.get, keras.saving.deserialize_keras_object):
        back = read(json.loads(text))
        assert type(back) is type(theirs)
        assert back.get_config() == theirs.get_config()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_defaults_are_read_as_they_were_rounded(name: str) -> None:
    """Keras keeps L1 and the orthogonal factor in float32 and writes them so; what is read is what was written."""
    theirs = getattr(THEIRS, name)()
    assert gpureg.get(THEIRS.serialize(theirs)).get_config() == theirs.get_config()


def test_a_layer_takes_a_dictionary_of_gpureg_s_and_gives_one_back() -> None:
    layer = keras.layers.Dense(3, kernel_regularizer=gpureg.serialize(gpureg.L1L2(0.5, 0.25)), bias_regularizer="l2")
    config = layer.get_config()
    penalties = gpureg.LayerPenalties.from_config(
        {f"{part}_regularizer": config.get(f"{part}_regularizer") for part in ("kernel", "bias", "activity")}
    )
    assert penalties == gpureg.LayerPenalties(kernel_regularizer=gpureg.L1L2(0.5, 0.25), bias_regularizer="l2")


@pytest.mark.parametrize(
    "identifier",
    [None, "L1", "l1", "L2", "l2", "L1L2", "l1l2", "OrthogonalRegularizer", "orthogonal_regularizer", "l1_l2", "L1_L2",
     "", "nope", "both>OwnL2", 0.1, 1, [], ["l1"], ("l1",), {}, {"config": {}}, {"class_name": "L1"}, object(),
     {"class_name": "L1", "config": {"l1": 0.5}}, {"class_name": "l1", "config": {"l1": 0.5}}, l1_reg,
     {"class_name": "L1", "config": None}, {"class_name": "L1", "config": {"l1": None}}, {"class_name": 5},
     {"class_name": "L1", "config": {"l2": 0.5}}, {"class_name": "L1", "config": {"l1": -1}},
     {"class_name": "L1", "config": [1]}, {"class_name": "L1", "config": "x"}, {"class_name": "nope", "config": {}},
     {"class_name": "L1", "config": {"l1": 0.5}, "module": None}, {"class_name": "L1", "config": {}, "extra": 1},
     {"class_name": "L1", "config": {"l1": 0.5}, "module": "keras.regularizers", "registered_name": "L1"},
     {"class_name": "Adam", "config": {}, "module": "keras.optimizers", "registered_name": None},
     {"class_name": "__lambda__", "config": {"value": "x"}}, {"class_name": "both>OwnL2", "config": {"l2": 1.0}},
     {"class_name": "function", "config": "both>l1_reg", "module": "builtins", "registered_name": "function"},
     {"class_name": "function", "config": "nope", "module": "builtins", "registered_name": "function"}],
    ids=str,
)  # fmt: skip
def test_get_takes_and_refuses_the_same(identifier: Any) -> None:
    ours, theirs = outcome(lambda: gpureg.get(identifier)), outcome(lambda: THEIRS.get(identifier))
    assert ours[0] == theirs[0]
    assert ours[1][:30] == theirs[1][:30] or ours[0] == "TypeError"


OWN = {"OwnL2": (OursL2, TheirsL2), "l1_reg": (l1_reg, l1_reg), "L1": (OursL2, TheirsL2), "x>Y": (OursL2, TheirsL2)}


@pytest.mark.parametrize(
    "config",
    ["OwnL2", "l1_reg", {"class_name": "OwnL2", "config": {"l2": 0.5}}, {"class_name": "L1", "config": {"l2": 0.5}},
     {"class_name": "OwnL2", "config": {}, "module": None, "registered_name": "OwnL2"},
     {"class_name": "Y", "config": {}, "module": "m", "registered_name": "x>Y"},
     {"class_name": "L1", "config": {"l1": 0.5}, "module": "keras.regularizers", "registered_name": None},
     {"class_name": "function", "config": "l1_reg", "module": "builtins", "registered_name": "function"}],
    ids=str,
)  # fmt: skip
def test_custom_objects_are_found_in_the_same_places(config: Any) -> None:
    ours = outcome(lambda: gpureg.deserialize(config, custom_objects={name: own for name, (own, _) in OWN.items()}))
    theirs = outcome(lambda: THEIRS.deserialize(config, custom_objects={name: own for name, (_, own) in OWN.items()}))
    assert ours == theirs


def test_users_own_classes_and_functions_have_the_same_dictionaries() -> None:
    ours, theirs = gpureg.serialize(OursL2(0.5)), THEIRS.serialize(TheirsL2(0.5))
    assert ours == theirs
    assert type(gpureg.deserialize(theirs)) is OursL2
    assert type(THEIRS.deserialize(ours)) is TheirsL2
    assert gpureg.serialize(l1_reg) == THEIRS.serialize(l1_reg)
    assert gpureg.deserialize(THEIRS.serialize(l1_reg)) is THEIRS.deserialize(gpureg.serialize(l1_reg)) is l1_reg


class NoConfig:
    def __call__(self, w: Any) -> Any:
        return w


@pytest.mark.parametrize("side", [gpureg.regularizers, keras.regularizers], ids=["gpureg", "keras"])
def test_what_cannot_be_serialized_is_the_same_error(side: Any) -> None:
    class Own(side.Regularizer):  # type: ignore[misc] # one or the other
        def __call__(self, w: Any) -> Any:
            return w

    assert outcome(lambda: side.serialize(Own()))[0] == "NotImplementedError"
    assert outcome(lambda: side.serialize(NoConfig()))[0] == "TypeError"
    assert outcome(lambda: side.serialize(side.L1))[0] == "TypeError"
    message = "Cannot register a class that does not have a get_config() method."
    assert outcome(lambda: regularizers.register()(NoConfig)) == ("ValueError", message)
    assert outcome(lambda: keras.saving.register_keras_serializable()(NoConfig)) == ("ValueError", message)


def test_what_keras_passes_on_is_an_error_here() -> None:
    """The differences that are meant: where Keras returns a name or takes another's class, gpureg refuses."""
    foreign = {"class_name": "L1", "config": {"l1": 0.5}, "module": "mine", "registered_name": "mine>L1"}
    assert outcome(lambda: THEIRS.deserialize("nope"))[0] == "str"
    assert outcome(lambda: THEIRS.deserialize({"class_name": "nope", "config": {}}))[0] == "str"
    assert outcome(lambda: THEIRS.deserialize(foreign))[0] == "L1"
    for config in ("nope", {"class_name": "nope", "config": {}}, foreign):
        assert outcome(partial(gpureg.deserialize, config))[0] == "ValueError"


def test_keras_writes_the_code_of_a_lambda_and_gpureg_refuses() -> None:
    unnamed = lambda w: w  # noqa: E731 - just that is in question
    with pytest.warns(UserWarning, match="lambda"):
        assert THEIRS.serialize(unnamed)["class_name"] == "__lambda__"
    assert outcome(lambda: gpureg.serialize(unnamed))[0] == "TypeError"
