"""Figures from one benchmark run: the report that is committed, and the table and the picture drawn from it.

    python bench/report.py RAW.json --output bench/results/NAME.json  make a report of pytest-benchmark's JSON
    python bench/report.py bench/results/NAME.json --table            print the tables
    python bench/report.py bench/results/NAME.json --figure OUT.svg   draw time and share of the limit against elements
    python bench/report.py bench/results/NAME.json --write README.md  put the tables between their markers
    python bench/report.py bench/results/NAME.json --check README.md  exit with 1 if another table is there

The markers are `<!-- bench:begin NAME -->` and `<!-- bench:end -->`, NAME being the report's file name without `.json`.
Those of the table of whole models are `<!-- bench:models NAME -->` and `<!-- bench:end -->`, and of that of PyTorch's
training steps `<!-- bench:torch NAME -->`; a README has any of the tables.

A report of `bench/gpu_check.py` has the same form: it is committed as it is, and drawn from likewise.

A report holds only what is named here: of raw data, which knows the machine's name and its paths, nothing else is
taken, and no text that looks like a path.
"""

import argparse
import contextlib
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1

PERCENTILES = {"min": 0, "p10": 10, "median": 50, "p90": 90, "max": 100}

LEGEND = {
    "mode": "value: the penalty; value and gradient: both, the gradient stored; "
    "value, gradient added: the penalty, and the gradient added to one that is there; weight decay: of all weights "
    "but biases, normalisations and vectors; training step: over all parameters of a PyTorch model",
    "model": "of a whole model, scaled to the memory: its name; each tensor is under L2",
    "tensors": "how many tensors of the model are penalised",
    "contender": "the code, for weights w, a gradient g and a scratch array s; NumPy's expressions on 16-bit weights "
    "first make a float32 w of them; of a whole model: for all weights, their gradients grads, and a "
    "regularizer reg for a single tensor",
    "role": "gpureg; best: NumPy in its best form, in place and by BLAS; naive: NumPy as most write it; other: NumPy "
    "otherwise; limit: a plain pass over the same bytes; the memory limit is the one with the lowest median",
    "bytes": "what a pass must move, whoever makes it: the weights read (value), and the gradient written (value and "
    "gradient), and also read (value, gradient added); temporaries, and lines read only to be written, not counted",
    "sets": "sets of arrays that calls took turns on; 1 where the arrays stay in the last-level cache, else so many "
    "that no call found its weights there",
    "rounds": "rounds timed, all contenders of a comparison in turn in each, in an order that changes; a round is the "
    "mean of so many calls",
    "seconds": "percentiles over the rounds, of one call",
    "gb_per_s": "bytes over the median, in 1e9 bytes a second",
    "to_gpureg": "median over the rounds of the time over gpureg's time in the same round",
    "to_limit": "the same over the memory limit's time",
}

COMPARED = ("mode", "dtype", "elements")
"""What entries that were timed in turn have in common; also the model, if they are of one."""

TABLE_DTYPE, TABLE_ELEMENTS = "float32", 2**26

Columns = dict[str, dict[str, Any]]

COLUMNS: Columns = {
    "gpureg": {"role": "gpureg"},
    "NumPy, best form": {"role": "best"},
    "NumPy, as written": {"role": "naive"},
    "PyTorch, by hand": {"role": "other", "contender": ["torch: torch.", "torch: g.", "torch: l"]},
    "PyTorch, autograd": {"role": "other", "contender": [".backward()"]},
    "torch.compile": {"role": "other", "contender": ["torch.compile of"]},
    "JAX jit": {"role": "other", "contender": ["jax.jit"]},
    "memory limit": {"role": "limit"},
}
"""Columns of the table and lines of the picture, unless the report names its own: each shows the fastest contender of
its role, and, where it has a list "contender", only of those whose code has one of these texts in it."""

MODEL_COLUMNS: Columns = {
    "gpureg": {"role": "gpureg"},
    "single calls": {"role": "other", "contender": ["reg(", "reg."]},
    "NumPy, best form": {"role": "best"},
    "NumPy, as written": {"role": "naive"},
    "torch loop": {"role": "other", "contender": ["torch loop: "]},
    "torch autograd": {"role": "other", "contender": ["torch autograd: "]},
    "torch foreach": {"role": "other", "contender": ["torch foreach: "]},
    "JAX jit": {"role": "other", "contender": ["jax.jit"]},
    "memory limit": {"role": "limit"},
}
"""The same of the table of whole models."""

