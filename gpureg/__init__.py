"""L1 and L2 penalties of large weight tensors and their gradients, in one pass over memory, always the same bits."""

from typing import TYPE_CHECKING, Any

from gpureg.backends import get_backend, set_backend
from gpureg.environment import xp
from gpureg.functional import l1_loss, l2_loss
from gpureg.penalty import Penalty
from gpureg.regularizers import (
    L1,
    L1L2,
    L2,
    HalvedL2,
    LayerPenalties,
    OrthogonalRegularizer,
    Regularizer,
    deserialize,
    get,
    l1,
    l1_l2,
    l2,
    orthogonal_regularizer,
    serialize,
)
from gpureg.rules import Rules
from gpureg.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from gpureg.reporting import diff, report

__version__ = "0.1.0.dev0"

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "HalvedL2",
    "LayerPenalties",
    "OrthogonalRegularizer",
    "Penalty",
    "Regularizer",
    "Rules",
    "deserialize",
    "diff",
    "get",
    "get_backend",
    "get_num_threads",
    "l1",
    "l1_l2",
    "l1_loss",
    "l2",
    "l2_loss",
    "orthogonal_regularizer",
    "report",
    "serialize",
    "set_backend",
    "set_num_threads",
    "xp",
]


def __getattr__(name: str) -> Any:
    """Return what is imported when it is first needed, as it reads files."""
    if name in {"diff", "report"}:
        from gpureg import reporting  # noqa: PLC0415 - that is the point

        globals()[name] = getattr(reporting, name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
