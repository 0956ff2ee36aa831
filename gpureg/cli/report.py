"""`gpureg report`: the norms, zeros and penalties of a checkpoint, tensor by tensor."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpureg.checkpoints import CheckpointError, Entry
from gpureg.cli.common import UsageError, check_writable, complain, positive, replacing, require, write
from gpureg.cli.reporting import options, text
from gpureg.cli.reporting.histogram import Histogram
from gpureg.cli.reporting.progress import progress
from gpureg.cli.reporting.text import Column, count, number, share
from gpureg.reporting import THRESHOLD, Report, Row, Total
from gpureg.reporting.measuring import measure
from gpureg.reporting.rows import assign, build
from gpureg.reporting.tensors import Tensor, tensors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = """\
PATH is a .safetensors file, an index of such or a folder with them, an .npy, .npz, .pt, .pth, .keras or .weights.h5
file. Several are the parts of one checkpoint. Tensors of integers are listed and left out.

examples:
  gpureg report model.safetensors                             every tensor, and the total
  gpureg report model.safetensors --sort rms --top 10         the ten with the largest root mean square
  gpureg report model.pt --group --depth 3                    layers.0.attn, layers.1.attn ... as layers.#.attn
  gpureg report model.pt --l2 1e-4 --exclude '*.bias'         what this penalty costs
  gpureg report weights.npz --rules rules.toml --format json  for a program, numbers at full precision
  gpureg report model.keras --html report.html                a page with a table that can be sorted, and pictures

In JSON, null is what there is none of, and "NaN" and "Infinity" are strings.

exit status: 0 all is reported, 2 the command line is wrong, a file cannot be read or is broken, or something is not
installed, 130 interrupted, 141 whoever read the output left
"""

_COLUMNS = tuple(name for name in Row.__dataclass_fields__ if name != "shape")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, _EPILOG
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a checkpoint")
    rows, output = options.add(parser, _COLUMNS)
    rows.add_argument(
        "--threshold",
        type=options.number,
        default=THRESHOLD,
        metavar="X",
        help=f"count weights with |w| below X (default: {THRESHOLD:g})",
    )
    rows.add_argument("--group", action="store_true", help="a row for tensors whose names differ by numbers alone")
    rows.add_argument(
        "--depth", type=positive, metavar="N", help="with --group: only the first N parts of a name count"
    )
    output.add_argument(
        "--plot", type=_picture, metavar="FILE.png|svg", help="draw norms and sparsity by layer, and a histogram"
    )
    output.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page of all tensors that works anywhere, with the pictures"
    )


def _picture(given: str) -> Path:
    if Path(given).suffix.lower() not in {".png", ".svg"}:
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png or .svg, not {given!r}")
    return Path(given)


def run(arguments: argparse.Namespace) -> int:
    """Print the report and write the files that were asked for; return 0, or 2 if that cannot be done."""
    try:
        _check(arguments)
        rules = options.rules_of(arguments)
        entries = options.read(arguments.paths)
        _check_apart(arguments, entries)
        (entries,) = options.without(arguments.exclude, entries)
        histogram = Histogram() if arguments.plot or arguments.html else None
        report = _read(entries, rules, arguments.threshold, histogram)
    except (CheckpointError, UsageError) as error:
        return complain("report", error)
    for path, content in _files(arguments, report, histogram):
        with replacing(path) as file:
            file.write(content)
    write(_text(report, arguments))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be done here, before the files are read."""
    options.check(arguments)
    if arguments.depth is not None and not arguments.group:
        raise UsageError("--depth says how --group groups, and needs it")
    if arguments.group and arguments.sort in {"dtype", "rule"}:
        raise UsageError(f"--sort {arguments.sort} is for tensors; a group may have several")
    if arguments.plot or arguments.html:
        require("cli", matplotlib="matplotlib")
    for path in filter(None, (arguments.plot, arguments.html)):
        check_writable(path)


