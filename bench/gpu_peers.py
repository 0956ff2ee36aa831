"""What need not be installed and takes part on a GPU where it is: cuTENSOR through cupyx, cuda.compute, JAX, apex."""

import functools
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

from bench.cases import Case, Mode
from bench.gpu_checks import Run, plain_bound, wrong_penalty
from bench.gpu_inputs import Arrays, Tensors, compute_dtype, cp, forget
from bench.jax_contenders import JitRun


def absent() -> dict[str, str]:
    """Return which of them do not take part."""
    found = {"cuTENSOR through cupyx": cutensor(), "cuda.compute": cuda_compute(), "JAX": jax(), "apex": apex()}
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
def apex() -> Any:
    """Return the optimizers of NVIDIA's apex for PyTorch, None without it."""
    module = _module("apex.optimizers")
    return module if hasattr(module, "FusedSGD") else None


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


# JAX, which has streams of its own, and gradients too


class DeviceJit(JitRun):
    """JAX's form on a GPU."""

    def _made(self, arrays: Arrays) -> list[Any]:
        forget()  # and wait until the arrays are made
        return [jax().numpy.array(to_jax(array)) for array in (arrays.weights, arrays.gradient)]

    def _gradient(self, array: Any, arrays: Arrays) -> Any:
        return from_jax(array, arrays.gradient.dtype)

    def _wrong(self, run: Run, case: Case, given: Tensors) -> str | None:
        return wrong_penalty(plain_bound, run, case, given)


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


def jit_runs(case: Case) -> Iterator[DeviceJit]:
    """Yield JAX's form, where it is there; it has float64 only on request, and then for all."""
    if jax() is not None and case.dtype != "float64":
        yield DeviceJit(jax(), case.mode)
