"""PyTorch and JAX in the comparison of one tensor on the CPU, where they are installed: the expressions as on a GPU.

PyTorch works on the memory of the NumPy arrays; JAX has arrays of its own, made once.
"""

import functools
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from bench import checks, torch_contenders
from bench.cases import Case, Contender
from bench.inputs import Arrays, Inputs
from bench.jax_contenders import JitRun

COMPILED = 2**26
"""Elements of the weights that torch.compile is tried on: it compiles for each case anew, and takes its time."""


class OnTensors(NamedTuple):
    """Arrays as PyTorch takes them."""

    w_tensor: Any
    g_tensor: Any


def contenders(case: Case) -> Iterator[Contender]:
    """Yield what takes part in a case, if it is installed."""
    if torch_contenders.torch is not None:
        forms = torch_contenders.plain(case)
        if case.elements == COMPILED:
            forms |= torch_contenders.compiled(case)
        for name, run in forms.items():
            if case.itemsize == 2 and name.startswith("torch: g."):
                continue  # on the CPU it rounds to 16 bits more often than a gradient may be off
            call = _on_tensors(run, lambda a: (a.weights, a.gradient))
            bound = checks.lanes_bound if "norm" in name else checks.plain_bound
            yield Contender(name, "other", call, functools.partial(checks.wrong_penalty, bound))
    if jax() is not None and case.dtype != "float64":  # which JAX has on request only, and then for all
        run = HostJit(jax(), case.mode)
        yield Contender(run.NAME, "other", run, run.wrong)


def limits(case: Case) -> Iterator[Contender]:
    """Yield PyTorch's plain passes, on as many threads as it finds worth it."""
    if torch_contenders.torch is None:
        return
    name, pass_, wrong = {
        "nothing": ("torch: torch.dot(w, w)", _dot, checks.wrong_dot),
        "store": ("torch: g.copy_(w)", torch_contenders.copy, checks.wrong_copy),
        "add": ("torch: g.add_(w)", _add, checks.wrong_add),
    }[case.mode.write]
    yield Contender(name, "limit", _on_tensors(pass_, checks.raw), wrong)


def _dot(a: OnTensors) -> Any:
    return torch_contenders.torch.dot(a.w_tensor, a.w_tensor)


def _add(a: OnTensors) -> None:
    a.g_tensor.add_(a.w_tensor)


def _on_tensors(run: Callable[[Any], Any], pair: Callable[[Arrays], tuple[Any, Any]]) -> Callable[[Arrays], Any]:
    """Return a run over a pair of arrays, of which tensors are made at its first call."""
    known: dict[int, tuple[Arrays, OnTensors]] = {}  # with the arrays, so that none takes the number of another

    def on(arrays: Arrays) -> Any:
        found = known.get(id(arrays))
        if found is None:
            tensors = OnTensors(*map(torch_contenders.tensor, pair(arrays)))
            found = known[id(arrays)] = arrays, tensors
        return run(found[1])

    return on


@functools.cache
def jax() -> Any:
    """Return JAX, None without it."""
    try:
        return import_module("jax")
    except ModuleNotFoundError:
        return None


class HostJit(JitRun):
    """JAX's form on the CPU, where a call is done when it returns."""

    def _made(self, arrays: Arrays) -> list[Any]:
        return [jax().numpy.array(each) for each in (arrays.weights, arrays.gradient)]

    def _finished(self, results: Any) -> Any:
        return jax().block_until_ready(results)

    def _gradient(self, array: Any, arrays: Arrays) -> Any:  # noqa: ARG002
        return np.asarray(array)

    def _wrong(self, run: Callable[[Arrays], Any], case: Case, given: Inputs) -> str | None:
        return checks.wrong_penalty(checks.plain_bound, run, case, given)
