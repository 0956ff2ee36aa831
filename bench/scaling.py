"""Cost against elements, tensors, threads and shards, on the CPU, and a model of it drawn against the points.

    python -m bench.scaling --output REPORT.json            measure, in a minute or two
    python -m bench.scaling --figure OUT.svg REPORT.json    draw what was measured, and the model's curves

The model has four numbers for each mode: what a call costs however small, the bandwidth that a large tensor is passed
over at, and what each further tensor of a `Penalty` and each further shard cost. The first comes from the smallest
tensor, the second from the largest, the others from the most tensors and the most shards. All points between are none
of its doing, and show how far it holds.

All points of an axis are timed in turn. Arrays are parts of one array, so that those that fit a cache are found there.
"""

import argparse
import functools
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gpureg
from bench import contenders, gpu_environment, inputs, report, roofline
from bench.cases import MODES, Case, Mode
from bench.checks import gpureg_bound, plain_bound
from bench.race import WrongError, timed
from bench.report import Entry, Report, ReportError
from gpureg import samples
from gpureg.arithmetic import tile_size, tree_sum

ONE_SUM, VALUE, ADD = MODES[0], MODES[2], MODES[4]

ELEMENTS, PARTED = 2**26, 2**22
"""Of the largest tensor, and of what is cut into tensors."""

SMALLEST = 256
"""Elements of a tensor, where there are most."""

AXES = {
    "elements": "weights of one tensor",
    "tensors": "tensors of a Penalty, together always as large",
    "threads": "threads, the largest tensor",
    "shards": "shards of the largest tensor, one after another",
}

LEGEND = {
    "axis": "; ".join(f"{name}: {what}" for name, what in AXES.items())
    + "; limit: a plain pass over the largest tensor",
    "mode": report.LEGEND["mode"],
    "bytes": report.LEGEND["bytes"],
    "rounds": "rounds timed, all points of an axis in turn in each, in an order that changes; a round is the mean of a "
    "millisecond of calls",
    "seconds": "percentiles over the rounds, of one call",
    "model": "by mode: seconds of a call however small, GB a second of the largest tensor, seconds of each further "
    "tensor and of each further shard",
}

Call = Callable[[], Any]
Points = dict[int, Call]
"""What is timed, by its place on the axis."""


class Arrays:
    """The weights and the gradient that everything is a part of, and what is called on them."""

    def __init__(self, elements: int) -> None:
        self.weights, self.gradient = samples.weights(elements), np.zeros(elements, np.float32)
        self._regularizer = gpureg.L1L2(VALUE.l1, VALUE.l2)

    def one(self, mode: Mode, elements: int) -> Call:
        """Return a call on one tensor."""
        w, g = self.weights[:elements], self.gradient[:elements]
        if mode is ADD:
            return functools.partial(self._regularizer.accumulate_grad, w, g)
        return functools.partial(gpureg.L1(ONE_SUM.l1) if mode is ONE_SUM else self._regularizer, w)

    def several(self, mode: Mode, tensors: int) -> Call:
        """Return a call on what is cut into tensors."""
        weights, gradients = (
            {str(i): part for i, part in enumerate(np.split(array[:PARTED], tensors))}
            for array in (self.weights, self.gradient)
        )
        penalty = gpureg.Penalty(weights, self._regularizer)
        return functools.partial(penalty.accumulate_grad, gradients) if mode is ADD else penalty

    def shards(self, count: int) -> Call:
        """Return a sum over shards, each called alone as on a machine of its own, and their sums added by the tree."""
        parts = np.split(self.weights, count)
        return lambda: tree_sum(np.array([gpureg.l1_loss(part, dtype="float64") for part in parts]))


def on(threads: int, call: Call) -> Call:
    """Return a call that is made on so many threads, and as many as before afterwards."""

    def run() -> Any:
        before = gpureg.get_num_threads()
        gpureg.set_num_threads(threads)
        try:
            return call()
        finally:
            gpureg.set_num_threads(before)

    return run


def axes(arrays: Arrays) -> dict[str, dict[Mode, Points]]:
    """Return what is timed on each axis, by mode."""
    most, parted = arrays.weights.size, min(PARTED, arrays.weights.size)
    sizes = [2**k for k in range(0, most.bit_length(), 2)]
    counts = [4**k for k in range(16) if 4**k * SMALLEST <= parted]
    threads = range(1, gpureg.get_num_threads() + 1)
    shards = [4**k for k in range(16) if 4**k * tile_size(4) <= most]
    return {
        "elements": {mode: {size: arrays.one(mode, size) for size in sizes} for mode in (ONE_SUM, VALUE, ADD)},
        "tensors": {mode: {count: arrays.several(mode, count) for count in counts} for mode in (VALUE, ADD)},
        "threads": {mode: {n: on(n, arrays.one(mode, most)) for n in threads} for mode in (VALUE, ADD)},
        "shards": {ONE_SUM: {count: arrays.shards(count) for count in shards}},
    }


