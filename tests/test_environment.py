"""Which array module and which extra fit this machine, and what is said where something is missing."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import backends, driver, environment
from gpureg.driver import Driver


def test_xp_is_numpy_where_no_gpu_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "NAMES", ("numpy",))
    assert gpureg.xp() is np


@pytest.mark.parametrize("reason", [None, "no NVIDIA driver"])
def test_xp_is_cupy_where_the_cuda_backend_is_usable(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    cupy = ModuleType("cupy")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(backends, "NAMES", ("numpy", "cuda"))
    monkeypatch.setattr(backends, "load", lambda _: SimpleNamespace(unusable=lambda: reason))
    assert gpureg.xp() is (cupy if reason is None else np)


class FakeDriver:
    """The driver's five functions, as ctypes calls them."""

    def __init__(self, status: int, version: int, names: list[str]) -> None:
        self.status, self.version, self.names = status, version, names

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self.status

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        out._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:  # noqa: N802
        out._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:  # noqa: N802
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> int:  # noqa: N802
        assert size == 256
        buffer.value = self.names[device.value].encode()
        return 0


def test_the_driver_tells_its_version_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver(0, 13010, ["NVIDIA H200", "NVIDIA L4"]))
    assert driver.find() == Driver((13, 1), ("NVIDIA H200", "NVIDIA L4"))
    described = environment.describe()
    assert described["driver"] == {"version": "runs CUDA 13.1", "reason": None}
    assert described["gpus"] == ["NVIDIA H200", "NVIDIA L4"]


@pytest.mark.parametrize(
    ("fake", "reason"),
    [(FakeDriver(999, 0, []), "does not start"), (FakeDriver(0, 12040, []), "finds no GPU")],
)
def test_a_driver_without_use_says_why(monkeypatch: pytest.MonkeyPatch, fake: FakeDriver, reason: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake)
    assert reason in str(driver.find())
    assert environment.describe()["driver"]["version"] is None


def test_no_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert "no NVIDIA driver" in str(driver.find())


@pytest.mark.parametrize(
    ("found", "extra"),
    [("none", ""), (Driver((11, 8), ("K80",)), ""), (Driver((12, 0), ("T4",)), "cuda12"),
     (Driver((12, 9), ("T4",)), "cuda12"), (Driver((13, 0), ("H200",)), "cuda13"), (Driver((14, 2), ("R",)), "cuda13")],
)  # fmt: skip
def test_the_extra_fits_the_driver(found: Driver | str, extra: str) -> None:
    assert driver.extra(found) == extra


def test_the_extra_can_be_asked_before_anything_is_installed() -> None:
    script = Path(driver.__file__)
    result = subprocess.run([sys.executable, "-I", "-S", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() in {"", "cuda12", "cuda13"}


@pytest.mark.parametrize(
    ("found", "advice"),
    [("no NVIDIA driver", "an NVIDIA driver for CUDA 12"), (Driver((11, 8), ("K80",)), "an NVIDIA driver for CUDA 12"),
     (Driver((12, 4), ("L4",)), "pip install 'gpureg[cuda12]'"), (Driver((13, 0), ("B200",)), "'gpureg[cuda13]'")],
)  # fmt: skip
def test_a_missing_cupy_says_what_to_install(monkeypatch: pytest.MonkeyPatch, found: Driver | str, advice: str) -> None:
    monkeypatch.setattr(driver, "find", lambda: found)
    monkeypatch.setitem(sys.modules, "cupy", None)
    for name in ("cupy", "nvrtc"):
        assert advice in environment.describe()[name]["reason"]


@pytest.mark.parametrize(("name", "extra"), [("ml_dtypes", "bfloat16"), ("llvmlite", "cpu")])
def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert f"pip install 'gpureg[{extra}]'" in environment.describe()[name]["reason"]


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"), OSError("libcuda")]
)
def test_a_package_that_lacks_something_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr(environment, "import_module", fail)
    assert environment.describe()["cupy"]["reason"] == f"installed, but fails to import: {error}"


def test_a_broken_package_says_how_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"{name}: libnvrtc.so.13 is missing\nand much more")

    monkeypatch.setattr(environment, "import_module", fail)
    described = environment.describe()
    assert described["cupy"]["reason"].endswith("cupy: libnvrtc.so.13 is missing")
    assert described["nvrtc"]["reason"].endswith("libnvrtc.so.13 is missing")


def test_bfloat16_results_without_ml_dtypes_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"pip install 'gpureg\[bfloat16\]'"):
        gpureg.l1_loss(np.ones(3), dtype="bfloat16")
