"""The checksum is that of arithmetic.md, and what is measured and counted is what it says it is."""

import hashlib
import os
import subprocess
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpureg.cli.demo import large

TILE = 8192


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """Return the checksum of a size as `checksum.cc` has it, a program written from the definitions alone."""
    program = tmp_path_factory.mktemp("checksum") / "checksum"
    source = Path(__file__).with_name("checksum.cc")
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-O2", "-ffp-contract=off", "-o", program, source], check=True)

    def checksum(size: int) -> str:
        output = subprocess.run([program, str(size)], stdout=subprocess.PIPE, check=True).stdout
        return hashlib.sha256(output).hexdigest()[:16]

    return checksum


@pytest.mark.parametrize("size", [1, 511, TILE, 3 * TILE + 5])
def test_the_checksum_is_that_of_an_independent_program(independent: Callable[[int], str], size: int) -> None:
    w, grad = large.inputs(size)
    assert large.checksum(large.fused(w, grad), grad) == independent(size)


@pytest.mark.slow
def test_the_expected_checksum_is_found_by_both(independent: Callable[[int], str]) -> None:
    w, grad = large.inputs(large.SIZE)
    assert large.checksum(large.fused(w, grad), grad) == large.EXPECTED
    assert independent(large.SIZE) == large.EXPECTED


def test_the_expected_checksum_is_the_readme_s() -> None:
    readme = Path(__file__).parents[2] / "README.md"
    assert f"\n    {large.EXPECTED}\n" in readme.read_text(encoding="utf-8")


def test_the_checksum_sees_every_bit() -> None:
    penalty, grad = np.float32(1), np.ones(3, np.float32)
    changed = grad.copy()
    changed.view(np.uint32)[2] ^= 1
    assert len({large.checksum(*pair) for pair in ((penalty, grad), (penalty, changed), (np.float32(2), grad))}) == 3


def test_a_checksum_that_differs_is_said_loudly_and_fails() -> None:
    message, status = large.verdict("0123456789abcdef", large.SIZE)
    assert "DIFFERS" in message
    assert large.EXPECTED in message
    assert status == 1
    assert large.verdict(large.EXPECTED, large.SIZE) == (f"checksum {large.EXPECTED}, as on every machine", 0)
    assert large.verdict("0123456789abcdef", 8)[1] == 0


def test_the_act_ends_with_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], independent: Callable[[int], str]
) -> None:
    monkeypatch.setattr(large, "SIZE", TILE)
    monkeypatch.setattr(large, "EXPECTED", independent(TILE))
    assert large.run(TILE) == 0
    text = capsys.readouterr().out
    assert text.endswith("as on every machine\n")
    assert f"the gradients are equal in all {TILE:,} elements" in text
    monkeypatch.setattr(large, "EXPECTED", "0" * 16)
    assert large.run(TILE) == 1
    assert "DIFFERS" in capsys.readouterr().out


class Counting(np.ndarray[Any, Any]):
    """An array that counts the elements that operations on it read and write."""

    moved = 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: Any, *inputs: Any, out: Any = (), **options: Any) -> Any:
        def bare(arrays: Iterable[Any]) -> tuple[Any, ...]:
            return tuple(a.view(np.ndarray) if isinstance(a, Counting) else a for a in arrays)

        if out:
            options["out"] = bare(out)
        result = getattr(ufunc, method)(*bare(inputs), **options)
        Counting.moved += sum(a.size for a in (*inputs, result) if isinstance(a, np.ndarray))
        return result.view(Counting) if isinstance(result, np.ndarray) else result


def test_bytes_moved_are_those_of_the_operations() -> None:
    w, grad = (array.view(Counting) for array in large.inputs(1000))
    Counting.moved = 0
    large.plain(np, w, grad)
    assert Counting.moved == 1000 * sum(n for _, n in large.PLAIN)


def test_the_plain_expression_says_the_same() -> None:
    w, grad = large.inputs(TILE)
    other = grad.copy()
    assert float(large.plain(np, w, other)) == pytest.approx(float(large.fused(w, grad)), rel=1e-6)
    np.testing.assert_allclose(other, grad, rtol=1e-6, atol=1e-9)


def test_scratch_is_the_most_held_at_once() -> None:
    def work() -> NDArray[np.float64]:
        np.ones(2**17)
        return np.ones(2**16) + np.ones(2**16)

    assert 2**20 <= large.scratch_bytes(np, work) < 2**20 + 2**19
    assert large.scratch_bytes(np, lambda: None) < 2**16


def test_runs_are_in_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    times = large.interleaved_milliseconds(np, [lambda: calls.append("A"), lambda: calls.append("B")], runs=3)
    assert "".join(calls) == "ABABABAB"
    assert all(time >= 0 for time in times)


class FakeCuda:
    """What the act needs of `cupy.cuda`, and a record of how it is used."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def get_current_stream(self) -> Any:
        return types.SimpleNamespace(synchronize=lambda: self.log.append("synchronize"))

    def MemoryPool(self) -> Any:  # noqa: N802
        return types.SimpleNamespace(malloc="its malloc", total_bytes=lambda: 4096)

    @contextmanager
    def using_allocator(self, allocator: object) -> Iterator[None]:
        self.log.append(f"allocator {allocator}")
        yield
        self.log.append("allocator back")


def test_a_gpu_is_waited_for() -> None:
    cuda = FakeCuda()
    cupy = types.ModuleType("cupy")
    cupy.cuda = cuda  # type: ignore[attr-defined]
    work: Callable[[], object] = lambda: cuda.log.append("work")  # noqa: E731
    large.interleaved_milliseconds(cupy, [work], runs=1)
    assert cuda.log == ["work", "synchronize"] * 2
    cuda.log.clear()
    assert large.scratch_bytes(cupy, work) == 4096
    assert cuda.log == ["allocator its malloc", "work", "synchronize", "allocator back"]
