r"""Rules: which regularizer a tensor gets, by its name or by the array itself, and which rule said so.

A file of rules is TOML, or JSON of the same structure:

.. code-block:: toml

    strict = true                          # the default; false allows rules that win no tensor
    default = "none"                       # for what no rule matches; without it such a tensor is an error

    [[rules]]
    ready = "bias"                         # or "normalization", "vectors"
    penalty = "none"                       # matched, and not penalised

    [[rules]]
    regex = '(^|\.)(wte|wpe)\.'            # anywhere in the name; flags = "i" ignores case
    penalty = { l2 = 1e-5 }

    [[rules]]
    match = "*.weight"                     # a shell pattern, for the whole name
    penalty = { l1 = 1e-5, l2 = 1e-4 }     # or { l1 = ... }, { l2 = ... }, { halved_l2 = ... }
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from os import PathLike
from typing import Any, Final, NamedTuple, Self, TypeAlias

import numpy as np

from gpureg.regularizers import L1, L1L2, L2, HalvedL2, Regularizer

# Ready-made patterns -------------------------------------------------------------------------------------------------

# Names of PyTorch, Keras, Flax, Haiku and JAX's `keystr`: `a.b`, `a/b:0` and `['a']['b']`.
_SEPARATORS = re.compile(r"[./:\[\]'\"]+")

# Components that PyTorch's wrappers of a module put between it and its parameters.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# A word that is `bias`, or ends so; words are what underscores separate.
_BIAS = re.compile(r"(?:.*_)?[a-z0-9]*bias(?:es)?\d*(?:_.*)?", re.IGNORECASE)

# A word that ends in norm or normalization, or is bn or ln, all perhaps with a number. Only whole words: `normalizer`,
# `subnet` and `online` are none, nor is DiT's `adaLN_modulation`, a matrix.
_NORMALIZATION = re.compile(
    r"(?:.*_)?(?:[a-z0-9]*(?:norms?|normali[sz]ation)|[bl]ns?)(?:\d+[a-z]?)?(?:_.*)?", re.IGNORECASE
)

# Parameters that normalisations alone have: in Keras, and in Flax.
_GAIN_OR_SHIFT = re.compile(r"(?:gamma|beta|scale)(?:_\d+)?", re.IGNORECASE)

# Parameters that no normalisation has: those of the layer that a Keras wrapper such as WeightNormalization holds.
_KERNEL = re.compile(r"(?:.*_)?(?:kernel|embeddings?)", re.IGNORECASE)


def _module_and_parameter(name: str) -> tuple[str, str]:
    """Return the last two components of a name, which tell what it is; numbers and wrappers do not count.

    >>> _module_and_parameter("h.0.ln_1.weight"), _module_and_parameter("model/batch_normalization_3/gamma:0")
    (('ln_1', 'weight'), ('batch_normalization_3', 'gamma'))
    """
    parts = [part for part in _SEPARATORS.split(name) if part and not part.isdigit() and part not in _WRAPPERS]
    return ("", "", *parts)[-2], ("", *parts)[-1]


class Ready(Enum):
    """Ready-made patterns, for what is commonly left out of a penalty. They may win no tensor without an error.

    They are predicates too: `BIAS(name, array)`. A name is told by its last two components, the parameter and the
    module it belongs to, in upper or lower case: so a matrix is not taken for a normalisation's because one is named
    further up.

    Examples
    --------
    >>> from gpureg.rules import BIAS, NORMALIZATION
    >>> BIAS("encoder.attn.in_proj_bias", None), BIAS("unbiased_head.weight", None)
    (True, False)
    >>> NORMALIZATION("params/LayerNorm_0/scale", None), NORMALIZATION("norm1.linear.weight", None)
    (True, False)
    """

    BIAS = "bias"
    NORMALIZATION = "normalization"
    VECTORS = "vectors"

    def __call__(self, name: str, array: Any) -> bool:
        """Return whether the pattern matches a tensor."""
        if self is Ready.VECTORS:
            rank = getattr(array, "ndim", None)  # not every variable has it
            return bool((len(array.shape) if rank is None else rank) <= 1)
        module, parameter = _module_and_parameter(name)
        if self is Ready.BIAS:
            return _BIAS.fullmatch(parameter) is not None
        if _GAIN_OR_SHIFT.fullmatch(parameter) or _NORMALIZATION.fullmatch(parameter):
            return True
        return _NORMALIZATION.fullmatch(module) is not None and _KERNEL.fullmatch(parameter) is None

    def __repr__(self) -> str:
        return self.name


BIAS: Final = Ready.BIAS
"""A parameter with a word that ends in bias: `fc.bias`, `in_proj_bias`, `bias_ih_l0`, `dense/bias:0`, `biases`."""

NORMALIZATION: Final = Ready.NORMALIZATION
"""What belongs to a normalisation: `ln_f.weight`, `bn1.bias`, `q_norm/scale`, `batch_normalization_3/gamma:0`.

