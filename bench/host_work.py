"""What the host does for a planned step on a GPU, but for the launch: `python -m bench.host_work --output OUT.json`.

It runs wherever CuPy can be imported, with a GPU or without: arrays are CuPy's own, over memory of the host. What only
a device can do is left to a stand-in for the module `cupy`: it has a device, a stream, memory, and kernels whose launch
does nothing. All else between the call of `Penalty.accumulate_grad` and the launch runs as it is. So these times lack
the launch, what the driver does to enter a device, and the way of a table to the device (it is copied on the host).

Before anything is timed, a step is checked: that it asks for one launch of as many blocks as its tensors take, and that
the table that the launch is given has the addresses of the very arrays of that step.

NumPy arrays of one element each are timed for comparison; there the pass itself is part of the step.
"""

import argparse
import ctypes
import functools
import gc
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Self
from unittest import mock

import cupy
import numpy as np

import gpureg
import gpureg.libraries.cupy  # knows arrays by the real module, which the stand-in is not to replace there
from bench import gpu_environment, report
from gpureg import arithmetic
from gpureg.backends import cuda

COUNTS = (10, 30, 100, 300, 1000, 3000)

SHAPES = ((64,), (700,), (64, 8), (128, 128))
"""Of tensors in turn: one that shares a block, two that have one each, one of two blocks."""

LEAST_STEPS, MOST_STEPS = 20, 20_000

SETS = 3
"""Places where new gradients lie in turn: those of one step are never where the last ones were."""

LEGEND = {
    "library": "cupy: what the host does for a step, but for the launch; numpy: steps over arrays of one element each, "
    "pass included",
    "gradients": "same: the very arrays of the step before; new: arrays made for this step, at other addresses",
    "tensors": f"how many; CuPy's have in turn the shapes {', '.join('x'.join(map(str, shape)) for shape in SHAPES)}",
    "steps": "calls of Penalty.accumulate_grad, each timed apart, while Python's garbage collector does not run",
    "microseconds": "percentiles over the steps",
    "per_tensor": "the median over the number of tensors, in microseconds",
}

Arrays = dict[str, Any]


class WrongError(Exception):
    """A step does not do what it is timed for."""


class Library(NamedTuple):
    """Arrays of which steps are timed: by what name, and how to make some, in one of several places."""

    name: str
    make: Callable[[int, int], Arrays]
    """Return so many new arrays by name, in the place of this number."""
    check: Callable[[gpureg.Penalty, Arrays, Arrays], None]
    """Raise a WrongError if a step with these weights and gradients is not all there."""


# CuPy without a device


class Nowhere:
    """A device where there need not be one; while it is entered all is as before."""

    id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class HostArray(cupy.ndarray):  # type: ignore[misc] # CuPy has no hints
    """CuPy's array, but that its device is nowhere."""

    device = Nowhere()


class Launch(NamedTuple):
    """A launch that was asked for."""

    grid: int
    argument: Any


