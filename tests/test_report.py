"""`gpureg.report`: figures against exact arithmetic, penalties against the bits of `Penalty`; memory, of `diff` too."""

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpureg
from gpureg import checkpoints, reporting
from gpureg.arithmetic import error_bound, tile_size
from gpureg.checkpoints import CheckpointError, Entry
from gpureg.reporting import measuring
from gpureg.reporting.tensors import tensors_of
from tests.checkpoints.samples import (
    SAMPLES,
    Array,
    elements,
    header,
    npy,
    npz,
    read,
    storage,
    tensor,
    torch_zip,
    view,
)
from tests.checkpoints.test_memory import MIB, sparse
from tests.helpers import CONTENTS, DTYPES, assert_bits, content, values

pytestmark = pytest.mark.usefixtures("cpu_backend")

THRESHOLD = 0.75


def within(found: float, exact: Fraction, size: int, itemsize: int) -> bool:
    """Return whether a sum of terms that are not negative is within the bound that the arithmetic derives."""
    # 2**-1075 for each square of float64 that underflows, see error_bound.
    return abs(Fraction(found) - exact) <= Fraction(error_bound(size, itemsize)) * exact + size * Fraction(1, 2**1075)


def check_row(row: reporting.Row, array: Array, threshold: float) -> None:
    """Assert that a row tells what exact arithmetic tells of an array without NaN and infinities."""
    numbers = [abs(number) for number in values(array.ravel())]
    size, itemsize = len(numbers), array.itemsize
    sum_abs, sum_squares = sum(map(Fraction, numbers), Fraction()), sum((Fraction(n) ** 2 for n in numbers), Fraction())
    assert row.sum_abs is not None
    assert row.sum_squares is not None
    assert row.rms is not None
    assert within(row.sum_abs, sum_abs, size, itemsize)
    assert within(row.sum_squares, sum_squares, size, itemsize)
    assert row.l2_loss == row.sum_squares / 2
    # The division and the root round once each; a relative error is halved by the root.
    mean = sum_squares / max(size, 1)
    assert abs(Fraction(row.rms) ** 2 - mean) <= (Fraction(error_bound(size, itemsize)) + Fraction(4, 2**53)) * mean
    assert row.max_abs == max(numbers, default=0.0)
    assert row.zeros == numbers.count(0.0)
    assert row.below == sum(number < threshold for number in numbers)
    assert (row.nan, row.inf) == (0, 0)
    assert (row.size, row.shape) == (size, array.shape)


def arrays_of(entries: Sequence[Entry]) -> dict[str, Array]:
    """Return the elements of entries of floats as arrays of their own, in the order of sums."""
    return {entry.name: elements(entry).reshape(entry.shape) for entry in entries if entry.floating}


def mixed(size: int = 3) -> dict[str, Array]:
    """Return tensors of all dtypes, sizes about those of `size` tiles, with what is left out of sums."""
    tensors: dict[str, Array] = {}
    for name, dtype in DTYPES.items():
        elements_of_tile = tile_size(dtype.itemsize)
        tensors[f"{name}.weight"] = content("weights", size * elements_of_tile + 5, name)
        tensors[f"{name}.bias"] = content("weights", 7, name, seed=1)
    tensors["matrix"] = np.asfortranarray(content("wide", 600, "float32").reshape(20, 30))
    tensors["sliced"] = content("weights", 999, "float32")[::3]
    tensors["empty"] = np.empty((0, 4), np.float32)
    tensors["scalar"] = np.array(-0.25)
    return tensors


RULES = {"*.bias": None, "float64*": gpureg.L1(0.3), "matrix": gpureg.HalvedL2(0.7), "*": gpureg.L1L2(0.1, 0.2)}


