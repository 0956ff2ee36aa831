"""HDF5 files, as far as Keras writes them: groups, datasets, and attributes that are text.

The format has many forms of each part. Read are those that the HDF5 library writes unless it is asked for others:
superblock 0, symbol tables, version 1 of object headers, contiguous, compact and chunked datasets with their first form
of index, chunks compressed with deflate. The others are refused by name. The library itself is not used: of files with
a few bytes changed it makes crashes and endless loops.
"""

import functools
import itertools
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpureg.checkpoints.entries import MAX_AXES, MAX_TENSORS
from gpureg.checkpoints.files import CheckpointError, Window, quoted

SIGNATURE = b"\x89HDF\r\n\x1a\n"

MAX_CHUNK = 2**24
"""Bytes of a chunk, decompressed, and of the chunks that are read together where there is a choice."""

_UNDEFINED = 2**64 - 1
_MAX_DEPTH = 64
_MAX_VISITS = 2**22
_MAX_CHUNKS = 2**18
_MAX_TEXT = 2**12

# Messages of an object header.
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT = 0x1, 0x2, 0x3, 0x6, 0x7, 0x8
_FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOLS = 0xB, 0xC, 0x10, 0x11

_NUMBER = re.compile("[0-9]+")

_DEFLATE, _SHUFFLE = 1, 2
_COMPACT, _CONTIGUOUS, _CHUNKED = 0, 1, 2
_INTEGER, _FLOAT, _STRING, _VARIABLE = 0, 1, 3, 9

# Sign, exponent's place and size, mantissa's place and size, and bias of the floats that have a name here.
_FLOATS = {
    (15, 10, 5, 0, 10, 15): "float16",
    (15, 7, 8, 0, 7, 127): "bfloat16",
    (31, 23, 8, 0, 23, 127): "float32",
    (63, 52, 11, 0, 52, 1023): "float64",
}
_CLASSES = ("int", "float", "time", "string", "bitfield", "void", "compound", "reference", "enum", "vlen", "array")


class Datatype(NamedTuple):
    """The dtype of a dataset's elements, by name, with NumPy's sign of its byte order."""

    name: str
    itemsize: int
    byte_order: str


class Dataset(NamedTuple):
    """A dataset: its elements lie in C order from `at` on, or come as blocks of bytes in that order."""

    path: str
    header: int
    datatype: Datatype
    shape: tuple[int, ...]
    attributes: dict[str, str]
    at: int
    blocks: Callable[[], Iterator[NDArray[Any]]] | None


class Tree(NamedTuple):
    """What a file holds, in the order of names with their numbers, and the text attributes of its groups by path."""

    datasets: list[Dataset]
    groups: dict[str, dict[str, str]]


def read(window: Window) -> Tree:
    """Read the structure of a file, not its elements."""
    return _Reader(window).tree()


class _Message(NamedTuple):
    """A part of an object header; `at` is its place in the file."""

    at: int
    data: Window


class _Chunk(NamedTuple):
    """Where a chunk lies, and which filters were left out for it."""

    at: int
    size: int
    mask: int


