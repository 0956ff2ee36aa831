"""The kernels on the host in the shape of `gpureg.backends.Backend`: dense NumPy arrays for those of a device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpureg.backends import Leaf, Scalar, Values
from gpureg.compiler import Mode, penalty_pass, proximal_step
from tests.host_cuda import Library, layout, library
from tests.host_cuda.memory import Memory

Array = NDArray[Any]


class Results(NamedTuple):
    """All that a pass returns: each penalty, their total over the divisor, and that rounded to float32."""

    each: Array
    total: np.float64
    rounded: np.float32


class HostBackend:
    """Calls of any number of tensors, planned as simply as can be; the seed gives all that a plan leaves open."""

    name = "host"

    def __init__(self, kernels: Library | None = None, *, seed: int = 0, guards: bool = True) -> None:
        self.kernels = kernels or library()
        self.seed = seed
        self.guards = guards

    def unusable(self) -> str | None:
        return None

    def value(
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, divisor: int = 1
    ) -> Values:
        return _values(self.run(Mode.VALUE, leaves, strength, divisor=divisor), dtype)

    def gradient(self, leaves: Sequence[Leaf], *, strength: Scalar = 1.0, upstream: Scalar = 1.0) -> None:
        self.run(Mode.GRADIENT, leaves, strength, upstream)

    def value_and_gradient(
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        return _values(self.run(Mode.VALUE_AND_GRADIENT, leaves, strength, upstream), dtype)

    def accumulate(
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        return _values(self.run(Mode.ACCUMULATE, leaves, strength, upstream), dtype)

    def proximal(self, leaves: Sequence[Leaf], step: Scalar) -> None:
        for leaf in leaves:
            weights, (l1, _, twice_l2) = leaf.weights, leaf.coefficients
            tiles = -(-weights.nbytes // self.kernels.build.tile_bytes)
            if tiles:
                fields = weights.ctypes.data, weights.size, step * l1, 1 + step * twice_l2, twice_l2 != 0
                argument = np.array(fields, layout.STEP)
                self.kernels.launch(proximal_step(weights.dtype.name), tiles, argument, seed=self.seed)

    def from_numpy(self, array: Array) -> Array:
        return array.copy()

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def overlap(self, first: Array, second: Array) -> bool:
        return bool(np.shares_memory(first, second))

    def run(
        self, mode: Mode, leaves: Sequence[Leaf], strength: Scalar = 1.0, upstream: Scalar = 1.0, *, divisor: int = 1
    ) -> Results:
        """Make a pass: a launch for each pair of dtypes, over tables unless it is of one tensor.

        A factor that is a 0-d array of float64 is read by the kernels. Afterwards all counters are zero, and nothing
        was written beside the scratch memory and the results.
        """
        sizes, memory = self.kernels.build, Memory(guards=self.guards)
        tiles = np.array([max(-(-leaf.weights.nbytes // sizes.tile_bytes), 1) for leaf in leaves], np.int64)
        groups = -(-tiles // (sizes.row_bytes // 16))
        records = np.array([_record(leaf) for leaf in leaves], layout.TENSOR)
        records["leaf"] = np.arange(len(leaves))
        records["first_group"] = np.cumsum(groups) - groups

        each, total = memory.empty(len(leaves), np.float64), memory.empty(1, np.float64)
        rounded = memory.empty(1, np.float32)
        tile_sums = memory.empty(2 * int(tiles.sum()), np.float64)
        group_sums = memory.empty(2 * int(groups.sum()), np.float64)
        penalties = memory.empty(2 * len(leaves), np.float64)
        counters = memory.zeros(int(groups.sum()) + len(leaves) + 1, np.uint32)

        call = np.zeros((), layout.CALL)
        call["strength"], call["upstream"] = _factor(strength), _factor(upstream)
        if mode is not Mode.GRADIENT:  # which needs nothing of this
            call["count"], call["groups"], call["divisor"] = len(leaves), groups.sum(), divisor
            call["tile_sums"], call["group_sums"] = tile_sums.ctypes.data, group_sums.ctypes.data
            call["penalties"], call["counters"] = penalties.ctypes.data, counters.ctypes.data
            call["each"], call["total"] = each.ctypes.data, total.ctypes.data
            call["total_rounded"] = rounded.ctypes.data

        for number, part in enumerate(_parts(leaves, mode)):
            of_part, tiles_of_part = records[part], tiles[part]
            of_part["first_tile"] = np.cumsum(tiles_of_part) - tiles_of_part
            call["single"], call["tensors"], call["tensor_of"] = np.zeros((), layout.TENSOR), 0, 0
            if len(part) > 1 or self.seed % 2:
                table = memory.place(of_part)
                tensor_of = memory.place(np.repeat(np.arange(len(part), dtype=np.uint32), tiles_of_part))
                call["tensors"], call["tensor_of"] = table.ctypes.data, tensor_of.ctypes.data
            else:
                call["single"] = of_part[0]
            tile_sums[...] = np.nan
            name = _kernel([leaves[i] for i in part], mode)
            self.kernels.launch(name, int(tiles_of_part.sum()), call, seed=self.seed + number)
        memory.check()
        assert not counters.any(), "a counter is not zero after the call"
        return Results(each, total[0], rounded[0])


def _record(leaf: Leaf) -> tuple[Any, ...]:
    """Return what a kernel needs to know of a tensor wherever it is among others."""
    gradient = 0 if leaf.gradient is None else leaf.gradient.ctypes.data
    return leaf.weights.ctypes.data, gradient, leaf.weights.size, *leaf.coefficients, 0, 0, 0


def _factor(factor: Scalar) -> tuple[int, float]:
    """Return a factor as a kernel takes it: its place, if it is in memory, else the number."""
    if isinstance(factor, np.ndarray):
        assert factor.dtype == np.float64
        return factor.ctypes.data, np.nan
    return 0, float(factor)


def _parts(leaves: Sequence[Leaf], mode: Mode) -> list[list[int]]:
    """Return the tensors that share a launch, for each launch."""
    parts: dict[tuple[Any, Any], list[int]] = {}
    for i, leaf in enumerate(leaves):
        parts.setdefault((leaf.weights.dtype, None if mode is Mode.VALUE else leaf.gradient.dtype), []).append(i)
    return list(parts.values())


def _kernel(leaves: Sequence[Leaf], mode: Mode) -> str:
    """Return the kernel that passes over tensors of one pair of dtypes, with the sums that any of them needs."""
    weights = leaves[0].weights.dtype.name
    gradient = weights if mode is Mode.VALUE else leaves[0].gradient.dtype.name
    l1, l2 = (any(getattr(leaf.coefficients, term) != 0 for leaf in leaves) for term in ("l1", "l2"))
    return penalty_pass(weights, gradient, mode, l1=l1, l2=l2)


def _values(results: Results, dtype: np.dtype[Any]) -> Values:
    """Return what a backend returns: float16 and bfloat16 by way of float32."""
    with np.errstate(over="ignore"):
        return Values(results.total if dtype.itemsize == 8 else dtype.type(results.rounded), results.each)