STEP = "training step: "
"""How the modes of the table of PyTorch's training steps begin."""

TORCH_COLUMNS: Columns = {
    "gpureg, attached": {"role": "gpureg"},
    "gpureg, in the loss": {"role": "other", "contender": ["gpureg.torch.Penalty"]},
    "autograd": {"role": "other", "contender": ["torch autograd: "]},
    "torch.compile": {"role": "other", "contender": ["torch.compile of"]},
    "foreach, by hand": {"role": "other", "contender": ["torch foreach: "]},
    "weight_decay, fused": {"role": "other", "contender": ["weight_decay=decay, fused"]},
    "weight_decay, foreach": {"role": "other", "contender": ["weight_decay=decay, foreach"]},
    "apex": {"role": "other", "contender": ["apex."]},
    "memory limit": {"role": "limit"},
}
"""The same of the table of PyTorch's training steps."""

PEERS = {"torch": "PyTorch", "jax": "JAX"}
"""What takes part where it is installed, by the name of its version."""

Entry = dict[str, Any]
Report = dict[str, Any]
Timed = tuple[Entry, list[float]]
"""An entry and the seconds of each round."""


class ReportError(Exception):
    """A file is not what it should be."""


# From raw data to a report


def summarise(raw: Any) -> Report:
    """Return the report of pytest-benchmark's JSON."""
    info, ours = _get(raw, "machine_info"), _get(raw, "machine_info", "gpureg")
    benchmarks = _get(raw, "benchmarks")
    if not benchmarks:
        raise ReportError("benchmarks is empty")
    comparisons: dict[tuple[Any, ...], list[Timed]] = {}
    for number, benchmark in enumerate(benchmarks):
        timed = _timed(number, benchmark)
        comparisons.setdefault(_comparison(timed[0]), []).append(timed)
    return {
        "schema": SCHEMA,
        "date": _text(raw, "datetime", pattern=r"(\d{4}-\d\d-\d\d).*"),
        "machine": {
            "cpu": _text({"brand_raw": "unnamed CPU"} | _get(info, "cpu"), "brand_raw"),
            "architecture": _text(info, "machine"),
            "cores": _count(ours, "cores"),
            "cache_mib": _count(ours, "cache_bytes") // 2**20,
            "memory_gib": _get(ours, "memory_bytes") and round(_positive(ours, "memory_bytes") / 2**30),
            "os": _text(info, "system"),
            "kernel": _text(info, "release", pattern=r"(\d+\.\d+).*"),
        },
        "versions": {
            "python": _text(info, "python_version"),
            **{name: _text(ours, "versions", name) for name in ("numpy", "blas", "gpureg")},
            **{name: _version(ours, name) for name in PEERS if name in _get(ours, "versions")},
        },
        "commit": _text(raw, "commit_info", "id", pattern=r"([0-9a-f]{7,40}|unversioned)"),
        "uncommitted_changes": bool(_get(raw, "commit_info", "dirty")),
        "columns": COLUMNS,
        "model_columns": MODEL_COLUMNS,
        "torch_columns": TORCH_COLUMNS,
        "legend": LEGEND,
        "entries": [entry for pairs in comparisons.values() for entry in _compared(pairs)],
    }


def _version(ours: Any, name: str) -> str | None:
    """Return the version of what need not be installed; None if it is not."""
    return None if ours["versions"][name] is None else _text(ours, "versions", name)


def _comparison(entry: Entry) -> tuple[Any, ...]:
    """Return what entries that were timed in turn have in common."""
    return (*(entry[name] for name in COMPARED), entry.get("model"))


def _timed(number: int, benchmark: Any) -> Timed:
    """Return an entry, without its ratios, and the seconds of each round."""
    where = f"benchmarks[{number}]"
    seconds = _get(benchmark, "stats", "data", where=where)
    if not isinstance(seconds, list) or not seconds:
        raise ReportError(f"{where}.stats.data is {seconds!r}, not the seconds of each round")
    for second in seconds:
        _positive({"a round": second}, "a round", where=where)
    quantiles = np.percentile(seconds, list(PERCENTILES.values()))
    facts, where = _get(benchmark, "extra_info", where=where), f"{where}.extra_info"
    moved = _count(facts, "moved_bytes", where=where)
    model = {}
    if "model" in facts:
        model = {"model": _text(facts, "model", where=where), "tensors": _count(facts, "tensors", where=where)}
    entry = {
        **model,
        **{name: _text(facts, name, where=where) for name in ("mode", "contender", "dtype")},
        "role": _text(facts, "role", where=where, pattern="(gpureg|best|naive|other|limit)"),
        **{name: _count(facts, name, where=where) for name in ("elements", "sets", "calls")},
        "bytes": moved,
        "rounds": len(seconds),
        "seconds": {name: _rounded(second) for name, second in zip(PERCENTILES, quantiles, strict=True)},
        "gb_per_s": _rounded(moved / float(np.median(seconds)) / 1e9),
    }
    return entry, seconds


