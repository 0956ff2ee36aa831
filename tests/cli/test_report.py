"""`gpureg report`: its options, formats, pictures and page, and what it says of what it cannot do."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gpureg
from gpureg import cli
from tests.checkpoints.samples import SAMPLES, header, npz, tensor
from tests.checkpoints.test_memory import sparse
from tests.cli.reports import LARGE, WEIGHTS, Run, cells, plain, strict_json, wait_until_reading


class TestFormats:
    @pytest.mark.parametrize("name", SAMPLES)
    def test_json_is_the_report(self, run: Run, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(SAMPLES[name])
        status, out, err = run(path, "--format", "json", "--l1", "0.25", "--threshold", "0.5")
        assert (status, err) == (0, "")
        assert strict_json(out) == gpureg.report(path, gpureg.L1(0.25), threshold=0.5).to_dict()

    def test_json_has_the_keys_that_were_promised(self, run: Run, path: Path) -> None:
        found = strict_json(run(path, "--format", "json")[1])
        assert list(found) == ["tensors", "total"]
        promised = "name shape dtype size sum_abs sum_squares l2_loss rms max_abs zeros nan inf rule penalty"
        assert set(promised.split()) <= set(found["tensors"][0])

    def test_json_tells_what_is_not_finite_as_text(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(npz(False, a=np.array([np.nan, 1.0]), b=np.array([np.inf, 1.0])))
        found = strict_json(run(path, "--format", "json", "--l2", "1")[1])
        a, b = found["tensors"]
        assert (a["sum_abs"], a["max_abs"], a["penalty"], a["nan"]) == ("NaN", 1.0, "NaN", 1)
        assert (b["sum_abs"], b["max_abs"], b["penalty"], b["inf"]) == ("Infinity", "Infinity", "Infinity", 1)
        assert found["total"]["sum_abs"] == "NaN"
        assert float(b["sum_abs"]) == np.inf

    def test_csv_has_every_digit(self, run: Run, path: Path) -> None:
        status, out, _ = run(path, "--format", "csv", "--l1", "0.1")
        assert status == 0
        rows = list(csv.DictReader(io.StringIO(out)))
        for row, expected in zip(rows, gpureg.report(path, gpureg.L1(0.1)), strict=True):
            assert list(row) == list(vars(expected))
            for name, value in vars(expected).items():
                if name == "shape":
                    assert row[name] == "x".join(map(str, value))
                else:
                    assert row[name] == ("" if value is None else str(value))

    def test_csv_of_numbers_that_are_not_finite_and_of_a_scalar(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(npz(False, a=np.array(np.nan), b=np.array([np.inf])))
        a, b = csv.DictReader(io.StringIO(run(path, "--format", "csv")[1]))
        assert np.isnan(float(a["sum_abs"]))
        assert float(b["sum_abs"]) == np.inf
        assert a["shape"] == "scalar"

    def test_markdown(self, run: Run, path: Path) -> None:
        status, out, _ = run(path, "--format", "markdown", "--l2", "0.5", "--sort", "rms", "--top", "1")
        assert status == 0
        assert out.splitlines() == [
            r"| tensor | shape | dtype | weights | sum \|w\| | l2_loss | rms | max \|w\| | zeros | < 0.001 | rule "
            "| penalty |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
            "| `layers.0.weight` | `2x2` | `float64` | 4 | 7 | 12.5 | 2.5 | 4 | 25.00% | 50.00% | `default` | 12.5 |",
            out.splitlines()[3],
            "",
            "5 more tensors; 1 not of floats: listed, and left out of all figures",
        ]
        assert out.splitlines()[3].startswith("| **total** |  |  | **312** |")

    def test_table(self, run: Run, path: Path) -> None:
        status, out, err = run(path, "--l2", "0.5")
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert cells(lines[0])[:5] == ["tensor", "shape", "dtype", "weights", "sum |w|"]
        row = next(line for line in lines if "layers.0.weight" in line)
        assert cells(row) == [
            *("layers.0.weight", "2x2", "float64", "4", "7", "12.5", "2.5", "4", "25.00%", "50.00%", "default", "12.5")
        ]
        steps = next(line for line in lines if "steps" in line)
        assert cells(steps) == ["steps", "3", "int64", "3", *"--------"]
        assert cells(next(line for line in lines if line.strip().startswith("total")))[1] == "312"
        assert "\x1b" not in out
        assert not any(line.endswith(" ") for line in lines)

    def test_columns_with_nothing_to_say_are_left_out(self, run: Run, tmp_path: Path, path: Path) -> None:
        assert not {"NaN", "infinite", "rule", "penalty"} & set(cells(run(path)[1].splitlines()[0]))
        bad = tmp_path / "bad.npz"
        bad.write_bytes(npz(False, a=np.array([np.nan, 1.0]), b=np.array([np.inf])))
        out = run(bad, "--l1", "1")[1]
        assert {"NaN", "infinite", "rule", "penalty"} <= set(cells(out.splitlines()[0]))

    def test_several_paths_are_parts_of_one(self, run: Run, path: Path, tmp_path: Path) -> None:
        other = tmp_path / "b.npz"
        other.write_bytes(npz(False, more=np.ones(7)))
        found = strict_json(run(path, other, "--format", "json")[1])
        assert [row["name"] for row in found["tensors"]] == [*WEIGHTS, "more"]
        assert found["total"]["size"] == 319


class TestTerminal:
    def test_a_narrow_one_gets_fewer_columns_and_is_told(self, on_terminal: Run, path: Path) -> None:
        *table, note, _, _ = plain(on_terminal(path, "--l2", "0.5")[1]).splitlines()
        assert all(len(line) <= 80 for line in table)
        assert {"tensor", "rms", "penalty"} <= set(cells(table[0]))
        assert "dtype" not in table[0]
        assert note.startswith("A wider terminal has room for: ")
        assert "dtype" in note

    def test_a_long_name_is_folded_not_cut(self, on_terminal: Run, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        name = "".join(f"part{i}." for i in range(30))
        path.write_bytes(npz(False, **{name: np.ones(3)}))
        *table, _ = plain(on_terminal(path, "--l2", "0.5")[1]).splitlines()
        assert all(len(line) <= 80 for line in table)
        assert name in "".join(line.strip().split("  ")[0].strip() for line in table)

    def test_colours_are_off_when_asked(
        self, on_terminal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(npz(False, w=np.array([np.nan])))
        colour = re.compile(r"\x1b\[[\d;]*3\d")
        assert colour.search(on_terminal(path)[1])
        monkeypatch.setenv("NO_COLOR", "1")
        assert not colour.search(on_terminal(path)[1])

    def test_what_standard_output_cannot_encode_is_escaped(self, path: Path, tmp_path: Path) -> None:
        path = tmp_path / "ü.npz"
        path.write_bytes(npz(False, größe=np.ones(3)))
        command = [sys.executable, "-m", "gpureg", "report", str(path)]
        done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
        assert b"gr\\xf6\\xdfe" in done.stdout
        assert done.stderr == b""


class TestRows:
    def names(self, run: Run, *arguments: object) -> list[str]:
        status, out, _ = run(*arguments, "--format", "json")
        assert status == 0
        return [row["name"] for row in strict_json(out)["tensors"]]

    @pytest.mark.parametrize("column", [name for name in vars(gpureg.report({"w": np.ones(1)})[0]) if name != "shape"])
    def test_sort_by_every_column(self, run: Run, path: Path, column: str) -> None:
        found = strict_json(run(path, "--format", "json", "--l1", "0.1", "--sort", column)[1])["tensors"]
        values = [row[column] for row in found if row[column] is not None]
        assert values == sorted(values, reverse=not isinstance(values[0], str))
        assert all(row[column] is None for row in found[len(values) :])
        assert sorted(row["name"] for row in found) == sorted(WEIGHTS)

    def test_nan_is_sorted_before_all(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        arrays = {"a": [1.0], "b": [np.nan], "c": [3.0], "d": [np.inf], "e": [0.0]}
        path.write_bytes(npz(False, **{name: np.array(array) for name, array in arrays.items()}))
        assert self.names(run, path, "--sort", "rms") == ["b", "d", "c", "a", "e"]
        assert self.names(run, path, "--sort", "rms", "--top", "2") == ["b", "d"]

    def test_top_leaves_totals_alone(self, run: Run, path: Path) -> None:
        found = strict_json(run(path, "--format", "json", "--top", "2")[1])
        assert [row["name"] for row in found["tensors"]] == list(WEIGHTS)[:2]
        assert found["total"]["size"] == 312

    def test_exclude(self, run: Run, path: Path) -> None:
        assert self.names(run, path, "--exclude", "*.bias", "--exclude", "embed*") == [
            *("layers.0.weight", "layers.1.weight", "steps")
        ]
        found = strict_json(run(path, "--format", "json", "--l2", "1", "--exclude", "embed.weight")[1])
        arrays = {name: array for name, array in WEIGHTS.items() if name not in ("embed.weight", "steps")}
        assert found["total"]["penalty"] == float(gpureg.Penalty(arrays, gpureg.L2(1.0))())

    def test_threshold(self, run: Run, path: Path) -> None:
        found = strict_json(run(path, "--format", "json", "--threshold", "2.5")[1])
        assert [row["below"] for row in found["tensors"]][1:] == [2, 2, 3, 2, None]
        assert "< 2.5" in run(path, "--threshold", "2.5")[1]

    def test_group(self, run: Run, path: Path) -> None:
        found = strict_json(run(path, "--format", "json", "--group", "--l1", "1")[1])
        names = ["embed.weight", "layers.#.weight", "layers.#.bias"]
        assert [group["name"] for group in found["groups"]] == names
        assert found["groups"][1]["tensors"] == 2
        assert found["groups"][1]["penalty"] == 16.0001
        assert found["total"]["tensors"] == 5
        out = run(path, "--group", "--depth", "2", "--sort", "size")[1]
        assert [cells(line)[0] for line in out.splitlines()[2:4]] == ["embed.weight", "layers.#"]
        assert cells(out.splitlines()[0])[:3] == ["group", "tensors", "weights"]
        out = run(path, "--group", "--format", "csv", "--top", "1")[1]
        assert out.splitlines()[0].startswith("name,tensors,size,sum_abs")
        assert out.splitlines()[1].startswith("embed.weight,1,300,")
        assert "2 more groups" in run(path, "--group", "--top", "1", "--format", "markdown")[1]


class TestPenalty:
    @pytest.mark.parametrize(
        ("options", "regularizer"),
        [
            (["--l1", "0.1"], gpureg.L1(0.1)),
            (["--l2", "0.1"], gpureg.L2(0.1)),
            (["--l1", "0.1", "--l2", "0.3"], gpureg.L1L2(0.1, 0.3)),
            (["--l2", "0.3", "--halved"], gpureg.HalvedL2(0.3)),
            (["--l1", "0.1", "--l2", "0.3", "--halved"], gpureg.L1L2(0.1, 0.15)),
            (["--l1", "0"], gpureg.L1(0.0)),
        ],
    )
    def test_coefficients(self, run: Run, path: Path, options: list[str], regularizer: gpureg.Regularizer) -> None:
        found = strict_json(run(path, "--format", "json", *options)[1])
        weights = {name: array for name, array in WEIGHTS.items() if name != "steps"}
        penalty = gpureg.Penalty(weights, regularizer)
        assert found["total"]["penalty"] == float(penalty())
        losses = {row["name"]: row["penalty"] for row in found["tensors"] if row["name"] != "steps"}
        assert losses == {name: float(loss) for name, loss in penalty.losses().items()}

    def test_without_any(self, run: Run, path: Path) -> None:
        found = strict_json(run(path, "--format", "json")[1])
        assert {row["penalty"] for row in found["tensors"]} == {None}
        assert found["total"]["penalty"] is None

    @pytest.mark.parametrize("suffix", ["toml", "json"])
    def test_rules_from_a_file(self, run: Run, path: Path, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"rules.{suffix}"
        rules = gpureg.Rules([("*.bias", None), ("embed*", gpureg.HalvedL2(0.1)), ("*", gpureg.L1(0.2))])
        toml = (
            '[[rules]]\nmatch = "*.bias"\npenalty = "none"\n'
            '[[rules]]\nmatch = "embed*"\npenalty = { halved_l2 = 0.1 }\n'
            '[[rules]]\nmatch = "*"\npenalty = { l1 = 0.2 }\n'
        )
        file.write_text(toml if suffix == "toml" else json.dumps(rules.get_config()))
        found = strict_json(run(path, "--format", "json", "--rules", file)[1])
        assert found == gpureg.report(path, rules).to_dict()
        assert [row["rule"] for row in found["tensors"]] == ["embed*", "*", "*.bias", "*", "*.bias", None]


class TestErrors:
    def refused(self, run: Run, *arguments: object) -> str:
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("gpureg report: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    @pytest.mark.parametrize("name", SAMPLES)
    def test_a_file_that_is_cut_off(self, run: Run, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(SAMPLES[name][: len(SAMPLES[name]) // 2])
        err = self.refused(run, path, "--format", "json")
        assert re.search(re.escape(name) + r", byte \d+: ", err)

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda _: None, "cannot be read: No such file or directory"),
            (lambda path: path.write_bytes(b""), "byte 0: the file is empty"),
            (lambda path: path.write_bytes(b"text"), "byte 0: this begins as no format that is read"),
            (lambda path: path.symlink_to(path), "cannot be read: "),
            (os.mkfifo, "cannot be read: a directory, pipe or device"),
            (lambda path: path.mkdir(), "has no .safetensors file"),
        ],
    )
    def test_what_is_no_checkpoint(self, run: Run, tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
        make(tmp_path / "a")
        err = self.refused(run, tmp_path / "a")
        assert said in err
        assert str(tmp_path / "a") in err

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--rules", "no.toml"], "No such file or directory: 'no.toml'"),
            (["--rules", "rules.txt"], "rules.txt: rules are read from a file that ends in .toml or .json"),
            (["--rules", "no.toml", "--l1", "1"], "--rules says all of the penalty"),
            (["--rules", "no.toml", "--halved"], "--rules says all of the penalty"),
            (["--halved"], "--halved halves the L2 term, and needs --l2"),
            (["--halved", "--l1", "1"], "--halved halves the L2 term, and needs --l2"),
            (["--exclude", "no.*"], "--exclude 'no.*' matches no tensor"),
            (["--depth", "2"], "--depth says how --group groups, and needs it"),
            (["--group", "--sort", "rule"], "--sort rule is for tensors; a group may have several"),
            (["--plot", "no/a.png"], "no/a.png cannot be written: there is no folder"),
            (["--html", "no/a.html"], "no/a.html cannot be written: there is no folder"),
            (["--html", "."], ". is a folder; expected the name of a file"),
            (["--html", "a.npz"], "a.npz is what is to be read; expected the name of another file"),
            (["--html", "a.svg", "--plot", "./a.svg"], "--plot and --html both name a.svg; expected two files"),
        ],
    )
    def test_options(
        self, run: Run, path: Path, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(path.parent)
        before = path.read_bytes()
        assert said in self.refused(run, path, *options)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("name", ["model-1.safetensors", "model.safetensors.index.json", "../link", "rules.json"])
    def test_no_part_of_a_checkpoint_is_written_over(self, run: Run, tmp_path: Path, name: str) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "model-1.safetensors").write_bytes(header({"w": tensor("F32", [1], 0, 4)}, bytes(4)))
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-1.safetensors"}}')
        (folder / "rules.json").write_text('{"rules": [{"match": "w", "penalty": "none"}]}')
        (tmp_path / "link").symlink_to(folder / "model-1.safetensors")
        before = {path: path.read_bytes() for path in folder.iterdir()}
        options = ["--exclude", "w"] if name == "../link" else ["--rules", folder / "rules.json"]
        err = self.refused(run, folder, "--html", folder / name, *options)
        assert f"{folder / name} is what is to be read; expected the name of another file" in err
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_link_that_leads_to_itself(self, run: Run, path: Path, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert f"{tmp_path / 'loop'} cannot be written: Too many levels" in self.refused(
            run, path, "--html", tmp_path / "loop"
        )

    @pytest.mark.parametrize("suffix", ["json", "toml"])
    def test_rules_that_are_nested_without_end(self, run: Run, path: Path, tmp_path: Path, suffix: str) -> None:
        rules = tmp_path / f"rules.{suffix}"
        rules.write_text(("rules = " if suffix == "toml" else "") + 100_000 * "[")
        assert f"{rules}: brackets are nested too deeply" in self.refused(run, path, "--rules", rules)

    @pytest.mark.parametrize("command", ["report", "diff"])
    def test_a_backend_that_is_none(self, path: Path, command: str) -> None:
        arguments = [sys.executable, "-m", "gpureg", command, *[str(path)] * (2 if command == "diff" else 1)]
        variables = os.environ | {"GPUREG_BACKEND": "bogus"}
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=variables)
        said = f"gpureg {command}: GPUREG_BACKEND is 'bogus'; expected 'llvm' or 'numpy'\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", said)

    def test_rules_that_do_not_fit(self, run: Run, path: Path, tmp_path: Path) -> None:
        rules = tmp_path / "rules.toml"
        rules.write_text(
            '[[rules]]\nmatch = "*.bias"\npenalty = "none"\n[[rules]]\nmatch = "x"\npenalty = { l1 = 1 }\n'
        )
        err = self.refused(run, path, "--rules", rules)
        assert "no rule matches 3 of 5 tensors" in err
        assert "; rules[1] (x) wins no tensor" in err
        rules.write_text("[[rules")
        assert f"{rules}: " in self.refused(run, path, "--rules", rules)
        rules.write_text("rules = 3")
        assert f"{rules}: rules must be a list, not 3" in self.refused(run, path, "--rules", rules)

    def test_a_tensor_that_is_in_two_files(self, run: Run, path: Path) -> None:
        err = self.refused(run, path, path)
        assert f"tensor 'embed.weight' is in {path} and in {path}; report them apart" in err

    @pytest.mark.parametrize(
        ("module", "options", "said"),
        [
            ("rich", [], "rich cannot be imported"),
            ("matplotlib", ["--html", "a.html"], "matplotlib cannot be imported"),
            ("matplotlib", ["--plot", "a.png"], "matplotlib cannot be imported"),
        ],
    )
    def test_a_missing_extra_is_named(
        self, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch, module: str, options: list[str], said: str
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.chdir(path.parent)
        err = self.refused(run, path, *options)
        assert said in err
        assert "pip install 'gpureg[cli]'" in err

    def test_other_formats_need_numpy_alone(self, path: Path) -> None:
        blocked = ["rich", "matplotlib", "pandas", "ml_dtypes", "llvmlite", "h5py"]
        block = f"import sys; sys.modules.update(dict.fromkeys({blocked}))"
        for form in ("json", "csv", "markdown"):
            code = (
                f"{block}; from gpureg.cli import main; sys.exit(main(['report', {str(path)!r}, '--format', {form!r}]))"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert "layers.0.weight" in done.stdout

    @pytest.mark.parametrize(
        "options",
        [
            ["--l1", "-1"],
            ["--l2", "nan"],
            ["--l1", "x"],
            ["--l2", "inf"],
            ["--threshold", "-1"],
            ["--top", "0"],
            ["--top", "x"],
            ["--depth", "0"],
            ["--sort", "shape"],
            ["--sort", "no"],
            ["--format", "xml"],
            ["--plot", "a.gif"],
        ],
    )
    def test_a_wrong_command_line(self, path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", str(path), *options])
        assert stopped.value.code == 2
        assert f"argument {options[0]}" in capsys.readouterr().err

    def test_help_has_examples_and_exit_statuses(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["report", "--help"])
        out = capsys.readouterr().out
        assert "examples:" in out
        assert "exit status: 0 all is reported, 2" in out
        assert all(line in out for line in ("--sort rms --top 10", "--group --depth 3", "(default: 0.001)"))
        assert max(map(len, out.splitlines())) <= 120


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has mapped is Linux's to tell")
class TestProcess:
    @pytest.fixture
    def large(self, tmp_path: Path) -> Path:
        sparse(tmp_path / "large.safetensors", header({"w": tensor("F32", [LARGE // 4], 0, LARGE)}), LARGE)
        return tmp_path / "large.safetensors"

    def test_ctrl_c(self, large: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "gpureg", "report", str(large), "--html", str(tmp_path / "a.html")]
        variables = os.environ | {"GPUREG_BACKEND": "numpy"}  # which takes longer
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables) as process:
            wait_until_reading(process, large)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, b"", b"")
        assert [path.name for path in tmp_path.iterdir()] == ["large.safetensors"]

    def test_progress_is_for_terminals(self, large: Path) -> None:
        import pty  # noqa: PLC0415 - Unix's

        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "gpureg", "report", str(large), "--format", "json"]
        variables = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "GPUREG_BACKEND": "numpy"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=variables) as process:
            wait_until_reading(process, large)
            time.sleep(2)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[0] == b""
        os.close(theirs)
        shown = os.read(ours, 10**6).decode(errors="ignore")
        os.close(ours)
        assert "reading" in shown
        assert re.search(r"\d+(\.\d+)? [GMk]B/s", shown)
        assert re.search(r"\d:\d\d:\d\d", shown)

    def test_a_page_goes_into_a_pipe(self, path: Path) -> None:
        command = [sys.executable, "-m", "gpureg", "report", str(path), "--html", "/dev/stdout", "--format", "csv"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("<!DOCTYPE html>")
        assert "</html>\nname,shape" in done.stdout

    def test_a_reader_who_leaves_stops_it_quietly(self, path: Path) -> None:
        command = f"'{sys.executable}' -m gpureg report '{path}' | head -c 1"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode in {0, 141}  # whether all was written before the reader left
        assert done.stderr == ""
