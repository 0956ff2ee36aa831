"""Rows as text: a table for people, Markdown, CSV and JSON."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from gpureg.cli.common import printable

MISSING = "-"


class Column(NamedTuple):
    """One column of a table for people."""

    title: str
    cell: Callable[[Any], str]
    rank: int = 0
    """The higher, the sooner it is left out where there is too little room; 0 never is."""
    left: bool = False
    style: str = ""


def number(value: float | None) -> str:
    """Return a number as people read it.

    >>> [number(value) for value in (None, 1234.5678, 1.5e-7, math.inf)]
    ['-', '1235', '1.5e-07', 'inf']
    """
    return MISSING if value is None else f"{value:.4g}"


def count(value: int | None) -> str:
    """Return a number of elements.

    >>> count(1234567)
    '1,234,567'
    """
    return MISSING if value is None else f"{value:,}"


def share(part: int | None, whole: int) -> str:
    """Return a share of elements, which is 0% and 100% only if it is none and all.

    >>> [share(part, 10**6) for part in (None, 0, 1, 123456, 999999, 10**6)]
    ['-', '0%', '<0.01%', '12.35%', '>99.99%', '100%']
    """
    if part is None:
        return MISSING
    if part in (0, whole):
        return "100%" if part else "0%"
    text = f"{part / whole:.2%}"
    return {"0.00%": "<0.01%", "100.00%": ">99.99%"}.get(text, text)


def shape(axes: Sequence[int]) -> str:
    """Return the shape of a tensor.

    >>> shape((384, 1536)), shape(())
    ('384x1536', 'scalar')
    """
    return "x".join(map(str, axes)) or "scalar"


def table(columns: Sequence[Column], rows: Sequence[Any], total: Any = None) -> str:
    """Return a table with a line for each row, and a last one for the total; on a terminal, as wide as that is."""
    from rich import box  # noqa: PLC0415 - optional
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = sys.stdout.isatty()
    lines = [*rows, *([] if total is None else [total])]
    cells = [[printable(column.cell(line)) for line in lines] for column in columns]
    widths = [
        max(Text(text).cell_len for text in (column.title, *each)) for column, each in zip(columns, cells, strict=True)
    ]
    room = Console(file=sys.stdout).width if terminal else 2 * sum(widths) + 100
    kept = _fitting(columns, widths, room)
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    drawn = Table(box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in (columns[i] for i in kept):
        drawn.add_column(
            Text(column.title),
            justify="left" if column.left else "right",
            overflow="fold",
            no_wrap=not column.left,
            style=column.style,
        )
    for index in range(len(lines)):
        if total is not None and index == len(rows):
            drawn.add_section()
        drawn.add_row(*(Text(cells[i][index]) for i in kept), style="bold" if index == len(rows) else "")
    page = io.StringIO()
    Console(file=page, width=room, force_terminal=terminal, highlight=False).print(drawn)
    left_out = [column.title for i, column in enumerate(columns) if i not in kept]
    note = f"A wider terminal has room for: {', '.join(left_out)}\n" if left_out else ""
    return re.sub(r" +$", "", page.getvalue(), flags=re.MULTILINE).strip("\n") + "\n" + note


def _fitting(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """Return which columns there is room for, two spaces apart; names, the first one, may be folded to half of them."""
    kept = list(range(len(columns)))
    widths = [min(widths[0], max(room // 3, 20)), *widths[1:]]
    while sum(widths[i] + 2 for i in kept) > room and any(columns[i].rank for i in kept):
        kept.remove(max(kept, key=lambda i: columns[i].rank))
    return kept


def markdown(columns: Sequence[Column], rows: Sequence[Any], total: Any = None) -> str:
    """Return a table in Markdown; names are code."""
    lines = [
        "| " + " | ".join(column.title.replace("|", r"\|") for column in columns) + " |",
        "| " + " | ".join("---" if column.left else "---:" for column in columns) + " |",
    ]
    lines += ["| " + " | ".join(_code(column, row) for column in columns) + " |" for row in rows]
    if total is not None:
        cells = (_plain(column.cell(total)) for column in columns)
        lines.append("| " + " | ".join(f"**{cell}**" if cell else "" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _code(column: Column, row: Any) -> str:
    text = column.cell(row)
    return code(text) if column.left and text != MISSING else _plain(text)


def code(text: str) -> str:
    r"""Return text as code in a cell of a table in Markdown, whatever is in it.

    >>> print(code("layers.0"), code("a|b`c"))
    `layers.0` ``a\|b`c``
    """
    text = printable(text).replace("|", r"\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", printable(text))


def as_csv(names: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as CSV, numbers at full precision, what is missing empty."""
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_csv_cell(row.get(name)) for name in names])
    return page.getvalue()


def _csv_cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return shape(value)
    return printable(value) if isinstance(value, str) else "" if value is None else repr(value)


def as_json(content: dict[str, Any]) -> str:
    """Return JSON with numbers at full precision; NaN and infinities, which it lacks, as "NaN", "Infinity"."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_finite, value))
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
