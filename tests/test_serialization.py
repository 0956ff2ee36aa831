"""Regularizers by name and as dictionaries, those of gpureg and of users; the real Keras is in tests/frameworks."""

import functools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpureg
from gpureg import (
    L1,
    L1L2,
    L2,
    HalvedL2,
    OrthogonalRegularizer,
    Regularizer,
    deserialize,
    get,
    serialization,
    serialize,
)
from gpureg.regularizers import register
from tests.helpers import shown

NAMES = {
    "L1": L1(), "l1": L1(), "L2": L2(), "l2": L2(), "L1L2": L1L2(), "l1l2": L1L2(), "HalvedL2": HalvedL2(),
    "halved_l2": HalvedL2(), "OrthogonalRegularizer": OrthogonalRegularizer(),
    "orthogonal_regularizer": OrthogonalRegularizer(),
}  # fmt: skip
OWN = [L1(0.5), L2(0.25), L1L2(0.1, 0.2), HalvedL2(0.1), OrthogonalRegularizer(0.1, "columns")]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test register in a registry of its own."""
    monkeypatch.setattr(serialization, "_REGISTERED", {})
    monkeypatch.setattr(serialization, "_REGISTERED_NAMES", {})


class Own(Regularizer):
    def __init__(self, l2: float = 0.0) -> None:
        self.l2 = l2

    def __call__(self, x: Any) -> Any:
        return self.l2 * np.sum(np.square(x))

    def get_config(self) -> dict[str, Any]:
        return {"l2": self.l2}


def own_function(w: Any) -> Any:
    return 0.01 * np.sum(np.abs(w))


def keras_dictionary(name: str, config: Any) -> dict[str, Any]:
    return {"module": "keras.regularizers", "class_name": name, "config": config, "registered_name": None}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_regularizer_with_its_defaults(name: str) -> None:
    assert get(name) == NAMES[name]
    assert deserialize(name) == NAMES[name]
    assert get({"class_name": name}) == NAMES[name]
    assert get({"class_name": name, "config": None}) == NAMES[name]


@pytest.mark.parametrize(
    "identifier",
    ["l1_l2", "L1_L2", "", "nope", "Regularizer", "regularizer", "Own", 0.1, 1, True, [], ["l1"], ("l1",), object(),
     {}, {"config": {}}, {"class_name": "nope", "config": {}}, {"class_name": 5, "config": {}}, int,
     {"class_name": ["L1"], "config": {}}, {"class_name": "L1", "registered_name": ["L1"], "module": "x"},
     {"class_name": "function", "config": "nope"}, {"class_name": "__lambda__", "config": {"value": "x"}},
     {"module": "keras.optimizers", "class_name": "Adam", "config": {}, "registered_name": None}],
    ids=shown,
)  # fmt: skip
def test_anything_else_is_a_value_error(identifier: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^(Could not interpret regularizer identifier: |Unknown `config` as a `dict`)"
    ):
        get(identifier)


@pytest.mark.parametrize("config", ["l1_l2", "", 0.1, {}, {"class_name": "nope"}, object(), ["nope"]], ids=shown)
def test_nothing_that_is_unknown_is_passed_through(config: Any) -> None:
    with pytest.raises(ValueError, match=r"^(Could not interpret|Unknown)"):
        deserialize(config)


def test_the_error_lists_what_is_known() -> None:
    with pytest.raises(ValueError, match="l1_l2; known are L1, l1, L2, l2, L1L2, l1l2, OrthogonalRegularizer, "):
        get("l1_l2")


def test_what_is_one_already_is_returned() -> None:
    assert get(None) is None
    assert deserialize(None) is None
    assert serialize(None) is None
    for made in (L1(0.3), own_function, len, Own()):
        assert get(made) is made
        assert deserialize(made) is made
    assert get(L2) == L2()
    assert isinstance(get(Own), Own)
    assert deserialize([None, serialize(L1(0.5)), "l2"]) == [None, L1(0.5), L2()]


@pytest.mark.parametrize("regularizer", OWN, ids=shown)
def test_a_dictionary_goes_through_json(regularizer: Regularizer) -> None:
    dictionary = serialize(regularizer)
    assert dictionary is not None
    assert list(dictionary) == ["module", "class_name", "config", "registered_name"]
    for read in (deserialize, get):
        assert read(json.loads(json.dumps(dictionary))) == regularizer


@given(st.floats(min_value=0, max_value=1e300), st.floats(min_value=0, max_value=1e300))
def test_no_bit_of_a_coefficient_is_lost(l1: float, l2: float) -> None:
    for regularizer in (L1(l1), L2(l2), L1L2(l1, l2), HalvedL2(l2), OrthogonalRegularizer(l1)):
        assert deserialize(json.loads(json.dumps(serialize(regularizer)))) == regularizer


def test_the_dictionaries_are_keras_s() -> None:
    assert serialize(L1(0.5)) == keras_dictionary("L1", {"l1": 0.5})
    assert serialize(L2(0.5)) == keras_dictionary("L2", {"l2": 0.5})
    assert serialize(L1L2(0.5, 0.25)) == keras_dictionary("L1L2", {"l1": 0.5, "l2": 0.25})
    orthogonal = keras_dictionary("OrthogonalRegularizer", {"factor": 0.5, "mode": "rows"})
    assert serialize(OrthogonalRegularizer(0.5)) == orthogonal
    assert serialize(HalvedL2(0.5)) == {
        "module": "gpureg.regularizers", "class_name": "HalvedL2", "config": {"l2": 0.5},
        "registered_name": "gpureg>HalvedL2",
    }  # fmt: skip


@pytest.mark.parametrize(
    "elsewhere",
    [{}, {"module": "keras.src.regularizers.regularizers"}, {"module": "tf_keras.regularizers"}, {"extra": 1},
     {"module": "tensorflow.keras.regularizers"}, {"module": "gpureg.keras", "registered_name": "gpureg>L1"},
     {"registered_name": "L1"}],
    ids=shown,
)  # fmt: skip
def test_a_dictionary_of_any_keras_is_understood(elsewhere: dict[str, Any]) -> None:
    assert get({"class_name": "L1", "config": {"l1": 0.5}, **elsewhere}) == L1(0.5)


@pytest.mark.parametrize(
    "elsewhere",
    [{"module": "mine"}, {"module": "kerasish"}, {"module": "keras", "registered_name": "mine>L1"}],
    ids=shown,
)
def test_someone_else_s_class_of_the_same_name_is_not_gpureg_s(elsewhere: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Could not interpret"):
        get({"class_name": "L1", "config": {"l1": 0.5}, **elsewhere})


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [({"l2": 0.5}, TypeError, r"L1'> could not be deserialized properly: .* unexpected keyword argument 'l2'"),
     ([1], TypeError, r"^Expected 'config' to be a dict for L1,\ninstead got <class 'list'>\nFull config: "),
     ("x", TypeError, r"^Expected 'config' to be a dict for L1,\ninstead got <class 'str'>"),
     ({"l1": -1}, ValueError, r"^Invalid value for argument l1: expected a non-negative float.Received: l1=-1$")],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get(keras_dictionary("L1", config))


def test_a_dictionary_is_left_as_it_is() -> None:
    class Emptying(Own):
        @classmethod
        def from_config(cls, config: dict[str, Any]) -> "Emptying":
            return cls(config.pop("l2"))

    dictionary = {"class_name": "Emptying", "config": {"l2": 0.5}}
    assert deserialize(dictionary, {"Emptying": Emptying}).l2 == 0.5
    assert dictionary == {"class_name": "Emptying", "config": {"l2": 0.5}}


# Users' own ----------------------------------------------------------------------------------------------------------


def test_a_registered_class_is_found_by_its_name() -> None:
    assert register("pkg")(Own) is Own
    dictionary = serialize(Own(0.5))
    assert dictionary == {
        "module": __name__, "class_name": "Own", "config": {"l2": 0.5}, "registered_name": "pkg>Own"
    }  # fmt: skip
    found = deserialize(json.loads(json.dumps(dictionary)))
    assert type(found) is Own
    assert found(np.ones((5, 5))) == 12.5
    assert type(get({"class_name": "pkg>Own", "config": {}})) is Own
    assert deserialize("pkg>Own") is Own
    with pytest.raises(ValueError, match="Could not interpret"):
        get("pkg>Own")


def test_names_and_packages_have_defaults() -> None:
    register()(Own)
    register("pkg", "other")(own_function)
    assert serialize(Own())["registered_name"] == "Custom>Own"  # type: ignore[index]
    assert serialize(own_function)["config"] == "pkg>other"  # type: ignore[index]


def test_a_registered_function_is_found_by_its_name() -> None:
    register("pkg")(own_function)
    dictionary = {
        "module": "builtins", "class_name": "function", "config": "pkg>own_function", "registered_name": "function"
    }  # fmt: skip
    assert serialize(own_function) == dictionary
    assert get(dictionary) is own_function
    assert deserialize("pkg>own_function") is own_function


def test_custom_objects_stand_in_for_registering() -> None:
    custom = {"Own": Own, "own_function": own_function}
    assert deserialize(serialize(Own(0.5)), custom).l2 == 0.5
    assert deserialize({"module": None, "class_name": "Own", "config": {}, "registered_name": "Own"}, custom).l2 == 0
    assert deserialize(serialize(own_function), custom) is own_function
    assert deserialize("own_function", custom) is own_function
    assert deserialize([serialize(Own(0.5))], custom)[0].l2 == 0.5
    assert deserialize({"class_name": "own_function", "config": {}}, custom) is own_function
    for unknown in (serialize(Own(0.5)), serialize(own_function)):
        with pytest.raises(ValueError, match="Could not interpret"):
            deserialize(unknown)


def test_custom_objects_and_registered_ones_come_in_keras_s_order() -> None:
    assert type(deserialize({"class_name": "L1", "config": {}}, {"L1": Own})) is Own
    assert deserialize(serialize(L1(0.5)), {"L1": Own}) == L1(0.5)  # Keras's own, says its registered_name
    register("pkg")(Own)
    assert type(deserialize(serialize(Own(0.5)), {"pkg>Own": L2})) is Own


def test_a_class_of_the_main_module_must_be_registered() -> None:
    main = type("Main", (Own,), {"__module__": "__main__"})
    dictionary = serialize(main(0.5))
    assert dictionary == {"module": None, "class_name": "Main", "config": {"l2": 0.5}, "registered_name": "Main"}
    with pytest.raises(TypeError, match=r"^Cannot deserialize object of type `Main`\. If `Main` is a custom class"):
        deserialize(dictionary)
    register()(main)
    assert type(deserialize(serialize(main(0.5)))) is main


def test_what_cannot_be_registered_is_refused() -> None:
    class NoConfig:
        pass

    with pytest.raises(ValueError, match=r"^Cannot register a class that does not have a get_config\(\) method\.$"):
        register()(NoConfig)
    with pytest.raises(TypeError, match="register needs parentheses"):
        register(Own)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a class or a function to register, not "):
        register()(Own())
    with pytest.raises(TypeError, match="has no from_config"):
        deserialize({"class_name": "NoConfig", "config": {}}, {"NoConfig": NoConfig})


def test_a_configuration_is_made_plain() -> None:
    class Nested(Own):
        def get_config(self) -> dict[str, Any]:
            return {
                "a": np.float32(0.5),
                "b": L1(0.25),
                "c": [1, (np.float64(2), None)],
                "d": {"e": own_function},
                "f": True,
            }

    config = serialize(Nested())["config"]  # type: ignore[index]
    assert config == {
        "a": 0.5, "b": serialize(L1(0.25)), "c": [1, [2.0, None]], "d": {"e": serialize(own_function)}, "f": True
    }  # fmt: skip
    assert (type(config["a"]), type(config["c"][1][0])) == (float, float)
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("made", "message"),
    [("l1", "Cannot serialize object l1"), (0.1, "Cannot serialize"), (L1, "Cannot serialize"), (len, "Cannot"),
     ([L1()], "Cannot serialize"), (functools.partial(own_function), r"must implement the `get_config\(\)` method"),
     (lambda _: 0.0, "a lambda has no name")],
    ids=shown,
)  # fmt: skip
def test_what_has_no_configuration_cannot_be_serialized(made: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        serialize(made)


@pytest.mark.parametrize(
    ("config", "message"),
    [(5, r"method of .* should return a dict\. It returned: 5"),
     ({"a": {"b": [0, np.ones(2)]}}, r"^Odd\.get_config\(\)\['a'\]\['b'\]\[1\] is array\(\[1\., 1\.\]\); expected")],
    ids=["no dictionary", "an array"],
)  # fmt: skip
def test_a_configuration_that_json_cannot_write_is_refused(config: Any, message: str) -> None:
    odd = type("Odd", (Own,), {"get_config": lambda _: config})
    with pytest.raises(TypeError, match=message):
        serialize(odd())


def test_a_regularizer_without_a_configuration_is_refused_as_in_keras() -> None:
    class NoConfig(Regularizer):
        def __call__(self, w: Any) -> Any:
            return w.sum()

    with pytest.raises(NotImplementedError, match=r"does not implement get_config\(\)"):
        serialize(NoConfig())


def test_the_public_names_are_in_both_places() -> None:
    for name in ("get", "serialize", "deserialize"):
        assert getattr(gpureg, name) is getattr(gpureg.regularizers, name)
