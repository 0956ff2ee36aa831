"""What runs against what over a whole model: gpureg, NumPy or CuPy, and PyTorch and JAX where they are installed.

A name is the code for all weights and their gradients `grads`, each `w` and `g`, a scratch array `s`, and a regularizer
`reg` for a single tensor. Nobody is charged for what is done once: plans, PyTorch's tensors on the same memory, what
JAX compiles, and its copies of all arrays, for it shares them with nobody.

What differs between the memory of the host and that of a GPU is in a `Place`; `bench/gpu_models.py` has the GPU's.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import gpureg
from bench import cases as single
from bench import checks, contenders
from bench.cases import Role
from bench.inputs import ORACLE_CHUNK, Inputs, chunks, oracle_bound
from bench.model_inputs import L2, Case, Model

Run = Callable[[], Any]

MOST_FOR_JAX = 1000
"""Tensors: beyond, XLA compiles for minutes."""


class Entry(NamedTuple):
    """A contender with a set of arrays: what runs it, and the gradients that it adds to, by name."""

    run: Run
    gradients: Callable[[], dict[str, Any]]


class Contender(NamedTuple):
    """A way to pass over a model: the code, what it is, how it begins, and what says what is wrong with it."""

    name: str
    role: Role
    enter: Callable[[Case, Model], Entry]
    wrong: Callable[[Case, Model, Entry], str | None]
    apart: bool = False
    """Whether its library has streams of its own on a GPU, so that it is to be waited for."""


def _module(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


# Any, for neither is there where types are checked.
torch: Any = _module("torch")
jax: Any = _module("jax")

PEERS = {"torch": torch, "jax": jax}
"""What need not be installed, by the name of its package; None if it is not."""


class Place(NamedTuple):
    """Where the arrays of a model live: in what library, how others get at them, and how sums are checked there."""

    xp: Any
    """NumPy or CuPy."""
    name: str
    """As it is called in code."""
    torch: Any
    """PyTorch, None if it does not take part there; JAX likewise."""
    jax: Any
    tensor: Callable[[Any], Any]
    """Returns PyTorch's tensor on the memory of an array."""
    to_jax: Callable[[Any], Any]
    """Returns JAX's copy of an array; the other way round the array itself."""
    from_jax: Callable[[Any], Any]
    wait_for_jax: Callable[[Any], Any]
    """Returns JAX's results, once they are there if a call is to wait for them."""
    sum_squares: Callable[[Case, Model], float]
    norm_bound: Callable[[single.Case], float]
    """The bound for `torch._foreach_norm`."""
    limits: Callable[[Case], Iterator[Contender]]


def field(case: Case, place: Place | None = None) -> Iterator[Contender]:
    """Yield all that run in a case, by default in the memory of the host."""
    place = place or HOST
    yield from _gpureg(place, case.adds)
    yield from _plain(place, case.adds)
    if place.torch is not None:
        yield from _torch(place, case.adds)
    if place.jax is not None and len(case.parameters) <= MOST_FOR_JAX:
        yield _jax(place, case.adds)
    yield from place.limits(case)


# Checks


def wrong(place: Place, bound: Callable[[single.Case], float], case: Case, model: Model, entry: Entry) -> str | None:
    """Check the total that a contender returns, and the gradients where it adds to them."""
    exact = L2 * place.sum_squares(case, model)
    allowed = bound(case.single()) + oracle_bound(case.elements) + (4 + math.log2(len(case.penalised))) * 2.0**-53
    total = float(entry.run())
    if not abs(total - exact) <= allowed * exact:
        return f"the total is {total!r}, not {exact!r}; allowed is a relative error of {allowed:.1e}"
    return wrong_gradients(case, model, entry) if case.adds else None


def sum_squares(case: Case, model: Model) -> float:
    """Return the sum of the squares of all weights that are penalised."""
    flat = (model.weights[name].reshape(-1) for name in case.penalised)
    pieces = (w[part].astype(np.float64) for w in flat for part in chunks(w.size, ORACLE_CHUNK))
    return math.fsum(float(np.sum(x * x)) for x in pieces)


def wrong_gradients(case: Case, model: Model, entry: Entry) -> str | None:
    """Check each element, allowing eight roundings where it is computed and two to the gradient's dtype."""
    slopes = dict.fromkeys(case.penalised, 2 * L2)
    for name, gradient in (model.gradients | entry.gradients()).items():
        start, added = model.start[name].astype(np.float64), slopes.get(name, 0.0) * model.weights[name]
        error = abs(gradient - (start + added))
        if not (error <= 10 * 2.0**-24 * (abs(start) + abs(added))).all():
            return f"the gradient of {name} is off by up to {float(error.max()):.2e}"
    return None


