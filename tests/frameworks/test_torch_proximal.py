"""Exact zeros: the L1 term by a proximal step after the optimizer's, the L2 term by the gradient."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

import gpureg.torch
from gpureg import L1, L1L2, L2, HalvedL2
from gpureg.torch import attach
from tests.frameworks.torch_sides import array, parameter, same, sample
from tests.helpers import DTYPES


def stepped(w: Any, length: float, l1: float) -> Any:
    """Return the numbers of weights after NumPy's proximal step."""
    return L1(l1).prox_(array(w), length)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_has_numpys_bits(dtype: str) -> None:
    weights = [
        parameter(sample((300, 7), dtype)),
        parameter(sample((5,), dtype, seed=1)),
        parameter(sample((0,), dtype)),
    ]
    optimizer = torch.optim.SGD(weights, lr=0.3)
    handle = attach(optimizer, L1(0.7), proximal=True)
    for w in weights:
        w.grad = torch.zeros_like(w)
    expected = [stepped(w, 0.3, 0.7) for w in weights]
    optimizer.step()
    assert all(same(w, numbers) for w, numbers in zip(weights, expected, strict=True))
    assert not weights[0].grad.any()
    assert 0.1 < float((weights[0] == 0).double().mean()) < 0.9
    assert repr(handle).endswith("attached to SGD, proximal>")


def test_l2_goes_by_the_gradient_and_l1_by_the_step() -> None:
    w = parameter(sample((100,), "float64"))
    optimizer = torch.optim.SGD([w], lr=0.25)
    handle = attach(optimizer, L1L2(0.5, 0.125), proximal=True)
    handle.set_strength(0.5)
    both = gpureg.torch.Penalty({"w": w}, L1L2(0.25, 0.0625))
    assert handle.value.item() == both().item()
    w.grad = torch.zeros_like(w)
    before = w.detach().clone()
    optimizer.step()
    assert same(w.grad, torch.zeros_like(w) + L2(0.0625).grad(before))
    assert same(w, stepped(before - 0.25 * w.grad, 0.25, 0.25))
    assert handle.value.item() == both().item() < float(L1L2(0.25, 0.0625)(before))
    assert handle.losses()["0.0"].item() == both().item()


def test_each_group_has_its_own_rate() -> None:
    weights = [parameter(sample((50,), seed=seed)) for seed in range(4)]
    rates = [0.5, torch.tensor(0.25), 0.5, torch.tensor(0.125, dtype=torch.float64)]
    groups = [{"params": [w], "lr": rate} for w, rate in zip(weights, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, foreach=False)
    attach(optimizer, L1(0.7), proximal=True)
    for factor in (1.0, 0.1):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor  # as a scheduler does
        for w in weights:
            w.grad = torch.zeros_like(w)
        expected = [
            stepped(w, float(group["lr"]), 0.7) for w, group in zip(weights, optimizer.param_groups, strict=True)
        ]
        optimizer.step()
        assert all(same(w, numbers) for w, numbers in zip(weights, expected, strict=True))


def test_only_what_the_optimizer_moves_is_moved() -> None:
    names = "abcd"
    weights = {name: parameter(sample((50,), seed=seed)) for seed, name in enumerate(names)}
    before = {name: array(w) for name, w in weights.items()}
    optimizer = torch.optim.SGD([weights[name] for name in "abc"], lr=0.5)
    attach(optimizer, {"c": L2(0.0), "*": L1(0.7)}, model=weights, proximal=True)
    for name in "ac":
        weights[name].grad = torch.zeros(50)
    optimizer.step()
    assert same(weights["a"], L1(0.7).prox_(before["a"].copy(), 0.5))
    for name in "bcd":
        assert same(weights[name], before[name])  # not even -0.0 becomes +0.0


def test_rules_say_who_gets_zeros() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    handle = attach(optimizer, {"*.bias": None, "0.*": L1(1.0), "*": HalvedL2(0.1)}, model=model, proximal=True)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(4, 30)).square().sum().backward()
        optimizer.step()
    assert int((model[0].weight == 0).sum()) > 0
    assert int((model[1].weight == 0).sum()) == 0
    assert handle.step == 5


