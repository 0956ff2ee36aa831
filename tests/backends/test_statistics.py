"""Statistics of arrays: what each backend of the CPU tells of them, and pieces of them put together."""

import functools
import math
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gpureg
from gpureg import backends
from gpureg.arithmetic import tile_size
from gpureg.backends.numpy import CHUNK
from gpureg.statistics import Statistics, join, marks
from tests import reference
from tests.helpers import (
    CONTENTS,
    DTYPES,
    LAYOUTS,
    SIZES,
    Array,
    assert_bits,
    content,
    raw,
    sizes,
    values_in_order_of_sums,
)
from tests.passes import cut
from tests.reference import FORMATS

pytestmark = pytest.mark.usefixtures("cpu_backend")

NOTHING = Statistics(0, 0.0, 0.0, 0.0, 0, 0, 0, 0)


def assert_same(found: Statistics, expected: dict[str, float]) -> None:
    """Assert the types and the bits of statistics."""
    told = found._asdict()
    assert list(told) == list(expected)
    for name, number in told.items():
        if isinstance(expected[name], float):
            assert type(number) is float, name
            assert_bits(number, expected[name], "float64")
        else:
            assert type(number) is int, name
            assert number == expected[name], name


def check(arrays: Sequence[Array], threshold: float) -> list[Statistics]:
    """Assert that statistics of arrays are the reference's, whatever the caller has floating-point errors do."""
    before = [raw(array) for array in arrays]
    with np.errstate(all="raise"):
        found = backends.cpu().statistics(arrays, threshold)
    assert len(found) == len(arrays)
    for one, array in zip(found, arrays, strict=True):
        assert_same(one, reference.statistics(values_in_order_of_sums(array), array.dtype.name, threshold))
    assert all(np.array_equal(raw(array), bits) for array, bits in zip(arrays, before, strict=True))
    return found


@functools.cache
def known(name: str, size: int, dtype: str, threshold: float) -> dict[str, float]:
    """Return the reference's statistics of a content, which several tests ask for."""
    return reference.statistics(values_in_order_of_sums(content(name, size, dtype)), dtype, threshold)


