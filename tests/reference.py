"""The arithmetic of a penalty, written a second time and as plainly as can be: the judge of every backend.

It follows `docs/arithmetic.md` sentence by sentence and shares nothing with gpureg but the two sizes. NumPy is not
used: a Python float is a float64 whose every operation rounds to nearest even, and all about narrower dtypes is done
here, from their bits.

Weights and gradients are lists of floats that hold their values exactly, made from raw bits by `decode`; results are
floats, and `encode` gives their bits. For sums the list is in the order that sums follow: memory order for a dense
array, C order for any other. Sign and payload of a NaN are unspecified, so `encode` gives every NaN the same bits:
positive, quiet, no payload.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from gpureg.arithmetic import ROW_BYTES, TILE_BYTES


class Rule(NamedTuple):
    """Coefficients as a user gives them: `l1 * sum|x| + l2 * sum x*x`, with half of l2 in the halved form."""

    l1: float = 0.0
    l2: float = 0.0
    halved: bool = False


# Dtypes and their bits -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """An IEEE 754 binary format: a sign bit, then so many bits of exponent and of fraction."""

    exponent: int
    fraction: int

    @cached_property
    def itemsize(self) -> int:
        return (1 + self.exponent + self.fraction) // 8

    @cached_property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @cached_property
    def largest(self) -> float:
        return math.ldexp(2 - 2.0**-self.fraction, self.bias)

    @cached_property
    def infinity(self) -> int:
        """The bits of infinity; those of finite numbers are below, those of NaN above."""
        return ((1 << self.exponent) - 1) << self.fraction

    @cached_property
    def nan(self) -> int:
        """The bits that stand for every NaN."""
        return self.infinity | 1 << (self.fraction - 1)

    def binade(self, value: float) -> int:
        """Return the e with 2**e <= |value| < 2**(e + 1), or the one that all smaller numbers of the format share."""
        return max(math.frexp(value)[1] - 1, 1 - self.bias)


FORMATS = {
    "float16": Format(exponent=5, fraction=10),
    "bfloat16": Format(exponent=8, fraction=7),
    "float32": Format(exponent=8, fraction=23),
    "float64": Format(exponent=11, fraction=52),
}


def decode(bits: Iterable[int], dtype: str) -> list[float]:
    """Return the exact values of numbers of a dtype, given their bits."""
    kind = FORMATS[dtype]
    scale, leading = 1 - kind.bias - kind.fraction, 1 << kind.fraction
    values = []
    for number in bits:
        negative, magnitude = divmod(number, 1 << (kind.exponent + kind.fraction))
        exponent, fraction = divmod(magnitude, leading)
        if magnitude >= kind.infinity:
            value = math.nan if fraction else math.inf
        elif exponent == 0:
            value = math.ldexp(fraction, scale)
        else:
            value = math.ldexp(leading + fraction, exponent - 1 + scale)
        values.append(-value if negative else value)
    return values


def encode(values: Iterable[float], dtype: str) -> list[int]:
    """Return the bits of values rounded once to a dtype, with one pattern for every NaN."""
    kind = FORMATS[dtype]
    result = []
    for value in (rounded(value, dtype) for value in values):
        if math.isnan(value):
            result.append(kind.nan)
            continue
        if math.isinf(value):
            bits = kind.infinity
        elif value == 0:
            bits = 0
        else:
            binade = kind.binade(value)
            significand = int(math.ldexp(abs(value), kind.fraction - binade))
            # The leading 1 of a significand, which subnormals lack, adds the 1 that is missing in the exponent.
            bits = ((binade + kind.bias - 1) << kind.fraction) + significand
        negative = math.copysign(1.0, value) < 0
        result.append(bits | (negative << (kind.exponent + kind.fraction)))
    return result


def rounded(value: float, dtype: str) -> float:
    """Return a value rounded once, to nearest even, to a dtype: past the largest number to infinity.

    Of numbers of the dtype, `rounded(a + b)`, and likewise -, * and /, is the operation rounded once in that dtype:
    float64 has more than twice the digits of float32, so that its own rounding never makes or breaks a tie.
    """
    if dtype == "float64" or value == 0 or not math.isfinite(value):
        return value
    kind = FORMATS[dtype]
    unit = math.ldexp(1.0, kind.binade(value) - kind.fraction)  # the distance of neighbours
    result = round(abs(value) / unit) * unit  # the quotient is exact, and Python rounds a tie to the even integer
    return math.copysign(result if result <= kind.largest else math.inf, value)


# Sums ----------------------------------------------------------------------------------------------------------------


def sums(values: Sequence[float], dtype: str) -> tuple[float, float]:
    """Return S1, the sum of |x|, and S2, the sum of x*x, of values in the order that sums follow."""
    itemsize = FORMATS[dtype].itemsize
    # A term is formed in float64: |x| for the L1 sum, x * x for the L2 sum.
    return _sum([abs(x) for x in values], itemsize), _sum([x * x for x in values], itemsize)


def _sum(terms: Sequence[float], itemsize: int) -> float:
    """A tensor's tiles are added by the tree over the tile index; the last tile may be ragged."""
    tile = TILE_BYTES // itemsize
    return tree([_sum_tile(terms[start : start + tile], itemsize) for start in range(0, len(terms), tile)])


