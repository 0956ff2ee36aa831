"""Three pictures of a report: norms by layer, how many weights have which magnitude, and sparsity by layer.

They are told apart by lightness, not by hue, and so in grey too.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpureg.cli.common import printable
from gpureg.cli.reporting.histogram import Histogram
from gpureg.reporting import Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK, LIGHT, POINTS = "#1B4F72", "#A9CCE3", "#808B96"

PITCH, LEAST = 0.22, 1.4
"""Inches from a layer to the next one, and of all layers together at least."""

MOST, MOST_OF_PANEL = 12.0, 6.0
"""Inches of all layers together at most, in the sheet and in a panel of the page: many layers lie closer."""

LABEL = 0.15
"""Inches that a label needs; of layers that lie closer only some have theirs."""

LETTERS = 12
"""That an inch of a label holds; of a longer one some are left out."""

SETTINGS: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "gpureg",
}


class Layer(NamedTuple):
    """The tensors of one layer."""

    name: str
    rows: list[Row]

    @property
    def norm(self) -> float:
        """The Euclidean norm of all its weights."""
        return math.sqrt(sum(row.sum_squares or 0.0 for row in self.rows))

    def share(self, counted: Callable[[Row], int | None]) -> float:
        """Return the share of elements that count."""
        return sum(counted(row) or 0 for row in self.rows) / max(sum(row.size for row in self.rows), 1)


def layers(report: Report) -> list[Layer]:
    """Return the layers of a report, those without floats left out."""
    found: dict[str, list[Row]] = {}
    for row in report:
        if row.sum_abs is not None:
            found.setdefault(layer(row.name), []).append(row)
    return [Layer(name, rows) for name, rows in found.items()]


def layer(name: str) -> str:
    """Return the layer that a tensor belongs to: its name up to the first number, or all but the last part of it.

    >>> [layer(name) for name in ("h.0.attn.w", "embeddings.word.weight", "layers/dense/vars/0", "w")]
    ['h.0', 'embeddings.word', 'layers/dense/vars', 'w']
    """
    parts = re.split(r"([./])", name)  # separators are every second one
    if len(parts) == 1:
        return name
    first = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), len(parts) - 3)
    return "".join(parts[: first + 1])


def sheet(report: Report, histogram: Histogram, title: str, threshold: float, format: str) -> bytes:  # noqa: A002
    """Return a picture of all three, as PNG or SVG."""
    shown = layers(report)
    tall = _height(shown, MOST)
    with _figure(12.0, tall + 4.45) as figure:
        height = figure.get_figheight()
        heading = _short(printable(title), 100)
        figure.text(0.02, 1 - 0.3 / height, heading, fontsize=13, fontweight="bold", va="center", parse_math=False)
        figure.text(0.02, 1 - 0.6 / height, _about(report), color="0.25", va="center")
        above = figure.add_axes((0.06, 1 - 3.0 / height, 0.92, 1.95 / height))
        magnitudes(above, report, histogram, threshold)
        # Both have the same layers; the labels of the left one stand for both.
        low, part = 0.6 / height, tall / height
        left = figure.add_axes((0.225, low, 0.435, part))
        norms(left, shown)
        _label_layers(left, shown)
        right = figure.add_axes((0.69, low, 0.29, part))
        sparsity(right, shown, threshold)
        _label_layers(right, shown)
        right.tick_params(labelleft=False)
        return _saved(figure, format)


def panels(report: Report, histogram: Histogram, threshold: float) -> Iterator[tuple[str, bytes]]:
    """Yield the three pictures apart, each with what it shows, as SVG, and so narrow that a phone can show them."""
    shown = layers(report)
    with _figure(4.4, 2.9) as figure:
        magnitudes(figure.add_axes((0.14, 0.17, 0.83, 0.7)), report, histogram, threshold)
        yield "How many weights have which magnitude", _saved(figure, "svg")
    tall = _height(shown, MOST_OF_PANEL)
    by_layer: dict[str, Callable[[Axes], None]] = {
        "The norm of each layer and of its tensors": lambda axes: norms(axes, shown),
        "The share of small weights in each layer": lambda axes: sparsity(axes, shown, threshold),
    }
    for what, draw in by_layer.items():
        with _figure(4.4, tall + 0.9) as figure:
            height = figure.get_figheight()
            axes = figure.add_axes((0.43, 0.5 / height, 0.54, tall / height))
            draw(axes)
            _label_layers(axes, shown)
            axes.set_title(axes.get_title(loc="left"), x=-0.43 / 0.54 + 0.02)  # above the labels, apart from the legend
            yield what, _saved(figure, "svg")


def norms(axes: "Axes", shown: Sequence[Layer]) -> None:
    """Draw the norm of each layer, and small points for its tensors, on a logarithmic axis."""
    axes.set_title("Norm by layer")
    axes.set_xscale("log")
    size = min(6.0, max(2.5, 60 * _tall(axes) / max(len(shown), 1)))  # a little less than a layer's place
    for place, layer in enumerate(shown):
        tensors = [math.sqrt(row.sum_squares or 0.0) for row in layer.rows]
        finite = [norm for norm in tensors if 0 < norm < math.inf]
        axes.plot(finite, [place] * len(finite), ".", color=POINTS, markersize=4, zorder=2)
        if 0 < layer.norm < math.inf:
            axes.plot([layer.norm], [place], "o", color=DARK, markersize=size, zorder=3)
        elif layer.norm != 0:  # which has no place on the axis, but must be seen
            axes.plot([0.01], [place], "x", color="black", markersize=5, transform=axes.get_yaxis_transform())
    marks = [("o", DARK, "layer"), (".", POINTS, "its tensors")]
    if not all(math.isfinite(layer.norm) for layer in shown):
        marks.append(("x", "black", "not finite"))
    for marker, colour, label in marks:
        axes.plot([], [], marker, color=colour, label=label)
    _legend(axes, handletextpad=0.1, columnspacing=0.8)
    axes.set_xlabel("L2 norm")
    axes.minorticks_off()


def sparsity(axes: "Axes", shown: Sequence[Layer], threshold: float) -> None:
    """Draw the shares of zeros and of weights below the threshold in each layer."""
    axes.set_title("Sparsity")
    places = range(len(shown))
    below = [100 * layer.share(lambda row: row.below) for layer in shown]
    zeros = [100 * layer.share(lambda row: row.zeros) for layer in shown]
    # An edge, so that even a bar that is thinner than a dot is seen.
    axes.barh(places, below, height=0.8, color=LIGHT, edgecolor=LIGHT, linewidth=0.5, label=f"|w| < {threshold:g}")
    axes.barh(places, zeros, height=0.8, color=DARK, edgecolor=DARK, linewidth=0.5 if any(zeros) else 0, label="zero")
    _legend(axes, handlelength=1.0)
    axes.set_xlim(0, max(1.05 * max(below, default=0.0), 1e-3))
    axes.set_xlabel("% of the layer's weights")


def magnitudes(axes: "Axes", report: Report, histogram: Histogram, threshold: float) -> None:
    """Draw the share of weights in each power of two of |w|, both axes logarithmic."""
    axes.set_title("Magnitudes")
    edges, counts = histogram.bins()
    total = report.total
    if len(counts):
        # The smallest subnormals begin at 0, and the largest numbers end at infinity.
        numbers = np.finfo(np.float64)
        places = np.log2(np.clip(edges, numbers.smallest_subnormal, numbers.max))
        axes.stairs(100 * counts / total.size / np.diff(places), places, fill=True, color=LIGHT, edgecolor=DARK)
        axes.set_yscale("log")
        # The few smallest weights of millions would make the axis long, and the others invisible.
        enough = np.flatnonzero(np.cumsum(counts) >= max(1, 1e-6 * counts.sum()))[0]
        axes.set_xlim(min(places[enough], places[-1] - 4), places[-1])
        axes.xaxis.set_major_locator(_whole_numbers())
        axes.xaxis.set_major_formatter(lambda place, _: f"$2^{{{place:.0f}}}$")
        if threshold > 0 and axes.get_xlim()[0] < math.log2(threshold) < axes.get_xlim()[1]:
            axes.axvline(math.log2(threshold), color="0.2", linestyle="--", linewidth=1)
            axes.annotate(
                f" {threshold:g}",
                (math.log2(threshold), 0.99),
                xycoords=("data", "axes fraction"),
                va="top",
                fontsize=9,
            )
        axes.minorticks_off()
    counted = (total.zeros, "zeros"), (total.nan, "NaN"), (total.inf, "infinite")
    without = ", ".join(f"{number:,} {what}" for number, what in counted if number)
    axes.set_xlabel(f"|w|, without {without}" if without else "|w|")
    axes.set_ylabel("% per power of 2")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - optional

    return MaxNLocator(nbins=8, integer=True)


def _legend(axes: "Axes", **distances: float) -> None:
    """Explain the marks in one line above the axes, on the right."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, borderpad=0, **distances)


