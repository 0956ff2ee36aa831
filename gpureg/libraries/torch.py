"""PyTorch tensors: a native array is a view of their memory, by NumPy on the CPU and by CuPy on a GPU.

Plain data goes straight to the backend. Where autograd records, the penalty is one node of its graph and the gradient
another, both computed by the backend. What traces a program, `torch.compile` above all, gets two operators,
`gpureg::penalty` and `gpureg::penalty_gradient`, which it does not look into.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import compress
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from gpureg import backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import Backend, Leaf, Plan
from gpureg.libraries import DTYPES, cupy, numpy_dtype, type_name

_NUMPY: dict[Any, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
with suppress(ModuleNotFoundError):  # as whoever has such a tensor is told
    import ml_dtypes

    _NUMPY[torch.bfloat16] = np.dtype(ml_dtypes.bfloat16)
_TORCH = {numpy: own for own, numpy in _NUMPY.items()}
_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}  # NumPy takes as long to tell a dtype's name as all the rest

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_PART = "of which this process holds a part; sharded tensors are not taken yet"
_PLAIN_EXPRESSION = "write the plain expression there, such as l1 * w.abs().sum() + l2 * w.square().sum()"


class TorchLibrary:
    """The library of PyTorch tensors; see `gpureg.libraries.Library` for each method."""

    name = "torch"

    def owns(self, kind: type) -> bool:  # noqa: D102
        return issubclass(kind, Tensor)

    def backend(self, native: Any) -> Backend:  # noqa: D102
        if native is None or isinstance(native, np.ndarray):
            return backends.cpu()
        return cast("Backend", _cuda().backend())

    def native(self, array: Any, name: str, dtypes: Sequence[str] = DTYPES) -> Any:  # noqa: D102
        if self.traced(array):
            raise TypeError(
                f"{name} has no elements: it is traced, by torch.compile or torch.export, or on the meta device; of "
                "such a tensor there is only the penalty itself (torch.compiler.disable keeps a function from being "
                "traced)"
            )
        _check_plain(array, name)
        dtype = array.dtype
        if _NAMES.get(dtype) not in dtypes:
            raise TypeError(f"{name} has dtype {dtype}; expected {' or '.join(dtypes)}")
        if array.is_cuda:
            return _cuda().view(array, self.dtype(dtype))
        data = array.detach()
        return data.numpy() if dtype is not torch.bfloat16 else data.view(torch.int16).numpy().view(self.dtype(dtype))

    def writable(self, array: Any) -> bool:  # noqa: D102
        return not (array.requires_grad and torch.is_grad_enabled()) or array.is_leaf

    def written(self, arrays: Sequence[Any]) -> None:  # noqa: D102
        torch.autograd.graph.increment_version(arrays)

    def device(self, native: Any) -> str:  # noqa: D102
        return "cpu" if isinstance(native, np.ndarray) else f"cuda:{native.device.id}"

    def survey(self, arrays: Sequence[Any]) -> tuple[Any, list[int]]:  # noqa: D102
        layouts = [array.layout for array in arrays]
        if layouts.count(torch.strided) < len(layouts):
            return layouts, []  # others have no strides
        signature = (
            [array.shape for array in arrays],
            [array.stride() for array in arrays],
            [array.dtype for array in arrays],
            [array.device for array in arrays],
            [array.is_neg() for array in arrays],
        )
        return signature, [array.data_ptr() for array in arrays]

    def placed(self, arrays: Sequence[Any]) -> Any:  # noqa: D102
        return self.survey(arrays)

    def empty_like(self, array: Any) -> Any:  # noqa: D102
        return self.native(torch.empty_like(array, requires_grad=False), "")

    def own(self, native: Any) -> Any:  # noqa: D102
        if isinstance(native, np.generic):
            return torch.scalar_tensor(float(native), dtype=_TORCH[native.dtype], device="cpu")
        dtype = _TORCH[native.dtype]
        if not isinstance(native, np.ndarray):
            return _cuda().tensor(native, dtype)
        return torch.from_numpy(native if dtype is not torch.bfloat16 else native.view(np.int16)).view(dtype)

    def working(self, native: Any) -> AbstractContextManager[Any]:  # noqa: D102
        return nullcontext() if isinstance(native, np.ndarray) else _cuda().working(native.device.id)

    def dtype(self, dtype: Any) -> np.dtype[Any] | None:  # noqa: D102
        if dtype in _NUMPY:
            return _NUMPY[dtype]
        if isinstance(dtype, torch.dtype) and dtype is not torch.bfloat16:
            return None
        return numpy_dtype("bfloat16" if dtype is torch.bfloat16 else dtype)

    def traced(self, array: Any) -> bool:  # noqa: D102
        if torch.compiler.is_dynamo_compiling() or isinstance(array, FakeTensor | FunctionalTensor):
            return True
        return isinstance(array, Tensor) and bool(array.is_meta)

    def records(self, arrays: Sequence[Any]) -> bool:  # noqa: D102
        return _sees_operators_alone(arrays) or (
            torch.is_grad_enabled() and any(array.requires_grad for array in arrays)
        )

    def recorded(  # noqa: D102
        self,
        arrays: Sequence[Any],
        coefficients: Sequence[Coefficients],
        dtype: np.dtype[Any],
        *,
        strength: Any = 1.0,
        over_batch: bool = False,
        plan: Plan | None = None,
    ) -> Any:
        divisor = max(arrays[0].shape[0], 1) if over_batch else 1
        if not _sees_operators_alone(arrays):
            _check_transforms(arrays[0], "w")
            passes = _Passes(plan or _plan(arrays, coefficients), coefficients, strength, divisor, _places(arrays))
            return _Recorded.apply(partial(passes.value, dtype), passes.slopes, *arrays)
        if not arrays:
            return torch.zeros((), dtype=_TORCH[dtype])
        flat = [number for own in coefficients for number in own]
        if isinstance(strength, float):
            return penalty(list(arrays), flat, strength, None, divisor, _TORCH[dtype])
        tensor = strength if isinstance(strength, Tensor) else self.own(strength)
        return penalty(list(arrays), flat, 1.0, tensor, divisor, _TORCH[dtype])

    def differentiable(self, array: Any, value: Any, slope: Callable[[], Any]) -> Any:  # noqa: D102
        if not (torch.is_grad_enabled() and array.requires_grad):
            return value
        return _Recorded.apply(lambda: value, lambda upstream, *_: [upstream.to(array.dtype) * slope()], array)


library = TorchLibrary()


def _cuda() -> ModuleType:
    """Return what only tensors on a GPU need, with CuPy."""
    cupy("a CUDA tensor is computed on by a view")
    from gpureg.libraries import torch_cuda  # noqa: PLC0415 - just for them

    return torch_cuda


def _sees_operators_alone(arrays: Sequence[Any]) -> bool:
    """Return whether something that traces or watches the program would miss what is no operator."""
    if torch.compiler.is_dynamo_compiling():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or any(map(library.traced, arrays))


def _check_plain(array: Any, name: str) -> None:
    """Refuse a tensor whose elements do not lie in memory as strides say, or are not all there is to it."""
    _check_transforms(array, name)
    if type(array) not in _PLAIN:
        _check_type(array, name)
    if array.layout is not torch.strided or array.is_nested:
        kind = "nested" if array.is_nested else str(array.layout).removeprefix("torch.")
        raise TypeError(f"{name} is a {kind} tensor; expected a dense one")
    if array.device.type not in ("cpu", "cuda"):
        raise TypeError(f"{name} is on {array.device}; expected a tensor on a CPU or a CUDA device")
    if array.is_neg():
        raise TypeError(f"{name} is a view that stands for its negative; give {name}.resolve_neg()")
    if "torch.distributed.fsdp" in sys.modules and getattr(array, "_fsdp_flattened", False):
        raise TypeError(f"{name} is a parameter of FullyShardedDataParallel, {_PART}")
    if not torch._C._has_storage(array):
        raise TypeError(f"{name} has no memory of its own, as a tensor within vmap")
    if array.numel() and not array.data_ptr():
        raise TypeError(f"{name} has no memory at the moment, as a parameter that FSDP has put away")


def _check_transforms(array: Any, name: str) -> None:
    """Refuse to compute where derivatives are made in a way that would not see it."""
    tangent = forward_ad._current_level >= 0 and forward_ad.unpack_dual(array).tangent is not None
    if tangent or torch._C._are_functorch_transforms_active():
        raise TypeError(
            f"{name} is used within a transform of torch.func, such as grad or vmap, or in forward mode, neither of "
            f"which can go through a gpureg penalty; {_PLAIN_EXPRESSION}"
        )


def _check_type(array: Any, name: str) -> None:
    """Refuse what is derived from a tensor and is more, or not yet, one."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(array, distributed.DTensor):
        raise TypeError(
            f"{name} is a DTensor, {_PART} (the penalty of {name}.to_local() would be that of the part alone)"
        )
    if torch.nn.parameter.is_lazy(array):
        raise TypeError(f"{name} is not initialized: its module has seen no input yet")
    if type(array).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(f"{name} is a {type_name(array)}, a kind of tensor whose elements gpureg cannot see")


