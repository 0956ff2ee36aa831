"""What stands for an array in any expression: the base of variables and of deferred losses."""

import math
import operator
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# By which other libraries see an array without a copy; they are the array's own, where it has them.
_PROTOCOLS = frozenset({"__cuda_array_interface__", "__dlpack__", "__dlpack_device__"})


class TensorShape(tuple[int | None, ...]):
    """A shape: a tuple, with the methods that scripts call on TensorFlow's; a length that is not known is None.

    >>> TensorShape((2, 3)).as_list(), TensorShape((2, 3)).ndims, TensorShape((2, 3)).num_elements()
    ([2, 3], 2, 6)
    """

    __slots__ = ()

    @property
    def ndims(self) -> int:
        """Return the number of axes."""
        return len(self)

    def is_compatible_with(self, other: "TensorShape") -> bool:
        """Return whether the lengths that are known in both are the same."""
        return len(self) == len(other) and all(
            None in pair or pair[0] == pair[1] for pair in zip(self, other, strict=True)
        )

    def as_list(self) -> list[int | None]:
        """Return the lengths of the axes."""
        return list(self)

    def num_elements(self) -> int | None:
        """Return the number of elements, None if a length is not known."""
        lengths = [length for length in self if length is not None]
        return math.prod(lengths) if len(lengths) == len(self) else None


def array_of(thing: Any) -> Any:
    """Return the array that a variable or a deferred loss stands for; anything else as it is."""
    return thing.value if isinstance(thing, Operand) else thing


def shape_of(thing: Any) -> TensorShape:
    """Return the shape of an array or of what stands for one; a number has none of its own, and is 0-d."""
    return TensorShape(getattr(thing, "shape", ()))


_Operator = Callable[[Any, Any], Any]


def _both_sides(operation: _Operator) -> tuple[_Operator, _Operator]:
    """Return a binary operator and its reflection."""
    return (
        lambda self, other: operation(self.value, array_of(other)),
        lambda self, other: operation(array_of(other), self.value),
    )


def _unary(operation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: operation(self.value)


class Operand(ABC):
    """Something that stands for an array, its `value`: in expressions, as an argument, and for attributes it lacks."""

    # NumPy and CuPy leave an operator to the operand with the higher one. There is no `__array_ufunc__`, not even by
    # way of the array: CuPy would not leave it then.
    __array_priority__ = 1000

    name: str

    @property
    @abstractmethod
    def value(self) -> Any:
        """Return the array."""

    @property
    @abstractmethod
    def shape(self) -> TensorShape:
        """Return the array's shape."""

    def get_shape(self) -> TensorShape:
        """Return the array's shape."""
        return self.shape

    __add__, __radd__ = _both_sides(operator.add)
    __sub__, __rsub__ = _both_sides(operator.sub)
    __mul__, __rmul__ = _both_sides(operator.mul)
    __truediv__, __rtruediv__ = _both_sides(operator.truediv)
    __pow__, __rpow__ = _both_sides(operator.pow)
    __matmul__, __rmatmul__ = _both_sides(operator.matmul)
    __lt__, __gt__ = _both_sides(operator.lt)
    __le__, __ge__ = _both_sides(operator.le)
    __neg__, __pos__, __abs__ = _unary(operator.neg), _unary(operator.pos), _unary(operator.abs)
    __bool__, __len__ = _unary(bool), _unary(len)

    def __float__(self) -> float:
        value = self.value
        # PyTorch warns where `float` forgets that a tensor records its gradient, and here that is meant.
        return float(value.item() if hasattr(value, "item") else value)

    def __getitem__(self, index: Any) -> Any:
        return self.value[array_of(index)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, specification: str) -> str:
        return format(self.value, specification)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} shape={self.shape}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        value = self.value
        # A tensor of PyTorch refuses while it records its gradient, which no NumPy array can do.
        return np.array(value.detach() if hasattr(value, "detach") else value, dtype=dtype, copy=copy)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        """Return a tensor of TensorFlow, which would take `__array__` else and lose the gradient."""
        return sys.modules["tensorflow"].convert_to_tensor(self.value, dtype=dtype, name=name)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the array: its dtype, device, transpose, methods."""
        if name.startswith("_") and name not in _PROTOCOLS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.value, name)

    @classmethod
    def __torch_function__(cls, function: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        """Call a function of PyTorch's on the arrays."""
        return function(*_arrays_in(given), **{key: _arrays_in(each) for key, each in (named or {}).items()})


def _arrays_in(given: Any) -> Any:
    """Return arguments with arrays in place of what stands for them, those in lists too."""
    return type(given)(map(_arrays_in, given)) if type(given) in (list, tuple) else array_of(given)
