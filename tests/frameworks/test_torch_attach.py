"""A penalty attached to an optimizer adds what `weight_decay` would, for any optimizer, and once."""

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpureg.torch
from gpureg import L1, L1L2, L2, HalvedL2, Rules
from gpureg.torch import attach
from tests.frameworks.torch_sides import array, parameter, same, sample

BOTH = L1L2(0.1, 0.3)


def network(dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Linear(30, 20), torch.nn.Tanh(), torch.nn.Linear(20, 7)
    return torch.nn.Sequential(*layers).to(dtype)


def batch(dtype: Any = torch.float32, seed: int = 0) -> Any:
    return torch.randn(16, 30, generator=torch.Generator().manual_seed(seed)).to(dtype)


def backward(model: Any, x: Any) -> Any:
    loss = model(x).square().mean()
    loss.backward()
    return loss


def parameters(model: Any) -> list[Any]:
    return list(model.parameters())


# Against weight_decay


FORMS: dict[str, dict[str, Any]] = {
    "for loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@pytest.mark.parametrize("decay", [0.25, 2.0**-10, 0.1, 1e-4])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_that_of_weight_decay(form: str, decay: float) -> None:
    theirs, mine = network(), network()
    x, rate = batch(), 0.5
    expected = torch.optim.SGD(theirs.parameters(), lr=rate, weight_decay=decay, **FORMS[form])
    optimizer = torch.optim.SGD(mine.parameters(), lr=rate, **FORMS[form])
    attach(optimizer, HalvedL2(decay))
    for model, one in ((theirs, expected), (mine, optimizer)):
        backward(model, x)
        one.step()
    for before, p, q in zip(parameters(network()), parameters(mine), parameters(theirs), strict=True):
        if decay in (0.25, 2.0**-10):  # the product is exact, so it does not matter that PyTorch rounds it with the sum
            assert same(p, q)
        # The product is rounded here; so the gradient may be one unit in its last place more or less than there. So may
        # the step be then, and its rounding is as much again on both sides.
        unit = 2.0**-24
        moved = (before - p).abs() / rate
        bound = rate * unit * (decay * before.abs() + 2 * moved) + 2 * unit * (p.abs() + rate * moved)
        assert ((p - q).abs() <= bound).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda given, **own: torch.optim.SGD(given, lr=0.05, momentum=0.9, nesterov=True, **own),
        lambda given, **own: torch.optim.Adam(given, lr=0.01, foreach=True, **own),
        lambda given, **own: torch.optim.Adam(given, lr=0.01, fused=True, **own),
    ],
    ids=["SGD with momentum", "Adam foreach", "Adam fused"],
)
def test_fifty_steps_are_those_of_weight_decay(make: Callable[..., Any]) -> None:
    theirs, mine = network(torch.float64), network(torch.float64)
    expected, optimizer = make(theirs.parameters(), weight_decay=0.03), make(mine.parameters())
    attach(optimizer, HalvedL2(0.03))
    for step in range(50):
        for model, one in ((theirs, expected), (mine, optimizer)):
            one.zero_grad()
            backward(model, batch(torch.float64, step))
            one.step()
    for p, q in zip(parameters(mine), parameters(theirs), strict=True):
        assert (p - q).abs().max() < 1e-9


OPTIMIZERS = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and kind.__name__
    not in {"Optimizer", "LBFGS", "SparseAdam", "Muon"}  # of closures, sparse gradients, matrices alone
]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_every_optimizer_gets_the_gradient(kind: Any) -> None:
    attached, by_hand = network(), network()
    optimizer, plain = kind(attached.parameters()), kind(by_hand.parameters())
    handle, penalty = attach(optimizer, BOTH), gpureg.torch.Penalty(by_hand, BOTH)
    for step in range(3):
        for model, one in ((attached, optimizer), (by_hand, plain)):
            one.zero_grad()
            backward(model, batch(seed=step))
            if one is plain:
                expected = penalty.accumulate_grad()
            one.step()
        assert same(handle.value, expected)
        for p, q in zip(parameters(attached), parameters(by_hand), strict=True):
            assert same(p.grad, q.grad)
            assert same(p, q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gradients_have_numpys_bits(dtype: Any) -> None:
    model = network(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, BOTH)
    for seed, p in enumerate(model.parameters()):
        p.grad = parameter(sample(tuple(p.shape), seed=seed)).detach().to(dtype)
    weights = {str(i): array(p) for i, p in enumerate(model.parameters())}
    grads = {str(i): array(p.grad) for i, p in enumerate(model.parameters())}
    total = gpureg.Penalty(weights, BOTH).accumulate_grad(grads)
    optimizer.step()
    assert same(handle.value, total)
    assert not handle.value.requires_grad
    for p, expected in zip(model.parameters(), grads.values(), strict=True):
        assert same(p.grad, expected)


def test_a_step_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, BOTH)
    plan = type(handle.penalty._all._plan)
    passes: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        own = getattr(plan, name)

        def run(*given: Any, **options: Any) -> Any:
            passes.append(name)
            return own(*given, **options)

        return run

    for name in ("value", "gradient", "value_and_gradient", "accumulate"):
        monkeypatch.setattr(plan, name, counted(name))
    monkeypatch.setattr(handle.penalty, "refresh", lambda: passes.append("refresh"))
    for _ in range(3):
        optimizer.zero_grad()
        backward(model, batch())
        optimizer.step()
        handle.value.item()
    assert passes == ["accumulate"] * 3


