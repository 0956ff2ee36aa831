"""The machine code of every kernel moves 16 bytes at a time, has enough of them in flight, and uses no local memory.

Each fault that the gate is there for is planted in a copy of the sources, and must be found.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from gpureg import compiler
from gpureg.backends import Mode
from gpureg.compiler import KERNELS, penalty_pass, proximal_step, statistics_pass
from tests.kernels.build import ARCHITECTURES, PREFIXES, Compiled, build, build_all
from tests.kernels.inspect_code import (
    IN_FLIGHT,
    LESS_IN_FLIGHT,
    Flight,
    SassInstruction,
    flight,
    resident_blocks,
    sass_faults,
)


def faults_of(compiled: Compiled, *, busy: bool) -> dict[str, list[str]]:
    """Return the faults of the kernels that have any."""
    ptx = compiled.ptx()
    found = {
        name: sass_faults(name, sass, ptx[name].launch_bounds(), busy=busy) for name, sass in compiled.sass().items()
    }
    return {name: faults for name, faults in found.items() if faults}


# From the other end than the gate of PTX, so that two workers do not wait for each other's compilation.
@pytest.mark.parametrize("architecture", ARCHITECTURES[::-1])
def test_every_kernel_is_wide_and_busy(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # How much must be in flight is known for the H200. Some kernels have less, and are kept from having less still.
    for compiled in build_all(architecture, tmp_path_factory):
        assert faults_of(compiled, busy=architecture == "sm_90") == {}


def test_kernels_with_less_in_flight_are_none_of_the_promised() -> None:
    assert LESS_IN_FLIGHT.keys() <= set(KERNELS)
    assert max(LESS_IN_FLIGHT.values()) < IN_FLIGHT
    assert not [name for name in LESS_IN_FLIGHT if re.search(r"\b(VALUE|ACCUMULATE)\b", name)]


def test_a_kernel_compiled_alone_is_the_one_looked_at(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    together = {
        name: sass for compiled in build_all("sm_90", tmp_path_factory) for name, sass in compiled.sass().items()
    }
    for kernel in (kernel for kernel in KERNELS if "<float" in kernel):
        alone = build([kernel], tmp_path)
        assert alone.program.log == ""
        assert text(alone.sass()[kernel].instructions) == text(together[kernel].instructions)


def text(instructions: object) -> str:
    """Return instructions as text, without the numbers that the compiler gives to labels."""
    return re.sub(r"\.L_x_\d+|_internal_\d+", "", str(instructions))


VALUE = penalty_pass("float32", "float32", Mode.VALUE, l1=True, l2=True)
NARROW = penalty_pass("float16", "float16", Mode.VALUE, l1=True, l2=True)
WIDE = "using Word = typename WordOf<sizeof(T) * N % 16 == 0>::type;"


class Plant(NamedTuple):
    """A fault: the kernel to see it in, the beginning of what is found, and the change of a source, a pattern."""

    kernel: str
    found: str
    file: str
    old: str
    new: str


PLANTS = {
    "a spill": Plant(NARROW, "local memory", "penalty.cu", r"(?<=BLOCKS =)[^;]*", " 16"),
    "words of 4 bytes": Plant(VALUE, "words", "element.cuh", re.escape(WIDE), "using Word = unsigned;"),
    "words of 8 bytes": Plant(VALUE, "words", "element.cuh", re.escape(WIDE), "using Word = uint2;"),
    "words of 4 bytes, both": Plant(
        penalty_pass("float16", "float32", Mode.ACCUMULATE, l1=True, l2=False),
        "words", "element.cuh", re.escape(WIDE), "using Word = unsigned;",
    ),
    "gradient words of 4 bytes": Plant(
        penalty_pass("float64", "float32", Mode.ACCUMULATE, l1=True, l2=False),
        "words", "element.cuh", r"using type = uint2;", "using type = unsigned;",
    ),
    "any memory": Plant(VALUE, "words", "penalty.cu", r"__builtin_assume\(__isGlobal\(\w+\)\);", ";"),
    "one load at a time": Plant(VALUE, "in flight", "penalty.cu", r"(?<=ROWS_AT_A_TIME = )[^;]*", "1"),
    "one load at a time, proximal": Plant(
        proximal_step("float32"), "in flight", "proximal.cu", r"(?<=ROWS_AT_A_TIME = )[^;]*", "1"
    ),
    "one load at a time, statistics": Plant(
        statistics_pass("float32"), "in flight", "statistics.cu", r"(?<=ROWS_AT_A_TIME = )[^;]*", "1"
    ),
    "too little in flight, statistics": Plant(
        statistics_pass("float16"), "in flight", "statistics.cu", r"(?<=ROWS_AT_A_TIME = )[^;]*", "2"
    ),
    "any memory, statistics": Plant(
        statistics_pass("float64"), "words", "statistics.cu", r"__builtin_assume\(__isGlobal\(\w+\)\);", ";"
    ),
    "too little in flight": Plant(NARROW, "in flight", "penalty.cu", r"(?<=ROWS_AT_A_TIME = )[^;]*", "4"),
    "less in flight than before": Plant(
        penalty_pass("float16", "float16", Mode.VALUE_AND_GRADIENT, l1=True, l2=True),
        "in flight", "penalty.cu", r"(?<=ROWS_AT_A_TIME = )[^;]*", "2",
    ),
    "less in flight than before, gradient": Plant(
        penalty_pass("bfloat16", "bfloat16", Mode.GRADIENT, l1=True, l2=True),
        "in flight", "penalty.cu", r"(?<=ROWS_AT_A_TIME = )[^;]*", "8",
    ),
    "threads unknown": Plant(VALUE, "launch bounds", "penalty.cu", r"__launch_bounds__\([^)]*\)", ""),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_a_planted_fault_is_found(plant: Plant, tmp_path: Path) -> None:
    sources = compiler.sources()
    sources[plant.file], times = re.subn(plant.old, plant.new, sources[plant.file])
    assert times
    faults = faults_of(build([plant.kernel], tmp_path, sources=sources), busy=True)
    assert any(fault.startswith(plant.found) for fault in faults[plant.kernel]), faults


def test_the_kernels_that_faults_are_planted_in_have_none(tmp_path: Path) -> None:
    for prefix in PREFIXES:
        kernels = {plant.kernel for plant in PLANTS.values() if plant.kernel.startswith(prefix)}
        assert faults_of(build(kernels, tmp_path), busy=True) == {}


def test_too_many_registers_for_the_launch_are_found(tmp_path: Path) -> None:
    (sass,) = build([VALUE], tmp_path).sass().values()
    assert sass_faults(VALUE, sass, (128, 5)) == []
    assert sass_faults(VALUE, sass._replace(registers=103), (128, 5))[0].startswith("registers")


LOAD_A, LOAD_B, LOAD_C = ("LDG.E.128", "R4, R2"), ("LDG.E.128", "R8, R2+16"), ("LDG.E.64", "R12, R2+32")
USE_A, USE_B, USE_C = ("FADD", "R20, R20, R7"), ("FADD", "R20, R20, R8"), ("STG.E.64", "R2, R12")


@pytest.mark.parametrize(
    ("loop", "counted"),
    [
        pytest.param([LOAD_A, LOAD_B, LOAD_C, USE_A, USE_B, USE_C], Flight(3, 40, 1), id="together"),
        pytest.param([LOAD_A, USE_A, LOAD_B, USE_B], Flight(2, 32, 2), id="one by one"),
        pytest.param([LOAD_A, LOAD_B, USE_B, LOAD_C, USE_A, USE_C], Flight(3, 40, 2), id="two, then one"),
        pytest.param([USE_A, LOAD_A, USE_B, LOAD_B], Flight(2, 32, 1), id="each ahead by a round"),
        pytest.param([LOAD_A, LOAD_A, USE_A], Flight(2, 32, 2), id="into the same registers"),
    ],
)
def test_waits_for_loads_are_counted(loop: list[tuple[str, str]], counted: Flight) -> None:
    assert flight([SassInstruction((), *instruction) for instruction in loop]) == counted


@pytest.mark.parametrize(("registers", "blocks"), [(32, 16), (33, 12), (96, 5), (97, 4), (128, 4), (129, 3), (255, 2)])
def test_blocks_that_fit_a_multiprocessor(registers: int, blocks: int) -> None:
    assert resident_blocks(registers) == blocks
