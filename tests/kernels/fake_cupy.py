"""A CuPy whose GPU is this machine: all of it that gpureg calls, over host memory.

Everything between a public call and the launch then runs as it is; the launch itself is handed to the kernels that run
on the host. Memory comes poisoned, as a pool's is, and is counted.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpureg import libraries
from gpureg.backends import cuda

Launch = Callable[[str, int, np.ndarray[Any, Any]], None]
"""Run a kernel: its name, how many blocks, and its argument."""

POISON = 0xC7


class Device:
    """A device, and while it is entered the current one."""

    stack = [0]  # noqa: RUF012 - the current device is the process's
    compute_capability = "90"

    def __init__(self, number: int | None = None) -> None:
        self.id = self.stack[-1] if number is None else number

    def __enter__(self) -> "Device":
        self.stack.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.pop()


class Pointer:
    """A place in memory, which stays while this does."""

    def __init__(self, ptr: int, owner: Any) -> None:
        self.ptr, self.owner = ptr, owner

    def __add__(self, nbytes: int) -> "Pointer":
        return Pointer(self.ptr + nbytes, self.owner)


class ndarray(np.ndarray[Any, Any]):  # noqa: N801 - CuPy's name
    """An array in the memory of a device."""

    home = 0

    def __new__(cls, shape: Any, dtype: Any, memptr: Any, strides: Any = None) -> "ndarray":
        """Make an array of memory that is there."""

        class Memory:
            __array_interface__ = {  # noqa: RUF012
                "shape": shape,
                "typestr": f"|V{np.dtype(dtype).itemsize}",
                "data": (memptr.ptr, False),
                "strides": strides,
                "version": 3,
                "owner": memptr,
            }

        array: ndarray = np.asarray(Memory()).view(dtype).view(cls)
        return array

    def __array_finalize__(self, other: Any) -> None:
        self.home = getattr(other, "home", Device.stack[-1])

    @property
    def device(self) -> Device:  # type: ignore[override] # CuPy's, not the array API's
        return Device(self.home)

    @property
    def data(self) -> Any:
        return Pointer(self.__array_interface__["data"][0], self)

    def get(self) -> np.ndarray[Any, Any]:
        return np.array(self, subok=False)


ndarray.__module__ = "cupy"


class FakeCupy(ModuleType):
    """The module `cupy`."""

    ndarray = ndarray

    def __init__(self, launch: Launch) -> None:
        super().__init__("cupy")
        self.__version__ = "14.0.0"
        self.allocated = 0
        self.launches: list[tuple[str, int]] = []
        self.launch = launch
        self.stream = SimpleNamespace(ptr=0, is_capturing=lambda: False)
        self.cuda = SimpleNamespace(
            Device=Device,
            Stream=SimpleNamespace(ptds=SimpleNamespace(ptr=2)),
            get_current_stream=lambda: self.stream,
            runtime=SimpleNamespace(getDeviceCount=lambda: 2),
            function=SimpleNamespace(Module=lambda: Module(self)),
        )

    def empty(self, shape: Any, dtype: Any = np.float64) -> Any:
        """Allocate memory that holds what nobody should read, at an address of 256 bytes as CuPy's pool has."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.allocated += size
        raw = np.full(size + 256, POISON, np.uint8)
        start = -raw.__array_interface__["data"][0] % 256
        return raw[start : start + size].view(dtype).reshape(shape).view(ndarray)

    def zeros(self, shape: Any, dtype: Any = np.float64) -> Any:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def array(self, other: Any) -> Any:
        array = self.empty(np.shape(other), np.asarray(other).dtype)
        np.copyto(array, other)
        return array

    asarray = array

    def empty_like(self, other: Any) -> Any:
        axes = sorted(range(other.ndim), key=lambda axis: -abs(other.strides[axis]))
        array = self.empty([other.shape[axis] for axis in axes], other.dtype)
        return array.transpose(np.argsort(axes))


class Module:
    """A loaded binary, which for the host is the kernel's name."""

    def __init__(self, cupy: FakeCupy) -> None:
        self.cupy = cupy

    def load(self, binary: bytes) -> None:
        self.name = binary.decode()

    def get_function(self, symbol: str) -> Callable[..., None]:
        assert symbol == f"symbol of {self.name}"
        device = Device.stack[-1]

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            (argument,) = arguments
            assert (len(grid), block, argument.shape) == (1, (128,), (1,))
            assert Device.stack[-1] == device, "launched on another device than it was loaded on"
            self.cupy.launches.append((self.name, grid[0]))
            self.cupy.launch(self.name, grid[0], argument)

        return launch


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
    for cached in (libraries._of_type, cuda._kernel, cuda._unusable):
        cached.cache_clear()
    cuda._Stream._counters.clear()
    cuda._Stream._captured.clear()