# Who is penalised


def test_only_the_optimizer_s_parameters_are_touched() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    rules = Rules([("*.bias", None), ("*", L1(0.5))])
    handle = attach(optimizer, rules, model=model)
    backward(model, batch())
    before = [p.grad.clone() for p in model.parameters()]
    weight = model[2].weight.detach().clone()
    optimizer.step()
    assert list(handle.losses()) == ["2.weight"]
    assert same(handle.value, L1(0.5)(weight))
    for i in (0, 1, 3):
        assert same(parameters(model)[i].grad, before[i])
    assert same(model[2].weight.grad, before[2] + L1(0.5).grad(weight))


def test_rules_go_by_the_names_that_the_optimizer_was_made_with() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    handle = attach(optimizer, Rules.exclude_bias_and_norm(L2(0.5)))
    assert list(handle.losses()) == ["0.weight", "2.weight"]
    assert list(attach(torch.optim.SGD(model.parameters(), lr=0.1), L2(0.5)).losses()) == ["0.0", "0.1", "0.2", "0.3"]


def test_parameters_without_a_gradient_are_left_out() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, BOTH)
    assert same(handle.value, gpureg.torch.Penalty(model, BOTH)())
    optimizer.step()  # none has one
    assert handle.value.item() == 0
    for i in (0, 3):
        p = parameters(model)[i]
        p.grad = torch.zeros_like(p)
    expected = gpureg.torch.Penalty({"a": parameters(model)[0], "b": parameters(model)[3]}, BOTH)().detach()
    optimizer.step()
    assert same(handle.value, expected)
    assert parameters(model)[1].grad is parameters(model)[2].grad is None


def test_frozen_parameters_are_left_out_while_they_are() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, BOTH)
    backward(model, batch())
    model[0].requires_grad_(False)
    before = model[0].weight.grad.clone()
    optimizer.step()
    assert same(model[0].weight.grad, before)
    assert list(handle.losses()) == ["0.2", "0.3"]
    model[0].requires_grad_(True)
    optimizer.step()
    assert not same(model[0].weight.grad, before)


def test_groups_that_are_added_and_states_that_are_loaded() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    handle = attach(optimizer, BOTH)
    handle.set_strength(0.5)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.add_param_group({"params": model[2].parameters()})
    assert list(handle.losses()) == ["0.0", "0.1", "1.0", "1.1"]
    backward(model, batch())
    penalty = gpureg.torch.Penalty(model, BOTH)
    penalty.set_strength(0.5)
    expected = penalty().detach()
    optimizer.step()
    assert same(handle.value, expected)


def test_parameters_whose_memory_changes() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, BOTH)
    for change in (model.double, model.half, lambda: setattr(model[0].weight, "data", torch.ones(20, 30).half())):
        change()
        optimizer.zero_grad()
        backward(model, batch(model[0].weight.dtype))
        expected = gpureg.torch.Penalty(model, BOTH)().detach()
        optimizer.step()
        assert same(handle.value, expected)


def test_parameters_are_taken_in_their_order() -> None:
    """No set decides it, whose order changed bits elsewhere (pytorch#134393)."""
    weights = [parameter(sample((1000,), "float64", seed)) for seed in range(20)]
    for order in (weights, weights[::-1]):
        handle = attach(torch.optim.SGD(order, lr=0.1), BOTH)
        assert same(handle.value, gpureg.Penalty([(str(i), array(p)) for i, p in enumerate(order)], BOTH)())


