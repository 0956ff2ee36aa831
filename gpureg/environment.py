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
    install_cupy = f"not installed; for GPU arrays: pip install 'gpureg[{driver.extra(found) or 'cuda13'}]'"
    if isinstance(found, driver.Driver):
        version = {"version": "runs CUDA {}.{}".format(*found.cuda), "reason": None}
    else:
        version = {"version": None, "reason": found}
    return {
        "numpy": _package("numpy", ""),
        "ml_dtypes": _package("ml_dtypes", "not installed; for bfloat16: pip install 'gpureg[bfloat16]'"),
        "cupy": _package("cupy", install_cupy),
        "nvrtc": _nvrtc(install_cupy),
        "driver": version,
        "gpus": list(found.gpus) if isinstance(found, driver.Driver) else [],
    }


def _package(name: str, missing: str) -> dict[str, str | None]:
    """Return a package's version, or why it cannot be imported."""
    try:
        return {"version": import_module(name).__version__, "reason": None}
    except ModuleNotFoundError:
        return {"version": None, "reason": missing}
    except Exception as error:
        return {"version": None, "reason": f"installed, but fails to import: {str(error).partition(chr(10))[0]}"}


def _nvrtc(missing: str) -> dict[str, str | None]:
    """Return the version of the compiler that makes the kernels, as CuPy finds it."""
    try:
        major, minor = import_module("cupy.cuda.nvrtc").getVersion()
    except ModuleNotFoundError:
        return {"version": None, "reason": missing}
    except Exception as error:
        return {"version": None, "reason": f"not usable: {str(error).partition(chr(10))[0]}"}
    return {"version": f"{major}.{minor}", "reason": None}
