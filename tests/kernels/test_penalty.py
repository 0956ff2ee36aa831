"""A penalty over a model of CuPy arrays has NumPy's bits: the kernels run on the host."""

import gc
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpureg import L1, L1L2, Penalty, libraries
from tests import sets
from tests.helpers import DTYPES, Array, content, raw
from tests.kernels.fake_cupy import Device, FakeCupy, on_device


def check(cupy: FakeCupy, made: sets.Set, strength: float = 1.0, scale: float = 1.0) -> None:
    sets.check(made, strength, scale, place=lambda array: on_device(cupy, array), back=lambda array: array.get())


@given(st.integers(1, 30), st.integers(0, 2**32), st.sampled_from([1.0, 0.7, 0.0, 1e-30]), st.sampled_from([1.0, -3.0]))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_sets_have_numpys_bits(cupy: FakeCupy, count: int, seed: int, strength: float, scale: float) -> None:
    check(cupy, sets.make(count, seed), strength, scale)


@pytest.mark.parametrize("count", [127, 128, 129, 500, 3000])
def test_large_sets_have_numpys_bits(cupy: FakeCupy, count: int) -> None:
    """More than 110, 320 or 422 tensors, where peers cut a call in pieces or crash (pytorch#119927, #118604)."""
    check(cupy, sets.make(count, count), 0.3, -2.0)


def model(seed: int = 0) -> dict[str, Array]:
    sizes = [10, 128, 129, 20_000, 3, 0, 8192, 1]
    return {str(i): content("wide", size, "float32", seed=seed + i) for i, size in enumerate(sizes)}


def test_a_step_is_one_launch_and_copies_nothing_to_the_device_again(cupy: FakeCupy) -> None:
    host = model()
    penalty = Penalty({name: on_device(cupy, w) for name, w in host.items()}, L1L2(0.1, 0.3))
    expected = {name: grad.copy() for name, grad in model(seed=50).items()}
    grads = {name: on_device(cupy, grad) for name, grad in expected.items()}
    penalty.accumulate_grad(grads)
    Penalty(host, L1L2(0.1, 0.3)).accumulate_grad(expected)
    launches, allocated = len(cupy.launches), cupy.allocated
    for _ in range(3):
        penalty.accumulate_grad(grads)
        Penalty(host, L1L2(0.1, 0.3)).accumulate_grad(expected)
    # 129, 20,000 and 8,192 elements have blocks of their own, 1 + 3 + 1; the other five share two.
    assert cupy.launches[launches:] == 3 * [("penalty_pass<float, float, ACCUMULATE, true, true>", 7)]
    assert cupy.allocated - allocated < 3 * 1000  # results and scratch, no table
    assert all(np.array_equal(raw(grads[name].get()), raw(expected[name])) for name in host)


def test_new_gradients_are_bound_anew(cupy: FakeCupy) -> None:
    host = model()
    penalty, on_host = (Penalty(each, L1(0.1)) for each in ({k: on_device(cupy, w) for k, w in host.items()}, host))
    for step in range(4):
        expected = model(seed=100 * step)
        grads = {name: on_device(cupy, grad) for name, grad in expected.items()}
        expected = {name: grad.copy() for name, grad in expected.items()}
        for _ in range(2):
            assert raw(penalty.accumulate_grad(grads).get()) == raw(on_host.accumulate_grad(expected))
        assert all(np.array_equal(raw(grads[name].get()), raw(expected[name])) for name in host)
    # Of the same shape and strides, but where a GPU could not read an element.
    odd = np.zeros(4 * 129 + 1, np.uint8)[1:].view(np.float32)
    grads["2"] = on_device(cupy, odd)
    penalty.accumulate_grad(grads)
    assert grads["2"].get().tolist() == on_host.grads()["2"].tolist()


def test_arrays_of_two_devices_or_libraries_are_refused(cupy: FakeCupy) -> None:
    here = cupy.array(np.ones(3, np.float32))
    with Device(1):
        there = cupy.array(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"weights\['b'\] is on cuda:1, but weights\['a'\] is on cuda:0"):
        Penalty({"a": here, "b": there}, L1(1.0))
    with pytest.raises(TypeError, match=r"weights\['b'\] is of numpy, but weights\['a'\] is of cupy"):
        Penalty({"a": here, "b": np.ones(3, np.float32)}, L1(1.0))
    penalty = Penalty({"a": here}, L1(1.0))
    for bad, error in ((there, ValueError), (np.ones(3, np.float32), TypeError)):
        with pytest.raises(error, match=r"grads\['a'\] is o"):
            penalty.accumulate_grad({"a": bad})
    penalty.accumulate_grad({"a": cupy.array(np.ones(3, np.float32))})
    with pytest.raises(ValueError, match=r"grads\['a'\] is on cuda:1"):
        penalty.accumulate_grad({"a": there})
    with Device(1):
        strength = cupy.array(np.array(2.0))
    with pytest.raises(ValueError, match="strength is on cuda:1, but the weights are on cuda:0"):
        penalty.set_strength(strength)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_strength_and_a_scale_on_the_device_are_read_there(cupy: FakeCupy, dtype: Any) -> None:
    host = model()
    penalty, on_host = (Penalty(each, L1(0.1)) for each in ({k: on_device(cupy, w) for k, w in host.items()}, host))
    strength, scale = cupy.array(np.array(0.7, dtype)), cupy.array(np.array(-3.0, dtype))
    penalty.set_strength(strength)
    for factor, upstream in ((0.7, -3.0), (1e-39, 2.0)):
        strength[...], scale[...] = factor, upstream
        on_host.set_strength(float(dtype(factor)))
        assert raw(penalty().get()) == raw(on_host())
        expected = on_host.grads(scale=upstream)
        for name, grad in penalty.grads(scale=scale).items():
            assert np.array_equal(raw(grad.get()), raw(expected[name]))
    with pytest.raises(TypeError, match="strength has dtype int64"):
        penalty.set_strength(cupy.array(np.array(1)))


