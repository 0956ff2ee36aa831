"""What CuPy arrays give has the bits that NumPy arrays give: every dtype, pass, content, size, layout and alignment."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import backends, samples, selftest
from gpureg.arithmetic import Coefficients
from gpureg.backends import Mode, cuda
from tests.gpu.device import assert_same, cp, place, shifted
from tests.helpers import CONTENTS, DTYPES, LAYOUTS, REGULARIZERS, SIZES, Array, Layout, content, gradient_dtypes, sizes
from tests.passes import Leaf, run

pytestmark = pytest.mark.gpu

PAIRS = [(dtype, into) for dtype in DTYPES for into in gradient_dtypes(dtype)]

BOTH = gpureg.L1L2(0.1, 0.3)

STEP = 0.5


def check(w: Array, start: Array, regularizer: gpureg.Regularizer, offsets: tuple[int, int] = (0, 0)) -> None:
    """Assert that every pass over 1-d arrays, so many elements past alignment, gives NumPy's bits."""
    on_device = shifted(w, offsets[0])
    value = regularizer(w)
    assert_same(regularizer(on_device), value)

    expected, out = start.copy(), shifted(start, offsets[1])
    assert regularizer.grad(on_device, out) is out
    assert_same(out, regularizer.grad(w, expected))

    out = shifted(start, offsets[1])
    assert_same(regularizer.value_and_grad(on_device, out)[0], value)
    assert_same(out, expected)

    expected, out = start.copy(), shifted(start, offsets[1])
    assert_same(regularizer.accumulate_grad(on_device, out), regularizer.accumulate_grad(w, expected))
    assert_same(out, expected)
    assert_same(on_device, w)

    assert regularizer.prox_(on_device, STEP) is on_device
    assert_same(on_device, regularizer.prox_(w.copy(), STEP))


def gradient(size: int, into: str, seed: int = 1) -> Array:
    """Return a gradient that is there, of any numbers."""
    return content("random bits", size, into, seed=seed)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize(("dtype", "into"), PAIRS)
def test_every_content_and_regularizer(dtype: str, into: str, name: str) -> None:
    size = sizes(dtype)["3 * tile + 5"]
    for seed, (regularizer, _) in enumerate(REGULARIZERS.values()):
        check(content(name, size, dtype, seed=seed), gradient(size, into), regularizer)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("dtype", "into"), PAIRS)
def test_every_size(dtype: str, into: str, name: str) -> None:
    size = sizes(dtype)[name]
    for seed, kind in enumerate(("L1", "L2", "L1L2")):
        check(content("wide", size, dtype, seed=seed), gradient(size, into), REGULARIZERS[kind][0])


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize(("dtype", "into"), PAIRS)
def test_views_that_no_16_byte_word_fits(dtype: str, into: str, offset: int) -> None:
    """The same numbers, anywhere in memory, have the same bits; weights and gradient may lie differently."""
    size = sizes(dtype)["3 * tile + 5"]
    for offsets in ((offset, 0), (0, offset), (offset, offset), (offset, 8 - offset)):
        check(content("wide", size, dtype), gradient(size, into), BOTH, offsets)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number(dtype: str) -> None:
    w = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
    for into in gradient_dtypes(dtype):
        check(w, gradient(w.size, into), BOTH)


def test_the_comparison_sees_one_wrong_bit() -> None:
    w = content("wide", 300, "float32")
    assert_same(cp.asarray(w), w)
    for wrong in (w.copy(), w.copy(), w.astype(np.float64), w.reshape(3, 100)):
        wrong.reshape(-1)[-1] = -w[-1]
        with pytest.raises(AssertionError):
            assert_same(cp.asarray(wrong), w)
    with pytest.raises(AssertionError):
        assert_same(cp.array(0.0), np.float64(-0.0))


# Dtypes of results and arguments


@pytest.mark.parametrize("result", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_of_every_dtype(dtype: str, result: str) -> None:
    for name in ("weights", "huge", "tiny"):
        w = content(name, 5000, dtype)
        for loss in (gpureg.l1_loss, gpureg.l2_loss):
            assert_same(loss(cp.asarray(w), dtype=result), loss(w, dtype=result))


@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (0,), (3, 0, 2), (1, 50, 1, 72)])
def test_shapes(shape: tuple[int, ...]) -> None:
    w = content("wide", math.prod(shape), "float32").reshape(shape)
    on_device = cp.asarray(w)
    value, new = BOTH.value_and_grad(on_device)
    expected = BOTH.value_and_grad(w)
    assert_same(value, expected[0])
    assert_same(new, expected[1])
    assert new.device == on_device.device
    assert_same(BOTH.prox_(on_device, STEP), BOTH.prox_(w.copy(), STEP))


def test_an_activity_is_divided_by_its_batch() -> None:
    for dtype in DTYPES:
        x = content("weights", 7 * 501, dtype).reshape(7, 501)
        assert_same(BOTH.activity(cp.asarray(x)), BOTH.activity(x))
        assert_same(BOTH.activity(cp.asarray(x[:0])), BOTH.activity(x[:0]))


# Layouts


