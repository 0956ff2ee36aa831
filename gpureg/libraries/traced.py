"""A penalty as an array library's own operations, for programs that the library compiles.

A traced array has no elements that a backend could pass over. Its penalty is the plain formula, and the library's
compiler fuses that as it sees fit: sums are the library's, in the compute type of `docs/arithmetic.md`, float32 for
weights of up to 32 bits, so the last bits are not those of a backend.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gpureg.arithmetic import Coefficients


class Operations(NamedTuple):
    """What a formula takes from a library."""

    absolute: Callable[[Any], Any]
    sum: Callable[[Any], Any]
    widened: Callable[[Any], Any]
    """An array in its compute type."""
    rounded: Callable[[Any], Any]
    """A scalar in the dtype of the result; of a number too."""


def penalty(
    operations: Operations,
    arrays: Sequence[Any],
    coefficients: Sequence[Coefficients],
    strength: Any = 1.0,
    divisor: Any = 1,
) -> Any:
    """Return the sum of all penalties, over the divisor; a term whose coefficient is 0 is left out."""
    terms = []
    for array, own in zip(arrays, coefficients, strict=True):
        x = operations.widened(array)
        if own.l1 != 0:
            terms.append(operations.rounded(own.l1 * operations.sum(operations.absolute(x))))
        if own.l2 != 0:
            terms.append(operations.rounded(own.l2 * operations.sum(x * x)))
    total = functools.reduce(operator.add, terms) if terms else operations.rounded(0.0)
    # Multiplied and divided only where there is something to: a program shows each operation.
    if not isinstance(strength, float) or strength != 1:
        total = total * operations.rounded(strength)
    return total if isinstance(divisor, int) and divisor == 1 else total / operations.rounded(divisor)
