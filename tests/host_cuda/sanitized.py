"""Random calls of kernels that a sanitizer watches, in a process of their own, where its runtime is loaded first."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from gpureg.backends import Mode
from tests.host_cuda import Library
from tests.host_cuda.building import COMPILER, HERE, Build, Variant, build
from tests.host_cuda.cases import Calls

_RUNTIMES = {Variant.ADDRESSES: ("libasan.so", "libubsan.so"), Variant.THREADS: ("libtsan.so",)}

_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
    "PYTHONMALLOC": "malloc",
    "OPENBLAS_NUM_THREADS": "1",
}

TIMEOUT = 120
"""Seconds after which threads that wait for one that never comes are given up."""


def run(what: Build, calls: Calls) -> str:
    """Make calls of a build; return "" if all bits are right and nothing was reported, else what was."""
    paths = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in _RUNTIMES[what.variant]
    ]
    environment = os.environ | _OPTIONS | {"LD_PRELOAD": ":".join(paths)}
    modes = [mode.name for mode in calls.modes]
    arguments = json.dumps(
        [str(build(what)), what.tile_bytes, what.row_bytes, calls._replace(modes=())._asdict(), modes]
    )
    command = [*_fixed_addresses(), sys.executable, "-m", __name__, arguments]
    result = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False, timeout=TIMEOUT
    )
    return result.stdout + result.stderr if result.returncode else ""


def _fixed_addresses() -> list[str]:
    """Return what goes before a command so that its addresses are not random: some kernels have too many for TSan."""
    command = ["setarch", platform.machine(), "-R"]
    if shutil.which("setarch") and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        return command
    return []


def main(arguments: str) -> None:
    """Make the calls here."""
    path, tile_bytes, row_bytes, fields, modes = json.loads(arguments)
    pairs = tuple((weights, gradient) for weights, gradient in fields.pop("pairs"))
    calls = Calls(**(fields | {"pairs": pairs, "modes": tuple(Mode[mode] for mode in modes)}))
    calls.check(Library(Build(tile_bytes=tile_bytes, row_bytes=row_bytes), Path(path)), guards=False)


if __name__ == "__main__":
    main(sys.argv[1])
