"""What need not be installed and takes part on a GPU where it is: cuTENSOR through cupyx, cuda.compute, and JAX."""

import functools
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

from bench.cases import Case, Mode
from bench.gpu_checks import Run, plain_bound, wrong_penalty
from bench.gpu_inputs import Arrays, Tensors, compute_dtype, cp, forget


def absent() -> dict[str, str]:
    """Return which of them do not take part."""
    found = {"cuTENSOR through cupyx": cutensor(), "cuda.compute": cuda_compute(), "JAX": jax()}
    return {name: "not installed, or not for a GPU" for name, module in found.items() if module is None}


def _module(name: str) -> Any:
    """Return a module, None if it or what it needs is not there."""
    try:
        return import_module(name)
    except Exception:  # a library of CUDA fails in its own ways where a part of it is missing
        return None


@functools.cache
def cutensor() -> Any:
    """Return cupyx's cuTENSOR, None without it."""
    return _module("cupyx.cutensor")


@functools.cache
def cuda_compute() -> Any:
    """Return `cuda.compute`, the parallel algorithms of cuda-cccl, None without it."""
    module = _module("cuda.compute")
    return module if hasattr(module, "reduce_into") else None


@functools.cache
def jax() -> Any:
    """Return JAX, None if it is not installed for a GPU."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes most of the memory at once
    module = _module("jax")
    try:
        return module if module is not None and module.default_backend() == "gpu" else None
    except RuntimeError:
        return None


# cuTENSOR: a reduction of absolute values, and a contraction of the weights with themselves


def cutensor_values(mode: Mode, wide: Callable[[Arrays], Any]) -> dict[str, Run]:
    """Return cuTENSOR's forms of a value by name; `wide` gives the weights in the dtype that it computes in."""
    library = cutensor()
    if library is None or 0 not in (mode.l1, mode.l2):
        return {}

    def absolute(a: Arrays) -> Any:
        w = wide(a)
        operator = import_module("cupy.cuda.cutensor").OP_ABS
        return library.reduction(mode.l1, w, ("i",), 0.0, cp().empty((), w.dtype), (), op_A=operator)

    def squares(a: Arrays) -> Any:
        w = wide(a)
        return library.contraction(mode.l2, w, ("i",), w, ("i",), 0.0, cp().empty((), w.dtype), ())

    if mode.l2 == 0:
        return {"cupyx.cutensor.reduction of w by OP_ABS and OP_ADD": absolute}
    return {"cupyx.cutensor.contraction of w with itself": squares}


# cuda.compute: a reduction of an iterator over terms; it has no pass that also writes


def cuda_compute_values(case: Case) -> dict[str, Run]:
    """Return the reduction of `cuda.compute` by name; it takes no Python function of bfloat16."""
    library, mode = cuda_compute(), case.mode
    if library is None or mode.write != "nothing" or case.itemsize == 2:
        return {}
    number = compute_dtype(case.dtype).type
    l1, l2, zero = number(mode.l1), number(mode.l2), np.zeros(1, number)

    # No term with a coefficient of zero, and none that is decided when it runs: each is compiled as it stands here.
    def absolute(x: Any) -> Any:
        return l1 * abs(x)

    def square(x: Any) -> Any:
        return l2 * x * x

    def both(x: Any) -> Any:
        return l1 * abs(x) + l2 * x * x

    term = absolute if mode.l2 == 0 else square if mode.l1 == 0 else both

    def run(a: Arrays) -> Any:
        w, result = a.weights, cp().empty(1, number)
        terms = library.TransformIterator(w, term)
        library.reduce_into(d_in=terms, d_out=result, num_items=w.size, op=library.OpKind.PLUS, h_init=zero)
        return result[0]

    code = " + ".join(["l1 * abs(w)"] * (mode.l1 != 0) + ["l2 * w * w"] * (mode.l2 != 0))
    return {f"cuda.compute.reduce_into of {code}, a TransformIterator": run}


# JAX, which has streams of its own, and gradients too: those that are added to are donated


class JitRun:
    """The plain expression, compiled by `jax.jit`, on JAX's own arrays: weights and gradients are crossed once."""

    NAME = "jax.jit of the plain expression"

    def __init__(self, case: Case) -> None:
        self._mode = case.mode
        self._arrays: dict[int, list[Any]] = {}
        donated = (1,) if case.mode.write == "add" else ()
        self._compiled = jax().jit(self._expression, donate_argnums=donated)

    def _expression(self, w: Any, g: Any = None) -> Any:
        mode, numpy = self._mode, jax().numpy
        x = w.astype(compute_dtype(w.dtype.name))
        terms = [mode.l1 * numpy.abs(x).sum()] * (mode.l1 != 0) + [mode.l2 * numpy.square(x).sum()] * (mode.l2 != 0)
        value = sum(terms)
        if mode.write == "nothing":
            return value
        gradient = mode.l1 * numpy.sign(x) + 2 * mode.l2 * x
        return value, (gradient if g is None else g.astype(x.dtype) + gradient).astype(w.dtype)

    def __call__(self, arrays: Arrays) -> Any:
        """Return the value, and keep the gradient."""
        if id(arrays) not in self._arrays:
            forget()  # and wait until the arrays are made
            pair = arrays.weights, arrays.gradient
            self._arrays[id(arrays)] = [jax().numpy.array(to_jax(array)) for array in pair]
        own = self._arrays[id(arrays)]
        if self._mode.write == "nothing":
            return self._compiled(own[0])
        value, own[1] = self._compiled(*own) if self._mode.write == "add" else self._compiled(own[0])
        return value

    def seen(self, arrays: Arrays) -> Any:
        """Return the value, and let the arrays have the gradient, to be checked."""
        self._arrays.clear()
        value = float(self(arrays))
        if self._mode.write != "nothing":
            arrays.gradient[...] = from_jax(self._arrays[id(arrays)][1], arrays.gradient.dtype)
        return value

    def wrong(self, run: Run, case: Case, given: Tensors) -> str | None:
        """Check what a call gives."""
        seen = self.seen if run is self else run
        return wrong_penalty(plain_bound, seen, case, given)


def to_jax(array: Any) -> Any:
    """Return an array of CuPy as one of JAX; bfloat16 crosses as integers."""
    if array.dtype.name == "bfloat16":
        whole = jax().numpy.from_dlpack(array.view("i2"))
        return jax().lax.bitcast_convert_type(whole, jax().numpy.bfloat16)
    return jax().numpy.from_dlpack(array)


def from_jax(array: Any, dtype: Any) -> Any:
    """Return an array of JAX as one of CuPy."""
    array = jax().block_until_ready(array)
    if np.dtype(dtype).name == "bfloat16":
        return cp().from_dlpack(jax().lax.bitcast_convert_type(array, jax().numpy.int16)).view(dtype)
    return cp().from_dlpack(array)


def jit_runs(case: Case) -> Iterator[JitRun]:
    """Yield JAX's form, where it is there; it has float64 only on request, and then for all."""
    if jax() is not None and case.dtype != "float64":
        yield JitRun(case)
