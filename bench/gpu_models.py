"""Whole models on a GPU: the contenders of `bench/model_contenders.py` there, and a planned step as a CUDA graph."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from bench import checks, gpu_contenders, gpu_inputs, gpu_peers, gpu_race, torch_contenders, torch_steps
from bench.gpu_checks import PART, START
from bench.gpu_inputs import Arrays, Tensors, cp
from bench.gpu_race import Race, Runs
from bench.inputs import chunks
from bench.model_contenders import Contender, Entry, Place, enter_limit, field, planned, wrong
from bench.model_inputs import Case, Model, placed, views

LIMIT_BYTES = 2**31
"""Models are scaled to weights of at most so many bytes; gradients take as many again."""

ALIGNED = 128
"""Tensors begin at multiples of so many elements, as CuPy's and PyTorch's allocators have it."""

MOST_TENSORS = 1000
"""Of all sets together, unless one has more: a loop over the 5,000 of one takes long enough."""

CASES = tuple(
    Case(model, adds, limit_bytes=LIMIT_BYTES)
    for model in ("gpt2", "small", "resnet50", "llama-3-8b", "dlrm")
    for adds in (True, False)
)
"""The most telling ones first."""

STEPS = tuple(
    torch_steps.Case(case.model, step=case.step, limit_bytes=LIMIT_BYTES)
    for case in torch_steps.CASES
    if torch_contenders.torch is not None
)
"""PyTorch's training steps, where it is installed."""


def needed_bytes(case: Case) -> int:
    """Return the memory that a comparison takes: each set, JAX's copy of it, temporaries and checks."""
    one_set = 4 * placed(case.parameters, ALIGNED)[1]
    return 4 * set_count(case) * one_set + 4 * one_set + 4 * 2**30


def set_count(case: Case) -> int:
    """Return how many sets a round takes."""
    fit = gpu_inputs.set_count(4 * placed(case.parameters, ALIGNED)[1])
    return max(1, min(fit, MOST_TENSORS // len(case.parameters)))


def sets(case: Case) -> tuple[Model, ...]:
    """Return the sets of arrays that calls take turns on; only the last are kept, for they may be gigabytes."""
    return _sets(dataclasses.replace(case, adds=False))


@functools.lru_cache(maxsize=1)
def _sets(case: Case) -> tuple[Model, ...]:
    forget()
    places, stop = placed(case.parameters, ALIGNED)
    largest = max(math.prod(shape) for _, shape in places.values())
    scratch, start = cp().zeros(largest, np.float32), cp().full(largest, START, np.float32)
    starts = {name: start[: math.prod(shape)].reshape(shape) for name, (_, shape) in places.items()}

    def one() -> Model:
        w = gpu_inputs.filled("float32", -(-stop // gpu_inputs.BLOCK) * gpu_inputs.BLOCK)
        g = cp().zeros(w.size, np.float32)
        read, added = (array[: case.elements // 2 * 2] for array in (w, g))  # in words of 8 bytes
        flat = Arrays(read, added, scratch, read, torch_contenders.tensor(read), torch_contenders.tensor(added))
        return Model(views(w, places), views(g, places), starts, flat)

    return tuple(one() for _ in range(set_count(case)))


def forget() -> None:
    """Give back the memory of the last model."""
    _sets.cache_clear()
    _sum_squares_of.cache_clear()
    gpu_inputs.forget()


# Checks


def _sum_squares(case: Case, _: Model) -> float:
    return _sum_squares_of(dataclasses.replace(case, adds=False))


@functools.lru_cache(maxsize=1)
def _sum_squares_of(case: Case) -> float:
    """Return the sum of the squares of all weights that are penalised, which all sets have alike.

    It is CuPy's in float64: in whatever order it adds, its error is nothing beside those that are looked for.
    """
    weights = sets(case)[0].weights
    flat = (weights[name].reshape(-1) for name in case.penalised)
    return math.fsum(
        float(cp().square(w[part].astype(np.float64)).sum()) for w in flat for part in chunks(w.size, PART)
    )


def _wrong_limit(wrong: Callable[..., str | None], case: Case, model: Model, entry: Entry) -> str | None:
    given = Tensors((model.flat,), 0.0, 0.0, _sum_words(model.flat.weights))
    return wrong(lambda _: entry.run(), case.single(), given)


def _sum_words(weights: Any) -> int:
    """Return the sum of an array's bytes as integers of 64 bits, from those of its halves of 32."""
    halves = weights.view(np.uint32)
    low, high = (int(halves[start::2].sum(dtype=np.uint64)) for start in (0, 1))
    return (low + (high << 32)) % 2**64


# Contenders


def _limits(case: Case) -> Iterator[Contender]:
    for each in gpu_contenders.limits(case.single().mode):
        yield Contender(each.name, "limit", partial(enter_limit, each.run), partial(_wrong_limit, each.wrong))


def place(*, compiled: bool) -> Place:
    """Return how contenders get at a GPU's memory; JAX takes part on request, for it takes seconds to compile."""
    return Place(
        xp=cp(),
        name="cupy",
        torch=torch_contenders.torch,
        jax=gpu_peers.jax() if compiled else None,
        tensor=torch_contenders.tensor,
        to_jax=lambda array: gpu_peers.jax().numpy.array(gpu_peers.to_jax(array)),
        from_jax=lambda array: gpu_peers.from_jax(array, np.float32),
        wait_for_jax=lambda results: results,
        sum_squares=_sum_squares,
        norm_bound=checks.plain_bound,
        limits=_limits,
    )


def contenders(case: Case, *, compiled: bool) -> Iterator[Contender]:
    """Yield all that run in a case."""
    here = place(compiled=compiled)
    if isinstance(case, torch_steps.Case):
        yield from torch_steps.field(case, here, compiled=compiled)
        return
    for number, each in enumerate(field(case, here)):
        yield each
        if number == 0:
            call = ".accumulate_grad(grads)" if case.adds else "()"
            check = partial(wrong, here, checks.gpureg_bound)
            yield Contender(f"CUDA graph of Penalty(weights, rules){call}", "other", _enter_graph, check)


def _enter_graph(case: Case, model: Model) -> Entry:
    """Return what replays a planned step, captured once."""
    entry, stream = planned(case.adds, case, model), cp().cuda.Stream(non_blocking=True)
    with stream:
        entry.run()  # which loads the kernels and sends the tables
        stream.synchronize()
        stream.begin_capture()
        try:
            total = entry.run()
        finally:
            graph = stream.end_capture()

    def run() -> Any:
        graph.launch()  # on the current stream
        return total

    return entry._replace(run=run)


def race(case: Case, entrants: list[Contender], seconds: float) -> Race:
    """Check all contenders of a case, then time them in turn for so many seconds."""
    return gpu_race.entered({each.name: partial(_enter, case, each) for each in entrants}, seconds)


def _enter(case: Case, contender: Contender) -> Runs | str:
    first, *_ = models = sets(case)
    first.restart()
    entries = [contender.enter(case, model) for model in models]
    first.restart()  # what was entered may have made a step
    wait = gpu_peers.jax().block_until_ready if contender.apart else None
    return contender.wrong(case, first, entries[0]) or Runs([entry.run for entry in entries], wait)
