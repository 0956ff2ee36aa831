"""What tests of bits share: arrays of any content and layout, and the comparison of bits.

Only this file stands between NumPy arrays and `tests.reference`, and it moves bits alone: it makes, orders and
compares unsigned integers.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import gpureg
from gpureg import samples
from gpureg.arithmetic import ROWS, lane_count, tile_size
from tests import reference
from tests.reference import FORMATS, Rule

Array = NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}

# Of each class, with coefficients that make every product round, and with those of zero. The rules say the same.
REGULARIZERS: Mapping[str, tuple[gpureg.Regularizer, Rule]] = {
    "L1": (gpureg.L1(0.1), Rule(l1=0.1)),
    "L2": (gpureg.L2(0.3), Rule(l2=0.3)),
    "HalvedL2": (gpureg.HalvedL2(0.3), Rule(l2=0.3, halved=True)),
    "L1L2": (gpureg.L1L2(0.1, 0.3), Rule(l1=0.1, l2=0.3)),
    "L1L2 without L1": (gpureg.L1L2(0.0, 0.3), Rule(l2=0.3)),
    "L1L2 without L2": (gpureg.L1L2(0.1, 0.0), Rule(l1=0.1)),
    "L1L2 of nothing": (gpureg.L1L2(), Rule()),
    "L1 of 0": (gpureg.L1(0.0), Rule()),
    "HalvedL2 of 0": (gpureg.HalvedL2(0.0), Rule(halved=True)),
}


def shown(value: Any) -> str:
    """Return a name for a parameter of a test; the same in all workers, so without addresses."""
    return re.sub(r" at 0x\w+", "", str(value))


def regularizer(rule: Rule) -> gpureg.Regularizer:
    """Return the regularizer of any rule."""
    return gpureg.HalvedL2(rule.l2) if rule.halved else gpureg.L1L2(rule.l1, rule.l2)


def gradient_dtypes(dtype: str) -> list[str]:
    """Return the dtypes of a gradient that weights of a dtype take."""
    return list(dict.fromkeys([dtype, "float32"]))


def value_dtype(dtype: str) -> str:
    """Return the dtype of a penalty of weights of a dtype."""
    return "float64" if dtype == "float64" else "float32"


# Bits ----------------------------------------------------------------------------------------------------------------


def raw(array: Any) -> Array:
    """Return the bits of an array or scalar, as unsigned integers of the same shape."""
    copy = np.array(array, order="C")
    result: Array = copy.view(f"u{copy.itemsize}")
    return result


def bits(array: Any) -> Array:
    """Return the bits of an array or scalar with one pattern for every NaN: equality of numbers is `==` on these."""
    kind, result = FORMATS[np.asarray(array).dtype.name], raw(array)
    magnitude = result & result.dtype.type((1 << (kind.exponent + kind.fraction)) - 1)
    return np.where(magnitude > kind.infinity, result.dtype.type(kind.nan), result)


def values(array: Any) -> list[float]:
    """Return the exact values of an array or scalar, in C order of the logical index."""
    return reference.decode(raw(array).ravel().tolist(), np.asarray(array).dtype.name)


def from_values(numbers: Iterable[float], dtype: str) -> Array:
    """Return a 1-d array of numbers, each rounded once to a dtype."""
    return np.array(reference.encode(numbers, dtype), f"u{DTYPES[dtype].itemsize}").view(DTYPES[dtype])


def values_in_order_of_sums(array: Array) -> list[float]:
    """Return the exact values of an array in the order that its sums follow, found from where each element lies.

    Dense is what fills a range of memory, each element once, with all strides positive but those of axes of size 1.
    """
    strides = [stride for stride, length in zip(array.strides, array.shape, strict=True) if length != 1]
    offsets = np.zeros((), np.int64)
    for stride, length in zip(array.strides, array.shape, strict=True):
        offsets = np.add.outer(offsets, stride * np.arange(length))
    order = np.argsort(offsets, axis=None, kind="stable")
    filled = np.array_equal(offsets.ravel()[order], array.itemsize * np.arange(array.size))
    dense = filled and all(stride > 0 for stride in strides)
    bits_in_c_order = raw(array).ravel()
    return reference.decode((bits_in_c_order[order] if dense else bits_in_c_order).tolist(), array.dtype.name)


def assert_bits(actual: Any, expected: float | Sequence[float], dtype: str) -> None:
    """Assert that an array or scalar is of a dtype and has the bits of the values expected, in C order."""
    numbers = [expected] if isinstance(expected, float) else expected
    assert np.asarray(actual).dtype == DTYPES[dtype]
    found, wanted = bits(actual).ravel(), np.array(reference.encode(numbers, dtype), raw(actual).dtype)
    assert found.shape == wanted.shape
    wrong = np.flatnonzero(found != wanted)
    if wrong.size:
        at = wrong[0]
        got, want = (reference.decode([int(one[at])], dtype)[0] for one in (found, wanted))
        raise AssertionError(
            f"{wrong.size} of {found.size} elements differ, the first at {at}: "
            f"{got!r} ({found[at]:#x}), expected {want!r} ({wanted[at]:#x})"
        )


# Contents ------------------------------------------------------------------------------------------------------------


def sizes(dtype: str) -> dict[str, int]:
    """Return sizes at and around those of a row and a tile, by name."""
    tile, lanes = tile_size(DTYPES[dtype].itemsize), lane_count(DTYPES[dtype].itemsize)
    return {
        "0": 0,
        "1": 1,
        "lanes - 1": lanes - 1,
        "lanes": lanes,
        "lanes + 1": lanes + 1,
        "tile - 1": tile - 1,
        "tile": tile,
        "tile + 1": tile + 1,
        "3 * tile + 5": 3 * tile + 5,
    }


SIZES = tuple(sizes("float32"))


def _with_exponents(size: int, dtype: str, low: int, high: int, seed: int) -> Array:
    """Return random signs and fractions with random exponent fields of low to high."""
    kind, random = FORMATS[dtype], samples.integers(0, size, seed)
    sign_and_fraction = random & np.uint64(1 << (kind.exponent + kind.fraction) | ((1 << kind.fraction) - 1))
    fields = samples.integers(size, 2 * size, seed) % np.uint64(high - low + 1) + np.uint64(low)
    unsigned = (sign_and_fraction | fields << np.uint64(kind.fraction)).astype(f"u{kind.itemsize}")
    return unsigned.view(DTYPES[dtype])


def _special(size: int, dtype: str, numbers: Iterable[float]) -> Array:
    """Return ordinary weights with special numbers at every other place, as far as there is place."""
    result = samples.weights(size, DTYPES[dtype])
    specials = np.resize(from_values(numbers, dtype), len(result[::2]))
    result[::2] = specials
    return result


def _sparse(size: int, dtype: str, seed: int) -> Array:
    """Return zeros but for a 1 and small numbers: in one lane, one row, one place of each tile, or in all of those.

    Sums of many numbers hide the order of their parts: an early rounding error is far below the last one. Here the
    small numbers, or their squares for every second four seeds, are just below half of the last bit of 1: each is lost
    if it meets the 1 alone, but two of them count. So the sum tells which met before. (For float16, whose absolute
    values add up exactly in any order, there are squares alone, and all is 2**15 times as large.)
    """
    kind, result = FORMATS[dtype], np.zeros(size, DTYPES[dtype])
    lane_number, tile = lane_count(kind.itemsize), tile_size(kind.itemsize)
    first_tile, first_row, first_lane, one, *draws = samples.integers(0, 2**16, seed).tolist()
    tiles, rows, lanes = range(max(size // tile, 1)), range(ROWS), [0, 1, 2, 3, 4, 8, lane_number // 2]
    if seed % 4 in (0, 1):
        tiles = tiles[first_tile % len(tiles) :][:1]
    if seed % 4 in (1, 2):
        rows = rows[first_row % ROWS :][:1]
    if seed % 4 in (0, 2):
        lanes = lanes[:1]
    lanes = [first_lane % lane_number ^ lane for lane in lanes]
    places = [t * tile + row * lane_number + lane for t in tiles for row in rows for lane in lanes]
    scale = 2.0**15 if dtype == "float16" else 1.0
    small = 1.40625 * 2.0**-27 if dtype == "float16" or seed // 4 % 2 else 1.984375 * 2.0**-54
    magnitudes = [scale * small * (draw % 2) for draw in draws[: len(places)]]
    magnitudes[one % len(places)] = scale
    numbers = [-number if draw % 4 < 2 else number for number, draw in zip(magnitudes, draws, strict=False)]
    if size:
        result[np.array(places) % size] = from_values(numbers, dtype)
    return result


def content(name: str, size: int, dtype: str, seed: int = 0) -> Array:
    """Return a 1-d array of a content in `CONTENTS`."""
    kind = FORMATS[dtype]
    top = 2**kind.exponent - 2  # the exponent field of the largest finite numbers
    match name:
        case "weights":
            return samples.weights(size, DTYPES[dtype], seed=seed)
        case "sparse":
            return _sparse(size, dtype, seed)
        case "wide":
            return _with_exponents(size, dtype, max(kind.bias - 30, 1), min(kind.bias + 30, top), seed)
        case "random bits":
            return samples.random_bits(size, DTYPES[dtype], seed=seed)
        case "subnormals":
            return _with_exponents(size, dtype, 0, 0, seed)
        case "tiny":  # squares underflow in float32 and float64, sums of float64 squares are subnormal
            low = kind.bias - 545 if dtype == "float64" else 0
            return _with_exponents(size, dtype, low, low + 20 if dtype == "float64" else 3, seed)
        case "huge":  # squares of float64 overflow, and sums round to infinity in float32 and float16
            return _with_exponents(size, dtype, top - 2, top, seed)
        case "zeros":
            return _special(size, dtype, [-0.0, 0.0, -0.0])
        case "largest":
            return _special(size, dtype, [kind.largest, -kind.largest])
        case "infinities":
            return _special(size, dtype, [math.inf, -math.inf, -0.0])
        case "NaN":
            return _special(size, dtype, [math.nan, math.inf, -0.0, -math.inf])
    raise ValueError(name)


CONTENTS = (
    "weights",
    "sparse",
    "wide",
    "random bits",
    "subnormals",
    "tiny",
    "huge",
    "zeros",
    "largest",
    "infinities",
    "NaN",
)


# Layouts -------------------------------------------------------------------------------------------------------------


_GAP = 0xA5


class Placed(NamedTuple):
    """An array and the bytes it lies in."""

    array: Array
    memory: NDArray[np.uint8]

    def gaps_are_untouched(self) -> bool:
        """Return whether all bytes that are not the array's are as they were at first; the array is lost."""
        self.array.view(f"u{self.array.itemsize}")[...] = int.from_bytes([_GAP] * self.array.itemsize, "little")
        return bool(np.all(self.memory == _GAP))