def _compared(pairs: list[Timed]) -> Iterator[Entry]:
    """Yield the entries of one comparison with their ratios."""
    case = ", ".join(str(part) for part in _comparison(pairs[0][0]) if part is not None)
    if len({len(seconds) for _, seconds in pairs}) != 1:
        raise ReportError(f"{case}: not every contender has the same rounds, so they were not timed in turn")
    gpureg = [seconds for entry, seconds in pairs if entry["role"] == "gpureg"]
    limits = [seconds for entry, seconds in pairs if entry["role"] == "limit"]
    if len(gpureg) != 1 or not limits:
        raise ReportError(f"{case}: expected gpureg once and a limit, found {[entry['role'] for entry, _ in pairs]}")
    limit = min(limits, key=lambda seconds: float(np.median(seconds)))
    for entry, seconds in pairs:
        yield entry | {"to_gpureg": ratio(seconds, gpureg[0]), "to_limit": ratio(seconds, limit)}


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios round by round: what a machine's drift from round to round does not touch."""
    return _rounded(float(np.median(np.divide(seconds, others))))


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def _get(data: Any, *keys: str, where: str = "") -> Any:
    """Return what lies under the keys, or raise a ReportError that says which is missing."""
    for key in keys:
        where = f"{where}.{key}" if where else key
        if not isinstance(data, dict) or key not in data:
            raise ReportError(f"{where} is missing")
        data = data[key]
    return data


def _text(data: Any, *keys: str, where: str = "", pattern: str = "(.+)") -> str:
    """Return a text, that part of it which the pattern captures; never one that looks like a path."""
    text = _get(data, *keys, where=where)
    match = re.fullmatch(pattern, text) if isinstance(text, str) else None
    if match is None or re.search(r"[/\\]\w|~", match[1]):
        raise ReportError(f"{'.'.join(filter(None, (where, *keys)))} is {text!r}, which is not what belongs there")
    return match[1]


def _positive(data: Any, *keys: str, where: str = "") -> float:
    """Return a positive number."""
    number = _get(data, *keys, where=where)
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < float("inf"):
        raise ReportError(f"{'.'.join(filter(None, (where, *keys)))} is {number!r}, not a positive number")
    return number


def _count(data: Any, *keys: str, where: str = "") -> int:
    """Return a positive number as an integer."""
    return int(_positive(data, *keys, where=where))


def dumps(report: Report) -> str:
    """Return a report as JSON, an entry a line."""
    head = json.dumps({name: value for name, value in report.items() if name != "entries"}, indent=2)
    entries = ",\n".join(f"    {json.dumps(entry)}" for entry in report["entries"])
    return f'{head[:-2]},\n  "entries": [\n{entries}\n  ]\n}}\n'


# From a report to a table and a picture


NEEDED = (
    *((name,) for name in ("date", "commit", "uncommitted_changes")),
    *(("machine", name) for name in ("cpu", "cores", "os", "kernel")),
    *(("versions", name) for name in ("python", "numpy", "blas", "gpureg")),
)
NEEDED_OF_ENTRY = tuple((name,) for name in (*COMPARED, "contender", "role", "rounds"))
"""What tables and pictures are drawn from."""


def load(path: Path) -> Report:
    """Return the report in a file."""
    report = read_json(path)
    if _get(report, "schema") != SCHEMA:
        raise ReportError(f"schema is {report['schema']!r}, expected {SCHEMA}; make the report again from raw data")
    for keys in NEEDED:
        _get(report, *keys)
    for columns in ("columns", "model_columns", "torch_columns"):
        for label in report.get(columns, ()):
            _get(report, columns, label, "role")
    for number, entry in enumerate(_get(report, "entries")):
        for keys in NEEDED_OF_ENTRY:
            _get(entry, *keys, where=f"entries[{number}]")
        if "model" in entry:
            _count(entry, "tensors", where=f"entries[{number}]")
        for keys in (("seconds", "median"), ("to_gpureg",), ("to_limit",)):
            _positive(entry, *keys, where=f"entries[{number}]")
    checked: Report = report
    return checked


