"""A training step of PyTorch with a penalty: what gpureg attaches to an optimizer, against what PyTorch has itself.

Two things are compared over all parameters of a model. One is the penalty and its gradient, added to `.grad`; the other
an L2 penalty with the step of SGD that follows, which PyTorch's own `weight_decay` is for. Only gpureg then also
returns the penalty's value.

A name is the code for the parameters `weights`, each `w`, and their gradients `grads`. Parameters lie in the memory of
the arrays of whole models, on the CPU or on a GPU.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, Literal

import gpureg
from bench import checks, gpu_peers, model_inputs, report
from bench.cases import Role
from bench.model_contenders import HOST, Contender, Entry, Place
from bench.model_inputs import SMALL_BYTES, Model

L1 = L2 = 1e-4
DECAY = RATE = 1e-2
"""So that a step without decay would be seen, and thousands of steps with it leave the weights of their size."""


@dataclasses.dataclass(frozen=True)
class Case(model_inputs.Case):
    """One comparison: a step over all parameters of a model."""

    adds: bool = True
    step: Literal["gradient", "SGD"] = "gradient"

    @property
    def mode(self) -> str:
        """Return what is computed."""
        return report.STEP + {"gradient": "L1 + L2 into .grad", "SGD": "SGD with L2"}[self.step]

    def __str__(self) -> str:
        return f"{self.model}, {self.mode}"


CASES = [Case(model, step=step) for model in ("gpt2", "resnet50") for step in ("gradient", "SGD")]


def field(case: Case, place: Place = HOST, *, compiled: bool = True) -> Iterator[Contender]:
    """Yield all that run in a case; what is compiled on request."""
    if case.step == "SGD":
        yield from _steps(place)
    else:
        yield from _gradients(place)
        if compiled and case.limit_bytes > SMALL_BYTES:  # it takes its time to compile
            yield from _compiled(place)
    yield from place.limits(case)


def _parameters(place: Place, case: Case, model: Model) -> list[Any]:
    """Return the parameters of a model, which have the gradients."""
    parameters = []
    for name in case.penalised:
        parameter = place.torch.nn.Parameter(place.tensor(model.weights[name]))
        parameter.grad = place.tensor(model.gradients[name])
        parameters.append(parameter)
    return parameters


# The penalty and its gradient

Make = Callable[[Any, list[Any]], Callable[[], Any]]
"""Makes of PyTorch and parameters what takes a step and returns the penalty."""


def _gradients(place: Place) -> Iterator[Contender]:
    yield _gradient(
        place, "gpureg.torch.attach(optimizer, gpureg.L1L2(l1, l2)); a step of nothing else", _attached, "gpureg"
    )
    yield _gradient(place, "gpureg.torch.Penalty(weights, gpureg.L1L2(l1, l2))().backward()", _in_loss)
    yield _gradient(place, "torch autograd: sum(l1 * w.abs().sum() + l2 * w.square().sum()).backward()", _autograd)
    yield _gradient(
        place,
        "torch foreach: torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=l1); "
        "torch._foreach_add_(grads, weights, alpha=2 * l2); and the norms by torch._foreach_norm",
        _foreach,
    )


def _compiled(place: Place) -> Iterator[Contender]:
    yield _gradient(place, "torch.compile of the plain expression; and backward()", _compiled_autograd)
    yield _gradient(place, "torch.compile of g.add_(l1 * w.sign() + 2 * l2 * w), and of the sums", _compiled_in_place)


def _gradient(place: Place, name: str, make: Make, role: Role = "other") -> Contender:
    def enter(case: Case, model: Model) -> Entry:
        return Entry(make(place.torch, _parameters(place, case, model)), lambda: model.gradients)

    bound = {"gpureg": checks.gpureg_bound}.get(role, place.norm_bound if "_norm" in name else checks.plain_bound)
    return Contender(name, role, enter, partial(_wrong_gradient, place, bound))  # type: ignore[arg-type] # of this case


def _attached(torch: Any, parameters: list[Any]) -> Callable[[], Any]:
    class Still(torch.optim.Optimizer):  # type: ignore[misc] # it may have no hints
        def step(self, closure: Any = None) -> None:
            pass

    optimizer = Still(parameters, {})
    handle = import_module("gpureg.torch").attach(optimizer, gpureg.L1L2(L1, L2))

    def run() -> Any:
        optimizer.step()
        return handle.value

    return run


def _in_loss(_: Any, parameters: list[Any]) -> Callable[[], Any]:
    penalty = import_module("gpureg.torch").Penalty(_named(parameters), gpureg.L1L2(L1, L2))
    return partial(_backward, penalty)


def _named(parameters: list[Any]) -> list[tuple[str, Any]]:
    return [(str(number), parameter) for number, parameter in enumerate(parameters)]


def _backward(value: Callable[[], Any]) -> Any:
    total = value()
    total.backward()
    return total.detach()


def _plain(parameters: list[Any]) -> Any:
    return sum(L1 * w.abs().sum() + L2 * w.square().sum() for w in parameters)


def _autograd(_: Any, parameters: list[Any]) -> Callable[[], Any]:
    return partial(_backward, partial(_plain, parameters))


def _compiled_autograd(torch: Any, parameters: list[Any]) -> Callable[[], Any]:
    return partial(_backward, partial(torch.compile(_plain, dynamic=False, fullgraph=True), parameters))


def _compiled_in_place(torch: Any, parameters: list[Any]) -> Callable[[], Any]:
    def step(weights: list[Any], grads: list[Any]) -> Any:
        for w, g in zip(weights, grads, strict=True):
            g.add_(L1 * w.sign() + 2 * L2 * w)
        return _plain(weights)

    weights, grads = _plain_tensors(parameters)
    return partial(torch.compile(step, dynamic=False, fullgraph=True), weights, grads)


def _foreach(torch: Any, parameters: list[Any]) -> Callable[[], Any]:
    weights, grads = _plain_tensors(parameters)

    def run() -> Any:
        torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=L1)
        torch._foreach_add_(grads, weights, alpha=2 * L2)
        sums = torch.stack(torch._foreach_norm(weights, 1)).sum()
        squares = torch.stack(torch._foreach_norm(weights, 2)).square().sum()
        return L1 * sums + L2 * squares

    return run


def _plain_tensors(parameters: list[Any]) -> tuple[list[Any], list[Any]]:
    return [each.detach() for each in parameters], [each.grad for each in parameters]


# A step of SGD


def _steps(place: Place) -> Iterator[Contender]:
    sgd = place.torch.optim.SGD
    forms: dict[str, Role] = {"fused": "gpureg", "foreach": "other"}
    for form, role in forms.items():
        code = (
            f"gpureg.torch.attach(optimizer, gpureg.HalvedL2(decay)); torch.optim.SGD(weights, lr, {form}=True).step()"
        )
        yield _step(place, code, partial(sgd, **{form: True}), role, attached=True)
    for form in forms:
        code = f"torch.optim.SGD(weights, lr, weight_decay=decay, {form}=True).step()"
        yield _step(place, code, partial(sgd, weight_decay=DECAY, **{form: True}))
    if place.name == "cupy" and gpu_peers.apex() is not None:
        code = "apex.optimizers.FusedSGD(weights, lr, weight_decay=decay).step()"
        yield _step(place, code, partial(gpu_peers.apex().FusedSGD, weight_decay=DECAY))


def _step(
    place: Place,
    name: str,
    make: Callable[..., Any],
    role: Role = "other",
    *,
    attached: bool = False,
) -> Contender:
    def enter(case: Case, model: Model) -> Entry:
        optimizer = make(_parameters(place, case, model), lr=RATE)
        if attached:
            import_module("gpureg.torch").attach(optimizer, gpureg.HalvedL2(DECAY))
        return Entry(optimizer.step, lambda: model.gradients)

    return Contender(name, role, enter, partial(_wrong_step, place))  # type: ignore[arg-type] # of this case


# Checks


def _wrong_gradient(place: Place, bound: Callable[[Any], float], case: Case, model: Model, entry: Entry) -> str | None:
    """Check the penalty, and each element of a gradient: eight roundings where it is computed and two of the sum."""
    torch = place.torch
    before = [(name, place.tensor(model.gradients[name]).double()) for name in case.penalised]
    total, exact = float(entry.run()), 0.0
    for name, start in before:
        w = place.tensor(model.weights[name]).double()
        exact += L1 * float(w.abs().sum()) + L2 * float(w.square().sum())
        added = L1 * w.sign() + 2 * L2 * w
        error = (place.tensor(model.gradients[name]).double() - (start + added)).abs()
        # float32 has no smaller gradients than the last term.
        allowed = 10 * 2.0**-24 * (start.abs() + L1 + 2 * L2 * w.abs()) + torch.finfo(torch.float32).tiny
        if not bool((error <= allowed).all()):
            return f"the gradient of {name} is off by up to {float(error.max()):.2e}"
    # The exact sums are in float64, by additions in PyTorch's order; see `checks.plain_bound`.
    allowed = bound(case.single()) + (6 * math.sqrt(case.elements) + 4) * 2.0**-53
    if not abs(total - exact) <= allowed * exact:
        return f"the total is {total!r}, not {exact!r}; allowed is a relative error of {allowed:.1e}"
    return None


def _wrong_step(place: Place, case: Case, model: Model, entry: Entry) -> str | None:
    """Check the weights after a step, of at most four roundings, and restore them."""
    held = [(name, place.tensor(model.weights[name])) for name in case.penalised]
    before = [w.clone() for _, w in held]
    starts = [place.tensor(model.gradients[name]).double() for name in case.penalised]
    entry.run()
    wrong = None
    for (name, w), old, start in zip(held, before, starts, strict=True):
        moved = RATE * (start + DECAY * old.double())
        error = (w.double() - (old.double() - moved)).abs()
        if not bool((error <= 4 * 2.0**-24 * (old.double().abs() + moved.abs())).all()):
            wrong = f"the weights of {name} are off by up to {float(error.max()):.2e}"
        w.copy_(old)
    return wrong
