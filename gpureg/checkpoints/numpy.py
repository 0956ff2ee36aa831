"""NumPy's files: .npy, one array, and .npz, a zip archive of such."""

import io
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gpureg.checkpoints.archives import Member
from gpureg.checkpoints.entries import Elements, Entries, Entry, Mapped, Streamed
from gpureg.checkpoints.files import Window, quoted

MAGIC = b"\x93NUMPY"

_MAX_HEADER = 10_000
"""Bytes of a header: as much as NumPy takes where it is not told to trust the file."""


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    end: int


def read_npy(window: Window) -> list[Entry]:
    """Read a .npy file, whose array is named as the file."""
    entries = Entries(window)
    _add_stored(entries, window.path.stem, window)
    return entries.found


def read_npz(window: Window, members: dict[str, Member]) -> list[Entry]:
    """Read the .npy members of an archive, named without their suffix, as `np.load` names them; no other members."""
    entries = Entries(window)
    arrays = [member for name, member in members.items() if name.endswith(".npy")]
    if not arrays:
        raise window.error(0, "an archive that holds no array of NumPy's, no PyTorch checkpoint and no Keras model")
    for member in arrays:
        name = member.name.removesuffix(".npy")
        if member.deflated:
            _add_compressed(entries, name, member)
        else:
            _add_stored(entries, name, member.packed)
    return entries.found


def _add_stored(entries: Entries, name: str, window: Window) -> None:
    header = _header(window, name, window.take(0, min(window.size, _MAX_HEADER), "the header"))
    nbytes = _nbytes(entries, name, header, window, window.size)

    def elements() -> Elements:
        flat = window.elements(header.end, header.dtype, math.prod(header.shape), "the array")
        return Mapped(header.dtype.name, flat.reshape(header.shape, order="F" if header.fortran else "C"))

    start = window.start
    entries.add(start, name, header.shape, header.dtype.name, nbytes, start + header.end, elements)


def _add_compressed(entries: Entries, name: str, member: Member) -> None:
    start = b""
    for block in member.blocks():
        start += block
        if len(start) >= _MAX_HEADER:
            break
    header = _header(member.packed, name, start[:_MAX_HEADER])
    nbytes = _nbytes(entries, name, header, member.packed, member.size)

    def blocks() -> Iterator[memoryview]:
        skipped = header.end
        for block in member.blocks():
            yield memoryview(block)[skipped:]
            skipped -= min(skipped, len(block))

    def elements() -> Elements:
        axes = range(len(header.shape))
        order = tuple(reversed(axes) if header.fortran else axes)
        return Streamed(header.dtype.name, header.dtype, math.prod(header.shape), order, blocks)

    start_in_file = member.packed.start
    entries.add(start_in_file, name, header.shape, header.dtype.name, nbytes, start_in_file, elements)


def _header(window: Window, name: str, text: bytes) -> _Header:
    """Return what the header says that `text`, the beginning of an array's bytes, holds; NumPy itself reads it."""
    what = f"array {quoted(name)}"
    if not text.startswith(MAGIC):
        raise window.error(0, f"{what} should begin here, as NumPy's arrays do")
    version = tuple(text[6:8])
    # 3.0 differs from 2.0 in how the names of fields are written, and arrays with fields are listed only.
    parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    parse[3, 0] = parse[2, 0]
    if version not in parse:
        raise window.error(6, f"{what} is of the unknown version {version}")
    stream = io.BytesIO(text)
    stream.seek(8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what only Python 2 wrote, which is understood, and of odd literals
            shape, fortran, dtype = parse[version](stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # what is no literal, or no dtype, fails in many ways
        raise window.error(8, f"{what} has a header that NumPy does not understand: {quoted(str(error))}") from None
    if dtype.hasobject:
        raise window.error(8, f"{what} holds Python objects, which are pickled: they are never loaded")
    if dtype.type.__module__ != "numpy":  # an extension's, which any program may have entered by its name
        raise window.error(8, f"{what} has the unknown dtype {dtype}")
    return _Header(tuple(map(int, shape)), fortran, dtype, stream.tell())


def _nbytes(entries: Entries, name: str, header: _Header, window: Window, size: int) -> int:
    """Return the bytes of an array; of all `size` there are, the header and these must be all."""
    at = window.start
    nbytes = entries.nbytes(at, name, header.shape, 8 * header.dtype.itemsize)
    if size != header.end + nbytes:
        needs = f"{header.dtype.name} {quoted(header.shape)} needs {nbytes} bytes"
        left = size - header.end
        raise window.error(min(header.end, window.size), f"array {quoted(name)}, {needs}; {left} follow its header")
    return nbytes