The module or the parameter has a word that ends in norm or normalization, or is bn or ln; or the parameter is gamma,
beta or scale. A normalisation without a name, `downsample.1.weight`, is left to `VECTORS`.
"""

VECTORS: Final = Ready.VECTORS
"""Arrays of rank 0 or 1, whatever their names. A shard that was flattened looks like one too."""

# Rules ---------------------------------------------------------------------------------------------------------------


class NoDefault(Enum):
    """The type of `NO_DEFAULT`."""

    NO_DEFAULT = "no default"

    def __repr__(self) -> str:
        return self.name


NO_DEFAULT: Final = NoDefault.NO_DEFAULT
"""The default that makes a tensor that no rule matches an error."""

Pattern: TypeAlias = str | re.Pattern[str] | Callable[[str, Any], bool]
"""What a rule matches tensors by; see `Rules`."""

RegularizerLike: TypeAlias = Regularizer | Mapping[str, float] | None
"""What a rule gives: a regularizer; its configuration, such as `{"l1": 1e-5, "l2": 1e-4}`; or None, no penalty."""

_LISTED = 100  # as many tensors are all listed in an error, of more the first
_FIRST = 10

_REGEX_FLAGS = "aimsx"


class Assignment(NamedTuple):
    """What a tensor got, and why."""

    regularizer: Regularizer | None
    """The regularizer, or None where the tensor is not penalised."""
    rule: int | None
    """The index of the rule that won, or None for the default."""
    pattern: str
    """That rule's pattern in words, or `default`."""