class StandIn(ModuleType):
    """The module `cupy`, but for what needs a device."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.launches: list[Launch] | None = None
        """Filled while it is a list."""
        stream = SimpleNamespace(ptr=0, is_capturing=lambda: False)
        self.cuda = SimpleNamespace(Device=Nowhere, Stream=cupy.cuda.Stream, get_current_stream=lambda: stream)
        self._memory = over(np.zeros(2**22, np.uint8)).data
        self.ndarray = cupy.ndarray  # asked for often, and not to be slower than the module's own

    def __getattr__(self, name: str) -> Any:
        return getattr(cupy, name)

    def empty(self, shape: Any, dtype: Any = np.float64) -> Any:
        """Return an array; all lie in the same memory, for no launch writes there."""
        return cupy.ndarray(shape, dtype, self._memory)

    zeros = empty

    def array(self, other: Any) -> Any:
        """Return a copy in memory of its own."""
        return over(np.array(other))

    def kernel(self, *_: Any) -> Callable[..., None]:
        """Return a kernel whose launch does nothing."""

        def launch(grid: tuple[int], _: tuple[int], arguments: tuple[Any]) -> None:
            if self.launches is not None:
                self.launches.append(Launch(grid[0], arguments[0][0]))

        return launch


def over(array: Any) -> HostArray:
    """Return a CuPy array over the memory of a NumPy array."""
    memory = cupy.cuda.UnownedMemory(array.__array_interface__["data"][0], array.nbytes, array, 0)
    return HostArray(array.shape, array.dtype, cupy.cuda.MemoryPointer(memory, 0))


@contextmanager
def without_a_device() -> Iterator[StandIn]:
    """Let gpureg find the stand-in where it asks for CuPy, and kernels without compiling any."""
    stand_in = StandIn()
    kernel = functools.cache(stand_in.kernel)
    with (
        mock.patch.dict(sys.modules, cupy=stand_in),
        mock.patch.multiple(cuda, _unusable=lambda: None, _kernel=kernel),
    ):
        yield stand_in


def of_cupy(stand_in: StandIn) -> Library:
    """Return CuPy's arrays, which are never read or written: their memory is not even filled."""
    memory: dict[tuple[int, int], Any] = {}

    def make(count: int, place: int) -> Arrays:
        arrays = {}
        for i, shape in enumerate(itertools.islice(itertools.cycle(SHAPES), count)):
            if (place, i) not in memory:
                memory[place, i] = np.empty(shape, np.float32)
            arrays[_name(i)] = over(memory[place, i])
        return arrays

    def check(penalty: gpureg.Penalty, weights: Arrays, gradients: Arrays) -> None:
        launches: list[Launch] = []
        stand_in.launches = launches
        penalty.accumulate_grad(gradients)
        stand_in.launches = None
        sizes = [math.prod(array.shape) for array in weights.values()]
        large = [size for size in sizes if 4 * size > cuda.SMALL]
        blocks = sum(-(-size // arithmetic.tile_size(4)) for size in large) - (len(large) - len(sizes)) // cuda.WARPS
        grids = [launch.grid for launch in launches]
        if grids != [blocks]:
            raise WrongError(f"launches of {grids} blocks were asked for, not of {blocks}")
        place = int(launches[0].argument["places"])
        table = ctypes.string_at(place, cuda.PLACE.itemsize * len(sizes))
        found = sorted(np.frombuffer(table, cuda.PLACE).tolist())
        if found != sorted((weights[name].data.ptr, gradients[name].data.ptr) for name in weights):
            raise WrongError("the launch is given other arrays than those of the step")

    return Library("cupy", make, check)


def _name(number: int) -> str:
    return f"layer.{number}.weight"


def of_numpy() -> Library:
    """Return NumPy's arrays of one element each."""
    memory: dict[int, Any] = {}

    def make(count: int, place: int) -> Arrays:
        if place not in memory or len(memory[place]) < count:
            memory[place] = np.zeros((count, 1), np.float32)
        return {_name(i): memory[place][i] for i in range(count)}

    def check(penalty: gpureg.Penalty, weights: Arrays, gradients: Arrays) -> None:
        for name in weights:
            weights[name][...], gradients[name][...] = 1, 0
        penalty.accumulate_grad(gradients)
        if not all(gradients.values()):
            raise WrongError("not every gradient was added to")

    return Library("numpy", make, check)


# Timing


def timed(library: Library, count: int, *, new: bool, seconds: float) -> list[float]:
    """Return the seconds of each of many steps over so many tensors, once a step has been checked."""
    weights = library.make(count, SETS)
    penalty = gpureg.Penalty(weights, gpureg.L1L2(1e-5, 1e-4))
    gradients = library.make(count, 0)
    library.check(penalty, weights, gradients)  # the first, which plans
    gradients = library.make(count, 1) if new else gradients
    library.check(penalty, weights, gradients)
    result: list[float] = []
    end = time.perf_counter() + seconds
    collects = gc.isenabled()
    gc.disable()
    try:
        while len(result) < LEAST_STEPS or (time.perf_counter() < end and len(result) < MOST_STEPS):
            if new:
                gradients = library.make(count, (len(result) + 2) % SETS)
            start = time.perf_counter()
            penalty.accumulate_grad(gradients)
            result.append(time.perf_counter() - start)
    finally:
        if collects:
            gc.enable()
    gradients = library.make(count, (len(result) + 2) % SETS) if new else gradients
    library.check(penalty, weights, gradients)
    return result


def measure(counts: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the lines of a report, each when it is done."""
    with without_a_device() as stand_in:
        for library, count, new in itertools.product((of_cupy(stand_in), of_numpy()), counts, (False, True)):
            steps = timed(library, count, new=new, seconds=seconds)
            microseconds = np.percentile(steps, list(report.PERCENTILES.values())) * 1e6
            percentiles = dict(zip(report.PERCENTILES, (float(f"{each:.4g}") for each in microseconds), strict=True))
            yield {
                "library": library.name,
                "gradients": "new" if new else "same",
                "tensors": count,
                "steps": len(steps),
                "microseconds": percentiles,
                "per_tensor": float(f"{percentiles['median'] / count:.3g}"),
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Host work of a planned step, its launch left out.")
    parser.add_argument("-o", "--output", type=Path, metavar="REPORT", help="where the report goes, as JSON")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of the report (default: 1)")
    parser.add_argument(
        "--tensors", type=int, nargs="+", default=COUNTS, choices=range(2, max(COUNTS) + 1), metavar="N"
    )
    parser.add_argument("--commit", help="what `git describe --always --dirty` says, for a tree without its history")
    given = parser.parse_args(arguments)
    facts = gpu_environment.describe(given.commit)
    head = {name: facts[name] for name in ("date", "machine", "versions", "commit", "uncommitted_changes")}
    print("microseconds of a step   tensors     p10  median     p90   a tensor")
    entries = []
    for entry in measure(given.tensors, given.seconds):
        entries.append(entry)
        spread = "  ".join(f"{entry['microseconds'][name]:6.1f}" for name in ("p10", "median", "p90"))
        print(
            f"{entry['library']}, {entry['gradients']:<16} {entry['tensors']:9}  {spread}  {entry['per_tensor']:6.2f}"
        )
    if given.output:
        given.output.write_text(report.dumps({"schema": 1, **head, "legend": LEGEND, "entries": entries}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
