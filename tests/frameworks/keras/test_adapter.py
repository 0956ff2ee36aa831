"""The regularizers of `gpureg.keras` called on variables and tensors: their bits, bounds, dtypes and gradients."""

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

import gpureg
import gpureg.keras
from tests.frameworks.keras.sides import orthogonal_bound, outcome, sum_bound, tensor
from tests.helpers import DTYPES

# What torch.compile says of Keras's code, and of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`.*'dtypes.py:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

BACKEND = keras.backend.backend()
FLOATS = [name for name in DTYPES if (BACKEND, name) != ("jax", "float64")]  # which JAX has not unless it is told to
SHAPES = [(), (0,), (0, 3), (1,), (5, 7), (3, 3, 4, 8), (40_000,)]
ARGUMENTS: dict[str, tuple[Any, ...]] = {"L1": (0.1,), "L2": (0.3,), "L1L2": (0.1, 0.3), "HalvedL2": (0.3,)}
ORTHOGONAL = {"OrthogonalRegularizer": (0.3, "columns")}
W = np.array([[1, -2], [-3, 4]], np.float32)


def both(name: str, *arguments: Any) -> tuple[Any, Any]:
    """Return the regularizer of `gpureg.keras` and gpureg's own."""
    return getattr(gpureg.keras, name)(*arguments), getattr(gpureg, name)(*arguments)


