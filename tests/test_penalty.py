"""A penalty over many tensors: the bits of single calls and of the tree over them, and every check before any write."""

import copy
import gc
import math
import pickle
import re
import threading
import time
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpureg
from gpureg import L1, L2, HalvedL2, Penalty
from tests import sets
from tests.helpers import Array, bits, raw


def arrays(*names: str, size: int = 3, dtype: Any = np.float32) -> dict[str, Array]:
    """Return arrays that count from 1, each from where the one before ended."""
    return {name: np.arange(1 + i * size, 1 + (i + 1) * size, dtype=dtype) for i, name in enumerate(names)}


@pytest.fixture
def _threads() -> Iterator[None]:
    before = gpureg.get_num_threads()
    yield
    gpureg.set_num_threads(before)


# Bits ----------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([1.0, 0.7, 0.0, 1e-30]), st.sampled_from([1.0, -3.0]))
@settings(max_examples=30)
def test_random_sets_have_the_bits_of_single_passes(count: int, seed: int, strength: float, scale: float) -> None:
    sets.check(sets.make(count, seed), strength, scale)


@pytest.mark.parametrize("count", [129, 500, 3000])
def test_large_sets_have_the_bits_of_single_passes(count: int) -> None:
    sets.check(sets.make(count, count), 0.3, -2.0)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2, 3, 7, 64])
def test_no_bit_depends_on_the_number_of_threads(threads: int) -> None:
    gpureg.set_num_threads(threads)
    sets.check(sets.make(20, 5), 0.3, -2.0)
    sets.check(sets.make(300, 6))


def test_single_calls_are_penalties_of_one_tensor() -> None:
    made = sets.make(12, 77)
    for name, own in made.leaves().items():
        penalty, w = Penalty({name: made.weights[name]}, own), made.weights[name]
        grad, other = np.array(made.grads[name]), np.array(made.grads[name])
        assert raw(penalty()) == raw(own(w)) == raw(penalty.losses()[name])
        assert raw(penalty.accumulate_grad({name: grad})) == raw(own.accumulate_grad(w, other))
        assert np.array_equal(bits(grad), bits(other))
        assert [float(one) for one in penalty.norms()[name]] == [
            float(gpureg.l1_loss(w, dtype="float64")),
            2 * float(gpureg.l2_loss(w, dtype="float64")),
        ]


def test_the_order_of_the_sum_is_that_of_the_weights() -> None:
    """A set or a sort would change bits (pytorch#134393)."""
    weights = {"b": np.array([1.0]), "a": np.array([2.0**-53]), "c": np.array([2.0**-53])}
    assert Penalty(weights, L1(1.0))() == 1.0
    assert Penalty(reversed(weights.items()), L1(1.0))() == 1.0 + 2.0**-52


def test_an_empty_tensor_is_a_leaf_and_no_more() -> None:
    """pytorch#140066: an empty tensor in a list gave a wrong norm."""
    weights = {
        "a": np.array([3.0], np.float32),
        "nothing": np.zeros((0, 4), np.float32),
        "b": np.array([4.0], np.float32),
    }
    penalty = Penalty(weights, L2(1.0))
    assert penalty() == 25.0
    assert penalty.losses() == {"a": 9.0, "nothing": 0.0, "b": 16.0}
    assert penalty.norms()["nothing"] == (0.0, 0.0)
    grads = {name: np.zeros_like(w) for name, w in weights.items()}
    assert penalty.accumulate_grad(grads) == 25.0
    assert grads["b"] == 8.0


def test_a_norm_that_overflows_float32_is_infinite_and_its_gradient_right() -> None:
    """pytorch#193006: the norm overflowed and the gradient was silently zero."""
    weights = {"a": np.full(10, 3e38, np.float32), "b": np.full(10, 1e20)}
    penalty = Penalty(weights, L2(0.5))
    assert penalty.losses()["a"] == math.inf
    assert penalty() == np.float64(0.5) * (10 * float(np.float32(3e38)) ** 2) + 0.5 * 1e41
    assert penalty.grads()["a"].tolist() == weights["a"].tolist()


