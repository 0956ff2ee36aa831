"""Checkpoints, and what runs `gpureg report` on them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gpureg import cli
from tests.checkpoints.samples import header, npz, tensor
from tests.cli.reports import HOSTILE, WEIGHTS, Run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a checkpoint of a few tensors."""
    path = tmp_path / "a.npz"
    path.write_bytes(npz(False, **WEIGHTS))
    return path


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a checkpoint with a hostile name."""
    path = tmp_path / "hostile.safetensors"
    fields = {HOSTILE: tensor("F32", [2], 0, 8), "fine": tensor("F32", [1], 8, 12)}
    path.write_bytes(header(fields, np.array([1.0, -2.0, 0.5], np.float32).tobytes()))
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs the command and returns its exit status, its output and its complaints."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main(["report", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def on_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs the command with a terminal of 80 columns and colours as its output."""
    for name, value in {"COLUMNS": "80", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def on_terminal(*arguments: object) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda: True)
            return run(*arguments)

    return on_terminal
