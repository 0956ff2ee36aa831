"""The differences between the tensors of two checkpoints: both read side by side, piece by piece."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from gpureg import backends
from gpureg.reporting.measuring import Look, measure
from gpureg.reporting.rows import Assignments, assign, build, sum_of
from gpureg.reporting.tensors import Tensor
from gpureg.statistics import Statistics, join

PIECE = 2**18
"""Elements whose differences are formed at a time: whole tiles of every dtype, and a few MiB of float64."""


@dataclass(frozen=True)
class Changes:
    """How elements of B differ from those of A, all in float64."""

    size: int
    """The number of elements."""
    changed: int
    """How many differ. A NaN differs from a number, and not from a NaN."""
    l1: float
    """`sum|b - a|`; NaN if a NaN differs."""
    relative_l1: float
    """That over `sum|a|`: 0.0 where nothing differs, infinite where A is all zero."""
    l2: float
    """`sqrt(sum (b - a)**2)`; NaN if a NaN differs."""
    relative_l2: float
    """That over `sqrt(sum a*a)`, likewise."""
    largest: float
    """The largest |b - a| of those that are not NaN."""
    penalty_a: float | None
    """The penalty in A, not rounded as that of a report is; None where nothing is penalised."""
    penalty_b: float | None
    penalty_change: float | None
    """By how much B's is larger."""


@dataclass(frozen=True)
class Change(Changes):
    """How one tensor differs."""

    name: str
    shape: tuple[int, ...]
    dtype_a: str
    dtype_b: str

    @property
    def same(self) -> bool:
        """Whether nothing differs, the dtype neither."""
        return not self.changed and self.dtype_a == self.dtype_b

    def to_dict(self) -> dict[str, Any]:
        """Return this as a dictionary of plain values, the name first."""
        own = {"name": self.name, "shape": list(self.shape), "dtype_a": self.dtype_a, "dtype_b": self.dtype_b}
        return own | {name: value for name, value in asdict(self).items() if name not in own}


@dataclass(frozen=True)
class Mismatch:
    """A tensor that has another shape in B, or that is of floats in one of the two alone."""

    name: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype_a: str
    dtype_b: str

    def to_dict(self) -> dict[str, Any]:
        """Return this as a dictionary of plain values."""
        return asdict(self) | {"shape_a": list(self.shape_a), "shape_b": list(self.shape_b)}


