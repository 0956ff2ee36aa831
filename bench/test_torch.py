"""A training step of PyTorch: what gpureg adds to it, or PyTorch itself, over all parameters of a model."""

import functools
from typing import Any

import numpy as np
import pytest

from bench.inputs import xp
from bench.model_contenders import Contender, Entry
from bench.model_inputs import Model
from bench.model_race import entered, run, small
from bench.race import CLOCK, WrongError
from bench.torch_steps import CASES, Case, field

pytestmark = pytest.mark.skipif(xp is not np, reason="training steps on a GPU are compared by `make gpu-check`")

SMALL = [small(case) for case in CASES]


@pytest.mark.benchmark(timer=CLOCK.now)
@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, each, id=f"models-{case}-{each.name}") for case in CASES for each in field(case)],
)
def test_step(benchmark: Any, pytestconfig: pytest.Config, case: Case, contender: Contender) -> None:
    run(benchmark, pytestconfig, field, case, contender)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_wrong_step_is_an_error(case: Case) -> None:
    """One that does nothing, that is; of a gradient also one whose total is wrong."""
    for each in field(case):
        if each.role != "limit":
            with pytest.raises(WrongError, match=r"the gradient of .* is off|the weights of .* are off"):
                entered(case, each._replace(enter=_of_nothing))
            if case.step == "gradient":
                with pytest.raises(WrongError, match="the total is"):
                    entered(case, each._replace(enter=functools.partial(_too_much, each)))


def _of_nothing(_: Any, model: Model) -> Entry:
    return Entry(lambda: 0.0, lambda: model.gradients)


def _too_much(contender: Contender, case: Case, model: Model) -> Entry:
    entry = contender.enter(case, model)
    return entry._replace(run=lambda: entry.run() * 1.5)  # torch._foreach_norm may be off by some percent


@pytest.mark.parametrize("case", [case for case in SMALL if case.step == "SGD"], ids=str)
def test_a_step_without_decay_is_wrong(case: Case) -> None:
    own = next(each for each in field(case) if "weight_decay" in each.name)
    plain = next(each for each in field(case) if each.role == "gpureg")

    def enter(case: Case, model: Model) -> Entry:
        entry = plain.enter(case, model)
        entry.run.__self__.register_step_pre_hook(lambda *_: model.restart())  # type: ignore[attr-defined] # a method's
        return entry

    with pytest.raises(WrongError, match=r"the weights of .* are off"):
        entered(case, own._replace(enter=enter))  # type: ignore[arg-type] # of this case


@pytest.mark.parametrize("case", [case for case in SMALL if case.step == "SGD"], ids=str)
def test_a_check_leaves_the_weights_as_they_were(case: Case) -> None:
    before = {name: w.copy() for name, w in case.sets[0].weights.items()}
    for each in field(case):
        entered(case, each)
    assert all((w == before[name]).all() for name, w in case.sets[0].weights.items())
