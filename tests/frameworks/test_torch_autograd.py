"""Gradients through autograd: NumPy's bits, within the derived bound of torch's own, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import gpureg
from gpureg import backends
from tests.frameworks.torch_sides import parameter, same, sample, tensor
from tests.helpers import CONTENTS, DTYPES, content

L1, L2 = gpureg.L1(0.1), gpureg.L2(0.3)
BOTH = gpureg.L1L2(0.1, 0.3)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),  # of torch.func.jvp
    pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning"),
]
SHAPES = [(), (0,), (0, 3), (1,), (5, 7), (3, 5, 2, 2), (40_000,)]


def scaled(w: Any, scale: float, regularizer: gpureg.Regularizer = BOTH) -> Any:
    """Return the gradient that NumPy's backend gives where this comes down to the penalty."""
    return gpureg.Penalty({"w": w}, regularizer).grads(scale=scale)["w"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_autograd_gets_numpy_s_bits(shape: tuple[int, ...], dtype: str) -> None:
    w = sample(shape, dtype)
    p = parameter(w)
    value = BOTH(p)
    assert value.requires_grad
    assert value.shape == ()
    assert same(value, BOTH(w))
    value.backward()
    assert same(p.grad, BOTH.grad(w))


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_content(dtype: str, name: str) -> None:
    w = content(name, 20_000, dtype)
    p = parameter(w)
    (BOTH(p) * 3).backward()
    assert same(p.grad, scaled(w, 3.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_those_of_the_plain_expression(dtype: str) -> None:
    w = sample((300, 70), dtype)
    p, plain = parameter(w), parameter(w.astype(np.float64))
    BOTH(p).backward()
    (0.1 * plain.abs().sum() + 0.3 * plain.square().sum()).backward()
    # c1 and c2 are rounded, so is c2 * w, and then their sum: each by at most half a unit of what it is, and no part is
    # larger than |c1| + |c2 w|. That is 3 half units and what they multiply up to; in float64 the plain expression, of
    # as many operations, is as far off on the other side.
    unit = {"float32": 2.0**-24, "float64": 2.0**-53}[dtype]
    sides = {"float32": 1, "float64": 2}[dtype]
    bound = sides * 3.01 * unit * (0.1 + 0.6 * plain.detach().abs())
    assert ((p.grad.double() - plain.grad).abs() <= bound).all()


def test_what_comes_down_scales_the_gradient() -> None:
    w = sample((100,))
    p = parameter(w)
    (3.0 * BOTH(p) + 4.0 * gpureg.l1_loss(p)).backward()
    # Coefficients are scaled before their one rounding; PyTorch adds the two gradients.
    first, second = scaled(w, 3.0), scaled(w, 4.0, gpureg.L1(1.0))
    assert same(p.grad, first + second)


def test_a_gradient_of_another_dtype_comes_down() -> None:
    w = sample((100,), "float16")
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        p = parameter(w)
        value = gpureg.l2_loss(p, dtype=kind)
        assert value.dtype is kind
        (value * 2).backward()
        assert same(p.grad, scaled(w, 2.0, gpureg.HalvedL2(1.0)))


def test_an_activity_is_over_the_batch() -> None:
    for length in range(1, 20):
        x = sample((length, 8))
        p = parameter(x)
        value = L2.activity(p)
        assert same(value, L2.activity(x))
        value.backward()
        # What comes down is divided in float64: by float32 some coefficients would be another.
        assert same(p.grad, scaled(x, 1 / length, L2))


def test_weights_that_are_computed_pass_the_gradient_on() -> None:
    w = sample((50, 20))
    p = parameter(w)
    BOTH(torch.tanh(p).t()).backward()
    plain = parameter(w)
    inner = torch.tanh(plain)
    inner.backward(tensor(BOTH.grad(inner.detach().numpy())))
    assert same(p.grad, plain.grad)


def test_layouts_keep_their_gradients() -> None:
    w = sample((6, 5, 4, 3))
    for p in (parameter(w).transpose(0, 2), parameter(w).contiguous(memory_format=torch.channels_last)):
        leaf = p.detach().requires_grad_()
        BOTH(leaf).backward()
        assert same(leaf.grad, BOTH.grad(leaf.detach().numpy()))
        assert leaf.grad.stride() == leaf.stride()


def test_coefficients_of_zero_give_a_tensor() -> None:
    """Not a Python 0, as once in Keras (keras#10090); and 0 times infinity does not arise."""
    p = parameter(np.array([1.0, -np.inf, np.nan], np.float32))
    value = gpureg.L1L2(0.0, 0.0)(p)
    value.backward()
    assert same(value, np.float32(0))
    assert same(p.grad, np.zeros(3, np.float32))


def test_no_record_is_kept_where_none_is_wanted() -> None:
    p = parameter(sample((10,)))
    for value in (BOTH(p.detach()), BOTH.grad(p), BOTH.value_and_grad(p)[0]):
        assert not value.requires_grad
    with torch.no_grad():
        assert not BOTH(p).requires_grad


def test_only_what_requires_a_gradient_gets_one() -> None:
    weights = {name: parameter(sample((30,), seed=seed)) for seed, name in enumerate("abc")}
    weights["b"].requires_grad_(False)
    rules = {"a": L1, "b": L2, "c": BOTH}
    penalty = gpureg.Penalty(weights, rules)
    total = penalty()
    total.backward()
    reference = gpureg.Penalty({name: w.detach().numpy() for name, w in weights.items()}, rules)
    assert same(total, reference())
    assert weights["b"].grad is None
    for name in "ac":
        assert same(weights[name].grad, reference.grads()[name])


def test_a_penalty_of_many_is_differentiated_and_current() -> None:
    weights = {"a": parameter(sample((30, 7))), "b": parameter(sample((5,), seed=1)), "c": tensor(sample((2,)))}
    rules = {"b": None, "*": BOTH}
    penalty = gpureg.Penalty(weights, rules)
    for step in range(4):
        reference = gpureg.Penalty({name: w.detach().numpy().copy() for name, w in weights.items()}, rules)
        total = penalty()
        gradients = torch.autograd.grad(2 * total, [weights["a"], weights["b"]], allow_unused=True)
        assert same(total, reference())
        assert gradients[1] is None
        assert same(gradients[0], reference.grads(scale=2.0)["a"])
        with torch.no_grad():
            assert same(penalty(), reference())
            weights["a"].add_(1)
        if step == 1:
            weights["a"].data = torch.ones(30, 7)  # other memory under the same parameter
        if step == 2:
            weights["a"] = parameter(sample((3,), "float64"))


def test_one_plan_serves_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {str(i): parameter(sample((9,), seed=i)) for i in range(3)}
    penalty = gpureg.Penalty(weights, BOTH)

    def plan(*_: Any) -> None:
        raise AssertionError("made a plan")

    monkeypatch.setattr(type(backends.cpu()), "plan", plan)
    for _ in range(3):
        (penalty() * 2).backward()
        penalty.accumulate_grad({name: w.grad for name, w in weights.items()})
    with pytest.raises(AssertionError, match="made a plan"):
        BOTH(weights["0"])


def test_the_strength_may_be_a_tensor() -> None:
    w = sample((30,))
    p = parameter(w)
    penalty = gpureg.Penalty({"a": p}, BOTH)
    for strength in (torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)):
        penalty.set_strength(strength)
        reference = gpureg.Penalty({"a": w}, BOTH)
        for factor in (0.3, 0.7):
            strength.fill_(factor)
            reference.set_strength(strength.item())
            p.grad = None
            total = penalty()
            total.backward()
            assert same(total, reference())
            assert same(p.grad, reference.grads()["a"])
    with pytest.raises(ValueError, match=r"strength has shape \(1,\); expected a number or a 0-d array"):
        penalty.set_strength(torch.ones(1))
    with pytest.raises(TypeError, match=r"strength has dtype torch\.int64; expected float32 or float64"):
        penalty.set_strength(torch.tensor(1))


def test_orthogonality_is_differentiated() -> None:
    regularizer = gpureg.OrthogonalRegularizer(0.5)
    for dtype in ("float32", "float64"):
        w = sample((4, 6), dtype)
        p = parameter(w)
        (2 * regularizer(p)).backward()
        assert same(p.grad, 2 * regularizer.grad(w))


# How graphs are used


def test_a_graph_is_gone_through_twice_and_in_checkpoints() -> None:
    w = sample((40,))
    p = parameter(w)
    value = BOTH(p)
    value.backward(retain_graph=True)
    value.backward()
    assert same(p.grad, BOTH.grad(w) * 2)
    p.grad = None
    torch.utils.checkpoint.checkpoint(lambda x: BOTH(x * 1), p, use_reentrant=False).backward()
    assert same(p.grad, BOTH.grad(w))
    p.grad = None
    with torch.autograd.detect_anomaly(check_nan=True):
        BOTH(p).backward()
    assert same(p.grad, BOTH.grad(w))


def test_tensors_that_autograd_keeps_elsewhere() -> None:
    """The gradient is at the tensors as they were saved, wherever they are by then."""
    w = sample((40,))
    p = parameter(w)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        value = BOTH(p)
    with torch.no_grad():
        p.zero_()
    value.backward()
    assert same(p.grad, BOTH.grad(w))


def test_weights_that_were_changed_have_no_gradient_any_more() -> None:
    p = parameter(sample((40,)))
    value = BOTH(p)
    with torch.no_grad():
        p.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


# What is refused

TWICE = "the gradient of a gpureg penalty has no gradient of its own; write the plain expression"
TRANSFORM = "is used within a transform of torch.func, such as grad or vmap, or in forward mode, .*plain expression"


@pytest.mark.parametrize("regularizer", [BOTH, gpureg.OrthogonalRegularizer(0.5)])
def test_a_gradient_has_no_gradient(regularizer: Any) -> None:
    p = parameter(sample((4, 5)))
    (gradient,) = torch.autograd.grad(regularizer(p), p, create_graph=True)  # which some optimizers ask for in vain
    assert same(gradient, regularizer.grad(p))
    with pytest.raises(RuntimeError, match=TWICE):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match=TWICE):
        torch.autograd.functional.hessian(regularizer, p)


def test_a_gradient_of_an_operator_has_no_gradient() -> None:
    p = parameter(sample((4,)))
    value = torch.ops.gpureg.penalty([p], [0.1, 0.3, 0.6], 1.0, None, 1, torch.float32)
    (gradient,) = torch.autograd.grad(value, p, create_graph=True)
    with pytest.raises(RuntimeError, match=TWICE):
        gradient.sum().backward()


@pytest.mark.parametrize("regularizer", [BOTH, gpureg.OrthogonalRegularizer(0.5)])
def test_transforms_are_refused(regularizer: Any) -> None:
    w, p = tensor(sample((4, 5))), parameter(sample((4, 5)))
    captured = gpureg.Penalty({"p": p}, BOTH)
    transforms: list[Any] = [
        lambda: torch.func.grad(regularizer)(w),
        lambda: torch.func.vmap(regularizer)(w),
        lambda: torch.func.vmap(regularizer)(p),
        lambda: torch.func.jvp(regularizer, (w,), (w,)),
        lambda: torch.func.hessian(regularizer)(w),
        lambda: torch.func.vmap(lambda x: x.sum() + regularizer(p))(w),
        lambda: torch.func.grad(lambda x: x.sum() + captured())(w),
        lambda: torch.func.vmap(regularizer.grad)(w),
    ]
    for transform in transforms:
        with pytest.raises(TypeError, match=TRANSFORM):
            transform()
    with forward_ad.dual_level():
        assert not regularizer(w).requires_grad
        dual = forward_ad.make_dual(w, torch.ones_like(w))
        with pytest.raises(TypeError, match=TRANSFORM):
            regularizer(dual)


def test_batches_of_gradients_are_refused() -> None:
    p = parameter(sample((4,)))
    with pytest.raises(TypeError, match="the upstream gradient has no memory of its own, as a tensor within vmap"):
        torch.autograd.grad(BOTH(p), p, torch.ones(2), is_grads_batched=True)
