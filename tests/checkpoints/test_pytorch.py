"""PyTorch checkpoints: what a pickle may say, and that nothing it says is done."""

import pickle
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpureg import checkpoints
from gpureg.checkpoints import pickles
from tests.checkpoints.samples import (
    OLD_STATE,
    ORDERED,
    REBUILD,
    STATE,
    TORCH,
    TORCH_OLD,
    Call,
    Global,
    Persistent,
    Raw,
    W,
    archive,
    elements,
    opcodes,
    pickled,
    read,
    storage,
    torch_old,
    torch_zip,
    view,
)

BYTES = {"0": W.tobytes()}
SIX = storage("0", 6)
ALL = view(SIX, 0, (2, 3), (3, 1))


def refusal(tmp_path: Path, data: bytes) -> str:
    """Return what is said of a checkpoint; nothing else is in its folder then."""
    with pytest.raises(checkpoints.CheckpointError) as caught:
        read(tmp_path / "a.pt", data)
    assert re.match(rf"{tmp_path}/a.pt, byte \d+: ", str(caught.value))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    return str(caught.value).removeprefix(f"{tmp_path}/a.pt, ")


def test_both_formats_are_read(tmp_path: Path) -> None:
    entries = {entry.name: entry for entry in read(tmp_path / "a.pt", TORCH)}
    assert [(e.name, e.dtype, e.shape, e.nbytes) for e in entries.values()] == [
        ("weights/w", "float32", (2, 3), 24),
        ("weights/last", "float32", (2,), 8),
        ("steps", "int64", (), 8),
    ]
    start = TORCH.index(W.tobytes())
    assert [entries[name].source.offset for name in ("weights/w", "weights/last")] == [start, start + 8]
    assert elements(entries["weights/w"]).tolist() == W.reshape(-1).tolist()
    assert elements(entries["weights/last"]).tolist() == W[:, 2].tolist()
    (entry,) = read(tmp_path / "old.pt", TORCH_OLD)
    assert (entry.name, entry.source.offset) == ("w", TORCH_OLD.index(W.tobytes()))
    assert elements(entry).tolist() == W.reshape(-1).tolist()


def test_a_tensor_alone_is_named_as_the_file(tmp_path: Path) -> None:
    assert [entry.name for entry in read(tmp_path / "w.pt", torch_zip(ALL, BYTES))] == ["w"]


def test_mappings_and_lists_in_one_another_have_paths(tmp_path: Path) -> None:
    value = {"a": {"b": ALL, 0: [ALL, {"c": ALL}], None: (3, ALL)}, 1.5: ALL, ("x", 1): ALL, "more": {"n": [1, "t"]}}
    names = ["a/b", "a/0/0", "a/0/1/c", "a/None/1", "1.5", "('x', 1)"]
    assert [entry.name for entry in read(tmp_path / "a.pt", torch_zip(value, BYTES))] == names


def test_tied_tensors_keep_both_names(tmp_path: Path) -> None:
    again = Raw(opcodes("a") + opcodes(ALL) + b"q\x05" + opcodes("b") + b"h\x05")
    data = torch_zip(b"\x80\x02}(" + again.opcodes + b"u.", BYTES)
    first, second = read(tmp_path / "a.pt", data)
    assert (first.name, second.name) == ("a", "b")
    assert first.source == second.source


def test_names_must_differ(tmp_path: Path) -> None:
    assert "a second tensor is named 'a/b'" in refusal(tmp_path, torch_zip({"a/b": ALL, "a": {"b": ALL}}, BYTES))
    assert "a second tensor is named '0'" in refusal(tmp_path, torch_zip({"0": ALL, 0: ALL}, BYTES))


def test_names_must_be_text(tmp_path: Path) -> None:
    key = Raw(b"X" + struct.pack("<I", 3) + "\udc80".encode("utf-8", "surrogatepass"))
    data = torch_zip(b"\x80\x02}(" + key.opcodes + opcodes(ALL) + b"u.", BYTES)
    assert r"the name '\udc80' is no Unicode text" in refusal(tmp_path, data)