@dataclass(frozen=True, init=False, repr=False)
class Rules:
    """Ordered rules that say which regularizer a named tensor gets: the first that matches wins.

    Immutable; equal where patterns, regularizers, default and strictness are. `Rules.rules` holds the pairs, so that
    rules can be made of others: `Rules([("head.*", None), *others.rules])`.

    Parameters
    ----------
    rules
        Pairs of a pattern and a regularizer, or a dictionary of them. A regularizer may be given by its
        configuration, `{"l1": 1e-5}`, `{"l2": 1e-4}`, both, or `{"halved_l2": 1e-4}`; None means that what matches is
        not penalised. A pattern is

        - a shell-style string for the whole name, as of `fnmatch.fnmatchcase`; `*` matches `.` and `/` too;
        - a compiled regular expression, searched for anywhere in the name;
        - `BIAS`, `NORMALIZATION` or `VECTORS`;
        - a predicate, called with the name and the array, that returns a bool.
    default
        The regularizer of a tensor that no rule matches, or None for no penalty. By default that is an error.
    strict
        Whether a rule that wins no tensor is an error. Ready-made patterns are always allowed to.

    Raises
    ------
    TypeError
        If a pattern or a regularizer is of another type.
    ValueError
        If a configuration has other names or coefficients.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> from gpureg.rules import BIAS, Rules
    >>> rules = Rules([(BIAS, None), ("head.*", gpureg.L1(1e-5)), ("*", gpureg.L2(1e-4))])
    >>> w, b = np.ones((2, 3)), np.ones(3)
    >>> for assignment in rules.assign([("fc.weight", w), ("fc.bias", b), ("head.weight", w)]):
    ...     print(assignment.regularizer, "by", assignment.pattern)
    L2(l2=0.0001) by *
    None by ready-made bias
    L1(l1=1e-05) by head.*
    """

    rules: tuple[tuple[Pattern, Regularizer | None], ...]
    default: Regularizer | NoDefault | None
    strict: bool

    def __init__(
        self,
        rules: Mapping[Any, RegularizerLike] | Iterable[tuple[Pattern, RegularizerLike]],
        *,
        default: RegularizerLike | NoDefault = NO_DEFAULT,
        strict: bool = True,
    ) -> None:
        if not isinstance(strict, bool):
            raise TypeError(f"strict must be a bool, not {_shown(strict)}")
        if isinstance(rules, str | Rules) or not isinstance(rules, Iterable):
            raise TypeError(f"rules must be pairs of a pattern and a regularizer, not {_shown(rules)}")
        pairs = rules.items() if isinstance(rules, Mapping) else rules
        given = default if isinstance(default, NoDefault) else _regularizer("default", default)
        object.__setattr__(self, "rules", tuple(_rule(index, pair) for index, pair in enumerate(pairs)))
        object.__setattr__(self, "default", given)
        object.__setattr__(self, "strict", strict)

    @classmethod
    def of(
        cls, given: "Rules | Regularizer | Mapping[Any, RegularizerLike] | Iterable[tuple[Pattern, RegularizerLike]]"
    ) -> "Rules":
        """Return rules as they are, a regularizer as rules that give it to every tensor, and pairs as rules.

        >>> Rules.of(L1(0.1))
        Rules([], default=L1(l1=0.1))
        """
        if isinstance(given, Rules):
            return given
        return cls([], default=given) if isinstance(given, Regularizer) else cls(given)

    @classmethod
    def exclude_bias_and_norm(cls, regularizer: RegularizerLike) -> Self:
        """Return the rules commonly used for weight decay: the regularizer for all but biases, normalisations, vectors.

        If it is left without a tensor, `assign` raises a ValueError, as for any rule.

        >>> Rules.exclude_bias_and_norm(HalvedL2(0.1))
        Rules([(BIAS, None), (NORMALIZATION, None), (VECTORS, None), ('*', HalvedL2(l2=0.1))])
        """
        return cls([(BIAS, None), (NORMALIZATION, None), (VECTORS, None), ("*", regularizer)])

    def assign(self, named: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> list[Assignment]:
        """Return what each tensor gets, in the order given.

        Parameters
        ----------
        named
            Names and arrays. Arrays are only looked at by `VECTORS` and predicates.

        Raises
        ------
        ValueError
            If no rule matches a tensor and there is no default; or, when strict, if a rule wins no tensor. The
            message names every such tensor and rule, and what took the tensors that the rule matches.
        TypeError
            If a name is no string, or a predicate returns something else than a bool. An error that a predicate
            raises is passed on, with a note that names the rule and the tensor.

        Examples
        --------
        >>> Rules({"*": L1(0.1), "fc.*": None}).assign([("fc.weight", None)])
        Traceback (most recent call last):
            ...
        ValueError: rules[1] (fc.*) wins no tensor: what it matches is taken by rules[0] (*)
        """
        tensors = [_tensor(item) for item in (named.items() if isinstance(named, Mapping) else named)]
        texts = [_text(pattern) for pattern, _ in self.rules]
        matchers = [_matcher(pattern, self._rule_name(index)) for index, (pattern, _) in enumerate(self.rules)]
        winners = [
            next((index for index, matches in enumerate(matchers) if matches(name, array)), None)
            for name, array in tensors
        ]
        problems = [] if self.default is not NO_DEFAULT else _unmatched(tensors, winners)
        if self.strict:
            won = set(winners)
            for index, (pattern, _) in enumerate(self.rules):
                if index not in won and not isinstance(pattern, Ready):
                    problems.append(self._why_it_wins_none(index, matchers[index], tensors, winners))
        if problems:
            raise ValueError("\n".join(problems))
        default = None if isinstance(self.default, NoDefault) else self.default
        return [
            Assignment(default, None, "default")
            if index is None
            else Assignment(self.rules[index][1], index, texts[index])
            for index in winners
        ]

    def _rule_name(self, index: int) -> str:
        return f"rules[{index}] ({_text(self.rules[index][0])})"

    def _why_it_wins_none(
        self, index: int, matches: "_Matcher", tensors: list[tuple[str, Any]], winners: list[int | None]
    ) -> str:
        """Return in words whether a rule that wins no tensor matches none, or which rules take what it matches."""
        takers = set()
        for (name, array), winner in zip(tensors, winners, strict=True):
            # Earlier rules may keep from a predicate what it cannot judge; what it fails on then it does not match.
            try:
                if winner is not None and winner < index and matches(name, array):
                    takers.add(winner)
            except Exception:
                continue
        if not takers:
            return f"{self._rule_name(index)} wins no tensor: it matches none of {len(tensors)} tensors"
        by = ", ".join(self._rule_name(taker) for taker in sorted(takers))
        return f"{self._rule_name(index)} wins no tensor: what it matches is taken by {by}"

    def __repr__(self) -> str:
        default = "" if self.default is NO_DEFAULT else f", default={self.default!r}"
        return f"Rules({list(self.rules)!r}{default}{'' if self.strict else ', strict=False'})"

    # Configuration and files

    def get_config(self) -> dict[str, Any]:
        """Return the rules as dictionaries, lists, strings and numbers, which JSON and TOML can write.

        Raises
        ------
        TypeError
            If a rule has a predicate, or a regularizer other than L1, L2, L1L2 and HalvedL2.

        Examples
        --------
        >>> Rules([("*.bias", None)], default=L1L2(0.1, 0.2)).get_config()
        {'strict': True, 'default': {'l1': 0.1, 'l2': 0.2}, 'rules': [{'match': '*.bias', 'penalty': 'none'}]}
        """
        config: dict[str, Any] = {"strict": self.strict}
        if not isinstance(self.default, NoDefault):
            config["default"] = _penalty_config("default", self.default)
        config["rules"] = [
            {
                **_pattern_config(self._rule_name(index), pattern),
                "penalty": _penalty_config(self._rule_name(index), regularizer),
            }
            for index, (pattern, regularizer) in enumerate(self.rules)
        ]
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the rules that `get_config` described, or that a file holds; the head of this module has the format.

        Raises
        ------
        TypeError
            If something is of another type.
        ValueError
            If a key is unknown or missing, or a value is none of those allowed.

        Examples
        --------
        >>> Rules.from_config({"rules": [{"regex": "^head", "penalty": {"l1": 0.1}}], "default": "none"})
        Rules([(re.compile('^head'), L1(l1=0.1))], default=None)
        """
        _table("the configuration", config, {"strict", "default", "rules"})
        rules = config.get("rules", [])
        if not isinstance(rules, list | tuple):
            raise TypeError(f"rules must be a list, not {_shown(rules)}")
        return cls(
            [_rule_of_config(f"rules[{index}]", rule) for index, rule in enumerate(rules)],
            default=_penalty_of_config(config["default"]) if "default" in config else NO_DEFAULT,
            strict=config.get("strict", True),
        )

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Self:
        """Read rules from a TOML or JSON file, told by its suffix; the head of this module has the format.

        Raises
        ------
        TypeError, ValueError
            As for `from_config`, and ValueError if the file is no TOML or JSON. The message begins with the path.
        OSError
            If the file cannot be read.
        """
        from pathlib import Path  # noqa: PLC0415 - for files alone

        suffix = Path(path).suffix.lower()
        if suffix not in (".toml", ".json"):
            raise ValueError(f"{path}: rules are read from a file that ends in .toml or .json")
        content = Path(path).read_bytes()
        try:
            return cls.from_config(_parsed(content, toml=suffix == ".toml"))
        except TypeError as error:
            raise TypeError(f"{path}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


# Patterns ------------------------------------------------------------------------------------------------------------

_Matcher: TypeAlias = Callable[[str, Any], bool]


def _rule(index: int, pair: Any) -> tuple[Pattern, Regularizer | None]:
    """Return a rule, or raise if it is none."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"rules[{index}] must be a pair of a pattern and a regularizer, not {_shown(pair)}")
    pattern, regularizer = pair
    where = f"rules[{index}]"
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, bytes):
        raise TypeError(f"{where}: a regular expression must be of str, not of bytes: {_shown(pattern)}")
    # Regularizers and classes can be called, but not with a name and an array: that is a slip.
    is_predicate = callable(pattern) and not isinstance(pattern, Regularizer | type)
    if not (isinstance(pattern, str | re.Pattern) or is_predicate):
        raise TypeError(
            f"{where}: a pattern must be a string, a compiled regular expression, a ready-made pattern or a function "
            f"of name and array, not {_shown(pattern)}"
        )
    return pattern, _regularizer(f"{where} ({_text(pattern)})", regularizer)


