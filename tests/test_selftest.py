"""The golden checksums are the reference's; every backend gives them, and one that does not is seen."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gpureg import backends, selftest
from gpureg.arithmetic import Coefficients
from gpureg.backends import Mode, Results, Values
from gpureg.backends.numpy import NumpyBackend, NumpySteps
from gpureg.backends.numpy import backend as numpy_backend
from gpureg.statistics import Statistics
from tests import golden
from tests.helpers import Array
from tests.passes import Leaf, WholePlan, run

DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_golden_checksums_are_those_of_the_reference(dtype: str) -> None:
    computed = golden.digests(selftest.dtypes()[dtype])
    kept = {name: digest for name, digest in selftest.golden().items() if name.startswith(f"{dtype} ")}
    assert computed == kept


def usable_backends() -> list[str]:
    return [name for name in backends.NAMES if backends.load(name).unusable() is None]


@pytest.mark.parametrize("name", usable_backends())
def test_every_usable_backend_gives_the_golden_checksums(name: str) -> None:
    outcome = selftest.run(backends.load(name), seed=1)
    assert outcome.failed == ()
    assert outcome.golden == len(selftest.golden())
    assert outcome.fresh == 2 * len(DTYPES) * (len(selftest.COEFFICIENTS) + 1)


def test_without_ml_dtypes_the_other_dtypes_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    outcome = selftest.run(backends.load("numpy"))
    assert outcome.failed == ()
    assert outcome.golden == len(selftest.golden()) * 3 // 4


class Broken(NumpyBackend):
    """A backend with a fault in passes of one mode, or in proximal steps."""

    def __init__(self, mode: Mode | None, fault: Callable[..., Any]) -> None:
        self.mode, self.fault = mode, fault

    def plan(self, leaves: Sequence[backends.Leaf]) -> Any:
        return WholePlan(self._pass, leaves)

    def _pass(self, mode: Mode, leaves: Sequence[Leaf], *args: Any, **kwargs: Any) -> Values:
        def right(leaves: Sequence[Leaf], *args: Any, **kwargs: Any) -> Values:
            return run(numpy_backend, mode, leaves, *args, **kwargs)

        if mode is self.mode:
            result: Values = self.fault(right, leaves, *args, **kwargs)
            return result
        return right(leaves, *args, **kwargs)

    def proximal_plan(self, leaves: Sequence[backends.Leaf]) -> NumpySteps:
        return NumpySteps(leaves, self._step)

    def _step(self, weights: Array, coefficients: Coefficients, step: float) -> None:
        numpy_backend.proximal_plan([backends.Leaf(weights, coefficients)]).take([step])
        if self.mode is None:
            self.fault(weights)


def flushes_subnormals(right: Any, leaves: Sequence[Leaf], *args: Any, **kwargs: Any) -> Values:
    flushed = []
    for leaf in leaves:
        weights = leaf.weights.copy()
        if weights.dtype == np.float32:
            weights[np.abs(weights) < np.finfo(np.float32).tiny] = 0
        flushed.append(leaf._replace(weights=weights))
    result: Values = right(flushed, *args, **kwargs)
    return result


def drops_the_last_element(right: Any, leaves: Sequence[Leaf], *args: Any, **kwargs: Any) -> Values:
    result: Values = right([leaf._replace(weights=leaf.weights[:-1]) for leaf in leaves], *args, **kwargs)
    return result


def scales_the_value(right: Any, leaves: Sequence[Leaf], *args: Any, upstream: float = 1.0, **kwargs: Any) -> Values:
    result: Values = right(leaves, *args, upstream=upstream, **kwargs)
    return Results(result.total * upstream, result.each, result.rounded)


def makes_a_negative_zero(weights: Array) -> None:
    weights[weights == 0] *= -1


def turns_round_what_is_far_in(right: Any, leaves: Sequence[Leaf], *args: Any, **kwargs: Any) -> Any:
    result = right(leaves, *args, **kwargs)
    for leaf in leaves:
        leaf.gradient[2**17 :] = leaf.gradient[2**17 :][::-1].copy()
    return result


FAULTS = [
    (Mode.VALUE_AND_GRADIENT, turns_round_what_is_far_in),
    (Mode.ACCUMULATE, turns_round_what_is_far_in),
    (Mode.VALUE, flushes_subnormals),
    (Mode.VALUE, drops_the_last_element),
    (Mode.ACCUMULATE, scales_the_value),
    (None, makes_a_negative_zero),
]


@pytest.mark.parametrize(("mode", "fault"), FAULTS, ids=[fault.__name__ for _, fault in FAULTS])
def test_a_broken_backend_is_seen(mode: Mode | None, fault: Callable[..., Any]) -> None:
    assert selftest.run(Broken(mode, fault)).failed


class Miscounting(NumpyBackend):
    """A backend whose statistics of some sizes have one zero too many."""

    def __init__(self, sizes: range) -> None:
        self.sizes = sizes

    def statistics(self, arrays: Sequence[Array], threshold: float) -> list[Statistics]:
        right = super().statistics(arrays, threshold)
        return [one._replace(zeros=one.zeros + 1) if one.size in self.sizes else one for one in right]


@pytest.mark.parametrize(
    ("sizes", "failed"),
    [
        (range(2), "float32 weights 1 statistics"),
        (range(2**20, 2**21), "float32 fresh 0 statistics NumPy's"),
        (range(2**16, 2**17), "float16 fresh 0 statistics in pieces"),
    ],
)
def test_a_backend_that_miscounts_is_seen(sizes: range, failed: str) -> None:
    assert failed in selftest.run(Miscounting(sizes)).failed


def test_other_numbers_have_another_checksum_and_every_nan_the_same() -> None:
    quiet = np.array([np.nan, 1.0])
    other = np.array([-np.nan, 1.0])
    other.view(np.uint64)[0] |= 12345
    assert selftest.checksum(quiet) == selftest.checksum(other)
    assert selftest.checksum(np.array([0.0])) != selftest.checksum(np.array([-0.0]))
    assert np.isnan(other[0])
    assert other.view(np.uint64)[0] & 0xFFF == 12345 & 0xFFF  # what is checked is not changed