def _sum_tile(terms: Sequence[float], itemsize: int) -> float:
    """Element i of a tile is row i // L of lane i % L."""
    lanes = [0.0] * (ROW_BYTES // itemsize)
    # A lane starts at +0.0 and adds its terms row by row; elements past the end add nothing.
    for i, term in enumerate(terms):
        lanes[i % len(lanes)] += term
    # A tile's lanes are added by the tree over the lane index.
    return tree(lanes)


def tree(leaves: Sequence[float]) -> float:
    """The perfect binary tree, neighbours first, padded with +0.0 to a power of two; no leaf at all gives +0.0."""
    size = 1
    while size < len(leaves):
        size *= 2
    return _perfect_tree([*leaves, *[0.0] * (size - len(leaves))])


def _perfect_tree(leaves: Sequence[float]) -> float:
    if len(leaves) == 1:
        return leaves[0]
    middle = len(leaves) // 2
    return _perfect_tree(leaves[:middle]) + _perfect_tree(leaves[middle:])


def statistics(values: Sequence[float], dtype: str, threshold: float) -> dict[str, float]:
    """Return what is told of a tensor by name, of its values in the order that sums follow."""
    s1, s2 = sums(values, dtype)
    return {
        "size": len(values),
        "sum_abs": s1,
        "sum_squares": s2,
        "max_abs": max((abs(x) for x in values if not math.isnan(x)), default=0.0),
        "zeros": sum(x == 0 for x in values),
        "below": sum(abs(x) < threshold for x in values),
        "nan": sum(math.isnan(x) for x in values),
        "inf": sum(math.isinf(x) for x in values),
    }


# Penalties -----------------------------------------------------------------------------------------------------------


def penalty(rule: Rule, s1: float, s2: float, strength: float = 1.0) -> float:
    """Return the float64 penalty `l1 * S1 + l2 * S2`, not rounded to any other dtype."""
    # The halved form is l2 = 0.5 times the coefficient, exactly. A strength multiplies the coefficients first.
    l1 = rule.l1 * strength
    l2 = (rule.l2 * 0.5 if rule.halved else rule.l2) * strength
    # A term whose coefficient is zero is skipped; with both zero the penalty is +0.0.
    if l1 == 0 and l2 == 0:
        return 0.0
    if l1 == 0:
        return l2 * s2
    if l2 == 0:
        return l1 * s1
    return l1 * s1 + l2 * s2


def value(values: Sequence[float], dtype: str, rule: Rule, strength: float = 1.0) -> float:
    """Return the float64 penalty of one tensor."""
    return penalty(rule, *sums(values, dtype), strength)


def total(penalties: Sequence[float]) -> float:
    """Return the float64 penalty of several tensors, given those of each: one leaf each, in the order given."""
    return tree(penalties)


def result(penalty: float, dtype: str) -> float:
    """Return a float64 penalty rounded once to the dtype asked for: to the 16-bit ones by way of float32."""
    return rounded(rounded(penalty, "float32"), dtype) if FORMATS[dtype].itemsize < 8 else penalty


def activity(values: Sequence[float], dtype: str, rule: Rule, batch: int) -> float:
    """Return the penalty divided by `shape[0]` in float64, and rounded once; a batch of 0 gives 0."""
    quotient = value(values, dtype, rule) / batch if batch else 0.0
    return result(quotient, "float64" if dtype == "float64" else "float32")


# Gradients -----------------------------------------------------------------------------------------------------------


def compute_dtype(dtype: str) -> str:
    """The compute type C: float32 for weights up to 32 bits, float64 for float64."""
    return "float64" if dtype == "float64" else "float32"


def coefficients(dtype: str, rule: Rule, strength: float = 1.0, upstream: float = 1.0) -> tuple[float, float]:
    """Return c1 and c2: formed in float64, left to right, and rounded once to C; halved: 2 * l2 is the l2 given."""
    doubled = rule.l2 if rule.halved else 2 * rule.l2
    c1, c2 = (rule.l1 * strength) * upstream, (doubled * strength) * upstream
    return rounded(c1, compute_dtype(dtype)), rounded(c2, compute_dtype(dtype))


def gradient(
    values: Sequence[float],
    dtype: str,
    rule: Rule,
    *,
    into: str,
    strength: float = 1.0,
    upstream: float = 1.0,
    add_to: Sequence[float] | None = None,
) -> list[float]:
    """Return the gradient at weights of a dtype, rounded once from C to the dtype `into`.

    With `add_to`, a gradient of dtype `into`, return that gradient after accumulating.
    """
    compute = compute_dtype(dtype)
    c1, c2 = coefficients(dtype, rule, strength, upstream)
    if c1 == 0 and c2 == 0:
        # grad is +0.0, and accumulating leaves the gradient's bits untouched.
        return [0.0] * len(values) if add_to is None else list(add_to)
    result = [_gradient(x, c1, c2, compute) for x in values]
    if add_to is not None:
        result = [rounded(old + g, compute) for old, g in zip(add_to, result, strict=True)]
    return [rounded(g, into) for g in result]


def _gradient(x: float, c1: float, c2: float, compute: str) -> float:
    """Return `(c1 * sign(x)) + (c2 * x)`, each operation rounded in C; a term whose coefficient is zero is skipped."""
    first, second = rounded(c1 * _sign(x), compute), rounded(c2 * x, compute)
    if c2 == 0:
        return first
    if c1 == 0:
        return second
    return rounded(first + second, compute)


def _sign(x: float) -> float:
    """The sign of both zeros is +0.0, that of NaN is NaN."""
    return x if math.isnan(x) else float(x > 0) - float(x < 0)


def proximal(values: Sequence[float], dtype: str, rule: Rule, step: float) -> list[float]:
    """Return the weights after the proximal step, rounded once to their dtype."""
    compute = compute_dtype(dtype)
    doubled = rule.l2 if rule.halved else 2 * rule.l2
    threshold = rounded(step * rule.l1, compute)
    divisor = rounded(1 + step * doubled, compute)
    result = []
    for x in values:
        moved = rounded(abs(x) - threshold, compute)
        moved = _sign(x) * (0.0 if moved <= 0 else moved)  # NaN is not <= 0, and stays
        if doubled != 0:
            moved = rounded(moved / divisor, compute)
        moved = rounded(moved, dtype)
        result.append(0.0 if moved == 0 else moved)  # a zero result is +0.0
    return result