def sample(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(DTYPES[dtype])


def plain(array: Any) -> Any:
    """Return a tensor as a NumPy array: of bfloat16, of which TensorFlow makes no 0-d one, as float32."""
    if not isinstance(array, np.ndarray | np.generic):
        dtype = keras.backend.standardize_dtype(array.dtype)
        array = keras.ops.convert_to_numpy(keras.ops.cast(array, "float32") if dtype == "bfloat16" else array)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def bits(array: Any) -> tuple[Any, ...]:
    return keras.backend.standardize_dtype(array.dtype), tuple(array.shape), plain(array).tobytes()


def number(loss: Any) -> float:
    return float(plain(loss))


def dtype_of(loss: Any) -> str:
    assert keras.ops.is_tensor(loss)
    assert tuple(loss.shape) == ()
    return str(keras.backend.standardize_dtype(loss.dtype))


def gradient(penalty: Callable[[Any], Any], variable: Any) -> Any:
    """Return the gradient of a penalty of a Keras variable, as the trainer of each backend gets it."""
    match BACKEND:
        case "tensorflow":
            import tensorflow  # noqa: PLC0415 - only the backend that is there is imported

            with tensorflow.GradientTape() as tape:
                loss = penalty(variable)
            return keras.ops.convert_to_numpy(tape.gradient(loss, variable.value))
        case "jax":
            import jax  # noqa: PLC0415 - likewise

            def of_value(value: Any) -> Any:
                with keras.StatelessScope(state_mapping=[(variable, value)]):
                    return penalty(variable)

            return keras.ops.convert_to_numpy(jax.grad(of_value)(variable.value))
        case _:
            penalty(variable).backward()
            return keras.ops.convert_to_numpy(variable.value.grad)


def compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function as the backend compiles it."""
    match BACKEND:
        case "tensorflow":
            import tensorflow  # noqa: PLC0415 - likewise

            return tensorflow.function(function, jit_compile=True)  # type: ignore[no-any-return] # it has no hints
        case "jax":
            import jax  # noqa: PLC0415 - likewise

            return jax.jit(function)  # type: ignore[no-any-return] # likewise
        case _:
            import torch  # noqa: PLC0415 - likewise

            torch.compiler.reset()  # it compiles one piece of code so many times only
            return torch.compile(function, backend="aot_eager", fullgraph=True)  # type: ignore[no-any-return] # likewise


def symbolic(regularizer: Any, shape: tuple[int | None, ...], dtype: str) -> Any:
    """Return a penalty of what stands for an output where Keras works out shapes."""
    match BACKEND:
        case "tensorflow":
            import tensorflow  # noqa: PLC0415 - likewise

            with tensorflow.Graph().as_default():
                return regularizer(tensorflow.compat.v1.placeholder(dtype, shape))
        case "jax":
            import jax  # noqa: PLC0415 - likewise
            from jax import export  # noqa: PLC0415 - likewise

            (unknown,) = export.symbolic_shape("n")
            known = tuple(unknown if length is None else length for length in shape)
            return jax.eval_shape(regularizer, jax.ShapeDtypeStruct(known, dtype))
        case _:
            import torch  # noqa: PLC0415 - likewise

            return regularizer(
                torch.empty(
                    [83 if length is None else length for length in shape], dtype=getattr(torch, dtype), device="meta"
                )
            )


@pytest.fixture
def set_floatx() -> Iterator[Callable[[str], None]]:
    before = keras.config.floatx()
    yield keras.config.set_floatx
    keras.config.set_floatx(before)


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [("L1", (0.5,), 5.0), ("L1", (1,), 10.0), ("L2", (1,), 30.0), ("L2", (0.5,), 15.0), ("L1L2", (0.5, 1.0), 35.0),
     ("HalvedL2", (0.5,), 7.5), ("HalvedL2", (1.0,), 15.0), ("L1L2", (), 0.0), ("L1", (), 0.1), ("L2", (), 0.3)],
)  # fmt: skip
def test_the_numbers_that_people_know(name: str, arguments: tuple[Any, ...], expected: float) -> None:
    value = getattr(gpureg.keras, name)(*arguments)(tensor(W))
    assert number(value) == np.float32(expected)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_has_elements_gives_the_bits_of_numpy(name: str, shape: tuple[int, ...], dtype: str) -> None:
    ours, own = both(name, *ARGUMENTS[name])
    w = sample(shape, dtype)
    expected = bits(np.asarray(own(w)).astype(np.float32))  # of a float64 value that is its only rounding
    assert bits(ours(tensor(w))) == expected
    assert bits(ours(keras.Variable(w, dtype=dtype))) == expected
    assert bits(ours(keras.Variable(w, dtype=dtype, trainable=False))) == expected
    assert bits(ours(w)) == expected


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_present_value_of_a_variable_counts(name: str) -> None:
    ours, own = both(name, *ARGUMENTS[name])
    variable = keras.Variable(W)
    assert bits(ours(variable)) == bits(own(W))
    variable.assign(3 * W)
    assert bits(ours(variable)) == bits(own(3 * W))
    with keras.StatelessScope(state_mapping=[(variable, tensor(5 * W))]):
        assert bits(ours(variable)) == bits(own(5 * W))


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_compiled_values_are_as_good_as_sums_in_float32(name: str, dtype: str) -> None:
    ours, own = both(name, *ARGUMENTS[name])
    w = sample((40, 7), dtype)
    value, exact = compiled(ours)(tensor(w)), float(own(w.astype(np.float64)))
    assert dtype_of(value) == "float32"
    assert abs(number(value) - exact) <= sum_bound(w.size, np.float32) * exact
    # To PyTorch's compiler it is an operator, which is gpureg's.
    assert BACKEND != "torch" or bits(value) == bits(ours(tensor(w)))


@pytest.mark.parametrize("name", [*ARGUMENTS, *ORTHOGONAL])
@pytest.mark.parametrize("dtype", FLOATS)
def test_shapes_may_be_worked_out_without_elements(name: str, dtype: str) -> None:
    ours, _ = both(name, *{**ARGUMENTS, **ORTHOGONAL}[name])
    value = symbolic(ours, (None, 3), dtype)
    assert tuple(value.shape) == ()
    assert keras.backend.standardize_dtype(value.dtype) == "float32"


@pytest.mark.parametrize("name", [*ARGUMENTS, *ORTHOGONAL])
def test_a_functional_model_may_end_in_a_penalty(name: str) -> None:
    ours, own = both(name, *{**ARGUMENTS, **ORTHOGONAL}[name])
    x = keras.Input((7,))
    penalty = ours(x)
    assert (penalty.shape, penalty.dtype) == ((), "float32")
    w = sample((5, 7), "float32")
    value, expected = number(keras.Model(x, penalty)(tensor(w))), float(own(w))
    bound = 0.3 * orthogonal_bound(7, 5) if name in ORTHOGONAL else sum_bound(w.size, np.float32) * expected
    assert abs(value - expected) <= bound


@pytest.mark.parametrize("zero", [gpureg.keras.L1(0.0), gpureg.keras.L2(0), gpureg.keras.L1L2()])
def test_coefficients_of_zero_give_a_tensor_of_zero(zero: Any) -> None:
    for call in (zero, compiled(zero)):
        value = call(tensor(np.array([math.inf, 1], np.float32)))
        assert dtype_of(value) == "float32"
        assert number(value) == 0


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows(name: str, odd: float) -> None:
    ours, own = both(name, *ARGUMENTS[name])
    w = np.array([1, odd], np.float32)
    for call in (ours, compiled(ours)):
        np.testing.assert_equal(number(call(tensor(w))), float(own(w)))


# Dtypes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floatx", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["L1L2", *ORTHOGONAL])
def test_a_penalty_has_the_dtype_in_which_keras_adds_losses(
    name: str, dtype: str, floatx: str, set_floatx: Callable[[str], None]
) -> None:
    set_floatx(floatx)
    ours, own = both(name, *{**ARGUMENTS, **ORTHOGONAL}[name])
    w = sample((8, 3), dtype)
    exact = float(own(w.astype(np.float64)))
    # A compiled sum is formed in float32, or float64, and each of its two terms rounded to floatx, as is their sum. The
    # bounds are of float32; float64's are met by both sides. Keras's matrix product has float64 on TensorFlow only.
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
    bound = 0.3 * orthogonal_bound(3, 8) if name in ORTHOGONAL else sum_bound(w.size, np.float32) * exact
    if dtype == "float64" and (name not in ORTHOGONAL or BACKEND == "tensorflow"):
        bound *= 2 * unit["float64"] / unit["float32"]
    x = keras.Input((3,), dtype=dtype)
    for call in (ours, compiled(ours), keras.Model(x, ours(x))):
        value = call(tensor(w))
        assert dtype_of(value) == floatx
        assert abs(number(value) - exact) <= bound + 3 * unit[floatx] * exact
    if name == "L1L2":
        rounded = np.asarray(exact if floatx == "float64" else np.float32(exact)).astype(DTYPES[floatx])
        assert bits(ours(tensor(w))) == bits(rounded)


def test_half_precision_does_not_overflow() -> None:
    w = tensor(np.full(100, 300, np.float16))
    assert np.isinf(number(keras.regularizers.L2(1.0)(w)))
    for call in (gpureg.keras.L2(1.0), compiled(gpureg.keras.L2(1.0))):
        assert number(call(w)) == 9_000_000


# Gradients -----------------------------------------------------------------------------------------------------------

# What jax.grad differentiates is traced, and so JAX's own: its coefficients, products and their sum are rounded once
# each in float32. Tapes and autograd get the fused gradient, to the bit.
UNITS = 4 if BACKEND == "jax" else 0


def gradients_agree(actual: Any, own: Any, upstream: float = 1.0) -> bool:
    """Return whether a gradient is gpureg's own, as far as the backend is to have it."""
    expected = own.astype(np.float64) * upstream
    slack = UNITS * 2.0**-24 + (float(np.finfo(own.dtype).eps) if UNITS else 0)
    exact = np.abs(actual.astype(np.float64) - expected) <= slack * np.abs(expected)
    return actual.dtype == own.dtype and actual.shape == own.shape and bool(exact.all())


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_gradients_are_gpureg_s_own(name: str, shape: tuple[int, ...], dtype: str) -> None:
    ours, own = both(name, *ARGUMENTS[name])
    w = sample(shape, dtype)
    assert gradients_agree(gradient(ours, keras.Variable(w, dtype=dtype)), own.grad(w))


def test_the_gradient_is_scaled_by_what_comes_down() -> None:
    ours, own = both("L1L2", 0.25, 0.5)
    w = sample((30,), "float32")
    assert gradients_agree(gradient(lambda v: 8.0 * ours(v), keras.Variable(w)), own.grad(w), upstream=8.0)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_gradient_at_zero_is_zero(name: str) -> None:
    ours, _ = both(name, *ARGUMENTS[name])
    assert (gradient(ours, keras.Variable(np.zeros(3, np.float32))) == 0).all()


def test_the_gradient_of_keras_s_own_at_zero_is_not_on_jax() -> None:
    reference = gradient(keras.regularizers.L1(1.0), keras.Variable(np.zeros(3, np.float32)))
    assert (reference == (1 if BACKEND == "jax" else 0)).all()


# OrthogonalRegularizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5, 5), (2, 40), (40, 2)])
def test_orthogonal_values_and_gradients_are_gpureg_s_within_rounding(mode: str, shape: tuple[int, int]) -> None:
    ours, own = both("OrthogonalRegularizer", 0.3, mode)
    w = sample(shape, "float32")
    count, length = shape if mode == "rows" else shape[::-1]
    for call in (ours, compiled(ours)):
        assert abs(number(call(tensor(w))) - float(own(w))) <= 0.3 * orthogonal_bound(count, length)
    # A sum of `count` unit vectors, less its part along another: at most 2 count, over the norm. Its entries are off by
    # as much as products are, and by `count` u for the sum and `length` u for that part.
    norm = np.linalg.norm(w, axis=1 if mode == "rows" else 0).min()
    scale = 0.3 / (count * (count - 1) / 2) * 2 * count / norm
    bound = scale * (orthogonal_bound(count, length) + (count + length) * 2.0**-24)
    np.testing.assert_allclose(gradient(ours, keras.Variable(w)), own.grad(w), rtol=0, atol=bound)


ODD = {
    "zeros": np.zeros((3, 3)), "orthogonal": np.eye(3), "a zero row": [[0, 0], [2, 1], [1, 2]],
    "short rows": [[1e-10, 1e-10], [1e-10, 1e-10]], "not a number": [[math.nan, 1], [1, 1]],
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_orthogonal_values_and_gradients_of_odd_matrices(name: str) -> None:
    ours, own = both("OrthogonalRegularizer", 1.0)
    w, bound = np.array(ODD[name], np.float32), orthogonal_bound(3, 3)
    for call in (ours, compiled(ours)):
        np.testing.assert_allclose(number(call(tensor(w))), float(own(w)), rtol=0, atol=bound, equal_nan=True)
    actual = gradient(ours, keras.Variable(w))
    np.testing.assert_allclose(actual, own.grad(w), rtol=bound, atol=bound, equal_nan=True)
    if name == "a zero row":
        assert (actual[0] == 0).all()


def test_one_row_has_no_pair() -> None:
    assert math.isnan(number(gpureg.keras.OrthogonalRegularizer()(tensor(W[:1]))))


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_a_wrong_rank_is_keras_s_error(shape: tuple[int, ...]) -> None:
    w = np.ones(shape, np.float32)
    expected = outcome(lambda: keras.regularizers.OrthogonalRegularizer()(w))
    assert outcome(lambda: gpureg.keras.OrthogonalRegularizer()(w)) == expected
    assert expected[0] == "ValueError"


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ARGUMENTS, *ORTHOGONAL])
def test_what_is_no_tensor_of_floats_is_refused(name: str) -> None:
    ours, _ = both(name)
    others: list[Any] = [[[1.0]], 1.0, "w", None]
    for other in others:
        with pytest.raises(TypeError, match="w must be an array of"):
            ours(other)
    others = [tensor(np.ones((2, 2), np.int32)), keras.Input((2,), dtype="int32"), np.ones((2, 2), bool)]
    for other in others:
        with pytest.raises(TypeError, match=r"w has dtype .*; expected float16 or bfloat16 or float32 or float64"):
            ours(other)