def _text(pattern: Pattern) -> str:
    """Return a pattern in words."""
    if isinstance(pattern, str):
        return pattern
    if isinstance(pattern, re.Pattern):
        return f"regex {pattern.pattern}"
    if isinstance(pattern, Ready):
        return f"ready-made {pattern.value}"
    return f"predicate {getattr(pattern, '__name__', None) or _shown(pattern)}"


def _matcher(pattern: Pattern, where: str) -> _Matcher:
    """Return a pattern as a function of name and array."""
    if isinstance(pattern, str | re.Pattern):
        # As fnmatchcase does, but it forgets compiled patterns where there are many.
        search = re.compile(fnmatch.translate(pattern)).match if isinstance(pattern, str) else pattern.search
        return lambda name, _: search(name) is not None

    def checked(name: str, array: Any) -> bool:
        try:
            matched: object = pattern(name, array)
        except Exception as error:
            error.add_note(f"raised by {where} on the tensor {name!r}")
            raise
        if not isinstance(matched, bool | np.bool_):
            raise TypeError(f"{where} must return a bool, but on the tensor {name!r} returned {_shown(matched)}")
        return bool(matched)

    return checked


def _tensor(item: Any) -> tuple[str, Any]:
    """Return a pair of name and array, or raise if it is none."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"expected pairs of a name and an array, not {_shown(item)}")
    name, array = item
    if not isinstance(name, str):
        raise TypeError(f"a tensor's name must be a string, not {_shown(name)}")
    return name, array


def _unmatched(tensors: list[tuple[str, Any]], winners: list[int | None]) -> list[str]:
    """Return in words which tensors no rule matches, if there are any."""
    names = [name for (name, _), winner in zip(tensors, winners, strict=True) if winner is None]
    if not names:
        return []
    listed = names if len(names) <= _LISTED else [*names[:_FIRST], f"and {len(names) - _FIRST} more"]
    return [f"no rule matches {len(names)} of {len(tensors)} tensors, and there is no default: {', '.join(listed)}"]


def _shown(given: object) -> str:
    """Return what was given, and its type where that is no plain value."""
    if isinstance(given, type):
        return f"the class {given.__name__}"
    kind = type(given)
    if given is None or kind in (str, int, float, bool):
        return repr(given)
    text = repr(given)
    return f"a {kind.__name__}: {text}" if len(text) <= 80 and "\n" not in text else f"a {kind.__name__}"


# Configurations ------------------------------------------------------------------------------------------------------


def _regularizer(where: str, given: Any) -> Regularizer | None:
    """Return a regularizer that may be given by its configuration."""
    if given is None or isinstance(given, Regularizer):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{where}: expected a regularizer, its configuration such as {{'l2': 0.0001}}, or None, not {_shown(given)}"
        )
    if None in given.values():  # for a regularizer that is its own default, but nobody writes that into a file
        raise ValueError(f"{where}: a coefficient must be a number, not None: {dict(given)}")
    try:
        match sorted(given, key=str):
            case ["l1"]:
                return L1(given["l1"])
            case ["l2"]:
                return L2(given["l2"])
            case ["l1", "l2"]:
                return L1L2(given["l1"], given["l2"])
            case ["halved_l2"]:
                return HalvedL2(given["halved_l2"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    raise ValueError(f"{where}: a penalty has l1, l2, l1 and l2, or halved_l2, not {dict(given)}")


def _penalty_config(where: str, regularizer: Regularizer | None) -> str | dict[str, float]:
    """Return a regularizer's configuration, which tells its class by its names."""
    if regularizer is None:
        return "none"  # TOML has no null
    if type(regularizer) is HalvedL2:
        return {"halved_l2": regularizer.l2}
    if type(regularizer) in (L1, L2, L1L2):
        return regularizer.get_config()
    raise TypeError(f"{where}: only L1, L2, L1L2 and HalvedL2 have a configuration here, not {_shown(regularizer)}")


