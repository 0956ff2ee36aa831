"""`gpureg.diff`: differences against exact arithmetic, and what counts as one."""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import gpureg
from gpureg import checkpoints
from gpureg.arithmetic import error_bound
from gpureg.checkpoints import CheckpointError
from gpureg.reporting import comparing
from gpureg.reporting.tensors import tensors_of
from tests.checkpoints.samples import SAMPLES, Array, npz, storage, torch_zip, view
from tests.helpers import assert_bits, content, values
from tests.test_report import written

pytestmark = pytest.mark.usefixtures("cpu_backend")


def exact_difference(a: Array, b: Array) -> tuple[Fraction, Fraction]:
    """Return the sums of the differences and of their squares, exactly."""
    pairs = zip(values(a.ravel()), values(b.ravel()), strict=True)
    differences = [abs(Fraction(y) - Fraction(x)) for x, y in pairs]
    return sum(differences, Fraction()), sum((d * d for d in differences), Fraction())


class TestDiff:
    @pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float16", "float64"), ("bfloat16", "float32")])
    @pytest.mark.parametrize("piece", [2**13, comparing.PIECE])
    def test_against_exact_arithmetic(
        self, monkeypatch: pytest.MonkeyPatch, dtypes: tuple[str, str], piece: int
    ) -> None:
        monkeypatch.setattr(comparing, "PIECE", piece)
        a, b = (content("weights", 3 * 8192 + 5, dtype, seed) for seed, dtype in enumerate(dtypes))
        (change,) = gpureg.diff({"w": a}, {"w": b})
        l1, squares = exact_difference(a, b)
        # Each difference is rounded to float64 once, 2**-53 relative, and so its square by twice that; a root halves
        # the relative error of the sum, and rounds once.
        bound = Fraction(error_bound(a.size, 8)) + Fraction(4, 2**53)
        assert abs(Fraction(change.l1) - l1) <= bound * l1
        assert abs(Fraction(change.l2) ** 2 - squares) <= bound * squares
        (row,) = gpureg.report({"w": a})
        assert row.sum_abs is not None
        assert row.sum_squares is not None
        assert change.relative_l1 == change.l1 / row.sum_abs
        assert change.relative_l2 == change.l2 / math.sqrt(row.sum_squares)
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        assert change.largest == np.abs(wide_b - wide_a).max()
        assert change.changed == np.count_nonzero(wide_a != wide_b)
        assert (change.dtype_a, change.dtype_b) == dtypes

    @pytest.mark.parametrize("name", SAMPLES)
    def test_a_file_is_the_same_as_itself(self, tmp_path: Path, name: str) -> None:
        path = written(tmp_path / name, SAMPLES[name])
        difference = gpureg.diff(path, path, gpureg.L1L2(0.1, 0.2))
        assert difference.same
        assert [change.name for change in difference] == [e.name for e in checkpoints.read(path) if e.floating]
        assert all(change.l1 == change.relative_l2 == change.largest == 0.0 for change in difference)
        assert difference.total.penalty_change == 0.0
        assert list(difference.not_compared) == [e.name for e in checkpoints.read(path) if not e.floating]

    def test_elements_that_are_equal_or_both_nan_are_the_same(self) -> None:
        a = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, 5e-324])
        b = np.array([-0.0, 0.0, -np.nan, np.inf, -np.inf, 1.0, 5e-324])
        assert gpureg.diff({"w": a}, {"w": b}).same

    @pytest.mark.parametrize(
        ("before", "after", "l1", "largest"),
        [
            (1.0, np.nan, np.nan, 0.0),
            (np.nan, 1.0, np.nan, 0.0),
            (np.inf, 1.0, np.inf, np.inf),
            (np.inf, -np.inf, np.inf, np.inf),
            (5e-324, 0.0, 5e-324, 5e-324),
            (1.7e308, -1.7e308, np.inf, np.inf),
        ],
    )
    def test_elements_that_are_not(self, before: float, after: float, l1: float, largest: float) -> None:
        difference = gpureg.diff({"w": np.array([1.0, before])}, {"w": np.array([1.0, after])})
        (change,) = difference
        assert not difference.same
        assert change.changed == difference.total.changed == 1
        assert_bits(np.float64(change.l1), l1, "float64")
        assert change.largest == largest

    def test_relative_to_nothing(self) -> None:
        (change,) = gpureg.diff({"w": np.zeros(2)}, {"w": np.array([0.0, 2.0])})
        assert (change.l1, change.relative_l1, change.relative_l2) == (2.0, math.inf, math.inf)
        (change,) = gpureg.diff({"w": np.zeros(2)}, {"w": np.zeros(2)})
        assert (change.relative_l1, change.relative_l2) == (0.0, 0.0)

    def test_what_only_one_has_and_what_has_another_shape(self) -> None:
        a = {"same": np.ones(2), "old": np.ones(3), "shape": np.ones((2, 3)), "kind": np.ones(2), "n": np.arange(3)}
        b = {
            "new": np.ones(4),
            "same": np.ones(2),
            "shape": np.ones((3, 2)),
            "kind": np.arange(2),
            "n": np.arange(1, 4),
        }
        difference = gpureg.diff(a, b)
        assert [change.name for change in difference] == ["same"]
        assert (difference.removed, difference.added, difference.not_compared) == (("old",), ("new",), ("n",))
        assert [mismatch.to_dict() for mismatch in difference.reshaped] == [
            {"name": "shape", "shape_a": [2, 3], "shape_b": [3, 2], "dtype_a": "float64", "dtype_b": "float64"},
            {"name": "kind", "shape_a": [2], "shape_b": [2], "dtype_a": "float64", "dtype_b": "int64"},
        ]
        assert repr(difference) == "<Difference: 0 of 1 common tensors changed, 1 added, 1 removed, 2 reshaped>"

    @pytest.mark.parametrize(
        ("a", "b", "same"),
        [
            ({"w": np.ones(2)}, {"w": np.ones(2)}, True),
            ({"w": np.ones(2)}, {"w": np.ones(2, np.float32)}, False),  # the elements are, the dtype is not
            ({"w": np.ones(2)}, {"w": np.ones(2), "v": np.ones(1)}, False),
            ({"w": np.ones(2), "v": np.ones(1)}, {"w": np.ones(2)}, False),
            ({"w": np.ones(2)}, {"w": np.ones(3)}, False),
            ({"n": np.arange(2)}, {"n": np.arange(2)}, True),
            ({"n": np.arange(2)}, {"n": np.arange(2, dtype=np.int8)}, False),
            ({"w": np.ones(0)}, {"w": np.ones(0)}, True),
            ({}, {}, True),
        ],
    )
    def test_same(self, a: Mapping[str, Array], b: Mapping[str, Array], same: bool) -> None:
        assert gpureg.diff(a, b).same is same

    def test_penalties_are_those_of_a_report_before_their_rounding(self) -> None:
        rules = {"*.bias": None, "*": gpureg.L1L2(0.1, 0.3)}
        a = {"w": content("weights", 9000, "float32"), "old": np.ones(3), "x.bias": np.ones(2)}
        b = {"w": content("weights", 9000, "float32", 1), "x.bias": np.zeros(2), "new": np.full(2, 0.7, np.float32)}
        difference = gpureg.diff(a, b, rules)
        change, bias = difference
        assert change.penalty_a is not None
        assert change.penalty_b is not None
        assert np.float32(change.penalty_a) == gpureg.L1L2(0.1, 0.3)(a["w"])
        assert np.float32(change.penalty_b) == gpureg.L1L2(0.1, 0.3)(b["w"])
        assert change.penalty_change == change.penalty_b - change.penalty_a
        assert (bias.penalty_a, bias.penalty_b, bias.penalty_change) == (None, None, None)
        total = difference.total
        assert total.penalty_a == float(gpureg.Penalty(a, rules)())
        assert total.penalty_b is not None
        assert np.float32(total.penalty_b) == gpureg.Penalty(b, rules)()
        assert total.penalty_change == total.penalty_b - total.penalty_a
        assert gpureg.diff(a, b).total.penalty_a is None

    def test_tensors_that_share_memory_in_both_count_once(self, tmp_path: Path) -> None:
        a, b = np.array([3.0, 4.0]), np.array([3.0, 4.5])
        both = gpureg.diff({"v": a, "w": a, "e": a[:0]}, {"v": b, "w": b, "e": b[:0]})
        assert [change.l1 for change in both] == [0.5, 0.5, 0.0]
        assert (both.total.size, both.total.changed, both.total.l1, both.total.relative_l1) == (2, 1, 0.5, 0.5 / 7)
        # Tied in one alone, they may differ each in its own way.
        for one in (
            gpureg.diff({"v": a, "w": a}, {"v": b, "w": b.copy()}),
            gpureg.diff({"v": a, "w": a.copy()}, {"v": b, "w": b}),
        ):
            assert (one.total.size, one.total.changed, one.total.relative_l1) == (4, 2, 1 / 14)
        whole = view(storage("0", 2), 0, (2,), (1,))
        data = torch_zip({"v": whole, "w": whole}, {"0": a.astype(np.float32).tobytes()})
        path = written(tmp_path / "a.pt", data)
        assert gpureg.diff(path, path).total.size == gpureg.report(path).total.size == 2
        # What is not mapped is no memory that could be shared.
        path = written(tmp_path / "a.npz", npz(True, v=a, w=b))
        assert gpureg.diff(path, path).total.size == gpureg.report(path).total.size == 4

    def test_only_what_a_penalty_needs_is_read(self) -> None:
        a = {"w": np.ones(2), "old": np.ones(3), "shape": np.ones(4)}
        b = {"w": np.zeros(2), "new": np.ones(3), "shape": np.ones(5)}
        read: list[str] = []
        before, after = tensors_of(a, "a"), tensors_of(b, "b")
        comparing.compare(before, after, None, lambda tensor, _: read.append(tensor.name))
        assert read == ["w", "w"]
        comparing.compare(before, after, gpureg.L1(), lambda tensor, _: read.append(tensor.name))
        assert sorted(read[2:]) == ["new", "old", "shape", "shape", "w", "w"]

    def test_what_is_not_of_floats_is_compared_by_shape_and_dtype_alone(self) -> None:
        difference = gpureg.diff({"n": np.arange(3)}, {"n": np.arange(1, 4)})
        assert (difference.same, difference.not_compared) == (True, ("n",))

    def test_rules_may_be_for_what_one_of_them_lacks(self) -> None:
        a, b = {"old": np.ones(2)}, {"new": np.ones(3)}
        total = gpureg.diff(a, b, {"old": gpureg.L1(1.0), "new": gpureg.L2(1.0)}).total
        assert (total.penalty_a, total.penalty_b) == (2.0, 3.0)
        with pytest.raises(ValueError, match="wins no tensor"):
            gpureg.diff(a, b, {"other": None, "*": None})

    @pytest.mark.parametrize("which", ["a", "b"])
    def test_axes_in_another_order(self, tmp_path: Path, which: str) -> None:
        # Of float64, whose sums are not rounded again, and such that the order of the sums tells.
        w, penalty = np.random.default_rng(10).standard_normal((20, 30, 40)), gpureg.L1L2(1.0, 1.0)
        for factor in (1.0, 1.5):
            assert penalty(w * factor) != penalty(np.asfortranarray(w * factor))
        rows = written(tmp_path / "c.npz", npz(which == "b", w=w))
        columns = written(tmp_path / "f.npz", npz(which == "a", w=np.asfortranarray(w * 1.5)))
        for a, b in ((rows, columns), (columns, rows)):
            (change,) = gpureg.diff(a, b, penalty)
            assert change.changed == np.count_nonzero(w)
            assert change.largest == np.abs(w * 1.5 - w).max()
            assert change.penalty_a == gpureg.report(a, penalty).total.penalty
            assert change.penalty_b == gpureg.report(b, penalty).total.penalty
        same = written(tmp_path / "same.npz", npz(False, w=np.asfortranarray(w)))
        assert gpureg.diff(written(tmp_path / "w.npz", npz(False, w=w)), same).same

    def test_axes_in_another_order_that_cannot_be_mapped(self, tmp_path: Path) -> None:
        w = np.ones((4, 5))
        rows = written(tmp_path / "c.npz", npz(True, w=w))
        columns = written(tmp_path / "f.npz", npz(True, w=np.asfortranarray(w)))
        with pytest.raises(CheckpointError, match="tensor 'w' has its axes in another order in A than in B"):
            gpureg.diff(rows, columns)

    def test_errors_say_which_of_them(self) -> None:
        with pytest.raises(TypeError, match="b must be the path of a checkpoint"):
            gpureg.diff({}, 3)
        with pytest.raises(TypeError, match="a must be the path of a checkpoint"):
            gpureg.diff(None, {})

    def test_dictionaries(self) -> None:
        found = gpureg.diff({"w": np.ones((1, 2)), "v": np.ones(2)}, {"w": np.zeros((1, 2)), "v": np.ones(3)}).to_dict()
        assert list(found["tensors"][0])[:5] == ["name", "shape", "dtype_a", "dtype_b", "size"]
        assert found["tensors"][0]["shape"] == [1, 2]
        assert found["reshaped"][0]["shape_b"] == [3]
        assert found["same"] is False
        assert found["total"]["changed"] == 2
