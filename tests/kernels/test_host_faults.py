"""Each fault planted in a copy of the kernels is seen, by the check that is there for it."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gpureg import compiler
from gpureg.arithmetic import Coefficients
from gpureg.backends import Mode
from gpureg.compiler import penalty_pass
from tests.host_cuda import Build, HostCudaError, far, library, sanitized
from tests.host_cuda.backend import HostBackend
from tests.host_cuda.building import Variant
from tests.host_cuda.cases import Calls, Case, Tensor, check
from tests.kernels.test_host_offsets import check_words_of_pass, check_words_of_step

VALUE, GRADIENT, ACCUMULATE = (Mode.VALUE,), (Mode.GRADIENT,), (Mode.ACCUMULATE,)


class Fault(NamedTuple):
    """One change of the source."""

    file: str
    right: str
    wrong: str

    def plant(self, folder: Path) -> None:
        """Write the sources with the fault into a folder."""
        for name, text in compiler.sources().items():
            if name == self.file:
                assert text.count(self.right) == 1, f"the kernels no longer say {self.right!r} once"
            (folder / name).write_text(text.replace(self.right, self.wrong) if name == self.file else text)


class Seen(NamedTuple):
    """A fault, the calls that meet it, and what is said of it."""

    fault: Fault
    calls: Calls
    message: str


def calls(
    weights: str = "float32",
    into: str = "float32",
    modes: tuple[Mode, ...] = VALUE,
    *,
    passes: int = 200,
    steps: int = 0,
) -> Calls:
    return Calls(passes=passes, steps=steps, pairs=((weights, into),), modes=modes)


def seen(name: str, file: str, right: str, wrong: str, calls: Calls, message: str) -> object:
    return pytest.param(Seen(Fault(file, right, wrong), calls, message), id=name)


# What gives other bits -----------------------------------------------------------------------------------------------

SUM_DIFFERS = r"of (each|the total|the rounded penalties|the sums) differ"
GRADIENT_DIFFERS = r"of gradient \d+ differ"

WRONG_BITS = [
    seen(
        "the lanes of a thread are added in another order",
        "penalty.cu",
        "abs[lane] = abs[2 * lane] + abs[2 * lane + 1]",
        "abs[lane] = abs[lane] + abs[lane + count]",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "the threads of a warp are added in another order",
        "tree.cuh",
        "int distance = 1; distance < 32; distance *= 2",
        "int distance = 16; distance > 0; distance /= 2",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "the warps of a block are added in another order",
        "tree.cuh",
        "level[i] = level[2 * i] + level[2 * i + 1]",
        "level[i] = level[i] + level[i + count]",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "sums are read in the order of arrival",
        "penalty.cu",
        "call.tile_sums[tensor.first_tile + tile] = sums",
        "call.tile_sums[first_tile + call.counters[tensor.first_group + group]] = sums",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "the last row of a ragged tile is dropped",
        "penalty.cu",
        "row * ROW < size; ++row",
        "(row + 1) * ROW <= size; ++row",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "the last element is dropped",
        "proximal.cu",
        "if (i < size)",
        "if (i + 1 < size)",
        calls(passes=0, steps=100),
        "of the weights differ",
    ),
    seen(
        "an element too many is read",
        "penalty.cu",
        "if (i < size) {",
        "if (i <= size) {",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "a sum too many is read, which no block has written",
        "tree.cuh",
        "i < count ?",
        "i <= count ?",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "no barrier before the sums of warps are read",
        "tree.cuh",
        "= mine;\n  __syncthreads();",
        "= mine;",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "no barrier before the sums of warps are overwritten",
        "tree.cuh",
        "__syncthreads();  // what the last call left",
        "// what the last call left",
        calls(passes=1000),
        SUM_DIFFERS,
    ),
    seen(
        "no barrier between two rounds over the sums that were left",
        "tree.cuh",
        "    __syncthreads();\n    count = groups;",
        "    count = groups;",
        calls(passes=1000),
        SUM_DIFFERS,
    ),
    seen(
        "the gradient of the squares lacks its factor 2",
        "penalty.cu",
        "tensor.twice_l2 * strength",
        "tensor.l2 * strength",
        calls(modes=GRADIENT),
        GRADIENT_DIFFERS,
    ),
    seen(
        "the terms of a gradient are contracted",
        "penalty.cu",
        "first + second",
        "C(__fma_rn(c2, x, first))",
        calls(modes=GRADIENT),
        GRADIENT_DIFFERS,
    ),
    seen(
        "the square of a float64 is contracted",
        "penalty.cu",
        "sizeof(Weight) < 8 ?",
        "sizeof(Weight) <= 8 ?",
        calls("float64", "float64"),
        SUM_DIFFERS,
    ),
    seen(
        "nothing is added where nothing should be touched",
        "penalty.cu",
        "MODE != ACCUMULATE || c1 != 0 || c2 != 0",
        "MODE != ACCUMULATE || c1 == c1",
        calls(modes=ACCUMULATE),
        GRADIENT_DIFFERS,
    ),
    seen(
        "a bfloat16 is rounded up at a tie",
        "element.cuh",
        "((bits >> 16) & 1u)",
        "1u",
        calls("bfloat16", "bfloat16", ACCUMULATE),
        GRADIENT_DIFFERS,
    ),
    seen(
        "a proximal step leaves -0.0",
        "proximal.cu",
        "if (load(weight) == 0) store(weight, C(0));",
        "",
        calls(passes=0, steps=100),
        "of the weights differ",
    ),
    seen(
        "warps of a shared block take one tensor",
        "penalty.cu",
        "index = first + threadIdx.x / 32",
        "index = first + threadIdx.x / 32 / 2",
        calls(passes=300),
        SUM_DIFFERS,
    ),
    seen(
        "a small tensor's last element is left out",
        "penalty.cu",
        "if (i < tensor.size) {",
        "if (i + 1 < tensor.size) {",
        calls(passes=300),
        SUM_DIFFERS,
    ),
    seen(
        "a small tensor is added by half a warp",
        "tree.cuh",
        "distance < 32;",
        "distance < 16;",
        calls(),
        SUM_DIFFERS,
    ),
    seen(
        "upstream changes the value",
        "penalty.cu",
        "value = penalty(tensor, strength, sums);",
        "value = penalty(tensor, strength * call.upstream.get(), sums);",
        calls(modes=ACCUMULATE),
        SUM_DIFFERS,
    ),
]


@pytest.mark.parametrize("case", WRONG_BITS)
def test_wrong_bits_are_seen_beside_numpy(case: Seen, tmp_path: Path) -> None:
    case.fault.plant(tmp_path)
    with pytest.raises(AssertionError, match=case.message):
        case.calls.check(library(Build(kernels=case.calls.kernels(), folder=tmp_path)))


def test_a_tree_that_is_padded_too_far_is_seen(tmp_path: Path) -> None:
    Fault("tree.cuh", "i < padded ? 0.0 : -0.0", "0.0").plant(tmp_path)
    kernels = Calls(pairs=(("float32", "float32"),), modes=VALUE).kernels()
    nothing = np.zeros(0, np.float32)
    negative_zeros = Case(Mode.VALUE, [Tensor(nothing, nothing, Coefficients(0.1, 0.0, 0.0))] * 2, strength=-1.0)
    with pytest.raises(AssertionError, match="of the total differ"):
        check(negative_zeros, HostBackend(library(Build(kernels=kernels, folder=tmp_path))))


# What the device would answer with an error, or with anything at all -------------------------------------------------

REFUSED = [
    seen(
        "a shuffle with the wrong mask",
        "tree.cuh",
        "0xffffffffu, mine.abs",
        "0x0000ffffu, mine.abs",
        calls(),
        r"block \d+, thread \d+: waits at the shuffle of tree.cuh:\d+ with mask 0xffff, not of all lanes",
    ),
    seen(
        "a shuffle that some lanes leave out",
        "tree.cuh",
        "sum = add_threads(i < count",
        "if (i < count) sum = add_threads(i < count",
        calls(),
        r"waits at the shuffle of tree.cuh:\d+ for thread \d+, which (waits at the barrier|has ended)",
    ),
    seen(
        "lanes at two shuffles",
        "tree.cuh",
        "mine.squares, distance)",
        "mine.squares, threadIdx.x % 2 ? distance : distance ^ 3)",
        calls(),
        r"with distance \d+, but thread \d+ waits at the shuffle of tree.cuh:\d+ with distance \d+",
    ),
    seen(
        "a barrier that one thread alone reaches",
        "tree.cuh",
        "__syncthreads();\n  return shared.ticket",
        "if (threadIdx.x == 0) __syncthreads();\n  return shared.ticket",
        calls(),
        r"waits at the barrier of tree.cuh:\d+(, but thread \d+ waits at|.* for thread \d+, which has ended)",
    ),
    seen(
        "a thread that ends early",
        "penalty.cu",
        "    Sums sums = add_threads",
        "    if (threadIdx.x == 77) return false;\n    Sums sums = add_threads",
        calls(),
        r"thread (6[4-9]|[78]\d|9[0-5]): waits at the shuffle of tree.cuh:\d+ for thread 77, which has ended",
    ),
    seen(
        "a thread that uses more than its stack",  # by less than the thread beside it leaves free
        "penalty.cu",
        "    Sums sums = add_threads",
        "    if (threadIdx.x == 40) {\n"
        "      void* const deep = __builtin_alloca((1 << 17) - 3072);\n"
        "      memset(deep, 1, (1 << 17) - 3072);\n"
        '      asm volatile("" : : "r"(deep) : "memory");\n'
        "    }\n"
        "    Sums sums = add_threads",
        calls(),
        "thread 40: a stack of 131072 bytes is too small",
    ),
    seen(
        "something is told to the compiler that is not so",
        "penalty.cu",
        "  double value = 0.0;",
        "  __builtin_assume(threadIdx.x < 5);\n  double value = 0.0;",
        calls(),
        "not so: threadIdx.x < 5",
    ),
    seen(
        "vectors read where they are misaligned",
        "penalty.cu",
        "reinterpret_cast<unsigned long long>(gradient)) % 16",
        "reinterpret_cast<unsigned long long>(gradient)) % 8",
        calls(),
        "a vector of 16 bytes at 0x[0-9a-f]*8 is misaligned",
    ),
    seen(
        "vectors written where the gradient is misaligned",
        "penalty.cu",
        "reinterpret_cast<unsigned long long>(gradient)) % 16",
        "0) % 16",
        calls("float64", "float32", GRADIENT),
        "a vector of 8 bytes at 0x[0-9a-f]*[4c] is misaligned",
    ),
]


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_device_would_not_run_is_refused(case: Seen, tmp_path: Path) -> None:
    case.fault.plant(tmp_path)
    kernels = library(Build(kernels=case.calls.kernels(), folder=tmp_path))
    with pytest.raises(HostCudaError, match=case.message):
        case.calls.check(kernels)
    with pytest.raises(HostCudaError, match=case.message):  # the launch was ended, and the next one begins anew
        case.calls.check(kernels)


# What is left behind -------------------------------------------------------------------------------------------------

LEFT_BEHIND = [
    seen(
        "the total does not wait for the last tensor",
        "penalty.cu",
        "done, call.count, shared",
        "done, call.count - 1, shared",
        calls(),
        "a counter is not zero after the call",
    ),
    seen(
        "counters are not reset",
        "tree.cuh",
        "__nv_atomic_store_n(counter, 0u,",
        "__nv_atomic_store_n(counter, shared.ticket,",
        calls(),
        "a counter is not zero after the call",
    ),
    seen(
        "a shared block counts as if it were full",
        "penalty.cu",
        "return call.launched - first < WARPS ? call.launched - first : WARPS;",
        "return WARPS;",
        calls(),
        "a counter is not zero after the call",
    ),
    seen(
        "an element too many is written",
        "penalty.cu",
        "if (i < size) {",
        "if (i <= size) {",
        calls(modes=GRADIENT),
        "something was written after a buffer",
    ),
]


@pytest.mark.parametrize("case", LEFT_BEHIND)
def test_what_is_left_behind_is_seen(case: Seen, tmp_path: Path) -> None:
    case.fault.plant(tmp_path)
    with pytest.raises(AssertionError, match=case.message):
        case.calls.check(library(Build(kernels=case.calls.kernels(), folder=tmp_path)))


# Sizes of 32 bits ----------------------------------------------------------------------------------------------------


def short(tile: str, whole: str) -> list[object]:
    """Return where 32 bits are too few, of a tile of this number and of what has the size of the whole."""
    return [
        pytest.param(
            f"static_cast<unsigned long long>({tile}) * TILE",
            f"{tile} * TILE",
            0,
            id="where a tile begins",
        ),
        pytest.param(
            f"left = {whole}.size - start",
            f"left = static_cast<unsigned>({whole}.size - start)",
            0,
            id="what is left",
        ),
        pytest.param(
            "static_cast<int>(left < TILE ? left : TILE)",
            "static_cast<int>(static_cast<unsigned>(left) < TILE ? left : TILE)",
            1,
            id="what is left of a misaligned tensor",
        ),
    ]


@pytest.mark.parametrize(("right", "wrong", "offset"), short("tile", "tensor"))
def test_32_bits_are_seen_to_be_too_few_in_a_pass(right: str, wrong: str, offset: int, tmp_path: Path) -> None:
    Fault("penalty.cu", right, wrong).plant(tmp_path)
    kernels = ("penalty_pass<Half, float, ACCUMULATE, true, true>",)
    with pytest.raises(AssertionError):
        far.check_pass(library(Build(kernels=kernels, folder=tmp_path)), "float16", "float32", offset)


@pytest.mark.parametrize(("right", "wrong", "offset"), short("tile", "step"))
def test_32_bits_are_seen_to_be_too_few_in_a_step(right: str, wrong: str, offset: int, tmp_path: Path) -> None:
    Fault("proximal.cu", right, wrong).plant(tmp_path)
    kernels = ("proximal_step<Half>",)
    with pytest.raises(AssertionError):
        far.check_proximal(library(Build(kernels=kernels, folder=tmp_path)), "float16", offset)


# Whole tiles that are not taken in words -----------------------------------------------------------------------------

SLOW_PASSES = [
    pytest.param("if (aligned && left >= TILE)", "if (aligned && left > tensor.size)", id="never"),
    pytest.param("if (aligned && left >= TILE)", "if (aligned && left > TILE)", id="not the last one"),
    pytest.param("if (aligned && left >= TILE)", "if (aligned && !call.tensors && left >= TILE)", id="not of a table"),
    pytest.param(
        "reinterpret_cast<unsigned long long>(gradient)) % 16",
        "reinterpret_cast<unsigned long long>(gradient)) % 32",
        id="not at every multiple of 16 bytes",
    ),
]


@pytest.mark.parametrize("mode", [Mode.VALUE, Mode.ACCUMULATE], ids=lambda mode: mode.name)
@pytest.mark.parametrize(("right", "wrong"), SLOW_PASSES)
def test_a_pass_without_words_is_seen(right: str, wrong: str, mode: Mode, tmp_path: Path) -> None:
    Fault("penalty.cu", right, wrong).plant(tmp_path)
    kernels = (penalty_pass("float32", "float32", mode, l1=True, l2=True),)
    with pytest.raises(AssertionError):
        check_words_of_pass(library(Build(kernels=kernels, folder=tmp_path)), mode, "float32", "float32")


SLOW_STEPS = [
    pytest.param("% 16 == 0 && left >= TILE", "% 16 == 0 && left > step.size", id="never"),
    pytest.param("% 16 == 0 && left >= TILE", "% 16 == 0 && left > TILE", id="not the last one"),
    pytest.param("% 16 == 0", "% 32 == 0", id="not at every multiple of 16 bytes"),
]


@pytest.mark.parametrize(("right", "wrong"), SLOW_STEPS)
def test_a_step_without_words_is_seen(right: str, wrong: str, tmp_path: Path) -> None:
    Fault("proximal.cu", right, wrong).plant(tmp_path)
    with pytest.raises(AssertionError):
        check_words_of_step(library(Build(kernels=("proximal_step<float>",), folder=tmp_path)), "float32")


# What only a sanitizer sees ------------------------------------------------------------------------------------------

RACES = Calls(seed=10**6, passes=20, pairs=(("float32", "float32"),), modes=VALUE, tiles=4)
SMALL_RACES = RACES._replace(seed=0, passes=60, tiles=1)
RACE = r"WARNING: ThreadSanitizer: data race(.|\n)*tree\.cuh"

RACING = [
    seen(
        "a ticket that orders nothing",
        "tree.cuh",
        "__NV_ATOMIC_ACQ_REL",
        "__NV_ATOMIC_RELAXED",
        RACES,
        RACE,
    ),
    seen(
        "a ticket that does not publish",
        "tree.cuh",
        "__NV_ATOMIC_ACQ_REL",
        "__NV_ATOMIC_ACQUIRE",
        RACES,
        RACE,
    ),
    seen(
        "a ticket that does not receive",
        "tree.cuh",
        "__NV_ATOMIC_ACQ_REL",
        "__NV_ATOMIC_RELEASE",
        RACES,
        RACE,
    ),
    seen(
        "a ticket for the threads of one block",
        "tree.cuh",
        "__NV_ATOMIC_ACQ_REL, __NV_THREAD_SCOPE_DEVICE",
        "__NV_ATOMIC_ACQ_REL, __NV_THREAD_SCOPE_BLOCK",
        RACES,
        RACE,
    ),
    seen(
        "no barrier before the sums of warps are read, under the sanitizer",
        "tree.cuh",
        "= mine;\n  __syncthreads();",
        "= mine;",
        RACES,
        RACE,
    ),
    seen(
        "no barrier before the ticket of a shared block is taken",
        "penalty.cu",
        "  __syncthreads();  // each warp's penalty",
        "  // each warp's penalty",
        SMALL_RACES,
        RACE,
    ),
    seen(
        "no barrier before the ticket is read",
        "tree.cuh",
        "__syncthreads();\n  return shared.ticket",
        "return shared.ticket",
        RACES,
        RACE,
    ),
]


@pytest.mark.parametrize("case", RACING)
def test_a_race_is_seen(case: Seen, tmp_path: Path) -> None:
    case.fault.plant(tmp_path)
    assert re.search(
        case.message, sanitized.run(Build(Variant.THREADS, case.calls.kernels(), folder=tmp_path), case.calls)
    )


UNDEFINED = [
    seen(
        "an element beyond the end is read, under the sanitizer",
        "penalty.cu",
        "if (i < size) {",
        "if (i <= size) {",
        calls(passes=20),
        r"AddressSanitizer: heap-buffer-overflow(.|\n)*penalty\.cu",
    ),
    seen(
        "an index overflows",
        "penalty.cu",
        "threadIdx.x) * COUNT + lane;",
        "threadIdx.x) * COUNT + lane * 0x7fffffff / 0x7fffffff;",
        calls(passes=20),
        r"penalty\.cu:\d+:\d+: runtime error: signed integer overflow",
    ),
]


@pytest.mark.parametrize("case", UNDEFINED)
def test_undefined_behaviour_is_seen(case: Seen, tmp_path: Path) -> None:
    case.fault.plant(tmp_path)
    build = Build(Variant.ADDRESSES, case.calls.kernels(), folder=tmp_path)
    assert re.search(case.message, sanitized.run(build, case.calls))
