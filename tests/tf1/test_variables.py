"""Variables: what they begin with, and how they stand for their arrays."""

import math
import operator
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from gpureg import samples, tf1
from tests.helpers import shown

VALUES = samples.weights(6, np.dtype(np.float32)).reshape(2, 3)


def variable(array: Any = VALUES, name: str = "w") -> tf1.Variable:
    return tf1.get_variable(name, initializer=np.array(array))


# Initial values ------------------------------------------------------------------------------------------------------


def test_an_array_is_kept_and_not_copied() -> None:
    array = np.asfortranarray(VALUES)[::-1]
    w = tf1.get_variable("w", initializer=array)
    assert w.value is array
    array[0, 0] = 7
    assert w.value[0, 0] == 7


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [(0.5, "float32", ()), ([1.0, 2.0], "float32", (2,)), (3, "int32", ()), ([[1], [2]], "int32", (2, 1)),
     (True, "bool", ()), (np.float64(0.5), "float64", ()), (np.float32(0.5), "float32", ()), ((1.0,), "float32", (1,)),
     (1j, "complex128", ())],
    ids=shown,
)  # fmt: skip
def test_numbers_and_lists_become_arrays_of_tensorflows_dtypes(given: Any, dtype: str, shape: Any) -> None:
    w = tf1.get_variable("w", initializer=given)
    assert (w.dtype, w.shape) == (dtype, shape)
    assert isinstance(w.value, np.ndarray)
    assert np.array_equal(w.value, given)


def test_a_function_is_given_the_shape_and_the_dtype() -> None:
    calls = []

    def own(shape: Any, dtype: Any) -> Any:
        calls.append((shape, dtype))
        return np.full(shape, 3, dtype)

    assert tf1.get_variable("a", [2, 3], initializer=own).value.tolist() == [[3, 3, 3], [3, 3, 3]]
    assert tf1.get_variable("b", 2, "float64", initializer=own).dtype == np.float64
    assert tf1.get_variable("c", (), np.float16, initializer=np.zeros).dtype == np.float16
    assert calls == [([2, 3], np.float32), ([2], "float64")]


def test_another_variable_can_be_what_one_begins_with() -> None:
    assert tf1.get_variable("v", initializer=variable()).value.tolist() == VALUES.tolist()


@pytest.mark.parametrize(
    ("shape", "fans"), [([], 2), ([5], 10), ([4, 6], 10), ([3, 8, 16], 72), ([3, 3, 8, 16], 216), ([0, 3], 3)]
)
def test_the_default_is_glorots_uniform_distribution(shape: list[int], fans: int) -> None:
    limit = math.sqrt(6 / fans)
    values = np.concatenate([tf1.get_variable(f"w{i}", shape).value.ravel() for i in range(1000)])
    assert values.dtype == np.float32
    if values.size:
        # Of n values the largest lies below 0.97 of the limit with a probability of 0.97**n, less than 1e-13.
        assert 0.97 * limit < values.max() <= np.float32(limit)
        assert -0.97 * limit > values.min() >= -np.float32(limit)


def default(seed: int | None = None, name: str = "w", dtype: Any = None, before: int = 0) -> NDArray[Any]:
    with tf1.Graph().as_default():
        if seed is not None:
            tf1.set_random_seed(seed)
        for number in range(before):
            tf1.get_variable(f"before{number}", [3])
        value: NDArray[Any] = tf1.get_variable(name, [4, 6], dtype).value
        return value


def test_random_values_depend_on_the_seed_and_the_name_alone() -> None:
    assert np.array_equal(default(), default(0, before=2))
    assert np.array_equal(default(7), default(7))
    assert not np.array_equal(default(), default(7))
    assert not np.array_equal(default(), default(name="v"))


def test_random_values_are_the_same_in_all_dtypes_but_for_rounding() -> None:
    exact = default(dtype=np.float64)
    for dtype in (np.float16, np.float32, ml_dtypes.bfloat16, "bfloat16"):
        assert np.array_equal(default(dtype=dtype), exact.astype(default(dtype=dtype).dtype))
    assert default(dtype="bfloat16").dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", [np.int64, np.int32, bool, np.uint8])
