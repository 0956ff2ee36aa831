"""Keras's own files: each variable of a model is there, with its value and its layer's name."""

import os
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from gpureg import checkpoints


def model(dtype: str = "float32") -> Any:
    """Return a model of several kinds of layers, one model within another."""
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [layers.Input((6,)), layers.Dense(4, name="projection"), layers.PReLU(name="slopes")], name="inner"
    )
    inputs = keras.Input((5, 3))
    x = layers.Conv1D(6, 2, name="convolution", dtype=dtype)(inputs)
    x = layers.BatchNormalization(name="normalization")(x)
    x = layers.LSTM(6, name="memory")(x)
    outputs = layers.Dense(2, name="head", dtype=dtype)(inner(x))
    whole = keras.Model(inputs, outputs, name="whole")
    whole.compile(keras.optimizers.Adam(), "mse")
    whole.optimizer.build(whole.trainable_variables)
    return whole


def elements(entry: checkpoints.Entry) -> Any:
    """Return the elements of an entry, all of which are float here, in its shape."""
    array = entry.array()
    assert array is not None
    assert np.array_equal(np.concatenate([*entry.pieces(7)]), array.reshape(-1))
    return array


EXPECTED = {  # by layer: the variables in the order in which Keras numbers them
    "layers/convolution/vars": "convolution",
    "layers/normalization/vars": "normalization",
    "layers/memory/cell/vars": "memory",
    "layers/inner/layers/projection/vars": "projection",
    "layers/inner/layers/slopes/vars": "slopes",
    "layers/head/vars": "head",
}


@pytest.mark.parametrize("kind", ["a.keras", "a.weights.h5"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_variable_comes_back(tmp_path: Path, kind: str, dtype: str) -> None:
    whole = model(dtype)
    path = tmp_path / kind
    (whole.save if kind == "a.keras" else whole.save_weights)(path)
    entries = {entry.name: entry for entry in checkpoints.read(path)}
    found = []
    for folder, layer in EXPECTED.items():
        part = whole.get_layer("inner").get_layer(layer) if "inner" in folder else whole.get_layer(layer)
        variables = [v for v in part.weights if "seed" not in v.path]
        for index, variable in enumerate(variables):
            entry = entries[f"{folder}/{index}"]
            found.append(entry.name)
            assert entry.dtype == keras.backend.standardize_dtype(variable.dtype)
            assert entry.shape == tuple(variable.shape)
            value = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float64"))
            assert np.array_equal(elements(entry).astype(np.float64), value)
    others = [name for name in entries if name not in found]
    assert all(name.startswith("optimizer/vars/") for name in others)
    assert len(others) == len(whole.optimizer.variables)


def test_an_optimizer_comes_back(tmp_path: Path) -> None:
    whole = model()
    whole.save(tmp_path / "a.keras")
    entries = {entry.name: entry for entry in checkpoints.read(tmp_path / "a.keras")}
    for index, variable in enumerate(whole.optimizer.variables):
        entry = entries[f"optimizer/vars/{index}"]
        assert entry.shape == tuple(variable.shape)
        if entry.floating:
            assert np.array_equal(elements(entry), keras.ops.convert_to_numpy(variable))


def test_layers_within_a_model_of_one_s_own(tmp_path: Path) -> None:
    """Attributes are paths as they are: only where layers are numbered do their names stand in."""

    class Own(keras.Model):  # type: ignore[misc] # Keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.first = layers.Dense(3, name="named")
            self.rest = [layers.Dense(3), layers.Dense(3)]

        def call(self, x: Any) -> Any:
            for layer in (self.first, *self.rest):
                x = layer(x)
            return x

    own = Own()
    own(np.ones((1, 2), np.float32))
    own.save_weights(tmp_path / "a.weights.h5")
    entries = {entry.name: entry for entry in checkpoints.read(tmp_path / "a.weights.h5")}
    assert np.array_equal(elements(entries["first/vars/0"]), keras.ops.convert_to_numpy(own.first.kernel))
    assert len(entries) == 6


def test_a_model_s_weights_are_mapped_where_they_lie(tmp_path: Path) -> None:
    model().save(tmp_path / "a.keras")
    contents = (tmp_path / "a.keras").read_bytes()
    for entry in checkpoints.read(tmp_path / "a.keras"):
        if entry.floating:
            assert contents[entry.source.offset :].startswith(elements(entry).tobytes())


def test_a_model_cut_off_is_refused(tmp_path: Path) -> None:
    whole = model()
    whole.save(tmp_path / "a.keras")
    whole.save_weights(tmp_path / "a.weights.h5")
    for path in (tmp_path / "a.keras", tmp_path / "a.weights.h5"):
        for size in reversed(range(0, path.stat().st_size, 31)):
            os.truncate(path, size)
            with pytest.raises(checkpoints.CheckpointError, match=r", byte \d+: "):
                checkpoints.read(path)


def test_an_archive_that_was_packed_anew_is_read_if_it_is_stored(tmp_path: Path) -> None:
    model().save(tmp_path / "a.keras")
    expected = [entry.name for entry in checkpoints.read(tmp_path / "a.keras")]
    for method, name in ((zipfile.ZIP_STORED, "b.keras"), (zipfile.ZIP_DEFLATED, "c.keras")):
        with zipfile.ZipFile(tmp_path / "a.keras") as old, zipfile.ZipFile(tmp_path / name, "w", method) as new:
            for member in old.namelist():
                new.writestr(member, old.read(member))
    assert [entry.name for entry in checkpoints.read(tmp_path / "b.keras")] == expected
    with pytest.raises(checkpoints.CheckpointError, match=r"member 'model.weights.h5' is compressed"):
        checkpoints.read(tmp_path / "c.keras")
