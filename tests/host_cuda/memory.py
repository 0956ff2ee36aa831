"""Host memory that stands in for the device's: filled with NaN, and watched on both sides of every buffer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BYTE = 0xFF  # all bytes of this are NaN in every dtype
_GUARD = 256


class Memory:
    """The buffers of a call.

    A kernel that reads past one gets NaN, and one that writes there is found by `check`. Without guards each buffer
    ends where an allocation ends, as AddressSanitizer wants it.
    """

    def __init__(self, *, guards: bool = True) -> None:
        self._guard = _GUARD if guards else 0
        self._buffers: list[tuple[Array, int, int]] = []

    def empty(self, size: int, dtype: Any, *, offset: int = 0) -> Array:
        """Return `size` times NaN in a buffer that begins `offset` elements after a multiple of 16 bytes."""
        kind = np.dtype(dtype)
        start = self._guard + offset * kind.itemsize
        end = start + size * kind.itemsize
        memory = np.full(end + self._guard, _BYTE, np.uint8)
        assert memory.ctypes.data % 16 == 0, "an allocation is aligned so on every machine that has vectors"
        self._buffers.append((memory, start, end))
        return np.ndarray(size, kind, memory.data, start)

    def zeros(self, size: int, dtype: Any) -> Array:
        """Return zeros."""
        result = self.empty(size, dtype)
        result[...] = 0
        return result

    def place(self, array: Array, *, offset: int = 0) -> Array:
        """Return a copy of a 1-d array."""
        result = self.empty(array.size, array.dtype, offset=offset)
        result.view(f"V{array.itemsize}")[...] = array.view(f"V{array.itemsize}")  # no bit of a NaN is changed
        return result

    def check(self) -> None:
        """Assert that nothing was written beside a buffer."""
        for memory, start, end in self._buffers:
            assert np.all(memory[:start] == _BYTE), "something was written before a buffer"
            assert np.all(memory[end:] == _BYTE), "something was written after a buffer"
