"""The example with PyTorch, run short: what L1 does to a convolutional network, and what it writes of that."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from gpureg.torch import demo

EPOCHS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """Return what a short run prints; it leaves its files in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(demo, "EPOCHS", EPOCHS)
        patch.setattr(demo, "write", said.append)
        demo.main(["--output", str(folder)])
    return "".join(said)


@pytest.fixture(scope="module")
def log(printed: str, folder: Path) -> list[dict[str, str]]:
    assert str(folder / "penalty.csv") in printed
    with (folder / "penalty.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def last(log: list[dict[str, str]], training: str) -> list[dict[str, str]]:
    return [row for row in log if row["training"] == training][-4:]


def test_the_digits_are_read(printed: str) -> None:
    """Of 450 images that it has not seen, nine in ten by any of the three networks; one in ten would be chance."""
    accuracies = re.findall(r"^(\w+(?: \w+)?) +(\d\.\d{3})", printed, re.MULTILINE)
    assert [training for training, _ in accuracies] == list(demo.TRAININGS)
    assert all(0.9 < float(accuracy) <= 1 for _, accuracy in accuracies)


def test_the_log_has_a_row_for_each_layer_and_epoch(log: list[dict[str, str]]) -> None:
    assert list(log[0]) == ["training", "step", "layer", "weights", "sum_abs", "penalty", "zeros"]
    batches = 1797 * 3 // 4 // 64
    steps = [str(epoch * batches) for epoch in range(EPOCHS + 1) for _ in range(4)]
    assert [row["step"] for row in log] == steps * 3
    assert [row["layer"] for row in log] == ["conv1", "conv2", "fc1", "fc2"] * (EPOCHS + 1) * 3
    for row in log:
        strength = 0.0 if row["training"] == "no penalty" else demo.STRENGTH
        assert float(row["penalty"]) == strength * float(row["sum_abs"])
        assert 0 <= int(row["zeros"]) <= int(row["weights"])


def test_all_begin_alike_and_the_penalty_makes_weights_small(log: list[dict[str, str]]) -> None:
    starts = {
        tuple(row["sum_abs"] for row in log if row["training"] == name and row["step"] == "0")
        for name in demo.TRAININGS
    }
    assert len(starts) == 1
    sums = {name: np.array([float(row["sum_abs"]) for row in last(log, name)]) for name in demo.TRAININGS}
    assert sums["gradient"].sum() < 0.75 * sums["no penalty"].sum()
    # Both are descents on the same objective, which differ by the step's length times the strength for each weight.
    assert sums["proximal"] == pytest.approx(sums["gradient"], rel=0.1)


def test_the_proximal_step_alone_makes_exact_zeros(log: list[dict[str, str]], printed: str) -> None:
    zeros = {name: [int(row["zeros"]) for row in log if row["training"] == name] for name in demo.TRAININGS}
    assert not any(zeros["no penalty"] + zeros["gradient"])
    weights = sum(int(row["weights"]) for row in last(log, "proximal"))
    assert 0.05 < sum(zeros["proximal"][-4:]) / weights < 0.9
    line = next(line for line in printed.splitlines() if line.startswith("proximal"))
    shown = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) of", line)]
    assert shown == zeros["proximal"][-4:]


def test_the_picture_is_there(printed: str, folder: Path) -> None:
    content = (folder / "penalty.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert str(folder / "penalty.png") in printed
    assert {path.name for path in folder.iterdir()} == {"penalty.csv", "penalty.png"}


def test_a_folder_that_is_not_there_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "train", None)
    with pytest.raises(SystemExit) as ended:
        demo.main(["--output", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert "penalty.csv cannot be written: there is no folder" in capsys.readouterr().err
