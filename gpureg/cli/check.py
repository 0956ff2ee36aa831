"""`gpureg check`: what is installed, which backends are usable and why not the others, and do they give the right bits.

It needs NumPy alone, so that it can say what is missing.
"""

import argparse
import json
import platform
import sys
import time
from typing import Any

import gpureg
from gpureg import backends, environment, samples, selftest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--seed", type=_seed, metavar="N", help="seed of the fresh weights (default: another one each time)"
    )


def _seed(given: str) -> int:
    number = int(given)
    if not 0 <= number < samples.SEEDS:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {samples.SEEDS - 1}, not {given}")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Print the report; return 0 if every usable backend passed, else 1."""
    seed = time.time_ns() % samples.SEEDS if arguments.seed is None else arguments.seed
    report = examine(seed)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if arguments.json else text(report))
    return 0 if report["ok"] else 1


def examine(seed: int) -> dict[str, Any]:
    """Return the report, of JSON's types alone."""
    rows = [_backend(name, seed) for name in backends.NAMES]
    return {
        "gpureg": gpureg.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **environment.describe(),
        "cpu": backends.cpu().name,
        "seed": seed,
        "backends": rows,
        "ok": all(row["failed"] == [] for row in rows if row["usable"]),
    }


def _backend(name: str, seed: int) -> dict[str, Any]:
    """Return what is to be said of a backend, after testing it if it can be used."""
    backend = backends.load(name)
    reason = backend.unusable()
    row: dict[str, Any] = {"name": name, "usable": reason is None, "reason": reason}
    if reason is None:
        start = time.perf_counter()
        outcome = selftest.run(backend, seed)
        seconds = time.perf_counter() - start
        row |= {"golden": outcome.golden, "fresh": outcome.fresh, "failed": list(outcome.failed), "seconds": seconds}
    return row


def text(report: dict[str, Any]) -> str:
    """Return the report as a person reads it."""
    lines = [f"gpureg {report['gpureg']}, Python {report['python']}, {report['platform']}", "", "installed"]
    for name in ("numpy", "ml_dtypes", "llvmlite", "cupy", "nvrtc", "driver"):
        found = report[name]
        lines.append(f"  {name:<10} {found['version'] or found['reason']}")
    lines += [f"  {'GPU':<10} {gpu}" for gpu in report["gpus"]]
    lines += ["", "backends"]
    for row in report["backends"]:
        if not row["usable"]:
            lines.append(f"  {row['name']:<10} not usable: {row['reason']}")
            continue
        made = f"{row['golden']} known checksums and {row['fresh']} comparisons of fresh weights, seed {report['seed']}"
        verdict = f"{len(row['failed'])} FAILED" if row["failed"] else "all right"
        lines.append(f"  {row['name']:<10} {made}: {verdict} ({row['seconds']:.1f} s)")
        lines += [f"  {'':<10} wrong bits: {name}" for name in row["failed"][:10]]
        if len(row["failed"]) > 10:
            lines.append(f"  {'':<10} and {len(row['failed']) - 10} more")
    lines += ["", f"arrays in the CPU's memory are computed by {report['cpu']}"]
    lines += ["", "all is well" if report["ok"] else "WRONG BITS: do not trust this installation's numbers", ""]
    return "\n".join(lines)
