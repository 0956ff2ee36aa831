"""The rows of a report, their totals and groups, and the penalties by rules."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, overload

import numpy as np

from gpureg import arithmetic
from gpureg.regularizers import Regularizer
from gpureg.reporting.tensors import Tensor
from gpureg.rules import Assignment, Rules
from gpureg.statistics import Statistics, join


@dataclass(frozen=True)
class Row:
    """What there is to know of one tensor. All but the first four are None where it is not of floats."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    """The number of elements."""
    sum_abs: float | None
    """`sum|w|`, in float64."""
    sum_squares: float | None
    """`sum w*w`, in float64."""
    l2_loss: float | None
    """`sum w*w / 2`, in float64."""
    rms: float | None
    """The root mean square, `sqrt(sum w*w / size)`; 0.0 of no elements."""
    max_abs: float | None
    """The largest |w| of those that are not NaN."""
    zeros: int | None
    """How many are zero, of either sign."""
    below: int | None
    """How many have |w| below the threshold, zeros included."""
    nan: int | None
    inf: int | None
    rule: str | None
    """What decided on the penalty: the rule's pattern, `default`, or which tensor it shares its memory with."""
    penalty: float | None
    """The penalty, rounded as `Penalty.losses` has it; None where no regularizer penalises the tensor."""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a dictionary of plain values."""
        return asdict(self) | {"shape": list(self.shape)}


@dataclass(frozen=True)
class Total:
    """What there is to know of several tensors together: those of floats, each memory once."""

    tensors: int
    """How many these are."""
    size: int
    sum_abs: float
    sum_squares: float
    l2_loss: float
    rms: float
    max_abs: float
    zeros: int
    below: int
    nan: int
    inf: int
    penalty: float | None
    """The bits of the `Penalty` of these tensors; None without rules."""


@dataclass(frozen=True)
class Group(Total):
    """What there is to know of the tensors whose names differ by numbers alone."""

    name: str
    """Their common name, with `#` for the numbers."""

    def to_dict(self) -> dict[str, Any]:
        """Return the group as a dictionary of plain values, the name first."""
        return {"name": self.name} | asdict(self)


class _Counted(NamedTuple):
    """A tensor that counts in totals."""

    name: str
    statistics: Statistics
    penalty: float | None  # in float64, before it is rounded; None where it is no leaf of the sum
    dtype: np.dtype[Any]


class Report(Sequence[Row]):
    """The rows of a report, in the order of the tensors.

    Attributes
    ----------
    total : Total
        All tensors of floats together.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> layers = {f"layers.{i}.kernel": np.full(4, i) * 0.5 for i in range(3)}
    >>> report = gpureg.report(layers, gpureg.L1(0.5))
    >>> [row.penalty for row in report], report.total.penalty
    ([0.0, 1.0, 2.0], 3.0)
    >>> [(group.name, group.tensors, group.sum_abs, group.penalty) for group in report.groups()]
    [('layers.#.kernel', 3, 6.0, 3.0)]
    """

    def __init__(self, rows: Sequence[Row], counted: Sequence[_Counted], *, penalised: bool) -> None:
        self._rows, self._counted, self._penalised = tuple(rows), counted, penalised
        self.total = Total(**self._together(counted))

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<Report of {len(self)} tensors, {self.total.size} weights>"

    def groups(self, depth: int | None = None) -> list[Group]:
        """Return the groups of tensors whose names differ by numbers alone, in the order of their first ones.

        Parameters
        ----------
        depth
            How many parts of a name count; by default all. Parts are what `.` and `/` separate.

        Raises
        ------
        ValueError
            If `depth` is not positive.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> report = gpureg.report({f"h.{i}.{part}": np.ones(2) for i in range(3) for part in ("w", "b")})
        >>> [group.name for group in report.groups()], [group.name for group in report.groups(2)]
        (['h.#.w', 'h.#.b'], ['h.#'])
        """
        if depth is not None and depth < 1:
            raise ValueError(f"depth must be positive, not {depth}")
        members: dict[str, list[_Counted]] = {}
        for each in self._counted:
            members.setdefault(_numberless(each.name, depth), []).append(each)
        return [Group(name=name, **self._together(group)) for name, group in members.items()]

    def losses(self) -> dict[str, float]:
        """Return the penalty of each penalised tensor by name, in float64, not rounded."""
        return {each.name: each.penalty for each in self._counted if each.penalty is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return rows and total as dictionaries of plain values.

        Examples
        --------
        >>> import numpy as np, gpureg
        >>> content = gpureg.report({"w": np.ones((2, 3))}).to_dict()
        >>> content["tensors"][0]["shape"], content["total"]["sum_abs"]
        ([2, 3], 6.0)
        """
        return {"tensors": [row.to_dict() for row in self._rows], "total": asdict(self.total)}

    def to_dataframe(self) -> Any:
        """Return the rows as a pandas DataFrame, a column for each of their attributes.

        Raises
        ------
        ModuleNotFoundError
            If pandas is not installed.
        """
        import pandas as pd  # noqa: PLC0415 - optional, and only here

        return pd.DataFrame([asdict(row) for row in self._rows], columns=list(Row.__dataclass_fields__))

    def _together(self, counted: Sequence[_Counted]) -> dict[str, Any]:
        """Return the figures of tensors together."""
        statistics = join([each.statistics for each in counted])
        figures = {"tensors": len(counted), "size": statistics.size} | _figures(statistics)
        return figures | {"penalty": _total_penalty(counted) if self._penalised else None}


