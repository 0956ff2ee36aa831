"""The penalty of a PyTorch model's parameters."""

from collections.abc import Iterator
from typing import Any

import torch

import gpureg.penalty
from gpureg import libraries
from gpureg.named import Named
from gpureg.penalty import Scope, Strength

Weights = Any
"""A module; a mapping of names to tensors, or pairs of both, as `named_parameters()` gives them."""


class Penalty(gpureg.penalty.Penalty):
    """The penalty of a model's parameters: each under the rule that matches it, all of them in one pass.

    It is `gpureg.Penalty` with a module for its weights, and leaves out frozen parameters, those that do not require a
    gradient. The total is differentiable: `loss = task_loss + penalty()`. Parameters that are there under two names,
    tied ones, count once.

    Parameters
    ----------
    weights
        A module, of which all parameters are taken, but no buffers; or named parameters, as pairs or a mapping. Or an
        optimizer, of which all parameters are taken, by the names it was made with, as `group.name` if groups have the
        same, else by `group.index`. Of a module in `DistributedDataParallel`, or a compiled one, the names are those
        of the module within.
    rules
        `Rules`, or what makes them: a regularizer for all, a dictionary, or pairs of a pattern and a regularizer.
    scope, tied
        As for `gpureg.Penalty`.

    Raises
    ------
    TypeError
        If something is no tensor of PyTorch; if a penalised one is sparse, sharded, on the meta device, or of another
        dtype than float16, bfloat16, float32 and float64.
    ValueError
        If rules match nothing, or no rule matches a parameter; if parameters are on different devices.

    Notes
    -----
    What becomes of the model is noticed at the next call: a parameter that is replaced, frozen or unfrozen, moved to
    another device, or given other memory; a layer that comes or goes. Within a function that `torch.compile` compiles
    nothing is looked at anew: call `refresh` outside it, after such a change.

    The gradient of the penalty has no gradient of its own, and transforms of `torch.func` are refused.

    Examples
    --------
    >>> import torch, gpureg, gpureg.torch
    >>> model = torch.nn.Linear(3, 2)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> penalty = gpureg.torch.Penalty(model, {"bias": None, "*": gpureg.L2(0.5)})
    >>> loss = model(torch.ones(4, 3)).square().mean() + penalty()
    >>> loss.backward()
    >>> penalty()
    tensor(3., grad_fn=<_RecordedBackward>)
    >>> print(penalty.explain())
    name    shape  dtype    rule  l1   l2  share
    weight  2x3    float32  *      -  0.5  75.0%
    bias    2      float32  bias   -    -  25.0%
    """

    _of_nothing = torch.empty(0)

    def __init__(self, weights: Weights, rules: Any, *, scope: Scope = None, tied: str = "once") -> None:
        super().__init__(_unwrapped(weights), rules, scope=scope, tied=tied)

    def accumulate_grad(self, grads: Any = None, scale: Any = None) -> Any:
        """Add the gradient of the total to gradients, in place, and return the total: one pass, no temporary.

        Parameters
        ----------
        grads
            Gradients by name, as for `gpureg.Penalty`; by default the `.grad` of the parameters, of which one that is
            None leaves its parameter out, penalty and all.
        scale
            A factor over the gradients alone, such as a loss scale: a number, or a 0-d tensor where the parameters
            live, read there without waiting for it.

        Raises
        ------
        TypeError
            If a gradient is sparse, sharded, or of another dtype than its parameter and float32.
        ValueError
            As for `gpureg.Penalty`. Where one gradient is refused, all are left as they were.

        Examples
        --------
        >>> import torch, gpureg, gpureg.torch
        >>> w = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> (w * w).sum().backward()
        >>> gpureg.torch.Penalty({"w": w}, gpureg.L1(0.5)).accumulate_grad()
        tensor(1.5000)
        >>> w.grad
        tensor([ 2.5000, -4.5000])
        """
        with self._lock:
            if grads is None:
                self._keep_current()
                grads = {name: parameter.grad for name, parameter in self._named.pairs}
            return super().accumulate_grad(grads, scale)

    def set_strength(self, strength: Strength) -> None:
        """Set a factor over all coefficients; at first it is 1.

        Parameters
        ----------
        strength
            A number; a 0-d tensor where the parameters live, float32 or float64, read there by each pass; or a function
            that is given `step` and returns a number.

        Raises
        ------
        TypeError
            If it is none of these.
        ValueError
            If it is a number that is negative or not finite, or a tensor that requires a gradient: it would get none.

        Examples
        --------
        >>> import torch, gpureg, gpureg.torch
        >>> penalty = gpureg.torch.Penalty({"w": torch.ones(3, requires_grad=True)}, gpureg.L1(1.0))
        >>> strength = torch.tensor(0.5)
        >>> penalty.set_strength(strength)
        >>> penalty().item()
        1.5
        >>> _ = strength.fill_(0.25)
        >>> penalty().item()
        0.75
        """
        if isinstance(strength, torch.Tensor) and strength.requires_grad:
            raise ValueError("strength requires a gradient, but a penalty has none by its strength: detach it")
        super().set_strength(strength)

    def refresh(self) -> None:
        """Look at all parameters anew: at the tensors by name, at the rules, and at where each tensor lies."""
        with self._lock:
            super().refresh()
            self._frozen = self._are_frozen()

    def _read(self) -> Named:
        if isinstance(self._weights, torch.nn.Module):
            return _OfModule(self._weights)
        if isinstance(self._weights, torch.optim.Optimizer):
            return _OfOptimizer(self._weights)
        named = super()._read()
        for name, tensor in named.pairs:
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(
                    f"weights[{name!r}] must be a tensor of PyTorch, not {libraries.type_name(tensor)}; "
                    "gpureg.Penalty takes arrays of all libraries"
                )
        return named

    def _exemption(self, array: Any) -> str | None:
        return None if array.requires_grad else "frozen"

    def _are_frozen(self) -> list[bool]:
        return [not parameter.requires_grad for _, parameter in self._named.pairs]

    def _keep_current(self) -> None:
        if self._named.is_current() and self._are_frozen() != self._frozen:
            self.refresh()
        super()._keep_current()


class _OfModule(Named):
    """The parameters of a module by name, tied ones under each of theirs, and what they are held in."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.named_parameters(remove_duplicate=False), "weights")
        for each in module.modules():
            self._hold(each._parameters)
            self._hold(each._modules)


class _OfOptimizer(Named):
    """The parameters of an optimizer by name."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer  # whose groups are other ones once it has loaded a state
        super().__init__(self._named(), "weights")

    def _named(self) -> Iterator[tuple[str, Any]]:
        groups = self._optimizer.param_groups
        known = [name for group in groups for name in group.get("param_names", ())]
        unique = 0 < len(set(known)) == len(known)  # groups of several modules may have the same
        for number, group in enumerate(groups):
            names = group.get("param_names", range(len(group["params"])))
            yield from zip(names if unique else [f"{number}.{name}" for name in names], group["params"], strict=True)

    def is_current(self) -> bool:
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        return len(parameters) == len(self.pairs) and all(
            one is other for one, (_, other) in zip(parameters, self.pairs, strict=True)
        )


def _unwrapped(model: Any) -> Any:
    """Return the module itself of one that is distributed or compiled, and anything else as it is."""
    while isinstance(model, torch.nn.Module):
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            break
    return model
