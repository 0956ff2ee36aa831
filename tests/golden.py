"""The naive reference as a backend, and the writer of the golden checksums: `python -m tests.golden`.

The checksums are those of the reference, never of a backend: run this only when docs/arithmetic.md itself changes.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpureg import backends, selftest
from gpureg.arithmetic import Coefficients
from gpureg.backends import Mode, Results
from gpureg.backends.numpy import NumpySteps
from gpureg.statistics import Statistics
from tests import reference
from tests.passes import Leaf, WholePlan
from tests.reference import Rule

Array = NDArray[Any]

GOLDEN = Path(selftest.__file__).with_name("golden.json")


def decode(array: Array) -> list[float]:
    """Return the exact values of a dense array, from its bits."""
    return reference.decode(array.reshape(-1).view(f"u{array.itemsize}").tolist(), array.dtype.name)


def encode(values: Sequence[float], dtype: np.dtype[Any]) -> Array:
    """Return values rounded once to a dtype, as an array."""
    return np.array(reference.encode(values, dtype.name), f"u{dtype.itemsize}").view(dtype)


def rule(coefficients: Coefficients) -> Rule:
    """Return the rule in the halved form, which all coefficients can be written in."""
    assert coefficients.l2 == coefficients.twice_l2 / 2
    return Rule(coefficients.l1, coefficients.twice_l2, halved=True)


@functools.cache
def _sums(raw: bytes, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the sums of weights given as bytes; each is wanted many times."""
    return reference.sums(decode(np.frombuffer(raw, dtype)), dtype.name)


def _proximal(weights: Array, coefficients: Coefficients, step: float) -> None:
    moved = reference.proximal(decode(weights), weights.dtype.name, rule(coefficients), step)
    weights[...] = encode(moved, weights.dtype)


class ReferenceBackend:
    """`tests/reference.py` in the shape of `gpureg.backends.Backend`, for dense 1-d arrays."""

    name = "reference"
    trusts_identity = False

    def unusable(self) -> str | None:
        return None

    def plan(self, leaves: Sequence[backends.Leaf]) -> WholePlan:
        return WholePlan(self._pass, leaves)

    def _pass(
        self,
        mode: Mode,
        leaves: Sequence[Leaf],
        dtype: np.dtype[Any],
        *,
        strength: float = 1.0,
        upstream: float = 1.0,
        divisor: int = 1,
    ) -> Results:
        for leaf in leaves if mode is not Mode.VALUE else ():
            self._write(leaf, decode(leaf.gradient) if mode is Mode.ACCUMULATE else None, strength, upstream)
        penalties = [
            reference.penalty(rule(leaf.coefficients), *_sums(leaf.weights.tobytes(), leaf.weights.dtype), strength)
            for leaf in leaves
        ]
        total = reference.result(reference.total(penalties) / divisor, dtype.name)
        return Results(encode([total], dtype)[0], encode(penalties, np.dtype(np.float64)), None)

    def _write(self, leaf: Leaf, add_to: list[float] | None, strength: float, upstream: float) -> None:
        gradient = reference.gradient(
            decode(leaf.weights),
            leaf.weights.dtype.name,
            rule(leaf.coefficients),
            into=leaf.gradient.dtype.name,
            strength=strength,
            upstream=upstream,
            add_to=add_to,
        )
        leaf.gradient[...] = encode(gradient, leaf.gradient.dtype)

    def proximal_plan(self, leaves: Sequence[backends.Leaf]) -> NumpySteps:
        return NumpySteps(leaves, _proximal)

    def statistics(self, arrays: Sequence[Array], threshold: float) -> list[Statistics]:
        told = [reference.statistics(decode(array), array.dtype.name, threshold) for array in arrays]
        return [Statistics(**one) for one in told]  # type: ignore[arg-type] # what is counted is an int

    def from_numpy(self, array: Array) -> Array:
        return array.copy()

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def address(self, array: Array) -> int:
        return array.ctypes.data

    def overlap(self, first: Array, second: Array) -> bool:
        return bool(np.shares_memory(first, second))


def digests(dtype: np.dtype[Any]) -> dict[str, str]:
    """Return the checksums of a dtype's cases as the reference computes them."""
    return dict(selftest.digests(ReferenceBackend(), dtype))


if __name__ == "__main__":
    everything = {name: digest for dtype in selftest.dtypes().values() for name, digest in digests(dtype).items()}
    GOLDEN.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")
