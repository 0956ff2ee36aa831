"""The kernels of a tile, for each dtype, and the passes over tables of tensors, as machine code for the CPU.

A tile's lanes are taken a few at a time: their sums are held in registers over all rows of the tile, while the same
lanes of the next tile are brought near. So memory is read in order but for jumps within a tile, and a gradient is
written as long as its tile is in the cache. A tile's sums, and its gradient, are one call each.
"""

import functools
import itertools
import operator
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from gpureg.arithmetic import ROW_BYTES, TILE_BYTES, lane_count
from gpureg.backends import Mode
from gpureg.backends.llvm import PIECE_TILES
from gpureg.backends.llvm.code import DOUBLE, FLOAT, INT, Function, Value, ints, vector

LANES = 16
"""Lanes that are added at a time: both kinds of sums take 8 of AVX2's 16 registers, 16 of NEON's 32, 4 of AVX-512's."""

BLOCK = 16
"""Elements whose gradients are formed at a time."""

ABSOLUTES, SQUARES = 1, 2
"""The sums of |w| and of w*w, where it is said which are wanted; together, both."""

_LINE = 64


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make for each arguments one thing that stays: machine code is called by its address."""
    made: dict[Any, Any] = {}
    lock = threading.Lock()

    @functools.wraps(make)
    def once(*arguments: Any) -> Any:
        if arguments not in made:
            with lock:
                if arguments not in made:
                    made[arguments] = make(*arguments)
        return made[arguments]

    return once


# How elements are stored ---------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """How a dtype's elements are stored, and the type that they are computed in."""

    itemsize: int
    stored: Any
    compute: Any


FORMATS = {
    "float16": Format(2, ir.HalfType(), FLOAT),
    "bfloat16": Format(2, ints(16), FLOAT),
    "float32": Format(4, FLOAT, FLOAT),
    "float64": Format(8, DOUBLE, DOUBLE),
}


def _load(f: Function, address: Value, format_: Format, count: int) -> Value:
    """Return elements, in the type that they are computed in."""
    return _numbers(f.load(address, vector(ints(8 * format_.itemsize), count)), format_)


def _load_magnitudes(f: Function, address: Value, format_: Format, count: int) -> Value:
    """Return the bits of elements without their sign."""
    width = 8 * format_.itemsize
    return f.load(address, vector(ints(width), count)) & ((1 << (width - 1)) - 1)


def _numbers(bits: Value, format_: Format) -> Value:
    """Return the elements of these bits, in the type that they are computed in."""
    if format_.stored == ints(16):
        return (bits.converted(ints(32)) << 16).bits_as(FLOAT)
    return bits.bits_as(format_.stored).converted(format_.compute)


