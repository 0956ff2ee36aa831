"""The reference is itself right: its dtypes are those of the standard library, its sums those worked out by hand."""

import ctypes
import math
import random
import struct

import pytest

from gpureg.arithmetic import ROW_BYTES, TILE_BYTES
from tests import reference
from tests.reference import FORMATS, Rule


def _identical(first: float, second: float) -> bool:
    same_sign = math.copysign(1.0, first) == math.copysign(1.0, second)
    return (math.isnan(first) and math.isnan(second)) or (first == second and same_sign)


def test_every_float16_is_decoded_and_encoded_as_the_standard_library_does() -> None:
    for bits in range(2**16):
        (expected,) = struct.unpack("<e", bits.to_bytes(2, "little"))
        (value,) = reference.decode([bits], "float16")
        assert _identical(value, expected)
        assert reference.encode([value], "float16") == [FORMATS["float16"].nan if math.isnan(value) else bits]


def test_every_bfloat16_is_the_upper_half_of_a_float32() -> None:
    for bits in range(2**16):
        (expected,) = struct.unpack("<f", (bits << 16).to_bytes(4, "little"))
        (value,) = reference.decode([bits], "bfloat16")
        assert _identical(value, expected)
        assert reference.encode([value], "bfloat16") == [FORMATS["bfloat16"].nan if math.isnan(value) else bits]


def _numbers_of_all_magnitudes(count: int) -> list[float]:
    generator = random.Random(0)
    anything = [reference.decode([generator.getrandbits(64)], "float64")[0] for _ in range(count)]
    near_float32 = [math.ldexp(generator.uniform(-1, 1), generator.randint(-160, 130)) for _ in range(count)]
    return anything + near_float32 + [0.0, -0.0, math.inf, -math.inf, math.nan, 3.4028235677973366e38, 7.0e-46]


def test_rounding_to_float32_is_that_of_c() -> None:
    for number in _numbers_of_all_magnitudes(20_000):
        expected = ctypes.c_float(number).value
        assert _identical(reference.rounded(number, "float32"), expected)
        if not math.isnan(number):
            (bits,) = struct.unpack("<I", struct.pack("<f", expected))
            assert reference.encode([number], "float32") == [bits]
            assert _identical(reference.decode([bits], "float32")[0], expected)


def test_float64_is_passed_through() -> None:
    for number in _numbers_of_all_magnitudes(5_000):
        (bits,) = struct.unpack("<Q", struct.pack("<d", number))
        assert _identical(reference.decode([bits], "float64")[0], number)
        assert reference.encode([number], "float64") == [FORMATS["float64"].nan if math.isnan(number) else bits]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_16_bits_takes_the_nearest_and_of_two_the_even(dtype: str) -> None:
    kind = FORMATS[dtype]
    finite = reference.decode(range(kind.infinity), dtype)
    # Where the next number would be, had the format one more exponent, rounds to infinity, and so does the tie.
    for bits, (low, high) in enumerate(zip(finite, [*finite[1:], 2.0 ** (kind.bias + 1)], strict=True)):
        middle = (low + high) / 2
        up = math.inf if bits + 1 == kind.infinity else high
        assert reference.rounded(math.nextafter(middle, 0.0), dtype) == low
        assert reference.rounded(math.nextafter(middle, math.inf), dtype) == up
        assert reference.rounded(middle, dtype) == (up if bits % 2 else low)
        assert reference.rounded(-middle, dtype) == -(up if bits % 2 else low)


def test_a_tree_adds_neighbours_first() -> None:
    big = 2.0**53
    assert reference.tree([]) == 0.0
    assert reference.tree([3.0]) == 3.0
    assert reference.tree([1.0, 1.0, big, 0.0]) == big + 2
    assert reference.tree([big, 1.0, 1.0]) == big  # (big + 1) + (1 + 0): the tie goes down, then up to big + 1, down
    assert reference.tree([big, 0.0, 1.0, 1.0]) == big + 2
    assert reference.tree([1.0, 1.0, 1.0, 1.0, big]) == big + 4


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_lane_adds_its_rows_in_order_and_a_tile_starts_anew(dtype: str) -> None:
    lanes, tile = ROW_BYTES // FORMATS[dtype].itemsize, TILE_BYTES // FORMATS[dtype].itemsize
    big = 2.0**53  # values need not be of the dtype for sums of float64 terms
    weights = [0.0] * (3 * tile)
    # One lane, in order: 1 and 1 reach big together.
    weights[0], weights[lanes], weights[2 * lanes] = 1.0, 1.0, big
    assert reference.sums(weights, dtype)[0] == big + 2
    # Big comes first: each 1 is lost.
    weights[0], weights[2 * lanes] = big, 1.0
    assert reference.sums(weights, dtype)[0] == big
    # The neighbouring lane keeps both.
    weights[lanes], weights[2 * lanes], weights[lanes + 1], weights[2 * lanes + 1] = 0.0, 0.0, 1.0, 1.0
    assert reference.sums(weights, dtype)[0] == big + 2
    # So do two tiles that are added to each other before the first.
    weights = [0.0] * (4 * tile)
    weights[0], weights[2 * tile], weights[3 * tile] = big, 1.0, 1.0
    assert reference.sums(weights, dtype)[0] == big + 2
    weights[tile], weights[2 * tile] = 1.0, 0.0
    assert reference.sums(weights, dtype)[0] == big


def test_penalties_skip_what_has_no_coefficient() -> None:
    assert reference.penalty(Rule(l1=0.5), 10.0, math.inf) == 5.0
    assert reference.penalty(Rule(l2=0.5), math.inf, 10.0) == 5.0
    assert reference.penalty(Rule(l2=0.5, halved=True), math.inf, 10.0) == 2.5
    assert reference.penalty(Rule(), math.nan, math.nan) == 0.0
    assert reference.penalty(Rule(l1=1.0, l2=2.0), 3.0, 4.0, strength=2.0) == 22.0


def test_gradients_follow_the_sign_of_zero() -> None:
    zeros = [0.0, -0.0]
    down = reference.gradient(zeros, "float32", Rule(l1=1.0), into="float32", upstream=-1.0)
    assert reference.encode(down, "float32") == [1 << 31, 1 << 31]
    up = reference.gradient(zeros, "float32", Rule(l1=1.0), into="float32")
    assert reference.encode(up, "float32") == [0, 0]
    squares = reference.gradient(zeros, "float32", Rule(l2=0.5), into="float32")
    assert reference.encode(squares, "float32") == [0, 1 << 31]
    nothing = reference.gradient(zeros, "float32", Rule(), into="float32", add_to=zeros)
    assert reference.encode(nothing, "float32") == [0, 1 << 31]


def test_the_proximal_step_makes_zeros_of_one_sign() -> None:
    moved = reference.proximal([3.0, -0.25, -2.0, -0.0, math.nan], "float64", Rule(l1=0.5), 1.0)
    assert reference.encode(moved[:4], "float64") == reference.encode([2.5, 0.0, -1.5, 0.0], "float64")
    assert math.isnan(moved[4])
    assert reference.proximal([4.0], "float64", Rule(l1=1.0, l2=0.5), 1.0) == [1.5]
    assert reference.proximal([4.0], "float64", Rule(l2=0.5, halved=True), 2.0) == [2.0]
