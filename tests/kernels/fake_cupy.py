"""A CuPy whose GPU is this machine: all of it that gpureg calls, over host memory.

Everything between a public call and the launch then runs as it is; the launch itself is handed to the kernels that run
on the host. What a GPU does with a mistake is anything or nothing, so the fake refuses it:

- memory comes poisoned, as a pool's is; once no array has it, it is poisoned again, and no launch may touch it;
- a launch touches memory of its device alone, whole elements at multiples of their size, nothing twice, and what is its
  own only if it was allocated on its stream, for others may give it away earlier;
- arrays are read on the host by `get` alone, and not by what makes a launch: that would wait for the GPU;
- while a stream is captured nothing is done, but recorded, and done by each replay; the record keeps no memory.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest
from numpy.typing import NDArray

from gpureg import libraries
from gpureg.arithmetic import tile_size
from gpureg.backends import cuda
from gpureg.backends.cuda_statistics import RESULT, TENSOR
from gpureg.backends.cuda_steps import STEP
from tests.helpers import raw

Launch = Callable[[str, int, NDArray[Any]], None]
"""Run a kernel: its name, how many blocks, and its argument."""

POISON = 0xC7

# Of elements, by their type in a kernel's name.
_ITEMSIZES = {"Half": 2, "BFloat16": 2, "float": 4, "double": 8}


class Device:
    """A device, and while it is entered the current one."""

    stack = [0]  # noqa: RUF012 - the current device is the process's

    def __init__(self, number: int | None = None) -> None:
        self.id = self.stack[-1] if number is None else number

    @property
    def compute_capability(self) -> str:
        return ("90", "80")[self.id]

    def __enter__(self) -> "Device":
        self.stack.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.pop()


class Graph(list[Callable[[], None]]):
    """What was done while a stream was captured."""

    def replay(self) -> None:
        for operation in self:
            operation()


class Stream:
    """A stream, and what it is captured in."""

    def __init__(self, ptr: int = 0, graph: Graph | None = None) -> None:
        self.ptr, self.graph = ptr, graph

    def is_capturing(self) -> bool:
        return self.graph is not None


class Memory:
    """An allocation, at an address of 256 bytes as CuPy's pool has; of no byte at address 0."""

    def __init__(self, cupy: "FakeCupy", nbytes: int) -> None:
        everything = np.full(nbytes + 256, POISON, np.uint8)
        start = -everything.ctypes.data % 256
        self.bytes = everything[start : start + nbytes]
        self.ptr = self.bytes.ctypes.data if nbytes else 0
        self.cupy, self.device, self.stream = cupy, Device().id, cupy.stream.ptr
        self.read_only = False

    def __del__(self) -> None:
        self.bytes[...] = POISON


class Pointer:
    """A place in memory, which stays while this does."""

    def __init__(self, memory: Memory, offset: int = 0) -> None:
        self.memory, self.offset = memory, offset
        self.ptr, self.device_id = memory.ptr + offset, memory.device

    @property
    def mem(self) -> Any:
        return self.memory

    def __add__(self, nbytes: int) -> "Pointer":
        return Pointer(self.memory, self.offset + nbytes)


