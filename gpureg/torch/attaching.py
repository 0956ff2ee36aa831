"""A penalty attached to an optimizer: its gradient before each step, or a proximal step after it."""

import math
import operator
import sys
from typing import Any, NoReturn

import torch

import gpureg.penalty
from gpureg.dispatch import Tensors
from gpureg.penalty import Strength
from gpureg.regularizers import Regularizer
from gpureg.torch.penalty import Penalty


def attach(optimizer: Any, penalty: Any, *, model: Any = None, proximal: bool = False) -> "Handle":
    """Let an optimizer penalise its parameters: one line, for any optimizer of PyTorch.

    Before each `optimizer.step()` the penalty's gradient is added to `.grad` of all parameters, in one pass and without
    a graph, as `weight_decay` adds its own. So it is added once a step, however many micro-batches the gradient is of;
    after `clip_grad_norm_`, which does not see it; and after the all-reduce of `DistributedDataParallel`, by each
    replica for itself. A parameter whose `.grad` is None is left out, penalty and all.

    With `proximal=True` only the L2 term goes by the gradient. For the L1 term each weight is moved towards zero after
    the step, by `lr * l1` of its group, and held at exactly zero where it would cross it:
    `sign(w) * max(|w| - lr * l1, 0)`. That is the proximal step of gradient descent, decoupled from the optimizer as
    the weight decay of AdamW is: an adaptive optimizer's own step size for each weight has no part in it.

    Parameters
    ----------
    optimizer
        A `torch.optim.Optimizer`.
    penalty
        A regularizer, for all of the optimizer's parameters; `Rules`, or what makes them, which need names; or a
        `Penalty`, of which only what the optimizer has is touched: several optimizers may share one.
    model
        The module, or the named parameters, that names are of; without it they are those that the optimizer was made
        with. All of the optimizer's parameters must be there.
    proximal
        Whether the L1 term makes exact zeros, by a proximal step.

    Raises
    ------
    TypeError
        If the optimizer is none, or wraps one; if there is nothing that makes a penalty. At a step: if a gradient is
        sparse, sharded or of another dtype; the error names the parameter, and no gradient is changed.
    ValueError
        If rules have no names to go by; if the optimizer has parameters that the model has not, or none that the
        penalty has; if its steps are to be differentiated; if `proximal` is asked for with LBFGS, whose steps are not
        as long as its lr, or with an optimizer that has no lr.

    Notes
    -----
    A closure is evaluated with the penalty: each evaluation adds its gradient, and its value to the loss returned,
    since optimizers such as LBFGS compare losses.

    Under `torch.amp.GradScaler` nothing is to be done. An optimizer that takes scaled gradients, as fused ones do, gets
    the penalty's scaled as well, on the device; where it finds an infinity, nothing changes. Where an optimizer
    maximises, the penalty is subtracted from what it maximises, and still draws weights to zero.

    An optimizer that is copied or pickled has no penalty, and a handle cannot be copied: attach one again.

    Examples
    --------
    >>> import torch, gpureg, gpureg.torch
    >>> w = torch.nn.Parameter(torch.tensor([3.0, -0.25]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5)
    >>> handle = gpureg.torch.attach(optimizer, gpureg.L1(1.0))
    >>> w.grad = torch.zeros(2)
    >>> optimizer.step()
    >>> w.tolist(), handle.value.item()
    ([2.5, 0.25], 3.25)
    >>> handle.remove()
    >>> handle = gpureg.torch.attach(optimizer, gpureg.L1(1.0), proximal=True)
    >>> w.grad = torch.zeros(2)
    >>> optimizer.step()
    >>> w.tolist()
    [2.0, 0.0]
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, not {optimizer!r:.200}")
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        name = type(optimizer).__name__
        raise TypeError(f"{name} has no hooks, so it may be a wrapper of an optimizer; attach to the one within")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError("the optimizer's steps are differentiable, but the gradient of a gpureg penalty is not")
    if proximal and isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS takes steps of other lengths than its lr, which a proximal step would need to know")
    if proximal and not all("lr" in group for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__} has no lr, which is what a proximal step goes by")
    if not isinstance(penalty, gpureg.penalty.Penalty):
        penalty = _penalty(optimizer, penalty, model)
    elif model is not None:
        raise ValueError("model is for the names that rules go by; a Penalty has its own")
    return Handle(optimizer, penalty, proximal=proximal)


def _penalty(optimizer: Any, rules: Any, model: Any) -> Penalty:
    """Return the penalty of an optimizer's parameters, or of the model that has them."""
    if model is None:
        if not isinstance(rules, Regularizer) and not all("param_names" in group for group in optimizer.param_groups):
            raise ValueError(
                "rules go by names, which this optimizer was not given: attach with model=, or make the optimizer of "
                "model.named_parameters()"
            )
        return Penalty(optimizer, rules)
    penalty = Penalty(model, rules)
    known = {id(parameter) for _, parameter in penalty._named.pairs}
    if strangers := sum(id(parameter) not in known for parameter in _parameters(optimizer)):
        raise ValueError(f"{strangers} of the optimizer's parameters are not the model's, and have no name to go by")
    return penalty


