"""Act "a real network": what the strength of a penalty does to a network that reads handwritten digits.

The same experiment on MNIST is known: contrib L2 at 0, 0.0001, 0.01 and 1.0 gave test accuracies of 0.9468, 0.9476,
0.9183 and 0.1135. Here the digits are scikit-learn's, which need no download, and L1 is beside L2.
"""

import json
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import gpureg
from gpureg.cli.common import replacing
from gpureg.cli.demo import digits, picture
from gpureg.cli.demo.common import strength_text, table, to_host

FORMS: dict[str, type[gpureg.HalvedL2] | type[gpureg.L1]] = {"HalvedL2": gpureg.HalvedL2, "L1": gpureg.L1}
"""The penalties that are compared: `strength * sum w*w / 2` and `strength * sum|w|`."""

STRENGTHS = {"HalvedL2": (0.0, 1e-4, 1e-2, 1.0), "L1": (0.0, 1e-5, 1e-4, 1e-3, 1e-2)}
"""The strengths of each, from none to far too strong."""

NEAR_ZERO = 1e-3
"""Weights below this in magnitude are counted as near zero; those of a new network are about 0.1."""

SEEDS = 5
EPOCHS = 60


class Trained(NamedTuple):
    """What came of one training; `weights` are those of all kernels, on the host."""

    train: float
    test: float
    penalty: float
    near_zero: float
    commonest: float
    weights: NDArray[np.float32]


class Row(NamedTuple):
    """What came of a form at a strength: means over the seeds, and standard deviations (None for a single seed)."""

    form: str
    strength: float
    penalty: float
    train: float
    train_spread: float | None
    test: float
    test_spread: float | None
    near_zero: float


Results = Mapping[tuple[str, float], Sequence[Trained]]
"""By form and strength, one training a seed."""


def run(output: Path, json_path: Path | None = None, *, seeds: int = SEEDS, epochs: int = EPOCHS) -> None:
    """Show the act: train, print the table and what it says, and write the picture."""
    xp = gpureg.xp()
    trainings = seeds * len({_key(form, strength) for form in STRENGTHS for strength in STRENGTHS[form]})
    print(f"== A real network: {'-'.join(map(str, digits.SIZES))}, tanh, on handwritten digits, with {xp.__name__}")
    print(f"{trainings} trainings of {epochs} epochs; each seed has a split and a first network of its own", flush=True)
    with progress_bar(trainings * epochs) as advance:
        results = train_all(xp, range(seeds), epochs, advance)
    rows = summarise(results)
    commonest = statistics.fmean(trained.commonest for trained in results[_key("L1", 0.0)])
    print(f"\n{text(rows)}\n\n{findings(rows, commonest)}\n")
    with replacing(output) as file:
        weights = {key: [trained.weights for trained in runs] for key, runs in results.items()}
        picture.draw(rows, weights, NEAR_ZERO, file)
    print(f"picture: {output}", flush=True)
    if json_path is not None:
        with replacing(json_path) as file:
            file.write(as_json(rows, xp=xp.__name__, seeds=seeds, epochs=epochs, commonest=commonest))
        print(f"data: {json_path}", flush=True)


def train_all(xp: ModuleType, seeds: Sequence[int], epochs: int, epoch_done: Callable[[], object]) -> Results:
    """Train every form at every strength with every seed; strength 0 is the same for all forms and trained once."""
    cases = {_key(form, strength): (form, strength) for form in STRENGTHS for strength in STRENGTHS[form]}
    data = {seed: digits.load(xp, seed) for seed in seeds}
    results: dict[tuple[str, float], list[Trained]] = {}
    with one_blas_thread():
        for key, (form, strength) in cases.items():
            regularizer = FORMS[form](strength)
            results[key] = [train_one(xp, data[seed], regularizer, seed, epochs, epoch_done) for seed in seeds]
    return results


def train_one(
    xp: ModuleType,
    data: digits.Digits,
    regularizer: gpureg.Regularizer,
    seed: int,
    epochs: int,
    epoch_done: Callable[[], object],
) -> Trained:
    """Train a network and examine it."""
    network = digits.train(xp, data.train, regularizer, seed=seed, epochs=epochs, epoch_done=epoch_done)
    weights = np.concatenate([to_host(layer.kernel).ravel() for layer in network])
    return Trained(
        train=digits.accuracy(xp, network, data.train),
        test=digits.accuracy(xp, network, data.test),
        penalty=sum(float(regularizer(layer.kernel)) for layer in network),
        near_zero=float((np.abs(weights) < NEAR_ZERO).mean()),
        commonest=float(xp.bincount(data.test.labels).max()) / len(data.test.labels),
        weights=weights,
    )


