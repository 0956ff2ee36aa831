"""Rules: the first that matches wins, what is left out or never used is an error, and the ready-made patterns."""

import copy
import dataclasses
import fnmatch
import functools
import json
import pickle
import re
import string
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpureg.rules
from gpureg import L1, L1L2, L2, HalvedL2, Regularizer
from gpureg.arithmetic import Coefficients
from gpureg.rules import BIAS, NO_DEFAULT, NORMALIZATION, VECTORS, Assignment, Ready, Rules
from tests.test_import import loaded_by

MATRIX, VECTOR, SCALAR = np.ones((2, 3)), np.ones(3), np.ones(())
TENSORS = [("fc.weight", MATRIX), ("fc.bias", VECTOR), ("head.weight", MATRIX)]


def names(*given: str) -> list[tuple[str, Any]]:
    """Return tensors of which only the name may matter."""
    return [(name, None) for name in given]


def won(rules: Rules, tensors: Any = TENSORS) -> list[int | None]:
    """Return the indices of the rules that win."""
    return [assignment.rule for assignment in rules.assign(tensors)]


def refusal(rules: Rules, tensors: Any = TENSORS) -> str:
    """Return what the ValueError of assigning says."""
    with pytest.raises(ValueError, match=r".") as caught:
        rules.assign(tensors)
    return str(caught.value)


def is_head(name: str, array: Any) -> bool:
    assert isinstance(array, np.ndarray)
    return name.startswith("head")


# Which rule wins -----------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_wins() -> None:
    assert Rules([("*.bias", None), ("head.*", L1(0.5)), ("*", L2(0.25))]).assign(TENSORS) == [
        Assignment(regularizer=L2(0.25), rule=2, pattern="*"),
        Assignment(regularizer=None, rule=0, pattern="*.bias"),
        Assignment(regularizer=L1(0.5), rule=1, pattern="head.*"),
    ]


MATCHES = [("*.weight", "layers.0.fc.weight"), ("params*kernel", "params/Dense_0/kernel"), ("h.?.w", "h.1.w"),
    ("h.[!0-3].w", "h.4.w"), ("*b", "a\nb"), ("", ""), (re.compile("norm"), "layers.norm1.w"),
    (re.compile("NORM", re.IGNORECASE), "norm1"), (lambda name, array: len(name) == 3 and array is None, "abc"),
]  # fmt: skip
MATCHES_NOT = [("weight", "fc.weight"), ("fc", "fc.weight"), ("*.Weight", "fc.weight"), ("h.?.w", "h.11.w"),
    ("h.[0-3].w", "h.4.w"), ("a/b", "a\\b"), ("a.b", "a.b\n"), ("a.b", "axb"), (re.compile("^norm"), "layers.norm1.w"),
    (re.compile("NORM"), "norm1"), (lambda name, array: len(name) == 3 and array is None, "abcd"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "name", "matches"), [*((*pair, True) for pair in MATCHES), *((*pair, False) for pair in MATCHES_NOT)]
)
def test_what_a_pattern_matches(pattern: Any, name: str, matches: bool) -> None:
    assert won(Rules([(pattern, None)], default=None, strict=False), names(name)) == [0 if matches else None]


def test_a_predicate_sees_name_and_array_of_what_is_not_taken() -> None:
    seen = []

    def predicate(name: str, array: Any) -> bool:
        seen.append((name, array is MATRIX))
        return True

    assert won(Rules([("b", None), (predicate, None)]), [("a", MATRIX), ("b", MATRIX), ("c", VECTOR)]) == [1, 0, 1]
    assert seen == [("a", True), ("c", False)]


def test_patterns_in_words() -> None:
    def is_d(name: str, _: Any) -> bool:
        return name == "d"

    partial = functools.partial(is_d)
    patterns: list[Any] = ["a", re.compile("^b"), VECTORS, is_d, partial]
    rules = Rules([(pattern, None) for pattern in patterns], default=L1(0.5), strict=False)
    tensors = [("a", MATRIX), ("b", MATRIX), ("c", VECTOR), ("d", MATRIX), ("e", MATRIX)]
    expected = ["a", "regex ^b", "ready-made vectors", "predicate is_d", "default"]
    assert [assignment.pattern for assignment in rules.assign(tensors)] == expected
    assert refusal(Rules([(partial, None)]), []).startswith("rules[0] (predicate a partial")


