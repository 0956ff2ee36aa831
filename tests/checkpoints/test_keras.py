"""Keras files: HDF5 as the library writes it, and as it had better not."""

import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from gpureg import checkpoints
from gpureg.checkpoints import hdf5 as reader
from tests.checkpoints.samples import HDF5, KERAS, W, archive, elements, hdf5, read


def written(write: Callable[[Any], None], **options: Any) -> bytes:
    """Return the file that a function writes."""
    stream = io.BytesIO()
    with h5py.File(stream, "w", **options) as file:
        write(file)
    return stream.getvalue()


def refusal(tmp_path: Path, data: bytes, name: str = "a.weights.h5") -> str:
    """Return what is said of a file, whose elements are read as far as they go."""
    with pytest.raises(checkpoints.CheckpointError) as caught:
        read_whole(tmp_path / name, data)
    assert re.match(rf"{tmp_path}/{name}, byte \d+: ", str(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{tmp_path}/{name}, ")


def read_whole(path: Path, data: bytes) -> None:
    for entry in read(path, data):
        if entry.floating:
            list(entry.pieces())


@pytest.mark.parametrize(("name", "data"), [("a.weights.h5", HDF5), ("a.keras", KERAS), ("b.h5", hdf5(chunked=True))])
def test_variables_come_back(tmp_path: Path, name: str, data: bytes) -> None:
    kernel, bias, half, step = read(tmp_path / name, data)
    assert [(entry.name, entry.dtype, entry.shape, entry.nbytes) for entry in (kernel, bias, half, step)] == [
        ("layers/hidden/vars/0", "float32", (2, 3), 24),
        ("layers/hidden/vars/1", "float16", (3,), 6),
        ("layers/hidden/vars/2", "bfloat16", (2,), 4),
        ("optimizer/vars/0", "int64", (), 8),
    ]
    assert elements(kernel).tobytes() == W.tobytes()
    assert elements(bias).tolist() == [0, 1, 2]
    assert elements(half).dtype == ml_dtypes.bfloat16
    assert elements(half).tolist() == [1, -2]
    assert not step.floating
    if name != "b.h5":
        assert kernel.source.offset == data.index(W.tobytes())
        array = kernel.array()
        assert array is not None
        assert array.tobytes() == W.tobytes()


DTYPES: dict[str, Any] = {
    "float16": np.float16(1.5),
    "float32": np.float32(1.5),
    "float64": np.float64(1.5),
    "int8": np.int8(-1),
    "uint16": np.uint16(1),
    "int64": np.int64(1),
    "enum8": np.bool_(True),
    "compound64": np.complex64(1j),
    "string24": np.bytes_(b"abc"),
    "void40": np.void(b"12345"),
}


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_has_its_name(tmp_path: Path, name: str) -> None:
    (entry,) = read(tmp_path / "a.h5", written(lambda file: file.create_dataset("w", data=DTYPES[name])))
    assert (entry.name, entry.dtype, entry.floating) == ("w", name, name in checkpoints.FLOATS)
    assert entry.nbytes == DTYPES[name].nbytes
    if entry.floating:
        assert elements(entry).tolist() == [1.5]


def test_variable_texts_are_listed(tmp_path: Path) -> None:
    (entry,) = read(tmp_path / "a.h5", written(lambda file: file.create_dataset("w", data="text")))
    assert entry.dtype == "vlen128"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("chunks", [None, (1, 2)])
def test_both_byte_orders_are_read(tmp_path: Path, order: str, chunks: Any) -> None:
    data = written(lambda file: file.create_dataset("w", data=W.astype(f"{order}f4"), chunks=chunks))
    (entry,) = read(tmp_path / "a.h5", data)
    assert entry.dtype == "float32"
    assert elements(entry).tobytes() == W.tobytes()


def test_bfloat16_as_a_float_of_its_own_is_read(tmp_path: Path) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)

    def write(file: Any) -> None:
        space = h5py.h5s.create_simple((2,))
        dataset = h5py.h5d.create(file.id, b"w", kind, space)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([0x3F80, 0xC000], np.uint16), kind)

    (entry,) = read(tmp_path / "a.h5", written(write))
    assert entry.dtype == "bfloat16"
    assert elements(entry).tolist() == [1, -2]


