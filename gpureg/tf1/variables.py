"""Variables by name, and the scopes that they are made in."""

import math
import operator
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Self

import numpy as np

from gpureg import dispatch, libraries
from gpureg.tf1.graph import Graph, GraphKeys, get_default_graph
from gpureg.tf1.operands import Operand, TensorShape, array_of, shape_of
from gpureg.tf1.regularizers import loss_of
from gpureg.tf1.scopes import Reuse, VariableScope, check_name


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[["Variable", Any], "Variable"]:
    """Return an operator that changes a variable's array, and refuses an array that only another could be made of."""

    def change(variable: "Variable", other: Any) -> "Variable":
        if operation(variable.value, array_of(other)) is not variable.value:
            raise TypeError(f"{variable.name} cannot be changed in place: the operator made another array")
        return variable

    return change


class Variable(Operand):
    """An array with a name: what `get_variable` makes.

    In expressions it is its array, `x @ w + b`, and so are its attributes and methods, `w.dtype`, `w.T`, `w.sum()`.
    `value` is the array itself, for functions that take nothing else. Operators that change it, `w -= rate * grad`,
    `w[...] = 0` and the `assign` methods write into the array, wherever else it is held; it is never replaced.

    `==` is identity, as in TensorFlow 1: `v in trainable_variables()` is well defined.

    Attributes
    ----------
    name
        The full name and ":0".
    graph
        The graph it was made in.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> with tf1.Graph().as_default(), tf1.variable_scope("fc"):
    ...     w = tf1.get_variable("kernel", initializer=np.ones((2, 3), np.float32))
    >>> w.name, w.get_shape().as_list(), np.ones((1, 2), np.float32) @ w
    ('fc/kernel:0', [2, 3], array([[2., 2., 2.]], dtype=float32))
    >>> w -= 0.5
    >>> w.value[0]
    array([0.5, 0.5, 0.5], dtype=float32)
    """

    def __init__(self, name: str, value: Any, graph: Graph) -> None:
        self.name = name
        self.graph = graph
        self._value = value

    @property
    def value(self) -> Any:
        """Return the array itself, not a copy."""
        return self._value

    @property
    def shape(self) -> TensorShape:
        """Return the array's shape."""
        return shape_of(self._value)

    def assign(self, value: Any) -> Self:
        """Write an array of the same shape into the variable's; a ValueError if it has another."""
        self._value[...] = self._alike(value)
        return self

    def assign_add(self, delta: Any) -> Self:
        """Add an array of the same shape to the variable's, in place; a ValueError if it has another."""
        self += self._alike(delta)
        return self

    def assign_sub(self, delta: Any) -> Self:
        """Subtract an array of the same shape from the variable's, in place; a ValueError if it has another."""
        self -= self._alike(delta)
        return self

    def _alike(self, value: Any) -> Any:
        if shape_of(value) != self.shape:
            raise ValueError(
                f"Cannot assign value to variable '{self.name}': Shape mismatch. The variable shape {self.shape}, and "
                f"the assigned value shape {shape_of(value)} are incompatible."
            )
        return array_of(value)

    def __setitem__(self, place: Any, value: Any) -> None:
        self._value[array_of(place)] = array_of(value)

    __iadd__, __isub__ = _in_place(operator.iadd), _in_place(operator.isub)
    __imul__, __itruediv__ = _in_place(operator.imul), _in_place(operator.itruediv)
    __ipow__, __imatmul__ = _in_place(operator.ipow), _in_place(operator.imatmul)


def get_variable_scope() -> VariableScope:
    """Return the variable scope that is open in this thread; `get_variable_scope().reuse_variables()` is an idiom."""
    return get_default_graph().scopes.current


