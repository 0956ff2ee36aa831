"""The regularizers of `tf.contrib.layers`, which TF-Slim keeps alive."""

import logging
import math
import numbers
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpureg.penalty import Penalty
from gpureg.regularizers import L1, L1L2, HalvedL2, Regularizer
from gpureg.tf1.deferred import Called, DeferredLoss, Penalised, operation_name
from gpureg.tf1.graph import GraphKeys, add_to_collection, get_collection
from gpureg.tf1.math import add_n
from gpureg.tf1.operands import TensorShape, array_of, shape_of
from gpureg.tf1.scopes import check_name, unique_name

_log = logging.getLogger(__name__)


def no_regularizer(_: Any) -> None:
    """Penalise nothing: as `regularizer=`, it is what keeps a variable from inheriting the scope's."""


@dataclass(frozen=True)
class _Function:
    """A function of weights that returns the penalty of one of gpureg's regularizers, and names it."""

    name: str
    regularizer: Regularizer

    def __call__(self, weights: Any) -> Any:
        return self.regularizer(array_of(weights))


@dataclass(frozen=True)
class _Sum:
    """A function of weights that returns the sum of what several return, and names it."""

    name: str
    regularizers: Sequence[Callable[[Any], Any]]

    def __call__(self, weights: Any) -> Any:
        penalties = [regularizer(weights) for regularizer in self.regularizers]
        there = [penalty for penalty in penalties if penalty is not None]
        return add_n(there) if there else None


def l1_regularizer(scale: float, scope: str | None = None) -> Callable[[Any], Any]:
    """Return a function of weights that returns `scale * sum|w|`.

    Called directly it computes at once: of an array or a variable a 0-d value of the array's library, as `gpureg.L1`.

    Parameters
    ----------
    scale
        A float, finite and not negative. 0.0 disables the regularizer: the function returns None, and a note goes to
        `logging`.
    scope
        The name that the penalty of a variable has, instead of "l1_regularizer".

    Raises
    ------
    ValueError
        If the scale is an integer, a bool too, or negative; or, unlike TensorFlow's, not finite or no number: an array
        is none.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> tf1.l1_regularizer(0.5)(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(5.0)
    """
    _check_scale("scale", scale)
    return no_regularizer if scale == 0 else _Function(scope or "l1_regularizer", L1(float(scale)))


def l2_regularizer(scale: float, scope: str | None = None) -> Callable[[Any], Any]:
    """Return a function of weights that returns `scale * sum w*w / 2`.

    Called directly it computes at once: of an array or a variable a 0-d value of the array's library, as
    `gpureg.HalvedL2`. Parameters and errors are those of `l1_regularizer`; the name is "l2_regularizer".

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> tf1.l2_regularizer(0.5)(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(7.5)
    """
    _check_scale("scale", scale, end=".")
    return no_regularizer if scale == 0 else _Function(scope or "l2_regularizer", HalvedL2(float(scale)))


def l1_l2_regularizer(scale_l1: float = 1.0, scale_l2: float = 1.0, scope: str | None = None) -> Callable[[Any], Any]:
    """Return a function of weights that returns `scale_l1 * sum|w| + scale_l2 * sum w*w / 2`, in one pass.

    Parameters and errors are those of `l1_regularizer`; the name is "l1_l2_regularizer". One scale of 0.0 leaves the
    other alone, two disable the regularizer.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> tf1.l1_l2_regularizer(0.5, 1.0)(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(20.0)
    """
    for name, scale in (("scale_l1", scale_l1), ("scale_l2", scale_l2)):
        _refuse_integer(name, scale)
    scope = scope or "l1_l2_regularizer"
    if scale_l1 == 0:
        return l2_regularizer(scale_l2, scope)
    if scale_l2 == 0:
        return l1_regularizer(scale_l1, scope)
    _check_scale("scale_l1", scale_l1)
    _check_scale("scale_l2", scale_l2, end=".")
    return _Function(scope, L1L2(float(scale_l1), float(scale_l2) / 2))


def sum_regularizer(
    regularizer_list: Iterable[Callable[[Any], Any] | None], scope: str | None = None
) -> Callable[[Any], Any] | None:
    """Return a function of weights that returns the sum of what several return, leaving out None.

    Those of gpureg are computed in one pass, with the sums of their coefficients, and rounded once.

    Parameters
    ----------
    regularizer_list
        Functions of weights, or None for none.
    scope
        The name that the penalty of a variable has, instead of "sum_regularizer".

    Returns
    -------
    None if there is nothing in the list; the function returns None if all of them do.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> both = tf1.sum_regularizer([tf1.l1_regularizer(0.5), tf1.l2_regularizer(1.0), None])
    >>> both(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(20.0)
    """
    regularizers = [regularizer for regularizer in regularizer_list if regularizer is not None]
    if not regularizers:
        return None
    one_pass = [own for own in map(_regularizer, regularizers) if own is not None]
    others = [each for each in regularizers if _regularizer(each) is None and each is not no_regularizer]
    name = scope or "sum_regularizer"
    fused = [_Function(name, _fused(one_pass))] if one_pass else []
    if not others:
        return fused[0] if fused else no_regularizer
    return _Sum(name, (*fused, *others))