def read_json(path: Path) -> Any:
    """Return what is in a file; raise a ReportError if it is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ReportError(f"not JSON: {error}") from error


def tables(report: Report, name: str) -> dict[str, str]:
    """Return the tables that a report has entries for, in Markdown, by the first word of their markers."""
    whole_models, steps = _of_models(report)
    return {
        **({"begin": table(report, name)} if _single(report) or not (whole_models or steps) else {}),
        **({"models": model_table(report, name)} if whole_models else {}),
        **({"torch": torch_table(report, name)} if steps else {}),
    }


def table(report: Report, name: str) -> str:
    """Return the table of single tensors, with what it was measured on."""
    entries = [e for e in _single(report) if (e["dtype"], e["elements"]) == (TABLE_DTYPE, TABLE_ELEMENTS)]
    if not entries:
        raise ReportError(f"no entries of {TABLE_ELEMENTS} elements of {TABLE_DTYPE}, which the table is about")
    mib = TABLE_ELEMENTS * np.dtype(TABLE_DTYPE).itemsize // 2**20
    columns = columns_of(report, entries)
    head = [f"{TABLE_DTYPE}, 2^{_exponent(TABLE_ELEMENTS)} weights ({mib} MiB)", *columns]
    rows = {mode: [e for e in entries if e["mode"] == mode] for mode in dict.fromkeys(e["mode"] for e in entries)}
    told = report.get("legend", {}).get("columns")
    return "\n".join(
        [
            *_lines(head, rows, columns),
            "",
            *_how(entries),
            *([f"{told}."] if told else []),
            f"{conditions(report)}.",
            f"[All sizes, dtypes and percentiles](bench/results/{name}.json).",
        ]
    )


def model_table(report: Report, name: str) -> str:
    """Return the table of whole models, with what it was measured on and what took no part."""
    entries, _ = _of_models(report)
    columns = columns_of(report, entries, report.get("model_columns", MODEL_COLUMNS))
    missing = [label for version, label in PEERS.items() if report["versions"].get(version) is None]
    told = [f"Not installed: {' and '.join(missing)}."] if missing else []
    return _table_of_models(report, name, f"whole models, {entries[0]['dtype']}, L2", entries, columns, told)


def torch_table(report: Report, name: str) -> str:
    """Return the table of PyTorch's training steps, with what it was measured on."""
    _, entries = _of_models(report)
    columns = columns_of(report, entries, report.get("torch_columns", TORCH_COLUMNS))
    shortened = [entry | {"mode": entry["mode"].removeprefix(STEP)} for entry in entries]
    told = ["A step of SGD with weight_decay gives no penalty's value; gpureg's do."]
    return _table_of_models(report, name, f"training steps of PyTorch, {entries[0]['dtype']}", shortened, columns, told)


def _of_models(report: Report) -> tuple[list[Entry], list[Entry]]:
    """Return the entries of passes over whole models, and of PyTorch's training steps."""
    both: tuple[list[Entry], list[Entry]] = ([], [])
    for entry in report["entries"]:
        if "model" in entry:
            both[entry["mode"].startswith(STEP)].append(entry)
    return both


def _table_of_models(
    report: Report, name: str, head: str, entries: list[Entry], columns: Columns, told: list[str]
) -> str:
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        mib = _figures(entry["elements"] * np.dtype(entry["dtype"]).itemsize / 2**20, 3)
        rows.setdefault(f"{entry['model']} ({entry['tensors']} tensors, {mib} MiB): {entry['mode']}", []).append(entry)
    return "\n".join(
        [
            *_lines([head, *columns], rows, columns),
            "",
            *_how(entries),
            "Models are scaled to the memory; their names are those of bench/models.py.",
            *told,
            f"{conditions(report)}.",
            f"[The code and all percentiles](bench/results/{name}.json).",
        ]
    )


def _single(report: Report) -> list[Entry]:
    """Return the entries of single tensors."""
    return [entry for entry in report["entries"] if "model" not in entry]


def _lines(head: list[str], rows: dict[str, list[Entry]], columns: Columns) -> Iterator[str]:
    """Yield the lines of a table, a row for each comparison."""
    yield f"| {' | '.join(head)} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for label, entries in rows.items():
        yield f"| {' | '.join([label, *(_cell(fastest(entries, column)) for column in columns.values())])} |"


