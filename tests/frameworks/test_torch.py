"""PyTorch's tensors on the CPU: NumPy's bits, without a copy, and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor
from torch.testing._internal.two_tensor import TwoTensor

import gpureg
from gpureg import libraries
from tests import sets
from tests.frameworks.torch_sides import TORCH, array, parameter, same, sample, tensor
from tests.helpers import CONTENTS, DTYPES, content, gradient_dtypes

BOTH = gpureg.L1L2(0.1, 0.3)
SHAPES = [(), (0,), (0, 3), (1,), (5, 7), (3, 5, 2, 2), (40_000,)]

pytestmark = pytest.mark.filterwarnings("ignore:Sparse.* tensor support is in beta:UserWarning")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [tensor, parameter])
def test_values_and_gradients_have_numpy_s_bits(kind: Any, shape: tuple[int, ...], dtype: str) -> None:
    w = sample(shape, dtype)
    t = kind(w)
    value, gradient = BOTH.value_and_grad(t)
    for found in (BOTH(t), value, gradient, BOTH.grad(t)):
        assert type(found) is torch.Tensor
        assert found.device == t.device
    assert same(BOTH(t), BOTH(w))
    assert same(value, BOTH(w))
    assert same(gradient, BOTH.grad(w))
    assert same(BOTH.grad(t), BOTH.grad(w))
    assert same(gpureg.l1_loss(t), gpureg.l1_loss(w))
    assert same(gpureg.l2_loss(t), gpureg.l2_loss(w))
    if shape:
        assert same(BOTH.activity(t), BOTH.activity(w))
    assert same(t, w)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_added_and_steps_taken_in_place(dtype: str, name: str) -> None:
    w = content(name, 20_000, dtype).reshape(200, 100)
    for into in gradient_dtypes(dtype):
        start = content("wide", w.size, into, seed=1).reshape(w.shape)
        t, g, expected = parameter(w), tensor(start), start.copy()
        places = t.data_ptr(), g.data_ptr()
        assert same(BOTH.accumulate_grad(t, g), BOTH.accumulate_grad(w, expected))
        assert same(g, expected)
        assert BOTH.grad(t, out=g) is g
        assert same(g, BOTH.grad(w, out=expected))
        assert BOTH.value_and_grad(t, out=g)[1] is g
        assert (t.data_ptr(), g.data_ptr()) == places
        assert same(t, w)
    step = 0.25
    assert BOTH.prox_(t, step) is t
    assert same(t, BOTH.prox_(w.copy(), step))
    assert t.data_ptr() == places[0]


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(0, 2**32), st.sampled_from([1.0, 0.7, 0.0]), st.sampled_from([1.0, -3.0]))
def test_random_sets_have_numpy_s_bits(count: int, seed: int, strength: float, scale: float) -> None:
    """Of every dtype and of the layouts that PyTorch has; empty tensors among them (pytorch#140066)."""
    sets.check(sets.make(count, seed), strength, scale, place=placed, back=array)


def test_more_tensors_than_peers_take() -> None:
    """Beyond 422 tensors PyTorch's own fused functions crashed once (pytorch#119927, #118604)."""
    sets.check(sets.make(500, 1), 0.3, -2.0, place=placed, back=array)


def placed(numbers: Any) -> Any:
    """Return a tensor of the numbers and strides of an array; in C order where PyTorch has no such strides."""
    item, kind = numbers.itemsize, TORCH[numbers.dtype.name]
    if any(step < 0 or step % item for step in numbers.strides) or not numbers.size:
        return tensor(np.array(numbers, order="C"))
    span = sum(step * (length - 1) for step, length in zip(numbers.strides, numbers.shape, strict=True)) // item + 1
    strides = [step // item for step in numbers.strides]
    result = torch.empty(span + 1, dtype=kind)[1:].as_strided(numbers.shape, strides, 1)
    return result.copy_(tensor(np.array(numbers, order="C")))


LAID: dict[str, Callable[[Any], Any]] = {
    "transposed": lambda t: t.t(),
    "channels last": lambda t: t.reshape(3, 5, 4, -1).to(memory_format=torch.channels_last),
    "every second": lambda t: t[:, ::2],
    "a slice": lambda t: t[3:, 1:],
    "expanded": lambda t: t[:, :1].expand(-1, 7),
    "one element on": lambda t: t.reshape(-1)[1:],
}


@pytest.mark.parametrize("layout", LAID)
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_are_taken_as_they_lie(dtype: str, layout: str) -> None:
    numbers = sample((60, 40), dtype)
    t = LAID[layout](tensor(numbers))
    w = libraries.of(t, "t").native(t, "t")
    assert w.__array_interface__["data"][0] == t.data_ptr()
    assert w.strides == tuple(step * t.itemsize for step in t.stride())
    assert same(t, w)
    assert same(BOTH(t), BOTH(w))
    new = BOTH.grad(t)
    assert same(new, BOTH.grad(w))
    assert new.stride() == torch.empty_like(t).stride()
    g, expected = torch.zeros(t.shape, dtype=t.dtype), np.zeros(w.shape, w.dtype)
    assert same(BOTH.accumulate_grad(t, g), BOTH.accumulate_grad(w, expected))
    assert same(g, expected)


def test_large_numbers_do_not_overflow_on_the_way() -> None:
    """As torch's norm did, whose gradient was zero then (pytorch#193006)."""
    t = torch.full((1000,), 3e16)
    assert gpureg.l2_loss(t).item() == float(np.float32(1000 * float(t[0].double()) ** 2 / 2))
    huge = torch.full((1000,), 3e30)
    assert gpureg.l2_loss(huge).item() == np.inf
    assert gpureg.l2_loss(huge, dtype=torch.float64).item() == 1000 * float(huge[0].double()) ** 2 / 2
    assert same(gpureg.HalvedL2(1.0).grad(huge), huge)
    half = torch.full((10,), 300.0, dtype=torch.float16)
    assert gpureg.l2_loss(half).item() == 450_000


def test_the_result_s_dtype_may_be_asked_for_as_pytorch_calls_it() -> None:
    w = sample((300,), "bfloat16")
    for name, kind in TORCH.items():
        for given_dtype in (kind, name):
            assert same(gpureg.l2_loss(tensor(w), dtype=given_dtype), gpureg.l2_loss(w, dtype=name))
    with pytest.raises(TypeError, match=r"dtype is torch.int32; expected one of"):
        gpureg.l2_loss(tensor(w), dtype=torch.int32)


def test_results_lie_on_the_cpu_whatever_the_default_device() -> None:
    t = torch.ones(3)
    with torch.device("meta"):
        assert BOTH(t).device == BOTH.grad(t).device == torch.device("cpu")


def test_a_weight_of_zero_dimensions_and_a_batch() -> None:
    with pytest.raises(ValueError, match="x is 0-d"):
        BOTH.activity(torch.tensor(1.0))
    with pytest.raises(ValueError, match="x is 0-d"):
        BOTH.activity(torch.tensor(1.0, requires_grad=True))
    assert BOTH.activity(torch.empty(0, 3)).item() == 0


def test_tensors_in_inference_mode() -> None:
    with torch.inference_mode():
        t, g = torch.ones(3), torch.zeros(3)
        assert BOTH.accumulate_grad(t, g).is_inference()
        assert g.tolist() == BOTH.grad(t).tolist()
        BOTH.prox_(t, 0.5)


def test_orthogonality_is_a_penalty_of_tensors_too() -> None:
    w = sample((5, 7), "float64")
    regularizer, t, g = gpureg.OrthogonalRegularizer(0.5), parameter(w), torch.ones(5, 7, dtype=torch.float64)
    expected = np.ones((5, 7))
    assert regularizer(t).item() == regularizer(w)
    assert same(regularizer.grad(t), regularizer.grad(w))
    assert same(regularizer.accumulate_grad(t, g), regularizer.accumulate_grad(w, expected))
    assert same(g, expected)


# What is written to


def test_what_is_written_has_another_version() -> None:
    """So that autograd refuses to go back through what has been overwritten."""
    w, g = torch.ones(3, requires_grad=True), torch.zeros(3)
    versions = [g._version]
    for call in (
        lambda: BOTH.accumulate_grad(w, g),
        lambda: BOTH.grad(w, out=g),
        lambda: BOTH.value_and_grad(w, out=g),
        lambda: gpureg.Penalty({"w": w}, BOTH).accumulate_grad({"w": g}),
        lambda: gpureg.Penalty({"w": w}, BOTH).grads(out={"w": g}),
        lambda: gpureg.Penalty({"w": w}, BOTH).value_and_grads(out={"w": g}),
    ):
        call()
        versions.append(g._version)
    matrix = torch.ones(2, 2)
    before = matrix._version
    gpureg.OrthogonalRegularizer().grad(torch.eye(2), out=matrix)
    assert matrix._version > before
    assert versions == sorted(set(versions))
    loss = (w * w).sum()
    BOTH.prox_(w, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_autograd_differentiates_is_not_written_to() -> None:
    w = torch.ones(3, requires_grad=True)
    inner = w * 2
    with pytest.raises(ValueError, match="grad is read-only"):
        BOTH.accumulate_grad(w, inner)
    with pytest.raises(ValueError, match="w is read-only"):
        BOTH.prox_(inner, 0.5)
    assert inner.tolist() == [2, 2, 2]
    with torch.no_grad():
        BOTH.prox_(inner, 0.5)
    BOTH.accumulate_grad(w, torch.zeros(3, requires_grad=True))


BAD_GRADIENTS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "numpy": (lambda g: g.numpy(), TypeError, "grad is of numpy, but w is of torch; both must be of one library"),
    "list": (lambda g: g.tolist(), TypeError, "grad must be an array of numpy, cupy, tensorflow, torch or jax"),
    "none": (lambda _: None, TypeError, "not NoneType"),
    "float16": (lambda g: g.half(), TypeError, "grad has dtype torch.float16; expected float32$"),
    "shape": (lambda g: g.t(), ValueError, r"grad has shape \(3, 2\), but w has \(2, 3\)"),
    "expanded": (lambda g: g[:, :1].expand(2, 3), ValueError, "grad has elements that share memory with each other"),
    "sparse": (lambda g: g.to_sparse(), TypeError, "grad is a sparse_coo tensor; expected a dense one"),
    "meta": (lambda g: g.to("meta"), TypeError, "grad has no elements"),
}


@pytest.mark.parametrize("name", BAD_GRADIENTS)
def test_a_refused_gradient_is_left_as_it_was(name: str) -> None:
    make, error, message = BAD_GRADIENTS[name]
    w, g = torch.ones(2, 3), torch.full((2, 3), 7.0)
    with pytest.raises(error, match=message):
        BOTH.accumulate_grad(w, make(g))
    assert (g == 7).all()


def test_weights_are_no_gradient_of_themselves() -> None:
    w = torch.ones(4, 4)
    with pytest.raises(ValueError, match="grad shares memory with w"):
        BOTH.accumulate_grad(w, w.t())


# What is refused


class Derived(torch.Tensor):  # type: ignore[misc] # it may have no hints
    """A class of one's own, which is a plain tensor still."""


def put_away() -> Any:
    t = torch.ones(5)
    t.untyped_storage().resize_(0)
    return t


NOT_WEIGHTS: dict[str, tuple[Callable[[], Any], str]] = {
    "integers": (
        lambda: torch.arange(3),
        "w has dtype torch.int64; expected float16 or bfloat16 or float32 or float64",
    ),
    "bool": (lambda: torch.tensor([True]), "w has dtype torch.bool"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "w has dtype torch.complex64"),
    "8 bits": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "w has dtype torch.float8_e4m3fn"),
    "coo": (lambda: torch.eye(3).to_sparse(), "w is a sparse_coo tensor; expected a dense one"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "w is a sparse_csr tensor; expected a dense one"),
    "mkldnn": (lambda: torch.eye(3).to_mkldnn(), "w is a _mkldnn tensor; expected a dense one"),
    "nested": (lambda: torch.nested.as_nested_tensor([torch.ones(2)]), "w is a nested tensor; expected a dense one"),
    "subclass": (lambda: TwoTensor(torch.ones(3), torch.ones(3)), "w is a torch.*TwoTensor, a kind of tensor whose"),
    "negated view": (lambda: torch.ones(3, dtype=torch.complex64).conj().imag, r"w is a view .*give w.resolve_neg\(\)"),
    "lazy": (lambda: torch.nn.LazyLinear(3).weight, "w is not initialized: its module has seen no input yet"),
    "put away": (put_away, "w has no memory at the moment, as a parameter that FSDP has put away"),
    "module": (lambda: torch.nn.Linear(2, 2), "w must be an array of numpy, cupy, tensorflow, torch or jax, not torch"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_what_is_no_dense_tensor_of_a_known_dtype_is_refused(name: str) -> None:
    make, message = NOT_WEIGHTS[name]
    w = make()
    calls: list[Callable[[Any], Any]] = [BOTH, BOTH.grad, gpureg.l1_loss, lambda w: BOTH.prox_(w, 0.1)]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call(w)
    with pytest.raises(TypeError, match=message.replace("w ", r"weights\['a'\] ", 1).replace("give w.", "give .*")):
        gpureg.Penalty({"a": w}, BOTH)


def test_a_meta_tensor_has_a_penalty_and_nothing_else() -> None:
    w = torch.empty(3, device="meta")
    assert BOTH(w).is_meta
    with pytest.raises(TypeError, match="w has no elements: it is traced"):
        BOTH.grad(w)


def test_a_class_of_one_s_own_is_a_tensor() -> None:
    w = torch.tensor([1.0, -2.0]).as_subclass(Derived)
    assert BOTH(w).item() == BOTH(w.numpy())
    assert BOTH.grad(w).tolist() == BOTH.grad(w.numpy()).tolist()


def test_other_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Derived, "device", property(lambda _: torch.device("mps", 0)), raising=False)
    with pytest.raises(TypeError, match="w is on mps:0; expected a tensor on a CPU or a CUDA device"):
        BOTH.grad(torch.ones(3).as_subclass(Derived))


def test_a_tensor_on_a_gpu_needs_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Derived, "is_cuda", True, raising=False)
    with pytest.raises(RuntimeError, match=r"CUDA tensor.*, which needs CuPy: pip install 'gpureg\[cuda13\]'"):
        BOTH.grad(torch.ones(3).as_subclass(Derived))


def test_bfloat16_needs_ml_dtypes() -> None:
    program = (
        "import sys; sys.modules['ml_dtypes'] = None; import torch, gpureg\n"
        "assert gpureg.l1_loss(torch.ones(3)).item() == 3\n"
        "try: gpureg.l1_loss(torch.ones(3).bfloat16())\n"
        "except TypeError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "needs ml_dtypes: pip install 'gpureg[bfloat16]'" in result.stdout


def test_dtensors_are_refused(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        w = DTensor.from_local(torch.ones(3), mesh).requires_grad_()
        for call in (BOTH, BOTH.grad, lambda w: gpureg.Penalty({"a": w}, BOTH)):
            with pytest.raises(TypeError, match=r"is a DTensor, of which this process holds a part; .* not taken yet"):
                call(w)
        with torch.no_grad(), pytest.raises(TypeError, match="is a DTensor"):
            BOTH(w)
        plain = torch.ones(3)
        with pytest.raises(TypeError, match="grad is a DTensor"):
            BOTH.accumulate_grad(plain, w.detach())
    finally:
        torch.distributed.destroy_process_group()


# What is imported


def test_torch_is_found_without_being_imported() -> None:
    program = """
import sys
import numpy
import gpureg

gpureg.L1()(numpy.ones(3))
assert "torch" not in sys.modules
import torch

before = set(sys.modules)
w = torch.ones(3, requires_grad=True)
loss = gpureg.L1(0.5)(w)
loss.backward()
assert loss.item() == 1.5
print(*({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(result.stdout.split()) & {"tensorflow", "jax", "keras", "cupy"}
