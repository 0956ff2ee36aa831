"""What all tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from gpureg import backends

# The same examples on every run and machine; how long one takes says nothing about bits.
settings.register_profile("gpureg", derandomize=True, deadline=None)
settings.load_profile("gpureg")

CPU_BACKENDS = [name for name in ("numpy", "llvm") if backends.load(name).unusable() is None]


@pytest.fixture(scope="module", params=CPU_BACKENDS)
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute what is in the CPU's memory by each backend that can, one after the other."""
    before = backends.get_backend()
    backends.set_backend(request.param)
    yield request.param
    backends.set_backend(before)
