"""Checks of a contender on a GPU before it is timed, within a bound that is derived. Each calls it once."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.cases import Case, Mode, Role
from bench.gpu_inputs import Arrays, Tensors, cp, words
from gpureg import arithmetic

Run = Callable[[Arrays], Any]

PART = 2**25
"""Elements checked at a time."""

START = 0.5
"""What each element of a gradient is before something is added to it, or stored over it."""


@dataclass(frozen=True)
class Contender:
    """A way to compute a mode: the code, what it is, and what says what is wrong with it, before it is timed."""

    name: str
    role: Role
    run: Run
    wrong: Callable[[Run, Case, Tensors], str | None]
    """Call `run` on a set of the inputs and return what is wrong with what it did, or None."""
    wait: Callable[[Any], Any] | None = None
    """What waits for results, where the library has streams of its own; see `bench.gpu_race.Runs`."""


def gpureg_bound(case: Case) -> float:
    """Return the bound of gpureg's penalty: its own for the sums, three float64 roundings, and the last one."""
    last = 2.0**-53 if case.itemsize == 8 else 2.0**-24
    return arithmetic.error_bound(case.elements, case.itemsize) + 3 * 2.0**-53 + last


def plain_bound(case: Case) -> float:
    """Return the bound of a penalty by plain sums, in any order; `bench.checks.plain_bound` derives it.

    Two units more are for a norm, which is squared.
    """
    unit = 2.0**-53 if case.itemsize == 8 else 2.0**-24
    return (6 * math.sqrt(case.elements) + 6) * unit


def wrong_penalty(bound: Callable[[Case], float], run: Run, case: Case, given: Tensors) -> str | None:
    """Check the penalty that a contender returns, and the gradient where it writes one."""
    arrays, mode = given.sets[0], case.mode
    _start(arrays.gradient)
    penalty = float(run(arrays))
    exact = mode.l1 * given.sum_abs + mode.l2 * given.sum_squares
    allowed = bound(case) + 4 * 2.0**-53
    if not abs(penalty - exact) <= allowed * exact:
        return f"the penalty is {penalty!r}, not {exact!r}; allowed is a relative error of {allowed:.1e}"
    return None if mode.write == "nothing" else _wrong_gradient(mode, arrays)


def _start(gradient: Any) -> None:
    """Set all of a gradient to START."""
    one = np.array(START, gradient.dtype)
    gradient.view(f"u{gradient.itemsize}").fill(int(one.view(f"u{gradient.itemsize}")))


def _wrong_gradient(mode: Mode, arrays: Arrays) -> str | None:
    """Check each element, allowing eight roundings where it is computed and two to the gradient's dtype."""
    epsilon, smallest = _precision(arrays.gradient.dtype.name)
    unit = 8 * (2.0**-53 if arrays.gradient.itemsize == 8 else 2.0**-24) + epsilon
    start = START * (mode.write == "add")
    for w, found in _parts(arrays.weights, arrays.gradient):
        size = cp().abs(w)
        error = cp().abs(found - (start + mode.l1 * cp().sign(w) + 2 * mode.l2 * w))
        allowed = unit * (start + mode.l1 + 2 * mode.l2 * size) + smallest
        if not bool((error <= allowed).all()):
            return f"the gradient is off by up to {float(error.max()):.2e}, allowed is {float(allowed.max()):.2e}"
    return None


def _precision(dtype: str) -> tuple[float, float]:
    """Return the distance from 1 to the next number of a dtype, and its smallest number."""
    fraction, least = {"float16": (10, -24), "bfloat16": (7, -133), "float32": (23, -149), "float64": (52, -1074)}[
        dtype
    ]
    return 2.0**-fraction, 2.0**least


def _parts(*arrays: Any) -> Iterator[list[Any]]:
    """Yield arrays part by part in float64; what a bfloat16 is worth is found from its bits."""
    for start in range(0, arrays[0].size, PART):
        yield [_float64(array[start : start + PART]) for array in arrays]


def _float64(part: Any) -> Any:
    if part.dtype.name == "bfloat16":
        part = (part.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return part.astype(np.float64)


def wrong_sum(run: Run, case: Case, given: Tensors) -> str | None:  # noqa: ARG001
    """Check that the weights were read."""
    return _unless(int(run(given.sets[0])) % 2**64 == given.sum_words)


def wrong_copy(run: Run, case: Case, given: Tensors) -> str | None:  # noqa: ARG001
    """Check that the weights went into the gradient."""
    arrays = given.sets[0]
    _start(arrays.gradient)
    run(arrays)
    return _unless(bool((words(arrays.gradient) == words(arrays.weights)).all()))


def wrong_add(run: Run, case: Case, given: Tensors) -> str | None:  # noqa: ARG001
    """Check that the weights' bits were added to the gradient's."""
    arrays = given.sets[0]
    _start(arrays.gradient)
    expected = words(arrays.gradient) + words(arrays.weights)
    run(arrays)
    return _unless(bool((words(arrays.gradient) == expected).all()))


def _unless(right: bool) -> str | None:
    return None if right else "it does not do what its name says"