def enter_limit(run: Callable[[Any], Any], _: Case, model: Model) -> Entry:
    """Return what runs a plain pass over as many weights as the model has."""
    return Entry(partial(run, model.flat), dict)


# gpureg: planned, and a call for each tensor


def planned(adds: bool, case: Case, model: Model) -> Entry:
    """Return gpureg's planned step."""
    penalty = gpureg.Penalty(model.weights, case.rules)
    run: Run = partial(penalty.accumulate_grad, model.gradients) if adds else penalty
    return Entry(run, lambda: model.gradients)


def _gpureg(place: Place, adds: bool) -> Iterator[Contender]:
    def value(pairs: list[tuple[Any, Any]]) -> Any:
        return sum(reg(w) for w, _ in pairs)

    def add(pairs: list[tuple[Any, Any]]) -> Any:
        return sum(reg.accumulate_grad(w, g) for w, g in pairs)

    reg = gpureg.L2(L2)
    call = ".accumulate_grad(grads)" if adds else "()"
    loop = "sum(reg.accumulate_grad(w, g))" if adds else "sum(reg(w))"
    check = partial(wrong, place, checks.gpureg_bound)
    yield Contender(f"gpureg.Penalty(weights, rules){call}", "gpureg", partial(planned, adds), check)
    yield _loop(place, f"{loop} over all tensors", "other", add if adds else value)


def _loop(place: Place, name: str, role: Role, run: Callable[[list[tuple[Any, Any]]], Any]) -> Contender:
    """Return what takes weights with their gradients as pairs."""

    def enter(case: Case, model: Model) -> Entry:
        pairs = [(model.weights[name], model.gradients[name]) for name in case.penalised]
        return Entry(partial(run, pairs), lambda: model.gradients)

    return Contender(name, role, enter, partial(wrong, place, checks.plain_bound))


# NumPy or CuPy


def _plain(place: Place, adds: bool) -> Iterator[Contender]:
    xp = place.xp

    def naive(pairs: list[tuple[Any, Any]]) -> Any:
        return sum(L2 * xp.square(w).sum() for w, _ in pairs)

    def naive_add(pairs: list[tuple[Any, Any]]) -> Any:
        for w, g in pairs:
            g += 2 * L2 * w  # noqa: PLW2901 - in place
        return naive(pairs)

    def best(triples: list[tuple[Any, Any, Any]]) -> Any:
        return L2 * sum(xp.dot(w, w) for w, _, _ in triples)

    def best_add(triples: list[tuple[Any, Any, Any]]) -> Any:
        for w, g, s in triples:
            xp.multiply(w, 2 * L2, out=s)
            g += s  # noqa: PLW2901 - in place
        return best(triples)

    def enter(case: Case, model: Model) -> Entry:
        arrays = [(model.weights[name].reshape(-1), model.gradients[name].reshape(-1)) for name in case.penalised]
        triples = [(w, g, model.flat.scratch[: w.size]) for w, g in arrays]
        return Entry(partial(best_add if adds else best, triples), lambda: model.gradients)

    value = f"l2 * sum({place.name}.dot(w, w))"
    name = f"{place.name}.multiply(w, 2 * l2, out=s); g += s; and {value}" if adds else value
    yield Contender(f"{name} over all tensors", "best", enter, partial(wrong, place, checks.plain_bound))
    value = f"sum(l2 * {place.name}.square(w).sum())"
    name = f"g += 2 * l2 * w; and {value}" if adds else value
    yield _loop(place, f"{name} over all tensors", "naive", naive_add if adds else naive)


# PyTorch, on the same memory


def _torch(place: Place, adds: bool) -> Iterator[Contender]:
    torch = place.torch
    values: dict[str, Callable[[list[Any]], Any]] = {
        "foreach: l2 * torch.stack(torch._foreach_norm(weights)).square().sum()": lambda weights: (
            L2 * torch.stack(torch._foreach_norm(weights)).square().sum()
        )
    }
    if hasattr(torch, "_foreach_powsum"):
        name = "foreach: l2 * torch.stack(torch._foreach_powsum(weights, 2, dtype=torch.float64)).sum()"
        values[name] = lambda weights: L2 * torch.stack(torch._foreach_powsum(weights, 2, dtype=torch.float64)).sum()
    if not adds:
        loop = "loop: l2 * sum(w.square().sum())"
        for name, value in ({loop: _torch_loop} | values).items():
            yield _on_tensors(place, f"torch {name}", partial(_torch_value, value))
        return
    yield _on_tensors(place, "torch loop: g.add_(w, alpha=2 * l2); and l2 * sum(w.square().sum())", _torch_loop_add)
    yield _on_tensors(place, "torch autograd: (l2 * sum(w.square().sum())).backward()", _torch_backward)
    for name, value in values.items():
        code = f"torch foreach: torch._foreach_add_(grads, weights, alpha=2 * l2); and {name.removeprefix('foreach: ')}"
        yield _on_tensors(place, code, partial(_torch_foreach_add, torch, value))


