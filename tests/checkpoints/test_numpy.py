"""NumPy's files: what NumPy saves comes back, and headers that lie do not."""

import io
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpureg import checkpoints
from tests.checkpoints.samples import W, archive, elements, npy, npz, read

ARRAYS: dict[str, Any] = {
    "float16": W.astype(np.float16),
    "float32": W,
    "float64": W.astype(np.float64),
    "Fortran": np.asfortranarray(W),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "scalar": np.array(2.5),
    "empty": np.empty((3, 0, 2)),
    "specials": np.array([np.nan, -np.inf, -0.0, 5e-324]),
}
OTHERS: dict[str, Any] = {
    "int8": np.arange(3, dtype=np.int8),
    "bool": np.array([True]),
    "complex64": np.array([1j], np.complex64),
    np.dtype(np.longdouble).name: np.ones(2, np.longdouble),
    "str96": np.array(["abc"]),
    "void80": np.zeros(2, [("a", "i2"), ("b", "f8")]),
    "datetime64[D]": np.zeros(1, "M8[D]"),
    "void16": np.ones(2, ml_dtypes.bfloat16),  # NumPy forgets what it was
}


@pytest.mark.parametrize("kind", ["npy", "stored", "compressed"])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back(tmp_path: Path, name: str, kind: str) -> None:
    w = ARRAYS[name]
    data = npy(w) if kind == "npy" else npz(kind == "compressed", w=w)
    (entry,) = read(tmp_path / f"w.{'npy' if kind == 'npy' else 'npz'}", data)
    assert (entry.name, entry.dtype, entry.shape, entry.nbytes) == ("w", w.dtype.name, w.shape, w.nbytes)
    saved = np.load(io.BytesIO(npy(w)))
    assert elements(entry).tobytes() == saved.tobytes("F" if entry.order != tuple(range(w.ndim)) else "C")
    array = entry.array()
    assert (array is None) == (kind == "compressed")
    if array is not None:
        assert array.tobytes() == w.tobytes()
        assert (array.dtype, array.strides) == (w.dtype, saved.strides)
        assert data[entry.source.offset :].startswith(saved.tobytes("A"))


@pytest.mark.parametrize("kind", ["npy", "stored", "compressed"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_arrays_are_listed(tmp_path: Path, name: str, kind: str) -> None:
    w = OTHERS[name]
    data = npy(w) if kind == "npy" else npz(kind == "compressed", w=w)
    (entry,) = read(tmp_path / f"w.{'npy' if kind == 'npy' else 'npz'}", data)
    assert (entry.dtype, entry.shape, entry.nbytes, entry.floating) == (name, w.shape, w.nbytes, False)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(["<f2", "<f4", "<f8", ">f4"]),
    order=st.sampled_from("CF"),
    compressed=st.booleans(),
    size=st.integers(1, 50),
)
def test_any_array_comes_back(tmp_path: Path, shape: Any, dtype: str, order: Any, compressed: bool, size: int) -> None:
    w = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape, order=order)
    (entry,) = read(tmp_path / "w.npz", npz(compressed, w=w))
    assert elements(entry, size).tolist() == w.transpose(entry.order).reshape(-1).tolist()


def test_an_archive_has_an_entry_for_each_array(tmp_path: Path) -> None:
    data = archive({"b/w.npy": npy(W), "notes.txt": b"text", "a.npy": npy(np.arange(2)), "folder/": b""})
    assert [(entry.name, entry.dtype) for entry in read(tmp_path / "a.npz", data)] == [
        ("b/w", "float32"),
        ("a", "int64"),
    ]


def test_every_version_of_the_header_is_read(tmp_path: Path) -> None:
    for version in ((1, 0), (2, 0), (3, 0)):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, W, version=version)
        assert elements(read(tmp_path / "w.npy", stream.getvalue())[0]).tolist() == W.reshape(-1).tolist()


# Files that lie


def array_file(
    header: str | bytes, data: bytes = b"", length: int | None = None, version: tuple[int, int] = (1, 0)
) -> bytes:
    """Return a .npy file with any header."""
    text = header.encode("latin-1") if isinstance(header, str) else header
    width = "<H" if version == (1, 0) else "<L"
    return b"\x93NUMPY" + bytes(version) + struct.pack(width, len(text) if length is None else length) + text + data


def fields(shape: Any = (2, 3), descr: Any = "<f4", fortran: Any = False, **more: Any) -> str:
    return repr({"descr": descr, "fortran_order": fortran, "shape": shape} | more) + "\n"


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(checkpoints.CheckpointError) as caught:
        read(path, data)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}, ")


