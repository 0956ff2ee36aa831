"""Where variables and collections are kept: a graph, and which one is the default."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from gpureg.tf1.scopes import Scopes, unique_name


class GraphKeys:
    """Names of collections, as TensorFlow has them."""

    GLOBAL_VARIABLES: Final = "variables"
    """All variables, unless `get_variable` is told other collections."""
    TRAINABLE_VARIABLES: Final = "trainable_variables"
    """The variables that an optimizer changes."""
    WEIGHTS: Final = "weights"
    """What `apply_regularization` penalises if it is given nothing; filled by none but the user."""
    REGULARIZATION_LOSSES: Final = "regularization_losses"
    """The penalties."""
    LOSSES: Final = "losses"
    """What `losses.add_loss` adds."""


class Graph:
    """Variables by name, and collections.

    A graph may be the default one of several threads; each is in variable scopes of its own.

    Attributes
    ----------
    seed
        Where random initial values begin, see `set_random_seed`.

    Examples
    --------
    >>> from gpureg import tf1
    >>> graph = tf1.Graph()
    >>> with graph.as_default():
    ...     tf1.add_to_collection("numbers", 1)
    >>> graph.get_collection("numbers"), tf1.Graph().get_collection("numbers")
    ([1], [])
    """

    def __init__(self) -> None:
        self.seed = 0
        self.lock = threading.RLock()
        self.variables: dict[str, Any] = {}
        """By the names under which `get_variable` finds them."""
        self.penalties: dict[Any, Any] = {}
        """Sums of penalties that were asked for of late, planned: by what they are of."""
        self._collections: dict[Any, list[Any]] = {}
        self._names: dict[str, int] = {}
        self.scopes = Scopes(self._names)

    @contextmanager
    def as_default(self) -> Iterator["Graph"]:
        """Make this the graph that all functions work on, in this thread and for as long as the block lasts."""
        _defaults.stack.append(self)
        try:
            yield self
        finally:
            _defaults.stack.pop()

    def add_to_collection(self, name: Any, value: Any) -> None:
        """Add something to a collection, as often as it is called."""
        self.get_collection_ref(name).append(value)

    def get_collection(self, name: Any, scope: str | None = None) -> list[Any]:
        """Return what is in a collection; see the function `get_collection`."""
        with self.lock:
            items = list(self._collections.get(name, ()))
        if scope is None:
            return items
        pattern = re.compile(scope)
        named = [(item, getattr(item, "name", None)) for item in items]
        return [item for item, name in named if isinstance(name, str) and pattern.match(name)]

    def get_collection_ref(self, name: Any) -> list[Any]:
        """Return the collection itself; see the function `get_collection_ref`."""
        with self.lock:
            return self._collections.setdefault(name, [])

    def unique_name(self, name: str) -> str:
        """Return a full name, outside of all scopes, made unique."""
        return unique_name(self._names, name)


class _Defaults(threading.local):
    """The graphs that a thread made the default one, one within the other, and the one outside of all."""

    def __init__(self) -> None:
        self.stack: list[Graph] = []
        self.outermost = Graph()


_defaults = _Defaults()


def get_default_graph() -> Graph:
    """Return the graph that functions work on: the innermost `Graph.as_default`, outside of all one for each thread."""
    return _defaults.stack[-1] if _defaults.stack else _defaults.outermost


def reset_default_graph() -> None:
    """Forget the variables and collections that were made outside of any `Graph.as_default`.

    Raises
    ------
    AssertionError
        If it is called within one.
    """
    if _defaults.stack:
        raise AssertionError(
            "Do not use tf.reset_default_graph() to clear nested graphs. If you need a cleared graph, exit the nesting "
            "and create a new graph."
        )
    _defaults.outermost = Graph()


def set_random_seed(seed: int) -> None:
    """Set where the random initial values of the default graph's variables begin.

    Each variable's own values depend on this seed and on its name alone, not on how many were made before it. It is 0
    at first, where TensorFlow takes another seed for each run.
    """
    get_default_graph().seed = seed


def add_to_collection(name: Any, value: Any) -> None:
    """Add something to a collection of the default graph.

    Parameters
    ----------
    name
        One of `GraphKeys`, or any name.
    value
        A penalty, an array, a variable, or anything else. It counts as often as it is added.

    Examples
    --------
    Weights may be collected raw, and penalised together later:

    >>> import numpy as np
    >>> from gpureg import tf1
    >>> key = tf1.GraphKeys.REGULARIZATION_LOSSES
    >>> with tf1.Graph().as_default():
    ...     tf1.add_to_collection(key, np.ones((2, 3), np.float32))
    ...     tf1.add_to_collection(key, np.ones(4, np.float32))
    ...     float(tf1.apply_regularization(tf1.l2_regularizer(0.5), tf1.get_collection(key)))
    2.5
    """
    get_default_graph().add_to_collection(name, value)


def get_collection(key: Any, scope: str | None = None) -> list[Any]:
    """Return what is in a collection of the default graph, in a new list, in order, as often as it was added.

    Parameters
    ----------
    key
        One of `GraphKeys`, or any name. A collection that is not there is empty.
    scope
        A regular expression that names must match from the start on, so "a" matches "ab/x" too; what has no name is
        left out.
    """
    return get_default_graph().get_collection(key, scope)


def get_collection_ref(key: Any) -> list[Any]:
    """Return a collection of the default graph itself, which may be changed; it is made if it is not there."""
    return get_default_graph().get_collection_ref(key)


def trainable_variables(scope: str | None = None) -> list[Any]:
    """Return the variables that were not made with `trainable=False`; `scope` as for `get_collection`."""
    return get_collection(GraphKeys.TRAINABLE_VARIABLES, scope)
