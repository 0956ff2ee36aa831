"""The kernels compiled for the gates: all of them at once for an architecture, or one of a source changed by hand.

`python -m tests.kernels.build` prints, for sm_90, what each kernel needs and what it has in flight.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from gpureg import compiler
from gpureg.compiler import Program
from tests.kernels.inspect_code import Ptx, Sass, read_ptx, read_sass, table

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

PREFIXES = {"penalty_pass": "penalty.cu", "proximal_step": "proximal.cu", "statistics_pass": "statistics.cu"}


class Code(NamedTuple):
    """A kernel as PTX and as machine code."""

    ptx: Ptx
    sass: Sass


class Compiled(NamedTuple):
    """Kernels that were compiled together, the warnings in doing so, and a folder for their binary."""

    program: Program
    kernels: tuple[str, ...]
    folder: Path

    def ptx(self) -> dict[str, Ptx]:
        """Return the PTX of each kernel."""
        found = read_ptx(self.program.ptx)
        assert found.keys() == set(self.program.symbols)
        return {name: found[symbol] for name, symbol in zip(self.kernels, self.program.symbols, strict=True)}

    def sass(self) -> dict[str, Sass]:
        """Return the machine code of each kernel."""
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".cubin") as file:
            file.write(self.program.cubin)
            file.flush()
            found = read_sass(Path(file.name))
        assert found.keys() == set(self.program.symbols)
        return {name: found[symbol] for name, symbol in zip(self.kernels, self.program.symbols, strict=True)}


def build(
    kernels: Iterable[str],
    folder: Path,
    architecture: str = "sm_90",
    *,
    sources: Mapping[str, str] | None = None,
    options: Iterable[str] = compiler.OPTIONS,
) -> Compiled:
    """Compile kernels of one file together."""
    kernels = tuple(kernels)
    (file,) = {PREFIXES[kernel.partition("<")[0]] for kernel in kernels}
    options = (*options, f"--gpu-architecture={architecture}")
    program = compiler.find_nvrtc().build(file, sources or compiler.sources(), options, kernels)
    return Compiled(program, kernels, folder)


def build_all(architecture: str, temporary: pytest.TempPathFactory) -> list[Compiled]:
    """Return all kernels for an architecture, one program a file, compiled once by all workers of a test run."""
    folder = temporary.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    compiled = []
    for prefix in PREFIXES:
        kernels = tuple(kernel for kernel in compiler.KERNELS if kernel.startswith(prefix))
        stored = folder / f"{prefix}-{architecture}.json"
        with stored.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stored.exists():
                program = build(kernels, folder, architecture).program
                stored.write_text(json.dumps(program._replace(cubin=program.cubin.hex())))  # type: ignore[arg-type]
        cubin, symbols, ptx, log = json.loads(stored.read_text())
        compiled.append(Compiled(Program(bytes.fromhex(cubin), tuple(symbols), ptx, log), kernels, folder))
    return compiled


def main() -> None:
    """Print what each kernel needs and has in flight."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Sass] = {}
        for prefix in PREFIXES:
            found |= build((kernel for kernel in compiler.KERNELS if kernel.startswith(prefix)), Path(folder)).sass()
    print(table(found))


if __name__ == "__main__":
    main()
