"""PyTorch: penalties of a model's parameters, for any optimizer.

`attach` adds a penalty's gradient to `.grad` before each step of an optimizer, as its `weight_decay` would, or takes
the proximal step after it, which makes exact zeros. `Penalty` is what `loss = task_loss + penalty()` needs. Single
tensors need nothing of this module: `gpureg.L1(1e-5)(parameter)` is differentiable as it is.

To import this also makes known the operators `gpureg::penalty` and `gpureg::penalty_gradient`, for programs that were
exported and saved.
"""

try:
    import torch as _torch  # noqa: F401 - not this package, but PyTorch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError("gpureg.torch needs PyTorch: pip install torch", name="torch") from None

from gpureg.libraries import torch as _library  # noqa: F401 - with the operators
from gpureg.torch.attaching import Handle, attach
from gpureg.torch.penalty import Penalty

__all__ = ["Handle", "Penalty", "attach"]
