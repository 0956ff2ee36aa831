"""Contenders timed in turn, so that a machine that drifts drifts for all of them alike.

pytest-benchmark times one function after another, and on a shared machine minutes may lie between two that are
compared. So a race times them itself, round by round, in an order that changes; the benchmarks then replay what it
measured to pytest-benchmark, on a clock that a replayed round turns.
"""

import functools
import gc
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from bench.cases import Case, Contender
from bench.contenders import contenders
from bench.inputs import inputs, xp

ROUND_SECONDS = 1e-3
"""A round of a contender lasts about this long or a single call: a thousand times what the clock resolves."""

MAX_ROUNDS = 200
"""More rounds than this tell nothing new about the percentiles in a report."""


class Clock:
    """A clock that stands still but where a replayed round turns it on."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def turn(self, seconds: float) -> None:
        self._now += seconds


CLOCK = Clock()
"""The clock of pytest-benchmark."""

Stopwatch = Callable[[Callable[[], Any], int], float]
"""Call a function so many times and return the seconds of one call."""


class WrongError(Exception):
    """A contender does not compute what it is to be timed for."""


class Race(NamedTuple):
    """What a race measured: seconds of a call, round by round, and the calls of a round, by contender."""

    seconds: dict[str, list[float]]
    calls: dict[str, int]


def replay(benchmark: Any, result: Race, name: str, group: str, facts: dict[str, Any]) -> None:
    """Tell pytest-benchmark, whose clock is CLOCK, what a race measured of a contender, and facts about it."""
    benchmark.group = group
    benchmark.extra_info.update(facts | {"contender": name, "calls": result.calls[name]})
    rounds = iter(result.seconds[name])
    benchmark.pedantic(lambda: CLOCK.turn(next(rounds)), rounds=len(result.seconds[name]))


def stopwatch(module: ModuleType) -> Stopwatch:
    """Return the timer for the arrays of a module; a GPU has done a round's calls when its stream has."""
    wait = module.cuda.get_current_stream().synchronize if module.__name__ == "cupy" else _nothing

    def watch(run: Callable[[], Any], calls: int) -> float:
        collects = gc.isenabled()
        gc.disable()
        try:
            wait()
            start = time.perf_counter()
            for _ in itertools.repeat(None, calls):
                run()
            wait()
            return (time.perf_counter() - start) / calls
        finally:
            if collects:
                gc.enable()

    return watch


def _nothing() -> None:
    """Wait for nothing: NumPy is done when it returns."""


def check(case: Case, contender: Contender) -> None:
    """Raise a WrongError if a contender is wrong."""
    what = contender.wrong(contender.run, case, inputs(case.dtype, case.elements))
    if what is not None:
        raise WrongError(f"{case}: {contender.name}: {what}")


@functools.cache
def race(case: Case, seconds: float, least_rounds: int) -> Race:
    """Check all contenders of a case, then time them in turn for so many seconds each, or rounds if that is longer."""
    field = contenders(case)
    for contender in field:
        check(case, contender)
    sets = inputs(case.dtype, case.elements).sets
    return timed(
        {each.name: [functools.partial(each.run, one) for one in sets] for each in field}, seconds, least_rounds
    )


def timed(runs: Mapping[str, Sequence[Callable[[], Any]]], seconds: float, least_rounds: int) -> Race:
    """Time contenders in turn, each by name with what runs it on each set of arrays; they have been checked."""
    watch = stopwatch(xp)
    calls = {name: _calls(watch, run[0]) for name, run in runs.items()}
    result = Race({name: [] for name in runs}, calls)
    turn = itertools.count()
    end = time.perf_counter() + seconds * len(runs)
    for number in range(max(MAX_ROUNDS, least_rounds)):
        if number >= least_rounds and time.perf_counter() > end:
            break
        for name in random.Random(number).sample(list(runs), len(runs)):
            run = runs[name][next(turn) % len(runs[name])]
            result.seconds[name].append(watch(run, calls[name]))
    return result


def _calls(watch: Stopwatch, run: Callable[[], Any]) -> int:
    """Return how many calls a round takes."""
    once = min(watch(run, 1) for _ in range(3))
    return max(1, math.ceil(ROUND_SECONDS / once))
