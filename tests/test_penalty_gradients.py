"""Gradients of many tensors and the factors over them: what is taken and refused, before anything is written."""

import gc
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from gpureg import L1, L2, HalvedL2, Penalty
from tests.helpers import Array, raw


def arrays(*names: str, size: int = 3, dtype: Any = np.float32) -> dict[str, Array]:
    """Return arrays that count from 1, each from where the one before ended."""
    return {name: np.arange(1 + i * size, 1 + (i + 1) * size, dtype=dtype) for i, name in enumerate(names)}


# Gradients -----------------------------------------------------------------------------------------------------------


def test_gradients_may_be_new_arrays_each_time_or_the_same() -> None:
    weights = arrays("a", "b")
    penalty = Penalty(weights, L2(0.5))
    for _ in range(3):
        grads = {name: np.zeros_like(w) for name, w in weights.items()}
        for times in (1, 2, 3):
            assert penalty.accumulate_grad(grads) == penalty()
            assert grads["b"].tolist() == (times * weights["b"]).tolist()
    wide = {name: np.zeros((3, 2), np.float32)[:, 0] for name in weights}  # other strides
    penalty.accumulate_grad(wide)
    assert wide["a"].tolist() == weights["a"].tolist()


def test_gradients_that_come_again_are_those() -> None:
    weights = arrays("a", "b")
    penalty = Penalty(weights, L1(1.0))
    first, second = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for grads in (first, second, first, first, second):
        penalty.accumulate_grad(grads)
    assert first["b"].tolist() == [3.0] * 3
    assert second["a"].tolist() == [2.0] * 3


def test_none_is_no_place_for_a_gradient() -> None:
    """What is left of gradients that have gone is None, too."""
    penalty = Penalty(arrays("a", "b"), L1(1.0))
    penalty.grads()
    gc.collect()
    for call in (penalty.grads, penalty.value_and_grads):
        with pytest.raises(TypeError, match=r"out\['a'\] is None; expected an array"):
            call(dict.fromkeys("ab"))


def test_mappings_that_make_arrays_are_no_place_for_gradients() -> None:
    class Fresh(dict[str, Array]):
        def __getitem__(self, name: str) -> Array:
            return super().__getitem__(name).copy()

    penalty = Penalty(Fresh(arrays("a")), L1(1.0))
    with pytest.raises(ValueError, match="grads makes new arrays whenever asked"):
        penalty.accumulate_grad(Fresh(arrays("a")))
    with pytest.raises(ValueError, match="grads lacks 'a'"):
        penalty.accumulate_grad(defaultdict(lambda: np.zeros(3, np.float32)))
    assert penalty() == 6.0


def test_weights_may_share_memory_with_each_other() -> None:
    whole = np.ones(6)
    penalty = Penalty({"all": whole, "part": whole[:3], "again": whole}, L1(1.0), tied="each")
    grads = {"all": np.zeros(6), "part": np.zeros(3), "again": np.zeros(6)}
    assert penalty.accumulate_grad(grads) == penalty.accumulate_grad(grads) == 15.0


def test_a_gradient_of_none_leaves_its_tensor_out() -> None:
    weights = arrays("a", "b", "c")
    penalty = Penalty(weights, L1(1.0))
    grads: dict[str, Any] = {"a": np.zeros(3, np.float32), "b": None, "c": np.zeros(3, np.float32)}
    assert penalty.accumulate_grad(grads) == 6.0 + 24.0
    assert penalty.accumulate_grad({**grads, "a": None}) == 24.0
    assert penalty.accumulate_grad(dict.fromkeys(weights)) == 0.0
    assert grads["a"].tolist() == [1.0] * 3
    assert grads["c"].tolist() == [2.0] * 3
    assert penalty() == 45.0


def test_the_total_of_what_is_there_has_the_dtype_of_that() -> None:
    weights = {"a": np.array([1.0], np.float32), "b": np.array([1.0], np.float64)}
    penalty = Penalty(weights, L1(1.0))
    assert isinstance(penalty.accumulate_grad({"a": np.zeros(1, np.float32), "b": None}), np.float32)


def test_gradients_go_where_they_are_to() -> None:
    weights = {"a": np.array([1.0, -2.0], np.float16), "b": np.array([3.0], np.float64)}
    penalty = Penalty(weights, L2(0.5))
    out = {"a": np.full(2, 9, np.float32), "b": np.full(1, 9.0)}
    total, found = penalty.value_and_grads(out, scale=2.0)
    assert total == 7.0
    assert found["a"] is out["a"]
    assert out["a"].tolist() == [2.0, -4.0]
    assert penalty.grads(out)["b"] is out["b"]
    assert out["b"].tolist() == [3.0]
    fresh = penalty.grads()
    assert [fresh[name].dtype for name in fresh] == ["f2", "f8"]


