"""How the arguments of kernels lie in memory: what gpureg passes, beside the structures of kernels/*.cu.

Whatever builds the kernels for the host compares these with the compiler's own layout (`assertions`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpureg.backends.cuda import CALL, FACTOR, PLACE, TENSOR
from gpureg.backends.cuda_statistics import PASS, RESULT
from gpureg.backends.cuda_statistics import TENSOR as PART
from gpureg.backends.cuda_steps import STEP, STEPS

SUMS = np.dtype([("abs", np.float64), ("squares", np.float64)], align=True)

__all__ = [
    "CALL",
    "FACTOR",
    "PART",
    "PASS",
    "PLACE",
    "RESULT",
    "STEP",
    "STEPS",
    "STRUCTURES",
    "SUMS",
    "TENSOR",
    "assertions",
]

STRUCTURES = {
    "penalty.cu": {"Sums": SUMS, "Tensor": TENSOR, "Place": PLACE, "Factor": FACTOR, "Call": CALL},
    "proximal.cu": {"Step": STEP, "Factor": FACTOR, "Steps": STEPS},
    "statistics.cu": {"Sums": SUMS, "Tensor": PART, "Group": RESULT, "Pass": PASS},
}
"""The structures by the file and the name they have there."""


def assertions(structures: dict[str, np.dtype[Any]]) -> str:
    """Return C++ that does not compile unless the structures of these names have these layouts."""
    return " ".join(line for name, dtype in structures.items() for line in _assertions(name, dtype))


def _assertions(name: str, dtype: np.dtype[Any]) -> Iterator[str]:
    assert dtype.fields is not None
    yield f'static_assert(sizeof({name}) == {dtype.itemsize}, "the size of {name}");'
    for field, (kind, offset, *_) in dtype.fields.items():
        same = f"__builtin_offsetof({name}, {field}) == {offset} && sizeof({name}::{field}) == {kind.itemsize}"
        yield f'static_assert({same}, "the place of {name}.{field}");'
