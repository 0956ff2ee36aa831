"""The picture of the digits: accuracy against strength above, the weights' histograms below, a column each penalty."""

import math
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpureg.cli.demo.common import strength_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

    from gpureg.cli.demo.experiment import Row

INCHES, DPI = (12.0, 9.6), 100
"""1200 dots wide, as a README is shown."""

COLOURS = ("#0072B2", "#B34700")
"""One a penalty, told apart by every eye; in grey the columns tell them apart."""

TRAIN_COLOUR = "#858585"

TITLES = {
    "HalvedL2": "HalvedL2: strength \N{MULTIPLICATION SIGN} ½ Σ w²",
    "L1": "L1: strength \N{MULTIPLICATION SIGN} Σ |w|",
}

LEFT = 0.065
"""Where the axes begin, as a share of the width; the heading stands above them."""

EDGES = np.linspace(-0.9025, 0.9025, 362)
"""Edges of the bins, 0.005 apart and zero in the middle of one, so that a spike at zero is one bar."""

GAP = 1.25
"""Decades from the smallest strength to 0, which has no place on a logarithmic axis."""

Weights = Mapping[tuple[str, float], Sequence[NDArray[Any]]]
"""The weights of each training, by form ("none" for strength 0) and strength."""


def draw(rows: Sequence["Row"], weights: Weights, near_zero: float, file: IO[bytes]) -> None:
    """Write the picture as PNG. In every form the first strength is 0; `near_zero` is what the rows count as such."""
    # Not pyplot, which would choose a window system and keep the figure; and nobody's own settings.
    from matplotlib import style  # noqa: PLC0415 # the extra `demo` may not be installed
    from matplotlib.figure import Figure  # noqa: PLC0415

    with style.context(["default", {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}]):
        figure = Figure(figsize=INCHES, dpi=DPI)
        forms = list(dict.fromkeys(row.form for row in rows))
        grid = figure.add_gridspec(
            2, len(forms), height_ratios=(5, 7), left=LEFT, right=0.985, top=0.865, bottom=0.06, hspace=0.32, wspace=0.1
        )
        seeds = len(next(iter(weights.values())))
        _heading(figure, seeds, near_zero)
        for column, (form, colour) in enumerate(zip(forms, COLOURS, strict=False)):
            mine = [row for row in rows if row.form == form]
            _accuracies(figure.add_subplot(grid[0, column]), mine, colour, first=column == 0)
            _histograms(figure, grid[1, column], mine, weights, colour, first=column == 0)
        figure.savefig(file, format="png")


def _heading(figure: "Figure", seeds: int, near_zero: float) -> None:
    """Say what is shown, and of what."""
    figure.text(
        LEFT, 0.965, "What a penalty does to a network that reads handwritten digits", fontsize=16, fontweight="bold"
    )
    means = f"means over {seeds} seeds, bars one standard deviation" if seeds > 1 else "one seed"
    figure.text(
        LEFT,
        0.935,
        f"Points are {means}. “Near zero” is |w| < {near_zero:g}.",
        color="0.25",
    )


def _accuracies(axes: "Axes", rows: Sequence["Row"], colour: str, *, first: bool) -> None:
    """Draw the accuracies of training and test images against strength."""
    places = _places([row.strength for row in rows])
    _curve(axes, places, [(row.train, row.train_spread) for row in rows], TRAIN_COLOUR, "s", "--", "training images")
    _curve(axes, places, [(row.test, row.test_spread) for row in rows], colour, "o", "-", "test images")
    for x, row in zip(places, rows, strict=True):
        # Below and to the left: a line that falls to the next strength passes on the right.
        axes.annotate(
            f"{row.test:.3f}",
            (x, row.test),
            (-8, -9),
            textcoords="offset points",
            ha="right",
            va="center",
            color=colour,
        )
    _break_axis(axes, (places[0] + places[1]) / 2)
    axes.set_title(TITLES.get(rows[0].form, rows[0].form), color=colour, loc="left", fontweight="bold")
    axes.set_xticks(places, [strength_text(row.strength) for row in rows])
    axes.set_xlabel("strength")
    axes.set_xlim(places[0] - 0.9, places[-1] + 0.3)
    axes.set_ylim(0, 1.04)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(0, 0.4), frameon=False)
    if first:
        axes.set_ylabel("accuracy")
    else:
        axes.tick_params(labelleft=False)


def _places(strengths: Sequence[float]) -> list[float]:
    """Return where strengths stand: their decimal logarithm, and 0 at a distance from the smallest.

    >>> _places([0.0, 0.01, 1.0])
    [-3.25, -2.0, 0.0]
    """
    smallest = math.log10(min(strength for strength in strengths if strength > 0))
    return [math.log10(strength) if strength > 0 else smallest - GAP for strength in strengths]


def _curve(
    axes: "Axes",
    places: Sequence[float],
    points: Sequence[tuple[float, float | None]],
    colour: str,
    marker: str,
    line: str,
    label: str,
) -> None:
    """Draw means, with spreads as bars; the first, of strength 0, is off the logarithmic axis and so not joined."""
    style: dict[str, Any] = {"color": colour, "marker": marker, "capsize": 4, "markersize": 7}
    style["markerfacecolor"] = colour if line == "-" else "white"
    means, spreads = [mean for mean, _ in points], [spread or 0.0 for _, spread in points]
    axes.errorbar(places[:1], means[:1], spreads[:1], linestyle="none", **style)
    axes.errorbar(places[1:], means[1:], spreads[1:], linestyle=line, label=label, **style)


def _break_axis(axes: "Axes", place: float) -> None:
    """Mark the place where the logarithmic axis ends and 0 is beyond."""
    axes.plot(
        [place], [0], marker="$//$", markersize=13, color="black", transform=axes.get_xaxis_transform(), clip_on=False
    )


def _histograms(
    figure: "Figure",
    place: "SubplotSpec",
    rows: Sequence["Row"],
    weights: Weights,
    colour: str,
    *,
    first: bool,
) -> None:
    """Draw how many weights have which value, a histogram for each strength, one below another."""
    grid = place.subgridspec(len(rows), 1, hspace=0.14)
    every = [figure.add_subplot(grid[i]) for i in range(len(rows))]
    for axes, row in zip(every, rows, strict=True):
        runs = weights["none" if row.strength == 0 else row.form, row.strength]
        counts = sum(np.histogram(run, EDGES)[0] for run in runs) / len(runs)
        axes.stairs(counts, EDGES, fill=True, color=colour)
        axes.set_yscale("log")
        axes.set_ylim(0.5 / len(runs), 4e5)  # a single weight of a single run shows
        axes.set_yticks([1, 100, 10_000])
        axes.minorticks_off()
        axes.set_xlim(EDGES[0], EDGES[-1])
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(labelbottom=axes is every[-1], labelleft=first)
        axes.text(0.012, 0.92, f"strength {strength_text(row.strength)}", transform=axes.transAxes, va="top")
        axes.text(0.988, 0.92, f"{row.near_zero:.1%} near zero", transform=axes.transAxes, va="top", ha="right")
    every[0].set_title("Weights after training: how many in each 0.005", loc="left", fontsize=12)
    every[-1].set_xlabel("weight")
