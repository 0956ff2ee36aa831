"""The gate that makes CI fail for a test that did not run must itself be able to fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RUNS = "def test_it(): pass\n"
NOT_RUN = {
    "skipped": "import pytest\n@pytest.mark.skip\ndef test_not(): pass\n",
    "skipped inside": "import pytest\ndef test_not(): pytest.skip('no reason')\n",
    "in a fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip()\ndef test_not(f): pass\n",
    "expected to fail": "import pytest\n@pytest.mark.xfail\ndef test_not(): assert False\n",
    "not collected": "import pytest\npytest.importorskip('no_such_module')\n",
    "deselected": "def test_deselected(): pass\n",
}


def run(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_runs.py").write_text(RUNS)
    (folder / "test_other.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.gate", "-k", "not deselected", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


XDIST = {f"{name}, xdist": (NOT_RUN[name], "--numprocesses=1") for name in ("skipped", "not collected", "deselected")}


@pytest.mark.parametrize(
    "arguments", [*((source,) for source in NOT_RUN.values()), *XDIST.values()], ids=[*NOT_RUN, *XDIST]
)
def test_a_test_that_did_not_run_is_a_failure(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == 1, result.stdout
    assert "tests that did not run" in result.stdout
    assert "1 passed" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "source", [RUNS, "import pytest\n@pytest.mark.gpu\n@pytest.mark.skip\ndef test_gpu(): pass\n"], ids=["runs", "gpu"]
)
def test_what_runs_or_needs_a_gpu_passes(tmp_path: Path, source: str) -> None:
    assert run(tmp_path, source).returncode == 0