def test_the_default_is_for_what_no_rule_matches() -> None:
    assert Rules([("fc.*", None)], default=L2(0.25)).assign(TENSORS)[1] == Assignment(None, 0, "fc.*")
    assert Rules([("fc.*", None)], default=L2(0.25)).assign(TENSORS)[2] == Assignment(L2(0.25), None, "default")
    assert Rules([("fc.*", L1(0.5))], default=None).assign(TENSORS)[2] == Assignment(None, None, "default")


def test_names_and_arrays_may_come_as_a_dictionary_or_once_or_twice() -> None:
    rules = Rules({"*.bias": None, "*": L1(0.5)})
    for tensors in (TENSORS, dict(TENSORS), iter(TENSORS), [list(pair) for pair in TENSORS]):
        assert won(rules, tensors) == [1, 0, 1]
    assert won(rules, TENSORS * 2) == [1, 0, 1] * 2


def test_the_very_regularizer_is_given_and_never_asked() -> None:
    class Lasso(Regularizer):
        @property
        def coefficients(self) -> Coefficients:
            raise AssertionError("rules do not look into a regularizer")

    lasso = Lasso()
    assert Rules([("*", lasso)]).assign(names("a"))[0].regularizer is lasso
    assert Rules.of(lasso).assign(names("a"))[0].regularizer is lasso


PATTERNS = st.one_of(
    st.text("ab.*?", max_size=3),
    st.sampled_from(["a", "^b", r"\.", "b$", "^$"]).map(re.compile),
    st.sampled_from(Ready),
    st.integers(0, 2).map(lambda size: lambda name, array: len(name) == size or array.ndim == size),
)
REGULARIZERS = st.sampled_from([None, L1(0.5), L2(0.5), L1L2(0.5, 0.25), HalvedL2(0.5)])
PAIRS = st.lists(st.tuples(PATTERNS, REGULARIZERS), max_size=6)
ARRAYS = st.sampled_from([MATRIX, VECTOR, SCALAR])
NAMED = st.lists(st.tuples(st.text("ab.*", max_size=4), ARRAYS), max_size=8)


def naive(pairs: list[tuple[Any, Any]], name: str, array: Any) -> int | None:
    """Return the index of the first pair that matches."""
    for index, (pattern, _) in enumerate(pairs):
        by_name = fnmatch.fnmatchcase(name, pattern) if isinstance(pattern, str) else False
        by_regex = isinstance(pattern, re.Pattern) and pattern.search(name)
        if by_name or by_regex or (callable(pattern) and pattern(name, array)):
            return index
    return None


@given(PAIRS, NAMED, REGULARIZERS)
def test_it_is_the_naive_loop(pairs: list[Any], named: list[Any], default: Any) -> None:
    assignments = Rules(pairs, default=default, strict=False).assign(named)
    expected = [naive(pairs, *tensor) for tensor in named]
    assert [one.rule for one in assignments] == expected
    assert [one.regularizer for one in assignments] == [default if i is None else pairs[i][1] for i in expected]


@given(PAIRS, NAMED)
def test_errors_are_those_of_the_naive_loop(pairs: list[Any], named: list[Any]) -> None:
    winners = [naive(pairs, *tensor) for tensor in named]
    never = [index for index in range(len(pairs)) if index not in winners and not isinstance(pairs[index][0], Ready)]
    if None not in winners and not never:
        assert won(Rules(pairs), named) == winners
        return
    said = refusal(Rules(pairs), named)
    assert said.startswith(f"no rule matches {winners.count(None)} of {len(named)} tensors") == (None in winners)
    assert re.findall(r"^rules\[(\d+)\].* wins no tensor: ", said, re.MULTILINE) == [str(index) for index in never]
    for index in never:
        takers = {winner for tensor, winner in zip(named, winners, strict=True)
                  if winner is not None and naive(pairs[index : index + 1], *tensor) is not None}  # fmt: skip
        why = re.findall(rf"^rules\[{index}\].* wins no tensor: (.*)$", said, re.MULTILINE)[0]
        assert set(map(int, re.findall(r"rules\[(\d+)\]", why))) == takers
        assert why.startswith("what it matches is taken by " if takers else "it matches none")


