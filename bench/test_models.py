"""Whole models: their penalty, or their penalty and its gradient added; in one pass, or tensor by tensor."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from bench.inputs import set_count, xp
from bench.model_contenders import Contender, Entry, field, wrong_gradients
from bench.model_inputs import CASES, SMALL_BYTES, Case, Model
from bench.race import CLOCK, Race, WrongError, replay, timed

pytestmark = pytest.mark.skipif(xp is not np, reason="whole models are compared on the CPU alone")


def _entered(case: Case, contender: Contender) -> list[Entry]:
    """Return the contender with each set of arrays; raise a WrongError if it is wrong on the first."""
    for model in case.sets:
        model.restart()
    entries = [contender.enter(case, model) for model in case.sets]
    what = contender.wrong(case, case.sets[0], entries[0])
    if what is not None:
        raise WrongError(f"{case}: {contender.name}: {what}")
    return entries


@functools.cache
def _race(case: Case, seconds: float, least_rounds: int) -> Race:
    """Check all contenders of a case, then time them in turn."""
    return timed(
        {each.name: [entry.run for entry in _entered(case, each)] for each in field(case)}, seconds, least_rounds
    )


@pytest.mark.benchmark(timer=CLOCK.now)
@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, each, id=f"{case}-{each.name}") for case in CASES for each in field(case)],
)
def test_model(benchmark: Any, pytestconfig: pytest.Config, case: Case, contender: Contender) -> None:
    if benchmark.disabled:
        _entered(_small(case), contender)
        benchmark.pedantic(lambda: None)
        return
    options = pytestconfig.getoption("benchmark_max_time"), pytestconfig.getoption("benchmark_min_rounds")
    result = _race(case, float(options[0]), int(options[1]))
    replay(benchmark, result, contender.name, str(case), _facts(case, contender))


def _small(case: Case) -> Case:
    return dataclasses.replace(case, limit_bytes=SMALL_BYTES)


def _facts(case: Case, contender: Contender) -> dict[str, Any]:
    return {
        "model": case.model,
        "tensors": len(case.penalised),
        "mode": case.mode,
        "dtype": "float32",
        "elements": case.elements,
        "moved_bytes": case.single().moved_bytes,
        "role": contender.role,
        "sets": set_count(4 * case.elements),
    }


@pytest.mark.parametrize("case", [_small(case) for case in CASES], ids=str)
def test_a_wrong_total_is_an_error(case: Case) -> None:
    for each in field(case):
        if each.role != "limit":
            with pytest.raises(WrongError, match="the total is"):
                _entered(case, each._replace(enter=functools.partial(_too_much, each)))


def _too_much(contender: Contender, case: Case, model: Model) -> Entry:
    entry = contender.enter(case, model)
    factor = 1.5 if "_foreach_norm" in contender.name else 1.01  # which may be off by some percent
    return entry._replace(run=lambda: entry.run() * factor)


@pytest.mark.parametrize("case", [_small(case) for case in CASES if case.adds], ids=str)
def test_gradients_that_are_left_as_they_were_are_an_error(case: Case) -> None:
    adds, *_ = field(case)
    value, *_ = field(dataclasses.replace(case, adds=False))
    with pytest.raises(WrongError, match=r"the gradient of .* is off"):
        _entered(case, adds._replace(enter=value.enter))


def test_a_gradient_that_is_not_penalised_is_looked_at_too() -> None:
    case = next(_small(case) for case in CASES if case.decay)
    model = case.sets[0]
    model.restart()
    entry = next(field(case)).enter(dataclasses.replace(case, decay=False), model)
    entry.run()
    assert str(wrong_gradients(case, model, entry)).startswith("the gradient of transformer.h.0.ln_1.weight is off")
