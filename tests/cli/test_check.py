"""`gpureg check` says what is there, tests every usable backend, and exits with 1 if one gives wrong bits."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import gpureg
from gpureg import backends, cli, driver, selftest
from gpureg.cli import check
from gpureg.selftest import Outcome


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = cli.main(["check", *arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, captured.out


def test_the_text_says_what_is_there_and_that_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys)
    assert status == 0
    assert out.startswith(f"gpureg {gpureg.__version__}, Python ")
    assert f"numpy      {np.__version__}" in out
    assert f"numpy      {len(selftest.golden())} known checksums and 32 comparisons of fresh weights, seed " in out
    assert ": all right (" in out
    assert f"arrays in the CPU's memory are computed by {gpureg.get_backend()}\n" in out
    assert out.endswith("all is well\n")


def test_json_says_the_same_to_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, "--json", "--seed", "3")
    report = json.loads(out)
    assert (status, report["ok"], report["seed"]) == (0, True, 3)
    assert report["gpureg"] == gpureg.__version__
    assert report["numpy"]["version"] == np.__version__
    assert report["cpu"] == gpureg.get_backend()
    row = next(row for row in report["backends"] if row["name"] == "numpy")
    assert (row["usable"], row["reason"], row["failed"]) == (True, None, [])


def test_wrong_bits_are_said_and_the_exit_status_is_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = tuple(f"float32 weights {number} L1" for number in range(12))
    monkeypatch.setattr(selftest, "run", lambda *_: Outcome(264, 24, failed))
    status, out = run(capsys)
    assert status == 1
    assert "264 known checksums and 24 comparisons of fresh weights, seed " in out
    assert ": 12 FAILED (" in out
    assert "wrong bits: float32 weights 9 L1\n" in out
    assert "and 2 more" in out
    assert out.endswith("WRONG BITS: do not trust this installation's numbers\n")
    assert run(capsys, "--json")[0] == 1


def test_a_damaged_checksum_is_seen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = selftest.golden()
    damaged = {**known, "float64 tiny 1 L1": "0" * 16}
    monkeypatch.setattr(selftest, "golden", lambda: dict(damaged))
    status, out = run(capsys)
    assert status == 1
    assert "wrong bits: float64 tiny 1 L1\n" in out


def test_a_backend_that_is_not_usable_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = backends.load
    missing = SimpleNamespace(unusable=lambda: "no NVIDIA driver")
    monkeypatch.setattr(backends, "NAMES", ("numpy", "cuda"))
    monkeypatch.setattr(backends, "load", lambda name: missing if name == "cuda" else right(name))
    status, out = run(capsys)
    assert status == 0
    assert "cuda       not usable: no NVIDIA driver" in out


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "find", lambda: driver.Driver((13, 0), ("NVIDIA H200", "NVIDIA H200")))
    monkeypatch.setattr(selftest, "run", lambda *_: Outcome(1, 1, ()))
    out = check.text(check.examine(seed=0))
    assert out.count("GPU        NVIDIA H200\n") == 2
    assert "driver     runs CUDA 13.0\n" in out


def test_it_needs_numpy_alone() -> None:
    blocked = ["ml_dtypes", "llvmlite", "cupy", "cuda", "matplotlib", "sklearn", "rich", "scipy"]
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked}))"
    code = f"{block}; from gpureg.cli import main; sys.exit(main(['check']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "ml_dtypes  not installed; for bfloat16: pip install" in result.stdout
    assert "llvm       not usable: llvmlite is not installed: pip install 'gpureg[cpu]'" in result.stdout
    assert "arrays in the CPU's memory are computed by numpy" in result.stdout
    assert "all is well" in result.stdout