def _how(entries: list[Entry]) -> tuple[str, str]:
    """Return how entries were timed."""
    rounds = min(e["rounds"] for e in entries)
    return (
        f"Medians of at least {rounds} rounds, all timed in turn; in brackets, the time over gpureg's in the same",
        "round. The memory limit is the fastest plain pass over the same bytes.",
    )


def columns_of(report: Report, entries: Iterable[Entry], columns: Columns | None = None) -> Columns:
    """Return the columns, by default a report's own, for which there is any entry: what is not installed has none."""
    return {
        label: column
        for label, column in (columns or report.get("columns", COLUMNS)).items()
        if any(_belongs(entry, column) for entry in entries)
    }


def _belongs(entry: Entry, column: dict[str, Any]) -> bool:
    texts = column.get("contender", [""])
    return bool(entry["role"] == column["role"]) and any(text in entry["contender"] for text in texts)


def fastest(entries: Iterable[Entry], column: dict[str, Any]) -> Entry | None:
    """Return the entry of a comparison that a column shows; None if all that belong there were left out."""
    found = (entry for entry in entries if _belongs(entry, column))
    return min(found, key=lambda e: float(e["seconds"]["median"]), default=None)


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "left out"
    own = "" if entry["role"] == "gpureg" else f" ({_figures(entry['to_gpureg'], 2)}x)"
    return f"{_figures(entry['seconds']['median'] * 1e3, 3)} ms{own}"


def _figures(number: float, digits: int) -> str:
    """Return a number with so many significant digits, all before the point if it has more, and no exponent."""
    decimals = digits - 1 - int(f"{number:e}".partition("e")[2])
    return f"{number:.{max(decimals, 0)}f}"


def _exponent(elements: int) -> int:
    return elements.bit_length() - 1


CONDITIONS = (
    ("{gpu}", "driver {driver}", "CUDA {cuda_driver}"),
    ("{cpu}", "{cores}", "{os} {kernel}"),
    (
        *("Python {python}", "NumPy {numpy} ({blas})", "CuPy {cupy}", "PyTorch {torch}", "JAX {jax}"),
        *("CUDA runtime {cuda_runtime}", "NVRTC {nvrtc}", "gpureg {gpureg} at {commit}"),
    ),
    ("{date}",),
)
"""What was measured, on what and when; what a report does not know is not told."""


def conditions(report: Report) -> str:
    """Return in one sentence what was measured, on what and when."""
    facts = report["machine"] | report["versions"] | {"date": report["date"]}
    facts["cores"] = f"{facts['cores']} core" + "s" * (facts["cores"] != 1)
    changes = " with uncommitted changes" if report["uncommitted_changes"] else ""
    facts["commit"] = "an unknown commit" if report["commit"] == "unversioned" else report["commit"][:7] + changes
    known = {name: fact for name, fact in facts.items() if fact is not None}
    groups = (", ".join(_told(parts, known)) for parts in CONDITIONS)
    return "; ".join(filter(None, groups))


def _told(parts: Iterable[str], known: dict[str, Any]) -> Iterator[str]:
    for part in parts:
        with contextlib.suppress(KeyError):
            yield part.format_map(known)


def replaced(readme: str, name: str, texts: dict[str, str]) -> str:
    """Return a README with the texts between the markers of a report; of several, those that it has markers for."""
    end = "<!-- bench:end -->"
    begins = {f"<!-- bench:{kind} {name} -->\n": text for kind, text in texts.items()}
    there = [begin for begin in begins if begin in readme]
    if not there:
        raise ReportError(f"the README has no {' or '.join(map(str.strip, begins))} followed by {end}")
    for begin in there:
        before, _, rest = readme.partition(begin)
        old, closed, after = rest.partition(end)
        if not closed or "<!-- bench:" in old:
            raise ReportError(f"the README has no {end} after {begin.strip()}")
        readme = f"{before}{begin}{begins[begin]}\n{end}{after}"
    return readme


LINES = {
    "gpureg": {"color": "black", "linewidth": 2.4, "marker": "o"},
    "limit": {"color": "black", "linewidth": 1.2, "linestyle": (0, (4, 3))},
}
OTHER_LINES = [
    {"color": shade, "linewidth": 1.4, "marker": marker}
    for shade, marker in zip(("0.35", "0.6") * 3, "s^vDXP", strict=True)
]
"""By shade, weight, marker and dashes: to be told apart without colour."""