def _penalty_of_config(given: Any) -> Any:
    return None if given == "none" else given


def _pattern_config(where: str, pattern: Pattern) -> dict[str, str]:
    """Return a pattern's configuration."""
    if isinstance(pattern, str):
        return {"match": pattern}
    if isinstance(pattern, Ready):
        return {"ready": pattern.value}
    if isinstance(pattern, re.Pattern):
        flags = "".join(flag for flag in _REGEX_FLAGS if pattern.flags & re.RegexFlag[flag.upper()])
        return {"regex": pattern.pattern, **({"flags": flags} if flags else {})}
    raise TypeError(f"{where}: a predicate has no configuration")


def _rule_of_config(where: str, rule: Any) -> tuple[Pattern, Any]:
    """Return the pair that a configuration of a rule describes."""
    _table(where, rule, {"match", "regex", "flags", "ready", "penalty"})
    kinds = [kind for kind in ("match", "regex", "ready") if kind in rule]
    if len(kinds) != 1:
        raise ValueError(f"{where} must have one of match, regex and ready, not {' and '.join(kinds) or 'none'}")
    if "penalty" not in rule:
        raise ValueError(f'{where} has no penalty; "none" says that what it matches is not penalised')
    if "flags" in rule and kinds != ["regex"]:
        raise ValueError(f"{where} has flags, but they are only for a regex")
    for key in (*kinds, "flags"):
        if not isinstance(rule.get(key, ""), str):
            raise TypeError(f"{where}: {key} must be a string, not {_shown(rule[key])}")
    penalty = _penalty_of_config(rule["penalty"])
    match kinds:
        case ["match"]:
            return rule["match"], penalty
        case ["ready"]:
            if rule["ready"] not in {ready.value for ready in Ready}:
                names = ", ".join(ready.value for ready in Ready)
                raise ValueError(f"{where}: ready must be one of {names}, not {rule['ready']!r}")
            return Ready(rule["ready"]), penalty
    return _regex(where, rule["regex"], rule.get("flags", "")), penalty


