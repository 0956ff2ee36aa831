"""The examples of `gpureg.keras` run on every backend, and its import brings nothing along or says what is missing."""

import doctest
import subprocess
import sys

import pytest

import gpureg.keras
from tests.pages import ROOT, run


def test_the_examples_of_the_docstrings_run() -> None:
    failed, attempted = doctest.testmod(gpureg.keras)
    assert (failed, attempted) == (0, 2 * 5 + 2)


def test_the_examples_of_the_page_run() -> None:
    page = ROOT / "docs" / "keras.md"
    assert run(page) == page.read_text().count("```python\n")


def output(statements: str) -> list[str]:
    """Return the lines that a fresh interpreter writes."""
    command = [sys.executable, "-c", statements]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


MISSING = {
    "Keras": ("sys.modules['keras'] = None", "ModuleNotFoundError"),
    "Keras 3": ("sys.modules['keras'] = types.ModuleType('keras')", "ImportError"),
}


@pytest.mark.parametrize("missing", MISSING)
def test_without_keras_the_error_says_what_to_install(missing: str) -> None:
    prepare, kind = MISSING[missing]
    lines = output(f"""
import sys, types
{prepare}
try:
    import gpureg.keras
except ImportError as error:
    print(type(error).__name__, error.name, error, sep="|")
""")
    assert lines == [f"{kind}|keras|gpureg.keras needs Keras 3: pip install 'gpureg[keras]'"]


def test_without_a_backend_the_error_is_keras_s_own() -> None:
    lines = output("""
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
sys.modules["jax"] = None
try:
    import gpureg.keras
except ImportError as error:
    print(type(error).__name__, error.name)
""")
    assert lines == ["ModuleNotFoundError jax"]


def test_importing_it_imports_no_framework_but_keras() -> None:
    lines = output("""
import sys, numpy, keras
before = set(sys.modules)
import gpureg.keras
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
""")
    brought = set(" ".join(lines).split())
    assert "gpureg" in brought
    assert not brought & {"tensorflow", "jax", "torch", "cupy"}