@contextmanager
def variable_scope(
    name_or_scope: str | VariableScope | None,
    default_name: str | None = None,
    values: Any = None,  # noqa: ARG001 - scripts give it by its place
    *,
    initializer: Any = None,
    regularizer: Any = None,
    reuse: Reuse | bool | None = None,
    dtype: Any = None,
) -> Iterator[VariableScope]:
    """Open a scope: variables made in it have its name before theirs, and what they are not given from it.

    Parameters
    ----------
    name_or_scope
        A name, which goes on from that of the scope around and inherits from it; or what another `variable_scope` gave,
        to open that one again, with what it has and wherever this is.
    default_name
        Where there is no name: this one, with a number if it was opened in the scope around before.
    values
        Ignored, as TensorFlow does but for a graph's tensors.
    regularizer, initializer, dtype
        What `get_variable` takes where it is given none. None inherits; `no_regularizer` is none.
    reuse
        None or False for that of the scope around; True if variables must be there; `AUTO_REUSE` if they may be.

    Raises
    ------
    TypeError
        If there is neither a name nor a default one, or the name is no string.
    ValueError
        If the name is none that TensorFlow takes, or `reuse` is something else, or given for a default name.

    Examples
    --------
    >>> from gpureg import tf1
    >>> with tf1.Graph().as_default():
    ...     for reuse in (False, True):
    ...         with tf1.variable_scope("conv", reuse=reuse, regularizer=tf1.l2_regularizer(0.1)):
    ...             kernel = tf1.get_variable("kernel", [3, 3, 1, 64])
    ...     print(kernel.name, len(tf1.trainable_variables()), len(tf1.losses.get_regularization_losses()))
    conv/kernel:0 1 1
    """
    name = default_name if name_or_scope is None else name_or_scope
    if name is None:
        raise TypeError("If default_name is None then name_or_scope is required")
    if not (reuse is None or isinstance(reuse, bool | Reuse)):
        raise ValueError("The reuse parameter must be True or False or None.")
    if not isinstance(name, str | VariableScope):
        raise TypeError("VariableScope: name_or_scope must be a string or VariableScope.")
    if name_or_scope is None and reuse:
        raise ValueError("reuse=True cannot be used without a name_or_scope")
    scopes = get_default_graph().scopes
    given = {"initializer": initializer, "regularizer": regularizer, "dtype": dtype}
    given = {key: value for key, value in given.items() if value is not None}
    operations = name if isinstance(name, str) else name.name.rpartition("/")[2]
    with scopes.name_scope(operations) if operations else nullcontext("") as original_name_scope:
        if isinstance(name, VariableScope):
            opened = replace(name, reuse=reuse or name.reuse, **given)
            with scopes.reopened(opened):
                yield opened
            return
        around = scopes.current
        name = scopes.unique_variable_scope(name) if name_or_scope is None else name
        given |= {"name": f"{around.name}/{name}" if around.name else name, "original_name_scope": original_name_scope}
        opened = replace(around, reuse=reuse or around.reuse, **given)
        with scopes.variable_scope(opened):
            yield opened


