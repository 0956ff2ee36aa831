"""Build the kernels for the host, from their source but for float16.cuh, and keep what was built."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from gpureg import arithmetic, compiler
from tests.host_cuda import layout

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".pytest_cache" / "host_cuda"
"""Where libraries are kept, under names that depend on all that they were made from; `make clean` removes it."""

COMPILER = "g++"

# No contraction, for NVRTC makes none either. The kernels read the same bytes as words and as elements.
FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-fvisibility=hidden", "-pthread")


_WITH_KERNELS = ("conversions.cc", "penalty.cc", "proximal.cc", "statistics.cc")
_AT_ONCE = 16


class BuildError(RuntimeError):
    """The compiler refused, and what it said."""


class Variant(Enum):
    """What a library is for: the flags that it takes, what simulates, and copies of the kernels."""

    PLAIN = (("-O2",), "fibres.cc", 1)
    UCONTEXT = (("-O2", "-DHOST_CUDA_UCONTEXT"), "fibres.cc", 1)
    # AddressSanitizer and UndefinedBehaviorSanitizer; the program ends at the first error.
    ADDRESSES = (("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"), "fibres.cc", 1)
    # ThreadSanitizer, a thread of the system for each of two blocks.
    THREADS = (("-O1", "-g1", "-fsanitize=thread", "-DHOST_CUDA_THREADS"), "threads.cc", 2)


@dataclass(frozen=True)
class Build:
    """What to build: a variant, the kernels in it, the sizes of a tile and a row, and where the kernels' source lies.

    Smaller tiles and rows make as many tiles and groups of tiles of fewer elements.
    """

    variant: Variant = Variant.PLAIN
    kernels: tuple[str, ...] = compiler.KERNELS
    tile_bytes: int = arithmetic.TILE_BYTES
    row_bytes: int = arithmetic.ROW_BYTES
    folder: Path | None = None

    def sources(self) -> dict[str, str]:
        """Return the text of each file of the kernels' source, by its name."""
        if self.folder is None:
            return compiler.sources()
        return {file.name: file.read_text(encoding="utf-8") for file in self.folder.glob("*.cu*")}


SMALL = Build(tile_bytes=8192, row_bytes=512)
"""Tiles of as many rows, but blocks of one warp and groups of 32 tiles: three levels of groups are a few megabytes."""


def build(what: Build) -> Path:
    """Return the library, built now unless it is there; skip the test where it cannot be."""
    if sys.platform != "linux":
        pytest.skip("the kernels run on the host on Linux alone")
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is missing, which builds the kernels for the host")
    simulator = {file.name: file.read_text(encoding="utf-8") for file in HERE.glob("*.*") if file.suffix != ".py"}
    sources = what.sources() | simulator  # float16.cuh is the simulator's
    jobs = [(job, _key(job, sources if job[-1] in _WITH_KERNELS else simulator)) for job in _jobs(what)]
    library = CACHE / f"{_key(what.variant, jobs)}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with _lock(library.with_suffix(".lock")):
            if not library.exists():
                _build(library, sources, jobs, what.variant)
    return library


def _key(*made_from: object) -> str:
    return hashlib.sha256(repr((_compiler_version(), made_from)).encode()).hexdigest()[:32]


@functools.cache
def _compiler_version() -> str:
    return subprocess.run([COMPILER, "-v"], capture_output=True, text=True, check=True).stderr


def _jobs(what: Build) -> list[tuple[str, ...]]:
    """Return the compiler's arguments for each part, the file last: no more kernels in one than take a few seconds."""
    flags, simulator, copies = what.variant.value
    common = (*FLAGS, *flags)
    sizes = f"-DGPUREG_TILE_BYTES={what.tile_bytes}", f"-DGPUREG_ROW_BYTES={what.row_bytes}"
    jobs = [(*common, file) for file in (simulator, "launch.cc", "conversions.cc")]
    for template, source in compiler._FILES.items():
        kernels = [name for name in what.kernels if name.startswith(template)]
        checks = f"-DHOST_CUDA_LAYOUT={layout.assertions(layout.STRUCTURES[source])}"
        for start in range(0, len(kernels), _AT_ONCE):
            listed = "-DHOST_CUDA_KERNELS=" + " ".join(f"KERNEL({name})" for name in kernels[start : start + _AT_ONCE])
            for copy in range(copies):
                name = f"-DHOST_CUDA_COPY={template}_{start}_{copy}"
                jobs.append((*common, *sizes, checks, listed, name, source.replace(".cu", ".cc")))
    return jobs


def _build(library: Path, sources: dict[str, str], jobs: list[tuple[tuple[str, ...], str]], variant: Variant) -> None:
    """Compile all parts that are not there and link them; a part and the library are there whole or not at all."""
    flags, _, _ = variant.value
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        for file, text in sources.items():
            (folder / file).write_text(text, encoding="utf-8")
        parts = [CACHE / f"{key}.o" for _, key in jobs]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for part in [pool.submit(_compile, folder, job, CACHE / f"{key}.o") for job, key in jobs]:
                part.result()
        _run(folder, *FLAGS, *flags, "-shared", "-o", library.name, *map(str, parts))
        (folder / library.name).replace(library)


def _compile(folder: Path, job: tuple[str, ...], part: Path) -> None:
    if not part.exists():
        _run(folder, "-c", "-o", part.name, *job)
        (folder / part.name).replace(part)


def _run(folder: Path, *arguments: str) -> None:
    result = subprocess.run([COMPILER, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{COMPILER} {' '.join(arguments)}\n{result.stderr}")


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Let one process at a time build; the system releases what a process that ended still holds."""
    import fcntl  # noqa: PLC0415 - a part of Python on Linux

    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