class DeviceArray:
    """An array in the memory of a device."""

    def __init__(self, shape: Any, dtype: Any, memptr: Pointer, strides: Any = None) -> None:
        self.data = memptr
        self._host: NDArray[Any] = np.ndarray(shape, dtype, memptr.memory.bytes.data, memptr.offset, strides)

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "strides", "dtype", "size", "itemsize", "nbytes", "ndim", "flags"):
            return getattr(self._host, name)
        if name == "_c_contiguous":
            return self._host.flags.c_contiguous
        raise AttributeError(f"the fake CuPy's arrays have no {name}")

    @property
    def device(self) -> Device:
        return Device(self.data.device_id)

    def _view(self, host: NDArray[Any]) -> "DeviceArray":
        offset = host.ctypes.data - self._host.ctypes.data
        return DeviceArray(host.shape, host.dtype, self.data + offset, host.strides)

    def transpose(self, axes: Any) -> "DeviceArray":
        return self._view(self._host.transpose(axes))

    def reshape(self, *shape: Any) -> "DeviceArray":
        return self._view(self._host.reshape(*shape, copy=False))

    def view(self, dtype: Any) -> "DeviceArray":
        return self._view(self._host.view(dtype))

    def __getitem__(self, key: Any) -> "DeviceArray":
        keys = key if isinstance(key, tuple) else (key,)
        return self._view(self._host[keys if ... in keys else (*keys, ...)])  # a view even of one element

    def __setitem__(self, key: Any, value: Any) -> None:
        target, cupy = self[key], self.data.memory.cupy
        source = value if isinstance(value, DeviceArray) else None
        assert source is not None or np.isscalar(value), "only arrays and numbers of the device are assigned"
        # Without the arrays themselves, which a graph does not keep either.
        write, read = target._host, value if source is None else source._host
        written, *others = (one.data.memory.ptr for one in (target, source) if one is not None)

        def copy() -> None:
            used = [place for place in (written, *others) if place]
            assert all(place in cupy.live for place in used), "a copy to or from memory that nobody has"
            assert not (written and cupy.live[written].read_only), "a copy to where it is only to be read"
            assert all(np.asarray(one).flags.aligned for one in (write, read)), "a copy of elements at odd addresses"
            with np.errstate(all="ignore"):  # as on a device
                np.copyto(write, read, casting="unsafe")

        cupy.do(copy)

    def fill(self, value: Any) -> None:
        self[...] = value

    def astype(self, dtype: Any, copy: bool = True) -> "DeviceArray":
        if self.dtype == dtype and not copy:
            return self
        result = self.data.memory.cupy.empty(self.shape, dtype)
        result[...] = self
        return result

    def get(self) -> NDArray[Any]:
        """Wait for the device and return the contents."""
        frame, backend = sys._getframe(1), cuda.CudaBackend
        waiting = {backend.to_numpy.__code__, backend.statistics.__code__}
        while frame.f_back:
            assert frame.f_globals["__name__"] != cuda.__name__ or frame.f_code in waiting, "waits for the GPU"
            frame = frame.f_back
        assert not self.data.memory.cupy.stream.is_capturing(), "waits for what is only captured"
        return self._host.copy()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an array of the device is read by .get() alone")

    __array__ = __bool__ = __float__ = __int__ = __index__ = __eq__ = item = tolist = _refuse
    __hash__ = None  # type: ignore[assignment]


DeviceArray.__module__, DeviceArray.__qualname__ = "cupy", "ndarray"


