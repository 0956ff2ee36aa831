"""What this machine has to compute with."""

from importlib import import_module
from types import ModuleType

from gpureg import backends


def xp() -> ModuleType:
    """Return the array module to make arrays with: CuPy where a GPU is usable, else NumPy.

    One script then serves both: what it makes with `xp()` is computed on the GPU where there is one.

    Examples
    --------
    >>> import gpureg
    >>> xp = gpureg.xp()
    >>> float(gpureg.L2(0.5)(xp.ones((2, 3))))
    3.0
    """
    if "cuda" in backends.NAMES and backends.load("cuda").unusable() is None:
        return import_module("cupy")
    return import_module("numpy")
