"""Losses that are evaluated when they are asked for: penalties of variables, and their sums and multiples."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpureg.penalty import Penalty
from gpureg.regularizers import L1L2
from gpureg.tf1.graph import get_default_graph
from gpureg.tf1.operands import Operand, TensorShape, array_of
from gpureg.tf1.scopes import unique_name

_KEPT = 8
"""Sums of one graph that are kept planned."""


class Penalised(NamedTuple):
    """The penalty of a variable as gpureg computes it, together with others in one pass."""

    variable: Any
    regularizer: L1L2


class Called(NamedTuple):
    """A loss as something else computes it: what a function returns, times a factor."""

    function: Callable[[], Any]
    factor: float = 1.0


class DeferredLoss(Operand):
    """A loss of variables that is evaluated whenever it is asked for, of the weights as they are then.

    It is what a collection holds of `get_variable(regularizer=)` and what `nn.l2_loss` of a variable is; and what sums
    of such losses are, by `+`, `sum`, `add_n`, `reduce_sum` or `losses.get_regularization_loss`, with Python numbers
    among them or not, and multiples and quotients by Python numbers. With anything else, with an array or a NumPy
    scalar, an operator evaluates it and returns what the array library does: so `loss + 0.01 * sum(losses)` is a number
    where `loss` is one. `value` and `float` make a number of it.

    The value of a sum is that of a `gpureg.Penalty`: all variables are passed over together, their penalties, each in
    float64, are added by a tree in the order of the sum, and the total is rounded once, to float64 if any variable is
    float64, else to float32. So it does not matter how a sum was written, nor whether a factor stands before it or
    before its terms: the bits are the same. What gpureg does not compute, a function's penalty or a number, is added
    to that by the array library, one after the other.

    `==` compares values, unlike TensorFlow 1.

    Attributes
    ----------
    name
        As TensorFlow names it.
    shape
        `()`, unless a function returns something else for a penalty.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> with tf1.Graph().as_default():
    ...     w = tf1.get_variable("w", initializer=np.ones((2, 3), np.float32), regularizer=tf1.l2_regularizer(0.5))
    ...     total = sum(tf1.losses.get_regularization_losses())
    >>> total.value, np.float32(1) + 10 * total
    (np.float32(1.5), np.float32(16.0))
    >>> w[:] = 0
    >>> total.value
    np.float32(0.0)
    """

    def __init__(
        self,
        name: str,
        penalised: Iterable[Penalised] = (),
        called: Iterable[Called] = (),
        shape: Sequence[int | None] = (),
    ) -> None:
        self.name = name
        self._penalised = tuple(penalised)
        self._called = tuple(called)
        self._shape = TensorShape(shape)

    @property
    def shape(self) -> TensorShape:  # noqa: D102 - see the class
        return self._shape

    @property
    def value(self) -> Any:
        """Return the loss as it is now, 0-d: of the variables' array library, where they live."""
        values = [_pass(self._penalised)] if self._penalised else []
        for function, factor in self._called:
            loss = array_of(function())
            values.append(loss if factor == 1 else factor * loss)
        total = values[0] if values else np.float32(0)
        for each in values[1:]:
            total = total + each
        return total

    def as_penalty(self) -> Penalty:
        """Return a new `gpureg.Penalty` of the variables by their names, for the gradient of this loss.

        It looks at the variables of the moment, so one can be kept for all steps of a training.

        Raises
        ------
        TypeError
            If a part of the loss is none that gpureg computes, and so has no gradient here.

        Examples
        --------
        >>> import numpy as np
        >>> from gpureg import tf1
        >>> with tf1.Graph().as_default():
        ...     w = tf1.get_variable("w", initializer=np.ones(3, np.float32), regularizer=tf1.l2_regularizer(0.5))
        ...     penalty = tf1.losses.get_regularization_loss().as_penalty()
        >>> grads = {"w:0": np.zeros(3, np.float32)}
        >>> penalty.accumulate_grad(grads)
        np.float32(0.75)
        >>> grads["w:0"]
        array([0.5, 0.5, 0.5], dtype=float32)
        """
        if self._called:
            raise TypeError(f"{self.name} has parts that gpureg does not compute, and of which it knows no gradient")
        return _penalty(self._penalised)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, DeferredLoss) and self.shape == other.shape == ():
            return total((self, other), operation_name("add"))
        if type(other) in (int, float) and self.shape == ():
            return total((self, other), operation_name("add")) if other else self  # where the builtin sum begins
        return super().__add__(other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Any:
        return self._scaled(lambda own: own * other, "mul") if _is_factor(other) else super().__mul__(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if _is_factor(other) and other:
            return self._scaled(lambda own: own / other, "truediv")
        return super().__truediv__(other)

    def _scaled(self, scale: Callable[[float], float], operation: str) -> "DeferredLoss":
        penalised = [Penalised(each, L1L2(scale(own.l1), scale(own.l2))) for each, own in self._penalised]
        called = [Called(function, scale(own)) for function, own in self._called]
        return DeferredLoss(operation_name(operation), penalised, called, self.shape)

    def __eq__(self, other: object) -> Any:
        return self.value == array_of(other)

    def __ne__(self, other: object) -> Any:
        return self.value != array_of(other)

    __hash__ = object.__hash__


def total(terms: Iterable[Any], name: str) -> DeferredLoss:
    """Return the sum of scalars: of deferred losses, arrays, variables and numbers."""
    penalised: list[Penalised] = []
    called: list[Called] = []
    for term in terms:
        if isinstance(term, DeferredLoss):
            penalised += term._penalised
            called += term._called
        else:
            called.append(Called(partial(array_of, term)))
    return DeferredLoss(name, penalised, called)


def operation_name(name: str) -> str:
    """Return the name of a new result in the default graph, where a thread's scope is open."""
    return f"{get_default_graph().scopes.unique_name(name)}:0"


def _is_factor(given: Any) -> bool:
    """Return whether coefficients can be multiplied by a Python number: a negative one is no coefficient's."""
    return type(given) in (int, float) and 0 <= given < math.inf


def _pass(penalised: tuple[Penalised, ...]) -> Any:
    """Return the sum of penalties, in one pass over their variables."""
    if len(penalised) == 1:
        [(variable, regularizer)] = penalised
        return regularizer(variable.value)
    graph = penalised[0].variable.graph
    with graph.lock:
        penalty = graph.penalties.pop(penalised, None)
        graph.penalties[penalised] = penalty = _penalty(penalised) if penalty is None else penalty
        if len(graph.penalties) > _KEPT:
            del graph.penalties[next(iter(graph.penalties))]
    return penalty()


def _penalty(penalised: tuple[Penalised, ...]) -> Penalty:
    names: dict[str, int] = {}
    by_name = {unique_name(names, variable.name): (variable.value, own) for variable, own in penalised}

    def rule(regularizer: L1L2) -> Callable[[str, Any], bool]:
        return lambda name, _: by_name[name][1] == regularizer

    rules = [(rule(regularizer), regularizer) for regularizer in dict.fromkeys(own for _, own in penalised)]
    return Penalty([(name, array) for name, (array, _) in by_name.items()], rules, tied="each")