class FakeCupy(ModuleType):
    """The module `cupy`."""

    ndarray = DeviceArray

    def __init__(self, launch: Launch) -> None:
        super().__init__("cupy")
        self.__version__ = "14.2.0"
        self.allocated = 0  # bytes, in all
        self.allocations = self.uploads = 0  # how many
        self.live: WeakValueDictionary[int, Memory] = WeakValueDictionary()  # by address
        self._all: list[NDArray[np.uint8]] = []  # no address is given away twice
        self.launches: list[tuple[str, int]] = []
        self.launch = launch
        self.stream = Stream()
        self.cuda = SimpleNamespace(
            Device=Device,
            Stream=SimpleNamespace(ptds=Stream(2)),
            get_current_stream=lambda: self.stream,
            runtime=SimpleNamespace(getDeviceCount=lambda: 2),
            function=SimpleNamespace(Module=lambda: Module(self)),
        )

    def do(self, operation: Callable[[], None]) -> None:
        """Do something on the current stream."""
        if self.stream.graph is None:
            operation()
        else:
            self.stream.graph.append(operation)

    @contextmanager
    def capture(self, ptr: int = 5) -> Iterator[Graph]:
        """Capture what is done on a stream, which is the current one meanwhile."""
        before, graph = self.stream, Graph()
        self.stream = Stream(ptr, graph)
        try:
            yield graph
        finally:
            self.stream = before

    def empty(self, shape: Any, dtype: Any = np.float64) -> DeviceArray:
        """Allocate memory that holds what nobody should read."""
        memory = Memory(self, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.allocated += memory.bytes.size
        self.allocations += 1
        self._all.append(memory.bytes)
        if memory.bytes.size:
            self.live[memory.ptr] = memory
        return DeviceArray(shape, dtype, Pointer(memory))

    def zeros(self, shape: Any, dtype: Any = np.float64) -> DeviceArray:
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def array(self, other: Any) -> DeviceArray:
        """Copy from the host."""
        assert not self.stream.is_capturing(), "each replay would copy from the host anew, whatever is there by then"
        host = np.asarray(other)
        array = self.empty(host.shape, host.dtype)
        np.copyto(array._host, host)
        self.uploads += 1
        return array

    asarray = array

    def empty_like(self, other: DeviceArray) -> DeviceArray:
        axes = sorted(range(other.ndim), key=lambda axis: -abs(other.strides[axis]))
        array = self.empty([other.shape[axis] for axis in axes], other.dtype)
        return array.transpose(np.argsort(axes))

    def memory_at(self, place: int) -> Memory:
        """Return the memory that an address is in."""
        (found,) = [memory for memory in self.live.values() if 0 <= place - memory.ptr < memory.bytes.size]
        return found

    def read(self, place: int, count: int, dtype: Any) -> NDArray[Any]:
        """Return a copy of what is at an address."""
        if not count:
            return np.empty(0, dtype)
        memory = self.memory_at(place)
        return np.ndarray(count, dtype, memory.bytes.data, place - memory.ptr).copy()


class Module:
    """A loaded binary, which for the host is the kernel's name and the architecture it is for."""

    def __init__(self, cupy: FakeCupy) -> None:
        self.cupy = cupy

    def load(self, binary: bytes) -> None:
        self.name, _, architecture = binary.decode().partition(" for ")
        assert architecture == f"sm_{Device().compute_capability}", "loaded on a device of another architecture"

    def get_function(self, symbol: str) -> Callable[..., None]:
        assert symbol == f"symbol of {self.name}"
        cupy, name, device = self.cupy, self.name, Device().id

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            (argument,) = arguments
            assert (len(grid), block, argument.shape) == (1, (128,), (1,))
            assert Device().id == device, "launched on another device than it was loaded on"
            # What is in a graph is kept for good, and so may be of any stream.
            stream, argument = None if cupy.stream.is_capturing() else cupy.stream.ptr, argument.copy()

            def run() -> None:
                _check(_Touched(cupy, device, stream), name, grid[0], argument[0])
                cupy.launches.append((name, grid[0]))
                cupy.launch(name, grid[0], argument)

            cupy.do(run)

        return launch


class _Touched:
    """The memory that a launch touches."""

    def __init__(self, cupy: FakeCupy, device: int, stream: int | None) -> None:
        self.cupy, self.device, self.stream = cupy, device, stream
        self.memories = sorted(cupy.live.values(), key=lambda memory: memory.ptr)
        self.starts = np.array([memory.ptr for memory in self.memories], np.uint64)
        self.stops = np.array([memory.ptr + memory.bytes.size for memory in self.memories], np.uint64)
        self.owned: list[tuple[int, int, str]] = []

    def check(self, what: str, places: Any, sizes: Any, item: int, *, written: bool = False) -> None:
        """Assert that memory is there and on the device, and that elements of so many bytes can be at these places."""
        places, sizes = np.atleast_1d(places).astype(np.uint64), np.atleast_1d(sizes).astype(np.uint64)
        assert not np.any(places % np.uint64(item)), f"{what} at an odd address"
        places, sizes = places[sizes > 0], sizes[sizes > 0]
        which = np.searchsorted(self.starts, places, "right").astype(np.int64) - 1
        assert np.all(which >= 0), f"{what} in memory that nobody has"
        assert np.all(places + sizes <= self.stops[which]), f"{what} in memory that nobody has, or past its end"
        for memory in (self.memories[i] for i in np.unique(which)):
            assert memory.device == self.device, f"{what} on another device"
            assert not (written and memory.read_only), f"{what} where it is only to be read"

    def check_own(self, what: str, place: int, count: int, item: int) -> None:
        """Assert the same, and that the memory is not given away before the launch is done, and used for this alone."""
        self.check(what, place, count * item, item, written=True)
        if count:
            assert self.stream in (None, self.cupy.memory_at(place).stream), f"{what} in memory of another stream"
            self.owned.append((place, place + count * item, what))


def _check(touched: _Touched, name: str, grid: int, argument: np.void) -> None:
    """Assert that a launch touches what it may."""
    kernel, dtype, *more = re.findall(r"\w+", name)
    item, given = _ITEMSIZES[dtype], {key: argument[key] for key in argument.dtype.names or ()}
    if kernel == "proximal_step":
        _check_steps(touched, given, grid, item)
        return
    if kernel == "statistics_pass":
        _check_statistics(touched, given, grid, item)
        return
    count, groups, launched, blocks = (int(given[key]) for key in ("count", "groups", "launched", "blocks"))
    large = int(given["large"])
    records, places = np.array([given["single"]]), np.array([given["place"]])
    owners: NDArray[Any] = np.zeros(blocks, np.int64)
    if given["tensors"]:
        tables = []
        for key, length, kind in [("tensors", launched, cuda.TENSOR), ("places", launched, cuda.PLACE),
                                  ("tensor_of", blocks, np.dtype(np.uint32))]:  # fmt: skip
            touched.check(key, given[key], length * kind.itemsize, min(kind.itemsize, 8))
            tables.append(touched.cupy.read(int(given[key]), length, kind))
        records, places, owners = tables
    tiles = -(-records["size"].astype(np.int64) // tile_size(item))
    assert launched == len(records)
    assert grid == blocks + -(-(launched - large) // cuda.WARPS)
    assert np.all(records["leaf"] < count)
    assert np.array_equal(owners, np.repeat(np.arange(large), np.maximum(tiles[:large], 1)))
    assert np.array_equal(records["first_tile"][:large], np.flatnonzero(np.diff(owners.astype(np.int64), prepend=-1)))
    touched.check("weights", places["weights"], records["size"] * np.uint64(item), item)
    if more[1] != "VALUE":
        wide = _ITEMSIZES[more[0]]
        touched.check("a gradient", places["gradient"], records["size"] * np.uint64(wide), wide, written=True)
    for factor in ("strength", "upstream"):
        if given[factor]["place"]:
            wide = 4 if given[factor]["is_float"] else 8
            touched.check(factor, given[factor]["place"], wide, wide)
    several = tiles > 1
    ends = (records["first_tile"] + tiles)[several], (records["first_group"] - (-tiles // cuda.GROUP))[several]
    assert max(ends[1], default=0) <= groups
    for what, length, item in [
        ("tile_sums", int(max(ends[0], default=0)), 16),
        ("group_sums", groups, 16),
        ("penalties", count, 16),
        ("counters", groups + count + 1, 4),
        ("sums", count, 16),
        ("each", count + 1, 8),
        ("rounded", count + 1, 4),
    ]:
        touched.check_own(what, int(given[what]), length, item)
    touched.owned.sort()
    for (_, stop, one), (start, _, other) in zip(touched.owned, touched.owned[1:], strict=False):
        assert stop <= start, f"{one} and {other} in the same memory"


def _check_steps(touched: _Touched, given: dict[str, Any], grid: int, item: int) -> None:
    """Assert the same of proximal steps."""
    records, owners = np.array([given["single"]]), np.zeros(grid, np.int64)
    if given["tensors"]:
        touched.check("tensor_of", given["tensor_of"], 4 * grid, 4)
        owners = touched.cupy.read(int(given["tensor_of"]), grid, np.uint32).astype(np.int64)
        count = int(owners[-1]) + 1
        touched.check("tensors", given["tensors"], count * STEP.itemsize, 8)
        records = touched.cupy.read(int(given["tensors"]), count, STEP)
    factors = [given["length"], given["strength"], given["skips"]]
    if given["lengths"]:
        touched.check("lengths", given["lengths"], len(records) * cuda.FACTOR.itemsize, 8)
        factors += list(touched.cupy.read(int(given["lengths"]), len(records), cuda.FACTOR))
    for factor in factors:
        if factor["place"]:
            wide = 4 if factor["is_float"] else 8
            touched.check("a factor", factor["place"], wide, wide)
    touched.check("weights", records["weights"], records["size"] * np.uint64(item), item, written=True)
    tiles = -(-records["size"].astype(np.int64) // tile_size(item))
    assert np.array_equal(owners, np.repeat(np.arange(len(records)), tiles))
    assert np.array_equal(records["first_tile"], np.cumsum(tiles) - tiles)


def _check_statistics(touched: _Touched, given: dict[str, Any], grid: int, item: int) -> None:
    """Assert the same of a pass for statistics."""
    records, owners = np.array([given["single"]]), np.zeros(grid, np.int64)
    if given["tensors"]:
        touched.check("tensor_of", given["tensor_of"], 4 * grid, 4)
        owners = touched.cupy.read(int(given["tensor_of"]), grid, np.uint32).astype(np.int64)
        count = int(owners[-1]) + 1
        touched.check("tensors", given["tensors"], count * TENSOR.itemsize, 8)
        records = touched.cupy.read(int(given["tensors"]), count, TENSOR)
    touched.check("weights", records["weights"], records["size"] * np.uint64(item), item)
    tiles = -(-records["size"].astype(np.int64) // tile_size(item))
    assert np.array_equal(owners, np.repeat(np.arange(len(records)), tiles))
    assert np.array_equal(records["first_tile"], np.cumsum(tiles) - tiles)
    # Of a call, which other launches share: the records lie in the order of the arrays.
    stops = records["first_group"] - (-tiles // cuda.GROUP)
    assert np.all(stops[:-1] <= records["first_group"][1:])
    groups = int(stops[-1])
    for what, length, size in [("tile_sums", grid, 16), ("counters", groups, 4), ("groups", groups, RESULT.itemsize)]:
        touched.check_own(what, int(given[what]), length, min(size, 8))
    zeros = touched.cupy.read(int(given["groups"]), groups, RESULT)[records["first_group"]]
    assert not zeros.view(np.uint8).any(), "results that are not zero before the launch"


def on_device(cupy: FakeCupy, array: NDArray[Any]) -> DeviceArray:
    """Return a device array of the same contents and strides, as far from what a vector of 16 bytes needs."""
    spans = [stride * (length - 1) for stride, length in zip(array.strides, array.shape, strict=True)]
    lowest, highest = sum(min(0, span) for span in spans), sum(max(0, span) for span in spans)
    past = array.ctypes.data % 16
    memory = cupy.empty(past + highest - lowest + array.itemsize, np.uint8)
    view = cupy.ndarray(array.shape, array.dtype, memory.data + (past - lowest), array.strides)
    view._host.view(f"u{array.itemsize}")[...] = raw(array)
    return view


@contextmanager
def read_only(*arrays: DeviceArray) -> Iterator[None]:
    """Refuse that anything is written to the memory that arrays are in."""
    for array in arrays:
        array.data.memory.read_only = True
    try:
        yield
    finally:
        for array in arrays:
            array.data.memory.read_only = False


@contextmanager
def installed(cupy: FakeCupy) -> Iterator[FakeCupy]:
    """Let `import cupy` find it, and forget afterwards all that was made with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cupy)
        _forget()
        yield cupy
    _forget()


def _forget() -> None:
    """Forget which library arrays are of, and what the CUDA backend loaded and keeps."""
    sys.modules.pop("gpureg.libraries.cupy", None)
    for cached in (cuda._kernel, cuda._unusable):
        cached.cache_clear()
    for kept in (libraries._known, cuda._Stream._counters, cuda._Stream._captured, cuda._thread.counters):
        kept.clear()
