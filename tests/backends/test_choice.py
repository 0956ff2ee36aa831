"""Which backend computes what is in the CPU's memory: the fastest there is, or the one that was chosen."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpureg
from gpureg import backends
from gpureg.backends import llvm
from tests import reference
from tests.conftest import CPU_BACKENDS
from tests.helpers import DTYPES, REGULARIZERS, assert_bits, content, values
from tests.reference import Rule

MISSING = "llvmlite is not installed: pip install 'gpureg[cpu]'"


@pytest.fixture(autouse=True)
def _automatic() -> Iterator[None]:
    yield
    backends.set_backend(None)


def told(script: str, **variables: str) -> str:
    """Return what a script tells, with environment variables."""
    environment = {name: value for name, value in os.environ.items() if name != "GPUREG_BACKEND"} | variables
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    assert found.stderr == ""
    return found.stdout.strip()


def test_at_first_the_fastest_that_can_be_used_computes() -> None:
    assert told("import gpureg; print(gpureg.get_backend())") == "llvm"
    missing = "import sys; sys.modules['llvmlite'] = None; import gpureg; print(gpureg.get_backend())"
    assert told(missing) == "numpy"


@pytest.mark.parametrize(("given", "name"), [("numpy", "numpy"), ("llvm", "llvm"), ("", "llvm")])
def test_the_environment_may_say_which(given: str, name: str) -> None:
    assert told("import gpureg; print(gpureg.get_backend())", GPUREG_BACKEND=given) == name


def test_a_choice_by_the_environment_that_cannot_be_kept_is_an_error() -> None:
    script = """
import sys
sys.modules["llvmlite"] = None
import numpy, gpureg
for call in (lambda: gpureg.l1_loss(numpy.ones(3)), gpureg.get_backend):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
gpureg.set_backend("numpy")
print(gpureg.l1_loss(numpy.ones(3)))
"""
    lines = told(script, GPUREG_BACKEND="llvm").splitlines()
    assert lines == [f"RuntimeError GPUREG_BACKEND is 'llvm', which cannot be used here: {MISSING}"] * 2 + ["3.0"]
    lines = told(script, GPUREG_BACKEND="cuda").splitlines()
    assert lines == ["ValueError GPUREG_BACKEND is 'cuda'; expected 'llvm' or 'numpy'"] * 2 + ["3.0"]


@pytest.mark.parametrize("name", ["numpy", "llvm"])
def test_what_is_chosen_computes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    other = {"numpy": "llvm", "llvm": "numpy"}[name]

    def unexpected(*_: Any) -> None:
        raise AssertionError(f"{other} was called")

    gpureg.set_backend(name)
    assert gpureg.get_backend() == backends.cpu().name == name
    monkeypatch.setattr(type(backends.load(other)), "plan", unexpected)
    assert gpureg.l1_loss(np.ones(3)) == 3.0
    assert gpureg.Penalty({"w": np.ones(3)}, gpureg.L1(1.0))() == 3.0
    monkeypatch.setattr(type(backends.load(name)), "plan", unexpected)
    other = name
    with pytest.raises(AssertionError, match=f"{name} was called"):
        gpureg.l1_loss(np.ones(3))


@pytest.mark.parametrize("name", ["cuda", "numba", "", "LLVM"])
def test_what_is_no_backend_of_the_cpu_is_refused(name: str) -> None:
    gpureg.set_backend("numpy")
    with pytest.raises(ValueError, match=rf"^the backend is '{name}'; expected 'llvm' or 'numpy'$"):
        gpureg.set_backend(name)
    assert gpureg.get_backend() == "numpy"


def test_a_backend_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpureg.set_backend("numpy")
    monkeypatch.setattr(llvm.LlvmBackend, "unusable", lambda _: MISSING)
    with pytest.raises(RuntimeError, match=r"^the backend is 'llvm', which cannot be used here: .*'gpureg\[cpu\]'$"):
        gpureg.set_backend("llvm")
    assert gpureg.get_backend() == "numpy"
    gpureg.set_backend(None)
    assert gpureg.get_backend() == "numpy"


def test_all_backends_of_the_cpu_are_there() -> None:
    assert backends.NAMES == ("numpy", "llvm", "cuda")
    for name in ("numpy", "llvm"):
        assert backends.load(name).name == name


def test_a_penalty_keeps_the_backend_that_it_was_planned_with() -> None:
    """A choice counts for what is planned after it, and changes no bit."""
    weights = {str(i): np.linspace(-1.0, 1.0, 50 + i) for i in range(5)}
    penalty = gpureg.Penalty(weights, gpureg.L1L2(0.1, 0.2))
    gpureg.set_backend("numpy")
    first = penalty()
    gpureg.set_backend("llvm")
    assert penalty() == first == gpureg.Penalty(weights, gpureg.L1L2(0.1, 0.2))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_elements_have_the_bits_of_the_reference(dtype: str) -> None:
    """Many chunks, dense; and as many that are gathered from among others, with gradients of another layout."""
    dense = content("wide", 2**20 + 3, dtype)
    numbers = values(dense)
    s1, s2 = reference.sums(numbers, dtype)
    start = content("weights", dense.size, dtype)
    regularizer, rule = REGULARIZERS["L1L2"]
    l2_loss = reference.penalty(Rule(l2=1.0, halved=True), s1, s2)
    added = reference.gradient(numbers, dtype, rule, into=dtype, add_to=values(start))
    apart = np.zeros((dense.size, 3), DTYPES[dtype])
    apart[:, 1] = dense
    for name in CPU_BACKENDS:
        backends.set_backend(name)
        for w, grad in ((dense, start[::-1].copy()[::-1]), (apart[:, 1], start.copy())):
            assert_bits(gpureg.l1_loss(w, dtype=np.float64), s1, "float64")
            assert_bits(gpureg.l2_loss(w, dtype=np.float64), l2_loss, "float64")
            regularizer.accumulate_grad(w, grad)
            assert_bits(grad, added, dtype)
