"""What runs against what on a GPU: gpureg, CuPy as written and in its best forms, PyTorch, and the memory limit.

A name is the code for weights `w`, a gradient `g` and a scratch array `s`. Plain expressions on 16-bit weights first
make a float32 `w` of them, for sums in 16 bits overflow or stop to grow; kernels of one's own read them as they are.
"""

import functools
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import gpureg
from bench import gpu_checks as checks
from bench import gpu_peers, torch_contenders
from bench.cases import Case, Mode, Role
from bench.gpu_checks import Contender, Run
from bench.gpu_inputs import Arrays, compute_dtype, cp, is_lean, words


def contenders(case: Case, *, compiled: bool) -> Iterator[Contender]:
    """Yield all that run in a case, peers where they are installed, and on request what takes seconds to compile.

    Where weights are so large that there is room for a gradient alone, only what makes no temporaries.
    """
    mode = case.mode
    yield _gpureg(mode)
    if is_lean(case.dtype, case.elements):
        yield from (_plain("best", name, run) for name, run in _kernels(case).items())
        yield from limits(mode)
        return
    yield from (_plain("best", name, run) for name, run in _best(case).items())
    yield from (_plain("naive", name, run) for name, run in _naive(mode).items())
    if torch_contenders.torch is not None:
        yield from (_plain("other", name, run) for name, run in torch_contenders.plain(case).items())
    if compiled:
        yield from _compiled(case)
    yield from limits(mode)


def _compiled(case: Case) -> Iterator[Contender]:
    if torch_contenders.torch is not None:
        yield from (_plain("other", name, run) for name, run in torch_contenders.compiled(case).items())
    yield from (_plain("other", name, run) for name, run in gpu_peers.cuda_compute_values(case).items())
    for run in gpu_peers.jit_runs(case):
        yield Contender(run.NAME, "other", run, run.wrong, gpu_peers.jax().block_until_ready)


def _plain(role: Role, name: str, run: Run) -> Contender:
    return Contender(name, role, run, functools.partial(checks.wrong_penalty, checks.plain_bound))


def _gpureg(mode: Mode) -> Contender:
    kinds: dict[tuple[bool, bool], gpureg.Regularizer] = {
        (True, False): gpureg.L1(mode.l1),
        (False, True): gpureg.L2(mode.l2),
    }
    regularizer = kinds.get((mode.l1 != 0, mode.l2 != 0), gpureg.L1L2(mode.l1, mode.l2))
    calls: dict[str, tuple[str, Run]] = {
        "nothing": ("(w)", lambda a: regularizer(a.weights)),
        "store": (".value_and_grad(w, out=g)", lambda a: regularizer.value_and_grad(a.weights, out=a.gradient)[0]),
        "add": (".accumulate_grad(w, g)", lambda a: regularizer.accumulate_grad(a.weights, a.gradient)),
    }
    call, run = calls[mode.write]
    given = ", ".join(name for name in ("l1", "l2") if getattr(mode, name))
    name = f"gpureg.{type(regularizer).__name__}({given}){call}"
    return Contender(name, "gpureg", run, functools.partial(checks.wrong_penalty, checks.gpureg_bound))


# CuPy as most write it


def _naive(mode: Mode) -> dict[str, Run]:
    l1, l2 = mode.l1, mode.l2
    if mode.write == "nothing":
        if l2 == 0:
            return {"l1 * cupy.abs(w).sum()": lambda a: l1 * cp().abs(_cast(a)).sum()}
        if l1 == 0:
            return {"l2 * cupy.square(w).sum()": lambda a: l2 * cp().square(_cast(a)).sum()}
        return {"l1 * cupy.abs(w).sum() + l2 * cupy.square(w).sum()": lambda a: _naive_value(_cast(a), mode)}

    def store(a: Arrays) -> Any:
        w = _cast(a)
        a.gradient[...] = l1 * cp().sign(w) + 2 * l2 * w
        return _naive_value(w, mode)

    def add(a: Arrays) -> Any:
        w, g = _cast(a), a.gradient
        g += (l1 * cp().sign(w) + 2 * l2 * w).astype(g.dtype, copy=False)
        return _naive_value(w, mode)

    if mode.write == "store":
        return {"g[...] = l1 * cupy.sign(w) + 2 * l2 * w; and the value as written": store}
    return {"g += l1 * cupy.sign(w) + 2 * l2 * w; and the value as written": add}


