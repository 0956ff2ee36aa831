"""The NVIDIA driver of this machine and its GPUs, asked of the driver itself; needs the standard library alone.

`python gpureg/driver.py` prints the extra of gpureg that fits the driver, `cuda12` or `cuda13`, or nothing where there
is none: so an installation can choose before anything is installed.
"""

import ctypes
import sys
from typing import NamedTuple

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class Driver(NamedTuple):
    """A driver that works: the newest CUDA version it runs, as (major, minor), and the names of its GPUs."""

    cuda: tuple[int, int]
    gpus: tuple[str, ...]


def find() -> Driver | str:
    """Return the driver, or in one line why there is none to use."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return f"no NVIDIA driver ({_LIBRARY} is not there)"
    if status := cuda.cuInit(0):
        return f"the NVIDIA driver does not start (cuInit returned {status})"
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    if not names:
        return "the NVIDIA driver finds no GPU"
    return Driver((version.value // 1000, version.value % 1000 // 10), tuple(names))


def extra(driver: Driver | str) -> str:
    """Return the extra of gpureg whose CuPy the driver can run, "" if there is none.

    >>> extra(Driver((13, 0), ("NVIDIA H200",)))
    'cuda13'
    >>> extra("no NVIDIA driver")
    ''
    """
    if isinstance(driver, str) or driver.cuda < (12, 0):
        return ""
    return "cuda13" if driver.cuda >= (13, 0) else "cuda12"


if __name__ == "__main__":
    sys.stdout.write(extra(find()) + "\n")
