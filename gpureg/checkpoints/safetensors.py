"""safetensors: single files, shards behind an index, and folders of either.

A file is the length of its header, 8 bytes, little-endian; the header, JSON; and the data of all tensors, each a range
of bytes. The ranges are exactly the data: no gap, no overlap, nothing after the last. It is read here and not by the
library of that name, whose NumPy arrays know neither bfloat16 nor 8-bit floats, and whose errors tell no byte.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpureg.checkpoints.entries import MAX_TENSORS, Entries, Entry, Mapped, stored_dtype
from gpureg.checkpoints.files import CheckpointError, Window, open_file, quoted, shown, unreadable

MAX_HEADER = 100_000_000
"""Bytes of a header, or of an index: as much as the safetensors library takes."""

# Name and bits of an element.
_DTYPES = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F4": ("float4_e2m1fn", 4),
    "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F32": ("float32", 32),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}

_INDEX = ".safetensors.index.json"


def read_folder(path: Path) -> list[Entry]:
    """Read a folder as the libraries that write such folders do: `model.safetensors`, or an index, or all files."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise unreadable(path, error) from None
    if "model.safetensors" in names:
        return read_file(open_file(path / "model.safetensors"))
    indexes = [name for name in names if name.endswith(_INDEX)]
    if len(indexes) > 1:
        raise CheckpointError(f"{shown(path)} has several indexes; give one of {', '.join(map(quoted, indexes))}")
    if indexes:
        return read_index(open_file(path / indexes[0]))
    files = [name for name in names if name.endswith(".safetensors")]
    if not files:
        raise CheckpointError(f"{shown(path)} has no .safetensors file; of a folder with others, give one of them")
    return _read_shards(path, files)


def read_file(window: Window) -> list[Entry]:
    """Read a single file."""
    length = window.integer(0, 8, "the length of the header")
    if length > MAX_HEADER:
        raise window.error(0, f"the header would be {length} bytes long; at most {MAX_HEADER} are read")
    header = _Json(window.window(8, length, "the header"))
    data = window.window(8 + length, window.size - 8 - length, "the data")
    entries, ranges = Entries(window), []
    for at, name in header.members():
        if name == "__metadata__":
            for _ in header.members():
                header.skip_string()
            continue
        tensor = _tensor(header, name)
        nbytes = entries.nbytes(8 + at, name, tensor.shape, tensor.bits)
        start, stop = tensor.start, tensor.stop
        if stop - start != nbytes:
            what = f"{tensor.dtype} {quoted(tensor.shape)} takes {nbytes} bytes, but its range is {start} to {stop}"
            raise header.error(at, f"tensor {quoted(name)}, {what}")
        data.check(start, nbytes, f"tensor {quoted(name)}")
        entries.add(8 + at, name, tensor.shape, tensor.dtype, nbytes, 8 + length + start, _elements(data, tensor))
        ranges.append((start, stop, at, name))
    header.end()
    end = 0
    for start, stop, at, name in sorted(ranges):
        if start != end:
            what = "overlaps the tensor before it" if start < end else f"leaves a hole of {start - end} bytes before it"
            raise header.error(at, f"tensor {quoted(name)}, bytes {start} to {stop} of the data, {what}")
        end = stop
    if end != data.size:
        raise data.error(end, f"{data.size - end} bytes follow the last tensor")
    return entries.found


def read_index(window: Window) -> list[Entry]:
    """Read the shards that an index names, beside it; each tensor must be in the shard that the index says."""
    if window.size > MAX_HEADER:
        raise window.error(MAX_HEADER, f"an index of {window.size} bytes; at most {MAX_HEADER} are read")
    index = _Json(window)
    shards: dict[str, str] = {}
    for _, key in index.members():
        if key != "weight_map":
            index.skip()
            continue
        for at, name in index.members():
            shards[name] = index.string()
            if re.fullmatch(r"\.{0,2}|.*[/\\:\0].*", shards[name], re.DOTALL):
                what = f"{quoted(shards[name])}, which is no file beside the index"
                raise index.error(at, f"tensor {quoted(name)} would be in {what}")
    index.end()
    if not shards:
        raise index.error(0, "no tensor in weight_map: this is no index of shards")
    found = _read_shards(window.path.parent, list(dict.fromkeys(shards.values())))
    holds = {entry.name: entry.source.path.name for entry in found}
    for name, shard in shards.items():
        if holds.get(name) != shard:
            raise index.error(0, f"tensor {quoted(name)} is not in {quoted(shard)}, as the index says")
    return found


def _read_shards(folder: Path, names: list[str]) -> list[Entry]:
    found: dict[str, Entry] = {}
    for name in names:
        for entry in read_file(open_file(folder / name)):
            if entry.name in found:
                other = quoted(found[entry.name].source.path.name)
                raise CheckpointError(f"{shown(folder / name)}: tensor {quoted(entry.name)} is in {other} too")
            found[entry.name] = entry
    return list(found.values())


class _Tensor(NamedTuple):
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    bits: int
    start: int
    stop: int


