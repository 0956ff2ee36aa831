"""Whose array is this: the interface by which an array library joins, and the table of those that have.

A library is one small file here: how its arrays are seen by the backend that computes where they live, without a
copy, and how a result becomes the library's own. No library is imported to find out whose array something is; the
name of its type's package tells.

Where a library keeps a record of what is done to its arrays, to differentiate or compile it, a penalty is an entry in
that record: see `Library.records`.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn, Protocol, cast

import numpy as np

from gpureg import backends
from gpureg.arithmetic import Coefficients
from gpureg.backends import Backend, Plan

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The dtypes of weights, by name."""


class Library(Protocol):
    """The arrays of one library, as backends see them.

    `name` is how errors call it. A native array is what the backend of an array takes: `numpy.ndarray` for "numpy".
    """

    @property
    def name(self) -> str:
        """Return how errors call the library."""

    def owns(self, kind: type) -> bool:
        """Return whether a type of the package is one of its arrays."""

    def backend(self, native: Any) -> Backend:
        """Return the backend that computes where a native array lives, or where results are of no array at all."""

    def native(self, array: Any, name: str, dtypes: Sequence[str] = DTYPES) -> Any:
        """Return an array as its backend takes it, without a copy; a TypeError says what it is and what is taken."""

    def writable(self, array: Any) -> bool:
        """Return whether the array may be written to."""

    def device(self, native: Any) -> str:
        """Return where a native array lives; one call computes on one device."""

    def survey(self, arrays: Sequence[Any]) -> tuple[Any, list[int]]:
        """Return of writable arrays, all of types that this library owns, two things.

        First a signature, what checks depend on but where they lie: gradients whose signature equals that of others
        that were found good are good themselves. Then where the first element of each lies.
        """

    def empty_like(self, array: Any) -> Any:
        """Return a new native array of the shape, dtype, layout and device of an array, its elements not set."""

    def own(self, native: Any) -> Any:
        """Return a new native array, or a backend's 0-d result, as the library's own."""

    def written(self, arrays: Sequence[Any]) -> None:
        """Let the library know that gpureg wrote to arrays."""

    def placed(self, arrays: Sequence[Any]) -> Any:
        """Return what changes when an array gets other memory, or another view of it, while it stays the same object.

        None where no array ever does.
        """

    def working(self, native: Any) -> AbstractContextManager[Any]:
        """Return a context in which operations on a native array are done where it lives, in the order of its work."""

    def traced(self, array: Any) -> bool:
        """Return whether an array has no elements yet, but stands for one in a program that is being recorded."""

    def records(self, arrays: Sequence[Any]) -> bool:
        """Return whether a penalty of these arrays must be what `recorded` returns; it must for traced ones."""

    def recorded(
        self,
        arrays: Sequence[Any],
        coefficients: Sequence[Coefficients],
        dtype: np.dtype[Any],
        *,
        strength: Any = 1.0,
        over_batch: bool = False,
        plan: Plan | None = None,
    ) -> Any:
        """Return the total penalty of arrays as something that the library differentiates and compiles.

        `over_batch` divides it by the length of the first axis of the only array. A plan of passes over these arrays,
        where there is one, need not be made again.
        """

    def differentiable(self, array: Any, value: Any, slope: Callable[[], Any]) -> Any:
        """Return a value of an array as something that has this slope there, if the library keeps a record of it."""

    def dtype(self, dtype: Any) -> np.dtype[Any] | None:
        """Return the NumPy dtype of a name or one of the library's own dtypes; None for what is no dtype."""


# By the top-level package of the array's type or of one of its bases. The arrays of JAX come from two; PyTorch's are
# told in another way, see `_look_up`.
_MODULES = {
    "numpy": "gpureg.libraries.numpy",
    "cupy": "gpureg.libraries.cupy",
    "tensorflow": "gpureg.libraries.tensorflow",
    "jax": "gpureg.libraries.jax",
    "jaxlib": "gpureg.libraries.jax",
}

_NAMES = ("numpy", "cupy", "tensorflow", "torch", "jax")

_known: dict[type, Library] = {}  # by the types of arrays that were met, but for PyTorch's
_KNOWN = 256


def of(array: Any, name: str) -> Library:
    """Return the library of an array; a TypeError calls the array by `name`."""
    library = None if compiling() else _known.get(type(array))
    return _look_up(array, name) if library is None else library


