"""Zip archives: directories that lie, members that are bombs."""

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from gpureg import checkpoints
from gpureg.checkpoints import archives
from gpureg.checkpoints.files import Window
from tests.checkpoints.samples import W, archive, elements, npy, npz, read

STORED, DEFLATED = npz(False, w=W), npz(True, w=W)


def read_whole(path: Path, data: bytes) -> None:
    for entry in read(path, data):
        list(entry.pieces())


def refusal(tmp_path: Path, data: bytes) -> str:
    """Return what is said of an archive and its members, whose elements are read as far as they go."""
    with pytest.raises(checkpoints.CheckpointError) as caught:
        read_whole(tmp_path / "a.npz", data)
    assert re.match(rf"{tmp_path}/a.npz, byte \d+: ", str(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{tmp_path}/a.npz, ")


def patched(data: bytes, signature: bytes, at: int, fmt: str, *values: int) -> bytes:
    """Return an archive with some values changed in the last record of a signature."""
    place = data.rindex(signature) + at
    return data[:place] + struct.pack(fmt, *values) + data[place + struct.calcsize(fmt) :]


CENTRAL, END, LOCAL = b"PK\1\2", b"PK\5\6", b"PK\3\4"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (patched(STORED, END, 10, "<H", 2), "an entry of the directory needs 46 bytes"),
        (patched(STORED, END, 10, "<H", 0), "the directory of 0 members should end here, not 51 bytes later"),
        (patched(STORED, END, 12, "<L", 2**31), "a directory of 2147483648 bytes for 1 members; at most"),
        (patched(STORED, END, 12, "<L", 50), "a member's name needs"),
        (patched(STORED, END, 16, "<L", 2**31), "the archive's directory needs"),
        (patched(STORED, END, 16, "<L", 0), "an entry of the directory should begin here"),
        (patched(STORED, END, 10, "<H", 0xFFFF), "the archive needs a 64-bit directory, and has none"),
        (patched(STORED, END, 16, "<L", 2**32 - 1), "the archive needs a 64-bit directory, and has none"),
        (patched(STORED, END, 20, "<H", 1), "the archive has no directory at its end"),
        (STORED + b"x", "the archive has no directory at its end"),
        (patched(STORED, CENTRAL, 8, "<H", 1), "member 'w.npy' is encrypted"),
        (patched(STORED, CENTRAL, 10, "<H", 14), "member 'w.npy' is compressed by method 14; stored and deflated"),
        (patched(STORED, CENTRAL, 24, "<L", 1000), "member 'w.npy' is stored, but declares 1000 bytes in"),
        (patched(STORED, CENTRAL, 20, "<LL", 1000, 1000), "member 'w.npy' needs 1000 bytes"),
        (patched(STORED, CENTRAL, 28, "<H", 2000), "a member's name needs 2000 bytes"),
        (patched(STORED, CENTRAL, 30, "<H", 2000), "a member's extra field needs 2000 bytes"),
        (patched(STORED, CENTRAL, 32, "<H", 1), "the directory of 1 members should end here"),
        (patched(STORED, CENTRAL, 42, "<L", 1), "member 'w.npy' should begin here, as the directory says"),
        (patched(STORED, CENTRAL, 42, "<L", 2**31), "member 'w.npy' needs 30 bytes"),
        (patched(STORED, CENTRAL, 42, "<L", 2**32 - 1), "a member's 64-bit sizes are missing"),
        (patched(STORED, CENTRAL, 46, "<B", ord("v")), "member 'v.npy' should begin here, as the directory says"),
        (patched(patched(STORED, CENTRAL, 46, "<B", 0xFF), CENTRAL, 8, "<H", 0x800), "a member's name is not UTF-8"),
        (patched(npz(False, v=W, w=W), LOCAL, 0, "<L", 0), "member 'w.npy' should begin here"),
        (patched(STORED, LOCAL, 28, "<H", 60000), "member 'w.npy' needs"),
        (patched(STORED, LOCAL, 28, "<H", 30), "the directory begins within member 'w.npy'"),
    ],
)  # fmt: skip
def test_a_directory_that_lies_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    assert complaint in refusal(tmp_path, data)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("w.npy", npy(W))
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("w.npy", npy(W))
    assert "a second member is named 'w.npy'" in refusal(tmp_path, stream.getvalue())


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """As in an archive of petabytes whose members are all the same few bytes."""
    data = archive({"v.npy": npy(W), "w.npy": npy(W)})
    within = data.index(LOCAL, 1)
    entry = data.index(CENTRAL)
    packed = struct.unpack_from("<L", data, entry + 20)[0] + 40
    data = data[: entry + 20] + struct.pack("<LL", packed, packed) + data[entry + 28 :]
    assert f"byte {within}: member 'w.npy' begins within member 'v.npy'" in refusal(tmp_path, data)


