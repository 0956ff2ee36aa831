"""Scratch memory is small, too little memory and failed launches are clean errors, and huge tensors are right."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg.arithmetic import tile_size
from gpureg.backends import cuda
from tests.gpu.device import assert_same, cp, forget, needs_memory
from tests.helpers import DTYPES, content

pytestmark = pytest.mark.gpu

MIB = 2**20

BOTH = gpureg.L1L2(0.1, 0.3)

PASSES: dict[str, Callable[[Any, Any], Any]] = {
    "value": lambda w, g: BOTH(w),  # noqa: ARG005
    "gradient": BOTH.grad,
    "value and gradient": BOTH.value_and_grad,
    "accumulate": BOTH.accumulate_grad,
    "proximal": lambda w, g: BOTH.prox_(w, 0.1),  # noqa: ARG005
}


# Scratch


@contextmanager
def counted() -> Iterator[list[int]]:
    """Yield a list that gets the bytes of each allocation from CuPy's pool."""
    sizes: list[int] = []

    class Count(cp.cuda.MemoryHook):  # type: ignore[misc]
        name = "count"

        def malloc_postprocess(self, **kwargs: Any) -> None:
            sizes.append(kwargs["mem_size"])

    with Count():
        yield sizes


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scratch_is_small(dtype: str, name: str) -> None:
    """Under a thousandth of the weights and a mebibyte, and that of all allocations together."""
    w, g = (cp.zeros(256 * MIB // DTYPES[dtype].itemsize, DTYPES[dtype]) for _ in range(2))
    forget()
    with cp.cuda.Stream(non_blocking=True) as stream, counted() as sizes:  # a stream that has no counters yet
        PASSES[name](w, g)
        stream.synchronize()
    assert sum(sizes) < w.nbytes // 1000 + MIB


def test_the_count_sees_a_temporary() -> None:
    w = cp.zeros(4 * MIB, np.float32)
    with counted() as sizes:
        cp.abs(w).sum()
    assert sum(sizes) >= w.nbytes


def test_calls_do_not_grow_the_memory_in_use() -> None:
    pool = cp.get_default_memory_pool()
    w, g = cp.ones(MIB, np.float32), cp.ones(MIB, np.float32)
    BOTH.accumulate_grad(w, g)
    forget()
    before = pool.used_bytes()
    for _ in range(100):
        for run in PASSES.values():
            run(w, g)
    forget()
    assert pool.used_bytes() == before


# Errors


def test_too_little_memory_for_a_gradient_is_a_clean_error() -> None:
    host = content("wide", 16 * MIB, "float32")
    w = cp.asarray(host)
    expected = BOTH(host)
    assert_same(BOTH(w), expected)
    forget()
    pool = cp.get_default_memory_pool()
    pool.set_limit(size=pool.total_bytes() + MIB)
    try:
        with pytest.raises(MemoryError):
            BOTH.grad(w)
    finally:
        pool.set_limit(size=0)
    assert_same(BOTH(w), expected)
    assert_same(BOTH.grad(w), BOTH.grad(host))


@pytest.mark.parametrize("after", range(5))
def test_too_little_memory_for_scratch_leaves_all_as_it_was(after: int) -> None:
    """Wherever in the call it runs out."""
    host = content("wide", 200 * tile_size(4), "float32")
    w, g = cp.asarray(host), cp.full(host.size, 7, np.float32)
    left = [after]
    forget()

    def allocate(size: int) -> Any:
        if not left[0]:
            raise cp.cuda.memory.OutOfMemoryError(size, 0)
        left[0] -= 1
        return cp.get_default_memory_pool().malloc(size)

    with cp.cuda.Stream(non_blocking=True) as stream:
        with cp.cuda.using_allocator(allocate):
            try:
                BOTH.accumulate_grad(w, g)
            except MemoryError:
                assert bool((g == 7).all())
        stream.synchronize()
        g.fill(0)
        expected = np.zeros_like(host)
        assert_same(BOTH.accumulate_grad(w, g), BOTH.accumulate_grad(host, expected))
        assert_same(g, expected)


class _Failing:
    """A kernel that fails to launch, after so many of its blocks have run: what is left in counters is not zero."""

    def __init__(self, kernel: Any, blocks: int) -> None:
        self.kernel, self.blocks = kernel, blocks

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Any) -> None:
        if self.blocks:
            self.kernel((min(self.blocks, *grid),), block, arguments)
        self.kernel(grid, (4096,), arguments)  # more threads than a block can have


@pytest.mark.parametrize("blocks", [0, 1, 130])
def test_a_launch_that_fails_leaves_the_next_call_right(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    host = content("wide", 300 * tile_size(4), "float32")
    w, expected = cp.asarray(host), BOTH(host)
    assert_same(BOTH(w), expected)
    load = cuda._kernel
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "_kernel", lambda *given: _Failing(load(*given), blocks))
        with pytest.raises(cp.cuda.driver.CUDADriverError):
            BOTH(w)
    for _ in range(3):
        assert_same(BOTH(w), expected)


# Tensors of more elements than 31 and 32 bits count


COLUMNS = 2**16


def _ramp() -> Any:
    """Return as many small integers as there are columns, in no pattern of a power of two."""
    return (cp.arange(COLUMNS) % 17 - 8).astype(np.float16)


@pytest.fixture(params=[2**15, 2**16], ids=["2**31", "2**32"])
def huge(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a float16 matrix whose last row alone lies beyond 2**31 or 2**32 elements."""
    rows: int = request.param + 1
    needs_memory(3 * rows * COLUMNS * 2)
    w = cp.empty((rows, COLUMNS), np.float16)
    for part in _parts(w.reshape(-1)):
        part.reshape(-1, COLUMNS)[...] = _ramp()
    w[-1] = 100  # an index that wraps would meet the first row again
    w[-1, -1] = 1000
    yield w
    del w
    forget()


def _parts(*flat: Any) -> Iterator[Any]:
    """Yield 1-d arrays part by part: what is tested are the kernels here, not CuPy's own with as large an index."""
    for start in range(0, flat[0].size, 2**28):
        parts = tuple(array[start : start + 2**28] for array in flat)
        yield parts if len(flat) > 1 else parts[0]


def test_sums(huge: Any) -> None:
    row = _ramp().get().astype(np.int64)
    last = 100 * (COLUMNS - 1) + 1000, 100**2 * (COLUMNS - 1) + 1000**2
    sum_abs = (len(huge) - 1) * int(np.abs(row).sum()) + last[0]
    sum_squares = (len(huge) - 1) * int((row * row).sum()) + last[1]
    # Whole numbers below 2**53: exact in any order.
    assert float(gpureg.l1_loss(huge, dtype="float64")) == sum_abs
    assert float(gpureg.l2_loss(huge.reshape(-1), dtype="float64")) == sum_squares / 2


@pytest.mark.parametrize("shift", [0, 1])
def test_gradients(huge: Any, shift: int) -> None:
    """Each element its own, also where 16-byte words do not fit."""
    w = huge.reshape(-1)[shift:]
    grad = cp.empty(w.size + shift, np.float16)[shift:]
    for part in _parts(grad):
        part.fill(1)
    assert bool(cp.isfinite(gpureg.L1L2(1.0, 0.5).accumulate_grad(w, grad)))
    for numbers, found in _parts(w, grad):
        assert bool((found == 1 + (cp.sign(numbers) + numbers)).all())


def test_the_proximal_step(huge: Any) -> None:
    moved = cp.empty(huge.size, np.float16)
    for part, numbers in _parts(moved, huge.reshape(-1)):
        part[...] = numbers
    assert gpureg.L1(3.0).prox_(moved, 1.0) is moved
    for numbers, found in _parts(huge.reshape(-1), moved):
        assert bool((found == cp.sign(numbers) * cp.maximum(cp.abs(numbers) - 3, 0)).all())