# Autograd ------------------------------------------------------------------------------------------------------------

_TWICE = f"the gradient of a gpureg penalty has no gradient of its own; {_PLAIN_EXPRESSION}"


def _plan(tensors: Sequence[Any], coefficients: Sequence[Coefficients]) -> Plan:
    natives = [library.native(tensor, "w") for tensor in tensors]
    return library.backend(natives[0]).plan([Leaf(*each) for each in zip(natives, coefficients, strict=True)])


def _value(plan: Plan, dtype: np.dtype[Any], strength: Any, divisor: int) -> Any:
    return library.own(plan.value(dtype, strength=strength, divisor=divisor).total)


def _gradients(plan: Plan, tensors: Sequence[Any], upstream: Any, strength: Any, divisor: int) -> list[Any]:
    """Return new tensors with the gradients, scaled by what comes down to the penalty; it is not waited for."""
    wide = upstream if upstream.dtype.itemsize >= 4 else upstream.float()  # exact, and what backends take
    factor = wide if divisor == 1 else wide.double() / divisor
    outs = [library.empty_like(tensor) for tensor in tensors]
    native = library.native(factor, "the upstream gradient", DTYPES[2:])
    plan.gradient(plan.bind(outs), strength=strength, upstream=native)
    return list(map(library.own, outs))