def test_where_there_are_no_fractions_the_default_is_zero(dtype: Any) -> None:
    w = tf1.get_variable("w", [2], dtype)
    assert (w.dtype, w.value.tolist()) == (dtype, [0, 0])


def three(*_: Any, dtype: Any) -> Any:
    return np.ones(3, dtype)


def of_float64(shape: Any, **_: Any) -> Any:
    return np.ones(shape)


def without_dtype(shape: Any) -> Any:
    return np.ones(shape)


def text(*_: Any, **__: Any) -> str:
    return "ab"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [({}, ValueError, r"^Variable w did not get an initial value, so its `shape` argument must be specified"),
     ({"shape": [2, None]}, ValueError, r"all of it; it is \(2, None\)$"),
     ({"initializer": np.ones}, ValueError, r"^Variable w did not get an initial value"),
     ({"shape": [2], "initializer": np.ones(2)}, ValueError, r"^If initializer is a constant, do not specify shape\.$"),
     ({"shape": [-1]}, ValueError, r"^Dimension -1 must be >= 0$"),
     ({"shape": ["a"]}, TypeError, "integer"),
     ({"shape": [2.0]}, TypeError, "integer"),
     ({"initializer": np.ones(2), "dtype": np.float32}, ValueError,
      r"^Initializer type 'float64' and explicit dtype 'float32' don't match\.$"),
     ({"initializer": 0.5, "dtype": "float64"}, ValueError, "'float32' and explicit dtype 'float64'"),
     ({"shape": [2], "initializer": three}, ValueError,
      r"initial value's shape \(\(3,\)\) is not compatible with the explicitly supplied `shape` argument \(\(2,\)\)"),
     ({"shape": [2], "initializer": of_float64}, ValueError,
      r"^initial_value: requested dtype float32 for variable w, but the initializer returned float64$"),
     ({"shape": [2], "initializer": without_dtype}, TypeError, "unexpected keyword argument 'dtype'"),
     ({"shape": [2], "initializer": text}, TypeError, r"^an initial value must be an array"),
     ({"shape": [2], "dtype": "nope"}, TypeError, r"^dtype is 'nope'; without an initializer a variable is NumPy's"),
     ({"shape": [2], "collections": "mine"}, ValueError,
      r"^collections argument to Variable constructor must be a list, tuple, or set\. Got mine of type <class 'str'>$"),
     ({"initializer": "zeros"}, TypeError, r"^an initial value must be an array .*, not 'zeros'$"),
     ({"initializer": ["a"]}, TypeError, r"a list of numbers, not \['a'\]$"),
     ({"initializer": object()}, TypeError, r"^an initial value must be an array"),
     ({"initializer": [[1.0], [2.0, 3.0]]}, ValueError, "inhomogeneous"),
     ({"shape": [2], "regularizer": "l2"}, TypeError, "'str' object is not callable"),
     ({"shape": [2], "dtype": np.int32, "regularizer": tf1.l2_regularizer(0.5)}, TypeError,
      r"^weights\['w:0'\] has dtype int32; expected float16")],
    ids=shown,
)  # fmt: skip
def test_what_a_variable_cannot_begin_with(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tf1.get_variable("w", **options)
    assert tf1.get_collection(tf1.GraphKeys.GLOBAL_VARIABLES) == []
    assert tf1.get_variable("w", [1]).name == "w:0"


def test_a_name_is_a_string() -> None:
    odd: Any = 5
    with pytest.raises(TypeError, match=r"^a variable's name must be a string, not 5$"):
        tf1.get_variable(odd, [1])


# Collections ---------------------------------------------------------------------------------------------------------


def test_the_collections_a_variable_is_added_to() -> None:
    l2 = tf1.l2_regularizer(0.5)
    a = tf1.get_variable("a", [1], trainable=False, regularizer=l2)
    b = tf1.get_variable("b", [1])
    c = tf1.get_variable("c", [1], collections=[tf1.GraphKeys.WEIGHTS, tf1.GraphKeys.TRAINABLE_VARIABLES])
    d = tf1.get_variable("d", [1], collections=[])
    assert tf1.get_collection(tf1.GraphKeys.GLOBAL_VARIABLES) == [a, b]
    assert tf1.trainable_variables() == [b, c, d]
    assert tf1.trainable_variables("b") == [b]
    assert tf1.get_collection(tf1.GraphKeys.WEIGHTS) == [c]
    assert [loss.name for loss in tf1.losses.get_regularization_losses()] == ["a/Regularizer/l2_regularizer:0"]


# Standing for an array -----------------------------------------------------------------------------------------------

OTHER = np.array([[2.0], [0.5]], np.float32)
OPERATORS = (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.lt, operator.le,
             operator.gt, operator.ge)  # fmt: skip


@pytest.mark.parametrize("operation", OPERATORS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("other", [2, 0.5, np.float64(0.5), OTHER], ids=shown)
def test_operators_are_those_of_the_array_on_both_sides(operation: Callable[[Any, Any], Any], other: Any) -> None:
    array = np.abs(VALUES)
    w = variable(array)
    for ours, theirs in ((operation(w, other), operation(array, other)), (operation(other, w), operation(other, array)),
                         (operation(w, w), operation(array, array))):  # fmt: skip
        assert type(ours) is type(theirs)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def test_matrix_products_are_those_of_the_array_on_both_sides() -> None:
    w, x = variable(), np.ones((3, 2), np.float32)
    assert np.array_equal(x @ w, x @ VALUES)
    assert np.array_equal(w @ x, VALUES @ x)
    assert np.array_equal(w @ w.T, VALUES @ VALUES.T)


class Ranked:
    """An array as CuPy's are: it leaves an operator to what has no `__array_ufunc__`, and a higher priority."""

    __array_priority__ = 100

    def __add__(self, other: Any) -> Any:
        if not hasattr(other, "__array_ufunc__") and other.__array_priority__ > self.__array_priority__:
            return NotImplemented
        return "added", other


def test_arrays_of_other_libraries_leave_operators_to_a_variable_and_are_given_its_array() -> None:
    w = variable()
    assert Ranked() + w == ("added", w.value)


@pytest.mark.parametrize("operation", [operator.neg, operator.pos, abs, len, list, str, "{:}".format, np.asarray,
                                       np.square, np.sum, np.linalg.norm], ids=shown)  # fmt: skip
def test_one_sided_operations_are_those_of_the_array(operation: Callable[[Any], Any]) -> None:
    ours, theirs = operation(variable()), operation(VALUES)
    assert type(ours) is type(theirs)
    assert np.array_equal(ours, theirs)


def test_functions_of_numpy_take_a_variable_for_its_array() -> None:
    w, x = variable(), np.ones((3, 2), np.float32)
    assert np.array_equal(np.matmul(x, w), x @ VALUES)
    assert np.array_equal(np.maximum(w, 1), np.maximum(VALUES, 1))
    assert np.array_equal(np.concatenate([w, w]), np.concatenate([VALUES, VALUES]))
    assert np.asarray(w) is w.value
    assert np.asarray(w, np.float64).dtype == np.float64
    assert np.array(w, copy=True) is not w.value


def test_attributes_and_methods_are_those_of_the_array() -> None:
    w = variable()
    assert (w.dtype, w.ndim, w.size, w.T.shape) == (np.float32, 2, 6, (3, 2))
    assert np.array_equal(w.sum(axis=0), VALUES.sum(axis=0))
    assert np.array_equal(w[0, 1:], VALUES[0, 1:])
    assert float(variable(0.5, "scalar")) == 0.5
    assert bool(variable(0.0, "zero")) is False
    for missing in ("nope", "_private", "__array_ufunc__", "__array_interface__"):
        assert not hasattr(w, missing)


def test_a_shape_has_tensorflows_methods() -> None:
    shape: Any = variable().get_shape()
    assert tuple(shape) == variable(name="v").shape
    assert shape == (2, 3)
    assert (shape.as_list(), shape.ndims, shape.num_elements(), str(shape)) == ([2, 3], 2, 6, "(2, 3)")
    assert type(shape)([2, None]).num_elements() is None
    assert np.zeros(shape).shape == (2, 3)


def test_variables_are_equal_if_they_are_the_same() -> None:
    w, v = variable(), variable(name="v")
    assert w == w
    assert w != v
    assert w in [v, w]
    assert v not in [w]
    assert {w: 1, v: 2}[v] == 2


def test_a_variable_shows_its_name_and_shape() -> None:
    assert repr(variable()) == "<Variable 'w:0' shape=(2, 3)>"


# Changed in place ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda w: w.__iadd__(2), 3), (lambda w: w.__isub__(OTHER[0]), -1), (lambda w: w.__imul__(w), 1),
     (lambda w: w.__itruediv__(2), 0.5), (lambda w: w.__ipow__(2), 1),
     (lambda w: w.__imatmul__(np.full((3, 3), 2, np.float32)), 6), (lambda w: w.assign(np.full((2, 3), 5.0)), 5),
     (lambda w: w.assign_add(np.full((2, 3), 5.0)), 6), (lambda w: w.assign_sub(np.full((2, 3), 5.0)), -4)],
    ids=range(9),
)  # fmt: skip
def test_what_changes_a_variable_writes_into_its_array(change: Callable[[Any], Any], expected: float) -> None:
    array = np.ones((2, 3), np.float32)
    w = tf1.get_variable("w", initializer=array)
    assert change(w) is w
    assert w.value is array
    assert np.array_equal(array, np.full((2, 3), expected))