def test_many_variables_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"layers/dense_{number}/vars/{index}" for number in range(300) for index in range(3)]

    def write(file: Any) -> None:
        for name in names:
            file[name] = np.float32(1)

    assert [entry.name for entry in read(tmp_path / "a.h5", written(write))] == names


def test_names_of_layers_that_are_not_unique_are_not_used(tmp_path: Path) -> None:
    def write(file: Any) -> None:
        for group, name in (("layers/a", "same"), ("layers/b", "same"), ("fc", "dense")):
            variables = file.create_group(f"{group}/vars")
            variables.attrs["name"] = name
            variables["0"] = W

    names = ["fc/vars/0", "layers/a/vars/0", "layers/b/vars/0"]
    assert [entry.name for entry in read(tmp_path / "a.h5", written(write))] == names


def test_attributes_of_a_model_keep_their_names(tmp_path: Path) -> None:
    def write(file: Any) -> None:
        for group in ("model/first", "layers/rest"):
            variables = file.create_group(f"{group}/vars")
            variables.attrs["name"] = "named"
            variables["0"] = W

    names = ["layers/named/vars/0", "model/first/vars/0"]
    assert [entry.name for entry in read(tmp_path / "a.h5", written(write))] == names


@pytest.mark.parametrize("name", ["a/b", "a\nb", "", "x" * 5000, 7, np.arange(3), "ä"])
def test_odd_names_of_layers(tmp_path: Path, name: Any) -> None:
    def write(file: Any) -> None:
        variables = file.create_group("layers/a/vars")
        variables.attrs["name"] = name
        variables["0"] = W

    expected = "layers/ä/vars/0" if isinstance(name, str) and name == "ä" else "layers/a/vars/0"
    assert [entry.name for entry in read(tmp_path / "a.h5", written(write))] == [expected]


def test_fixed_texts_are_names_too(tmp_path: Path) -> None:
    def write(file: Any) -> None:
        variables = file.create_group("layers/a/vars")
        variables.attrs["name"] = np.bytes_(b"fixed")
        variables["0"] = W

    assert [entry.name for entry in read(tmp_path / "a.h5", written(write))] == ["layers/fixed/vars/0"]


# Chunks


@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip"}, {"shuffle": True}, {"compression": 9, "shuffle": True}]
)
@pytest.mark.parametrize("chunks", [(1, 1, 1), (2, 3, 4), (5, 7, 11), (3, 7, 2), (4, 2, 11)])
@pytest.mark.parametrize("limit", [reader.MAX_CHUNK, 5 * 7 * 11 * 4, 200, 1])
def test_chunks_come_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, chunks: tuple[int, ...], options: dict[str, Any]
) -> None:
    """With whatever is read together bounded by so many bytes, or by a chunk if it is larger."""
    w = np.random.default_rng(0).standard_normal((5, 7, 11)).astype(np.float32)
    (entry,) = read(tmp_path / "a.h5", written(lambda file: file.create_dataset("w", data=w, chunks=chunks, **options)))
    assert entry.array() is None
    assert entry.order == (0, 1, 2)
    monkeypatch.setattr(reader, "MAX_CHUNK", max(limit, int(np.prod(chunks)) * 4))
    assert elements(entry, 13).tobytes() == w.tobytes()