def test_nothing_penalised_is_a_zero_on_the_device(cupy: FakeCupy) -> None:
    penalty = Penalty({"a": cupy.array(np.ones(3, np.float32))}, {"*": None})
    assert isinstance(penalty(), cupy.ndarray)
    assert penalty().get() == 0.0


def test_nothing_is_written_to_gradients_that_have_gone(cupy: FakeCupy) -> None:
    penalty = Penalty({name: on_device(cupy, w) for name, w in model().items()}, L1(0.1))
    penalty.grads()
    launches = len(cupy.launches)
    for call in (penalty.grads, penalty.value_and_grads):
        with pytest.raises(TypeError, match=r"out\['0'\] is None"):
            call(dict.fromkeys(model()))
    assert len(cupy.launches) == launches


def test_the_same_gradients_are_looked_at_twice(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then they are known by identity; new arrays, in the same places too, are looked at each time."""
    library = libraries.of(cupy.array(np.ones(1, np.float32)), "w")
    survey = mock.Mock(wraps=library.survey)
    monkeypatch.setattr(library, "survey", survey)
    penalty = Penalty({name: on_device(cupy, w) for name, w in model().items()}, L1(1.0))
    grads = {name: on_device(cupy, grad) for name, grad in model().items()}

    def looks(gradients: dict[str, Any]) -> int:
        survey.reset_mock()
        penalty.accumulate_grad(gradients)
        return survey.call_count

    assert [looks(grads) for _ in range(4)] == [1, 1, 0, 0]
    views = [{name: grad[...] for name, grad in grads.items()} for _ in range(5)]  # other arrays, in the same places
    assert [looks(each) for each in views] == [1] * 5
    assert [looks(views[-1]) for _ in range(3)] == [1, 0, 0]
    assert [looks(dict(reversed(list(views[-1].items())))) for _ in range(2)] == [0, 0]
    assert looks({**views[-1], "0": views[0]["0"]}) == 1
    swapped = {**views[-1], "3": on_device(cupy, np.zeros(20_000, np.float32))}
    assert looks(swapped) == 1
    assert swapped["3"].get().any()


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_none_in_the_place_of_a_gradient_that_has_gone_leaves_its_tensor_out(cupy: FakeCupy, rounds: int) -> None:
    """What is left of a gradient known by identity is None as well."""
    host = model()
    penalty = Penalty({name: on_device(cupy, w) for name, w in host.items()}, L1(1.0))
    grads: dict[str, Any] = {name: on_device(cupy, grad) for name, grad in host.items()}
    for _ in range(rounds):
        penalty.accumulate_grad(grads)
    grads["3"] = None
    gc.collect()
    before = grads["1"].get()
    rest = {name: w for name, w in host.items() if name != "3"}
    assert raw(penalty.accumulate_grad(grads).get()) == raw(Penalty(rest, L1(1.0))())
    assert np.array_equal(grads["1"].get(), before + np.sign(host["1"]))


def test_other_gradients_after_good_ones_are_looked_at_anew(cupy: FakeCupy) -> None:
    w = content("weights", 24, "float16").reshape(4, 6)
    penalty = Penalty({"a": on_device(cupy, w), "b": on_device(cupy, w.ravel())}, L1L2(0.1, 0.3))
    good = {"a": on_device(cupy, np.zeros_like(w)), "b": on_device(cupy, np.zeros(24, np.float16))}
    penalty.accumulate_grad(good)
    with pytest.raises(ValueError, match=r"grads\['a'\] has shape \(3, 6\)"):  # of the same strides
        penalty.accumulate_grad({**good, "a": on_device(cupy, np.zeros((3, 6), np.float16))})
    with pytest.raises(TypeError, match=r"grads\['a'\] has dtype bfloat16"):  # of the same size
        penalty.accumulate_grad({**good, "a": on_device(cupy, np.zeros((4, 6), DTYPES["bfloat16"]))})
    other = {**good, "a": on_device(cupy, np.zeros((4, 6), np.float16, order="F"))}
    good["b"].view("u2")[...] = 0
    penalty.accumulate_grad(other)
    assert np.array_equal(raw(other["a"].get()), raw(good["a"].get()))


def test_factors_of_other_dtypes_are_refused(cupy: FakeCupy) -> None:
    penalty = Penalty({"a": cupy.array(np.ones(3, np.float32))}, L1(1.0))
    for dtype in (np.float16, np.int32):
        with pytest.raises(TypeError, match=f"scale has dtype {np.dtype(dtype)}; expected float32 or float64"):
            penalty.grads(scale=cupy.array(np.array(1, dtype)))
