"""Calls captured in a CUDA graph: replayed with the weights and factors of the moment, any number of times."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import backends, samples
from gpureg.arithmetic import Coefficients, tile_size
from gpureg.backends import Mode, cuda
from tests.gpu.device import assert_same, capture, cp
from tests.gpu.test_bits import BOTH, PAIRS
from tests.helpers import Array, content
from tests.passes import Leaf, run

pytestmark = pytest.mark.gpu

COEFFICIENTS = Coefficients(0.1, 0.3, 0.6)
SIZE = (2 * cuda.GROUP + 1) * tile_size(4) + 5
RESULT = np.dtype(np.float32)


@pytest.fixture
def stream() -> Iterator[Any]:
    """Make a stream current that can be captured."""
    with cp.cuda.Stream(non_blocking=True) as one:
        yield one
        one.synchronize()


PASSES: dict[str, Callable[[Any, Any], Any]] = {
    "value": lambda w, g: BOTH(w),  # noqa: ARG005
    "value and gradient": lambda w, g: BOTH.value_and_grad(w, g)[0],
    "accumulate": BOTH.accumulate_grad,
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize(("dtype", "into"), PAIRS)
def test_replays_take_the_weights_of_the_moment(stream: Any, dtype: str, into: str, name: str) -> None:
    run = PASSES[name]
    numbers = [content("wide", SIZE, dtype, seed=seed) for seed in range(3)]
    w, g = cp.asarray(numbers[0]), cp.zeros(SIZE, into)
    run(w, g)  # the kernel is loaded
    g.fill(0)
    graph, value = capture(stream, lambda: run(w, g))
    expected = np.zeros(SIZE, g.dtype)
    for host in (*numbers, numbers[0]):
        w[...] = cp.asarray(host)
        graph.launch(stream)
        assert_same(value, run(host, expected))
        assert_same(g, expected)


def test_replays_of_the_other_passes(stream: Any) -> None:
    host = content("wide", SIZE, "float32")
    w, g, moved = cp.asarray(host), cp.zeros(SIZE, np.float32), cp.asarray(host)
    BOTH.grad(w, g)
    BOTH.prox_(moved.copy(), 0.5)
    graph, _ = capture(stream, lambda: (BOTH.grad(w, g), BOTH.prox_(moved, 0.5)))
    g.fill(7)
    assert_same(moved, host)
    graph.launch(stream)
    assert_same(g, BOTH.grad(host))
    assert_same(moved, BOTH.prox_(host.copy(), 0.5))


def _accumulate(backend: Any, w: Any, g: Any, strength: Any, upstream: Any) -> Any:
    return run(backend, Mode.ACCUMULATE, [Leaf(w, COEFFICIENTS, g)], RESULT, strength=strength, upstream=upstream).total


def test_replays_take_the_factors_of_the_moment(stream: Any) -> None:
    host = content("wide", SIZE, "float32")
    w, g = cp.asarray(host), cp.zeros(SIZE, np.float32)
    strength, upstream = cp.array(1.0), cp.array(1.0)
    _accumulate(cuda.backend, w, g, strength, upstream)
    g.fill(0)
    graph, value = capture(stream, lambda: _accumulate(cuda.backend, w, g, strength, upstream))
    expected = np.zeros(SIZE, np.float32)
    for factors in ((1.0, 1.0), (0.7, -0.3), (0.0, 1.0), (1.0, 0.0), (2.0, 1e-3)):
        strength[...], upstream[...] = factors
        graph.launch(stream)
        assert_same(value, _accumulate(backends.load("numpy"), host, expected, *factors))
        assert_same(g, expected)


def test_a_thousand_replays_leave_the_counters_right(stream: Any) -> None:
    host = content("wide", SIZE, "float32")
    w, expected = cp.asarray(host), BOTH(host)
    BOTH(w)
    graph, value = capture(stream, lambda: BOTH(w))
    found = cp.empty(1000, np.float32)
    for i in range(1000):
        graph.launch(stream)
        found[i] = value
    assert np.array_equal(found.get(), np.full(1000, expected))
    assert_same(BOTH(w), expected)


def test_what_is_allocated_between_replays_is_left_alone(stream: Any) -> None:
    """Scratch memory that went back to the pool after the capture would be another array's by now."""
    host = content("wide", SIZE, "float32")
    w, expected = cp.asarray(host), BOTH(host)
    BOTH(w)
    graph, value = capture(stream, lambda: BOTH(w))
    for round_ in range(5):
        others = [cp.full(size, 0xA5, np.uint8) for size in (1, 512, 1024, 4096, 5000, 65536, 10**6) for _ in range(20)]
        graph.launch(stream)
        assert_same(value, expected)
        assert all(bool((other == 0xA5).all()) for other in others), round_
        del others


def test_a_graph_beside_other_calls(stream: Any) -> None:
    """Calls on the same stream and on another, and a second graph, each with counters of its own."""
    hosts = [content("wide", SIZE - 1000 * i, "float32", seed=i) for i in range(3)]
    weights, expected = [cp.asarray(host) for host in hosts], [BOTH(host) for host in hosts]
    for w in weights:
        BOTH(w)
    (first, first_value), (second, second_value) = (capture(stream, partial(BOTH, w)) for w in weights[:2])
    stream.synchronize()
    other, fresh = cp.cuda.Stream(non_blocking=True), []
    for _ in range(50):
        first.launch(stream)
        fresh.append(BOTH(weights[2]))
        with other:
            second.launch(other)
            fresh.append(BOTH(weights[2]))
    other.synchronize()
    stream.synchronize()
    assert_same(first_value, expected[0])
    assert_same(second_value, expected[1])
    for value in fresh:
        assert_same(value, expected[2])


def test_a_graph_outlives_what_it_was_made_with(stream: Any) -> None:
    host: Array = samples.wide(SIZE, np.float32)
    w = cp.asarray(host)
    graph, value = _captured_elsewhere(stream, w)
    cp.get_default_memory_pool().free_all_blocks()
    cp.full(2**22, 0xA5, np.uint8)
    graph.launch(stream)
    assert_same(value, gpureg.L1(0.3)(host))


def _captured_elsewhere(stream: Any, w: Any) -> tuple[Any, Any]:
    regularizer = gpureg.L1(0.3)
    regularizer(w)
    return capture(stream, lambda: regularizer(w))


def test_several_tensors_met_first_in_a_capture_are_refused_and_the_next_call_is_right(stream: Any) -> None:
    host = content("wide", 1000, "float32")
    leaves = [Leaf(cp.asarray(host), COEFFICIENTS) for _ in range(2)]
    stream.synchronize()
    with pytest.raises(RuntimeError, match="make the same call once before"):
        capture(stream, lambda: run(cuda.backend, Mode.VALUE, leaves, RESULT))
    expected = run(backends.load("numpy"), Mode.VALUE, [Leaf(host, COEFFICIENTS) for _ in range(2)], RESULT)
    assert_same(run(cuda.backend, Mode.VALUE, leaves, RESULT).total, expected.total)
