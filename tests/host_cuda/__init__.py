"""The CUDA kernels on the host: their source, built with a C++ compiler and run thread by thread.

It is as it is but for float16.cuh, whose instructions no host has; tests/kernels/test_nvrtc_gate.py looks at those.

`launch` stands in for the driver's launch, with host memory for the device's. The simulator refuses what the device
would answer with an error or with anything at all: threads that wait for one that never comes, shuffles without all
lanes, misaligned vectors. Shared memory comes filled with NaN, and the order of threads and blocks is random.

What only hardware shows is left to it: real caches and clocks, the memory model of the device beyond what
ThreadSanitizer sees of it, and the instructions that NVRTC makes of the source.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.host_cuda.building import Build, build

__all__ = ["Build", "HostCudaError", "Library", "launch", "library"]


class HostCudaError(RuntimeError):
    """A launch that was ended, and why: the kernel, the block, the thread, and what it did."""


class Library:
    """Kernels that can be launched: a build, and the library that it made."""

    def __init__(self, what: Build, path: Path) -> None:
        self.build = what
        self._library = ctypes.CDLL(str(path))
        self._launch = self._library.host_cuda_launch
        self._launch.restype = ctypes.c_char_p
        self._launch.argtypes = (
            ctypes.c_char_p,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint64,
        )

    def launch(
        self,
        name: str,
        grid: int,
        argument: np.void | NDArray[Any] | bytes,
        *,
        seed: int = 0,
        blocks: Sequence[int] | None = None,
    ) -> None:
        """Run a kernel of `gpureg.compiler.KERNELS` over `grid` blocks, or over some of these, and wait for its end.

        The argument is passed by value. The seed gives the order of threads and of blocks. Launches at the same time
        run one after another.
        """
        content = argument if isinstance(argument, bytes) else argument.tobytes()
        listed = None if blocks is None else np.array(blocks, np.uint32)
        message: bytes = self._launch(
            name.encode(),
            grid,
            None if listed is None else listed.ctypes.data,
            0 if listed is None else listed.size,
            content,
            len(content),
            seed,
        )
        if message:
            raise HostCudaError(message.decode())

    def vectors(self) -> dict[int, int]:
        """Return how many vectors of 16 and of 8 bytes the last launch read and wrote, whatever else it did."""
        counts = (ctypes.c_uint64 * 2)()
        self._library.host_cuda_moved_vectors(counts)
        return {16: counts[0], 8: counts[1]}

    def convert(self, function: str, source: NDArray[Any], target: NDArray[Any]) -> None:
        """Run "load" or "store" of kernels/element.cuh over arrays, whose 16-bit dtype is the name's second part."""
        convert = getattr(self._library, f"host_cuda_{function}")
        convert.restype = None
        convert(ctypes.c_void_p(source.ctypes.data), ctypes.c_void_p(target.ctypes.data), ctypes.c_size_t(source.size))


@functools.cache
def library(what: Build = Build()) -> Library:  # noqa: B008 - it cannot be changed
    """Return a library, built or found and loaded when it is first needed; skip the test where g++ is missing."""
    return Library(what, build(what))


def launch(name: str, grid: int, argument: np.void | NDArray[Any] | bytes, *, seed: int = 0) -> None:
    """Run a kernel of the library of all kernels; see `Library.launch`."""
    library().launch(name, grid, argument, seed=seed)
