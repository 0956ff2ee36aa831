"""What is compared: a mode on a tensor of one dtype and size, and the contenders in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.inputs import Arrays, Inputs

Role = Literal["gpureg", "best", "naive", "other", "limit"]
"""gpureg; NumPy in its best form (in place, BLAS); as most write it; otherwise; and a plain pass over memory."""


@dataclass(frozen=True)
class Mode:
    """What is computed: a penalty alone, or with its gradient, stored or added to one that is there."""

    name: str
    l1: float
    l2: float
    write: Literal["nothing", "store", "add"] = "nothing"

    @property
    def streams(self) -> int:
        """Reads and writes of as many bytes as the weights have that cannot be avoided."""
        return {"nothing": 1, "store": 2, "add": 3}[self.write]


MODES = (
    Mode("value, L1", 0.01, 0.0),
    Mode("value, L2", 0.0, 0.01),
    Mode("value, L1 + L2", 0.01, 0.01),
    Mode("value and gradient", 0.01, 0.01, "store"),
    Mode("value, gradient added", 0.01, 0.01, "add"),
)


@dataclass(frozen=True)
class Case:
    """One comparison: a mode on a tensor of one dtype and size."""

    mode: Mode
    dtype: str
    elements: int

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    @property
    def moved_bytes(self) -> int:
        """Bytes counted, for every contender the same: those that cannot be avoided."""
        return self.mode.streams * self.elements * self.itemsize

    def __str__(self) -> str:
        return f"{self.mode.name}, {self.dtype}, {self.elements} elements"


@dataclass(frozen=True)
class Contender:
    """A way to compute a mode: the code, what it is, and what says what is wrong with it, before it is timed."""

    name: str
    role: Role
    run: Callable[[Arrays], Any]
    wrong: Callable[[Callable[[Arrays], Any], Case, Inputs], str | None]
    """Call `run` on a set of the inputs and return what is wrong with what it did, or None."""
