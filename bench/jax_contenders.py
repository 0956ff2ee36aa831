"""JAX in the comparison of one tensor: the plain expression under `jax.jit`, on arrays of its own."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cases import Case, Mode


def _expression(jnp: Any, mode: Mode, w: Any, g: Any = None) -> Any:
    x = w.astype(np.float64 if w.dtype.name == "float64" else np.float32)
    terms = [mode.l1 * jnp.abs(x).sum()] * (mode.l1 != 0) + [mode.l2 * jnp.square(x).sum()] * (mode.l2 != 0)
    value = sum(terms)
    if mode.write == "nothing":
        return value
    gradient = mode.l1 * jnp.sign(x) + 2 * mode.l2 * x
    return value, (gradient if g is None else g.astype(x.dtype) + gradient).astype(w.dtype)


class JitRun(ABC):
    """The plain expression, compiled by `jax.jit`: weights and gradients are crossed to JAX once.

    A gradient that is added to is donated.
    """

    NAME = "jax.jit of the plain expression"

    def __init__(self, jax: Any, mode: Mode) -> None:
        self._mode, self._jax = mode, jax
        self._arrays: dict[int, list[Any]] = {}
        # Not a method: JAX keeps what it compiled, and would keep the arrays with it.
        expression = functools.partial(_expression, jax.numpy, mode)
        self._compiled = jax.jit(expression, donate_argnums=(1,) if mode.write == "add" else ())

    def __call__(self, arrays: Any) -> Any:
        """Return the value, and keep the gradient."""
        own = self._arrays.get(id(arrays))
        if own is None:
            own = self._arrays[id(arrays)] = self._made(arrays)
        if self._mode.write == "nothing":
            return self._finished(self._compiled(own[0]))
        value, own[1] = self._finished(self._compiled(*(own if self._mode.write == "add" else own[:1])))
        return value

    @abstractmethod
    def _made(self, arrays: Any) -> list[Any]:
        """Return JAX's copies of the weights and the gradient."""

    def _finished(self, results: Any) -> Any:
        """Return results when they may be timed."""
        return results

    @abstractmethod
    def _gradient(self, array: Any, arrays: Any) -> Any:
        """Return a gradient of JAX as one that `arrays` takes."""

    @abstractmethod
    def _wrong(self, run: Callable[[Any], Any], case: Case, given: Any) -> str | None:
        """Check what a call gives."""

    def seen(self, arrays: Any) -> Any:
        """Return the value, and let the arrays have the gradient, to be checked."""
        self._arrays.clear()
        value = float(self(arrays))
        if self._mode.write != "nothing":
            arrays.gradient[...] = self._gradient(self._arrays[id(arrays)][1], arrays)
        return value

    def wrong(self, run: Callable[[Any], Any], case: Case, given: Any) -> str | None:
        """Check what a call gives; the gradient is JAX's."""
        return self._wrong(self.seen if run is self else run, case, given)
