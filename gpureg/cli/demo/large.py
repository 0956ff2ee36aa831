"""Act "large weights": the penalty as people write it beside one pass over memory, and the promise of the same bits.

Both add the gradient of `l1 * sum|w| + l2 * sum w*w` to a gradient that is there and return the value. Everything that
is printed is measured or counted in the same run; only the checksum is known beforehand.
"""

import hashlib
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import gpureg
from gpureg import samples
from gpureg.cli.common import UsageError
from gpureg.cli.demo.common import table, to_host

SIZE = 2**26
"""Elements of the tensor: 256 MiB of float32, far more than any cache holds."""

REGULARIZER = gpureg.L1L2(l1=1e-5, l2=1e-4)
"""Coefficients that are no powers of two, so that every product of the gradient is rounded."""

EXPECTED = "26f0f20a085765e0"
"""The checksum at SIZE elements on every machine: that of `tests/cli/checksum.cc`, which shares no code with gpureg."""

RUNS = 7
"""Timed runs of each; their median is shown."""

PLAIN = (
    ("abs", 2),
    ("sum", 1),
    ("square", 2),
    ("sum", 1),
    ("sign", 2),
    ("its product", 2),
    ("w's product", 2),
    ("their sum", 3),
    ("+=", 3),
)
"""The plain expression's operations on whole tensors, and how many of its operands and results lie in memory."""

FUSED = (("read w", 1), ("read grad", 1), ("write grad", 1))
"""The same of the one pass."""

ROUNDING = float(np.finfo(np.float32).eps) / 2
"""The most that rounding a number to float32 changes it, relatively."""

Array = Any
"""A NumPy or CuPy array."""


class Measured(NamedTuple):
    """What one way of computing the penalty costs and gives."""

    name: str
    milliseconds: float
    moved: int
    scratch: int
    error: float


def run(size: int = SIZE) -> int:
    """Show the act on a tensor of `size` elements; return the exit status, 1 if the checksum is not the known one."""
    xp = gpureg.xp()
    print(f"== Large weights: {size:,} float32 ({_mib(size * 4)}), with {xp.__name__} {xp.__version__}")
    print(f"{REGULARIZER}: its value, and its gradient added to the one that is there", flush=True)
    try:
        return _act(xp, size)
    except MemoryError as error:
        raise UsageError(f"not enough memory for tensors of {size:,} elements; give a smaller --size") from error


def inputs(size: int) -> tuple[Array, Array]:
    """Make the weights and the smaller gradient that is there, from integers, so that they too are always the same.

    >>> inputs(2)
    (array([-0.00195312,  0.04638672], dtype=float32), array([-0.00147247, -0.00032806], dtype=float32))
    """
    gradient = samples.weights(size, seed=1)
    gradient *= np.float32(2.0**-5)
    return samples.weights(size, seed=0), gradient


def plain(xp: ModuleType, w: Array, grad: Array) -> Array:
    """Do what people write: readable, and many passes over memory."""
    l1, l2 = REGULARIZER.l1, REGULARIZER.l2
    value = l1 * xp.abs(w).sum() + l2 * xp.square(w).sum()
    grad += l1 * xp.sign(w) + 2 * l2 * w
    return value


def fused(w: Array, grad: Array) -> Array:
    """Do the same in one pass."""
    return REGULARIZER.accumulate_grad(w, grad)


