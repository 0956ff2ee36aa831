"""No sanitizer finds anything in the kernels; the faults of test_host_faults.py show that each would."""

from dataclasses import replace

import pytest

from gpureg.backends import Mode
from tests.host_cuda import Build, sanitized
from tests.host_cuda.building import SMALL, Variant
from tests.host_cuda.cases import Calls

MODES = (Mode.VALUE, Mode.ACCUMULATE)
ADDRESSES = Calls(
    passes=300,
    steps=60,
    statistics=60,
    pairs=(("float16", "float32"), ("bfloat16", "bfloat16"), ("float64", "float32")),
    modes=MODES,
)
# A block has as many threads of the system as of CUDA: few calls are many seconds.
RACES = Calls(seed=10**6, passes=25, pairs=(("float32", "float32"), ("bfloat16", "float32")), modes=MODES, tiles=35)
RACES_OF_STATISTICS = Calls(statistics=25, pairs=(("float32", "float32"), ("float64", "float64")), tiles=35)
RACES_OF_WARPS = Calls(seed=2 * 10**6, passes=8, pairs=(("float32", "float32"),), modes=MODES, tiles=2)


@pytest.mark.parametrize(
    ("what", "calls"),
    [
        pytest.param(Build(Variant.ADDRESSES), ADDRESSES, id="addresses and undefined behaviour"),
        pytest.param(replace(SMALL, variant=Variant.THREADS), RACES, id="races"),
        pytest.param(replace(SMALL, variant=Variant.THREADS), RACES_OF_STATISTICS, id="races of statistics"),
        pytest.param(Build(Variant.THREADS), RACES_OF_WARPS, id="races of warps"),
    ],
)
def test_a_sanitizer_finds_nothing(what: Build, calls: Calls) -> None:
    assert sanitized.run(replace(what, kernels=calls.kernels()), calls) == ""