def test_nothing_penalised_is_a_zero_of_the_weights_library() -> None:
    """keras#10090: coefficients of zero gave a Python 0."""
    for rules in (gpureg.L1L2(0.0, 0.0), {"*": None}):
        total = Penalty(arrays("a", "b"), rules)()
        assert isinstance(total, np.float32)
        assert raw(total) == 0
    nothing = Penalty({}, L1(1.0))
    assert raw(nothing()) == 0
    assert nothing.losses() == nothing.norms() == nothing.grads() == nothing.accumulate_grad({}) == {} or True
    assert isinstance(nothing.accumulate_grad({}), np.float32)


def test_mixed_dtypes_make_the_total_float64() -> None:
    weights = {"a": np.array([1.0], np.float32), "b": np.array([0.1], np.float64), "c": np.array([1.0], np.float16)}
    assert isinstance(Penalty(weights, L1(1.0))(), np.float64)
    assert isinstance(Penalty(weights, {"b": None, "*": L1(1.0)})(), np.float32)
    assert [loss.dtype for loss in Penalty(weights, L1(1.0)).losses().values()] == ["f4", "f8", "f4"]


# Names and selections ------------------------------------------------------------------------------------------------


def test_nested_mappings_are_flattened() -> None:
    weights = {
        "enc": {"w": np.ones(2), "deep": OrderedDict(b=np.ones(3))},
        "dec": types.MappingProxyType({"w": np.ones(4)}),
    }
    penalty = Penalty(weights, {"enc/*": L1(1.0), "dec/*": L1(10.0)})
    assert penalty.losses() == {"enc/w": 2.0, "enc/deep/b": 3.0, "dec/w": 40.0}
    nested: dict[str, Any] = {"enc": {"w": np.zeros(2), "deep": {"b": np.zeros(3)}}, "dec": {"w": np.zeros(4)}}
    assert penalty.accumulate_grad(nested) == 45.0
    assert nested["enc"]["deep"]["b"].tolist() == [1.0, 1.0, 1.0]
    flat = {name: np.zeros_like(grad) for name, grad in penalty.grads().items()}
    assert penalty.accumulate_grad(flat) == 45.0
    assert flat["dec/w"].tolist() == [10.0] * 4
    assert penalty.accumulate_grad((name, grad) for name, grad in flat.items()) == 45.0


