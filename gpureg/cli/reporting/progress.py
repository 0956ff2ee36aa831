"""How far a pass over files is, on standard error if that is a terminal."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gpureg.checkpoints import Entry
from gpureg.reporting.measuring import Look
from gpureg.reporting.tensors import Tensor


@contextmanager
def progress(entries: Sequence[Entry]) -> Iterator[Look]:
    """Show how much of the tensors was read, how fast, and how long the rest will take; yield what is shown pieces."""
    bar = _bar() if sys.stderr.isatty() else None
    if bar is None:
        yield lambda *_: None
        return
    with bar:
        task = bar.add_task("", total=sum(entry.nbytes for entry in entries if entry.floating))

        def look(tensor: Tensor, piece: Any) -> None:
            bar.advance(task, tensor.given.nbytes * piece.size / tensor.size)

        yield look


def _bar() -> Any:
    """Return a bar that is gone when all is read; None without rich, whose place nothing takes."""
    try:
        from rich.console import Console  # noqa: PLC0415 - optional
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
    except ImportError:
        return None
    columns = TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)