def get_variable(
    name: str,
    shape: Any = None,
    dtype: Any = None,
    initializer: Any = None,
    regularizer: Callable[[Any], Any] | None = None,
    trainable: bool = True,
    collections: Collection[Any] | None = None,
) -> Variable:
    """Return a variable of the open scope: a new one, or the one that is there where the scope reuses variables.

    Parameters
    ----------
    name
        Its name; that of the scope goes before it.
    shape
        The lengths of the axes; not with an array as initializer.
    dtype
        By default the scope's, and that is float32. It is handed to the initializer as it is given.
    initializer
        An array of any library, which is kept as it is and not copied: who holds it sees the variable change. A number
        or a list, of which a NumPy array is made, of float32 or int32. A function that is called with the shape, as a
        list, and `dtype=`, and returns an array: `np.ones`, say. By default the scope's, and if there is none, a NumPy
        array, zeros for integers and bools, and else TensorFlow's default, Glorot's uniform distribution over
        `+-sqrt(6 / (fan_in + fan_out))`. These random numbers are the same in each run: they depend on
        `set_random_seed` and the variable's name alone.
    regularizer
        One of `l2_regularizer` and its like, or of gpureg's own; or any function of an array that returns a scalar, or
        None for no penalty. By default the scope's; `no_regularizer` is none. For a new variable, and never for one
        that is there, its penalty is added to REGULARIZATION_LOSSES as a `DeferredLoss`. A function of your own is
        called once to see what it returns, and whenever the loss is asked for.
    trainable
        Whether the variable is added to TRAINABLE_VARIABLES. It is penalised all the same.
    collections
        The collections it is added to, instead of GLOBAL_VARIABLES.

    Raises
    ------
    ValueError
        If a new variable is there already, or one to be reused is not, or has another shape or dtype; if there is
        neither a shape nor an array, or both; if the initializer returns another shape or dtype; if the name is none
        that TensorFlow takes; if the collections are none.
    TypeError
        If the initial value is no array of a known library; if gpureg's regularizer does not take its dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from gpureg import tf1
    >>> with tf1.Graph().as_default():
    ...     w = tf1.get_variable("w1", initializer=np.ones((2, 3), np.float32), regularizer=tf1.l2_regularizer(0.5))
    ...     b = tf1.get_variable("b1", [3], initializer=np.zeros)
    ...     print([v.name for v in tf1.trainable_variables()])
    ...     print([(loss.name, float(loss)) for loss in tf1.losses.get_regularization_losses()])
    ['w1:0', 'b1:0']
    [('w1/Regularizer/l2_regularizer:0', 1.5)]
    """
    if not isinstance(name, str):
        raise TypeError(f"a variable's name must be a string, not {name!r:.200}")
    graph = get_default_graph()
    scope = graph.scopes.current
    name = f"{scope.name}/{name}" if scope.name else name
    if _is_constant(initializer):
        initializer = _array(initializer)
        if dtype is not None and not _is_of(initializer, dtype):
            own, other = dispatch.dtype_name(initializer), _dtype_name(dtype)
            raise ValueError(f"Initializer type '{own}' and explicit dtype '{other}' don't match.")
    initializer = scope.initializer if initializer is None else initializer
    if _is_constant(initializer) and shape is not None:
        raise ValueError("If initializer is a constant, do not specify shape.")
    keys = [GraphKeys.GLOBAL_VARIABLES] if collections is None else collections
    if not isinstance(keys, list | tuple | set):
        raise ValueError(
            "collections argument to Variable constructor must be a list, tuple, or set. "
            f"Got {keys} of type {type(keys)}"
        )
    dtype = scope.dtype if dtype is None else dtype
    shape = _shape(shape)
    with graph.lock:
        if name in graph.variables:
            return _reused(graph.variables[name], name, scope, shape, dtype)
        if scope.reuse is True:
            raise ValueError(
                f"Variable {name} does not exist, or was not created with tf.get_variable(). Did you mean to set "
                "reuse=tf.AUTO_REUSE in VarScope?"
            )
        check_name(name, root=True)
        variable = Variable(f"{name}:0", _initial(name, shape, dtype, initializer, graph.seed), graph)
        regularizer = scope.regularizer if regularizer is None else regularizer
        loss = None if regularizer is None else loss_of(variable, name, regularizer)
        variable.name = f"{graph.unique_name(name)}:0"
        graph.variables[name] = variable
        for key in dict.fromkeys([*keys, GraphKeys.TRAINABLE_VARIABLES] if trainable else keys):
            graph.add_to_collection(key, variable)
        if loss is not None:
            graph.add_to_collection(GraphKeys.REGULARIZATION_LOSSES, loss)
        return variable


def _reused(variable: Variable, name: str, scope: VariableScope, shape: TensorShape | None, dtype: Any) -> Variable:
    """Return a variable that is there, if the scope allows that and it is as it should be."""
    if scope.reuse is False:
        raise ValueError(
            f"Variable {name} already exists, disallowed. Did you mean to set reuse=True or reuse=tf.AUTO_REUSE in "
            "VarScope?"
        )
    found = variable.shape
    if shape is not None and not shape.is_compatible_with(found):
        raise ValueError(f"Trying to share variable {name}, but specified shape {shape} and found shape {found}.")
    if not _is_of(variable.value, dtype):
        own = dispatch.dtype_name(variable.value)
        raise ValueError(
            f"Trying to share variable {name}, but specified dtype {_dtype_name(dtype)} and found dtype {own}."
        )
    return variable