@pytest.mark.parametrize("name", [*ARGUMENTS, *ORTHOGONAL])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "0.1"], ids=repr)
def test_coefficients_are_checked_as_gpureg_s(name: str, value: Any) -> None:
    expected = outcome(lambda: getattr(gpureg, name)(value))
    assert outcome(lambda: getattr(gpureg.keras, name)(value)) == expected
    assert expected[0] == "ValueError"


# What they are -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ARGUMENTS, *ORTHOGONAL])
def test_they_are_keras_s_and_gpureg_s(name: str) -> None:
    arguments = {**ARGUMENTS, **ORTHOGONAL}[name]
    ours, own = both(name, *arguments)
    assert isinstance(ours, keras.Regularizer)
    assert isinstance(ours, type(own))
    assert keras.regularizers.get(ours) is ours
    assert type(keras.regularizers.get(type(ours))) is type(ours)
    assert repr(ours) == repr(own)
    assert ours == own
    assert own == ours
    assert ours == type(ours)(*arguments)
    assert hash(ours) == hash(own)
    others = (type(ours)(0.7), type(own)(0.7), gpureg.keras.L1(0.05), None, ours.get_config())
    assert all(ours != other and other != ours for other in others)


def test_other_classes_of_the_same_coefficient_are_not_equal() -> None:
    class Own(gpureg.keras.L2):
        pass

    assert gpureg.keras.L2(0.5) != gpureg.keras.HalvedL2(0.5)
    assert gpureg.keras.L2(0.5) != gpureg.HalvedL2(0.5)
    assert gpureg.keras.L2(0.5) != keras.regularizers.L2(0.5)
    assert Own(0.5) != gpureg.keras.L2(0.5)
    assert Own(0.5) == Own(0.5) != Own(0.25)


