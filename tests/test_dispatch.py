"""What is refused, with which error; and that whatever is refused leaves everything as it was."""

import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import gpureg
from gpureg import libraries
from gpureg.libraries import DTYPES
from gpureg.libraries.numpy import NumpyLibrary
from gpureg.regularizers import Regularizer

REG = gpureg.L1L2(l1=0.5, l2=0.25)
W = np.array([[1, -2, 3], [-3, 4, -5]], np.float32)

NOT_WEIGHTS: dict[str, tuple[Any, str]] = {
    "list": ([1.0, 2.0], "w must be an array of numpy, cupy, tensorflow, torch or jax, not list"),
    "tuple": ((1.0,), "not tuple"),
    "string": ("weights", "not str"),
    "float": (1.0, "not float"),
    "none": (None, "not NoneType"),
    "bytes": (b"1.0", "not bytes"),
    "type": (np.float32, "not builtins.type|not type"),
    "a dtype of numpy": (np.dtype("f4"), "not numpy.dtypes.Float32DType"),
    "integer array": (np.arange(3), "w has dtype int64; expected float16 or bfloat16 or float32 or float64"),
    "bool array": (np.array([True]), "dtype bool"),
    "complex array": (np.array([1j]), "dtype complex128"),
    "object array": (np.array([1.0], object), "dtype object"),
    "text array": (np.array(["1.0"]), "dtype <U3"),
    "structured array": (np.zeros(2, [("x", "f4")]), "dtype"),
    "longdouble array": (np.zeros(2, np.longdouble), "dtype"),
    "integer scalar": (np.int32(3), "dtype int32"),
    "fp8 array": (np.zeros(2, ml_dtypes.float8_e4m3fn), "dtype float8_e4m3fn"),
    "datetime array": (np.zeros(2, "M8[s]"), "dtype datetime64"),
    "other byte order": (W.astype(W.dtype.newbyteorder()), r"other byte order; give w.astype\('float32'\)"),
    "masked array": (np.ma.masked_array(W, W < 0), r"masked array.*w.filled\(0\)"),
}

UNTOUCHED = np.full(W.shape, 7, np.float32)

