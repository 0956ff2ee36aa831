"""Sums are as near to the exact ones as promised, known numbers come out, and what failed in peers does not here."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import backends
from gpureg.arithmetic import error_bound
from gpureg.backends import Mode
from tests.helpers import DTYPES, Array, content, from_values, raw, sizes, values
from tests.passes import Leaf, run

pytestmark = pytest.mark.usefixtures("cpu_backend")

# A sum S is that of the formula with each of its roundings wrong by at most 2**-53 of the result. A term passes no more
# than 15 additions in its lane, as the first is to +0.0, log2(lanes) in its tile and ceil(log2(tiles)) beyond, and a
# float64 square is rounded once itself: k roundings, by 1 + k * 2**-53 + (terms of 2**-106) at most. One more 2**-53
# holds the latter. All terms are positive, so the whole is off by no larger part than its terms. A float64 square below
# 2**-1022 is off by up to half of 2**-1074 instead, whatever it is; sums of such numbers are exact.


def exact_sum(numbers: list[float], power: int) -> Fraction:
    """Return the exact sum of |x| or x*x."""
    total = 0
    for number in numbers:
        numerator, denominator = number.as_integer_ratio()
        total += abs(numerator) ** power << power * (1075 - denominator.bit_length())
    return Fraction(total, 1 << 1074 * power)


def computed_sum(w: Array, power: int) -> float:
    """Return the sum of |x| or x*x in float64 as gpureg computes it."""
    regularizer = gpureg.L1(1.0) if power == 1 else gpureg.L2(1.0)
    return float(run(backends.cpu(), Mode.VALUE, [Leaf(w, regularizer.coefficients)], DTYPES["float64"]).total)


def allowance(w: Array, power: int, exact: Fraction) -> Fraction:
    """Return how far a sum may be from the exact one."""
    underflow = Fraction(w.size, 2**1075) if power == 2 and w.dtype == np.float64 else Fraction(0)
    return Fraction(error_bound(w.size, w.itemsize)) * exact + underflow


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", ["weights", "wide", "tiny", "subnormals", "sparse", "zeros"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_within_the_bound(dtype: str, name: str, power: int) -> None:
    for size in (*sizes(dtype).values(), 2**16 + 3):
        w = content(name, size, dtype, seed=size % 4)
        exact = exact_sum(values(w), power)
        assert abs(Fraction(computed_sum(w, power)) - exact) <= allowance(w, power, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_a_million_are_within_the_bound_and_rounded_right(dtype: str) -> None:
    w = content("wide", 2**20 + 3, dtype)
    numbers = values(w)
    for power in (1, 2):
        exact = exact_sum(numbers, power)
        assert abs(Fraction(computed_sum(w, power)) - exact) <= allowance(w, power, exact)
        # No other float32 is as near; and no sum is so near to a tie that its float64 error could decide.
        result = gpureg.l1_loss(w, dtype="float32") if power == 1 else 2 * gpureg.l2_loss(w, dtype="float32")
        others = np.nextafter(result, np.float32(0)), np.nextafter(result, np.float32(math.inf))
        for other in others:
            tie = (Fraction(float(result)) + Fraction(float(other))) / 2
            assert abs(exact - tie) > exact / 2**47
            assert abs(exact - Fraction(float(result))) < abs(exact - Fraction(float(other)))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_sees_one_element_missing(dtype: str, power: int) -> None:
    w = content("weights", 2**17 + 3, dtype)
    exact = exact_sum(values(w), power)
    smallest = np.argmin(np.where(w == 0, 1, np.abs(w.astype(np.float64))))
    for index in (0, smallest, w.size - 1):
        assert w[index] != 0
        for wrong in (np.delete(w, index), np.append(w, w[index])):
            assert abs(Fraction(computed_sum(wrong, power)) - exact) > allowance(w, power, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_integers_are_exact(dtype: str) -> None:
    """As with any order of addition: no element is lost, and none counted twice."""
    numbers = np.arange(-100, 101, dtype=np.int8)
    for size in sizes(dtype).values():
        integers = np.resize(numbers, size).astype(np.int64)
        w = from_values(integers.tolist(), dtype)
        assert gpureg.l1_loss(w, dtype="float64") == np.abs(integers).sum()
        assert gpureg.l2_loss(w, dtype="float64") == (integers * integers).sum() / 2


# Known numbers -------------------------------------------------------------------------------------------------------

W = [[1.0, -2.0], [-3.0, 4.0]]
POSITIVE = [[1.0, 2.0], [3.0, 4.0]]
ONES = [[1.0] * 5] * 5


@pytest.mark.parametrize(
    ("penalty", "weights", "expected"),
    [
        (gpureg.L1(0.5), W, 5.0),  # contrib l1_regularizer(0.5), Keras l1(0.5)
        (gpureg.L1(), W, 0.1),  # Keras l1(), rounded once
        (gpureg.L1(1), W, 10.0),
        (gpureg.l1_loss, W, 10.0),
        (gpureg.l2_loss, W, 15.0),  # tf.nn.l2_loss
        (gpureg.L2(1), W, 30.0),
        (gpureg.L2(0.5), W, 15.0),
        (gpureg.HalvedL2(0.5), W, 7.5),  # contrib l2_regularizer(0.5)
        (gpureg.HalvedL2(1.0), W, 15.0),
        (gpureg.L1L2(0.5, 1.0), W, 35.0),
        (gpureg.L1L2(l1=0.5), W, 5.0),
        (gpureg.L1L2(l2=0.5), W, 15.0),
        (gpureg.L2(2.0), ONES, 50.0),
        (gpureg.L1(0.5), POSITIVE, 5.0),
        (gpureg.HalvedL2(0.5), POSITIVE, 7.5),
        (gpureg.L1(0.01), ONES, 0.25),  # the kernel of Dense(5)
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_known_numbers(dtype: str, penalty: Any, weights: list[list[float]], expected: float) -> None:
    w = from_values([number for row in weights for number in row], dtype).reshape(len(weights), -1)
    result = penalty(w)
    kind = np.float64 if dtype == "float64" else np.float32
    assert type(result) is kind
    assert result == kind(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_losses_of_a_layer_as_keras_adds_them(dtype: str) -> None:
    kernel, inputs = np.ones((5, 5), dtype), np.full((5, 5), 2, dtype)
    activity = gpureg.L2(0.01).activity(inputs @ kernel)
    assert activity == 5.0
    assert activity + gpureg.L1(0.01)(kernel) == 5.25


@pytest.mark.parametrize("shape", [(64, 40, 200, 1), (3, 3, 1, 64)])
def test_a_collected_penalty_is_weight_decay_times_l2_loss(shape: tuple[int, ...]) -> None:
    w = content("weights", math.prod(shape), "float64").reshape(shape)
    assert gpureg.HalvedL2(2.0**-11)(w) == 2.0**-11 * gpureg.l2_loss(w)


# Failures in peers ---------------------------------------------------------------------------------------------------


def test_float16_sums_do_not_overflow() -> None:
    """numpy#7930 (`sum` of float16), tf.nn.l2_loss of [300.], and of a million times 0.1."""
    assert gpureg.l1_loss(np.ones(100_000, np.float16)) == 100_000
    assert gpureg.l2_loss(np.array([300.0], np.float16)) == 45_000
    assert gpureg.l2_loss(np.full(10**6, 0.1, np.float16), dtype="float16") == 4996
    # A caller who wants float16 gets its infinity, without a warning.
    assert gpureg.l1_loss(np.ones(100_000, np.float16), dtype="float16") == math.inf