@given(PAIRS, st.permutations(range(6)), st.lists(ARRAYS, min_size=6, max_size=6))
def test_the_order_of_tensors_does_not_matter(pairs: list[Any], order: list[int], arrays: list[Any]) -> None:
    named = list(zip(["a", "b", "a.b", "bias", "ab.norm", ""], arrays, strict=True))
    rules = Rules(pairs, default=None, strict=False)
    assignments = rules.assign(named)
    assert rules.assign([named[index] for index in order]) == [assignments[index] for index in order]


# Errors of assigning -------------------------------------------------------------------------------------------------


def test_all_tensors_that_no_rule_matches_are_listed() -> None:
    expected = "no rule matches 2 of 3 tensors, and there is no default: fc.bias, head.weight"
    assert refusal(Rules({"fc.weight": L1(0.5)})) == expected
    assert refusal(Rules([])).startswith("no rule matches 3 of 3 tensors")
    assert Rules([]).assign([]) == []
    many = [f"w{index}" for index in range(101)]  # more than 100 are not all listed
    expected = "no rule matches 101 of 101 tensors, and there is no default: "
    assert refusal(Rules([]), names(*many[:100])).endswith(f"default: {', '.join(many[:100])}")
    assert refusal(Rules([]), names(*many)) == f"{expected}{', '.join(many[:10])}, and 91 more"


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    rules = Rules([("*.wieght", L1(0.5)), ("*", None)])
    assert refusal(rules) == "rules[0] (*.wieght) wins no tensor: it matches none of 3 tensors"
    of_none = "wins no tensor: it matches none of 0 tensors"
    assert refusal(rules, []) == f"rules[0] (*.wieght) {of_none}\nrules[1] (*) {of_none}"
    assert refusal(Rules([("x", None)], default=None)).startswith("rules[0] (x) wins no tensor")


def test_a_rule_that_is_shadowed_says_by_which_and_all_is_said_at_once() -> None:
    by_two = Rules([("*.weight", L1(0.5)), (BIAS, None), (re.compile("fc"), None)])
    taken = "wins no tensor: what it matches is taken by rules[0] (*.weight)"
    assert refusal(by_two) == f"rules[2] (regex fc) {taken}, rules[1] (ready-made bias)"
    by_one = Rules([("*.weight", L1(0.5)), ("*", None), ("head.*", L2(0.5))])
    assert refusal(by_one) == f"rules[2] (head.*) {taken}"
    assert refusal(Rules([("*.bias", None), ("*.bias", None), ("*.wieght", L1(0.5))])).splitlines() == [
        "no rule matches 2 of 3 tensors, and there is no default: fc.weight, head.weight",
        "rules[1] (*.bias) wins no tensor: what it matches is taken by rules[0] (*.bias)",
        "rules[2] (*.wieght) wins no tensor: it matches none of 3 tensors",
    ]
    # What is not strict allows rules but not tensors.
    assert won(Rules([("*.wieght", None), ("*", None), ("fc.*", None)], strict=False)) == [1, 1, 1]
    assert refusal(Rules([("fc.*", None)], strict=False)).startswith("no rule matches 1 of 3 tensors")


def test_a_predicate_that_fails_on_what_others_take_matches_none_of_it() -> None:
    def is_wide(_: str, array: Any) -> bool:
        return bool(array.shape[1] == 7)

    rules = Rules([(VECTORS, None), (is_wide, None), ("*", None)])
    assert refusal(rules) == "rules[1] (predicate is_wide) wins no tensor: it matches none of 3 tensors"


@pytest.mark.parametrize(
    ("returned", "shown"),
    [(None, "None"), (1, "1"), ("yes", "'yes'"), (re.match("f", "fc"), "a Match"),
     (VECTOR > 0, "a ndarray: array"), (np.ones((9, 9)), "a ndarray$")],  # the last without its 9 lines
)  # fmt: skip
def test_a_predicate_must_return_a_bool(returned: Any, shown: str) -> None:
    def mine(name: str, _: Any) -> Any:
        return True if name == "fc.weight" else returned

    expected = r"^rules\[1\] \(predicate mine\) must return a bool, but on the tensor 'fc.bias' returned " + shown
    with pytest.raises(TypeError, match=expected):
        Rules([("x", None), (mine, None)]).assign(TENSORS)