def _regex(where: str, text: str, letters: str) -> re.Pattern[str]:
    """Compile a regular expression of a configuration."""
    unknown = sorted(set(letters) - set(_REGEX_FLAGS))
    if unknown:
        raise ValueError(f"{where}: flags must be of the letters {_REGEX_FLAGS}, not {letters!r}")
    flags = re.NOFLAG
    for letter in letters:
        flags |= re.RegexFlag[letter.upper()]
    try:
        return re.compile(text, flags)
    except (re.error, ValueError) as error:
        raise ValueError(f"{where}: regex {text!r}: {error}") from error


def _table(where: str, given: Any, keys: set[str]) -> None:
    """Raise if what was given is no table, or has a key that is not known."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{where} must be a table, not {_shown(given)}")
    unknown = sorted({str(key) for key in given if key not in keys})
    if unknown:
        raise ValueError(f"{where} has the unknown key {', '.join(unknown)}; known are {', '.join(sorted(keys))}")


def _parsed(content: bytes, *, toml: bool) -> Any:
    """Return what a file holds; both parsers raise a ValueError."""
    if toml:
        import tomllib  # noqa: PLC0415 - likewise

        return tomllib.loads(content.decode())
    import json  # noqa: PLC0415 - likewise

    return json.loads(content, object_pairs_hook=_without_twins)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, or raise if a key stands twice, of which JSON would keep the last, silently."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError(f"a key stands twice in an object with the keys {', '.join(key for key, _ in pairs)}")
    return table
