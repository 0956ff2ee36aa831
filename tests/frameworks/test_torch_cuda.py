"""PyTorch's CUDA tensors, by stand-ins: tensors that say so of host memory, and a CuPy whose GPU is this machine.

All between a public call and the launch runs as it is, and the launch runs the kernels on the host. What a GPU, its
streams and PyTorch's allocator there really do is for tests/gpu/test_torch.py.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gpureg
import gpureg.torch
from gpureg import compiler, driver, libraries
from gpureg.backends import Mode
from gpureg.compiler import Kernel, penalty_pass, proximal_step, statistics_pass
from gpureg.driver import Driver
from gpureg.libraries import torch as own
from tests.frameworks.torch_sides import array, same, sample, tensor
from tests.host_cuda import Build, library
from tests.kernels.fake_cupy import Device, DeviceArray, FakeCupy, Pointer, Stream, installed

BOTH = gpureg.L1L2(0.1, 0.3)
STREAM = 77
"""Where PyTorch's current stream is said to be."""

KERNELS = tuple(
    kernel
    for dtype in ("float32", "bfloat16")
    for kernel in (
        *(penalty_pass(dtype, dtype, mode, l1=True, l2=True) for mode in Mode),
        penalty_pass(dtype, dtype, Mode.VALUE, l1=True, l2=False),
        penalty_pass(dtype, dtype, Mode.ACCUMULATE, l1=False, l2=True),
        proximal_step(dtype),
        statistics_pass(dtype),
    )
)


class OnGpu(torch.Tensor):  # type: ignore[misc] # it may have no hints
    """A tensor that is said to be on a GPU."""

    is_cuda = True
    number = 0

    @property
    def device(self) -> Any:
        return torch.device("cuda", self.number)


class OnOther(OnGpu):
    """One on a second GPU."""

    number = 1


class UnownedMemory:
    """What CuPy makes of memory that is another's; it is told of to the fake, for good."""

    def __init__(self, cupy: FakeCupy, ptr: int, size: int, owner: Any, device: int) -> None:
        self.cupy, self.ptr, self.size, self.owner, self.device = cupy, ptr, size, owner, device
        self.stream, self.read_only = cupy.stream.ptr, False
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(ptr)) if size else np.empty(0, np.uint8)
        if size:
            cupy.live[ptr] = self  # type: ignore[assignment]


class TorchCupy(FakeCupy):
    """A CuPy with what PyTorch's tensors need of it."""

    def __init__(self) -> None:
        super().__init__(self._launch)
        self.kept: list[Any] = []
        self.streams: list[int] = []
        self.allocator: Callable[[int], Any] | None = None
        fake = self

        class Unowned(UnownedMemory):
            def __init__(self, *given: Any) -> None:
                super().__init__(fake, *given)
                fake.kept.append(self)

        self.cuda.UnownedMemory, self.cuda.MemoryPointer = Unowned, Pointer
        self.cuda.using_allocator = self._using
        self.cuda.Stream.from_external = lambda stream: _Entered(fake, stream.cuda_stream)

    def _launch(self, *given: Any) -> None:
        self.streams.append(self.stream.ptr)
        library(Build(kernels=KERNELS)).launch(*given)

    @contextmanager
    def _using(self, allocator: Callable[[int], Any]) -> Iterator[None]:
        before, self.allocator = self.allocator, allocator
        try:
            yield
        finally:
            self.allocator = before

    def empty(self, shape: Any, dtype: Any = np.float64) -> DeviceArray:
        assert self.allocator is not None, "memory that is not PyTorch's"
        return DeviceArray(shape, dtype, self.allocator(int(np.prod(shape)) * np.dtype(dtype).itemsize))


class _Entered:
    """A stream that is CuPy's current one while it is entered."""

    def __init__(self, cupy: TorchCupy, ptr: int) -> None:
        self.cupy, self.own = cupy, Stream(ptr)

    def __enter__(self) -> None:
        self.before, self.cupy.stream = self.cupy.stream, self.own

    def __exit__(self, *_: object) -> None:
        self.cupy.stream = self.before


def _forget() -> None:
    sys.modules.pop("gpureg.libraries.torch_cuda", None)
    vars(libraries).pop("torch_cuda", None)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchCupy]:
    """Install the stand-ins."""

    def compiled(name: str, architecture: str) -> Kernel:
        return Kernel(f"{name} for {architecture}".encode(), f"symbol of {name}")

    monkeypatch.setattr(compiler, "compile", compiled)
    monkeypatch.setattr(compiler, "unusable", lambda: None)
    monkeypatch.setattr(driver, "find", lambda: Driver((13, 0), ("NVIDIA H200", "NVIDIA A100")))
    _forget()
    with installed(fake := TorchCupy()):
        from gpureg.libraries import torch_cuda  # noqa: PLC0415 - it takes the CuPy that is there

        stream = SimpleNamespace(cuda_stream=STREAM)
        shim = SimpleNamespace(
            empty=lambda size, dtype, device: torch.empty(size, dtype=dtype).as_subclass(KINDS[device.index]),
            device=torch.device,
            uint8=torch.uint8,
            cuda=SimpleNamespace(current_stream=lambda device: stream if device in (0, 1) else None),
        )
        monkeypatch.setattr(torch_cuda, "torch", shim)
        yield fake
    _forget()