def _check_apart(arguments: argparse.Namespace, entries: list[Entry]) -> None:
    """Refuse to write over what is read, what lies in a folder too, or one file over the other."""
    read = {*arguments.paths, *(entry.source.path for entry in entries), *filter(None, [arguments.rules])}
    read.update(index for path in arguments.paths for index in path.glob("*.safetensors.index.json"))
    for path in filter(None, (arguments.plot, arguments.html)):
        if any(_is_same(path, other) for other in read):
            raise UsageError(f"{path} is what is to be read; expected the name of another file")
    if arguments.plot and arguments.html and _is_same(arguments.plot, arguments.html):
        raise UsageError(f"--plot and --html both name {arguments.html}; expected two files")


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths lead to one file, which need not be there yet."""
    try:
        return path.samefile(other)
    except OSError:  # one of them leads nowhere
        return path.resolve() == other.resolve()


def _read(entries: list[Entry], rules: Any, threshold: float, histogram: Histogram | None) -> Report:
    tensors = tensors_of(entries, "the checkpoint")
    with options.said_by_rules():
        assignments = assign(tensors, rules)
    with progress(entries) as advance:

        def look(tensor: Tensor, piece: Any) -> None:
            if histogram is not None:
                histogram.add(piece)
            advance(tensor, piece)

        statistics = measure(tensors, threshold, look)
    with options.said_by_rules():
        return build(tensors, statistics, assignments)


def _files(arguments: argparse.Namespace, report: Report, histogram: Histogram | None) -> list[tuple[Path, bytes]]:
    """Return the files that were asked for, by their paths."""
    if histogram is None:
        return []
    from gpureg.cli.reporting import page, pictures  # noqa: PLC0415 - with the extra `cli`

    title = ", ".join(path.name or str(path) for path in arguments.paths)
    found = []
    if arguments.plot:
        drawn = pictures.sheet(report, histogram, title, arguments.threshold, arguments.plot.suffix.lower()[1:])
        found.append((arguments.plot, drawn))
    if arguments.html:
        found.append((arguments.html, page.page(report, histogram, title, arguments.threshold).encode()))
    return found


def _text(report: Report, arguments: argparse.Namespace) -> str:
    """Return what is printed."""
    everything: Sequence[Any] = report.groups(arguments.depth) if arguments.group else report
    rows = options.chosen(everything, arguments.sort, arguments.top)
    what = "groups" if arguments.group else "tensors"
    if arguments.format == "json":
        return text.as_json({what: [row.to_dict() for row in rows], "total": asdict(report.total)})
    if arguments.format == "csv":
        names = ("name", *Total.__dataclass_fields__) if arguments.group else tuple(Row.__dataclass_fields__)
        return text.as_csv(names, [row.to_dict() for row in rows])
    drawn = (text.table if arguments.format == "table" else text.markdown)(
        _columns(report, arguments), rows, report.total
    )
    more = len(everything) - len(rows)
    notes = [f"{more} more {what}"] if more else []
    if others := sum(row.sum_abs is None for row in report):
        notes.append(f"{others} not of floats: listed, and left out of all figures")
    if tied := len(report) - others - report.total.tensors:
        notes.append(f"{tied} of the same memory as another: counted once")
    return drawn + ("\n" + "; ".join(notes) + "\n" if notes else "")


def _columns(report: Report, arguments: argparse.Namespace) -> list[Column]:
    """Return the columns of a table for people; what is zero or missing in every row is not shown."""
    grouped, total = arguments.group, report.total
    name = Column("group" if grouped else "tensor", lambda row: getattr(row, "name", "total"), left=True)
    kind = [
        Column("shape", lambda row: text.shape(row.shape) if hasattr(row, "shape") else "", 9, left=True),
        Column("dtype", lambda row: getattr(row, "dtype", ""), 10, left=True),
    ]
    figures = [
        Column("weights", lambda row: count(row.size), 5),
        Column("sum |w|", lambda row: number(row.sum_abs), 8),
        Column("l2_loss", lambda row: number(row.l2_loss), 7),
        Column("rms", lambda row: number(row.rms)),
        Column("max |w|", lambda row: number(row.max_abs), 2),
        Column("zeros", lambda row: share(row.zeros, row.size), 3),
        Column(f"< {arguments.threshold:g}", lambda row: share(row.below, row.size), 4),
    ]
    if total.nan:
        figures.append(Column("NaN", lambda row: count(row.nan), style="red"))
    if total.inf:
        figures.append(Column("infinite", lambda row: count(row.inf), style="red"))
    if total.penalty is not None:
        if not grouped:
            figures.append(Column("rule", lambda row: getattr(row, "rule", "") or text.MISSING, 6, left=True))
        figures.append(Column("penalty", lambda row: number(row.penalty)))
    tensors = [Column("tensors", lambda row: count(row.tensors), 1)]
    return [name, *(tensors if grouped else kind), *figures]