def test_what_a_predicate_raises_passes_with_a_note() -> None:
    error = KeyError("mine")

    def mine(name: str, _: Any) -> bool:
        if name == "fc.bias":
            raise error
        return True

    with pytest.raises(KeyError) as caught:
        Rules([("x", None), (mine, None)]).assign(TENSORS)
    assert caught.value is error
    assert error.__notes__ == ["raised by rules[1] (predicate mine) on the tensor 'fc.bias'"]
    with pytest.raises(AttributeError) as of_vectors:
        Rules([(VECTORS, None)]).assign([("a", 1.0)])
    assert of_vectors.value.__notes__ == ["raised by rules[0] (ready-made vectors) on the tensor 'a'"]


def test_what_is_no_pair_of_name_and_array_is_refused() -> None:
    wrong: Any
    for wrong in (None, 1, ("params", "kernel"), b"w"):
        with pytest.raises(TypeError, match=r"^a tensor's name must be a string, not "):
            Rules({"*": None}).assign([(wrong, MATRIX)])
    for wrong in ("ab", "a", 1, ("a",), ("a", MATRIX, "b"), MATRIX, {"a": 1, "b": 2}):
        with pytest.raises(TypeError, match=r"^expected pairs of a name and an array, not "):
            Rules({"*": None}).assign([wrong])


# Making rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [None, 1, b"*", ["*"], L1(), L1, str, MATRIX, re.compile(b"x"), {"match": "*"}])
def test_a_pattern_of_another_type_is_refused(pattern: Any) -> None:
    with pytest.raises(TypeError, match=r"^rules\[1\]: a (pattern|regular expression) must be "):
        Rules([("*", None), (pattern, L1())])


@pytest.mark.parametrize(
    ("regularizer", "shown"),
    [(0.5, "0.5"), (True, "True"), ("l2", "'l2'"), ("none", "'none'"), ([0.5], "a list: [0.5]"),
     (L1, "the class L1"), (len, "a builtin_function_or_method: <built-in function len>")],
)  # fmt: skip
def test_a_regularizer_of_another_type_is_refused(regularizer: Any, shown: str) -> None:
    expected = re.escape(f"expected a regularizer, its configuration such as {{'l2': 0.0001}}, or None, not {shown}")
    with pytest.raises(TypeError, match=rf"^rules\[1\] \(regex x\): {expected}$"):
        Rules([("*", None), (re.compile("x"), regularizer)])
    with pytest.raises(TypeError, match=f"^default: {expected}$"):
        Rules([], default=regularizer)


def test_rules_of_the_wrong_make_are_refused() -> None:
    wrong: Any
    for wrong in ("ab", ("*",), ("*", None, None), None, {"a": 1, "b": 2}, "*"):
        with pytest.raises(TypeError, match=r"^rules\[1\] must be a pair of a pattern and a regularizer, not "):
            Rules([("*", None), wrong])
    for wrong in (None, L1(), "*.bias", 1, Rules([])):
        with pytest.raises(TypeError, match=r"^rules must be pairs of a pattern and a regularizer, not "):
            Rules(wrong)
    for wrong in (None, "rules.toml", 0.5, L1):
        with pytest.raises(TypeError, match=r"^rules must be pairs"):
            Rules.of(wrong)
    for wrong in (None, 1, "yes"):
        with pytest.raises(TypeError, match=r"^strict must be a bool, not "):
            Rules([], strict=wrong)
    with pytest.raises(TypeError, match="NO_DEFAULT"):
        Rules([("*", NO_DEFAULT)])  # type: ignore[list-item]


def test_what_rules_are_made_of() -> None:
    pairs: list[Any] = [("b*", None), (BIAS, L1(0.5)), (re.compile("x"), L2(0.5)), (is_head, None), ("a*", None)]
    rules = Rules(pairs)
    assert rules == Rules(dict(pairs)) == Rules(iter(pairs)) == Rules([list(pair) for pair in pairs])  # type: ignore[misc]
    assert (rules.rules, rules.default, rules.strict) == (tuple(pairs), NO_DEFAULT, True)
    assert Rules.of(rules) is rules
    assert Rules.of(pairs) == Rules.of(dict(pairs)) == rules
    assert Rules.of(L1(0.5)).assign(TENSORS) == [Assignment(L1(0.5), None, "default")] * 3
    assert Rules.of(L1(0.5)).assign([]) == []


