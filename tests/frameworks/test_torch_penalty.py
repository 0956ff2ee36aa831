"""`gpureg.torch.Penalty`: a model's parameters under rules, whatever becomes of the model."""

import copy
import doctest
import importlib
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import gpureg
import gpureg.torch
from gpureg import L1, L1L2, L2, HalvedL2, Rules
from tests.frameworks.torch_sides import parameter, same, sample

BOTH = L1L2(0.1, 0.3)


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.ReLU(), torch.nn.Linear(7, 3))


def reference(model: Any, rules: Any) -> gpureg.Penalty:
    """Return the penalty of the same numbers in NumPy arrays."""
    return gpureg.Penalty({name: p.detach().numpy() for name, p in model.named_parameters()}, rules)


@pytest.mark.parametrize(
    "module", [name for _, name, _ in pkgutil.iter_modules(gpureg.torch.__path__) if name != "demo"]
)
def test_examples(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"gpureg.torch.{module}"))
    assert (failed, attempted > 5) == (0, True)


def test_without_pytorch_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['torch'] = None; import gpureg; import gpureg.torch"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stderr.endswith("ModuleNotFoundError: gpureg.torch needs PyTorch: pip install torch\n")


def test_the_public_names_are_there() -> None:
    assert all(getattr(gpureg.torch, name).__module__.startswith("gpureg.torch.") for name in gpureg.torch.__all__)


@pytest.mark.parametrize("kind", ["module", "pairs", "mapping"])
def test_a_model_s_parameters_have_numpys_bits(kind: str) -> None:
    model, rules = network(), Rules.exclude_bias_and_norm(BOTH)
    given = {"module": model, "pairs": model.named_parameters(), "mapping": dict(model.named_parameters())}
    penalty = gpureg.torch.Penalty(given[kind], rules)
    on_host = reference(model, rules)
    total = penalty()
    total.backward()
    assert same(total, on_host())
    assert list(penalty.losses()) == list(on_host.losses()) == ["0.weight", "3.weight"]
    for name, gradient in on_host.grads().items():
        assert same(model.get_parameter(name).grad, gradient)
        assert same(penalty.losses()[name], on_host.losses()[name])
    assert str(penalty.explain()) == str(on_host.explain())


def test_the_known_sum_of_halved_squares() -> None:
    """Weight decay over all but biases is decay times the sum of l2_loss: OpenSeq2Seq and tf.contrib both have it."""
    model = network()
    total = gpureg.torch.Penalty(model, {"*.bias": None, "*": HalvedL2(1e-3)})()
    expected = sum(
        float(p.detach().double().square().sum()) / 2 for n, p in model.named_parameters() if "bias" not in n
    )
    assert total.item() == pytest.approx(1e-3 * expected, rel=2**-23)


def test_tied_parameters_count_once() -> None:
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(9, 4), "head": torch.nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embedding"].weight
    penalty = gpureg.torch.Penalty(model, L2(0.5))
    assert [row.rule for row in penalty.explain()] == ["default", "tied to embedding.weight"]
    penalty().backward()
    assert same(model["head"].weight.grad, L2(0.5).grad(model["head"].weight))
    each = gpureg.torch.Penalty(model, L2(0.5), tied="each")
    assert each().item() == 2 * penalty().item()
    with pytest.raises(ValueError, match=r"weights\['embedding.weight'\] and weights\['head.weight'\] are one and the"):
        gpureg.torch.Penalty(model, {"head.*": None, "*": L1(0.1)})


