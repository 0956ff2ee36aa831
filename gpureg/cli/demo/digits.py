"""A small network trained on real handwritten digits, with gpureg's penalty in its training step.

Written for NumPy and CuPy alike: `xp` is the module that the arrays are of, `gpureg.xp()` in the demonstration.
"""

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpureg import Regularizer

SIZES = (64, 200, 200, 10)
"""Neurons of each layer: the pixels of an 8 x 8 image, two hidden layers of tanh, a score for each digit."""

BATCH = 64
"""Images of a training step."""

RATE = 1e-3
"""Adam's step size at first; it falls to zero evenly, so that weights held at zero come to rest there."""

Array = Any
"""A NumPy or CuPy array."""


class Layer(NamedTuple):
    """The parameters of a layer, or the gradients of its parameters."""

    kernel: Array
    bias: Array


Network = list[Layer]


class Images(NamedTuple):
    """Images, one a row, with brightness from 0 to 1, and the digit that each shows."""

    pixels: Array
    labels: Array


class Digits(NamedTuple):
    """The images to learn from, and those to be examined with."""

    train: Images
    test: Images


def load(xp: ModuleType, seed: int, dtype: Any = np.float32) -> Digits:
    """Return scikit-learn's 1,797 digits in the order of a seed: three quarters to learn from, the others to test with.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 # the extra `demo` may not be installed

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images = xp.asarray(pixels[order] / 16, dtype=dtype), xp.asarray(labels[order])
    cut = len(labels) * 3 // 4
    return Digits(Images(*(array[:cut] for array in images)), Images(*(array[cut:] for array in images)))


def initial(xp: ModuleType, seed: int, dtype: Any = np.float32) -> Network:
    """Return a network with random kernels, scaled so that a layer's outputs vary as its inputs do, and zero biases."""
    generator = np.random.default_rng([seed, 1])  # NumPy's, so that every machine starts from the same network
    return [
        Layer(
            xp.asarray(generator.standard_normal((inputs, outputs)) / inputs**0.5, dtype=dtype),
            xp.zeros(outputs, dtype),
        )
        for inputs, outputs in pairwise(SIZES)
    ]


def forward(xp: ModuleType, network: Network, pixels: Array) -> list[Array]:
    """Return what each layer is given, and at the end the scores of the digits."""
    values = [pixels]
    for kernel, bias in network[:-1]:
        values.append(xp.tanh(values[-1] @ kernel + bias))
    kernel, bias = network[-1]
    values.append(values[-1] @ kernel + bias)
    return values


def loss_and_gradients(xp: ModuleType, network: Network, images: Images) -> tuple[Array, Network]:
    """Return the mean cross-entropy of the softmax of the scores, and its gradients, layer by layer."""
    *values, scores = forward(xp, network, images.pixels)
    rows = xp.arange(len(scores))
    shifted = scores - scores.max(axis=1, keepdims=True)
    exponentials = xp.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    loss = (xp.log(sums[:, 0]) - shifted[rows, images.labels]).mean()

    error = exponentials / sums
    error[rows, images.labels] -= 1
    error /= len(rows)
    gradients: Network = []
    for layer, value in zip(reversed(network), reversed(values), strict=True):
        gradients.insert(0, Layer(value.T @ error, error.sum(axis=0)))
        error = (error @ layer.kernel.T) * (1 - value * value)  # tanh' = 1 - tanh**2; at the pixels it is not used
    return loss, gradients


class Adam:
    """The optimizer of Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015."""

    def __init__(self, xp: ModuleType, parameters: list[Array]) -> None:
        self._xp = xp
        self._steps = 0
        self._means = [xp.zeros_like(parameter) for parameter in parameters]
        self._squares = [xp.zeros_like(parameter) for parameter in parameters]

    def step(self, parameters: list[Array], gradients: list[Array], rate: float) -> None:
        """Move the parameters, in place, by about `rate` against their gradients."""
        self._steps += 1
        unbias_mean, unbias_square = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        for i, gradient in enumerate(gradients):
            self._means[i] += 0.1 * (gradient - self._means[i])
            self._squares[i] += 0.001 * (gradient * gradient - self._squares[i])
            deviation = self._xp.sqrt(self._squares[i] / unbias_square)
            parameters[i] -= (rate / unbias_mean) * self._means[i] / (deviation + 1e-8)


def train_step(
    xp: ModuleType, network: Network, adam: Adam, regularizer: Regularizer, batch: Images, rate: float
) -> Array:
    """Learn from one batch, and return its loss, the penalty included."""
    loss, gradients = loss_and_gradients(xp, network, batch)
    for layer, gradient in zip(network, gradients, strict=True):
        # All there is to it: the penalty's gradient is added to the one that is there, and its value returned,
        # in one pass over the kernel. Biases are not penalised.
        loss = loss + regularizer.accumulate_grad(layer.kernel, gradient.kernel)
    adam.step(flat(network), flat(gradients), rate)
    return loss


def train(
    xp: ModuleType,
    images: Images,
    regularizer: Regularizer,
    *,
    seed: int,
    epochs: int,
    epoch_done: Callable[[], object] = lambda: None,
) -> Network:
    """Return a network trained for some epochs: as many whole batches as there are, in an order of the seed's."""
    network = initial(xp, seed)
    adam = Adam(xp, flat(network))
    generator = np.random.default_rng([seed, 2])
    batches = len(images.labels) // BATCH
    for epoch in range(epochs):
        order = xp.asarray(generator.permutation(len(images.labels)))
        for i in range(batches):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            batch = Images(images.pixels[chosen], images.labels[chosen])
            done = (epoch * batches + i) / (epochs * batches)
            train_step(xp, network, adam, regularizer, batch, RATE * (1 - done))
        epoch_done()
    return network


def accuracy(xp: ModuleType, network: Network, images: Images) -> float:
    """Return the share of images whose digit has the highest score."""
    scores = forward(xp, network, images.pixels)[-1]
    return float((scores.argmax(axis=1) == images.labels).mean())


def flat(network: Network) -> list[Array]:
    """Return the arrays of all layers in one list."""
    return [array for layer in network for array in layer]