@pytest.mark.parametrize(
    ("config", "regularizer"),
    [({"l1": 0.5}, L1(0.5)), ({"l2": 0.5}, L2(0.5)), ({"l2": 0.25, "l1": 0.5}, L1L2(0.5, 0.25)),
     ({"l1": 0, "l2": 0.25}, L1L2(0.0, 0.25)), ({"halved_l2": 0.5}, HalvedL2(0.5))],
)  # fmt: skip
def test_a_regularizer_may_be_given_by_its_configuration(config: Any, regularizer: Regularizer) -> None:
    assert Rules({"*": config}, default=config) == Rules({"*": regularizer}, default=regularizer)


NAMED_SO = "a penalty has l1, l2, l1 and l2, or halved_l2, not {"
no_number = "Invalid value for argument {0}: expected a non-negative float.Received: {0}={1}".format


@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, f"{NAMED_SO}}}"), ({"l3": 1.0}, f"{NAMED_SO}'l3': 1.0}}"), ({"l1": 1.0, "halved_l2": 1.0}, NAMED_SO),
     ({"l2": 1.0, 3: 1.0}, NAMED_SO), ({"l1": -1.0}, no_number("l1", -1.0)),
     ({"l1": 1.0, "l2": True}, no_number("l2", True)), ({"halved_l2": "1"}, no_number("l2", "'1'")),
     ({"l1": None}, "a coefficient must be a number, not None: {'l1': None}")],
)  # fmt: skip
def test_a_configuration_with_other_names_or_numbers_is_refused(config: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"^rules\[0\] \(\*\): {re.escape(expected)}"):
        Rules({"*": config})
    with pytest.raises(ValueError, match=f"^default: {re.escape(expected)}"):
        Rules([], default=config)


def test_rules_are_compared_by_all_parts_copied_pickled_and_never_changed() -> None:
    ones = ["a", "b", re.compile("a"), re.compile("a", re.IGNORECASE), BIAS, "bias", is_head]
    others = [Rules({pattern: None}) for pattern in ones]
    others += [Rules([]), Rules([], default=None), Rules([], default=L1(0.5)), Rules([], strict=False)]
    others += [Rules([("a", L1(0.5))]), Rules({"a": None, "b": None}), Rules({"b": None, "a": None})]
    assert [others.index(other) for other in others] == list(range(len(others)))
    twins = [Rules(other.rules, default=other.default, strict=other.strict) for other in others]
    assert twins == others
    assert Rules([]) != []  # type: ignore[comparison-overlap]
    assert len({*twins, *others}) == len(others)
    rules = Rules([(is_head, None), (BIAS, None), (re.compile("x"), L1(0.5))], strict=False)
    for twin in (copy.copy(rules), copy.deepcopy(rules), pickle.loads(pickle.dumps(rules))):
        assert twin == rules
        assert twin.default is NO_DEFAULT
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules.strict = True  # type: ignore[misc]


def test_the_repr_makes_equal_rules() -> None:
    scope = {**vars(gpureg), **vars(gpureg.rules)}
    for rules in (EVERY, Rules(EVERY.rules), Rules([], default=L2(0.5), strict=False)):
        assert eval(repr(rules), scope) == rules
    assert repr(Rules([("*", L1(0.5))])) == "Rules([('*', L1(l1=0.5))])"
    assert repr(Rules({BIAS: None}, default=None, strict=False)) == "Rules([(BIAS, None)], default=None, strict=False)"


# Configurations and files --------------------------------------------------------------------------------------------

CONFIG = {"strict": False, "default": "none", "rules": [
    {"ready": "bias", "penalty": "none"},
    {"ready": "normalization", "penalty": "none"},
    {"ready": "vectors", "penalty": "none"},
    {"regex": r"(^|\.)wte\.", "flags": "i", "penalty": {"l1": 0.5}},
    {"regex": "head", "penalty": {"l2": 1e-5}},
    {"match": "*.attn.é*", "penalty": {"l1": 1e-5, "l2": 1e-4}},
    {"match": "*", "penalty": {"halved_l2": 0.25}},
]}  # fmt: skip
WTE = re.compile(r"(^|\.)wte\.", re.IGNORECASE)
EVERY = Rules([(BIAS, None), (NORMALIZATION, None), (VECTORS, None), (WTE, L1(0.5)), (re.compile("head"), L2(1e-5)),
    ("*.attn.é*", L1L2(1e-5, 1e-4)), ("*", HalvedL2(0.25))], default=None, strict=False)  # fmt: skip