def _naive_value(w: Any, mode: Mode) -> Any:
    return mode.l1 * cp().abs(w).sum() + mode.l2 * cp().square(w).sum()


def _cast(a: Arrays) -> Any:
    """Return the weights in the dtype that plain expressions compute in: a temporary, if it is not theirs."""
    return a.weights if a.wide is a.weights else a.weights.astype(a.wide.dtype)


# CuPy in its best forms: in place and by cuBLAS, or by kernels of one's own


def _best(case: Case) -> dict[str, Run]:
    mode = case.mode
    if mode.write == "nothing":
        others = gpu_peers.cutensor_values(mode, _into_wide)
        return {**_in_place_values(mode), **_blas_values(mode), **_kernels(case), **others}
    return {**_in_place_gradient(mode), **_kernels(case)}


def _kernels(case: Case) -> dict[str, Run]:
    return _kernel_values(case) if case.mode.write == "nothing" else _kernel_gradient(case)


def _into_wide(a: Arrays) -> Any:
    """Return the weights in the dtype that plain expressions compute in, without a temporary."""
    if a.wide is not a.weights:
        a.wide[...] = a.weights
    return a.wide


def _in_place_values(mode: Mode) -> dict[str, Run]:
    l1, l2 = mode.l1, mode.l2
    if l2 == 0:
        return {"l1 * cupy.abs(w, out=s).sum()": lambda a: l1 * cp().abs(_into_wide(a), out=a.scratch).sum()}
    if l1 == 0:
        return {"l2 * cupy.dot(w, w)": lambda a: l2 * _dot(cp(), _into_wide(a))}
    return {}


def _blas_values(mode: Mode) -> dict[str, Run]:
    l1, l2 = mode.l1, mode.l2
    if l2 == 0:
        return {"l1 * cupy.cublas.asum(w)": lambda a: l1 * _cublas().asum(_into_wide(a))}
    if l1 == 0:
        return {
            "l2 * cupy.cublas.dot(w, w)": lambda a: l2 * _dot(_cublas(), _into_wide(a)),
            "l2 * cupy.cublas.nrm2(w) ** 2": lambda a: l2 * _cublas().nrm2(_into_wide(a)) ** 2,
        }
    return {"l1 * cupy.cublas.asum(w) + l2 * cupy.cublas.dot(w, w)": lambda a: _blas_value(_into_wide(a), mode)}


def _blas_value(w: Any, mode: Mode) -> Any:
    return mode.l1 * _cublas().asum(w) + mode.l2 * _dot(_cublas(), w)


def _dot(module: Any, w: Any) -> Any:
    return module.dot(w, w)


@functools.cache
def _cublas() -> Any:
    """Return CuPy's cuBLAS, when it is called: without it the others still run."""
    return import_module("cupy.cublas")


def _in_place_gradient(mode: Mode) -> dict[str, Run]:
    l1, l2 = mode.l1, mode.l2

    def store(a: Arrays) -> Any:
        w, g, s = _into_wide(a), a.gradient, a.scratch
        value = _blas_value(w, mode)
        if w is not a.weights:
            g[...] = _in_scratch(w, s, mode)
            return value
        cp().sign(w, out=g)
        g *= l1
        cp().multiply(w, 2 * l2, out=s)
        g += s
        return value

    def add(a: Arrays) -> Any:
        w, g, s = _into_wide(a), a.gradient, a.scratch
        value = _blas_value(w, mode)
        if w is not a.weights:
            gradient = _in_scratch(w, s, mode)
            gradient += g.astype(gradient.dtype)
            g[...] = gradient
            return value
        cp().sign(w, out=s)
        s *= l1
        g += s
        cp().multiply(w, 2 * l2, out=s)
        g += s
        return value

    if mode.write == "store":
        return {"cupy.sign(w, out=g); g *= l1; cupy.multiply(w, 2 * l2, out=s); g += s; and asum and dot": store}
    return {"cupy.sign(w, out=s); s *= l1; g += s; cupy.multiply(w, 2 * l2, out=s); g += s; and asum and dot": add}


def _in_scratch(w: Any, s: Any, mode: Mode) -> Any:
    """Return the gradient in `s`, overwriting `w`: the best form where `w` is but a float32 copy."""
    cp().sign(w, out=s)
    s *= mode.l1
    w *= 2 * mode.l2
    s += w
    return s


