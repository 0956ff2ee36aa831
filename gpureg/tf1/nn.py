"""`tf.nn`, as far as it is about regularization."""

from typing import Any

import gpureg
from gpureg.regularizers import L1L2
from gpureg.tf1.deferred import DeferredLoss, Penalised, operation_name
from gpureg.tf1.math import reduce_sum
from gpureg.tf1.operands import array_of
from gpureg.tf1.variables import Variable


def l2_loss(t: Any, name: str | None = None) -> Any:
    """Return half the sum of squares, `sum t*t / 2`.

    Parameters
    ----------
    t
        A variable or an array of any shape.
    name
        The name of a loss that is deferred, "L2Loss" by default.

    Returns
    -------
    Of a variable a `DeferredLoss`, so that `weight_decay * sum(l2_loss(v) for v in variables)` is one pass over all of
    them, has the bits of the same penalties in a collection, and follows the weights. Of an array a 0-d value of its
    library, computed at once, in the array's dtype as TensorFlow has it; but it is summed in float64 and rounded once,
    so that of float16 only the result itself may overflow.

    Raises
    ------
    TypeError
        If t is no array, or of another dtype than `gpureg.l2_loss` takes; for a variable when the loss is asked for.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> tf1.nn.l2_loss(np.array([[1, -2], [-3, 4]], np.float32))
    np.float32(15.0)
    """
    if isinstance(t, Variable):
        return DeferredLoss(operation_name(name or "L2Loss"), [Penalised(t, L1L2(l2=0.5))])
    array = array_of(t)
    return gpureg.l2_loss(array, dtype=getattr(array, "dtype", None))


def scale_regularization_loss(regularization_loss: Any, num_replicas: int = 1) -> Any:
    """Return the sum of a regularization loss over the number of replicas that each add it to their own loss.

    Parameters
    ----------
    regularization_loss
        A loss, an array or a list of losses, as `reduce_sum` takes them.
    num_replicas
        How many replicas' losses or gradients are summed. TensorFlow takes it from its distribution strategy.

    Raises
    ------
    ValueError
        If the number is no positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> tf1.nn.scale_regularization_loss(np.ones((2, 3)), num_replicas=4)
    np.float64(1.5)
    """
    if type(num_replicas) is not int or num_replicas < 1:
        raise ValueError(f"num_replicas must be a positive integer, not {num_replicas!r:.200}")
    return reduce_sum(regularization_loss) / num_replicas
