"""What GPU tests share: arrays on the device, a stream held up for as long as a test likes, and graphs."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.helpers import Array, Layout, Placed, bits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what an installation of CuPy finds odd about itself
    try:
        cp: Any = import_module("cupy")
    except Exception:  # whatever keeps it from loading: the tests are skipped then, and say why
        cp = None

SOURCE = Path(__file__).with_name("kernels.cu")


def forget() -> None:
    """Wait for the device and give back the memory that nothing uses."""
    cp.cuda.Device().synchronize()
    cp.get_default_memory_pool().free_all_blocks()


def needs_memory(nbytes: int) -> None:
    """Skip where the GPU has not so much free memory."""
    forget()
    free, _ = cp.cuda.runtime.memGetInfo()
    if free < nbytes:
        pytest.skip(f"this GPU has {free / 2**30:.0f} GiB of free memory, of {nbytes / 2**30:.0f} needed")


# Arrays --------------------------------------------------------------------------------------------------------------


class OnDevice(NamedTuple):
    """An array on the device, the memory it lies in, and the same on the host as it was at first."""

    array: Any
    memory: Any
    placed: Placed

    def gaps_are_untouched(self) -> bool:
        """Return whether all bytes of the memory that are not the array's are as they were at first."""
        self.placed.memory[...] = self.memory.get()
        return self.placed.gaps_are_untouched()


def place(layout: Layout, array: Array) -> OnDevice:
    """Return a copy of an array on the device, its elements laid out so."""
    placed = layout.place(array)
    memory = cp.asarray(placed.memory)
    offset = _address(placed.array) - _address(placed.memory)
    strided = cp.ndarray(placed.array.shape, placed.array.dtype, memory.data + offset, placed.array.strides)
    return OnDevice(strided, memory, placed)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def like(array: Array) -> Any:
    """Return a copy of an array on the device with the same strides, as far from an aligned address."""
    steps = [stride * (length - 1) for stride, length in zip(array.strides, array.shape, strict=True)]
    low, high = sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps)
    if not array.size:
        low = high = 0
    past = _address(array) % 16
    memory = np.zeros(past + high - low + array.itemsize, np.uint8)
    np.ndarray(array.shape, array.dtype, memory.data, past - low, array.strides)[...] = array
    return cp.ndarray(array.shape, array.dtype, cp.asarray(memory).data + (past - low), array.strides)


def shifted(array: Array, elements: int) -> Any:
    """Return a copy of a 1-d array on the device that begins so many elements past an aligned address."""
    room = cp.empty(array.size + elements, array.dtype)
    view = room[elements:]
    assert array.size == 0 or view.data.ptr % 256 == elements * array.itemsize % 256
    view.set(array)
    return view


def assert_same(actual: Any, expected: Any) -> None:
    """Assert that an array on the device has the dtype, shape and bits of one of NumPy, every NaN being the same."""
    assert isinstance(actual, cp.ndarray)
    wanted = np.asarray(expected)
    assert actual.dtype == wanted.dtype
    assert actual.shape == wanted.shape
    found, wanted = np.atleast_1d(actual.get()), np.atleast_1d(wanted)
    wrong = np.argwhere(bits(found) != bits(wanted))
    if len(wrong):
        at = tuple(wrong[0])
        raise AssertionError(
            f"{len(wrong)} of {wanted.size} elements differ, the first at {at}: {found[at]!r} "
            f"({bits(found)[at]:#x}), expected {wanted[at]!r} ({bits(wanted)[at]:#x})"
        )


# Streams -------------------------------------------------------------------------------------------------------------


@cache
def kernel(name: str) -> Any:
    """Return one of the kernels that only the tests have."""
    return cp.RawModule(code=SOURCE.read_text(encoding="utf-8")).get_function(name)


class Gate:
    """Holds up the current stream until it is opened; after 20 seconds it opens by itself, lest a test hang."""

    def __init__(self) -> None:
        self._memory = cp.cuda.alloc_pinned_memory(4)
        self._open = np.frombuffer(self._memory, np.uint32, 1)
        self._open[0] = 0
        self.stream = cp.cuda.get_current_stream()
        kernel("wait")((1,), (1,), (np.uint64(self._memory.ptr), np.uint64(20 * 10**9)))

    def holds(self) -> bool:
        """Return whether the stream still waits."""
        return not self.stream.done

    def open(self) -> None:
        """Let the stream go on, and wait for it."""
        self._open[0] = 1
        self.stream.synchronize()


@contextmanager
def gate() -> Iterator[Gate]:
    """Hold up the current stream while the block runs; an error there opens it too."""
    held = Gate()
    try:
        yield held
    finally:
        held.open()


def capture(stream: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    """Return the graph of what a function does on a stream, and what it returned; nothing has run yet."""
    with stream:
        stream.begin_capture()
        try:
            result = run()
        finally:
            graph = stream.end_capture()
    return graph, result