def as_toml(config: dict[str, Any]) -> str:
    """Write a configuration as TOML."""

    def lines(table: dict[str, Any]) -> list[str]:
        return [f"{key} = {value(given)}" for key, given in table.items() if key != "rules"]

    def value(given: Any) -> str:
        return f"{{ {', '.join(lines(given))} }}" if isinstance(given, dict) else json.dumps(given, ensure_ascii=False)

    return "\n".join(lines(config) + [line for rule in config["rules"] for line in ("[[rules]]", *lines(rule))])


def test_the_configuration_is_plain() -> None:
    assert EVERY.get_config() == CONFIG
    assert Rules.from_config(CONFIG) == EVERY
    assert Rules([]).get_config() == {"strict": True, "rules": []}
    assert Rules.from_config({}) == Rules([])
    null = {"default": None, "rules": ({"match": "*", "penalty": None},)}
    assert Rules.from_config(null) == Rules([("*", None)], default=None)


TEXTS = st.text(string.printable) | st.text().filter(str.isprintable)
FLAGS = st.sampled_from([re.NOFLAG, re.I, re.I | re.M | re.S | re.X, re.A])
REGEXES = st.builds(re.compile, st.sampled_from(["(?i)a", "^(a|b)$"]) | TEXTS.map(re.escape), FLAGS)
NUMBERS = st.floats(0, 1e300)
OF_ONE = st.sampled_from([L1, L2, HalvedL2]).flatmap(NUMBERS.map)
PLAIN = st.tuples(TEXTS | REGEXES | st.sampled_from(Ready), st.none() | OF_ONE | st.builds(L1L2, NUMBERS, NUMBERS))
DEFAULTS = st.sampled_from([NO_DEFAULT, None, L1(0.5)])
DESCRIBED = st.builds(Rules, st.lists(PLAIN, max_size=4), default=DEFAULTS, strict=st.booleans())


@given(DESCRIBED)
def test_a_configuration_makes_equal_rules(rules: Rules) -> None:
    config = rules.get_config()
    assert Rules.from_config(config) == rules
    assert Rules.from_config(json.loads(json.dumps(config))) == rules
    assert Rules.from_config(tomllib.loads(as_toml(config))) == rules


def test_a_configuration_of_what_cannot_be_described() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(L1):
        pass

    with pytest.raises(TypeError, match=r"^rules\[1\] \(predicate is_head\): a predicate has no configuration"):
        Rules([("*", None), (is_head, None)]).get_config()
    with pytest.raises(TypeError, match=r"^rules\[0\] \(\*\): only L1, L2, L1L2 and HalvedL2 .* not a Mine: "):
        Rules([("*", Mine(0.5))]).get_config()
    with pytest.raises(TypeError, match=r"^default: only L1, L2, L1L2 and HalvedL2 "):
        Rules([], default=Mine(0.5)).get_config()


@pytest.mark.parametrize("suffix", [".toml", ".TOML", ".json"])
@pytest.mark.parametrize("kind", [str, Path])
def test_rules_are_read_from_a_file(tmp_path: Path, suffix: str, kind: Any) -> None:
    path = tmp_path / f"rules{suffix}"
    path.write_text(json.dumps(CONFIG) if suffix == ".json" else as_toml(CONFIG), encoding="utf-8")
    assert Rules.from_file(kind(path)) == EVERY