def test_the_strength_is_the_step_s_own() -> None:
    w = parameter(np.full(3, 8.0, np.float32))
    optimizer = torch.optim.SGD([w], lr=0.5)
    handle = attach(optimizer, L1(1.0), proximal=True)
    handle.set_strength(lambda step: 1.0 + step)
    seen = []
    for _ in range(3):
        w.grad = torch.zeros(3)
        optimizer.step()
        seen.append(w[0].item())
    assert seen == [7.5, 6.5, 5.0]
    handle.set_strength(torch.tensor(2.0))
    w.grad = torch.zeros(3)
    optimizer.step()
    assert w[0].item() == 4.0
    handle.remove()
    optimizer.step()
    assert w[0].item() == 4.0


def test_the_gradient_form_makes_no_zeros() -> None:
    w, v = (parameter(np.array([3.0, 0.01], np.float32)) for _ in range(2))
    for each, proximal in ((w, False), (v, True)):
        optimizer = torch.optim.SGD([each], lr=0.25)
        attach(optimizer, L1(1.0), proximal=proximal)
        for _ in range(10):
            each.grad = torch.zeros(2)
            optimizer.step()
    assert (w != 0).all()
    assert v.tolist() == [0.5, 0.0]


def test_the_lasso_of_scikit_learn_is_reached() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 25))
    coefficients = np.where(rng.random(25) < 0.3, rng.standard_normal(25) * 3, 0)
    y = x @ coefficients + 0.1 * rng.standard_normal(80)
    theirs = Lasso(alpha=0.2, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y).coef_
    w, inputs, wanted = parameter(np.zeros(25)), torch.from_numpy(x), torch.from_numpy(y)
    rate = 1 / np.linalg.eigvalsh(x.T @ x / 80)[-1]
    optimizer = torch.optim.SGD([w], lr=float(rate))
    attach(optimizer, L1(0.2), proximal=True)
    for _ in range(1000):
        optimizer.zero_grad()
        ((inputs @ w - wanted).square().sum() / (2 * 80)).backward()
        optimizer.step()
    mine = w.detach().numpy()
    assert 3 < np.count_nonzero(theirs) < 20
    assert np.array_equal(mine != 0, theirs != 0)
    # Gradient steps of 1/L shrink the distance by 1 - curvature/L each: to nothing, after a thousand of them. What is
    # left is scikit-learn's tolerance, of the duality gap in units of |y|**2 / n, over the curvature.
    curvature = np.linalg.eigvalsh(x.T @ x / 80)[0]
    assert (1 - curvature * rate) ** 1000 < 1e-12
    assert np.linalg.norm(mine - theirs) <= np.sqrt(2 * 1e-14 * (y @ y) / 80 / curvature)


def test_closures_see_the_smooth_part() -> None:
    w = parameter(np.array([2.0, -4.0], np.float32))
    optimizer = torch.optim.SGD([w], lr=0.5)
    attach(optimizer, L1L2(1.0, 0.25), proximal=True)

    def closure() -> Any:
        w.grad = torch.zeros(2)
        return torch.tensor(1.0)

    assert optimizer.step(closure).item() == 1 + 0.25 * 20
    assert w.tolist() == [2 - 0.5 * 1 - 0.5, -4 + 0.5 * 2 + 0.5]


def test_autograd_sees_that_weights_were_moved() -> None:
    w = parameter(np.array([2.0, -4.0], np.float32))
    optimizer = torch.optim.SGD([w], lr=0.0)
    attach(optimizer, L1(1.0), proximal=True)
    version = w._version
    w.grad = torch.zeros(2)
    optimizer.step()
    assert w._version >= version + 2


def test_what_cannot_be_stepped() -> None:
    whole = parameter(sample((10,)))
    first, second = torch.nn.Parameter(whole.data[:6]), torch.nn.Parameter(whole.data[4:])
    optimizer = torch.optim.SGD([first, second], lr=0.5)
    attach(optimizer, L1(1.0), proximal=True)
    first.grad, second.grad = torch.zeros(6), torch.zeros(6)
    before = array(whole)
    with pytest.raises(ValueError, match=r"weights\['0.0'\] and weights\['0.1'\] share memory, which would be written"):
        optimizer.step()
    assert same(whole, before)
    for rate in (-0.5, float("nan"), float("inf")):
        w = parameter(np.ones(3, np.float32))
        optimizer = torch.optim.SGD([w], lr=0.5)
        attach(optimizer, L1(1.0), proximal=True)
        optimizer.param_groups[0]["lr"] = rate
        w.grad = torch.zeros(3)
        with pytest.raises(ValueError, match="lr must be a finite number that is not negative"):
            optimizer.step()
