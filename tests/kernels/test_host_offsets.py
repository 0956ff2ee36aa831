"""The kernels find elements beyond the 2**32th, of weights and of gradients."""

import pytest

from tests.helpers import DTYPES
from tests.host_cuda import far, library
from tests.host_cuda.cases import PAIRS


@pytest.mark.parametrize(("weights", "into"), PAIRS)
def test_a_pass_beyond_two_to_the_32_elements(weights: str, into: str) -> None:
    far.check_pass(library(), weights, into)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_proximal_step_beyond_two_to_the_32_elements(dtype: str) -> None:
    far.check_proximal(library(), dtype)
