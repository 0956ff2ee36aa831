"""The tensors of a checkpoint and those of a model as one thing: a name, what is known without reading, and pieces."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gpureg import backends, checkpoints, libraries
from gpureg.arithmetic import memory_order
from gpureg.backends import Backend
from gpureg.checkpoints import CheckpointError, Entry, Source
from gpureg.checkpoints.files import quoted
from gpureg.dispatch import dtype_name, memory_of
from gpureg.libraries import DTYPES
from gpureg.named import Named


class Tensor(NamedTuple):
    """One tensor: an array by name, or the entry of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    floating: bool
    given: Any

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def parts(self, size: int) -> Iterator[tuple[Backend, Any]]:
        """Yield the elements as arrays with the backend that computes where they are, in the order of a sum.

        Those of a file come so many at a time; those of an array, which is in memory, all at once.
        """
        if isinstance(self.given, Entry):
            cpu = backends.cpu()
            for piece in self.given.pieces(size):
                yield cpu, piece
        else:
            backend, native = self._native()
            yield backend, native

    def takes_memory(self) -> bool:
        """Return whether parts are new arrays: decompressed, converted, or gathered as they do not lie side by side."""
        if not isinstance(self.given, Entry):
            return False
        array = self.given.array()
        return array is None or not array.transpose(self.given.order).flags.c_contiguous

    def start(self) -> Source | None:
        """Return where in a file the elements begin; None for an array. What begins elsewhere is other memory."""
        return self.given.source if isinstance(self.given, Entry) else None

    def memory(self) -> Any:
        """Return a key that tensors have in common which are the same elements in memory; None for what has none."""
        array = self.given.array() if isinstance(self.given, Entry) else self.given
        return None if array is None else memory_of(array)

    def on_host(self) -> "Elements":
        """Return the elements to be read on the host, piece by piece."""
        if isinstance(self.given, Entry):
            return Elements(self, self.given.order, self.given.array())
        backend, native = self._native()
        array = backend.to_numpy(native)
        return Elements(self, memory_order(array), array)

    def _native(self) -> tuple[Backend, Any]:
        name = _label(self.name)
        library = libraries.of(self.given, name)
        native = library.native(self.given, name)
        return library.backend(native), native


class Elements(NamedTuple):
    """The elements of a tensor as NumPy arrays: the order of its axes in a sum, and one array, if it is mapped."""

    tensor: Tensor
    order: tuple[int, ...]
    array: Any

    def pieces(self, size: int, order: tuple[int, ...]) -> Iterator[Any]:
        """Yield the elements, so many at a time, along axes in an order."""
        if self.array is None and self.follows(order):
            yield from self.tensor.given.pieces(size)
            return
        if self.array is None:
            raise CheckpointError(
                f"tensor {quoted(self.tensor.name)} has its axes in another order in A than in B, and can be mapped "
                "in neither; save one of them in C order"
            )
        view = self.array.transpose(order)
        # What does not lie side by side is gathered piece by piece.
        flat = view.reshape(-1) if view.flags.c_contiguous else view.flat
        for start in range(0, view.size, size):
            yield flat[start : start + size]

    def follows(self, order: tuple[int, ...]) -> bool:
        """Return whether an order is that of the tensor's own sums, wherever axes of length 1 stand."""
        return self._moving(order) == self._moving(self.order)

    def _moving(self, order: tuple[int, ...]) -> list[int]:
        return [axis for axis in order if self.tensor.shape[axis] != 1]


def tensors_of(given: Any, what: str) -> list[Tensor]:
    """Return the tensors of a checkpoint by its path, of its entries, or of arrays by name; errors call it `what`."""
    if isinstance(given, str | os.PathLike):
        given = checkpoints.read(given)
    if not isinstance(given, Mapping):
        given = _listed(given, what)
        if given and all(isinstance(each, Entry) for each in given):
            return [_of_entry(entry) for entry in _without_twins(given, what)]
    return [_of_array(name, array) for name, array in Named(given, what).pairs]


def _listed(given: Any, what: str) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise TypeError(
            f"{what} must be the path of a checkpoint, its entries, or arrays by name, not {given!r:.200}"
        ) from None


def _without_twins(entries: list[Entry], what: str) -> list[Entry]:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise ValueError(f"{what} has two tensors named {quoted(entry.name)}; each must have a name of its own")
        seen.add(entry.name)
    return entries


def _of_entry(entry: Entry) -> Tensor:
    return Tensor(entry.name, entry.shape, entry.dtype, entry.floating, entry)


def _of_array(name: str, array: Any) -> Tensor:
    library = libraries.of(array, _label(name))
    dtype = dtype_name(array)
    floating = dtype in DTYPES
    if not floating and _may_be_floats(array.dtype):
        library.native(array, _label(name))  # says what it is, and what is taken
    return Tensor(name, tuple(array.shape), dtype, floating, array)


def _may_be_floats(dtype: Any) -> bool:
    """Return whether a dtype, of any library, is of floats, or does not tell what its elements are."""
    # Unlike its text, the name has no byte order; PyTorch's have a text alone.
    return re.search("float|void|object", getattr(dtype, "name", str(dtype))) is not None


def _label(name: str) -> str:
    return f"weights[{name!r}]"
