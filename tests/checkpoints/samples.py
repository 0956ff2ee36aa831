"""Small checkpoints of every format as bytes, and what makes broken ones: headers and pickles written by hand."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from gpureg import checkpoints

Array = NDArray[Any]

W = np.array([[1.0, -2.0, 0.5], [-3.0, 4.0, 0.0]], np.float32)


def read(path: Path, data: bytes) -> list[checkpoints.Entry]:
    """Write a file and read it."""
    path.write_bytes(data)
    return checkpoints.read(path)


def elements(entry: checkpoints.Entry, size: int = 5) -> Array:
    """Return the elements of an entry, put together from its pieces."""
    pieces = list(entry.pieces(size))
    assert all(piece.shape == (size,) for piece in pieces[:-1])
    assert all(0 < piece.size <= size for piece in pieces)
    return np.concatenate(pieces) if pieces else np.empty(0)


# safetensors


def header(fields: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file of a header, as a dictionary or as it stands, and data."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str, shape: Sequence[Any], start: int, stop: int) -> dict[str, Any]:
    """Return what a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


SAFETENSORS = header(
    {
        "__metadata__": {"format": "pt", "note": 'braces } and "quotes"'},
        "b.weight": tensor("F32", [2, 3], 4, 28),
        "a": tensor("BF16", [2], 0, 4),
        "steps": tensor("I64", [], 28, 36),
        "empty": tensor("F16", [0, 7], 36, 36),
    },
    b"\x80\x3f\x00\xc0" + W.tobytes() + struct.pack("<q", -1),
)


# NumPy


def npy(array: Array) -> bytes:
    """Return what NumPy saves of an array."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(compressed: bool, **arrays: Array) -> bytes:
    """Return what NumPy saves of arrays by name."""
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)  # type: ignore[arg-type] # allow_pickle
    return stream.getvalue()


def archive(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


# PyTorch. Its pickles are put together by hand: what is to be refused must not be made by running it.


class Global(NamedTuple):
    """A class or function by module and name."""

    module: str
    name: str


class Call(NamedTuple):
    """A function, called."""

    function: Any
    arguments: tuple[Any, ...]


class Persistent(NamedTuple):
    """What lies outside the pickle."""

    id: Any


class Raw(NamedTuple):
    """Opcodes as they stand."""

    opcodes: bytes


def opcodes(value: Any) -> bytes:
    """Return what pushes a value, in protocol 2."""
    match value:
        case Raw():
            return value.opcodes
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return opcodes(value.function) + opcodes(tuple(value.arguments)) + b"R"
        case Persistent():
            return opcodes(value.id) + b"Q"
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(key) + opcodes(item) for key, item in value.items()) + b"u"
    raise TypeError(type(value))


def pickled(value: Any) -> bytes:
    """Return a pickle of a value."""
    return b"\x80\x02" + opcodes(value) + b"."


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED = Global("collections", "OrderedDict")


def storage(key: str, numel: int, kind: str = "FloatStorage") -> Persistent:
    """Return a storage of the zip format."""
    return Persistent(("storage", Global("torch", kind), key, "cpu", numel))


def view(of: Any, offset: int, shape: Sequence[int], strides: Sequence[int], *more: Any) -> Call:
    """Return a tensor that is a view of a storage."""
    return Call(REBUILD, (of, offset, tuple(shape), tuple(strides), False, Call(ORDERED, ()), *more))


def torch_zip(value: Any, storages: Mapping[str, bytes], **members: bytes) -> bytes:
    """Return a checkpoint in the zip format; `value` may be a pickle as it stands."""
    pickle = value if isinstance(value, bytes) else pickled(value)
    files = {"data.pkl": pickle, "byteorder": b"little", **{f"data/{key}": data for key, data in storages.items()}}
    return archive({f"archive/{name}": data for name, data in (files | members).items()})


def torch_old(value: Any, storages: Mapping[str, Array], keys: Any = None) -> bytes:
    """Return a checkpoint in the format before the zip format."""
    head = [pickled(0x1950A86A20F9469CFC6C), pickled(1001), pickled({"little_endian": True}), pickled(value)]
    listed = pickled(list(storages) if keys is None else keys)
    return b"".join(head) + listed + b"".join(struct.pack("<q", s.size) + s.tobytes() for s in storages.values())


STATE = {
    "model": Call(ORDERED, (),),
    "weights": {"w": view(storage("0", 6), 0, (2, 3), (3, 1)), "last": view(storage("0", 6), 2, (2,), (3,))},
    "steps": view(storage("1", 1, "LongStorage"), 0, (), ()),
    "epoch": 3,
    "rates": [0.1, None, (True, "text")],
}  # fmt: skip
TORCH = torch_zip(STATE, {"0": W.tobytes(), "1": struct.pack("<q", 7)})
OLD_STATE = {
    "w": view(Persistent(("storage", Global("torch", "FloatStorage"), "7", "cpu", 6, None)), 0, (2, 3), (3, 1))
}
TORCH_OLD = torch_old(OLD_STATE, {"7": W})


# Keras


def hdf5(chunked: bool = False) -> bytes:
    """Return weights as Keras writes them, by the library that it writes them with."""
    stream = io.BytesIO()
    how: dict[str, Any] = {"chunks": (1, 2), "compression": "gzip", "shuffle": True} if chunked else {}
    with h5py.File(stream, "w") as file:
        variables = file.create_group("layers/dense/vars")
        variables.attrs["name"] = "hidden"
        variables.create_dataset("0", data=W, **how)
        variables["1"] = np.arange(3, dtype=np.float16)
        half = variables.create_dataset("2", data=np.array([0x3F80, 0xC000], np.uint16).view("V2"))
        half.attrs["dtype"] = "bfloat16"
        file.create_group("optimizer/vars")["0"] = np.int64(5)
    return stream.getvalue()


HDF5 = hdf5()
KERAS = archive({"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": HDF5})

SAMPLES: dict[str, bytes] = {
    "a.safetensors": SAFETENSORS,
    "a.npy": npy(W),
    "stored.npz": npz(False, w=W, i=np.arange(3)),
    "compressed.npz": npz(True, w=W, f=np.asfortranarray(W.astype(np.float64))),
    "a.pt": TORCH,
    "old.pt": TORCH_OLD,
    "a.weights.h5": HDF5,
    "chunked.weights.h5": hdf5(chunked=True),
    "a.keras": KERAS,
}
"""A file of each kind."""
