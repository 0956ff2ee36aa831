"""The penalty of vectors that are not orthogonal to each other, and its gradient.

No fused pass: it takes a product of the matrix with itself, so the array library's own operations compute it, its
matrix multiplication above all. That is done in float64 and rounded once at the end, but the order of summation is the
library's: nothing is promised of the last bit.
"""

import sys
from typing import Any

import numpy as np

from gpureg import arithmetic, dispatch
from gpureg.libraries import Library

EPSILON = 1e-7
"""The norm below which a vector is not normalised but multiplied by its inverse, `keras.config.epsilon()`."""

_BLOCK = 2**22
"""As many products of two vectors are held at a time: 32 MiB of them."""


def value(w: Any, factor: float, mode: str) -> Any:
    """Return the penalty of w."""
    library, _, native = dispatch.weights(w)
    total, _ = _penalty(library, native, factor, mode, gradient=False)
    return library.differentiable(w, library.own(total), lambda: value_and_gradient(w, factor, mode)[1])


def value_and_gradient(
    w: Any, factor: float, mode: str, out: Any = None, *, accumulate: bool = False
) -> tuple[Any, Any]:
    """Return the penalty of w, and where its gradient was written; or added, to an `out` that must be there."""
    library, backend, native = dispatch.weights(w)
    if accumulate:
        target = dispatch.apart(library, backend, native, out, "grad")
    else:
        target = dispatch.target(library, backend, native, w, out)
    total, gradient = _penalty(library, native, factor, mode, gradient=True)
    with library.working(native), np.errstate(all="ignore"):
        result = target.astype(np.float64) + gradient if accumulate else gradient
        target[...] = result.astype(target.dtype)
    return library.own(total), dispatch.returned(library, target, out)


def _penalty(library: Library, native: Any, factor: float, mode: str, *, gradient: bool) -> tuple[Any, Any]:
    """Return the penalty, and the gradient in float64 if it is asked for."""
    if native.ndim != 2:
        raise ValueError(f"Inputs to OrthogonalRegularizer must have rank 2. Received: inputs.shape={native.shape}")
    xp = sys.modules[type(native).__module__.partition(".")[0]]
    with library.working(native), np.errstate(all="ignore"):
        rows = (native if mode == "rows" else native.T).astype(np.float64)
        norms = xp.sqrt((rows * rows).sum(axis=1, keepdims=True))
        inverse = 1 / xp.maximum(norms, EPSILON)
        units = rows * inverse
        total, inner = _products(xp, units, gradient=gradient)
        count = len(units)
        pairs = np.float64(count * (count - 1) / 2)  # of fewer than two vectors there is none, and 0 / 0 is NaN
        penalty = (total * (factor * 0.5) / pairs).astype(arithmetic.result_dtype([native.dtype]))
        if not gradient:
            return penalty, None
        # What lies along a vector does not turn it, unless it is too short to be normalised.
        along = (inner * units).sum(axis=1, keepdims=True) * (norms > EPSILON)
        result = (inner - along * units) * inverse * (factor / pairs)
        return penalty, result if mode == "rows" else result.T


def _products(xp: Any, units: Any, *, gradient: bool) -> tuple[Any, Any]:
    """Return the sum of |u_i . u_j| over all i != j, and of each vector `sum_j sign(u_i . u_j) u_j` if asked for."""
    total = xp.zeros((), np.float64)
    inner = xp.empty_like(units) if gradient else None
    step = max(1, _BLOCK // max(len(units), 1))
    for start in range(0, len(units), step):
        products = units[start : start + step] @ units.T
        index = xp.arange(len(products))
        products[index, start + index] = 0
        total = total + xp.abs(products).sum()
        if inner is not None:
            inner[start : start + step] = xp.sign(products) @ units
    return total, inner
