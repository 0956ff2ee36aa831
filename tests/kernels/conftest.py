"""The CUDA backend over a CuPy whose GPU runs the kernels on the host."""

from collections.abc import Iterator

import pytest

from gpureg import compiler, driver
from gpureg.compiler import Kernel
from gpureg.driver import Driver
from tests import host_cuda
from tests.kernels.fake_cupy import FakeCupy, installed


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    """Install a fake CuPy, and a compiler that makes what it loads."""

    def compiled(name: str, architecture: str) -> Kernel:
        assert name in compiler.KERNELS
        return Kernel(f"{name} for {architecture}".encode(), f"symbol of {name}")

    monkeypatch.setattr(compiler, "compile", compiled)
    monkeypatch.setattr(compiler, "unusable", lambda: None)
    monkeypatch.setattr(driver, "find", lambda: Driver((13, 0), ("NVIDIA H200", "NVIDIA A100")))
    with installed(FakeCupy(host_cuda.launch)) as fake:
        yield fake