def _parameters(optimizer: Any) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class Handle:
    """A penalty that is attached to an optimizer, as `attach` returns it.

    Attributes
    ----------
    penalty
        The `Penalty`; `handle.penalty.explain()` says who gets what.
    step
        How many steps the optimizer has made: what a strength that is a function is given. Set it to resume.
    """

    def __init__(self, optimizer: Any, penalty: gpureg.penalty.Penalty, *, proximal: bool) -> None:
        self.penalty = penalty
        self.step = penalty.step
        self._optimizer = optimizer
        self._proximal = proximal
        self._value: Any = None
        # The optimizer's parameters and the penalised ones as they were when it was last told which are both.
        self._known: tuple[list[Any], Tensors | None] = ([], None)
        self._owned: tuple[bool, ...] = ()
        self._sign()
        if not any(self._own()):
            raise ValueError("the optimizer has none of the parameters that are penalised; is it another model's?")
        # What torch.compile makes of a step would not know of parameters and gradients that come later.
        self._hooks = [
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)),
        ]

    def __repr__(self) -> str:
        """Return what is attached to which optimizer."""
        how = ", proximal" if self._proximal else ""
        return f"<{self.penalty!r} attached to {type(self._optimizer).__name__}{how}>"

    def __getstate__(self) -> NoReturn:
        """Refuse to be copied or pickled: the copy would hook no optimizer."""
        raise TypeError("a handle cannot be copied or pickled, nor are an optimizer's hooks: attach the penalty again")

    @property
    def value(self) -> Any:
        """The penalty, 0-d, where the parameters live: to read its number is to wait for it.

        After a step it is the one whose gradient was added, of the weights before the step. Before the first step, and
        with `proximal`, it is computed when it is asked for, of the weights as they are.
        """
        if self._value is not None:
            return self._value
        with self.penalty._lock, torch.no_grad():
            tensors = self.penalty._part(self._own())
            return tensors.total(self._strength(tensors))

    def losses(self) -> dict[str, Any]:
        """Return the penalty of each penalised parameter of the optimizer, as it is now, by name."""
        with self.penalty._lock:
            self.penalty.step = self.step
            own, losses = self._own(), self.penalty.losses().items()
            return {name: loss for mine, (name, loss) in zip(own, losses, strict=True) if mine}

    def set_strength(self, strength: Strength) -> None:
        """Set a factor over all coefficients, as `Penalty.set_strength` does, for all who share the penalty."""
        self.penalty.set_strength(strength)

    def remove(self) -> None:
        """Let the optimizer penalise nothing any more."""
        for hook in self._hooks:
            hook.remove()

    # What is done at a step ------------------------------------------------------------------------------------------

    def _before_step(self, _: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Add the gradient; or let a closure do so whenever it is evaluated."""
        if _is_within_another(self._optimizer):
            return None
        named = "closure" in options
        closure = options["closure"] if named else next(iter(arguments[1:]), None)
        if not callable(closure):
            self._add_gradient()
            return None
        add_gradient = torch.compiler.disable(self._add_gradient)  # for it is not called by this hook

        def penalised() -> Any:
            loss = closure()
            value = add_gradient() * self._sign()
            if loss is None:
                return None
            return loss + (value.to(loss) if isinstance(loss, torch.Tensor) else value.item())

        if named:
            return arguments, {**options, "closure": penalised}
        return (arguments[0], penalised, *arguments[2:]), options

    def _add_gradient(self) -> Any:
        """Add the gradient to those that are there, and return the penalty."""
        with self.penalty._lock, torch.no_grad():
            tensors = self._tensors("l2" if self._proximal else "both")
            gradients = [array.grad for array in tensors.arrays]
            value = tensors.accumulate(gradients, strength=self._strength(tensors), upstream=self._upstream(tensors))
            if not self._proximal:
                self._value = value
            return value

    def _after_step(self, *_: Any) -> None:
        """Take the proximal step, and count."""
        if _is_within_another(self._optimizer):
            return
        with self.penalty._lock, torch.no_grad():
            if self._proximal:
                self._take_step(self._tensors("l1"))
            self.step += 1
            self.penalty.step = self.step

    def _take_step(self, tensors: Tensors) -> None:
        """Take the proximal step on parameters, by the lr of each one's group; none where an infinity was found."""
        if not tensors.arrays:
            return
        rates: dict[int, Any] = {}
        for group in self._optimizer.param_groups:
            lr = group["lr"]
            rate = tensors.factor(_where_they_live(lr, tensors) if isinstance(lr, torch.Tensor) else lr, "lr")
            if isinstance(rate, float) and not 0 <= rate < math.inf:
                raise ValueError(f"lr must be a finite number that is not negative, not {lr!r}")
            rates |= dict.fromkeys(map(id, group["params"]), rate)
        found = _where_they_live(getattr(self._optimizer, "found_inf", None), tensors)
        tensors.proximal(
            [rates[id(array)] for array in tensors.arrays],
            strength=self._strength(tensors),
            skips=0.0 if found is None else tensors.factor(found, "found_inf"),
        )

    def _tensors(self, term: str) -> Tensors:
        """Return the penalised parameters of the optimizer that have a gradient, under one term or both."""
        own = self._own()
        chosen = [mine and array.grad is not None for mine, array in zip(own, self.penalty._all.arrays, strict=True)]
        return self.penalty._part(tuple(chosen), term)

    def _own(self) -> tuple[bool, ...]:
        """Return of the penalised parameters whether they are the optimizer's."""
        self.penalty._keep_current()
        parameters, penalised = _parameters(self._optimizer), self.penalty._all
        known, tensors = self._known
        if penalised is not tensors or len(known) != len(parameters) or not all(map(operator.is_, known, parameters)):
            members = set(map(id, parameters))
            self._owned = tuple(id(array) in members for array in penalised.arrays)
            self._known = parameters, penalised
        return self._owned

    def _strength(self, tensors: Tensors) -> Any:
        self.penalty.step = self.step
        return self.penalty._factor(tensors)

    def _upstream(self, tensors: Tensors) -> Any:
        """Return what the gradient is scaled by: as the loss was, which is not waited for."""
        upstream: Any = self._sign()
        scale, found = (
            _where_they_live(getattr(self._optimizer, name, None), tensors) for name in ("grad_scale", "found_inf")
        )
        if scale is not None:
            upstream = scale * upstream
        if found is not None:
            upstream = torch.where(found != 0, torch.zeros_like(found), upstream)
        return tensors.factor(upstream, "the scale of the gradients")

    def _sign(self) -> float:
        """Return -1 for an optimizer that negates its gradients before it adds its own weight decay."""
        maximizes = {bool(group.get("maximize")) for group in self._optimizer.param_groups}
        if len(maximizes) > 1:
            raise ValueError("some of the optimizer's groups maximise and some do not; give each an optimizer")
        return -1.0 if maximizes == {True} else 1.0


_STEP = torch.optim.Optimizer.profile_hook_step(lambda _: None).__code__
"""What PyTorch puts around an optimizer's step, to run the hooks."""


def _is_within_another(optimizer: Any) -> bool:
    """Return whether this step is a part of one of the same optimizer, as of a class that calls `super().step()`.

    PyTorch runs the hooks around both. Where a step begins and ends is told by what is being executed: a count would be
    off for good after a step that an error ended.
    """
    frame: Any = sys._getframe()
    steps = 0
    while frame is not None:
        if frame.f_code is _STEP:
            steps += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return steps > 1


def _where_they_live(number: Any, tensors: Tensors) -> Any:
    """Return a tensor of the optimizer, 0-d, on the device of the parameters; None as it is."""
    if number is None or not tensors.arrays:
        return None
    return number.to(tensors.arrays[0].device, non_blocking=True).reshape(())
