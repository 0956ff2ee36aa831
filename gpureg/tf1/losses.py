"""`tf.losses`, as far as it is about regularization."""

from typing import Any

from gpureg.tf1.deferred import DeferredLoss, operation_name, total
from gpureg.tf1.graph import GraphKeys, add_to_collection, get_collection
from gpureg.tf1.operands import shape_of


def add_loss(loss: Any, loss_collection: str | None = GraphKeys.LOSSES) -> None:
    """Add a loss to a collection, LOSSES unless another is named; to none if that is None."""
    if loss_collection:
        add_to_collection(loss_collection, loss)


def get_regularization_losses(scope: str | None = None) -> list[Any]:
    """Return what is in REGULARIZATION_LOSSES; `scope` as for `get_collection`.

    Each penalty is evaluated when it is asked for, alone; their sum, by `sum`, `add_n`, `reduce_sum` or
    `get_regularization_loss`, in one pass, with the bits of the total of a `gpureg.Penalty`, whichever of these it is.
    """
    return get_collection(GraphKeys.REGULARIZATION_LOSSES, scope)


def get_regularization_loss(scope: str | None = None, name: str | None = "total_regularization_loss") -> DeferredLoss:
    """Return the sum of what is in REGULARIZATION_LOSSES, 0.0 if that is nothing.

    It is a `DeferredLoss`: of the penalties that are in the collection now, and of the weights as they are whenever it
    is asked for. Penalties of variables are computed in one pass and rounded once, as a `gpureg.Penalty` does, and
    what else is there is added by the array library.

    Parameters
    ----------
    scope
        As for `get_collection`.
    name
        The name of the sum.

    Raises
    ------
    ValueError
        If something in the collection is no scalar, such as raw weights; TensorFlow would add these up, element by
        element, if they have the same shape.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> with tf1.Graph().as_default():
    ...     for name in ("w1", "w2"):
    ...         w = tf1.get_variable(name, [2, 3], initializer=np.ones, regularizer=tf1.l2_regularizer(0.5))
    ...     total = tf1.losses.get_regularization_loss()
    >>> total.name, float(total)
    ('total_regularization_loss:0', 3.0)
    """
    found = get_regularization_losses(scope)
    for index, loss in enumerate(found):
        if shape := shape_of(loss):
            raise ValueError(
                f"{getattr(loss, 'name', None) or f'item {index}'} in REGULARIZATION_LOSSES has shape {shape}, but a "
                "loss is a scalar; if it is raw weights, call apply_regularization(regularizer, "
                "get_collection(GraphKeys.REGULARIZATION_LOSSES)) instead"
            )
    return total(found, operation_name((name or "AddN") if found else "Const"))
