"""The penalty of a whole model: named weights under rules, in one pass over all of them."""

import itertools
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gpureg import libraries
from gpureg.arithmetic import Coefficients
from gpureg.dispatch import Tensors, dtype_name, library_of, memory_of
from gpureg.named import Named, look_up
from gpureg.regularizers import Regularizer
from gpureg.rules import Rules

Scope = str | re.Pattern[str] | None
Strength = Any
"""A number, a 0-d array of the weights' library, or a function of the step."""

_KEPT = 8
"""Selections of tensors whose plans are kept: scopes, and sets of gradients that are there."""


class _Verdict(NamedTuple):
    """What a tensor is penalised by, if it is, and what decided; a tied one's weights count under another name."""

    regularizer: Regularizer | None
    reason: str
    counts: bool = True


class Row(NamedTuple):
    """What `Penalty.explain` says of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rule: str
    """What decided: the rule's pattern, `default`, or why the tensor does not count."""
    l1: float
    """What multiplies `sum|w|`."""
    l2: float
    """What multiplies `sum w*w`; half of what `HalvedL2` was given."""
    share: float
    """The tensor's part of all weights, by number."""


class Explanation(tuple[Row, ...]):
    """The rows of `Penalty.explain`; as a string, a table."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return a table with a line for each tensor."""
        head = ("name", "shape", "dtype", "rule", "l1", "l2", "share")
        body = [
            (
                row.name,
                "x".join(map(str, row.shape)) or "scalar",
                row.dtype,
                row.rule,
                f"{row.l1:.4g}" if row.l1 else "-",
                f"{row.l2:.4g}" if row.l2 else "-",
                f"{row.share:.1%}",
            )
            for row in self
        ]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        aligned = (str.ljust,) * 4 + (str.rjust,) * 3
        lines = [
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)).rstrip()
            for line in (head, *body)
        ]
        return "\n".join(lines)


