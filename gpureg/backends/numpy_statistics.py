"""Statistics of NumPy arrays, chunk by chunk as `gpureg.backends.numpy` takes them for penalties."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpureg import arithmetic, threads
from gpureg.backends.numpy import _FLOAT64, Array, Buffers, Elements, _Piece, _pieces, _sum_tiles, _terms
from gpureg.statistics import Marks, Statistics, join, marks

_BOOL = np.dtype(np.bool_)


def statistics(arrays: Sequence[Array], threshold: float) -> list[Statistics]:
    """Return the statistics of each array; see `gpureg.backends.Backend`."""
    known = {dtype: marks(dtype, threshold) for dtype in {array.dtype for array in arrays}}
    tensors = [_Tensor(array, known[array.dtype]) for array in arrays]
    threads.share(list(_pieces([tensor.elements.size for tensor in tensors])), functools.partial(_work_off, tensors))
    return [join([tensor.chunks[start] for start in sorted(tensor.chunks)]) for tensor in tensors]


def _work_off(tensors: "Sequence[_Tensor]", take: Callable[[], list[_Piece] | None]) -> None:
    """Take pieces until there are no more."""
    buffers = Buffers()
    with np.errstate(all="ignore"):  # which each thread has for itself
        while (pieces := take()) is not None:
            for which, start, stop in pieces:
                tensors[which].take(start, stop, buffers)


class _Tensor:
    """The elements of an array, and the statistics of its chunks by where they start."""

    def __init__(self, array: Array, marks: Marks) -> None:
        self.elements = Elements(array, arithmetic.memory_order(array), array.dtype)
        self.chunks: dict[int, Statistics] = {}
        self._marks = marks
        self._unsigned: np.dtype[Any] = np.dtype(f"u{array.itemsize}")

    def take(self, start: int, stop: int, buffers: Buffers) -> None:
        """Make the statistics of the elements start to stop, of which there is at least one."""
        size, marks = stop - start, self._marks
        x = self.elements.open(start, stop, buffers, "weights")
        terms = _terms(x, (True, True), buffers.get("terms", 2 * size, _FLOAT64).reshape(2, size))
        sum_abs, sum_squares = _sum_tiles(terms, x.itemsize).tolist()

        bits, flags = buffers.get("bits", size, self._unsigned), buffers.get("flags", size, _BOOL)
        np.bitwise_and(x.view(self._unsigned), marks.magnitude, out=bits)
        zeros = size - int(np.count_nonzero(bits))
        below = int(np.count_nonzero(np.less(bits, marks.threshold, out=flags)))
        largest, nan, inf = int(bits.max()), 0, 0
        if largest >= marks.infinity:
            inf = int(np.count_nonzero(np.equal(bits, marks.infinity, out=flags)))
            nan = int(np.count_nonzero(np.greater(bits, marks.infinity, out=flags)))
            bits[flags] = 0
            largest = int(bits.max())
        self.chunks[start] = Statistics(size, sum_abs, sum_squares, marks.number(largest), zeros, below, nan, inf)