class _Reader:
    """The structures of one file, each read when something refers to it."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._visits = 0
        if window.take(0, 8, "the signature") != SIGNATURE:
            raise window.error(0, "an HDF5 file should begin here")
        version = window.integer(8, 1, "the version")
        if version != 0:
            raise window.error(8, f"superblock version {version}, as h5py writes with libver='latest'; 0 is read")
        if window.take(13, 2, "the sizes of addresses") != b"\x08\x08":
            raise window.error(13, "addresses and lengths of other than 64 bits")
        if self._address(24) != 0:
            raise window.error(24, "a base address other than 0")
        if self._address(40) > window.size:
            raise window.error(window.size, f"the file should be {self._address(40)} bytes long: it is cut off")

    def tree(self) -> Tree:
        tree = Tree([], {})
        self._walk(tree, "", self._address(64), set())
        return tree

    def _walk(self, tree: Tree, path: str, address: int, seen: set[int]) -> None:
        if address in seen:
            raise self._window.error(address, f"{quoted(path)} is linked twice, or part of itself")
        if path.count("/") > _MAX_DEPTH or len(seen) > MAX_TENSORS:
            raise self._window.error(address, f"{quoted(path)} is nested beyond what is read, or one of too many")
        seen.add(address)
        messages = self._messages(address)
        attributes = dict(map(self._attribute, messages.get(_ATTRIBUTE, [])))
        if _LAYOUT in messages:
            tree.datasets.append(self._dataset(path, address, messages, attributes))
            return
        tree.groups[path] = attributes
        links = self._links(path, address, messages)
        # The file has them by the alphabet, and so 10 before 9.
        for name, child in sorted(
            links.items(), key=lambda link: _NUMBER.sub(lambda match: match[0].zfill(20), link[0])
        ):
            self._walk(tree, f"{path}/{name}" if path else name, child, seen)

    # Object headers.

    def _address(self, at: int) -> int:
        return self._window.integer(at, 8, "an address")

    def _visit(self, at: int) -> None:
        self._visits += 1
        if self._visits > _MAX_VISITS:
            raise self._window.error(at, f"more than {_MAX_VISITS} parts")

    def _messages(self, address: int) -> dict[int, list[_Message]]:
        """Return the messages of an object header by type."""
        prefix = self._window.take(address, 16, "an object header")
        if prefix[0] != 1:
            form = "a newer form" if prefix.startswith(b"OHDR") else "no form"
            raise self._window.error(address, f"an object header of version 1 should begin here; this is {form} of one")
        count, size = struct.unpack_from("<H4xL", prefix, 2)
        blocks = [self._window.window(address + 16, size, "the messages of an object header")]
        found: dict[int, list[_Message]] = {}
        for block in blocks:
            self._visit(address)
            at = 0
            while count and at + 8 <= block.size:
                kind, size, flags = struct.unpack_from("<HHB", block.take(at, 8, "a message"))
                message = _Message(block.start - self._window.start + at + 8, block.window(at + 8, size, "a message"))
                if flags & 2 and kind in (_DATASPACE, _DATATYPE, _LAYOUT, _FILTERS):
                    raise block.error(at, "a message that lies elsewhere (a committed datatype) is not read")
                if kind == _CONTINUATION:
                    where, length = struct.unpack("<QQ", message.data.take(0, 16, "a continuation"))
                    blocks.append(self._window.window(where, length, "the messages of an object header"))
                found.setdefault(kind, []).append(message)
                count, at = count - 1, at + 8 + size
        return found

    def _one(self, path: str, address: int, messages: dict[int, list[_Message]], kind: int, what: str) -> Window:
        if len(messages.get(kind, [])) != 1:
            raise self._window.error(address, f"{quoted(path)} has not one {what}, but {len(messages.get(kind, []))}")
        return messages[kind][0].data

    # Groups.

    def _links(self, path: str, address: int, messages: dict[int, list[_Message]]) -> dict[str, int]:
        """Return the objects of a group by name."""
        links: dict[str, int] = {}
        for info in messages.get(_LINK_INFO, []):
            flags = info.data.integer(1, 1, "the links of a group")
            if info.data.integer(10 if flags & 1 else 2, 8, "the links of a group") != _UNDEFINED:
                raise info.data.error(0, f"group {quoted(path)} has its links in a newer form (a heap)")
        found = [self._link(path, message.data) for message in messages.get(_LINK, [])]
        if _SYMBOLS in messages:
            table = self._one(path, address, messages, _SYMBOLS, "symbol table")
            found += self._symbols(path, *struct.unpack("<QQ", table.take(0, 16, "a symbol table")))
        elif _LINK_INFO not in messages:
            raise self._window.error(address, f"{quoted(path)} is neither a group nor a dataset")
        for name, child in found:
            if name in links or not name or "/" in name:
                raise self._window.error(address, f"group {quoted(path)} has a link {quoted(name)} it cannot have")
            links[name] = child
        return links

    def _link(self, path: str, data: Window) -> tuple[str, int]:
        """Return name and address of a link message; only those within the file are followed."""
        flags = data.integer(1, 1, "a link")
        at = 2
        kind = data.integer(at, 1, "a link") if flags & 8 else 0
        at += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
        width = 1 << (flags & 3)
        size = data.integer(at, width, "a link's name")
        name = self._text(data, at + width, data.take(at + width, size, "a link's name"))
        if kind != 0:
            raise self._no_link(path, name, data, "external" if kind == 64 else "soft" if kind == 1 else "unknown")
        return name, data.integer(at + width + size, 8, "a link's address")

    def _no_link(self, path: str, name: str, data: Window, kind: str) -> CheckpointError:
        return data.error(0, f"group {quoted(path)} has the {kind} link {quoted(name)}, which is not followed")

    def _symbols(self, path: str, tree: int, heap: int) -> list[tuple[str, int]]:
        """Return names and addresses of a symbol table."""
        header = self._window.take(heap, 32, "the heap of a group's names")
        if not header.startswith(b"HEAP"):
            raise self._window.error(heap, "the heap of a group's names should begin here")
        size, _, at = struct.unpack_from("<QQQ", header, 8)
        names = self._window.window(at, size, "a group's names")
        found = []
        for node, _ in self._leaves(tree, 0, 8):
            head = self._window.take(node, 8, "a group's symbols")
            if not head.startswith(b"SNOD"):
                raise self._window.error(node, "a group's symbols should begin here")
            for index in range(int.from_bytes(head[6:8], "little")):
                entry = self._window.window(node + 8 + 40 * index, 40, "a group's symbols")
                at, child, cache = struct.unpack_from("<QQL", entry.take(0, 20, "a symbol"))
                text = names.take(at, min(_MAX_TEXT, max(names.size - at, 1)), "a name").partition(b"\0")[0]
                name = self._text(names, at, text)
                if cache == 2:
                    raise self._no_link(path, name, entry, "soft")
                self._visit(node)
                found.append((name, child))
        return found

    def _leaves(self, address: int, kind: int, key_size: int, above: int = 256) -> Iterator[tuple[int, bytes]]:
        """Yield where the leaves of a B-tree are, each with the key before it."""
        self._visit(address)
        head = self._window.take(address, 24, "a node of a tree")
        level, used = head[5], int.from_bytes(head[6:8], "little")
        if not head.startswith(b"TREE") or head[4] != kind or not level < above:
            raise self._window.error(address, "a node of a tree should begin here")
        for index in range(used):
            at = address + 24 + index * (key_size + 8)
            key, child = self._window.take(at, key_size, "a key of a tree"), self._address(at + key_size)
            if level:
                yield from self._leaves(child, kind, key_size, level)
            else:
                yield child, key

    def _text(self, window: Window, at: int, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise window.error(at + error.start, "a name is not UTF-8") from None

    # Attributes.

    def _attribute(self, message: _Message) -> tuple[str, str]:
        """Return name and value of an attribute; the value is empty if it is not one short text."""
        data = message.data
        version, _, name_size, type_size, space_size = struct.unpack("<BBHHH", data.take(0, 8, "an attribute"))
        at, pad = {1: (8, 7), 2: (8, 0), 3: (9, 0)}.get(version, (0, 0))
        if not at:
            raise data.error(0, f"an attribute of the unknown version {version}")
        places = [at]
        for size in (name_size, type_size, space_size):
            places.append(places[-1] + size + (-size & pad))
        name = self._text(data, at, data.take(at, name_size, "an attribute's name").rstrip(b"\0"))
        kind, _, size = struct.unpack("<B3sL", data.take(places[1], 8, "an attribute's datatype"))
        rank = data.integer(places[2] + 1, 1, "an attribute's shape")
        if rank == 0 and kind & 15 == _STRING and size <= _MAX_TEXT:
            value = data.take(places[3], size, "an attribute's value").rstrip(b"\0")
        elif rank == 0 and kind & 15 == _VARIABLE:
            length, heap, index = struct.unpack("<LQL", data.take(places[3], 16, "an attribute's value"))
            value = self._heap_object(heap, index)[:length] if length <= _MAX_TEXT else b""
        else:
            value = b""
        return name, value.decode("utf-8", "replace")

    def _heap_object(self, address: int, wanted: int) -> bytes:
        head = self._window.take(address, 16, "a global heap")
        if not head.startswith(b"GCOL"):
            raise self._window.error(address, "a global heap should begin here")
        heap = self._window.window(address, int.from_bytes(head[8:], "little"), "a global heap")
        at = 16
        while at + 16 <= heap.size:
            self._visit(address)
            index, size = struct.unpack("<H6xQ", heap.take(at, 16, "an object of a global heap"))
            if index == wanted:
                return heap.take(at + 16, min(size, _MAX_TEXT), "an object of a global heap")
            at += 16 + size + (-size & 7)
        raise heap.error(0, f"the global heap has no object {wanted}")

    # Datasets.

    def _dataset(
        self, path: str, address: int, messages: dict[int, list[_Message]], attributes: dict[str, str]
    ) -> Dataset:
        if _EXTERNAL in messages:
            raise self._window.error(
                address, f"dataset {quoted(path)} has its elements in other files, which are not read"
            )
        shape = self._shape(self._one(path, address, messages, _DATASPACE, "shape"))
        datatype = self._datatype(self._one(path, address, messages, _DATATYPE, "datatype"))
        layout = self._one(path, address, messages, _LAYOUT, "layout")
        version, kind = layout.take(0, 2, "a layout")
        if version != 3 or kind not in (_COMPACT, _CONTIGUOUS, _CHUNKED):
            raise layout.error(0, f"dataset {quoted(path)} has the layout {version}.{kind}; 3.0 to 3.2 are read")
        nbytes = math.prod(shape) * datatype.itemsize
        at, blocks = address, None
        if kind == _CHUNKED:
            filters = self._filters(path, messages)
            blocks = _Chunks(self, path, layout, shape, datatype.itemsize, filters).blocks if nbytes else None
        elif nbytes:
            if kind == _COMPACT:
                at, size = layout.start - self._window.start + 4, layout.integer(2, 2, "a layout")
            else:
                at, size = struct.unpack("<QQ", layout.take(2, 16, "a layout"))
            if at == _UNDEFINED:
                raise layout.error(0, f"dataset {quoted(path)} has no elements: it was made, and never written")
            if size != nbytes:
                what = f"{datatype.name} {quoted(shape)}, needs {nbytes} bytes and has {size}"
                raise layout.error(0, f"dataset {quoted(path)}, {what}")
            self._window.check(at, nbytes, f"dataset {quoted(path)}")
        return Dataset(path, address, datatype, shape, attributes, at, blocks)

    def _shape(self, data: Window) -> tuple[int, ...]:
        version, rank, _, kind = data.take(0, 4, "a shape")
        if version not in (1, 2) or rank > MAX_AXES:
            raise data.error(0, f"a shape of version {version} and {rank} axes")
        if version == 2 and kind == 2:
            return (0,)  # HDF5's null: a shape without elements
        return struct.unpack(f"<{rank}Q", data.take(8 if version == 1 else 4, 8 * rank, "a shape"))

    def _datatype(self, data: Window) -> Datatype:
        head, flags, sign, _, size = struct.unpack("<BBBBL", data.take(0, 8, "a datatype"))
        kind, name = head & 15, ""
        if kind == _INTEGER:
            name = f"{'' if flags & 8 else 'u'}int{8 * size}"
        elif kind == _FLOAT:
            start, precision, *places, bias = struct.unpack("<HHBBBBL", data.take(8, 12, "a datatype"))
            name = _FLOATS.get((sign, *places, bias), "")
            if flags & 0x40 or start or precision != 8 * size or sign != precision - 1:
                name = ""
        return Datatype(name or f"{dict(enumerate(_CLASSES)).get(kind, 'unknown')}{8 * size}", size, "<>"[flags & 1])

    def _filters(self, path: str, messages: dict[int, list[_Message]]) -> list[int]:
        """Return the filters that chunks went through, in order."""
        filters: list[int] = []
        for message in messages.get(_FILTERS, []):
            version, count = message.data.take(0, 2, "filters")
            at = 8
            for _ in range(count if version == 1 else 0):
                kind, name_size, _, values = struct.unpack("<HHHH", message.data.take(at, 8, "a filter"))
                filters.append(kind)
                at += 8 + name_size + (-name_size & 7) + 4 * (values + values % 2)
            if version != 1 or set(filters) - {_DEFLATE, _SHUFFLE}:
                what = f"dataset {quoted(path)} went through filters other than deflate and shuffle"
                raise message.data.error(0, f"{what}: {filters}")
        return filters

    def chunk_places(self, address: int, axes: int) -> Iterator[tuple[tuple[int, ...], _Chunk]]:
        """Yield the first index of each chunk of a tree, and where it lies."""
        for at, key in self._leaves(address, 1, 8 + 8 * axes):
            size, mask, *corner = struct.unpack(f"<LL{axes}Q", key)
            yield tuple(corner[:-1]), _Chunk(at, size, mask)

    def take(self, at: int, size: int, what: str) -> bytes:
        return self._window.take(at, size, what)


class _Chunks:
    """A dataset in chunks: blocks of bytes in C order, of which no more than some chunks are held at once."""

    def __init__(
        self, reader: _Reader, path: str, layout: Window, shape: tuple[int, ...], itemsize: int, filters: list[int]
    ) -> None:
        self._reader, self._layout, self._itemsize, self._filters = reader, layout, itemsize, filters
        self._what = f"dataset {quoted(path)}"
        axes = layout.integer(2, 1, "a layout")
        self._tree = layout.integer(3, 8, "a layout")
        *chunk, size = struct.unpack(f"<{axes}L", layout.take(11, 4 * axes, "the shape of chunks")) or (0,)
        self._shape, self._chunk = shape, tuple(chunk)
        self._nbytes = math.prod(chunk) * itemsize
        if not shape or len(chunk) != len(shape) or size != itemsize or not 0 < self._nbytes <= MAX_CHUNK:
            chunks = (
                f"chunks of {quoted(self._chunk)}, {size} bytes an element; at most {MAX_CHUNK} bytes each are read"
            )
            raise layout.error(2, f"{self._what} has {chunks}")

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the elements: for each index of the first axes, a chunk's length of the next, and the rest whole."""
        shape, chunk = self._shape, self._chunk
        places = self._places()
        fetch = functools.lru_cache(max(1, MAX_CHUNK // self._nbytes))(lambda corner: self._fetch(places[corner]))
        last = len(shape) - 1
        wide = [chunk[axis] * math.prod(shape[axis + 1 :]) * self._itemsize for axis in range(len(shape))]
        axis = next((axis for axis in range(last) if wide[axis] <= MAX_CHUNK), last)
        rest = list(zip(shape[axis + 1 :], chunk[axis + 1 :], strict=True))
        ahead = list(itertools.product(*(range(0, length, step) for length, step in rest)))
        for number in range(math.prod(shape[:axis])):
            outer = tuple(map(int, np.unravel_index(number, shape[:axis])))
            before = tuple(index - index % step for index, step in zip(outer, chunk, strict=False))
            within = tuple(index % step for index, step in zip(outer, chunk, strict=False))
            for start in range(0, shape[axis], chunk[axis]):
                size = min(chunk[axis], shape[axis] - start)
                block = np.empty((size, *shape[axis + 1 :]), f"V{self._itemsize}")
                for tail in ahead:
                    sizes = [min(step, length - at) for at, (length, step) in zip(tail, rest, strict=True)]
                    there = [slice(at, at + size) for at, size in zip(tail, sizes, strict=True)]
                    here = fetch((*before, start, *tail))[(*within, slice(size), *map(slice, sizes))]
                    block[(slice(None), *there)] = here
                yield block

    def _places(self) -> dict[tuple[int, ...], _Chunk]:
        """Return where chunks lie; each is there once."""
        expected = math.prod(-(-length // step) for length, step in zip(self._shape, self._chunk, strict=True))
        if expected > _MAX_CHUNKS:
            raise self._layout.error(2, f"{self._what} has {expected} chunks; at most {_MAX_CHUNKS} are read")
        places: dict[tuple[int, ...], _Chunk] = {}
        for corner, chunk in self._reader.chunk_places(self._tree, len(self._chunk) + 1):
            fits = all(
                at < length and at % step == 0
                for at, length, step in zip(corner, self._shape, self._chunk, strict=True)
            )
            if not fits or corner in places:
                raise self._layout.error(3, f"{self._what} has a chunk at {quoted(corner)}, where none can be")
            places[corner] = chunk
        if len(places) != expected:
            raise self._layout.error(3, f"{self._what} has {len(places)} chunks of {expected}")
        return places

    def _fetch(self, chunk: _Chunk) -> NDArray[Any]:
        """Return a chunk, its filters undone."""
        if chunk.size > 2 * self._nbytes + 64:  # far more than what compression may add
            raise self._layout.error(3, f"{self._what} has a chunk of {chunk.size} bytes")
        data = self._reader.take(chunk.at, chunk.size, f"a chunk of {self._what}")
        for index, kind in reversed(list(enumerate(self._filters))):
            if chunk.mask >> index & 1:
                continue
            data = self._inflated(data) if kind == _DEFLATE else self._unshuffled(data)
        if len(data) != self._nbytes:
            raise self._layout.error(3, f"{self._what} has a chunk of {len(data)} bytes, not {self._nbytes}")
        return np.frombuffer(data, f"V{self._itemsize}").reshape(self._chunk)

    def _inflated(self, data: bytes) -> bytes:
        try:
            return zlib.decompressobj().decompress(data, self._nbytes + 1)
        except zlib.error as error:
            raise self._layout.error(3, f"{self._what} has a broken chunk: {error}") from None

    def _unshuffled(self, data: bytes) -> bytes:
        """Undo what puts the first bytes of all elements first, then the second ones, and so on."""
        whole = len(data) // self._itemsize * self._itemsize
        return np.frombuffer(data[:whole], np.uint8).reshape(self._itemsize, -1).T.tobytes() + data[whole:]
