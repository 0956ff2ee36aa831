"""The statistics of a tensor that one pass over memory gives: its two sums, its largest weight, and what it counts.

A backend makes them (`gpureg.backends.Backend.statistics`); `docs/arithmetic.md` says which bits they have.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpureg.arithmetic import tree_sum


class Statistics(NamedTuple):
    """The statistics of a tensor, or of a piece of one.

    Of no elements they are all zero.
    """

    size: int
    """The number of elements."""

    sum_abs: float
    """`sum |w|` in float64, by the tree of `docs/arithmetic.md`: the bits of `Penalty.norms`."""

    sum_squares: float
    """`sum w*w` in float64, by the same tree."""

    max_abs: float
    """The largest |w| of the elements that are not NaN, infinite ones included; 0.0 where there are none."""

    zeros: int
    """The number of zeros, of either sign."""

    below: int
    """The number of elements with |w| < threshold, compared exactly; NaN is not below anything."""

    nan: int
    """The number of NaN."""

    inf: int
    """The number of infinities, of either sign."""


def join(parts: Sequence[Statistics]) -> Statistics:
    """Return the statistics of a tensor, given those of its pieces in order, with the bits of one pass over the whole.

    Parameters
    ----------
    parts
        One for each piece. All but the last must be of the same size, a power-of-two number of whole tiles
        (`gpureg.arithmetic.tile_size`), so that each is a subtree of the sum; the last may be shorter.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import backends
    >>> w = np.linspace(-1, 1, 20_000)
    >>> whole, *pieces = backends.cpu().statistics([w, w[:8192], w[8192:16384], w[16384:]], 0.5)
    >>> join(pieces) == whole
    True
    """
    if len(parts) == 1:
        return parts[0]
    with np.errstate(all="ignore"):  # sums may overflow, and be NaN
        sum_abs, sum_squares = tree_sum(np.array([(part.sum_abs, part.sum_squares) for part in parts]).reshape(-1, 2).T)
    return Statistics(
        size=sum(part.size for part in parts),
        sum_abs=float(sum_abs),
        sum_squares=float(sum_squares),
        max_abs=max((part.max_abs for part in parts), default=0.0),
        zeros=sum(part.zeros for part in parts),
        below=sum(part.below for part in parts),
        nan=sum(part.nan for part in parts),
        inf=sum(part.inf for part in parts),
    )


class Marks(NamedTuple):
    """Where magnitudes of a dtype change what they count as: bits without the sign, which rise as the numbers do.

    So all that is counted and compared is a matter of unsigned integers: NaN is above infinity, a number is below the
    threshold of a pass if its bits are below those of the least number that is not.
    """

    magnitude: int
    """All bits but the sign."""

    infinity: int
    """The bits of infinity; those of NaN are above."""

    threshold: int
    """The bits of the least number that is not below the threshold."""

    number: Callable[[int], float]
    """The number that bits are of."""


def marks(dtype: np.dtype[Any], threshold: float) -> Marks:
    """Return the marks of a dtype for a threshold in float64, which is not negative and may be infinite.

    >>> [hex(bits) for bits in marks(np.dtype(np.float16), 0.1)[:3]]  # 0x2e66 is 0.09998
    ['0x7fff', '0x7c00', '0x2e67']
    """
    unsigned = np.dtype(f"u{dtype.itemsize}")

    def bits(value: float) -> int:
        with np.errstate(all="ignore"):  # what is too large becomes infinity, what is too small 0
            return int(np.array(abs(value)).astype(dtype).view(unsigned))

    def number(bits: int) -> float:
        return float(np.array(bits, unsigned).view(dtype))

    nearest = bits(threshold)  # one of the two numbers that the threshold is between
    least = nearest + (number(nearest) < threshold)
    return Marks((1 << (8 * dtype.itemsize - 1)) - 1, bits(np.inf), least, number)
