"""`gpureg demo`: the experiment's table, sentences, JSON and picture, and the command around them."""

import argparse
import io
import json
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from gpureg.cli import demo
from gpureg.cli.demo import experiment, large, picture
from gpureg.cli.demo.experiment import Row, Trained

SMALL = ["--size", "8192", "--seeds", "2", "--epochs", "1"]


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args([*SMALL, *given])


def row(form: str, strength: float, test: float, spread: float | None = 0.01, near_zero: float = 0.1) -> Row:
    return Row(form, strength, 0.5, test, spread, test, spread, near_zero)


def trained(test: float) -> Trained:
    weights = np.linspace(-0.5, 0.5, 101, dtype=np.float32)
    return Trained(train=1.0, test=test, penalty=0.25, near_zero=0.01, commonest=0.11, weights=weights)


def results(seeds: int) -> experiment.Results:
    keys = {("none" if s == 0 else form, s) for form, strengths in experiment.STRENGTHS.items() for s in strengths}
    return {key: [trained(0.9 + 0.02 * seed) for seed in range(seeds)] for key in keys}


def png_size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


class TestExperiment:
    def test_strength_zero_is_trained_once_a_seed_and_shown_in_every_form(self) -> None:
        epochs: list[int] = []
        found = experiment.train_all(np, range(1), 1, lambda: epochs.append(1))
        assert len(epochs) == len(found) == 8
        rows = experiment.summarise(found)
        assert [r.strength for r in rows if r.form == "HalvedL2"] == [0, 1e-4, 1e-2, 1]
        first, other = (r for r in rows if r.strength == 0)
        assert first[1:] == other[1:]
        assert first.penalty == 0
        assert all(r.penalty > 0 for r in rows if r.strength)

    def test_rows_are_means_and_standard_deviations(self) -> None:
        for r in experiment.summarise(results(3)):
            assert r.test == pytest.approx(0.92)
            assert r.test_spread == pytest.approx(0.02)
            assert r.train_spread == 0
        assert {r.test_spread for r in experiment.summarise(results(1))} == {None}

    def test_table(self) -> None:
        lines = experiment.text([row("L1", 0.0, 0.97), row("L1", 1e-5, 0.98)]).splitlines()
        assert lines[0].split("  ")[0] == "penalty"
        assert lines[3].split() == ["L1", "1e-5", "0.5000", *["0.9800", "+-", "0.0100"] * 2, "10.0%"]
        assert "standard deviation" in lines[-1]
        assert "+-" not in experiment.text([row("L1", 0.0, 0.97, None)])

    @pytest.mark.parametrize(
        ("tests", "said", "unsaid"),
        [
            ((0.95, 0.97, 0.96), ["best at 0.001", "(better)", "At 0.1 it holds"], ["destroys"]),
            ((0.95, 0.955, 0.09), ["best at 0.001", "(no further apart", "At 0.1 it destroys", "0.0900"], []),
            ((0.95, 0.90, 0.09), ["best at 0.001", "(worse)"], ["better"]),
            ((0.95, 0.10, 0.09), ["At 0.001 it destroys"], ["holds"]),
        ],
    )
    def test_findings_follow_the_numbers(self, tests: Sequence[float], said: list[str], unsaid: list[str]) -> None:
        strengths = (0.0, 0.001, 0.1)
        rows = [row("L1", s, t, near_zero=s) for s, t in zip(strengths, tests, strict=True)]
        text = experiment.findings(rows, 0.12).replace("\n", " ")
        assert all(part in text for part in said), text
        assert not any(part in text for part in unsaid), text

    def test_json_is_the_table(self) -> None:
        rows = experiment.summarise(results(2))
        content = json.loads(experiment.as_json(rows, seeds=2))
        assert [Row(**r) for r in content["rows"]] == rows
        assert content["seeds"] == 2
        assert content["near_zero"] == experiment.NEAR_ZERO

    def test_the_progress_bar_is_for_terminals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
            monkeypatch.setattr(sys, "stderr", stream)
            with experiment.progress_bar(2) as advance:
                advance()
            assert ("training" in stream.getvalue()) is shown


class TestPicture:
    @pytest.mark.parametrize("seeds", [1, 3])
    def test_is_a_png_and_leaves_matplotlib_alone(self, seeds: int) -> None:
        before = mpl.rcParams.copy()
        found = results(seeds)
        file = io.BytesIO()
        weights = {key: [run.weights for run in runs] for key, runs in found.items()}
        picture.draw(experiment.summarise(found), weights, 1e-3, file)
        assert png_size(file.getvalue()) == (1200, 960)
        assert mpl.rcParams.copy() == before
        assert "matplotlib.pyplot" not in sys.modules


class TestCommand:
    def test_both_acts(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        paths = ["--output", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")]
        assert demo.run(arguments(*paths)) == 0
        first = capsys.readouterr()
        assert first.out.index("Large weights") < first.out.index("checksum") < first.out.index("A real network")
        assert png_size((tmp_path / "a.png").read_bytes()) == (1200, 960)
        assert len(json.loads((tmp_path / "a.json").read_text())["rows"]) == 9
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.png"]
        assert not first.err

        assert demo.run(arguments("digits", *paths)) == 0
        again = capsys.readouterr().out
        assert first.out.endswith(again)  # to the letter
        assert "Large weights" not in again

    def test_large_alone_needs_no_extra(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for module in ("sklearn", "matplotlib", "rich"):
            monkeypatch.setitem(sys.modules, module, None)
        assert demo.run(arguments("large")) == 0
        assert "A real network" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("rich", "rich")]
    )
    def test_a_missing_package_is_named_before_anything_is_done(
        self, module: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        assert demo.run(arguments()) == 2
        said = capsys.readouterr()
        assert not said.out
        assert said.err.count("\n") == 1
        assert package in said.err
        assert "pip install 'gpureg[demo]'" in said.err

    def test_a_wrong_checksum_is_the_exit_status_of_both_acts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(large, "SIZE", 8192)
        done: list[Path] = []
        monkeypatch.setattr(experiment, "run", lambda output, *_, **__: done.append(output))
        assert demo.run(arguments("--output", str(tmp_path / "a.png"))) == 1
        assert "DIFFERS" in capsys.readouterr().out
        assert done == [tmp_path / "a.png"]

    @pytest.mark.parametrize("option", ["--output", "--json"])
    def test_a_path_that_cannot_be_written_is_refused_at_once(
        self, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "folder.png"
        folder.mkdir()
        for path in (tmp_path / "none" / "a.png", folder):
            assert demo.run(arguments("digits", option, str(path))) == 2
            said = capsys.readouterr()
            assert not said.out
            assert str(path) in said.err

    @pytest.mark.parametrize(
        "given",
        [
            "--size=3",
            "--size=0",
            "--size=x",
            "--size=2199023255552",
            "--seeds=0",
            "--epochs=-1",
            "--output=a.jpg",
            "all",
        ],
    )
    def test_usage_errors(self, given: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            arguments(given)
        assert stopped.value.code == 2
        assert given.partition("=")[2] in capsys.readouterr().err

    def test_too_large_a_size_is_said_in_a_line(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def inputs(size: int) -> Callable[[], None]:
            raise MemoryError(size)

        monkeypatch.setattr(large, "inputs", inputs)
        assert demo.run(arguments("large")) == 2
        assert "--size" in capsys.readouterr().err
