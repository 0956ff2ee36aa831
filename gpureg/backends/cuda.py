"""Penalties and gradients of CuPy arrays: one launch of the kernels in `kernels/` for each pair of dtypes in a call.

The kernels are compiled when first needed (`gpureg.compiler`); CuPy allocates, loads and launches, on the current
stream of the arrays' device. Nothing here waits for the GPU.
"""

import contextlib
import functools
import itertools
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, backends, compiler, driver
from gpureg.backends import Leaf, Mode, ModePlan, ProximalPlan, Results, Scalar, Values
from gpureg.statistics import Statistics

THREADS = arithmetic.ROW_BYTES // 16
"""Threads of a block, as in `kernels/tree.cuh`: one 16-byte load of each makes a row."""

GROUP = THREADS
"""Tiles of a group, whose sums one block adds in one go."""

WARPS = THREADS // 32
"""Warps of a block, and so how many small tensors share one."""

SMALL = 32 * 16
"""Bytes of a tensor that a warp reads in one load."""

# The structures of kernels/penalty.cu, passed by value or in tables.
TENSOR = np.dtype(
    [
        ("size", np.uint64),
        ("l1", np.float64),
        ("l2", np.float64),
        ("twice_l2", np.float64),
        ("leaf", np.uint32),
        ("first_tile", np.uint32),
        ("first_group", np.uint32),
    ],
    align=True,
)
PLACE = np.dtype([("weights", np.uint64), ("gradient", np.uint64)], align=True)
FACTOR = np.dtype([("place", np.uint64), ("number", np.float64), ("is_float", np.bool_)], align=True)
CALL = np.dtype(
    [
        ("single", TENSOR),
        ("place", PLACE),
        ("tensors", np.uint64),
        ("places", np.uint64),
        ("tensor_of", np.uint64),
        ("blocks", np.uint32),
        ("large", np.uint32),
        ("launched", np.uint32),
        ("count", np.uint32),
        ("groups", np.uint32),
        ("strength", FACTOR),
        ("upstream", FACTOR),
        ("divisor", np.float64),
        ("tile_sums", np.uint64),
        ("group_sums", np.uint64),
        ("penalties", np.uint64),
        ("counters", np.uint64),
        ("sums", np.uint64),
        ("each", np.uint64),
        ("rounded", np.uint64),
    ],
    align=True,
)

# To set a field of ctypes' structure takes a tenth of the time that NumPy takes.
_Call: Any = np.ctypeslib.as_ctypes_type(CALL)  # type: ignore[arg-type] # its hints know no structures

_SUMS = 16
"""Bytes of a pair of float64 sums."""