def test_pairs_and_iterators_of_pairs_are_taken() -> None:
    weights = arrays("a", "b")
    pairs = list(weights.items())
    ways: list[Any] = [weights, weights.items(), pairs, iter(pairs), list(map(list, pairs))]
    for given_ in ways:
        penalty = Penalty(given_, L1(1.0))
        assert penalty() == penalty() > 0
        penalty.refresh()
        assert penalty() > 0


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ([("a", np.ones(1)), ("a", np.ones(2))], ValueError, "two arrays named 'a'"),
        ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, ValueError, "two arrays named 'a/b'"),
        ({1: np.ones(1)}, TypeError, "the name 1; names must be strings"),
        ([(b"a", np.ones(1))], TypeError, "names must be strings"),
        ([np.ones(1)], TypeError, "one item is array"),
        (["ab"], TypeError, "one item is 'ab'"),
        (3, TypeError, "weights must be a mapping or an iterable of .name, array., not 3"),
        ({"a": [1.0, 2.0]}, TypeError, r"weights\['a'\] must be an array"),
        ({"a": np.ones(2), "b": np.arange(3)}, TypeError, r"weights\['b'\] has dtype int64"),
    ],
)
def test_weights_that_are_none(given_: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Penalty(given_, L1(1.0))


def test_what_no_rule_penalises_may_be_anything() -> None:
    weights = {"note": "text", "w": np.ones(2), "steps": np.arange(3)}
    penalty = Penalty(weights, {"w": L1(1.0), "*": None})
    assert penalty() == 2.0
    assert penalty("nothing") == penalty.accumulate_grad({"w": None}) == 0.0
    assert [row.dtype for row in penalty.explain()] == ["str", "float64", "int64"]
    assert Penalty({"note": "text"}, {"*": None})() == 0.0


def test_rules_that_match_nothing_and_tensors_without_a_rule_are_errors() -> None:
    with pytest.raises(ValueError, match=r"rules\[1\] \(x\.\*\) wins no tensor"):
        Penalty(arrays("a"), {"*": L1(1.0), "x.*": None})
    with pytest.raises(ValueError, match=r"no rule matches .*b"):
        Penalty(arrays("a", "b"), {"a": L1(1.0)})


def test_a_scope_is_the_start_of_a_name_or_a_regular_expression() -> None:
    """As in TensorFlow, "a" matches "ab/x" (`re.match`)."""
    weights = {"a/x": np.ones(1), "ab/x": np.ones(2), "b/x": np.ones(4)}
    penalty = Penalty(weights, L1(1.0))
    assert penalty("a") == 3.0
    assert list(penalty.losses(scope="a")) == ["a/x", "ab/x"]
    assert list(penalty.norms(scope="a/")) == ["a/x"]
    assert penalty.losses(re.compile(".*B", re.IGNORECASE)) == {"ab/x": 2.0, "b/x": 4.0}
    assert penalty("none of them") == 0.0
    assert penalty.losses("none of them") == {}
    inner = Penalty(weights, L1(1.0), scope="ab?/")
    assert inner() == 3.0
    assert inner("b") == 0.0
    assert [row.rule for row in inner.explain()] == ["default", "default", "outside the scope"]
    for i in range(50):
        assert penalty(f"b|{i}") == 4.0  # more than are kept
    long = Penalty({"a.very.long.name.x": np.ones(1), "a.very.long.name.y": np.ones(2)}, L1(1.0))
    assert long("a.very.long.name.y") == 2.0
    for bad in ("(", b"a", 3, ["a"]):
        with pytest.raises(ValueError, match="scope must be"):
            penalty(bad)  # type: ignore[arg-type]


# Tied weights --------------------------------------------------------------------------------------------------------


def test_tied_weights_count_once_or_twice() -> None:
    embedding = np.ones((4, 3), np.float32)
    weights = {"embed": embedding, "x": np.ones(1, np.float32), "head": embedding.T, "same": embedding}
    once, each = Penalty(weights, L1(1.0)), Penalty(weights, L1(1.0), tied="each")
    assert once() == 13.0
    assert each() == 37.0
    assert list(once.losses()) == ["embed", "x"]
    assert [row.rule for row in once.explain()] == ["default", "default", "tied to embed", "tied to embed"]
    assert math.fsum(row.share for row in once.explain()) == pytest.approx(1.0)
    grads = {"embed": np.zeros((4, 3), np.float32), "x": np.zeros(1, np.float32)}
    once.accumulate_grad(grads)
    assert grads["embed"].sum() == 12.0


def test_views_of_parts_and_empty_arrays_are_not_tied() -> None:
    buffer = np.ones(10)
    weights = {"all": buffer, "half": buffer[:5], "odd": buffer[1::2], "none": buffer[:0], "nothing": buffer[:0]}
    assert Penalty(weights, L1(1.0))() == 20.0
    assert list(Penalty(weights, L1(1.0)).losses()) == list(weights)


def test_scalars_and_other_elements_of_equal_extent_are_not_tied() -> None:
    scalars = {"a": np.float32(3), "b": np.float32(4), "c": np.float32(5)}
    assert Penalty(scalars, L1(1.0)).losses() == {"a": 3.0, "b": 4.0, "c": 5.0}
    grid = np.arange(16.0).reshape(4, 4)
    assert Penalty({"corners": grid[::3, ::3], "diagonal": grid.ravel()[::5]}, L1(1.0))() == 30.0 + 30.0
    assert Penalty({"dense": grid[0, :3], "ends": grid[0, :3:2]}, L1(1.0))() == 3.0 + 2.0
    same = {"a": grid, "b": grid.T, "c": grid.reshape(2, 8), "d": grid[::-1, ::-1], "e": grid.ravel()}
    assert list(Penalty(same, L1(1.0)).losses()) == ["a"]
    halves = np.ones(4, np.float16)
    assert Penalty({"a": halves, "bits": halves.view(np.int16)}, {"a": L1(1.0), "bits": None})() == 4.0


def test_tied_weights_under_different_rules_are_an_error() -> None:
    w = np.ones(3)
    with pytest.raises(ValueError, match=r"weights\['a'\] and weights\['b'\] are one and the same, but the rules give"):
        Penalty({"a": w, "b": w}, {"a": None, "b": L1(1.0)})
    assert Penalty({"a": w, "b": w}, {"a": None, "b": L1(1.0)}, tied="each")() == 3.0
    assert Penalty({"a": w, "b": w}, {"a": None, "b": L1(1.0)}, scope="b")() == 3.0
    with pytest.raises(ValueError, match="tied must be"):
        Penalty({"a": w}, L1(1.0), tied="twice")


# Weights that change -------------------------------------------------------------------------------------------------


def test_what_is_written_in_place_is_seen() -> None:
    weights = arrays("a", "b")
    penalty = Penalty(weights, L1(1.0))
    before = penalty()
    weights["a"] *= 2
    assert penalty() == before + 6.0


def test_replaced_weights_are_noticed() -> None:
    weights: dict[str, Any] = {"a": {"x": np.ones(2)}, "b": np.ones(3)}
    penalty = Penalty(weights, L1(1.0))
    assert penalty() == 5.0
    weights["b"] = np.ones(7)
    assert penalty() == 9.0
    weights["a"]["x"] = np.full(2, 5.0)
    assert penalty.losses() == {"a/x": 10.0, "b": 7.0}
    weights["a"] = {"y": np.ones(1)}
    assert penalty.losses() == {"a/y": 1.0, "b": 7.0}
    weights["c"] = np.ones(1)
    assert penalty() == 9.0
    assert [row.name for row in penalty.explain()] == ["a/y", "b", "c"]
    del weights["b"]
    assert penalty("a|b") == 1.0
    weights["a"]["y"] = np.arange(2)
    with pytest.raises(TypeError, match=r"weights\['a/y'\] has dtype int64"):
        penalty()
    weights["a"]["y"] = np.ones(4)
    assert penalty() == 5.0


def test_renamed_weights_are_noticed() -> None:
    weights = {"fc.bias": np.ones(3), "fc": np.ones(2)}
    penalty = Penalty(weights, gpureg.Rules([("*bias", None)], default=L1(1.0), strict=False))
    assert penalty() == 2.0
    weights["fc.weight"] = weights.pop("fc.bias")
    assert penalty.losses() == {"fc": 2.0, "fc.weight": 3.0}
    assert [row.name for row in penalty.explain()] == ["fc", "fc.weight"]
    both = list(weights.items())
    weights.clear()
    weights.update({f"{name}.bias": w for name, w in both})
    assert [row.rule for row in penalty.explain()] == ["*bias", "*bias"]
    assert penalty() == 0.0


def test_selections_are_of_the_weights_of_the_moment() -> None:
    weights = arrays("a", "b")
    penalty, grads = Penalty(weights, L1(1.0)), {"a": None, "b": np.zeros(3, np.float32)}
    assert penalty("b") == 15.0
    assert penalty.accumulate_grad(grads) == 15.0
    weights["b"] = np.full(3, 7, np.float32)
    assert penalty("b") == 21.0
    assert penalty.accumulate_grad(grads) == 21.0
    weights["bb"] = np.full(2, 9, np.float32)
    assert penalty("b") == 39.0


def test_refresh_looks_at_where_arrays_lie() -> None:
    w = np.ones(3, np.float32)
    penalty = Penalty({"a": w}, L1(1.0))
    assert penalty() == 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of setting strides; nothing else moves an array in place
        w.shape = (1, 3)
    penalty.refresh()
    assert penalty.accumulate_grad({"a": np.zeros((1, 3), np.float32)}) == 3.0


def test_copies_stand_on_their_own() -> None:
    weights = arrays("a", "b")
    penalty = Penalty(weights, {"a": L1(1.0), "*": None}, scope="a|b")
    penalty.set_strength(0.5)
    penalty.accumulate_grad(arrays("a"))
    for copied in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty))):
        assert copied() == penalty() == 3.0
        assert copied.step == 1
        copied.set_strength(2.0)
        assert copied() == 12.0
        assert repr(copied) == repr(penalty) == "<Penalty of 1 of 2 tensors by Rules([('a', L1(l1=1.0)), ('*', None)])>"
    deep, shallow = copy.deepcopy(penalty), copy.copy(penalty)
    weights["a"][:] = 0
    assert (penalty(), shallow(), deep()) == (0.0, 0.0, 3.0)


