"""Where an array's elements lie never matters, but for the order of its sums: memory order if dense, else C order."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import gpureg
from tests import reference
from tests.helpers import (
    DTYPES,
    LAYOUTS,
    REGULARIZERS,
    Array,
    Layout,
    assert_bits,
    content,
    gradient_dtypes,
    raw,
    sizes,
    value_dtype,
    values,
    values_in_order_of_sums,
)
from tests.passes import cut
from tests.reference import Rule

pytestmark = pytest.mark.usefixtures("cpu_backend")

REGULARIZER, RULE = REGULARIZERS["L1L2"]
SHAPE = (6, 5, 10, 12)  # 14 rows of float64, 4 of float16


class _Untouchable(np.ndarray[Any, Any]):
    """An array that may be looked at, but takes part in nothing: whoever computes with it has kept the subclass."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a ufunc was called with the subclass")


class _Overriding(_Untouchable):
    """An array that refuses NumPy's other functions too."""

    def __array_function__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a function of NumPy was called with the subclass")


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def _odd_strides(array: Array) -> Array:
    """Return the transpose of a matrix with axes of size 1 between, whose strides are nonsense."""
    item = array.itemsize
    return as_strided(array, (1, 72, 1, 50, 1), (-999, item, 12345, 72 * item, 1))


# Views of a dense 1-d array, and whether they are dense.
VIEWS: dict[str, tuple[Callable[[Array], Array], bool]] = {
    "1-d": (lambda flat: flat, True),
    "matrix": (lambda flat: flat.reshape(50, 72), True),
    "transposed matrix": (lambda flat: flat.reshape(50, 72).T, True),
    "permuted 3-d": (lambda flat: flat.reshape(15, 12, 20).transpose(1, 2, 0), True),
    "channels last": (lambda flat: flat.reshape(SHAPE).transpose(0, 3, 1, 2), True),
    "axes of size 1": (lambda flat: flat.reshape(1, 50, 1, 72, 1).transpose(3, 4, 0, 1, 2), True),
    "axes of size 1, odd strides": (_odd_strides, True),
    "subclass": (lambda flat: flat.reshape(50, 72).T.view(_Untouchable), True),
    "read-only": (lambda flat: _read_only(flat.reshape(50, 72).T), True),
    "every second": (lambda flat: flat[::2], False),
    "reversed": (lambda flat: flat[::-1], False),
    "columns reversed": (lambda flat: flat.reshape(50, 72)[:, ::-1], False),
    "transpose reversed": (lambda flat: flat.reshape(50, 72).T[::-1, ::-1], False),
    "slice": (lambda flat: flat.reshape(50, 72)[:, 3:-1], False),
    "transposed slice": (lambda flat: flat.reshape(50, 72)[:, 3:-1].T, False),
    "every second row": (lambda flat: flat.reshape(50, 72)[::2], False),
    "repeated": (lambda flat: np.broadcast_to(flat[:72], (50, 72)), False),
    "repeated inside": (lambda flat: np.broadcast_to(flat[:50, None], (50, 72)), False),
    "one repeated": (lambda flat: np.broadcast_to(flat[0], (50, 72)), False),
    "repeated in the middle": (lambda flat: np.broadcast_to(flat[:120].reshape(10, 1, 12), (10, 30, 12)), False),
    "overlapping windows": (lambda flat: sliding_window_view(flat[:100], 40), False),
    "diagonal": (lambda flat: flat.reshape(60, 60).diagonal(), False),
    "one column": (lambda flat: flat.reshape(50, 72)[:, :1], False),
    "one row": (lambda flat: flat.reshape(50, 72)[1:2].T, True),
}


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    """Return each dtype of weights."""
    name: str = request.param
    return name


