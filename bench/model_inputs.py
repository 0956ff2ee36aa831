"""Whole models: which are compared, in which modes, and their arrays."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

import gpureg
from bench import cases, inputs, models
from gpureg import samples

LIMIT_BYTES = 2**28
"""Models are scaled to weights of at most so many bytes; gradients take as many again."""

SMALL_BYTES = 2**24
"""Where only is looked whether contenders are right."""

ALIGNED = 16
"""Tensors begin at multiples of so many elements, as allocators have it."""

L2 = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison: a pass over a model scaled to so many bytes."""

    model: str
    adds: bool
    """Whether the gradient is added to one that is there; else only the value is computed."""
    decay: bool = False
    """Whether only what weight decay is for is penalised: no biases, normalisations, vectors. Else all."""
    limit_bytes: int = LIMIT_BYTES
    dtype = "float32"

    @property
    def mode(self) -> str:
        """Return what is computed."""
        return ("value, gradient added" if self.adds else "value") + (", weight decay" if self.decay else "")

    @property
    def rules(self) -> Any:
        """Return the rules that gpureg is given."""
        return gpureg.Rules.exclude_bias_and_norm(gpureg.L2(L2)) if self.decay else gpureg.L2(L2)

    def __str__(self) -> str:
        return f"{self.model}, {self.mode}"

    @property
    def parameters(self) -> models.Parameters:
        """Return the parameters of the model as it was scaled."""
        return models.scaled(self.model, self.limit_bytes)

    @property
    def penalised(self) -> list[str]:
        """Return the names of those that are penalised, by the rule as most write it."""
        return [name for name, shape in self.parameters if not self.decay or (len(shape) > 1 and "bias" not in name)]

    @property
    def elements(self) -> int:
        """Return how many weights are penalised."""
        shapes = dict(self.parameters)
        return sum(math.prod(shapes[name]) for name in self.penalised)

    @property
    def sets(self) -> "tuple[Model, ...]":
        """Return the sets of arrays that calls take turns on, as many as `inputs.set_count` says."""
        return _sets(dataclasses.replace(self, adds=False))

    def single(self) -> cases.Case:
        """Return the comparison of as many elements in one tensor."""
        return cases.Case(cases.Mode(self.mode, 0.0, L2, "add" if self.adds else "nothing"), self.dtype, self.elements)


CASES = [
    *(Case(model, adds) for model in models.names() for adds in (False, True)),
    Case("gpt2", adds=True, decay=True),
]


class Model(NamedTuple):
    """One set of arrays of a model; all weights lie in one array one after another, and all gradients."""

    weights: dict[str, Any]
    gradients: dict[str, Any]
    start: dict[str, Any]
    """What gradients hold before something is added to them."""
    flat: Any
    """As many weights and gradients as are penalised, whosever they are: for plain passes over as many bytes.

    The scratch array is as large as the largest tensor.
    """

    def restart(self) -> None:
        """Let gradients hold what they held at first."""
        for name, gradient in self.gradients.items():
            gradient[...] = self.start[name]


@functools.lru_cache(maxsize=1)
def _sets(case: Case) -> tuple[Model, ...]:
    """Return sets of arrays; only the last are kept, for they may be gigabytes."""
    places, stop = placed(case.parameters, ALIGNED)
    scratch = np.zeros(max(math.prod(shape) for _, shape in places.values()), np.float32)
    weights, start = samples.weights(stop), samples.weights(stop, seed=1)

    def one() -> Model:
        w, g = _aligned(weights), _aligned(start)
        read = w[: case.elements]
        flat = inputs.Arrays(read, g[: case.elements], scratch, read)
        return Model(views(w, places), views(g, places), views(start, places), flat)

    return tuple(one() for _ in range(inputs.set_count(weights.nbytes)))


def _aligned(array: Any) -> Any:
    """Return a copy that begins at a multiple of 64 bytes."""
    room = np.empty(array.nbytes + 64, np.uint8)
    copy = room[-room.ctypes.data % 64 :][: array.nbytes].view(array.dtype)
    copy[...] = array
    return copy


Places = dict[str, tuple[int, models.Shape]]
"""Where a tensor begins, and its shape, by its name."""


def placed(parameters: models.Parameters, aligned: int) -> tuple[Places, int]:
    """Return where tensors lie one after another, each at a multiple of so many elements, and where the last ends."""
    places, stop = {}, 0
    for name, shape in parameters:
        places[name] = stop, shape
        stop += -(-math.prod(shape) // aligned) * aligned
    return places, stop


def views(array: Any, places: Places) -> dict[str, Any]:
    """Return tensors that lie in a flat array."""
    return {name: array[start : start + math.prod(shape)].reshape(shape) for name, (start, shape) in places.items()}
