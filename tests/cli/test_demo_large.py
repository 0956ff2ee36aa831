"""The checksum is that of arithmetic.md, and what is measured and counted is what it says it is."""

import hashlib
import math
import struct
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpureg.cli.demo import large

MASK = 2**64 - 1
TILE, LANES = 8192, 512


def float32(number: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


def weight(index: int, seed: int) -> float:
    z = (index + 1 + (seed << 40)) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    z ^= z >> 31
    return (2 * sum(z.to_bytes(8, "little")[:6]) - 6 * 255) * 2.0**-13


def tree(leaves: list[float]) -> float:
    while len(leaves) > 1:
        leaves = [*leaves, 0.0] if len(leaves) % 2 else leaves
        leaves = [a + b for a, b in zip(leaves[::2], leaves[1::2], strict=True)]
    return leaves[0]


def tensor_sum(terms: list[float]) -> float:
    tiles = []
    for start in range(0, len(terms), TILE):
        lanes = [0.0] * LANES
        for i, term in enumerate(terms[start : start + TILE]):
            lanes[i % LANES] += term
        tiles.append(tree(lanes))
    return tree(tiles)


def recipe(size: int) -> str:
    """The act's checksum in plain Python. (A float64 sum of two float32, rounded, is the float32 sum: 53 >= 2*24+2.)"""
    l1, l2 = large.REGULARIZER.l1, large.REGULARIZER.l2
    weights = [weight(i, 0) for i in range(size)]
    penalty = float32(l1 * tensor_sum([abs(w) for w in weights]) + l2 * tensor_sum([w * w for w in weights]))
    c1, c2 = float32(l1), float32(2 * l2)
    gradients = []
    for i, w in enumerate(weights):
        g = float32((math.copysign(c1, w) if w else 0.0) + float32(c2 * w))
        gradients.append(float32(weight(i, 1) / 32 + g))
    return hashlib.sha256(struct.pack(f"<{size + 1}f", penalty, *gradients)).hexdigest()[:16]


def test_the_checksum_is_that_of_a_naive_loop() -> None:
    size = 3 * TILE + 5
    w, grad = large.inputs(size)
    assert large.checksum(large.fused(w, grad), grad) == recipe(size)


@pytest.mark.slow
def test_the_expected_checksum_is_found() -> None:
    w, grad = large.inputs(large.SIZE)
    assert large.checksum(large.fused(w, grad), grad) == large.EXPECTED


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


def test_the_act_ends_with_the_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(large, "SIZE", TILE)
    monkeypatch.setattr(large, "EXPECTED", recipe(TILE))
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