def check_values(w: Array) -> None:
    """Assert the bits of the sums of weights and of a penalty of both."""
    s1, s2 = reference.sums(values_in_order_of_sums(w), w.dtype.name)
    assert_bits(gpureg.l1_loss(w, dtype="float64"), s1, "float64")
    assert_bits(gpureg.l2_loss(w, dtype="float64"), reference.penalty(Rule(l2=1.0, halved=True), s1, s2), "float64")
    expected = reference.result(reference.penalty(RULE, s1, s2), value_dtype(w.dtype.name))
    assert_bits(REGULARIZER(w), expected, value_dtype(w.dtype.name))


def check_gradients(w: Array, gradient: Callable[[str], Array]) -> None:
    """Assert the bits of gradients at weights written and added to an array that a function makes of each dtype."""
    dtype, numbers = w.dtype.name, values(w)
    value = reference.result(reference.value(values_in_order_of_sums(w), dtype, RULE), value_dtype(dtype))
    for into in gradient_dtypes(dtype):
        stored = reference.gradient(numbers, dtype, RULE, into=into)
        assert_bits(REGULARIZER.grad(w, out := gradient(into)), stored, into)
        found, out = REGULARIZER.value_and_grad(w, gradient(into))
        assert_bits(found, value, value_dtype(dtype))
        assert_bits(out, stored, into)
        grad = gradient(into)
        added = reference.gradient(numbers, dtype, RULE, into=into, add_to=values(grad))
        assert_bits(REGULARIZER.accumulate_grad(w, grad), value, value_dtype(dtype))
        assert_bits(grad, added, into)


# Weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_sums_follow_memory_order_where_dense_else_c_order(dtype: str, view: str) -> None:
    make, dense = VIEWS[view]
    for seed in range(3):
        flat = content(("wide", "sparse", "random bits")[seed], math.prod(SHAPE), dtype, seed=seed)
        w = make(flat)
        in_memory, in_c_order = values(flat), values(w)
        expected = in_c_order if not dense else in_memory if w.size == flat.size else values(flat[72:144])
        assert reference.encode(values_in_order_of_sums(w), dtype) == reference.encode(expected, dtype)
        check_values(w)


@pytest.mark.parametrize("view", VIEWS)
def test_gradients_at_weights_of_any_layout(dtype: str, view: str) -> None:
    w = VIEWS[view][0](content("wide", math.prod(SHAPE), dtype))
    before = raw(w)
    check_gradients(w, lambda into: content("weights", w.size, into, seed=1).reshape(w.T.shape).T)
    new = REGULARIZER.grad(w)
    assert type(new) is np.ndarray
    assert new.shape == w.shape
    assert np.array_equal(raw(new), raw(REGULARIZER.grad(w, np.empty(w.shape, w.dtype))))
    assert np.array_equal(raw(w), before)


def test_memory_order_and_c_order_have_sums_of_their_own(dtype: str) -> None:
    """The transpose of a matrix is dense, and a slice of a larger transpose with the same numbers is not."""
    told_apart = 0
    for seed in range(8):
        matrix = content("sparse", 16 * sizes(dtype)["lanes"], dtype, seed=seed).reshape(16, -1)
        dense, sliced = matrix.T, np.pad(raw(matrix), 1).view(matrix.dtype)[1:-1, 1:-1].T
        assert np.array_equal(raw(dense), raw(sliced))
        in_memory, in_c_order = reference.sums(values(matrix), dtype), reference.sums(values(matrix.T), dtype)
        told_apart += in_memory[1] != in_c_order[1]
        assert_bits(gpureg.l2_loss(dense, dtype="float64"), 0.5 * in_memory[1], "float64")
        assert_bits(gpureg.l2_loss(sliced, dtype="float64"), 0.5 * in_c_order[1], "float64")
    assert told_apart > 0


def test_a_new_gradient_lies_as_its_weights() -> None:
    for axes in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        w = content("wide", 60, "float32").reshape(3, 4, 5).transpose(axes)
        assert REGULARIZER.grad(w).strides == w.strides


@pytest.mark.parametrize("kind", [_Untouchable, _Overriding])
def test_a_new_gradient_of_a_subclass_is_a_plain_array(kind: type[_Untouchable]) -> None:
    w = content("wide", 60, "float32").view(kind)
    assert type(REGULARIZER.grad(w)) is np.ndarray
    assert type(REGULARIZER.value_and_grad(w)[1]) is np.ndarray