def figure(report: Report, path: Path) -> None:
    """Draw time, and below it the share of the memory limit, against elements: a column of panels for each mode."""
    import matplotlib as mpl  # noqa: PLC0415 - only to draw
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    entries = [entry for entry in _single(report) if entry["dtype"] == TABLE_DTYPE]
    modes = list(dict.fromkeys(entry["mode"] for entry in entries))
    if not modes:
        raise ReportError(f"no entries of {TABLE_DTYPE}, which the picture is about")
    # No date and no random names in the file: the same report draws the same bytes.
    with mpl.rc_context({"svg.hashsalt": "gpureg", "font.size": 9}):
        drawing = Figure(figsize=(max(2.7 * len(modes), 8.0), 6.4), layout="constrained")
        panels = drawing.subplots(2, len(modes), sharex=True, sharey="row", squeeze=False)
        columns = columns_of(report, entries)
        for number, mode in enumerate(modes):
            _draw(panels[:, number], [entry for entry in entries if entry["mode"] == mode], columns)
            panels[0, number].set_title(mode, fontsize=10)
        times, shares = panels[0, 0], panels[1, 0]
        times.set_yscale("log")
        times.set_ylabel("milliseconds")
        shares.set_ylim(0.0, 1.05)
        shares.set_ylabel("share of the memory limit")
        for panel in panels.flat:
            panel.set_xscale("log", base=2)
            panel.minorticks_off()
            panel.grid(color="0.9", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
        drawing.legend(*times.get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
        caption = f"{TABLE_DTYPE}, medians. {conditions(report)}."
        drawing.supxlabel("\n".join(["weights", "", *textwrap.wrap(caption, 170)]), fontsize=8)
        drawing.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(panels: Iterable[Any], entries: list[Entry], columns: Columns) -> None:
    """Draw a mode: a line for each column, through the sizes that it has."""
    sizes = sorted({entry["elements"] for entry in entries})
    others = itertools.cycle(OTHER_LINES)
    for label, column in columns.items():
        drawn = [fastest([e for e in entries if e["elements"] == size], column) for size in sizes]
        found = [entry for entry in drawn if entry]
        style = LINES.get(column["role"]) or next(others)
        elements = [entry["elements"] for entry in found]
        times, shares = [e["seconds"]["median"] * 1e3 for e in found], [1 / e["to_limit"] for e in found]
        for panel, values in zip(panels, (times, shares), strict=True):
            panel.plot(elements, values, label=label, markersize=4, **style)


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 if a README's table differs, 2 if a file is not as expected."""
    parser = argparse.ArgumentParser(
        description="Draw benchmark figures from the data of one run.",
        epilog="NAME is the report's file name without .json. The table of single tensors goes between "
        "<!-- bench:begin NAME --> and <!-- bench:end -->, that of whole models between <!-- bench:models NAME --> and "
        "<!-- bench:end -->, that of PyTorch's training steps likewise after <!-- bench:torch NAME -->; a README has "
        "markers for any of them.",
    )
    parser.add_argument("data", type=Path, help="pytest-benchmark's JSON for --output, else a report")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("-o", "--output", type=Path, metavar="REPORT", help="write the report of raw data")
    action.add_argument("--table", action="store_true", help="print the tables in Markdown")
    action.add_argument("--figure", type=Path, metavar="PICTURE", help="draw time and share of the limit, .svg or .png")
    action.add_argument("--write", type=Path, metavar="README", help="put the tables between their markers")
    action.add_argument("--check", type=Path, metavar="README", help="exit with 1 if another table is there")
    given = parser.parse_args(arguments)
    try:
        return _run(given)
    except (ReportError, OSError) as error:
        print(f"{given.data.name}: {error}" if isinstance(error, ReportError) else error, file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    if given.output:
        given.output.write_text(dumps(summarise(read_json(given.data))))
        return 0
    report, name = load(given.data), given.data.stem
    if given.figure:
        figure(report, given.figure)
    elif given.table:
        print("\n\n".join(tables(report, name).values()))
    else:
        readme = given.write or given.check
        old = readme.read_text()
        texts = tables(report, name)
        if readme.resolve().parent.name == "docs":
            texts = {kind: text.replace("](bench/", "](../bench/") for kind, text in texts.items()}
        new = replaced(old, name, texts)
        if given.write:
            readme.write_text(new)
        elif new != old:
            print(f"{readme.name}: its tables are not those of {given.data.name}; run --write", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
