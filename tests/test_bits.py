"""Every number that NumPy arrays give has the bits of `docs/arithmetic.md`, as the naive reference computes them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpureg
from gpureg import arithmetic, backends
from gpureg.arithmetic import ROWS
from gpureg.backends import Mode
from tests import reference
from tests.helpers import (
    CONTENTS,
    DTYPES,
    REGULARIZERS,
    SIZES,
    Array,
    assert_bits,
    bits,
    content,
    from_values,
    gradient_dtypes,
    raw,
    regularizer,
    sizes,
    value_dtype,
    values,
)
from tests.passes import Leaf, run
from tests.reference import FORMATS, Rule

pytestmark = pytest.mark.usefixtures("cpu_backend")

L1_LOSS, L2_LOSS = Rule(l1=1.0), Rule(l2=1.0, halved=True)


def check_everything(w: Array, regularizer: gpureg.Regularizer, rule: Rule, step: float = 0.01) -> None:
    """Assert the bits of all that a regularizer does with 1-d weights; the last, the proximal step, changes them."""
    dtype, before = w.dtype.name, raw(w)
    numbers = values(w)
    penalty = reference.result(reference.value(numbers, dtype, rule), value_dtype(dtype))
    assert_bits(regularizer(w), penalty, value_dtype(dtype))

    assert_bits(regularizer.grad(w), reference.gradient(numbers, dtype, rule, into=dtype), dtype)
    for into in gradient_dtypes(dtype):
        stored = reference.gradient(numbers, dtype, rule, into=into)
        out = content("random bits", w.size, into, seed=1)
        assert regularizer.grad(w, out) is out
        assert_bits(out, stored, into)

        out = content("random bits", w.size, into, seed=2)
        value, returned = regularizer.value_and_grad(w, out)
        assert returned is out
        assert_bits(value, penalty, value_dtype(dtype))
        assert_bits(out, stored, into)

        grad = content("random bits", w.size, into, seed=3)
        added = reference.gradient(numbers, dtype, rule, into=into, add_to=values(grad))
        assert_bits(regularizer.accumulate_grad(w, grad), penalty, value_dtype(dtype))
        assert_bits(grad, added, into)
    assert np.array_equal(raw(w), before)

    moved = reference.proximal(numbers, dtype, rule, step)
    assert regularizer.prox_(w, step) is w
    assert_bits(w, moved, dtype)


# Sums ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_every_size_and_content(dtype: str, size: str, name: str) -> None:
    w = content(name, sizes(dtype)[size], dtype)
    numbers = values(w)
    l1_loss, l2_loss = (reference.value(numbers, dtype, rule) for rule in (L1_LOSS, L2_LOSS))
    assert_bits(gpureg.l1_loss(w), reference.result(l1_loss, value_dtype(dtype)), value_dtype(dtype))
    assert_bits(gpureg.l2_loss(w), reference.result(l2_loss, value_dtype(dtype)), value_dtype(dtype))
    for result in DTYPES:
        assert_bits(gpureg.l1_loss(w, dtype=result), reference.result(l1_loss, result), result)
        assert_bits(gpureg.l2_loss(w, dtype=result), reference.result(l2_loss, result), result)


@pytest.mark.parametrize("tiles", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_whose_last_bits_tell_their_order(dtype: str, tiles: int) -> None:
    tile = sizes(dtype)["tile"]
    for seed in range(8):
        w = content("sparse", tiles * tile - (seed % 2) * (tile // 3), dtype, seed=seed + 8 * tiles)
        s1, s2 = reference.sums(values(w), dtype)
        assert_bits(gpureg.l1_loss(w, dtype=np.float64), s1, "float64")
        assert_bits(gpureg.l2_loss(w, dtype=np.float64), reference.penalty(L2_LOSS, s1, s2), "float64")


def _by_halves(leaves: list[Any]) -> list[Any]:
    """Return leaves in the order that makes the tree over neighbours one over halves: l0 + l(n/2) first."""
    middle = len(leaves) // 2
    return [leaf for pair in zip(leaves[:middle], leaves[middle:], strict=True) for leaf in pair]


def _transposed(tile: list[list[float]]) -> list[list[float]]:
    """Return a tile whose lanes are of consecutive elements."""
    elements = [x for row in tile for x in row]
    return [elements[row::ROWS] for row in range(ROWS)]


# Orders of the rows of lanes of tiles, the right sums of which are wrong sums of the tiles in their own order; and how
# many tiles, and which kind of sparse samples, tell.
WRONG_ORDERS: dict[str, tuple[Callable[[list[Any]], list[Any]], int, int]] = {
    "rows backwards": (lambda tiles: [tile[::-1] for tile in tiles], 1, 0),
    "lanes by halves": (lambda tiles: [[_by_halves(row) for row in tile] for tile in tiles], 1, 1),
    "tiles by halves": (_by_halves, 4, 2),
    "tiles from the second on": (lambda tiles: tiles[1:] + tiles[:1], 4, 2),
    "rows and lanes swapped": (lambda tiles: [_transposed(tile) for tile in tiles], 1, 3),
}


@pytest.mark.parametrize("order", WRONG_ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_samples_tell_one_order_from_another(dtype: str, order: str) -> None:
    reorder, tiles, kind = WRONG_ORDERS[order]
    lanes = sizes(dtype)["lanes"]
    # Float16 has so few exponents that float64 adds |x| without rounding, in any order.
    telling = {1} if dtype == "float16" else {0, 1}
    seen: set[int] = set()
    for seed in range(kind, kind + 200, 4):
        numbers = values(content("sparse", tiles * sizes(dtype)["tile"], dtype, seed=seed))
        rows = [numbers[i : i + lanes] for i in range(0, len(numbers), lanes)]
        reordered = reorder([rows[i : i + ROWS] for i in range(0, len(rows), ROWS)])
        wrong = reference.sums([x for tile in reordered for row in tile for x in row], dtype)
        seen |= {i for i, right in enumerate(reference.sums(numbers, dtype)) if wrong[i] != right}
        if seen == telling:
            break
    assert seen == telling


@pytest.mark.parametrize("result", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_numpy_scalars(dtype: str, result: str) -> None:
    w = content("weights", 10, dtype)
    for value in (gpureg.l1_loss(w, dtype=result), gpureg.l2_loss(w, dtype=result)):
        assert type(value) is DTYPES[result].type
    for value in (REGULARIZERS["L1L2"][0](w), REGULARIZERS["L1L2"][0].activity(w)):
        assert type(value) is DTYPES[value_dtype(dtype)].type


# Everything ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_regularizer_and_content(dtype: str, kind: str, name: str) -> None:
    check_everything(content(name, 100, dtype), *REGULARIZERS[kind])


@pytest.mark.parametrize("size", ["0", "1", "lanes - 1", "lanes", "lanes + 1"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_of_every_size(dtype: str, size: str) -> None:
    """Gradients of tiles and more: `tests/backends/test_cpu.py`."""
    check_everything(content("wide", sizes(dtype)[size], dtype), *REGULARIZERS["L1L2"])


@st.composite
def _weights(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(tuple(DTYPES)))
    unsigned = f"u{DTYPES[dtype].itemsize}"
    any_bits = st.integers(0, 2 ** (8 * DTYPES[dtype].itemsize) - 1)
    few = st.lists(any_bits, max_size=20).map(lambda numbers: np.array(numbers, unsigned).view(DTYPES[dtype]))
    size = st.integers(0, 3 * sizes(dtype)["lanes"])
    many = st.builds(content, st.sampled_from(CONTENTS), size, st.just(dtype), st.integers(0, 1000))
    return draw(few | many)


def _coefficients() -> st.SearchStrategy[float]:
    finite = st.floats(0.0, allow_infinity=False, allow_subnormal=True)
    return st.sampled_from([0.0, 0.01, 1.0]) | st.floats(0.0, 1.0) | finite


def rules() -> st.SearchStrategy[Rule]:
    """Return rules of any coefficients."""
    halved = st.builds(Rule, l1=st.just(0.0), l2=_coefficients(), halved=st.just(True))
    return st.builds(Rule, l1=_coefficients(), l2=_coefficients(), halved=st.just(False)) | halved


@settings(max_examples=300)
@given(w=_weights(), rule=rules(), step=_coefficients())
def test_any_weights_and_coefficients(w: Array, rule: Rule, step: float) -> None:
    check_everything(w, regularizer(rule), rule, step)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_proximal_step_gives_no_negative_zero(dtype: str) -> None:
    """Not of -0.0, not of what the threshold takes away, and not where a division or rounding makes the zero."""
    smallest = reference.decode([1], dtype)[0]
    for kind in (gpureg.L1(1.0), gpureg.L2(1.0), gpureg.HalvedL2(2.0), gpureg.L1L2(1.0, 1.0)):
        w = from_values([-smallest, -0.0, 0.0, smallest], dtype)
        assert raw(kind.prox_(w, 1.0)).tolist() == [0] * 4  # smallest / 3 is nearest to 0
    unmoved = from_values([-smallest, -0.0, 0.0, smallest], dtype)
    assert_bits(gpureg.L1L2().prox_(unmoved, 1.0), [-smallest, 0.0, 0.0, smallest], dtype)


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activity_is_divided_by_the_batch_and_rounded_once(dtype: str, kind: str) -> None:
    regularizer, rule = REGULARIZERS[kind]
    for shape in ((0,), (1,), (3,), (0, 4), (7, 0), (7, 300), (300, 7), (5, 6, 7, 1)):
        x = content("wide", math.prod(shape), dtype).reshape(shape)
        expected = reference.activity(values(x), dtype, rule, shape[0])
        assert_bits(regularizer.activity(x), expected, value_dtype(dtype))


# Every number of 16 bits ---------------------------------------------------------------------------------------------


def _every_number(dtype: str) -> Array:
    return np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number_has_its_penalty(dtype: str) -> None:
    w, (regularizer, rule) = _every_number(dtype), REGULARIZERS["L1L2"]
    penalties = [reference.penalty(rule, abs(x), x * x) for x in values(w)]
    leaves = [Leaf(w[i : i + 1], regularizer.coefficients) for i in range(w.size)]
    found = run(backends.cpu(), Mode.VALUE, leaves, DTYPES["float64"])
    assert_bits(found.each, penalties, "float64")
    assert_bits(found.total, reference.total(penalties), "float64")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_sums_of_every_finite_16_bit_number(dtype: str) -> None:
    w = _every_number(dtype)
    w = w[bits(w) & 0x7FFF < FORMATS[dtype].infinity]
    s1, s2 = reference.sums(values(w), dtype)
    assert_bits(gpureg.l1_loss(w, dtype="float64"), s1, "float64")
    assert_bits(gpureg.l2_loss(w, dtype="float64"), reference.penalty(L2_LOSS, s1, s2), "float64")


@pytest.mark.parametrize("into", ["same", "float32"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number_has_its_gradient(dtype: str, into: str) -> None:
    w, (regularizer, rule), into = _every_number(dtype), REGULARIZERS["L1L2"], dtype if into == "same" else into
    numbers = values(w)
    out = regularizer.grad(w, np.empty(w.size, DTYPES[into]))
    assert_bits(out, reference.gradient(numbers, dtype, rule, into=into), into)
    grad = content("wide", w.size, into)
    added = reference.gradient(numbers, dtype, rule, into=into, add_to=values(grad))
    regularizer.accumulate_grad(w, grad)
    assert_bits(grad, added, into)


@pytest.mark.parametrize(("kind", "step"), [("L1L2", 0.5), ("L2", 5.0)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number_has_its_proximal_step(dtype: str, kind: str, step: float) -> None:
    w, (regularizer, rule) = _every_number(dtype), REGULARIZERS[kind]
    moved = reference.proximal(values(w), dtype, rule, step)
    assert_bits(regularizer.prox_(w, step), moved, dtype)


# Rounding of results -------------------------------------------------------------------------------------------------


def _around_ties(dtype: str, numbers: range) -> list[float]:
    """Return the ties above numbers given by their bits, and what float32 and float64 have next to each."""
    finite = reference.decode(range(FORMATS[dtype].infinity), dtype)
    above = [*finite[1:], 2.0 ** (FORMATS[dtype].bias + 1)]
    ties = [(finite[i] + above[i]) / 2 for i in numbers]
    steps = (-(2.0**-23), -(2.0**-52), 0.0, 2.0**-52, 2.0**-23)
    return [tie * (1 + step) for tie in ties for step in steps]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_results_are_rounded_by_way_of_float32_at_every_tie(dtype: str) -> None:
    penalties = _around_ties(dtype, range(FORMATS[dtype].infinity))
    with np.errstate(all="ignore"):
        found = np.array([arithmetic.round_once(penalty, DTYPES[dtype]) for penalty in penalties])
    assert_bits(found, [reference.result(penalty, dtype) for penalty in penalties], dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_losses_are_rounded_by_way_of_float32(dtype: str) -> None:
    top = FORMATS[dtype].infinity
    for penalty in _around_ties(dtype, range(0, top, 199)) + _around_ties(dtype, range(top - 3, top)):
        w = np.array([penalty])
        assert_bits(gpureg.l1_loss(w, dtype=dtype), reference.result(penalty, dtype), dtype)


def test_just_above_a_tie_float32_comes_first() -> None:
    # Rounded at once this would be the float16 above; float32 has the tie itself, which goes to the even one below.
    w = np.array([1 + 2.0**-11 + 2.0**-40])
    assert gpureg.l1_loss(w, dtype=np.float16) == 1.0


@pytest.mark.parametrize("number", [0.1, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 2.0**-150, 3 * 2.0**-150, 2.0**128])
def test_float32_results_of_float64_weights_are_rounded_once(number: float) -> None:
    found = gpureg.l1_loss(np.array([number, 0.0]), dtype=np.float32)
    assert_bits(found, reference.rounded(number, "float32"), "float32")


# What a caller has set -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_that_a_caller_wants_raised_are_not(dtype: str, name: str) -> None:
    """Overflow, underflow and NaN are answers; the caller's own floating-point settings stay as they are."""
    with np.errstate(all="raise"):
        before = np.geterr()
        check_everything(content(name, 300, dtype), *REGULARIZERS["L1L2"])
        check_everything(content(name, 300, dtype), gpureg.L1L2(1e300, 1e-300), Rule(1e300, 1e-300), 1e300)
        for result in DTYPES:
            w = content(name, 300, dtype)
            penalty = reference.value(values(w), dtype, L2_LOSS)
            assert_bits(gpureg.l2_loss(w, dtype=result), reference.result(penalty, result), result)
        activity = gpureg.L2(0.3).activity(w)
        assert_bits(activity, reference.activity(values(w), dtype, Rule(l2=0.3), 300), value_dtype(dtype))
        assert np.geterr() == before


@pytest.mark.parametrize("kind", ["L1L2 of nothing", "L1 of 0", "HalvedL2 of 0"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_coefficients_of_zero_leave_a_gradient_alone(dtype: str, kind: str) -> None:
    """Every bit of it: no -0.0 becomes +0.0, and no NaN another NaN; whatever the weights are."""
    format_ = FORMATS[dtype]
    odd = [1 << (8 * format_.itemsize - 1), format_.infinity + 1, format_.nan + 3, 2 ** (8 * format_.itemsize) - 1, 1]
    grad = np.array(odd, f"u{format_.itemsize}").view(DTYPES[dtype])
    w = from_values([1.0, math.nan, math.inf, -0.0, 0.0], dtype)
    assert REGULARIZERS[kind][0].accumulate_grad(w, grad) == 0.0
    assert raw(grad).tolist() == odd
