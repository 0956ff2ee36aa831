"""The network's gradients are its loss's, and training is the same every time."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import gpureg
from gpureg.cli.demo import digits, experiment

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread() -> Iterator[None]:
    with experiment.one_blas_thread():
        yield


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load(np, 0)


def test_the_split_is_fixed_by_the_seed_and_parts_all_images(data: digits.Digits) -> None:
    again, other = digits.load(np, 0), digits.load(np, 1)
    assert np.array_equal(data.train.pixels, again.train.pixels)
    assert np.array_equal(data.test.labels, again.test.labels)
    assert not np.array_equal(data.test.labels, other.test.labels)
    assert data.train.pixels.shape == (1347, 64)
    assert data.test.pixels.shape == (450, 64)
    first, second = (np.concatenate(d.train + d.test, axis=None) for d in (data, other))
    assert np.array_equal(np.sort(first), np.sort(second))  # the same images, parted in another way
    assert data.train.pixels.dtype == np.float32
    assert data.train.pixels.min() == 0
    assert data.train.pixels.max() == 1


def test_the_first_network_is_fixed_by_the_seed() -> None:
    first, again, other = (digits.flat(digits.initial(np, seed)) for seed in (3, 3, 4))
    assert [array.shape for array in first] == [(64, 200), (200,), (200, 200), (200,), (200, 10), (10,)]
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], other[0])
    assert first[2].std() == pytest.approx(200**-0.5, rel=0.02)


@pytest.mark.parametrize("regularizer", [gpureg.HalvedL2(0.3), gpureg.L1(0.2)], ids=str)
def test_gradients_are_finite_differences_of_the_loss(regularizer: gpureg.Regularizer) -> None:
    network = digits.initial(np, 0, np.float64)
    images = digits.load(np, 0, np.float64).train
    images = digits.Images(images.pixels[:20], images.labels[:20])

    def total() -> float:
        loss, _ = digits.loss_and_gradients(np, network, images)
        return float(loss + sum(regularizer(layer.kernel) for layer in network))

    _, gradients = digits.loss_and_gradients(np, network, images)
    for layer, gradient in zip(network, gradients, strict=True):
        regularizer.accumulate_grad(layer.kernel, gradient.kernel)
    generator = np.random.default_rng(0)
    for array, gradient in zip(digits.flat(network), digits.flat(gradients), strict=True):
        direction = generator.standard_normal(array.shape)
        step = 1e-7 if array.ndim == 2 else 1e-5  # so small that few of the L1 term's corners are passed
        start, ends = array.copy(), []
        for sign in (1, -1):
            np.copyto(array, start + sign * step * direction)
            ends.append(total())
        np.copyto(array, start)
        slope = float((gradient * direction).sum())
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_loss_of_equal_scores_is_that_of_guessing() -> None:
    network = [digits.Layer(np.zeros((a, b)), np.zeros(b)) for a, b in ((64, 200), (200, 200), (200, 10))]
    images = digits.Images(np.ones((3, 64)), np.array([0, 5, 9]))
    loss, _ = digits.loss_and_gradients(np, network, images)
    assert float(loss) == pytest.approx(math.log(10))


def test_large_scores_do_not_overflow() -> None:
    network = digits.initial(np, 0)
    network[-1].bias[3] = 1e4
    loss, gradients = digits.loss_and_gradients(np, network, digits.Images(np.ones((2, 64), "f4"), np.array([3, 4])))
    assert float(loss) == pytest.approx(5e3, rel=1e-3)
    assert all(np.isfinite(array).all() for array in digits.flat(gradients))


def test_adam_is_the_published_one() -> None:
    parameter, expected = np.array([1.0, -2.0]), np.array([1.0, -2.0])
    adam = digits.Adam(np, [parameter])
    mean, square = np.zeros(2), np.zeros(2)
    for step, gradient in enumerate(np.array([[0.5, -1.0], [0.25, 3.0], [-0.5, 0.0]]), start=1):
        adam.step([parameter], [gradient], rate=0.1)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        expected -= 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(parameter, expected, rtol=1e-12)


class Recorder(digits.Adam):
    """An optimizer that keeps the gradients it is given, and moves nothing."""

    def step(self, parameters: list[Any], gradients: list[Any], rate: float) -> None:  # noqa: ARG002
        self.gradients = gradients


@pytest.mark.parametrize("regularizer", [gpureg.HalvedL2(0.01), gpureg.L1(0.001), gpureg.L1(0.0)], ids=str)
def test_a_step_adds_the_penalty_of_the_kernels_alone(data: digits.Digits, regularizer: gpureg.Regularizer) -> None:
    network = digits.initial(np, 0)
    images = digits.Images(data.train.pixels[:64], data.train.labels[:64])
    loss, gradients = digits.loss_and_gradients(np, network, images)
    recorder = Recorder(np, digits.flat(network))
    with_penalty = digits.train_step(np, network, recorder, regularizer, images, rate=0.1)
    expected: list[NDArray[Any]] = []
    for layer, gradient in zip(network, gradients, strict=True):
        expected += [gradient.kernel + regularizer.grad(layer.kernel), gradient.bias]
    assert all(map(np.array_equal, recorder.gradients, expected))
    penalty = sum(float(regularizer(layer.kernel)) for layer in network)
    assert float(with_penalty) == pytest.approx(float(loss) + penalty, rel=1e-6)


def test_training_learns_and_is_the_same_every_time(data: digits.Digits) -> None:
    done: list[int] = []
    networks = [
        digits.train(np, data.train, gpureg.L1(1e-5), seed=seed, epochs=4, epoch_done=lambda: done.append(1))
        for seed in (0, 0, 1)
    ]
    first, again, other = (digits.flat(network) for network in networks)
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], other[0])
    assert len(done) == 12
    assert digits.accuracy(np, networks[0], data.test) > 0.9


def test_too_strong_a_penalty_destroys_the_model(data: digits.Digits) -> None:
    network = digits.train(np, data.train, gpureg.HalvedL2(1.0), seed=0, epochs=12)
    assert digits.accuracy(np, network, data.test) < 0.2
