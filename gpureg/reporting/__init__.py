"""What there is to know of the weights of a checkpoint or a model, in one pass: `gpureg.report` and `gpureg.diff`."""

from typing import Any

import numpy as np

from gpureg.reporting.comparing import Change, Difference, Mismatch, compare
from gpureg.reporting.measuring import measure
from gpureg.reporting.rows import Group, Report, Row, Total, assign, build
from gpureg.reporting.tensors import tensors_of

__all__ = ["THRESHOLD", "Change", "Difference", "Group", "Mismatch", "Report", "Row", "Total", "diff", "report"]

THRESHOLD = 1e-3
"""Weights below this in magnitude are counted, where nothing else is asked for."""


def report(weights: Any, rules: Any = None, *, threshold: float = THRESHOLD) -> Report:
    """Return a row for each tensor: its norms, its largest weight, how many are zero, small, NaN, and its penalty.

    One pass over memory gives all of it. A file is mapped and read piece by piece, and may be larger than memory.

    Parameters
    ----------
    weights
        The path of a checkpoint, anything that `gpureg.checkpoints.read` reads; what that returns, or a part of it; or
        arrays by name, as `gpureg.Penalty` takes them, of any of its libraries. Tensors that are not of floats, but
        of integers, say, are listed, and left out of everything else.
    rules
        `Rules`, or what makes them: a regularizer for all, a dictionary, or pairs of a pattern and a regularizer. They
        are matched with the names; predicates are given the array, or the entry of the checkpoint. By default there is
        no penalty. A tensor that is not of floats need not match.
    threshold
        Elements with |w| below it are counted; a number of Python or NumPy.

    Returns
    -------
    Report
        A sequence of `Row`, with their `total`, `groups`, `to_dict` and `to_dataframe`. Sums and penalties have the
        bits of `Penalty(weights, rules)`: its `norms()`, its `losses()`, and the total its own. Tensors that share
        memory have a row each, and count once.

    Raises
    ------
    gpureg.checkpoints.CheckpointError
        If the file cannot be read, or is broken.
    TypeError
        If an array is of no known library, or of floats that `gpureg.Penalty` does not take: of the other byte order,
        of 8 bits, longer than float64. If a name is no string.
    ValueError
        If a name comes twice, the threshold is negative, NaN or too large for a float, rules match nothing, no rule
        matches a tensor, or tensors that share memory have different regularizers.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> weights = {"fc": {"kernel": np.array([[3.0, -4.0], [0.0, 0.0]]), "bias": np.ones(2), "steps": np.arange(3)}}
    >>> report = gpureg.report(weights, {"*/bias": None, "*": gpureg.L2(0.5)})
    >>> for row in report:
    ...     print(row.name, row.sum_abs, row.l2_loss, row.rms, row.max_abs, row.zeros, row.rule, row.penalty)
    fc/kernel 7.0 12.5 2.5 4.0 2 * 12.5
    fc/bias 2.0 1.0 1.0 1.0 0 */bias None
    fc/steps None None None None None None None
    >>> report.total.size, report.total.sum_abs, report.total.penalty
    (6, 9.0, 12.5)
    """
    given = tensors_of(weights, "weights")
    assignments = assign(given, rules)
    return build(given, measure(given, checked(threshold)), assignments)


def diff(a: Any, b: Any, rules: Any = None) -> Difference:
    """Return how the weights of B differ from those of A, tensor by tensor, by name.

    Both are read once, piece by piece and side by side. Differences are formed and summed in float64. Elements are the
    same if they are equal, so 0.0 and -0.0 are, or both NaN. Tensors that are not of floats are compared by shape and
    dtype alone, as their elements are not read: where these differ, nothing tells, and `same` may still be True.

    Parameters
    ----------
    a, b
        Each anything that `gpureg.report` takes.
    rules
        As there; a rule may match a tensor of either.

    Returns
    -------
    Difference
        A sequence of `Change`, one for each tensor of floats that both have in one shape, in A's order; what was
        `added`, `removed` and `reshaped`; and what was `not_compared`. Tensors that share memory in both have a
        `Change` each, and count once in the `total`.

    Raises
    ------
    gpureg.checkpoints.CheckpointError
        If a file cannot be read, or is broken; if the axes of a tensor lie in another order in one than in the other,
        and neither can be mapped.
    TypeError, ValueError
        As for `gpureg.report`.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> a = {"w": np.array([3.0, 4.0]), "old": np.ones(2), "head": np.ones(3)}
    >>> b = {"w": np.array([3.0, 4.5]), "head": np.ones(4)}
    >>> difference = gpureg.diff(a, b, gpureg.L2(1.0))
    >>> difference.same, difference.added, difference.removed, difference.reshaped[0].name
    (False, (), ('old',), 'head')
    >>> (w,) = difference
    >>> w.changed, w.l2, w.relative_l2, w.largest, w.penalty_change
    (1, 0.5, 0.1, 0.5, 4.25)
    """
    return compare(tensors_of(a, "a"), tensors_of(b, "b"), rules)


def checked(threshold: Any) -> float:
    """Return a threshold that can be compared with; a ValueError otherwise."""
    known = isinstance(threshold, int | float | np.integer | np.floating) and not isinstance(threshold, bool)
    if not known or not threshold >= 0:
        raise ValueError(f"threshold must be a number that is not negative, not {threshold!r}")
    try:
        return float(threshold)
    except OverflowError:
        raise ValueError("threshold is too large for a float") from None