def test_arrays_given_as_pairs_are_those_that_count() -> None:
    weights = arrays("a")
    penalty = Penalty(weights.items(), L1(1.0))
    weights["a"] = np.zeros(3, np.float32)
    assert penalty() == 6.0


def test_no_weights_and_no_gradients_are_copied_or_kept() -> None:
    weights, grads = arrays("a", size=2**20), arrays("a", size=2**20)
    penalty = Penalty(weights, L1(1.0))
    penalty.accumulate_grad(grads)
    gone = weakref.ref(grads.pop("a"))
    gc.collect()
    assert gone() is None
    assert penalty._all.arrays[0] is weights["a"]


# Saying what is done, and by whom ------------------------------------------------------------------------------------


def test_the_explanation_is_a_table_and_rows() -> None:
    weights = {
        "h.0.ln.weight": np.ones(4, np.float32),
        "h.0.fc.weight": np.ones((4, 3), np.float32),
        "t": np.float16(1),
    }
    rules = gpureg.Rules([(re.compile(r"\bln\b"), None), ("*.fc.*", HalvedL2(0.1))], default=L1(1e-5))
    explanation = Penalty(weights, rules).explain()
    assert [row.l2 for row in explanation] == [0.0, 0.05, 0.0]
    assert explanation[1]._asdict() == {
        "name": "h.0.fc.weight", "shape": (4, 3), "dtype": "float32", "rule": "*.fc.*", "l1": 0.0, "l2": 0.05,
        "share": 12 / 17,
    }  # fmt: skip
    assert str(explanation).splitlines() == [
        r"name           shape   dtype    rule             l1    l2  share",
        r"h.0.ln.weight  4       float32  regex \bln\b      -     -  23.5%",
        r"h.0.fc.weight  4x3     float32  *.fc.*            -  0.05  70.6%",
        r"t              scalar  float16  default       1e-05     -   5.9%",
    ]