class CudaBackend:
    """The backend of CuPy arrays; see `gpureg.backends.Backend` for each method."""

    name = "cuda"
    trusts_identity = True

    def unusable(self) -> str | None:  # noqa: D102
        return _unusable()

    def plan(self, leaves: Sequence[Leaf]) -> "CudaPlan":  # noqa: D102
        return CudaPlan(leaves)

    def proximal_plan(self, leaves: Sequence[Leaf]) -> ProximalPlan:  # noqa: D102
        from gpureg.backends.cuda_steps import CudaSteps  # noqa: PLC0415 - it needs this module

        return CudaSteps(leaves)

    def statistics(self, arrays: Sequence[Any], threshold: float) -> list[Statistics]:  # noqa: D102
        from gpureg.backends.cuda_statistics import statistics  # noqa: PLC0415 - it needs this module

        devices = [array.device.id for array in arrays]
        found: dict[int, Statistics] = {}
        for device in dict.fromkeys(devices):
            members = [i for i, other in enumerate(devices) if other == device]
            with self._working(device):
                found.update(zip(members, statistics([arrays[i] for i in members], threshold), strict=True))
        return [found[i] for i in range(len(arrays))]

    def _working(self, device: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return the context of work on a device: whose stream and memory are taken."""
        return contextlib.nullcontext()

    def from_numpy(self, array: NDArray[Any]) -> Any:  # noqa: D102
        return _cupy().array(array)

    def to_numpy(self, array: Any) -> NDArray[Any]:  # noqa: D102
        return np.asarray(array.get())

    def address(self, array: Any) -> int:  # noqa: D102
        return int(array.data.ptr)

    def overlap(self, first: Any, second: Any) -> bool:  # noqa: D102
        return backends.load("numpy").overlap(_shadow(first), _shadow(second))


backend = CudaBackend()


def _cupy() -> ModuleType:
    return sys.modules.get("cupy") or import_module("cupy")  # to import what is there takes half a microsecond


@functools.cache
def _unusable() -> str | None:
    """Return why CuPy arrays cannot be computed on here, in one line that says what to install; None if they can."""
    found = driver.find()
    if isinstance(found, str):
        return found
    extra = driver.extra(found)
    if not extra:
        return f"the NVIDIA driver runs CUDA {found.cuda[0]}.{found.cuda[1]}, but 12.0 or later is needed: update it"
    try:
        _cupy().cuda.runtime.getDeviceCount()
    except ModuleNotFoundError:
        return f"CuPy is not installed: pip install 'gpureg[{extra}]'"
    except Exception as error:  # CuPy passes on whatever the driver says
        return f"CuPy cannot use the GPU: {str(error).partition(chr(10))[0]}"
    return compiler.unusable()


class _Bound:
    """Where the tensors of a plan lie in passes with certain gradients.

    Of arrays whose elements lie side by side only the addresses are kept, so that the arrays themselves may go; the
    others are copied for each pass.
    """

    def __init__(
        self, places: NDArray[Any], apart: "list[_Apart]", launches: "list[_Launch]", itemsizes: NDArray[np.int64]
    ) -> None:
        self.places = places
        self.apart = apart
        self.launches = launches
        self._itemsizes = itemsizes
        self._odd = itemsizes - 1  # bits of an address that is no multiple
        self.tables = [_Table() for _ in launches]

    @property
    def keeps_arrays(self) -> bool:
        """Whether there are arrays to be copied for each pass."""
        return bool(self.apart)

    def moved(self, addresses: NDArray[np.int64]) -> "_Bound | None":
        """Return the same for gradients of the same shapes, strides and dtypes at other addresses, if that is all."""
        if self.apart or (addresses & self._odd).any():
            return None
        places = self.places.copy()
        places["gradient"] = addresses
        return _Bound(places, [], self.launches, self._itemsizes)


class _Apart(NamedTuple):
    """An array whose elements do not lie side by side in the order of sums: its view in that order, and whose it is."""

    which: int
    name: str  # in PLACE
    view: Any


class _Table:
    """A table that kernels read: a copy for each stream, made in the order of the stream and so without waiting."""

    def __init__(self) -> None:
        self._copies: dict[Any, Any] = {}

    def on(self, stream: "_Stream", rows: NDArray[Any], members: Any = ...) -> int:
        """Return where the table, made of these rows, lies for launches on a stream."""
        copy = self._copies.get(stream.key)
        if copy is None and stream.captures:
            # What a graph copied from the host would be read anew by each replay. But any copy will do that was made
            # before, for a capture begins when the work before it is done.
            copy = next(iter(self._copies.values()), None)
            if copy is None:
                raise RuntimeError(
                    "tables of several tensors cannot be copied to the device while a graph is captured: make the same "
                    "call once before, with the same arrays (whose elements lie side by side)"
                )
        if copy is None:
            copy = self._copies[stream.key] = stream.send(rows[members])
        stream.keep(copy)
        return int(copy.data.ptr)


class _Launch:
    """The tensors of a plan that share a pair of dtypes, and so a launch: which they are, and what does not change."""

    def __init__(self, plan: "CudaPlan", members: list[int], weights: str, gradient: str) -> None:
        # One tensor needs no table, and has none to share a block with.
        self.by_value = len(members) == 1
        large = [i for i in members if plan.nbytes[i] > SMALL or self.by_value]
        large.sort(key=lambda i: plan.tiles[i] == 1)  # those of several tiles, whose sums need places, come first
        self.members = np.array(large + [i for i in members if plan.nbytes[i] <= SMALL and not self.by_value])
        self.dtypes = weights, gradient
        coefficients = [plan.leaves[i].coefficients for i in members]
        self.l1, self.l2 = any(c.l1 != 0 for c in coefficients), any(c.l2 != 0 for c in coefficients)
        self.records = plan.records[self.members]
        tiles = plan.tiles[large]
        self.records["first_tile"][: len(large)] = np.cumsum(tiles) - tiles
        self.blocks, self.large = int(tiles.sum()), len(large)
        self.tile_sums = int(tiles[tiles > 1].sum())
        self.grid = self.blocks + -(-(len(members) - len(large)) // WARPS)
        self.tensor_of = np.repeat(np.arange(len(large), dtype=np.uint32), tiles)
        self.tables = _Table(), _Table()  # records and tensor_of
        self.ready: dict[Any, _Ready] = {}
        """What the passes were told that were made before, by mode, sums and stream; not in a graph."""

    def kernel(self, mode: Mode, *, sums: bool) -> str:
        """Return the name of the kernel of a pass."""
        return compiler.penalty_pass(*self.dtypes, mode, l1=self.l1 or sums, l2=self.l2 or sums)


class _Values:
    """What a pass returns, as views of one array; see `gpureg.backends.Values`."""

    def __init__(self, results: Any, count: int, dtype: np.dtype[Any], *, sums: bool) -> None:
        self._results, self._count, self._has_sums = results, count, sums
        if dtype.itemsize == 8:
            self.total = self._view((), np.float64, 24 * count)
        else:
            self.total = self._view((), np.float32, 28 * count + 8)
            if dtype.itemsize < 4:
                self.total = self.total.astype(dtype)

    def _view(self, shape: tuple[int, ...], dtype: Any, start: int) -> Any:
        return _cupy().ndarray(shape, dtype, self._results.data + start)

    @property
    def each(self) -> Any:
        return self._view((self._count,), np.float64, 16 * self._count)

    @property
    def rounded(self) -> Any:
        return self._view((self._count,), np.float32, 24 * self._count + 8)

    @property
    def sums(self) -> Any:
        return self._view((self._count, 2), np.float64, 0) if self._has_sums else None


class CudaPlan(ModePlan):
    """Tensors and the tables that kernels read of them; see `gpureg.backends.Plan` for each method.

    Tables are copied to the device once. All that a pass needs beside them, results included, is memory of its own, so
    that passes on two streams do not disturb each other. Only captured passes share scratch memory, whose replays must
    not overlap.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = tuple(leaves)
        arrays = [leaf.weights for leaf in self.leaves]
        self._axes = [arithmetic.memory_order(array) for array in arrays]
        self._dtypes = [array.dtype.name for array in arrays]
        self.nbytes = [array.size * array.itemsize for array in arrays]
        tile = np.array([arithmetic.tile_size(array.itemsize) for array in arrays], np.int64)
        self.records = np.zeros(len(arrays), TENSOR)
        self.records["size"] = [array.size for array in arrays]
        self.records["l1"], self.records["l2"], self.records["twice_l2"] = np.reshape(
            [leaf.coefficients for leaf in self.leaves], (-1, 3)
        ).T
        self.tiles = np.maximum(-(-self.records["size"].astype(np.int64) // tile), 1)
        groups = np.where(self.tiles > 1, -(-self.tiles // GROUP), 0)  # one tile is a tensor's sum
        self.records["leaf"] = np.arange(len(arrays))
        self.records["first_group"] = np.cumsum(groups) - groups
        self._groups = int(groups.sum())

        self._places = np.zeros(len(arrays), PLACE)
        self._apart = self._set_places(self._places, "weights", arrays)
        self._launches: dict[tuple[str, ...], list[_Launch]] = {}
        self._weights_only = self._bound(self._places, self._apart, arrays)
        self._lock = threading.Lock()
        self._captured: Any = None

    def bind(self, gradients: Sequence[Any]) -> _Bound:  # noqa: D102
        places = self._places.copy()
        apart = self._apart + self._set_places(places, "gradient", gradients)
        return self._bound(places, apart, gradients)

    def _set_places(self, places: NDArray[Any], name: str, arrays: Sequence[Any]) -> list[_Apart]:
        """Set where the arrays lie; return those that cannot be read where they are."""
        views = [array.transpose(axes) for array, axes in zip(arrays, self._axes, strict=True)]
        places[name] = [view.data.ptr for view in views]
        return [_Apart(i, name, view) for i, view in enumerate(views) if not _is_side_by_side(view)]

    def _bound(self, places: NDArray[Any], apart: list[_Apart], gradients: Sequence[Any]) -> _Bound:
        launches = self._launches_into([gradient.dtype.name for gradient in gradients])
        return _Bound(places, apart, launches, np.array([gradient.itemsize for gradient in gradients], np.int64))

    def _launches_into(self, gradients: list[str]) -> list[_Launch]:
        """Return the launches of passes whose gradients have these dtypes."""
        known = self._launches.get(tuple(gradients))
        if known is None:
            parts: dict[tuple[str, str], list[int]] = {}
            for i, pair in enumerate(zip(self._dtypes, gradients, strict=True)):
                parts.setdefault(pair, []).append(i)
            known = [_Launch(self, members, *pair) for pair, members in parts.items()]
            self._launches[tuple(gradients)] = known
        return known

    def _run(
        self,
        mode: Mode,
        dtype: np.dtype[Any],
        gradients: _Bound | None,
        strength: Scalar,
        upstream: Scalar,
        divisor: int = 1,
        every_sum: bool = False,
    ) -> Values:
        """Launch a pass over all tensors, and return where the penalties will be."""
        cupy = _cupy()
        bound, count = gradients or self._weights_only, len(self.leaves)
        if not count:
            return Results(cupy.zeros((), dtype), cupy.zeros(0), cupy.zeros(0, np.float32), cupy.zeros((0, 2)))
        with self.leaves[0].weights.device, self._lock:
            stream = _Stream(cupy)
            # Sums, penalties, the total, and the last two rounded; the lines of _Values.
            results = cupy.empty(3 * count + 1 + (count + 2) // 2, np.float64)
            stream.keep(results)
            place: int = results.data.ptr
            own = _Own(
                _factor(cupy, strength, stream),
                _factor(cupy, upstream, stream),
                divisor,
                (place, place + 16 * count, place + 24 * count + 8),
                self._scratch(bound, stream),
            )
            if bound.apart:
                with _side_by_side(bound, mode, stream) as places:
                    self._launch(bound, places, mode, own, stream, sums=every_sum)
            else:
                self._launch(bound, bound.places, mode, own, stream, sums=every_sum)
            values = _Values(results, count, dtype, sums=every_sum)
            stream.keep(values.total)
            return values

    def _scratch(self, bound: _Bound, stream: "_Stream") -> tuple[int, int, int, int]:
        """Return scratch memory and counters, which are a call's own until its launches are made."""
        tiles = max([launch.tile_sums for launch in bound.launches])  # launches take turns
        sums = tiles + self._groups + len(self.leaves)
        counters = self._groups + len(self.leaves) + 1
        if stream.captures:
            if self._captured is None or self._captured.size < _SUMS * sums + 4 * counters:
                self._captured = _cupy().empty(_SUMS * sums + 4 * counters, np.uint8)
                stream.keep(self._captured)
            scratch = self._captured
            scratch[_SUMS * sums :].fill(0)  # by the graph, before each replay
            counters_at = scratch.data.ptr + _SUMS * sums
        else:
            scratch = _cupy().empty(_SUMS * sums, np.uint8)
            # Counters of the stream are zero between launches, and another thread may make one between those of a call.
            several = len(bound.launches) > 1
            own = _cupy().zeros(counters, np.uint32) if several else stream.counters(counters)
            stream.keep(scratch, own)
            counters_at = own.data.ptr
        place = scratch.data.ptr
        groups_at = place + _SUMS * tiles
        return place, groups_at, groups_at + _SUMS * self._groups, counters_at

    def _launch(
        self, bound: _Bound, places: NDArray[Any], mode: Mode, own: "_Own", stream: "_Stream", *, sums: bool
    ) -> None:
        """Make the launches of a pass, once all else is done that can fail. Each copies its argument."""
        ready = []
        for launch, kept in zip(bound.launches, bound.tables, strict=True):
            key = mode, sums, stream.key
            each = launch.ready.get(key)
            if each is None or stream.captures:
                each = self._ready(launch, launch.kernel(mode, sums=sums), stream)
                if not stream.captures:
                    launch.ready[key] = each
            call = each.call
            if launch.by_value:
                call.place = places[launch.members[0]].item()
            else:
                table = _Table() if bound.apart else kept
                call.places = table.on(stream, places, launch.members)
            call.strength, call.upstream, call.divisor = own.strength, own.upstream, own.divisor
            call.sums, call.each, call.rounded = own.results
            call.tile_sums, call.group_sums, call.penalties, call.counters = own.scratch
            ready.append(each)
        try:
            for each in ready:
                each.kernel(each.grid, (THREADS,), each.given)
        except BaseException:
            stream.forget_counters()
            raise

    def _ready(self, launch: _Launch, name: str, stream: "_Stream") -> "_Ready":
        """Return what does not change from pass to pass of a launch on a stream."""
        call = _Call(count=len(self.leaves), groups=self._groups)
        call.blocks, call.large, call.launched = launch.blocks, launch.large, len(launch.members)
        if launch.by_value:
            call.single = launch.records[0].item()
        else:
            records, tensor_of = launch.tables
            call.tensors = records.on(stream, launch.records)
            call.tensor_of = tensor_of.on(stream, launch.tensor_of)
        return _Ready(_kernel(name, stream.device), (launch.grid,), call, (np.frombuffer(call, CALL),))


class _Own(NamedTuple):
    """What each call tells its launches anew."""

    strength: tuple[int, float, bool]
    upstream: tuple[int, float, bool]
    divisor: int
    results: tuple[int, int, int]  # addresses: sums, each, rounded
    scratch: tuple[int, int, int, int]  # addresses: sums of tiles, of groups, penalties, counters


class _Ready(NamedTuple):
    """A launch that lacks only what each call tells it."""

    kernel: Any
    grid: tuple[int]
    call: Any
    given: tuple[NDArray[Any]]  # the same memory, as CuPy takes it


@contextlib.contextmanager
def _side_by_side(bound: _Bound, mode: Mode, stream: "_Stream") -> Iterator[NDArray[Any]]:
    """Yield where tensors lie once those are copied that cannot be read where they are; at the end, copy back."""
    places = bound.places.copy()
    with contextlib.ExitStack() as copies:
        for which, name, view in bound.apart:
            reads = name == "weights" or mode is Mode.ACCUMULATE
            copy = copies.enter_context(_copied(view, stream, reads=reads, writes=name == "gradient"))
            places[which][name] = copy.data.ptr
        yield places


def _factor(cupy: ModuleType, factor: Scalar, stream: "_Stream") -> tuple[int, float, bool]:
    """Return a factor as the kernels take it: where it is, if it is on the device, else the number."""
    if isinstance(factor, float) or not isinstance(factor, cupy.ndarray):
        return 0, float(factor), False
    stream.keep(factor)
    return factor.data.ptr, 0.0, factor.dtype.itemsize == 4


def _is_side_by_side(view: Any) -> bool:
    """Return whether kernels can take an array as it is: its elements one after another, where a GPU can read them."""
    return bool(view.flags.c_contiguous and view.data.ptr % view.itemsize == 0)


@contextlib.contextmanager
def _copied(view: Any, stream: "_Stream", *, reads: bool = True, writes: bool = True) -> Iterator[Any]:
    """Yield a copy whose elements lie side by side."""
    copy = _cupy().empty(view.shape, view.dtype)
    stream.keep(copy)
    if reads:
        _copy_bits(view, copy)
    yield copy
    if writes:
        _copy_bits(copy, view)


def _copy_bits(source: Any, target: Any) -> None:
    """Copy elements as unsigned words, the longest that fit all addresses: one axis more, if these are shorter.

    Not all of CuPy's kernels know bfloat16, and a GPU refuses an element at an address that is no multiple of its size.
    """
    places = [place for array in (source, target) for place in (array.data.ptr, *array.strides)]
    word = math.gcd(source.itemsize, *places)
    more, step = ((), ()) if word == source.itemsize else ((source.itemsize // word,), (word,))
    source, target = (
        _cupy().ndarray((*array.shape, *more), f"u{word}", array.data, (*array.strides, *step))
        for array in (source, target)
    )
    target[...] = source


@functools.cache
def _kernel(name: str, device: int) -> Any:
    """Return a kernel, loaded on a device, by its name."""
    cupy = _cupy()
    with cupy.cuda.Device(device) as current:
        kernel = compiler.compile(name, f"sm_{current.compute_capability}")
        module = cupy.cuda.function.Module()
        module.load(kernel.cubin)
        return module.get_function(kernel.symbol)


class _Thread(threading.local):
    """A thread's number, which no other ever has, and the counters of its default streams, which go when it ends."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self.counters: dict[tuple[int, ...], Any] = {}


_thread = _Thread()


class _Stream:
    """CuPy's current stream of the current device, and what launches on it need to stay."""

    # Zeroed counters, which each launch leaves zero, so that they serve all launches of a stream, one after another.
    _counters: dict[tuple[int, ...], Any] = {}  # noqa: RUF012 - of all streams
    # What captured launches use: a graph may be replayed for as long as the program runs.
    _captured: list[Any] = []  # noqa: RUF012

    def __init__(self, cupy: ModuleType) -> None:
        stream = cupy.cuda.get_current_stream()
        self._cupy = cupy
        self._kept: list[Any] = []
        self.captures = stream.is_capturing()
        self.device = cupy.cuda.Device().id
        # The default stream of a thread has one address in all threads.
        of_thread = stream.ptr == cupy.cuda.Stream.ptds.ptr
        self.key = (self.device, stream.ptr, _thread.number if of_thread else 0)
        self._known_counters = _thread.counters if of_thread else self._counters

    def keep(self, *arrays: Any) -> None:
        """Keep arrays that a launch uses: for ever if it is captured, else as long as this object.

        Once the launch is made, CuPy may give their memory away, for it does so in the order of the stream.
        """
        (self._captured if self.captures else self._kept).extend(arrays)

    def send(self, table: NDArray[Any]) -> Any:
        """Return a copy on the device, made in the order of the stream."""
        return self._cupy.array(np.ascontiguousarray(table).view(np.uint8))  # a copy even where memory is unified

    def counters(self, size: int) -> Any:
        """Return at least so many counters that are zero when the launch begins."""
        counters = self._known_counters.get(self.key)
        if counters is None or counters.size < size:
            counters = self._known_counters[self.key] = self._cupy.zeros(max(size, 1024), np.uint32)
        return counters

    def forget_counters(self) -> None:
        """Forget the counters, which may be anything when a launch has failed."""
        self._known_counters.pop(self.key, None)


def _shadow(array: Any) -> NDArray[Any]:
    """Return a NumPy array at the same addresses, not to be read: NumPy's search for an overlap reads no element."""

    class Shadow:
        __array_interface__ = {  # noqa: RUF012
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.itemsize}",
            "data": (array.data.ptr, True),
            "version": 3,
        }

    return np.asarray(Shadow())
