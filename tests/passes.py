"""Passes over tensors that bring their gradients along: how tests call backends, and how they make simple ones."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from gpureg import backends
from gpureg.arithmetic import Coefficients, tile_size
from gpureg.backends import Backend, Mode, Values, llvm, numpy

_FLOAT64 = np.dtype(np.float64)


def cut(monkeypatch: pytest.MonkeyPatch, tiles: int, dtype: np.dtype[Any]) -> None:
    """Have the backends of the CPU cut large tensors into groups of so many tiles, 32 at most."""
    monkeypatch.setattr(numpy, "CHUNK", tiles * tile_size(dtype.itemsize))
    monkeypatch.setattr(llvm, "PIECE_TILES", tiles)


class Leaf(NamedTuple):
    """A tensor of a call, with the gradient to write or add to."""

    weights: Any
    coefficients: Coefficients
    gradient: Any = None


def run(
    backend: Backend, mode: Mode, leaves: Sequence[Leaf], dtype: np.dtype[Any] = _FLOAT64, **options: Any
) -> Values:
    """Make one pass of a backend; nothing of what it returns is there if it only writes gradients."""
    plan = backend.plan([backends.Leaf(leaf.weights, leaf.coefficients) for leaf in leaves])
    if mode is Mode.VALUE:
        return plan.value(dtype, **options)
    gradients = plan.bind([leaf.gradient for leaf in leaves])
    if mode is Mode.VALUE_AND_GRADIENT:
        return plan.value_and_gradient(dtype, gradients, **options)
    if mode is Mode.ACCUMULATE:
        return plan.accumulate(dtype, gradients, **options)
    plan.gradient(gradients, **options)
    return backends.Results(None, None, None)


class Bound(list[Leaf]):
    """Tensors with gradients."""

    keeps_arrays = True

    def moved(self, addresses: NDArray[np.int64]) -> None:
        """Return None: where arrays lie is not known here."""


class WholePlan:
    """A plan of a backend that is one function of mode, leaves and options: nothing is prepared."""

    def __init__(self, whole: Callable[..., Values], leaves: Sequence[backends.Leaf]) -> None:
        self._whole, self._leaves = whole, leaves

    def bind(self, gradients: Sequence[Any]) -> Bound:
        return Bound(Leaf(*leaf, gradient) for leaf, gradient in zip(self._leaves, gradients, strict=True))

    def value(self, dtype: np.dtype[Any], **options: Any) -> Values:
        return self._whole(Mode.VALUE, [Leaf(*leaf) for leaf in self._leaves], dtype, **options)

    def gradient(self, gradients: Bound, **options: Any) -> None:
        self._whole(Mode.GRADIENT, gradients, _FLOAT64, **options)

    def value_and_gradient(self, dtype: np.dtype[Any], gradients: Bound, **options: Any) -> Values:
        return self._whole(Mode.VALUE_AND_GRADIENT, gradients, dtype, **options)

    def accumulate(self, dtype: np.dtype[Any], gradients: Bound, **options: Any) -> Values:
        return self._whole(Mode.ACCUMULATE, gradients, dtype, **options)