FUNCTIONS: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "_rebuild_tensor": (Call(Global("torch._utils", "_rebuild_tensor"), (SIX, 0, (2, 3), (3, 1))), "float32", (2, 3)),
    "_rebuild_tensor_v3": (
        Call(
            Global("torch._utils", "_rebuild_tensor_v3"),
            (
                Persistent(("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", 24)),
                0, (4, 3), (3, 1), False, Call(ORDERED, ()), Global("torch", "bfloat16"),
            ),
        ),
        "bfloat16", (4, 3),
    ),
    "_rebuild_parameter": (
        Call(Global("torch._utils", "_rebuild_parameter"), (ALL, True, Call(ORDERED, ()))), "float32", (2, 3),
    ),
    "_rebuild_parameter_with_state": (
        Call(Global("torch._utils", "_rebuild_parameter_with_state"), (ALL, True, Call(ORDERED, ()), {"a": 1})),
        "float32", (2, 3),
    ),
    "Parameter": (
        Raw(opcodes(Global("torch.nn.parameter", "Parameter")) + opcodes((ALL, True)) + b"\x81"), "float32", (2, 3),
    ),
    "_rebuild_from_type_v2": (
        Call(
            Global("torch._tensor", "_rebuild_from_type_v2"),
            (REBUILD, Global("torch", "Tensor"), (SIX, 0, (6,), (1,), False, Call(ORDERED, ())), {"note": "x"}),
        ),
        "float32", (6,),
    ),
    "_rebuild_device_tensor_from_cpu_tensor": (
        Call(
            Global("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"),
            (ALL, Global("torch", "float32"), "xla:0", False),
        ),
        "float32", (2, 3),
    ),
    "_rebuild_qtensor": (
        Call(
            Global("torch._utils", "_rebuild_qtensor"),
            (
                storage("0", 24, "QInt8Storage"), 0, (4, 6), (6, 1),
                (Global("torch", "per_tensor_affine"), 0.5, 3), False, Call(ORDERED, ()),
            ),
        ),
        "qint8", (4, 6),
    ),
    "_rebuild_sparse_tensor": (
        Call(
            Global("torch._utils", "_rebuild_sparse_tensor"),
            (
                Call(Global("torch.serialization", "_get_layout"), ("torch.sparse_coo",)),
                (view(storage("0", 3, "LongStorage"), 0, (1, 3), (3, 1)), view(SIX, 0, (3,), (1,)),
                 Call(Global("torch", "Size"), ((1000,),)), True),
            ),
        ),
        "sparse_coo", (1000,),
    ),
    "_rebuild_meta_tensor_no_storage": (
        Call(
            Global("torch._utils", "_rebuild_meta_tensor_no_storage"),
            (Global("torch", "float32"), (2**31, 2**31), (2**31, 1), False),
        ),
        "meta", (2**31, 2**31),
    ),
    "python 2": (
        Raw(opcodes(REBUILD) + b"((U\x07storage" + opcodes(Global("torch", "FloatStorage")) + b"U\x010U\x03cpuK\x06tQ"
            + opcodes(0) + opcodes((6,)) + opcodes((1,)) + opcodes(False) + opcodes(Call(ORDERED, ())) + b"tR"),
        "float32", (6,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_way_to_rebuild_a_tensor(tmp_path: Path, name: str) -> None:
    value, dtype, shape = FUNCTIONS[name]
    (entry,) = read(tmp_path / "a.pt", torch_zip({"w": value}, BYTES))
    assert (entry.dtype, entry.shape, entry.floating) == (dtype, shape, dtype in checkpoints.FLOATS)
    nbytes = {"sparse_coo": 24 + 12, "meta": 0}.get(dtype, 24)
    assert entry.nbytes == nbytes
    if entry.floating:
        assert elements(entry).tobytes() == W.tobytes()


def test_python_2_gave_an_ordered_dictionary_its_items_at_once(tmp_path: Path) -> None:
    value = Call(ORDERED, ([["a", ALL], ["b", ALL]],))
    assert [entry.name for entry in read(tmp_path / "a.pt", torch_zip(value, BYTES))] == ["a", "b"]


def test_attributes_are_passed_over(tmp_path: Path) -> None:
    value = Raw(
        opcodes(Call(ORDERED, ())) + b"(" + opcodes("a") + opcodes(ALL) + b"u" + opcodes({"_metadata": {}}) + b"b"
    )
    assert [entry.name for entry in read(tmp_path / "a.pt", torch_zip(value, BYTES))] == ["a"]


def test_what_is_no_tensor_is_passed_over(tmp_path: Path) -> None:
    value = {
        "device": Call(Global("torch", "device"), ("cuda", 0)),
        "dtype": Global("torch", "float32"),
        "size": Call(Global("torch", "Size"), ((2, 3),)),
        "counter": Call(Global("collections", "Counter"), ({"a": 1},)),
        "set": Call(Global("__builtin__", "set"), ([1, 2],)),
        "empty": Raw(b"\x8f"),
        "bytes": Call(Global("_codecs", "encode"), ("abc", "latin1")),
        "memory": Call(Global("builtins", "bytearray"), (2**62,)),
        "long": "x" * 5000,
        "numbers": [0, -1, 2**70, 1e300, None, True],
    }
    assert read(tmp_path / "a.pt", torch_zip(value, {})) == []


@pytest.mark.parametrize("order", [b"little", b"big"])
def test_the_byte_order_is_the_archive_s(tmp_path: Path, order: bytes) -> None:
    stored = W.astype(W.dtype.newbyteorder("<" if order == b"little" else ">"))
    (entry,) = read(tmp_path / "a.pt", torch_zip(ALL, {"0": stored.tobytes()}, byteorder=order))
    assert elements(entry).tobytes() == W.tobytes()
    assert entry.dtype == "float32"


LAYOUTS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], Any]] = {
    "whole": (0, (2, 3), (3, 1), W),
    "transposed": (0, (3, 2), (1, 3), W.T),
    "from the second row": (3, (1, 3), (3, 1), W[1:]),
    "columns": (1, (2, 2), (3, 1), W[:, 1:]),
    "repeated": (2, (1000, 2), (0, 3), np.broadcast_to(W[:, 2], (1000, 2))),
    "scalar": (5, (), (), W[1, 2]),
    "axes of length 1": (0, (1, 2, 1, 3), (2**62, 3, 2**40, 1), W.reshape(1, 2, 1, 3)),
    "empty": (0, (0, 3), (3, 1), np.empty((0, 3))),
    "empty, at the end": (6, (0,), (1,), np.empty(0)),
    "overlapping": (0, (3, 3), (1, 1), np.lib.stride_tricks.sliding_window_view(W.reshape(-1), 3)[:3]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_views_have_their_layout(tmp_path: Path, name: str) -> None:
    offset, shape, strides, expected = LAYOUTS[name]
    (entry,) = read(tmp_path / "a.pt", torch_zip(view(SIX, offset, shape, strides), BYTES))
    array = entry.array()
    assert array is not None
    assert np.array_equal(array, expected)
    assert elements(entry, 7).tolist() == expected.transpose(entry.order).reshape(-1).tolist()


# Checkpoints that lie

HARM = Global("builtins", "open")


def code(path: Path) -> bytes:
    """Return a pickle that makes a file where it is run."""
    return pickled({"w": Call(HARM, (str(path), "w")), "more": ALL})


def test_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere"
    path.mkdir()
    data = pickled(Call(HARM, (str(path / "executed"), "w")))
    pickle.loads(data).close()
    assert (path / "executed").exists()  # it would do harm
    (path / "executed").unlink()
    path.rmdir()
    for harmful in (
        torch_zip(code(tmp_path / "executed"), BYTES),
        torch_old(Raw(code(tmp_path / "executed")[2:-1]), {"0": W}),
    ):
        message = refusal(tmp_path, harmful)
        assert (
            "'builtins.open' is code, which is never run here; torch.load(weights_only=True) refuses it too" in message
        )
        assert int(re.match(r"byte (\d+)", message)[1]) == harmful.index(b"cbuiltins")  # type: ignore[index]


@pytest.mark.parametrize(
    "name",
    ["os system", "posix system", "builtins eval", "__builtin__ eval", "torch load", "torch.serialization load",
     "numpy.core.multiarray _reconstruct", "numpy._core.multiarray scalar", "argparse Namespace", "torch._utils evil",
     "collections OrderedDict.fromkeys", "torch.storage _load_from_bytes", "torch._utils _rebuild_nested_tensor",
     "torch._utils _rebuild_wrapper_subclass", "torch._utils _rebuild_device_tensor_from_numpy", "a\x1b[2J b",
     "\xff c"],
)  # fmt: skip
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    module, _, function = name.partition(" ")
    message = refusal(tmp_path, torch_zip(b"\x80\x02c" + f"{module}\n{function}\n".encode("latin-1") + b".", {}))
    assert "is code, which is never run here" in message
    assert message.isprintable()


ALLOWED = set(b"}]()tRQuseabX.cNGUKMJhjqr\x80\x81\x85\x86\x87\x88\x89\x8a\x8f")


@pytest.mark.parametrize("opcode", [opcode.code for opcode in pickletools.opcodes])
def test_only_the_opcodes_of_torch_are_known(tmp_path: Path, opcode: str) -> None:
    byte = opcode.encode("latin-1")
    message = refusal(tmp_path, torch_zip(b"\x80\x02" + byte, {}))
    assert ("is none that torch.save writes by default" in message) == (byte[0] not in ALLOWED)


SHAPE = (2, 3)
TENSORS: dict[str, tuple[Any, str]] = {
    "beyond": (view(SIX, 1, SHAPE, (3, 1)), "float32 (2, 3), needs 7 elements of a storage of 6"),
    "far beyond": (view(SIX, 2**62, SHAPE, (3, 1)), "needs 4611686018427387910 elements of a storage of 6"),
    "strides beyond": (view(SIX, 0, SHAPE, (2**62, 1)), "needs 4611686018427387907 elements of a storage of 6"),
    "empty, beyond": (view(SIX, 7, (0,), (1,)), "needs 7 elements of a storage of 6"),
    "shape overflows": (view(SIX, 0, (2**62, 2), (0, 0)), "has the impossible shape (4611686018427387904, 2)"),
    "repeated for years": (view(SIX, 0, (2**33,), (0,)), "repeats a storage of 6 elements"),
    "many axes": (view(SIX, 0, (1,) * 65, (1,) * 65), "has 65 axes; at most 64 are read"),
    "negative stride": (view(SIX, 0, SHAPE, (-3, 1)), "_rebuild_tensor_v2 is given what it does not take"),
    "negative offset": (view(SIX, -1, SHAPE, (3, 1)), "is given what it does not take"),
    "negative length": (view(SIX, 0, (-2, 3), (3, 1)), "is given what it does not take"),
    "strides of other rank": (view(SIX, 0, SHAPE, (1,)), "is given what it does not take"),
    "no storage": (view("0", 0, SHAPE, (3, 1)), "is given what it does not take"),
    "shape of text": (Call(REBUILD, (SIX, 0, ("a",), (1,))), "is given what it does not take"),
    "shape of bools": (Call(REBUILD, (SIX, 0, (True,), (1,))), "is given what it does not take"),
    "no arguments": (Call(REBUILD, ()), "is given what it does not take"),
    "arguments no tuple": (Raw(opcodes(REBUILD) + opcodes([]) + b"R"), "what is called is no function"),
    "no function": (Call("text", ()), "what is called is no function"),
    "a dtype called": (Call(Global("torch", "float32"), ()), "what is called is no function"),
    "negated": (view(SIX, 0, SHAPE, (3, 1), {"neg": True}), "save tensor.resolve_neg()"),
    "v3 without dtype": (
        Call(Global("torch._utils", "_rebuild_tensor_v3"), (SIX, 0, SHAPE, (3, 1), False, {}, "f")),
        "_rebuild_tensor_v3 is given what it does not take",
    ),
    "converted": (
        Call(Global("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"), (ALL, Global("torch", "int8"))),
        "is given what it does not take",
    ),
    "parameter of nothing": (Call(Global("torch._utils", "_rebuild_parameter"), ()), "is given what it does not take"),
    "sparse without data": (
        Call(Global("torch._utils", "_rebuild_sparse_tensor"), ("sparse_coo", ())), "is given what it does not take",
    ),
    "sparse of floats": (
        Call(
            Global("torch._utils", "_rebuild_sparse_tensor"),
            (Call(Global("torch.serialization", "_get_layout"), ("torch.float32",)), (ALL, ALL, (3,))),
        ),
        "is given what it does not take",
    ),
    "sparse of lists": (
        Call(Global("torch._utils", "_rebuild_sparse_tensor"), ([], (ALL, ALL, (3,)))),
        "is given what it does not take",
    ),
    "sparse without layout": (
        Call(Global("torch._utils", "_rebuild_sparse_tensor"), (3, (ALL, ALL, (3,)))), "is given what it does not take",
    ),
    "meta without shape": (
        Call(Global("torch._utils", "_rebuild_meta_tensor_no_storage"), (Global("torch", "int8"),)),
        "is given what it does not take",
    ),
    "type in type": (
        Call(
            Global("torch._tensor", "_rebuild_from_type_v2"),
            (Global("torch._tensor", "_rebuild_from_type_v2"), 0, ()),
        ),
        "is given what it does not take",
    ),
    "layout of nothing": (Call(Global("torch.serialization", "_get_layout"), ()), "is given what it does not take"),
    "size of text": (Call(Global("torch", "Size"), ("a",)), "is given what it does not take"),
    "items that are none": (Call(ORDERED, ([1],)), "is given what it does not take"),
    "storage missing": (view(storage("1", 6), 0, SHAPE, (3, 1)), "storage '1' is not in the archive"),
    "storage elsewhere": (view(storage("../data.pkl", 6), 0, SHAPE, (3, 1)), "storage '../data.pkl' is not in"),
    "storage of other size": (view(storage("0", 5), 0, SHAPE, (3, 1)), "storage '0' has 24 bytes, not the 20 expected"),
    "storage, huge": (view(storage("0", 2**62), 0, SHAPE, (3, 1)), "storage '0' has 24 bytes, not the"),
    "storage of two sizes": ([ALL, view(storage("0", 5), 0, (1,), (1,))], "storage '0' has two sizes"),
    "storage, negative": (storage("0", -1), "what lies outside the pickle is no storage"),
    "storage of no type": (Persistent(("storage", "f", "0", "cpu", 6)), "what lies outside the pickle is no storage"),
    "storage of text": (Persistent("0"), "what lies outside the pickle is no storage"),
    "module": (Persistent(("module", "a", "b", "c")), "what lies outside the pickle is no storage"),
    "storage of a view": (
        Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("1", 0, 3))),
        "what lies outside the pickle is no storage",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    value, complaint = TENSORS[name]
    assert complaint in refusal(tmp_path, torch_zip({"w": value}, BYTES))


CYCLE = b"\x80\x02}q\0" + opcodes("a") + b"h\0s."
DEEP = b"\x80\x02" + opcodes(None) + b"\x85" * 100_000
PICKLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is cut off"),
    "no end": (b"\x80\x02}", "is cut off"),
    "nothing": (b"\x80\x02.", "a value is used that is not there"),
    "text cut off": (b"X\xff\xff\xff\xffabc", "is cut off"),
    "text no UTF-8": (b"X\1\0\0\0\xff.", "a text is not UTF-8"),
    "name without end": (b"ctorch\nFloat", "a name ends nowhere"),
    "name, long": (b"c" + b"x" * 10_000 + b"\n", "a name ends nowhere"),
    "long cut off": (b"\x8a\xff\1", "is cut off"),
    "mark missing": (b"t", "a mark is used that is not there"),
    "memo missing": (b"h\0", "value 0 is used before it is made"),
    "memo of nothing": (b"q\0", "a value is kept that is not there"),
    "append to dict": (b"}" + opcodes(1) + b"a", "what is added to is no list"),
    "append to nothing": (opcodes(1) + b"a", "what is added to is no list"),
    "item of list": (b"]" + opcodes(1) * 2 + b"s", "what is added to is no dict"),
    "key without value": (b"}(" + opcodes(1) + b"u", "a key has no value"),
    "key is a list": (b"}](eNs", "a key is a list"),
    "key is nested": (b"}" + DEEP[2:] + b"Ns", "a key is a tuple"),
    "attributes of a tensor": (opcodes(ALL) + b"}b", "only dictionaries are given attributes"),
    "attributes of nothing": (b"}b", "only dictionaries are given attributes"),
    "itself": (CYCLE, "is part of itself, or nested beyond what is read"),
    "deep": (DEEP + b".", "is part of itself, or nested beyond what is read"),
    "deep lists": (b"\x80\x02" + b"](" * 1000 + b"e" * 1000 + b".", "is part of itself, or nested beyond what is read"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_make_no_sense_are_refused(tmp_path: Path, name: str) -> None:
    data, complaint = PICKLES[name]
    message = refusal(tmp_path, torch_zip(data, BYTES))
    assert complaint in message
    assert message.startswith("byte ")


def test_mappings_that_multiply_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten mappings, each ten times in the next: ten thousand million names."""
    monkeypatch.setattr("gpureg.checkpoints.entries.MAX_TENSORS", 500)
    monkeypatch.setattr("gpureg.checkpoints.pytorch.MAX_OBJECTS", 2000)
    tenfold = b"".join(b"}(" + b"".join(opcodes(str(key)) + b"h\0" for key in range(10)) + b"uq\0" for _ in range(10))
    for value, complaint in ((ALL, "500 tensors in one file"), (1, "tensors has more than 2000 parts")):
        data = b"\x80\x02" + opcodes({"w": value}) + b"q\0" + tenfold + b"."
        assert complaint in refusal(tmp_path, torch_zip(data, BYTES))


@pytest.mark.parametrize("part", [b"]", b"}", b"(", b"N", opcodes(1.5), opcodes("a"), b"N\x85", b"\x85"])
def test_pickles_that_fill_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bytes) -> None:
    monkeypatch.setattr(pickles, "MAX_OBJECTS", 1000)
    monkeypatch.setattr(pickles, "_MAX_STACK", 800)
    message = refusal(tmp_path, torch_zip(b"\x80\x02N" + part * 1001 + b".", {}))
    assert re.search(r"more than (1000 objects|800 values wait to be used)$", message)


def test_a_memo_that_fills_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OBJECTS", 1000)
    text = b"".join(b"r" + struct.pack("<L", place) for place in range(1001))
    assert "more than 1000 objects" in refusal(tmp_path, torch_zip(b"\x80\x02N" + text + b".", {}))
    assert read(tmp_path / "a.pt", torch_zip(b"\x80\x02Nr\xff\xff\xff\xff" + b"r\0\0\0\0" * 2000 + b".", {})) == []


ARCHIVES: dict[str, tuple[bytes, str]] = {
    "two folders": (archive({"a/data.pkl": b"", "b/data.pkl": b""}), "an archive of PyTorch has one folder at its top"),
    "program": (archive({"a/data.pkl": b"", "a/constants.pkl": b""}), "makes this a program (TorchScript)"),
    "no pickle": (archive({"a/b/data.pkl": b""}), "the archive has no 'a/data.pkl'"),
    "byte order": (torch_zip(ALL, BYTES, byteorder=b"middle"), "says 'middle', neither little nor big"),
    "compressed": (archive({"a/data.pkl": pickled({})}, zipfile.ZIP_DEFLATED), "is compressed; those who write such"),
    "compressed storage": (
        archive({"a/data.pkl": pickled(None), "a/data/0": b""}, zipfile.ZIP_DEFLATED), "'a/data.pkl' is compressed",
    ),
    "storage missing": (torch_zip(ALL, {}), "storage '0' is not in the archive"),
    "storage, short": (torch_zip(ALL, {"0": bytes(23)}), "storage '0' has 23 bytes, not the 24 expected"),
    "storage, long": (torch_zip(ALL, {"0": bytes(25)}), "storage '0' has 25 bytes, not the 24 expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_no_checkpoint_are_refused(tmp_path: Path, name: str) -> None:
    data, complaint = ARCHIVES[name]
    assert complaint in refusal(tmp_path, data)


OLD: dict[str, tuple[bytes, str]] = {
    "another pickle": (pickle.dumps({"w": [1]}, 2), "byte 0: a pickle, but none that torch.save has written"),
    "a newer pickle": (pickle.dumps({"w": [1]}, 4), r"byte 2: the pickle here: opcode b'\x95' is none that torch.save"),
    "version": (TORCH_OLD.replace(pickled(1001), pickled(1002)), "byte 0: the unknown version 1002"),
    "version, deep": (
        TORCH_OLD.replace(pickled(1001), b"\x80\x02N" + b"\x85" * 100_000 + b"."),
        "byte 0: the unknown version something nested too deep to show",
    ),
    "keys no list": (torch_old(OLD_STATE, {"7": W}, {"7": 1}), "the list of storages is not of those that tensors use"),
    "keys no text": (torch_old(OLD_STATE, {"7": W}, [[7]]), "the list of storages is not of those that tensors use"),
    "keys missing": (torch_old(OLD_STATE, {"7": W}, []), "the list of storages is not of those that tensors use"),
    "keys twice": (torch_old(OLD_STATE, {"7": W}, ["7", "7"]), "the list of storages is not of those that tensors use"),
    "other keys": (torch_old(OLD_STATE, {"8": W}), "the list of storages is not of those that tensors use"),
    "other size": (torch_old(OLD_STATE, {"7": W[:1]}), "storage '7' has 3 elements, not the 6 expected"),
    "cut off": (TORCH_OLD[:-1], "storage '7' needs 24 bytes from here on, and 23 are left"),
    "longer": (TORCH_OLD + b"x", f"byte {len(TORCH_OLD)}: 1 bytes follow the last storage"),
}


@pytest.mark.parametrize("name", OLD)
def test_old_checkpoints_that_lie_are_refused(tmp_path: Path, name: str) -> None:
    data, complaint = OLD[name]
    assert complaint in refusal(tmp_path, data)


def test_the_byte_is_that_of_the_file(tmp_path: Path) -> None:
    data = torch_zip({"w": view(SIX, 1, SHAPE, (3, 1))}, BYTES)
    at = data.index(opcodes(view(SIX, 1, SHAPE, (3, 1)))) + len(opcodes(view(SIX, 1, SHAPE, (3, 1)))) - 1
    assert refusal(tmp_path, data).startswith(f"byte {at}: tensor 'w', float32 (2, 3), needs 7 elements")
    assert len(STATE) == 5