def summarise(results: Results) -> list[Row]:
    """Return the table, strength 0 in every form."""
    return [_row(form, strength, results[_key(form, strength)]) for form in STRENGTHS for strength in STRENGTHS[form]]


def _row(form: str, strength: float, runs: Sequence[Trained]) -> Row:
    train, test = [run.train for run in runs], [run.test for run in runs]
    return Row(
        form=form,
        strength=strength,
        penalty=statistics.fmean(run.penalty for run in runs),
        train=statistics.fmean(train),
        train_spread=statistics.stdev(train) if len(runs) > 1 else None,
        test=statistics.fmean(test),
        test_spread=statistics.stdev(test) if len(runs) > 1 else None,
        near_zero=statistics.fmean(run.near_zero for run in runs),
    )


def _key(form: str, strength: float) -> tuple[str, float]:
    return ("none" if strength == 0 else form, strength)


def text(rows: Sequence[Row]) -> str:
    """Lay out the table, without times, so that the same seeds give the same text."""
    header = ["penalty", "strength", "its value", "train accuracy", "test accuracy", f"|w| < {NEAR_ZERO:g}"]
    cells = [
        [
            row.form,
            strength_text(row.strength),
            f"{row.penalty:.4f}",
            _spread(row.train, row.train_spread),
            _spread(row.test, row.test_spread),
            f"{row.near_zero:.1%}",
        ]
        for row in rows
    ]
    means = "one seed" if rows[0].test_spread is None else "means over the seeds +- standard deviation"
    return f"{table(header, cells)}\n{means}; strength 0 is the same training in every form"


def _spread(mean: float, spread: float | None) -> str:
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} +- {spread:.4f}"


def findings(rows: Sequence[Row], commonest: float) -> str:
    """Say what is to be seen in the table, from its numbers alone, in a paragraph for each form.

    `commonest` is the accuracy of always naming the digit that the test images show most often.
    """
    forms = dict.fromkeys(row.form for row in rows)
    said = [" ".join(_finding([row for row in rows if row.form == form], commonest)) for form in forms]
    return "\n".join(textwrap.fill(sentences, 100) for sentences in said)


def _finding(rows: Sequence[Row], commonest: float) -> Iterator[str]:
    """Yield sentences: the best strength, the most weights near zero for which the model still works, its end."""
    none, *penalised = sorted(rows, key=lambda row: row.strength)
    best = max(penalised, key=lambda row: row.test)
    gain, spread = best.test - none.test, max(none.test_spread or 0.0, best.test_spread or 0.0)
    apart = "no further apart than seeds are" if abs(gain) <= spread else "better" if gain > 0 else "worse"
    yield f"{best.form} does best at {strength_text(best.strength)}: test accuracy {best.test:.4f},"
    yield f"and {none.test:.4f} without a penalty ({apart})."
    destroyed = [row for row in penalised if row.test < 2 * commonest]
    if usable := [row for row in penalised if row not in destroyed]:
        sparsest = max(usable, key=lambda row: row.near_zero)
        yield f"At {strength_text(sparsest.strength)} it holds {sparsest.near_zero:.1%} of the weights near zero,"
        yield f"at test accuracy {sparsest.test:.4f}."
    if destroyed:
        yield f"At {strength_text(destroyed[0].strength)} it destroys the model: test accuracy {destroyed[0].test:.4f},"
        yield f"where always naming the same digit gives up to {commonest:.4f}."


def as_json(rows: Sequence[Row], **settings: Any) -> bytes:
    """Return the table and how it was made as JSON."""
    known = {"gpureg": gpureg.__version__, "numpy": np.__version__, "network": digits.SIZES, "near_zero": NEAR_ZERO}
    return (json.dumps({**known, **settings, "rows": [row._asdict() for row in rows]}, indent=2) + "\n").encode()


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[], object]]:
    """Show how far the work is, on standard error if that is a terminal; yield what to call after each of its parts."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console  # noqa: PLC0415 # the extra `demo` may not be installed
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = TextColumn("training"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training", total=total)
        yield lambda: progress.advance(task)


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep BLAS to one thread: the matrices are too small for more, and no sum then depends on the number of cores."""
    limits: AbstractContextManager[object] = import_module("threadpoolctl").threadpool_limits(1, user_api="blas")
    return limits  # threadpoolctl comes with scikit-learn
