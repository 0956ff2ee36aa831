"""Optimizers as programs make and use them: an attached penalty is added once, or the program is told why not."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel

import gpureg.torch
from gpureg import L1, L1L2, HalvedL2
from gpureg.torch import attach
from tests.frameworks.torch_sides import parameter, same

BOTH = L1L2(0.25, 0.5)


def ones() -> Any:
    return parameter(np.ones(3, np.float32))


def stepped(optimizer: Any, w: Any, *arguments: Any) -> list[float]:
    """Take a step along no gradient but a penalty's, and return that."""
    w.grad = torch.zeros_like(w)
    optimizer.step(*arguments)
    return list(w.grad.tolist())


@contextmanager
def process_group(folder: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


# A step within a step


class Derived(torch.optim.SGD):  # type: ignore[misc] # it may have no hints
    """An optimizer that goes on to the step of the class it is derived from."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Outer(torch.optim.SGD):  # type: ignore[misc] # likewise
    """An optimizer that has another one take its step."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.param_groups)
        self.inner = inner

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@pytest.mark.parametrize("proximal", [False, True])
def test_a_class_that_calls_its_parent_s_step_is_penalised_once(proximal: bool) -> None:
    """PyTorch runs the hooks of both steps, once an optimizer of the parent class was made."""
    plain, w = ones(), ones()
    optimizers = torch.optim.SGD([plain], lr=0.5), Derived([w], lr=0.5)
    assert torch.optim.SGD.step.hooked
    handles = [attach(optimizer, L1L2(0.125, 0.25), proximal=proximal) for optimizer in optimizers]
    handles[1].set_strength(lambda step: 1.0 + step)
    handles[0].set_strength(lambda step: 1.0 + step)
    for _ in range(2):
        for optimizer, p in zip(optimizers, (plain, w), strict=True):
            stepped(optimizer, p)
    assert same(w, plain)
    assert same(w.grad, plain.grad)
    assert handles[0].step == handles[1].step == 2


def test_closures_of_a_class_that_calls_its_parent_s_step_are_penalised_once() -> None:
    w = ones()
    torch.optim.SGD([ones()])
    optimizer = Derived([w], lr=0.0)
    attach(optimizer, L1(0.5))

    def closure() -> float:
        w.grad = torch.zeros(3)
        return 1.0

    assert optimizer.step(closure) == 1 + 1.5
    assert w.grad.tolist() == [0.5] * 3


def test_a_step_after_one_that_failed_within_is_penalised() -> None:
    torch.optim.SGD([ones()])
    w = ones()
    optimizer = Derived([w], lr=0.0)
    handle = attach(optimizer, L1(0.5))

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError) as failed:  # and its frames are kept
        optimizer.step(fail)
    assert stepped(optimizer, w) == [0.5] * 3
    assert handle.step == 1
    assert failed.tb is not None


def test_the_step_of_another_optimizer_within_is_its_own() -> None:
    w = ones()
    inner = torch.optim.SGD([w], lr=0.0)
    outer = Outer(inner)
    handles = attach(inner, L1(0.5)), attach(outer, L1(0.25))
    assert stepped(outer, w) == [0.75] * 3
    handles[1].remove()
    assert stepped(outer, w) == [0.5] * 3


# Kinds of optimizers


def test_an_optimizer_for_each_parameter_that_steps_within_the_backward_pass() -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(5)])
    penalty = gpureg.torch.Penalty(model, L1(0.5))
    handles = []

    def at_once(optimizer: Any) -> Callable[[Any], None]:
        def step(_: Any) -> None:
            optimizer.step()
            optimizer.zero_grad()

        return step

    for p in model.parameters():
        optimizer = torch.optim.SGD([p], lr=0.0)
        handles.append(attach(optimizer, penalty))
        p.register_post_accumulate_grad_hook(at_once(optimizer))
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()
    for handle, loss in zip(handles, penalty.losses().values(), strict=True):
        assert same(handle.value, loss)
        assert handle.step == 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_sharded_states_of_an_optimizer(tmp_path: Any) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # noqa: PLC0415 - it warns when it is imported

    with process_group(tmp_path):
        for proximal, moved in ((False, 0.5), (True, 0.0)):
            w = ones()
            optimizer = ZeroRedundancyOptimizer([w], torch.optim.SGD, lr=0.5)
            handle = attach(optimizer, L1(0.5), proximal=proximal)
            assert stepped(optimizer, w) == [moved] * 3
            assert w.tolist() == [0.75] * 3
            assert handle.step == 1


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
def test_parameters_of_fsdp_are_refused(tmp_path: Any) -> None:
    """Each process holds a part of them, and its penalty would be that of the part alone (pytorch#170862)."""
    with process_group(tmp_path):
        for original in (False, True):
            model = FullyShardedDataParallel(
                torch.nn.Linear(3, 3), device_id=torch.device("cpu"), use_orig_params=original
            )
            with pytest.raises(TypeError, match=r"weights\['0.0'\] is a parameter of FullyShardedDataParallel, of whi"):
                attach(torch.optim.SGD(model.parameters()), BOTH)


