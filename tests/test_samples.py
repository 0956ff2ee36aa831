"""The integers that weights are made of are those of the definition, and so are the bits of the weights."""

import numpy as np
import pytest

from gpureg import samples
from gpureg.selftest import checksum, dtypes

MASK = 2**64 - 1


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator, step by step on Python integers."""
    state, out = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def test_integers_are_splitmix64() -> None:
    assert samples.integers(0, 50, seed=0).tolist() == splitmix64(0, 50)
    assert samples.integers(20, 50, seed=0).tolist() == splitmix64(0, 50)[20:]


def test_seeds_give_other_integers() -> None:
    first, second = samples.integers(0, 10_000, seed=1), samples.integers(0, 10_000, seed=2)
    assert np.intersect1d(first, second).size == 0


def test_weights_are_a_bell_of_exact_numbers() -> None:
    weights = samples.weights(200_003, np.float32, seed=5)
    scaled = weights.astype(np.float64) * 2**13
    assert np.all(scaled == np.round(scaled))
    assert abs(weights.mean()) < 0.001
    assert 0.043 < weights.std() < 0.046
    assert np.abs(weights).max() < 0.19
    # The blocks they are made in leave no mark, and a shorter array is the start of a longer one.
    assert np.array_equal(samples.weights(70_000, seed=5), weights[:70_000])


@pytest.mark.parametrize("dtype", dtypes().values(), ids=str)
def test_wide_weights_are_finite_below_two_and_of_all_magnitudes(dtype: np.dtype[np.generic]) -> None:
    wide = samples.wide(20_000, dtype).astype(np.float64)
    assert np.all(np.abs(wide) < 2)
    assert np.any(wide < 0)
    exponents = np.unique(np.frexp(wide[wide != 0])[1])
    assert exponents.size > (14 if dtype == np.float16 else 100)


@pytest.mark.parametrize("dtype", dtypes().values(), ids=str)
def test_tiny_weights_are_subnormal_or_next_to_it(dtype: np.dtype[np.generic]) -> None:
    tiny = np.abs(samples.tiny(20_000, dtype).astype(np.float64))
    smallest_normal = {"float16": 2.0**-14, "float64": 2.0**-1022}.get(dtype.name, 2.0**-126)
    assert np.all(tiny < 2 * smallest_normal)
    assert 0.45 < np.mean(tiny < smallest_normal) < 0.55


@pytest.mark.parametrize("dtype", dtypes().values(), ids=str)
def test_random_bits_hold_what_is_not_finite(dtype: np.dtype[np.generic]) -> None:
    bits = samples.random_bits(200_000, dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        assert np.any(np.isnan(bits))
        assert dtype.itemsize > 2 or np.any(np.isinf(bits))


def test_the_bits_are_the_same_everywhere() -> None:
    assert checksum(samples.weights(100_000)) == "be2c41187ba57f34"
    assert checksum(samples.wide(100_000, np.float64)) == "80fafc06d6a0c0d8"
    assert checksum(samples.random_bits(100_001, np.float16)) == "1f8d9e1c8405b345"
