"""Checkpoints of any format as one thing: a list of entries, one for each tensor.

`read(path)` reads the headers, checks all of them, and returns the entries; elements are read when they are asked for,
mapped where the file holds them as they are and in pieces of bounded size elsewhere, so that a file may be larger than
memory. Nothing is needed but NumPy, and ml_dtypes for the elements of bfloat16 tensors. Nothing in a file is ever run,
no link to another file is followed, and what a file declares is compared with what it holds before it is believed: a
file that is broken, or made to harm, is a `CheckpointError`.

A file must not change while it is read: if one that is mapped becomes shorter, the operating system ends the process.
"""

import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gpureg.checkpoints import archives, hdf5, keras, numpy, pytorch, safetensors
from gpureg.checkpoints.entries import FLOATS, Entry, Source
from gpureg.checkpoints.files import CheckpointError, Window, mode, open_file

__all__ = ["FLOATS", "CheckpointError", "Entry", "Source", "read"]


def read(path: str | os.PathLike[str]) -> list[Entry]:
    """Return the tensors of a checkpoint, in the order in which the file tells of them; Keras's by their names.

    | path | format |
    | --- | --- |
    | `.safetensors` | safetensors |
    | a folder | its `model.safetensors`, else the shards of its index, else all its .safetensors files |
    | `model.safetensors.index.json` | the shards it names, which must be beside it |
    | `.npy` | one array, named as the file |
    | `.npz` | arrays by name |
    | `.pt`, `.pth`, `.bin` | PyTorch, both formats: nested mappings and lists, their keys joined by slashes |
    | `.keras`, `.weights.h5` | Keras: paths of variables, with the names of layers where the file has them |

    The format is told by the contents of a file. PyTorch checkpoints are read as `torch.load(weights_only=True)` reads
    them, but without PyTorch; tensors that share memory have an entry for each name.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is of no known format, is broken, or would have to run code to be loaded.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile
    >>> from gpureg import checkpoints
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "weights.npz")
    ...     np.savez_compressed(path, kernel=np.full((2, 3), 0.5), steps=np.arange(3))
    ...     for entry in checkpoints.read(path):
    ...         print(entry, [piece.tolist() for piece in entry.pieces()] if entry.floating else "is listed only")
    <Entry 'kernel': float64 (2, 3)> [[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]
    <Entry 'steps': int64 (3,)> is listed only
    """
    path = Path(path)
    if stat.S_ISDIR(mode(path)):
        return safetensors.read_folder(path)
    window = open_file(path)
    return _reader(path, window.data[:16].tobytes())(window)


def _reader(path: Path, head: bytes) -> Callable[[Window], list[Entry]]:
    """Return what reads a file that begins so; a safetensors file or an index has no beginning of its own."""
    for beginning, reader in _BEGINNINGS:
        if head.startswith(beginning):
            return reader
    if path.suffix == ".json":
        return safetensors.read_index
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return safetensors.read_file
    return pytorch.read_old if head.startswith(pickle.PROTO) else _refuse


def _read_archive(window: Window) -> list[Entry]:
    members = archives.members(window)
    if any(name.endswith(("/data.pkl", "/constants.pkl")) for name in members):
        return pytorch.read_zip(window, members)
    if keras.is_model(members):
        return keras.read_model(window, members)
    return numpy.read_npz(window, members)


def _refuse(window: Window) -> NoReturn:
    formats = "safetensors, .npy, .npz, PyTorch's .pt, .keras and .weights.h5"
    raise window.error(0, f"this begins as no format that is read: {formats}")


_BEGINNINGS = (
    *((beginning, _read_archive) for beginning in archives.BEGINNINGS),
    (numpy.MAGIC, numpy.read_npy),
    (hdf5.SIGNATURE, keras.read_weights),
)
