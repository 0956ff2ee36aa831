"""A self-test of backends: a fixed set of cases whose bits are known, and fresh ones that may be cut into pieces.

The checksums in `golden.json` were computed from a naive implementation of the arithmetic in plain Python
(`tests/reference.py`), not by any backend. A backend that gives other bits for any case is broken, or the machine is:
flushing subnormals to zero, say, because some library switched that on for the whole process.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpureg import backends, samples
from gpureg.arithmetic import Coefficients, lane_count, tile_size, tree_sum
from gpureg.backends import Backend, Leaf

Array = NDArray[Any]

# Strange enough that no product with a weight is exact.
COEFFICIENTS = {
    "L1": Coefficients(l1=0.1, l2=0.0, twice_l2=0.0),
    "HalvedL2": Coefficients(l1=0.0, l2=0.15, twice_l2=0.3),
    "L1L2": Coefficients(l1=0.7, l2=0.3, twice_l2=0.6),
}

_FRESH_SIZE = 2**20 + 3
_PIECE_TILES = 4


class Case(NamedTuple):
    """Weights, a gradient that is there, and the name under which their checksums are kept."""

    name: str
    weights: Array
    gradient: Array


def dtypes() -> dict[str, np.dtype[Any]]:
    """Return the dtypes that can be tested here by name; bfloat16 needs ml_dtypes."""
    found = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
    try:
        import ml_dtypes  # noqa: PLC0415 - optional
    except ModuleNotFoundError:
        return found
    return {**found, "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def cases(dtype: np.dtype[Any]) -> Iterator[Case]:
    """Yield the cases of a dtype: ordinary and adversarial weights, in sizes around a row and a tile."""
    tile, lanes = tile_size(dtype.itemsize), lane_count(dtype.itemsize)
    contents = {
        "weights": samples.weights,
        "wide": samples.wide,
        "tiny": samples.tiny,
        "bits": samples.random_bits,
    }
    for content, make in contents.items():
        for number, size in enumerate((0, 1, lanes + 1, tile - 1, tile + 1, 3 * tile + 5)):
            gradient = samples.weights(size, np.float32, seed=100 + number)
            yield Case(f"{dtype.name} {content} {size}", make(size, dtype, seed=number), gradient)


def digests(backend: Backend, dtype: np.dtype[Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the checksum of everything a backend computes for the cases of a dtype."""
    everything = list(cases(dtype))
    for case in everything:
        for name, coefficients in COEFFICIENTS.items():
            yield f"{case.name} {name}", checksum(*_results(backend, case, coefficients))
    for name, coefficients in COEFFICIENTS.items():
        leaves = [Leaf(backend.from_numpy(case.weights), coefficients) for case in everything]
        many = backend.value(leaves, np.dtype(np.float64))
        yield f"{dtype.name} together {name}", checksum(*map(backend.to_numpy, many))


def _results(backend: Backend, case: Case, coefficients: Coefficients) -> Iterator[Array]:
    """Yield what a backend makes of a case: value, gradient, both, the gradient added to one there, proximal step."""
    result = np.dtype(np.float64 if case.weights.itemsize == 8 else np.float32)
    weights = backend.from_numpy(case.weights)
    for value in backend.value([Leaf(weights, coefficients)], result):
        yield backend.to_numpy(value)
    for dtype in dict.fromkeys([case.weights.dtype, np.dtype(np.float32)]):
        with np.errstate(all="ignore"):
            start = case.gradient.astype(dtype)
        gradient = backend.from_numpy(np.ones_like(start))
        backend.gradient([Leaf(weights, coefficients, gradient)])
        yield backend.to_numpy(gradient)
        gradient = backend.from_numpy(np.ones_like(start))
        yield backend.to_numpy(backend.value_and_gradient([Leaf(weights, coefficients, gradient)], result).total)
        yield backend.to_numpy(gradient)
        gradient = backend.from_numpy(start)
        values = backend.accumulate([Leaf(weights, coefficients, gradient)], result, strength=0.5, upstream=-3.0)
        yield backend.to_numpy(values.total)
        yield backend.to_numpy(gradient)
    moved = backend.from_numpy(case.weights)
    backend.proximal([Leaf(moved, coefficients)], 0.01)
    yield backend.to_numpy(moved)


def golden() -> dict[str, str]:
    """Return the known checksums by name."""
    text = resources.files("gpureg").joinpath("golden.json").read_text(encoding="utf-8")
    known: dict[str, str] = json.loads(text)
    return known


class Outcome(NamedTuple):
    """How a backend did: how many checks were made, and the names of those that failed."""

    checks: int
    failed: tuple[str, ...]


def run(backend: Backend, seed: int = 0) -> Outcome:
    """Compare all that a backend computes with the known checksums, and fresh weights of a seed with NumPy's bits."""
    expected = golden()
    found: dict[str, str] = {}
    for dtype in dtypes().values():
        found |= dict(digests(backend, dtype))
        fresh, name = samples.wide(_FRESH_SIZE, dtype, seed=seed), f"{dtype.name} fresh {seed}"
        expected[name] = checksum(_sums(backends.load("numpy"), fresh))
        found[name] = checksum(_sums(backend, fresh))
        expected[f"{name} in pieces"] = found[name]
        found[f"{name} in pieces"] = checksum(_pieces(backend, fresh))
    failed = [name for name in found if found[name] != expected.get(name)]
    return Outcome(len(found), tuple(failed))


def _sums(backend: Backend, weights: Array) -> Array:
    """Return sum|w| and sum w*w in float64."""
    leaves = [Leaf(backend.from_numpy(weights), Coefficients(*one)) for one in ((1.0, 0.0, 0.0), (0.0, 1.0, 2.0))]
    return backend.to_numpy(backend.value(leaves, np.dtype(np.float64)).each)


def _pieces(backend: Backend, weights: Array) -> Array:
    """Return what `_sums` returns, from the sums of pieces of whole tiles: each is a subtree of the sum of all."""
    piece = _PIECE_TILES * tile_size(weights.itemsize)
    sums = [_sums(backend, weights[start : start + piece]) for start in range(0, weights.size, piece)]
    with np.errstate(all="ignore"):
        return tree_sum(np.array(sums).T)


def checksum(*arrays: Array) -> str:
    """Return a checksum of the arrays' bits, every NaN counted as the same, on machines of either byte order.

    >>> checksum(np.float32([1.0, 2.0]))
    'b9c80b5adeca4507'
    """
    digest = hashlib.sha256()
    for array in arrays:
        bits = np.array(array)  # a copy
        with np.errstate(invalid="ignore"):  # a signalling NaN is one too
            bits[np.isnan(bits)] = np.nan
        digest.update(bits.view(f"u{bits.itemsize}").astype(f"<u{bits.itemsize}").tobytes())
    return digest.hexdigest()[:16]
