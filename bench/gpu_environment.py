"""The machine, its GPU and what is installed, as one JSON object: `python -m bench.gpu_environment`.

What cannot be found out is None, and what a check of the GPU needs and is not there is in the list of problems.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

Facts = dict[str, Any]


def describe(commit: str | None = None) -> Facts:
    """Return the facts of a report's head: date, machine, versions, commit, and the problems."""
    problems: list[str] = []
    name, changed = revision() if commit is None else _revision(commit)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**_host(), **_gpu(problems)},
        "versions": {**_packages(problems), **_cuda(problems)},
        "commit": name,
        "uncommitted_changes": changed,
        "problems": problems,
    }


def revision() -> tuple[str, bool]:
    """Return the commit of the source tree, and whether it has changed since; "unversioned" without git."""
    said = _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return _revision(said or "unversioned")


def _revision(said: str) -> tuple[str, bool]:
    """Return what `git describe --always --dirty` says, in its parts."""
    match = re.fullmatch(r"([0-9a-f]{7,40})(-dirty)?", said)
    return (match[1], bool(match[2])) if match else ("unversioned", True)


def _output(*command: str) -> str:
    """Return what a program prints, nothing if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# The machine


def _host() -> Facts:
    system = platform.uname()
    return {
        "cpu": _cpu(),
        "architecture": system.machine,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": _memory_gib(),
        "os": system.system,
        "kernel": ".".join(system.release.split(".")[:2]),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        if found:
            return found[1].strip()
    return platform.processor() or "unnamed CPU"


def _memory_gib() -> int | None:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    return None


def _gpu(problems: list[str]) -> Facts:
    unknown = dict.fromkeys(("gpu", "gpus", "gpu_memory_gib", "l2_mib", "multiprocessors", "compute_capability"))
    try:
        runtime = import_module("cupy").cuda.runtime
        properties = runtime.getDeviceProperties(0)
        return {
            "gpu": properties["name"].decode(),
            "gpus": runtime.getDeviceCount(),
            "gpu_memory_gib": round(properties["totalGlobalMem"] / 2**30),
            "l2_mib": round(properties["l2CacheSize"] / 2**20),
            "multiprocessors": properties["multiProcessorCount"],
            "compute_capability": f"{properties['major']}.{properties['minor']}",
        }
    except Exception as error:  # a half-installed CUDA fails in its own ways, and this is to say how
        problems.append(f"no GPU through CuPy: {_line(error)}")
        return unknown


# What is installed


def _packages(problems: list[str]) -> Facts:
    found: Facts = {"python": platform.python_version()}
    for name in ("gpureg", "numpy", "cupy", "pytest", "ml_dtypes"):
        found[name] = _version(partial(_version_of, name), name, problems)
    found["blas"] = _version(_blas, "NumPy's BLAS", [])
    # PyTorch takes seconds to import.
    for name in ("torch", "triton"):
        found[name] = _version(partial(metadata.version, name), name, [])
    return found


def _version_of(name: str) -> str:
    return str(import_module(name).__version__)


def _blas() -> str:
    built: Any = import_module("numpy").show_config(mode="dicts")
    blas = built.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unnamed BLAS')} {blas.get('version', '')}".strip()


def _cuda(problems: list[str]) -> Facts:
    def number(version: int) -> str:
        return f"{version // 1000}.{version % 1000 // 10}"

    def nvrtc() -> str:
        return "{}.{}".format(*import_module("gpureg.compiler").find_nvrtc().version)

    def of_cuda(function: str) -> str:
        return number(getattr(import_module("cupy").cuda.runtime, function)())

    return {
        "driver": _driver(),
        "cuda_driver": _version(lambda: of_cuda("driverGetVersion"), "the driver", problems),
        "cuda_runtime": _version(lambda: of_cuda("runtimeGetVersion"), "the CUDA runtime", problems),
        "nvrtc": _version(nvrtc, "NVRTC", problems),
    }


def _driver() -> str | None:
    said = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0].strip() if said else None


def _version(find: Callable[[], str], name: str, problems: list[str]) -> str | None:
    try:
        return find()
    except Exception as error:  # as in `_gpu`
        problems.append(f"{name}: {_line(error)}")
        return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


if __name__ == "__main__":
    # The commit may be given, for a source tree without its history.
    print(json.dumps(describe(sys.argv[1] if len(sys.argv) > 1 else None)))