def refused() -> list[Any]:
    whole = np.ones(6, np.float32)
    weights = {"a": whole[:3], "b": np.ones(3, np.float32), "c": np.ones(3, np.float32)}
    good = np.ones(3, np.float32)
    read_only = np.ones(3, np.float32)
    read_only.flags.writeable = False
    two = np.ones(6, np.float32)
    bad: dict[str, tuple[Any, type[Exception], str]] = {
        "a list": ([1.0, 2.0, 3.0], TypeError, r"grads\['c'\] must be an array"),
        "shape": (np.ones(4, np.float32), ValueError, r"grads\['c'\] has shape \(4,\), but weights\['c'\] has \(3,\)"),
        "dtype": (np.ones(3), TypeError, r"grads\['c'\] has dtype float64"),
        "read-only": (read_only, ValueError, r"grads\['c'\] is read-only"),
        "one for all": (np.broadcast_to(np.float32(1), 3), ValueError, r"grads\['c'\]"),
        "its weights": (weights["c"], ValueError, r"grads\['c'\] shares memory with weights\['c'\]"),
        "others' weights": (whole[1:4], ValueError, r"grads\['c'\] shares memory with weights\['a'\]"),
        "another gradient": (good, ValueError, r"grads\['c'\] shares memory with grads\['a'\]"),
        "a part of another": (two[2:5], ValueError, r"grads\['c'\] shares memory with grads\['b'\]"),
    }
    return [
        pytest.param(weights, {"a": good, "b": two[:3], "c": grad}, error, message, id=name)
        for name, (grad, error, message) in bad.items()
    ]


@pytest.mark.parametrize(("weights", "grads", "error", "message"), refused())
@pytest.mark.parametrize("after", ["at first", "after good ones"])
def test_if_one_gradient_is_refused_none_is_touched(
    weights: dict[str, Array], grads: dict[str, Any], error: type[Exception], message: str, after: str
) -> None:
    penalty = Penalty(weights, L1(1.0))
    if after == "after good ones":
        penalty.accumulate_grad({name: np.ones(3, np.float32) for name in weights})
    before = {name: np.array(grad) for name, grad in grads.items()}
    for call, what in ((penalty.accumulate_grad, "grads"), (penalty.grads, "out"), (penalty.value_and_grads, "out")):
        with pytest.raises(error, match=message.replace("grads", what)):
            call(grads)
    assert all(np.array_equal(before[name], np.array(grad)) for name, grad in grads.items())
    assert penalty.step == (after == "after good ones")


def test_interleaved_arrays_are_taken() -> None:
    buffer = np.ones(12, np.float32)
    penalty = Penalty({"a": buffer[::4], "b": buffer[1::4]}, L1(1.0))
    penalty.accumulate_grad({"a": buffer[2::4], "b": buffer[3::4]})
    assert buffer.tolist() == [1.0, 1.0, 2.0, 2.0] * 3


def test_a_gradient_that_became_read_only_is_seen() -> None:
    weights, grads = arrays("a", "b"), arrays("a", "b")
    penalty = Penalty(weights, L1(1.0))
    penalty.accumulate_grad(grads)
    grads["b"].flags.writeable = False
    before = grads["a"].copy()
    with pytest.raises(ValueError, match=r"grads\['b'\] is read-only"):
        penalty.accumulate_grad(grads)
    assert np.array_equal(grads["a"], before)


def test_missing_gradients_are_listed() -> None:
    penalty = Penalty(arrays(*map(str, range(30))), L1(1.0))
    with pytest.raises(ValueError, match=r"grads lacks '0', '1', .*'9' and 20 more; give None"):
        penalty.accumulate_grad({})
    with pytest.raises(ValueError, match=r"out lacks '7'$"):
        penalty.grads({name: np.zeros(3, np.float32) for name in map(str, range(30)) if name != "7"})
    assert penalty.step == 0


def test_gradients_of_what_is_not_penalised_may_be_there() -> None:
    penalty = Penalty(arrays("a", "b"), {"a": None, "b": L1(1.0)})
    grads = {"a": "whatever", "b": np.zeros(3, np.float32), "other": None}
    assert penalty.accumulate_grad(grads) == 15.0
    assert list(penalty.grads()) == ["b"]


# Strength ------------------------------------------------------------------------------------------------------------


