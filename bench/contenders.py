"""What runs against what: gpureg, the plain expressions that people write, and the memory limit.

A name is the code for weights `w`, a gradient `g` and a scratch array `s`. NumPy's expressions on 16-bit weights first
make a float32 `w` of them: sums in 16 bits overflow, or stop to grow.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gpureg
from bench import checks, cpu_peers
from bench.cases import Case, Contender, Mode, Role
from bench.checks import raw
from bench.inputs import Arrays, chunks, core_count, xp

WORTH_THREADS = 2**23
"""Bytes of weights from which a limit is tried on all cores; below, the threads cost more than they save."""


def contenders(case: Case) -> list[Contender]:
    """Return all that run in a case."""
    mode = case.mode
    plain = {"nothing": _plain_values, "store": _plain_store, "add": _plain_add}[mode.write]
    return [_gpureg(mode), *plain(mode), *_peers(case), *limits(case)]


def _peers(case: Case) -> Iterator[Contender]:
    if xp.__name__ == "numpy":
        yield from cpu_peers.contenders(case)


# gpureg and the plain expressions


def _gpureg(mode: Mode) -> Contender:
    kind, given = {(True, False): (gpureg.L1, ("l1",)), (False, True): (gpureg.L2, ("l2",))}.get(
        (mode.l1 != 0, mode.l2 != 0), (gpureg.L1L2, ("l1", "l2"))
    )
    regularizer: gpureg.Regularizer = kind(*(getattr(mode, name) for name in given))
    calls: dict[str, tuple[str, Callable[[Arrays], Any]]] = {
        "nothing": ("(w)", lambda a: regularizer(a.weights)),
        "store": (".value_and_grad(w, out=g)", lambda a: regularizer.value_and_grad(a.weights, out=a.gradient)[0]),
        "add": (".accumulate_grad(w, g)", lambda a: regularizer.accumulate_grad(a.weights, a.gradient)),
    }
    call, run = calls[mode.write]
    name = f"gpureg.{kind.__name__}({', '.join(given)}){call}"
    return Contender(name, "gpureg", run, functools.partial(checks.wrong_penalty, checks.gpureg_bound))


def _plain(role: Role, name: str, run: Callable[[Arrays], Any]) -> Contender:
    return Contender(name, role, run, functools.partial(checks.wrong_penalty, checks.plain_bound))


def _plain_values(mode: Mode) -> list[Contender]:
    l1, l2 = mode.l1, mode.l2
    if l2 == 0:
        return [
            _plain("best", "l1 * np.abs(w, out=s).sum()", lambda a: l1 * _abs_sum(_into_wide(a), a.scratch)),
            _plain("naive", "l1 * np.abs(w).sum()", lambda a: l1 * xp.abs(_cast(a)).sum()),
            _plain("other", "l1 * np.linalg.norm(w, 1)", lambda a: l1 * xp.linalg.norm(_cast(a), 1)),
        ]
    if l1 == 0:
        return [
            _plain("best", "l2 * np.dot(w, w)", lambda a: l2 * _self_dot(_into_wide(a))),
            _plain("naive", "l2 * np.square(w).sum()", lambda a: l2 * xp.square(_cast(a)).sum()),
        ]
    return [
        _plain(
            "best",
            "l1 * np.abs(w, out=s).sum() + l2 * np.dot(w, w)",
            lambda a: _best_value(_into_wide(a), a.scratch, mode),
        ),
        _plain(
            "naive",
            "l1 * np.abs(w).sum() + l2 * np.square(w).sum()",
            lambda a: _naive_value(_cast(a), mode),
        ),
    ]


def _plain_store(mode: Mode) -> list[Contender]:
    def best(a: Arrays) -> Any:
        w, g, s = _into_wide(a), a.gradient, a.scratch
        value = _best_value(w, s, mode)
        if w is not a.weights:
            xp.copyto(g, _gradient_in_place(w, s, mode), casting="unsafe")
            return value
        xp.sign(w, out=g)
        g *= mode.l1
        xp.multiply(w, 2 * mode.l2, out=s)
        g += s
        return value

    def naive(a: Arrays) -> Any:
        w = _cast(a)
        a.gradient[...] = mode.l1 * xp.sign(w) + 2 * mode.l2 * w
        return _naive_value(w, mode)

    return [
        _plain("best", "np.sign(w, out=g); g *= l1; np.multiply(w, 2 * l2, out=s); g += s; and the best value", best),
        _plain("naive", "g[...] = l1 * np.sign(w) + 2 * l2 * w; and the naive value", naive),
    ]


def _plain_add(mode: Mode) -> list[Contender]:
    def best(a: Arrays) -> Any:
        w, g, s = _into_wide(a), a.gradient, a.scratch
        value = _best_value(w, s, mode)
        if w is not a.weights:
            g += _gradient_in_place(w, s, mode)
            return value
        xp.sign(w, out=s)
        s *= mode.l1
        g += s
        xp.multiply(w, 2 * mode.l2, out=s)
        g += s
        return value

    def naive(a: Arrays) -> Any:
        w, g = _cast(a), a.gradient
        g += mode.l1 * xp.sign(w) + 2 * mode.l2 * w
        return _naive_value(w, mode)

    return [
        _plain(
            "best",
            "np.sign(w, out=s); s *= l1; g += s; np.multiply(w, 2 * l2, out=s); g += s; and the best value",
            best,
        ),
        _plain("naive", "g += l1 * np.sign(w) + 2 * l2 * w; and the naive value", naive),
    ]


def _cast(a: Arrays) -> Any:
    """Return the weights in the dtype that plain expressions compute in: a temporary, if it is not theirs."""
    return a.weights if a.wide is a.weights else a.weights.astype(a.wide.dtype)


def _into_wide(a: Arrays) -> Any:
    """Return the weights in the dtype that plain expressions compute in, without a temporary."""
    if a.wide is not a.weights:
        xp.copyto(a.wide, a.weights)
    return a.wide


def _abs_sum(w: Any, s: Any) -> Any:
    return xp.abs(w, out=s).sum()


def _self_dot(w: Any) -> Any:
    return xp.dot(w, w)


def _best_value(w: Any, s: Any, mode: Mode) -> Any:
    return mode.l1 * _abs_sum(w, s) + mode.l2 * _self_dot(w)


def _naive_value(w: Any, mode: Mode) -> Any:
    return mode.l1 * xp.abs(w).sum() + mode.l2 * xp.square(w).sum()


def _gradient_in_place(w: Any, s: Any, mode: Mode) -> Any:
    """Return the gradient in `s`, overwriting `w`: the best form where `w` is but a float32 copy."""
    xp.sign(w, out=s)
    s *= mode.l1
    w *= 2 * mode.l2
    s += w
    return s


# The memory limit: plain passes over as many bytes, the fastest of which it is; on one core, and cut for all


def limits(case: Case) -> list[Contender]:
    """Return the plain passes that run in a case."""
    passes = {"nothing": _read_limits, "store": _copy_limits, "add": _add_limits}[case.mode.write]
    cores = core_count() if case.elements * case.itemsize >= WORTH_THREADS and xp.__name__ == "numpy" else 1
    return [*passes(cores), *(cpu_peers.limits(case) if xp.__name__ == "numpy" else ())]


def _read_limits(cores: int) -> list[Contender]:
    """Return what reads once: BLAS, on the cores it finds worth it, and the fastest read of NumPy itself."""
    return [
        Contender("np.dot(w, w)", "limit", lambda a: _self_dot(raw(a)[0]), checks.wrong_dot),
        *_limits(cores, "np.max(w)", lambda w, g: xp.max(w), checks.wrong_max, max),  # noqa: ARG005
    ]


def _copy_limits(cores: int) -> list[Contender]:
    """Return what reads and writes: a copy, and np.abs, which is faster than a copy on some machines."""
    return [
        *_limits(cores, "np.copyto(g, w)", lambda w, g: xp.copyto(g, w), checks.wrong_copy),
        *_limits(cores, "np.abs(w, out=g)", lambda w, g: xp.abs(w, out=g), checks.wrong_copy),
    ]


def _add_limits(cores: int) -> list[Contender]:
    """Return what reads two arrays and writes one."""
    return _limits(cores, "np.add(g, w, out=g)", lambda w, g: xp.add(g, w, out=g), checks.wrong_add)


def _limits(
    cores: int,
    name: str,
    run: Callable[[Any, Any], Any],
    wrong: Callable[..., str | None],
    combine: Callable[[list[Any]], Any] = lambda results: results[0],
) -> list[Contender]:
    """Return a pass on one core and, if there are several to use, the same with a part for each."""
    single = Contender(name, "limit", lambda a: run(*raw(a)), wrong)
    if cores == 1:
        return [single]

    def on_all_cores(a: Arrays) -> Any:
        w, g = raw(a)
        first, *others = chunks(w.size, -(-w.size // cores))
        futures = [_threads().submit(run, w[part], g[part]) for part in others]
        return combine([run(w[first], g[first]), *(future.result() for future in futures)])

    return [single, Contender(f"{name}, all cores", "limit", on_all_cores, wrong)]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Return threads for all cores but the one that asks."""
    return ThreadPoolExecutor(core_count() - 1)
