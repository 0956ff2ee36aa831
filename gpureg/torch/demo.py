"""A convolutional network that reads handwritten digits, and what L1 makes of its weights, by gradient and by prox.

    python -m gpureg.torch.demo --output FOLDER

trains it three times from the same start: without a penalty, with L1 attached, and with L1 attached as a proximal step.
It leaves the penalty of each layer, epoch by epoch, in `penalty.csv` and as a picture in `penalty.png`. It takes a
quarter of a minute, and needs `pip install 'gpureg[demo]'` beside PyTorch.
"""

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import nn

import gpureg
import gpureg.torch
from gpureg.cli.common import UsageError, check_writable, replacing, require, write
from gpureg.cli.demo import digits
from gpureg.cli.demo.common import table

STRENGTH = 1e-3
"""Of L1, which is a fifth of the loss at first. Biases are not penalised."""

RATE = 0.2
"""The step size of SGD at first; it falls to zero evenly, so that weights held at zero come to rest there."""

EPOCHS = 60
"""Times that each training goes through the images."""

TRAININGS = ("no penalty", "gradient", "proximal")


class Row(NamedTuple):
    """A line of the log: a layer's weights after so many steps of a training."""

    training: str
    step: int
    layer: str
    weights: int
    sum_abs: float
    penalty: float
    zeros: int
    """How many weights are exactly zero."""


class Trained(NamedTuple):
    """What came of a training: its log, and the share of the images held back that are read rightly."""

    log: list[Row]
    accuracy: float


def network() -> Any:
    """Return the network as every training begins with it."""
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv2d(1, 8, 3, padding=1),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(8, 16, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "fc1": nn.Linear(16 * 4 * 4, 64),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(64, 10),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def train(training: str) -> Trained:
    """Train the network on three quarters of the digits, and try it on the others."""
    data = digits.load(np, seed=0)
    images, labels = _tensors(data.train)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    if training != "no penalty":
        # All there is to it. The loop below knows nothing of penalties.
        penalty = gpureg.torch.Penalty(model, {"*.bias": None, "*": gpureg.L1(STRENGTH)})
        gpureg.torch.attach(optimizer, penalty, proximal=training == "proximal")

    batches = len(images) // digits.BATCH
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=EPOCHS * batches)
    generator = torch.Generator().manual_seed(1)
    log = list(_rows(training, 0, model))
    for epoch in range(1, EPOCHS + 1):
        for chosen in torch.randperm(len(images), generator=generator).split(digits.BATCH)[:batches]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        log += _rows(training, epoch * batches, model)

    images, labels = _tensors(data.test)
    with torch.no_grad():
        return Trained(log, float((model(images).argmax(1) == labels).double().mean()))


def _tensors(images: digits.Images) -> tuple[Any, Any]:
    return torch.from_numpy(images.pixels).reshape(-1, 1, 8, 8), torch.from_numpy(images.labels)


def _rows(training: str, step: int, model: Any) -> Iterator[Row]:
    """Yield what there is to say of each penalised layer, at the cost of one pass."""
    weights = {name: each for name, each in model.named_parameters() if not name.endswith(".bias")}
    for row in gpureg.report(weights):
        assert row.sum_abs is not None  # which it is of floats alone
        assert row.zeros is not None
        paid = 0.0 if training == "no penalty" else STRENGTH * row.sum_abs
        yield Row(training, step, row.name.removesuffix(".weight"), row.size, row.sum_abs, paid, row.zeros)


def report(every: dict[str, Trained]) -> str:
    """Return a table of accuracies, penalties, and zeros by layer, of the weights as they are at the end."""
    layers = list(dict.fromkeys(row.layer for trained in every.values() for row in trained.log))
    rows = []
    for training, trained in every.items():
        last = {row.layer: row for row in trained.log}
        zeros = [f"{last[layer].zeros:,} of {last[layer].weights:,}" for layer in layers]
        penalty = sum(row.penalty for row in last.values())
        rows.append([training, f"{trained.accuracy:.3f}", f"{penalty:.3f}", *zeros])
    return table(["training", "accuracy", "penalty", *(f"zeros in {layer}" for layer in layers)], rows)


def write_log(every: dict[str, Trained], file: IO[bytes]) -> None:
    """Write the log of all trainings as CSV."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(Row._fields)
    for trained in every.values():
        writer.writerows(trained.log)
    text.detach()


# The picture ---------------------------------------------------------------------------------------------------------

# Told apart by every eye, and in grey by their dashes and names.
_STYLES = (("#000000", "-"), ("#0072B2", "--"), ("#B34700", "-."), ("#707070", ":"))


def draw(every: dict[str, Trained], file: IO[bytes]) -> None:
    """Draw the penalty of each layer against steps, and below it the share of weights that are exactly zero."""
    # Not pyplot, which would choose a window system and keep the figure; and nobody's own settings.
    from matplotlib import style  # noqa: PLC0415 - the extra `demo` may not be installed
    from matplotlib.figure import Figure  # noqa: PLC0415

    settings = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    with style.context(["default", settings, {"grid.color": "0.9", "lines.linewidth": 1.8}]):
        figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
        axes = figure.subplots(2, len(every), sharex=True, sharey="row", squeeze=False)
        for column, (training, trained) in enumerate(every.items()):
            upper, lower = axes[0, column], axes[1, column]
            upper.set_title(f"{training}: test accuracy {trained.accuracy:.3f}", loc="left", fontweight="bold")
            _lines(upper, trained, lambda row: STRENGTH * row.sum_abs)
            _lines(lower, trained, lambda row: row.zeros / row.weights)
            lower.set_xlabel("step")
            if not any(row.zeros for row in trained.log):
                lower.text(0.5, 0.5, "none", transform=lower.transAxes, ha="center")
        axes[0, 0].set_ylabel(f"{STRENGTH:g} \N{MULTIPLICATION SIGN} Σ|w| of a layer")
        axes[0, 0].set_ylim(bottom=0)
        axes[0, -1].legend(loc="upper right", frameon=False, handlelength=3.5)
        axes[1, 0].set_ylabel("share of weights exactly zero")
        axes[1, 0].set_ylim(-0.02, 1)
        figure.savefig(file, format="png")


def _lines(axes: Any, trained: Trained, number: Any) -> None:
    layers: dict[str, list[Row]] = {}
    for row in trained.log:
        layers.setdefault(row.layer, []).append(row)
    for (layer, rows), (colour, line) in zip(layers.items(), _STYLES, strict=True):
        axes.plot([row.step for row in rows], [number(row) for row in rows], line, color=colour, label=layer)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say and write what came of it."""
    parser = argparse.ArgumentParser(prog="python -m gpureg.torch.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="where the files go (default: .)")
    given = parser.parse_args(arguments)
    log, picture = given.output / "penalty.csv", given.output / "penalty.png"
    try:
        require("demo", sklearn="scikit-learn", matplotlib="matplotlib")
        for path in (log, picture):
            check_writable(path)
    except UsageError as error:
        parser.error(str(error))
    every = {training: train(training) for training in TRAININGS}
    with replacing(log) as file:
        write_log(every, file)
    with replacing(picture) as file:
        draw(every, file)
    write(f"{report(every)}\n\nThe penalty by layer is in {log} and {picture}.\n")


if __name__ == "__main__":
    main()
