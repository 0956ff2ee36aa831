"""One tensor: a penalty, or a penalty and its gradient, over sizes and dtypes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest

from bench.cases import MODES, Case, Contender, Mode
from bench.contenders import contenders
from bench.inputs import Arrays, set_count
from bench.race import CLOCK, WrongError, check, race, replay

SIZES = [2**k for k in (10, 13, 16, 19, 22, 24, 26, 27)]
LARGE = 2**24
"""Where the other dtypes are compared."""

CASES = [
    Case(mode, dtype, elements)
    for dtype, sizes in {"float32": SIZES, "float64": [LARGE], "float16": [LARGE], "bfloat16": [LARGE]}.items()
    for elements in sizes
    for mode in MODES
]


@pytest.mark.benchmark(timer=CLOCK.now)
@pytest.mark.parametrize(
    ("case", "contender"),
    [
        pytest.param(case, each, id=f"{case.dtype}-{case.elements}-{case.mode.name}-{each.name}")
        for case in CASES
        for each in contenders(case)
    ],
)
def test_single(benchmark: Any, pytestconfig: pytest.Config, case: Case, contender: Contender) -> None:
    if benchmark.disabled:
        check(case, contender)
        benchmark.pedantic(lambda: None)
        return
    options = pytestconfig.getoption("benchmark_max_time"), pytestconfig.getoption("benchmark_min_rounds")
    result = race(case, float(options[0]), int(options[1]))
    replay(benchmark, result, contender.name, str(case), _facts(case, contender))


def _facts(case: Case, contender: Contender) -> dict[str, Any]:
    return {
        "mode": case.mode.name,
        "dtype": case.dtype,
        "elements": case.elements,
        "moved_bytes": case.moved_bytes,
        "role": contender.role,
        "sets": set_count(case.elements * case.itemsize),
    }


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_wrong_penalty_is_an_error(mode: Mode) -> None:
    case = Case(mode, "float32", SIZES[0])
    for each in contenders(case):
        if each.role != "limit":
            wrong = dataclasses.replace(each, run=functools.partial(_one_percent_more, each.run))
            with pytest.raises(WrongError, match="the penalty is"):
                check(case, wrong)


def _one_percent_more(run: Callable[[Arrays], Any], arrays: Arrays) -> Any:
    return run(arrays) * 1.01


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.write != "nothing"], ids=lambda mode: mode.name)
def test_a_wrong_gradient_is_an_error(mode: Mode) -> None:
    case = Case(mode, "float32", SIZES[0])
    only_value = contenders(dataclasses.replace(case, mode=dataclasses.replace(mode, write="nothing")))[0]
    with pytest.raises(WrongError, match="the gradient is off"):
        check(case, dataclasses.replace(contenders(case)[0], run=only_value.run))
