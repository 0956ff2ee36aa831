"""What commands share: what must be installed, text for a terminal, and files that are whole or not there."""

import argparse
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO


class UsageError(Exception):
    """What was asked for cannot be done here; the message is one line for the user, and the exit status is 2."""


def require(extra: str, **packages: str) -> None:
    """Make sure that an extra's modules can be imported, each from a package, before time is spent on what needs it."""
    for module, package in packages.items():
        try:
            import_module(module)
        except ImportError as error:
            raise UsageError(f"{package} cannot be imported ({error}); run: pip install 'gpureg[{extra}]'") from error


def printable(text: str) -> str:
    r"""Return text out of a file or from anywhere as a terminal may be given it: control characters are escaped.

    >>> print(printable("harmless \x1b[2J\n\u202e"))
    harmless \x1b[2J\n\u202e
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def write(text: str) -> None:
    """Write text to standard output; what it cannot encode is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def complain(command: str, error: Exception) -> int:
    """Say on one line of standard error what is wrong, and return the exit status."""
    sys.stderr.write(f"gpureg {command}: {printable('; '.join(str(error).splitlines()))}\n")
    return 2


def positive(given: str) -> int:
    """Return an option's number of things, at least one."""
    try:
        number = int(given)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, not {given!r}")
    return number


def check_writable(path: Path) -> None:
    """Refuse a path that no file can be written to, before the work whose result goes there."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected the name of a file")
    if _is_special(path):
        return
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written: the folder {folder} is read-only")


def _is_special(path: Path) -> bool:
    """Return whether a path leads to a device or a pipe, as /dev/stdout may: it is written to, and not replaced.

    To be asked of the path as it is given: what a link to a pipe resolves to is no name that could be opened.
    """
    return path.exists() and not path.is_file()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes `path`'s place once it is whole; if anything fails, or on Ctrl-C, nothing has changed."""
    if _is_special(path):
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
