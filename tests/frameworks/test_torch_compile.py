"""Penalties in programs that are traced: operators that pass PyTorch's own checks, compiled in one graph."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import gpureg
import gpureg.torch  # whose operators are called by their names
from gpureg import libraries
from tests.frameworks.torch_sides import TORCH, parameter, same, sample, tensor
from tests.helpers import DTYPES

BOTH = gpureg.L1L2(0.1, 0.3)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _nothing_is_compiled_before() -> None:
    torch.compiler.reset()


class Graphs(list[torch.fx.GraphModule]):
    """A backend that runs graphs as they are, and keeps them."""

    def __call__(self, graph: Any, _: Any) -> Any:
        self.append(graph)
        return graph

    def calls(self) -> list[str]:
        """Return the operators of gpureg in the graphs."""
        targets = [str(node.target) for graph in self for node in graph.graph.nodes if node.op == "call_function"]
        return [target for target in targets if "gpureg" in target]


# Operators


def arguments(strength: Any = None, divisor: int = 1) -> Any:
    tensors = [parameter(sample((3, 4))), tensor(sample((5,), "bfloat16")), parameter(sample((0,), "float64"))]
    return tensors, [0.1, 0.3, 0.6, 0.0, 0.5, 1.0, 0.2, 0.0, 0.0], 0.5, strength, divisor


@pytest.mark.parametrize("kind", TORCH.values(), ids=TORCH.keys())
def test_pytorch_s_checks_of_the_penalty(kind: Any) -> None:
    for more in ({}, {"divisor": 3}, {"strength": torch.tensor(0.7)}):
        torch.library.opcheck(torch.ops.gpureg.penalty.default, (*arguments(**more), kind))


def test_pytorch_s_checks_of_the_gradient() -> None:
    tensors, *rest = arguments(torch.tensor(0.7))
    tensors = [each.detach() for each in tensors]
    torch.library.opcheck(torch.ops.gpureg.penalty_gradient.default, (torch.tensor(2.0), tensors, *rest))


def test_operators_have_the_bits_of_calls() -> None:
    tensors, flat, *_ = arguments()
    value = torch.ops.gpureg.penalty(tensors, flat, 0.5, None, 2, torch.float64)
    regularizers = [gpureg.L1L2(0.1, 0.3), gpureg.L2(0.5), gpureg.L1(0.2)]
    penalty = gpureg.Penalty(dict(zip("abc", tensors, strict=True)), dict(zip("abc", regularizers, strict=True)))
    penalty.set_strength(0.5)
    assert value.item() == penalty().item() / 2
    gradients = torch.autograd.grad(value, [tensors[0], tensors[2]])
    expected = penalty.grads(scale=0.5)
    assert same(gradients[0], expected["a"])
    assert same(gradients[1], expected["c"])


# Functions


def built_inside(w: Any) -> Any:
    return gpureg.L1L2(0.1, l2=0.3)(w) * 3


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "a regularizer": lambda w: BOTH(w) * 3,
    "one built inside": built_inside,
    "the halved form": lambda w: gpureg.HalvedL2(0.5)(w) + w.sum(),
    "an activity": BOTH.activity,
    "a loss": gpureg.l2_loss,
    "a loss of another dtype": lambda w: gpureg.l1_loss(w, dtype=torch.float64) * 2,
    "a loss of a dtype by name": lambda w: gpureg.l1_loss(w, dtype="float16"),
    "weights computed inside": lambda w: BOTH(torch.tanh(w).t()),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_one_graph_and_have_the_same_bits(name: str, dtype: str) -> None:
    function, graphs = FUNCTIONS[name], Graphs()
    eager, compiled = (parameter(sample((6, 5), dtype)) for _ in range(2))
    expected = function(eager)
    found = torch.compile(function, fullgraph=True, backend=graphs)(compiled)
    expected.backward()
    found.backward()
    assert same(found, expected)
    assert same(compiled.grad, eager.grad)
    assert graphs.calls() == ["gpureg.penalty.default"]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_compiler_itself(backend: str) -> None:
    model, penalty = network()
    x = tensor(sample((4, 5)))

    def loss(x: Any) -> Any:
        return model(x).square().mean() + penalty() + built_inside(model[0].weight) + BOTH.activity(model[0](x))

    expected = torch.autograd.grad(loss(x), list(model.parameters()))
    value = torch.compile(loss, fullgraph=True, backend=backend)(x)
    found = torch.autograd.grad(value, list(model.parameters()))
    # The network's own numbers are summed in another order there.
    assert torch.allclose(value, loss(x), rtol=1e-5)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(found, expected, strict=True))


def network() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    rules = gpureg.Rules.exclude_bias_and_norm(gpureg.L1L2(0.01, 0.02))
    return model, gpureg.Penalty(dict(model.named_parameters()), rules)


def test_a_penalty_of_many_sees_its_weights_and_its_strength() -> None:
    model, penalty = network()
    graphs = Graphs()
    compiled = torch.compile(lambda: penalty() * 2, fullgraph=True, backend=graphs)

    def check() -> None:
        values = compiled(), penalty() * 2
        assert same(*values)
        assert same(*(torch.autograd.grad(value, model[0].weight)[0] for value in values))

    check()
    with torch.no_grad():
        model[0].weight.mul_(3)
    model[2].weight.data = torch.ones(3, 7)
    check()
    assert len(graphs) == 1
    strength = torch.tensor(0.5)
    penalty.set_strength(strength)
    for factor in (0.5, 0.25, 0.0):
        strength.fill_(factor)
        check()
    assert len(graphs) == 2
    penalty.set_strength(lambda step: 0.1 * step)
    penalty.step = 3
    check()
    assert not penalty(scope="nothing").requires_grad


def test_a_penalty_of_nothing() -> None:
    penalty = gpureg.Penalty({"a": torch.ones(3)}, {"a": None})
    assert torch.compile(penalty, fullgraph=True, backend="eager")().item() == 0


def test_one_graph_serves_batches_of_any_length_and_other_arrays_in_between() -> None:
    graphs = Graphs()
    compiled = torch.compile(BOTH.activity, fullgraph=True, backend=graphs, dynamic=True)
    for length in (4, 9, 5):
        x = tensor(sample((length, 3)))
        assert same(compiled(x), BOTH.activity(x))
        libraries._known.clear()
        BOTH(np.ones(3))  # so that gpureg learns of another type of arrays
    assert len(graphs) == 1


def test_the_first_call_of_all_may_be_compiled() -> None:
    program = """
