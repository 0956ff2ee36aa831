"""The scratch memory of a pass is small for each thread and does not grow with the tensor."""

import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import gpureg
from tests.helpers import DTYPES, Array

MIB = 2**20
LIMIT = 8 * MIB
SLACK = 64 * 1024  # what Python itself may happen to allocate meanwhile

BOTH = gpureg.L1L2(0.1, 0.3)


def peak(run: Callable[[], Any]) -> int:
    """Return the most bytes that a call had allocated at once."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _columns(size: int) -> tuple[int, int]:
    return size // 256, 256


# Views of `size` zeros.
VIEWS: dict[str, Callable[[int, np.dtype[Any]], Array]] = {
    "contiguous": np.zeros,
    "Fortran": lambda size, dtype: np.zeros(_columns(size), dtype, order="F"),
    "every second": lambda size, dtype: np.zeros(2 * size, dtype)[::2],
    "transposed slice": lambda size, dtype: np.zeros((257, size // 256), dtype)[1:].T,
}

PASSES: dict[str, Callable[[Array, Array], Any]] = {
    "value": lambda w, _: BOTH(w),
    "gradient": BOTH.grad,
    "value and gradient": BOTH.value_and_grad,
    "accumulate": BOTH.accumulate_grad,
    "proximal": lambda w, _: BOTH.prox_(w, 0.1),
}


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Compute with so many threads."""
    before = gpureg.get_num_threads()
    gpureg.set_num_threads(request.param)
    yield request.param
    gpureg.set_num_threads(before)


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize(
    ("weights", "gradient"),
    [
        ("contiguous", "contiguous"),
        ("Fortran", "transposed slice"),
        ("transposed slice", "Fortran"),
        ("every second", "every second"),
    ],
)
@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("threads")
def test_scratch_is_small_and_does_not_grow(dtype: str, kind: str, weights: str, gradient: str) -> None:
    peaks = []
    for nbytes in (12 * MIB, 24 * MIB):
        size = nbytes // DTYPES[dtype].itemsize
        w, out = VIEWS[weights](size, DTYPES[dtype]), VIEWS[gradient](size, DTYPES[dtype])
        out = out if out.shape == w.shape else out.reshape(w.shape)
        peaks.append(peak(partial(PASSES[kind], w, out)))
    assert max(peaks) < LIMIT
    assert peaks[1] <= peaks[0] + SLACK


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_scratch_of_float32_gradients_is_small(dtype: str) -> None:
    w = VIEWS["transposed slice"](12 * MIB // DTYPES[dtype].itemsize, DTYPES[dtype])
    grad = np.zeros(w.shape, np.float32)
    assert peak(lambda: BOTH.accumulate_grad(w, grad)) < LIMIT


@pytest.mark.parametrize("threads", [1, 3, 7], indirect=True)
@pytest.mark.parametrize("kind", PASSES)
def test_each_thread_has_scratch_of_its_own(kind: str, threads: int) -> None:
    w, out = VIEWS["transposed slice"](2**22, DTYPES["float64"]), np.zeros(2**22, np.float32).reshape(2**14, 256)
    run = partial(PASSES[kind], w, w.copy() if kind == "proximal" else out)
    run()  # starts the threads
    assert peak(run) < threads * LIMIT


def test_a_new_gradient_is_all_that_is_allocated() -> None:
    w = np.zeros(12 * MIB // 4, np.float32)
    assert peak(lambda: BOTH.grad(w)) < w.nbytes + LIMIT


def test_the_check_sees_a_temporary() -> None:
    """The plain expressions need as much memory again as the weights, and more."""
    w = np.zeros(12 * MIB // 4, np.float32)
    assert peak(lambda: np.abs(w).sum()) >= w.nbytes > LIMIT
    assert peak(lambda: np.add(w, np.sign(w), out=w)) >= w.nbytes