def test_the_example_of_the_format_is_right(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(str(gpureg.rules.__doc__).split(".. code-block:: toml")[1].replace("\n    ", "\n"))
    assert Rules.from_file(path) == Rules(
        [(BIAS, None), (re.compile(r"(^|\.)(wte|wpe)\."), L2(1e-5)), ("*.weight", L1L2(1e-5, 1e-4))], default=None
    )


MATCH = {"match": "*", "penalty": "none"}


def of(**rule: Any) -> dict[str, Any]:
    """Return a configuration with a rule that is right and one that may be wrong."""
    return {"rules": [MATCH, rule]}


FINITE = f"rules[1] (a*): {no_number('l1', '')}"
EXPECTED = "expected a regularizer, its configuration"
WRONG: dict[str, tuple[Any, type[Exception]]] = {
    "the configuration must be a table, not a list: []": ([], TypeError),
    "the configuration has the unknown key rule; known are default, rules, strict": ({"rule": []}, ValueError),
    "rules must be a list, not a dict: {": ({"rules": MATCH}, TypeError),
    "strict must be a bool, not 1": ({"strict": 1}, TypeError),
    f"default: {EXPECTED}": ({"default": 0.5}, TypeError),
    "default: a penalty has l1, l2": ({"default": {"l3": 1}}, ValueError),
    "rules[1] must be a table, not '*'": ({"rules": [MATCH, "*"]}, TypeError),
    "rules[1] has the unknown key a, penaltie; ": (of(**MATCH, penaltie=1, a=1), ValueError),
    "rules[1] must have one of match, regex and ready, not none": (of(penalty="none"), ValueError),
    "rules[1] must have one of match, regex and ready, not match and ready": (of(**MATCH, ready="bias"), ValueError),
    'rules[1] has no penalty; "none" says': (of(match="x"), ValueError),
    "rules[1] has flags, but they are only for a regex": (of(**MATCH, flags="i"), ValueError),
    "rules[1]: match must be a string, not 1": (of(match=1, penalty="none"), TypeError),
    "rules[1]: regex must be a string, not a list": (of(regex=["x"], penalty="none"), TypeError),
    "rules[1]: ready must be a string, not True": (of(ready=True, penalty="none"), TypeError),
    "rules[1]: ready must be one of bias, normalization, vectors, not 'n'": (of(ready="n", penalty="none"), ValueError),
    "rules[1]: regex '(': missing ), unterminated": (of(regex="(", penalty="none"), ValueError),
    "rules[1]: regex '(?u)x': ": (of(regex="(?u)x", flags="a", penalty="none"), ValueError),
    "rules[1]: flags must be of the letters aimsx, not 'iu'": (of(regex="x", flags="iu", penalty="none"), ValueError),
    "rules[1]: flags must be a string, not 2": (of(regex="x", flags=2, penalty="none"), TypeError),
    f"rules[1] (a*): {EXPECTED}": (of(match="a*", penalty=0.5), TypeError),
    f"{FINITE}-1": (of(match="a*", penalty={"l1": -1}), ValueError),
    f"{FINITE}'none'": (of(match="a*", penalty={"l1": "none"}), ValueError),
    f"{FINITE}nan": (of(match="a*", penalty={"l1": float("nan")}), ValueError),
}


@pytest.mark.parametrize("expected", WRONG)
def test_what_is_wrong_is_named_with_its_rule_and_file(tmp_path: Path, expected: str) -> None:
    config, kind = WRONG[expected]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(config))
    with pytest.raises(kind, match=f"^{re.escape(expected)}"):
        Rules.from_config(config)
    with pytest.raises(kind, match=f"^{re.escape(f'{path}: {expected}')}"):
        Rules.from_file(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("rules.toml", b"rules = ["), ("rules.toml", b"strict = true\nstrict = true"), ("rules.toml", b"# \xff"),
     ("rules.json", b"{"), ("rules.json", b"\xff\xff"), ("rules.json", b'{"strict": true, "strict": true}'),
     ("rules.yaml", b"{}"), ("rules", b"{}")],
)  # fmt: skip
def test_what_is_no_file_of_rules_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(path))):
        Rules.from_file(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
        Rules.from_file(path)


def test_no_parser_is_imported_until_a_file_is_read() -> None:
    loaded = loaded_by("import gpureg.rules")
    assert "gpureg.rules" in loaded
    assert not {"json", "tomllib", "pathlib"} & loaded


# Ready-made patterns -------------------------------------------------------------------------------------------------

BIASES = """
    bias fc.bias fc/bias dense/bias:0 ['params']['Dense_0']['bias'] params/Dense_0/bias BIAS
    attn.in_proj_bias attn.q_bias mixer.dt_bias conv1/biases conv1/biases:0 rnn.bias_ih_l0 rnn.bias_hh_l0_reverse
    attn.bias_k attn.relative_position_bias_table rbm.vbias heads.biases.3 kernel/bias e_score_correction_bias
    _orig_mod.fc.bias fc._fsdp_wrapped_module.bias .layers[0].linear.bias layers-0/bias
"""

NORMALIZATIONS = """
    norm.weight model.norm.weight norm transformer.h.0.ln_1.weight transformer.ln_f.weight visual.ln_pre.weight
    model.layers.3.input_layernorm.weight model.layers.3.post_attention_layernorm.weight self_attn.q_norm.weight
    layer1.0.bn1.weight layer1.0.bn1.running_mean batch_normalization_3/gamma:0 batch_normalization/beta
    params/LayerNorm_0/scale ['params']['LayerNorm_0']['scale'] BatchNorm_0/mean BatchNorm/beta
    GroupNorm.weight bert.encoder.layer.0.output.LayerNorm.weight RMSNorm_0/scale rms_norm.weight blocks.0.norm1.weight
    InstanceNorm2d_1.weight backbone.norm_f.weight blocks.0.norm_q.weight encoder.norm_conv.weight
    blk.0.attn_norm.weight sa_norm.scale pre_attention_norm/scale mlp.linear_fc1.layer_norm_weight bn2a_branch2a/gamma
    bn_conv1/gamma:0 conv1_bn/beta layer_normalization/gamma LayerNormalization_1.scale norm.0.weight ls1.gamma
    layer_norms.2.weight mlp/~/layer_norm/offset final_normalisation.weight k_ln.weight ln.weight blocks/ln1/w
    bns.0.weight norm._orig_mod.weight norm._fsdp_wrapped_module.weight norm._checkpoint_wrapped_module.weight
    PostNorm.weight T5LayerNorm.weight _orig_mod.model.norm.weight WeightNorm_0/Dense_0/kernel/scale dense/scale_1
"""

BOTH = "transformer.h.0.ln_1.bias params/BatchNorm_0/bias batch_norm.bias_1"

# Weights that some part of a name might make one take for the others.
NEITHER = """
    weight fc.weight linear.weight vocab.weight online.weight subnet.weight scaled_dot.weight unbiased_head.weight
    bias_head.weight biased.weight normalizer_free.conv.weight normal.weight normed.weight abnormal.weight kiln.weight
    layer1.0.downsample.1.weight adaLN_modulation.1.weight norm1.linear.weight norm_out.linear.weight
    PreNorm_0/Attention_0/Dense_0/kernel weight_normalization/kernel:0 spectral_normalization/depthwise_kernel
    norm_table/embedding norm_table/embeddings:0 balance.weight lnx_proj.weight bnb.weight gammas.weight beta.weight
    scale.weight logit_scale w_scale scales upscale.0.weight rescale norm.fc._orig_mod.weight lora/b mlp/~/linear_0/w
    relative_attention_bias.weight wte.weight attn.c_attn.weight params/Conv_0/kernel dense/kernel:0 embedding
    . 0 3.0 _ /:0
"""


@pytest.mark.parametrize("name", [*BIASES.split(), *NORMALIZATIONS.split(), *BOTH.split(), *NEITHER.split()])
def test_names_of_biases_and_normalizations(name: str) -> None:
    assert BIAS(name, None) is (name in [*BIASES.split(), *BOTH.split()])
    assert NORMALIZATION(name, None) is (name in [*NORMALIZATIONS.split(), *BOTH.split()])


@given(st.text(string.ascii_letters + string.digits + "._/:"), st.sampled_from(["fc.weight", "fc.bias", "bn.weight"]))
def test_what_stands_before_module_and_parameter_does_not_matter(prefix: str, name: str) -> None:
    for ready in (BIAS, NORMALIZATION):
        assert ready(f"{prefix}.{name}", None) == ready(name, None)
        assert ready("", None) is False


def test_vectors_are_of_rank_0_or_1() -> None:
    for array, expected in ((SCALAR, True), (VECTOR, True), (MATRIX, False), (np.ones((1, 1, 1, 1)), False)):
        assert VECTORS("norm.weight", array) is expected
        assert VECTORS("fc.weight", SimpleNamespace(shape=array.shape)) is expected


def test_weight_decay_for_all_but_biases_normalizations_and_vectors() -> None:
    rules = Rules.exclude_bias_and_norm(L2(0.5))
    tensors = [("fc.weight", MATRIX), ("norm.weight", MATRIX), ("qkv_bias", MATRIX), ("downsample.1.weight", VECTOR)]
    assert [one.regularizer for one in rules.assign(tensors)] == [L2(0.5), None, None, None]
    assert won(rules, tensors) == [3, 1, 0, 2]
    assert won(rules, [("fc.weight", MATRIX)]) == [3]
    assert rules == Rules.exclude_bias_and_norm({"l2": 0.5})
    assert won(Rules([("head.*", None), *rules.rules])) == [4, 1, 0]
    taken = "what it matches is taken by rules[0] (ready-made bias), rules[2] (ready-made vectors)"
    flattened = [("fc.weight", VECTOR), ("fc.bias", VECTOR)]
    assert refusal(rules, flattened) == f"rules[3] (*) wins no tensor: {taken}"
