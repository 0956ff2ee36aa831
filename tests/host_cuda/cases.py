"""Random calls of the kernels, and the comparison of all they return and write with the NumPy backend, bit for bit."""

import functools
import math
import random
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import Mode
from gpureg.backends.numpy import backend as numpy_backend
from gpureg.compiler import penalty_pass, proximal_step, statistics_pass
from tests import helpers, reference
from tests.helpers import DTYPES
from tests.host_cuda import Build, Library
from tests.host_cuda.backend import HostBackend, Results
from tests.host_cuda.memory import Memory
from tests.passes import Leaf, run

Array = NDArray[Any]

PAIRS = tuple((dtype, into) for dtype in DTYPES for into in helpers.gradient_dtypes(dtype))
"""Dtypes of weights and of their gradients."""

_POOL = 2**18

_LENGTHS = (0.0, 0.01, 0.3, 1.0, 1e-30, 1e30, 1e300)


class Range(NamedTuple):
    """What a random call is made of."""

    contents: tuple[str, ...]
    coefficients: tuple[float, ...]
    factors: tuple[float, ...]
    special: tuple[float, ...]  # one of these at a random place of every tenth tensor


# In most calls nothing may hide what is wrong with a sum, as one NaN does, or one tensor that outweighs all others.
_ORDINARY = Range(("weights", "weights", "wide", "wide", "sparse", "zeros"), (0.1, 0.3, 1.0), (0.7, -0.7, 1.0), (-0.0,))
_WILD = Range(
    ("weights", "wide", "tiny", "huge", "subnormals", "zeros", "largest", "infinities", "random bits"),
    (0.1, 0.3, 1.0, 1e-30, 1e30, 1e-50, 1e300, 5e-324),
    (0.7, -0.7, 0.0, -0.0, 1e-50, 1e-40, 1e50, 5e-324, math.inf, -math.inf, math.nan),
    (math.nan, math.inf, -math.inf, -0.0),
)


class Tensor(NamedTuple):
    """A tensor of a call: its numbers, what its gradient is before, and how many elements past alignment they lie."""

    weights: Array
    gradient: Array
    coefficients: Coefficients
    offsets: tuple[int, int] = (0, 0)

    def __repr__(self) -> str:
        dtypes = f"{self.weights.dtype.name} -> {self.gradient.dtype.name}"
        return f"{self.weights.size} {dtypes} at {self.offsets} by {tuple(self.coefficients)}"


class Case(NamedTuple):
    """A call; a factor may be a 0-d array, which the kernels read where it is."""

    mode: Mode
    tensors: Sequence[Tensor]
    strength: Any = 1.0
    upstream: Any = 1.0
    divisor: int = 1
    seed: int = 0
    sums: bool = False  # whether all are asked for


class StepCase(NamedTuple):
    """Proximal steps of tensors; what is a 0-d array the kernels read where it is."""

    tensors: Sequence[Tensor]
    lengths: Sequence[Any]
    strength: Any = 1.0
    skips: Any = 0.0
    seed: int = 0


class StatisticsCase(NamedTuple):
    """Statistics of tensors."""

    tensors: Sequence[Tensor]
    threshold: float
    seed: int = 0


# Comparison ----------------------------------------------------------------------------------------------------------


def check(case: Case, host: HostBackend) -> None:
    """Assert that a call gives the bits of the NumPy backend, and touches nothing that it must not."""
    memory = Memory(guards=host.guards)
    placed = [_place(tensor, case.mode, memory) for tensor in case.tensors]
    host.seed = case.seed
    found = host.run(case.mode, placed, case.strength, case.upstream, divisor=case.divisor, sums=case.sums)
    expected, gradients = _by_numpy(case)
    memory.check()
    if expected is not None:
        _assert_same(found.each[:-1], expected.each[:-1], "each", case)
        _assert_same(found.each[-1], expected.each[-1], "the total", case)
        _assert_same(found.rounded, expected.rounded, "the rounded penalties", case)
        if expected.sums is not None:
            _assert_same(found.sums, expected.sums, "the sums", case)
    for i, (leaf, tensor, gradient) in enumerate(zip(placed, case.tensors, gradients, strict=True)):
        assert np.array_equal(helpers.raw(leaf.weights), helpers.raw(tensor.weights)), f"weights {i} changed: {case}"
        if leaf.gradient is not None:
            _assert_same(leaf.gradient, gradient, f"gradient {i}", case)


def check_steps(case: StepCase, host: HostBackend) -> None:
    """Assert that proximal steps give the bits of the NumPy backend."""
    memory = Memory(guards=host.guards)
    weights = [memory.place(tensor.weights, offset=tensor.offsets[0]) for tensor in case.tensors]
    expected = [tensor.weights.copy() for tensor in case.tensors]
    host.seed = case.seed
    for backend, arrays in ((host, weights), (numpy_backend, expected)):
        leaves = [backends.Leaf(*pair) for pair in zip(arrays, (t.coefficients for t in case.tensors), strict=True)]
        backend.proximal_plan(leaves).take(case.lengths, strength=case.strength, skips=case.skips)
    memory.check()
    for found, wanted in zip(weights, expected, strict=True):
        _assert_same(found, wanted, "the weights", case)