class TestReport:
    @pytest.mark.parametrize("name", SAMPLES)
    def test_every_format_against_exact_arithmetic(self, tmp_path: Path, name: str) -> None:
        entries = read(tmp_path / name, SAMPLES[name])
        report = gpureg.report(tmp_path / name, threshold=THRESHOLD)
        assert [row.name for row in report] == [entry.name for entry in entries]
        assert any(entry.floating for entry in entries)
        for row, entry in zip(report, entries, strict=True):
            assert (row.shape, row.dtype, row.size) == (entry.shape, entry.dtype, entry.size)
            if entry.floating:
                check_row(row, elements(entry).reshape(entry.shape), THRESHOLD)
            else:
                assert set(vars(row).values()) == {row.name, row.shape, row.dtype, row.size, None}

    def test_a_path_its_entries_and_its_arrays_are_reported_alike(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, a=np.ones((2, 3), np.float32), n=np.arange(3), b=np.zeros(4))
        expected = list(gpureg.report(path))
        entries = checkpoints.read(path)
        assert list(gpureg.report(str(path))) == expected
        assert list(gpureg.report(entries)) == expected
        assert list(gpureg.report(iter(entries))) == expected
        arrays = dict(np.load(path))
        assert list(gpureg.report(arrays)) == expected
        assert list(gpureg.report(arrays.items())) == expected
        assert [row.name for row in gpureg.report(entries[1:])] == ["n", "b"]

    @pytest.mark.parametrize("kind", ["arrays", "stored", "compressed"])
    @pytest.mark.parametrize("piece", [2**14, measuring.PIECE])
    def test_penalties_have_the_bits_of_penalty(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, piece: int
    ) -> None:
        monkeypatch.setattr(measuring, "PIECE", piece)
        monkeypatch.setattr(measuring, "READ", piece)
        tensors = mixed()
        if kind != "arrays":  # NumPy's files hold no bfloat16, and no slices
            tensors = {name: array for name, array in tensors.items() if array.dtype != ml_dtypes.bfloat16}
            del tensors["sliced"]
        penalty = gpureg.Penalty(tensors, RULES)
        given: Any = tensors
        if kind != "arrays":
            given = tmp_path / "a.npz"
            given.write_bytes(npz(kind == "compressed", **tensors))
        report = gpureg.report(given, RULES)
        assert report.total.penalty is not None
        assert_bits(np.float64(report.total.penalty), float(penalty()), "float64")
        losses, norms = penalty.losses(), penalty.norms()
        for row, said in zip(report, penalty.explain(), strict=True):
            assert (row.name, row.rule) == (said.name, said.rule)
            assert (row.penalty is None) == (row.name not in losses)
            if row.penalty is not None:
                assert row.sum_abs is not None
                assert row.sum_squares is not None
                assert_bits(np.float64(row.penalty), float(losses[row.name]), "float64")
                assert_bits(np.float64(row.sum_abs), float(norms[row.name][0]), "float64")
                assert_bits(np.float64(row.sum_squares), float(norms[row.name][1]), "float64")

    @given(
        st.lists(st.tuples(st.sampled_from(["float16", "float32", "float64"]), st.integers(0, 40), st.integers(0, 99)))
    )
    def test_totals_add_penalties_by_the_tree_in_order(self, drawn: list[tuple[str, int, int]]) -> None:
        tensors = {f"t{i}": content("wide", size, dtype, seed) for i, (dtype, size, seed) in enumerate(drawn)}
        rules = gpureg.L1L2(0.1, 0.3)
        expected = gpureg.Penalty(tensors, rules)() if tensors else np.float32(0)
        report = gpureg.report(tensors, rules)
        assert report.total.penalty is not None
        assert_bits(np.float64(report.total.penalty), float(expected), "float64")
        assert report.total.size == sum(array.size for array in tensors.values())
        assert report.total.tensors == len(tensors)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", CONTENTS)
    def test_special_numbers_are_counted(self, name: str, dtype: str) -> None:
        array = content(name, 3 * tile_size(DTYPES[dtype].itemsize) + 5, dtype)
        (row,) = gpureg.report({"w": array}, threshold=THRESHOLD)
        numbers = [abs(number) for number in values(array)]
        assert row.nan == sum(map(math.isnan, numbers))
        assert row.inf == sum(map(math.isinf, numbers))
        assert row.zeros == numbers.count(0.0)
        assert row.below == sum(number < THRESHOLD for number in numbers)
        assert row.max_abs == max((number for number in numbers if not math.isnan(number)), default=0.0)
        assert row.rms is not None
        assert row.sum_abs is not None
        assert math.isnan(row.rms) == bool(row.nan)
        assert math.isnan(row.sum_abs) == bool(row.nan)
        if row.inf and not row.nan:
            assert row.sum_abs == row.rms == math.inf

    def test_totals_are_of_floats_alone(self) -> None:
        report = gpureg.report({"a": np.array([3.0, -4.0]), "n": np.arange(5), "b": np.zeros(3, np.float32)})
        total = report.total
        assert (total.tensors, total.size, total.sum_abs, total.sum_squares) == (2, 5, 7.0, 25.0)
        assert (total.l2_loss, total.rms, total.max_abs, total.zeros, total.below) == (12.5, math.sqrt(5), 4.0, 3, 3)
        assert total.penalty is None
        assert repr(report) == "<Report of 3 tensors, 5 weights>"
        assert [row.name for row in report[1:]] == ["n", "b"]

    def test_of_nothing(self) -> None:
        report = gpureg.report({}, gpureg.L1())
        assert (len(report), report.total.tensors, report.total.rms, report.total.penalty) == (0, 0, 0.0, 0.0)
        assert gpureg.report([]).total.penalty is None
        assert gpureg.report([]).groups() == []

    def test_an_infinite_threshold_counts_all_numbers(self) -> None:
        (row,) = gpureg.report({"w": np.array([1.0, math.inf, math.nan])}, threshold=math.inf)
        assert row.below == 1

    @pytest.mark.parametrize("threshold", [np.float32(0.5), np.float64(0.5), np.float16(0.5), 0.5])
    def test_a_threshold_of_numpy(self, threshold: Any) -> None:
        (row,) = gpureg.report({"w": np.array([0.25, 0.5, 1.0])}, threshold=threshold)
        assert row.below == 1
        (row,) = gpureg.report({"w": np.array([0.25, 0.5, 1.0])}, threshold=np.int8(1))  # type: ignore[arg-type]
        assert row.below == 2

    def test_a_threshold_that_no_float_holds_is_refused(self) -> None:
        with pytest.raises(ValueError, match="threshold is too large for a float"):
            gpureg.report({}, threshold=10**400)

    @pytest.mark.parametrize("threshold", [-1.0, math.nan, "1", None, True, np.True_, np.float32("nan"), -(10**400)])
    def test_a_threshold_that_is_none_is_refused(self, threshold: Any) -> None:
        with pytest.raises(ValueError, match="threshold must be a number that is not negative, not"):
            gpureg.report({}, threshold=threshold)

    def test_what_takes_memory_is_read_in_small_pieces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measuring, "READ", 2**13)
        monkeypatch.setattr(measuring, "PIECE", 2**15)
        w = np.arange(2**17, dtype=np.float32)
        every_second = view(storage("0", w.size), 0, (2**16,), (2,))
        state = {"mapped": view(storage("0", w.size), 0, (w.size,), (1,)), "gathered": every_second}
        path = written(tmp_path / "a.pt", torch_zip(state, {"0": w.tobytes()}))
        sizes: dict[str, list[int]] = {}
        tensors = tensors_of(path, "weights")
        measuring.measure(tensors, 0.0, lambda tensor, piece: sizes.setdefault(tensor.name, []).append(piece.size))
        assert sizes == {"mapped": [2**15] * 4, "gathered": [2**13] * 8}
        path = written(tmp_path / "a.npz", npz(True, w=w))
        sizes.clear()
        measuring.measure(
            tensors_of(path, "weights"), 0.0, lambda tensor, piece: sizes.setdefault(tensor.name, []).append(piece.size)
        )
        assert sizes == {"w": [2**13] * 16}

    def test_what_is_no_checkpoint_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="weights must be the path of a checkpoint, its entries, or arrays by name"):
            gpureg.report(3)
        with pytest.raises(CheckpointError, match="byte 0: the file is empty"):
            read(tmp_path / "a.npy", b"")
        with pytest.raises(CheckpointError, match="byte 0"):
            gpureg.report(tmp_path / "a.npy")
        with pytest.raises(TypeError, match="one item is 1"):
            gpureg.report([1])

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.ones(3, np.dtype(np.float32).newbyteorder()), "has dtype .*, of the other byte order; give"),
            (np.ones(3, np.dtype(np.float16).newbyteorder()), "has dtype .*, of the other byte order; give"),
            (np.ones(3, np.longdouble), "has dtype .*; expected float16 or"),
            (np.ones(3, ml_dtypes.float8_e4m3fn), "has dtype float8_e4m3fn; expected float16 or"),
            (np.ones(3, ml_dtypes.bfloat16).view("V2"), "has dtype .*V2; expected float16 or"),
            (np.array([1.0, None]), "has dtype object; expected float16 or"),
            ([1.0, 2.0], "must be an array of numpy, .*, not list"),
            (3, "must be an array of numpy, .*, not int"),
            (None, "must be an array of numpy, .*, not NoneType"),
        ],
    )
    def test_what_cannot_be_read_is_refused_as_penalty_does(self, array: Any, said: str) -> None:
        for take in (gpureg.report, lambda w: gpureg.diff(w, w), lambda w: gpureg.Penalty(w, gpureg.L1())):
            with pytest.raises(TypeError, match=rf"^weights\['w'\] {said}"):
                take({"w": array})

    @pytest.mark.parametrize("dtype", ["i8", ">i4", "u1", "?", "c8", "U3", "S3", "M8[s]"])
    def test_what_is_not_of_floats_is_listed(self, dtype: str) -> None:
        (row,) = gpureg.report({"n": np.zeros(3, dtype)})
        assert (row.name, row.shape, row.dtype, row.sum_abs) == ("n", (3,), str(np.dtype(dtype)), None)

    def test_a_name_that_comes_twice_is_refused(self, tmp_path: Path) -> None:
        entries = read(tmp_path / "w.npy", npy(np.ones(2)))
        with pytest.raises(ValueError, match="weights has two tensors named 'w'"):
            gpureg.report(entries * 2)
        with pytest.raises(ValueError, match="weights has two arrays named 'w'"):
            gpureg.report([("w", np.ones(2)), ("w", np.ones(2))])

    def test_compressed_elements_that_are_broken_are_an_error(self, tmp_path: Path) -> None:
        data = bytearray(npz(True, w=content("weights", 10**5, "float32")))
        data[len(data) // 2] ^= 0xFF
        with pytest.raises(CheckpointError, match=r"member 'w\.npy'"):
            gpureg.report(written(tmp_path / "a.npz", bytes(data)))


def written(path: Path, data: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(data)
    return path


class TestRules:
    TENSORS: Mapping[str, Array] = {"a.weight": np.ones((2, 2)), "a.bias": np.ones(2), "steps": np.arange(3)}

    def test_what_is_not_of_floats_need_not_match(self) -> None:
        report = gpureg.report(self.TENSORS, {"a.*": gpureg.L1(0.5)})
        assert [(row.rule, row.penalty) for row in report] == [("a.*", 2.0), ("a.*", 1.0), (None, None)]

    def test_what_is_not_of_floats_may_match(self) -> None:
        report = gpureg.report(self.TENSORS, {"steps": gpureg.L2(0.5), "*": gpureg.L1(0.5)})
        assert [(row.rule, row.penalty) for row in report] == [("*", 2.0), ("*", 1.0), (None, None)]

    def test_rules_that_match_nothing_and_tensors_that_match_none(self) -> None:
        with pytest.raises(ValueError, match="wins no tensor: it matches none of 3 tensors"):
            gpureg.report(self.TENSORS, {"no": None, "*": None})
        with pytest.raises(ValueError, match=r"no rule matches 1 of 2 tensors, and there is no default: a\.bias"):
            gpureg.report(self.TENSORS, {"*.weight": gpureg.L1()})

    def test_predicates_see_arrays_and_entries(self, tmp_path: Path) -> None:
        seen: list[Any] = []

        def predicate(_: str, given: Any) -> bool:
            seen.append(given)
            return len(given.shape) == 2

        rules = [(predicate, gpureg.L1(1.0)), ("*", None)]
        assert gpureg.report(self.TENSORS, rules).total.penalty == 4.0
        assert any(each is self.TENSORS["a.bias"] for each in seen)
        path = written(tmp_path / "a.npz", npz(False, **self.TENSORS))
        assert gpureg.report(path, rules).total.penalty == 4.0
        assert isinstance(seen[-1], Entry)

    def test_ready_made_rules(self) -> None:
        report = gpureg.report(self.TENSORS, gpureg.Rules.exclude_bias_and_norm(gpureg.L2(0.25)))
        assert [row.penalty for row in report] == [1.0, None, None]

    def test_a_penalty_of_another_kind_is_refused(self) -> None:
        class Largest(gpureg.Regularizer):
            def __call__(self, x: Any) -> Any:
                return abs(x).max()

        with pytest.raises(TypeError, match="tensor 'w': Largest has no coefficients"):
            gpureg.report({"w": np.ones(2)}, Largest())


class TestTied:
    """Tensors that share memory count once, as in `Penalty`."""

    W = content("weights", 6, "float32").reshape(2, 3)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        whole = view(storage("0", 6), 0, (2, 3), (3, 1))
        part = view(storage("0", 6), 3, (3,), (1,))
        state = {"embed": whole, "head": whole, "row": part}
        return written(tmp_path / "a.pt", torch_zip(state, {"0": self.W.tobytes()}))

    def test_they_count_once(self, path: Path) -> None:
        report = gpureg.report(path, gpureg.L1(0.5))
        arrays = {"embed": self.W, "head": self.W, "row": self.W[1]}
        penalty = gpureg.Penalty(arrays, gpureg.L1(0.5))
        for found in (report, gpureg.report(arrays, gpureg.L1(0.5))):
            assert [row.rule for row in found] == ["default", "tied to embed", "default"]
            assert [row.penalty for row in found][1] is None
            assert found.total.penalty == float(penalty())
            assert (found.total.tensors, found.total.size) == (2, 9)
            assert found[0].sum_abs == found[1].sum_abs
            assert [group.name for group in found.groups()] == ["embed", "row"]

    def test_rules_that_contradict_each_other_are_refused(self, path: Path) -> None:
        with pytest.raises(ValueError, match=r"tensors 'embed' and 'head' are one and the same, but the rules give"):
            gpureg.report(path, {"embed": None, "*": gpureg.L1()})

    def test_without_rules(self, path: Path) -> None:
        assert [row.rule for row in gpureg.report(path)] == [None, "tied to embed", None]


class TestGroups:
    NAMES = ("h.0.attn.w", "h.0.mlp/1", "h.1.attn.w", "h.1.mlp/2", "conv2d.w", "h", "10")

    def test_numbers_become_one(self) -> None:
        tensors = {name: np.full(2, i + 1.0, np.float32) for i, name in enumerate(self.NAMES)}
        rules = {"conv*": None, "*": gpureg.L1(0.1)}
        report = gpureg.report(tensors, rules)
        groups = report.groups()
        assert [group.name for group in groups] == ["h.#.attn.w", "h.#.mlp/#", "conv2d.w", "h", "#"]
        assert [group.tensors for group in groups] == [2, 2, 1, 1, 1]
        assert [group.sum_abs for group in groups] == [8.0, 12.0, 10.0, 12.0, 14.0]
        assert groups[2].penalty == 0.0
        part = {name: array for name, array in tensors.items() if ".attn." in name}
        assert groups[0].penalty == float(gpureg.Penalty(part, gpureg.L1(0.1))())
        assert (groups[1].max_abs, groups[1].rms) == (4.0, math.sqrt(10))

    @pytest.mark.parametrize(
        ("depth", "names"),
        [
            (1, ["h", "conv2d", "#"]),
            (2, ["h.#", "conv2d.w", "h", "#"]),
            (9, ["h.#.attn.w", "h.#.mlp/#", "conv2d.w", "h", "#"]),
        ],
    )
    def test_depth(self, depth: int, names: list[str]) -> None:
        report = gpureg.report({name: np.ones(2) for name in self.NAMES})
        assert [group.name for group in report.groups(depth)] == names
        assert sum(group.size for group in report.groups(depth)) == report.total.size

    @pytest.mark.parametrize("depth", [0, -1])
    def test_a_depth_that_is_none_is_refused(self, depth: int) -> None:
        with pytest.raises(ValueError, match="depth must be positive"):
            gpureg.report({}).groups(depth)


class TestConversions:
    TENSORS: Mapping[str, Array] = {"w": np.array([[1.0, np.nan]]), "n": np.arange(3)}

    def test_dictionaries(self) -> None:
        report = gpureg.report(self.TENSORS, gpureg.L1())
        found = report.to_dict()
        assert list(found) == ["tensors", "total"]
        assert found["tensors"][1] == dict.fromkeys(vars(report[0])) | {
            "name": "n",
            "shape": [3],
            "dtype": "int64",
            "size": 3,
        }
        assert list(found["tensors"][0]) == [
            *("name", "shape", "dtype", "size", "sum_abs", "sum_squares", "l2_loss", "rms", "max_abs"),
            *("zeros", "below", "nan", "inf", "rule", "penalty"),
        ]
        assert found["total"]["nan"] == 1

    def test_dataframe(self) -> None:
        frame = gpureg.report(self.TENSORS).to_dataframe()
        assert list(frame["name"]) == ["w", "n"]
        assert frame["max_abs"][0] == 1.0
        assert frame["sum_abs"].isna().all()
        assert list(gpureg.report({}).to_dataframe().columns) == list(frame.columns)

    def test_dataframe_without_pandas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ModuleNotFoundError):
            gpureg.report(self.TENSORS).to_dataframe()


# What a process allocates is limited by the kernel, mapped pages left out, after what a small report takes once.
LIMITED = """if True:
    import resource, sys
    import numpy as np
    import gpureg
    {statement_small}
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[1]), used + int(sys.argv[1])))
    {statement}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of allocations is Linux's")
class TestMemory:
    @pytest.fixture(autouse=True)
    def _backend(self, cpu_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GPUREG_BACKEND", cpu_backend)

    def limited(self, statement: str, small: str, *paths: Path) -> str:
        code = LIMITED.format(statement=statement, statement_small=small)
        command = [sys.executable, "-c", code, str(100 * MIB), *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    def test_of_a_large_file(self, tmp_path: Path) -> None:
        size = 256 * MIB
        fields = {"w": tensor("F32", [size // 4], 0, size), "v": tensor("F8_E5M2", [size // 8], size, size + size // 8)}
        sparse(tmp_path / "a.safetensors", header(fields), size + size // 8)
        small = "gpureg.diff({'w': np.ones(9, 'f4')}, {'w': np.ones(9, 'f4')})"
        found = self.limited("print(gpureg.report(sys.argv[2]).total.zeros)", small, tmp_path / "a.safetensors")
        assert int(found) == size // 4 + size // 8
        found = self.limited("print(gpureg.diff(*sys.argv[2:]).same)", small, *[tmp_path / "a.safetensors"] * 2)
        assert found == "True"

    def test_of_a_compressed_file(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "a.npz", w=np.zeros(40 * MIB // 2), v=np.zeros(20 * MIB, np.float32))
        small = "gpureg.report({'w': np.ones(9, 'f4')})"
        found = self.limited("print(gpureg.report(sys.argv[2]).total.zeros)", small, tmp_path / "a.npz")
        assert int(found) == 40 * MIB
