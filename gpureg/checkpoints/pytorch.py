"""PyTorch checkpoints: .pt, .pth, .bin, in the zip format of today and in the older one, both mapped.

A checkpoint is a pickle that names storages, and the storages: members of the archive, or one after another behind the
pickle. It is read without PyTorch, and nothing of it is run; see `gpureg.checkpoints.pickles`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpureg.checkpoints.archives import Member
from gpureg.checkpoints.entries import Elements, Entries, Entry, Mapped, stored_dtype
from gpureg.checkpoints.files import Window, quoted
from gpureg.checkpoints.pickles import MAX_OBJECTS, Machine, Storage, Tensor

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_MAX_DEPTH = 64
_MAX_REPEATED = 2**32
"""Elements of a tensor that repeats those of a smaller storage: what takes minutes to go through, not years."""


def read_zip(window: Window, members: dict[str, Member]) -> list[Entry]:
    """Read the zip format, of version 1.6 and later."""
    folders = {name.partition("/")[0] for name in members}
    if len(folders) != 1:
        raise window.error(0, "an archive of PyTorch has one folder at its top")
    (folder,) = folders
    if f"{folder}/constants.pkl" in members:
        raise members[f"{folder}/constants.pkl"].error(
            "makes this a program (TorchScript); save its state_dict() instead"
        )
    if f"{folder}/data.pkl" not in members:
        raise window.error(0, f"the archive has no {quoted(f'{folder}/data.pkl')}")
    order = members.get(f"{folder}/byteorder")
    byte_order = "little" if order is None else order.stored().data[:8].tobytes().decode("latin-1")
    if byte_order not in ("little", "big"):
        raise members[f"{folder}/byteorder"].error(f"says {quoted(byte_order)}, neither little nor big")
    machine = Machine(members[f"{folder}/data.pkl"].stored())
    value = machine.load()

    def storage(wanted: Storage) -> Window:
        name = f"{folder}/data/{wanted.key}"
        if name not in members:
            raise machine.error(f"storage {quoted(wanted.key)} is not in the archive")
        found = members[name].stored()
        if found.size != wanted.nbytes:
            raise found.error(
                0, f"storage {quoted(wanted.key)} has {found.size} bytes, not the {wanted.nbytes} expected"
            )
        return found

    return _entries(window, machine, value, storage, "<" if byte_order == "little" else ">")


def read_old(window: Window) -> list[Entry]:
    """Read the format before version 1.6: pickles, and after them the storages, each after its number of elements."""
    at = 0
    values = []
    for _ in range(5):
        machine = Machine(window, at)
        values.append(machine.load())
        at = machine.end
        if values[0] != _MAGIC:
            raise window.error(0, "a pickle, but none that torch.save has written")
        if len(values) == 4:
            rebuilding = machine
    _, version, _, value, keys = values
    if version != _VERSION:
        raise window.error(0, f"the unknown version {quoted(version)} of PyTorch's older format")
    if (
        type(keys) is not list
        or not all(type(key) is str for key in keys)
        or sorted(keys) != sorted(rebuilding.storages)
    ):
        raise machine.error("the list of storages is not of those that tensors use")
    places: dict[str, Window] = {}
    for key in keys:
        wanted = rebuilding.storages[key]
        numel = window.integer(at, 8, f"the size of storage {quoted(key)}")
        if numel != wanted.numel:
            raise window.error(at, f"storage {quoted(key)} has {numel} elements, not the {wanted.numel} expected")
        places[key] = window.window(at + 8, wanted.nbytes, f"storage {quoted(key)}")
        at += 8 + wanted.nbytes
    if at != window.size:
        raise window.error(at, f"{window.size - at} bytes follow the last storage")
    return _entries(window, rebuilding, value, lambda wanted: places[wanted.key], "<")


def _entries(
    window: Window, machine: Machine, value: Any, locate: Callable[[Storage], Window], byte_order: str
) -> list[Entry]:
    entries = Entries(window)
    for path, tensor in _Tensors(machine).under("", value):
        at, name = machine.window.start - window.start + tensor.at, path or window.path.stem
        nbytes = sum(_nbytes(entries, at, name, part) for part in tensor.parts or [tensor])
        if tensor.storage is None:
            entries.add(at, name, tensor.shape, tensor.dtype.name, nbytes, at, None)
            continue
        data = locate(tensor.storage)
        itemsize = tensor.dtype.bits // 8
        what = f"tensor {quoted(name)}, {tensor.dtype.name} {quoted(tensor.shape)}"
        _check_extent(machine, tensor, data.size // itemsize, what)
        offset = data.start - window.start + tensor.offset * itemsize
        entries.add(at, name, tensor.shape, tensor.dtype.name, nbytes, offset, _elements(data, tensor, byte_order))
    return entries.found


def _nbytes(entries: Entries, at: int, name: str, tensor: Tensor) -> int:
    return entries.nbytes(at, name, tensor.shape, tensor.dtype.bits)


def _check_extent(machine: Machine, tensor: Tensor, available: int, what: str) -> None:
    """Refuse a tensor that reaches beyond its storage, or repeats it so often that no one would see the end."""
    size = math.prod(tensor.shape)
    steps = (step * (length - 1) for step, length in zip(tensor.strides, tensor.shape, strict=True))
    end = tensor.offset + (sum(steps) + 1 if size else 0)
    if end > available:
        raise machine.window.error(tensor.at, f"{what}, needs {end} elements of a storage of {available}")
    if size > max(available, _MAX_REPEATED):
        raise machine.window.error(tensor.at, f"{what}, repeats a storage of {available} elements")


def _elements(data: Window, tensor: Tensor, byte_order: str) -> Callable[[], Elements]:
    def elements() -> Elements:
        stored = stored_dtype(tensor.dtype.name, byte_order)
        if 0 in tensor.shape:
            return Mapped(tensor.dtype.name, np.empty(tensor.shape, stored))
        # The stride of an axis of length 1 is never used, and may be anything.
        pairs = zip(tensor.strides, tensor.shape, strict=True)
        strides = [0 if length == 1 else step * stored.itemsize for step, length in pairs]
        offset = tensor.offset * stored.itemsize
        return Mapped(tensor.dtype.name, np.ndarray(tensor.shape, stored, data.data, offset, strides))

    return elements


class _Tensors:
    """The tensors in what a pickle makes, by name: mappings and lists in one another, their keys joined by slashes."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._visits = machine, 0

    def under(self, name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a value of that name."""
        if depth > _MAX_DEPTH:
            raise self._machine.error(f"{quoted(name)} is part of itself, or nested beyond what is read")
        if type(value) is Tensor:
            yield name, value
        elif type(value) in (dict, list, tuple):
            for key, item in value.items() if type(value) is dict else enumerate(value):
                self._visits += 1
                if self._visits > MAX_OBJECTS:
                    raise self._machine.error(f"what holds the tensors has more than {MAX_OBJECTS} parts")
                part = str(key) if type(key) in (str, int, float, bool) else quoted(key)
                yield from self.under(f"{name}/{part}" if name else part, item, depth + 1)