# How kernels read and write an element, by its dtype: the parameter's type, the expression read, the one written.
_ELEMENTS = {
    "float16": ("float16", "static_cast<float>({})", "{} = static_cast<float16>({})"),
    "bfloat16": (
        "uint16",
        "__uint_as_float(static_cast<unsigned>({}) << 16)",
        "{{ const unsigned b = __float_as_uint({1}); {0} = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16; }}",
    ),
    "float32": ("float32", "{}", "{} = {}"),
    "float64": ("float64", "{}", "{} = {}"),
}


def _raw(array: Any) -> Any:
    """Return an array as kernels take it: bfloat16 as its bits."""
    return array.view("u2") if array.dtype.name == "bfloat16" else array


@functools.cache
def _value_kernel(dtype: str, l1: float, l2: float) -> Any:
    """Return a kernel of one argument: only for such does CuPy take its fast reductions, so the rest is in the code."""
    kind, read, _ = _ELEMENTS[dtype]
    c = compute_dtype(dtype).name
    x, suffix = read.format("w"), "" if c == "float64" else "f"
    terms = [f"{l1!r}{suffix} * abs({x})"] * (l1 != 0) + [f"{l2!r}{suffix} * {x} * {x}"] * (l2 != 0)
    name = f"value_{dtype}_{l1 != 0:d}{l2 != 0:d}"
    return cp().ReductionKernel(f"{kind} w", f"{c} y", " + ".join(terms), "a + b", "y = a", "0", name)


@functools.cache
def _gradient_kernel(dtype: str, write: str) -> Any:
    kind, read, written = _ELEMENTS[dtype]
    c = {"float32": "float", "float64": "double"}[compute_dtype(dtype).name]
    start = read.format("old") + " + " if write == "add" else ""
    code = f"const {c} x = {read.format('w')}; const {c} r = {start}l1 * ((x > 0) - (x < 0)) + 2 * l2 * x; "
    numbers = f"{compute_dtype(dtype).name} l1, {compute_dtype(dtype).name} l2"
    return cp().ElementwiseKernel(
        f"{kind} w, {kind} old, {numbers}", f"{kind} g", code + written.format("g", "r"), f"gradient_{dtype}_{write}"
    )


def _kernel_values(case: Case) -> dict[str, Run]:
    mode = case.mode
    if case.dtype != "float32" and 0 in (mode.l1, mode.l2):
        return {}  # each takes seconds to compile
    kernel = _value_kernel(case.dtype, mode.l1, mode.l2)
    code = " + ".join(["l1 * abs(w)"] * (mode.l1 != 0) + ["l2 * w * w"] * (mode.l2 != 0))
    return {f"cupy.ReductionKernel of {code}": lambda a: kernel(_raw(a.weights))}


def _kernel_gradient(case: Case) -> dict[str, Run]:
    mode = case.mode
    value, gradient = _value_kernel(case.dtype, mode.l1, mode.l2), _gradient_kernel(case.dtype, mode.write)

    def run(a: Arrays) -> Any:
        w, g = _raw(a.weights), _raw(a.gradient)
        gradient(w, g, mode.l1, mode.l2, g)
        return value(w)

    sign = "+=" if mode.write == "add" else "="
    return {f"cupy.ElementwiseKernel of g {sign} l1 * sign(w) + 2 * l2 * w; cupy.ReductionKernel of the value": run}


# The memory limit: plain passes over the same bytes, the fastest of which it is


def limits(mode: Mode) -> Iterator[Contender]:
    """Yield the plain passes that a mode is measured against."""
    passes: dict[str, Run]
    if mode.write == "nothing":
        passes, wrong = {"cupy.sum(w)": _read, "torch: w.sum()": torch_contenders.read}, checks.wrong_sum
    elif mode.write == "store":
        passes, wrong = {"a copy from w to g": _copy, "torch: g.copy_(w)": torch_contenders.copy}, checks.wrong_copy
    else:
        passes, wrong = {"cupy.add(g, w, out=g)": _add, "torch: g.add_(w)": torch_contenders.add}, checks.wrong_add
    for name, run in passes.items():
        if torch_contenders.torch is not None or not name.startswith("torch"):
            yield Contender(name if "copy" in name else f"{name}, as 64-bit integers", "limit", run, wrong)


def _read(a: Arrays) -> Any:
    return words(a.weights).sum()


def _copy(a: Arrays) -> None:
    a.gradient.data.copy_from_device_async(a.weights.data, a.weights.nbytes)


def _add(a: Arrays) -> None:
    g = words(a.gradient)
    cp().add(g, words(a.weights), out=g)