def bomb(size: int, declared: int) -> bytes:
    """Return an archive whose member holds `size` zeros, and declares another number."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b""
    block = bytes(2**20)
    for _ in range(size // len(block)):
        packed += pack.compress(block)
    packed += pack.flush()
    name = b"w.npy"
    local = LOCAL + struct.pack("<5H3L2H", 20, 0, 8, 0, 0, 0, len(packed), declared, len(name), 0) + name
    central = CENTRAL + struct.pack(
        "<6H3L5H2L", 20, 20, 0, 8, 0, 0, 0, len(packed), declared, len(name), 0, 0, 0, 0, 0, 0
    )
    end = END + struct.pack("<4H2LH", 0, 0, 1, 1, len(central) + len(name), len(local) + len(packed), 0)
    return local + packed + central + name + end


def member(data: bytes) -> archives.Member:
    window = Window(Path("a.zip"), np.frombuffer(data, np.uint8))
    return archives.members(window)["w.npy"]


def test_a_bomb_goes_off_at_the_size_it_declares() -> None:
    sizes: list[int] = []
    blocks = member(bomb(2**28, 3_000_000)).blocks()
    with pytest.raises(checkpoints.CheckpointError, match="holds more than the 3000000 bytes it declares"):
        sizes.extend(map(len, blocks))
    assert max(sizes) <= archives.BLOCK
    assert sum(sizes) <= 3_000_000


def test_a_member_that_holds_less_is_refused() -> None:
    with pytest.raises(checkpoints.CheckpointError, match=r"ends 2951424 bytes before the 4000000 it declares"):
        list(member(bomb(2**20, 4_000_000)).blocks())


def test_a_member_without_its_end_is_refused(tmp_path: Path) -> None:
    assert "member 'w.npy' ends" in refusal(tmp_path, patched(DEFLATED, CENTRAL, 20, "<L", 60))


def test_broken_compression_is_refused(tmp_path: Path) -> None:
    start = DEFLATED.index(b"w.npy") + 5 + 20
    assert "is broken: Error -3" in refusal(tmp_path, DEFLATED[:start] + b"\xff" * 9 + DEFLATED[start + 9 :])


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    assert "member 'w.npy' has another checksum than" in refusal(tmp_path, patched(DEFLATED, CENTRAL, 16, "<L", 1))


def test_a_directory_has_a_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_TENSORS", 1)
    assert "for 2 members; at most" in refusal(tmp_path, npz(False, v=W, w=W))
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 20)
    assert "a directory of 51 bytes" in refusal(tmp_path, STORED)


def test_a_comment_may_follow(tmp_path: Path) -> None:
    comment = b"a comment with PK\5\6 in it, and more bytes than the end of a directory has"
    data = patched(STORED, END, 20, "<H", len(comment)) + comment
    assert np.array_equal(elements(read(tmp_path / "w.npz", data)[0]), W.reshape(-1))


def test_64_bit_directories_are_read(tmp_path: Path) -> None:
    """As PyTorch writes them whatever the size."""
    at, size = STORED.index(CENTRAL), STORED.rindex(END) - STORED.index(CENTRAL)
    entry = STORED[at : at + size]
    packed, declared = struct.unpack_from("<LL", entry, 20)
    extra = struct.pack("<HHB", 99, 1, 0) + struct.pack("<HHQQQ", 1, 24, declared, packed, 0)
    wide = (
        entry[:20]
        + b"\xff" * 8
        + entry[28:30]
        + struct.pack("<H", len(extra))
        + entry[32:42]
        + b"\xff" * 4
        + entry[46:]
    )
    wide += extra
    record = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, len(wide), at)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, at + len(wide), 1)
    end = END + b"\0" * 4 + b"\xff" * 12 + b"\0\0"
    data = STORED[:at] + wide + record + locator + end
    assert np.array_equal(elements(read(tmp_path / "w.npz", data)[0]), W.reshape(-1))
    broken = data.replace(b"PK\6\6", b"PK\6\5")
    assert "the 64-bit directory should end here" in refusal(tmp_path, broken)
    far = patched(data, b"PK\6\7", 8, "<Q", 2**63)
    assert "the end of the 64-bit directory needs 56 bytes" in refusal(tmp_path, far)
    many = patched(data, b"PK\6\6", 32, "<Q", 2**63)
    assert "bytes for 9223372036854775808 members; at most" in refusal(tmp_path, many)


def test_an_empty_archive_is_no_checkpoint(tmp_path: Path) -> None:
    assert "byte 0: an archive that holds no array of NumPy's" in refusal(tmp_path, archive({}))
    assert "byte 0: an archive that holds no array of NumPy's" in refusal(tmp_path, archive({"a.txt": b"text"}))