def test_an_optimizer_whose_steps_are_differentiated_is_refused() -> None:
    with pytest.raises(ValueError, match="the optimizer's steps are differentiable, but the gradient of a gpureg pena"):
        attach(torch.optim.SGD([ones()], differentiable=True), BOTH)


class Wrapper(torch.optim.Optimizer):  # type: ignore[misc] # likewise
    """As some libraries have them: an optimizer by name, that was never set up as one."""

    def __init__(self, within: Any) -> None:
        self.within = within

    @property
    def param_groups(self) -> Any:
        return self.within.param_groups


class WithoutRate(torch.optim.Optimizer):  # type: ignore[misc] # likewise
    def __init__(self, given: Any) -> None:
        super().__init__(given, {})

    def step(self, rate: float = 0.0) -> float:
        return rate


def test_a_wrapper_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Wrapper has no hooks, so it may be a wrapper .* attach to the one within"):
        attach(Wrapper(torch.optim.SGD([ones()])), BOTH)


def test_an_optimizer_without_a_rate_takes_no_proximal_step() -> None:
    w = ones()
    optimizer = WithoutRate([w])
    with pytest.raises(ValueError, match="WithoutRate has no lr, which is what a proximal step goes by"):
        attach(optimizer, BOTH, proximal=True)
    attach(optimizer, L1(0.5))
    assert stepped(optimizer, w) == [0.5] * 3


def test_what_a_step_is_given_need_be_no_closure() -> None:
    optimizer = WithoutRate([w := ones()])
    attach(optimizer, L1(0.5))
    w.grad = torch.zeros(3)
    assert optimizer.step(0.25) == 0.25
    assert w.grad.tolist() == [0.5] * 3


def test_lbfgs_with_two_penalties_compares_both() -> None:
    w = parameter(np.zeros(3))
    optimizer = torch.optim.LBFGS([w], line_search_fn="strong_wolfe")
    for _ in range(2):
        attach(optimizer, HalvedL2(0.5))

    def closure() -> Any:
        optimizer.zero_grad()
        loss = 0.5 * (w - 2).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert torch.allclose(w, torch.ones_like(w), rtol=0, atol=1e-9)  # quadratic: found to a few units in the last place


def test_an_optimizer_that_takes_on_other_parameters_of_a_penalty() -> None:
    """By groups that are added, and by as many others in the place of its own."""
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(3)])
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.0)
    handle = attach(optimizer, gpureg.torch.Penalty(model, L1(0.5)))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.param_groups[0]["params"] = list(model[1].parameters())
    optimizer.step()
    assert list(handle.losses()) == ["1.weight", "1.bias"]
    optimizer.add_param_group({"params": model[2].parameters()})
    optimizer.step()
    assert list(handle.losses()) == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert [float(layer.weight.grad.abs().max()) for layer in model] == [0.5, 1.0, 0.5]


# Names