class Penalty:
    """The penalty of a model's weights: each tensor under the rule that matches it, all of them in one pass.

    The total is `sum(reg(w))` over the tensors that a rule penalises, each penalty in float64, added by a tree in the
    order given and rounded once: to float64 if any of these weights are float64, else to float32.

    Parameters
    ----------
    weights
        A mapping of names to arrays, or an iterable of (name, array). Nested mappings are flattened, their names joined
        by `/`. The arrays that are penalised are of one library and device, of any of its dtypes.
    rules
        `Rules`, or what makes them: a regularizer for all, a dictionary, or pairs of a pattern and a regularizer.
    scope
        Only tensors whose names match, from the start on, are looked at beyond the rules: a prefix or a regular
        expression, as `re.match` takes it and TensorFlow's collections do.
    tied
        What to do with weights that are there under two names: "once" counts them under the first, "each" under both.

    Raises
    ------
    TypeError
        If a penalised array is none of a known library, or of another dtype or library; if a name is no string.
    ValueError
        If a name comes twice; if rules match nothing, or no rule matches a tensor; if arrays are on different devices;
        if tied weights have different regularizers.

    Notes
    -----
    Weights are never copied. What is written into them in place is seen. An array that is replaced in its mapping, and
    a name that comes or goes, is noticed at the next call. Arrays given as pairs are those that count, whatever becomes
    of the model. Arrays are known by identity: after other memory was put under the same array object, call `refresh`.

    Calls from several threads take turns.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> weights = {"fc": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}}
    >>> penalty = gpureg.Penalty(weights, {"*/bias": None, "*": gpureg.L2(0.5)})
    >>> penalty()
    np.float32(3.0)
    >>> grads = {"fc/kernel": np.zeros((2, 3), np.float32)}
    >>> penalty.accumulate_grad(grads)
    np.float32(3.0)
    >>> grads["fc/kernel"][0]
    array([1., 1., 1.], dtype=float32)
    >>> print(penalty.explain())
    name       shape  dtype    rule    l1   l2  share
    fc/kernel  2x3    float32  *        -  0.5  66.7%
    fc/bias    3      float32  */bias   -    -  33.3%
    """

    _of_nothing: Any = None
    """An array whose library the penalty of no weights at all is of; None for NumPy."""

    def __init__(
        self,
        weights: Mapping[str, Any] | Iterable[tuple[str, Any]],
        rules: Any,
        *,
        scope: Scope = None,
        tied: str = "once",
    ) -> None:
        if tied not in {"once", "each"}:
            raise ValueError(f"tied must be 'once' or 'each', not {tied!r}")
        self._weights = weights
        self._rules = Rules.of(rules)
        self._scope = scope
        self._tied = tied
        self._strength: Strength = 1.0
        self._lock = threading.RLock()
        self.step: int = 0
        """How many times gradients were accumulated: what a strength that is a function is given."""
        self.refresh()

    def __repr__(self) -> str:
        """Return how many tensors are penalised, and by which rules."""
        return (
            f"<{type(self).__name__} of {len(self._all.names)} of {len(self._named.pairs)} tensors by {self._rules!r}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from: with the weights, and without plans and the lock."""
        return {name: vars(self)[name] for name in ("_weights", "_rules", "_scope", "_tied", "_strength", "step")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy, whose weights are looked at anew."""
        vars(self).update(state, _lock=threading.RLock())
        self.refresh()

    def __call__(self, scope: Scope = None) -> Any:
        """Return the total, 0-d, of the weights' library and where they live; of those in a scope, if one is given.

        Where nothing is penalised it is 0.
        """
        if scope is None and libraries.compiling():  # which can take no lock, nor look at the weights anew
            return self._all.total(self._factor(self._all))
        with self._lock:
            tensors = self._select(scope)
            return tensors.total(self._factor(tensors))

    def losses(self, scope: Scope = None) -> dict[str, Any]:
        """Return the penalty of each penalised tensor by name, 0-d.

        Each has the bits of `reg(w)` with the strength as a factor: float64 for float64 weights, else float32.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> gpureg.Penalty({"a": np.ones(2), "b": np.ones(3)}, gpureg.L1(0.5)).losses()
        {'a': np.float64(1.0), 'b': np.float64(1.5)}
        """
        with self._lock:
            tensors = self._select(scope)
            values = tensors.value(strength=self._factor(tensors))
            each, rounded, own = values.each, values.rounded, tensors.library.own
            return {
                name: own(each[i] if width == 8 else rounded[i])
                for i, (name, width) in enumerate(zip(tensors.names, tensors.itemsizes, strict=True))
            }

    def norms(self, scope: Scope = None) -> dict[str, tuple[Any, Any]]:
        """Return `sum|w|` and `sum w*w` of each penalised tensor by name, 0-d float64, whatever its coefficients.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> gpureg.Penalty({"a": np.array([3.0, -4.0])}, gpureg.L1(0.5)).norms()
        {'a': (np.float64(7.0), np.float64(25.0))}
        """
        with self._lock:
            tensors = self._select(scope)
            sums, own = tensors.value(strength=1.0, sums=True).sums, tensors.library.own
            return {name: (own(sums[i, 0]), own(sums[i, 1])) for i, name in enumerate(tensors.names)}

    def grads(self, out: Any = None, *, scale: Any = None) -> dict[str, Any]:
        """Return the gradient of the total at each penalised tensor, by name.

        Parameters
        ----------
        out
            Where to write them: arrays by name, as for `accumulate_grad`. By default new arrays.
        scale
            A factor over the gradients: a number, or a 0-d array where the weights live, read there.
        """
        with self._lock:
            tensors = self._select(None)
            factors = {"strength": self._factor(tensors), "upstream": _scale(tensors, scale)}
            return dict(zip(tensors.names, tensors.gradient(_outs(tensors, out), **factors), strict=True))

    def value_and_grads(self, out: Any = None, *, scale: Any = None) -> tuple[Any, dict[str, Any]]:
        """Return the total, and what `grads` returns, in one pass."""
        with self._lock:
            tensors = self._select(None)
            factors = {"strength": self._factor(tensors), "upstream": _scale(tensors, scale)}
            total, gradients = tensors.value_and_gradient(_outs(tensors, out), **factors)
            return total, dict(zip(tensors.names, gradients, strict=True))

    def accumulate_grad(self, grads: Any, scale: Any = None) -> Any:
        """Add the gradient of the total to gradients, in place, and return the total: one pass, no temporary.

        Parameters
        ----------
        grads
            Gradients by name: a mapping, nested as the weights or not, or pairs. Each has its weights' shape, library
            and device, their dtype or float32, and any strides. None leaves its tensor out, penalty and all. Names of
            what is not penalised may be there.
        scale
            A factor over the gradients alone, such as a loss scale: a number, or a 0-d array where the weights live,
            read there without waiting for it.

        Raises
        ------
        TypeError
            If a gradient is of another library or dtype.
        ValueError
            If the gradient of a penalised tensor is missing, has another shape or device, is read-only, or shares
            memory with weights or another gradient. Where one is refused, all are left as they were.
        """
        with self._lock:
            self._keep_current()
            found = look_up(grads, self._all.names, "grads")
            tensors = self._all
            types = tensors.unknown(found)
            if tensors.any_missing(types):
                there = tuple(gradient is not None for gradient in found)
                tensors, found = self._part(there), list(itertools.compress(found, there))
                types = tensors.unknown(found)
            factors = {"strength": self._factor(tensors), "upstream": _scale(tensors, scale)}
            total = tensors.accumulate(found, types=types, **factors)
            self.step += 1
            return total

    def set_strength(self, strength: Strength) -> None:
        """Set a factor over all coefficients; at first it is 1.

        Parameters
        ----------
        strength
            A number; a 0-d array of the weights' library where they live, float32 or float64, read there by each pass,
            so that it may be changed without a word; or a function that is given `step` and returns a number.

        Raises
        ------
        TypeError
            If it is none of these.
        ValueError
            If it is a number that is negative or not finite.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> penalty = gpureg.Penalty({"a": np.ones(2)}, gpureg.L1(0.5))
        >>> penalty.set_strength(lambda step: min(1.0, step / 1000))
        >>> penalty.step = 500
        >>> penalty()
        np.float64(0.5)
        """
        with self._lock:
            before, self._strength = self._strength, strength
            try:
                if not callable(strength):
                    self._factor(self._all)
            except BaseException:
                self._strength = before
                raise

    def explain(self) -> Explanation:
        """Return a row for each tensor: what it is, which rule decided, and its coefficients, but for the strength."""
        with self._lock:
            self._keep_current()
            return self._explanation

    def refresh(self) -> None:
        """Look at all weights anew: at the arrays by name, at the rules, and at where each array lies."""
        with self._lock:
            named = self._read()
            verdicts = self._verdicts(named.pairs)
            leaves = [
                (name, array, _coefficients(name, verdict.regularizer))
                for (name, array), verdict in zip(named.pairs, verdicts, strict=True)
                if verdict.regularizer is not None
            ]
            like = next((array for _, array in named.pairs if library_of(array) is not None), self._of_nothing)
            tensors = _tensors(leaves, like)
            self._named, self._leaves, self._like = named, leaves, like
            self._all = tensors
            self._parts: dict[tuple[tuple[bool, ...], str], Tensors] = {}
            self._scopes: dict[Scope, tuple[bool, ...]] = {}
            self._explanation = _explain(named.pairs, verdicts)

    def _read(self) -> Named:
        """Return the weights by name, as they are now."""
        named = Named(self._weights, "weights")
        if not isinstance(self._weights, Mapping):
            self._weights = named.pairs  # an iterator has no more to give
        return named

    def _exemption(self, array: Any) -> str | None:  # noqa: ARG002
        """Return why an array is not penalised, whatever the rules say."""
        return None

    def _verdicts(self, pairs: Sequence[tuple[str, Any]]) -> list[_Verdict]:
        """Return what decides for each tensor, and how."""
        scope = _matcher(self._scope)
        verdicts: list[_Verdict] = []
        first_of: dict[Any, tuple[str, Any]] = {}
        for (name, array), assignment in zip(pairs, self._rules.assign(pairs), strict=True):
            if not scope(name):
                verdicts.append(_Verdict(None, "outside the scope"))
                continue
            if exemption := self._exemption(array):
                verdicts.append(_Verdict(None, exemption))
                continue
            verdict = _Verdict(assignment.regularizer, assignment.pattern)
            key = memory_of(array) if self._tied == "once" else None
            if key is not None:
                first, regularizer = first_of.setdefault(key, (name, assignment.regularizer))
                if regularizer != assignment.regularizer:
                    raise ValueError(
                        f"weights[{first!r}] and weights[{name!r}] are one and the same, but the rules give "
                        f"{regularizer} and {assignment.regularizer}; give both the same, or tied='each'"
                    )
                if first != name:
                    verdict = _Verdict(None, f"tied to {first}", counts=False)
            verdicts.append(verdict)
        return verdicts

    def _keep_current(self) -> None:
        if not (self._named.is_current() and self._all.is_current()):
            self.refresh()

    def _select(self, scope: Scope) -> Tensors:
        """Return the penalised tensors, those of a scope if one is given."""
        self._keep_current()
        if scope is None:
            return self._all
        matches = _matcher(scope)
        if scope not in self._scopes:
            _make_room(self._scopes)
            self._scopes[scope] = tuple(matches(name) for name in self._all.names)
        return self._part(self._scopes[scope])

    def _part(self, chosen: tuple[bool, ...], term: str = "both") -> Tensors:
        """Return some of the penalised tensors, planned once while they are asked for again and again.

        Of one term alone, "l1" or "l2", these are the tensors that have it.
        """
        if all(chosen) and term == "both":
            return self._all
        if (chosen, term) not in self._parts:
            _make_room(self._parts)
            leaves = itertools.compress(self._leaves, chosen)
            self._parts[chosen, term] = _tensors(list(_of_term(leaves, term)), self._like)
        return self._parts[chosen, term]

    def _factor(self, tensors: Tensors) -> Any:
        """Return the strength as it is now."""
        strength = self._strength(self.step) if callable(self._strength) else self._strength
        factor = tensors.factor(strength, "strength")
        if isinstance(factor, float) and not 0 <= factor < math.inf:
            raise ValueError(f"strength must be a finite number that is not negative, not {strength!r}")
        return factor


_Leaf = tuple[str, Any, Coefficients]


def _tensors(leaves: Sequence[_Leaf], like: Any) -> Tensors:
    return Tensors([(name, array) for name, array, _ in leaves], [own for _, _, own in leaves], like)


def _of_term(leaves: Iterable[_Leaf], term: str) -> Iterator[_Leaf]:
    """Yield the tensors that a term penalises, with its coefficients alone."""
    for name, array, own in leaves:
        kept = {"both": own, "l1": Coefficients(own.l1, 0.0, 0.0), "l2": own._replace(l1=0.0)}[term]
        if term == "both" or any(kept):
            yield name, array, kept


def _coefficients(name: str, regularizer: Regularizer) -> Coefficients:
    try:
        return regularizer.coefficients
    except TypeError as error:  # a penalty of another kind is not what one pass can compute
        raise TypeError(f"weights[{name!r}]: {error}") from None


def _make_room(kept: dict[Any, Any]) -> None:
    """Forget the oldest of what is kept, if there is no room for more."""
    if len(kept) >= _KEPT:
        del kept[next(iter(kept))]


def _matcher(scope: Scope) -> Callable[[str], bool]:
    """Return whether a name is in a scope, as TensorFlow's collections have it."""
    if scope is None:
        return lambda _: True
    try:
        pattern = re.compile(scope)
        pattern.match("")
    except (re.error, TypeError) as error:
        raise ValueError(f"scope must be the start of a name or a regular expression, not {scope!r}: {error}") from None
    return lambda name: pattern.match(name) is not None


def _scale(tensors: Tensors, scale: Any) -> Any:
    return 1.0 if scale is None else tensors.factor(scale, "scale")


def _outs(tensors: Tensors, out: Any) -> list[Any] | None:
    """Return where gradients go: to the arrays given by name, or None for new ones."""
    if out is None:
        return None
    outs = look_up(out, tensors.names, "out")
    for name, each in zip(tensors.names, outs, strict=True):
        if each is None:
            raise TypeError(f"out[{name!r}] is None; expected an array to write to")
    return outs


def _explain(pairs: Sequence[tuple[str, Any]], verdicts: Sequence[_Verdict]) -> Explanation:
    shapes = [tuple(getattr(array, "shape", ())) for _, array in pairs]
    sizes = [math.prod(shape) * verdict.counts for shape, verdict in zip(shapes, verdicts, strict=True)]
    total = max(sum(sizes), 1)
    rows = []
    for (name, array), shape, size, verdict in zip(pairs, shapes, sizes, verdicts, strict=True):
        own = verdict.regularizer.coefficients if verdict.regularizer else Coefficients(0.0, 0.0, 0.0)
        rows.append(Row(name, shape, dtype_name(array), verdict.reason, own.l1, own.l2, size / total))
    return Explanation(rows)