def apply_regularization(regularizer: Callable[[Any], Any], weights_list: Sequence[Any] | None = None) -> DeferredLoss:
    """Return the sum of what a regularizer returns for each of some weights, and add it to REGULARIZATION_LOSSES.

    It is computed at once, and stays what it is: for a penalty that follows the weights, give `get_variable` the
    regularizer. Each call adds a loss to the collection, so it does not belong into a training loop.

    The sum of gpureg's regularizers is that of a `gpureg.Penalty`: one pass, added by a tree and rounded once. What a
    function of your own returns is added by the array library.

    Parameters
    ----------
    regularizer
        A function of an array that returns a scalar, or None for no penalty.
    weights_list
        Arrays and variables, by default those of the WEIGHTS collection; one that is there twice counts twice. Losses
        that are scalars already, as in `get_collection(GraphKeys.REGULARIZATION_LOSSES)` after
        `get_variable(regularizer=)`, are taken for weights as well, as in TensorFlow: that penalises penalties, and is
        hardly ever meant. Their sum is `losses.get_regularization_loss()`.

    Raises
    ------
    ValueError
        If there are no weights, or the regularizer returns no scalar.
    TypeError
        If gpureg's regularizer is given something that is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> with tf1.Graph().as_default():
    ...     penalty = tf1.apply_regularization(tf1.l1_regularizer(0.5), [np.ones(4, np.float32), np.ones((1, 2))])
    >>> penalty.name, float(penalty)
    ('get_regularization_penalty:0', 3.0)
    """
    weights = list(weights_list or get_collection(GraphKeys.WEIGHTS))
    if not weights:
        raise ValueError("No weights to regularize.")
    name = operation_name("get_regularization_penalty")
    own = _regularizer(regularizer)
    if own is not None:
        names: dict[str, int] = {}
        labels = [getattr(each, "name", None) or f"weights_list[{index}]" for index, each in enumerate(weights)]
        named = [(unique_name(names, label), array_of(each)) for label, each in zip(labels, weights, strict=True)]
        summed = Penalty(named, own, tied="each")()
    else:
        penalties = [penalty for penalty in (regularizer(array_of(each)) for each in weights) if penalty is not None]
        for penalty in penalties:
            if rank := shape_of(penalty).ndims:
                raise ValueError(f"regularizer must return a scalar Tensor instead of a Tensor with rank {rank}.")
        summed = array_of(add_n(penalties)) if penalties else np.float32(0)
    loss = DeferredLoss(name, called=[Called(lambda: summed)])
    add_to_collection(GraphKeys.REGULARIZATION_LOSSES, loss)
    return loss


def loss_of(variable: Any, name: str, regularizer: Callable[[Any], Any]) -> DeferredLoss | None:
    """Return the penalty of a variable that `get_variable` made by this name, None if it has none."""
    operation = _name(regularizer)
    check_name(operation, root=True)
    own = _regularizer(regularizer)
    penalised, called, shape = [], [], TensorShape()
    if own is not None:
        Penalty([(variable.name, variable.value)], own)  # so that what cannot be penalised is refused here
        penalised.append(Penalised(variable, _fused([own])))
    else:
        penalty = regularizer(variable.value)
        if penalty is None:
            return None
        called.append(Called(lambda: regularizer(variable.value)))
        shape = shape_of(penalty)
    unique = variable.graph.unique_name(f"{name}/Regularizer/{operation}")
    return DeferredLoss(f"{unique}:0", penalised, called, shape)


def _check_scale(name: str, scale: Any, end: str = "") -> None:
    """Refuse a scale as TensorFlow does, to the full stop, and what no coefficient can be."""
    _refuse_integer(name, scale)
    if not isinstance(scale, numbers.Real):
        raise ValueError(f"{name} must be a float, not {scale!r:.200}")
    if scale < 0:
        raise ValueError(f"Setting a scale less than 0 on a regularizer: {float(scale):g}{end}")
    if not math.isfinite(scale):
        raise ValueError(f"{name} must be finite: {scale}")
    if scale == 0:
        _log.info("Scale of 0 disables regularizer.")


def _refuse_integer(name: str, scale: Any) -> None:
    if isinstance(scale, numbers.Integral):
        raise ValueError(f"{name} cannot be an integer: {scale}")


def _regularizer(function: Any) -> Regularizer | None:
    """Return the regularizer of gpureg's behind a function, if its penalty is one of sums that one pass computes."""
    own = function.regularizer if isinstance(function, _Function) else function
    if not isinstance(own, Regularizer):
        return None
    try:
        own.coefficients  # noqa: B018 - whether there are any
    except TypeError:
        return None
    return own


def _fused(regularizers: Iterable[Regularizer]) -> L1L2:
    """Return the regularizer whose penalty is the sum of theirs."""
    coefficients = [own.coefficients for own in regularizers]
    return L1L2(sum(each.l1 for each in coefficients), sum(each.l2 for each in coefficients))


def _name(function: Any) -> str:
    """Return the name of a function's results: TensorFlow's for its own, and else the function's or the class's."""
    if isinstance(function, _Function | _Sum):
        return function.name
    name = getattr(function, "__name__", type(function).__name__)
    return re.sub(r"[^A-Za-z0-9_.]", "", name).lstrip("_")