def test_statements_change_a_variable_in_place() -> None:
    w = w_before = variable()
    array = w.value
    w -= 0.5 * w
    w[0] = w[1]
    w[w > 100] = 0
    assert w is w_before
    assert w.value is array
    assert np.array_equal(array, np.stack([VALUES[1] * np.float32(0.5)] * 2))


def test_a_scalar_variable_is_changed_in_place() -> None:
    step = tf1.get_variable("step", initializer=0, trainable=False)
    step += 1
    assert float(step) == 1


@pytest.mark.parametrize("name", ["assign", "assign_add", "assign_sub"])
@pytest.mark.parametrize("value", [0.0, np.ones(3), np.ones((3, 2))], ids=shown)
def test_what_is_assigned_has_the_variables_shape(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^Cannot assign value to variable 'w:0': Shape mismatch\."):
        getattr(variable(), name)(value)


class Immutable(np.ndarray[Any, Any]):
    """As the arrays of JAX are: an operator makes another."""

    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc] # of NumPy's many signatures
        return self + other


def test_an_array_that_cannot_be_changed_is_not_left_behind() -> None:
    w = tf1.get_variable("w", initializer=np.ones(3).view(Immutable))
    with pytest.raises(TypeError, match=r"^w:0 cannot be changed in place: the operator made another array$"):
        w += 1
    assert w.value.tolist() == [1, 1, 1]


# As PyTorch calls it -------------------------------------------------------------------------------------------------


def test_functions_of_pytorch_are_called_on_the_arrays() -> None:
    w, v = variable(), variable(name="v")

    def function(*given: Any, **named: Any) -> Any:
        return given, named

    given, named = w.__torch_function__(function, (), (w, [v, (1, w)], {"a": 2}), {"bias": v})
    assert given[0] is w.value
    assert given[1][0] is v.value
    assert given[1][1] == (1, w.value)
    assert given[2] == {"a": 2}
    assert named["bias"] is v.value
    assert w.__torch_function__(function, (), (w,))[1] == {}
