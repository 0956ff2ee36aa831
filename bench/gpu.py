"""Benchmarks on a GPU: `python -m bench.gpu --output report.json --seconds 120`.

Single tensors from 1 KiB up, in every mode and dtype, whole models, and at the end what takes seconds to compile. The
report has the form of `bench/report.py`, with the time that the host takes to launch and the time of a call alone
besides. It is written anew after each comparison, so that whoever ends the run early keeps what was measured.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import gpu_environment, gpu_inputs, gpu_models, gpu_peers, model_contenders, model_inputs, report
from bench.cases import MODES, Case, Mode
from bench.gpu_checks import Contender
from bench.gpu_contenders import contenders
from bench.gpu_race import Race, Round, race
from gpureg import selftest

SIZES = {
    "float32": (26, 28, 29, 24, 20, 10, 22, 18, 14, 8, 30),
    "bfloat16": (26, 28, 30, 24, 20, 9),
    "float16": (26, 28, 30, 20, 9),
    "float64": (26, 28, 20, 7, 30),
}
"""Exponents of the numbers of elements, the most telling ones first, in case the time ends: from 2**10 bytes up."""

BEYOND = 2**32 + 2**20
"""Elements that are more than 32 bits can count, of bfloat16 and float32."""

QUICK = {"float32": (26, 10), "bfloat16": (26,)}

COMPILED: dict[str, Sequence[Mode]] = {"float32": MODES, "bfloat16": MODES[2:]}
"""Where `torch.compile`, `cuda.compute` and JAX take part, of 2**26 elements, beside GPT-2: at the end."""

COMPILE_SECONDS = 8.0
"""Kept back of the time for each comparison that compiles, but no more than half of all."""

COLUMNS: report.Columns = {
    "gpureg": {"role": "gpureg"},
    "CuPy best": {"role": "best"},
    "CuPy as written": {"role": "naive"},
    "cuBLAS": {"role": "best", "contender": ["cublas", "asum"]},
    "ReductionKernel": {"role": "best", "contender": ["ReductionKernel"]},
    "cuda.compute": {"role": "other", "contender": ["cuda.compute"]},
    "torch eager": {"role": "other", "contender": ["torch: "]},
    "torch.compile": {"role": "other", "contender": ["torch.compile"]},
    "JAX jit": {"role": "other", "contender": ["jax.jit"]},
    "memory limit": {"role": "limit"},
}
"""As `report.COLUMNS`."""

MODEL_COLUMNS: report.Columns = {
    "gpureg": {"role": "gpureg"},
    "CUDA graph": {"role": "other", "contender": ["CUDA graph"]},
    "single calls": {"role": "other", "contender": ["reg(", "reg."]},
    "CuPy best": {"role": "best"},
    "CuPy as written": {"role": "naive"},
    **{label: report.MODEL_COLUMNS[label] for label in ("torch loop", "torch autograd", "torch foreach", "JAX jit")},
    "memory limit": {"role": "limit"},
}
"""As `report.MODEL_COLUMNS`."""

LEGEND = report.LEGEND | {
    "columns": "CuPy best is the fastest of CuPy's forms, cuBLAS and ReductionKernel among them: these two give the "
    "value, and CuPy's functions in place or an ElementwiseKernel the gradient",
    "contender": "the code, for weights w, a gradient g and a scratch array s; CuPy's expressions on 16-bit weights "
    "first make a float32 w of them, its kernels read them as they are; of a whole model: for all weights, their "
    "gradients grads, and a regularizer reg for a single tensor",
    "role": "gpureg; best: CuPy in its best forms, in place, by cuBLAS, by kernels of one's own; naive: CuPy as most "
    "write it; other: a planned step as a CUDA graph, PyTorch, cuda.compute, JAX; limit: a plain pass over the same "
    "bytes; the memory limit is the one with the lowest median",
    "sets": "sets of arrays, one for each call of a round; before a round the second-level cache is read full of "
    "something else, so that no call finds its arrays there",
    "rounds": "rounds timed, all contenders of a comparison in turn in each, in an order that changes; a round is the "
    "mean of so many calls, between two events on the device, which is kept busy until all are launched; of JAX, "
    "which has streams of its own, by the host's clock, so with what the launch takes",
    "host_seconds": "median over the rounds of the time that the host takes for a call, not waiting for the device",
    "end_to_end_seconds": "median over the rounds of the time of a call alone, by the host's clock, from before it "
    "until the device is done",
    "left_out": "what did not take part, and why",
}

AnyCase = Case | model_inputs.Case
Entrant = Contender | model_contenders.Contender


class Planned(NamedTuple):
    """A comparison, and whether what takes seconds to compile takes part in it."""

    case: AnyCase
    compiled: bool


def plan(*, quick: bool) -> list[Planned]:
    """Return all comparisons, the most telling ones first; what compiles comes last, in place of what has been."""
    if quick:
        return [Planned(case, compiled=False) for case in _singles(QUICK)]
    singles, models = _singles(SIZES), gpu_models.CASES
    table, larger, rest = singles[: len(MODES)], singles[len(MODES) : 5 * len(MODES)], singles[5 * len(MODES) :]
    beyond = _known(Case(mode, dtype, BEYOND) for dtype in ("bfloat16", "float32") for mode in (MODES[2], MODES[4]))
    compiled = _known(Case(mode, dtype, 2**26) for dtype, modes in COMPILED.items() for mode in modes)
    steps = gpu_models.STEPS
    first: list[Sequence[AnyCase]] = [table, models[:4], steps, larger, models[4:], rest, beyond]
    again = [case for case in models if case.model == "gpt2"]
    last: list[Sequence[AnyCase]] = [compiled, again, [case for case in steps if case.step == "gradient"]]
    return [
        *(Planned(case, compiled=False) for cases in first for case in cases),
        *(Planned(case, compiled=True) for cases in last for case in cases),
    ]


def _known(cases: Iterable[Case]) -> list[Case]:
    """Return the comparisons whose dtype NumPy knows."""
    return [case for case in cases if case.dtype in selftest.dtypes()]


def _singles(sizes: dict[str, tuple[int, ...]]) -> list[Case]:
    """Return the comparisons of single tensors: for each place in the list of sizes all dtypes that have it."""
    return _known(
        Case(mode, dtype, 2 ** sizes[dtype][place])
        for place in range(max(map(len, sizes.values())))
        for dtype in sizes
        if place < len(sizes[dtype])
        for mode in MODES
    )


class Run:
    """What has been measured so far, and its report."""

    def __init__(self, facts: gpu_environment.Facts, output: Path, said: dict[str, Any] | None = None) -> None:
        self._facts, self._output = facts, output
        self._said = said or {
            "columns": COLUMNS,
            "model_columns": MODEL_COLUMNS,
            "torch_columns": report.TORCH_COLUMNS,
            "legend": LEGEND,
        }
        self._measured: dict[AnyCase, tuple[Sequence[Any], Race]] = {}
        self.left_out: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def compare(self, planned: Planned, seconds: float) -> None:
        """Make a comparison if there is memory for it, and keep it."""
        case = planned.case
        if isinstance(case, Case):
            gpu_models.forget()
            needed = gpu_inputs.needed_bytes(case.dtype, case.elements)
        else:
            gpu_inputs.tensors.cache_clear()
            needed = gpu_models.needed_bytes(case)
        free, _ = gpu_inputs.cp().cuda.runtime.memGetInfo()
        if needed > free + gpu_inputs.cp().get_default_memory_pool().total_bytes():
            self.left_out[str(case)] = f"needs {needed / 2**30:.0f} GiB of memory"
        elif isinstance(case, Case):
            field = list(contenders(case, compiled=planned.compiled))
            self.keep(case, field, race(case, field, seconds))
        else:
            entrants = list(gpu_models.contenders(case, compiled=planned.compiled))
            self.keep(case, entrants, gpu_models.race(case, entrants, seconds))

    def keep(self, case: AnyCase, field: Sequence[Entrant], result: Race) -> None:
        """Keep what a race measured, if gpureg and a limit took part."""
        for name, reason in result.left_out.items():
            self.left_out[f"{case}: {name}"] = _public(reason)
        took_part = [each for each in field if each.name in result.rounds]
        lacking = {"gpureg", "limit"} - {each.role for each in took_part}
        if lacking:
            self.missing[str(case)] = f"no {' and no '.join(sorted(lacking))} took part"
        else:
            self._measured[case] = took_part, result
            self.missing.pop(str(case), None)

    def write(self) -> None:
        """Write the report of what there is."""
        head = {name: self._facts[name] for name in ("date", "machine", "versions", "commit", "uncommitted_changes")}
        whole = {"schema": report.SCHEMA, **head, **self._said, "left_out": self.left_out}
        new = self._output.with_suffix(".new")
        new.write_text(report.dumps({**whole, "missing": self.missing, "entries": self._entries()}))
        new.replace(self._output)

    def _entries(self) -> list[dict[str, Any]]:
        """Return the entries of the report, in the order of what was measured."""
        if not self._measured:
            return []
        measured = [result.rounds[each.name] for field, result in self._measured.values() for each in field]
        entries = report.summarise(self._raw())["entries"]
        return [entry | _on_the_host(rounds) for entry, rounds in zip(entries, measured, strict=True)]

    def _raw(self) -> dict[str, Any]:
        """Return what was measured in the form of pytest-benchmark's data; the report's head is not made from it."""
        benchmarks = [
            {"stats": {"data": [each.device for each in result.rounds[entrant.name]]}, "extra_info": facts}
            for case, (field, result) in self._measured.items()
            for entrant in field
            for facts in [_facts(case, entrant)]
        ]
        ours = {"versions": dict.fromkeys(("numpy", "blas", "gpureg"), "any"), "cores": 1, "cache_bytes": 1}
        info = {"cpu": {}, "machine": "any", "system": "any", "release": "0.0", "python_version": "any"}
        return {
            "machine_info": info | {"gpureg": ours | {"memory_bytes": None}},
            "commit_info": {"id": "unversioned", "dirty": True},
            "datetime": datetime.now(UTC).isoformat(),
            "benchmarks": benchmarks,
        }


def _facts(case: AnyCase, entrant: Entrant) -> dict[str, Any]:
    if isinstance(case, Case):
        own = {"mode": case.mode.name, "moved_bytes": case.moved_bytes}
        sets = gpu_inputs.set_count(case.elements * case.itemsize)
    else:
        own = {"mode": case.mode, "moved_bytes": case.single().moved_bytes}
        own |= {"model": case.model, "tensors": len(case.penalised)}
        sets = gpu_models.set_count(case)
    return {
        **own,
        "dtype": case.dtype,
        "elements": case.elements,
        "contender": entrant.name,
        "role": entrant.role,
        "calls": sets,
        "sets": sets,
    }


def _on_the_host(rounds: Sequence[Round]) -> dict[str, float]:
    """Return what the host's clock says of a contender's calls."""
    times = {"host_seconds": [each.host for each in rounds]}
    alone = [each.alone for each in rounds if each.alone is not None]
    times |= {"end_to_end_seconds": alone} if alone else {}
    return {name: float(f"{np.median(seconds):.4g}") for name, seconds in times.items()}


def _public(reason: str) -> str:
    """Return a reason without what looks like a path of this machine."""
    return " ".join(word for word in reason.split() if "/" not in word and "~" not in word)[:200]


def measure(run: Run, planned: Sequence[Planned], seconds: float) -> None:
    """Make the comparisons in so many seconds; each gets an equal share of what is left.

    Of what compiles, some is kept back, so that it comes to it whatever the others take.
    """
    end = time.monotonic() + seconds
    kept_for_each = min(COMPILE_SECONDS, 0.5 * seconds / max(1, sum(each.compiled for each in planned)))
    written = 0.0
    for number, each in enumerate(planned):
        left = end - time.monotonic()
        if not each.compiled:
            left -= kept_for_each * sum(later.compiled for later in planned[number:])
        if left <= 0:
            run.missing.setdefault(str(each.case), "the time ended")
            continue
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
    run.left_out |= gpu_peers.absent()
    run.write()
    measure(run, plan(quick=given.quick), given.seconds)
    for case, reason in run.missing.items():
        print(f"{case}: {reason}", file=sys.stderr)
    return 1 if run.missing else 0


if __name__ == "__main__":
    sys.exit(main())
