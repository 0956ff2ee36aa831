"""Both sides of a comparison with TensorFlow 1: one namespace for each, and a script that runs in a graph of each."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from numpy.typing import NDArray

from gpureg import tf1

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what TF-Slim imports has been deprecated for long
    import tf_slim
    from tf_slim.layers import regularizers as contrib

OURS = tf1

THEIRS = SimpleNamespace(
    **{name: getattr(contrib, name) for name in contrib.__all__},
    **{name: getattr(tf, name) for name in tf1.__all__ if hasattr(tf, name)},
    slim=tf_slim,
    tensorflow=tf,
)

Script = Callable[[Any], Any]
"""What is run on both sides: it gets a namespace, and returns what can be compared."""


def ours(script: Script) -> Any:
    """Return what a script returns with gpureg, in a new graph."""
    with tf1.Graph().as_default():
        return script(OURS)


def theirs(script: Script) -> Any:
    """Return what a script returns with TensorFlow, in a new graph."""
    with tf.Graph().as_default():
        return script(THEIRS)


def same(script: Script) -> Any:
    """Return what a script returns on either side, once it is sure that it is the same."""
    one, other = ours(script), theirs(script)
    assert one == other
    return one


def number(loss: Any) -> NDArray[Any]:
    """Return the value of a loss or variable on either side."""
    if type(loss).__module__.startswith("tensorflow."):
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            return np.asarray(session.run(loss))
    return np.asarray(loss)


def names(items: Any) -> list[str | None]:
    """Return the names of things, None for what has none."""
    return [getattr(item, "name", None) for item in items]


def penalties(one: Any, scope: str | None = None) -> list[str | None]:
    """Return the names in REGULARIZATION_LOSSES on a side."""
    return names(one.get_collection(one.GraphKeys.REGULARIZATION_LOSSES, scope))


def bound(count: int) -> float:
    """Return how far two penalties of `count` float32 weights may be apart, relative.

    TensorFlow works in float32, with u = 2**-24: a square or absolute value, the scale and their product are rounded
    once each, and so are the terms of a sum of two; a sum of `count` terms that are not negative is off by at most
    (count - 1) u in any order. gpureg's is rounded once. A last u is for the products of these errors.
    """
    return (count + 5) * 2.0**-24
