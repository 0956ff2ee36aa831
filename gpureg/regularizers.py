"""Regularizers: a penalty with its coefficients, as Keras has them, and the forms that TensorFlow and PyTorch halve.

All names of `keras.regularizers` are here, and need no Keras; `get`, `serialize` and their like are in `serialization`.
"""

import math
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, Self

import numpy as np

from gpureg import dispatch, orthogonal
from gpureg.arithmetic import Coefficients
from gpureg.layers import LayerPenalties, quotient
from gpureg.serialization import builtin, deserialize, get, register, serialize

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "HalvedL2",
    "LayerPenalties",
    "OrthogonalRegularizer",
    "Regularizer",
    "deserialize",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal_regularizer",
    "register",
    "serialize",
]


class Regularizer:
    """A penalty `l1 * sum|w| + l2 * sum w*w`, its gradient and its proximal step, for weights of any shape.

    `L1`, `L2`, `L1L2` and `HalvedL2` derive from it and name the coefficients. They are immutable; two of one class
    with the same coefficients are equal and have the same hash.

    Weights are float16, bfloat16, float32 or float64, of any layout and size. Every method computes where they live,
    in one pass over memory, and gives the same bits everywhere. A method raises a TypeError for what is not an array
    or has another dtype.

    A class of your own either says its `coefficients`, and has all methods; as a frozen dataclass it gets the
    configuration as well, and its fields are checked as coefficients are. Or it has a `__call__` of its own, any
    penalty at all, and a `get_config`, as in Keras: then it has its value and `activity`, and can be serialized.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> class Largest(gpureg.Regularizer):
    ...     def __init__(self, factor=0.5):
    ...         self.factor = factor
    ...     def __call__(self, x):
    ...         return self.factor * abs(x).max()
    ...     def get_config(self):
    ...         return {"factor": self.factor}
    >>> Largest()(np.array([1.0, -2.0]))
    np.float64(1.0)
    """

    def __post_init__(self) -> None:
        if type(self).coefficients is not Regularizer.coefficients:
            for field in _fields(self):
                object.__setattr__(self, field.name, _coefficient(field.name, getattr(self, field.name), field.default))

    @property
    def coefficients(self) -> Coefficients:
        """What multiplies `sum|w|` and `sum w*w`, and the latter's derivative; a TypeError where it is no such sum."""
        name = type(self).__name__
        if type(self).__call__ is Regularizer.__call__:
            raise TypeError(f"{name} has no penalty: it needs coefficients, or a __call__ of its own")
        raise TypeError(
            f"{name} has no coefficients of sum|w| and sum w*w: its penalty is what its __call__ makes of one array"
        )

    def __call__(self, w: Any) -> Any:
        """Return the penalty of w.

        A 0-d value of w's library on w's device: float64 for float64 weights, else float32, rounded once. NaN in w
        gives NaN and an infinity infinity; an empty w, or coefficients that are all zero, give 0.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> gpureg.L1(0.5)(np.array([[1, 2], [3, 4]], np.float32))
        np.float32(5.0)
        """
        return dispatch.value(w, self.coefficients)

    def grad(self, w: Any, out: Any = None) -> Any:
        """Return the gradient at w, `l1 * sign(w) + 2 * l2 * w`, where `sign(0) = 0`.

        Parameters
        ----------
        w
            The weights.
        out
            Where to write it: of w's shape and library, with any strides; w's dtype or float32. By default a new array
            of w's dtype and layout.

        Raises
        ------
        TypeError
            If `out` is of another library or dtype.
        ValueError
            If `out` has another shape or device, is read-only, or shares memory with w.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> gpureg.L2(0.5).grad(np.array([1.0, -2.0]))
        array([ 1., -2.])
        """
        return dispatch.gradient(w, self.coefficients, out)

    def value_and_grad(self, w: Any, out: Any = None) -> tuple[Any, Any]:
        """Return the penalty of w and the gradient at w, in one pass; `out` and the errors as for `grad`.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> gpureg.L1(0.5).value_and_grad(np.array([1.0, -2.0]))
        (np.float64(1.5), array([ 0.5, -0.5]))
        """
        return dispatch.value_and_gradient(w, self.coefficients, out)

    def accumulate_grad(self, w: Any, grad: Any) -> Any:
        """Add the gradient at w to `grad`, in place, and return the penalty of w: one pass, no temporary.

        Parameters
        ----------
        w
            The weights.
        grad
            A gradient that is there: of w's shape and library, with any strides; w's dtype or float32. Each sum is
            rounded once to its dtype. Where it is refused, it is left as it was.

        Raises
        ------
        TypeError
            If `grad` is not an array of w's library, or has another dtype.
        ValueError
            If `grad` has another shape or device, is read-only, or shares memory with w.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> grad = np.array([1.0, 1.0])
        >>> gpureg.L1(0.5).accumulate_grad(np.array([1.0, -2.0]), grad)
        np.float64(1.5)
        >>> grad
        array([1.5, 0.5])
        """
        return dispatch.accumulate(w, self.coefficients, grad)

    def activity(self, x: Any) -> Any:
        """Return the penalty of a layer's output over its batch, `self(x) / x.shape[0]`, as a Keras layer adds it.

        The quotient is formed in float64 and rounded once; an empty batch gives 0. A `__call__` of one's own is
        called, and what it returns divided.

        Raises
        ------
        ValueError
            If x is 0-d, and so has no batch.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> gpureg.L2(0.01).activity(np.full((5, 5), 10, np.float32))
        np.float32(5.0)
        """
        own_call = type(self).__call__ is not Regularizer.__call__
        return quotient(self, x) if own_call else dispatch.activity(x, self.coefficients)

    def prox_(self, w: Any, step: float) -> Any:
        """Take the proximal step on w, in place, and return w: `sign(w) * max(|w| - step*l1, 0) / (1 + 2*step*l2)`.

        It minimises `penalty(v) + sum (v - w)**2 / (2*step)` over v. Unlike a gradient step it makes exact zeros of
        weights that the L1 term holds below `step * l1`.

        Parameters
        ----------
        w
            The weights, changed in place.
        step
            The step size, usually the learning rate: finite, not negative.

        Raises
        ------
        ValueError
            If w is read-only, or step negative or not finite.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> gpureg.L1(0.5).prox_(np.array([3.0, -0.25, -2.0]), step=1.0)
        array([ 2.5,  0. , -1.5])
        """
        number = _number(step)
        if number is None:
            raise ValueError(f"step must be a finite number that is not negative, not {_shown(step)}")
        return dispatch.proximal(w, self.coefficients, number)

    def get_config(self) -> dict[str, Any]:
        """Return the coefficients by name, as Keras does; those of a dataclass, else a NotImplementedError.

        >>> L1L2(l1=0.1, l2=0.2).get_config()
        {'l1': 0.1, 'l2': 0.2}
        """
        return {field.name: getattr(self, field.name) for field in _fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the regularizer that `get_config` described.

        >>> L1.from_config({"l1": 0.1})
        L1(l1=0.1)
        """
        return cls(**config)


@dataclass(frozen=True)
class L1(Regularizer):
    """The penalty `l1 * sum|w|`; its gradient is `l1 * sign(w)`. Keras: `keras.regularizers.L1`.

    Parameters
    ----------
    l1
        The coefficient: finite, not negative. None means the default.

    Raises
    ------
    ValueError
        If the coefficient is negative, not finite or not a number.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> gpureg.L1(0.5)(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(5.0)
    """

    l1: float = 0.01

    @property
    def coefficients(self) -> Coefficients:
        """What multiplies `sum|w|` and `sum w*w`, and the latter's derivative."""
        return Coefficients(self.l1, 0.0, 0.0)


@dataclass(frozen=True)
class L2(Regularizer):
    """The penalty `l2 * sum w*w`, not halved; its gradient is `2 * l2 * w`. Keras: `keras.regularizers.L2`.

    Parameters
    ----------
    l2
        The coefficient: finite, not negative. None means the default.

    Raises
    ------
    ValueError
        If the coefficient is negative, not finite or not a number.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> gpureg.L2(0.5)(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(15.0)
    """

    l2: float = 0.01

    @property
    def coefficients(self) -> Coefficients:
        """What multiplies `sum|w|` and `sum w*w`, and the latter's derivative."""
        return Coefficients(0.0, self.l2, 2 * self.l2)


@dataclass(frozen=True)
class L1L2(Regularizer):
    """The elastic net `l1 * sum|w| + l2 * sum w*w`; its gradient is `l1 * sign(w) + 2 * l2 * w`. Keras: `L1L2`.

    Parameters
    ----------
    l1, l2
        The coefficients: finite, not negative. None means the default.

    Raises
    ------
    ValueError
        If a coefficient is negative, not finite or not a number.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> gpureg.L1L2(l1=0.5, l2=1.0)(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(35.0)
    """

    l1: float = 0.0
    l2: float = 0.0

    @property
    def coefficients(self) -> Coefficients:
        """What multiplies `sum|w|` and `sum w*w`, and the latter's derivative."""
        return Coefficients(self.l1, self.l2, 2 * self.l2)


@dataclass(frozen=True)
class HalvedL2(Regularizer):
    """The penalty `l2 * sum w*w / 2`; its gradient is `l2 * w`, as PyTorch's `weight_decay` adds.

    It is `l2 * tf.nn.l2_loss(w)`, and `tf.contrib.layers.l2_regularizer(l2)`.

    Parameters
    ----------
    l2
        The coefficient: finite, not negative. None means the default.

    Raises
    ------
    ValueError
        If the coefficient is negative, not finite or not a number.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> gpureg.HalvedL2(0.5)(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(7.5)
    """

    l2: float = 0.01

    @property
    def coefficients(self) -> Coefficients:
        """What multiplies `sum|w|` and `sum w*w`, and the latter's derivative."""
        return Coefficients(0.0, self.l2 / 2, self.l2)


@dataclass(frozen=True)
class OrthogonalRegularizer(Regularizer):
    """The mean of `|cos|` over all pairs of rows of a matrix, or of columns, times a factor. Keras has the same.

    `factor * 0.5 * sum|x_hat x_hat^T - I| / (k (k - 1) / 2)` over the entries off the diagonal, where `x_hat` are the
    `k` rows divided by their norms, or by 1e-7 if these are smaller.

    This is no fused penalty: it takes a matrix product, `k * k` values in blocks, and float64 copies of the weights. It
    is computed in float64 by the array library's own operations and rounded once, to float32, or float64 for float64
    weights; the last bit is not promised to be the same everywhere. Of fewer than two rows there is no pair: the
    penalty is NaN, as in Keras. It has `grad`, `value_and_grad`, `accumulate_grad` and `activity`, but no proximal
    step, and no place in a `Penalty`.

    Parameters
    ----------
    factor
        The coefficient: finite, not negative. None is no default here, nor is it in Keras.
    mode
        `"rows"` or `"columns"`.

    Raises
    ------
    ValueError
        If the factor is negative, not finite or not a number, or the mode neither; if it is called on no matrix.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> gpureg.OrthogonalRegularizer(0.5)(np.array([[1, 0], [0, 2]], np.float32))
    np.float32(0.0)
    >>> gpureg.OrthogonalRegularizer(0.5)(np.array([[1, 1], [2, 2]], np.float32))
    np.float32(0.5)
    """

    factor: float = 0.01
    mode: str = "rows"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _coefficient("factor", self.factor))
        if self.mode not in ("rows", "columns"):
            raise ValueError(
                f'Invalid value for argument `mode`. Expected one of {{"rows", "columns"}}. Received: mode={self.mode}'
            )

    def __call__(self, w: Any) -> Any:
        """Return the penalty of a matrix, 0-d, of its library and on its device."""
        return orthogonal.value(w, self.factor, self.mode)

    def grad(self, w: Any, out: Any = None) -> Any:
        """Return the gradient; where two rows are orthogonal, or one is zero, their product's is taken as zero."""
        return self.value_and_grad(w, out)[1]

    def value_and_grad(self, w: Any, out: Any = None) -> tuple[Any, Any]:
        """Return the penalty and the gradient, of one matrix product; `out` and the errors as for `L1.grad`."""
        return orthogonal.value_and_gradient(w, self.factor, self.mode, out)

    def accumulate_grad(self, w: Any, grad: Any) -> Any:
        """Add the gradient to `grad`, in place, and return the penalty; the errors as for `L1.accumulate_grad`."""
        return orthogonal.value_and_gradient(w, self.factor, self.mode, grad, accumulate=True)[0]


for _class in (L1, L2, L1L2, OrthogonalRegularizer):
    builtin(_class, in_keras=True)
builtin(HalvedL2, in_keras=False)

l1 = L1
l2 = L2
l1_l2 = L1L2
orthogonal_regularizer = OrthogonalRegularizer


def _fields(regularizer: Any) -> "tuple[Field[Any], ...]":
    """Return the coefficients as dataclass fields."""
    if not is_dataclass(regularizer):
        raise NotImplementedError(f"{regularizer} does not implement get_config(), and is no dataclass")
    return fields(regularizer)


def _coefficient(name: str, given: Any, default: Any = None) -> float:
    """Return a coefficient as a float; None means the default, as in Keras.

    The error has Keras's words, to the missing space; but strings keep their quotes.
    """
    number = _number(default if given is None else given)
    if number is None:
        raise ValueError(
            f"Invalid value for argument {name}: expected a non-negative float.Received: {name}={_shown(given)}"
        )
    return number


def _number(given: Any) -> float | None:
    """Return a finite number that is not negative, or None for anything else."""
    if isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool):
        try:
            number = float(given)
        except OverflowError:
            return None
        if 0 <= number < math.inf:
            return abs(number)  # a coefficient of -0.0 is the same one as 0.0
    return None


def _shown(given: Any) -> str:
    try:
        return repr(given)
    except ValueError:  # an integer of more digits than Python writes
        return "one far too large"
