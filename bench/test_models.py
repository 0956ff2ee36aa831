"""Whole models: their penalty, or their penalty and its gradient added; in one pass, or tensor by tensor."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from bench.inputs import xp
from bench.model_contenders import Contender, Entry, field, wrong_gradients
from bench.model_inputs import CASES, Case, Model
from bench.model_race import entered, run, small
from bench.race import CLOCK, WrongError

pytestmark = pytest.mark.skipif(xp is not np, reason="whole models are compared on the CPU alone")


@pytest.mark.benchmark(timer=CLOCK.now)
@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, each, id=f"{case}-{each.name}") for case in CASES for each in field(case)],
)
def test_model(benchmark: Any, pytestconfig: pytest.Config, case: Case, contender: Contender) -> None:
    run(benchmark, pytestconfig, field, case, contender)


@pytest.mark.parametrize("case", [small(case) for case in CASES], ids=str)
def test_a_wrong_total_is_an_error(case: Case) -> None:
    for each in field(case):
        if each.role != "limit":
            with pytest.raises(WrongError, match="the total is"):
                entered(case, each._replace(enter=functools.partial(_too_much, each)))


def _too_much(contender: Contender, case: Case, model: Model) -> Entry:
    entry = contender.enter(case, model)
    factor = 1.5 if "_foreach_norm" in contender.name else 1.01  # which may be off by some percent
    return entry._replace(run=lambda: entry.run() * factor)


@pytest.mark.parametrize("case", [small(case) for case in CASES if case.adds], ids=str)
def test_gradients_that_are_left_as_they_were_are_an_error(case: Case) -> None:
    adds, *_ = field(case)
    value, *_ = field(dataclasses.replace(case, adds=False))
    with pytest.raises(WrongError, match=r"the gradient of .* is off"):
        entered(case, adds._replace(enter=value.enter))


def test_a_gradient_that_is_not_penalised_is_looked_at_too() -> None:
    case = next(small(case) for case in CASES if case.decay)
    model = case.sets[0]
    model.restart()
    entry = next(field(case)).enter(dataclasses.replace(case, decay=False), model)
    entry.run()
    assert str(wrong_gradients(case, model, entry)).startswith("the gradient of transformer.h.0.ln_1.weight is off")
