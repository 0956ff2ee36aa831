"""Files with a few changes: whatever is in them, they are read or refused, and take no more memory than they may.

    python -m tests.checkpoints.fuzzing --seconds 600 --seed 1

goes on for so long with other changes each time, and prints how many files it tried.
"""

import argparse
import itertools
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from gpureg import checkpoints
from gpureg.checkpoints.pickles import _FUNCTIONS, _NAMED, _OPAQUE
from tests.checkpoints.samples import SAMPLES, Global, W, header, opcodes, storage, torch_zip, view

MAX_SIZE = 2**20
"""Elements of tensors that are gone through; a file may rightly tell of more."""

MEMORY = 2**30
"""Bytes that the long run may allocate in all."""

# What breaks arithmetic, in the widths that the formats have.
_NUMBERS = [struct.pack(f"<{code}", 2 ** (8 * size) - 1 - back) for code, size in zip("BHLQ", (1, 2, 4, 8), strict=True)
            for back in (0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)]  # fmt: skip
_TEXTS = [b"{", b"}", b'"', b",", b"[", b"\\", b"\0", b"\xff", b"9" * 20, b"null", b"-1", b"1e9", b"(", b"]", b"PK\1\2"]

Attack = tuple[str, bytes]
"""Name and bytes of a file."""

_PIECES = st.one_of(st.sampled_from([*_NUMBERS, *_TEXTS]), st.binary(min_size=1, max_size=9))


@st.composite
def edited(draw: st.DrawFn, name: str) -> Attack:
    """Return a sample of which some bytes have changed, and sometimes some are more or fewer."""
    data = SAMPLES[name]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        added = draw(_PIECES)
        removed = draw(st.sampled_from([len(added)] * 6 + [0, 1, 50]))
        data = data[:at] + added + data[at + removed :]
    return name, data[: draw(st.sampled_from([len(data)] * 9 + [draw(st.integers(0, len(data)))]))]


_SIZES = st.one_of(st.integers(0, 9), st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64, 10**30]))
_VALUES = st.one_of(_SIZES, st.none(), st.floats(), st.text(max_size=3), st.lists(_SIZES, max_size=3))
_TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "BF16", "U8", "F4", "F6_E2M3", "X"]), _VALUES),
        "shape": st.one_of(st.lists(_SIZES, max_size=70), _VALUES),
        "data_offsets": st.one_of(st.lists(_SIZES, min_size=2, max_size=2), _VALUES),
    }
)
HEADERS = st.builds(
    lambda fields, data, wrong: ("a.safetensors", header(fields, data, wrong)),
    st.dictionaries(st.one_of(st.text(max_size=3), st.just("__metadata__")), st.one_of(_TENSORS, _VALUES), max_size=4),
    st.binary(max_size=40),
    st.one_of(st.none(), _SIZES.filter(lambda size: 0 <= size < 2**64)),
)
"""Headers of safetensors files that are JSON, mostly."""

_OPCODES = st.one_of(
    st.sampled_from([bytes([opcode]) for opcode in range(256)]),
    st.sampled_from(
        [b"(", b"t", b"R", b"Q", b"}", b"]", b"u", b"s", b"e", b"a", b"0", b"q\0", b"h\0", b"\x85", b"\x81", b"b"]
    ),
    st.sampled_from([opcodes(Global(*name.rsplit(".", 1))) for name in sorted({*_FUNCTIONS, *_NAMED, *_OPAQUE})]),
    st.one_of(st.integers(-9, 2**70), st.floats(), st.text(max_size=3)).map(opcodes),
    st.sampled_from([opcodes(storage("0", 6)), opcodes(view(storage("0", 6), 0, (2, 3), (3, 1)))]),
    st.tuples(_SIZES, st.lists(_SIZES, max_size=3), st.lists(_SIZES, max_size=3)).map(
        lambda where: opcodes(view(storage("0", 6), *where))
    ),
)
PICKLES = st.lists(_OPCODES, max_size=30).map(
    lambda parts: ("a.pt", torch_zip(b"\x80\x02}" + b"".join(parts) + b".", {"0": W.tobytes()}))
)
"""Pickles of PyTorch checkpoints: what they may hold, in any order."""

ATTACKS: dict[str, st.SearchStrategy[Attack]] = {
    **{name: edited(name) for name in SAMPLES},
    "headers": HEADERS,
    "pickles": PICKLES,
}


def survive(path: Path, data: bytes) -> bool:
    """Read a file as far as it goes; return whether it was refused. Any other error is one of ours."""
    path.unlink(missing_ok=True)  # to write a file anew is much faster than to write it again
    path.write_bytes(data)
    try:
        for entry in checkpoints.read(path):
            assert entry.nbytes >= 0
            assert repr(entry).isprintable() or not entry.name.isprintable()
            if entry.floating and entry.size <= MAX_SIZE:
                assert sum(piece.size for piece in entry.pieces(7000)) == entry.size
                if (array := entry.array()) is not None:
                    assert array.shape == entry.shape
    except checkpoints.CheckpointError as error:
        refusal = str(error)
    else:
        return False
    assert "\n" not in refusal
    assert path.name in refusal
    return True


def main() -> None:
    """Fuzz for so long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    tried = refused = 0
    stop = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        for number in itertools.count(arguments.seed):
            if time.monotonic() >= stop:
                break

            @seed(number)
            @settings(max_examples=1000, database=None, derandomize=False, deadline=None, phases=[Phase.generate])
            @given(attack=st.one_of(*ATTACKS.values()))
            def survived(attack: Attack) -> None:
                nonlocal tried, refused
                tried += 1
                refused += survive(Path(folder, attack[0]), attack[1])

            survived()
    sys.stdout.write(f"{tried} files in {arguments.seconds:.0f} s from seed {arguments.seed}: {refused} were refused\n")


if __name__ == "__main__":
    main()
