"""What this machine has to compute with."""

from importlib import import_module
from types import ModuleType
from typing import Any

from gpureg import backends, driver


def xp() -> ModuleType:
    """Return the array module to make arrays with: CuPy where a GPU is usable, else NumPy.

    One script then serves both: what it makes with `xp()` is computed on the GPU where there is one.

    Examples
    --------
    >>> import gpureg
    >>> xp = gpureg.xp()
    >>> float(gpureg.L2(0.5)(xp.ones((2, 3))))
    3.0
    """
    if "cuda" in backends.NAMES and backends.load("cuda").unusable() is None:
        return import_module("cupy")
    return import_module("numpy")


def describe() -> dict[str, Any]:
    """Return what is installed: for each part its version, or in one line why it is not to be had; and the GPUs."""
    found = driver.find()
    extra = driver.extra(found)
    needed = f"pip install 'gpureg[{extra}]'" if extra else "an NVIDIA driver for CUDA 12 or later first"
    install_cupy = f"not installed; for GPU arrays: {needed}"
    if isinstance(found, driver.Driver):
        version = {"version": "runs CUDA {}.{}".format(*found.cuda), "reason": None}
    else:
        version = {"version": None, "reason": found}
    return {
        "numpy": _package("numpy", ""),
        "ml_dtypes": _package("ml_dtypes", "not installed; for bfloat16: pip install 'gpureg[bfloat16]'"),
        "llvmlite": _package("llvmlite", "not installed; for speed on the CPU: pip install 'gpureg[cpu]'"),
        "cupy": _package("cupy", install_cupy),
        "nvrtc": _nvrtc(install_cupy),
        "driver": version,
        "gpus": list(found.gpus) if isinstance(found, driver.Driver) else [],
    }


def _package(name: str, missing: str) -> dict[str, str | None]:
    """Return a package's version, or why it cannot be imported."""
    try:
        return {"version": import_module(name).__version__, "reason": None}
    except Exception as error:  # a half-installed CUDA fails in its own ways, and this is to say how
        return {"version": None, "reason": _reason(name, error, missing)}


def _nvrtc(missing: str) -> dict[str, str | None]:
    """Return the version of the compiler that makes the kernels, as CuPy finds it."""
    try:
        major, minor = import_module("cupy").cuda.nvrtc.getVersion()
    except Exception as error:  # as in `_package`
        return {"version": None, "reason": _reason("cupy", error, missing)}
    return {"version": f"{major}.{minor}", "reason": None}


def _reason(package: str, error: Exception, missing: str) -> str:
    """Return `missing` if the package itself is what was not found, else how it fails."""
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return missing
    return f"installed, but fails to import: {str(error).partition(chr(10))[0]}"