def test_a_strength_is_a_factor_over_all() -> None:
    weights = arrays("a", "b")
    penalty, grads = Penalty(weights, L1(0.5)), arrays("a", "b")
    before = {name: grad.copy() for name, grad in grads.items()}
    for strength in (2.0, 0, np.float32(0.25), np.array(0.5), np.array(0.5, np.float32)):
        penalty.set_strength(strength)
        assert penalty() == float(strength) * 0.5 * 21
        assert penalty.losses()["a"] == float(strength) * 0.5 * 6
        assert penalty.norms()["a"] == (6.0, 14.0)
        assert penalty.grads()["a"].tolist() == [0.5 * float(strength)] * 3
    penalty.set_strength(0.0)
    penalty.accumulate_grad(grads)
    assert all(np.array_equal(raw(grads[name]), raw(before[name])) for name in grads)


def test_an_array_is_read_by_each_pass() -> None:
    penalty, strength = Penalty(arrays("a"), L1(1.0)), np.array(1.0)
    penalty.set_strength(strength)
    assert penalty() == 6.0
    strength[...] = 2.0
    assert penalty() == 12.0


def test_a_schedule_is_asked_at_each_step() -> None:
    asked = []

    def schedule(step: int) -> float:
        asked.append(step)
        return step / 2

    penalty, grads = Penalty(arrays("a"), L1(1.0)), arrays("a")
    penalty.set_strength(schedule)
    assert [penalty.accumulate_grad(grads) for _ in range(3)] == [0.0, 3.0, 6.0]
    assert asked == [0, 1, 2]
    penalty.step = 10
    assert penalty() == 30.0
    assert penalty.step == 10


@pytest.mark.parametrize(
    ("strength", "error"),
    [(-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), (True, TypeError), ("1", TypeError),
     (None, TypeError), (np.ones(1), ValueError), (np.array(1), TypeError), (1j, TypeError),
     (np.bool_(True), TypeError), (10**400, ValueError)],
)  # fmt: skip
def test_what_is_no_strength(strength: Any, error: type[Exception]) -> None:
    penalty = Penalty(arrays("a"), L1(1.0))
    with pytest.raises(error, match="strength"):
        penalty.set_strength(strength)
    assert penalty() == 6.0  # as before
    penalty.set_strength(lambda _: strength)
    with pytest.raises(error, match="strength"):
        penalty()


@pytest.mark.parametrize("strength", [np.int64(2), np.float16(2), np.longdouble(2), np.float64(2), 2, np.array(2.0)])
def test_numbers_of_any_kind_are_taken(strength: Any) -> None:
    weights = arrays("a", "b")
    penalty, grads = Penalty(weights, L1(1.0)), {name: np.zeros_like(w) for name, w in weights.items()}
    penalty.set_strength(strength)
    assert penalty() == 42.0
    assert penalty("nothing of that name") == 0.0
    assert penalty.accumulate_grad(dict.fromkeys(weights), scale=strength) == 0.0
    penalty.accumulate_grad(grads, scale=strength)
    assert grads["a"].tolist() == [4.0] * 3
    nothing = Penalty(weights, {"*": None})
    nothing.set_strength(strength)
    assert nothing() == 0.0


def test_a_factor_where_gradients_are_written_is_refused() -> None:
    buffer = np.ones(5)
    penalty = Penalty({"a": np.ones(4)}, L1(1.0))
    for _ in range(2):  # at first, and when the gradients are known
        with pytest.raises(ValueError, match=r"grads\['a'\] shares memory with the strength or the scale"):
            penalty.accumulate_grad({"a": buffer[1:]}, scale=buffer[1:2].reshape(()))
        penalty.accumulate_grad({"a": buffer[1:]}, scale=buffer[:1].reshape(()))
    penalty.set_strength(buffer[4:].reshape(()))
    with pytest.raises(ValueError, match=r"out\['a'\] shares memory"):
        penalty.grads({"a": buffer[1:]})
    odd = np.zeros(9, np.uint8)[1:].view(np.float64).reshape(())
    with pytest.raises(ValueError, match="scale lies at an address that is no multiple of its 8 bytes"):
        penalty.grads(scale=odd)


def test_a_scale_is_over_gradients_alone() -> None:
    """OpenSeq2Seq#127: the penalty was not scaled as the loss."""
    penalty, grads = Penalty(arrays("a"), HalvedL2(1.0)), arrays("a")
    assert penalty.accumulate_grad(grads, scale=1024) == 7.0
    assert grads["a"].tolist() == [1025.0, 2050.0, 3075.0]
    assert penalty.accumulate_grad(grads, np.array(-1024.0)) == 7.0
    assert grads["a"].tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(TypeError, match="scale must be a number"):
        penalty.accumulate_grad(grads, scale="2")
