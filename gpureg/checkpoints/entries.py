"""The tensors of a checkpoint: what each is, where its bytes lie, and its elements in the order of a sum."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gpureg import libraries
from gpureg.arithmetic import memory_order
from gpureg.checkpoints.files import CheckpointError, Window, quoted, shown

Array = NDArray[Any]

# What the elements of a dtype are stored as: 16-bit and 8-bit floats that NumPy lacks as unsigned integers.
_STORED = {
    "float16": "f2",
    "bfloat16": "u2",
    "float32": "f4",
    "float64": "f8",
    "float8_e4m3fn": "u1",
    "float8_e5m2": "u1",
}

FLOATS = tuple(_STORED)
"""The dtypes whose elements are read, by name; tensors of any other are listed only."""

PIECE = 2**20
"""Elements of a piece where nothing else is asked for: whole tiles of every dtype, and a few MiB."""

MAX_AXES = 64
"""What NumPy takes."""

MAX_TENSORS = 2**18
"""Of one file. Each takes some hundred bytes of memory, so that a small file cannot ask for much."""


class Source(NamedTuple):
    """Where the bytes of a tensor begin: as they are, or compressed."""

    path: Path
    offset: int


class Elements(Protocol):
    """The elements of one tensor, wherever they come from."""

    order: tuple[int, ...]

    def array(self) -> Array | None:
        """Return all elements as one mapped array, if that is what the file holds."""

    def pieces(self, size: int) -> Iterator[Array]:
        """Yield the elements, so many at a time."""


class Entry:
    """One tensor of a checkpoint. Making one reads the header alone; elements are read when asked for.

    Attributes
    ----------
    name : str
        Unique in its checkpoint.
    shape : tuple of int
    dtype : str
        A name of `gpureg.checkpoints.FLOATS`, or what the tensor is otherwise: such a tensor is listed, and has no
        elements.
    nbytes : int
        Bytes of the elements as they are stored, not compressed.
    source : Source
        The file, and where in it the elements begin.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile
    >>> from gpureg import checkpoints
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(pathlib.Path(folder, "w.npy"), np.array([[1, -2], [-3, 4]], np.float32))
    ...     (w,) = checkpoints.read(pathlib.Path(folder, "w.npy"))
    >>> w.name, w.shape, w.size, w.dtype, w.nbytes, w.source.offset
    ('w', (2, 2), 4, 'float32', 16, 128)
    >>> w.array().tolist(), [piece.tolist() for piece in w.pieces(3)]
    ([[1.0, -2.0], [-3.0, 4.0]], [[1.0, -2.0, -3.0], [4.0]])
    """

    __slots__ = ("_elements", "dtype", "name", "nbytes", "shape", "source")

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: str, nbytes: int, source: Source, elements: Elements | None
    ) -> None:
        self.name, self.shape, self.dtype, self.nbytes, self.source = name, shape, dtype, nbytes, source
        self._elements = elements

    def __repr__(self) -> str:
        return f"<Entry {quoted(self.name)}: {self.dtype} {self.shape}>"

    @property
    def size(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether the tensor has elements to read; it is listed only if not."""
        return self._elements is not None

    @property
    def order(self) -> tuple[int, ...]:
        """The order of axes that `pieces` follows, slowest first.

        It is that of `gpureg.arithmetic.memory_order`: memory order for dense tensors, C order for any other.
        """
        return self._given().order

    def array(self) -> Array | None:
        """Return the whole tensor as one read-only array, mapped, with the layout it has in the file.

        None where the file does not hold the elements as they are: compressed ones, 8-bit floats, the other byte order.

        Raises
        ------
        TypeError
            If the tensor is listed only.
        CheckpointError
            If bfloat16 is not to be had: it needs ml_dtypes.
        """
        try:
            return self._given().array()
        except _MissingError as error:
            raise self._missing(error) from None

    def pieces(self, size: int = PIECE) -> Iterator[Array]:
        """Yield 1-d arrays of `size` elements, the last one shorter, in the order in which sums follow them.

        Mapped views where the file holds the elements as they are, new arrays elsewhere: memory is needed for a
        piece, not for the tensor. 8-bit floats come as float32, which holds each of their values. If `size` is a
        multiple of `gpureg.arithmetic.tile_size`, as it is by default, all pieces but the last are whole tiles.

        Raises
        ------
        TypeError
            If the tensor is listed only.
        ValueError
            If `size` is not positive.
        CheckpointError
            If compressed elements turn out to be broken, or bfloat16 is not to be had: it needs ml_dtypes.
        """
        if size < 1:
            raise ValueError(f"size must be positive, not {size}")
        return self._read(self._given(), size)

    def _read(self, elements: Elements, size: int) -> Iterator[Array]:
        try:
            yield from elements.pieces(size)
        except _MissingError as error:
            raise self._missing(error) from None

    def _given(self) -> Elements:
        if self._elements is None:
            raise TypeError(f"tensor {quoted(self.name)} is {self.dtype}; only the elements of floats are read")
        return self._elements

    def _missing(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{shown(self.source.path)}: tensor {quoted(self.name)}: {error}")


class _MissingError(Exception):
    """A package is missing."""


class Mapped:
    """Elements that lie in a mapped file, side by side or strided."""

    def __init__(self, dtype: str, stored: Array) -> None:
        self._dtype, self._stored = dtype, stored
        self.order = memory_order(stored)

    def array(self) -> Array | None:  # noqa: D102
        if self._dtype in _TABLES or not self._stored.dtype.isnative:
            return None
        return _decoded(self._stored, self._dtype)

    def pieces(self, size: int) -> Iterator[Array]:  # noqa: D102
        view = self._stored.transpose(self.order)
        # Elements that do not lie side by side are gathered piece by piece.
        flat = view.reshape(-1) if view.flags.c_contiguous else view.flat
        for start in range(0, view.size, size):
            yield _decoded(flat[start : start + size], self._dtype)


class Streamed:
    """Elements that come as blocks of bytes of any length, which together are neither more nor less than needed."""

    def __init__(
        self, dtype: str, stored: np.dtype[Any], size: int, order: tuple[int, ...], blocks: Callable[[], Iterator[Any]]
    ) -> None:
        self._dtype, self._stored, self._size, self._blocks = dtype, stored, size, blocks
        self.order = order

    def array(self) -> Array | None:  # noqa: D102
        return None

    def pieces(self, size: int) -> Iterator[Array]:  # noqa: D102
        itemsize = self._stored.itemsize
        left = self._size * itemsize
        piece, filled = np.empty(min(size * itemsize, left), np.uint8), 0
        for block in self._blocks():
            rest = np.frombuffer(block, np.uint8)
            while rest.size:
                taken = rest[: piece.size - filled]
                piece[filled : filled + taken.size] = taken
                filled, rest = filled + taken.size, rest[taken.size :]
                if filled == piece.size:
                    yield _decoded(piece.view(self._stored), self._dtype)
                    left -= filled
                    piece, filled = np.empty(min(size * itemsize, left), np.uint8), 0


def _decoded(stored: Array, dtype: str) -> Array:
    """Return stored elements as numbers in this machine's byte order; a view where they are already."""
    if dtype in _TABLES:
        table: Array = _TABLES[dtype]()
        return table[stored]
    native: Array = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return native.view(_bfloat16()) if dtype == "bfloat16" else native


def _bfloat16() -> np.dtype[Any]:
    try:
        dtype = libraries.numpy_dtype("bfloat16")
    except TypeError as error:
        raise _MissingError(str(error)) from None
    assert dtype is not None
    return dtype


@functools.cache
def _float8_e5m2() -> NDArray[np.float32]:
    """Return the value of each byte: it is the upper half of a float16."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


@functools.cache
def _float8_e4m3fn() -> NDArray[np.float32]:
    """Return the value of each byte: 4 bits of exponent, bias 7, 3 of mantissa, no infinity, one NaN of each sign."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    values = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_TABLES = {"float8_e4m3fn": _float8_e4m3fn, "float8_e5m2": _float8_e5m2}


def stored_dtype(dtype: str, byte_order: str = "<") -> np.dtype[Any]:
    """Return what the elements of one of `FLOATS` are stored as."""
    return np.dtype(byte_order + _STORED[dtype])


class Entries:
    """The entries of one file as they are found, with the checks that all formats share."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._names: set[str] = set()
        self.found: list[Entry] = []

    def add(
        self,
        at: int,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        nbytes: int,
        offset: int,
        elements: Callable[[], Elements] | None,
    ) -> None:
        """Add a tensor that the header tells of at byte `at`, whose `nbytes` are at `offset`; both are positions here.

        Elements are asked for if there are any and the tensor is of floats.
        """
        self._check_name(at, name)
        source = Source(self._window.path, self._window.start + offset)
        read = elements() if elements is not None and dtype in _STORED else None
        self.found.append(Entry(name, shape, dtype, nbytes, source, read))

    def _check_name(self, at: int, name: str) -> None:
        if name in self._names:
            raise self._window.error(at, f"a second tensor is named {quoted(name)}")
        if len(self._names) == MAX_TENSORS:
            raise self._window.error(at, f"more than {MAX_TENSORS} tensors in one file")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise self._window.error(at, f"the name {quoted(name)} is no Unicode text") from None
        self._names.add(name)

    def nbytes(self, at: int, name: str, shape: tuple[int, ...], bits: int) -> int:
        """Return the bytes of a tensor of that shape; an error if no array could have it."""
        if len(shape) > MAX_AXES:
            raise self._window.error(at, f"tensor {quoted(name)} has {len(shape)} axes; at most {MAX_AXES} are read")
        # Also if one length is 0: NumPy makes no array otherwise.
        if min(shape, default=0) < 0 or math.prod(max(length, 1) for length in shape) * bits >= 2**66:
            raise self._window.error(at, f"tensor {quoted(name)} has the impossible shape {quoted(shape)}")
        nbytes, rest = divmod(math.prod(shape) * bits, 8)
        if rest:
            raise self._window.error(at, f"the {bits}-bit elements of tensor {quoted(name)} do not fill whole bytes")
        return nbytes
