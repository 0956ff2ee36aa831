"""What a pass costs on paper: memory, and the units of a multiprocessor that its instructions take turns on.

A pass cannot be faster than its bytes over the memory's bandwidth. It is that fast if two things hold: enough bytes are
on their way at any time, and no unit of the multiprocessors needs longer for its instructions than the memory for their
bytes. Both are read off the machine code of a kernel's loop over whole tiles, without a GPU.

What is left out: how long the tree over a tile's lanes takes, what a launch costs, and that a memory never gives all of
its bandwidth. So a share here is a bound, not a promise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gpureg.backends import Mode
from gpureg.backends.cuda import THREADS
from tests.kernels.inspect_code import IN_FLIGHT, REGISTERS, SIZES, Kernel, Sass, SassInstruction, flight


class Architecture(NamedTuple):
    """What a multiprocessor holds, and the results that its units give in a clock.

    From the CUDA C++ Programming Guide: "Technical Specifications per Compute Capability", and the table of the
    throughput of native arithmetic instructions.
    """

    threads: int
    blocks: int
    shared: int
    """KiB of shared memory."""
    doubles: int
    """Additions, multiplications and comparisons of float64."""
    conversions: int
    """Conversions from and to types of 64 bits."""


ARCHITECTURES = {
    "sm_75": Architecture(1024, 16, 64, doubles=2, conversions=2),
    "sm_80": Architecture(2048, 32, 164, doubles=32, conversions=16),
    "sm_89": Architecture(1536, 24, 100, doubles=2, conversions=2),
    "sm_90": Architecture(2048, 32, 228, doubles=64, conversions=16),
    "sm_100": Architecture(2048, 32, 228, doubles=64, conversions=16),
    "sm_120": Architecture(1536, 24, 100, doubles=2, conversions=2),
}

ALU, ISSUED = 64, 128
"""Results in a clock, of any of these architectures: of the unit that compares, selects, shifts and adds integers, and
of all units together, for each of the four schedulers issues an instruction for 32 threads."""


class Chip(NamedTuple):
    """A GPU by its data sheet, and the clock that its multiprocessors keep under load."""

    architecture: str
    gb_per_s: float
    multiprocessors: int
    ghz: float

    def bytes_in_a_clock(self) -> float:
        """Return what the memory gives each multiprocessor in a clock."""
        return self.gb_per_s / (self.multiprocessors * self.ghz)


CHIPS = {
    "T4": Chip("sm_75", 320, 40, 1.59),
    "A100 80 GB": Chip("sm_80", 2039, 108, 1.41),
    "L4": Chip("sm_89", 300, 58, 2.04),
    "RTX 4090": Chip("sm_89", 1008, 128, 2.52),
    "H100 SXM": Chip("sm_90", 3350, 132, 1.755),
    "H200": Chip("sm_90", 4800, 132, 1.755),
    "B200": Chip("sm_100", 8000, 148, 1.85),
    "RTX 5090": Chip("sm_120", 1792, 170, 2.41),
}

UNITS = {
    "conversions": frozenset({"F2F"}),
    "float64": frozenset({"DADD", "DFMA", "DMUL", "DSETP", "DMNMX"}),
    "ALU": frozenset(
        {"FSEL", "FSETP", "FMNMX", "SEL", "LOP3", "PLOP3", "SHF", "PRMT", "IADD3", "VIADD", "ISETP", "LEA", "F2FP"}
    ),
}
"""Units by the opcodes that they take; each instruction is issued besides."""

RATES: dict[str, Callable[[Architecture], int]] = {
    "conversions": lambda architecture: architecture.conversions,
    "float64": lambda architecture: architecture.doubles,
    "ALU": lambda _: ALU,
    "issued": lambda _: ISSUED,
}
"""The results of each unit in a clock."""


class Facts(NamedTuple):
    """What the machine code of a kernel says of it."""

    registers: int
    local: int
    """Bytes of a thread in local memory, where spilled registers go."""
    blocks: int
    """Blocks that a multiprocessor holds."""
    threads: int
    """Threads that a multiprocessor holds."""
    loads: float
    """Loads of a thread on their way at a time."""
    kib: float
    """KiB of a multiprocessor on their way at a time."""
    shuffles: int
    """Shuffles in all of the code."""
    instructions: Mapping[str, float]
    """Instructions for each element, by the unit that they take; "issued" are all."""

    def shares(self, kernel: str, chip: Chip) -> dict[str, float]:
        """Return the time that each unit needs, as a share of the time that the memory needs."""
        architecture = ARCHITECTURES[chip.architecture]
        elements = chip.bytes_in_a_clock() / moved(Kernel.of(kernel))
        return {unit: elements * self.instructions[unit] / rate(architecture) for unit, rate in RATES.items()}


def busiest(shares: Mapping[str, float]) -> tuple[str, float]:
    """Return the unit that needs the longest, and its share."""
    return max(shares.items(), key=lambda item: item[1])


def moved(kernel: Kernel) -> int:
    """Return the bytes that a pass moves for each element."""
    streams = {Mode.VALUE: 0, Mode.GRADIENT: 1, Mode.VALUE_AND_GRADIENT: 1, Mode.ACCUMULATE: 2}
    return SIZES[kernel.weights] + SIZES[kernel.gradient] * streams[_mode(kernel)]


def read(kernel: Kernel) -> int:
    """Return the bytes that a pass loads for each element."""
    return SIZES[kernel.weights] + SIZES[kernel.gradient] * (_mode(kernel) is Mode.ACCUMULATE)


def _mode(kernel: Kernel) -> Mode:
    if kernel.mode is None:
        raise ValueError(f"{kernel.template} is no pass")
    return kernel.mode


def resident_blocks(architecture: Architecture, registers: int, threads: int = THREADS, shared: int = 0) -> int:
    """Return how many blocks of so many threads, registers a thread and bytes of shared memory a multiprocessor holds.

    Registers are given to a warp in lots of 256. A block takes 1 KiB of shared memory besides its own, on sm_75 none.
    """
    lot = -(-registers * 32 // 256) * 256
    limits = [REGISTERS // (lot * threads // 32), architecture.threads // threads, architecture.blocks]
    if shared:
        limits.append(architecture.shared * 1024 // (shared + 1024))
    return min(limits)


def facts(name: str, sass: Sass, architecture: Architecture, *, tiles: int = 1, shared: int = 0) -> Facts:
    """Return what the machine code of a kernel says, whose blocks take so many tiles side by side.

    Of several loops over whole tiles, as there are where it is decided once which terms a gradient has, the one with
    the most instructions counts. If a tile is brought into shared memory by one copy, all of it is on its way.
    """
    kernel = Kernel.of(name)
    threads = tiles * THREADS
    blocks = resident_blocks(architecture, sass.registers, threads, shared)
    if shared:
        loop = next(loop for loop in sass.loops() if _from_shared(loop))  # the tree's come later
        loads, size, waits = 1, shared // THREADS, 1
        elements = _from_shared(loop) / SIZES[kernel.weights]
    else:
        loop = max(_loops(kernel, sass), key=len)
        loads, size, waits = flight(loop)
        elements = size / read(kernel)
    counts = {unit: sum(_opcode(each) in opcodes for each in loop) / elements for unit, opcodes in UNITS.items()}
    return Facts(
        registers=sass.registers,
        local=sass.stack + sass.local,
        blocks=blocks,
        threads=blocks * threads,
        loads=loads / waits,
        kib=size / waits * blocks * threads / 1024,
        shuffles=sum(_opcode(each) == "SHFL" for each in sass.instructions),
        instructions={**counts, "issued": len(loop) / elements},
    )


def _opcode(instruction: SassInstruction) -> str:
    return instruction.opcode.split(".")[0]


def _from_shared(loop: Sequence[SassInstruction]) -> int:
    """Return the bytes that a loop reads from shared memory."""
    return sum(16 for each in loop if each.opcode.startswith("LDS.128"))


def _loops(kernel: Kernel, sass: Sass) -> list[list[SassInstruction]]:
    """Return the loops over whole tiles; if there are none left, the straight piece of code with the most loads."""
    loops = sass.main_loops(writes=kernel.writes)
    return loops or [max(_straight(sass), key=lambda piece: sum(each.memory == "load" for each in piece))]


def _straight(sass: Sass) -> Iterator[list[SassInstruction]]:
    """Yield the pieces of code that nothing jumps into or out of."""
    piece: list[SassInstruction] = []
    for each in sass.instructions:
        if each.labels:
            yield piece
            piece = []
        piece.append(each)
        if _opcode(each) in {"BRA", "EXIT", "BAR", "SHFL"}:
            yield piece
            piece = []
    yield piece


def predicted_share(found: Facts, kernel: str) -> float:
    """Return the share of an H200's bandwidth that is within reach.

    That is all of it, unless a unit needs longer than the memory, or fewer loads are on their way than keep the memory
    busy: so many as loads are of all that moves.
    """
    parameters = Kernel.of(kernel)
    needed = IN_FLIGHT * read(parameters) / moved(parameters)
    _, share = busiest(found.shares(kernel, CHIPS["H200"]))
    return min(found.kib / needed, 1 / max(1.0, share), 1.0)


def pass_seconds(moved_bytes: float, gb_per_s: float, launch: float) -> float:
    """Return what a pass costs: its bytes over the bandwidth, and what a call costs however small.

    >>> f"{pass_seconds(3 * 2**28, 4800, 10e-6) * 1e6:.0f} microseconds"
    '178 microseconds'
    """
    return launch + moved_bytes / (gb_per_s * 1e9)