HEADERS: dict[str, tuple[bytes, str]] = {
    "version 4": (array_file(fields(), version=(4, 0)), "is of the unknown version (4, 0)"),
    "version 0": (array_file(fields(), version=(0, 0)), "is of the unknown version (0, 0)"),
    "longer than the file": (array_file(fields(), bytes(24), 60000), "NumPy does not understand"),
    "huge": (array_file(fields(), bytes(24), 2**32 - 1, (2, 0)), "NumPy does not understand"),
    "long": (array_file(fields() + " " * 10000, bytes(24)), "NumPy does not understand"),
    "cut": (array_file(fields(), bytes(24), 20), "NumPy does not understand"),
    "no literal": (
        array_file("{'descr': open('x'), 'fortran_order': False, 'shape': ()}"),
        "NumPy does not understand",
    ),
    "call": (array_file("__import__('os').system('touch executed')"), "NumPy does not understand"),
    "no text": (array_file(b"\xff\xfe\0\0"), "NumPy does not understand"),
    "deep": (array_file("(" * 9000), "NumPy does not understand"),
    "deep list": (array_file("[" * 4000 + "]" * 4000), "NumPy does not understand"),
    "number": (array_file("9" * 9000), "NumPy does not understand"),
    "list": (array_file("[]"), "NumPy does not understand"),
    "no shape": (array_file("{'descr': '<f4', 'fortran_order': False}"), "NumPy does not understand"),
    "more": (array_file(fields(more=1)), "NumPy does not understand"),
    "shape is no tuple": (array_file(fields([2, 3])), "NumPy does not understand"),
    "shape of text": (array_file(fields(("a",))), "NumPy does not understand"),
    "negative": (array_file(fields((-1, 2))), "has the impossible shape (-1, 2)"),
    "overflow": (array_file(fields((2**62, 2))), "has the impossible shape"),
    "overflow of 0": (array_file(fields((2**63, 0))), "has the impossible shape"),
    "huge number": (array_file(fields((10**100,))), "has the impossible shape"),
    "many axes": (array_file(fields((1,) * 65)), "has 65 axes; at most 64 are read"),
    "order": (array_file(fields(fortran=1)), "NumPy does not understand"),
    "dtype": (array_file(fields(descr="<f3")), "NumPy does not understand"),
    "dtype of another type": (array_file(fields(descr=7)), "NumPy does not understand"),
    "objects": (array_file(fields(descr="|O")), "holds Python objects, which are pickled: they are never loaded"),
    "objects in fields": (array_file(fields(descr=[("a", "|O")])), "holds Python objects"),
    "an extension's dtype": (array_file(fields(descr="bfloat16")), "has the unknown dtype bfloat16"),
    "too short": (array_file(fields(), bytes(23)), "float32 (2, 3) needs 24 bytes; 23 follow its header"),
    "too long": (array_file(fields(), bytes(25)), "float32 (2, 3) needs 24 bytes; 25 follow its header"),
    "far too short": (
        array_file(fields((2**40,)), bytes(24)),
        "float32 (1099511627776,) needs 4398046511104 bytes; 24",
    ),
}


@pytest.mark.parametrize("kind", ["npy", "stored", "compressed"])
@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
def test_headers_that_lie_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    data, complaint = HEADERS[name]
    if kind != "npy":
        data = archive({"w.npy": data}, zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED)
    path = tmp_path / ("w.npy" if kind == "npy" else "w.npz")
    message = refusal(path, data)
    assert re.match(r"byte \d+: (array|tensor) 'w',? ", message)
    assert complaint in message
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208 - nothing else was made


def test_the_byte_is_that_of_the_member(tmp_path: Path) -> None:
    data = archive({"v.npy": npy(W), "w.npy": b"no array"})
    at = data.index(b"no array")
    assert refusal(tmp_path / "w.npz", data) == f"byte {at}: array 'w' should begin here, as NumPy's arrays do"


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("compressed", [False, True])
def test_pickled_objects_are_never_loaded(tmp_path: Path, compressed: bool) -> None:
    harm = np.array([Payload(tmp_path / "executed")], object)
    data = npz(compressed, good=W, harm=harm)
    with np.load(io.BytesIO(data), allow_pickle=True) as arrays:
        assert arrays["harm"].size == 1
    assert (tmp_path / "executed").exists()  # it would do harm
    (tmp_path / "executed").rmdir()
    assert "array 'harm' holds Python objects, which are pickled: they are never loaded" in refusal(
        tmp_path / "w.npz", data
    )
    assert "holds Python objects" in refusal(tmp_path / "w.npy", npy(harm))
    assert not (tmp_path / "executed").exists()


def test_warnings_of_odd_headers_are_not_shown(tmp_path: Path) -> None:
    """Warnings are errors here: a header of Python 2 warns, and a wrong escape in a literal does."""
    data = array_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L)}", bytes(24))
    assert read(tmp_path / "w.npy", data)[0].shape == (2, 3)
    assert "NumPy does not understand" in refusal(tmp_path / "w.npy", array_file(r"{'\d': 1}"))


@pytest.mark.parametrize("size", [2**18 - 128, 2**18, 2**20 - 128, 2**20, 2**20 + 1])
def test_compressed_arrays_of_whole_blocks_come_back(tmp_path: Path, size: int) -> None:
    """What is left to come when all bytes have been taken is not lost."""
    w = np.zeros(size // 4, np.float32)
    assert elements(read(tmp_path / "w.npz", npz(True, w=w))[0], 10**6).tobytes() == w.tobytes()