@pytest.mark.parametrize("name", ["wide", "zeros", "infinities", "NaN"])
def test_numpy_scalars_and_0d_arrays_are_weights(dtype: str, name: str) -> None:
    for w in content(name, 4, dtype):
        array = np.array(w)
        assert isinstance(w, np.generic)
        assert array.shape == ()
        both: tuple[Any, Any] = w, array
        for weights in both:
            check_values(weights)
            check_gradients(weights, lambda into: content("weights", 1, into).reshape(()))
            out = REGULARIZER.grad(weights)
            assert isinstance(out, np.ndarray)
            assert out.shape == ()
            assert_bits(out, reference.gradient(values(w), dtype, RULE, into=dtype), dtype)
        assert_bits(REGULARIZER.prox_(array, 0.01), reference.proximal(values(w), dtype, RULE, 0.01), dtype)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (0, 0), (1, 0), (2, 3, 0)])
def test_empty_arrays_give_zero(dtype: str, shape: tuple[int, ...]) -> None:
    for w in (np.empty(shape, DTYPES[dtype]), np.empty(shape[::-1], DTYPES[dtype]).T):
        assert_bits(REGULARIZER(w), 0.0, value_dtype(dtype))
        assert_bits(gpureg.l1_loss(w, dtype="bfloat16"), 0.0, "bfloat16")
        check_gradients(w, lambda into: np.empty(shape, DTYPES[into]))
        assert REGULARIZER.grad(w).shape == shape
        assert REGULARIZER.prox_(w, 1.0) is w