def _initial(name: str, shape: TensorShape | None, dtype: Any, initializer: Any, seed: int) -> Any:
    """Return the array that a new variable begins with."""
    if _is_constant(initializer):
        return _array(initializer)
    if shape is None or None in shape:
        raise ValueError(
            f"Variable {name} did not get an initial value, so its `shape` argument must be specified, all of it; "
            f"it is {shape}"
        )
    if initializer is None:
        return _default(name, shape, dtype, seed)
    value = _array(initializer(shape.as_list(), dtype=dtype))
    if shape_of(value) != shape:
        raise ValueError(
            f"In this `tf.Variable` creation, the initial value's shape ({shape_of(value)}) is not compatible with the "
            f"explicitly supplied `shape` argument ({shape})."
        )
    if not _is_of(value, dtype):
        raise ValueError(
            f"initial_value: requested dtype {_dtype_name(dtype)} for variable {name}, but the initializer returned "
            f"{dispatch.dtype_name(value)}"
        )
    return value


def _default(name: str, shape: TensorShape, dtype: Any, seed: int) -> Any:
    """Return TensorFlow's default: Glorot's uniform distribution, or zeros where there are no fractions."""
    own = libraries.numpy_dtype(dtype)
    if own is None:
        raise TypeError(f"dtype is {dtype!r}; without an initializer a variable is NumPy's, and needs a dtype of NumPy")
    if not np.issubdtype(own, np.floating) and own.name != "bfloat16":
        return np.zeros(shape, own)
    lengths = [length or 0 for length in shape]  # all are known
    fan_in, fan_out = (1, 1) if not lengths else (lengths[-2:] * 2)[:2]
    field = math.prod(lengths[:-2])
    limit = math.sqrt(6 / max(field * (fan_in + fan_out), 1))
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.asarray(random.uniform(-limit, limit, lengths)).astype(own)


def _is_constant(initializer: Any) -> bool:
    return initializer is not None and not callable(initializer)


def _array(given: Any) -> Any:
    """Return an array as it is, and a NumPy array of anything else: of float32 or int32 of what has no dtype."""
    given = array_of(given)
    if isinstance(given, np.generic):  # it cannot be written to
        return np.array(given)
    if dispatch.library_of(given) is not None:
        return given
    if isinstance(given, bool | int | float | complex | list | tuple):
        array = np.array(given)
        if array.dtype.kind in "biufc":
            narrower = {"f": np.float32, "i": np.int32}.get(array.dtype.kind)
            return array if narrower is None else array.astype(narrower)
    raise TypeError(
        f"an initial value must be an array that gpureg takes, a number or a list of numbers, not {given!r:.200}"
    )


def _shape(shape: Any) -> TensorShape | None:
    """Return a shape; None is unknown, as is a length that is None."""
    if shape is None:
        return None
    lengths = [shape] if isinstance(shape, int | np.integer) else list(shape)
    known = TensorShape(None if length is None else operator.index(length) for length in lengths)
    for length in known:
        if length is not None and length < 0:
            raise ValueError(f"Dimension {length} must be >= 0")
    return known


def _is_of(array: Any, dtype: Any) -> bool:
    """Return whether an array has a dtype, which may be its library's own or NumPy's, or the name of one."""
    library = libraries.of(array, "the initial value")
    named = libraries.numpy_dtype(dtype)
    wanted = library.dtype(dtype if named is None else named.name)
    return dtype is array.dtype or (wanted is not None and wanted == library.dtype(array.dtype))


def _dtype_name(dtype: Any) -> str:
    named = libraries.numpy_dtype(dtype)
    return str(dtype) if named is None else named.name