def test_frozen_parameters_are_left_out_while_they_are() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    penalty = gpureg.torch.Penalty(model, {"0.*": L1(0.1), "*": BOTH})  # no rule is void for that
    assert penalty.explain()[0][2:4] == ("float32", "frozen")
    assert "0.weight" not in penalty.losses()
    model[0].weight.requires_grad_()
    model[3].requires_grad_(False)
    assert list(penalty.losses()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    penalty().backward()
    assert model[0].weight.grad is not None
    assert model[3].weight.grad is None
    model.requires_grad_(False)
    assert penalty().item() == 0
    assert penalty.accumulate_grad().item() == 0


def test_what_becomes_of_the_model_is_noticed() -> None:
    model = network()
    penalty = gpureg.torch.Penalty(model, BOTH)

    def check() -> None:
        assert same(penalty(), reference(model, BOTH)())
        assert same(gpureg.torch.Penalty(model, BOTH)(), penalty())

    check()
    with torch.no_grad():
        model[0].weight.add_(1)
    check()
    model[0].weight.data = torch.ones(7, 5)
    check()
    model[0].weight = torch.nn.Parameter(torch.full((7, 5), 2.0))
    check()
    model[3] = torch.nn.Linear(7, 2)
    check()
    model.append(torch.nn.Linear(2, 2))
    check()
    model[1].register_parameter("more", torch.nn.Parameter(torch.ones(3)))
    check()
    model.double()
    check()
    assert penalty().dtype is torch.float64
    model.to(torch.float32)
    del model[4]
    check()
    model[0].weight.data = model[0].weight.data.t().contiguous().t()  # the same numbers in another order
    check()
    torch.nn.utils.parametrizations.weight_norm(model[0])
    check()


def test_the_same_memory_seen_in_another_way_is_noticed() -> None:
    w = parameter(sample((6, 6), "float16"))
    penalty = gpureg.torch.Penalty({"w": w}, BOTH)
    changes: list[Callable[[Any], Any]] = [
        lambda data: data.t(),
        lambda data: data.view(torch.bfloat16),
        lambda data: data[:3],
        lambda data: data[:, ::2],
    ]
    for change in changes:
        penalty()
        w.data = change(w.data)
        assert same(penalty.grads()["w"], BOTH.grad(w))
        assert same(penalty(), BOTH(w))


def test_gradients_are_the_parameters_own_by_default() -> None:
    model = network()
    rules = Rules.exclude_bias_and_norm(BOTH)
    penalty, x = gpureg.torch.Penalty(model, rules), torch.ones(4, 5)
    model(x).square().mean().backward()
    start = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    on_host = reference(model, rules)
    assert same(penalty.accumulate_grad(), on_host.accumulate_grad(start))
    for name, p in model.named_parameters():
        assert same(p.grad, start[name])
    model[3].weight.grad = None
    assert same(penalty.accumulate_grad(), on_host.accumulate_grad(start | {"3.weight": None}))
    assert same(model[0].weight.grad, start["0.weight"])
    assert penalty.step == 2


def test_gradients_are_those_of_the_parameters_that_there_are_now() -> None:
    model = network()
    penalty = gpureg.torch.Penalty(model, BOTH)
    model(torch.ones(4, 5)).sum().backward()
    old = model[3].weight.grad.clone()
    replaced, model[3].weight = model[3].weight, torch.nn.Parameter(torch.full((3, 7), 2.0))
    model[3].weight.grad = torch.ones(3, 7)
    penalty.accumulate_grad()
    assert same(model[3].weight.grad, torch.ones(3, 7) + BOTH.grad(model[3].weight))
    assert same(replaced.grad, old)


def test_a_scale_may_be_a_tensor() -> None:
    model = network()
    penalty, on_host = gpureg.torch.Penalty(model, BOTH), reference(model, BOTH)
    scale = torch.tensor(1024.0)
    for name, gradient in penalty.grads(scale=scale).items():
        assert same(gradient, on_host.grads(scale=1024.0)[name])


def test_gradients_that_will_not_do_are_named_and_all_left_alone() -> None:
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), embedding)
    (model[0](torch.ones(2, 3)).sum() + embedding(torch.tensor([1])).sum()).backward()
    penalty, before = gpureg.torch.Penalty(model, BOTH), model[0].weight.grad.clone()
    for _ in range(2):
        with pytest.raises(TypeError, match=r"grads\['1.weight'\] is a sparse_coo tensor; expected a dense one"):
            penalty.accumulate_grad()
        assert same(model[0].weight.grad, before)
    model[1].weight.grad = torch.zeros(4, 3)
    penalty.accumulate_grad()
    model[1].weight.grad = torch.zeros(4, 3).to_sparse()
    with pytest.raises(TypeError, match=r"grads\['1.weight'\] is a sparse_coo tensor"):
        penalty.accumulate_grad()
    model[1].weight.grad = None
    with pytest.raises(ValueError, match=r"grads lacks '0.bias'"):
        penalty.accumulate_grad({"0.weight": before})


def test_gradients_that_share_memory_with_parameters_are_refused() -> None:
    model = torch.nn.Linear(3, 3)
    penalty = gpureg.torch.Penalty(model, BOTH)
    with pytest.raises(ValueError, match=r"grads\['weight'\] shares memory with weights\['weight'\]"):
        penalty.accumulate_grad({"weight": model.weight.detach().t(), "bias": None})


