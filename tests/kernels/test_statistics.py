"""Statistics on the device: the kernel, run on the host, and all that is between a call and its launches."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpureg import arithmetic, backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import cuda
from gpureg.compiler import TYPES, statistics_pass
from gpureg.statistics import Statistics
from tests import helpers, reference, sets
from tests.helpers import CONTENTS, DTYPES, LAYOUTS, Array, content
from tests.host_cuda import Build, far, library, sanitized
from tests.host_cuda.backend import HostBackend
from tests.host_cuda.building import SMALL, Variant
from tests.host_cuda.cases import Calls, StatisticsCase, Tensor, check_statistics, numbers, sizes_of
from tests.kernels.fake_cupy import Device, FakeCupy, on_device, read_only
from tests.kernels.test_host_faults import RACE, Fault
from tests.kernels.test_host_offsets import check_words_of_statistics

NUMPY = backends.load("numpy")

# The kernel ----------------------------------------------------------------------------------------------------------

KERNELS = tuple(map(statistics_pass, TYPES))
LARGE, SMALL_TILES = Build(kernels=KERNELS), replace(SMALL, kernels=KERNELS)

CALLS = [
    *(pytest.param(LARGE, Calls(seed=1000 * i, statistics=250), id=f"large {i}") for i in range(6)),
    *(pytest.param(SMALL_TILES, Calls(seed=1000 * i, statistics=250, tiles=80), id=f"small {i}") for i in range(4)),
]
"""Of tiles as they are, and of many small ones: groups of 32, and so several of them."""


@pytest.mark.parametrize(("build", "calls"), CALLS)
def test_random_calls_have_numpys_bits(build: Build, calls: Calls) -> None:
    calls.check(library(build))


def check(weights: list[Array], threshold: float = 0.03, offset: int = 0, seed: int = 0) -> None:
    """Assert NumPy's bits of arrays, so many elements past alignment."""
    tensors = [Tensor(w, w, Coefficients(0.0, 0.0, 0.0), (offset, 0)) for w in weights]
    check_statistics(StatisticsCase(tensors, threshold, seed), HostBackend(library(LARGE)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_and_alignment(dtype: str) -> None:
    for size in helpers.sizes(dtype).values():
        for offset in range(16 // DTYPES[dtype].itemsize):
            check([numbers("wide", size, dtype, size)], 2.0**-20, offset)
            check([numbers("NaN", size, dtype, size)], 0.03, offset)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_content(dtype: str, name: str) -> None:
    for threshold in (0.0, 0.03, math.inf):
        check([content(name, helpers.sizes(dtype)["3 * tile + 5"], dtype)], threshold)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_group_of_tiles_and_more(dtype: str) -> None:
    group = cuda.GROUP * helpers.sizes(dtype)["tile"]
    for seed, size in enumerate((group - 1, group, group + 1, 2 * group + 5)):
        check([numbers("wide", size, dtype, size)], 2.0**-20, seed=seed)


def test_a_whole_group_of_one_kind_is_counted() -> None:
    """No count of a warp, a tile or a group is too large for where it is kept."""
    for dtype in DTYPES:
        size = cuda.GROUP * helpers.sizes(dtype)["tile"]
        for number in (0.0, math.nan, math.inf):
            check([np.full(size, number, DTYPES[dtype])], 1.0)


def test_the_pieces_of_small_tiles_are_the_references() -> None:
    with sizes_of(SMALL):
        weights = content("sparse", 70 * arithmetic.tile_size(4) + 5, "float32", seed=6)
        (found,) = HostBackend(library(SMALL_TILES)).statistics([weights], 0.0)
        assert found[1:3] == reference.sums(helpers.values(weights), "float32")


def test_nothing_is_launched_for_nothing() -> None:
    assert HostBackend(library(LARGE)).statistics([], 1.0) == []


# Faults of the kernel ------------------------------------------------------------------------------------------------

COUNTED = "if (count) __nv_atomic_fetch_add(places[i], count, __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE);"
ADDED = "sums = add_left(call.tile_sums + (tensor.first_tile + first), members, shared);"
ARRIVED = "call.tile_sums[tensor.first_tile + first + call.counters[index]] = sums"
PACKED = "lanes.below) << 16 | lanes.zeros", "lanes.zeros) << 16 | lanes.below"

FAULTS = {
    "zeros of one sign": ("return __float_as_uint(x) & 0x7fffffffu", "return __float_as_uint(x) & 0xffffffffu"),
    "the threshold counts as below": ("below += bits < threshold", "below += bits <= threshold"),
    "the last is the largest": ("bits > largest ? bits : largest", "bits"),
    "infinity is a NaN": ("lanes.nan += bits > infinity", "lanes.nan += bits >= infinity"),
    "NaN is the largest": ("if (bits <= infinity && bits > lanes.largest)", "if (bits > lanes.largest)"),
    "infinity is not the largest": ("if (bits <= infinity && bits >", "if (bits < infinity && bits >"),
    "infinities are looked for beside NaN alone": ("lanes.largest >= infinity", "lanes.largest > infinity"),
    "lanes are added in another order": ("abs[2 * lane] + abs[2 * lane + 1]", "abs[lane] + abs[lane + count]"),
    "a last row is dropped": ("row * ROW < size; ++row", "(row + 1) * ROW <= size; ++row"),
    "an element too many": ("if (i < size) function", "if (i <= size) function"),
    "half of a warp counts": ("distance < 32;", "distance < 16;"),
    "a count is added to another": PACKED,
    "too few bits for a count": ("counts >> 16 * i & 0xffffu", "counts >> 16 * i & 0x7fu"),
    "what others counted is lost": (COUNTED, "*places[i] = count;"),
    "sums in the order of arrival": ("call.tile_sums[blockIdx.x] = sums", ARRIVED),
    "the first group alone": ("index = tensor.first_group + tile / GROUP", "index = tensor.first_group"),
    "the sums of the last tile": (ADDED, ""),
}  # fmt: skip


@pytest.mark.parametrize(("right", "wrong"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_seen_beside_numpy(right: str, wrong: str, tmp_path: Path) -> None:
    Fault("statistics.cu", right, wrong).plant(tmp_path)
    calls = Calls(statistics=300, pairs=(("float32", "float32"),), tiles=80)
    build = replace(SMALL, kernels=(statistics_pass("float32"),), folder=tmp_path)
    with pytest.raises(AssertionError, match=r"of the statistics differ|a counter is not zero"):
        calls.check(library(build))


def test_a_ticket_that_orders_nothing_is_seen(tmp_path: Path) -> None:
    Fault("tree.cuh", "__NV_ATOMIC_ACQ_REL", "__NV_ATOMIC_RELAXED").plant(tmp_path)
    calls = Calls(statistics=20, pairs=(("float32", "float32"),), tiles=4)
    build = Build(Variant.THREADS, (statistics_pass("float32"),), folder=tmp_path)
    assert re.search(RACE, sanitized.run(build, calls))


@pytest.mark.parametrize(
    ("right", "wrong", "offset"),
    [
        ("start = static_cast<unsigned long long>(tile) * TILE", "start = tile * TILE", 0),
        ("left = tensor.size - start", "left = static_cast<unsigned>(tensor.size - start)", 0),
        ("static_cast<int>(left < TILE ?", "static_cast<int>(static_cast<unsigned>(left) < TILE ?", 1),
        ("static_cast<unsigned>((tensor.size + TILE - 1) / TILE)", "static_cast<unsigned>(tensor.size) / TILE + 1", 0),
    ],
)  # fmt: skip
def test_32_bits_are_seen_to_be_too_few(right: str, wrong: str, offset: int, tmp_path: Path) -> None:
    Fault("statistics.cu", right, wrong).plant(tmp_path)
    with pytest.raises(AssertionError):
        far.check_statistics(library(Build(kernels=(statistics_pass("float16"),), folder=tmp_path)), "float16", offset)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("size == ROWS * ROW", "size > ROWS * ROW"), ("% 16 == 0", "% 32 == 0")],
)
def test_statistics_without_words_are_seen(right: str, wrong: str, tmp_path: Path) -> None:
    Fault("statistics.cu", right, wrong).plant(tmp_path)
    with pytest.raises(AssertionError):
        check_words_of_statistics(library(Build(kernels=(statistics_pass("float32"),), folder=tmp_path)), "float32")


# The call ------------------------------------------------------------------------------------------------------------


def compare(cupy: FakeCupy, arrays: list[Array], threshold: float = 0.03) -> list[Statistics]:
    """Assert that the device makes NumPy's statistics, to the bit, and writes to no array."""
    device = [on_device(cupy, array) for array in arrays]
    with read_only(*device):
        found = cuda.backend.statistics(device, threshold)
    for one, wanted in zip(found, NUMPY.statistics(arrays, threshold), strict=True):
        assert [type(number) for number in one] == [type(number) for number in wanted]
        assert np.array_equal(helpers.bits(np.array(one)), helpers.bits(np.array(wanted)))
    return found


@given(st.integers(1, 30), st.integers(0, 2**32), st.sampled_from([0.0, 0.03, 1e-5, math.inf]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_sets_have_numpys_bits(cupy: FakeCupy, count: int, seed: int, threshold: float) -> None:
    compare(cupy, list(sets.make(count, seed).weights.values()), threshold)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(cupy: FakeCupy, dtype: str, layout: str) -> None:
    compare(cupy, [LAYOUTS[layout].place(content("NaN", 1800, dtype).reshape(6, 5, 60)).array])


def weights(*sizes: int, dtype: str = "float32") -> list[Array]:
    return [content("wide", size, dtype, seed=i) for i, size in enumerate(sizes)]


def test_each_dtype_is_a_launch_and_one_tensor_needs_no_table(cupy: FakeCupy) -> None:
    arrays = [
        *weights(10, 20_000),
        *weights(11, dtype="bfloat16"),
        *weights(0),
        *weights(8193),
        *weights(0, dtype="float64"),
    ]
    uploads = cupy.uploads + len(arrays)
    compare(cupy, arrays)
    assert cupy.launches == [("statistics_pass<float>", 6), ("statistics_pass<BFloat16>", 1)]
    assert cupy.uploads - uploads <= 2
    del cupy.launches[:]
    compare(cupy, weights(100_000))
    assert cupy.launches == [("statistics_pass<float>", 13)]


def test_several_groups_of_several_tensors(cupy: FakeCupy) -> None:
    group = cuda.GROUP * arithmetic.tile_size(8)
    compare(
        cupy, [*weights(group + 1, 2 * group, dtype="float64"), *weights(2 * group + 1), *weights(5, dtype="float64")]
    )


def test_counters_are_left_for_the_next_call(cupy: FakeCupy) -> None:
    arrays = weights(30_000, 50_000)
    first, second = (compare(cupy, arrays) for _ in range(2))
    assert first == second


def test_counters_are_thrown_away_after_an_error(cupy: FakeCupy) -> None:
    arrays = weights(30_000, 50_000)
    compare(cupy, arrays)
    launch = cupy.launch

    def fail(*_: Any) -> None:
        (counters,) = cuda._Stream._counters.values()
        counters._host[...] = 3
        raise RuntimeError("a launch failed")

    cupy.launch = fail
    with pytest.raises(RuntimeError, match="a launch failed"):
        cuda.backend.statistics([on_device(cupy, array) for array in arrays], 0.1)
    cupy.launch = launch
    compare(cupy, arrays)


def test_nothing_is_nothing(cupy: FakeCupy) -> None:
    assert cuda.backend.statistics([], 1.0) == []
    assert compare(cupy, weights(0, 0)) == [Statistics(0, 0.0, 0.0, 0.0, 0, 0, 0, 0)] * 2
    assert cupy.launches == []


def test_it_is_done_where_the_tensors_are(cupy: FakeCupy) -> None:
    with Device(1):
        device = [on_device(cupy, array) for array in weights(10, 9000)]
    assert cuda.backend.statistics(device, 0.1) == NUMPY.statistics(weights(10, 9000), 0.1)


def test_arrays_of_two_devices_are_each_passed_over_on_their_own(cupy: FakeCupy) -> None:
    host = [content("wide", 3000, "float32", seed=seed) for seed in range(3)]
    arrays = [on_device(cupy, host[0])]
    with Device(1):
        arrays.append(on_device(cupy, host[1]))
    arrays.append(on_device(cupy, host[2]))
    assert cuda.backend.statistics(arrays, 0.5) == NUMPY.statistics(host, 0.5)
    assert len(cupy.launches) == 2
