"""What tests of PyTorch share: the same numbers on both sides, and the comparison of bits."""

from typing import Any

import numpy as np
import torch

from tests import helpers
from tests.helpers import DTYPES, Array

TORCH = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def sample(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Array:
    """Return ordinary weights, some of them zero of either sign."""
    array = np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(DTYPES[dtype])
    flat = array.reshape(-1)
    flat[3::7] = 0
    flat[5::11] = -0.0
    return array


def tensor(array: Any) -> Any:
    """Return a new tensor of the numbers, dtype and order of axes in memory of an array."""
    copy = np.array(array, order="K")
    if copy.dtype.name == "bfloat16":
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def parameter(array: Any) -> Any:
    return torch.nn.Parameter(tensor(array))


def array(of: Any) -> Array:
    """Return a copy of a tensor's numbers, by way of the bits of each."""
    numbers = of.detach()
    if numbers.dtype is torch.bfloat16:
        return np.array(numbers.view(torch.int16).numpy()).view(DTYPES["bfloat16"])
    return np.array(numbers.numpy())


def same(found: Any, expected: Any) -> bool:
    """Return whether a tensor has the dtype, shape and bits of an array or another tensor, every NaN being the same."""
    assert isinstance(found, torch.Tensor)
    one = array(found)
    other = array(expected) if isinstance(expected, torch.Tensor) else np.asarray(expected)
    return (
        one.dtype == other.dtype and one.shape == other.shape and bool((helpers.bits(one) == helpers.bits(other)).all())
    )
