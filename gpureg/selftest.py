"""A self-test of backends: a fixed set of cases whose bits are known, and fresh ones that may be cut into pieces.

The checksums in `golden.json` were computed from a naive implementation of the arithmetic in plain Python
(`tests/reference.py`), not by any backend. A backend that gives other bits for any case is broken, or the machine is:
flushing subnormals to zero, say, because some library switched that on for the whole process.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, backends, samples
from gpureg.arithmetic import Coefficients, lane_count, tile_size, tree_sum
from gpureg.backends import Backend, Leaf
from gpureg.statistics import join

Array = NDArray[Any]

# Strange enough that no product with a weight is exact.
COEFFICIENTS = {
    "L1": Coefficients(l1=0.1, l2=0.0, twice_l2=0.0),
    "HalvedL2": Coefficients(l1=0.0, l2=0.15, twice_l2=0.3),
    "L1L2": Coefficients(l1=0.7, l2=0.3, twice_l2=0.6),
}

# Of statistics: no number of any dtype, and among all contents.
THRESHOLD = 0.01

_ABS, _SQUARES = Coefficients(1.0, 0.0, 0.0), Coefficients(0.0, 1.0, 2.0)

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
        many = backend.plan(leaves).value(np.dtype(np.float64))
        yield f"{dtype.name} together {name}", checksum(*map(backend.to_numpy, (many.total, many.each)))
    told = backend.statistics([backend.from_numpy(case.weights) for case in everything], THRESHOLD)
    for case, statistics in zip(everything, told, strict=True):
        yield f"{case.name} statistics", checksum(np.array(statistics))


def _results(backend: Backend, case: Case, coefficients: Coefficients) -> Iterator[Array]:
    """Yield what a backend makes of a case: value, gradient, both, the gradient added to one there, proximal step."""
    result = np.dtype(np.float64 if case.weights.itemsize == 8 else np.float32)
    weights = backend.from_numpy(case.weights)
    plan = backend.plan([Leaf(weights, coefficients)])
    value = plan.value(result)
    yield backend.to_numpy(value.total)
    yield backend.to_numpy(value.each)
    for dtype in dict.fromkeys([case.weights.dtype, np.dtype(np.float32)]):
        with np.errstate(all="ignore"):
            start = case.gradient.astype(dtype)
        gradient = backend.from_numpy(np.ones_like(start))
        plan.gradient(plan.bind([gradient]))
        yield backend.to_numpy(gradient)
        gradient = backend.from_numpy(np.ones_like(start))
        yield backend.to_numpy(plan.value_and_gradient(result, plan.bind([gradient])).total)
        yield backend.to_numpy(gradient)
        gradient = backend.from_numpy(start)
        values = plan.accumulate(result, plan.bind([gradient]), strength=0.5, upstream=-3.0)
        yield backend.to_numpy(values.total)
        yield backend.to_numpy(gradient)
    moved = backend.from_numpy(case.weights)
    backend.proximal_plan([Leaf(moved, coefficients)]).take([0.01])
    yield backend.to_numpy(moved)


def golden() -> dict[str, str]:
    """Return the known checksums by name."""
    text = resources.files("gpureg").joinpath("golden.json").read_text(encoding="utf-8")
    known: dict[str, str] = json.loads(text)
    return known


class Outcome(NamedTuple):
    """How a backend did: the comparisons made with known checksums and over fresh weights, and those that failed."""

    golden: int
    fresh: int
    failed: tuple[str, ...]


def run(backend: Backend, seed: int = 0) -> Outcome:
    """Compare all that a backend computes with the known checksums, and of fresh weights of a seed what must agree.

    Fresh weights are more than a chunk or a group of tiles. Whole, they must give NumPy's bits and those of their
    pieces.
    """
    known = golden()
    found = {name: digest for dtype in dtypes().values() for name, digest in digests(backend, dtype)}
    failed = [name for name in found if found[name] != known.get(name)]
    fresh = 0
    for dtype in dtypes().values():
        for name, coefficients in COEFFICIENTS.items():
            weights = samples.wide(_FRESH_SIZE, dtype, seed=seed)
            whole = checksum(*_everything(backend, weights, coefficients))
            others = {
                "NumPy's": checksum(*_everything(backends.load("numpy"), weights, coefficients)),
                "in pieces": checksum(*_pieces(backend, weights, coefficients)),
            }
            fresh += len(others)
            failed += [f"{dtype.name} fresh {seed} {name} {other}" for other in others if others[other] != whole]
        weights = samples.random_bits(_FRESH_SIZE, dtype, seed=seed)
        whole = _statistics(backend, [weights])
        others = {
            "NumPy's": _statistics(backends.load("numpy"), [weights]),
            "in pieces": _statistics(backend, _cut(weights)),
        }
        fresh += len(others)
        failed += [f"{dtype.name} fresh {seed} statistics {other}" for other in others if others[other] != whole]
    return Outcome(len(found), fresh, tuple(failed))


def _everything(backend: Backend, weights: Array, coefficients: Coefficients) -> list[Array]:
    """Return the penalty in float64, the gradient, the same added to ones, and the weights after a proximal step."""
    leaf = Leaf(backend.from_numpy(weights), coefficients)
    stored, added = backend.from_numpy(np.empty_like(weights)), backend.from_numpy(np.ones_like(weights))
    plan = backend.plan([leaf])
    penalty = plan.value_and_gradient(np.dtype(np.float64), plan.bind([stored])).total
    plan.accumulate(np.dtype(np.float64), plan.bind([added]))
    backend.proximal_plan([leaf]).take([0.01])
    return [backend.to_numpy(array) for array in (penalty, stored, added, leaf.weights)]


def _statistics(backend: Backend, pieces: Sequence[Array]) -> str:
    """Return the checksum of the statistics of a tensor, which is given in pieces."""
    return checksum(np.array(join(backend.statistics([backend.from_numpy(piece) for piece in pieces], THRESHOLD))))


def _cut(weights: Array) -> list[Array]:
    """Return pieces of a power-of-two number of whole tiles."""
    piece = _PIECE_TILES * tile_size(weights.itemsize)
    return [weights[start : start + piece] for start in range(0, weights.size, piece)]


def _pieces(backend: Backend, weights: Array, coefficients: Coefficients) -> list[Array]:
    """Return what `_everything` returns, made of pieces of whole tiles: each is a subtree of the sum of all."""
    pieces = _cut(weights)
    _, *arrays = zip(*(_everything(backend, part, coefficients) for part in pieces), strict=True)
    sums = [tree_sum(np.array([_sum(backend, part, one) for part in pieces])) for one in (_ABS, _SQUARES)]
    penalty = arithmetic.penalty(coefficients, 1.0, *map(float, sums))
    return [np.array(penalty), *map(np.concatenate, arrays)]


def _sum(backend: Backend, weights: Array, one: Coefficients) -> float:
    """Return one of the sums in float64."""
    plan = backend.plan([Leaf(backend.from_numpy(weights), one)])
    return float(backend.to_numpy(plan.value(np.dtype(np.float64)).total))


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