import torch
import gpureg

w = torch.ones(3, requires_grad=True)
torch.compile(lambda w: gpureg.L1(0.5)(w) * 2, fullgraph=True, backend="eager")(w).backward()
print(w.grad.tolist())
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[1.0, 1.0, 1.0]\n"


def test_whatever_else_is_asked_for_is_refused() -> None:
    w, g = torch.ones(3), torch.zeros(3)
    calls: list[Callable[[], Any]] = [
        lambda: BOTH.grad(w),
        lambda: BOTH.accumulate_grad(w, g),
        lambda: BOTH.prox_(w, 0.5),
        lambda: gpureg.OrthogonalRegularizer()(w),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"w has no elements: .*torch.compiler.disable keeps a function from being"):
            torch.compile(call, backend="eager")()
    assert not g.any()


# Other programs


def test_exported_programs() -> None:
    class Regularized(torch.nn.Module):  # type: ignore[misc] # it may have no hints
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return self.layer(x).sum() + BOTH(self.layer.weight)

    model, x = Regularized(), torch.ones(2, 3)
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        assert same(program.module()(x), model(x))


def test_traced_functions_keep_the_operator() -> None:
    w, p = tensor(sample((4,))), parameter(sample((5,)))
    penalty = gpureg.Penalty({"p": p}, BOTH)
    graph = make_fx(lambda w: BOTH(w) + penalty())(w)
    assert "torch.ops.gpureg.penalty.default([w_1]" in graph.code
    with torch.no_grad():
        p.mul_(2)
    assert same(graph(w), BOTH(w) + penalty())


def test_fake_tensors_tell_shapes_and_dtypes() -> None:
    with FakeTensorMode():
        w = torch.empty(3, 4, dtype=torch.bfloat16, requires_grad=True)
        value = gpureg.Penalty({"w": w}, BOTH)()
        value.backward()
        assert (value.shape, value.dtype, w.grad.shape, w.grad.dtype) == ((), torch.float32, w.shape, w.dtype)
        with pytest.raises(TypeError, match=r"weights\['w'\] is traced and has no elements"):
            gpureg.Penalty({"w": w}, BOTH).losses()


def test_what_watches_operators_sees_the_penalty() -> None:
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc] # likewise
        def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
            seen.append(str(function))
            return function(*given, **(options or {}))

    penalty = gpureg.Penalty({"w": torch.ones(3)}, BOTH)
    penalty.set_strength(torch.tensor(0.5))
    with Watch():
        values = BOTH(torch.ones(3)), penalty()
    assert same(values[0], BOTH(torch.ones(3)))
    assert same(values[1], penalty())
    assert seen.count("gpureg.penalty.default") == 2
