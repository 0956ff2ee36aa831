"""The variants of the kernels on a GPU: each one's bits against NumPy's, then all of a kernel timed in turn.

Called by `bench/tune.py`. gpureg plans and launches as ever; only what it launches is the variant's, and on as many
blocks as that takes.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from bench import gpu, gpu_contenders
from bench.cases import MODES, Case
from bench.cases import Mode as What
from bench.gpu_checks import Contender, Run
from bench.gpu_inputs import Arrays, Tensors, cp
from bench.gpu_race import race
from bench.variants import SHIPPED, VARIANTS, Variant
from gpureg import arithmetic, backends, compiler, selftest
from gpureg.arithmetic import Coefficients
from gpureg.backends import Leaf, Mode, cuda
from tests.helpers import content
from tests.kernels.inspect_code import Kernel

ELEMENTS = {"float32": 2**26, "bfloat16": 2**27, "float16": 2**27, "float64": 2**25}
"""Of a tensor that is timed: 256 MiB."""

FLOAT64 = np.dtype(np.float64)

LEGEND = gpu.LEGEND | {
    "contender": "the variant of bench/variants, or a plain pass",
    "role": "gpureg: the kernels as they are shipped; other: a variant; limit: a plain pass over the same bytes",
}

DTYPES = {name: dtype for dtype, name in compiler.TYPES.items()}


class Loaded:
    """The kernels of a variant on the current device, each compiled when it is first needed."""

    def __init__(self, variant: Variant) -> None:
        self._variant = variant
        self._launchers: dict[tuple[str, int], Callable[..., None]] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let gpureg launch the variant, and count its groups."""
        with mock.patch.multiple(cuda, _kernel=self.kernel, GROUP=self._variant.group):
            yield

    def kernel(self, name: str, device: int) -> Callable[..., None]:
        """Return what launches a kernel on as many blocks as the variant has; in place of the backend's own."""
        if (name, device) not in self._launchers:
            function = load(self._variant, name)
            most = most_blocks(function) if self._variant.one_wave else None
            self._launchers[name, device] = functools.partial(self._launch, function, most)
        return self._launchers[name, device]

    def _launch(self, function: Any, most: int | None, grid: tuple[int], block: tuple[int], arguments: Any) -> None:
        blocks = -(-grid[0] // self._variant.tiles)
        if most is not None:
            blocks = min(blocks, most)
        function((blocks,), (block[0], self._variant.tiles), arguments)


def load(variant: Variant, name: str) -> Any:
    """Return a kernel of a variant as CuPy's function."""
    architecture = f"--gpu-architecture=sm_{cp().cuda.Device().compute_capability}"
    sources = variant.sources(compiler.sources())
    program = compiler.find_nvrtc().build("penalty.cu", sources, (*compiler.OPTIONS, architecture), [name])
    module = cp().cuda.function.Module()
    module.load(program.cubin)
    return module.get_function(program.symbols[0])


def most_blocks(function: Any) -> int:
    """Return how many blocks of a kernel the device holds at a time."""
    on_each = cp().cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(function.ptr, cuda.THREADS, 0)
    return int(on_each * cp().cuda.Device().attributes["MultiProcessorCount"])


def run_of(kernel: Kernel, loaded: Loaded, what: What) -> Run:
    """Return the pass of a variant over a set of arrays, planned when it first meets them."""
    plans: dict[int, tuple[Any, Any]] = {}

    def run(arrays: Arrays) -> Any:
        with loaded.active():
            known = plans.get(id(arrays))
            if known is None:
                plan = backends.load("cuda").plan([Leaf(arrays.weights, _coefficients(what))])
                known = plans[id(arrays)] = plan, plan.bind([arrays.gradient])
            return _passed(kernel.mode, *known).total

    return run


def _coefficients(what: What) -> Coefficients:
    return Coefficients(what.l1, what.l2, 2 * what.l2)


def _passed(mode: Mode | None, plan: Any, gradients: Any) -> backends.Values:
    if mode is Mode.VALUE:
        values: backends.Values = plan.value(FLOAT64)
    elif mode is Mode.VALUE_AND_GRADIENT:
        values = plan.value_and_gradient(FLOAT64, gradients)
    else:
        values = plan.accumulate(FLOAT64, gradients)
    return values


# Bits


def sizes(dtype: str) -> list[list[int]]:
    """Return the elements of the tensors of each call: a ragged one, one of several groups, and many of about a tile.

    Many, for a sum in another order has other bits only now and then. The last ones are small.
    """
    tile = arithmetic.tile_size(selftest.dtypes()[dtype].itemsize)
    return [[3 * tile + 5], [1100 * tile + 77], [*(tile + number for number in range(200)), 100, 64, 8, 5, 0]]


@functools.cache
def inputs(dtype: str) -> list[tuple[Any, Any]]:
    """Return weights and gradients of each call: such as tell the order of a sum, any numbers, infinities and NaN."""
    return [
        (
            [content(name, size, dtype, seed) for seed, size in enumerate(call)],
            [content("weights", size, dtype, seed) for seed, size in enumerate(call)],
        )
        for call in sizes(dtype)
        for name in ("sparse", "wide", "random bits")
    ]


@functools.cache
def expected(name: str, what: What) -> list[str]:
    """Return the checksum of what NumPy makes of each call."""
    kernel = Kernel.of(name)
    return list(_checksums(backends.load("numpy"), kernel, what))


def _checksums(backend: backends.Backend, kernel: Kernel, what: What) -> Iterator[str]:
    for weights, start in inputs(DTYPES[kernel.weights]):
        gradients = [backend.from_numpy(gradient) for gradient in start]
        plan = backend.plan([Leaf(backend.from_numpy(each), _coefficients(what)) for each in weights])
        with np.errstate(all="ignore"):
            values = _passed(kernel.mode, plan, plan.bind(gradients))
        yield selftest.checksum(*map(backend.to_numpy, (values.total, values.each, *gradients)))


def wrong_bits(name: str, loaded: Loaded, run: Run, case: Case, given: Tensors) -> str | None:  # noqa: ARG001
    """Return which calls of a variant give other bits than NumPy's, None if none does."""
    with loaded.active():
        found = list(_checksums(backends.load("cuda"), Kernel.of(name), case.mode))
    wrong = [
        number for number, pair in enumerate(zip(found, expected(name, case.mode), strict=True)) if len({*pair}) > 1
    ]
    return f"other bits than NumPy's in calls {wrong} of {len(found)}" if wrong else None


# Timing


WRITES = {Mode.VALUE: "nothing", Mode.VALUE_AND_GRADIENT: "store", Mode.ACCUMULATE: "add"}


def case_of(name: str) -> Case:
    """Return the comparison that a kernel is timed in."""
    kernel = Kernel.of(name)
    dtype = DTYPES[kernel.weights]
    (case,) = (
        Case(what, dtype, ELEMENTS[dtype])
        for what in MODES
        if kernel.mode is not None and what.write == WRITES[kernel.mode]
        if compiler.penalty_pass(dtype, dtype, kernel.mode, l1=what.l1 != 0, l2=what.l2 != 0) == name
    )
    return case


def field(name: str, capability: int) -> Iterator[Contender]:
    """Yield what is shipped, each variant that the kernel is for and the device can run, and the memory limits."""
    what = case_of(name).mode
    for variant in (SHIPPED, *VARIANTS):
        if name in variant.kernels and variant.oldest <= capability:
            loaded = Loaded(variant)
            yield Contender(
                variant.name,
                "gpureg" if variant is SHIPPED else "other",
                run_of(Kernel.of(name), loaded, what),
                functools.partial(wrong_bits, name, loaded),
            )
    yield from gpu_contenders.limits(what)


def measure(run: gpu.Run, seconds: float) -> None:
    """Time all kernels that have variants, each for an equal share of the time."""
    for name in SHIPPED.kernels:
        case = case_of(name)
        try:
            contenders = list(field(name, int(cp().cuda.Device().compute_capability)))
            run.keep(case, contenders, race(case, contenders, seconds / len(SHIPPED.kernels)))
        except Exception as error:  # whatever it is, the other kernels are still wanted
            run.missing[str(case)] = f"{type(error).__name__}: {error}"
        run.write()
