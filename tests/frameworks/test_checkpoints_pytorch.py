"""PyTorch's own checkpoints: whatever `torch.load(weights_only=True)` takes is read the same, and nothing else is."""

import argparse
import collections
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpureg import checkpoints

FORMATS = {"zip": True, "old": False}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
          torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64,
          torch.complex128]  # fmt: skip
NEWER = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


def save(value: Any, path: Path, kind: str) -> list[checkpoints.Entry]:
    """Save a value and read it."""
    torch.save(value, path, _use_new_zipfile_serialization=FORMATS[kind])
    return checkpoints.read(path)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def flat(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of what PyTorch loads, by path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    found: dict[str, torch.Tensor] = {}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in pairs:
        found |= flat(item, f"{name}/{key}" if name else str(key))
    return found


def check(entries: list[checkpoints.Entry], path: Path) -> None:
    """Compare all entries with what PyTorch loads."""
    expected = flat(torch.load(path, weights_only=True))
    assert [entry.name for entry in entries] == list(expected)
    for entry, w in zip(entries, expected.values(), strict=True):
        assert entry.shape == tuple(w.shape)
        if w.layout != torch.strided or w.is_quantized or w.is_meta:
            assert not entry.floating
            continue
        assert entry.dtype == str(w.dtype).removeprefix("torch.")
        assert entry.nbytes == w.numel() * w.element_size()
        assert entry.floating == (entry.dtype in checkpoints.FLOATS)
        if entry.floating:
            exact = w.double().detach().numpy()
            pieces = np.concatenate([np.empty(0), *(piece.astype(np.float64) for piece in entry.pieces(100))])
            assert np.array_equal(pieces, exact.transpose(entry.order).reshape(-1))
            array = entry.array()
            assert (array is None) == entry.dtype.startswith("float8")
            if array is not None:
                assert np.array_equal(array.astype(np.float64), exact)
                stride = tuple(step // array.itemsize for step in array.strides)
                assert (
                    all(a == b or n == 1 for a, b, n in zip(stride, w.stride(), w.shape, strict=True)) or not w.numel()
                )


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (2, 3, 4)], ids=str)
def test_every_dtype_comes_back(tmp_path: Path, kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if kind == "old" and "float8" in str(dtype):
        kind = "zip"  # PyTorch does not save these in the older format
    check(save({"w": (randn(*shape) * 9).to(dtype)}, tmp_path / "a.pt", kind), tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", NEWER, ids=str)
def test_newer_dtypes_are_listed(tmp_path: Path, dtype: torch.dtype) -> None:
    check(save({"w": torch.zeros(3, dtype=dtype)}, tmp_path / "a.pt", "zip"), tmp_path / "a.pt")


VIEWS: dict[str, Any] = {
    "transposed": lambda w: w.T,
    "columns": lambda w: w[:, 2:4],
    "every other": lambda w: w[::2, ::3],
    "expanded": lambda w: w[0].expand(9, -1),
    "permuted": lambda w: w.reshape(2, 3, 7).permute(2, 0, 1),
    "channels last": lambda w: w.reshape(1, 2, 3, 7).to(memory_format=torch.channels_last),
    "unfolded": lambda w: w.reshape(-1).unfold(0, 5, 2),
    "parameter": torch.nn.Parameter,
    "parameter with state": lambda w: _with_state(torch.nn.Parameter(w)),
    "with gradient": lambda w: w.clone().requires_grad_(),
    "sparse": lambda w: w.relu().to_sparse(),
    "sparse rows": lambda w: w.relu().to_sparse_csr(),
    "quantized": lambda w: torch.quantize_per_tensor(w, 0.1, 3, torch.qint8),
    "meta": lambda w: w.to("meta"),
    "buffer": torch.nn.Buffer,
}


def _with_state(parameter: Any) -> Any:
    parameter.note = "kept beside it"
    return parameter


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:.*quantize:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*TypedStorage:UserWarning", "ignore:.*quantize:UserWarning")
def test_every_kind_of_tensor_comes_back(tmp_path: Path, kind: str, name: str) -> None:
    check(save({"w": VIEWS[name](randn(6, 7))}, tmp_path / "a.pt", kind), tmp_path / "a.pt")


class Model(torch.nn.Module):  # type: ignore[misc] # torch has types where it is installed
    """Layers of several kinds, two of which share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.norm = torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x).relu()
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


@pytest.mark.parametrize("kind", FORMATS)
def test_a_training_checkpoint_comes_back(tmp_path: Path, kind: str) -> None:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.arange(11)).sum().backward()
    optimizer.step()
    scheduler.step()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "epoch": 3,
        "best": float("inf"),
        "config": {"name": "test", "sizes": (8, 11), "device": torch.device("cpu"), "dtype": torch.float32},
        "seen": {1, 2},
        "counts": collections.Counter("aab"),
        "ordered": collections.OrderedDict(a=1),
        "bytes": b"\0\xff",
        "shape": torch.Size([2, 3]),
        "complex": 1j,
    }
    entries = save(value, tmp_path / "a.pt", kind)
    check(entries, tmp_path / "a.pt")
    by_name = {entry.name: entry for entry in entries}
    assert by_name["model/head.weight"].source == by_name["model/embedding.weight"].source
    assert "optimizer/state/0/exp_avg" in by_name
    assert by_name["rng"].dtype == "uint8"


@pytest.mark.parametrize("kind", FORMATS)
def test_views_of_one_storage_lie_in_one(tmp_path: Path, kind: str) -> None:
    w = randn(6, 7)
    whole, row = save({"whole": w, "row": w[2]}, tmp_path / "a.pt", kind)
    assert row.source.offset - whole.source.offset == 2 * 7 * 4


def test_a_tensor_alone_is_named_as_the_file(tmp_path: Path) -> None:
    assert [entry.name for entry in save(randn(3), tmp_path / "bias.pt", "zip")] == ["bias"]


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("kind", FORMATS)
def test_code_is_refused_with_its_name_and_not_run(tmp_path: Path, kind: str) -> None:
    value = {"w": randn(3), "x": Payload(tmp_path / "executed")}
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=FORMATS[kind])
    with pytest.raises(
        checkpoints.CheckpointError, match=r"a.pt, byte \d+: .*'(posix|nt).mkdir' is code, which is never run"
    ):
        checkpoints.read(tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "executed").exists()  # it would do harm


REFUSED: dict[str, Any] = {
    "a module": lambda: torch.nn.Linear(2, 3),
    "a namespace": lambda: {"args": argparse.Namespace(lr=0.1), "w": randn(3)},
    "a NumPy array": lambda: {"w": np.ones(3)},
    "a NumPy scalar": lambda: {"best": np.float64(1)},
    "a path": lambda: {"path": Path("x")},
    "a function": lambda: {"f": torch.nn.functional.relu},
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse_the_same(tmp_path: Path, kind: str, name: str) -> None:
    torch.save(REFUSED[name](), tmp_path / "a.pt", _use_new_zipfile_serialization=FORMATS[kind])
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)
    with pytest.raises(checkpoints.CheckpointError, match="is code, which is never run here"):
        checkpoints.read(tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_other_protocols_are_refused_by_both(tmp_path: Path, protocol: int) -> None:
    torch.save({"w": randn(3)}, tmp_path / "a.pt", pickle_protocol=protocol)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)
    with pytest.raises(checkpoints.CheckpointError, match=r"is none that torch\.save writes by default"):
        checkpoints.read(tmp_path / "a.pt")


def test_a_negated_view_is_refused(tmp_path: Path) -> None:
    w = torch.view_as_complex(randn(3, 2)).conj().imag
    assert w.is_neg()
    torch.save({"w": w}, tmp_path / "a.pt")
    with pytest.raises(checkpoints.CheckpointError, match=r"save tensor.resolve_neg\(\)"):
        checkpoints.read(tmp_path / "a.pt")
    torch.save({"w": w.resolve_neg()}, tmp_path / "a.pt")
    check(checkpoints.read(tmp_path / "a.pt"), tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)), tmp_path / "a.pt")
    with pytest.raises(checkpoints.CheckpointError, match=r"makes this a program \(TorchScript\)"):
        checkpoints.read(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", FORMATS)
def test_checkpoints_cut_off_anywhere_are_refused(tmp_path: Path, kind: str) -> None:
    stream = io.BytesIO()
    torch.save({"w": randn(3, 4), "b": randn(4)}, stream, _use_new_zipfile_serialization=FORMATS[kind])
    for size in range(len(stream.getvalue())):
        path = tmp_path / f"{size}.pt"
        path.write_bytes(stream.getvalue()[:size])
        with pytest.raises(checkpoints.CheckpointError, match=r"\.pt, byte \d+: "):
            checkpoints.read(path)
        path.unlink()
