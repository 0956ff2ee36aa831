"""PyTorch's CUDA tensors: NumPy's bits, on PyTorch's stream and in its memory, without waiting."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import samples
from gpureg.arithmetic import tile_size
from tests.gpu.device import cp, gate
from tests.helpers import DTYPES, Array, bits, content, gradient_dtypes

try:
    torch: Any = import_module("torch")
except ModuleNotFoundError:
    torch = None
else:
    attaching: Any = import_module("gpureg.torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch is None or not torch.cuda.is_available(), reason="no PyTorch that reaches the GPU is installed"
    ),
]

BOTH = gpureg.L1L2(0.1, 0.3)
SIZE = 3 * tile_size(2) + 5


def on_gpu(array: Any, device: int = 0) -> Any:
    """Return a tensor on the GPU of the numbers of an array; those of 16 bits cross as integers."""
    contiguous = np.ascontiguousarray(array)
    if contiguous.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(contiguous.view(np.int16)).cuda(device).view(torch.bfloat16)
    return torch.from_numpy(contiguous).cuda(device).reshape(np.shape(array))


def back(tensor: Any) -> Array:
    """Return the numbers of a tensor."""
    host = tensor.detach().cpu()
    if host.dtype is torch.bfloat16:
        return np.array(host.view(torch.int16).numpy()).view(DTYPES["bfloat16"])
    return np.array(host.numpy())


def assert_same(actual: Any, expected: Any) -> None:
    """Assert that a tensor on the GPU has the dtype, shape and bits of an array, every NaN being the same."""
    assert actual.is_cuda
    found, wanted = back(actual), np.asarray(expected)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert np.array_equal(bits(found), bits(wanted))


@pytest.fixture
def stream() -> Iterator[Any]:
    """Make a stream of PyTorch's current that is none of CuPy's."""
    with torch.cuda.stream(torch.cuda.Stream()) as _:
        yield torch.cuda.current_stream()
    torch.cuda.synchronize()


# Bits


@pytest.mark.parametrize("name", ["wide", "zeros", "NaN"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_calls_have_numpys_bits(dtype: str, name: str) -> None:
    w = content(name, SIZE, dtype)
    t = on_gpu(w)
    value, gradient = BOTH.value_and_grad(t)
    assert_same(value, BOTH(w))
    assert_same(gradient, BOTH.grad(w))
    assert_same(BOTH(t), BOTH(w))
    assert_same(gpureg.l2_loss(t, dtype=torch.bfloat16), gpureg.l2_loss(w, dtype="bfloat16"))
    for into in gradient_dtypes(dtype):
        g = content("wide", SIZE, into, seed=1)
        h = on_gpu(g)
        assert_same(BOTH.accumulate_grad(t, h), BOTH.accumulate_grad(w, g))
        assert_same(h, g)
    assert_same(BOTH.prox_(t, 0.25), BOTH.prox_(w.copy(), 0.25))


def test_shapes_and_views() -> None:
    w = content("wide", 60 * 40, "float32").reshape(60, 40)
    t = on_gpu(w)
    views: list[Callable[[Any], Any]] = [
        lambda a: a.T,
        lambda a: a[:, ::2],
        lambda a: a[3:, 1:],
        lambda a: a.reshape(-1)[1:],
        lambda a: a[0, 0],
        lambda a: a[:0],
    ]
    for view in views:
        mine, theirs = view(t), np.asarray(view(w))
        assert_same(BOTH(mine), BOTH(theirs))
        assert_same(BOTH.grad(mine), BOTH.grad(theirs))
        assert BOTH.grad(mine).stride() == torch.empty_like(mine).stride()
    assert_same(BOTH.activity(t), BOTH.activity(w))


@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd_has_numpys_bits(dtype: str) -> None:
    w = content("wide", SIZE, dtype)
    leaf = on_gpu(w).requires_grad_()
    (3.0 * BOTH(leaf)).backward()
    assert_same(leaf.grad, gpureg.Penalty({"w": w}, BOTH).grads(scale=3.0)["w"])


def test_orthogonality() -> None:
    w = content("weights", 40 * 30, "float64").reshape(40, 30)
    regularizer = gpureg.OrthogonalRegularizer(0.5)
    leaf = on_gpu(w).requires_grad_()
    value = regularizer(leaf)
    value.backward()
    # Both sum 780 * 30 products in float64, in any order.
    assert abs(value.item() - regularizer(w)) <= 1e-12 * regularizer(w)
    assert np.abs(back(leaf.grad) - regularizer.grad(w)).max() <= 1e-12


# Streams and memory


def work() -> dict[str, Callable[[], Any]]:
    """Return calls on tensors of a few tiles, whose kernels are loaded by the first call."""
    w, g = (on_gpu(content("weights", SIZE, "float32", seed=seed)) for seed in range(2))
    leaf = w.clone().requires_grad_()
    leaves = {str(i): on_gpu(content("weights", 1000 * i, "float32")).requires_grad_() for i in range(5)}
    penalty = attaching.Penalty(leaves, BOTH)
    strength = torch.ones((), device="cuda")
    penalty.set_strength(strength)
    optimizers = [torch.optim.AdamW(leaves.values(), fused=True) for _ in range(2)]
    handles = [attaching.attach(optimizer, BOTH, proximal=i == 1) for i, optimizer in enumerate(optimizers)]
    for optimizer in optimizers:
        optimizer.grad_scale = torch.full((), 2.0, device="cuda")
        optimizer.found_inf = torch.zeros((), device="cuda")
    for each in leaves.values():
        each.grad = torch.ones_like(each)

    def differentiated() -> Any:
        leaf.grad = None
        (BOTH(leaf) * 2).backward()
        return leaf.grad

    def stepped(which: int) -> Any:
        optimizers[which].step()
        return handles[which].value

    return {
        "value": lambda: BOTH(w),
        "gradient": lambda: BOTH.grad(w),
        "accumulate": lambda: BOTH.accumulate_grad(w, g),
        "proximal": lambda: BOTH.prox_(w.clone(), 0.5),
        "strided": lambda: BOTH.grad(w[::2]),
        "autograd": differentiated,
        "total of many": lambda: penalty().detach(),
        "losses of many": lambda: torch.stack(list(penalty.losses().values())),
        "attached": lambda: stepped(0),
        "attached proximal": lambda: stepped(1),
    }


CALLS = (
    "value", "gradient", "accumulate", "proximal", "strided", "autograd", "total of many", "losses of many", "attached",
    "attached proximal",
)  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls_wait_for_nothing_on_pytorch_s_stream(stream: Any, name: str) -> None:
    call = work()[name]
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    with cp.cuda.Stream.from_external(stream), gate() as held:
        result = call()
        assert held.holds()
        assert not stream.query()
    assert bool(torch.isfinite(result).all())


@pytest.mark.parametrize("name", CALLS)
def test_pytorch_is_not_made_to_wait(name: str) -> None:
    call = work()[name]
    torch.cuda.set_sync_debug_mode("error")  # which PyTorch raises where it waits for the device
    try:
        for _ in range(2):
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_calls_take_their_turn_on_the_stream(stream: Any) -> None:
    host = samples.wide(SIZE, np.float32)
    source, w = on_gpu(host), torch.zeros(SIZE, device="cuda")
    BOTH(w)
    with cp.cuda.Stream.from_external(stream), gate():
        w.copy_(source)
        value = BOTH(w)
        w.zero_()
    assert_same(value, BOTH(host))


def test_memory_is_pytorch_s() -> None:
    calls = work()
    for call in calls.values():
        call()
    pool = cp.get_default_memory_pool()
    torch.cuda.synchronize()
    before, allocated = pool.used_bytes(), torch.cuda.memory_allocated()
    results = [call() for call in calls.values() for _ in range(3)]
    assert pool.used_bytes() == before
    del results
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= allocated + 2**16


def test_values_outlive_what_they_were_computed_with() -> None:
    host = samples.wide(SIZE, np.float32)
    values = []
    for _ in range(50):
        values.append(BOTH(on_gpu(host)))
        torch.full((SIZE,), 7.0, device="cuda")
    for value in values:
        assert_same(value, BOTH(host))


def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this GPU is the only one, and two are needed")
    host = samples.wide(SIZE, np.float32)
    w = on_gpu(host, 1)
    value, gradient = BOTH.value_and_grad(w)
    assert value.device == gradient.device == w.device
    assert torch.cuda.current_device() == 0
    assert_same(value, BOTH(host))
    assert_same(gradient, BOTH.grad(host))
    with pytest.raises(ValueError, match="grad is on cuda:0, but w is on cuda:1"):
        BOTH.accumulate_grad(w, torch.zeros(SIZE, device="cuda:0"))


# Steps


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(30, 200), torch.nn.Tanh(), torch.nn.Linear(200, 7)).cuda()


def test_an_attached_step_has_numpys_bits() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attaching.attach(optimizer, BOTH)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 30, device="cuda")).square().mean().backward()
        weights = {str(i): back(p) for i, p in enumerate(model.parameters())}
        grads = {str(i): back(p.grad) for i, p in enumerate(model.parameters())}
        handle.set_strength(0.5 + step)
        on_host = gpureg.Penalty(weights, BOTH)
        on_host.set_strength(0.5 + step)
        total = on_host.accumulate_grad(grads)
        optimizer.step()
        assert_same(handle.value, total)
        for p, expected in zip(model.parameters(), grads.values(), strict=True):
            assert_same(p.grad, expected)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_proximal_step_has_numpys_bits(capturable: bool) -> None:
    model = network()
    rate = torch.tensor(0.125, device="cuda") if capturable else 0.125
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, capturable=capturable)
    moved: dict[str, Any] = {}
    optimizer.register_step_post_hook(
        lambda *_: moved.update({str(i): back(p) for i, p in enumerate(model.parameters())})
    )
    attaching.attach(optimizer, gpureg.L1(0.05), proximal=True)
    model(torch.ones(4, 30, device="cuda")).square().mean().backward()
    optimizer.step()
    for p, w in zip(model.parameters(), moved.values(), strict=True):
        assert_same(p, gpureg.L1(0.05).prox_(w, 0.125))


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_loss_and_an_infinity(fused: bool, proximal: bool) -> None:
    plain, scaled = network(), network()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.25, fused=fused) for model in (plain, scaled)]
    for optimizer in optimizers:
        attaching.attach(optimizer, gpureg.L1L2(0.25, 0.5), proximal=proximal)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    x = torch.ones(4, 30, device="cuda")
    for step in range(3):
        for model in (plain, scaled):
            model.zero_grad()
        loss = scaled(x).square().mean()
        scaler.scale(loss).backward()
        if step == 1:
            scaled[0].weight.grad[0, 0] = torch.inf
        else:
            plain(x).square().mean().backward()
            optimizers[0].step()
        scaler.step(optimizers[1])
        scaler.update()
        for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_captured_step_is_replayed_with_what_is_there_then() -> None:
    model, alone = network(), network()
    optimizers = [
        torch.optim.Adam(each.parameters(), lr=torch.tensor(0.125, device="cuda"), capturable=True)
        for each in (model, alone)
    ]
    strength = torch.ones((), device="cuda")
    for optimizer in optimizers:
        for proximal in (False, True):
            attaching.attach(optimizer, BOTH, proximal=proximal).set_strength(strength)
    x = torch.ones(4, 30, device="cuda")

    def backward(which: Any) -> None:
        which(x).square().mean().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as PyTorch's notes on CUDA graphs warm up
        for each, optimizer in zip((model, alone), optimizers, strict=True):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=False)
                backward(each)
                optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizers[0].zero_grad(set_to_none=False)
    with torch.cuda.graph(graph):
        optimizers[0].zero_grad(set_to_none=False)
        backward(model)
        optimizers[0].step()
    for factor in (1.0, 0.25, 0.0):
        strength.fill_(factor)
        x.fill_(1 + factor)
        graph.replay()
        optimizers[1].zero_grad(set_to_none=False)
        backward(alone)
        optimizers[1].step()
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)


def test_a_compiled_loss_is_one_graph() -> None:
    model = network()
    penalty = attaching.Penalty(model, BOTH)
    value = torch.compile(lambda: penalty() * 2, fullgraph=True, backend="aot_eager")()
    value.backward()
    on_host = gpureg.Penalty({name: back(p) for name, p in model.named_parameters()}, BOTH)
    assert value.item() == 2 * float(on_host())
    for name, p in model.named_parameters():
        assert_same(p.grad, on_host.grads(scale=2.0)[name])
