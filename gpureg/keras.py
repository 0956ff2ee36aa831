"""Regularizers for the layers of Keras 3, on its TensorFlow, JAX and PyTorch backends.

They are those of `gpureg.regularizers`, and equal to them where the coefficients are; and they are Keras's, for
`kernel_regularizer=`, `bias_regularizer=`, `activity_regularizer=` and wherever else Keras takes one. They are
registered with Keras under "gpureg": models that have them are saved, loaded, cloned and pickled. Who loads one imports
`gpureg.keras` first.

A penalty has the dtype in which Keras adds losses, `keras.config.floatx()`, whatever that of the weights: TensorFlow
does not add losses of several dtypes. gpureg computes it in one pass, with the bits of the NumPy array, wherever there
are elements, and in what PyTorch compiles. In what TensorFlow and JAX compile it is the same formula in their own
operations, which sum in float32, or float64 for float64 weights; so the last bits may differ.
"""

from functools import partial
from typing import Any, TypeVar

import numpy as np

from gpureg import arithmetic, dispatch, libraries, orthogonal, regularizers
from gpureg.libraries import traced

try:
    import keras
    from keras import ops
except ImportError as error:
    if error.name != "keras":  # Keras is there, its backend is not
        raise
    raise type(error)("gpureg.keras needs Keras 3: pip install 'gpureg[keras]'", name="keras") from None

__all__ = ["L1", "L1L2", "L2", "HalvedL2", "OrthogonalRegularizer"]

Class = TypeVar("Class", bound=type)

_EQUAL: dict[type, type] = {}
"""Of each class here the one of `gpureg.regularizers` that it is equal to."""


def _serializable(cls: Class) -> Class:
    _EQUAL[cls] = getattr(regularizers, cls.__name__)
    keras.saving.register_keras_serializable("gpureg")(cls)
    return cls


class _Regularizer(regularizers.Regularizer):
    """Equality, by coefficients."""

    def __eq__(self, other: object) -> bool:
        own, others = (_EQUAL.get(type(each), type(each)) for each in (self, other))
        return self.get_config() == other.get_config() if own is others else NotImplemented  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return super().__hash__()


class _OfSums(_Regularizer):
    """A penalty that has coefficients."""

    def __call__(self, w: Any) -> Any:
        """Return the penalty of a Keras variable or a tensor, 0-d, in `keras.config.floatx()`."""
        w, floatx = _tensor(w), keras.config.floatx()
        if not isinstance(w, keras.KerasTensor):
            return dispatch.value(w, self.coefficients, floatx)
        operations = traced.Operations(ops.absolute, ops.sum, _widened, partial(ops.cast, dtype=floatx))
        return traced.penalty(operations, (w,), (self.coefficients,))

    def activity(self, x: Any) -> Any:
        """Return the penalty over `x.shape[0]`, for use without a layer: a layer divides by that itself."""
        return dispatch.activity(_tensor(x), self.coefficients)


@_serializable
class L1(_OfSums, regularizers.L1, keras.Regularizer):  # type: ignore[misc] # Keras has no types
    """The penalty `l1 * sum|w|`: `gpureg.L1` for layers, its argument and errors included.

    Examples
    --------
    >>> import keras, gpureg.keras
    >>> layer = keras.layers.Dense(5, kernel_initializer="ones", kernel_regularizer=gpureg.keras.L1(0.01))
    >>> layer.build((None, 5))
    >>> [keras.ops.convert_to_numpy(loss) for loss in layer.losses]
    [array(0.25, dtype=float32)]
    """


@_serializable
class L2(_OfSums, regularizers.L2, keras.Regularizer):  # type: ignore[misc] # likewise
    """The penalty `l2 * sum w*w`, not halved: `gpureg.L2` for layers, its argument and errors included.

    Examples
    --------
    >>> import keras, gpureg.keras
    >>> keras.ops.convert_to_numpy(gpureg.keras.L2(2.0)(keras.ops.ones((5, 5))))
    array(50., dtype=float32)
    """


@_serializable
class L1L2(_OfSums, regularizers.L1L2, keras.Regularizer):  # type: ignore[misc] # likewise
    """The elastic net `l1 * sum|w| + l2 * sum w*w`: `gpureg.L1L2` for layers, its arguments and errors included.

    Examples
    --------
    >>> import keras, gpureg.keras
    >>> keras.ops.convert_to_numpy(gpureg.keras.L1L2(l1=1.0, l2=0.5)(keras.ops.ones((5, 5))))
    array(37.5, dtype=float32)
    """


@_serializable
class HalvedL2(_OfSums, regularizers.HalvedL2, keras.Regularizer):  # type: ignore[misc] # likewise
    """The penalty `l2 * sum w*w / 2`: `gpureg.HalvedL2` for layers, its argument and errors included.

    Examples
    --------
    >>> import keras, gpureg.keras
    >>> keras.ops.convert_to_numpy(gpureg.keras.HalvedL2(2.0)(keras.ops.ones((5, 5))))
    array(25., dtype=float32)
    """


@_serializable
class OrthogonalRegularizer(_Regularizer, regularizers.OrthogonalRegularizer, keras.Regularizer):  # type: ignore[misc]
    """The mean of `|cos|` over all pairs of a matrix's rows, or columns, times a factor, for layers.

    Arguments and errors are those of `gpureg.OrthogonalRegularizer`. It is made of Keras's operations wherever it is
    called, which compute it in float32; in float64 those of float64 weights on TensorFlow, but on no other backend. The
    gradient at a row of zeros is zero.

    Examples
    --------
    >>> import keras, gpureg.keras
    >>> keras.ops.convert_to_numpy(gpureg.keras.OrthogonalRegularizer(0.5)(keras.ops.eye(3)))
    array(0., dtype=float32)
    """

    def __call__(self, w: Any) -> Any:
        """Return the penalty of a matrix, 0-d, in `keras.config.floatx()`; a ValueError refuses any other rank."""
        w = _tensor(w)
        if not isinstance(w, keras.KerasTensor):
            libraries.of(w, "w")
        if len(w.shape) != 2:
            raise ValueError(f"Inputs to OrthogonalRegularizer must have rank 2. Received: inputs.shape={w.shape}")
        rows = _widened(w if self.mode == "rows" else ops.transpose(w))
        squares = ops.sum(rows * rows, axis=1, keepdims=True)
        units = rows / ops.sqrt(ops.maximum(squares, orthogonal.EPSILON**2))
        products = ops.tril(ops.matmul(units, ops.transpose(units)), k=-1)  # of each pair once
        total = ops.sum(products * ops.sign(products))  # of |x|, but with the derivative 0 at 0 on JAX too
        count = ops.cast(ops.shape(rows)[0], total.dtype)
        return ops.cast(self.factor * total / (count * (count - 1) / 2), keras.config.floatx())


def _tensor(w: Any) -> Any:
    return w.value if isinstance(w, keras.Variable) else w


def _widened(w: Any) -> Any:
    name = keras.backend.standardize_dtype(w.dtype)
    if name not in libraries.DTYPES:
        raise TypeError(f"w has dtype {name}; expected {' or '.join(libraries.DTYPES)}")
    return ops.cast(w, arithmetic.compute_dtype(np.dtype(name)).name)
