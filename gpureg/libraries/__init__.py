"""Whose array is this: the interface by which an array library joins, and the table of those that have.

A library is one small file here: how its arrays are seen by the backend that computes where they live, without a
copy, and how a result becomes the library's own. No library is imported to find out whose array something is; the
name of its type's package tells.
"""

import functools
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np

from gpureg.backends import Backend

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
        """Return the backend that computes where a native array lives."""

    def native(self, array: Any, name: str, dtypes: Sequence[str] = DTYPES) -> Any:
        """Return an array as its backend takes it, without a copy; a TypeError says what it is and what is taken."""

    def writable(self, array: Any) -> bool:
        """Return whether the array may be written to."""

    def device(self, native: Any) -> str:
        """Return where a native array lives; one call computes on one device."""

    def signatures(self, arrays: Sequence[Any]) -> Any:
        """Return of arrays, all of types that this library owns, what checks depend on but where they lie.

        Gradients whose signatures equal those of others that were found good are good themselves.
        """

    def addresses(self, arrays: Sequence[Any]) -> list[int]:
        """Return where the first element of each array lies."""

    def empty_like(self, array: Any) -> Any:
        """Return a new array of the same shape, dtype, layout and device, its elements not set."""

    def scalar(self, value: Any) -> Any:
        """Return a backend's 0-d result as the library's own."""

    def dtype(self, dtype: Any) -> np.dtype[Any] | None:
        """Return the NumPy dtype of a name or one of the library's own dtypes; None for what is no dtype."""


# By the top-level package of the array's type or of one of its bases.
_MODULES = {"numpy": "gpureg.libraries.numpy", "cupy": "gpureg.libraries.cupy"}


def of(array: Any, name: str) -> Library:
    """Return the library of an array; a TypeError calls the array by `name`."""
    library = _of_type(type(array))  # type: ignore[arg-type] # types are hashable; mypy doubts it of type[Any]
    if library is None:
        raise TypeError(
            f"{name} must be an array of {' or '.join(_MODULES)}, not {type_name(array)}; "
            "lists, Python numbers and strings are not taken: make an array of them first"
        )
    return library


@functools.lru_cache(maxsize=256)
def _of_type(kind: type) -> Library | None:
    """Return the library whose own type, or a type derived from it, this is."""
    for base in kind.__mro__:
        module = _MODULES.get(base.__module__.partition(".")[0])
        if module is not None:
            library = cast("Library", import_module(module).library)
            return library if library.owns(kind) else None
    return None


def type_name(thing: Any) -> str:
    """Return the name of a thing's type for an error, with its module."""
    kind = type(thing)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


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
