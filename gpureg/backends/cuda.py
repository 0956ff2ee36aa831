"""Penalties and gradients of CuPy arrays: one launch of the kernels in `kernels/` for each pair of dtypes in a call.

The kernels are compiled when first needed (`gpureg.compiler`); CuPy allocates, loads and launches, on the current
stream of the arrays' device. Nothing here waits for the GPU.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpureg import arithmetic, backends, compiler, driver
from gpureg.backends import Leaf, Scalar, Values
from gpureg.compiler import Mode

THREADS = arithmetic.ROW_BYTES // 16
"""Threads of a block, as in `kernels/tree.cuh`: one 16-byte load of each makes a row."""

GROUP = THREADS
"""Tiles of a group, whose sums one block adds in one go."""

# The structures of kernels/penalty.cu and kernels/proximal.cu, passed by value or in tables.
TENSOR = np.dtype(
    [
        ("weights", np.uint64),
        ("gradient", np.uint64),
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
FACTOR = np.dtype([("place", np.uint64), ("number", np.float64)], align=True)
CALL = np.dtype(
    [
        ("single", TENSOR),
        ("tensors", np.uint64),
        ("tensor_of", np.uint64),
        ("count", np.uint32),
        ("groups", np.uint32),
        ("strength", FACTOR),
        ("upstream", FACTOR),
        ("divisor", np.float64),
        ("tile_sums", np.uint64),
        ("group_sums", np.uint64),
        ("penalties", np.uint64),
        ("counters", np.uint64),
        ("each", np.uint64),
        ("total", np.uint64),
        ("total_rounded", np.uint64),
    ],
    align=True,
)
STEP = np.dtype(
    [
        ("weights", np.uint64),
        ("size", np.uint64),
        ("threshold", np.float64),
        ("divisor", np.float64),
        ("divides", np.bool_),
    ],
    align=True,
)

_SUMS = 16
"""Bytes of a pair of float64 sums."""


class CudaBackend:
    """The backend of CuPy arrays; see `gpureg.backends.Backend` for each method."""

    name = "cuda"

    def unusable(self) -> str | None:  # noqa: D102
        return _unusable()

    def value(  # noqa: D102
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, divisor: int = 1
    ) -> Values:
        return _run(leaves, Mode.VALUE, dtype, strength, 1.0, divisor)

    def gradient(self, leaves: Sequence[Leaf], *, strength: Scalar = 1.0, upstream: Scalar = 1.0) -> None:  # noqa: D102
        _run(leaves, Mode.GRADIENT, np.dtype(np.float64), strength, upstream)

    def value_and_gradient(  # noqa: D102
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        return _run(leaves, Mode.VALUE_AND_GRADIENT, dtype, strength, upstream)

    def accumulate(  # noqa: D102
        self, leaves: Sequence[Leaf], dtype: np.dtype[Any], *, strength: Scalar = 1.0, upstream: Scalar = 1.0
    ) -> Values:
        return _run(leaves, Mode.ACCUMULATE, dtype, strength, upstream)

    def proximal(self, leaves: Sequence[Leaf], step: Scalar) -> None:  # noqa: D102
        for leaf in leaves:
            _proximal(leaf, float(step))

    def from_numpy(self, array: NDArray[Any]) -> Any:  # noqa: D102
        return _cupy().array(array)

    def to_numpy(self, array: Any) -> NDArray[Any]:  # noqa: D102
        return np.asarray(array.get())

    def overlap(self, first: Any, second: Any) -> bool:  # noqa: D102
        return backends.load("numpy").overlap(_shadow(first), _shadow(second))


backend = CudaBackend()


def _cupy() -> ModuleType:
    return import_module("cupy")


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


def _run(
    leaves: Sequence[Leaf], mode: Mode, dtype: np.dtype[Any], strength: Scalar, upstream: Scalar, divisor: int = 1
) -> Values:
    """Launch a pass over all tensors, and return where the penalties will be."""
    cupy = _cupy()
    count = len(leaves)
    if not leaves:
        return Values(cupy.zeros((), dtype), cupy.zeros(0))
    with leaves[0].weights.device, contextlib.ExitStack() as copies:
        stream = _Stream(cupy)
        records, tiles, groups = _records(leaves, mode, copies, stream)
        results = cupy.empty(count + 2, np.float64)
        scratch = cupy.empty(_SUMS * (int(tiles.sum()) + groups + count), np.uint8)

        call = np.zeros(1, CALL)
        call["count"], call["groups"], call["divisor"] = count, groups, divisor
        for name, factor in (("strength", strength), ("upstream", upstream)):
            call[name] = _factor(cupy, factor, stream)
        call["tile_sums"] = scratch.data.ptr
        call["group_sums"] = call["tile_sums"] + _SUMS * int(tiles.sum())
        call["penalties"] = call["group_sums"] + _SUMS * groups
        call["each"] = results.data.ptr
        call["total"] = call["each"] + 8 * count
        call["total_rounded"] = call["total"] + 8
        stream.keep(results, scratch)

        with stream.counters(groups + count + 1) as counters:
            call["counters"] = counters.data.ptr
            for (weights, gradient), part in _parts(leaves, mode).items():
                coefficients = [leaves[i].coefficients for i in part]
                l1, l2 = any(c.l1 != 0 for c in coefficients), any(c.l2 != 0 for c in coefficients)
                name = compiler.penalty_pass(weights, gradient, mode, l1=l1, l2=l2)
                grid = _fill_tables(cupy, call, records[part], tiles[part], stream)
                _kernel(name, cupy.cuda.Device().id)((grid,), (THREADS,), (call,))
        total = results[count : count + 1] if dtype.itemsize == 8 else results[count + 1 :].view(np.float32)[:1]
        total = total.reshape(()).astype(dtype, copy=False)
        stream.keep(total)
        return Values(total, results[:count])


def _records(
    leaves: Sequence[Leaf], mode: Mode, copies: contextlib.ExitStack, stream: "_Stream"
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Return the kernels' record of each tensor, how many tiles each has, and how many groups of tiles there are."""
    records = np.zeros(len(leaves), TENSOR)
    for i, leaf in enumerate(leaves):
        axes = arithmetic.memory_order(leaf.weights)
        weights = copies.enter_context(_side_by_side(leaf.weights, axes, stream, writes=False))
        records[i]["weights"], records[i]["size"] = weights.data.ptr, weights.size
        if mode is not Mode.VALUE:
            gradient = _side_by_side(leaf.gradient, axes, stream, reads=mode is Mode.ACCUMULATE)
            records[i]["gradient"] = copies.enter_context(gradient).data.ptr
        records[i]["l1"], records[i]["l2"], records[i]["twice_l2"] = leaf.coefficients
    sizes = np.array([arithmetic.tile_size(leaf.weights.itemsize) for leaf in leaves], np.uint64)
    tiles = np.maximum((records["size"] + sizes - np.uint64(1)) // sizes, np.uint64(1)).astype(np.int64)
    groups = -(-tiles // GROUP)
    records["leaf"] = np.arange(len(leaves))
    records["first_group"] = np.cumsum(groups) - groups
    return records, tiles, int(groups.sum())


def _parts(leaves: Sequence[Leaf], mode: Mode) -> dict[tuple[str, str], list[int]]:
    """Return which tensors share a pair of dtypes, weights and gradient, and so a launch."""
    parts: dict[tuple[str, str], list[int]] = {}
    for i, leaf in enumerate(leaves):
        weights = leaf.weights.dtype.name
        gradient = weights if mode is Mode.VALUE else leaf.gradient.dtype.name
        parts.setdefault((weights, gradient), []).append(i)
    return parts


def _fill_tables(
    cupy: ModuleType, call: NDArray[Any], records: NDArray[Any], tiles: NDArray[Any], stream: "_Stream"
) -> int:
    """Tell the call its tensors, by value if there is one, else in tables on the device; return the number of tiles."""
    records["first_tile"] = np.cumsum(tiles) - tiles
    if len(records) == 1:
        call["single"], call["tensors"], call["tensor_of"] = records[0], 0, 0
        return int(tiles[0])
    if stream.captures:
        raise RuntimeError("a call over several tensors cannot be captured: its tables are copied from the host")
    table = cupy.asarray(records.view(np.uint8))
    tensor_of = cupy.asarray(np.repeat(np.arange(len(records), dtype=np.uint32), tiles))
    call["tensors"], call["tensor_of"] = table.data.ptr, tensor_of.data.ptr
    stream.keep(table, tensor_of)
    return int(tiles.sum())


def _factor(cupy: ModuleType, factor: Scalar, stream: "_Stream") -> tuple[int, float]:
    """Return a factor as the kernels take it: where it is, if it is on the device, else the number."""
    if not isinstance(factor, cupy.ndarray):
        return 0, float(factor)
    place = factor.astype(np.float64, copy=False)
    stream.keep(place)
    return place.data.ptr, 0.0


def _proximal(leaf: Leaf, step: float) -> None:
    """Launch the proximal step on one tensor."""
    weights, (l1, _, twice_l2) = leaf.weights, leaf.coefficients
    if not weights.size:
        return
    with weights.device, _side_by_side(weights, arithmetic.memory_order(weights), _Stream(_cupy())) as dense:
        argument = np.zeros(1, STEP)
        argument[0] = dense.data.ptr, dense.size, step * l1, 1 + step * twice_l2, twice_l2 != 0
        tiles = -(-dense.size // arithmetic.tile_size(dense.itemsize))
        _kernel(compiler.proximal_step(weights.dtype.name), weights.device.id)((tiles,), (THREADS,), (argument,))


@contextlib.contextmanager
def _side_by_side(
    array: Any, axes: tuple[int, ...], stream: "_Stream", *, reads: bool = True, writes: bool = True
) -> Iterator[Any]:
    """Yield an array whose elements lie side by side in that order of its axes: itself, or a copy for the while."""
    view = array.transpose(axes)
    if view.flags.c_contiguous and view.data.ptr % view.itemsize == 0:
        yield view
        return
    copy = _cupy().empty(view.shape, view.dtype)
    stream.keep(copy)
    if reads:
        _copy_bits(view, copy)
    yield copy
    if writes:
        _copy_bits(copy, view)


def _copy_bits(source: Any, target: Any) -> None:
    """Copy elements as unsigned words, the longest that fit all addresses.

    Not all of CuPy's kernels know bfloat16, and a GPU refuses an element at an address that is no multiple of its size.
    """
    places = [place for array in (source, target) for place in (array.data.ptr, *array.strides)]
    word = math.gcd(source.itemsize, *places)
    words = [
        _cupy().ndarray((*array.shape, array.itemsize // word), f"u{word}", array.data, (*array.strides, word))
        for array in (source, target)
    ]
    words[1][...] = words[0]


@functools.cache
def _kernel(name: str, device: int) -> Any:
    """Return a kernel, loaded on a device, by its name."""
    cupy = _cupy()
    with cupy.cuda.Device(device) as current:
        kernel = compiler.compile(name, f"sm_{current.compute_capability}")
        module = cupy.cuda.function.Module()
        module.load(kernel.cubin)
        return module.get_function(kernel.symbol)


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
        # The default stream of a thread has one address in all threads.
        thread = threading.get_ident() if stream.ptr == cupy.cuda.Stream.ptds.ptr else 0
        self._key = (cupy.cuda.Device().id, stream.ptr, thread)

    def keep(self, *arrays: Any) -> None:
        """Keep arrays that a launch uses: for ever if it is captured, else as long as this object.

        Once the launch is made, CuPy may give their memory away, for it does so in the order of the stream.
        """
        (self._captured if self.captures else self._kept).extend(arrays)

    @contextlib.contextmanager
    def counters(self, size: int) -> Iterator[Any]:
        """Yield at least so many counters that are zero when the launch begins; forget them if it fails."""
        if self.captures:
            # A graph has its own, for it may be replayed beside other launches; they are zeroed in the graph.
            counters = self._cupy.zeros(size, np.uint32)
            self.keep(counters)
            yield counters
            return
        counters = self._counters.get(self._key)
        if counters is None or counters.size < size:
            counters = self._counters[self._key] = self._cupy.zeros(max(size, 1024), np.uint32)
        try:
            yield counters
        except BaseException:
            self._counters.pop(self._key, None)
            raise


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