def check(arrays: Arrays, made: dict[str, dict[Mode, Points]]) -> None:
    """Raise a WrongError if a value is not that of NumPy, or a point does not have the bits of others that must."""
    for size, call in made["elements"][VALUE].items():
        w = arrays.weights[:size].astype(np.float64)
        exact = VALUE.l1 * float(np.abs(w).sum()) + VALUE.l2 * float(np.square(w).sum())
        allowed = gpureg_bound(Case(VALUE, "float32", size)) + plain_bound(Case(VALUE, "float64", size))
        if not abs(float(call()) - exact) <= allowed * exact:
            raise WrongError(f"{size} elements: the penalty is {call()!r}, not {exact!r}")
    for axis, mode in (("threads", VALUE), ("shards", ONE_SUM)):
        first, *others = [float(call()) for call in made[axis][mode].values()]
        if any(other != first for other in others):
            raise WrongError(f"{axis}: not all give the same bits: {[first, *others]}")
    first, *others = [float(call()) for call in made["tensors"][VALUE].values()]
    if any(abs(other - first) > 2.0**-22 * first for other in others):  # each rounded once to float32
        raise WrongError(f"tensors: not all give the same total: {[first, *others]}")


def limits(arrays: Arrays) -> dict[Mode, dict[str, Call]]:
    """Return plain passes over the largest tensor, by mode and name."""
    given = inputs.Arrays(arrays.weights, arrays.gradient, arrays.gradient, arrays.weights)
    return {
        mode: {
            each.name: functools.partial(each.run, given)
            for each in contenders.limits(Case(mode, "float32", arrays.weights.size))
        }
        for mode in (VALUE, ADD)
    }


def measure(elements: int, seconds: float, least_rounds: int) -> list[Entry]:
    """Check all points, time them for so many seconds each or for so many rounds, and return the entries."""
    arrays = Arrays(elements)
    made = axes(arrays)
    check(arrays, made)
    whole = {"elements": None, "tensors": min(PARTED, elements), "threads": elements, "shards": elements}
    entries = []
    for axis, modes in made.items():
        calls = {(mode, place): call for mode, points in modes.items() for place, call in points.items()}
        race = timed({f"{mode.name} {place}": [call] for (mode, place), call in calls.items()}, seconds, least_rounds)
        for mode, place in calls:
            moved = Case(mode, "float32", whole[axis] or place).moved_bytes
            rounds = race.seconds[f"{mode.name} {place}"]
            entries.append({"axis": axis, "mode": mode.name, "place": place, "bytes": moved, **_summary(rounds)})
    for mode, passes in limits(arrays).items():
        race = timed({name: [call] for name, call in passes.items()}, seconds, least_rounds)
        fastest = min(race.seconds.values(), key=lambda rounds: float(np.median(rounds)))
        moved = Case(mode, "float32", elements).moved_bytes
        entries.append({"axis": "limit", "mode": mode.name, "place": elements, "bytes": moved, **_summary(fastest)})
    return entries


def _summary(rounds: Sequence[float]) -> Entry:
    quantiles = np.percentile(rounds, list(report.PERCENTILES.values()))
    numbers = zip(report.PERCENTILES, (float(f"{each:.4g}") for each in quantiles), strict=True)
    return {"rounds": len(rounds), "seconds": dict(numbers)}


# The model


