"""safetensors: what the format says, and every way in which a header can lie."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpureg import checkpoints
from gpureg.checkpoints.safetensors import _DTYPES, MAX_HEADER
from tests.checkpoints.samples import SAFETENSORS, W, elements, header, read, tensor

ONE = header({"w": tensor("F32", [2, 3], 0, 24)}, W.tobytes())


def refusal(tmp_path: Path, data: bytes, name: str = "a.safetensors") -> str:
    """Return what is said of a file, without its folder."""
    with pytest.raises(checkpoints.CheckpointError) as caught:
        read(tmp_path / name, data)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    entries = {entry.name: entry for entry in read(tmp_path / "a.safetensors", SAFETENSORS)}
    start = len(SAFETENSORS) - 36
    assert [(e.name, e.dtype, e.shape, e.nbytes, e.source.offset - start) for e in entries.values()] == [
        ("b.weight", "float32", (2, 3), 24, 4),
        ("a", "bfloat16", (2,), 4, 0),
        ("steps", "int64", (), 8, 28),
        ("empty", "float16", (0, 7), 0, 36),
    ]
    assert all(entry.source.path == tmp_path / "a.safetensors" for entry in entries.values())
    w, a, empty = (entries[name].array() for name in ("b.weight", "a", "empty"))
    assert w is not None
    assert a is not None
    assert empty is not None
    assert (w.dtype, w.tobytes()) == (W.dtype, W.tobytes())
    assert (a.dtype, a.tolist()) == (ml_dtypes.bfloat16, [1, -2])
    assert (empty.dtype.name, empty.shape) == ("float16", (0, 7))
    assert list(entries["empty"].pieces()) == []
    assert elements(entries["a"], 1).dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("code", _DTYPES)
def test_every_dtype_has_its_size(tmp_path: Path, code: str) -> None:
    name, bits = _DTYPES[code]
    (entry,) = read(tmp_path / "a.safetensors", header({"w": tensor(code, [2, 4], 0, bits)}, bytes(bits)))
    assert (entry.dtype, entry.nbytes, entry.floating) == (name, bits, name in checkpoints.FLOATS)
    longer = header({"w": tensor(code, [2, 4], 0, bits + 1)}, bytes(bits + 1))
    complaint = f"byte 9: tensor 'w', {name} (2, 4) takes {bits} bytes, but its range is 0 to {bits + 1}"
    assert refusal(tmp_path, longer) == f"a.safetensors, {complaint}"


@pytest.mark.parametrize(
    ("length", "complaint"),
    [
        (2**64 - 1, "byte 0: the header would be 18446744073709551615 bytes long; at most 100000000 are read"),
        (2**63, "byte 0: the header would be 9223372036854775808 bytes"),
        (MAX_HEADER + 1, "byte 0: the header would be 100000001 bytes long"),
        (MAX_HEADER, f"byte 8: the header needs 100000000 bytes from here on, and {len(ONE) - 8} are left"),
        (70, "byte 8: the header needs 70 bytes"),
        (1, "byte 9: a string is expected here"),
        (0, "byte 8: an object is expected here"),
    ],
)
def test_a_header_whose_length_lies_is_refused(tmp_path: Path, length: int, complaint: str) -> None:
    data = header({"w": tensor("F32", [2, 3], 0, 24)}, W.tobytes(), length)
    data = data[:69] if length == 70 else data
    assert f"a.safetensors, {complaint}" in refusal(tmp_path, data)


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_the_length_is_refused(tmp_path: Path, size: int) -> None:
    message = refusal(tmp_path, ONE[:size])
    assert message.startswith(
        "a.safetensors, byte 0: " + ("the length of the header needs 8" if size else "the file is")
    )


GOOD = '{"dtype":"U8","shape":[],"data_offsets":[0,1]}'


@pytest.mark.parametrize(
    ("text", "at", "complaint"),
    [
        (b'{"\xff":1}', 2, "the text is not UTF-8"),
        (b'{"w\xc3', 3, "the text is not UTF-8"),
        (b'{"' + b"x" * 2**16 + b'\x80":1}', 2 + 2**16, "the text is not UTF-8"),
        (b'{"' + b"x" * (2**16 - 3) + b'\xc3":1}', 2**16 - 1, "the text is not UTF-8"),
        (b"[]", 0, "an object is expected here"),
        (b"{", 1, "a string is expected here"),
        (b"{,}", 1, "a string is expected here"),
        (b"{w:1}", 1, "a string is expected here"),
        (b'{"w\n":1}', 1, "a string is expected here"),
        (rb'{"\x":1}', 1, "a string is expected here"),
        (rb'{"\u12":1}', 1, "a string is expected here"),
        (b'{"w" 1}', 4, "a colon is expected here"),
        (b'{"w":[]}', 5, "a short object is expected here"),
        (b'{"w":{"dtype":{}}}', 5, "a short object is expected here"),
        (b'{"w":{"shape":[' + b"1," * 3000 + b"1]}}", 5, "a short object is expected here"),
        (b'{"w":{"dtype"}}', 13, "this is not JSON: Expecting ':' delimiter"),
        (b'{"w":{"shape":' + b"[" * 2000 + b"}}", 5, "this is not JSON"),
        (f'{{"w":{GOOD}'.encode(), 51, "a comma or the end of the object is expected here"),
        (f'{{"w":{GOOD},}}'.encode(), 52, "a string is expected here"),
        (f'{{"w":{GOOD}}} x'.encode(), 52, "nothing more is expected here"),
        (f'{{"w":{GOOD},"w":{GOOD}}}'.encode(), 52, "'w' is there twice"),
        (f'{{"w":{GOOD},"\\u0077":{GOOD}}}'.encode(), 52, "'w' is there twice"),
        (b'{"__metadata__":{},"__metadata__":{}}', 19, "'__metadata__' is there twice"),
        (b'{"__metadata__":{"a":"","a":""}}', 24, "'a' is there twice"),
        (b'{"__metadata__":{"a":1}}', 21, "a string is expected here"),
        (b'{"__metadata__":[]}', 16, "an object is expected here"),
        (b'{"\\ud800":' + GOOD.encode() + b"}", 1, "the name '\\ud800' is no Unicode text"),
        (b'{"w":{}}', 5, "tensor 'w' must have dtype, shape and data_offsets, each once"),
        (f'{{"w":{GOOD[:-1]},"more":1}}}}'.encode(), 5, "tensor 'w' must have"),
        (f'{{"w":{GOOD[:-1]},"dtype":"U8"}}}}'.encode(), 5, "tensor 'w' must have"),
    ],
)  # fmt: skip
def test_a_header_that_is_no_such_json_is_refused(tmp_path: Path, text: bytes, at: int, complaint: str) -> None:
    assert refusal(tmp_path, header(text, b"\0")).startswith(f"a.safetensors, byte {8 + at}: {complaint}")


@pytest.mark.parametrize("text", [' {"w": %s}', '{"w":%s}   ', '{ "w"\n:\t%s\r}', '{"__metadata__":{},"w":%s}'])
def test_spaces_and_metadata_are_passed_over(tmp_path: Path, text: str) -> None:
    assert [entry.name for entry in read(tmp_path / "a.safetensors", header((text % GOOD).encode(), b"\0"))] == ["w"]


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("dtype", "F31", "has the unknown dtype 'F31'"),
        ("dtype", None, "has the unknown dtype None"),
        ("dtype", ["F32"], "has the unknown dtype"),
        ("shape", 3, "has the impossible shape 3"),
        ("shape", [-1], "has the impossible shape [-1]"),
        ("shape", [1.0], "has the impossible shape [1.0]"),
        ("shape", [True], "has the impossible shape [True]"),
        ("shape", None, "has the impossible shape None"),
        ("shape", [2**63], "has the impossible shape (9223372036854775808,)"),
        ("shape", [2**64, 0], "has the impossible shape"),
        ("shape", [2**40, 2**40], "has the impossible shape"),
        ("data_offsets", [24, 0], "has the impossible data_offsets [24, 0]"),
        ("data_offsets", [-24, 0], "has the impossible data_offsets"),
        ("data_offsets", [0], "has the impossible data_offsets [0]"),
        ("data_offsets", [0, 24, 24], "has the impossible data_offsets"),
        ("data_offsets", [0, 24.0], "has the impossible data_offsets"),
        ("data_offsets", "0,24", "has the impossible data_offsets"),
        ("shape", [2, 4], "float32 (2, 4) takes 32 bytes, but its range is 0 to 24"),
        ("shape", [2, 0], "float32 (2, 0) takes 0 bytes, but its range is 0 to 24"),
        ("dtype", "F64", "float64 (2, 3) takes 48 bytes, but its range is 0 to 24"),
        ("data_offsets", [24, 48], "needs 24 bytes from here on, and 0 are left"),
        ("data_offsets", [2**63, 2**63 + 24], "needs 24 bytes from here on, and 0 are left"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(tmp_path: Path, field: str, value: Any, complaint: str) -> None:
    message = refusal(tmp_path, header({"w": tensor("F32", [2, 3], 0, 24) | {field: value}}, W.tobytes()))
    assert re.match(r"a.safetensors, byte \d+: ", message)
    assert complaint in message
    assert "tensor 'w'" in message


def test_parts_of_bytes_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, header({"w": tensor("F4", [3], 0, 2)}, bytes(2)))
    assert message == "a.safetensors, byte 9: the 4-bit elements of tensor 'w' do not fill whole bytes"


OVERLAP, HOLE = "overlaps the tensor before it", "leaves a hole of 4 bytes before it"


@pytest.mark.parametrize(
    ("ranges", "name", "complaint"),
    [
        ([(0, 8), (4, 12)], "b", f", bytes 4 to 12 of the data, {OVERLAP}"),
        ([(0, 12), (0, 12)], "b", f", bytes 0 to 12 of the data, {OVERLAP}"),
        ([(4, 12), (0, 8)], "a", f", bytes 4 to 12 of the data, {OVERLAP}"),
        ([(0, 8), (4, 4)], "b", f", bytes 4 to 4 of the data, {OVERLAP}"),
        ([(0, 4), (8, 12)], "b", f", bytes 8 to 12 of the data, {HOLE}"),
        ([(8, 12), (4, 8)], "b", f", bytes 4 to 8 of the data, {HOLE}"),
        ([(4, 8), (8, 12)], "a", f", bytes 4 to 8 of the data, {HOLE}"),
        ([(12, 12), (0, 8)], "a", f", bytes 12 to 12 of the data, {HOLE}"),
    ],
)
def test_ranges_must_be_the_data(tmp_path: Path, ranges: list[tuple[int, int]], name: str, complaint: str) -> None:
    fields = {key: tensor("U8", [stop - at], at, stop) for key, (at, stop) in zip("ab", ranges, strict=True)}
    data = header(fields, bytes(12))
    at = data.index(f'"{name}"'.encode())
    assert refusal(tmp_path, data) == f"a.safetensors, byte {at}: tensor '{name}'{complaint}"


@pytest.mark.parametrize(("stop", "at"), [(8, 8), (0, 0)])
def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path, stop: int, at: int) -> None:
    data = header({"a": tensor("U8", [stop], 0, stop)}, bytes(12))
    message = f"a.safetensors, byte {len(data) - 12 + at}: {12 - at} bytes follow the last tensor"
    assert refusal(tmp_path, data) == message


def test_an_empty_tensor_lies_within_the_data(tmp_path: Path) -> None:
    assert "needs 0 bytes from here on" in refusal(tmp_path, header({"a": tensor("U8", [0], 1, 1)}))


def test_order_in_the_header_is_free(tmp_path: Path) -> None:
    data = header({"b": tensor("U8", [2], 2, 4), "a": tensor("U8", [2], 0, 2), "e": tensor("U8", [0], 2, 2)}, bytes(4))
    assert [entry.name for entry in read(tmp_path / "a.safetensors", data)] == ["b", "a", "e"]


def test_a_file_without_tensors_has_none(tmp_path: Path) -> None:
    assert read(tmp_path / "a.safetensors", header({})) == []
    assert "byte 10: 1 bytes follow the last tensor" in refusal(tmp_path, header({}, b"x"))


def test_names_in_errors_are_short_and_plain(tmp_path: Path) -> None:
    message = refusal(tmp_path, header({"\x1b[2J" + "x" * 1000: {}}))
    assert "\\x1b[2J" in message
    assert len(message) < 500


# Shards


def index(weight_map: Any, **more: Any) -> bytes:
    return json.dumps(
        {"metadata": {"total_size": 48, "nested": [{"}": "]"}]}, "weight_map": weight_map} | more
    ).encode()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a folder of two shards and their index."""
    for name, tensors in {"1.safetensors": "ab", "2.safetensors": "c"}.items():
        fields = {key: tensor("F32", [2, 3], 24 * at, 24 * at + 24) for at, key in enumerate(tensors)}
        (tmp_path / name).write_bytes(header(fields, W.tobytes() * len(tensors)))
    names = {"a": "1.safetensors", "c": "2.safetensors", "b": "1.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_bytes(index(names))
    return tmp_path


@pytest.mark.parametrize("given", ["", "model.safetensors.index.json"])
def test_shards_are_read_as_one(shards: Path, given: str) -> None:
    entries = checkpoints.read(shards / given)
    assert [(entry.name, entry.source.path.name) for entry in entries] == [
        ("a", "1.safetensors"),
        ("b", "1.safetensors"),
        ("c", "2.safetensors"),
    ]
    assert all(np.array_equal(elements(entry), W.reshape(-1)) for entry in entries)


def test_a_folder_without_an_index_is_all_its_files(shards: Path) -> None:
    (shards / "model.safetensors.index.json").unlink()
    assert [entry.name for entry in checkpoints.read(shards)] == ["a", "b", "c"]


def test_a_single_file_goes_before_an_index(shards: Path) -> None:
    (shards / "model.safetensors").write_bytes(ONE)
    assert [entry.name for entry in checkpoints.read(shards)] == ["w"]


def test_an_index_goes_before_other_files(shards: Path) -> None:
    (shards / "consolidated.safetensors").write_bytes((shards / "1.safetensors").read_bytes())
    assert len(checkpoints.read(shards)) == 3


def test_links_to_shards_are_followed(shards: Path) -> None:
    """As a cache of downloads has them: the names are in the folder, the bytes elsewhere."""
    (shards / "elsewhere").mkdir()
    (shards / "1.safetensors").rename(shards / "elsewhere/x")
    (shards / "1.safetensors").symlink_to("elsewhere/x")
    assert len(checkpoints.read(shards)) == 3


def shard_refusal(path: Path) -> str:
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.read(path)
    return str(caught.value).removeprefix(f"{path}/")


@pytest.mark.parametrize(
    "shard", ["../1.safetensors", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:x", "x\0", "a\n/../b"]
)
def test_an_index_does_not_lead_out_of_its_folder(shards: Path, shard: str) -> None:
    (shards / "model.safetensors.index.json").write_bytes(index({"a": shard}))
    message = shard_refusal(shards)
    assert re.match(
        r"model.safetensors.index.json, byte \d+: tensor 'a' would be in '.*', which is no file beside", message
    )


def test_shards_that_are_links_in_circles_are_refused(shards: Path) -> None:
    (shards / "1.safetensors").unlink()
    (shards / "1.safetensors").symlink_to("1.safetensors")
    assert shard_refusal(shards) == "1.safetensors cannot be read: Too many levels of symbolic links"


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "2.safetensors").unlink()
    assert shard_refusal(shards) == "2.safetensors cannot be read: No such file or directory"


def test_a_tensor_in_two_shards_is_refused(shards: Path) -> None:
    (shards / "2.safetensors").write_bytes((shards / "1.safetensors").read_bytes())
    assert shard_refusal(shards) == "2.safetensors: tensor 'a' is in '1.safetensors' too"


@pytest.mark.parametrize(
    "names",
    [
        {"a": "2.safetensors", "c": "2.safetensors"},
        {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"},
        {"d": "1.safetensors"},
    ],
)
def test_an_index_must_say_what_shards_hold(shards: Path, names: dict[str, str]) -> None:
    (shards / "model.safetensors.index.json").write_bytes(index(names))
    assert re.match(
        r"model.*json, byte 0: tensor '[ad]' is not in '.\.safetensors', as the index says", shard_refusal(shards)
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"[]", "byte 0: an object is expected here"),
        (b"{}", "byte 0: no tensor in weight_map: this is no index of shards"),
        (b'{"weight_map":{}}', "byte 0: no tensor in weight_map"),
        (b'{"weight_map":{"a":1}}', "byte 19: a string is expected here"),
        (b'{"weight_map":[]}', "byte 14: an object is expected here"),
        (b'{"weight_map":{"a":"x","a":"x"}}', "byte 23: 'a' is there twice"),
        (b'{"x":1,"x":1}', "byte 7: 'x' is there twice"),
        (b'{"x":[1}', "byte 8: the rest of a value is expected here"),
        (b'{"x":]}', "byte 6: a bracket closes that has not been opened"),
        (b'{"x":"', "byte 5: the rest of a value is expected here"),
        (b"{} x", "byte 2: nothing more is expected here"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: bytes, complaint: str) -> None:
    assert f"a.safetensors.index.json, {complaint}" in refusal(tmp_path, text, "a.safetensors.index.json")


def test_values_that_are_not_asked_for_are_passed_over(shards: Path) -> None:
    path = shards / "model.safetensors.index.json"
    path.write_bytes(index({"a": "1.safetensors"}, after=[1, [2, {"x": '"}]'}], None], text="}", number=-1.5e3))
    assert len(checkpoints.read(path)) == 2


def test_several_indexes_are_refused(shards: Path) -> None:
    (shards / "other.safetensors.index.json").touch()
    message = (
        f"{shards} has several indexes; give one of 'model.safetensors.index.json', 'other.safetensors.index.json'"
    )
    assert shard_refusal(shards) == message


def test_an_index_has_a_limited_size(shards: Path) -> None:
    path = shards / "model.safetensors.index.json"
    with path.open("r+b") as file:
        file.truncate(MAX_HEADER + 1)
    assert "byte 100000000: an index of 100000001 bytes; at most 100000000 are read" in shard_refusal(path)


def test_one_object_has_a_limited_number_of_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpureg.checkpoints.safetensors.MAX_TENSORS", 2)
    fields = {"__metadata__": {str(number): "" for number in range(4)}}
    assert "more than 2 names in one object" in refusal(tmp_path, header(fields))


def test_the_length_is_little_endian(tmp_path: Path) -> None:
    assert struct.unpack("<Q", ONE[:8])[0] == len(ONE) - 32
    assert "byte 0: the header would be" in refusal(tmp_path, ONE[7::-1] + ONE[8:])
