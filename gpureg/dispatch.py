"""From a public call to a backend: whose arrays these are, whether they may be used so, and where they are computed.

Everything is checked before anything is written.
"""

from typing import Any

import numpy as np

from gpureg import arithmetic, libraries
from gpureg.arithmetic import Coefficients
from gpureg.backends import Backend, Leaf
from gpureg.libraries import DTYPES, Library


def value(w: Any, coefficients: Coefficients, dtype: Any = None) -> Any:
    """Return the penalty of w."""
    library, backend, native = _weights(w)
    result = _result_dtype(library, native, dtype)
    return library.scalar(backend.plan([Leaf(native, coefficients)]).value(result).total)


def activity(x: Any, coefficients: Coefficients) -> Any:
    """Return the penalty of x over the length of its first axis, the batch; 0 for an empty batch."""
    library, backend, native = _weights(x, "x")
    if native.ndim == 0:
        raise ValueError("x is 0-d; an activity penalty is divided by x.shape[0], so x needs a first axis, the batch")
    result = arithmetic.result_dtype([native.dtype])
    batch = max(native.shape[0], 1)
    return library.scalar(backend.plan([Leaf(native, coefficients)]).value(result, divisor=batch).total)


def gradient(w: Any, coefficients: Coefficients, out: Any = None) -> Any:
    """Write the gradient at w to `out`, a new array if there is none, and return it."""
    library, backend, native = _weights(w)
    out = library.empty_like(w) if out is None else out
    other = _gradient(library, backend, native, out, "out")
    plan = backend.plan([Leaf(native, coefficients)])
    plan.gradient(plan.bind([other]))
    return out


def value_and_gradient(w: Any, coefficients: Coefficients, out: Any = None) -> tuple[Any, Any]:
    """Return the penalty of w, and the gradient as `gradient` does."""
    library, backend, native = _weights(w)
    out = library.empty_like(w) if out is None else out
    other = _gradient(library, backend, native, out, "out")
    plan = backend.plan([Leaf(native, coefficients)])
    result = plan.value_and_gradient(_result_dtype(library, native), plan.bind([other]))
    return library.scalar(result.total), out


def accumulate(w: Any, coefficients: Coefficients, grad: Any) -> Any:
    """Add the gradient at w to `grad` and return the penalty of w."""
    library, backend, native = _weights(w)
    other = _gradient(library, backend, native, grad, "grad")
    plan = backend.plan([Leaf(native, coefficients)])
    return library.scalar(plan.accumulate(_result_dtype(library, native), plan.bind([other])).total)


def proximal(w: Any, coefficients: Coefficients, step: float) -> Any:
    """Take the proximal step on w, in place, and return w."""
    library, backend, native = _weights(w)
    _check_writable(library, w, native, "w")
    backend.proximal([Leaf(native, coefficients)], step)
    return w


def _weights(w: Any, name: str = "w") -> tuple[Library, Backend, Any]:
    library = libraries.of(w, name)
    native = library.native(w, name)
    return library, library.backend(native), native


def _gradient(library: Library, backend: Backend, w: Any, gradient: Any, name: str) -> Any:
    """Return a gradient as its backend takes it, once it is sure that it may be written as w's."""
    other = libraries.of(gradient, name)
    if other is not library:
        raise TypeError(f"{name} is of {other.name}, but w is of {library.name}; both must be of one library")
    # Of the weights' dtype or float32.
    native = library.native(gradient, name, tuple(dict.fromkeys([w.dtype.name, "float32"])))
    if native.shape != w.shape:
        raise ValueError(f"{name} has shape {native.shape}, but w has {w.shape}; the shapes must be equal")
    if (device := library.device(native)) != (home := library.device(w)):
        raise ValueError(f"{name} is on {device}, but w is on {home}; both must be on one device")
    _check_writable(library, gradient, native, name)
    if backend.overlap(native, w):
        raise ValueError(
            f"{name} shares memory with w, which would be overwritten while being read; give another array"
        )
    return native


def _check_writable(library: Library, array: Any, native: Any, name: str) -> None:
    if not library.writable(array):
        raise ValueError(f"{name} is read-only; expected an array that can be written to")
    if _overlaps_itself(native):
        raise ValueError(f"{name} has elements that share memory with each other, or could; each must have its own")


def _overlaps_itself(array: Any) -> bool:
    """Return whether elements share memory, or lie so intertwined that only a search could tell.

    Every view made by slicing and transposing a dense array passes: taken by rising stride, each step is longer than
    all that the steps before it span.
    """
    span = array.itemsize
    for stride, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1 and array.size:
            if stride < span:
                return True
            span += stride * (length - 1)
    return False


def _result_dtype(library: Library, w: Any, dtype: Any = None) -> np.dtype[Any]:
    """Return the dtype of a penalty: what the caller asked for, else float64 for float64 weights and float32."""
    if dtype is None:
        return arithmetic.result_dtype([w.dtype])
    result = library.dtype(dtype)
    if result is None or result.name not in DTYPES or not result.isnative:
        raise TypeError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    return result
