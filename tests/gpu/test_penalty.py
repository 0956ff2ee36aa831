"""A penalty over a model on the GPU: NumPy's bits, in one launch for each pair of dtypes, captured or not."""

from typing import Any

import numpy as np
import pytest

from gpureg import L1L2, Penalty
from tests import sets
from tests.gpu.device import assert_same, capture, cp, like
from tests.helpers import content

pytestmark = pytest.mark.gpu

BOTH = L1L2(0.1, 0.3)


@pytest.mark.parametrize("count", [1, 2, 9, 40, 130, 1000, 3000])
def test_sets_have_numpys_bits(count: int) -> None:
    sets.check(sets.make(count, count), 0.7, -3.0, place=like, back=cp.asnumpy)


def model(seed: int = 0) -> dict[str, Any]:
    """Return tensors of one dtype, small ones among them, on the host."""
    sizes = [10, 128, 129, 8192, 100_000, 3, 0, 70_000, 1]
    return {f"{i}": content("wide", size, "float32", seed=seed + i) for i, size in enumerate(sizes)}


def test_new_gradients_are_bound_anew() -> None:
    host = model()
    on_device, on_host = Penalty({name: cp.asarray(w) for name, w in host.items()}, BOTH), Penalty(host, BOTH)
    for step in range(5):
        numbers = model(seed=100 * step)
        found = {name: cp.asarray(grad) for name, grad in numbers.items()}
        expected = {name: grad.copy() for name, grad in numbers.items()}
        for _ in range(2):
            assert_same(on_device.accumulate_grad(found), on_host.accumulate_grad(expected))
        for name, grad in found.items():
            assert_same(grad, expected[name])


def test_a_captured_step_is_replayed_with_what_is_there_then() -> None:
    host = model()
    weights = {name: cp.asarray(w) for name, w in host.items()}
    grads = {name: cp.zeros(w.shape, w.dtype) for name, w in weights.items()}
    penalty, strength, scale = Penalty(weights, BOTH), cp.array(1.0), cp.array(1.0, np.float32)
    penalty.set_strength(strength)
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream:
        penalty.accumulate_grad(grads, scale)
        stream.synchronize()
        for grad in grads.values():
            grad.fill(0)
        graph, total = capture(stream, lambda: penalty.accumulate_grad(grads, scale))
        _, other = capture(stream, penalty)
        expected = {name: np.zeros_like(w) for name, w in host.items()}
        on_host = Penalty(host, BOTH)
        for step, (factor, upstream) in enumerate([(1.0, 1.0), (0.7, -3.0), (0.0, 2.0), (2.0, 1e-3)]):
            for name, w in model(seed=step).items():
                host[name][...] = w
                weights[name].set(w)
            strength[...], scale[...] = factor, upstream
            on_host.set_strength(factor)
            scratch = [cp.full(size, 0xA5, np.uint8) for size in (64, 512, 4096, 65536)]
            graph.launch(stream)
            assert_same(total, on_host.accumulate_grad(expected, np.float32(upstream)))
            assert all(bool((each == 0xA5).all()) for each in scratch)
            for name, grad in grads.items():
                assert_same(grad, expected[name])
        assert other.data.ptr != total.data.ptr
    stream.synchronize()


def test_plans_on_two_streams_do_not_disturb_each_other() -> None:
    hosts = [model(seed=seed) for seed in (1, 2)]
    expected = [Penalty(host, BOTH)() for host in hosts]
    penalties = [Penalty({name: cp.asarray(w) for name, w in host.items()}, BOTH) for host in hosts]
    cp.cuda.Device().synchronize()
    streams, found = [cp.cuda.Stream(non_blocking=True) for _ in range(2)], []
    for i in range(200):
        with streams[i % 2]:
            found.append(penalties[i // 2 % 2]())
    for stream in streams:
        stream.synchronize()
    for i, value in enumerate(found):
        assert_same(value, expected[i // 2 % 2])
