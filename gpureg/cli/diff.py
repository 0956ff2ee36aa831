"""`gpureg diff`: what changed between two checkpoints, tensor by tensor."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpureg.checkpoints import CheckpointError
from gpureg.cli.common import UsageError, complain, printable, write
from gpureg.cli.reporting import options, text
from gpureg.cli.reporting.progress import progress
from gpureg.cli.reporting.text import Column, number, share
from gpureg.reporting import Change, Difference
from gpureg.reporting.comparing import Changes, compare
from gpureg.reporting.tensors import tensors_of

_EPILOG = """\
A and B are checkpoints, each anything that `gpureg report` reads, of one format or two. Tensors of one name and shape
are compared element by element, in float64, whatever their dtypes. Tensors that are not of floats are compared by
shape and dtype alone: if only their elements differ, as counters of steps do, that is not told.

examples:
  gpureg diff old.safetensors new.safetensors                  what changed
  gpureg diff old.pt new.pt --sort relative_l2 --top 10        the ten tensors that changed most
  gpureg diff old.pt new.pt --l2 1e-4 --exclude '*.bias'       how much this penalty moved
  gpureg diff old.pt new.safetensors --format json             for a program, numbers at full precision

In JSON, null is what there is none of, and "NaN" and "Infinity" are strings.

exit status: 0 nothing that is compared differs, 1 something does, 2 the command line is wrong, a file cannot be read or
is broken, or something is not installed, 130 interrupted, 141 whoever read the output left
"""

_FIGURES = tuple(Changes.__dataclass_fields__)
_COLUMNS = ("name", "dtype_a", "dtype_b", *_FIGURES)
_CSV = ("name", "status", "shape_a", "shape_b", "dtype_a", "dtype_b", *_FIGURES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, _EPILOG
    parser.add_argument("a", type=Path, metavar="A", help="a checkpoint")
    parser.add_argument("b", type=Path, metavar="B", help="another one")
    options.add(parser, _COLUMNS)


def run(arguments: argparse.Namespace) -> int:
    """Print what differs; return 0 if nothing does, 1 if something does, or 2 if that cannot be told."""
    try:
        options.check(arguments)
        rules = options.rules_of(arguments)
        a, b = options.without(arguments.exclude, options.read([arguments.a]), options.read([arguments.b]))
        with options.said_by_rules(), progress([*a, *b]) as look:
            difference = compare(tensors_of(a, "A"), tensors_of(b, "B"), rules, look)
    except (CheckpointError, UsageError) as error:
        return complain("diff", error)
    write(_text(difference, arguments))
    return 0 if difference.same else 1


def _text(difference: Difference, arguments: argparse.Namespace) -> str:
    if arguments.format in ("json", "csv"):
        chosen = options.chosen(difference, arguments.sort, arguments.top)
        content = difference.to_dict() | {"tensors": [change.to_dict() for change in chosen]}
        return text.as_json(content) if arguments.format == "json" else _csv(chosen, content)
    changed = [change for change in difference if not change.same]
    rows = options.chosen(changed, arguments.sort, arguments.top)
    columns = _columns(difference)
    drawn = ""
    if rows:
        drawn = (text.table if arguments.format == "table" else text.markdown)(columns, rows, difference.total)
    return "\n".join(filter(None, (_names(difference, arguments.format), drawn, _notes(difference, changed, rows))))


def _csv(changes: Sequence[Change], content: dict[str, Any]) -> str:
    rows = [
        change.to_dict()
        | {"status": "same" if change.same else "changed", "shape_a": change.shape, "shape_b": change.shape}
        for change in changes
    ]
    rows += [each | {"status": "reshaped"} for each in content["reshaped"]]
    for status in ("added", "removed", "not_compared"):
        rows += [{"name": name, "status": status.replace("_", " ")} for name in content[status]]
    return text.as_csv(_CSV, rows)


def _names(difference: Difference, form: str) -> str:
    """Return a line for each tensor that one of the two lacks, or that has another shape."""
    lines = [("removed", name, "") for name in difference.removed]
    lines += [("added", name, "") for name in difference.added]
    for each in difference.reshaped:
        before, after = ((text.shape(each.shape_a), each.dtype_a), (text.shape(each.shape_b), each.dtype_b))
        lines.append(("reshaped", each.name, f" {' '.join(before)} -> {' '.join(after)}"))
    if form == "markdown":
        return "".join(f"- {what} {text.code(name)}{rest}\n" for what, name, rest in lines)
    return "".join(f"{what} {printable(name)}{rest}\n" for what, name, rest in lines)


def _notes(difference: Difference, changed: Sequence[Change], rows: Sequence[Change]) -> str:
    notes = []
    if len(rows) < len(changed):
        notes.append(f"{len(changed) - len(rows)} more tensors changed")
    if same := len(difference) - len(changed):
        notes.append(f"{same} tensors are the same")
    if difference.not_compared:
        notes.append(f"{len(difference.not_compared)} not of floats, compared by shape and dtype alone")
    return "; ".join(notes) + "\n" if notes else ""


def _columns(difference: Difference) -> list[Column]:
    columns = [
        Column("tensor", lambda row: getattr(row, "name", "total"), left=True),
        Column("shape", lambda row: text.shape(row.shape) if hasattr(row, "shape") else "", 7, left=True),
        Column("dtype", _dtypes, 8, left=True),
        Column("changed", lambda row: share(row.changed, row.size), 4),
        Column("L1", lambda row: number(row.l1), 6),
        Column("rel. L1", lambda row: number(row.relative_l1), 5),
        Column("L2", lambda row: number(row.l2), 3),
        Column("rel. L2", lambda row: number(row.relative_l2)),
        Column("largest", lambda row: number(row.largest), 2),
    ]
    if difference.total.penalty_change is not None:
        columns.append(Column("penalty", lambda row: number(row.penalty_b), 1))
        columns.append(Column("moved by", lambda row: _signed(row.penalty_change)))
    return columns


def _dtypes(row: Any) -> str:
    if not isinstance(row, Change):
        return ""
    return row.dtype_a if row.dtype_a == row.dtype_b else f"{row.dtype_a} -> {row.dtype_b}"


def _signed(value: float | None) -> str:
    return text.MISSING if value is None else f"{value:+.4g}"
