"""A report as one page of HTML that needs nothing else: its table can be sorted, and its pictures are within."""

import base64
import html
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gpureg.cli.common import printable
from gpureg.cli.reporting import pictures, text
from gpureg.cli.reporting.histogram import Histogram
from gpureg.reporting import Report, Row


class _Column(NamedTuple):
    title: str
    cell: Callable[[Row], str]
    value: Callable[[Row], Any]
    """What the table is sorted by."""
    classes: str = ""
    """`minor` and `wide` columns are not shown where there is little room; `text` ones hold no numbers."""


def page(report: Report, histogram: Histogram, title: str, threshold: float) -> str:
    """Return the page. What comes from a file is text to it, whatever it is."""
    template = string.Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    columns = _columns(report, threshold)
    return template.substitute(
        title=_escaped(title),
        total="".join(f"<div><dt>{_escaped(what)}</dt><dd>{figure}</dd></div>" for what, figure in _total(report)),
        pictures="".join(
            f'<img alt="{what}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
            for what, svg in pictures.panels(report, histogram, threshold)
        ),
        head="".join(
            f'<th scope="col" class="{column.classes}"><button type="button">{_escaped(column.title)}</button></th>'
            for column in columns
        ),
        rows="\n".join(f"<tr>{''.join(_cell(column, row) for column in columns)}</tr>" for row in report),
        notes=_notes(report),
    )


def _cell(column: _Column, row: Row) -> str:
    value = column.value(row)
    shown = "" if value is None else printable(value) if isinstance(value, str) else _plain(value)
    bad = " bad" if column.title in ("NaN", "infinite") and value else ""
    cell = _escaped(column.cell(row))
    if "name" in column.classes:  # a long one is best broken after a dot
        cell = re.sub(r"([._/])", r"\1<wbr>", cell)
    return f'<td class="{column.classes}{bad}" data-value="{html.escape(shown)}">{cell}</td>'


def _plain(value: float) -> str:
    """Return a number as JavaScript reads it."""
    return repr(value).replace("inf", "Infinity").replace("nan", "NaN")


def _columns(report: Report, threshold: float) -> list[_Column]:
    columns = [
        _Column("tensor", lambda row: row.name, lambda row: row.name, "text name"),
        _Column("shape", lambda row: text.shape(row.shape), lambda row: row.size, "minor"),
        _Column("dtype", lambda row: row.dtype, lambda row: row.dtype, "text minor"),
        _Column("weights", lambda row: text.count(row.size), lambda row: row.size, "wide"),
        _Column("sum |w|", lambda row: text.number(row.sum_abs), lambda row: row.sum_abs, "minor"),
        _Column("l2_loss", lambda row: text.number(row.l2_loss), lambda row: row.l2_loss, "minor"),
        _Column("rms", lambda row: text.number(row.rms), lambda row: row.rms),
        _Column("max |w|", lambda row: text.number(row.max_abs), lambda row: row.max_abs, "wide"),
        _Column("zeros", lambda row: text.share(row.zeros, row.size), lambda row: _share(row.zeros, row.size), "wide"),
        _Column(
            f"< {threshold:g}", lambda row: text.share(row.below, row.size), lambda row: _share(row.below, row.size)
        ),
    ]
    if report.total.nan:
        columns.append(_Column("NaN", lambda row: text.count(row.nan), lambda row: row.nan))
    if report.total.inf:
        columns.append(_Column("infinite", lambda row: text.count(row.inf), lambda row: row.inf))
    if report.total.penalty is not None:
        columns.append(_Column("rule", lambda row: row.rule or text.MISSING, lambda row: row.rule, "text minor"))
        columns.append(_Column("penalty", lambda row: text.number(row.penalty), lambda row: row.penalty))
    return columns


def _share(part: int | None, whole: int) -> float | None:
    return None if part is None else part / max(whole, 1)


def _total(report: Report) -> list[tuple[str, str]]:
    total = report.total
    figures = [
        ("tensors", text.count(total.tensors)),
        ("weights", text.count(total.size)),
        ("sum |w|", text.number(total.sum_abs)),
        ("l2_loss", text.number(total.l2_loss)),
        ("root mean square", text.number(total.rms)),
        ("largest |w|", text.number(total.max_abs)),
        ("zeros", text.share(total.zeros, total.size)),
    ]
    if total.nan or total.inf:
        figures.append(("NaN, infinite", f"{total.nan:,}, {total.inf:,}"))
    if total.penalty is not None:
        figures.append(("penalty", f"{total.penalty:.9g}"))
    return figures


def _notes(report: Report) -> str:
    others = sum(row.sum_abs is None for row in report)
    left_out = f"{others} tensors are not of floats, and left out of all figures. " if others else ""
    return f"{left_out}l2_loss is half the sum of squares. Made by gpureg."


def _escaped(given: str) -> str:
    return html.escape(printable(given))
