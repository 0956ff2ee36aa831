"""`OrthogonalRegularizer` on the GPU is NumPy's within rounding, and stays on the device of its weights."""

import numpy as np
import pytest

from gpureg import OrthogonalRegularizer
from tests.gpu.device import cp
from tests.helpers import DTYPES

pytestmark = pytest.mark.gpu

# Of 70 vectors of 50 elements, relative to the factor: each side is off by at most 2 * 50 + 10 + 70 * 70 roundings of
# float64, as tests/test_orthogonal.py derives.
BOUND = 2 * (2 * 50 + 10 + 70 * 70) * 2.0**-53


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_numpy_s_within_rounding(mode: str, dtype: str) -> None:
    w = np.random.default_rng(0).standard_normal((70, 50) if mode == "rows" else (50, 70)).astype(DTYPES[dtype])
    unit = 2.0 ** -{"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}[dtype]
    reg = OrthogonalRegularizer(0.5, mode)
    on_host, on_device = reg.value_and_grad(w), reg.value_and_grad(cp.asarray(w))
    assert isinstance(on_device[0], cp.ndarray)
    assert (on_device[0].dtype, on_device[1].dtype) == (on_host[0].dtype, w.dtype)
    assert abs(float(on_device[0].get()) - float(on_host[0])) <= BOUND + 2.0**-24 * (dtype != "float64")
    # The gradient's entries are below 1 here, its sums no longer than the value's; each side rounds to its dtype once.
    host, there = on_host[1].astype(np.float64), on_device[1].get().astype(np.float64)
    assert (abs(host - there) <= BOUND + 2 * unit * abs(host)).all()
    grad = cp.zeros(w.shape, w.dtype)
    assert reg.accumulate_grad(cp.asarray(w), grad) == on_device[0]
    assert (grad == on_device[1]).all()