class Layout(NamedTuple):
    """How an array lies in memory: whether its axes lie the other way round or rotated, and what is between."""

    axes: str = "C"  # "C", "Fortran" or "rotated": the last axis slowest, then the others in order
    step: int = 1  # elements from one to the next along the fastest axis
    padding: int = 0  # elements left out at the end of each row of each axis
    extra: int = 0  # bytes after each element, as in an array of records
    offset: int = 0  # bytes before the first element
    reverse: str = "none"  # axes with a negative stride: "none", "first", "last" or "all"

    def place(self, array: Array) -> Placed:
        """Return a copy of an array, its elements laid out so, in memory of its own."""
        axes = list(range(array.ndim))
        axes = {"C": axes, "Fortran": axes[::-1], "rotated": axes[-1:] + axes[:-1]}[self.axes]
        strides, span = [0] * array.ndim, (array.itemsize + self.extra) * self.step
        for axis in reversed(axes):
            strides[axis] = span
            span *= array.shape[axis] + self.padding
        offset = self.offset
        reversed_axes = {"none": [], "first": axes[:1], "last": axes[-1:], "all": axes}[self.reverse]
        for axis in reversed_axes if array.size else []:
            offset += strides[axis] * (array.shape[axis] - 1)
            strides[axis] = -strides[axis]
        memory = np.full(self.offset + max(span, array.itemsize), _GAP, np.uint8)
        placed = np.ndarray(array.shape, array.dtype, memory.data, offset, tuple(strides))
        placed.view(f"u{array.itemsize}")[...] = raw(array)
        return Placed(placed, memory)


LAYOUTS: Mapping[str, Layout] = {
    "C": Layout(),
    "Fortran": Layout(axes="Fortran"),
    "rotated": Layout(axes="rotated"),
    "misaligned": Layout(offset=1),
    "misaligned Fortran": Layout(axes="Fortran", offset=1),
    "every third": Layout(step=3),
    "slice": Layout(padding=2),
    "transposed slice": Layout(axes="Fortran", padding=1),
    "first axis reversed": Layout(reverse="first"),
    "last axis reversed": Layout(reverse="last"),
    "all axes reversed": Layout(axes="rotated", reverse="all"),
    "field of records": Layout(extra=1),
}