def check_statistics(case: StatisticsCase, host: HostBackend) -> None:
    """Assert that statistics are those of the NumPy backend, to the bit."""
    memory = Memory(guards=host.guards)
    placed = [memory.place(tensor.weights, offset=tensor.offsets[0]) for tensor in case.tensors]
    host.seed = case.seed
    found, expected = (backend.statistics(placed, case.threshold) for backend in (host, numpy_backend))
    memory.check()
    _assert_same(np.array(found), np.array(expected), "the statistics", case)


def _place(tensor: Tensor, mode: Mode, memory: Memory) -> Leaf:
    weights = memory.place(tensor.weights, offset=tensor.offsets[0])
    gradient = None if mode is Mode.VALUE else memory.place(tensor.gradient, offset=tensor.offsets[1])
    return Leaf(weights, tensor.coefficients, gradient)


def _by_numpy(case: Case) -> tuple[Results | None, list[Array]]:
    """Return what the NumPy backend returns and writes."""
    leaves = [Leaf(tensor.weights, tensor.coefficients, tensor.gradient.copy()) for tensor in case.tensors]
    options = {"strength": case.strength}
    options |= {"divisor": case.divisor, "sums": case.sums} if case.mode is Mode.VALUE else {"upstream": case.upstream}
    values = run(numpy_backend, case.mode, leaves, **options)
    gradients = [leaf.gradient for leaf in leaves]
    if case.mode is Mode.GRADIENT:
        return None, gradients
    with np.errstate(over="ignore"):
        each = np.append(values.each, values.total)
        return Results(each, each.astype(np.float32), values.sums), gradients


def _assert_same(found: Any, expected: Any, what: str, case: object) -> None:
    assert np.shape(found) == np.shape(expected)
    left, right = np.ravel(helpers.bits(found)), np.ravel(helpers.bits(expected))
    assert left.dtype == right.dtype
    if wrong := np.flatnonzero(left != right).tolist():
        at = wrong[0]
        got, want = np.ravel(found)[at], np.ravel(expected)[at]
        raise AssertionError(
            f"{len(wrong)} of {left.size} of {what} differ, the first at {at}: {got!r} ({left[at]:#x}), "
            f"expected {want!r} ({right[at]:#x}), in {reprlib.repr(case)}"
        )


@contextmanager
def sizes_of(build: Build) -> Iterator[None]:
    """Let NumPy and the reference compute with the tiles and rows of a build."""
    with (
        patch.object(arithmetic, "TILE_BYTES", build.tile_bytes),
        patch.object(arithmetic, "ROW_BYTES", build.row_bytes),
        patch.object(reference, "TILE_BYTES", build.tile_bytes),
        patch.object(reference, "ROW_BYTES", build.row_bytes),
    ):
        yield


class Calls(NamedTuple):
    """So many random passes, steps and statistics from a seed on: the modes, the dtypes, and about how many tiles."""

    seed: int = 0
    passes: int = 0
    steps: int = 0
    statistics: int = 0
    pairs: tuple[tuple[str, str], ...] = PAIRS
    modes: tuple[Mode, ...] = tuple(Mode)
    tiles: int = 5

    def kernels(self) -> tuple[str, ...]:
        """Return the kernels that the calls may need."""
        terms = ((True, False), (False, True), (True, True))
        passes = [
            penalty_pass(weights, gradient, mode, l1=l1, l2=l2)
            for weights, gradient in self.pairs
            for mode in self.modes
            for l1, l2 in terms
        ]
        moves = [proximal_step(weights) for weights, _ in self.pairs if self.steps]
        counts = [statistics_pass(weights) for weights, _ in self.pairs if self.statistics]
        return tuple(dict.fromkeys(passes + moves + counts))

    def check(self, kernels: Library, *, guards: bool = True) -> None:
        """Make the calls and compare their bits."""
        host = HostBackend(kernels, guards=guards)
        with sizes_of(kernels.build):
            for seed in range(self.seed, self.seed + self.passes):
                check(draw(seed, self.pairs, self.modes, self.tiles), host)
            for seed in range(self.seed, self.seed + self.steps):
                check_steps(draw_steps(seed, self.pairs), host)
            for seed in range(self.seed, self.seed + self.statistics):
                check_statistics(draw_statistics(seed, self.pairs, self.tiles), host)


# Random calls --------------------------------------------------------------------------------------------------------


