"""Checks of a contender against the exact oracle, within a bound that is derived. Each calls it once."""

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from bench.cases import Case, Mode
from bench.inputs import Arrays, Inputs, chunks, oracle_bound, xp
from gpureg import arithmetic

Run = Callable[[Arrays], Any]


def gpureg_bound(case: Case) -> float:
    """Return the bound of gpureg's penalty: its own for the sums, three float64 roundings, and the last one."""
    last = 2.0**-53 if case.itemsize == 8 else 2.0**-24
    return arithmetic.error_bound(case.elements, case.itemsize) + 3 * 2.0**-53 + last


def plain_bound(case: Case) -> float:
    """Return the bound of a penalty by plain sums: NumPy's are pairwise, BLAS adds in an order of its own.

    For roundings that behave as random ones do, n additions in any order are off by at most 6 * sqrt(n) units but once
    in 3e7 (Higham and Mary, SIAM J. Sci. Comput. 41, 2019); the orders in use are far better. Four more are for the
    square, the coefficient, the product and the sum of the two terms.
    """
    unit = 2.0**-53 if case.itemsize == 8 else 2.0**-24
    return (6 * math.sqrt(case.elements) + 4) * unit


def lanes_bound(case: Case) -> float:
    """Return the bound of PyTorch's norms on the CPU, which add float32 terms in the lanes of a register.

    A register has 8 lanes or 16, so a lane of a tensor of n elements is added to at most n / 8 times, each off by
    2**-24; the rest is as for other plain forms. They are really off that much: by 0.3% for the embedding of GPT-2.
    """
    return case.elements / 8 * 2.0**-24 + plain_bound(case)


def wrong_penalty(bound: Callable[[Case], float], run: Run, case: Case, given: Inputs) -> str | None:
    """Check the penalty that a contender returns, and the gradient where it writes one."""
    arrays, mode = given.sets[0], case.mode
    xp.copyto(arrays.gradient, given.start)
    penalty = float(run(arrays))
    exact = mode.l1 * given.sum_abs + mode.l2 * given.sum_squares
    allowed = bound(case) + oracle_bound(case.elements) + 3 * 2.0**-53
    if not abs(penalty - exact) <= allowed * exact:
        return f"the penalty is {penalty!r}, not {exact!r}; allowed is a relative error of {allowed:.1e}"
    return None if mode.write == "nothing" else _wrong_gradient(mode, given, arrays)


def _wrong_gradient(mode: Mode, given: Inputs, arrays: Arrays) -> str | None:
    """Check each element, allowing eight roundings where it is computed and two to the gradient's dtype."""
    info = ml_dtypes.finfo(arrays.gradient.dtype)  # type: ignore[no-untyped-call] # it has no hints
    unit = 8 * (2.0**-53 if arrays.gradient.itemsize == 8 else 2.0**-24) + float(info.eps)
    for part in chunks(arrays.gradient.size, 2**18):
        w = arrays.weights[part].astype(np.float64)
        start = given.start[part].astype(np.float64) * (mode.write == "add")
        error = xp.abs(arrays.gradient[part] - (start + mode.l1 * xp.sign(w) + 2 * mode.l2 * w))
        allowed = unit * (xp.abs(start) + mode.l1 + 2 * mode.l2 * xp.abs(w)) + float(info.smallest_subnormal)
        if not (error <= allowed).all():
            return f"the gradient is off by up to {float(error.max()):.2e}, allowed is {float(allowed.max()):.2e}"
    return None


def raw(arrays: Arrays) -> tuple[Any, Any]:
    """Return as many bytes as the weights and the gradient have, in a dtype that moves as fast as any: a limit's own.

    That is float32 for 16-bit tensors, which NumPy does not move at the speed of memory.
    """
    if arrays.wide is arrays.weights:
        return arrays.weights, arrays.gradient
    half = arrays.weights.size // 2
    return arrays.wide[:half], arrays.scratch[:half]


def wrong_dot(run: Run, case: Case, given: Inputs) -> str | None:
    """Check that the first raw array was read."""
    read, _ = raw(given.sets[0])
    exact = math.fsum(float(xp.square(read[part], dtype=np.float64).sum()) for part in chunks(read.size, 2**16))
    return _unless(abs(float(run(given.sets[0])) - exact) <= (plain_bound(case) + oracle_bound(case.elements)) * exact)


def wrong_max(run: Run, case: Case, given: Inputs) -> str | None:  # noqa: ARG001
    """Check that the first raw array was read."""
    return _unless(bool(run(given.sets[0]) == raw(given.sets[0])[0].max()))


def wrong_copy(run: Run, case: Case, given: Inputs) -> str | None:  # noqa: ARG001
    """Check that the first raw array, or its absolute values, went into the second."""
    read, written = raw(given.sets[0])
    xp.copyto(written, 1)
    run(given.sets[0])
    return _unless(bool((abs(written) == abs(read)).all()))


def wrong_add(run: Run, case: Case, given: Inputs) -> str | None:  # noqa: ARG001
    """Check that the first raw array was added to the second."""
    read, written = raw(given.sets[0])
    expected = read + written
    run(given.sets[0])
    return _unless(bool((written == expected).all()))


def _unless(right: bool) -> str | None:
    return None if right else "it does not do what its name says"