def test_two_optimizers_share_one_penalty() -> None:
    model = network()
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    penalty = gpureg.torch.Penalty(model, BOTH)
    penalty.set_strength(lambda step: 1.0 / (1 + step))
    handles = attach(first, penalty), attach(second, penalty)
    on_host = gpureg.Penalty({name: array(p) for name, p in model.named_parameters()}, BOTH)
    for step in range(3):
        model.zero_grad()
        backward(model, batch(seed=step))
        weights = {name: array(p) for name, p in model.named_parameters()}
        grads = {name: array(p.grad) for name, p in model.named_parameters()}
        on_host = gpureg.Penalty(weights, BOTH)
        on_host.set_strength(1.0 / (1 + step))
        on_host.accumulate_grad(grads)
        first.step()
        second.step()
        for name, p in model.named_parameters():
            assert same(p.grad, grads[name])
        losses = [handle.losses().keys() for handle in handles]
        assert [list(keys) for keys in losses] == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]
        assert penalty.step == handles[0].step == handles[1].step == step + 1


# Strength


def test_the_strength_may_change() -> None:
    w = parameter(np.array([2.0, -4.0], np.float32))
    optimizer = torch.optim.SGD([w], lr=0.0)
    handle = attach(optimizer, L1(1.0))
    seen = []
    strength = torch.tensor(0.5)
    for given in (0.25, strength, lambda step: step / 8, torch.tensor(0.0)):
        handle.set_strength(given)
        w.grad = torch.zeros(2)
        optimizer.step()
        seen.append((w.grad.tolist(), handle.value.item()))
    assert seen == [([0.25, -0.25], 1.5), ([0.5, -0.5], 3.0), ([0.25, -0.25], 1.5), ([0.0, 0.0], 0.0)]
    handle.step = 80
    handle.set_strength(lambda step: step / 8)
    assert handle.value.item() == 0  # of the last step
    w.grad = torch.zeros(2)
    optimizer.step()
    assert w.grad.tolist() == [10, -10]
    with pytest.raises(ValueError, match="strength must be a finite number"):
        handle.set_strength(-1.0)


def test_a_penalty_that_was_resumed_goes_on() -> None:
    w = parameter(np.ones(2, np.float32))
    penalty = gpureg.torch.Penalty({"w": w}, L1(1.0))
    penalty.step = 7
    optimizer = torch.optim.SGD([w], lr=0.0)
    handle = attach(optimizer, penalty)
    w.grad = torch.zeros(2)
    optimizer.step()
    assert handle.step == penalty.step == 8


def test_removed_is_removed() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle, other = attach(optimizer, BOTH), attach(optimizer, L1(0.5))
    assert repr(other) == ("<<Penalty of 4 of 4 tensors by Rules([], default=L1(l1=0.5))> attached to SGD>")
    for _ in range(2):
        handle.remove()
    backward(model, batch())
    before, weight = model[0].weight.grad.clone(), model[0].weight.detach().clone()
    optimizer.step()
    assert same(model[0].weight.grad, before + L1(0.5).grad(weight))
    other.remove()
    before = model[0].weight.grad.clone()
    optimizer.step()
    assert same(model[0].weight.grad, before)


def test_a_copied_optimizer_has_no_penalty() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer, BOTH)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for p in other.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        other.step()
        assert not any(p.grad.any() for p in other.param_groups[0]["params"])


# When it is added


def test_micro_batches_get_it_once() -> None:
    model, whole = network(), network()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, whole)]
    for optimizer in optimizers:
        attach(optimizer, L1(0.25))
    x = batch()
    for part in x.split(4):
        (model(part).square().mean() / 4).backward()
    (whole(x).square().mean()).backward()
    for optimizer in optimizers:
        optimizer.step()
    for p, q in zip(parameters(model), parameters(whole), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)


