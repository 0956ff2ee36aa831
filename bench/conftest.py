"""What pytest-benchmark does not know of the machine, added to its raw data."""

import os
from typing import Any

import numpy as np
import pytest

import gpureg
from bench.inputs import cache_bytes, core_count
from bench.model_contenders import PEERS

collect_ignore = ["host_work.py"]  # has no examples, and cannot be imported without CuPy
if PEERS["torch"] is None:
    collect_ignore.append("test_torch.py")  # is about PyTorch alone


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what torch.compile itself does that PyTorch will not have for long."""
    config.addinivalue_line("filterwarnings", "ignore:.*torch.jit.* is deprecated:DeprecationWarning")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add versions, cores and memory, and take out the machine's name."""
    machine_info.pop("node", None)
    machine_info["gpureg"] = {
        "versions": {"gpureg": gpureg.__version__, "numpy": np.__version__, "blas": _blas(), **_peers()},
        "cores": core_count(),
        "cache_bytes": cache_bytes(),
        "memory_bytes": _memory_bytes(),
    }


def _peers() -> dict[str, str | None]:
    """Return the versions of the peers that need not be installed; None of those that are not."""
    return {name: module and module.__version__ for name, module in PEERS.items()}


def _blas() -> str:
    """Return the BLAS that NumPy was built with."""
    built: Any = np.show_config(mode="dicts")
    blas = built.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unnamed BLAS')} {blas.get('version', '')}".strip()


def _memory_bytes() -> int | None:
    """Return the size of the memory, where the system says."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
