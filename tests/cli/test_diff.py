"""`gpureg diff`: what it prints, its exit status, and what it says of what it cannot do."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import gpureg
from gpureg import cli
from tests.checkpoints.samples import SAMPLES, Array, header, npz, tensor
from tests.checkpoints.test_memory import sparse
from tests.cli.reports import HOSTILE, LARGE, Run, cells, is_harmless, strict_json, wait_until_reading

A: Mapping[str, Array] = {
    "w": np.array([[3.0, 4.0], [0.0, 0.0]]),
    "bias": np.zeros(2, np.float32),
    "small": np.ones(4),
    "old": np.ones(3),
    "head": np.ones((2, 3)),
    "steps": np.arange(3),
}
B: Mapping[str, Array] = {
    "w": np.array([[3.0, 4.5], [0.0, 0.0]]),
    "bias": np.zeros(2, np.float32),
    "small": np.full(4, 1.25),
    "head": np.ones((3, 3)),
    "steps": np.arange(3),
    "new": np.ones(5),
}


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    """Return two checkpoints that differ."""
    paths = tmp_path / "a.npz", tmp_path / "b.npz"
    for path, arrays in zip(paths, (A, B), strict=True):
        path.write_bytes(npz(False, **arrays))
    return paths


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs the command and returns its exit status, its output and its complaints."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main(["diff", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return run


class TestFormats:
    def test_json_is_the_difference(self, run: Run, paths: tuple[Path, Path]) -> None:
        rules = {"*bias": None, "*": gpureg.L1L2(0.1, 0.2)}
        status, out, err = run(*paths, "--format", "json", "--l1", "0.1", "--l2", "0.2", "--exclude", "bias")
        assert (status, err) == (1, "")
        a, b = ({name: array for name, array in arrays.items() if name != "bias"} for arrays in (A, B))
        assert strict_json(out) == gpureg.diff(a, b, gpureg.L1L2(0.1, 0.2)).to_dict()
        assert strict_json(out)["total"]["penalty_b"] == gpureg.diff(A, B, rules).total.penalty_b

    def test_json_tells_what_is_not_finite_as_text(self, run: Run, tmp_path: Path) -> None:
        for name, value in (("a", 0.0), ("b", np.nan)):
            (tmp_path / name).write_bytes(npz(False, w=np.array([value, 0.0])))
        (tensor,) = strict_json(run(tmp_path / "a", tmp_path / "b", "--format", "json")[1])["tensors"]
        assert (tensor["l1"], tensor["l2"], tensor["relative_l1"], tensor["changed"]) == ("NaN", "NaN", "Infinity", 1)

    def test_csv(self, run: Run, paths: tuple[Path, Path]) -> None:
        status, out, _ = run(*paths, "--format", "csv", "--l2", "1")
        assert status == 1
        rows = {row["name"]: row for row in csv.DictReader(io.StringIO(out))}
        assert {name: row["status"] for name, row in rows.items()} == {
            "w": "changed",
            "bias": "same",
            "small": "changed",
            "head": "reshaped",
            "new": "added",
            "old": "removed",
            "steps": "not compared",
        }
        for change in gpureg.diff(A, B, gpureg.L2(1.0)):
            row = rows[change.name]
            assert (row["shape_a"], row["shape_b"]) == ("x".join(map(str, change.shape)),) * 2
            for name in ("size", "changed", "l1", "relative_l1", "l2", "relative_l2", "largest", "penalty_change"):
                assert row[name] == str(getattr(change, name))
        assert (rows["head"]["shape_a"], rows["head"]["shape_b"]) == ("2x3", "3x3")

    @pytest.mark.parametrize("form", ["table", "markdown"])
    def test_tables_have_what_changed(self, run: Run, paths: tuple[Path, Path], form: str) -> None:
        status, out, err = run(*paths, "--format", form, "--l2", "1", "--sort", "largest")
        assert (status, err) == (1, "")
        lines = out.splitlines()
        code = "`" if form == "markdown" else ""
        start = "- " if form == "markdown" else ""
        assert lines[:3] == [
            f"{start}removed {code}old{code}",
            f"{start}added {code}new{code}",
            f"{start}reshaped {code}head{code} 2x3 float64 -> 3x3 float64",
        ]
        assert lines[-1] == "1 tensors are the same; 1 not of floats, compared by shape and dtype alone"
        rows = [line for line in lines if re.search(r"\b(w|small)\b", line)]
        split: Callable[[str], list[str]] = cells if form == "table" else lambda line: line.strip("| ").split(" | ")
        # 0.5 of 7 and of 5; 4.5 squared is 4.25 more than 4 squared.
        w = ["w", "2x2", "float64", "25.00%", "0.5", "0.07143", "0.5", "0.1", "0.5", "29.25", "+4.25"]
        assert [cell.strip("`") for cell in split(rows[0])] == w
        assert split(rows[1])[0].strip("`") == "small"
        assert not any("bias" in line for line in lines)

    def test_a_dtype_that_changed(self, run: Run, tmp_path: Path) -> None:
        for name, dtype in (("a", np.float64), ("b", np.float32)):
            (tmp_path / name).write_bytes(npz(False, w=np.ones(3, dtype)))
        status, out, _ = run(tmp_path / "a", tmp_path / "b")
        assert status == 1
        assert "float64 -> float32" in out
        assert "0%" in cells(next(line for line in out.splitlines() if line.strip().startswith("w ")))

    def test_sort_and_top(self, run: Run, paths: tuple[Path, Path]) -> None:
        names = {
            column: [
                row["name"] for row in strict_json(run(*paths, "--format", "json", "--sort", column)[1])["tensors"]
            ]
            for column in ("name", "relative_l2", "largest", "size")
        }
        assert names == {
            "name": ["bias", "small", "w"],
            "relative_l2": ["small", "w", "bias"],
            "largest": ["w", "small", "bias"],
            "size": ["w", "small", "bias"],
        }
        out = run(*paths, "--top", "1", "--sort", "name")[1]
        assert "small" in out
        assert "1 more tensors changed; 1 tensors are the same" in out


class TestStatus:
    @pytest.mark.parametrize("name", SAMPLES)
    @pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
    def test_the_same_file_is_0(self, run: Run, tmp_path: Path, name: str, form: str) -> None:
        (tmp_path / name).write_bytes(SAMPLES[name])
        assert run(tmp_path / name, tmp_path / name, "--format", form, "--l1", "1")[0] == 0

    def test_of_nothing_that_differs_a_line_says_so(self, run: Run, paths: tuple[Path, Path]) -> None:
        assert run(paths[0], paths[0])[1] == (
            "5 tensors are the same; 1 not of floats, compared by shape and dtype alone\n"
        )

    def test_two_formats_of_one_model(self, run: Run, tmp_path: Path) -> None:
        w = np.array([1.0, -2.0, 0.5], np.float32)
        (tmp_path / "a.npz").write_bytes(npz(True, w=w))
        (tmp_path / "a.safetensors").write_bytes(header({"w": tensor("F32", [3], 0, 12)}, w.tobytes()))
        assert run(tmp_path / "a.npz", tmp_path / "a.safetensors")[0] == 0

    def test_excluded_differences_do_not_count(self, run: Run, paths: tuple[Path, Path]) -> None:
        excluded = [each for name in ("w", "small", "old", "head", "new") for each in ("--exclude", name)]
        assert run(*paths, *excluded)[0] == 0


class TestErrors:
    def refused(self, run: Run, *arguments: object) -> str:
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("gpureg diff: ")
        assert err.count("\n") == 1
        return err

    @pytest.mark.parametrize("side", [0, 1])
    def test_files(self, run: Run, paths: tuple[Path, Path], side: int) -> None:
        path = paths[side]
        path.write_bytes(path.read_bytes()[:100])
        assert re.search(re.escape(path.name) + r", byte \d+: ", self.refused(run, *paths))
        path.unlink()
        assert f"{path} cannot be read: No such file" in self.refused(run, *paths)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--rules", "no.toml"], "No such file or directory: 'no.toml'"),
            (["--rules", "no.toml", "--l2", "1"], "--rules says all of the penalty"),
            (["--halved"], "--halved halves the L2 term"),
            (["--exclude", "no.*"], "--exclude 'no.*' matches no tensor"),
        ],
    )
    def test_options(self, run: Run, paths: tuple[Path, Path], options: list[str], said: str) -> None:
        assert said in self.refused(run, *paths, *options)

    def test_rules_that_do_not_fit(self, run: Run, paths: tuple[Path, Path], tmp_path: Path) -> None:
        rules = tmp_path / "rules.json"
        rules.write_text(json.dumps({"rules": [{"match": "x", "penalty": "none"}], "default": "none"}))
        assert "rules[0] (x) wins no tensor" in self.refused(run, *paths, "--rules", rules)

    def test_axes_in_another_order_that_cannot_be_mapped(self, run: Run, tmp_path: Path) -> None:
        for name, order in (("a", "C"), ("b", "F")):
            (tmp_path / name).write_bytes(npz(True, w=np.ones((3, 4), order=order)))  # type: ignore[call-overload]
        assert "tensor 'w' has its axes in another order" in self.refused(run, tmp_path / "a", tmp_path / "b")

    def test_a_missing_extra_is_named(
        self, run: Run, paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "rich", None)
        assert "pip install 'gpureg[cli]'" in self.refused(run, *paths)
        assert run(*paths, "--format", "json")[0] == 1

    @pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"], ["a", "b", "--sort", "rms"]])
    def test_a_wrong_command_line(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["diff", *arguments])
        assert stopped.value.code == 2
        assert "usage: gpureg" in capsys.readouterr().err

    def test_help_has_examples_and_exit_statuses(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["diff", "--help"])
        out = capsys.readouterr().out
        assert "examples:" in out
        assert "exit status: 0 nothing that is compared differs, 1 something does, 2" in out
        assert "shape and dtype alone: if only their elements differ" in out


@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_no_control_character_is_written(run: Run, tmp_path: Path, form: str) -> None:
    names = {"changed": (0, 1), "shape": (0, 1), "old": (0,), "new": (1,)}
    for side in (0, 1):
        fields, at = {}, 0
        for name, sides in names.items():
            if side in sides:
                length = 2 if (name, side) == ("shape", 1) else 1
                fields[name + HOSTILE] = tensor("F32", [length], at, at + 4 * length)
                at += 4 * length
        data = np.full(at // 4, 1.0 + side, np.float32).tobytes()
        (tmp_path / f"{side}.safetensors").write_bytes(header(fields, data))
    status, out, err = run(tmp_path / "0.safetensors", tmp_path / "1.safetensors", "--format", form)
    assert (status, err) == (1, "")
    assert is_harmless(out)
    assert out.count("evil") >= 4


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has mapped is Linux's to tell")
class TestProcess:
    def test_ctrl_c(self, tmp_path: Path) -> None:
        path = tmp_path / "large.safetensors"
        sparse(path, header({"w": tensor("F32", [LARGE // 4], 0, LARGE)}), LARGE)
        command = [sys.executable, "-m", "gpureg", "diff", str(path), str(path)]
        variables = os.environ | {"GPUREG_BACKEND": "numpy"}  # which takes longer
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables) as process:
            wait_until_reading(process, path)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, b"", b"")

    def test_a_terminal_is_left_clean(self, paths: tuple[Path, Path]) -> None:
        import pty  # noqa: PLC0415 - Unix's

        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "gpureg", "diff", *map(str, paths), "--format", "json"]
        variables = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=variables, check=False)
        os.close(theirs)
        shown = os.read(ours, 10**6).decode()
        os.close(ours)
        assert done.returncode == 1
        strict_json(done.stdout.decode())
        assert shown.endswith("\x1b[2K")  # the line of the bar is cleared
