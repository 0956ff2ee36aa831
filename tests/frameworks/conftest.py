"""What the comparison with the real Keras needs before it is imported: `make test-frameworks` sets its backend."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its notes on the processor


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what Keras itself does that NumPy will not have for long."""
    config.addinivalue_line("filterwarnings", "ignore:__array_:DeprecationWarning:keras")