def model(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """Return the model's numbers by mode; those of further tensors and shards only where there are such points."""
    found = {}
    for mode in dict.fromkeys(entry["mode"] for entry in entries if entry["axis"] == "elements"):
        smallest, *_, largest = _points(entries, "elements", mode)
        call = smallest["seconds"]["median"]
        numbers = {"call": call, "gb_per_s": largest["bytes"] / (largest["seconds"]["median"] - call) / 1e9}
        for axis, each in (("tensors", "tensor"), ("shards", "shard")):
            if points := _points(entries, axis, mode):
                first, *_, last = points
                more = (last["seconds"]["median"] - first["seconds"]["median"]) / (last["place"] - first["place"])
                numbers[each] = max(more, 0.0)
        found[mode] = {name: float(f"{number:.4g}") for name, number in numbers.items()}
    return found


def predicted(numbers: dict[str, float], entry: Entry, threads: int) -> float:
    """Return what the model says of a point: bytes over bandwidth, a call, and each further tensor or shard."""
    place, axis = int(entry["place"]), entry["axis"]
    reached = numbers["gb_per_s"] * (place / threads if axis == "threads" else 1.0)
    further = {"tensors": "tensor", "shards": "shard"}.get(axis, "")
    return roofline.pass_seconds(entry["bytes"], reached, numbers["call"]) + numbers.get(further, 0.0) * (place - 1)


def _points(entries: Sequence[Entry], axis: str, mode: str) -> list[Entry]:
    return sorted(
        (entry for entry in entries if (entry["axis"], entry["mode"]) == (axis, mode)), key=lambda entry: entry["place"]
    )


# The picture

STYLES = {
    ONE_SUM.name: {"color": "0.65", "marker": "^"},
    VALUE.name: {"color": "black", "marker": "o"},
    ADD.name: {"color": "0.4", "marker": "s"},
}
"""By shade and marker: to be told apart without colour."""


def figure(found: Report, path: Path) -> None:
    """Draw the points of each axis with the model's curves through them, on logarithmic axes."""
    import matplotlib as mpl  # noqa: PLC0415 - only to draw
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    threads = max(entry["place"] for entry in found["entries"] if entry["axis"] == "threads")
    # No date and no random names in the file: the same report draws the same bytes.
    with mpl.rc_context({"svg.hashsalt": "gpureg", "font.size": 9}):
        drawing = Figure(figsize=(10, 7.5), layout="constrained")
        for panel, (axis, what) in zip(drawing.subplots(2, 2).flat, AXES.items(), strict=True):
            for mode, numbers in found["model"].items():
                if points := _points(found["entries"], axis, mode):
                    _draw(panel, points, [predicted(numbers, point, threads) for point in points], mode)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            low, high = (np.log10(end) for end in panel.get_ylim())
            if axis == "elements":
                _draw_limits(panel, found["entries"])
            panel.set_ylim(10.0 ** np.floor(low), 10.0 ** np.ceil(high))  # from one tick to another
            panel.minorticks_off()
            panel.set_xlabel(what)
            panel.grid(color="0.9", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
        drawing.axes[0].legend(frameon=False, fontsize=8)
        caption = "float32. Points: medians, with the 10th and 90th percentile; lines: the model. "
        drawing.supxlabel("\n".join(textwrap.wrap(f"{caption}{report.conditions(found)}.", 140)), fontsize=8)
        drawing.supylabel("milliseconds", fontsize=9)
        drawing.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(panel: Any, points: Sequence[Entry], curve: Sequence[float], mode: str) -> None:
    places = [point["place"] for point in points]
    low, middle, high = ([point["seconds"][name] * 1e3 for point in points] for name in ("p10", "median", "p90"))
    spread = [np.subtract(middle, low), np.subtract(high, middle)]
    style = STYLES[mode]
    panel.errorbar(places, middle, spread, linestyle="none", markersize=4.5, capsize=2, label=mode, **style)
    panel.plot(places, np.multiply(curve, 1e3), color=style["color"], linewidth=1.2)


def _draw_limits(panel: Any, entries: Sequence[Entry]) -> None:
    for limit in (entry for entry in entries if entry["axis"] == "limit"):
        sizes = [entry["place"] for entry in _points(entries, "elements", limit["mode"])]
        each = limit["seconds"]["median"] / limit["place"] * 1e3
        label = f"memory limit, {limit['mode']}"
        panel.plot(
            sizes, np.multiply(sizes, each), color=STYLES[limit["mode"]]["color"], linestyle=(0, (4, 3)), label=label
        )


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 2 if a file is no report of this."""
    parser = argparse.ArgumentParser(
        prog="bench.scaling", description="Cost against elements, tensors, threads, shards."
    )
    parser.add_argument("report", type=Path, nargs="?", metavar="REPORT", help="for --figure, what --output wrote")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("-o", "--output", type=Path, metavar="REPORT", help="measure; where the report goes")
    action.add_argument("--figure", type=Path, metavar="PICTURE", help="draw a report, .svg or .png")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help=f"of the largest tensor (default: {ELEMENTS})")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each point (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=9, help="at least so many of each point (default: 9)")
    parser.add_argument("--commit", help="what `git describe --always --dirty` says, for a tree without its history")
    given = parser.parse_args(arguments)
    if (given.report is None) == bool(given.figure):
        parser.error("--figure takes a report, and --output none")
    if given.elements < PARTED or given.elements & (given.elements - 1):
        parser.error(f"--elements must be a power of two of at least {PARTED}, not {given.elements}")
    try:
        if given.figure:
            figure(load(given.report), given.figure)
            return 0
    except (ReportError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    facts = gpu_environment.describe(given.commit)
    head = {name: facts[name] for name in ("date", "machine", "versions", "commit", "uncommitted_changes")}
    entries = measure(given.elements, given.seconds, given.rounds)
    whole = {"schema": report.SCHEMA, **head, "legend": LEGEND, "model": model(entries), "entries": entries}
    given.output.write_text(report.dumps(whole))
    for mode, numbers in whole["model"].items():
        print(f"{mode:<24}", ", ".join(f"{name} {number:.3g}" for name, number in numbers.items()))
    return 0


def load(path: Path) -> Report:
    """Return the report in a file."""
    found = report.read_json(path)
    try:
        if found["schema"] == report.SCHEMA and all(entry["axis"] in (*AXES, "limit") for entry in found["entries"]):
            _ = found["model"], report.conditions(found)
            return dict(found)
    except (LookupError, TypeError) as error:
        raise ReportError(f"{path.name} is no report of bench.scaling: {error!r}") from error
    raise ReportError(f"{path.name} is no report of bench.scaling")


if __name__ == "__main__":
    sys.exit(main())