CALLS: dict[str, Callable[[Any], Any]] = {
    "l1_loss": gpureg.l1_loss,
    "l2_loss": gpureg.l2_loss,
    "call": REG,
    "grad": REG.grad,
    "value_and_grad": REG.value_and_grad,
    "accumulate_grad": lambda w: REG.accumulate_grad(w, UNTOUCHED),
    "activity": REG.activity,
    "prox_": lambda w: REG.prox_(w, 0.1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(("weights", "message"), NOT_WEIGHTS.values(), ids=NOT_WEIGHTS.keys())
def test_what_is_not_an_array_of_a_known_dtype_is_a_type_error(
    call: Callable[[Any], Any], weights: Any, message: str
) -> None:
    if call == REG.activity:
        message = re.sub(r"\bw\b", "x", message)
    with pytest.raises(TypeError, match=message):
        call(weights)
    assert np.all(UNTOUCHED == 7)


def array(make: Callable[[NDArray[np.float32]], Any]) -> Any:
    """Return a gradient made from a fresh one of W's shape, filled with something to be left alone."""
    return make(np.full(W.shape, 7, np.float32))


def read_only(gradient: NDArray[np.float32]) -> NDArray[np.float32]:
    gradient.flags.writeable = False
    return gradient


def overlapping_itself(gradient: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.lib.stride_tricks.as_strided(gradient, W.shape, (4, 4))


def repeated(gradient: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.lib.stride_tricks.as_strided(gradient, W.shape, (12, 0))


REFUSED_GRADIENTS: dict[str, tuple[Callable[[NDArray[np.float32]], Any], type[Exception], str]] = {
    "list": (lambda g: g.tolist(), TypeError, "must be an array of numpy, cupy, tensorflow, torch or jax, not list"),
    "integers": (lambda g: g.astype(np.int32), TypeError, "dtype int32; expected float32$"),
    "wider": (lambda g: g.astype(np.float64), TypeError, "float64; expected float32$"),
    "narrower": (lambda g: g.astype(np.float16), TypeError, "float16; expected float32$"),
    "other byte order": (lambda g: g.astype(">f4"), TypeError, "other byte order"),
    "masked": (lambda g: np.ma.masked_array(g, g > 9), TypeError, "masked array"),
    "scalar": (lambda _: np.float32(0), ValueError, r"has shape \(\), but w has \(2, 3\)"),
    "transposed": (lambda g: g.T, ValueError, r"has shape \(3, 2\), but w has \(2, 3\)"),
    "flat": (lambda g: g.reshape(-1), ValueError, "shape"),
    "broadcastable": (lambda g: g[:1], ValueError, "shape"),
    "longer": (lambda g: np.concatenate([g, g]), ValueError, "shape"),
    "read-only": (read_only, ValueError, "read-only"),
    "overlapping itself": (overlapping_itself, ValueError, "share memory with each other"),
    "stride of zero": (repeated, ValueError, "share memory with each other"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED_GRADIENTS.values(), ids=REFUSED_GRADIENTS.keys())
@pytest.mark.parametrize("method", ["accumulate_grad", "grad", "value_and_grad"])
def test_a_refused_gradient_is_left_as_it_was(
    method: str, make: Callable[[NDArray[np.float32]], Any], error: type[Exception], message: str
) -> None:
    gradient = array(make)
    before = np.array(gradient, copy=True)
    name = "grad" if method == "accumulate_grad" else "out"
    with pytest.raises(error, match=f"^{name} .*{message}"):
        getattr(REG, method)(W, gradient)
    assert np.array_equal(np.array(gradient, copy=True), before)


def test_no_gradient_to_add_to_is_refused() -> None:
    with pytest.raises(TypeError, match="grad must be an array of numpy, cupy, tensorflow, torch or jax, not NoneType"):
        REG.accumulate_grad(W, None)


class Elsewhere(np.ndarray[Any, Any]):
    """An array of another library than NumPy, on one of its devices."""

    place = "gpu:0"


class ElsewhereLibrary(NumpyLibrary):
    """Another library, computed on by NumPy all the same."""

    name = "elsewhere"

    def owns(self, kind: type) -> bool:
        return issubclass(kind, Elsewhere)

    def native(self, array: Any, name: str, dtypes: Any = DTYPES) -> Any:
        super().native(array, name, dtypes)
        return array

    def device(self, native: Any) -> str:
        return str(native.place)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another library joins, as one does: by a module with its `library`, and a line in the table."""
    module = ModuleType("elsewhere")
    vars(module)["library"] = ElsewhereLibrary()
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    monkeypatch.setitem(libraries._MODULES, Elsewhere.__module__.partition(".")[0], "elsewhere")
    libraries._known.clear()
    yield
    libraries._known.clear()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("method", ["accumulate_grad", "grad", "value_and_grad"])
def test_a_gradient_of_another_library_or_device_is_refused_and_left_as_it_was(method: str) -> None:
    plain = np.full(W.shape, 7, np.float32)
    other, far = (plain.copy().view(Elsewhere) for _ in range(2))
    far.place = "gpu:1"
    name = "grad" if method == "accumulate_grad" else "out"
    with pytest.raises(TypeError, match=f"{name} is of elsewhere, but w is of numpy; both must be of one library"):
        getattr(REG, method)(W, other)
    with pytest.raises(TypeError, match=f"{name} is of numpy, but w is of elsewhere"):
        getattr(REG, method)(W.view(Elsewhere), plain)
    with pytest.raises(ValueError, match=f"{name} is on gpu:1, but w is on gpu:0; both must be on one device"):
        getattr(REG, method)(W.view(Elsewhere), far)
    for gradient in (plain, other, far):
        assert np.all(np.asarray(gradient) == 7)
    getattr(REG, method)(W.view(Elsewhere), other)
    assert not np.any(np.asarray(other) == 7)


OVERLAPS: dict[str, Callable[[NDArray[np.float32]], tuple[Any, Any]]] = {
    "w itself": lambda b: (b, b),
    "a view of w": lambda b: (b, b[:]),
    "reversed": lambda b: (b, b[::-1]),
    "shifted": lambda b: (b[:-1], b[1:]),
    "one element": lambda b: (b[:50], b[49:99]),
    "interleaved, one shared": lambda b: (b[0:40:2], b[20:60:2]),
    "other dtype": lambda b: (b.view(np.float16)[:10], b[:10]),
}


@pytest.mark.parametrize("make", OVERLAPS.values(), ids=OVERLAPS.keys())
def test_a_gradient_that_shares_memory_with_the_weights_is_refused(
    make: Callable[[NDArray[np.float32]], tuple[Any, Any]],
) -> None:
    buffer = np.arange(100, dtype=np.float32)
    before = buffer.copy()
    weights, gradient = make(buffer)
    with pytest.raises(ValueError, match="grad shares memory with w"):
        REG.accumulate_grad(weights, gradient)
    with pytest.raises(ValueError, match="out shares memory with w"):
        REG.grad(weights, out=gradient)
    assert np.array_equal(buffer, before)


def test_neighbours_in_one_buffer_do_not_share_memory() -> None:
    buffer = np.arange(100, dtype=np.float32)
    expected = REG.grad(buffer[0::2].copy())
    REG.grad(buffer[0::2], out=buffer[1::2])
    assert np.array_equal(buffer[1::2], expected)
    assert np.array_equal(buffer[0::2], np.arange(0, 100, 2))


def test_an_overlap_too_costly_to_rule_out_is_refused() -> None:
    # Strides without common divisors make the exact answer a hard search.
    buffer = np.zeros(400_000, np.float32)
    strides = [4 * prime for prime in (4001, 4003, 4007, 4013, 4019)]
    weights = np.lib.stride_tricks.as_strided(buffer, (9,) * 5, strides)
    gradient = np.lib.stride_tricks.as_strided(buffer[1:], (9,) * 5, strides)
    with pytest.raises(ValueError, match="share"):
        REG.accumulate_grad(weights, gradient)
    assert not buffer.any()


GRADIENT_DTYPES = {
    np.dtype(np.float16): (np.float16, np.float32),
    np.dtype(ml_dtypes.bfloat16): (ml_dtypes.bfloat16, np.float32),
    np.dtype(np.float32): (np.float32,),
    np.dtype(np.float64): (np.float64, np.float32),
}


@pytest.mark.parametrize("weights", GRADIENT_DTYPES, ids=str)
@pytest.mark.parametrize("gradient", ["float16", "bfloat16", "float32", "float64"])
def test_a_gradient_has_the_dtype_of_the_weights_or_float32(weights: np.dtype[Any], gradient: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if gradient == "bfloat16" else gradient)
    w, out = W.astype(weights), np.zeros(W.shape, kind)
    if kind in GRADIENT_DTYPES[weights]:
        assert REG.grad(w, out=out) is out
        assert REG.accumulate_grad(w, out) == REG(w)
    else:
        with pytest.raises(TypeError, match=f"has dtype {gradient}; expected {weights}"):
            REG.accumulate_grad(w, out)


def test_the_proximal_step_refuses_what_it_cannot_write() -> None:
    w = np.ones(3)
    w.flags.writeable = False
    with pytest.raises(ValueError, match="w is read-only"):
        REG.prox_(w, 0.1)
    with pytest.raises(ValueError, match="w is read-only"):
        REG.prox_(np.float32(1), 0.1)
    with pytest.raises(ValueError, match="share memory with each other"):
        REG.prox_(np.lib.stride_tricks.as_strided(np.ones(3), (2, 2), (8, 8)), 0.1)


@pytest.mark.parametrize("step", [-1, float("nan"), float("inf"), "1", None, True, np.ones(1), 10**400])
def test_the_proximal_step_refuses_a_step_that_is_none(step: Any) -> None:
    w = np.ones(3)
    with pytest.raises(ValueError, match="step must be a finite number that is not negative"):
        REG.prox_(w, step)
    assert w.tolist() == [1, 1, 1]


def test_an_activity_needs_a_batch() -> None:
    with pytest.raises(ValueError, match="x is 0-d"):
        REG.activity(np.float32(3))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "O", ">f4", np.longdouble, int, "half a byte", 7])
def test_a_result_of_another_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"dtype is .*; expected one of float16, bfloat16, float32, float64"):
        gpureg.l1_loss(W, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", np.float16, ml_dtypes.bfloat16])
def test_a_result_has_the_dtype_asked_for(dtype: Any) -> None:
    result = gpureg.l2_loss(W, dtype=dtype)
    assert isinstance(result, np.generic)
    assert result.dtype == np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert float(result) == 32


@pytest.mark.parametrize("weights", ["float16", "bfloat16", "float32", "float64"])
def test_a_value_is_a_numpy_scalar_and_a_gradient_an_array_of_the_weights_layout(weights: str) -> None:
    w = np.asfortranarray(W.astype(ml_dtypes.bfloat16 if weights == "bfloat16" else weights))
    value, gradient = REG.value_and_grad(w)
    assert type(value) is (np.float64 if weights == "float64" else np.float32)
    assert type(gradient) is np.ndarray
    assert gradient.dtype == w.dtype
    assert gradient.strides == w.strides


def test_numpy_scalars_are_weights() -> None:
    for scalar in (np.float16(-2), np.float32(-2), np.float64(-2), ml_dtypes.bfloat16(-2)):
        assert REG(scalar) == 2
        assert REG.grad(scalar).shape == ()
        assert float(REG.grad(scalar)) == -1.5


class Own(np.ndarray[Any, Any]):
    """A subclass of a user's."""


def test_subclasses_of_an_array_are_taken_as_plain_arrays() -> None:
    own = W.view(Own)
    assert REG(own) == REG(W)
    assert type(REG.grad(own)) is np.ndarray


def test_an_array_of_an_unknown_library_is_refused() -> None:
    class Tensor:
        __array_interface__ = W.__array_interface__

    with pytest.raises(
        TypeError, match=r"w must be an array of numpy, cupy, tensorflow, torch or jax, not tests.test_dispatch.*Tensor"
    ):
        gpureg.l1_loss(Tensor())


def test_every_public_method_is_tried_here() -> None:
    methods = {name for name, thing in vars(Regularizer).items() if callable(thing) and not name.startswith("_")}
    assert methods - {"get_config", "from_config"} == CALLS.keys() - {"l1_loss", "l2_loss", "call"}