KINDS = (OnGpu, OnOther)


def on_gpu(numbers: Any, kind: Any = OnGpu) -> Any:
    return tensor(numbers).as_subclass(kind)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (3,), (50, 600), (7, 0)], ids=str)
def test_calls_have_numpys_bits_on_pytorch_s_stream(cupy: TorchCupy, shape: tuple[int, ...], dtype: str) -> None:
    w, g = sample(shape, dtype), sample(shape, dtype, seed=1)
    t, h = on_gpu(w), on_gpu(g)
    value, gradient = BOTH.value_and_grad(t)
    for found in (value, gradient, BOTH(t)):
        assert found.device == torch.device("cuda", 0)
        assert type(found) is OnGpu
    assert same(value, BOTH(w))
    assert same(gradient, BOTH.grad(w))
    assert same(BOTH(t), BOTH(w))
    assert same(BOTH.grad(t), BOTH.grad(w))
    assert same(BOTH.accumulate_grad(t, h), BOTH.accumulate_grad(w, g))
    assert same(h, g)
    assert same(gpureg.l1_loss(t, dtype=torch.bfloat16), gpureg.l1_loss(w, dtype="bfloat16"))
    assert same(BOTH.prox_(t, 0.25), BOTH.prox_(w.copy(), 0.25))
    assert set(cupy.streams) <= {STREAM}
    assert len(cupy.streams) >= 6
    assert cupy.stream.ptr == 0
    assert cupy.allocated == 0


def test_strides_are_those_of_the_tensor(cupy: TorchCupy) -> None:
    w = on_gpu(sample((30, 40)))
    for view in (w.t(), w[:, ::2], w[3:, 1:], w[:, :1].expand(-1, 7)):
        numbers = array(view)
        strided = np.lib.stride_tricks.as_strided(numbers, view.shape, numbers.strides)
        assert same(BOTH.grad(view), BOTH.grad(strided))
        assert BOTH.grad(view).stride() == torch.empty_like(view).stride()
    assert same(BOTH(w.t()), BOTH(array(w).T))
    assert len(cupy.launches) == 9


def test_a_result_keeps_no_more_than_its_own_memory(cupy: TorchCupy) -> None:
    w = on_gpu(sample((50,)))
    value, gradient = BOTH.value_and_grad(w)
    assert gradient.untyped_storage().nbytes() == 200
    assert gradient.data_ptr() == gradient.untyped_storage().data_ptr()
    assert value.untyped_storage().nbytes() < 100
    assert cupy.launches


def test_gradients_that_come_down_are_read_on_the_device(cupy: TorchCupy) -> None:
    """The fake refuses to be waited for. (Autograd itself makes plain tensors of what is given to it.)"""
    w = sample((300, 20))
    t = on_gpu(w)
    coefficients = [BOTH.coefficients]
    for divisor, scale in ((1, 3.0), (7, 3.0 / 7)):
        passes = own._Passes(own._plan([t], coefficients), coefficients, 1.0, divisor, [t.data_ptr()])
        for upstream in (np.array(3.0, np.float32), np.array(3.0), np.array(3.0, np.float16)):
            (gradient,) = passes.slopes(on_gpu(upstream), [t], [True])
            assert type(gradient) is OnGpu
            assert same(gradient, gpureg.Penalty({"w": w}, BOTH).grads(scale=scale)["w"])
    assert set(cupy.streams) == {STREAM}


def test_a_model_is_one_launch_a_step(cupy: TorchCupy) -> None:
    host = {str(size): sample((size,), seed=size) for size in (10, 128, 20_000, 0, 8192)}
    weights = {name: on_gpu(w).requires_grad_() for name, w in host.items()}
    penalty, on_host = gpureg.torch.Penalty(weights, BOTH), gpureg.Penalty(host, BOTH)
    strength = on_gpu(np.array(0.5, np.float32))
    penalty.set_strength(strength)
    on_host.set_strength(0.5)
    for step in range(3):
        expected = {name: sample(w.shape, seed=step) for name, w in host.items()}
        for name, w in weights.items():
            w.grad = on_gpu(expected[name])  # new in every step
            own.library.native(w.grad, "")  # lets the fake know of its memory
        assert same(penalty.accumulate_grad(), on_host.accumulate_grad(expected))
        for name, w in weights.items():
            assert same(w.grad, expected[name])
    assert [name for name, _ in cupy.launches] == 3 * ["penalty_pass<float, float, ACCUMULATE, true, true>"]
    assert {name: array(loss) for name, loss in penalty.losses().items()} == on_host.losses()
    assert same(penalty(), on_host())


