"""The kernels, run on the host, give the bits of the NumPy backend: in every dtype, mode, size, alignment and set."""

from dataclasses import replace

import numpy as np
import pytest

from gpureg import arithmetic, samples, selftest
from gpureg.arithmetic import Coefficients
from gpureg.backends import Mode
from tests import helpers, reference
from tests.helpers import DTYPES, Array, assert_bits, values
from tests.host_cuda import library
from tests.host_cuda.backend import HostBackend
from tests.host_cuda.building import SMALL
from tests.host_cuda.cases import PAIRS, Calls, Case, Tensor, check, numbers, sizes_of
from tests.passes import Leaf

BOTH = Coefficients(l1=0.1, l2=0.3, twice_l2=0.6)
TERMS = (Coefficients(0.1, 0.0, 0.0), Coefficients(0.0, 0.3, 0.6), BOTH)

RANDOM_CALLS = [Calls(seed=1000 * number, passes=400, steps=50) for number in range(30)]
"""The first that is promised: more than 10^4 cases, beside those of the other tests."""

# All dtypes of weights, and every way of finishing a sum; the passes are those of the large tiles.
SMALL_CALLS = [
    Calls(
        seed=10**6 + 1000 * number,
        passes=250,
        pairs=(("float16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32"), ("float64", "float64")),
        modes=(Mode.VALUE, Mode.ACCUMULATE),
        tiles=40,
    )
    for number in range(8)
]


def small() -> HostBackend:
    """Return the kernels with blocks of one warp, and so groups of 32 tiles."""
    return HostBackend(library(replace(SMALL, kernels=SMALL_CALLS[0].kernels())))


@pytest.mark.parametrize("calls", RANDOM_CALLS, ids=lambda calls: str(calls.seed))
def test_random_calls(calls: Calls) -> None:
    calls.check(library())


def test_there_are_ten_thousand_random_calls() -> None:
    assert sum(calls.passes for calls in RANDOM_CALLS) >= 10**4
    seeds = [seed for calls in RANDOM_CALLS for seed in range(calls.seed, calls.seed + calls.passes)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("calls", SMALL_CALLS, ids=lambda calls: str(calls.seed))
def test_random_calls_of_many_small_tiles(calls: Calls) -> None:
    calls.check(small().kernels)


# Every kernel in every size and alignment ----------------------------------------------------------------------------


def tensor(size: int, weights: str, into: str, terms: Coefficients = BOTH, offsets: tuple[int, int] = (0, 0)) -> Tensor:
    return Tensor(numbers("wide", size, weights, size), numbers("weights", size, into, size), terms, offsets)


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.name)
@pytest.mark.parametrize(("weights", "into"), PAIRS)
def test_every_size_and_alignment(weights: str, into: str, mode: Mode) -> None:
    host, places, grad_places = HostBackend(), 16 // DTYPES[weights].itemsize, 16 // DTYPES[into].itemsize
    for terms in TERMS:
        for size in helpers.sizes(weights).values():
            for offsets in ((0, 0), (1, 0), (0, 1), (1, 1)):
                check(Case(mode, [tensor(size, weights, into, terms, offsets)]), host)
        whole = arithmetic.tile_size(DTYPES[weights].itemsize)
        for place in range(2, max(places, grad_places)):
            check(Case(mode, [tensor(whole, weights, into, terms, (place % places, place % grad_places))]), host)


# Many tiles, many tensors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.VALUE, Mode.ACCUMULATE], ids=lambda mode: mode.name)
@pytest.mark.parametrize(("weights", "into"), PAIRS)
def test_one_group_of_tiles_and_more(weights: str, into: str, mode: Mode) -> None:
    tile, group = arithmetic.tile_size(DTYPES[weights].itemsize), arithmetic.ROW_BYTES // 16
    for seed, size in enumerate((group * tile, group * tile + 1, 2 * group * tile + 3 * tile + 5)):
        check(Case(mode, [tensor(size, weights, into)], seed=seed), HostBackend())


def one_in_each_tile(tiles: int, dtype: str, seed: int) -> Array:
    """Return zeros but for a 1 and many numbers below half of its last bit: it counts who meets whom before the 1."""
    tile = arithmetic.tile_size(DTYPES[dtype].itemsize)
    random = samples.integers(0, tiles + 1, seed)
    weights = np.zeros(tiles * tile - 3, DTYPES[dtype])
    weights[::tile] = (random[:-1] % np.uint64(2)).astype(DTYPES[dtype]) * 1.984375 * 2.0**-54
    weights[int(random[-1]) % tiles * tile] = 1.0
    return weights


@pytest.mark.parametrize("tiles", [32 * 32, 32 * 32 + 1, 40 * 32 + 7])
def test_more_groups_than_one_block_adds_at_once(tiles: int) -> None:
    with sizes_of(SMALL):
        wide = numbers("wide", tiles * arithmetic.tile_size(4) - 3, "float32", tiles)
        for seed, weights in enumerate((wide, *(one_in_each_tile(tiles, "float32", seed) for seed in range(4)))):
            check(Case(Mode.VALUE, [Tensor(weights, weights, BOTH)], seed=seed), small())


def test_the_reference_gives_the_bits_of_three_levels_of_groups_too() -> None:
    with sizes_of(SMALL):
        weights = one_in_each_tile(32 * 32 + 7, "float64", seed=7)
        found = small().run(Mode.VALUE, [Leaf(weights, BOTH)])
        expected = reference.value(values(weights), "float64", reference.Rule(BOTH.l1, BOTH.l2))
    assert_bits(found.each[-1], expected, "float64")


@pytest.mark.parametrize("count", [127, 128, 129, 1000])
def test_more_tensors_than_one_block_adds_at_once(count: int) -> None:
    tensors = [tensor(1 + i % 7 * (i % 3), *PAIRS[i % len(PAIRS)], TERMS[i % 3]) for i in range(count)]
    for mode in Mode:
        check(Case(mode, tensors, seed=count), HostBackend())


def test_three_rounds_over_the_tensors() -> None:
    tensors = [tensor(i % 5, "float32", "float32", TERMS[i % 3]) for i in range(32 * 32 + 50)]
    with sizes_of(SMALL):
        check(Case(Mode.ACCUMULATE, tensors, seed=3), small())


def test_empty_tensors_count_and_add_nothing() -> None:
    for count in (1, 2, 5, 200):
        empty = [tensor(0, *PAIRS[i % len(PAIRS)]) for i in range(count)]
        for mode in Mode:
            check(Case(mode, empty), HostBackend())
            check(Case(mode, [*empty, tensor(10000, "float32", "float32"), *empty]), HostBackend())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 64, 65, 127, 128, 129, 192, 256, 257, 512])
def test_a_total_of_negative_zeros_is_negative_unless_the_tree_is_padded(count: int) -> None:
    empty = [tensor(0, "float32", "float32")] * count
    check(Case(Mode.VALUE, empty, strength=-0.7), HostBackend())


# The whole arithmetic ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_golden_checksums(dtype: str, seed: int) -> None:
    computed = dict(selftest.digests(HostBackend(seed=seed), selftest.dtypes()[dtype]))
    assert computed == {name: digest for name, digest in selftest.golden().items() if name.startswith(f"{dtype} ")}
