"""Keras files: .weights.h5, HDF5, and .keras, a zip archive that holds one."""

import math
import re
from collections.abc import Callable

from gpureg.checkpoints import hdf5
from gpureg.checkpoints.archives import Member
from gpureg.checkpoints.entries import Elements, Entries, Entry, Mapped, Streamed, stored_dtype
from gpureg.checkpoints.files import Window, quoted

_WEIGHTS = "model.weights.h5"


def is_model(members: dict[str, Member]) -> bool:
    """Return whether the members of an archive are those of a .keras file."""
    return "config.json" in members or _WEIGHTS in members


def read_model(window: Window, members: dict[str, Member]) -> list[Entry]:
    """Read a .keras file."""
    if _WEIGHTS not in members:
        raise window.error(0, f"the archive of a Keras model has no {quoted(_WEIGHTS)}")
    return read_weights(members[_WEIGHTS].stored())


def read_weights(window: Window) -> list[Entry]:
    """Read HDF5 weights. The variables are named by their paths, and layers as the model names them."""
    tree = hdf5.read(window)
    paths = [dataset.path for dataset in tree.datasets]
    named = [_named(path, tree.groups) for path in paths]
    if len(set(named)) != len(named):
        named = paths
    entries = Entries(window)
    for dataset, name in zip(tree.datasets, named, strict=True):
        dtype = dataset.datatype.name
        if dataset.attributes.get("dtype") == "bfloat16" and dtype == "void16":
            dtype = (
                "bfloat16"  # which HDF5 does not know, so that Keras writes it as bytes, and beside them what they are
            )
        nbytes = entries.nbytes(dataset.header, name, dataset.shape, 8 * dataset.datatype.itemsize)
        at = dataset.at
        entries.add(dataset.header, name, dataset.shape, dtype, nbytes, at, _elements(window, dataset, dtype))
    return entries.found


def _named(path: str, groups: dict[str, dict[str, str]]) -> str:
    """Return a variable's path with the names of layers in place of those that Keras numbers them by in a file.

    `layers/dense_1/vars/0` is `layers/hidden/vars/0` for a layer named hidden: the group `vars` has it as attribute.
    """
    parts = path.split("/")
    for index in range(1, len(parts)):
        if parts[index - 1] == "layers":
            own = groups.get("/".join([*path.split("/")[: index + 1], "vars"]), {}).get("name", "")
            parts[index] = own if re.fullmatch(r"[^/\x00-\x1f]+", own) else parts[index]
    return "/".join(parts)


def _elements(window: Window, dataset: hdf5.Dataset, dtype: str) -> Callable[[], Elements]:
    def elements() -> Elements:
        stored = stored_dtype(dtype, dataset.datatype.byte_order)
        count = math.prod(dataset.shape)
        if dataset.blocks is not None:
            return Streamed(dtype, stored, count, tuple(range(len(dataset.shape))), dataset.blocks)
        return Mapped(dtype, window.elements(dataset.at, stored, count, "a dataset").reshape(dataset.shape))

    return elements
