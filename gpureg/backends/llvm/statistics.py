"""Statistics by machine code: what is counted goes along with the sums, LANES elements at a time.

All but the sums is made of the bits without the sign, which rise as the numbers do (`gpureg.statistics.Marks`), in
integers as wide as the elements: a tile has no more elements than they can count. NaN and infinities are looked for
only in tiles whose largest bits say that there are any; such a tile is read again, from the cache.
"""

import ctypes
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic
from gpureg.arithmetic import TILE_BYTES, lane_count
from gpureg.backends.llvm import PIECE_TILES, _cut
from gpureg.backends.llvm.code import DOUBLE, INT, Function, Value, ints, vector
from gpureg.backends.llvm.kernels import (
    _PAIR,
    FORMATS,
    LANES,
    PIECE,
    _add_lanes,
    _add_rows,
    _columns,
    _copy,
    _load,
    _load_magnitudes,
    _once,
    _Record,
    _take_tiles,
)
from gpureg.backends.numpy import Buffers
from gpureg.memory import address_of
from gpureg.statistics import Statistics, join, marks

Array = NDArray[Any]

RESULT = np.dtype(
    {
        "names": ["size", "sum_abs", "sum_squares", "max_abs", "zeros", "below", "nan", "inf"],
        "formats": [np.int64] + [np.float64] * 3 + [np.int64] * 4,
    }
)
"""The statistics of a piece."""

PASS = np.dtype({"names": ["pieces", "thresholds", "results"], "formats": [np.int64] * 3})
"""A pass: the addresses of the pieces, of the bits of each tensor's threshold, and of the statistics of each piece."""


# Machine code --------------------------------------------------------------------------------------------------------


def _folded(value: Value, fold: Callable[[Value, Value], Value]) -> Value:
    """Return the elements of a vector of a power-of-two number, put together in any order."""
    count: int = value.type.count
    while count > 1:
        count //= 2
        value = fold(value.picked(value, range(count)), value.picked(value, range(count, 2 * count)))
    return value.at(0)


@_once
def of_tile(dtype: np.dtype[Any]) -> Any:
    """Return the kernel that writes a tile's sums of |w| and w*w to `sums`, and adds what else it has to a RESULT.

    The tile has `count` elements of the dtype; those `ahead` elements further on will be wanted next.
    """
    format_, infinity = FORMATS[dtype.name], marks(dtype, 0.0).infinity
    row, width = lane_count(format_.itemsize), 8 * format_.itemsize
    f = Function(INT, INT, INT, INT, INT, INT)
    weights, count, ahead, threshold, sums, result = f.arguments
    lanes, squares = f.stack(8 * row), f.stack(8 * row)
    end, one = f.stack(LANES * format_.itemsize), f.stack(8)
    many = vector(ints(width), LANES)
    zero = f.constant(many, 0)
    f.store(end, zero)
    odd = count % LANES
    _copy(f, end, weights + (count - odd) * format_.itemsize, odd, format_.itemsize)
    least = threshold.converted(ints(width)).repeated(LANES)

    def larger(first: Value, second: Value) -> Value:
        return f.select(first > second, first, second)

    def added(first: Value, second: Value) -> Value:
        return first + second

    def tally(address: Value, largest: Value, zeros: Value, below: Value) -> list[Value]:
        bits = _load_magnitudes(f, address, format_, LANES)
        return [
            larger(bits, largest),
            zeros + (bits == 0).converted(ints(width)),
            below + (bits < least).converted(ints(width)),
        ]

    def tally_odd(address: Value, largest: Value, nan: Value, inf: Value) -> list[Value]:
        bits = _load_magnitudes(f, address, format_, LANES)
        is_nan = bits > infinity
        return [
            f.select(is_nan, largest, larger(bits, largest)),
            nan + is_nan.converted(ints(width)),
            inf + (bits == infinity).converted(ints(width)),
        ]

    def rows(places: list[Value | None], tally: Callable[..., list[Value]]) -> list[Value]:
        return _add_rows(f, format_, weights, count, end, ahead, places, tally, zero, zero, zero)

    this = _Record(f, RESULT, result)
    every, zeros, below = rows([lanes, squares], tally)
    found = _folded(every, larger)

    def look_again() -> list[Value]:
        numbers, nan, inf = rows([None, None], tally_odd)
        this["nan"] += _folded(nan, added).converted(INT)
        this["inf"] += _folded(inf, added).converted(INT)
        return [_folded(numbers, larger)]

    (found,) = f.when(found > infinity - 1, look_again, found)
    f.store(one, found)
    number = _load(f, one, format_, 1).converted(DOUBLE).at(0)
    this["max_abs"] = larger(this["max_abs"], number)
    padding = f.select(odd > 0, f.constant(INT, LANES) - odd, odd)  # zeros at the end, which are no elements
    this["zeros"] += _folded(zeros, added).converted(INT) - padding
    this["below"] += _folded(below, added).converted(INT) - f.select(threshold > 0, padding, f.constant(INT, 0))
    columns = _columns(f, count, row)
    f.store(sums, _add_lanes(f, lanes, columns * LANES))
    f.store(sums + 8, _add_lanes(f, squares, columns * LANES))
    return f.compiled()


