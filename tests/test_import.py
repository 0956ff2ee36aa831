"""What `import gpureg` brings along: NumPy, and no array library, compiler or command line."""

import subprocess
import sys

import gpureg

LIBRARIES = {"cupy", "cuda", "torch", "jax", "tensorflow", "keras", "llvmlite", "ml_dtypes"}
COMMAND_LINE = {"argparse", "json", "matplotlib", "rich", "sklearn", "gpureg.cli", "gpureg.selftest"}
FILES = {"gpureg.checkpoints", "gpureg.reporting"}
SLOW = {"hashlib", "importlib.metadata", "numpy.random"}
HEAVY = LIBRARIES | COMMAND_LINE | FILES | SLOW


def loaded_by(statements: str) -> set[str]:
    """Return the modules a fresh interpreter holds after the statements, beyond those NumPy had brought."""
    code = f"import sys, numpy; before = set(sys.modules); {statements}; print(*(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_gpureg_imports_numpy_alone() -> None:
    assert not loaded_by("import gpureg") & HEAVY


def test_computing_with_numpy_arrays_imports_nothing_more() -> None:
    computing = "gpureg.L1().grad(numpy.ones(3)); gpureg.xp()"
    assert not loaded_by(f"import gpureg; gpureg.set_backend('numpy'); {computing}") & HEAVY
    assert loaded_by(f"import gpureg; gpureg.set_backend('llvm'); {computing}") & HEAVY == {"llvmlite"}


def test_reporting_imports_no_command_line() -> None:
    reporting = "gpureg.report({'w': numpy.ones(3)}, gpureg.L1()).to_dict(); gpureg.diff({}, {})"
    assert not loaded_by(f"import gpureg; gpureg.set_backend('numpy'); {reporting}") & (
        LIBRARIES | COMMAND_LINE - {"json"}
    )


def test_the_check_can_fail() -> None:
    assert loaded_by("import gpureg, ml_dtypes, json") & HEAVY == {"ml_dtypes", "json"}


def test_the_public_names_are_there() -> None:
    for name in gpureg.__all__:
        assert getattr(gpureg, name) is not None