@pytest.mark.parametrize("name", [*ARGUMENTS, *ORTHOGONAL])
def test_they_are_copied_pickled_and_written_as_dictionaries(name: str) -> None:
    ours, own = both(name, *{**ARGUMENTS, **ORTHOGONAL}[name])
    written = keras.regularizers.serialize(ours)
    assert written == {
        "module": "gpureg.keras", "class_name": name, "config": own.get_config(), "registered_name": f"gpureg>{name}"
    }  # fmt: skip
    read = json.loads(json.dumps(written))
    for again in (
        copy.copy(ours),
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        type(ours).from_config(own.get_config()),
        keras.regularizers.get(read),
        keras.regularizers.deserialize(read),
        keras.saving.deserialize_keras_object(read),
    ):
        assert again == ours
        assert type(again) is type(ours)
    assert gpureg.get(read) == gpureg.get(gpureg.serialize(ours)) == own
    assert type(gpureg.get(read)) is type(own)


def test_a_dictionary_of_gpureg_s_own_halved_form_is_read_by_keras() -> None:
    """Those of the others are Keras's own dictionaries, and stay what Keras makes of them."""
    again = keras.regularizers.get(gpureg.serialize(gpureg.HalvedL2(0.5)))
    assert type(again) is gpureg.keras.HalvedL2
    assert again == gpureg.HalvedL2(0.5)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_all_else_that_gpureg_s_own_do_they_do_too(name: str) -> None:
    ours, own = both(name, *ARGUMENTS[name])
    w = sample((5, 7), "float32")
    assert bits(ours.activity(w)) == bits(own.activity(w)) == bits(ours.activity(keras.Variable(w)))
    assert bits(ours.grad(w)) == bits(own.grad(w))
    assert bits(gpureg.Penalty({"w": w}, ours)()) == bits(own(w))
    (loss,) = gpureg.LayerPenalties(activity_regularizer=ours).losses(output=w)
    assert bits(loss) == bits(own.activity(w))
