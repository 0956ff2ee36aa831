"""What all entries have in common: their elements in the order of a sum, exactly, in pieces of any size."""

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpureg
from gpureg import checkpoints
from gpureg.arithmetic import memory_order, tile_size
from gpureg.checkpoints.entries import MAX_TENSORS, PIECE, Mapped, Streamed
from tests.checkpoints.samples import SAMPLES, W, elements, header, npy, npz, read, tensor

CODES = np.arange(256, dtype=np.uint8)
LAYOUTS: dict[str, Any] = {
    "C": W,
    "Fortran": np.asfortranarray(W),
    "other order of axes": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "not dense": np.arange(24.0).reshape(4, 6)[:, 1:5],
    "not dense, transposed": np.arange(24.0).reshape(4, 6)[:, 1:5].T,
    "repeated": np.broadcast_to(np.array([1, 2, 3], np.float32), (4, 3)),
    "every other": np.arange(9.0)[::2],
    "axes of length 1": np.arange(6.0).reshape(1, 2, 1, 3),
    "scalar": np.array(3.0),
    "empty": np.empty((2, 0, 3)),
}


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize("name", LAYOUTS)
def test_pieces_follow_the_order_of_sums(name: str, size: int) -> None:
    array = LAYOUTS[name]
    mapped = Mapped(array.dtype.name, array)
    order = memory_order(array)
    assert mapped.order == order
    expected = array.transpose(order).reshape(-1)
    pieces = list(mapped.pieces(size))
    assert [piece.size for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert np.array_equal(np.concatenate([np.empty(0), *pieces]), expected)
    assert mapped.array() is not None
    assert np.shares_memory(mapped.array(), array) or array.size == 0


def test_the_pieces_of_a_dense_array_are_views() -> None:
    assert all(np.shares_memory(piece, W) for piece in Mapped("float32", W).pieces(4))


@pytest.mark.parametrize("size", [1, 4, 7, 100])
@pytest.mark.parametrize("cuts", [[], [0], [3], [1, 2, 2, 23], [8, 16]])
def test_blocks_of_any_length_become_pieces(cuts: list[int], size: int) -> None:
    data = W.tobytes()
    blocks = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    streamed = Streamed("float32", np.dtype("<f4"), W.size, (0, 1), lambda: iter(blocks))
    assert streamed.array() is None
    pieces = list(streamed.pieces(size))
    assert [piece.size for piece in pieces] == [min(size, W.size - start) for start in range(0, W.size, size)]
    assert np.array_equal(np.concatenate(pieces), W.reshape(-1))


@pytest.mark.parametrize(("dtype", "code"), [("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2")])
def test_8_bit_floats_become_float32_exactly(tmp_path: Path, dtype: str, code: str) -> None:
    (entry,) = read(tmp_path / "a.safetensors", header({"w": tensor(code, [16, 16], 0, 256)}, CODES.tobytes()))
    assert (entry.dtype, entry.nbytes, entry.array()) == (dtype, 256, None)
    found = elements(entry, 100)
    expected = CODES.view(getattr(ml_dtypes, dtype)).astype(np.float32)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(expected) | (np.isnan(expected) & np.signbit(found)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_other_byte_order_is_turned(tmp_path: Path, dtype: str) -> None:
    w = np.array([[1, -2.5, 1e-3], [np.inf, 0, -0.0]], dtype)
    (entry,) = read(tmp_path / "w.npy", npy(w.astype(w.dtype.newbyteorder("S"))))
    assert (entry.dtype, entry.array()) == (dtype, None)
    assert elements(entry).dtype == w.dtype
    assert elements(entry).tobytes() == w.tobytes()


def test_what_is_not_float_is_listed_only(tmp_path: Path) -> None:
    (entry,) = read(tmp_path / "i.npy", npy(np.arange(6).reshape(2, 3)))
    assert (entry.dtype, entry.shape, entry.size, entry.nbytes, entry.floating) == ("int64", (2, 3), 6, 48, False)
    for use in (entry.array, entry.pieces, lambda: entry.order):
        with pytest.raises(TypeError, match="tensor 'i' is int64; only the elements of floats are read"):
            use()


@pytest.mark.parametrize("size", [0, -1])
def test_the_size_of_a_piece_is_positive(tmp_path: Path, size: int) -> None:
    (entry,) = read(tmp_path / "w.npy", npy(W))
    with pytest.raises(ValueError, match=f"size must be positive, not {size}"):
        entry.pieces(size)


def test_pieces_are_whole_tiles() -> None:
    assert all(PIECE % tile_size(itemsize) == 0 for itemsize in (2, 4, 8))


def test_arrays_are_read_only_and_outlive_the_list(tmp_path: Path) -> None:
    array = read(tmp_path / "w.npy", npy(W))[0].array()
    assert array is not None
    assert not array.flags.writeable
    assert np.array_equal(array, W)


def test_a_mapped_entry_has_the_bits_of_its_array(tmp_path: Path) -> None:
    w = np.asfortranarray(np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32))
    (entry,) = read(tmp_path / "w.npy", npy(w))
    assert gpureg.L1L2(0.1, 0.3)(entry.array()) == gpureg.L1L2(0.1, 0.3)(w)
    (entry,) = read(tmp_path / "w.npz", npz(True, w=w))
    assert entry.order == (1, 0)
    assert gpureg.L1L2(0.1, 0.3)(elements(entry)) == gpureg.L1L2(0.1, 0.3)(w)


def test_bfloat16_without_ml_dtypes_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = read(tmp_path / "a.safetensors", SAMPLES["a.safetensors"])
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    entry = next(entry for entry in entries if entry.dtype == "bfloat16")
    message = r"a.safetensors: tensor 'a': .*pip install 'gpureg\[bfloat16\]'"
    with pytest.raises(checkpoints.CheckpointError, match=message):
        entry.array()
    with pytest.raises(checkpoints.CheckpointError, match=message):
        next(entry.pieces())


def test_one_file_has_a_limited_number_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_TENSORS == 2**18
    monkeypatch.setattr("gpureg.checkpoints.entries.MAX_TENSORS", 1)
    with pytest.raises(checkpoints.CheckpointError, match="more than 1 tensors in one file"):
        read(tmp_path / "w.npz", npz(False, a=W, b=W))


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [([2**31, 2**32], "impossible shape"), ([0, 2**63], "impossible shape"), ([1] * 65, "65 axes; at most 64")],
)
def test_impossible_shapes_are_refused(tmp_path: Path, shape: list[int], complaint: str) -> None:
    with pytest.raises(checkpoints.CheckpointError, match=rf"a.safetensors, byte 9: tensor 'w' has .*{complaint}"):
        read(tmp_path / "a.safetensors", header({"w": tensor("F32", shape, 0, 0)}))


def test_64_axes_are_read(tmp_path: Path) -> None:
    (entry,) = read(tmp_path / "a.safetensors", header({"w": tensor("F32", [1] * 64, 0, 4)}, bytes(4)))
    array = entry.array()
    assert array is not None
    assert array.shape == (1,) * 64
