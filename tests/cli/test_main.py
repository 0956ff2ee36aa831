"""The command line as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpureg
from gpureg import cli
from gpureg.cli import check


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"gpureg {gpureg.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["no-such"], ["check", "--no-such"], ["check", "--seed", "x"]])
def test_a_wrong_command_line_is_exit_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: gpureg" in capsys.readouterr().err


def test_help_names_every_command_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"gpureg {command}" in out for command in ("check", "report", "diff", "demo"))
    assert "examples:" in out
    assert "exit status:" in out


def test_an_interrupt_is_exit_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run", interrupt)
    assert cli.main(["check"]) == 130


def test_a_reader_who_left_stops_it_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "gpureg", "check"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


def test_the_installed_command_is_the_module() -> None:
    installed = Path(sys.executable).with_name("gpureg")
    for command in ([str(installed)], [sys.executable, "-m", "gpureg"]):
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert result.stdout == f"gpureg {gpureg.__version__}\n"