class _Passes(NamedTuple):
    """A plan of tensors, what it was made from, and how it is passed over."""

    plan: Plan
    coefficients: Sequence[Coefficients]
    strength: Any
    divisor: int
    places: list[int]

    def value(self, dtype: np.dtype[Any]) -> Any:
        return _value(self.plan, dtype, self.strength, self.divisor)

    def slopes(self, upstream: Any, tensors: Sequence[Any], needed: Sequence[bool]) -> list[Any]:
        """Return the gradients at the tensors that need one, wherever autograd kept them; None for the others."""
        plan, chosen = self.plan, tensors
        if not all(needed) or _places(tensors) != self.places:
            chosen = list(compress(tensors, needed))
            plan = _plan(chosen, list(compress(self.coefficients, needed)))
        gradients = iter(_gradients(plan, chosen, upstream, self.strength, self.divisor))
        return [next(gradients) if one else None for one in needed]


def _places(tensors: Sequence[Any]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


class _Recorded(torch.autograd.Function):  # type: ignore[misc] # it may have no hints
    """A value of tensors, and the function of their gradients: of what comes down, the tensors, and which need one."""

    @staticmethod
    def forward(ctx: Any, value: Callable[[], Any], slopes: Callable[..., Any], *tensors: Any) -> Any:
        ctx.slopes = slopes
        ctx.save_for_backward(*tensors)  # and see that they are not changed before their gradient is asked for
        return value()

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple[Any, ...]:
        _check_transforms(upstream, "the upstream gradient")
        return None, None, *_Slopes.apply(ctx.slopes, ctx.needs_input_grad[2:], upstream, *ctx.saved_tensors)


class _Slopes(torch.autograd.Function):  # type: ignore[misc] # likewise
    """Gradients as a node of their own: to be refused where they are differentiated."""

    @staticmethod
    def forward(_: Any, slopes: Callable[..., Any], needed: Sequence[bool], upstream: Any, *tensors: Any) -> Any:
        return tuple(slopes(upstream, tensors, needed))

    @staticmethod
    def backward(*_: Any) -> NoReturn:
        raise RuntimeError(_TWICE)


# Operators -----------------------------------------------------------------------------------------------------------

# Sums follow the order in memory. A plan is made in each call, and its tables could not be captured.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.cudagraph_unsafe)


@torch.library.custom_op("gpureg::penalty", mutates_args=(), tags=_TAGS)  # type: ignore[untyped-decorator] # likewise
def penalty(
    tensors: Sequence[Tensor],
    coefficients: Sequence[float],
    strength: float,
    strength_tensor: Tensor | None,
    divisor: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the penalty of tensors, of three coefficients each, over the divisor."""
    plan, factor = _of_operator(tensors, coefficients, strength, strength_tensor)
    return _value(plan, _NUMPY[dtype], factor, divisor)


@torch.library.custom_op("gpureg::penalty_gradient", mutates_args=(), tags=_TAGS)  # type: ignore[untyped-decorator] # likewise
def penalty_gradient(
    upstream: Tensor,
    tensors: Sequence[Tensor],
    coefficients: Sequence[float],
    strength: float,
    strength_tensor: Tensor | None,
    divisor: int,
) -> list[Tensor]:
    """Return the gradients of `penalty` at its tensors."""
    plan, factor = _of_operator(tensors, coefficients, strength, strength_tensor)
    return _gradients(plan, tensors, upstream, factor, divisor)


def _of_operator(
    tensors: Sequence[Any], flat: Sequence[float], strength: float, strength_tensor: Any
) -> tuple[Plan, Any]:
    """Return the plan and the strength that an operator's arguments mean."""
    coefficients = [Coefficients(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
    factor = strength if strength_tensor is None else library.native(strength_tensor, "strength", DTYPES[2:])
    return _plan(tensors, coefficients), factor


@penalty.register_fake  # type: ignore[untyped-decorator] # likewise
def _(tensors: Sequence[Any], *arguments: Any) -> Any:
    return tensors[0].new_empty((), dtype=arguments[-1])


@penalty_gradient.register_fake  # type: ignore[untyped-decorator] # likewise
def _(_: Any, tensors: Sequence[Any], *__: Any) -> list[Any]:
    return list(map(torch.empty_like, tensors))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001 - PyTorch names them
    tensors, ctx.coefficients, ctx.strength, strength_tensor, ctx.divisor, _ = inputs
    ctx.save_for_backward(strength_tensor, *tensors)


def _backward(ctx: Any, upstream: Any) -> tuple[Any, ...]:
    needed = ctx.needs_input_grad[0]
    strength_tensor, *tensors = ctx.saved_tensors
    coefficients = [number for i, number in enumerate(ctx.coefficients) if needed[i // 3]]
    gradients = iter(
        penalty_gradient(
            upstream, list(compress(tensors, needed)), coefficients, ctx.strength, strength_tensor, ctx.divisor
        )
    )
    return [next(gradients) if one else None for one in needed], None, None, None, None, None


def _refuse(*_: Any) -> NoReturn:
    raise RuntimeError(_TWICE)


penalty.register_autograd(_backward, setup_context=_save)
penalty_gradient.register_autograd(_refuse)