def _label_layers(axes: "Axes", shown: Sequence[Layer]) -> None:
    """Name the layers from the top down; where they lie too close for that, every second, third and so on."""
    step = max(1, math.ceil(LABEL * len(shown) / _tall(axes)))
    named = range(0, len(shown), step)
    letters = int(LETTERS * axes.get_position().x0 * _size(axes)[0])
    names = _telling([printable(layer.name) for layer in shown], letters)
    labels = [_short(names[place], letters) for place in named]
    axes.set_yticks(list(named), labels, fontsize=9, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x", color="0.85")
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _height(shown: Sequence[Layer], most: float) -> float:
    return min(max(PITCH * len(shown), LEAST), most)


def _tall(axes: "Axes") -> float:
    """Return the height of axes in inches."""
    return axes.get_position().height * _size(axes)[1]


def _size(axes: "Axes") -> tuple[float, float]:
    """Return the width and the height of the whole figure in inches."""
    figure = axes.get_figure(root=True)
    return (0.0, 0.0) if figure is None else tuple(figure.get_size_inches())


def _telling(names: Sequence[str], most: int) -> Sequence[str]:
    """Return names without the beginning and the end that all have, if any is too long to be shown whole.

    >>> _telling(["the_first_block_of_all", "the_other_block_of_all"], 20)
    ['…first…', '…other…']
    """
    if len(names) < 2 or max(map(len, names)) <= most:
        return names
    first = _in_common(names)
    last = min(_in_common([name[::-1] for name in names]), min(map(len, names)) - first)
    return [f"{'…' * bool(first)}{name[first : len(name) - last]}{'…' * bool(last)}" for name in names]


def _in_common(names: Sequence[str]) -> int:
    """Return how many letters names begin with that are the same."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False)))


def _short(text: str, most: int) -> str:
    """Return text without a part of it if it is long; its end, which tells most of a layer, is kept longest.

    >>> _short("embeddings.token_type_embeddings", 21)
    'embed…type_embeddings'
    """
    first = most // 4
    return text if len(text) <= most else f"{text[:first]}…{text[-(most - first - 1) :]}"


def _about(report: Report) -> str:
    total = report.total
    penalty = "" if total.penalty is None else f", penalty {total.penalty:.6g}"
    return f"{total.tensors} tensors, {total.size:,} weights, rms {total.rms:.4g}, largest {total.max_abs:.4g}{penalty}"


@contextmanager
def _figure(width: float, height: float) -> Iterator["Figure"]:
    # Not pyplot, which would choose a window system and keep the figure; and nobody's own settings.
    from matplotlib import style  # noqa: PLC0415 - optional
    from matplotlib.figure import Figure  # noqa: PLC0415

    with style.context(["default", SETTINGS]):
        yield Figure(figsize=(width, height), dpi=100)


def _saved(figure: "Figure", format: str) -> bytes:  # noqa: A002
    file = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of names in any script
        figure.savefig(file, format=format, metadata=metadata)
    return file.getvalue()
