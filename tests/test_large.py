"""More than 2**32 elements in one tensor: every index has more than 32 bits (apex#1825, cupy#9186)."""

from pathlib import Path

import numpy as np
import pytest

import gpureg
from tests.helpers import Array

ROWS, COLUMNS = 2**16 + 1, 2**16
"""The last row lies beyond 2**32 elements."""

# One after the other, for both together may not fit.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("large")]


@pytest.fixture(autouse=True)
def _enough_memory() -> None:
    """Skip where the tensor would not fit, or nobody says whether it does."""
    needed = ROWS * COLUMNS * 2 * 1.2 + 2 * 2**30
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("how much memory is free is known on Linux alone")
    fields = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].removesuffix("kB")) * 1024
    if available < needed:
        pytest.skip(f"needs {needed / 2**30:.1f} GiB of free memory; {available / 2**30:.1f} GiB are available")


def _ramp() -> Array:
    """Return as many small integers as there are columns, in no pattern of a power of two."""
    return (np.arange(COLUMNS) % 17 - 8).astype(np.float16)


def test_sums_of_more_elements_than_32_bits_count() -> None:
    w = np.empty((ROWS, COLUMNS), np.float16)
    w[:-1] = _ramp()
    w[-1] = 100  # an index that wraps would meet the first row again
    w[-1, -1] = 1000
    row = _ramp().astype(np.int64)
    last = 100 * (COLUMNS - 1) + 1000, 100**2 * (COLUMNS - 1) + 1000**2
    sum_abs = (ROWS - 1) * int(np.abs(row).sum()) + last[0]
    sum_squares = (ROWS - 1) * int((row * row).sum()) + last[1]
    # Whole numbers below 2**53: exact in any order.
    assert gpureg.l1_loss(w, dtype=np.float64) == sum_abs
    assert gpureg.l2_loss(w.reshape(-1), dtype=np.float64) == sum_squares / 2


def test_gradients_of_more_elements_than_32_bits_count() -> None:
    rows = np.arange(ROWS) % 1009 - 504  # each row has a number of its own, and takes no memory
    w = np.broadcast_to(rows.astype(np.float16)[:, None], (ROWS, COLUMNS))
    gradient = gpureg.L2(0.5).grad(w, np.zeros(w.shape, np.float16))
    for row in (0, 1, ROWS // 2, ROWS - 2, ROWS - 1):
        assert np.all(gradient[row] == rows[row])