def _rounded(f: Function, x: Value, format_: Format) -> Value:
    """Return numbers as they are stored, rounded to nearest even; NaN stays NaN."""
    if format_.stored != ints(16):
        return x.converted(format_.stored)
    bits = x.bits_as(ints(32))
    nearest = (bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16
    quiet = f.constant(bits.type, 0x7FC0)
    return f.select(x.is_nan(), quiet, nearest).converted(ints(16))


def _prefetch(f: Function, address: Value, size: int) -> None:
    for offset in range(0, size, _LINE):
        f.prefetch(address + offset)


def _copy(f: Function, target: Value, source: Value, count: Value, itemsize: int) -> None:
    """Copy a few elements."""
    kind = ints(8 * itemsize)
    f.repeat(count, lambda i: f.store(target + i * itemsize, f.load(source + i * itemsize, kind)))


# Sums of a tile ------------------------------------------------------------------------------------------------------


@_once
def sums(name: str) -> Any:
    """Return the kernel that writes a tile's sums of |w| and w*w, those that are wanted, to `result`.

    The tile has `count` elements of the dtype of that name; those `ahead` elements further on will be wanted next.
    """
    format_ = FORMATS[name]
    row = lane_count(format_.itemsize)
    f = Function(INT, INT, INT, INT, INT)
    weights, count, ahead, wanted, result = f.arguments
    lanes, squares = f.stack(8 * row), f.stack(8 * row)
    end = f.stack(LANES * format_.itemsize)  # the last elements, filled up with zeros
    f.store(end, f.constant(vector(ints(8 * format_.itemsize), LANES), 0))
    odd = count % LANES
    _copy(f, end, weights + (count - odd) * format_.itemsize, odd, format_.itemsize)
    for which in (ABSOLUTES, SQUARES, ABSOLUTES | SQUARES):
        places = [place if which & one else None for one, place in ((ABSOLUTES, lanes), (SQUARES, squares))]
        f.when(wanted == which, functools.partial(_add_rows, f, format_, weights, count, end, ahead, places))
    columns = _columns(f, count, row)
    f.when((wanted & ABSOLUTES) != 0, lambda: f.store(result, _add_lanes(f, lanes, columns * LANES)))
    f.when((wanted & SQUARES) != 0, lambda: f.store(result + 8, _add_lanes(f, squares, columns * LANES)))
    return f.compiled()


def _columns(f: Function, count: Value, row: int) -> Value:
    """Return how many times LANES lanes have elements."""
    return f.select(count < row, (count + (LANES - 1)) // LANES, f.constant(INT, row // LANES))


def _add_rows(
    f: Function,
    format_: Format,
    weights: Value,
    count: Value,
    end: Value,
    ahead: Value,
    places: list[Value | None],
    tally: Callable[..., list[Value]] = lambda _: [],
    *counts: Value,
) -> list[Value]:
    """Write each lane's sum of |w| to the first place and that of w*w to the second, where there is one.

    Beside that, what is counted is passed through all elements, LANES at a time: `tally` is given their address and the
    counts so far, and returns the new ones.
    """
    row, width = lane_count(format_.itemsize), LANES * format_.itemsize
    rows, rest = count // row, count % row
    zero = f.constant(vector(DOUBLE, LANES), 0.0)

    def add(address: Value, totals: tuple[Value, ...]) -> list[Value]:
        magnitudes = _load_magnitudes(f, address, format_, LANES)  # a sign is cut off a few bits faster than float64
        x = _numbers(magnitudes, format_).converted(DOUBLE)
        terms = iter(totals)
        added = [] if places[0] is None else [next(terms) + x]
        if places[1] is not None:  # a square is exact, but for float64
            added.append(next(terms) + x * x if format_.itemsize == 8 else x.multiplied_into(x, next(terms)))
        return [*added, *tally(address, *terms)]

    def add_column(column: Value, *counts: Value) -> list[Value]:
        first = weights + column * width

        def add_row(i: Value, *totals: Value) -> list[Value]:
            address = first + i * ROW_BYTES
            _prefetch(f, address + ahead * format_.itemsize, width)
            return add(address, totals)

        def add_last() -> list[Value]:
            whole = column * LANES + LANES < rest + 1
            return add(f.select(whole, first + rows * ROW_BYTES, end), tuple(totals))

        found = [place for place in places if place is not None]
        totals = f.repeat(rows, add_row, *(zero for _ in found), *counts)
        totals = f.when(column * LANES < rest, add_last, *totals)
        for place, total in zip(found, totals, strict=False):
            f.store(place + column * (8 * LANES), total)
        return totals[len(found) :]

    return f.repeat(_columns(f, count, row), add_column, *counts)


def _add_lanes(f: Function, lanes: Value, count: Value) -> Value:
    """Return the sum of float64 by the tree, padded with +0.0; it is made in their place and that of the padding."""
    eight = vector(DOUBLE, 8)

    def add_level(count: Value) -> Value:
        groups = (count + 63) // 64
        missing = groups * 8 - count // 8
        f.repeat(missing, lambda i: f.store(lanes + (count + i * 8) * 8, f.constant(eight, 0.0)))

        def add_group(i: Value) -> None:
            parts = [f.load(lanes + i * 512 + 64 * part, eight) for part in range(8)]
            f.store(lanes + i * 64, _neighbours(parts))

        f.repeat(groups, add_group)
        return groups * 8

    (_,) = f.loop(lambda count: count > 8, add_level, count)
    last = f.load(lanes, eight)
    parts = [last.at(i) for i in range(8)]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _neighbours(parts: list[Value]) -> Value:
    """Return the sums of each of 8 vectors of 8, by the tree.

    Of two vectors, a blend of both and a shuffle of both are the two halves of each pair; after three such steps the
    sums are in order.
    """
    blends = ([0, 9, 2, 11, 4, 13, 6, 15], [0, 1, 10, 11, 4, 5, 14, 15], [0, 1, 2, 3, 12, 13, 14, 15])
    shuffles = ([1, 8, 3, 10, 5, 12, 7, 14], [2, 3, 8, 9, 6, 7, 12, 13], [4, 5, 6, 7, 8, 9, 10, 11])
    for blend, shuffle in zip(blends, shuffles, strict=True):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [a.picked(b, blend) + a.picked(b, shuffle) for a, b in pairs]
    return parts[0]


# Gradient and proximal step of a tile --------------------------------------------------------------------------------


def _sign(f: Function, x: Value) -> Value:
    """Return -1, +0.0 or 1, or NaN."""
    zero, one = (f.constant(x.type, number) for number in (0.0, 1.0))
    return f.select(x.is_nan(), x, f.select(x == zero, zero, one.with_sign_of(x)))


class _Blocks:
    """Arrays that are taken BLOCK elements at a time; what is left of each goes through a buffer, filled with zeros."""

    def __init__(self, f: Function, count: Value, *arrays: tuple[Value, Format]) -> None:
        self._f, self._arrays = f, arrays
        self._whole, self._rest = count // BLOCK, count % BLOCK
        self._number = (count + (BLOCK - 1)) // BLOCK
        self._buffers = [f.stack(BLOCK * format_.itemsize) for _, format_ in arrays]
        for buffer, (address, format_) in zip(self._buffers, arrays, strict=True):
            f.store(buffer, f.constant(vector(ints(8 * format_.itemsize), BLOCK), 0))
            _copy(f, buffer, self._block(address, format_, self._whole), self._rest, format_.itemsize)

    def _block(self, address: Value, format_: Format, i: Value) -> Value:
        return address + i * (BLOCK * format_.itemsize)

    def each(self, body: Callable[..., None]) -> None:
        """Let a body work on each block, given where it is of each array."""

        def step(i: Value) -> None:
            inside = i < self._whole
            body(
                *(
                    self._f.select(inside, self._block(*array, i), buffer)
                    for array, buffer in zip(self._arrays, self._buffers, strict=True)
                )
            )

        self._f.repeat(self._number, step)

    def write_rest(self) -> None:
        """Write what is left of the last array."""
        address, format_ = self._arrays[-1]
        _copy(self._f, self._block(address, format_, self._whole), self._buffers[-1], self._rest, format_.itemsize)


@_once
def gradient(name: str, into: str) -> Any:
    """Return the kernel that writes a tile's gradient, `c1 * sign(w) + c2 * w`, or adds it to what is there.

    Coefficients are rounded to the type that is computed in; there is no term where that makes one 0. The gradients
    `ahead` elements further on will be wanted next; the sums bring the weights, or the processor by itself.
    """
    source, target = FORMATS[name], FORMATS[into]
    f = Function(INT, INT, INT, DOUBLE, DOUBLE, INT, INT)
    weights, gradients, count, l1, l2, accumulates, ahead = f.arguments
    c1, c2 = l1.converted(source.compute), l2.converted(source.compute)
    blocks = _Blocks(f, count, (weights, source), (gradients, target))

    def write(has_first: bool, has_second: bool, adds: bool) -> None:
        def write_block(weights: Value, gradients: Value) -> None:
            _prefetch(f, gradients + ahead * target.itemsize, BLOCK * target.itemsize)
            x = _load(f, weights, source, BLOCK)
            terms = [c1.repeated(BLOCK) * _sign(f, x)] * has_first + [c2.repeated(BLOCK) * x] * has_second
            new = functools.reduce(operator.add, terms) if terms else f.constant(x.type, 0.0)
            if adds:
                new = _load(f, gradients, target, BLOCK).converted(source.compute) + new
            f.store(gradients, _rounded(f, new, target))

        blocks.each(write_block)

    for has_first, has_second in itertools.product((False, True), repeat=2):
        terms = ((c1 != 0) == has_first) & ((c2 != 0) == has_second)
        f.when(terms & (accumulates == 0), functools.partial(write, has_first, has_second, False))
        if has_first or has_second:  # else not even `g + 0`, which would turn -0.0 into +0.0
            f.when(terms & (accumulates != 0), functools.partial(write, has_first, has_second, True))
    blocks.write_rest()
    return f.compiled()


@_once
def proximal(name: str) -> Any:
    """Return the kernel of a proximal step: `sign(w) * max(|w| - threshold, 0)`, over `divisor` if it divides.

    Threshold and divisor are rounded to the type that is computed in.
    """
    format_ = FORMATS[name]
    f = Function(INT, INT, DOUBLE, DOUBLE, INT)
    weights, count, threshold, divisor, divides = f.arguments
    t, d = (one.converted(format_.compute).repeated(BLOCK) for one in (threshold, divisor))
    blocks = _Blocks(f, count, (weights, format_))

    def move(divides: bool) -> None:
        def move_block(address: Value) -> None:
            x = _load(f, address, format_, BLOCK)
            left = abs(x) - t
            moved = _sign(f, x) * f.select(left < 0, f.constant(x.type, 0.0), left)
            if divides:
                moved = moved / d
            bits = _rounded(f, moved, format_).bits_as(ints(8 * format_.itemsize))
            # A zero result is +0.0, also where rounding a small negative number made the zero.
            negative = bits == 1 << (8 * format_.itemsize - 1)
            f.store(address, f.select(negative, f.constant(bits.type, 0), bits))

        blocks.each(move_block)

    for one in (False, True):
        f.when((divides != 0) == one, functools.partial(move, one))
    blocks.write_rest()
    return f.compiled()


# Passes over tensors -------------------------------------------------------------------------------------------------


PIECE = np.dtype(
    {
        "names": ["sums", "gradient", "weights", "target", "size", "tile", "target_itemsize", "tensor"],
        "formats": [np.int64] * 8,
    }
)
"""A tensor, or an aligned group of its tiles: by which kernels, where, how many elements, those of a tile, and whose.

`gradient` is 0 where there is none to write.
"""

RULE = np.dtype({"names": ["l1", "l2", "twice_l2"], "formats": [np.float64] * 3})
"""The coefficients of a tensor."""

PASS = np.dtype(
    {
        "names": [
            "pieces", "rules", "firsts", "tensors", "mode", "every", "totals", "sums", "each",
            "strength", "upstream", "divisor", "total", "rounded",
        ],
        "formats": [np.int64] * 9 + [np.float64] * 5,
    }
)  # fmt: skip
"""A pass: the addresses of the pieces and rules, of the first piece of each tensor and one more, what is done, and the
addresses of what it makes: the sums of each piece, and the sums and the penalty of each tensor. It ends with the total,
and that rounded to float32.
"""

_PAIR = vector(DOUBLE, 2)


class _Record:
    """A record in memory, by the names of its fields."""

    def __init__(self, f: Function, layout: np.dtype[Any], address: Value) -> None:
        self._f, self._address = f, address
        self._fields: Any = layout.fields

    def place(self, name: str) -> Value:
        """Return the address of a field."""
        offset: int = self._fields[name][1]
        return self._address + offset

    def __getitem__(self, name: str) -> Value:
        return self._f.load(self.place(name), INT if self._fields[name][0] == np.int64 else DOUBLE)

    def __setitem__(self, name: str, value: Value) -> None:
        self._f.store(self.place(name), value)


def _add_tree(f: Function, leaves: Value, count: Value, kind: Any) -> None:
    """Add numbers, or pairs of them, by the tree, padded with +0.0, in their place; the first becomes the sum."""
    size = 16 if kind == _PAIR else 8

    def add_level(count: Value) -> Value:
        half = count // 2

        def add(i: Value) -> None:
            first = leaves + i * (2 * size)
            f.store(leaves + i * size, f.load(first, kind) + f.load(first + size, kind))

        def pad() -> None:
            f.store(leaves + half * size, f.load(leaves + (count - 1) * size, kind) + 0.0)

        f.repeat(half, add)
        f.when(count % 2 != 0, pad)
        return count - half

    f.loop(lambda count: count > 1, add_level, count)


def _take_tiles(
    f: Function, pieces: Value, index: Value, stop: Value, tiles: Value, take: Callable[[Value, Value, Value], None]
) -> None:
    """Let the tiles of a piece be taken, each given its index, its elements, and those to the tile that is next.

    The latter are 0 where nothing follows. Each leaves its pair of sums in `tiles`, whose sum comes first in the end.
    """
    piece = _Record(f, PIECE, pieces + index * PIECE.itemsize)
    following = _Record(f, PIECE, pieces + f.select(index + 1 < stop, index + 1, index) * PIECE.itemsize)
    size, tile = piece["size"], piece["tile"]
    count = (size + tile - 1) // tile
    goes_on = following["weights"] == piece["weights"] + PIECE_TILES * TILE_BYTES

    def take_tile(i: Value) -> None:
        left = size - i * tile
        take(i, f.select(left < tile, left, tile), f.select(goes_on | (i + 1 < count), tile, f.constant(INT, 0)))

    f.repeat(count, take_tile)
    _add_tree(f, tiles, count, _PAIR)


@_once
def take() -> Any:
    """Return the function that passes over the pieces `start` to `stop` of a pass, and writes the sums of each."""
    f = Function(INT, INT, INT)
    address, start, stop = f.arguments
    tiles = f.stack(16 * PIECE_TILES)
    this = _Record(f, PASS, address)
    pieces, totals, strength, upstream = (this[name] for name in ("pieces", "totals", "strength", "upstream"))
    sums_wanted, every = this["mode"] != Mode.GRADIENT.value, this["every"] != 0
    none = f.constant(INT, 0)
    accumulates = f.select(this["mode"] == Mode.ACCUMULATE.value, f.constant(INT, 1), none)

    def take_piece(i: Value) -> None:
        index = start + i
        piece = _Record(f, PIECE, pieces + index * PIECE.itemsize)
        rule = _Record(f, RULE, this["rules"] + piece["tensor"] * RULE.itemsize)
        l1, l2, twice_l2 = (rule[name] * strength for name in ("l1", "l2", "twice_l2"))
        c1, c2 = l1 * upstream, twice_l2 * upstream
        wanted = none
        for factor, one in ((l1, ABSOLUTES), (l2, SQUARES)):
            wanted = f.select(((factor != 0) | every) & sums_wanted, wanted | one, wanted)
        weights, target_bytes = piece["weights"], piece["tile"] * piece["target_itemsize"]

        def take_tile(i: Value, own: Value, ahead: Value) -> None:
            result = tiles + i * 16
            f.store(result, f.constant(_PAIR, 0.0))
            at, target = weights + i * TILE_BYTES, piece["target"] + i * target_bytes
            f.when(wanted != 0, lambda: f.call(piece["sums"], at, own, ahead, wanted, result))
            f.when(
                piece["gradient"] != 0,
                lambda: f.call(piece["gradient"], at, target, own, c1, c2, accumulates, ahead),
            )

        f.store(tiles, f.constant(_PAIR, 0.0))
        _take_tiles(f, pieces, index, stop, tiles, take_tile)
        f.store(totals + index * 16, f.load(tiles, _PAIR))

    f.repeat(stop - start, take_piece)
    return f.compiled()


@_once
def put_together() -> Any:
    """Return the function that makes of the sums of a pass's pieces what else it gives; the sums of pieces are lost."""
    f = Function(INT)
    this = _Record(f, PASS, f.arguments[0])
    tensors, totals, strength = this["tensors"], this["totals"], this["strength"]
    zero = f.constant(DOUBLE, 0.0)

    def put_tensor(i: Value) -> None:
        first = f.load(this["firsts"] + i * 8, INT)
        count = f.load(this["firsts"] + i * 8 + 8, INT) - first
        leaves = totals + first * 16
        _add_tree(f, leaves, count, _PAIR)
        (both,) = f.when(count > 0, lambda: f.load(leaves, _PAIR), f.constant(_PAIR, 0.0))
        f.store(this["sums"] + i * 16, both)
        rule = _Record(f, RULE, this["rules"] + i * RULE.itemsize)
        l1, l2 = rule["l1"] * strength, rule["l2"] * strength
        first_term, second_term = l1 * both.at(0), l2 * both.at(1)
        without_l1 = f.select(l2 != 0, second_term, zero)
        with_l1 = f.select(l2 != 0, first_term + second_term, first_term)
        f.store(this["each"] + i * 8, f.select(l1 != 0, with_l1, without_l1))

    f.repeat(tensors, put_tensor)
    f.repeat(tensors, lambda i: f.store(totals + i * 8, f.load(this["each"] + i * 8, DOUBLE)))
    _add_tree(f, totals, tensors, DOUBLE)
    (total,) = f.when(tensors > 0, lambda: f.load(totals, DOUBLE), zero)
    total = total / this["divisor"]
    this["total"], this["rounded"] = total, total.converted(FLOAT).converted(DOUBLE)
    return f.compiled()


SMALL = np.dtype(
    {
        "names": [
            "sums", "gradient", "weights", "target", "size", "tile", "target_itemsize", "tensor",
            "l1", "l2", "twice_l2", "mode", "every", "strength", "upstream", "divisor",
            "total", "rounded", "sum_abs", "sum_squares", "penalty",
        ],
        "formats": [np.int64] * 8 + [np.float64] * 3 + [np.int64] * 2 + [np.float64] * 8,
    }
)  # fmt: skip
"""A pass over a tensor of one piece: a PIECE, its RULE, what is done, and all that it makes."""


@_once
def take_small() -> Any:
    """Return the function that makes a pass over one piece."""
    f = Function(INT)
    address = f.arguments[0]
    memory, firsts, totals = f.stack(PASS.itemsize), f.stack(16), f.stack(16)
    small, whole = _Record(f, SMALL, address), _Record(f, PASS, memory)
    f.store(firsts, f.constant(INT, 0))
    f.store(firsts + 8, f.constant(INT, 1))
    whole["pieces"], whole["rules"] = small.place("sums"), small.place("l1")
    whole["firsts"], whole["tensors"] = firsts, f.constant(INT, 1)
    whole["totals"], whole["sums"], whole["each"] = totals, small.place("sum_abs"), small.place("penalty")
    for name in ("mode", "every", "strength", "upstream", "divisor"):
        whole[name] = small[name]
    f.call(f.constant(INT, take().address), memory, f.constant(INT, 0), f.constant(INT, 1))
    f.call(f.constant(INT, put_together().address), memory)
    small["total"], small["rounded"] = whole["total"], whole["rounded"]
    return f.compiled()


# By dtype ------------------------------------------------------------------------------------------------------------


@_once
def sums_address(dtype: np.dtype[Any]) -> int:
    """Return the address of the kernel of sums of weights of a dtype."""
    address: int = sums(dtype.name).address
    return address


@_once
def gradient_address(dtype: np.dtype[Any], into: np.dtype[Any]) -> int:
    """Return the address of the kernel of gradients of a dtype of weights of another."""
    address: int = gradient(dtype.name, into.name).address
    return address


@_once
def step(dtype: np.dtype[Any]) -> Callable[[int, int, float, float, bool], None]:
    """Return the kernel of proximal steps on weights of a dtype, as Python calls it."""
    call: Callable[[int, int, float, float, bool], None] = proximal(dtype.name).call
    return call
