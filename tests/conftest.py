"""What all tests share."""

from hypothesis import settings

# The same examples on every run and machine; how long one takes says nothing about bits.
settings.register_profile("gpureg", derandomize=True, deadline=None)
settings.load_profile("gpureg")
