"""The variants of the kernels: what their machine code says without a GPU, and how fast they are with one.

    python -m bench.tune --sass [--output SASS.json]       compile each; print and keep what its machine code says
    python -m bench.tune --output REPORT.json              on a GPU: check the bits of each and time it, all in turn
    python -m bench.tune --write PAGE.md SASS.json [REPORT.json]    put the tables between their markers
    python -m bench.tune --check PAGE.md SASS.json [REPORT.json]    exit with 1 if other tables are there

`bench/variants/` has the variants with their predictions. A variant that gives other bits than NumPy is not timed. The
report of a GPU has the form of `bench/report.py`, in which what is shipped has the role gpureg.

The markers are `<!-- bench:shipped NAME -->`, `<!-- bench:variants NAME -->`, `<!-- bench:chips NAME -->`, each with an
end as in `bench/report.py`; NAME is the name of SASS.json without its end.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench import gpu, gpu_environment, report, roofline, tune_gpu
from bench.report import Entry, Report, ReportError
from bench.roofline import ARCHITECTURES, CHIPS, Facts
from bench.variants import SHIPPED, VARIANTS, Variant
from gpureg import compiler
from tests.kernels.build import build

DEFAULT = ("sm_80", "sm_90", "sm_100")
"""Architectures that variants are compiled for; what is shipped is compiled for all that a chip is known of."""

SHOWN = "sm_90"
"""The architecture of the tables of variants, and the chip of its shares is the H200."""

LEGEND = {
    "local": "bytes of a thread in local memory, where spilled registers go",
    "blocks, threads": "that a multiprocessor holds at a time",
    "loads, kib": "loads of a thread, and KiB of a multiprocessor, on their way at a time",
    "shuffles": "shuffles in all of the code",
    "instructions": "for each element, in the loop over whole tiles, by the unit that they take; issued are all",
    "shares": "by chip, the time that each unit needs for them, as a share of the time that the memory needs",
    "reach": "the share of an H200's bandwidth that is within reach",
}


# What the machine code says


def inspected(variants: Iterable[Variant], architectures: Sequence[str]) -> Iterator[Entry]:
    """Yield what the machine code of each variant's kernels says, for the architectures that have what it needs."""
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            for architecture in architectures:
                if int(architecture.removeprefix("sm_")) < variant.oldest:
                    continue
                sources = variant.sources(compiler.sources())
                compiled = build(variant.kernels, Path(folder), architecture, sources=sources)
                for kernel, sass in compiled.sass().items():
                    found = roofline.facts(
                        kernel, sass, ARCHITECTURES[architecture], tiles=variant.tiles, shared=variant.shared
                    )
                    yield _entry(variant, kernel, architecture, found)


def _entry(variant: Variant, kernel: str, architecture: str, found: Facts) -> Entry:
    numbers = found._asdict() | {"instructions": {unit: round(n, 3) for unit, n in found.instructions.items()}}
    entry = {"variant": variant.name, "kernel": kernel, "architecture": architecture, **numbers}
    chips = {name: chip for name, chip in CHIPS.items() if chip.architecture == architecture}
    entry["shares"] = {
        name: {unit: round(share, 3) for unit, share in found.shares(kernel, chip).items()}
        for name, chip in chips.items()
    }
    if architecture == SHOWN:
        entry["reach"] = round(roofline.predicted_share(found, kernel), 3)
    return entry


def sass_report(entries: Iterable[Entry], facts: gpu_environment.Facts) -> Report:
    """Return the report of what machine code says; it depends on the compiler, which it names."""
    head = {name: facts[name] for name in ("date", "commit", "uncommitted_changes")}
    versions = {name: facts["versions"][name] for name in ("gpureg", "nvrtc")}
    return {"schema": report.SCHEMA, **head, "versions": versions, "legend": LEGEND, "entries": list(entries)}


def load(path: Path) -> Report:
    """Return what `--sass` kept in a file."""
    found = report.read_json(path)
    try:
        for entry in found["entries"]:
            _ = entry["variant"], entry["kernel"], entry["architecture"], entry["shares"], entry["kib"]
        return dict(found)
    except (LookupError, TypeError) as error:
        raise ReportError(f"{path.name} is no report of machine code: {error!r}") from error


# Tables


def tables(sass: Report, measured: Report | None) -> dict[str, str]:
    """Return the tables in Markdown, by the first word of their markers."""
    shown = {(e["variant"], e["kernel"]): e for e in sass["entries"] if e["architecture"] == SHOWN}
    told = f"NVRTC {sass['versions']['nvrtc']}, {SHOWN}."
    try:
        return {
            "shipped": f"{_shipped(shown)}\n\n{told}",
            "variants": f"{_variants(shown, measured)}\n\n{told}",
            "chips": _chips(sass["entries"]),
        }
    except KeyError as error:
        raise ReportError(f"nothing is known of {error}: run --sass again") from error


def _shipped(shown: dict[tuple[str, str], Entry]) -> str:
    head = ("pass", "registers", "threads", "KiB in flight", *roofline.RATES, "within reach")
    rows = []
    for kernel in SHIPPED.kernels:
        entry = shown[SHIPPED.name, kernel]
        shares = [f"{entry['shares']['H200'][unit]:.0%}" for unit in roofline.RATES]
        numbers = [entry["registers"], entry["threads"], f"{entry['kib']:.0f}", *shares, f"{entry['reach']:.2f}"]
        rows.append((label(kernel), *map(str, numbers)))
    return _table(head, rows)


