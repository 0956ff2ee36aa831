"""Contenders on a GPU timed in turn: by events on the device, and apart from that the time the host takes to launch.

A round is so many calls of one contender, each on a set of arrays of its own. Before it the second-level cache is read
full of something else; that also keeps the device busy until the host has launched the whole round, so that events time
the device alone. After it one call is made alone, and timed by the host's clock until the device is done with it.
"""

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from bench.cases import Case
from bench.gpu_checks import Contender
from bench.gpu_inputs import cp, flush, tensors

LEAST_ROUNDS, MOST_ROUNDS = 7, 100

FLUSHES = 100
"""At most so many reads of the cache before a round, for contenders that the host takes long to launch."""


ALONE_SECONDS = 0.05
"""A call that takes the host longer is not made alone: it would take as long again and tell nothing new."""


class Round(NamedTuple):
    """One round: the seconds of a call on the device, those that the host took to launch it, and those of one alone."""

    device: float
    host: float
    alone: float | None = None
    """From the call until the device is done, with nothing else under way; None where it was not timed."""


class Race(NamedTuple):
    """What a race measured, round by round, by contender; and which contenders could not take part, and why."""

    rounds: dict[str, list[Round]]
    left_out: dict[str, str]


class Runs(NamedTuple):
    """What runs a contender on each set of arrays, checked."""

    runs: Sequence[Callable[[], Any]]
    wait: Callable[[Any], Any] | None = None
    """Of a library that has streams of its own, which events do not see: what waits for its results.

    Its calls are then timed by the host's clock, from before the first until all are done, and so with their launch.
    """


def race(case: Case, field: Sequence[Contender], seconds: float) -> Race:
    """Check all contenders of a case, then time them in turn for so many seconds, but for at least LEAST_ROUNDS."""
    given = tensors(case.dtype, case.elements)

    def enter(contender: Contender) -> Runs | str:
        wrong = contender.wrong(contender.run, case, given)
        return wrong or Runs([partial(contender.run, arrays) for arrays in given.sets], contender.wait)

    return entered({each.name: partial(enter, each) for each in field}, seconds)


def entered(entrances: Mapping[str, Callable[[], Runs | str]], seconds: float) -> Race:
    """Let contenders enter, each of which may say instead what is wrong with it, and time them in turn."""
    runners, left_out = {}, {}
    for name, enter in entrances.items():
        try:
            runs = enter()
            if isinstance(runs, str):
                left_out[name] = runs
            else:
                runners[name] = _Runner(runs)
        except Exception as error:  # a peer may fail as it likes, and the others still run
            left_out[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    result: dict[str, list[Round]] = {name: [] for name in runners}
    end = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name in random.Random(number).sample(list(runners), len(runners)):
            result[name].append(runners[name].round(number))
    return Race(result, left_out)


class _Runner:
    """A contender, warm, and how much is to be read before a round of it."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._wait = runs
        self._flushes = 1
        self.round(0)
        flushed, host = _seconds_of_a_flush(), self.round(1).host * len(self._runs)
        self._flushes = max(1, min(FLUSHES, math.ceil(1.5 * host / flushed)))

    def round(self, number: int) -> Round:
        """Run on each set once and wait; then on one set alone, another in each round."""
        device, host = self._by_events() if self._wait is None else self._by_the_clock(self._runs)
        if host > ALONE_SECONDS:
            return Round(device, host)
        alone, _ = self._by_the_clock([self._runs[number % len(self._runs)]])
        return Round(device, host, alone)

    def _by_events(self) -> tuple[float, float]:
        begin, end = cp().cuda.Event(), cp().cuda.Event()
        for _ in itertools.repeat(None, self._flushes):
            flush()
        begin.record()
        start = time.perf_counter()
        results = [run() for run in self._runs]
        host = time.perf_counter() - start
        end.record()
        end.synchronize()
        del results
        return _between(begin, end) / len(self._runs), host / len(self._runs)

    def _by_the_clock(self, runs: Sequence[Callable[[], Any]]) -> tuple[float, float]:
        wait = self._wait or _wait_for_the_stream
        flush()
        _wait_for_the_stream()
        start = time.perf_counter()
        results = [run() for run in runs]
        host = time.perf_counter() - start
        wait(results)
        return (time.perf_counter() - start) / len(runs), host / len(runs)


def _wait_for_the_stream(_: Any = None) -> None:
    cp().cuda.get_current_stream().synchronize()


def _between(begin: Any, end: Any) -> float:
    """Return the seconds between two events."""
    return float(cp().cuda.get_elapsed_time(begin, end)) / 1e3


_flush_seconds: list[float] = []


def _seconds_of_a_flush() -> float:
    """Return how long the device takes to read the cache full, measured once."""
    if not _flush_seconds:
        flush()
        begin, end = cp().cuda.Event(), cp().cuda.Event()
        begin.record()
        for _ in range(10):
            flush()
        end.record()
        end.synchronize()
        _flush_seconds.append(_between(begin, end) / 10)
    return _flush_seconds[0]
