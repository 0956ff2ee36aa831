"""The kernels on the host in the shape of `gpureg.backends.Backend`: dense NumPy arrays for those of a device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpureg import backends
from gpureg.backends import Mode, Scalar, Values
from gpureg.backends.cuda_statistics import of_group
from gpureg.compiler import penalty_pass, proximal_step, statistics_pass
from gpureg.statistics import Statistics, join, marks
from tests.host_cuda import Library, layout, library
from tests.host_cuda.memory import Memory
from tests.passes import Leaf, WholePlan

Array = NDArray[Any]


class Results(NamedTuple):
    """All that a pass returns: each penalty and at the end their total over the divisor, and these as float32."""

    each: Array
    rounded: Array
    sums: Array | None = None


class HostBackend:
    """Calls of any number of tensors, planned as simply as can be; the seed gives all that a plan leaves open."""

    name = "host"
    trusts_identity = False

    def __init__(self, kernels: Library | None = None, *, seed: int = 0, guards: bool = True) -> None:
        self.kernels = kernels or library()
        self.seed = seed
        self.guards = guards

    def unusable(self) -> str | None:
        return None

    def plan(self, leaves: Sequence[backends.Leaf]) -> WholePlan:
        return WholePlan(self._pass, leaves)

    def _pass(self, mode: Mode, leaves: Sequence[Leaf], dtype: np.dtype[Any], **options: Any) -> Values:
        found = self.run(mode, leaves, **options)
        # float16 and bfloat16 by way of float32
        with np.errstate(over="ignore"):
            total = found.each[-1] if dtype.itemsize == 8 else dtype.type(found.rounded[-1])
        return backends.Results(total, found.each[:-1], found.rounded[:-1], found.sums)

    def proximal_plan(self, leaves: Sequence[backends.Leaf]) -> "HostSteps":
        return HostSteps(self, leaves)

    def statistics(self, arrays: Sequence[Array], threshold: float) -> list[Statistics]:
        """Return the statistics of arrays: a launch for each dtype, over tables unless it is of one tensor."""
        sizes, memory = self.kernels.build, Memory(guards=self.guards)
        tiles = np.array([-(-array.nbytes // sizes.tile_bytes) for array in arrays], np.int64)
        members = sizes.row_bytes // 16  # tiles of a group
        groups = -(-tiles // members)
        firsts, count = np.cumsum(groups) - groups, int(groups.sum())
        results, counters = memory.zeros(count, layout.RESULT), memory.zeros(count, np.uint32)
        known = {dtype: marks(dtype, threshold) for dtype in dict.fromkeys(a.dtype for a in arrays if a.size)}
        for number, (dtype, own) in enumerate(known.items()):
            part = [i for i, array in enumerate(arrays) if array.dtype == dtype and array.size]
            records = np.zeros(len(part), layout.PART)
            records["weights"] = [arrays[i].ctypes.data for i in part]
            records["size"], records["first_group"] = [arrays[i].size for i in part], firsts[part]
            records["first_tile"] = np.cumsum(tiles[part]) - tiles[part]
            tile_sums = memory.empty(2 * int(tiles[part].sum()), np.float64)
            call = np.zeros((), layout.PASS)
            if len(part) > 1 or self.seed % 2:
                tables = memory.place(records), memory.place(np.repeat(np.arange(len(part), dtype="u4"), tiles[part]))
                call["tensors"], call["tensor_of"] = (table.ctypes.data for table in tables)
            else:
                call["single"] = records[0]
            call["infinity"], call["threshold"] = own.infinity, own.threshold
            call["tile_sums"], call["counters"] = tile_sums.ctypes.data, counters.ctypes.data
            call["groups"] = results.ctypes.data
            name = statistics_pass(dtype.name)
            self.kernels.launch(name, int(tiles[part].sum()), call, seed=self.seed + number)
        memory.check()
        assert not counters.any(), "a counter is not zero after the call"
        found = []
        for array, first, length in zip(arrays, firsts, groups, strict=True):
            whole = members * sizes.tile_bytes // array.itemsize
            told = enumerate(results[first : first + length].tolist())
            found.append(
                join([of_group(one, min(whole, array.size - i * whole), known[array.dtype]) for i, one in told])
            )
        return found

    def from_numpy(self, array: Array) -> Array:
        return array.copy()

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def address(self, array: Array) -> int:
        return array.ctypes.data

    def overlap(self, first: Array, second: Array) -> bool:
        return bool(np.shares_memory(first, second))

    def run(
        self,
        mode: Mode,
        leaves: Sequence[Leaf],
        strength: Scalar = 1.0,
        upstream: Scalar = 1.0,
        *,
        divisor: int = 1,
        sums: bool = False,
    ) -> Results:
        """Make a pass: a launch for each pair of dtypes, over tables unless it is of one tensor.

        Of what a warp can read at once, some share blocks and some do not. A factor that is a 0-d array of float64 is
        read by the kernels. Afterwards all counters are zero, and nothing was written beside the scratch memory and the
        results.
        """
        sizes, memory = self.kernels.build, Memory(guards=self.guards)
        tiles = np.array([max(-(-leaf.weights.nbytes // sizes.tile_bytes), 1) for leaf in leaves], np.int64)
        groups = -(-tiles // (sizes.row_bytes // 16))
        records = np.array([(leaf.weights.size, *leaf.coefficients, 0, 0, 0) for leaf in leaves], layout.TENSOR)
        records["leaf"] = np.arange(len(leaves))
        records["first_group"] = np.cumsum(groups) - groups
        places = np.array([_place(leaf) for leaf in leaves], layout.PLACE)

        each, rounded = memory.empty(len(leaves) + 1, np.float64), memory.empty(len(leaves) + 1, np.float32)
        pairs = memory.empty(2 * len(leaves), np.float64)
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
            call["sums"], call["each"], call["rounded"] = (array.ctypes.data for array in (pairs, each, rounded))

        for number, part in enumerate(_parts(leaves, mode)):
            warps = sizes.row_bytes // 512
            small = [i for i in part if leaves[i].weights.nbytes <= 512 and (self.seed + i) % 4]
            if len(part) == 1 and self.seed % 2 == 0:
                small = []
            large = [i for i in part if i not in small]
            part = large + small  # noqa: PLW2901 - in the order of the table
            of_part, blocks = records[part], int(tiles[large].sum())
            of_part["first_tile"][: len(large)] = np.cumsum(tiles[large]) - tiles[large]
            call["blocks"], call["large"], call["launched"] = blocks, len(large), len(part)
            call["single"], call["place"] = np.zeros((), layout.TENSOR), np.zeros((), layout.PLACE)
            call["tensors"], call["places"], call["tensor_of"] = 0, 0, 0
            if len(part) > 1 or self.seed % 2:
                tensor_of = np.repeat(np.arange(len(large), dtype=np.uint32), tiles[large])
                tables = [memory.place(table) for table in (of_part, places[part], tensor_of)]
                call["tensors"], call["places"], call["tensor_of"] = (table.ctypes.data for table in tables)
            else:
                call["single"], call["place"] = of_part[0], places[part[0]]
            tile_sums[...] = np.nan
            name = _kernel([leaves[i] for i in part], mode, sums=sums)
            self.kernels.launch(name, blocks + -(-len(small) // warps), call, seed=self.seed + number)
        memory.check()
        assert not counters.any(), "a counter is not zero after the call"
        return Results(each, rounded, pairs.reshape(-1, 2) if sums else None)


class HostSteps:
    """Proximal steps: a launch for each dtype, over tables unless it is of one tensor and one length."""

    def __init__(self, host: HostBackend, leaves: Sequence[backends.Leaf]) -> None:
        self.host, self.leaves = host, leaves

    def take(self, lengths: Sequence[Scalar], *, strength: Scalar = 1.0, skips: Scalar = 0.0) -> None:
        kernels, seed, memory = self.host.kernels, self.host.seed, Memory(guards=self.host.guards)
        parts: dict[Any, list[int]] = {}
        for i, leaf in enumerate(self.leaves):
            if leaf.weights.size:
                parts.setdefault(leaf.weights.dtype, []).append(i)
        for number, (dtype, members) in enumerate(parts.items()):
            records = np.zeros(len(members), layout.STEP)
            for record, leaf in zip(records, [self.leaves[i] for i in members], strict=True):
                l1, _, twice_l2 = leaf.coefficients
                record["weights"], record["size"] = leaf.weights.ctypes.data, leaf.weights.size
                record["l1"], record["twice_l2"] = l1, twice_l2
            tiles = [-(-self.leaves[i].weights.nbytes // kernels.build.tile_bytes) for i in members]
            records["first_tile"] = np.cumsum(tiles) - tiles
            told = np.array([_factor(lengths[i]) for i in members], layout.FACTOR)
            call = np.zeros((), layout.STEPS)
            call["strength"], call["skips"] = _factor(strength), _factor(skips)
            if len(members) > 1 or seed % 2:
                tensor_of = np.repeat(np.arange(len(members), dtype=np.uint32), tiles)
                tables = memory.place(records), memory.place(tensor_of)
                call["tensors"], call["tensor_of"] = (table.ctypes.data for table in tables)
            else:
                call["single"] = records[0]
            if len(np.unique(told)) > 1 or seed % 3:
                call["lengths"] = memory.place(told).ctypes.data
            else:
                call["length"] = told[0]
            kernels.launch(proximal_step(dtype.name), sum(tiles), call, seed=seed + number)
        memory.check()


def _place(leaf: Leaf) -> tuple[int, int]:
    """Return where the elements of weights and gradient begin."""
    return leaf.weights.ctypes.data, 0 if leaf.gradient is None else leaf.gradient.ctypes.data


def _factor(factor: Scalar) -> tuple[int, float, bool]:
    """Return a factor as a kernel takes it: its place, if it is in memory, else the number."""
    if isinstance(factor, np.ndarray):
        return factor.ctypes.data, np.nan, factor.dtype == np.float32
    return 0, float(factor), False


def _parts(leaves: Sequence[Leaf], mode: Mode) -> list[list[int]]:
    """Return the tensors that share a launch, for each launch."""
    parts: dict[tuple[Any, Any], list[int]] = {}
    for i, leaf in enumerate(leaves):
        parts.setdefault((leaf.weights.dtype, None if mode is Mode.VALUE else leaf.gradient.dtype), []).append(i)
    return list(parts.values())


def _kernel(leaves: Sequence[Leaf], mode: Mode, *, sums: bool) -> str:
    """Return the kernel that passes over tensors of one pair of dtypes, with the sums that any of them needs."""
    weights = leaves[0].weights.dtype.name
    gradient = weights if mode is Mode.VALUE else leaves[0].gradient.dtype.name
    l1, l2 = (sums or any(getattr(leaf.coefficients, term) != 0 for leaf in leaves) for term in ("l1", "l2"))
    return penalty_pass(weights, gradient, mode, l1=l1, l2=l2)
