"""Every test has a graph of its own."""

from collections.abc import Iterator

import pytest

from gpureg import tf1


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf1.Graph]:
    with tf1.Graph().as_default() as own:
        yield own
