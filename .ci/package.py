"""Build the sdist and from it the wheel, look inside, and try the wheel far from the source tree."""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

KERNELS = sorted(path.name for path in (Path(__file__).parents[1] / "kernels").glob("*.cu*"))
IN_WHEEL = (
    "gpureg/py.typed",
    "gpureg/golden.json",
    "gpureg/cli/demo/__init__.py",
    *(f"gpureg/kernels/{name}" for name in KERNELS),
)
IN_SDIST = (
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "Makefile",
    "tests/reference.py",
    "docs/arithmetic.md",
    *(f"kernels/{name}" for name in KERNELS),
)


def run(*command: object, cwd: Path) -> None:
    """Run a command; its failure is ours."""
    sys.stdout.write(f"$ {' '.join(map(str, command))}\n")
    sys.stdout.flush()
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def only(folder: Path, pattern: str) -> Path:
    """Return the one file of that pattern."""
    (found,) = folder.glob(pattern)
    return found


def look_inside(sdist: Path, wheel: Path) -> None:
    """Fail if either lacks something, or the wheel holds something that is not the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    missing = [name for name in IN_WHEEL if name not in names]
    foreign = [name for name in names if not name.startswith(("gpureg/", "gpureg-"))]
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    missing += [name for name in IN_SDIST if name not in packed]
    if missing or foreign:
        sys.exit(f"missing from the distributions: {missing}; in the wheel by mistake: {foreign}")


def main(source: Path, out: Path) -> None:
    """Build into a new folder `out` and try what was built."""
    with tempfile.TemporaryDirectory() as away:
        elsewhere = Path(away)
        run(sys.executable, "-m", "build", "--outdir", out, source, cwd=elsewhere)
        sdist, wheel = only(out, "*.tar.gz"), only(out, "*.whl")
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=elsewhere)
        look_inside(sdist, wheel)
        venv.create(elsewhere / "venv", with_pip=True)
        python = elsewhere / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", wheel, cwd=elsewhere)
        # NumPy alone is there now, and nothing of the source tree: what the wheel lacks is missed.
        run(elsewhere / "venv" / "bin" / "gpureg", "check", cwd=elsewhere)
        where = "import gpureg, pathlib, sys; sys.exit(not pathlib.Path(gpureg.__file__).is_relative_to(sys.prefix))"
        run(python, "-c", where, cwd=elsewhere)


if __name__ == "__main__":
    destination = Path(sys.argv[1]).resolve()
    for old in destination.glob("gpureg-*"):
        old.unlink()
    main(Path(__file__).resolve().parent.parent, destination)
