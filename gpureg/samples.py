"""Arrays made from integers alone, so that every machine and every version of NumPy makes the same bits.

The self-test, the demonstration, the benchmarks and the tests take their weights from here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**16
"""Elements made at a time: few enough to stay in the cache."""

SEEDS = 2**24
"""How many seeds there are."""

_FRACTION_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}


def integers(start: int, stop: int, seed: int) -> NDArray[np.uint64]:
    """Return the 64-bit integers start to stop of a sequence without visible pattern: splitmix64 at any place of it.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Sequences of different seeds, from 0 to SEEDS - 1, have no element in common before their 2**40th.

    >>> integers(0, 2, seed=0)
    array([16294208416658607535,  7960286522194355700], dtype=uint64)
    """
    # Unsigned arrays wrap without a warning, as the definition wants.
    z = np.arange(start + 1, stop + 1, dtype=np.uint64)
    z += np.uint64(seed << 40)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def weights(size: int, dtype: Any = np.float32, *, seed: int = 0) -> NDArray[Any]:
    """Return `size` numbers that look like a layer's weights: a bell of standard deviation 0.044, nothing beyond 0.19.

    Each is the sum of the six bytes of an integer, centred and divided by a power of two: exact in float32, rounded
    once for the 16-bit dtypes.

    >>> weights(3)
    array([-0.00195312,  0.04638672, -0.08862305], dtype=float32)
    """
    result = np.empty(size, dtype)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        # Bytes as a little-endian machine lays them, on every machine.
        bytes_ = integers(start, stop, seed).astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :6]
        total = bytes_.sum(axis=1, dtype=np.int32) * 2 - 6 * 255
        np.copyto(result[start:stop], total.astype(np.float32) * np.float32(2.0**-13), casting="unsafe")
    return result


def random_bits(size: int, dtype: Any, *, seed: int = 0) -> NDArray[Any]:
    """Return `size` numbers whose bits are random: all magnitudes, subnormals, infinities and NaN among them.

    >>> random_bits(2, np.float64)
    array([-4.79609465e+164,  1.42384898e+224])
    """
    kind = np.dtype(dtype)
    raw = integers(0, -(-size * kind.itemsize // 8), seed)
    return np.frombuffer(raw.astype("<u8").tobytes()[: size * kind.itemsize], kind.newbyteorder("<")).astype(kind)


def wide(size: int, dtype: Any, *, seed: int = 0) -> NDArray[Any]:
    """Return random bits below 2 in magnitude: all smaller exponents, subnormals too, so that float64 sums round.

    >>> wide(2, np.float64)
    array([-2.66791620e-144,  7.92042286e-085])
    """
    kind = np.dtype(dtype)
    highest_bit_of_exponent = 1 << (8 * kind.itemsize - 2)
    return _cleared(kind, highest_bit_of_exponent, size, seed)


def tiny(size: int, dtype: Any, *, seed: int = 0) -> NDArray[Any]:
    """Return random bits of the smallest magnitudes: subnormals, and as many of the smallest normal numbers.

    >>> tiny(2, np.float64)
    array([-9.13847693e-310,  3.42366755e-308])
    """
    kind = np.dtype(dtype)
    sign, lowest_bit_of_exponent = 1 << (8 * kind.itemsize - 1), 1 << _FRACTION_BITS[kind.name]
    return _cleared(kind, sign - 2 * lowest_bit_of_exponent, size, seed)


def _cleared(kind: np.dtype[Any], bits: int, size: int, seed: int) -> NDArray[Any]:
    """Return numbers whose bits are random but for some that are 0."""
    random = random_bits(size, f"u{kind.itemsize}", seed=seed)
    result: NDArray[Any] = (random & ~random.dtype.type(bits)).view(kind)
    return result
