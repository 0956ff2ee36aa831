"""What the acts of the demonstration share: tables of plain text, and files that are whole or not there."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any


class UsageError(Exception):
    """What was asked for cannot be done here; the message is one line for the user, and the exit status is 2."""


def require_extra() -> None:
    """Make sure that the packages of the extra `demo` can be imported, before time is spent on what needs them."""
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("rich", "rich")):
        try:
            import_module(module)
        except ImportError as error:
            raise UsageError(f"{package} cannot be imported ({error}); run: pip install 'gpureg[demo]'") from error


def to_host(array: Any) -> Any:
    """Return a CuPy array as a NumPy array, and a NumPy array or scalar as it is."""
    return array.get() if hasattr(array, "get") else array


def strength_text(strength: float) -> str:
    """Write a strength as people do.

    >>> [strength_text(strength) for strength in (0.0, 1e-5, 0.001, 1.0)]
    ['0', '1e-5', '0.001', '1']
    """
    return f"{strength:g}".replace("e-0", "e-")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay out a table: the first `left` columns to the left, as names are, the others to the right, as numbers are.

    >>> print(table(["what", "ms"], [["a pass", "7.5"], ["another", "12.0"]]))
    what       ms
    -------------
    a pass    7.5
    another  12.0
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{'<' if i < left else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in (header, *rows)
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def check_writable(path: Path) -> None:
    """Refuse a path that no file can be written to, before the work whose result goes there."""
    folder = path.resolve().parent
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected the name of a file")
    if not folder.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written: the folder {folder} is read-only")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes `path`'s place once it is whole; if anything fails, or on Ctrl-C, nothing has changed."""
    path = path.resolve()
    if path.exists() and not path.is_file():  # /dev/stdout or a pipe: nothing to replace
        with path.open("wb") as file:
            yield file
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
