"""The penalties of one layer, for those who write layers without Keras."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

from gpureg import dispatch
from gpureg.libraries import type_name
from gpureg.serialization import get, serialize


@dataclass(frozen=True, kw_only=True)
class LayerPenalties:
    """The three regularizers of a layer, and its losses in the order in which a Keras layer has them.

    Parameters
    ----------
    kernel_regularizer, bias_regularizer, activity_regularizer
        For the weights, the bias and the output: what `gpureg.get` takes, a name, a regularizer, a function, a
        dictionary, or None for no penalty.

    Raises
    ------
    ValueError
        If one is nothing that `get` takes.

    Examples
    --------
    >>> import numpy as np, gpureg
    >>> penalties = gpureg.LayerPenalties(kernel_regularizer=gpureg.L1(0.01), activity_regularizer=gpureg.L2(0.01))
    >>> kernel = np.ones((5, 5), np.float32)
    >>> output = np.full((5, 5), 2, np.float32) @ kernel
    >>> penalties.losses(kernel=kernel, output=output)
    [np.float32(5.0), np.float32(0.25)]
    """

    kernel_regularizer: Any = None
    bias_regularizer: Any = None
    activity_regularizer: Any = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, get(getattr(self, field.name)))

    def losses(self, *, kernel: Any = None, bias: Any = None, output: Any = None, trainable: bool = True) -> list[Any]:
        """Return the penalties there are: of the output over its batch, of the kernel, of the bias.

        Parameters
        ----------
        kernel, bias
            The weights.
        output
            What the layer returned, its batch first, or a list of several outputs, each with a penalty of its own.
        trainable
            Whether the layer is trained. The kernel and the bias of a frozen one are not penalised, but its output is.

        Raises
        ------
        ValueError
            If there is a regularizer for what is not given.
        """
        given = [
            *(("activity", each, over_batch) for each in (output if isinstance(output, list | tuple) else [output])),
            *((("kernel", kernel, _whole), ("bias", bias, _whole)) if trainable else ()),
        ]
        penalties = []
        for part, array, penalty in given:
            regularizer = getattr(self, f"{part}_regularizer")
            if regularizer is None:
                continue
            if array is None:
                name = "output" if part == "activity" else part
                raise ValueError(f"{part}_regularizer is {regularizer}, but no {name} was given")
            penalties.append(penalty(regularizer, array))
        return penalties

    def get_config(self) -> dict[str, Any]:
        """Return the regularizers as dictionaries by name, as a Keras layer's configuration has them."""
        return {field.name: serialize(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the penalties that `get_config` described.

        >>> LayerPenalties.from_config({"bias_regularizer": {"class_name": "L1", "config": {"l1": 0.5}}})
        LayerPenalties(kernel_regularizer=None, bias_regularizer=L1(l1=0.5), activity_regularizer=None)
        """
        return cls(**config)


def _whole(regularizer: Callable[[Any], Any], w: Any) -> Any:
    return regularizer(w)


def over_batch(regularizer: Callable[[Any], Any], x: Any) -> Any:
    """Return the penalty of x over the length of its first axis, the batch: what `activity` gives, if it has one.

    Of an empty batch it is 0, whatever a function may make of it.
    """
    if hasattr(regularizer, "activity"):
        return regularizer.activity(x)
    return quotient(regularizer, x)


def quotient(regularizer: Callable[[Any], Any], x: Any) -> Any:
    """Return what a function of one's own makes of x, over the batch."""
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"x must be an array, not {type_name(x)}")
    divisor = dispatch.batch(shape)
    return regularizer(x) / divisor if divisor else 0.0