def _tensor(header: "_Json", name: str) -> _Tensor:
    at, pairs = header.flat()
    fields = dict(pairs)
    if len(pairs) != 3 or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise header.error(at, f"tensor {quoted(name)} must have dtype, shape and data_offsets, each once")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise header.error(at, f"tensor {quoted(name)} has the unknown dtype {quoted(dtype)}")
    if not _are_sizes(shape):
        raise header.error(at, f"tensor {quoted(name)} has the impossible shape {quoted(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise header.error(at, f"tensor {quoted(name)} has the impossible data_offsets {quoted(offsets)}")
    return _Tensor(tuple(shape), *_DTYPES[dtype], *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _elements(data: Window, tensor: _Tensor) -> Callable[[], Mapped]:
    def elements() -> Mapped:
        stored = stored_dtype(tensor.dtype)
        count = (tensor.stop - tensor.start) * 8 // tensor.bits
        return Mapped(tensor.dtype, data.elements(tensor.start, stored, count, "its data").reshape(tensor.shape))

    return elements


_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+"'
_STRING_AT = re.compile(_SPACE + b"(" + _STRING + b")")
_FLAT_AT = re.compile(_SPACE + rb"(\{[^{}]*+\})")
_PART_AT = re.compile(rb'[^"{}\[\],]*+(' + _STRING + rb"|[{}\[\],])")
_MARK_AT = {mark: re.compile(_SPACE + re.escape(mark)) for mark in (b"{", b"}", b":", b",")}
_END_AT = re.compile(_SPACE + rb"\Z")

_MAX_NAME = 2**16
_MAX_FLAT = 4096
_MAX_PARTS = 2**16


class _Json:
    """A JSON object read part by part: nothing is kept of what is not asked for, however much there is of it.

    Python's own parser would make objects of all of it first, twenty times as large as the text at worst.
    """

    def __init__(self, window: Window) -> None:
        self._window, self._text, self._at = window, window.data.data, 0
        decoder = codecs.getincrementaldecoder("utf-8")()
        for start in range(0, window.size, _MAX_NAME):
            waiting = len(decoder.getstate()[0])
            try:
                decoder.decode(self._text[start : start + _MAX_NAME], final=start + _MAX_NAME >= window.size)
            except UnicodeDecodeError as error:
                raise self.error(start - waiting + error.start, "the text is not UTF-8") from None

    def error(self, at: int, what: str) -> CheckpointError:
        return self._window.error(at, what)

    def members(self) -> Iterator[tuple[int, str]]:
        """Yield position and name of each member of an object; whoever asked for it then takes the value."""
        self._mark(b"{", "an object")
        seen: set[str] = set()
        while not (self._is(b"}") if not seen else self._ends()):
            match = self._match(_STRING_AT, _MAX_NAME, "a string")
            at, name = match.start(1), self._loads(match)
            self._mark(b":", "a colon")
            if name in seen or len(seen) > MAX_TENSORS:
                many = f"more than {MAX_TENSORS} names in one object"
                raise self.error(at, f"{quoted(name)} is there twice" if name in seen else many)
            seen.add(name)
            yield at, name

    def string(self) -> str:
        """Return a string of moderate length."""
        return self._loads(self._match(_STRING_AT, _MAX_NAME, "a string"))

    def skip_string(self) -> None:
        """Pass over a string of any length."""
        self._match(_STRING_AT, self._window.size, "a string")

    def flat(self) -> tuple[int, list[tuple[str, Any]]]:
        """Return position and members of a short object that holds no other."""
        match = self._match(_FLAT_AT, _MAX_FLAT, "a short object")
        try:
            return match.start(1), json.loads(str(match[1], "utf-8"), object_pairs_hook=list)
        except json.JSONDecodeError as error:
            raise self.error(match.start(1) + error.pos, f"this is not JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits; brackets in brackets
            raise self.error(match.start(1), f"this is not JSON that is read here: {error}") from None

    def skip(self) -> None:
        """Pass over any value; only its brackets and strings are looked at."""
        depth = 0
        for _ in range(_MAX_PARTS):
            match = self._match(_PART_AT, self._window.size, "the rest of a value")
            mark = chr(self._text[match.start(1)])
            if depth == 0 and mark in "},":
                self._at = match.start(1)
                return
            depth += (mark in "{[") - (mark in "}]")
            if depth < 0:
                raise self.error(self._at, "a bracket closes that has not been opened")
        raise self.error(self._at, f"a value of more than {_MAX_PARTS} parts")

    def end(self) -> None:
        """Refuse anything but spaces."""
        self._match(_END_AT, self._window.size, "nothing more")

    def _loads(self, match: "re.Match[Any]") -> str:
        text: str = json.loads(str(match[1], "utf-8"))  # good JSON: the pattern and the decoder have seen to that
        return text

    def _ends(self) -> bool:
        """Return whether an object ends here; a comma stands here if it does not."""
        if self._is(b"}"):
            return True
        self._mark(b",", "a comma or the end of the object")
        return False

    def _is(self, mark: bytes) -> bool:
        match = _MARK_AT[mark].match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match is not None

    def _mark(self, mark: bytes, what: str) -> None:
        self._match(_MARK_AT[mark], self._window.size, what)

    def _match(self, pattern: re.Pattern[bytes], most: int, what: str) -> "re.Match[Any]":
        match = pattern.match(self._text, self._at, min(self._at + most, self._window.size))
        if match is None:
            raise self.error(self._at, f"{what} is expected here")
        self._at = match.end()
        return match