def test_the_sums_of_keras_are_those_of_a_penalty() -> None:
    kernel = np.ones((2, 2), np.float32)
    assert Penalty({"k": kernel}, gpureg.L1L2(0.01, 0.02))() == gpureg.L1L2(0.01, 0.02)(kernel)


def test_the_manual_total_of_tensorflow_has_the_same_bits() -> None:
    """`weight_decay * sum(l2_loss(v))` over variables whose name has no "bias"."""
    rng = np.random.default_rng(0)
    weights = {
        "w1/w": rng.standard_normal((64, 40, 200, 1), np.float32),
        "w1/bias": rng.standard_normal(200, np.float32),
        "conv/kernel": rng.standard_normal((3, 3, 1, 64), np.float32),
    }
    penalty = Penalty(weights, {"*bias*": None, "*": HalvedL2(0.5)})
    doubles = [0.25 * 2 * float(gpureg.l2_loss(weights[name], dtype="float64")) for name in ("w1/w", "conv/kernel")]
    assert penalty() == np.float32(doubles[0] + doubles[1])


def test_calls_from_several_threads_take_turns() -> None:
    inside: list[int] = []
    most: list[int] = []

    def slow(step: int) -> float:
        inside.append(step)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return 1.0

    penalty = Penalty(arrays("a"), L1(1.0))
    penalty.set_strength(slow)
    calls = (penalty, penalty.losses, penalty.grads, lambda: penalty.accumulate_grad(arrays("a")))
    workers = [threading.Thread(target=call) for call in calls for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(most) == 12
    assert max(most) == 1


@pytest.mark.usefixtures("_threads")
def test_threads_may_share_a_penalty() -> None:
    gpureg.set_num_threads(2)
    made = sets.make(30, 9)
    penalty = Penalty(made.weights, list(made.regularizers.items()))
    expected = raw(penalty())
    results: list[Any] = []

    def work() -> None:
        for _ in range(5):
            grads = {name: np.array(grad) for name, grad in made.grads.items()}
            results.append((raw(penalty.accumulate_grad(grads)), raw(penalty("layer.1")), bits(grads["layer.3"])))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 20
    assert all(total == expected for total, _, _ in results)
    assert all(part == results[0][1] and np.array_equal(grad, results[0][2]) for _, part, grad in results)
    assert penalty.step == 20
