"""Run one kernel with a fault that a tool of the sanitizer must see: `python -m tests.gpu.faults memcheck`.

It shows that the sanitizer watches what Python launches through CuPy, so that to find nothing elsewhere means
something.
"""

import sys

import numpy as np

from tests.gpu.device import cp, kernel

SIZE = 128


def main(tool: str) -> None:
    """Launch the kernel of that name."""
    with cp.cuda.using_allocator(None):
        numbers = cp.empty(SIZE, np.int32)
        kernel(tool)((1,), (SIZE + 1,), (numbers, np.int32(SIZE)))
        cp.cuda.Device().synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