def draw(seed: int, pairs: Sequence[tuple[str, str]], modes: Sequence[Mode], tiles: int) -> Case:
    """Return a random call of tensors of these dtypes, of at most about so many tiles each."""
    rng = random.Random(seed)
    of = _ORDINARY if rng.random() < 0.7 else _WILD
    count = rng.choice((1, 1, 1, 1, 2, 3, 4, 7)) if rng.random() < 0.99 else rng.choice((130, 300))
    tensors = [_tensor(rng, of, *rng.choice(pairs), tiles if count < 5 else 0) for _ in range(count)]
    mode = rng.choice(modes)
    divisor, sums = (rng.choice((1, 1, 7, 128)), rng.random() < 0.3) if mode is Mode.VALUE else (1, False)
    return Case(mode, tensors, _factor(rng, of), _factor(rng, of), divisor, rng.randrange(2**40), sums)


def draw_steps(seed: int, pairs: Sequence[tuple[str, str]]) -> StepCase:
    """Return random steps of tensors of these dtypes."""
    rng = random.Random(seed)
    of = rng.choice((_ORDINARY, _WILD))
    count = rng.choice((1, 1, 1, 2, 3, 7, 20))
    dtypes = [rng.choice(pairs)[0] for _ in range(count)]
    tensors = [_tensor(rng, of, dtype, dtype, tiles=3 if count < 5 else 1) for dtype in dtypes]
    common = _in_memory(rng, rng.choice(_LENGTHS))
    lengths = [common if rng.random() < 0.5 else _in_memory(rng, rng.choice(_LENGTHS)) for _ in tensors]
    strength = _in_memory(rng, rng.choice((0.7, 0.0, 1e-50, 1e50)) if rng.random() < 0.4 else 1.0)
    skips = _in_memory(rng, rng.choice((1.0, 2.0, math.inf)) if rng.random() < 0.1 else 0.0)
    return StepCase(tensors, lengths if rng.random() < 0.7 else [common] * count, strength, skips, rng.randrange(2**40))


def draw_statistics(seed: int, pairs: Sequence[tuple[str, str]], tiles: int) -> StatisticsCase:
    """Return a random call for the statistics of tensors of these dtypes."""
    rng = random.Random(seed)
    of = rng.choice((_ORDINARY, _WILD))
    count = rng.choice((1, 1, 1, 2, 3, 7, 20))
    dtypes = [rng.choice(pairs)[0] for _ in range(count)]
    tensors = [_tensor(rng, of, dtype, dtype, tiles if count < 5 else 1) for dtype in dtypes]
    threshold = rng.choice((0.0, 0.03, 1e-3, 1.0, 5e-324, math.inf))
    return StatisticsCase(tensors, threshold, rng.randrange(2**40))


def _tensor(rng: random.Random, of: Range, dtype: str, into: str, tiles: int) -> Tensor:
    size = _size(rng, DTYPES[dtype].itemsize, tiles)
    gradient = numbers(rng.choice(("weights", "wide", "zeros", "random bits")), size, into, rng.randrange(_POOL))
    weights = numbers(rng.choice(of.contents), size, dtype, rng.randrange(_POOL))
    if size and rng.random() < 0.1:
        weights = weights.copy()
        weights[rng.randrange(size)] = rng.choice(of.special)
    l1, l2 = (0.0 if rng.random() < 0.3 else rng.choice(of.coefficients) for _ in range(2))
    return Tensor(weights, gradient, Coefficients(l1, l2, 2 * l2), _offsets(rng, dtype, into))


def _size(rng: random.Random, itemsize: int, tiles: int) -> int:
    tile, lanes = arithmetic.tile_size(itemsize), arithmetic.lane_count(itemsize)
    small = (0, 1, rng.randrange(lanes), lanes - 1, lanes, lanes + 1, rng.randrange(3 * lanes))
    if not tiles:
        return rng.choice(small)
    whole = tile * rng.randint(1, tiles)
    return rng.choice(
        (*small, rng.randrange(tile), whole - 1, whole, whole + 1, whole + lanes, whole + rng.randrange(tile))
    )


def _offsets(rng: random.Random, dtype: str, into: str) -> tuple[int, int]:
    weights, gradient = (rng.randrange(16 // DTYPES[name].itemsize) * rng.randrange(2) for name in (dtype, into))
    return weights, gradient


def _factor(rng: random.Random, of: Range) -> Any:
    return _in_memory(rng, rng.choice(of.factors) if rng.random() < 0.4 else 1.0)


def _in_memory(rng: random.Random, factor: float) -> Any:
    """Return a number as it is, or as an array for kernels to read."""
    with np.errstate(over="ignore", under="ignore"):
        return np.array(factor, rng.choice((np.float64, np.float32))) if rng.random() < 0.5 else factor


def numbers(content: str, size: int, dtype: str, seed: int) -> Array:
    """Return numbers of a content in `tests.helpers.CONTENTS`, never to be written to."""
    # What tells the order of sums must lie in its own tiles; all other contents are cut out of one large array.
    if content == "sparse" or size > _POOL:
        return helpers.content(content, size, dtype, seed)
    start = seed % (_POOL - size + 1)
    return _pool(content, dtype)[start : start + size]


@functools.cache
def _pool(content: str, dtype: str) -> Array:
    pool = helpers.content(content, _POOL, dtype)
    pool.flags.writeable = False
    return pool
