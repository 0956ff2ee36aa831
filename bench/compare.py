"""Whether gpureg became slower from one report to another: `python -m bench.compare OLD.json NEW.json`.

The reports are those of `bench/report.py`, of a CPU, of whole models or of a GPU. A case is what both have: the same
mode, dtype, number of elements and model. Its ratio is gpureg's new median over the old one, with its spread: from the
new 10th percentile over the old 90th to the new 90th over the old 10th. Beside it stands the ratio of gpureg's times
over the memory limit of the same run, for a machine may have been slower as a whole.

A case has become slower if its ratio is above the threshold and its whole spread above 1.

exit status: 0 nothing became slower, 1 a case did or is missing in the new report, 2 the reports cannot be compared
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.report import Entry, Report, ReportError, conditions, load

THRESHOLD = 1.1
"""Above this ratio a case has become slower, unless the spreads meet."""

TIMES = {"seconds": "", "host_seconds": ", on the host", "end_to_end_seconds": ", end to end"}
"""What of an entry is compared, and what is said of it; the last two, of a GPU's report, are medians alone."""


class Change(NamedTuple):
    """One time of a case in both reports: the medians in seconds, and the ratios, new over old."""

    what: str
    old: float
    new: float
    low: float
    high: float
    to_limit: float | None
    """The ratio of the times over the memory limit's; None where only gpureg's own is known."""

    @property
    def ratio(self) -> float:
        """Return the ratio of the medians."""
        return self.new / self.old

    def verdict(self, threshold: float) -> str:
        """Return what became of the case."""
        if self.ratio > threshold:
            return "slower" if self.low > 1 else "within the spread"
        if self.ratio < 1 / threshold:
            return "faster" if self.high < 1 else "within the spread"
        return "the same"


def cases(report: Report) -> dict[str, Entry]:
    """Return gpureg's entries by what they have in common with those of another report."""
    found = {}
    for entry in report["entries"]:
        if entry["role"] == "gpureg":
            model = f"{entry['model']}, " if "model" in entry else ""
            found[f"{model}{entry['mode']}, {entry['dtype']}, {entry['elements']} elements"] = entry
    return found


def compared(old: Report, new: Report) -> tuple[list[Change], list[str]]:
    """Return the changes of all cases that both reports have, and the cases that only the old one has."""
    before, after = cases(old), cases(new)
    changes = [
        change
        for name in before
        if name in after
        for time, said in TIMES.items()
        if time in before[name] and time in after[name]
        for change in [_change(name + said, time, before[name], after[name])]
    ]
    if not changes:
        raise ReportError("the two reports have no case in common")
    return changes, [name for name in before if name not in after]


def _change(what: str, time: str, old: Entry, new: Entry) -> Change:
    if time != "seconds":
        ratio = new[time] / old[time]
        return Change(what, old[time], new[time], ratio, ratio, None)
    before, after = old["seconds"], new["seconds"]
    low, high = after["p10"] / before["p90"], after["p90"] / before["p10"]
    return Change(what, before["median"], after["median"], low, high, new["to_limit"] / old["to_limit"])


def lines(changes: Sequence[Change], missing: Sequence[str], threshold: float) -> list[str]:
    """Return the table, the greatest ratio first."""
    width = max(len(change.what) for change in changes)
    head = f"{'case':<{width}}  {'old ms':>9}  {'new ms':>9}  ratio  {'spread':>13}  to limit"
    rows = [
        f"{change.what:<{width}}  {change.old * 1e3:9.4g}  {change.new * 1e3:9.4g}  {change.ratio:5.2f}  "
        f"{change.low:5.2f} to {change.high:4.2f}  "
        f"{'' if change.to_limit is None else f'{change.to_limit:.2f}':>8}  {change.verdict(threshold)}"
        for change in sorted(changes, key=lambda change: -change.ratio)
    ]
    return [head, *rows, *(f"{name}: not in the new report" for name in missing)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="bench.compare", description="Tell whether gpureg became slower from one report to another."
    )
    parser.add_argument("old", type=Path, help="a report of bench/report.py or bench/gpu_check.py")
    parser.add_argument("new", type=Path, help="another, of the same machine")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="RATIO",
        help=f"the ratio of medians above which a case has become slower (default: {THRESHOLD})",
    )
    given = parser.parse_args(arguments)
    if not given.threshold >= 1:
        parser.error(f"--threshold must be at least 1, not {given.threshold}")
    try:
        old, new = load(given.old), load(given.new)
        changes, missing = compared(old, new)
    except (ReportError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"old: {conditions(old)}\nnew: {conditions(new)}")
    print("\n".join(lines(changes, missing, given.threshold)))
    slower = [change for change in changes if change.verdict(given.threshold) == "slower"]
    print(f"{len(changes)} times compared, {len(slower)} slower by more than {given.threshold - 1:.0%}")
    return 1 if slower or missing else 0


if __name__ == "__main__":
    sys.exit(main())
