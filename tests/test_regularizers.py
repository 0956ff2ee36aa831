"""The regularizers as objects: their coefficients, configuration, equality and names, as in Keras."""

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpureg
from gpureg import L1, L1L2, L2, HalvedL2, Regularizer
from gpureg.arithmetic import Coefficients

CLASSES: tuple[type[Regularizer], ...] = (L1, L2, L1L2, HalvedL2)
NAMES = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls)]  # type: ignore[arg-type] # each is a dataclass


def test_the_defaults_are_keras_s() -> None:
    assert (L1().l1, L2().l2, L1L2().l1, L1L2().l2, HalvedL2().l2) == (0.01, 0.01, 0.0, 0.0, 0.01)


def test_none_means_the_default() -> None:
    assert L1(None) == L1()  # type: ignore[arg-type]
    assert L1L2(l1=None, l2=0.5) == L1L2(0.0, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cls", "name"), NAMES)
@pytest.mark.parametrize("value", [0, 1, 0.5, 2.0, 1e-300, 5e-324, np.float32(0.5), np.float64(0.5), np.int64(3)])
def test_a_finite_number_that_is_not_negative_is_a_coefficient(cls: Any, name: str, value: Any) -> None:
    coefficient = getattr(cls(**{name: value}), name)
    assert type(coefficient) is float
    assert coefficient == value


@pytest.mark.parametrize(("cls", "name"), NAMES)
@pytest.mark.parametrize(
    "value",
    [-1, -1e-300, math.nan, math.inf, -math.inf, True, False, np.True_, "0.1", b"1", [0.1], (0.1,), 1j, 10**400,
     np.array(0.1), np.array([0.1]), object, {}, 10**5000],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_anything_else_is_a_value_error_that_names_it(cls: Any, name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^Invalid value for argument {name}: expected a non-negative float.Received: {name}="
    ):
        cls(**{name: value})


def test_a_negative_zero_is_zero() -> None:
    assert math.copysign(1, L1(-0.0).l1) == 1
    assert hash(L1(-0.0)) == hash(L1(0.0))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_configuration_makes_an_equal_one(cls: Any) -> None:
    names = [field.name for field in dataclasses.fields(cls)]
    reg = cls(**{name: 0.25 + i for i, name in enumerate(names)})
    config = reg.get_config()
    assert list(config) == names
    assert cls.from_config(config) == reg
    assert cls.from_config(config) is not reg
    for twin in (copy.copy(reg), copy.deepcopy(reg), pickle.loads(pickle.dumps(reg))):
        assert twin == reg
        assert hash(twin) == hash(reg)


def test_a_configuration_of_another_class_is_refused() -> None:
    with pytest.raises(TypeError):
        L1.from_config({"l2": 0.1})


def test_equality_is_by_class_and_value() -> None:
    assert L1(0.5) == L1(0.5)
    assert L1(0.5) != L1(0.25)
    others: list[object] = [L1(0.5), L1L2(0.5, 0.0), L2(0.5), HalvedL2(0.5), 0.5]
    assert [others.index(other) for other in others] == [0, 1, 2, 3, 4]
    assert len({*others, L1(0.5)}) == 5


def test_a_regularizer_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        L1(0.5).l1 = 1.0  # type: ignore[misc]


def test_the_repr_makes_an_equal_one() -> None:
    for reg in (L1(0.5), L2(1e-5), L1L2(0.1, 0.2), HalvedL2()):
        assert eval(repr(reg), vars(gpureg)) == reg
    assert repr(L1L2(0.1, 0.2)) == "L1L2(l1=0.1, l2=0.2)"


def test_lower_case_names_are_the_same_classes() -> None:
    for module in (gpureg, gpureg.regularizers):
        assert (module.l1, module.l2, module.l1_l2) == (L1, L2, L1L2)
        assert module.orthogonal_regularizer is module.OrthogonalRegularizer


def test_the_error_says_what_was_given() -> None:
    with pytest.raises(ValueError, match=r"Received: l1='0.1'$"):
        L1("0.1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Received: l1=one far too large$"):
        L1(10**5000)


def test_the_base_has_no_penalty() -> None:
    for use in (Regularizer(), Regularizer().grad, Regularizer().activity):
        with pytest.raises(TypeError, match=r"^Regularizer has no penalty: it needs coefficients, or a __call__"):
            use(np.ones(2))


def test_a_class_of_a_users_own_needs_its_coefficients_alone() -> None:
    class Lasso(Regularizer):
        @property
        def coefficients(self) -> Coefficients:
            return Coefficients(1.0, 0.0, 0.0)

    assert Lasso()(np.array([1.0, -2.0])) == 3
    assert Lasso().activity(np.array([1.0, -2.0])) == 1.5
    assert Lasso() != Lasso()  # a plain class, equal to itself alone
    with pytest.raises(NotImplementedError, match=r"does not implement get_config\(\), and is no dataclass"):
        Lasso().get_config()


class OwnL2(Regularizer):
    """As Keras's documentation writes one."""

    def __init__(self, l2: float = 0.0) -> None:
        self.l2 = l2

    def __call__(self, x: Any) -> Any:
        return self.l2 * np.sum(np.square(x))

    def get_config(self) -> dict[str, Any]:
        return {"l2": float(self.l2)}


def test_a_class_of_a_users_own_may_have_just_a_call() -> None:
    w = np.ones((5, 5))
    own = OwnL2(l2=0.5)
    assert own(w) == 12.5
    assert own.activity(w) == 2.5
    assert own.activity(w[:0]) == 0
    assert OwnL2.from_config(own.get_config())(w) == 12.5
    with pytest.raises(ValueError, match="x is 0-d"):
        own.activity(np.float64(1))
    with pytest.raises(TypeError, match="x must be an array, not float"):
        own.activity(1.0)


def test_a_call_of_its_own_decides_the_activity_too() -> None:
    class Doubled(L1):
        def __call__(self, w: Any) -> Any:
            return 2 * super().__call__(w)

    assert Doubled(0.5)(np.ones((2, 3))) == 6
    assert Doubled(0.5).activity(np.ones((2, 3))) == 3


NEED_COEFFICIENTS: dict[str, Callable[[Any, Any], Any]] = {
    "grad": lambda own, w: own.grad(w),
    "value_and_grad": lambda own, w: own.value_and_grad(w),
    "accumulate_grad": lambda own, w: own.accumulate_grad(w, np.zeros_like(w)),
    "prox_": lambda own, w: own.prox_(w, 0.1),
}


@pytest.mark.parametrize("method", NEED_COEFFICIENTS)
def test_what_a_call_alone_cannot_give_is_refused(method: str) -> None:
    w = np.ones((2, 2))
    with pytest.raises(TypeError, match=r"^OwnL2 has no coefficients of sum\|w\| and sum w\*w: its penalty is what"):
        NEED_COEFFICIENTS[method](OwnL2(0.5), w)
    assert (w == 1).all()


def test_a_model_s_penalty_refuses_it_and_names_the_tensor() -> None:
    with pytest.raises(TypeError, match=r"^weights\['a'\]: OwnL2 has no coefficients"):
        gpureg.Penalty({"a": np.ones(2)}, OwnL2(0.5))


def test_a_dataclass_with_a_call_may_have_any_fields() -> None:
    @dataclasses.dataclass(frozen=True)
    class Power(Regularizer):
        name: str = "p"
        power: int = -1

        def __call__(self, w: Any) -> Any:
            return np.sum(np.abs(w) ** self.power)

    assert Power().get_config() == {"name": "p", "power": -1}
    assert Power()(np.array([2.0])) == 0.5


def test_a_dataclass_of_a_users_own_gets_the_rest() -> None:
    @dataclasses.dataclass(frozen=True)
    class Ridge(Regularizer):
        strength: float = 0.5

        @property
        def coefficients(self) -> Coefficients:
            return Coefficients(0.0, self.strength, 2 * self.strength)

    assert Ridge(None) == Ridge(0.5)  # type: ignore[arg-type]
    assert Ridge(1.0) != Ridge(2.0)
    assert Ridge.from_config(Ridge(2.0).get_config()) == Ridge(2.0)
    with pytest.raises(ValueError, match=r"^Invalid value for argument strength: "):
        Ridge(-1.0)


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False, allow_subnormal=True))
def test_the_halved_form_is_exact(strength: float) -> None:
    coefficients = HalvedL2(strength).coefficients
    assert coefficients.l2 == strength / 2
    assert coefficients.twice_l2 == strength
    assert L2(strength).coefficients.twice_l2 == strength + strength