def _torch_value(value: Callable[[list[Any]], Any], weights: list[Any], _: list[Any]) -> Any:
    return value(weights)


def _torch_loop(weights: list[Any]) -> Any:
    return L2 * sum(w.square().sum() for w in weights)


def _torch_loop_add(weights: list[Any], gradients: list[Any]) -> Any:
    for w, g in zip(weights, gradients, strict=True):
        g.add_(w, alpha=2 * L2)
    return _torch_loop(weights)


def _torch_backward(weights: list[Any], gradients: list[Any]) -> Any:
    for w, g in zip(weights, gradients, strict=True):
        w.requires_grad_()
        w.grad = g
    value = _torch_loop(weights)
    value.backward()
    return value.detach()


def _torch_foreach_add(torch: Any, value: Callable[[list[Any]], Any], weights: list[Any], gradients: list[Any]) -> Any:
    torch._foreach_add_(gradients, weights, alpha=2 * L2)
    return value(weights)


def _on_tensors(place: Place, name: str, run: Callable[[list[Any], list[Any]], Any]) -> Contender:
    bound = place.norm_bound if "_foreach_norm" in name else checks.plain_bound

    def enter(case: Case, model: Model) -> Entry:
        weights, gradients = (
            [place.tensor(arrays[each]) for each in case.penalised] for arrays in (model.weights, model.gradients)
        )
        return Entry(partial(run, weights, gradients), lambda: model.gradients)

    return Contender(name, "other", enter, partial(wrong, place, bound))


# JAX, whose arrays are its own


def _jax(place: Place, adds: bool) -> Contender:
    jax = place.jax

    def value(weights: dict[str, Any]) -> Any:
        return L2 * sum(jax.numpy.sum(jax.numpy.square(w)) for w in weights.values())

    def add(weights: dict[str, Any], gradients: dict[str, Any]) -> Any:
        total, slopes = jax.value_and_grad(value)(weights)
        return total, jax.tree_util.tree_map(jax.numpy.add, gradients, slopes)

    def enter(case: Case, model: Model) -> Entry:
        weights = {each: place.to_jax(model.weights[each]) for each in case.penalised}
        if not adds:
            compiled = jax.jit(value)
            return Entry(lambda: place.wait_for_jax(compiled(weights)), dict)
        held = {each: place.to_jax(model.gradients[each]) for each in case.penalised}
        compiled = jax.jit(add, donate_argnums=1)

        def run() -> Any:
            nonlocal held
            total, held = place.wait_for_jax(compiled(weights, held))
            return total

        return Entry(run, lambda: {each: place.from_jax(gradient) for each, gradient in held.items()})

    name = "jax.jit of l2 * sum(jnp.sum(jnp.square(w)))"
    code = f"{name}, jax.value_and_grad of it, and the gradients added to donated ones" if adds else name
    return Contender(code, "other", enter, partial(wrong, place, checks.plain_bound), apart=True)


# The memory of the host


def _tensor(array: Any) -> Any:
    return torch.from_numpy(array)


def _to_jax(array: Any) -> Any:
    return jax.numpy.array(array)


def _wait_for_jax(results: Any) -> Any:
    return jax.block_until_ready(results)


def _host_limits(case: Case) -> Iterator[Contender]:
    for each in contenders.limits(case.single()):
        yield Contender(each.name, "limit", partial(enter_limit, each.run), partial(_wrong_limit, each.wrong))


def _wrong_limit(wrong: Callable[..., str | None], case: Case, model: Model, entry: Entry) -> str | None:
    given = Inputs((model.flat,), model.flat.gradient, 0.0, 0.0)
    return wrong(lambda _: entry.run(), case.single(), given)


HOST = Place(
    xp=np,
    name="np",
    torch=torch,
    jax=jax,
    tensor=_tensor,
    to_jax=_to_jax,
    from_jax=np.asarray,
    wait_for_jax=_wait_for_jax,
    sum_squares=sum_squares,
    norm_bound=checks.lanes_bound,
    limits=_host_limits,
)
