"""A file larger than memory is read in a few MiB beside the mapping, and a small one cannot ask for much."""

import functools
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gpureg.checkpoints.pickles import MAX_OBJECTS
from tests.checkpoints.samples import (
    Call,
    Global,
    Persistent,
    pickled,
    storage,
    tensor,
    torch_old,
    torch_zip,
    view,
)

MIB = 2**20
LARGE = 6 * 2**30
"""Bytes of a file of zeros, most of which are nowhere: so it takes no room on the disk."""

# A limit on what a process allocates, counted by the kernel: Python, NumPy and zlib alike. Pages of mapped files do not
# count. What is printed is the error, if that is what comes, or how many elements there were and whether all were zero.
LIMITED = """if True:
    import resource, sys
    import numpy as np
    import ml_dtypes
    from gpureg import checkpoints
    path, limit, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
    try:
        count = 0
        for entry in checkpoints.read(path):
            for number, piece in enumerate(entry.pieces() if entry.floating else ()):
                count += piece.size
                # Every page of a file of gigabytes would be read: some are.
                assert number % step or not np.any(piece[:: max(1, piece.size // 1000)])
        print(count)
    except checkpoints.CheckpointError as error:
        print(error)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of allocations is Linux's")


def limited(path: Path, limit: int = 100 * MIB, step: int = 50) -> str:
    """Return what comes of reading a file in a process that may allocate so much."""
    command = [sys.executable, "-c", LIMITED, str(path), str(limit), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def sparse(path: Path, start: bytes, size: int, end: bytes = b"") -> None:
    """Write a file with zeros between its start and its end."""
    with path.open("wb") as file:
        file.write(start)
        file.seek(len(start) + size)
        file.write(end)
        file.truncate(len(start) + size + len(end))


def safetensors(path: Path, dtype: str) -> None:
    text = json.dumps(
        {"w": tensor(dtype, [LARGE // 2**10, 2**10 // {"F8_E5M2": 1, "BF16": 2, "F32": 4}[dtype]], 0, LARGE)}
    )
    sparse(path, struct.pack("<Q", len(text)) + text.encode(), LARGE)


def npy(path: Path, descr: str) -> None:
    text = repr({"descr": descr, "fortran_order": True, "shape": (LARGE // 2**12, 2**10)}).encode()
    sparse(path, b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text, LARGE)


def npz(path: Path) -> None:
    """Make an archive of one stored member, with 64-bit sizes."""
    npy(path, "<f4")
    with path.open("rb") as file:
        start = file.read(200).rstrip(b"\0")
    size = len(start) + LARGE
    name, wide = b"w.npy", struct.pack("<HHQQ", 1, 16, size, size)
    common = struct.pack("<5H3L", 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1)
    local = b"PK\3\4" + common + struct.pack("<2H", len(name), len(wide)) + name + wide
    entry = b"PK\1\2" + struct.pack("<H", 45) + common + struct.pack("<5H2L", len(name), len(wide), 0, 0, 0, 0, 0)
    entry += name + wide
    at = len(local) + size
    end = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
    end += b"PK\6\7" + struct.pack("<LQL", 0, at + len(entry), 1) + b"PK\5\6" + b"\0" * 4 + b"\xff" * 12 + b"\0\0"
    sparse(path, local + start, LARGE, entry + end)


def torch(path: Path) -> None:
    """Make a checkpoint of the older format."""
    of = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", LARGE // 4, None))
    start = torch_old({"w": view(of, 0, (LARGE // 2**12, 2**10), (2**10, 1))}, {"0": np.empty(0, np.float32)})
    sparse(path, start[:-8] + struct.pack("<q", LARGE // 4), LARGE)


def keras(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (LARGE // 2**12, 2**10), "f4")[-1, -1] = 0


MAPPED: dict[str, tuple[Callable[[Path], None], int]] = {
    "float32.safetensors": (functools.partial(safetensors, dtype="F32"), LARGE // 4),
    "bfloat16.safetensors": (functools.partial(safetensors, dtype="BF16"), LARGE // 2),
    "a.npy": (functools.partial(npy, descr="<f4"), LARGE // 4),
    "a.npz": (npz, LARGE // 4),
    "old.pt": (torch, LARGE // 4),
    "a.weights.h5": (keras, LARGE // 4),
}


@pytest.mark.parametrize("name", MAPPED)
def test_a_large_file_is_mapped(tmp_path: Path, name: str) -> None:
    write, size = MAPPED[name]
    path = tmp_path / name
    write(path)
    assert path.stat().st_size >= LARGE
    assert limited(path) == str(size)


@pytest.mark.parametrize("name", ["float8", "other byte order"])
def test_a_file_that_is_converted_goes_through_piece_by_piece(tmp_path: Path, name: str) -> None:
    """A tensor that would need more than the limit."""
    path = tmp_path / ("a.safetensors" if name == "float8" else "a.npy")
    size = 256 * MIB
    if name == "float8":
        text = json.dumps({"w": tensor("F8_E5M2", [size], 0, size)}).encode()
        sparse(path, struct.pack("<Q", len(text)) + text, size)
    else:
        text = repr({"descr": ">f4", "fortran_order": False, "shape": (size // 4,)}).encode()
        sparse(path, b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text, size)
    assert limited(path) == str(size if name == "float8" else size // 4)


def test_compressed_arrays_go_through_piece_by_piece(tmp_path: Path) -> None:
    w = np.zeros((2**13, 2**13), np.float32)
    np.savez_compressed(tmp_path / "w.npz", w=w)
    assert limited(tmp_path / "w.npz") == str(w.size)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("w", data=w, chunks=(100, 300), compression="gzip", shuffle=True)
    assert limited(tmp_path / "w.h5") == str(w.size)


def test_the_check_sees_a_tensor_in_memory(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", w=np.zeros(2**26, np.float32))
    code = LIMITED.replace("entry.pieces()", "[np.concatenate(list(entry.pieces()))]")
    command = [sys.executable, "-c", code, str(tmp_path / "w.npz"), str(100 * MIB), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MemoryError" in done.stderr


# Small files


@pytest.mark.parametrize(
    "text", [b"[" * 50 * MIB, b'{"a":[' + b"{}," * 16 * MIB + b"{}]}", b'{"a":"' + b"x" * 50 * MIB + b'"}'], ids=len
)
def test_a_header_of_brackets_takes_no_memory(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert "is expected here" in limited(tmp_path / "a.safetensors", 10 * MIB)
    (tmp_path / "a.index.json").write_bytes(text)
    assert re.search(
        "an object is expected|of more than 65536 parts|no tensor in", limited(tmp_path / "a.index.json", 10 * MIB)
    )


def test_a_header_of_metadata_takes_no_memory(tmp_path: Path) -> None:
    text = b'{"__metadata__":{"note":"' + b"x" * 50 * MIB + b'"}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert limited(tmp_path / "a.safetensors", 10 * MIB) == "0"


def test_a_directory_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 65534, 65534, 2**31, 4, 0)
    sparse(tmp_path / "a.npz", b"PK\3\4", 2**31, end)
    assert "a directory of 2147483648 bytes" in limited(tmp_path / "a.npz", 10 * MIB)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join([pack.compress(bytes(16 * MIB)) for _ in range(64)]) + pack.flush()
    common = struct.pack("<5H3L", 20, 0, 8, 0, 0, 0, len(packed), 2**30)
    local = b"PK\3\4" + common + struct.pack("<2H", 5, 0) + b"w.npy"
    entry = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<5H2L", 5, 0, 0, 0, 0, 0, 0) + b"w.npy"
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, len(entry), len(local) + len(packed), 0)
    (tmp_path / "a.npz").write_bytes(local + packed + entry + end)
    assert "array 'w' should begin here" in limited(tmp_path / "a.npz", 10 * MIB)


@pytest.mark.parametrize("part", [b"]", b"}", b"(", b"N", b"N\x85"])
def test_a_pickle_takes_some_memory_only(tmp_path: Path, part: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(torch_zip(b"\x80\x02" + part * (MAX_OBJECTS + 1) + b".", {}))
    message = limited(tmp_path / "a.pt", 250 * MIB)
    assert re.search(r"more than (2097152 objects|1048576 values wait to be used)$", message)


def test_a_memo_takes_some_memory_only(tmp_path: Path) -> None:
    text = b"".join(b"r" + struct.pack("<L", place) for place in range(MAX_OBJECTS + 1))
    (tmp_path / "a.pt").write_bytes(torch_zip(b"\x80\x02N" + text + b".", {}))
    assert "more than 2097152 objects" in limited(tmp_path / "a.pt", 350 * MIB)


def test_a_pickle_does_not_make_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(torch_zip(Call(Global("builtins", "bytearray"), (2**40,)), {}))
    assert limited(tmp_path / "a.pt", 10 * MIB) == "0"
    (tmp_path / "b.pt").write_bytes(torch_zip(b"\x80\x02Nr\xff\xff\xff\x7f.", {}))
    assert limited(tmp_path / "b.pt", 10 * MIB) == "0"
    (tmp_path / "c.pt").write_bytes(torch_zip(pickled(view(storage("0", 2**40), 0, (2**40,), (1,))), {"0": b""}))
    assert "storage '0' has 0 bytes" in limited(tmp_path / "c.pt", 10 * MIB)