# On a device no element may lie at an address that its size does not divide.
ALIGNED = {name: layout for name, layout in LAYOUTS.items() if not layout.offset and not layout.extra} | {
    "one element on": Layout(offset=8),
    "Fortran, one element on": Layout(axes="Fortran", offset=8),
}


@pytest.mark.parametrize("gradients", ALIGNED)
@pytest.mark.parametrize("weights", ALIGNED)
def test_gradients_match_weights_by_logical_index(weights: str, gradients: str) -> None:
    for dtype, into in PAIRS:
        numbers = content("wide", 6 * 31 * 101, dtype).reshape(6, 31, 101)
        start = gradient(numbers.size, into).reshape(numbers.shape)
        w, out = place(ALIGNED[weights], numbers), place(ALIGNED[gradients], start)
        host_w, host_out = ALIGNED[weights].place(numbers).array, ALIGNED[gradients].place(start).array
        assert_same(BOTH.accumulate_grad(w.array, out.array), BOTH.accumulate_grad(host_w, host_out))
        assert_same(out.array, host_out)
        assert_same(BOTH.value_and_grad(w.array, out.array)[0], BOTH.value_and_grad(host_w, host_out)[0])
        assert_same(out.array, host_out)
        assert_same(w.array, numbers)
        assert w.gaps_are_untouched()
        assert out.gaps_are_untouched()


@pytest.mark.parametrize("layout", ALIGNED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_proximal_step_is_in_place(dtype: str, layout: str) -> None:
    numbers = content("wide", 4 * 31 * 101, dtype).reshape(4, 31, 101)
    placed, host = place(ALIGNED[layout], numbers), ALIGNED[layout].place(numbers).array
    assert BOTH.prox_(placed.array, STEP) is placed.array
    assert_same(placed.array, BOTH.prox_(host, STEP))
    assert placed.gaps_are_untouched()


def test_a_new_gradient_lies_as_its_weights() -> None:
    numbers = content("wide", 60, "float32").reshape(3, 4, 5)
    for axes in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        w = cp.asarray(numbers).transpose(axes)
        new = BOTH.grad(w)
        assert new.strides == w.strides
        assert_same(new, BOTH.grad(numbers.transpose(axes)))


# Known bits


def test_the_golden_checksums() -> None:
    outcome = selftest.run(cuda.backend, seed=1)
    assert outcome.failed == ()
    assert outcome.golden == len(selftest.golden())


# Factors on the device


FACTORS: Sequence[tuple[float, float]] = (
    (0.7, -0.3),
    (0.0, 2.0),
    (2.0, 0.0),
    (-0.0, 1.0),
    (1e30, 1e-50),
    (1.0, math.inf),
)


@pytest.mark.parametrize("strength_dtype", ["float64", "float32"])
@pytest.mark.parametrize("upstream_dtype", ["float64", "float32"])
def test_factors_on_the_device_do_as_numbers_do(strength_dtype: str, upstream_dtype: str) -> None:
    w, result = samples.wide(20000, np.float32), np.dtype(np.float32)
    for strength, upstream in FACTORS:
        factors: list[Any] = [cp.array(strength, strength_dtype), cp.array(upstream, upstream_dtype)]
        with np.errstate(all="ignore"):
            numbers = [float(np.dtype(strength_dtype).type(strength)), float(np.dtype(upstream_dtype).type(upstream))]
        start = gradient(w.size, "float32")
        for count in (1, 3):  # one tensor, and several, which need tables
            found = _leaves(count, cp.asarray(w), [cp.asarray(start) for _ in range(count)])
            expected = _leaves(count, w, [start.copy() for _ in range(count)])
            on_device = run(cuda.backend, Mode.ACCUMULATE, found, result, strength=factors[0], upstream=factors[1])
            on_host = run(
                backends.load("numpy"), Mode.ACCUMULATE, expected, result, strength=numbers[0], upstream=numbers[1]
            )
            assert_same(on_device.total, on_host.total)
            assert_same(on_device.each, on_host.each)
            for one, other in zip(found, expected, strict=True):
                assert_same(one.gradient, other.gradient)


def _leaves(count: int, weights: Any, gradients: Sequence[Any]) -> list[Leaf]:
    coefficients = Coefficients(0.1, 0.3, 0.6)
    return [Leaf(weights, coefficients, gradients[i]) for i in range(count)]


@pytest.mark.parametrize("pass_", ["value", "gradient", "accumulate"])
def test_a_factor_alone_on_the_device(pass_: str) -> None:
    w = samples.wide(20000, np.float32)
    for strength in (0.7, 0.0):
        found, expected = _leaves(1, cp.asarray(w), [cp.ones(w.size, np.float32)]), _leaves(1, w, [np.ones_like(w)])
        for backend, leaves, factor in (
            (cuda.backend, found, cp.array(strength, np.float32)),
            (backends.load("numpy"), expected, float(np.float32(strength))),
        ):
            arguments = [leaves] if pass_ == "gradient" else [leaves, np.dtype(np.float32)]
            getattr(backend, pass_)(*arguments, strength=factor)
        assert_same(found[0].gradient, expected[0].gradient)