class Difference(Sequence[Change]):
    """The tensors that A and B have in common, in A's order, and how they differ.

    Attributes
    ----------
    total : Changes
        All of these together; those that share their memory in A and in B count once. The penalties are those of the
        whole of A and of the whole of B.
    added, removed : tuple of str
        The tensors that only B has, and only A.
    reshaped : tuple of Mismatch
        Those whose elements cannot be compared, as shape or kind differ.
    not_compared : tuple of str
        Those that are not of floats, and have the same shape and dtype in both: their elements are not read.
    """

    def __init__(
        self,
        changes: Sequence[Change],
        total: Changes,
        added: Sequence[str],
        removed: Sequence[str],
        reshaped: Sequence[Mismatch],
        not_compared: Sequence[str],
    ) -> None:
        self._changes, self.total = tuple(changes), total
        self.added, self.removed = tuple(added), tuple(removed)
        self.reshaped, self.not_compared = tuple(reshaped), tuple(not_compared)

    @overload
    def __getitem__(self, index: int) -> Change: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...

    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        return self._changes[index]

    def __len__(self) -> int:
        return len(self._changes)

    def __repr__(self) -> str:
        changed = sum(not change.same for change in self)
        listed = f"{len(self.added)} added, {len(self.removed)} removed, {len(self.reshaped)} reshaped"
        return f"<Difference: {changed} of {len(self)} common tensors changed, {listed}>"

    @property
    def same(self) -> bool:
        """Whether nothing differs: the same names, shapes and dtypes, and of floats the same elements.

        Of the tensors in `not_compared` only shape and dtype are known to be the same.
        """
        return not (self.added or self.removed or self.reshaped) and all(change.same for change in self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries of plain values.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> content = gpureg.diff({"w": np.zeros(2)}, {"w": np.ones(2)}).to_dict()
        >>> list(content), content["tensors"][0]["l1"]
        (['same', 'tensors', 'added', 'removed', 'reshaped', 'not_compared', 'total'], 2.0)
        """
        return {
            "same": self.same,
            "tensors": [change.to_dict() for change in self],
            "added": list(self.added),
            "removed": list(self.removed),
            "reshaped": [each.to_dict() for each in self.reshaped],
            "not_compared": list(self.not_compared),
            "total": asdict(self.total),
        }


def compare(a: Sequence[Tensor], b: Sequence[Tensor], rules: Any, look: Look | None = None) -> Difference:
    """Return how the tensors of B differ from those of A."""
    of_a, of_b = ({tensor.name: tensor for tensor in tensors} for tensors in (a, b))
    common = [(tensor, of_b[tensor.name]) for tensor in a if tensor.name in of_b]
    pairs = [(one, other) for one, other in common if one.floating and other.floating and one.shape == other.shape]
    paired = {one.name for one, _ in pairs}
    apart = [(one, other) for one, other in common if one.name not in paired]
    alike = [one.name for one, other in apart if (one.shape, one.dtype) == (other.shape, other.dtype)]

    said_of_a, said_of_b = _assign(a, b, paired, rules)
    found = {one.name: _differences(one, other, look) for one, other in pairs}
    losses_a = _losses(a, {name: each[0] for name, each in found.items()}, said_of_a, look)
    losses_b = _losses(b, {name: each[1] for name, each in found.items()}, said_of_b, look)
    changes = [
        Change(
            name=one.name,
            shape=one.shape,
            dtype_a=one.dtype,
            dtype_b=other.dtype,
            **_figures(found[one.name][2], found[one.name][0]),
            **_moved(losses_a.get(one.name), losses_b.get(one.name)),
        )
        for one, other in pairs
    ]
    counted = [found[one.name] for one in _untied(pairs)]
    together = _figures(join([each[2] for each in counted]), join([each[0] for each in counted]))
    penalties = (None, None) if rules is None else (sum_of(losses_a.values()), sum_of(losses_b.values()))
    return Difference(
        changes,
        Changes(**together, **_moved(*penalties)),
        added=[name for name in of_b if name not in of_a],
        removed=[name for name in of_a if name not in of_b],
        reshaped=[
            Mismatch(one.name, one.shape, other.shape, one.dtype, other.dtype)
            for one, other in apart
            if one.name not in alike
        ],
        not_compared=alike,
    )


def _assign(
    a: Sequence[Tensor], b: Sequence[Tensor], paired: set[str], rules: Any
) -> tuple[Assignments | None, Assignments | None]:
    """Return what rules say of each tensor of A and of B, asked at once, as a rule may be for one that A or B lacks."""
    others = [tensor for tensor in b if tensor.name not in paired]
    assignments = assign([*a, *others], rules)
    if assignments is None:
        return None, None
    said = {tensor.name: each for tensor, each in zip(a, assignments, strict=False)}
    said |= {tensor.name: each for tensor, each in zip(others, assignments[len(a) :], strict=True)}
    return assignments[: len(a)], [said[tensor.name] for tensor in b]


def _untied(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return the tensors of A in pairs, the first of each that are the same memory in A and the same in B."""
    firsts: dict[Any, Tensor] = {}
    for one, other in pairs:
        memory = one.memory(), other.memory()
        firsts.setdefault(one.name if None in memory else memory, one)
    return list(firsts.values())


def _losses(
    tensors: Sequence[Tensor], known: dict[str, Statistics], assignments: Assignments | None, look: Look | None
) -> dict[str, float]:
    """Return the penalties of tensors by name. Only for these are those read whose statistics are not yet known."""
    if assignments is None:
        return {}
    others = [tensor for tensor in tensors if tensor.name not in known]
    measured = {tensor.name: each for tensor, each in zip(others, measure(others, 0.0, look), strict=True)}
    statistics = measured | known
    return build(tensors, [statistics[tensor.name] for tensor in tensors], assignments).losses()


def _differences(a: Tensor, b: Tensor, look: Look | None) -> tuple[Statistics, Statistics, Statistics]:
    """Return the statistics of A, of B, and of B - A."""
    one, other = a.on_host(), b.on_host()
    order = one.order if other.array is not None else other.order
    cpu = backends.cpu()
    found: list[list[Statistics]] = []
    for ours, theirs in zip(one.pieces(PIECE, order), other.pieces(PIECE, order), strict=True):
        found.append(cpu.statistics([ours, theirs, _subtracted(theirs, ours)], 0.0))
        if look is not None:
            look(a, ours)
            look(b, theirs)
    of_a, of_b, differences = (join([each[i] for each in found]) for i in range(3))
    # The sums of what was read along other axes than its own are in another order than a report has them in.
    if not one.follows(order):
        of_a = _measured(a)
    if not other.follows(order):
        of_b = _measured(b)
    return of_a, of_b, differences


def _measured(tensor: Tensor) -> Statistics:
    (statistics,) = measure([tensor], 0.0)
    assert statistics is not None  # it is of floats
    return statistics


def _subtracted(b: Any, a: Any) -> NDArray[np.float64]:
    """Return `b - a` in float64, and 0 where both are the same infinity, or both NaN."""
    with np.errstate(all="ignore"):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        same = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
        difference: NDArray[np.float64] = np.subtract(wide_b, wide_a, out=wide_b)
        difference[same] = 0.0
        return difference


def _figures(differences: Statistics, a: Statistics) -> dict[str, Any]:
    l2 = math.sqrt(differences.sum_squares)
    return {
        "size": differences.size,
        "changed": differences.size - differences.zeros,
        "l1": differences.sum_abs,
        "relative_l1": _relative(differences.sum_abs, a.sum_abs),
        "l2": l2,
        "relative_l2": _relative(l2, math.sqrt(a.sum_squares)),
        "largest": differences.max_abs,
    }


def _relative(part: float, whole: float) -> float:
    if part == 0:
        return 0.0
    return part / whole if whole else math.inf


def _moved(before: float | None, after: float | None) -> dict[str, Any]:
    change = None if before is None or after is None else after - before
    return {"penalty_a": before, "penalty_b": after, "penalty_change": change}