def test_memory_maps(dtype: str, tmp_path: Path) -> None:
    numbers, starts = content("wide", 3600, dtype), content("weights", 3600, dtype, seed=1)
    for name, array in (("weights", numbers), ("gradient", starts)):
        (tmp_path / name).write_bytes(b"header" + raw(array).tobytes())
    kind: dict[str, Any] = {"dtype": DTYPES[dtype], "offset": 6, "shape": (50, 72)}
    w: Array = np.memmap(tmp_path / "weights", mode="r", **kind)
    gradient: Array = np.memmap(tmp_path / "gradient", mode="r+", **kind)
    check_values(w)
    assert type(REGULARIZER.grad(w)) is np.ndarray
    REGULARIZER.accumulate_grad(w, gradient)
    added = reference.gradient(values(numbers), dtype, RULE, into=dtype, add_to=values(starts))
    assert_bits(gradient, added, dtype)
    writable: Array = np.memmap(tmp_path / "weights", mode="c", **kind)
    assert_bits(REGULARIZER.prox_(writable, 0.5), reference.proximal(values(numbers), dtype, RULE, 0.5), dtype)


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("weights", LAYOUTS)
def test_gradients_match_weights_by_logical_index(dtype: str, weights: str, gradient: str) -> None:
    numbers = content("wide", 2 * 3 * 5, dtype).reshape(2, 3, 5)
    placed = LAYOUTS[weights].place(numbers)
    gradients = []

    def place(into: str) -> Array:
        start = content("weights", numbers.size, into, seed=1).reshape(numbers.shape)
        gradients.append(LAYOUTS[gradient].place(start))
        return gradients[-1].array

    check_values(placed.array)
    check_gradients(placed.array, place)
    assert np.array_equal(raw(placed.array), raw(numbers))
    assert placed.gaps_are_untouched()
    assert all(gradient.gaps_are_untouched() for gradient in gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_proximal_step_is_in_place(dtype: str, layout: str) -> None:
    numbers = content("wide", 4 * 9 * 25, dtype).reshape(4, 9, 25)
    placed = LAYOUTS[layout].place(numbers)
    assert REGULARIZER.prox_(placed.array, 0.5) is placed.array
    assert_bits(placed.array, reference.proximal(values(numbers), dtype, RULE, 0.5), dtype)
    assert placed.gaps_are_untouched()


def test_the_layouts_are_what_they_are_called() -> None:
    numbers = content("wide", 60, "float32").reshape(3, 4, 5)
    placed = {name: layout.place(numbers).array for name, layout in LAYOUTS.items()}
    misaligned = {name for name, array in placed.items() if not array.flags.aligned}
    assert misaligned == {"misaligned", "misaligned Fortran", "field of records"}
    assert {name for name, array in placed.items() if array.flags.c_contiguous} == {"C", "misaligned"}
    assert {name for name, array in placed.items() if array.flags.f_contiguous} == {"Fortran", "misaligned Fortran"}
    assert {name for name, array in placed.items() if min(array.strides) < 0} == {
        name for name in LAYOUTS if "reversed" in name
    }
    assert placed["rotated"].transpose(2, 0, 1).flags.c_contiguous
    for name, layout in LAYOUTS.items():
        array, memory = layout.place(numbers)
        assert np.array_equal(raw(array), raw(numbers))
        in_memory = values(memory[layout.offset :][: array.nbytes].view(array.dtype))
        dense = name in ("C", "Fortran", "rotated", "misaligned", "misaligned Fortran")
        assert values_in_order_of_sums(array) == (in_memory if dense else values(numbers))


@st.composite
def _layouts(draw: st.DrawFn) -> Layout:
    return Layout(
        axes=draw(st.sampled_from(["C", "Fortran", "rotated"])),
        step=draw(st.sampled_from([1, 1, 2])),
        padding=draw(st.sampled_from([0, 0, 1])),
        extra=draw(st.sampled_from([0, 0, 3])),
        offset=draw(st.sampled_from([0, 1, 8])),
        reverse=draw(st.sampled_from(["none", "none", "first", "last", "all"])),
    )


@given(
    dtype=st.sampled_from(tuple(DTYPES)),
    shape=st.lists(st.sampled_from([1, 1, 2, 3, 5, 8, 33]), max_size=4).map(tuple),
    weights=_layouts(),
    gradient=_layouts(),
    seed=st.integers(0, 100),
)
def test_any_shapes_and_layouts(
    dtype: str, shape: tuple[int, ...], weights: Layout, gradient: Layout, seed: int
) -> None:
    numbers = content("wide", math.prod(shape) % 5000, dtype, seed=seed)
    numbers = numbers.reshape(shape) if numbers.size == math.prod(shape) else numbers.reshape(-1, 1)
    placed = weights.place(numbers)
    check_values(placed.array)
    check_gradients(
        placed.array,
        lambda into: gradient.place(content("weights", numbers.size, into, seed=1).reshape(numbers.shape)).array,
    )


# Chunks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "gradient"),
    [
        ("C", "Fortran"),
        ("rotated", "C"),
        ("rotated", "rotated"),
        ("transposed slice", "all axes reversed"),
        ("first axis reversed", "misaligned"),
        ("field of records", "every third"),
    ],
)
def test_chunks_end_anywhere_in_any_layout(
    monkeypatch: pytest.MonkeyPatch, dtype: str, weights: str, gradient: str
) -> None:
    cut(monkeypatch, 1, DTYPES[dtype])
    shape = (3, 5, sizes(dtype)["tile"] // 10)  # chunks that begin and end within rows of each axis
    numbers = content("wide", math.prod(shape), dtype).reshape(shape)
    w = LAYOUTS[weights].place(numbers).array
    check_values(w)
    into = "float32"
    start = content("weights", numbers.size, into, seed=1).reshape(shape)
    grad = LAYOUTS[gradient].place(start).array
    REGULARIZER.accumulate_grad(w, grad)
    assert_bits(grad, reference.gradient(values(numbers), dtype, RULE, into=into, add_to=values(start)), into)
    REGULARIZER.prox_(w, 0.5)
    assert_bits(w, reference.proximal(values(numbers), dtype, RULE, 0.5), dtype)
