"""Both sides of a comparison: Keras's tensors from NumPy arrays and back, and how far the two may be apart."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def tensor(array: Any) -> Any:
    """Return a tensor of Keras's backend with the array's dtype."""
    return keras.ops.convert_to_tensor(array)


def number(loss: Any) -> float:
    """Return a loss of Keras as a float."""
    return float(keras.ops.convert_to_numpy(loss))


def gradient(penalty: Callable[[Any], Any], w: Any) -> Any:
    """Return the gradient of a penalty of Keras's at w, an array, by its backend's differentiation."""
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow  # noqa: PLC0415 - only the backend that is there is imported

            variable = tensorflow.Variable(w)
            with tensorflow.GradientTape() as tape:
                loss = penalty(variable)
            return tape.gradient(loss, variable).numpy()
        case "jax":
            import jax  # noqa: PLC0415 - likewise

            return np.asarray(jax.grad(penalty)(tensor(w)))
        case _:
            import torch  # noqa: PLC0415 - likewise

            parameter = torch.tensor(w, requires_grad=True)
            penalty(parameter).backward()
            assert parameter.grad is not None
            return parameter.grad.numpy()


def sum_bound(count: int, dtype: Any) -> float:
    """Return how far two penalties of `count` weights may be apart, relative.

    Keras computes in the weights' dtype, with u half its epsilon: a square, a coefficient and their product are
    rounded once each, and so is the sum of both terms; a sum of `count` terms that are not negative is off by at most
    (count - 1) u in any order. gpureg's is rounded once. A last u is for the products of these errors.
    """
    return (count + 5) * float(np.finfo(dtype).eps) / 2


def orthogonal_bound(count: int, length: int) -> float:
    """Return how far two penalties of `count` vectors of that length in float32 may be apart, relative to the factor.

    With u = 2**-24: a vector's sum of squares is off by `length` u, its inverse root, which backends approximate to 2
    units in the last place, by half of that and 4 u, so an entry of a unit vector by (length / 2 + 5) u. A product of
    two, at most 1, by length + 10 for these and `length` for its own sum; and a mean by no more than its terms, and
    count * count for its sum. The rest is for the factor, the quotient and gpureg's own rounding.
    """
    return (2 * length + count * count + 16) * 2.0**-24


def outcome(call: Callable[[], Any]) -> tuple[str, str]:
    """Return the name of the error that a call raises and its message, or the class of what it returns and nothing."""
    try:
        result = call()
    except Exception as error:
        return type(error).__name__, str(error)
    return type(result).__name__, ""