def test_gradients_of_other_strides_are_bound_anew(cupy: TorchCupy) -> None:
    w = sample((60, 60))
    penalty = gpureg.Penalty({"w": on_gpu(w)}, BOTH)
    memory = on_gpu(sample((60, 60), seed=1))
    for gradient in (memory, memory.t(), memory):
        expected = np.array(array(memory).T if gradient is not memory else array(memory))
        penalty.accumulate_grad({"w": gradient})
        BOTH.accumulate_grad(w, expected)
        assert same(gradient, expected)
    assert len(cupy.launches) == 3


def test_attached_penalties_are_a_launch_before_a_step_and_one_after(cupy: TorchCupy) -> None:
    host = [sample((300,)), sample((8200,), seed=1)]
    weights = [on_gpu(w).requires_grad_() for w in host]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5}], lr=0.25, foreach=False)
    handle = gpureg.torch.attach(optimizer, BOTH, proximal=True)
    for w in weights:
        w.grad = torch.zeros_like(w)
    optimizer.step()
    for w, numbers, rate in zip(weights, host, (0.25, 0.5), strict=True):
        moved = tensor(numbers - np.float32(rate) * gpureg.L2(0.3).grad(numbers)).numpy()
        assert torch.allclose(tensor(array(w)), tensor(gpureg.L1(0.1).prox_(moved, rate)), rtol=1e-6, atol=1e-8)
    assert [name for name, _ in cupy.launches] == [
        "penalty_pass<float, float, ACCUMULATE, false, true>",
        "proximal_step<float>",
    ]
    assert set(cupy.streams) == {STREAM}
    assert handle.value.device == torch.device("cuda", 0)


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("how", ["data", "set_"])
def test_a_gradient_that_is_given_other_memory_is_written_there(how: str) -> None:
    host = {"a": sample((9000,)), "b": sample((50,), seed=1)}
    weights = {name: on_gpu(w).requires_grad_() for name, w in host.items()}
    penalty = gpureg.torch.Penalty(weights, BOTH)
    for name, w in weights.items():
        w.grad = on_gpu(np.zeros_like(host[name]))
    for _ in range(3):
        penalty.accumulate_grad()
    before = [w.grad.detach() for w in weights.values()]  # whose memory stays
    for name, w in weights.items():
        other = on_gpu(np.zeros_like(host[name]))
        if how == "data":
            w.grad.data = other
        else:
            w.grad.set_(other)
        own.library.native(w.grad, "")  # lets the fake know of its memory
    penalty.accumulate_grad()
    assert len(before) == 2
    for name, w in weights.items():
        assert np.array_equal(array(w.grad), BOTH.grad(host[name]))


def test_statistics_are_pytorch_s_work_on_each_device(cupy: TorchCupy) -> None:
    host = {"a": sample((3000,)), "b": sample((50,), seed=1), "c": sample((9000,), seed=2)}
    kinds = {"a": OnGpu, "b": OnOther, "c": OnGpu}
    tensors = {name: on_gpu(w, kinds[name]) for name, w in host.items()}
    assert list(gpureg.report(tensors)) == list(gpureg.report(host))
    assert set(cupy.streams) == {STREAM}


def test_tensors_of_two_devices_are_refused(cupy: TorchCupy) -> None:
    here, there = on_gpu(sample((3,))), on_gpu(sample((3,)), OnOther)
    with pytest.raises(ValueError, match="grad is on cuda:1, but w is on cuda:0; both must be on one device"):
        BOTH.accumulate_grad(here, there)
    with pytest.raises(ValueError, match="grad is on cpu, but w is on cuda:0"):
        BOTH.accumulate_grad(here, torch.zeros(3))
    with pytest.raises(ValueError, match=r"weights\['b'\] is on cuda:1, but weights\['a'\] is on cuda:0"):
        gpureg.Penalty({"a": here, "b": there}, BOTH)
    with pytest.raises(ValueError, match="strength is on cpu, but the weights are on cuda:0"):
        gpureg.Penalty({"a": here}, BOTH).set_strength(torch.tensor(1.0))
    assert not cupy.launches


def test_a_device_that_is_not_the_current_one(cupy: TorchCupy) -> None:
    w = sample((300,))
    value, gradient = BOTH.value_and_grad(on_gpu(w, OnOther))
    assert same(value, BOTH(w))
    assert value.device == gradient.device == torch.device("cuda", 1)
    assert Device().id == 0
    assert cupy.launches


def test_a_gpu_that_cannot_be_used_says_why(cupy: TorchCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "find", lambda: "no NVIDIA driver is loaded")
    with pytest.raises(RuntimeError, match="PyTorch's CUDA tensors cannot be computed on here: no NVIDIA driver"):
        BOTH(on_gpu(sample((3,))))
    assert not cupy.launches