def test_a_chunk_may_reach_beyond_the_dataset(tmp_path: Path) -> None:
    data = written(lambda file: file.create_dataset("w", data=W, chunks=(8, 8), maxshape=(None, None)))
    assert elements(read(tmp_path / "a.h5", data)[0]).tobytes() == W.tobytes()


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
@pytest.mark.parametrize("options", [{}, {"chunks": True, "maxshape": (None, None)}])
def test_empty_datasets_have_no_elements(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    options = options | {"maxshape": (None,) * len(shape)} if options else {}
    (entry,) = read(tmp_path / "a.h5", written(lambda file: file.create_dataset("w", shape, "f4", **options)))
    assert (entry.shape, entry.nbytes, list(entry.pieces())) == (shape, 0, [])
    array = entry.array()
    assert array is not None
    assert array.shape == shape


def test_a_compact_dataset_is_read(tmp_path: Path) -> None:
    def write(file: Any) -> None:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(W.shape)
        h5py.h5d.create(file.id, b"w", h5py.h5t.IEEE_F32LE, space, plan).write(h5py.h5s.ALL, h5py.h5s.ALL, W)

    (entry,) = read(tmp_path / "a.h5", written(write))
    assert elements(entry).tobytes() == W.tobytes()


# Files that are refused


def external(file: Any) -> None:
    file["w"] = h5py.ExternalLink("/etc/passwd", "/")


def soft(file: Any) -> None:
    file["a"] = W
    file["w"] = h5py.SoftLink("/a")


def twice(file: Any) -> None:
    file["a"] = W
    file["w"] = file["a"]


def circle(file: Any) -> None:
    file["a/b"] = file.create_group("a")


def external_data(file: Any) -> None:
    file.create_dataset("w", (3,), "f4", external=[("/etc/passwd", 0, 12)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "w", (3,))
    file.create_virtual_dataset("w", layout)


def deep(file: Any) -> None:
    file["/".join("a" * 100)] = W


def committed(file: Any) -> None:
    file["type"] = np.dtype("f4")
    file.create_dataset("w", (3,), file["type"])


REFUSED: dict[str, tuple[bytes, str]] = {
    "external link": (written(external), "group '' has the external link 'w', which is not followed"),
    "soft link": (written(soft), "group '' has the soft link 'w', which is not followed"),
    "two links": (written(twice), "'w' is linked twice, or part of itself"),
    "circle": (written(circle), "'a/b' is linked twice, or part of itself"),
    "elements elsewhere": (written(external_data), "dataset 'w' has its elements in other files"),
    "virtual": (written(virtual), "dataset 'w' has the layout 4.3; 3.0 to 3.2 are read"),
    "deep": (written(deep), "is nested beyond what is read"),
    "committed datatype": (written(committed), "'type' is neither a group nor a dataset"),
    "newer": (written(lambda file: file.create_group("a"), libver="latest"), "byte 8: superblock version 3, as h5py"),
    "never written": (written(lambda file: file.create_dataset("w", (3,), "f4")), "dataset 'w' has no elements"),
    "other filters": (
        written(lambda file: file.create_dataset("w", data=W, chunks=(1, 3), fletcher32=True)),
        "dataset 'w' went through filters other than deflate and shuffle: [3]",
    ),
    "scale and offset": (
        written(lambda file: file.create_dataset("w", data=W, chunks=(1, 3), scaleoffset=2)),
        "went through filters other than deflate and shuffle: [6]",
    ),
    "chunks missing": (
        written(lambda file: file.create_dataset("w", (8,), "f4", chunks=(2,)).__setitem__(3, 1)),
        "dataset 'w' has 1 chunks of 4",
    ),
    "large chunks": (
        written(lambda file: file.create_dataset("w", (2**23,), "f4", chunks=(2**23,))),
        "dataset 'w' has chunks of (8388608,), 4 bytes an element; at most 16777216 bytes each are read",
    ),
    "user block": (written(lambda _: None, userblock_size=512), "begins as no format that is read"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_keras_does_not_write_is_refused(tmp_path: Path, name: str) -> None:
    data, complaint = REFUSED[name]
    assert complaint in refusal(tmp_path, data)


def many_links(file: Any) -> None:
    group = file.create_group("g", track_order=True)
    for number in range(20):
        group.create_group(str(number))


def some_links(file: Any) -> None:
    group = file.create_group("g", track_order=True)
    group["w"] = W


def test_groups_of_the_newer_form(tmp_path: Path) -> None:
    """Their object headers are of the newer form too."""
    for write in (many_links, some_links):
        assert "an object header of version 1 should begin here; this is a newer form of one" in refusal(
            tmp_path, written(write)
        )


def changed(data: bytes, at: int, fmt: str, *values: int) -> bytes:
    return data[:at] + struct.pack(fmt, *values) + data[at + struct.calcsize(fmt) :]


PLAIN = written(lambda file: file.create_dataset("w", data=W))
CHUNKED = written(lambda file: file.create_dataset("w", data=W, chunks=(1, 3), compression="gzip", shuffle=True))
NAMED = HDF5
UNDEFINED = 2**64 - 1
ROOT = 96  # the header of the root group, right behind the superblock
TREE, HEAP, NODE = (PLAIN.index(mark) for mark in (b"TREE", b"HEAP", b"SNOD"))
CHUNKS = CHUNKED.index(b"TREE", CHUNKED.index(b"TREE") + 1)
NAMES = struct.unpack_from("<Q", PLAIN, HEAP + 24)[0]
OBJECT = struct.unpack_from("<Q", PLAIN, NODE + 16)[0]


def message(data: bytes, kind: int) -> int:
    """Return where a message of the only dataset begins."""
    at: int = struct.unpack_from("<Q", data, data.index(b"SNOD") + 16)[0] + 16
    while struct.unpack_from("<H", data, at)[0] != kind:
        at += 8 + struct.unpack_from("<H", data, at + 2)[0]
    return at + 8


SHAPE, TYPE, LAYOUT = (message(PLAIN, kind) for kind in (1, 3, 8))
LYING: dict[str, tuple[bytes, str]] = {
    "offsets of 32 bits": (changed(PLAIN, 13, "<B", 4), "byte 13: addresses and lengths of other than 64 bits"),
    "base address": (changed(PLAIN, 24, "<Q", 8), "byte 24: a base address other than 0"),
    "end of file": (changed(PLAIN, 40, "<Q", len(PLAIN) + 1), f"the file should be {len(PLAIN) + 1} bytes long"),
    "root nowhere": (changed(PLAIN, 64, "<Q", UNDEFINED), "an object header needs 16 bytes"),
    "root elsewhere": (changed(PLAIN, 64, "<Q", 0), "this is no form of one"),
    "root of version 2": (changed(PLAIN, ROOT, "<B", 2), "byte 96: an object header of version 1 should begin here"),
    "header too long": (changed(PLAIN, ROOT + 8, "<L", 2**31), "the messages of an object header needs 2147483648"),
    "message too long": (changed(PLAIN, ROOT + 18, "<H", 60000), "a message needs 60000 bytes"),
    "no message": (changed(PLAIN, ROOT + 2, "<H", 0), "'' is neither a group nor a dataset"),
    "continued in itself": (
        changed(PLAIN, ROOT + 16, "<HHBxxxQQ", 0x10, 16, 0, ROOT + 16, 24), "'' is neither a group nor a dataset"),
    "continued nowhere": (
        changed(PLAIN, ROOT + 16, "<HHBxxxQQ", 0x10, 16, 0, UNDEFINED, 24), "of an object header needs 24"),
    "tree nowhere": (changed(PLAIN, ROOT + 24, "<Q", UNDEFINED), "a node of a tree needs 24 bytes"),
    "tree elsewhere": (changed(PLAIN, ROOT + 24, "<Q", 0), "byte 0: a node of a tree should begin here"),
    "tree of another kind": (changed(PLAIN, TREE + 4, "<B", 1), "a node of a tree should begin here"),
    "tree in itself": (changed(PLAIN, TREE + 5, "<BH16xQQ", 1, 1, 0, TREE), "a node of a tree should begin here"),
    "tree too long": (changed(PLAIN, TREE + 6, "<H", 60000), "a group's symbols"),
    "heap nowhere": (changed(PLAIN, ROOT + 32, "<Q", UNDEFINED), "the heap of a group's names needs 32 bytes"),
    "heap elsewhere": (changed(PLAIN, ROOT + 32, "<Q", 0), "byte 0: the heap of a group's names should begin here"),
    "names too long": (changed(PLAIN, HEAP + 8, "<Q", 2**63), "a group's names needs 9223372036854775808 bytes"),
    "name nowhere": (changed(PLAIN, NODE + 8, "<Q", 2**40), "a name needs 1 bytes"),
    "name no UTF-8": (changed(PLAIN, NAMES + 8, "<B", 0xFF), f"byte {NAMES + 8}: a name is not UTF-8"),
    "name empty": (changed(PLAIN, NAMES + 8, "<B", 0), "group '' has a link '' it cannot have"),
    "name with slash": (changed(PLAIN, NAMES + 8, "<B", ord("/")), "group '' has a link '/' it cannot have"),
    "symbols elsewhere": (changed(PLAIN, NODE, "<L", 0), "a group's symbols should begin here"),
    "symbols twice": (
        changed(changed(PLAIN, NODE + 6, "<H", 2), NODE + 48, "<QQ", 8, OBJECT), "has a link 'w' it cannot have"),
    "object nowhere": (changed(PLAIN, NODE + 16, "<Q", UNDEFINED), "an object header needs 16 bytes"),
    "object is its group": (changed(PLAIN, NODE + 16, "<Q", ROOT), "'w' is linked twice, or part of itself"),
    "shape of version 9": (changed(PLAIN, SHAPE, "<B", 9), "a shape of version 9 and 2 axes"),
    "many axes": (changed(PLAIN, SHAPE + 1, "<B", 65), "a shape of version 1 and 65 axes"),
    "shape too long": (changed(PLAIN, SHAPE + 1, "<B", 30), "a shape needs 240 bytes"),
    "other shape": (changed(PLAIN, SHAPE + 8, "<Q", 3), "dataset 'w', float32 (3, 3), needs 36 bytes and has 24"),
    "huge shape": (changed(PLAIN, SHAPE + 8, "<Q", 2**62), "dataset 'w', float32 (4611686018427387904, 3), needs"),
    "shape of 0": (changed(PLAIN, SHAPE + 8, "<QQ", 0, 2**63), "tensor 'w' has the impossible shape"),
    "shared type": (changed(PLAIN, TYPE - 4, "<B", 2), "a message that lies elsewhere"),
    "other type": (changed(PLAIN, TYPE + 4, "<L", 8), "dataset 'w', float64 (2, 3), needs 48 bytes and has 24"),
    "layout of version 2": (changed(PLAIN, LAYOUT, "<B", 2), "dataset 'w' has the layout 2.1; 3.0 to 3.2 are read"),
    "layout 3": (changed(PLAIN, LAYOUT + 1, "<B", 3), "dataset 'w' has the layout 3.3; 3.0 to 3.2 are read"),
    "two layouts": (changed(PLAIN, TYPE - 8, "<H", 8), "'w' has not one datatype, but 0"),
    "elements nowhere": (changed(PLAIN, LAYOUT + 2, "<Q", 2**63), "dataset 'w' needs 24 bytes"),
    "elements cut off": (changed(PLAIN, LAYOUT + 2, "<Q", len(PLAIN) - 23), "needs 24 bytes from here on, and 23"),
    "size of elements": (changed(PLAIN, LAYOUT + 10, "<Q", 23), "needs 24 bytes and has 23"),
    "larger size of elements": (changed(PLAIN, LAYOUT + 10, "<Q", 25), "needs 24 bytes and has 25"),
    "chunk of 0": (changed(CHUNKED, message(CHUNKED, 8) + 11, "<L", 0), "has chunks of (0, 3)"),
    "chunk of other axes": (changed(CHUNKED, message(CHUNKED, 8) + 2, "<B", 2), "has chunks of (1,), 3 bytes"),
    "chunk of no axes": (changed(CHUNKED, message(CHUNKED, 8) + 2, "<B", 0), "has chunks of ()"),
    "chunk of a scalar": (
        changed(changed(CHUNKED, message(CHUNKED, 1) + 1, "<B", 0), message(CHUNKED, 8), "<BBBQL", 3, 2, 1, CHUNKS, 4),
        "dataset 'w' has chunks of (), 4 bytes an element",
    ),
    "chunks nowhere": (changed(CHUNKED, message(CHUNKED, 8) + 3, "<Q", UNDEFINED), "a node of a tree needs 24 bytes"),
    "chunk at a wrong place": (changed(CHUNKED, CHUNKS + 32, "<Q", 5), "has a chunk at (5, 0), where none can be"),
    "chunk off its grid": (changed(CHUNKED, CHUNKS + 40, "<Q", 1), "has a chunk at (0, 1), where none can be"),
    "chunk twice": (changed(CHUNKED, CHUNKS + 32 + 40, "<Q", 0), "has a chunk at (0, 0), where none can be"),
    "chunk missing": (changed(CHUNKED, CHUNKS + 6, "<H", 1), "dataset 'w' has 1 chunks of 2"),
    "chunk too long": (changed(CHUNKED, CHUNKS + 24, "<L", 2**32 - 1), "has a chunk of 4294967295 bytes"),
    "chunk beyond": (changed(CHUNKED, CHUNKS + 56, "<Q", 2**63), "a chunk of dataset 'w' needs"),
    "chunk broken": (changed(CHUNKED, CHUNKS + 56, "<Q", 0), "has a broken chunk: Error -3"),
    "chunk short": (changed(CHUNKED, CHUNKS + 24, "<L", 5), "has a chunk of 2 bytes, not 12"),
    "chunk not filtered": (changed(CHUNKED, CHUNKS + 28, "<L", 3), "bytes, not 12"),
    "many chunks": (changed(CHUNKED, message(CHUNKED, 1) + 8, "<Q", 2**40), "has 1099511627776 chunks; at most 262144"),
    "heap of texts elsewhere": (changed(NAMED, NAMED.index(b"GCOL"), "<L", 0), "a global heap should begin here"),
    "heap of texts too long": (changed(NAMED, NAMED.index(b"GCOL") + 8, "<Q", 2**62), "a global heap needs"),
    "text missing": (changed(NAMED, NAMED.index(b"GCOL") + 16, "<H", 77), "the global heap has no object 1"),
    "text too long": (changed(NAMED, NAMED.index(b"GCOL") + 24, "<Q", 2**63), "an object of a global heap needs 4096"),
}  # fmt: skip


@pytest.mark.parametrize("name", LYING)
def test_structures_that_lie_are_refused(tmp_path: Path, name: str) -> None:
    data, complaint = LYING[name]
    assert complaint in refusal(tmp_path, data)


def test_a_chunk_that_grows_is_refused(tmp_path: Path) -> None:
    """A bomb: its bytes inflate to more than the chunk that they are."""
    w = np.zeros(2**20, np.float32)
    data = written(lambda file: file.create_dataset("w", data=w, chunks=w.shape, compression="gzip"))
    at = message(data, 8)
    data = changed(changed(data, at + 11, "<L", 2**10), message(data, 1) + 8, "<Q", 2**10)
    assert "has a chunk of 4097 bytes, not 4096" in refusal(tmp_path, data)


def test_parts_have_a_limited_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_VISITS", 10)
    assert "more than 10 parts" in refusal(tmp_path, HDF5)


def test_objects_have_a_limited_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_TENSORS", 3)
    assert "is nested beyond what is read, or one of too many" in refusal(tmp_path, HDF5)


@pytest.mark.parametrize("junk", [b"\0", b"\xff", b"TREE", b"\x01\0"])
def test_garbage_is_refused(tmp_path: Path, junk: bytes) -> None:
    assert refusal(tmp_path, reader.SIGNATURE + junk * 500)


# Archives


@pytest.mark.parametrize(
    ("members", "method", "complaint"),
    [
        ({"config.json": b"{}"}, zipfile.ZIP_STORED, "byte 0: the archive of a Keras model has no 'model.weights.h5'"),
        ({"model.weights.h5": HDF5}, zipfile.ZIP_DEFLATED, "member 'model.weights.h5' is compressed"),
        ({"model.weights.h5": b""}, zipfile.ZIP_STORED, "the signature needs 8 bytes from here on, and 0 are left"),
        ({"model.weights.h5": b"no HDF5"}, zipfile.ZIP_STORED, "the signature needs 8 bytes"),
        ({"model.weights.h5": b"no HDF5 at all"}, zipfile.ZIP_STORED, "byte 46: an HDF5 file should begin here"),
    ],
)
def test_archives_that_are_no_model_are_refused(tmp_path: Path, members: Any, method: int, complaint: str) -> None:
    assert complaint in refusal(tmp_path, archive(members, method), "a.keras")


def test_the_byte_is_that_of_the_archive(tmp_path: Path) -> None:
    data = archive({"config.json": b"{}", "model.weights.h5": changed(PLAIN, LAYOUT + 10, "<Q", 23)})
    assert refusal(tmp_path, data, "a.keras").startswith(f"byte {data.index(reader.SIGNATURE) + LAYOUT}: dataset 'w'")
