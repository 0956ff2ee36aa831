"""Sums of losses and arrays."""

import functools
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpureg.tf1.deferred import DeferredLoss, operation_name, total
from gpureg.tf1.operands import array_of, shape_of


def add_n(inputs: Iterable[Any], name: str | None = None) -> Any:
    """Return the sum of losses or arrays of one shape, element by element.

    Parameters
    ----------
    inputs
        Arrays, variables, numbers, lists of numbers and deferred losses, at least one.
    name
        The name of a sum that is deferred, "AddN" by default.

    Returns
    -------
    A `DeferredLoss` if all inputs are, and the only input if there is one. Else an array or scalar: the sum of all
    deferred losses, which is one pass over their variables, rounded once, and then of the others in order, added by
    the array library.

    Raises
    ------
    ValueError
        If there are no inputs, or their shapes differ.
    TypeError
        If `inputs` cannot be iterated over.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> tf1.add_n([np.ones(2), np.ones(2)])
    array([2., 2.])
    """
    terms = [np.asarray(term) if isinstance(term, list | tuple) else term for term in inputs]
    if not terms:
        raise ValueError(
            "Inputs must be an iterable of at least one Tensor/IndexedSlices with the same dtype and shape."
        )
    first, *shapes = map(shape_of, terms)
    for shape in shapes:
        if shape != first:
            raise ValueError(f"Shapes must be equal, but are {first} and {shape}")
    if len(terms) == 1 and name is None:
        return terms[0]
    deferred = [term for term in terms if _joins(term)]
    if len(deferred) == len(terms):
        return total(deferred, operation_name(name or "AddN"))
    others = [array_of(term) for term in terms if not _joins(term)]
    return functools.reduce(operator.add, [total(deferred, "").value, *others] if deferred else others)


def _joins(term: Any) -> bool:
    """Return whether a loss can be a part of another that is deferred."""
    return isinstance(term, DeferredLoss) and term.shape == ()


def reduce_sum(input_tensor: Any, axis: Any = None, keepdims: bool = False, name: str | None = None) -> Any:
    """Return the sum of the elements of an array, or of a list of losses.

    Parameters
    ----------
    input_tensor
        An array, a variable, a loss or a number; or a list of such, all of one shape.
    axis
        The axis or axes to sum over, by default all. Not for lists.
    keepdims
        Whether these axes stay, with length 1. Not for lists.
    name
        The name of a sum that is deferred, "Sum" by default.

    Returns
    -------
    Of a list of deferred losses a `DeferredLoss`: one pass over all their variables, rounded once. Of arrays what the
    array library's own sum is, with its rounding; for that of a penalty use `gpureg.l1_loss`, `nn.l2_loss` or a
    regularizer.

    Raises
    ------
    ValueError
        If the shapes in a list differ; if there is an axis for a list.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> with tf1.Graph().as_default():
    ...     w = tf1.get_variable("w", initializer=np.ones((2, 3), np.float32))
    ...     b = tf1.get_variable("b", initializer=np.ones(3, np.float32))
    ...     decay = 0.5 * tf1.reduce_sum([tf1.nn.l2_loss(v) for v in tf1.trainable_variables()])
    >>> float(decay), tf1.reduce_sum(w, axis=0)
    (2.25, array([2., 2., 2.], dtype=float32))
    """
    if isinstance(input_tensor, list | tuple):
        if axis is not None or keepdims:
            raise ValueError("a list is summed as a whole; make an array of it for a sum over some axes")
        if not input_tensor:
            return np.float32(0)
        summed = add_n(input_tensor, name or "Sum")
        return reduce_sum(summed) if shape_of(summed) else summed
    if shape_of(input_tensor) == () and axis is None:
        return input_tensor
    options = {"axis": tuple(axis) if isinstance(axis, list) else axis} if axis is not None else {}
    return array_of(input_tensor).sum(**options, **({"keepdims": True} if keepdims else {}))
