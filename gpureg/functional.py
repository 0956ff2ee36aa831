"""The L1 and L2 losses of a tensor, as functions."""

from typing import Any

from gpureg import dispatch
from gpureg.arithmetic import Coefficients

_L1_LOSS = Coefficients(l1=1.0, l2=0.0, twice_l2=0.0)
_L2_LOSS = Coefficients(l1=0.0, l2=0.5, twice_l2=1.0)


def l1_loss(w: Any, *, dtype: Any = None) -> Any:
    """Return the sum of absolute values, `sum|w|`.

    Parameters
    ----------
    w
        Weights of any shape, strides and size; float16, bfloat16, float32 or float64. An empty array gives 0.
    dtype
        The dtype of the result, one of those four; by default float64 for float64 weights and float32 for all others.

    Returns
    -------
    A 0-d value of w's library, on w's device (for NumPy a NumPy scalar): summed in float64 in an order that is always
    the same, and rounded once.

    Raises
    ------
    TypeError
        If w is not an array, or w or `dtype` is of another dtype.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> gpureg.l1_loss(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(10.0)
    """
    return dispatch.value(w, _L1_LOSS, dtype)


def l2_loss(w: Any, *, dtype: Any = None) -> Any:
    """Return half the sum of squares, `sum w*w / 2`, as `tf.nn.l2_loss` defines it.

    Parameters
    ----------
    w
        Weights of any shape, strides and size; float16, bfloat16, float32 or float64. An empty array gives 0.
    dtype
        The dtype of the result, one of those four; by default float64 for float64 weights and float32 for all others.
        (`tf.nn.l2_loss` returns and accumulates in w's dtype, so float16 weights overflow there.)

    Returns
    -------
    A 0-d value of w's library, on w's device (for NumPy a NumPy scalar): summed in float64 in an order that is always
    the same, and rounded once.

    Raises
    ------
    TypeError
        If w is not an array, or w or `dtype` is of another dtype.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> gpureg.l2_loss(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(15.0)
    """
    return dispatch.value(w, _L2_LOSS, dtype)
