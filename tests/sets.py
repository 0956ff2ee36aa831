"""Random sets of tensors as a model's, and the bits that a penalty over them must have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gpureg
from gpureg import Penalty, arithmetic, backends
from gpureg.arithmetic import tile_size
from gpureg.backends import Mode
from tests import reference
from tests.helpers import DTYPES, LAYOUTS, Array, assert_bits, bits, content, gradient_dtypes
from tests.passes import Leaf, run

NUMPY = backends.load("numpy")

REGULARIZERS = (gpureg.L1(0.1), gpureg.L2(0.3), gpureg.HalvedL2(0.3), gpureg.L1L2(0.1, 0.3), gpureg.L1L2(), None)


class Set(NamedTuple):
    """Tensors with their gradients, and the regularizer that each gets."""

    weights: dict[str, Array]
    grads: dict[str, Array]
    regularizers: dict[str, gpureg.Regularizer | None]

    def leaves(self) -> dict[str, gpureg.Regularizer]:
        """Return the regularizers of the tensors that are penalised."""
        return {name: own for name, own in self.regularizers.items() if own is not None}


def make(count: int, seed: int) -> Set:
    """Return random tensors: of all dtypes, empty ones, small ones, misaligned ones, of every layout."""
    rng = np.random.default_rng(seed)
    made = Set({}, {}, {})
    sizes = [0, 1, 2, 7, 63, 128, 300, 2000] if count > 60 else [0, 1, 77, tile_size(2) + 5, 140_000]
    for i in range(count):
        dtype = list(DTYPES)[rng.integers(4)]
        into = gradient_dtypes(dtype)[rng.integers(len(gradient_dtypes(dtype)))]
        size = int(rng.choice(sizes))
        shape = ((size,), (size, 1), (1, size), (2, size // 2))[rng.integers(4 if size % 2 == 0 else 3)]
        name = f"layer.{i}"
        for arrays, kind, what in ((made.weights, dtype, "wide"), (made.grads, into, "weights")):
            array = content(what, size, kind, seed=int(rng.integers(1000))).reshape(shape)
            layout = list(LAYOUTS)[rng.integers(len(LAYOUTS))] if rng.random() < 0.3 else "C"
            arrays[name] = LAYOUTS[layout].place(array).array
        made.regularizers[name] = REGULARIZERS[rng.integers(len(REGULARIZERS))]
    return made


def check(
    made: Set,
    strength: float = 1.0,
    scale: float = 1.0,
    *,
    place: Callable[[Array], Any] = np.asarray,
    back: Callable[[Any], Array] = np.asarray,
) -> None:
    """Assert that a penalty has the bits of NumPy's passes over each tensor alone, and of the tree over them.

    `place` puts an array where it is computed on, with the same strides, and `back` brings one back.
    """
    weights = {name: place(w) for name, w in made.weights.items()}
    penalty = Penalty(weights, list(made.regularizers.items()))
    penalty.set_strength(strength)
    leaves = made.leaves()
    factors: dict[str, Any] = {"strength": strength, "upstream": scale}
    doubles, stored, added = [], {}, {name: np.array(grad) for name, grad in made.grads.items()}
    for name, own in leaves.items():
        w = made.weights[name]
        stored[name] = np.empty_like(w)
        run(NUMPY, Mode.GRADIENT, [Leaf(w, own.coefficients, stored[name])], **factors)
        alone = run(NUMPY, Mode.ACCUMULATE, [Leaf(w, own.coefficients, added[name])], **factors)
        doubles.append(float(alone.total))

    losses, norms = penalty.losses(), penalty.norms()
    assert list(losses) == list(norms) == list(leaves)
    for name, double in zip(leaves, doubles, strict=True):
        dtype = arithmetic.result_dtype([made.weights[name].dtype]).name
        assert losses[name].shape == ()
        assert_bits(back(losses[name]), reference.result(double, dtype), dtype)
        sums = run(NUMPY, Mode.VALUE, [Leaf(made.weights[name], gpureg.L1().coefficients)], sums=True).sums[0]
        assert [float(back(one)) for one in norms[name]] == sums.tolist()

    wide = "float64" if any(made.weights[name].dtype == np.float64 for name in leaves) else "float32"
    total = reference.result(reference.total(doubles), wide)
    found = {name: place(np.array(grad)) for name, grad in made.grads.items()}
    for value in (penalty(), penalty.accumulate_grad(found, scale), penalty.value_and_grads(scale=scale)[0]):
        assert value.shape == ()
        assert_bits(back(value), total, wide)
    for name, grad in penalty.grads(scale=scale).items():
        assert np.array_equal(bits(back(grad)), bits(stored[name])), name
        assert back(grad).dtype == made.weights[name].dtype
    for name, grad in added.items():
        assert np.array_equal(bits(back(found[name])), bits(grad)), name
