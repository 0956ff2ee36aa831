"""Benchmarks on a GPU: `python -m bench.gpu --output report.json --seconds 120`.

The report has the form of `bench/report.py`, with the time that the host takes to launch besides. It is written anew
after each comparison, so that whoever ends the run early keeps what was measured.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import gpu_environment, gpu_inputs, report
from bench.cases import MODES, Case
from bench.gpu_checks import Contender
from bench.gpu_contenders import contenders
from bench.gpu_race import Race, race
from gpureg import selftest

SIZES = {
    "float32": (26, 28, 30, 10, 20, 24, 22, 18, 14),
    "bfloat16": (26, 28, 30, 10, 20),
    "float16": (26, 28, 30, 10, 20),
    "float64": (26, 28, 30, 10, 20),
}
"""Exponents of the numbers of elements, the most telling ones first, in case the time ends."""

QUICK = {"float32": (26, 10), "bfloat16": (26,)}

COMPILED = {"float32": (26,), "bfloat16": (26,)}
"""Where `torch.compile` takes part, which takes seconds to compile: at the end."""

COLUMNS: report.Columns = {
    "gpureg": {"role": "gpureg"},
    "CuPy best": {"role": "best"},
    "CuPy as written": {"role": "naive"},
    "cuBLAS": {"role": "best", "contender": ["cublas", "asum"]},
    "ReductionKernel": {"role": "best", "contender": ["ReductionKernel"]},
    "torch eager": {"role": "other", "contender": ["torch: "]},
    "torch.compile": {"role": "other", "contender": ["torch.compile"]},
    "memory limit": {"role": "limit"},
}
"""As `report.COLUMNS`."""

LEGEND = report.LEGEND | {
    "columns": "CuPy best is the fastest of CuPy's forms, cuBLAS and ReductionKernel among them: these two give the "
    "value, and CuPy's functions in place or an ElementwiseKernel the gradient",
    "contender": "the code, for weights w, a gradient g and a scratch array s; CuPy's expressions on 16-bit weights "
    "first make a float32 w of them, its kernels read them as they are",
    "role": "gpureg; best: CuPy in its best forms, in place, by cuBLAS, by kernels of one's own; naive: CuPy as most "
    "write it; other: PyTorch, eager and compiled; limit: a plain pass over the same bytes; the memory limit is the "
    "one with the lowest median",
    "sets": "sets of arrays, one for each call of a round; before a round the second-level cache is read full of "
    "something else, so that no call finds its arrays there",
    "rounds": "rounds timed, all contenders of a comparison in turn in each, in an order that changes; a round is the "
    "mean of so many calls, between two events on the device, which is kept busy until all are launched",
    "host_seconds": "median over the rounds of the time that the host takes for a call, not waiting for the device",
    "left_out": "what did not take part, and why",
}


class Planned(NamedTuple):
    """A comparison, and whether `torch.compile` takes part in it."""

    case: Case
    compiled: bool


def plan(*, quick: bool) -> list[Planned]:
    """Return all comparisons, the most telling ones first; what compiles comes last, in place of what has been."""
    sizes = QUICK if quick else SIZES
    dtypes = [dtype for dtype in sizes if dtype in selftest.dtypes()]
    longest = max(map(len, sizes.values()))
    first = [
        Planned(Case(mode, dtype, 2 ** sizes[dtype][place]), compiled=False)
        for place in range(longest)
        for dtype in dtypes
        if place < len(sizes[dtype])
        for mode in MODES
    ]
    last = [
        Planned(Case(mode, dtype, 2**exponent), compiled=True)
        for dtype, exponents in COMPILED.items()
        if dtype in dtypes and not quick
        for exponent in exponents
        for mode in MODES
    ]
    return first + last


class Run:
    """What has been measured so far, and its report."""

    def __init__(self, facts: gpu_environment.Facts, output: Path) -> None:
        self._facts, self._output = facts, output
        self._measured: dict[Case, tuple[list[Contender], Race]] = {}
        self.left_out: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def compare(self, planned: Planned, seconds: float) -> None:
        """Make a comparison, and keep it if gpureg and a limit took part."""
        case = planned.case
        free, _ = gpu_inputs.cp().cuda.runtime.memGetInfo()
        pool = gpu_inputs.cp().get_default_memory_pool()
        needed = gpu_inputs.needed_bytes(case.dtype, case.elements)
        if needed > free + pool.total_bytes():
            self.left_out[str(case)] = f"needs {needed / 2**30:.0f} GiB of memory"
            return
        field = list(contenders(case, compiled=planned.compiled))
        result = race(case, field, seconds)
        for name, reason in result.left_out.items():
            self.left_out[f"{case}: {name}"] = _public(reason)
        took_part = [each for each in field if each.name in result.rounds]
        lacking = {"gpureg", "limit"} - {each.role for each in took_part}
        if lacking:
            self.missing[str(case)] = f"no {' and no '.join(sorted(lacking))} took part"
        else:
            self._measured[case] = took_part, result

    def write(self) -> None:
        """Write the report of what there is."""
        head = {name: self._facts[name] for name in ("date", "machine", "versions", "commit", "uncommitted_changes")}
        whole = {"schema": report.SCHEMA, **head, "columns": COLUMNS, "legend": LEGEND, "left_out": self.left_out}
        new = self._output.with_suffix(".new")
        new.write_text(report.dumps({**whole, "missing": self.missing, "entries": self._entries()}))
        new.replace(self._output)

    def _entries(self) -> list[dict[str, Any]]:
        if not self._measured:
            return []
        host = {
            (case.mode.name, case.dtype, case.elements, name): float(np.median([each.host for each in rounds]))
            for case, (_, result) in self._measured.items()
            for name, rounds in result.rounds.items()
        }
        entries = report.summarise(self._raw())["entries"]
        for entry in entries:
            seconds = host[entry["mode"], entry["dtype"], entry["elements"], entry["contender"]]
            entry["host_seconds"] = float(f"{seconds:.4g}")
        return list(entries)

    def _raw(self) -> dict[str, Any]:
        """Return what was measured in the form of pytest-benchmark's data; the report's head is not made from it."""
        benchmarks = [
            {"stats": {"data": [each.device for each in result.rounds[contender.name]]}, "extra_info": facts}
            for case, (field, result) in self._measured.items()
            for contender in field
            for facts in [_facts(case, contender)]
        ]
        ours = {"versions": dict.fromkeys(("numpy", "blas", "gpureg"), "any"), "cores": 1, "cache_bytes": 1}
        info = {"cpu": {}, "machine": "any", "system": "any", "release": "0.0", "python_version": "any"}
        return {
            "machine_info": info | {"gpureg": ours | {"memory_bytes": None}},
            "commit_info": {"id": "unversioned", "dirty": True},
            "datetime": datetime.now(UTC).isoformat(),
            "benchmarks": benchmarks,
        }


def _facts(case: Case, contender: Contender) -> dict[str, Any]:
    sets = gpu_inputs.set_count(case.elements * case.itemsize)
    return {
        "mode": case.mode.name,
        "dtype": case.dtype,
        "elements": case.elements,
        "moved_bytes": case.moved_bytes,
        "contender": contender.name,
        "role": contender.role,
        "calls": sets,
        "sets": sets,
    }


def _public(reason: str) -> str:
    """Return a reason without what looks like a path of this machine."""
    return " ".join(word for word in reason.split() if "/" not in word and "~" not in word)[:200]


def measure(run: Run, planned: Sequence[Planned], seconds: float) -> None:
    """Make the comparisons in so many seconds; each gets an equal share of what is left."""
    end = time.monotonic() + seconds
    written = 0.0
    for number, each in enumerate(planned):
        left = end - time.monotonic()
        if left <= 0:
            run.missing |= {str(late.case): "the time ended" for late in planned[number:]}
            break
        try:
            run.compare(each, min(1.0, 0.5 * left / (len(planned) - number)))
        except Exception as error:  # whatever it is, the other comparisons are still wanted
            run.missing[str(each.case)] = _public(f"{type(error).__name__}: {error}")
        if time.monotonic() > written + 5:
            run.write()
            written = time.monotonic()
    run.write()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 1 if a comparison is missing."""
    parser = argparse.ArgumentParser(description="Benchmarks on a GPU.")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="REPORT", help="where the report goes")
    parser.add_argument("--seconds", type=float, default=120.0, help="end after about so many (default: 120)")
    parser.add_argument("--quick", action="store_true", help="two sizes and two dtypes, and nothing compiled")
    parser.add_argument("--commit", help="what `git describe --always --dirty` says, for a tree without its history")
    given = parser.parse_args(arguments)
    run = Run(gpu_environment.describe(given.commit), given.output)
    run.write()
    measure(run, plan(quick=given.quick), given.seconds)
    for case, reason in run.missing.items():
        print(f"{case}: {reason}", file=sys.stderr)
    return 1 if run.missing else 0


if __name__ == "__main__":
    sys.exit(main())