def test_groups_of_several_modules_may_have_the_same_names() -> None:
    modules = [torch.nn.Linear(2, 2) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": module.named_parameters()} for module in modules])
    assert list(attach(optimizer, BOTH).losses()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(attach(optimizer, {"*.bias": None, "*": BOTH}).losses()) == ["0.weight", "1.weight"]
    chained = [pair for module in modules for pair in module.named_parameters()]
    with pytest.raises(ValueError, match=r"weights has two arrays named '0\.weight'"):
        attach(torch.optim.SGD(chained), BOTH)


# Handles


def test_hooks_run_in_the_order_in_which_they_came() -> None:
    w, seen = ones(), []
    optimizer = torch.optim.SGD([w], lr=0.0)

    def see(*_: Any) -> None:
        seen.append(w.grad.tolist())

    optimizer.register_step_pre_hook(see)
    attach(optimizer, L1(0.5))
    optimizer.register_step_pre_hook(see)
    stepped(optimizer, w)
    assert seen == [[0.0] * 3, [0.5] * 3]


def test_a_handle_is_neither_copied_nor_pickled() -> None:
    handle = attach(torch.optim.SGD([ones()]), BOTH)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"a handle cannot be copied or pickled, .*: attach the penalty again"):
            copied(handle)


def test_losses_of_handles_that_share_a_penalty_have_the_strength_of_each_s_step() -> None:
    a, b = ones(), ones()
    penalty = gpureg.torch.Penalty({"a": a, "b": b}, L1(1.0))
    penalty.set_strength(lambda step: 1.0 + step)
    optimizers = [torch.optim.SGD([w], lr=0.0) for w in (a, b)]
    handles = [attach(optimizer, penalty) for optimizer in optimizers]
    for _ in range(2):
        stepped(optimizers[0], a)
    stepped(optimizers[1], b)
    assert handles[0].losses()["a"].item() == 3 * 3
    assert handles[1].losses()["b"].item() == 3 * 2


def test_values_of_steps_may_be_kept() -> None:
    w = ones()
    optimizer = torch.optim.SGD([w], lr=0.5)
    handle, kept = attach(optimizer, L1(0.5)), []
    for _ in range(3):
        stepped(optimizer, w)
        kept.append(handle.value)
    assert [value.item() for value in kept] == [1.5, 1.125, 0.75]


def test_values_may_be_asked_for_in_inference_mode() -> None:
    w = ones()
    optimizer = torch.optim.SGD([w], lr=0.0)
    handle = attach(optimizer, L1(0.5))
    with torch.inference_mode():
        assert handle.value.item() == handle.losses()["0.0"].item() == 1.5
    assert stepped(optimizer, w) == [0.5] * 3
    handle.penalty().backward()


# Settings of the whole program


def test_scales_are_read_whatever_the_default_dtype() -> None:
    w = ones()
    optimizer = torch.optim.SGD([w], lr=0.5, fused=True)
    attach(optimizer, L1(0.5))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale((w * w).sum() / 2).backward()
    scaler.unscale_(optimizer)
    torch.set_default_dtype(torch.bfloat16)
    try:
        scaler.step(optimizer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert w.tolist() == [1 - 0.5 * 1.5] * 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # PyTorch's own
def test_a_closure_may_be_compiled_with_its_step() -> None:
    torch.compiler.reset()
    w, v = ones(), ones()
    for p, compiled in ((w, True), (v, False)):
        optimizer = torch.optim.SGD([p], lr=0.125)
        attach(optimizer, BOTH)

        def step(optimizer: Any = optimizer, p: Any = p) -> Any:
            def closure() -> Any:
                optimizer.zero_grad()
                loss = (p * p).sum()
                loss.backward()
                return loss

            return optimizer.step(closure)

        take = torch.compile(step, backend="eager") if compiled else step
        losses = [take().item() for _ in range(3)]
        assert losses[0] == 3 + 0.25 * 3 + 0.5 * 3
    assert same(w, v)


FORKED = """
import torch
from gpureg import L1
from gpureg.torch import attach


class Penalties(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, item):
        return float(L1(1.0)(torch.full((3_000_000,), 0.5)) + item)


w = torch.nn.Parameter(torch.ones(4_000_000))
optimizer = torch.optim.SGD([w], lr=0.0)
attach(optimizer, L1(0.5))
for _ in range(2):
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert (w.grad == 0.5).all()
    loader = torch.utils.data.DataLoader(
        Penalties(), batch_size=2, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    assert [numbers.tolist() for numbers in loader] == [[1_500_000, 1_500_001], [1_500_002, 1_500_003]]
print("done")
"""


def test_processes_that_are_forked_after_threads_were_used() -> None:
    """In a process of its own: JAX, say, warns of any fork."""
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