def test_wrappers_do_not_change_names(tmp_path: Any) -> None:
    model = network()
    expected = list(gpureg.torch.Penalty(model, BOTH).losses())
    compiled = torch.compile(model, backend="eager")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for wrapped in (compiled, torch.nn.DataParallel(model), torch.nn.parallel.DistributedDataParallel(compiled)):
            assert list(gpureg.torch.Penalty(wrapped, BOTH).losses()) == expected
    finally:
        torch.distributed.destroy_process_group()


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"weights\['a'\] must be a tensor of PyTorch, not numpy.ndarray; gpureg.Penalty"
    ):
        gpureg.torch.Penalty({"a": np.ones(3)}, BOTH)
    with pytest.raises(TypeError, match="weights must be a mapping or an iterable"):
        gpureg.torch.Penalty(3, BOTH)
    with pytest.raises(TypeError, match=r"weights\['0.weight'\] is not initialized: its module has seen no input yet"):
        gpureg.torch.Penalty(torch.nn.Sequential(torch.nn.LazyLinear(2)), BOTH)
    with pytest.raises(ValueError, match=r"rules\[0\] \(fc.*\) wins no tensor"):
        gpureg.torch.Penalty(network(), {"fc.*": BOTH, "*": None})


def test_a_strength_that_requires_a_gradient_would_get_none() -> None:
    penalty = gpureg.torch.Penalty(network(), BOTH)
    with pytest.raises(ValueError, match="strength requires a gradient, but a penalty has none by its strength"):
        penalty.set_strength(torch.tensor(1.0, requires_grad=True))
    penalty.set_strength(0.5)


def test_copies_are_of_the_copied_model() -> None:
    model = network()
    penalty = gpureg.torch.Penalty(model, BOTH)
    penalty.set_strength(0.5)
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert same(other(), penalty())
    twin, copied = copy.deepcopy((model, penalty))
    with torch.no_grad():
        twin[0].weight.zero_()
    assert copied().item() < penalty().item()


def test_parameters_of_an_optimizer() -> None:
    model = network()
    unnamed = torch.optim.SGD([{"params": [model[0].weight]}, {"params": model[3].parameters()}], lr=0.1)
    assert list(gpureg.torch.Penalty(unnamed, BOTH).losses()) == ["0.0", "1.0", "1.1"]
    named = torch.optim.SGD(model.named_parameters(), lr=0.1)
    penalty = gpureg.torch.Penalty(named, Rules.exclude_bias_and_norm(BOTH))
    assert list(penalty.losses()) == ["0.weight", "3.weight"]
    more = parameter(sample((4, 4)))
    named.load_state_dict(named.state_dict())
    named.add_param_group({"params": [("more.weight", more)]})
    assert list(penalty.losses()) == ["0.weight", "3.weight", "more.weight"]


def test_large_sets_and_empty_parameters() -> None:
    """More than 422 tensors (pytorch#119927, #118604), empty ones among them (pytorch#140066)."""
    model = torch.nn.ParameterList([parameter(sample((i % 4,), seed=i)) for i in range(600)])
    penalty = gpureg.torch.Penalty(model, BOTH)
    penalty().backward()
    on_host = reference(model, BOTH)
    assert same(penalty(), on_host())
    for name, gradient in on_host.grads().items():
        assert same(model.get_parameter(name).grad, gradient)


def parameters(dtypes: list[Any]) -> Iterator[tuple[str, Any]]:
    for i, kind in enumerate(dtypes):
        yield str(i), torch.nn.Parameter(torch.full((10,), 0.5, dtype=kind))


def test_a_model_without_parameters() -> None:
    assert same(gpureg.torch.Penalty(torch.nn.ReLU(), BOTH)(), np.float32(0))


def test_models_of_several_dtypes() -> None:
    penalty = gpureg.torch.Penalty(parameters([torch.bfloat16, torch.float32, torch.float16]), L1(1.0))
    assert penalty().item() == 15
    assert penalty().dtype is torch.float32
    penalty().backward()
    assert [p.grad.dtype for _, p in penalty._named.pairs] == [torch.bfloat16, torch.float32, torch.float16]
    assert gpureg.torch.Penalty(parameters([torch.float32, torch.float64]), L1(1.0))().dtype is torch.float64