def _variants(shown: dict[tuple[str, str], Entry], measured: Report | None) -> str:
    head = ("variant", "what is other", "prediction", "machine code", "within reach", "result", "verdict")
    rows = []
    for variant in VARIANTS:
        entry = shown[variant.name, variant.kernels[0]]
        unit, share = roofline.busiest(entry["shares"]["H200"])
        reach = f"{entry['reach']:.2f} ({unit} {share:.0%})"
        rows.append(
            (
                variant.name,
                variant.what,
                variant.prediction,
                _code(entry),
                reach,
                _result(variant, measured),
                variant.verdict,
            )
        )
    return _table(head, rows)


def _code(entry: Entry) -> str:
    spilled = f", {entry['local']} bytes of a thread spilled" if entry["local"] else ""
    return (
        f"{label(entry['kernel'])}: {entry['registers']} registers, {entry['threads']} threads, "
        f"{entry['kib']:.0f} KiB in flight, {entry['shuffles']} shuffles{spilled}"
    )


def _result(variant: Variant, measured: Report | None) -> str:
    """Return how fast a variant was, as far as it was measured."""
    if measured is None:
        return "not measured yet"
    case = tune_gpu.case_of(variant.kernels[0])
    for entry in measured["entries"]:
        if (entry["contender"], entry["mode"], entry["dtype"]) == (variant.name, case.mode.name, case.dtype):
            return f"{1 / entry['to_gpureg']:.3f} of the shipped speed, {1 / entry['to_limit']:.3f} of the limit"
    return str(measured.get("left_out", {}).get(f"{case}: {variant.name}", "left out"))


def _chips(entries: Iterable[Entry]) -> str:
    by_chip = {
        (chip, entry["kernel"]): roofline.busiest(shares)
        for entry in entries
        if entry["variant"] == SHIPPED.name
        for chip, shares in entry["shares"].items()
    }
    head = ("chip", *map(label, SHIPPED.kernels))
    rows = []
    for chip in CHIPS:
        units = (by_chip[chip, kernel] for kernel in SHIPPED.kernels)
        rows.append((chip, *(f"{unit} {share:.0%}" for unit, share in units)))
    return _table(head, rows)


def label(kernel: str) -> str:
    """Return what a kernel computes, in words.

    >>> label(SHIPPED.kernels[0])
    'value, float32'
    """
    case = tune_gpu.case_of(kernel)
    return f"{case.mode.name.replace(', L1 + L2', '')}, {case.dtype}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a kernel was not timed or other tables are there, 2 if a file is not as expected."""
    parser = argparse.ArgumentParser(prog="bench.tune", description="Try variants of the kernels.")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="for --write and --check, what was kept")
    parser.add_argument("--sass", action="store_true", help="only compile, and read machine code: needs no GPU")
    parser.add_argument("--architectures", nargs="+", default=DEFAULT, choices=list(ARCHITECTURES), metavar="SM")
    parser.add_argument("-o", "--output", type=Path, metavar="REPORT", help="where the report goes")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing on a GPU, about (default: 60)")
    parser.add_argument("--commit", help="what `git describe --always --dirty` says, for a tree without its history")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between their markers")
    parser.add_argument("--check", type=Path, metavar="PAGE", help="exit with 1 if other tables are there")
    given = parser.parse_args(arguments)
    try:
        if given.write or given.check:
            return _page(parser, given)
        if given.files or not (given.sass or given.output):
            parser.error("one of --sass, --output, --write and --check is needed, and files only for the last two")
        return _sass(given) if given.sass else _measure(given)
    except (ReportError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _sass(given: argparse.Namespace) -> int:
    entries = []
    for entry in (*inspected([SHIPPED], list(ARCHITECTURES)), *inspected(VARIANTS, given.architectures)):
        entries.append(entry)
        print(f"{entry['variant']:<20} {entry['architecture']:<7} {_code(entry)}", flush=True)
    if given.output:
        given.output.write_text(report.dumps(sass_report(entries, gpu_environment.describe(given.commit))))
    return 0


def _measure(given: argparse.Namespace) -> int:
    said = {"columns": {"shipped": {"role": "gpureg"}, "memory limit": {"role": "limit"}}, "legend": tune_gpu.LEGEND}
    run = gpu.Run(gpu_environment.describe(given.commit), given.output, said)
    tune_gpu.measure(run, given.seconds)
    for case, reason in (run.missing | run.left_out).items():
        print(f"{case}: {reason}", file=sys.stderr)
    return 1 if run.missing else 0


def _page(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    if not 1 <= len(given.files) <= 2:
        parser.error("--write and --check take the report of --sass, and that of a GPU if there is one")
    page = given.write or given.check
    sass, measured = load(given.files[0]), report.load(given.files[1]) if len(given.files) > 1 else None
    old = page.read_text()
    new = report.replaced(old, given.files[0].stem, tables(sass, measured))
    if given.write:
        page.write_text(new)
    elif new != old:
        print(f"{page.name}: its tables are not those of {given.files[0].name}; run --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
