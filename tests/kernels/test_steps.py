"""Proximal steps of several tensors, from a plan to launches, over a CuPy whose GPU runs the kernels on the host."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpureg import backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import Leaf, cuda
from gpureg.backends.cuda_steps import CudaSteps
from tests import sets
from tests.helpers import Array, content, raw
from tests.kernels.fake_cupy import Device, FakeCupy, on_device

NUMPY = backends.load("numpy")


class Steps:
    """Tensors on the device, the same on the host, and a plan of each."""

    def __init__(self, cupy: FakeCupy, weights: list[Array], coefficients: list[Coefficients]) -> None:
        self.host = [w.copy(order="K") for w in weights]
        self.device = [on_device(cupy, w) for w in self.host]
        self.mine, self.theirs = (
            backend.proximal_plan([Leaf(*pair) for pair in zip(arrays, coefficients, strict=True)])
            for backend, arrays in ((cuda.backend, self.device), (NUMPY, self.host))
        )

    def check(self, lengths: list[Any], strength: Any = 1.0, skips: Any = 0.0) -> None:
        """Take a step with each, factors that are arrays being on the device for one, and compare all bits."""
        self.mine.take(lengths, strength=strength, skips=skips)
        host = [each.get() if isinstance(each, cuda._cupy().ndarray) else each for each in (*lengths, strength, skips)]
        self.theirs.take(host[:-2], strength=host[-2], skips=host[-1])
        self.compare()

    def compare(self) -> None:
        for mine, theirs in zip(self.device, self.host, strict=True):
            assert np.array_equal(raw(mine.get()), raw(theirs))


@given(st.integers(1, 30), st.integers(0, 2**32), st.sampled_from([1.0, 0.7, 0.0]), st.sampled_from([0.0, 0.0, 1.0]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_sets_have_numpys_bits(cupy: FakeCupy, count: int, seed: int, strength: float, skips: float) -> None:
    made = sets.make(count, seed)
    regularizers = [made.regularizers[name] or sets.REGULARIZERS[0] for name in made.weights]
    steps = Steps(cupy, list(made.weights.values()), [one.coefficients for one in regularizers])
    rng = np.random.default_rng(seed)
    lengths: list[Any] = [float(length) for length in rng.choice([0.0, 0.01, 0.01, 0.5], count)]
    for i in rng.integers(0, count, 3):
        lengths[i] = cupy.array(np.array(rng.choice([0.25, 1e-3]), rng.choice(["f4", "f8"])))
    steps.check(lengths, strength, skips)
    steps.check([0.1] * count, cupy.array(strength), cupy.array(np.float32(skips)))


def weights(*sizes: int, dtype: str = "float32") -> list[Array]:
    return [content("weights", size, dtype, seed=i) for i, size in enumerate(sizes)]


L1 = Coefficients(0.01, 0.0, 0.0)


def test_steps_are_one_launch_and_copy_nothing_to_the_device_again(cupy: FakeCupy) -> None:
    steps = Steps(cupy, weights(10, 20_000, 0, 8192), [L1] * 4)
    steps.check([0.5] * 4)
    uploads, allocated = cupy.uploads, cupy.allocations
    for rate in (0.4, 0.3):
        steps.check([rate] * 4)  # as a schedule has it: passed by value
    assert cupy.launches == 3 * [("proximal_step<float>", 5)]
    assert (cupy.uploads, cupy.allocations) == (uploads, allocated)
    steps.check([0.5, 0.1, 0.5, 0.1])
    steps.check([0.5, 0.1, 0.5, 0.1])
    assert cupy.uploads == uploads + 1
    steps.check([0.4, 0.1, 0.5, 0.1])
    assert cupy.uploads == uploads + 2


def test_each_dtype_is_a_launch(cupy: FakeCupy) -> None:
    arrays = [*weights(9, 10), *weights(11, dtype="bfloat16"), *weights(12)]
    Steps(cupy, arrays, [L1, Coefficients(0.1, 0.3, 0.6), L1, L1]).check([0.5, 0.25, 0.5, 0.125])
    assert cupy.launches == [("proximal_step<float>", 3), ("proximal_step<BFloat16>", 1)]


def test_nothing_is_nothing(cupy: FakeCupy) -> None:
    CudaSteps([]).take([])
    Steps(cupy, weights(0), [L1]).check([1.0])
    assert cupy.launches == []


def test_what_is_skipped_keeps_its_bits(cupy: FakeCupy) -> None:
    steps = Steps(cupy, [np.array([-0.0, 1.0, np.nan], np.float32), *weights(100)], [L1] * 2)
    before = [raw(array) for array in steps.host]
    for skips in (1.0, np.inf, np.nan, cupy.array(np.float32(1)), cupy.array(2.0)):
        steps.check([1.0, 1.0], skips=skips)
        assert all(np.array_equal(raw(array), bits) for array, bits in zip(steps.host, before, strict=True))
    steps.check([1.0, 1.0], skips=cupy.array(-0.0))
    assert steps.host[0][0] == 0
    assert not np.signbit(steps.host[0][0])


def test_captured_steps_read_what_is_there_when_they_are_replayed(cupy: FakeCupy) -> None:
    steps = Steps(cupy, weights(10, 9000), [L1] * 2)
    lengths: list[Any] = [cupy.array(0.5), cupy.array(np.float32(0.25))]
    strength, skips = cupy.array(1.0), cupy.array(np.float32(0))
    with cupy.capture(), pytest.raises(RuntimeError, match="cannot be copied to the device while a graph is captured"):
        steps.mine.take(lengths, strength=strength, skips=skips)
    steps.check(lengths, strength, skips)
    with cupy.capture() as graph:
        steps.mine.take(lengths, strength=strength, skips=skips)
    steps.compare()
    for step in ((0.125, 0.5, 0.0), (2.0, 0.7, 0.0), (1.0, 1.0, 1.0)):
        for factor, number in zip((lengths[0], strength, skips), step, strict=True):
            factor[...] = number
        graph.replay()
        steps.theirs.take([lengths[0].get(), lengths[1].get()], strength=strength.get(), skips=skips.get())
        steps.compare()


def test_steps_are_taken_where_the_tensors_are(cupy: FakeCupy) -> None:
    with Device(1):
        steps = Steps(cupy, weights(10, 9000), [L1] * 2)
    steps.check([0.5, 0.25])
