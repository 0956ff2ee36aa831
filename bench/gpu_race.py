"""Contenders on a GPU timed in turn: by events on the device, and apart from that the time the host takes to launch.

A round is so many calls of one contender, each on a set of arrays of its own. Before it the second-level cache is read
full of something else; that also keeps the device busy until the host has launched the whole round, so that events time
the device alone.
"""

import itertools
import math
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench.cases import Case
from bench.gpu_checks import Contender
from bench.gpu_inputs import Arrays, cp, flush, tensors

LEAST_ROUNDS, MOST_ROUNDS = 7, 100

FLUSHES = 100
"""At most so many reads of the cache before a round, for contenders that the host takes long to launch."""


class Round(NamedTuple):
    """One round: the seconds of a call on the device, and those that the host took to launch it."""

    device: float
    host: float


class Race(NamedTuple):
    """What a race measured, round by round, by contender; and which contenders could not take part, and why."""

    rounds: dict[str, list[Round]]
    left_out: dict[str, str]


def race(case: Case, field: Sequence[Contender], seconds: float) -> Race:
    """Check all contenders of a case, then time them in turn for so many seconds, but for at least LEAST_ROUNDS."""
    given = tensors(case.dtype, case.elements)
    left_out = {}
    for contender in field:
        wrong = _wrong(contender, case)
        if wrong is not None:
            left_out[contender.name] = wrong
    runners = {each.name: _Runner(each, given.sets) for each in field if each.name not in left_out}
    result: dict[str, list[Round]] = {name: [] for name in runners}
    end = time.perf_counter() + seconds
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name in random.Random(number).sample(list(runners), len(runners)):
            result[name].append(runners[name].round())
    return Race(result, left_out)


def _wrong(contender: Contender, case: Case) -> str | None:
    """Return why a contender cannot take part: what is wrong with what it computes, or the error it ends in."""
    try:
        return contender.wrong(contender.run, case, tensors(case.dtype, case.elements))
    except Exception as error:  # a peer may fail as it likes, and the others still run
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class _Runner:
    """A contender, warm, and how much is to be read before a round of it."""

    def __init__(self, contender: Contender, sets: Sequence[Arrays]) -> None:
        self._run, self._sets, self._flushes = contender.run, sets, 1
        self.round()
        flushed, host = _seconds_of_a_flush(), self.round().host * len(sets)
        self._flushes = max(1, min(FLUSHES, math.ceil(1.5 * host / flushed)))

    def round(self) -> Round:
        """Run on each set once and wait."""
        begin, end = cp().cuda.Event(), cp().cuda.Event()
        for _ in itertools.repeat(None, self._flushes):
            flush()
        begin.record()
        start = time.perf_counter()
        results = [self._run(arrays) for arrays in self._sets]
        host = time.perf_counter() - start
        end.record()
        end.synchronize()
        del results
        count = len(self._sets)
        return Round(float(cp().cuda.get_elapsed_time(begin, end)) / 1e3 / count, host / count)


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
        _flush_seconds.append(float(cp().cuda.get_elapsed_time(begin, end)) / 1e3 / 10)
    return _flush_seconds[0]
