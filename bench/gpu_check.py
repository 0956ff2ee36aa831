"""All that needs a GPU, in one command and one report: `make gpu-check`, or `python -m bench.gpu_check`.

Its parts run one after another, each in processes of its own with a time limit, so that the crash or the hang of one
loses nothing of the others:

    environment   the device, the driver, and the versions of all that takes part
    check         `gpureg check --json`: the golden checksums, and fresh weights
    tests         tests/gpu; a test that is skipped has failed, but where this GPU is too small for it
    sanitizer     compute-sanitizer's tools over a few of these tests, and over a fault that each must see
    benchmarks    `bench/gpu.py`

It ends in under nine minutes and always leaves a report, in which a part that is missing or failed says why. The report
has the form of `bench/report.py`, so that tables and pictures are drawn from it. It needs Python's standard library
alone, and nothing is fetched or installed: what is missing is what the report says. What the processes print goes into
a log beside the report.

exit status: 0 all parts passed, 1 one did not
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parent.parent
if __package__ in (None, ""):
    sys.path.insert(0, str(ROOT))  # run as a file

from bench.gpu_parts import PARTS, Options, Processes, failed  # noqa: E402

SECONDS = 525.0
"""All parts together; what the others leave is for the benchmarks, which come last."""

LIMITS = {"environment": 45.0, "check": 90.0, "tests": 150.0, "sanitizer": 150.0, "benchmarks": SECONDS}
"""Each part alone: the last has a minute and a half even if all others take theirs."""

SCHEMA = 1
"""As in `bench/report.py`."""

HEAD = (
    *("date", "machine", "versions", "commit", "uncommitted_changes"),
    *("columns", "model_columns", "legend", "left_out"),
)
"""What parts know that belongs to the whole report."""

Report = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and write the report; return 0 if all passed."""
    options = parser().parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    log = options.output.with_suffix(".log")
    log.unlink(missing_ok=True)
    chosen = [name for name in PARTS if not options.only or name in options.only]
    report: Report = {
        "schema": SCHEMA,
        "quick": options.quick,
        "parts": {name: failed("it did not run") for name in chosen},
    }
    write(report, options.output)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name in chosen:
                report["parts"][name] |= {"reason": "it was interrupted"}
                limit = min(LIMITS[name], SECONDS - (time.monotonic() - start))
                processes = Processes(Path(scratch), limit, log)
                report["parts"][name] = run(name, processes, Options(options.quick, options.commit))
                _lift(report, name)
                write(report, options.output)
                print(line(name, report["parts"][name]), flush=True)
    except KeyboardInterrupt:
        write(report, options.output)
    ok = all(part["ok"] for part in report["parts"].values())
    print(f"{'all parts passed' if ok else 'NOT ALL PARTS PASSED'}, {time.monotonic() - start:.0f} s: {options.output}")
    return 0 if ok else 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(prog="bench.gpu_check", description="Check gpureg on a GPU.")
    result.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("build/gpu-check.json"),
        metavar="REPORT",
        help="where the report goes",
    )
    result.add_argument("--only", action="append", choices=list(PARTS), help="a part to run; may be given again")
    result.add_argument("--quick", action="store_true", help="a smaller choice of tests, tools and sizes, in a minute")
    result.add_argument("--commit", help="what `git describe --always --dirty` says, for a tree without its history")
    return result


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and the report is to be written
    raise KeyboardInterrupt


def run(name: str, processes: Processes, options: Options) -> Report:
    """Run a part and return what there is to be said of it; what goes wrong in this very program is said too."""
    start = time.monotonic()
    try:
        part = PARTS[name](processes, options) if processes.left() > 0 else failed("no time was left for it")
    except Exception as error:  # a report is written whatever happens
        part = failed(f"{type(error).__name__}: {error}")
    return {**part, "seconds": round(time.monotonic() - start, 1)}


def _lift(report: Report, name: str) -> None:
    """Move what belongs to the whole report there: the first part that knows a thing is believed."""
    part = report["parts"][name]
    for key in HEAD:
        if key in part:
            report.setdefault(key, part.pop(key))
    if "entries" in part:
        report["entries"] = part.pop("entries")


def write(report: Report, path: Path) -> None:
    """Write the report, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(dumps(public(report)), encoding="utf-8")
    os.replace(new, path)  # noqa: PTH105 - the same, and the path stays the one given


def public(value: Any) -> Any:
    """Return what may be published: paths of this machine are cut down to the names of files."""
    if isinstance(value, dict):
        return {key: public(each) for key, each in value.items()}
    if isinstance(value, list):
        return [public(each) for each in value]
    return re.sub(r"(?<![\w.])~?(?:/[\w.+@=-]+)*/([\w.+@=-]+)", r"\1", value) if isinstance(value, str) else value


def dumps(report: Report) -> str:
    """Return a report as JSON, an entry of the benchmarks a line."""
    ok = all(part["ok"] for part in report["parts"].values())
    first = {key: report[key] for key in ("schema", *HEAD) if key in report}
    rest = {key: value for key, value in report.items() if key not in first and key != "entries"}
    head = json.dumps(first | {"ok": ok} | rest, indent=2)
    entries = ",\n".join(f"    {json.dumps(entry)}" for entry in report.get("entries", []))
    return f'{head[:-2]},\n  "entries": [\n{entries}\n  ]\n}}\n'


def line(name: str, part: Report) -> str:
    """Return what a person reads of a part."""
    return f"{name:<12} {'ok' if part['ok'] else 'FAILED: ' + part['reason']} ({part['seconds']:.0f} s)"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # so that what is running is ended too
    sys.exit(main())