def test_clipping_sees_it_only_in_the_loss() -> None:
    attached, in_loss = network(), network()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (attached, in_loss)]
    attach(optimizers[0], L1(10.0))
    penalty = gpureg.torch.Penalty(in_loss, L1(10.0))
    backward(attached, batch())
    (in_loss(batch()).square().mean() + penalty()).backward()
    for model, optimizer in zip((attached, in_loss), optimizers, strict=True):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    norms = [float(sum(p.grad.square().sum() for p in model.parameters()) ** 0.5) for model in (attached, in_loss)]
    assert norms[0] > 100
    assert norms[1] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_may_be_new_or_zeroed(set_to_none: bool) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle, penalty = attach(optimizer, BOTH), gpureg.torch.Penalty(model, BOTH)
    for step in range(4):
        optimizer.zero_grad(set_to_none=set_to_none)
        expected = penalty().detach()
        backward(model, batch(seed=step))
        optimizer.step()
        assert same(handle.value, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_a_compiled_step_is_penalised_too() -> None:
    torch.compiler.reset()
    models = [network() for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    for optimizer in optimizers:
        attach(optimizer, BOTH)
    compiled = torch.compile(optimizers[0].step, backend="eager")
    for step in range(3):
        for model, take in zip(models, (compiled, optimizers[1].step), strict=True):
            model.zero_grad()
            backward(model, batch(seed=step))
            take()
    for p, q in zip(*map(parameters, models), strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)


def test_gradients_are_subtracted_from_what_is_maximised() -> None:
    w, v = (parameter(np.array([2.0, -4.0], np.float32)) for _ in range(2))
    optimizer = torch.optim.SGD([w], lr=0.5, maximize=True)
    expected = torch.optim.SGD([v], lr=0.5, maximize=True, weight_decay=0.25)
    handle = attach(optimizer, HalvedL2(0.25))
    w.grad, v.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    expected.step()
    assert same(w, v)
    assert handle.value.item() == 2.5
    assert optimizer.step(lambda: torch.tensor(10.0)).item() == 10 - handle.value.item()
    optimizer.add_param_group({"params": [parameter(np.ones(1, np.float32))], "maximize": False})
    with pytest.raises(ValueError, match="some of the optimizer's groups maximise and some do not"):
        optimizer.step()


# Closures


def test_closures_are_evaluated_with_the_penalty() -> None:
    w = parameter(np.array([2.0, -4.0], np.float32))
    optimizer = torch.optim.SGD([w], lr=0.0)
    attach(optimizer, L1(0.5))
    evaluations = itertools.count()

    def closure(loss: Any) -> Callable[[], Any]:
        def evaluate() -> Any:
            next(evaluations)
            w.grad = torch.zeros(2)
            return loss

        return evaluate

    for loss in (torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64), 1.0):
        found = optimizer.step(closure(loss))
        assert float(found) == 4
        assert type(found) is type(loss)
        assert getattr(found, "dtype", None) == getattr(loss, "dtype", None)
        assert w.grad.tolist() == [0.5, -0.5]
    assert optimizer.step(closure=closure(1.0)) == 4
    assert optimizer.step(closure(None)) is None
    assert optimizer.step(closure=None) is None
    assert next(evaluations) == 5


def test_lbfgs_finds_the_penalised_optimum() -> None:
    rng = np.random.default_rng(0)
    a, b, decay = rng.standard_normal((40, 12)), rng.standard_normal(40), 0.7
    expected = np.linalg.solve(a.T @ a + decay * np.eye(12), a.T @ b)
    x = parameter(np.zeros(12))
    matrix, right = torch.from_numpy(a), torch.from_numpy(b)
    optimizer = torch.optim.LBFGS([x], line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-15)
    handle = attach(optimizer, HalvedL2(decay))
    strengths: list[int] = []

    def strength(step: int) -> float:
        strengths.append(step)
        return 1.0

    handle.set_strength(strength)
    evaluations = itertools.count()

    def closure() -> Any:
        next(evaluations)
        optimizer.zero_grad()
        loss = 0.5 * (matrix @ x - right).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    objective = 0.5 * np.sum((a @ expected - b) ** 2) + 0.5 * decay * np.sum(expected**2)
    # The line search compares losses, which differ from the optimum's by curvature / 2 * distance**2 or more, and are
    # known to a few units in the last place.
    curvature = np.linalg.eigvalsh(a.T @ a + decay * np.eye(12))[0]
    distance = np.linalg.norm(x.detach().numpy() - expected)
    assert distance <= np.sqrt(2 * 8 * 2.0**-52 * objective / curvature)
    assert (closure() + handle.value).item() == pytest.approx(objective, rel=1e-12)
    assert handle.step == 3
    # All evaluations of a step see one strength, whatever their number.
    assert next(evaluations) > 5
    assert strengths == sorted(strengths)
    assert set(strengths) == {0, 1, 2}


# GradScaler


SCALED = [
    lambda given: torch.optim.SGD(given, lr=0.25),
    lambda given: torch.optim.SGD(given, lr=0.25, fused=True),
    lambda given: torch.optim.Adam(given, lr=0.25, fused=True),
]


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("make", SCALED, ids=["SGD", "fused SGD", "fused Adam"])
def test_a_scaled_loss_changes_nothing(make: Callable[..., Any], unscale: bool) -> None:
    plain, scaled = network(), network()
    optimizers = [make(model.parameters()) for model in (plain, scaled)]
    handles = [attach(optimizer, L1L2(0.25, 0.5)) for optimizer in optimizers]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        plain.zero_grad()
        backward(plain, batch(seed=step))
        optimizers[0].step()
        scaled.zero_grad()
        scaler.scale(scaled(batch(seed=step)).square().mean()).backward()
        if unscale:
            scaler.unscale_(optimizers[1])
        scaler.step(optimizers[1])
        scaler.update()
        assert same(handles[0].value, handles[1].value)
        for p, q in zip(parameters(plain), parameters(scaled), strict=True):
            assert same(p, q)  # the scale is a power of two


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("make", SCALED, ids=["SGD", "fused SGD", "fused Adam"])
def test_an_infinity_changes_nothing(make: Callable[..., Any], unscale: bool, proximal: bool) -> None:
    model = network()
    optimizer = make(model.parameters())
    handle = attach(optimizer, L1L2(0.25, 0.5), proximal=proximal)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(batch()).square().mean()).backward()
    model[0].weight.grad[0, 0] = torch.inf
    weights = [p.detach().clone() for p in model.parameters()]
    if unscale:
        scaler.unscale_(optimizer)
    grads = [p.grad.clone() for p in model.parameters()]
    scaler.step(optimizer)
    scaler.update()
    for p, weight, grad in zip(model.parameters(), weights, grads, strict=True):
        assert same(p, weight)
        if unscale or optimizer.defaults.get("fused"):  # else the scaler itself divides the gradients by its scale
            assert same(p.grad, grad)
    assert scaler.get_scale() == 512
    model.zero_grad()
    scaler.scale(model(batch()).square().mean()).backward()
    scaler.step(optimizer)
    assert not same(model[2].weight, weights[2])
    assert handle.value.item() > 0


