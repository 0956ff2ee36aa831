"""The bytes of a file, mapped: every look at them is checked, and every complaint names the file and the byte."""

import mmap
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class CheckpointError(ValueError):
    """A file that is no checkpoint, or a broken one: one line names the file, and the byte or the tensor.

    Examples
    --------
    >>> from gpureg import checkpoints
    >>> checkpoints.read("missing.safetensors")
    Traceback (most recent call last):
    gpureg.checkpoints.files.CheckpointError: missing.safetensors cannot be read: No such file or directory
    """


def shown(path: Path) -> str:
    """Return a path as errors show it, always on one line."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def quoted(name: object) -> str:
    """Return a name or other small thing out of a file as errors show it: short, and no control characters."""
    try:
        text = repr(name)
    except RecursionError:
        return "something nested too deep to show"
    return text if len(text) <= 200 else f"{text[:200]}..."


def mode(path: Path) -> int:
    """Return what kind of file a path leads to, as `stat` has it, following links."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError) as error:  # a ValueError for a path with a zero in it
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the error of a file that the system does not give."""
    return CheckpointError(f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}")


class Window:
    """Consecutive bytes of a mapped file. Positions count from the first of them; errors tell those in the file."""

    __slots__ = ("data", "path", "size", "start")

    def __init__(self, path: Path, data: Bytes, start: int = 0) -> None:
        self.path, self.data, self.start, self.size = path, data, start, data.size

    def error(self, at: int, what: str) -> CheckpointError:
        """Return the error of a byte of the file."""
        return CheckpointError(f"{shown(self.path)}, byte {self.start + at}: {what}")

    def check(self, at: int, size: int, what: str) -> None:
        """Refuse a range that does not lie within the window."""
        if not 0 <= at <= self.size or not 0 <= size <= self.size - at:
            left = max(self.size - max(at, 0), 0)
            what = f"{what} needs {size} bytes from here on, and {left} are left: it is cut off, or a size is wrong"
            raise self.error(min(max(at, 0), self.size), what)

    def take(self, at: int, size: int, what: str) -> bytes:
        """Return a few bytes."""
        self.check(at, size, what)
        return self.data[at : at + size].tobytes()

    def integer(self, at: int, size: int, what: str) -> int:
        """Return an unsigned little-endian integer."""
        return int.from_bytes(self.take(at, size, what), "little")

    def window(self, at: int, size: int, what: str) -> "Window":
        """Return a part of the window."""
        self.check(at, size, what)
        return Window(self.path, self.data[at : at + size], self.start + at)

    def elements(self, at: int, dtype: Any, count: int, what: str) -> NDArray[Any]:
        """Return elements that lie side by side, without a copy."""
        dtype = np.dtype(dtype)
        self.check(at, count * dtype.itemsize, what)
        return self.data[at : at + count * dtype.itemsize].view(dtype)


def open_file(path: Path) -> Window:
    """Map a regular file, and nothing else: opening a pipe waits, and opening a device may do anything."""
    if not stat.S_ISREG(mode(path)):
        raise CheckpointError(f"{shown(path)} cannot be read: a directory, pipe or device, not a regular file")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise CheckpointError(f"{shown(path)}, byte 0: the file is empty")
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise unreadable(path, error) from None
    return Window(path, np.frombuffer(mapped, np.uint8))