def _look_up(array: Any, name: str) -> Library:
    """Return the library whose own type, or a type derived from it, that of an array is."""
    kind = type(array)
    if is_tensor_of_torch(array):
        # Looked up each time, and by an import: that is what torch.compile can follow of all this, and from a lookup
        # in what is known it would conclude that to learn another type makes its code void.
        from gpureg.libraries.torch import library  # noqa: PLC0415 - only now it is known to be there

        return cast("Library", library)
    for base in kind.__mro__:
        module = _MODULES.get(base.__module__.partition(".")[0])
        if module is not None:
            found = cast("Library", import_module(module).library)
            if not found.owns(kind):
                break
            if len(_known) >= _KNOWN:
                _known.clear()
            _known[kind] = found
            return found
    raise TypeError(
        f"{name} must be an array of {', '.join(_NAMES[:-1])} or {_NAMES[-1]}, not {type_name(array)}; "
        "lists, Python numbers and strings are not taken: make an array of them first"
    )


def is_tensor_of_torch(thing: Any) -> bool:
    """Return whether something is a tensor of PyTorch, which is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, getattr(torch, "Tensor", ()))  # none while it is being imported


def compiling() -> bool:
    """Return whether this code does not run, but is read by torch.compile: it can take no lock and look up no cache."""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "compiler") and bool(torch.compiler.is_dynamo_compiling())


def type_name(thing: Any) -> str:
    """Return the name of a thing's type for an error, with its module."""
    kind = type(thing)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def cuda_backend(whose: str) -> Backend:
    """Return the CUDA backend; a RuntimeError says why some arrays cannot be computed on."""
    backend = backends.load("cuda")
    if (reason := backend.unusable()) is not None:
        raise RuntimeError(f"{whose} cannot be computed on here: {reason}")
    return backend


def cupy(why: str) -> ModuleType:
    """Return CuPy, by which backends see the GPU arrays of all libraries; an error says what to install."""
    try:
        return import_module("cupy")
    except ModuleNotFoundError:
        raise RuntimeError(f"{why}, which needs CuPy: pip install 'gpureg[cuda13]', or gpureg[cuda12]") from None


class _Ordinary:
    def working(self, native: Any) -> AbstractContextManager[Any]:
        device = native.device
        return device if hasattr(device, "__enter__") else nullcontext()

    def differentiable(self, array: Any, value: Any, slope: Callable[[], Any]) -> Any:  # noqa: ARG002
        return value


class Unwritable(_Ordinary):
    """What a library has in common with others whose arrays are not written to."""

    def writable(self, array: Any) -> bool:  # noqa: ARG002, D102
        return False

    def survey(self, arrays: Sequence[Any]) -> NoReturn:  # noqa: D102
        raise NotImplementedError(f"{type_name(arrays[0])} is not written to")


class Unrecorded(_Ordinary):
    """What a library has in common with others that keep no record, and whose arrays keep their memory."""

    def written(self, arrays: Sequence[Any]) -> None:  # noqa: D102
        pass

    def placed(self, arrays: Sequence[Any]) -> Any:  # noqa: ARG002, D102
        return None

    def traced(self, array: Any) -> bool:  # noqa: ARG002, D102
        return False

    def records(self, arrays: Sequence[Any]) -> bool:  # noqa: ARG002, D102
        return False

    def recorded(self, arrays: Sequence[Any], *_: Any, **__: Any) -> NoReturn:  # noqa: D102
        raise NotImplementedError(f"no record is kept of what is done to {type_name(arrays[0])}")


def check_dtype(dtype: np.dtype[Any], name: str, dtypes: Sequence[str]) -> None:
    """Refuse a dtype that is not one of some in this machine's byte order; the error calls the array by `name`."""
    dtype_name = _name_if_native(dtype)
    if dtype_name in dtypes:
        return
    if dtype_name is None and dtype.name in dtypes:
        advice = f"give {name}.astype('{dtype.name}')"
        raise TypeError(f"{name} has dtype {dtype.str}, of the other byte order; {advice}")
    raise TypeError(f"{name} has dtype {dtype}; expected {' or '.join(dtypes)}")


@functools.lru_cache(maxsize=64)  # a dtype's name costs as much as a small call
def _name_if_native(dtype: np.dtype[Any]) -> str | None:
    return dtype.name if dtype.isnative else None


def numpy_dtype(dtype: Any) -> np.dtype[Any] | None:
    """Return the NumPy dtype that NumPy and CuPy callers mean, by name too; None for what is no dtype."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes  # noqa: PLC0415 - optional, and only here
        except ModuleNotFoundError:
            raise TypeError("dtype='bfloat16' needs ml_dtypes: pip install 'gpureg[bfloat16]'") from None
        dtype = ml_dtypes.bfloat16
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError):
        return None
    return result