def _total_penalty(counted: Iterable[_Counted]) -> float:
    leaves = [each for each in counted if each.penalty is not None]
    total = sum_of([each.penalty for each in leaves])
    return _rounded(total, arithmetic.result_dtype([each.dtype for each in leaves]))


def sum_of(penalties: Iterable[float | None]) -> float:
    """Return the sum of penalties in float64, by the tree over them in order."""
    with np.errstate(all="ignore"):  # it may overflow, and be NaN
        return float(arithmetic.tree_sum(np.array(list(penalties), np.float64)))


def _rounded(value: float, dtype: np.dtype[Any]) -> float:
    with np.errstate(all="ignore"):  # likewise
        return float(arithmetic.round_once(value, dtype))


def _figures(statistics: Statistics) -> dict[str, Any]:
    size, sum_squares = statistics.size, statistics.sum_squares
    figures = statistics._asdict() | {
        "l2_loss": 0.5 * sum_squares,
        "rms": math.sqrt(sum_squares / size) if size else 0.0,
    }
    del figures["size"]
    return figures


def _numberless(name: str, depth: int | None) -> str:
    """Return the first parts of a name, with # for those that are numbers.

    >>> _numberless("encoder.layer.0.fc/1", None), _numberless("encoder.layer.0.fc/1", 3)
    ('encoder.layer.#.fc/#', 'encoder.layer.#')
    """
    parts = re.split(r"([./])", name)  # separators are every second one
    parts = ["#" if part.isdecimal() else part for part in parts]
    return "".join(parts if depth is None else parts[: 2 * depth - 1])


Assignments = Sequence[Assignment | None]
"""What rules say of each tensor; None of those that are not of floats."""


def assign(tensors: Sequence[Tensor], rules: Any) -> Assignments | None:
    """Return what rules say of each tensor, None of one that is not of floats; None for all without rules.

    Those may match a rule or not, as checkpoints have them beside the weights that rules are made for.
    """
    if rules is None:
        return None
    rules = Rules.of(rules)
    floating = [(tensor.name, tensor.given) for tensor in tensors if tensor.floating]
    others = [(tensor.name, tensor.given) for tensor in tensors if not tensor.floating]
    lenient = Rules(rules.rules, default=None, strict=False).assign(others)
    matched = [other for other, said in zip(others, lenient, strict=True) if said.rule is not None]
    found = iter(rules.assign(floating + matched))
    return [next(found) if tensor.floating else None for tensor in tensors]


def build(
    tensors: Sequence[Tensor], statistics: Sequence[Statistics | None], assignments: Assignments | None
) -> Report:
    """Return the report of tensors whose statistics are there."""
    rows, counted = [], []
    penalised = assignments is not None
    assignments = [None] * len(tensors) if assignments is None else assignments
    first_of: dict[Any, tuple[str, Regularizer | None]] = {}
    starts = Counter(tensor.start() for tensor in tensors)
    for tensor, figures, assignment in zip(tensors, statistics, assignments, strict=True):
        if figures is None:
            rows.append(Row(tensor.name, tensor.shape, tensor.dtype, tensor.size, *(None,) * 11))
            continue
        regularizer = assignment.regularizer if assignment else None
        rule = assignment.pattern if assignment else None
        first = _first(first_of, tensor, regularizer) if starts[tensor.start()] > 1 else tensor.name
        if first != tensor.name:
            rule, regularizer = f"tied to {first}", None
        penalty = None if regularizer is None else _penalty(tensor.name, regularizer, figures)
        dtype = np.dtype(np.float64 if tensor.dtype == "float64" else np.float32)
        if first == tensor.name:
            counted.append(_Counted(tensor.name, figures, penalty, dtype))
        rounded = None if penalty is None else _rounded(penalty, dtype)
        about = tensor.name, tensor.shape, tensor.dtype, tensor.size
        rows.append(Row(*about, **_figures(figures), rule=rule, penalty=rounded))
    return Report(rows, counted, penalised=penalised)


def _first(first_of: dict[Any, tuple[str, Regularizer | None]], tensor: Tensor, regularizer: Regularizer | None) -> str:
    """Return the name of the first tensor of the same memory, its own perhaps."""
    key = tensor.memory()
    if key is None:
        return tensor.name
    name, other = first_of.setdefault(key, (tensor.name, regularizer))
    if other != regularizer:
        raise ValueError(
            f"tensors {name!r} and {tensor.name!r} are one and the same, but the rules give {other} and {regularizer}; "
            "give both the same"
        )
    return name


def _penalty(name: str, regularizer: Regularizer, statistics: Statistics) -> float:
    try:
        coefficients = regularizer.coefficients
    except TypeError as error:  # a penalty of another kind is not what these sums tell
        raise TypeError(f"tensor {name!r}: {error}") from None
    return arithmetic.penalty(coefficients, 1.0, statistics.sum_abs, statistics.sum_squares)
