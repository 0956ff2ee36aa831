"""What the acts of the demonstration share: what must be installed, and tables of plain text."""

from collections.abc import Sequence
from typing import Any

from gpureg.cli.common import require


def require_extra() -> None:
    """Make sure that the packages of the extra `demo` can be imported, before time is spent on what needs them."""
    require("demo", sklearn="scikit-learn", matplotlib="matplotlib", rich="rich")


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
