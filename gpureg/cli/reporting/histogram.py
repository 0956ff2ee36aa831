"""How many weights have which magnitude, counted piece by piece."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHIFT = 50
"""Bits of a float64 that do not tell its bin: 11 of the exponent and the first 2 of the fraction do."""

_BLOCK = 2**16
"""Elements that are counted at a time, as they stay in the cache."""


class Histogram:
    """Counts of |w| by powers of two, each parted in four by the first bits of the fraction: exact, for every dtype.

    >>> histogram = Histogram()
    >>> histogram.add(np.array([1.0, -1.25, 1.3, 0.0, np.inf, np.nan, 3.9]))
    >>> edges, counts = histogram.bins()
    >>> edges.tolist()
    [1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0]
    >>> counts.tolist()
    [1, 2, 0, 0, 0, 0, 0, 1]
    """

    def __init__(self) -> None:
        self._counts = np.zeros(1 << (63 - _SHIFT), np.int64)

    def add(self, piece: NDArray[Any]) -> None:
        """Count the elements of a 1-d array."""
        for start in range(0, piece.size, _BLOCK):
            with np.errstate(invalid="ignore"):  # of a signalling NaN
                magnitudes = np.abs(piece[start : start + _BLOCK].astype(np.float64))
            numbers = magnitudes[(magnitudes > 0) & (magnitudes < np.inf)]
            self._counts += np.bincount(numbers.view(np.int64) >> _SHIFT, minlength=len(self._counts))

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return edges and counts, from the smallest weight but 0 to the largest finite one; nothing if there is none.

        There is one edge more than counts.
        """
        (found,) = np.nonzero(self._counts)
        if not found.size:
            return np.empty(0), np.empty(0, np.int64)
        first, last = int(found[0]), int(found[-1])
        edges = (np.arange(first, last + 2) << _SHIFT).view(np.float64)
        return edges, self._counts[first : last + 1]