# Contents and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_contents(dtype: str, name: str) -> None:
    size = sizes(dtype)["tile + 1"]
    (found,) = backends.cpu().statistics([content(name, size, dtype)], 0.03)
    assert_same(found, known(name, size, dtype, 0.03))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes(dtype: str, size: str) -> None:
    for name, threshold in (("wide", 2.0**-20), ("NaN", 0.03), ("zeros", math.inf)):
        (found,) = backends.cpu().statistics([content(name, sizes(dtype)[size], dtype)], threshold)
        assert_same(found, known(name, sizes(dtype)[size], dtype, threshold))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_up_to_some_rows(dtype: str) -> None:
    """What is left of a vector of lanes, and of a row, is no element too much; and none is left out."""
    lanes = sizes(dtype)["lanes"]
    w = content("NaN", 2 * lanes + 70, dtype)
    check([w[:size] for size in (*range(70), *range(lanes - 35, lanes + 35), *range(2 * lanes - 3, w.size))], 0.03)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_around_groups(dtype: str, size: int) -> None:
    (found,) = backends.cpu().statistics([content("wide", size, dtype)], 2.0**-20)
    assert_same(found, known("wide", size, dtype, 2.0**-20))


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    tile = sizes(dtype)["tile"]
    for seed in range(40):
        w = content("sparse", (5, 6, 7)[seed % 3] * tile - seed, dtype, seed=seed)
        found = []
        for tiles in (8, 1, 2):
            cut(monkeypatch, tiles, DTYPES[dtype])
            found += backends.cpu().statistics([w], 0.5)
        assert found[1:] == found[:1] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_odd_element_anywhere_is_counted(dtype: str) -> None:
    tile, kind = sizes(dtype)["tile"], FORMATS[dtype]
    unsigned, sign = f"u{kind.itemsize}", 1 << (8 * kind.itemsize - 1)
    odd = {
        "zeros": (0, sign),
        "inf": (kind.infinity, sign | kind.infinity),
        "nan": (kind.infinity + 1, sign | kind.infinity + 1, kind.nan, 2 * sign - 1),
        "below": (1, sign | 1),
    }
    for size in (2, 17, tile, tile + 40):
        one = np.ones(size, DTYPES[dtype])
        for place in sorted({0, size // 2, size - 1}):
            for name, patterns in odd.items():
                for bits in patterns:
                    w = one.copy()
                    w.view(unsigned)[place] = bits
                    (found,) = backends.cpu().statistics([w], 0.5)
                    counts = {"zeros": found.zeros, "inf": found.inf, "nan": found.nan, "below": found.below}
                    expected = {which: int(which == name) for which in odd}
                    expected["below"] = int(name in {"zeros", "below"})
                    assert counts == expected, (size, place, hex(bits))
                    assert found.max_abs == (math.inf if name == "inf" else 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_alone_has_no_largest(dtype: str) -> None:
    w = np.full(100, np.nan, DTYPES[dtype])
    (found,) = backends.cpu().statistics([w], math.inf)
    assert math.isnan(found.sum_abs)
    assert found[3:] == (0.0, 0, 0, 100, 0)


def test_the_sums_are_the_norms_of_a_penalty() -> None:
    w = content("wide", 100_000, "float32")
    (found,) = backends.cpu().statistics([w], 0.0)
    assert gpureg.Penalty({"w": w}, gpureg.L1(0.1)).norms() == {"w": (found.sum_abs, found.sum_squares)}


# Thresholds ----------------------------------------------------------------------------------------------------------


def thresholds(dtype: str) -> Iterator[float]:
    """Yield thresholds at numbers of a dtype and beside them, closer than the dtype could tell."""
    kind = FORMATS[dtype]
    yield from (0.0, -0.0, 5e-324, 1e308, math.inf)
    for bits in (1, 2, 1 << kind.fraction, kind.bias << kind.fraction, kind.infinity // 2, kind.infinity - 1):
        (number,) = reference.decode([bits], dtype)
        yield from (number, math.nextafter(number, 0), math.nextafter(number, math.inf), number * 1.25)


@pytest.mark.parametrize("dtype", DTYPES)
def test_thresholds_are_compared_exactly(dtype: str) -> None:
    kind = FORMATS[dtype]
    if kind.itemsize == 2:
        bits = np.arange(2**16)
    else:
        middles = [0, 1, 1 << kind.fraction, kind.bias << kind.fraction, kind.infinity // 2, kind.infinity]
        sign = 1 << (8 * kind.itemsize - 1)
        near = [middle + i for middle in middles for i in range(-3, 4) if middle + i >= 0]
        bits = np.array(near + [sign | one for one in near], np.uint64)
    w = bits.astype(f"u{kind.itemsize}").view(DTYPES[dtype])
    numbers = [abs(number) for number in reference.decode(raw(w).tolist(), dtype)]
    for threshold in thresholds(dtype):
        (found,) = backends.cpu().statistics([w], threshold)
        assert found.below == sum(number < threshold for number in numbers), threshold


@given(dtype=st.sampled_from(tuple(DTYPES)), threshold=st.floats(0.0))
@example(dtype="bfloat16", threshold=1.00390625)  # 1 + 2**-8: halfway between two, and the even one is below
@example(dtype="float16", threshold=65519.0)  # rounds to the largest number, which is below
def test_marks_are_where_the_order_changes(dtype: str, threshold: float) -> None:
    found = marks(DTYPES[dtype], threshold)
    kind = FORMATS[dtype]
    assert found[:2] == ((1 << (8 * kind.itemsize - 1)) - 1, kind.infinity)
    (least,) = reference.decode([found.threshold], dtype)
    assert found.number(found.threshold) == least >= threshold
    if found.threshold:
        (below,) = reference.decode([found.threshold - 1], dtype)
        assert found.number(found.threshold - 1) == below < threshold


# Arrays of all kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: str, layout: str) -> None:
    for name, shape in (("wide", (6, 5, 10, 12)), ("NaN", (2, 1, 33)), ("NaN", (70, 300))):
        w = content(name, math.prod(shape), dtype).reshape(shape)
        placed = LAYOUTS[layout].place(w)
        check([placed.array], 0.03)
        assert placed.gaps_are_untouched()


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_arrays_and_scalars(dtype: str) -> None:
    none = [np.empty(shape, DTYPES[dtype]) for shape in ((0,), (3, 0, 2), (0, 0))]
    assert check(none, 1.0) == [NOTHING] * 3
    (found,) = check([np.array(-0.5, DTYPES[dtype])], 1.0)
    assert found == (1, 0.5, 0.25, 0.5, 0, 1, 0, 0)


def test_elements_that_share_a_place_count_each() -> None:
    check([np.broadcast_to(np.float32(0.1), (300, 7)), np.broadcast_to(content("NaN", 40, "float16"), (9, 40))], 0.2)


def test_read_only_and_mapped_arrays(tmp_path: Path) -> None:
    w = content("NaN", 50_000, "float32")
    path = tmp_path / "w.npy"
    np.save(path, w)
    mapped = np.load(path, mmap_mode="r")
    w.flags.writeable = False
    bytes_ = np.frombuffer(b"\0" + w.tobytes(), np.uint8)[1:].view(np.float32)  # misaligned too, as in files
    found = check([np.asarray(mapped), w, bytes_], 0.03)
    assert [one[3:] for one in found] == [found[0][3:]] * 3


def test_arrays_of_all_dtypes_in_one_call() -> None:
    arrays = [
        LAYOUTS[layout].place(content("wide", 3 * size, dtype).reshape(3, size)).array
        for (dtype, size), layout in zip(
            ((dtype, size) for dtype in DTYPES for size in (0, 1, 500)), LAYOUTS, strict=True
        )
    ]
    check(arrays, 0.1)
    check(arrays[::-1], 0.1)


def test_no_array_at_all() -> None:
    assert backends.cpu().statistics([], 1.0) == []


@st.composite
def _arrays(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(tuple(DTYPES)))
    bits = st.integers(0, 2 ** (8 * DTYPES[dtype].itemsize) - 1)
    few = st.lists(bits, max_size=8).map(lambda bits: np.array(bits, f"u{DTYPES[dtype].itemsize}").view(DTYPES[dtype]))
    size = st.integers(0, 2 * sizes(dtype)["lanes"])
    many = st.builds(content, st.sampled_from(CONTENTS), size, st.just(dtype), st.integers(0, 100))
    return draw(few | many)


@given(arrays=st.lists(_arrays(), max_size=5), threshold=st.floats(0.0) | st.floats(0.0, 1.0))
def test_any_call(arrays: list[Array], threshold: float) -> None:
    check(arrays, threshold)


# Pieces --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sparse", "NaN"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_depends_on_the_size_of_a_group(monkeypatch: pytest.MonkeyPatch, dtype: str, name: str) -> None:
    tile = sizes(dtype)["tile"]
    matrix = content(name, 11 * (2 * tile + 77), dtype, seed=7).reshape(-1, 11)
    arrays = [matrix.ravel(), matrix.T, matrix[:, ::-1], matrix[::2].T]
    found = set()
    for tiles in (1, 2, 8, 32):
        cut(monkeypatch, tiles, DTYPES[dtype])
        found.add(repr(backends.cpu().statistics(arrays, 0.03)))
    assert len(found) == 1
    check([matrix.T], 0.03)


def test_nothing_depends_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 1, DTYPES["float32"])
    arrays: list[Array] = [content("random bits", size, "float32", seed=size) for size in (200_000, 3, 100, 90_000)]
    before, found = gpureg.get_num_threads(), set()
    for threads in (1, 2, 3, 8):
        gpureg.set_num_threads(threads)
        found.add(repr(backends.cpu().statistics(arrays, 0.5)))
    gpureg.set_num_threads(before)
    assert len(found) == 1


@given(
    dtype=st.sampled_from(tuple(DTYPES)),
    name=st.sampled_from(CONTENTS),
    tiles=st.sampled_from([1, 2, 4]),
    pieces=st.integers(0, 7),
    rest=st.integers(0, 2000),
    seed=st.integers(0, 100),
)
def test_pieces_make_the_whole(dtype: str, name: str, tiles: int, pieces: int, rest: int, seed: int) -> None:
    piece = tiles * tile_size(DTYPES[dtype].itemsize)
    w = content(name, pieces * piece + rest, dtype, seed=seed)
    parts = [w[start : start + piece] for start in range(0, w.size, piece)]
    whole, *each = backends.cpu().statistics([w, *parts], 0.03)
    with np.errstate(all="raise"):
        joined = join(each)
    assert_same(joined, whole._asdict())


def test_pieces_that_are_none_and_one() -> None:
    assert_same(join([]), NOTHING._asdict())
    one = Statistics(5, 3.0, 2.0, 1.5, 1, 2, 0, 0)
    assert_same(join([one]), one._asdict())


def test_pieces_are_added_by_the_tree() -> None:
    small = 1.5 * 2.0**-54  # lost where it meets the 1, unless it met another before
    parts = [Statistics(8192, total, total, 0.0, 0, 0, 0, 0) for total in (1.0, 0.0, small, small, small)]
    assert join(parts)[:3] == (5 * 8192, *[reference.tree([1.0, 0.0, small, small, small])] * 2)
    assert reference.tree([1.0, 0.0, small, small, small]) != 1.0


def test_pieces_whose_sum_overflows_are_infinite() -> None:
    part = Statistics(8192, 1e308, 1.5e308, 1.0, 0, 0, 0, 0)
    with np.errstate(all="raise"):
        assert join([part] * 3)[:3] == (3 * 8192, math.inf, math.inf)


def test_no_copy_of_an_array_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 1, DTYPES["float32"])
    w = content("weights", 2**20, "float32").reshape(1024, 1024)
    for array in (w, w.T[::-1]):
        backends.cpu().statistics([array], 0.1)
        tracemalloc.start()
        backends.cpu().statistics([array], 0.1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < w.nbytes / 4


def test_calls_of_many_arrays_are_in_order() -> None:
    w = content("wide", 3000 * 7, "float32").reshape(3000, 7)
    found = backends.cpu().statistics(list(w), 0.1)
    each: list[Any] = [backends.cpu().statistics([row], 0.1)[0] for row in w]
    assert found == each
