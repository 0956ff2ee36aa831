"""The pass over all tensors: pieces of bounded size, small tensors together, each byte read once."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gpureg.reporting.tensors import Tensor
from gpureg.statistics import Statistics, join

if TYPE_CHECKING:
    from gpureg.backends import Backend

PIECE = 2**23
"""Elements that a backend is given at a time, of one tensor or of several small ones: whole tiles of every dtype."""

READ = 2**21
"""Elements at a time of tensors whose pieces are not mapped but new arrays: so few that they take little memory."""

Look = Callable[[Tensor, Any], object]
"""What is shown each piece, while it is there."""


def measure(tensors: Sequence[Tensor], threshold: float, look: Look | None = None) -> list[Statistics | None]:
    """Return the statistics of each tensor; None for one that is not of floats."""
    found: list[list[Statistics]] = [[] for _ in tensors]
    batch: list[tuple[int, Any]] = []
    computing: Backend | None = None
    room = PIECE

    def flush() -> None:
        if computing is not None and batch:
            every = computing.statistics([piece for _, piece in batch], threshold)
            for (index, piece), statistics in zip(batch, every, strict=True):
                found[index].append(statistics)
                if look is not None:
                    look(tensors[index], piece)
            batch.clear()

    for index, tensor in enumerate(tensors):
        if not tensor.floating:
            continue
        size = READ if tensor.takes_memory() else PIECE
        for backend, piece in tensor.parts(size):
            needed = piece.size * (PIECE // size)
            if backend is not computing or needed > room:
                flush()
                computing, room = backend, PIECE
            batch.append((index, piece))
            room -= needed
    flush()
    return [_joined(parts) if tensor.floating else None for tensor, parts in zip(tensors, found, strict=True)]


def _joined(parts: Sequence[Statistics]) -> Statistics:
    return parts[0] if len(parts) == 1 else join(parts)
