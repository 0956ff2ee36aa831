"""L1 and L2 penalties of large weight tensors and their gradients, in one pass over memory, always the same bits."""

from gpureg.environment import xp
from gpureg.functional import l1_loss, l2_loss
from gpureg.penalty import Penalty
from gpureg.regularizers import L1, L1L2, L2, HalvedL2, Regularizer, l1, l1_l2, l2
from gpureg.rules import Rules
from gpureg.threads import get_num_threads, set_num_threads

__version__ = "0.1.0.dev0"

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "HalvedL2",
    "Penalty",
    "Regularizer",
    "Rules",
    "get_num_threads",
    "l1",
    "l1_l2",
    "l1_loss",
    "l2",
    "l2_loss",
    "set_num_threads",
    "xp",
]
