"""PyTorch in the benchmarks: eagerly, compiled, and as a memory limit; on CuPy's or NumPy's memory, without a copy.

On a GPU both use the device's default stream, so that one's events time the other's work.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from bench.cases import Case, Mode
from bench.inputs import xp

Run = Callable[[Any], Any]
"""A pass over arrays that have their tensors, `w_tensor` and `g_tensor`, as `bench.gpu_inputs.Arrays` do."""


def _torch() -> Any:
    """Return PyTorch if it is installed and reaches what arrays are compared, else None."""
    try:
        module = import_module("torch")
    except ModuleNotFoundError:
        return None
    return module if xp.__name__ == "numpy" or module.cuda.is_available() else None


torch = _torch()


def tensor(array: Any) -> Any:
    """Return a tensor on the memory of an array, or None without PyTorch; bfloat16 crosses as integers."""
    if torch is None:
        return None
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view("i2")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def forget() -> None:
    """Give back the memory that nothing uses."""
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def plain(case: Case) -> dict[str, Run]:
    """Return PyTorch's eager forms by name: by its fastest functions, and as automatic differentiation does it."""
    mode = case.mode
    if mode.write == "nothing":
        return {f"torch: {_value_code(mode)}": lambda a: _value(_wide(a.w_tensor), mode)}

    def in_place(a: Any) -> Any:
        w, g = a.w_tensor, a.g_tensor
        if mode.write == "store":
            torch.sign(w, out=g)
            g.mul_(mode.l1)
        else:
            g.add_(torch.sign(w), alpha=mode.l1)
        g.add_(w, alpha=2 * mode.l2)
        return _value(_wide(w), mode)

    def backward(a: Any) -> Any:
        w, g = a.w_tensor, a.g_tensor
        w = w.detach().requires_grad_()
        w.grad = g
        x = _wide(w)
        value = mode.l1 * x.abs().sum() + mode.l2 * x.square().sum()
        value.backward()
        return value.detach()

    if mode.write == "store":
        return {"torch: torch.sign(w, out=g).mul_(l1).add_(w, alpha=2 * l2); and the norms": in_place}
    return {
        "torch: g.add_(torch.sign(w), alpha=l1).add_(w, alpha=2 * l2); and the norms": in_place,
        "torch: (l1 * w.abs().sum() + l2 * w.square().sum()).backward()": backward,
    }


def _wide(w: Any) -> Any:
    """Return the weights in the dtype that plain expressions compute in."""
    return w.float() if w.element_size() == 2 else w


def _value_code(mode: Mode) -> str:
    parts = ["l1 * torch.linalg.vector_norm(w, 1)"] * (mode.l1 != 0) + ["l2 * torch.dot(w, w)"] * (mode.l2 != 0)
    return " + ".join(parts)


def _value(w: Any, mode: Mode) -> Any:
    if mode.l2 == 0:
        return mode.l1 * torch.linalg.vector_norm(w, 1)
    if mode.l1 == 0:
        return mode.l2 * torch.dot(w, w)
    return mode.l1 * torch.linalg.vector_norm(w, 1) + mode.l2 * torch.dot(w, w)


def compiled(case: Case) -> dict[str, Run]:
    """Return the plain expression compiled by `torch.compile`, for one shape."""
    mode = case.mode
    function = torch.compile(_expression(mode), dynamic=False, fullgraph=True)

    def run(a: Any) -> Any:
        w, g = a.w_tensor, a.g_tensor
        with torch.no_grad():
            return function(w, g)

    return {"torch.compile of the plain expression, the gradient in place": run}


def _expression(mode: Mode) -> Callable[[Any, Any], Any]:
    l1, l2, write = mode.l1, mode.l2, mode.write

    def expression(w: Any, g: Any) -> Any:
        x = _wide(w)
        if write == "add":
            g.add_((l1 * torch.sign(x) + 2 * l2 * x).to(g.dtype))
        elif write == "store":
            g.copy_(l1 * torch.sign(x) + 2 * l2 * x)
        if l2 == 0:
            return l1 * x.abs().sum()
        if l1 == 0:
            return l2 * x.square().sum()
        return l1 * x.abs().sum() + l2 * x.square().sum()

    return expression


def read(a: Any) -> Any:
    """Return the sum of the weights as integers, which is exact modulo 2**64."""
    return a.w_tensor.view(torch.int64).sum()


def copy(a: Any) -> None:
    """Copy the weights into the gradient."""
    a.g_tensor.copy_(a.w_tensor)


def add(a: Any) -> None:
    """Add the weights to the gradient as integers, whose sums are exact."""
    a.g_tensor.view(torch.int64).add_(a.w_tensor.view(torch.int64))