# What is refused


def test_gradients_that_will_not_do_are_named_and_all_left_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Embedding(4, 3, sparse=True))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    attach(optimizer, BOTH)
    (model[0](torch.ones(2, 3)).sum() + model[1](torch.tensor([1])).sum()).backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in model[0].parameters()]
    with pytest.raises(TypeError, match=r"grads\['1.weight'\] is a sparse_coo tensor; expected a dense one"):
        optimizer.step()
    for p, (weight, gradient) in zip(model[0].parameters(), before, strict=True):
        assert same(p, weight)
        assert same(p.grad, gradient)
    attach(torch.optim.SparseAdam(model[1].parameters()), BOTH).remove()


def test_what_cannot_be_attached() -> None:
    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, not Sequential"):
        attach(model, BOTH)
    with pytest.raises(ValueError, match="rules go by names, which this optimizer was not given: attach with model="):
        attach(optimizer, {"*": BOTH})
    with pytest.raises(ValueError, match="4 of the optimizer's parameters are not the model's"):
        attach(optimizer, BOTH, model=other)
    with pytest.raises(ValueError, match="the optimizer has none of the parameters that are penalised"):
        attach(optimizer, gpureg.torch.Penalty(other, BOTH))
    with pytest.raises(ValueError, match="the optimizer has none of the parameters that are penalised"):
        attach(optimizer, {"*": None}, model=model)
    with pytest.raises(ValueError, match="model is for the names that rules go by; a Penalty has its own"):
        attach(optimizer, gpureg.torch.Penalty(model, BOTH), model=model)
    with pytest.raises(TypeError, match="rules must be pairs of a pattern and a regularizer"):
        attach(optimizer, 0.1, model=model)
    with pytest.raises(TypeError, match="OrthogonalRegularizer has no coefficients"):
        attach(optimizer, gpureg.OrthogonalRegularizer())
    with pytest.raises(ValueError, match="LBFGS takes steps of other lengths than its lr"):
        attach(torch.optim.LBFGS(model.parameters()), BOTH, proximal=True)
    assert not optimizer._optimizer_step_pre_hooks
    attach(optimizer, gpureg.Penalty(dict(model.named_parameters()), BOTH))  # the core's will do
