"""What is the NumPy backend's own: the order in which NumPy adds rows, and how small tensors are put together."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import backends
from gpureg.arithmetic import ROWS, Coefficients
from gpureg.backends import numpy as numpy_backend
from gpureg.backends.numpy import CHUNK, NumpyPlan
from tests import reference
from tests.helpers import DTYPES, Array, content, raw, regularizer, sizes, values
from tests.reference import Rule

# NumPy's own order ---------------------------------------------------------------------------------------------------


def _pairwise(terms: Array, axis: int) -> Any:
    """Reduce by halves, as a NumPy that no longer adds rows in order might."""
    rows = list(np.moveaxis(terms, axis, 0))
    while len(rows) > 1:
        rows = [a + b for a, b in zip(rows[0::2], rows[1::2], strict=False)] + rows[len(rows) // 2 * 2 :]
    return rows[0]


def _backwards(terms: Array, axis: int) -> Any:
    rows = list(np.moveaxis(terms, axis, 0))[::-1]
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total


class _NumpyThatReduces:
    """NumPy, but for the order of `np.add.reduce`."""

    def __init__(self, reduce: Any) -> None:
        self.add = SimpleNamespace(reduce=reduce)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def test_this_numpy_adds_rows_in_order() -> None:
    assert numpy_backend._reduces_in_order.__wrapped__()


@pytest.mark.parametrize("reduce", [_pairwise, _backwards])
def test_a_numpy_that_adds_rows_in_another_order_is_found_out(monkeypatch: pytest.MonkeyPatch, reduce: Any) -> None:
    monkeypatch.setattr(numpy_backend, "np", _NumpyThatReduces(reduce))
    assert not numpy_backend._reduces_in_order.__wrapped__()


@pytest.mark.parametrize("shape", [(1, 1), (1, ROWS), (1, 7), (2, ROWS), (32, ROWS)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_added_by_hand_have_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: str, shape: tuple[int, int]
) -> None:
    lanes = sizes(dtype)["lanes"]
    terms: Array = np.abs(content("wide", 2 * shape[0] * shape[1] * lanes, "float64")).reshape(2, *shape, lanes)
    reduced = numpy_backend._sum_rows(terms)
    monkeypatch.setattr(numpy_backend, "_reduces_in_order", lambda: False)
    assert np.array_equal(raw(numpy_backend._sum_rows(terms)), raw(reduced))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_numpy_that_adds_rows_in_another_order_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(numpy_backend, "np", _NumpyThatReduces(_backwards))
    monkeypatch.setattr(numpy_backend, "_reduces_in_order", numpy_backend._reduces_in_order.__wrapped__)
    for seed in range(8):
        w = content("sparse", sizes(dtype)["3 * tile + 5"], dtype, seed=seed)
        plan = numpy_backend.backend.plan([backends.Leaf(w, Coefficients(1.0, 1.0, 2.0))])
        assert plan.value(np.dtype(np.float64), sums=True).sums.tolist() == [list(reference.sums(values(w), dtype))]


BOTH = Rule(l1=0.1, l2=0.3)


def test_small_tensors_are_handed_to_threads_together() -> None:
    """A thread is worth its while for a chunk: thousands of small tensors are a few pieces of work, large ones many."""
    middle = [backends.Leaf(np.ones(1000, np.float32), regularizer(BOTH).coefficients) for _ in range(500)]
    large = [backends.Leaf(np.ones(3 * CHUNK + 1, np.float32), regularizer(BOTH).coefficients)]
    work = NumpyPlan(middle + large)._work
    assert sum(len(pieces) for pieces in work) == 500 + 4
    assert 10 <= len(work) <= 30
    assert all(sum(piece.stop - piece.start for piece in pieces) <= CHUNK for pieces in work)


def test_tensors_of_a_row_are_stacked_by_dtype_and_coefficients_and_width() -> None:
    one, other = regularizer(BOTH).coefficients, gpureg.L1(0.1).coefficients
    sizes = [64, 33, 512, 513, 0, 1, 64, 2000]
    leaves = [backends.Leaf(np.ones(size, np.float32), own) for own in (one, other) for size in sizes]
    leaves += [backends.Leaf(np.ones(64), one), backends.Leaf(np.ones(64, np.float16), one)]
    parts = [(part.width, list(part.members)) for part in NumpyPlan(leaves)._parts]
    stacks = [(64, [0, 1, 6]), (512, [2]), (0, [3]), (0, [4]), (1, [5]), (0, [7])]
    more = [(width, [index + 8 for index in members]) for width, members in stacks]
    assert parts == [*stacks, *more, (64, [16]), (64, [17])]
    thousands = [backends.Leaf(np.ones(64, np.float32), one) for _ in range(5000)]
    assert [len(pieces) for pieces in NumpyPlan(thousands)._work] == [1, 1, 1]
