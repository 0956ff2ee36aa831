"""Contenders over whole models, checked, and timed in turn for pytest-benchmark."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

from bench.inputs import set_count
from bench.model_contenders import Contender, Entry
from bench.model_inputs import SMALL_BYTES, Case
from bench.race import Race, WrongError, replay, timed

Some = TypeVar("Some", bound=Case)
Field = Callable[[Any], Iterable[Contender]]
"""Yields all that run in a case."""


def small(case: Some) -> Some:
    """Return a case of a smaller model: where only is looked whether contenders are right."""
    return dataclasses.replace(case, limit_bytes=SMALL_BYTES)


def entered(case: Case, contender: Contender) -> list[Entry]:
    """Return the contender with each set of arrays; raise a WrongError if it is wrong on the first."""
    for model in case.sets:
        model.restart()
    entries = [contender.enter(case, model) for model in case.sets]
    what = contender.wrong(case, case.sets[0], entries[0])
    if what is not None:
        raise WrongError(f"{case}: {contender.name}: {what}")
    return entries


@functools.cache
def _race(field: Field, case: Case, seconds: float, least_rounds: int) -> Race:
    """Check all contenders of a case, then time them in turn."""
    return timed(
        {each.name: [entry.run for entry in entered(case, each)] for each in field(case)}, seconds, least_rounds
    )


def run(benchmark: Any, config: pytest.Config, field: Field, case: Case, contender: Contender) -> None:
    """Tell pytest-benchmark how a contender did in the race of its case; where nothing is timed, check it."""
    if benchmark.disabled:
        entered(small(case), contender)
        benchmark.pedantic(lambda: None)
        return
    options = config.getoption("benchmark_max_time"), config.getoption("benchmark_min_rounds")
    result = _race(field, case, float(options[0]), int(options[1]))
    facts = {
        "model": case.model,
        "tensors": len(case.penalised),
        "mode": case.mode,
        "dtype": case.dtype,
        "elements": case.elements,
        "moved_bytes": case.single().moved_bytes,
        "role": contender.role,
        "sets": set_count(4 * case.elements),
    }
    replay(benchmark, result, contender.name, str(case), facts)
