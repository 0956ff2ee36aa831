"""Zip archives, as .npz, PyTorch and Keras files are: where each member's bytes lie, and its contents piece by piece.

The directory at the end is read here and not by `zipfile`, which takes memory as the file asks for it, does not tell
where the bytes of a member begin, and trusts most of what stands in two places to be the same in both.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from gpureg.checkpoints.entries import MAX_TENSORS
from gpureg.checkpoints.files import CheckpointError, Window, quoted

MAX_DIRECTORY = 2**26
"""Bytes of a directory."""

BLOCK = 2**18
"""Bytes that are decompressed at a time."""

_LOCAL, _CENTRAL, _END, _END64, _LOCATOR64 = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
_STORED, _DEFLATED = 0, 8

BEGINNINGS = (_LOCAL, _END)
"""What an archive begins with; the second if it is empty."""

_ENCRYPTED, _UTF8 = 1, 0x800


class Member(NamedTuple):
    """A file of an archive: `packed` bytes of the archive's file, and what they decompress to."""

    name: str
    packed: Window
    deflated: bool
    size: int
    checksum: int

    def error(self, what: str) -> CheckpointError:
        """Return the error of a member that is not what it should be."""
        return self.packed.error(0, f"member {quoted(self.name)} {what}")

    def stored(self) -> Window:
        """Return the bytes of a member that is stored as it is."""
        if self.deflated:
            raise self.error("is compressed; those who write such files store it, so that it can be mapped")
        return self.packed

    def blocks(self) -> Iterator[bytes]:
        """Yield the contents of a compressed member, block by block; what is more or less than declared is an error."""
        inflate, left, checksum = zlib.decompressobj(-zlib.MAX_WBITS), self.size, 0
        for start in range(0, self.packed.size, BLOCK):
            packed = self.packed.data[start : start + BLOCK].tobytes()
            while not inflate.eof:
                try:
                    block = inflate.decompress(packed, BLOCK)
                except zlib.error as error:
                    raise self.packed.error(start, f"member {quoted(self.name)} is broken: {error}") from None
                packed = inflate.unconsumed_tail
                if not block and not packed:
                    break  # there may be more to come without any more bytes, but now there is not
                left, checksum = left - len(block), zlib.crc32(block, checksum)
                if left < 0:
                    raise self.error(f"holds more than the {self.size} bytes it declares")
                yield block
        if left or not inflate.eof:
            raise self.error(f"ends {left} bytes before the {self.size} it declares")
        if checksum != self.checksum:
            raise self.error("has another checksum than it declares")


def members(window: Window) -> dict[str, Member]:
    """Return the members of an archive by name, in the order of its directory."""
    at, size, count = _directory(window)
    directory = window.window(at, size, "the archive's directory")
    found: dict[str, Member] = {}
    spans = [(at, at, "the directory")]
    at = 0
    for _ in range(count):
        member, start, at = _member(window, directory, at)
        if member.name in found:
            raise directory.error(at, f"a second member is named {quoted(member.name)}")
        found[member.name] = member
        spans.append((start, member.packed.start - window.start + member.packed.size, f"member {quoted(member.name)}"))
    if at != size:
        raise directory.error(at, f"the directory of {count} members should end here, not {size - at} bytes later")
    end, before = 0, ""
    for start, stop, name in sorted(spans):
        if start < end:
            raise window.error(start, f"{name} begins within {before}")
        end, before = stop, name
    return found


def _directory(window: Window) -> tuple[int, int, int]:
    """Return where the directory is, its size and how many members it has."""
    tail = max(window.size - 22 - 0xFFFF, 0)
    text = window.take(tail, window.size - tail, "the end of the archive")
    last = text.rfind(_END)
    while last >= 0 and last + 22 + int.from_bytes(text[last + 20 : last + 22], "little") != len(text):
        last = text.rfind(_END, 0, last + len(_END) - 1)
    if last < 0:
        raise window.error(window.size, "the archive has no directory at its end: the file is cut off, or no zip file")
    end = tail + last
    count, size, at = struct.unpack_from("<HLL", text, last + 10)
    if count == 0xFFFF or 0xFFFFFFFF in (size, at):
        if window.take(max(end - 20, 0), 4, "the end of the archive") != _LOCATOR64:
            raise window.error(end, "the archive needs a 64-bit directory, and has none")
        record = window.integer(end - 12, 8, "the place of the 64-bit directory")
        text = window.take(record, 56, "the end of the 64-bit directory")
        if not text.startswith(_END64):
            raise window.error(record, "the 64-bit directory should end here")
        count, size, at = struct.unpack_from("<QQQ", text, 32)
    if size > MAX_DIRECTORY or count > MAX_TENSORS:
        most = f"at most {MAX_DIRECTORY} and {MAX_TENSORS} are read"
        raise window.error(end, f"a directory of {size} bytes for {count} members; {most}")
    return at, size, count


def _member(window: Window, directory: Window, at: int) -> tuple[Member, int, int]:
    """Return the member at a place of the directory, where its own header is, and where the next one's entry is."""
    entry = directory.take(at, 46, "an entry of the directory")
    if not entry.startswith(_CENTRAL):
        raise directory.error(at, "an entry of the directory should begin here")
    flags, method, checksum, packed, size, name_size, extra_size, comment_size, start = struct.unpack_from(
        "<HH4xLLLHHH8xL", entry, 8
    )
    raw = directory.take(at + 46, name_size, "a member's name")
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise directory.error(at + 46 + error.start, "a member's name is not UTF-8") from None
    extra = directory.take(at + 46 + name_size, extra_size, "a member's extra field")
    size, packed, start = _wide(directory, at, extra, [size, packed, start])
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        how = "encrypted" if flags & _ENCRYPTED else f"compressed by method {method}"
        raise directory.error(at, f"member {quoted(name)} is {how}; stored and deflated ones are read")
    if method == _STORED and size != packed:
        raise directory.error(at, f"member {quoted(name)} is stored, but declares {size} bytes in {packed}")
    what = f"member {quoted(name)}"
    header = window.take(start, 30, what)
    own_name_size, own_extra_size = struct.unpack_from("<HH", header, 26)
    if not header.startswith(_LOCAL) or window.take(start + 30, own_name_size, what) != raw:
        raise window.error(start, f"{what} should begin here, as the directory says")
    contents = window.window(start + 30 + own_name_size + own_extra_size, packed, what)
    next_at = at + 46 + name_size + extra_size + comment_size
    return Member(name, contents, method == _DEFLATED, size, checksum), start, next_at


def _wide(directory: Window, at: int, extra: bytes, values: list[int]) -> list[int]:
    """Return size, packed size and place; those of 32 one bits are in an extra field, 64 bits each."""
    wide = b""
    place = 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            wide = extra[place + 4 : place + 4 + size]
        place += 4 + size
    needed = values.count(0xFFFFFFFF)
    if len(wide) < 8 * needed:
        raise directory.error(at, "a member's 64-bit sizes are missing")
    found = iter(struct.unpack_from(f"<{needed}Q", wide))
    return [next(found) if value == 0xFFFFFFFF else value for value in values]
