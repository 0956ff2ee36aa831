"""What computes: the interface of a backend, and the table of those there are.

A backend is the whole of `docs/arithmetic.md` for one kind of memory. It takes any number of tensors in one call, of
which one tensor is the simple case; it knows nothing of frameworks, and all it is given has been checked.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from gpureg.arithmetic import Coefficients

Scalar = Any
"""A number, or a 0-d array in the backend's memory, read there without synchronising."""


class Leaf(NamedTuple):
    """One tensor of a call: its weights, its coefficients, and the gradient to write, add to or leave out."""

    weights: Any
    coefficients: Coefficients
    gradient: Any = None


class Values(NamedTuple):
    """What a pass returns: the total, rounded once to the dtype asked for, and each penalty in float64."""

    total: Any
    each: Any


class Backend(Protocol):
    """Penalties and gradients over the backend's own arrays (`numpy.ndarray` for "numpy").

    Shapes, dtypes and memory have been checked: a gradient has its weights' shape, may be written, and overlaps
    neither itself nor another array of the call. Coefficients are scaled by `strength`; a gradient also by
    `upstream`, which never changes a value.
    """

    @property
    def name(self) -> str:
        """Return the name in `gpureg.backends.NAMES`."""

    def unusable(self) -> str | None:
        """Return why the backend cannot be used here, in one line that says what to install; None if it can."""

    def value(
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, divisor: int = 1
    ) -> Values:
        """Return the penalties; the total is divided by `divisor` before its one rounding."""

    def gradient(self, leaves: Sequence[Leaf], *, strength: Scalar = 1.0, upstream: Scalar = 1.0) -> None:
        """Write each leaf's gradient."""

    def value_and_gradient(
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        """Write each leaf's gradient and return the penalties, in one pass over the weights."""

    def accumulate(
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        """Add to each leaf's gradient and return the penalties, in one pass over the weights."""

    def proximal(self, leaves: Sequence[Leaf], step: Scalar) -> None:
        """Take the proximal step on each leaf's weights, in place."""

    def from_numpy(self, array: NDArray[Any]) -> Any:
        """Return a new array of the backend with the contents of a NumPy array."""

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """Return a NumPy array with the contents of an array or 0-d value of the backend."""

    def overlap(self, first: Any, second: Any) -> bool:
        """Return whether two arrays share any memory, or might in a way too costly to rule out."""


_MODULES = {"numpy": "gpureg.backends.numpy", "cuda": "gpureg.backends.cuda"}

NAMES = tuple(_MODULES)
"""The backends there are, by name."""


def load(name: str) -> Backend:
    """Return a backend, importing its module when it is first needed."""
    return cast("Backend", import_module(_MODULES[name]).backend)
