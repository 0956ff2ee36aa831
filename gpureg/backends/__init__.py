"""What computes: the interface of a backend, and the table of those there are.

A backend is the whole of `docs/arithmetic.md` for one kind of memory. It plans passes over any number of tensors, of
which one tensor is the simple case; it knows nothing of frameworks, and all it is given has been checked.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from gpureg.arithmetic import Coefficients
from gpureg.statistics import Statistics

Scalar = Any
"""A number, or a 0-d array in the backend's memory, read there without synchronising."""


class Mode(IntEnum):
    """What a pass over the weights does with the gradient, as in `kernels/penalty.cu`."""

    VALUE = 0
    GRADIENT = 1
    VALUE_AND_GRADIENT = 2
    ACCUMULATE = 3


class Leaf(NamedTuple):
    """One tensor of a call: its weights and its coefficients."""

    weights: Any
    coefficients: Coefficients


class Values(Protocol):
    """What a pass returns, in the backend's own arrays."""

    @property
    def total(self) -> Any:
        """The sum of the penalties over the divisor, 0-d, rounded once to the dtype asked for."""

    @property
    def each(self) -> Any:
        """The penalty of each tensor in float64."""

    @property
    def rounded(self) -> Any:
        """The penalty of each tensor, rounded to float32."""

    @property
    def sums(self) -> Any:
        """`sum|w|` and `sum w*w` of each tensor in float64, shape (tensors, 2); None unless they were asked for."""


class Results(NamedTuple):
    """Values that are there."""

    total: Any
    each: Any
    rounded: Any
    sums: Any = None


class Gradients(Protocol):
    """Gradients to write or to add to, bound to the tensors of a plan; valid while the arrays live."""

    @property
    def keeps_arrays(self) -> bool:
        """Whether this keeps arrays alive, and not only where they lie."""

    def moved(self, addresses: NDArray[np.int64]) -> "Gradients | None":
        """Return what other gradients of the same shapes, strides and dtypes make, which begin at these addresses.

        None if that is not all there is to know; they must be bound then.
        """