@_once
def take() -> Any:
    """Return the function that writes the statistics of the pieces `start` to `stop` of a pass."""
    f = Function(INT, INT, INT)
    address, start, stop = f.arguments
    tiles = f.stack(16 * PIECE_TILES)
    this = _Record(f, PASS, address)
    pieces, results = this["pieces"], this["results"]

    def take_piece(i: Value) -> None:
        index = start + i
        piece = _Record(f, PIECE, pieces + index * PIECE.itemsize)
        threshold = f.load(this["thresholds"] + piece["tensor"] * 8, INT)
        place = results + index * RESULT.itemsize
        result = _Record(f, RESULT, place)
        result["size"], result["max_abs"] = piece["size"], f.constant(DOUBLE, 0.0)
        for name in ("zeros", "below", "nan", "inf"):
            result[name] = f.constant(INT, 0)

        def take_tile(i: Value, own: Value, ahead: Value) -> None:
            f.call(piece["sums"], piece["weights"] + i * TILE_BYTES, own, ahead, threshold, tiles + i * 16, place)

        _take_tiles(f, pieces, index, stop, tiles, take_tile)
        f.store(result.place("sum_abs"), f.load(tiles, _PAIR))

    f.repeat(stop - start, take_piece)
    return f.compiled()


# Passes --------------------------------------------------------------------------------------------------------------


_Pass = ctypes.c_int64 * 3


def statistics(arrays: Sequence[Array], threshold: float) -> list[Statistics]:
    """Return the statistics of each array; see `gpureg.backends.Backend`."""
    kernels = {dtype: of_tile(dtype).address for dtype in {array.dtype for array in arrays}}
    least = {dtype: marks(dtype, threshold).threshold for dtype in kernels}
    axes = [arithmetic.memory_order(array) for array in arrays]
    table, firsts = _cut(arrays, axes, [kernels[array.dtype] for array in arrays])
    thresholds = np.array([least[array.dtype] for array in arrays], np.int64)
    results = np.empty(table.pieces.size, RESULT)
    thresholds_at, results_at = address_of(thresholds), address_of(results)

    def work_off(take_unit: Callable[[], tuple[int, int] | None]) -> None:
        whole, buffers = _Pass(table.address, thresholds_at, results_at), Buffers()
        while (unit := take_unit()) is not None:
            start, stop = unit
            scattered = table.scattered and table.scattered.get(int(table.pieces["tensor"][start]))
            if not scattered:
                take().call(ctypes.addressof(whole), start, stop)
                continue
            piece, first = table.pieces[start:stop].copy(), int(table.starts[start])
            opened = scattered[0].open(first, first + int(piece["size"][0]), buffers, "weights")
            piece["weights"] = address_of(opened)
            alone = _Pass(address_of(piece), thresholds_at, results_at + start * RESULT.itemsize)
            take().call(ctypes.addressof(alone), 0, 1)

    table.share(work_off)
    pieces = [Statistics(*numbers) for numbers in results.tolist()]
    return [join(pieces[first:last]) for first, last in itertools.pairwise(firsts.tolist())]