def test_a_value_that_overflows_has_its_gradient_still() -> None:
    """pytorch#193006: the norm overflowed, and the gradient was zero."""
    w = np.array([1e30, -1e30], np.float32)
    value, gradient = gpureg.L2(0.5).value_and_grad(w)
    assert value == math.inf
    assert gradient.tolist() == w.tolist()
    assert gpureg.l2_loss(w, dtype="float64") == float(w[0]) ** 2


@pytest.mark.parametrize("count", [422, 423, 1000])
def test_an_empty_tensor_among_many(count: int) -> None:
    """pytorch#140066, a wrong norm beside an empty tensor; #119927 and #118604, a crash over 422 tensors."""
    tensors = [np.ones(3, np.float32) for _ in range(count)]
    tensors[0] = tensors[count // 2] = tensors[-1] = np.empty((0, 3), np.float32)
    found = run(backends.cpu(), Mode.VALUE, [Leaf(w, gpureg.L2(1.0).coefficients) for w in tensors], DTYPES["float32"])
    assert found.total == 3 * (count - 3)
    assert found.each.tolist() == [float(w.size) for w in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nothing", [gpureg.L1L2(), gpureg.L1(0.0), gpureg.L2(0.0), gpureg.HalvedL2(0.0)])
def test_no_penalty_is_a_zero_of_the_library(nothing: gpureg.Regularizer, dtype: str) -> None:
    """keras#10090: `l1=l2=0` returned Python's 0. Also where infinities would make 0 * inf."""
    for numbers in ([], [1.0, -2.0], [math.inf, math.nan]):
        w = from_values(numbers, dtype)
        value, gradient = nothing.value_and_grad(w)
        for result in (nothing(w), value, nothing.accumulate_grad(w, gradient)):
            assert type(result) is (np.float64 if dtype == "float64" else np.float32)
            assert raw(result) == 0
        assert raw(gradient).tolist() == [0] * len(numbers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan_come_through(dtype: str) -> None:
    finite = [1.0, -2.0, 3.0] * 1000
    for kind in (gpureg.L1(0.5), gpureg.L2(0.5), gpureg.HalvedL2(0.5), gpureg.L1L2(0.5, 0.5)):
        assert kind(from_values([*finite, -math.inf], dtype)) == math.inf
        assert kind(from_values([math.inf, *finite, -math.inf], dtype)) == math.inf
        assert np.isnan(kind(from_values([math.nan, *finite], dtype)))
        assert np.isnan(kind(from_values([math.inf, *finite, math.nan], dtype)))


def test_views_give_the_numbers_of_their_elements() -> None:
    """cupy#10255, strided input; tiny-cuda-nn#272 and tvm#8540, a misaligned view."""
    w = np.arange(-500, 500, dtype=np.float32)
    for view in (w[::2], w[::-1], w[7:], w.reshape(20, 50)[3:, ::-2].T):
        elements = [float(number) for number in view.flat]
        assert gpureg.l1_loss(view) == sum(map(abs, elements))
        assert gpureg.l2_loss(view) == sum(number**2 for number in elements) / 2
    misaligned = np.frombuffer(b"?" + w.tobytes(), np.float32, offset=1)
    assert not misaligned.flags.aligned
    assert gpureg.l1_loss(misaligned) == gpureg.l1_loss(w) == 250_000