class Plan(Protocol):
    """Tensors and their coefficients, ready to be passed over any number of times, in the order given.

    Coefficients are scaled by `strength`; a gradient also by `upstream`, which never changes a value.
    """

    def bind(self, gradients: Sequence[Any]) -> Gradients:
        """Return gradients, one for each tensor in the order of the plan, as its passes take them."""

    def value(self, dtype: np.dtype[Any], *, strength: Scalar = 1.0, divisor: int = 1, sums: bool = False) -> Values:
        """Return the penalties; the total is divided by `divisor` before its one rounding."""

    def gradient(self, gradients: Any, *, strength: Scalar = 1.0, upstream: Scalar = 1.0) -> None:
        """Write each tensor's gradient."""

    def value_and_gradient(
        self, dtype: np.dtype[Any], gradients: Any, *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        """Write each tensor's gradient and return the penalties, in one pass over the weights."""

    def accumulate(
        self, dtype: np.dtype[Any], gradients: Any, *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        """Add to each tensor's gradient and return the penalties, in one pass over the weights."""


class ModePlan(ABC):
    """A plan that makes every pass by one method; it defines `bind` as well."""

    @abstractmethod
    def _run(
        self,
        mode: Mode,
        dtype: np.dtype[Any],
        gradients: Any,
        strength: Scalar,
        upstream: Scalar,
        divisor: int = 1,
        every_sum: bool = False,
    ) -> Values:
        """Make a pass; there are no gradients if it is for values alone."""

    def value(  # noqa: D102
        self, dtype: np.dtype[Any], *, strength: Scalar = 1.0, divisor: int = 1, sums: bool = False
    ) -> Values:
        return self._run(Mode.VALUE, dtype, None, strength, 1.0, divisor, sums)

    def gradient(self, gradients: Any, *, strength: Scalar = 1.0, upstream: Scalar = 1.0) -> None:  # noqa: D102
        self._run(Mode.GRADIENT, np.dtype(np.float64), gradients, strength, upstream)

    def value_and_gradient(  # noqa: D102
        self, dtype: np.dtype[Any], gradients: Any, *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        return self._run(Mode.VALUE_AND_GRADIENT, dtype, gradients, strength, upstream)

    def accumulate(  # noqa: D102
        self, dtype: np.dtype[Any], gradients: Any, *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        return self._run(Mode.ACCUMULATE, dtype, gradients, strength, upstream)


class ProximalPlan(Protocol):
    """Tensors and their coefficients, on which proximal steps may be taken any number of times."""

    def take(self, lengths: Sequence[Scalar], *, strength: Scalar = 1.0, skips: Scalar = 0.0) -> None:
        """Take a step on each tensor, in place, each of a length of its own; none if `skips` is not 0."""


class Backend(Protocol):
    """Penalties and gradients over the backend's own arrays (`numpy.ndarray` for "numpy").

    Shapes, dtypes and memory have been checked: a gradient has its weights' shape, may be written, and overlaps
    neither itself nor another array of the call.
    """

    @property
    def name(self) -> str:
        """Return the name in `gpureg.backends.NAMES`."""

    @property
    def trusts_identity(self) -> bool:
        """Whether gradients that come again as the very same objects need not be looked at once more.

        It saves the host's time, which counts where it only launches passes. A framework may put other memory under an
        object; where the host computes, a look is cheap beside the pass.
        """

    def unusable(self) -> str | None:
        """Return why the backend cannot be used here, in one line that says what to install; None if it can."""

    def plan(self, leaves: Sequence[Leaf]) -> Plan:
        """Return the plan of passes over these tensors."""

    def proximal_plan(self, leaves: Sequence[Leaf]) -> ProximalPlan:
        """Return the plan of proximal steps on these tensors."""

    def statistics(self, arrays: Sequence[Any], threshold: float) -> list[Statistics]:
        """Return the statistics of each array, by one pass over memory for all; wait for them where they are made.

        Arrays may be read-only. The threshold is not negative and not NaN; it may be infinite.
        """

    def from_numpy(self, array: NDArray[Any]) -> Any:
        """Return a new array of the backend with the contents of a NumPy array."""

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """Return a NumPy array with the contents of an array or 0-d value of the backend."""

    def address(self, array: Any) -> int:
        """Return where the first element of an array lies."""

    def overlap(self, first: Any, second: Any) -> bool:
        """Return whether two arrays share any memory, or might in a way too costly to rule out."""


_MODULES = {"numpy": "gpureg.backends.numpy", "llvm": "gpureg.backends.llvm", "cuda": "gpureg.backends.cuda"}

NAMES = tuple(_MODULES)
"""The backends there are, by name."""

_CPU = ("llvm", "numpy")
"""Those of arrays in the CPU's memory, the fastest first."""

_cpu: Backend | None = None


def load(name: str) -> Backend:
    """Return a backend, importing its module when it is first needed."""
    return cast("Backend", import_module(_MODULES[name]).backend)


def cpu() -> Backend:
    """Return the backend that computes arrays in the CPU's memory, as `set_backend` or GPUREG_BACKEND chose it."""
    if _cpu is None:
        name = os.environ.get("GPUREG_BACKEND") or None
        _choose(name, f"GPUREG_BACKEND is {name!r}")
    return cast("Backend", _cpu)


def set_backend(name: str | None) -> None:
    """Choose what computes arrays that are in the CPU's memory; arrays on a GPU are always computed there.

    It changes no bit of any result, but its speed: "llvm" makes machine code for the processor and needs
    `pip install 'gpureg[cpu]'`, "numpy" calls NumPy. At first it is what the environment variable GPUREG_BACKEND says;
    without that, "llvm" where it can be used.

    Parameters
    ----------
    name
        "llvm" or "numpy"; None for the faster one that can be used.

    Raises
    ------
    ValueError
        If there is no such backend for the CPU.
    RuntimeError
        If it cannot be used here; it says what to install.

    Examples
    --------
    >>> import gpureg
    >>> gpureg.set_backend("numpy")
    >>> gpureg.get_backend()
    'numpy'
    >>> gpureg.set_backend(None)
    """
    _choose(name, f"the backend is {name!r}")


def get_backend() -> str:
    """Return the name of what computes arrays that are in the CPU's memory.

    Examples
    --------
    >>> import gpureg
    >>> gpureg.get_backend() in {"llvm", "numpy"}
    True
    """
    return cpu().name


def _choose(name: str | None, given: str) -> None:
    global _cpu  # noqa: PLW0603 - one choice for the process, as of the number of threads
    if name is None:
        _cpu = next(backend for backend in map(load, _CPU) if backend.unusable() is None)
    elif name not in _CPU:
        raise ValueError(f"{given}; expected {' or '.join(map(repr, _CPU))}")
    elif (reason := load(name).unusable()) is not None:
        raise RuntimeError(f"{given}, which cannot be used here: {reason}")
    else:
        _cpu = load(name)
