"""What only a backend of the CPU is asked: strength, upstream, several tensors; and that its cuts leave no trace."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpureg
from gpureg import backends, samples
from gpureg.backends import Mode, llvm
from gpureg.backends.numpy import CHUNK
from tests import reference
from tests.helpers import (
    CONTENTS,
    DTYPES,
    LAYOUTS,
    REGULARIZERS,
    Array,
    assert_bits,
    content,
    from_values,
    gradient_dtypes,
    raw,
    regularizer,
    sizes,
    values,
    values_in_order_of_sums,
)
from tests.passes import Leaf, cut, run
from tests.reference import FORMATS, Rule

pytestmark = pytest.mark.usefixtures("cpu_backend")

Tensor = tuple[Array, Rule, str]
"""Weights, their rule, and the dtype of their gradient."""

BOTH = Rule(l1=0.1, l2=0.3)


def check_call(tensors: Sequence[Tensor], strength: Any = 1.0, upstream: Any = 1.0) -> None:
    """Assert the bits of every kind of call over tensors, whatever the caller has floating-point errors do."""
    at: dict[str, Any] = {"strength": float(strength), "upstream": float(upstream)}
    each = [reference.value(values_in_order_of_sums(w), w.dtype.name, rule, at["strength"]) for w, rule, _ in tensors]
    total = reference.total(each)
    leaves = [Leaf(w, regularizer(rule).coefficients) for w, rule, _ in tensors]
    stored = [reference.gradient(values(w), w.dtype.name, rule, into=into, **at) for w, rule, into in tensors]
    before = [raw(w) for w, _, _ in tensors]

    with np.errstate(all="raise"):
        for dtype in DTYPES:
            found = run(backends.cpu(), Mode.VALUE, leaves, DTYPES[dtype], strength=strength)
            assert_bits(found.total, reference.result(total, dtype), dtype)
            assert_bits(found.each, each, "float64")
        averaged = run(backends.cpu(), Mode.VALUE, leaves, DTYPES["float32"], strength=strength, divisor=7)
        assert_bits(averaged.total, reference.result(total / 7, "float32"), "float32")
        assert_bits(averaged.each, each, "float64")

        outs = [content("random bits", w.size, into, seed=1).reshape(w.shape) for w, _, into in tensors]
        with_outs = [leaf._replace(gradient=out) for leaf, out in zip(leaves, outs, strict=True)]
        run(backends.cpu(), Mode.GRADIENT, with_outs, strength=strength, upstream=upstream)
        for out, numbers, (_, _, into) in zip(outs, stored, tensors, strict=True):
            assert_bits(out, numbers, into)
            out.view(f"u{out.itemsize}")[...] = 12345
        found = run(
            backends.cpu(), Mode.VALUE_AND_GRADIENT, with_outs, DTYPES["float64"], strength=strength, upstream=upstream
        )
        assert_bits(found.total, total, "float64")
        assert_bits(found.each, each, "float64")
        for out, numbers, (_, _, into) in zip(outs, stored, tensors, strict=True):
            assert_bits(out, numbers, into)

        grads = [content("random bits", w.size, into, seed=2).reshape(w.shape) for w, _, into in tensors]
        with_grads = [leaf._replace(gradient=grad) for leaf, grad in zip(leaves, grads, strict=True)]
        added = [
            reference.gradient(values(w), w.dtype.name, rule, into=into, add_to=values(grad), **at)
            for (w, rule, into), grad in zip(tensors, grads, strict=True)
        ]
        found = run(
            backends.cpu(), Mode.ACCUMULATE, with_grads, DTYPES["float32"], strength=strength, upstream=upstream
        )
        assert_bits(found.total, reference.result(total, "float32"), "float32")
        assert_bits(found.each, each, "float64")
        for grad, numbers, (_, _, into) in zip(grads, added, tensors, strict=True):
            assert_bits(grad, numbers, into)
    assert all(np.array_equal(raw(w), bits) for (w, _, _), bits in zip(tensors, before, strict=True))


# Strength and upstream -----------------------------------------------------------------------------------------------


# Beyond the ordinary: signs, zeros, what underflows or overflows in float32 or float64 once multiplied, and arrays.
FACTORS: dict[str, Any] = {
    "1": 1,
    "0.7": 0.7,
    "-0.7": -0.7,
    "0": 0.0,
    "-0": -0.0,
    "zero in float32": 1e-50,
    "subnormal in float32": 1e-40,
    "infinite in float32": 1e50,
    "largest": 1.7976931348623157e308,
    "smallest": 5e-324,
    "-smallest": -5e-324,
    "infinity": math.inf,
    "-infinity": -math.inf,
    "0-d float64": np.array(0.7),
    "0-d float32": np.array(0.7, np.float32),
    "scalar float16": np.float16(-3.0),
}


@pytest.mark.parametrize("upstream", FACTORS)
@pytest.mark.parametrize("strength", FACTORS)
def test_strength_multiplies_all_and_upstream_gradients_only(strength: str, upstream: str) -> None:
    tensors = [
        (content(name, 7, dtype), rule, into)
        for dtype, name in (("float32", "zeros"), ("float64", "wide"), ("bfloat16", "NaN"), ("float16", "infinities"))
        for into in gradient_dtypes(dtype)
        for _, rule in map(REGULARIZERS.__getitem__, ("L1", "L2", "HalvedL2", "L1L2", "L1L2 of nothing"))
    ]
    check_call(tensors, FACTORS[strength], FACTORS[upstream])


def test_coefficients_are_multiplied_from_left_to_right_in_float64() -> None:
    w = np.ones(1, np.float32)
    l1 = Leaf(w, gpureg.L1(1e200).coefficients, np.zeros(1, np.float32))
    assert run(backends.cpu(), Mode.ACCUMULATE, [l1], DTYPES["float64"], strength=1e200, upstream=0.0).total == math.inf
    assert np.isnan(l1.gradient[0])  # (1e200 * 1e200) * 0
    tiny = Leaf(w, gpureg.L1(1e-200).coefficients, np.zeros(1, np.float32))
    assert (
        run(backends.cpu(), Mode.ACCUMULATE, [tiny], DTYPES["float64"], strength=1e-200, upstream=math.inf).total == 0.0
    )
    assert np.isnan(tiny.gradient[0])  # (1e-200 * 1e-200) * inf
    small = Leaf(w, gpureg.L1(1e-30).coefficients, np.zeros(1, np.float32))
    run(backends.cpu(), Mode.GRADIENT, [small], strength=1e-30, upstream=1e60)  # 1e-60 is no float32
    assert small.gradient[0] == 1.0


def test_upstream_never_changes_a_value() -> None:
    w = content("wide", 5000, "float32")
    leaf = Leaf(w, regularizer(BOTH).coefficients, np.zeros(5000, np.float32))
    values = [
        run(backends.cpu(), mode, [leaf], strength=0.3, upstream=upstream).total
        for upstream in (1.0, 0.0, -3.0, 1e300, math.inf, math.nan)
        for mode in (Mode.VALUE_AND_GRADIENT, Mode.ACCUMULATE)
    ]
    assert set(values) == {run(backends.cpu(), Mode.VALUE, [leaf], DTYPES["float64"], strength=0.3).total}


@pytest.mark.parametrize("upstream", [0.0, -0.0, 5e-324, -1e-50])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_coefficients_that_round_to_zero_leave_a_gradient_alone(dtype: str, upstream: float) -> None:
    format_ = FORMATS[dtype]
    odd = [1 << (8 * format_.itemsize - 1), format_.infinity + 1, format_.nan + 3, 2 ** (8 * format_.itemsize) - 1, 1]
    grad = np.array(odd, f"u{format_.itemsize}").view(DTYPES[dtype])
    w = from_values([1.0, math.nan, math.inf, -0.0, 0.0], dtype)
    leaf = Leaf(w, regularizer(BOTH).coefficients, grad)
    assert math.isnan(run(backends.cpu(), Mode.ACCUMULATE, [leaf], DTYPES["float64"], upstream=upstream).total)
    assert raw(grad).tolist() == odd
    run(backends.cpu(), Mode.GRADIENT, [leaf], upstream=upstream)
    assert raw(grad).tolist() == [0] * 5


# Several tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bits", [0xFFFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0001, 0x7FF8_0000_0000_0000])
def test_a_factor_of_nan_makes_gradients_nan_whatever_its_bits(dtype: str, bits: int) -> None:
    """Rounded to 16 bits by adding to its bits, it could become an infinity or a zero."""
    w = np.ones(40, DTYPES[dtype])
    out = np.zeros_like(w)
    upstream = float(np.array(bits, np.uint64).view(np.float64))
    run(backends.cpu(), Mode.GRADIENT, [Leaf(w, regularizer(BOTH).coefficients, out)], upstream=upstream)
    assert np.isnan(out.astype(np.float64)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_infinite_threshold_leaves_zeros_of_all_that_is_finite(dtype: str) -> None:
    """An infinity is as large as the threshold, and infinity less infinity is NaN."""
    w = np.array([1.0, -2.0, 0.0, np.inf, -np.inf, np.nan], DTYPES[dtype])
    gpureg.L1(1e300).prox_(w, 1e300)
    assert raw(w)[:3].tolist() == [0, 0, 0]
    assert np.isnan(w[3:].astype(np.float64)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33])
def test_the_total_is_a_tree_over_the_penalties(count: int) -> None:
    """Empty tensors are leaves too: leave one out, and others are neighbours."""
    small = 2.0**-53 * (1 - 2.0**-50)  # lost where it meets the 1, unless it met another before
    totals_without_empty = []
    totals = []
    for seed in range(40):
        draws = samples.integers(0, count, seed)
        penalties = [(0.0, small)[draw % 2] for draw in (draws >> np.uint64(8)).tolist()]
        penalties[int(draws[0]) % count] = 1.0
        tensors = [np.array([penalty])[: int(penalty != 0)] for penalty in penalties]
        found = run(
            backends.cpu(), Mode.VALUE, [Leaf(w, gpureg.L1(1.0).coefficients) for w in tensors], DTYPES["float64"]
        )
        assert_bits(found.each, penalties, "float64")
        assert_bits(found.total, reference.tree(penalties), "float64")
        totals.append(found.total)
        totals_without_empty.append(reference.tree([penalty for penalty in penalties if penalty]))
    assert (totals == totals_without_empty) == (count < 4)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
def test_the_padding_of_the_tree_is_positive(count: int) -> None:
    """Negative zeros, as a negative strength makes them, add up to one; but not with the padding."""
    leaves = [Leaf(np.zeros(3), gpureg.L1(1.0).coefficients) for _ in range(count)]
    found = run(backends.cpu(), Mode.VALUE, leaves, DTYPES["float64"], strength=-1.0)
    assert_bits(found.each, [-0.0] * count, "float64")
    assert_bits(found.total, -0.0 if count & (count - 1) == 0 else 0.0, "float64")


def test_tensors_of_all_dtypes_and_layouts_in_one_call() -> None:
    tensors = [
        (LAYOUTS[layout].place(content("wide", 3 * size, dtype).reshape(3, size)).array, rule, into)
        for (dtype, size), layout in zip(
            ((dtype, size) for dtype in DTYPES for size in (0, 1, 500)), LAYOUTS, strict=True
        )
        for rule in (BOTH, Rule(), Rule(l2=0.3, halved=True))
        for into in gradient_dtypes(dtype)
    ]
    check_call(tensors, 0.9, 1.1)


def test_no_tensor_at_all_is_worth_nothing() -> None:
    check_call([], 0.9, 1.1)


def test_one_nan_is_felt_in_the_total_and_nowhere_else() -> None:
    tensors = [(content(name, 40, "float32"), BOTH, "float32") for name in ("wide", "NaN", "weights")]
    check_call(tensors)
    found = run(
        backends.cpu(),
        Mode.VALUE,
        [Leaf(w, regularizer(rule).coefficients) for w, rule, _ in tensors],
        DTYPES["float32"],
    )
    assert [math.isnan(penalty) for penalty in (*found.each, found.total)] == [False, True, False, True]


_FACTORS = st.floats(allow_nan=False, allow_subnormal=True) | st.floats(-2.0, 2.0) | st.just(1.0)
_COEFFICIENTS = st.just(0.0) | st.floats(0.0, allow_infinity=False, allow_subnormal=True) | st.floats(0.0, 1.0)


@st.composite
def _tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(tuple(DTYPES)))
    bits = st.integers(0, 2 ** (8 * DTYPES[dtype].itemsize) - 1)
    few = st.lists(bits, max_size=8).map(lambda bits: np.array(bits, f"u{DTYPES[dtype].itemsize}").view(DTYPES[dtype]))
    size = st.integers(0, 2 * sizes(dtype)["lanes"])
    many = st.builds(content, st.sampled_from(CONTENTS), size, st.just(dtype), st.integers(0, 100))
    halved = draw(st.booleans())
    rule = Rule(0.0 if halved else draw(_COEFFICIENTS), draw(_COEFFICIENTS), halved)
    return draw(few | many), rule, draw(st.sampled_from(gradient_dtypes(dtype)))


@given(tensors=st.lists(_tensors(), max_size=5), strength=_FACTORS, upstream=_FACTORS)
def test_any_call(tensors: list[Tensor], strength: float, upstream: float) -> None:
    check_call(tensors, strength, upstream)


# Cuts ----------------------------------------------------------------------------------------------------------------


def most_tiles(dtype: str) -> int:
    """Return how many tiles there are to a group."""
    return llvm.PIECE_TILES if gpureg.get_backend() == "llvm" else CHUNK // sizes(dtype)["tile"]


def check_sums(w: Array) -> None:
    """Assert the bits of the sums of weights."""
    s1, s2 = reference.sums(values(w), w.dtype.name)
    assert_bits(gpureg.l1_loss(w, dtype="float64"), s1, "float64")
    assert_bits(gpureg.l2_loss(w, dtype="float64"), 0.5 * s2, "float64")


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_sizes_around_groups(dtype: str, size: int) -> None:
    check_sums(content("wide", size, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_is_a_subtree(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """As large as it is, groups add up as tiles taken one by one do; and those are compared with the reference."""
    tile, tiles = sizes(dtype)["tile"], most_tiles(dtype)
    assert tiles & (tiles - 1) == 0
    for seed in range(40):
        w = content("sparse", ((2, 3)[seed % 2] * tiles + 5) * tile + seed, dtype, seed=seed)
        cut(monkeypatch, tiles, DTYPES[dtype])
        large = gpureg.l1_loss(w, dtype="float64"), gpureg.l2_loss(w, dtype="float64")
        cut(monkeypatch, 1, DTYPES[dtype])
        assert large == (gpureg.l1_loss(w, dtype="float64"), gpureg.l2_loss(w, dtype="float64"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_across_groups(dtype: str) -> None:
    w = content("wide", most_tiles(dtype) * sizes(dtype)["tile"] + 5, dtype)
    grad = content("weights", w.size, dtype, seed=1)
    added = reference.gradient(values(w), dtype, BOTH, into=dtype, add_to=values(grad))
    regularizer(BOTH).accumulate_grad(w, grad)
    assert_bits(grad, added, dtype)


@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_groups(monkeypatch: pytest.MonkeyPatch, dtype: str, tiles: int) -> None:
    tile = sizes(dtype)["tile"]
    cut(monkeypatch, tiles, DTYPES[dtype])
    for seed, size in zip((2, 3, 6, 7), (7 * tile + 1, 5 * tile, 6 * tile - 1, 8 * tile), strict=True):
        check_sums(content("sparse", size, dtype, seed=seed + 8 * tiles))


@pytest.mark.parametrize("name", ["wide", "sparse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_depends_on_the_size_of_a_group(monkeypatch: pytest.MonkeyPatch, dtype: str, name: str) -> None:
    tile = sizes(dtype)["tile"]
    matrix = content(name, 11 * (2 * tile + 77), dtype).reshape(-1, 11)
    for w in (matrix.ravel(), matrix.T, matrix[:, ::-1], matrix[::2].T):
        found = set()
        for tiles in (1, 2, 8, 16, 32):
            cut(monkeypatch, tiles, DTYPES[dtype])
            out, moved = np.zeros(w.shape, np.float32), w.copy()
            value, _ = regularizer(BOTH).value_and_grad(w, out)
            regularizer(BOTH).prox_(moved, 0.5)
            sums = gpureg.l1_loss(w, dtype="float64"), gpureg.l2_loss(w, dtype="float64")
            found.add(tuple(raw(result).tobytes() for result in (out, moved, value, *sums)))
        assert len(found) == 1


# Many small tensors --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 600), min_size=2, max_size=40), st.integers(0, 100))
def test_small_tensors_have_the_bits_of_tensors_alone(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = []
    for size in sizes:
        dtype = list(DTYPES)[rng.integers(4)]
        w = content("wide", size * 3, dtype, seed=int(rng.integers(99)))
        w = (w[:size], w[::3], w[: size // 2 * 2].reshape(2, size // 2).T)[rng.integers(3)]
        tensors.append((w, BOTH if rng.random() < 0.5 else Rule(l1=0.1), dtype if rng.random() < 0.5 else "float32"))
    check_call(tensors)


@pytest.mark.parametrize("size", [60, 64])
def test_each_of_thousands_of_tensors_is_in_its_place(size: int) -> None:
    count = CHUNK // 64 + 100
    w, grad = (content(name, count * size, "float32").reshape(count, size) for name in ("wide", "weights"))
    reg, added = regularizer(BOTH), grad.copy()
    found = run(backends.cpu(), Mode.ACCUMULATE, [Leaf(w[i], reg.coefficients, added[i]) for i in range(count)])
    alone = [reg.accumulate_grad(w[i], grad[i]) for i in range(count)]
    assert found.rounded.tolist() == [float(value) for value in alone]
    assert np.array_equal(raw(added), raw(grad))
