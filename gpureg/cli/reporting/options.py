"""Options of both commands: which penalty, which tensors, in which order and form; and what they mean."""

import argparse
import fnmatch
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gpureg import L1L2, HalvedL2, Regularizer, Rules, backends, checkpoints
from gpureg.checkpoints import Entry
from gpureg.checkpoints.files import quoted, shown
from gpureg.cli.common import UsageError, positive, require

FORMATS = ("table", "json", "csv", "markdown")

Rows = TypeVar("Rows")


def add(parser: argparse.ArgumentParser, columns: Iterable[str]) -> tuple[Any, Any]:
    """Add the options that both commands have, and return the groups of those about tensors and about the output.

    Rows can be sorted by `columns`.
    """
    penalty = parser.add_argument_group("penalty")
    penalty.add_argument("--l1", type=number, metavar="X", help="penalise X * sum|w| of every tensor")
    penalty.add_argument("--l2", type=number, metavar="X", help="penalise X * sum w*w of every tensor")
    penalty.add_argument(
        "--halved", action="store_true", help="halve the L2 term, as tf.nn.l2_loss and weight decay do"
    )
    penalty.add_argument("--rules", type=Path, metavar="FILE", help="rules in TOML or JSON, instead of --l1 and --l2")
    rows = parser.add_argument_group("tensors")
    rows.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave tensors out whose whole name matches the shell pattern; may be given again",
    )
    rows.add_argument(
        "--sort", choices=tuple(columns), metavar="COLUMN", help="the largest first, names from a to z: %(choices)s"
    )
    rows.add_argument("--top", type=positive, metavar="N", help="show only the first N rows; totals are of all")
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=FORMATS, default="table", help="what is printed (default: table)")
    return rows, output


def number(given: str) -> float:
    """Return an option's number, a strength or a magnitude to compare with."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number that is not negative, not {given!r}")
    return value


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be shown here, before time is spent."""
    if arguments.format == "table":
        require("cli", rich="rich")
    try:
        backends.cpu()
    except (RuntimeError, ValueError) as error:  # of what the environment asks for
        raise UsageError(str(error)) from error


def rules_of(arguments: argparse.Namespace) -> Rules | Regularizer | None:
    """Return the rules that the options mean, or None where they mean no penalty."""
    l1, l2 = arguments.l1, arguments.l2
    if arguments.rules is not None:
        if (l1, l2) != (None, None) or arguments.halved:
            raise UsageError("--rules says all of the penalty; --l1, --l2 and --halved cannot be given with it")
        try:
            return Rules.from_file(arguments.rules)
        except RecursionError:
            raise UsageError(f"{arguments.rules}: brackets are nested too deeply to be read") from None
        except (OSError, TypeError, ValueError) as error:
            raise UsageError(str(error)) from error
    if arguments.halved and l2 is None:
        raise UsageError("--halved halves the L2 term, and needs --l2")
    if (l1, l2) == (None, None):
        return None
    if arguments.halved and l1 is None:
        return HalvedL2(l2)
    return L1L2(l1 or 0.0, (l2 or 0.0) / (2 if arguments.halved else 1))


@contextmanager
def said_by_rules() -> Iterator[None]:
    """Have what rules complain about said on the command line: what matches nothing, what they contradict."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def read(paths: Sequence[Path]) -> list[Entry]:
    """Return the tensors of files that are parts of one checkpoint."""
    found: dict[str, Entry] = {}
    for path in paths:
        for entry in checkpoints.read(path):
            if entry.name in found:
                other = shown(found[entry.name].source.path)
                raise UsageError(f"tensor {quoted(entry.name)} is in {other} and in {shown(path)}; report them apart")
            found[entry.name] = entry
    return list(found.values())


def without(excluded: Sequence[str], *checkpoints: list[Entry]) -> list[list[Entry]]:
    """Return the tensors whose names match none of the patterns; each must match one of them at least."""
    for pattern in excluded:
        if not any(fnmatch.fnmatchcase(entry.name, pattern) for entries in checkpoints for entry in entries):
            raise UsageError(f"--exclude {quoted(pattern)} matches no tensor")
    return [
        [entry for entry in entries if not any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in excluded)]
        for entries in checkpoints
    ]


def chosen(rows: Sequence[Rows], sort: str | None, top: int | None) -> list[Rows]:
    """Return the first rows in an order: numbers from the largest, NaN before all, what is missing at the end."""
    ordered = list(rows)
    if sort is not None:
        ordered.sort(key=lambda row: _rank(getattr(row, sort)))
    return ordered[:top]


def _rank(value: Any) -> tuple[int, Any]:
    if value is None:
        return 2, 0
    if isinstance(value, str):
        return 1, value
    return (0, 0) if math.isnan(value) else (1, -value)
