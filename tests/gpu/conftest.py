"""Tests here need a GPU: without one they are skipped, with the reason, and nothing else is."""

from pathlib import Path

import pytest

from gpureg import backends
from tests.gpu import device

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where its backend cannot be used."""
    reason = backends.load("cuda").unusable()
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("gpu"):
            # What CuPy still calls and NumPy no longer likes is not for these tests to say.
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _nothing_is_left_over() -> None:
    """Begin each test with an idle device and an empty pool, so that one does not lean on another's memory."""
    device.forget()
