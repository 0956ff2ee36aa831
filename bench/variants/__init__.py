"""Other ways to launch and to write the kernels, to be tried on hardware: each a patch of `kernels/`, and a prediction.

A patch `NAME.patch` beside this file is a unified diff. It is applied to the text of the sources when a kernel is
compiled, so that nothing of it is in the kernels themselves; where they have changed too much for it, it is refused.
Every variant must give the same bits. What fixes them, the sizes of tiles and rows and the order of each tree, is no
matter of tuning.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpureg import arithmetic
from gpureg.backends import Mode
from gpureg.backends.cuda import GROUP
from gpureg.compiler import penalty_pass

FOLDER = Path(__file__).parent


class PatchError(ValueError):
    """A patch that does not fit the sources."""


@dataclass(frozen=True)
class Variant:
    """A way to try, and what it must show."""

    name: str
    what: str
    prediction: str
    kernels: tuple[str, ...]
    """The kernels that it is for, the first of which tables show."""
    patches: tuple[str, ...] | None = None
    """The names of patches, by default its own."""
    oldest: int = 75
    """The first compute capability that has its instructions, times ten."""
    group: int = GROUP
    """Tiles of a group, whose sums one block adds."""
    tiles: int = 1
    """Tiles that a block takes side by side."""
    one_wave: bool = False
    """Whether there are only as many blocks as the multiprocessors hold at a time."""
    shared: int = 0
    """Bytes of shared memory of a block, where they are more than the tree needs."""
    verdict: str = "open"
    """What is made of it once it was measured."""

    def sources(self, sources: Mapping[str, str]) -> dict[str, str]:
        """Return the sources with the patches applied; raise a PatchError if one does not fit."""
        result = dict(sources)
        for name in (self.name,) if self.patches is None else self.patches:
            result = patched(result, (FOLDER / f"{name}.patch").read_text(encoding="utf-8"), name)
        return result


def patched(sources: Mapping[str, str], patch: str, name: str) -> dict[str, str]:
    r"""Return sources with a unified diff applied, each of whose hunks must fit at one place.

    >>> patch = "--- a/kernels/a.cu\n+++ b/kernels/a.cu\n@@ -2 +2 @@\n-two\n+2\n"
    >>> patched({"a.cu": "one\ntwo\n"}, patch, "example")
    {'a.cu': 'one\n2\n'}
    """
    result = dict(sources)
    for file, old, new in _hunks(patch):
        text = result.get(file, "")
        if not old and not text:
            result[file] = new
        elif not old or text.count(old) != 1:
            raise PatchError(f"{name}.patch does not fit {file}: make it anew for the kernels as they are")
        else:
            result[file] = text.replace(old, new)
    return result


def _hunks(patch: str) -> Iterator[tuple[str, str, str]]:
    """Yield the file of each hunk, the lines that it takes out with those around them, and what it puts there."""
    for section in re.split(r"^--- .*\n(?=\+\+\+ )", patch, flags=re.MULTILINE)[1:]:
        head, *hunks = re.split(r"^@@ .*@@.*\n", section, flags=re.MULTILINE)
        file = head.strip().rpartition("/")[2]
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
            yield file, old, new


def _pass(weights: str, mode: Mode, *, l1: bool = True, l2: bool = True) -> str:
    return penalty_pass(weights, weights, mode, l1=l1, l2=l2)


VALUE32, VALUE16, VALUE_HALF = (_pass(dtype, Mode.VALUE) for dtype in ("float32", "bfloat16", "float16"))
VALUE64 = _pass("float64", Mode.VALUE)
ADD32, ADD16 = (_pass(dtype, Mode.ACCUMULATE) for dtype in ("float32", "bfloat16"))
BOTH32, BOTH16 = (_pass(dtype, Mode.VALUE_AND_GRADIENT) for dtype in ("float32", "bfloat16"))
L1_16 = _pass("bfloat16", Mode.VALUE, l2=False)
L1_32 = _pass("float32", Mode.VALUE, l2=False)

SHIPPED = Variant(
    "shipped",
    "the kernels as they are",
    "values and accumulated gradients within 3 to 5% of the memory; bfloat16 value and gradient in one pass at two "
    "thirds of it at most, for its comparisons and selections take longer than its bytes",
    (VALUE32, VALUE16, VALUE_HALF, VALUE64, ADD32, ADD16, BOTH32, BOTH16, L1_32, L1_16),
    patches=(),
)

VARIANTS = (
    Variant(
        "rows-4",
        "values: 4 rows at a time, not 8",
        "the same: half the loads of each thread, but more threads, and 48 KiB are enough for an H200",
        (VALUE32, VALUE64),
    ),
    Variant(
        "rows-16",
        "values: all 16 rows of a tile at once",
        "the same, or 1% more where 80 KiB are not enough: no second wait within a tile",
        (VALUE32, VALUE64),
    ),
    Variant(
        "rows-2",
        "accumulation: 2 rows of weights and gradient at a time, not 4",
        "the same: fewer loads of more threads",
        (ADD32,),
    ),
    Variant(
        "rows-8",
        "accumulation: 8 rows of weights and gradient at a time",
        "the same: 80 KiB are enough already",
        (ADD32,),
    ),
    Variant(
        "blocks-8",
        "registers for 8 blocks of 4 rows at a time, not for 4 to 6",
        "values of 16 bits up to 3% faster: twice the warps to hide conversions behind",
        (VALUE16, VALUE32, ADD32),
    ),
    Variant(
        "rolling",
        "values: a row is loaded as soon as an earlier one is used",
        "up to 1% faster: what is on its way does not run dry between two lots of rows",
        (VALUE32, VALUE16),
    ),
    Variant(
        "streaming",
        "loads and stores marked as used once (ld.cs, st.cs)",
        "alone the same; in a training step what was in the second-level cache before stays there",
        (ADD32, VALUE32),
    ),
    Variant(
        "no-allocate",
        "loads past the first-level cache (L1::no_allocate)",
        "the same to 1% faster: no line is kept that is not read again",
        (VALUE32, ADD32),
    ),
    Variant(
        "evict-first",
        "loads first to leave the second-level cache (L2::evict_first)",
        "as for streaming",
        (VALUE32, ADD32),
        oldest=80,
    ),
    Variant(
        "prefetch-256",
        "loads that bring 256 bytes into the second-level cache (L2::256B)",
        "the same: each block reads whole rows of 2 KiB anyway",
        (VALUE32, ADD32),
        oldest=80,
    ),
    Variant(
        "group-32",
        "groups of 32 tiles, not 128",
        "the same; four times the tickets of groups, but they are one for each MiB",
        (VALUE32,),
        group=32,
    ),
    Variant(
        "group-1024",
        "groups of 1,024 tiles",
        "up to 1% slower: the last block of a group reads 16 KiB of sums in eight rounds, alone",
        (VALUE32,),
        group=1024,
    ),
    Variant(
        "one-wave",
        "as many blocks as fit at a time, each with one tile after another",
        "within 1%: no blocks to start, but no new block takes over while one waits for its ticket",
        (VALUE32, ADD32),
        one_wave=True,
    ),
    Variant(
        "two-tiles",
        "blocks of 256 threads, two tiles side by side",
        "up to 1% slower: half the blocks to start, but registers leave room for fewer tiles",
        (VALUE32, ADD32),
        tiles=2,
    ),
    Variant(
        "bulk-copy",
        "values: a tile comes into shared memory by one bulk copy",
        "1 to 2% faster where 80 KiB are not enough, else the same: most is on its way, with fewest registers",
        (VALUE32, VALUE16),
        oldest=90,
        shared=arithmetic.TILE_BYTES,
    ),
    Variant(
        "integer-conversion",
        "16-bit weights become float64 by a shift of their bits",
        "the same on an H200, where conversions fit; up to 5% faster on a B200; where conversions and additions share "
        "a unit of 2 a clock, L1 twice as fast, both sums no faster",
        (L1_16, VALUE16, VALUE_HALF),
    ),
    Variant(
        "terms-once",
        "it is decided once, not for each element, which terms a gradient has",
        "bfloat16 value and gradient under 10% faster, for as few loads are on their way; others the same",
        (BOTH16, ADD16, BOTH32, ADD32),
    ),
    Variant(
        "sign-by-bits",
        "the same, and a sign is taken by its bit, not by comparisons",
        "bfloat16 value and gradient up to 45% faster: its comparisons fit, and twice as much is on its way",
        (BOTH16, ADD16, BOTH32, ADD32),
    ),
    Variant(
        "store-instruction",
        "bfloat16 is rounded by the instruction that chips from sm_80 on have",
        "bfloat16 value and gradient up to 45% faster, for the same two reasons; its accumulation as fast as memory",
        (BOTH16, ADD16),
        oldest=80,
    ),
    Variant(
        "lean-gradient",
        "both, and registers of value and gradient for 5 blocks, not 4",
        "bfloat16 value and gradient within 5% of the memory, and half the instructions of its accumulation",
        (BOTH16, ADD16),
        patches=("sign-by-bits", "store-instruction", "gradient-blocks"),
        oldest=80,
    ),
    Variant(
        "half-shuffles",
        "both sums share the shuffles of a warp",
        "under 1% faster: a tile's tree takes 48 clocks of the shuffle unit instead of 80, beside 1,600 of memory",
        (VALUE32, VALUE16),
    ),
    Variant(
        "needed-sums",
        "a pass for one sum does not add the other's zeros",
        "under 1% faster, for L1 or L2 alone",
        (L1_32, L1_16),
    ),
)
"""All that is to be tried; each line of docs/performance.md is one."""
