"""Calls wait for nothing, keep to their stream and device, and always give the same bits, whatever runs beside them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import backends, samples
from gpureg.arithmetic import Coefficients, tile_size
from gpureg.backends import Mode, cuda
from tests.gpu.device import Gate, assert_same, cp, forget, gate
from tests.helpers import Array
from tests.passes import Leaf, run

pytestmark = pytest.mark.gpu

BOTH = gpureg.L1L2(0.1, 0.3)
COEFFICIENTS = Coefficients(0.1, 0.3, 0.6)

SEVERAL_GROUPS = (2 * cuda.GROUP + 1) * tile_size(4) + 5
"""Elements of a float32 tensor whose tiles take two levels of tickets."""


def _together(weights: list[Any]) -> Any:
    return run(cuda.backend, Mode.VALUE, [Leaf(w, COEFFICIENTS) for w in weights], np.dtype(np.float64)).total


def _expected_together(weights: list[Array]) -> Any:
    return run(backends.load("numpy"), Mode.VALUE, [Leaf(w, COEFFICIENTS) for w in weights], np.dtype(np.float64)).total


def _scaled(w: Any, factor: Any) -> Any:
    return run(cuda.backend, Mode.VALUE, [Leaf(w, COEFFICIENTS)], np.dtype(np.float32), strength=factor).total


# Passes over weights and a gradient. Each has its own factor on the device.
PASSES: dict[str, Callable[[Any, Any], Any]] = {
    "value": lambda w, g: BOTH(w),  # noqa: ARG005
    "gradient": BOTH.grad,
    "new gradient": lambda w, g: BOTH.grad(w),  # noqa: ARG005
    "value and gradient": lambda w, g: BOTH.value_and_grad(w, g)[0],
    "accumulate": BOTH.accumulate_grad,
    "proximal step": lambda w, g: BOTH.prox_(w, 0.5),  # noqa: ARG005
    "float16 result": lambda w, g: gpureg.l2_loss(w, dtype="float16"),  # noqa: ARG005
    "strided weights": lambda w, g: BOTH.accumulate_grad(w[::2], g[::2]),
    "several tensors": lambda w, g: _together([w, g, w[:100]]),
    "factor on the device": lambda w, g: _scaled(w, g[0]),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_call_returns_while_the_stream_is_held_up(name: str) -> None:
    """So nothing in it waits for the device: that would wait until the gate opens by itself, and find it open."""
    with cp.cuda.Stream(non_blocking=True):
        w, g = (cp.full(SEVERAL_GROUPS, number, np.float32) for number in (0.1, 1.0))
        for _ in range(2):  # kernels are loaded, and memory and counters are there
            PASSES[name](w, g)
            with gate():
                pass
        with gate() as held:
            result = PASSES[name](w, g)
            assert held.holds()
        assert bool(cp.isfinite(result).all())


def test_the_check_sees_a_call_that_waits() -> None:
    with cp.cuda.Stream(non_blocking=True) as stream:
        held = Gate()
        opener = threading.Timer(0.2, held.open)
        opener.start()
        stream.synchronize()
        assert not held.holds()
        opener.join()


def test_a_call_does_not_begin_before_what_is_ahead_of_it_in_its_stream() -> None:
    host = samples.wide(SEVERAL_GROUPS, np.float32)
    with cp.cuda.Stream(non_blocking=True):
        source, w = cp.asarray(host), cp.zeros(host.size, np.float32)
        BOTH(w)
        with gate():
            w[...] = source
            value = BOTH(w)
            w[...] = 0
        assert_same(value, BOTH(host))


# Several streams and threads


def _both_ways(w: Any, several: list[Any]) -> list[Any]:
    return [BOTH(w).astype(np.float64), _together(several)]


def _run(stream: Any, device_weights: list[Any], rounds: int) -> list[Any]:
    """Return what many calls on a stream give, without waiting in between."""
    with stream:
        results = [cp.stack(_both_ways(w, device_weights[:3])) for _ in range(rounds) for w in device_weights]
        stream.synchronize()
        return [result.get() for result in results]


def _host_weights() -> list[Array]:
    return [
        samples.wide(size, np.float32, seed=size) for size in (SEVERAL_GROUPS, 1000, 3 * tile_size(4) + 5, 0, 77777)
    ]


def _assert_all(found: list[Any], host_weights: list[Array]) -> None:
    together = _expected_together(host_weights[:3])
    for i, result in enumerate(found):
        expected = np.array([BOTH(host_weights[i % len(host_weights)]), together])
        assert np.array_equal(result, expected), i


def test_two_streams_at_once() -> None:
    host = _host_weights()
    shared = [cp.asarray(w) for w in host]
    streams = [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
    forget()
    results: dict[int, list[Any]] = {0: [], 1: []}
    for number in range(200):  # by turns, so that both are at work at the same time
        which = number % 2
        with streams[which]:
            w = shared[number // 2 % len(shared)]
            results[which].append(cp.stack(_both_ways(w, shared[:3])))
    for which, stream in enumerate(streams):
        stream.synchronize()
        _assert_all([result.get() for result in results[which]], host)


THREADS: dict[str, Callable[[], Any]] = {
    "a stream each": lambda: cp.cuda.Stream(non_blocking=True),
    "the default stream": lambda: cp.cuda.Stream.null,
    "the per-thread default stream": lambda: cp.cuda.Stream.ptds,
}


@pytest.mark.parametrize("streams", THREADS)
def test_threads_at_once(streams: str) -> None:
    host = _host_weights()
    shared = [cp.asarray(w) for w in host]
    forget()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(_run, THREADS[streams](), shared, 60) for _ in range(4)]
    for job in jobs:
        _assert_all(job.result(), host)


def test_threads_that_share_one_stream() -> None:
    """What one thread frees before its launch must not be what another writes meanwhile."""
    host = _host_weights()
    shared = [cp.asarray(w) for w in host]
    stream = cp.cuda.Stream(non_blocking=True)
    forget()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(_run, stream, shared, 60) for _ in range(4)]
    for job in jobs:
        _assert_all(job.result(), host)


def test_many_streams_one_after_another() -> None:
    """A stream may get the address of one that is gone."""
    host = samples.wide(SEVERAL_GROUPS, np.float32)
    w, expected = cp.asarray(host), BOTH(host)
    forget()
    for _ in range(50):
        with cp.cuda.Stream(non_blocking=True) as stream:
            value = BOTH(w)
            stream.synchronize()
            assert_same(value, expected)


# Devices


def test_a_device_that_is_not_the_current_one() -> None:
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this GPU is the only one, and two are needed")
    host = _host_weights()
    with cp.cuda.Device(1):
        weights = [cp.asarray(w) for w in host]
        gradients = [cp.zeros_like(w) for w in weights]
        cp.cuda.Device().synchronize()
    with cp.cuda.Device(0) as current:
        for w, g, numbers in zip(weights, gradients, host, strict=True):
            value = BOTH.accumulate_grad(w, g)
            expected = np.zeros_like(numbers)
            assert value.device.id == 1
            assert_same(value, BOTH.accumulate_grad(numbers, expected))
            assert_same(g, expected)
            assert BOTH.grad(w).device.id == 1
        assert cp.cuda.Device().id == current.id
        with pytest.raises(ValueError, match="device"):
            BOTH.grad(weights[0], cp.empty(host[0].size, np.float32))


# The same bits every time


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_thousand_launches_give_the_same_bits(dtype: str) -> None:
    host = samples.wide(SEVERAL_GROUPS, dtype)
    w, grad = cp.asarray(host), cp.empty(host.size, dtype)
    expected = np.zeros_like(host)
    value = np.float64(gpureg.l2_loss(host, dtype="float64"))
    BOTH.value_and_grad(host, expected)
    found = cp.empty(1000, np.float64)
    for i in range(1000):
        found[i] = gpureg.l2_loss(w, dtype="float64")
    assert np.array_equal(found.get(), np.full(1000, value))
    first = BOTH.grad(w)
    same = cp.ones((), bool)
    for _ in range(100):
        grad.fill(7)
        BOTH.value_and_grad(w, grad)
        same &= (grad.view(np.uint8) == first.view(np.uint8)).all()
    assert bool(same)
    assert_same(first, expected)


def test_other_work_on_the_device_changes_no_bit() -> None:
    """Blocks then run in another order, some long after others."""
    host = samples.wide(SEVERAL_GROUPS, np.float32)
    w, expected = cp.asarray(host), BOTH(host)
    noise = cp.ones(2**24, np.float32)
    busy, own = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    forget()
    values = []
    for i in range(200):
        with busy:
            for _ in range(i % 4):
                cp.sqrt(noise, out=noise)
        with own:
            values.append(BOTH(w))
    own.synchronize()
    assert {float(value.get()) for value in values} == {float(expected)}
    busy.synchronize()


def test_launches_of_small_tensors_in_quick_succession() -> None:
    """Each takes the counters over from the one before it."""
    sizes = [int(size) for size in samples.integers(0, 300, 1) % np.uint64(5 * tile_size(4))]
    host = [samples.wide(size, np.float32, seed=size) for size in sizes]
    on_device = [cp.asarray(w) for w in host]
    values = [BOTH(w) for w in on_device]
    for value, w in zip(values, host, strict=True):
        assert_same(value, BOTH(w))
    together = partial(_together, on_device)
    assert {float(together().get()) for _ in range(20)} == {float(_expected_together(host))}