def checksum(penalty: Array, grad: Array) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of both, as little-endian float32."""
    digest = hashlib.sha256()
    for array in (penalty, grad):
        digest.update(np.ascontiguousarray(to_host(array), dtype="<f4").data)
    return digest.hexdigest()[:16]


def verdict(found: str, size: int) -> tuple[str, int]:
    """Return what to say of a checksum, and the exit status."""
    if size != SIZE:
        return f"checksum {found} (the one that is the same everywhere is known for {SIZE:,} elements)", 0
    if found == EXPECTED:
        return f"checksum {found}, as on every machine", 0
    return f"CHECKSUM DIFFERS: {found}, but every machine should get {EXPECTED}. This is a bug in gpureg.", 1


def _act(xp: ModuleType, size: int) -> int:
    """Compute, compare, measure and print; return the exit status."""
    w, grad = map(xp.asarray, inputs(size))
    plain_grad = grad.copy()
    penalty, plain_penalty = fused(w, grad), plain(xp, w, plain_grad)
    message, status = verdict(checksum(penalty, grad), size)
    compared = _compare_gradients(grad, plain_grad)

    works = (lambda: plain(xp, w, plain_grad), lambda: fused(w, grad))
    times = interleaved_milliseconds(xp, works)
    exact = _exact_penalty(xp, w)
    measured = [
        Measured(name, milliseconds, size * 4 * sum(n for _, n in operations), scratch_bytes(xp, work), error)
        for name, milliseconds, operations, work, error in zip(
            ("plain expression", "accumulate_grad"),
            times,
            (PLAIN, FUSED),
            works,
            [abs(float(value) - exact) / exact for value in (plain_penalty, penalty)],
            strict=True,
        )
    ]
    print(_report(measured, compared))
    print(message, flush=True)
    return status


def interleaved_milliseconds(xp: ModuleType, works: Sequence[Callable[[], object]], runs: int = RUNS) -> list[float]:
    """Return the median milliseconds of each, run in turns, so that a machine that drifts does so under all of them."""
    taken: list[list[float]] = [[] for _ in works]
    for run in range(runs + 1):
        for work, times in zip(works, taken, strict=True):
            start = time.perf_counter()
            work()
            _synchronise(xp)
            if run:  # the first warms up
                times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]


def scratch_bytes(xp: ModuleType, work: Callable[[], object]) -> int:
    """Return the most memory that `work` holds at once beside its arguments. Not to be timed: watching costs time."""
    if xp.__name__ == "cupy":
        pool = xp.cuda.MemoryPool()  # a new one is empty, and gives nothing back before it goes
        with xp.cuda.using_allocator(pool.malloc):
            work()
            _synchronise(xp)
        return int(pool.total_bytes())
    tracemalloc.start()  # NumPy reports its arrays there
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _synchronise(xp: ModuleType) -> None:
    """Wait until the GPU has done what it was told; NumPy is done when it returns."""
    if xp.__name__ == "cupy":
        xp.cuda.get_current_stream().synchronize()


def _exact_penalty(xp: ModuleType, w: Array) -> float:
    """Return the penalty from plain sums in float64."""
    sum_abs = float(xp.abs(w).sum(dtype=xp.float64))
    return REGULARIZER.l1 * sum_abs + REGULARIZER.l2 * float(xp.square(w, dtype=xp.float64).sum())


def _compare_gradients(ours: Array, theirs: Array) -> str:
    """Say in how many elements the gradients differ."""
    differing = int((ours != theirs).sum())
    if differing:
        return (
            f"the gradients differ in {differing:,} of {ours.size:,} elements, by {float(abs(ours - theirs).max()):.1g}"
        )
    return f"the gradients are equal in all {ours.size:,} elements"


def _report(measured: Sequence[Measured], compared: str) -> str:
    """Lay out the table and its footnotes."""
    first, last = measured[0], measured[-1]
    rows = [[m.name, f"{m.milliseconds:,.1f}", _mib(m.moved), _mib(m.scratch), f"{m.error:.1e}"] for m in measured]
    ratios = [f"{a / b:,.1f}" if b else "-" for a, b in zip(first[1:4], last[1:4], strict=True)]
    rows.append(["ratio", *ratios, ""])
    return "\n".join(
        [
            "",
            table(["", "ms (1)", "moved (2)", "scratch (3)", "error (4)"], rows),
            "",
            f"(1) median of {RUNS} runs, in turns, after a warm-up",
            "(2) counted in tensors, for an operation reads its operands and writes its result:",
            f"    plain expression: {_count(PLAIN)}",
            f"    accumulate_grad:  {_count(FUSED)}",
            "(3) the most memory held at once beside w and grad",
            f"(4) of the value, relative to sums in float64; rounding to float32 alone gives up to {ROUNDING:.1e},",
            f"    and the plain expression also sums in float32; {compared}",
            "",
        ]
    )


def _count(operations: Sequence[tuple[str, int]]) -> str:
    """Spell out a count of bytes moved."""
    return f"{', '.join(f'{name} {n}' for name, n in operations)}: {sum(n for _, n in operations)} in all"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
