"""What compiled kernels hold, read from their PTX and SASS, and the faults that they must not have.

PTX is read for what decides bits and order: flushing, contraction, conversions, shuffle masks, tickets, how sums of
other blocks are read. SASS is read for what decides speed: the words of loads and stores, how many are in flight,
registers.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from gpureg.backends import Mode
from gpureg.backends.cuda import CALL, THREADS
from gpureg.backends.cuda_statistics import PASS

REGISTERS = 65536
"""Registers of a multiprocessor, of any architecture gpureg is compiled for."""

IN_FLIGHT = 48
"""KiB that a multiprocessor of an H200 must have in flight to keep its memory busy."""

LESS_IN_FLIGHT = {
    "penalty_pass<Half, Half, VALUE_AND_GRADIENT, true, false>": 40,
    "penalty_pass<Half, Half, VALUE_AND_GRADIENT, false, true>": 40,
    "penalty_pass<Half, Half, VALUE_AND_GRADIENT, true, true>": 40,
    "penalty_pass<Half, float, VALUE_AND_GRADIENT, true, false>": 40,
    "penalty_pass<Half, float, VALUE_AND_GRADIENT, false, true>": 40,
    "penalty_pass<Half, float, VALUE_AND_GRADIENT, true, true>": 32,
    "penalty_pass<BFloat16, BFloat16, GRADIENT, false, false>": 36,
    "penalty_pass<BFloat16, BFloat16, VALUE_AND_GRADIENT, true, false>": 20,
    "penalty_pass<BFloat16, BFloat16, VALUE_AND_GRADIENT, false, true>": 20,
    "penalty_pass<BFloat16, BFloat16, VALUE_AND_GRADIENT, true, true>": 16,
    "penalty_pass<BFloat16, float, VALUE_AND_GRADIENT, true, false>": 20,
    "penalty_pass<BFloat16, float, VALUE_AND_GRADIENT, false, true>": 20,
    "penalty_pass<BFloat16, float, VALUE_AND_GRADIENT, true, true>": 32,
}
"""KiB of the kernels that have less, as they are. What that costs awaits measurement; it shall not get worse unseen."""


class Kernel(NamedTuple):
    """The parameters of a kernel's template, read from its name."""

    template: str
    weights: str
    gradient: str
    mode: Mode | None
    squares: bool

    @classmethod
    def of(cls, name: str) -> "Kernel":
        """Return the parameters that a name of `gpureg.compiler.KERNELS` has."""
        template, *parameters = re.findall(r"\w+", name)
        if template == "proximal_step":
            return cls(template, parameters[0], parameters[0], None, squares=False)
        if template == "statistics_pass":
            return cls(template, parameters[0], parameters[0], Mode.VALUE, squares=True)
        weights, gradient, mode, _, squares = parameters
        return cls(template, weights, gradient, Mode[mode], squares == "true")

    @property
    def adds(self) -> bool:
        """Whether sums are formed."""
        return self.mode not in {None, Mode.GRADIENT}

    @property
    def writes(self) -> bool:
        """Whether anything of the weights' size is written."""
        return self.mode is not Mode.VALUE

    def words(self, access: str) -> set[int]:
        """Return the bytes of the words that whole tiles may be read ("load") and written ("store") in.

        Weights come in words of 16 bytes; so does their gradient, but that float32 gradients of float64 weights are
        only 8 bytes for each such word.
        """
        gradient = min(16, 16 // SIZES[self.weights] * SIZES[self.gradient])
        return {"load": {16, gradient} if self.mode is Mode.ACCUMULATE else {16}, "store": {gradient}}[access]


SIZES = {"Half": 2, "BFloat16": 2, "float": 4, "double": 8}

FLOAT = r"\.(b?f16|b?f16x2|f32|f32x2|f64)\b"
"""What the opcode of an instruction on floating-point numbers has."""

# --- PTX ----------------------------------------------------------------------------------------------------------


class PtxInstruction(NamedTuple):
    """One instruction: what it does, its operands, and the registers that it writes and reads."""

    opcode: str
    operands: tuple[str, ...]
    written: tuple[str, ...]
    read: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.opcode} {', '.join(self.operands)}"

    @classmethod
    def of(cls, statement: str) -> "PtxInstruction":
        """Return the instruction of a statement, whose first operand is what it writes, if it writes any register."""
        opcode, _, rest = re.sub(r"^@!?%\w+\s+", "", statement.strip()).replace("\t", " ").partition(" ")
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
        results = 0 if opcode.startswith(("st.", "red.", "bra", "bar.")) else 1
        written = re.findall(r"%\w+", " ".join(operands[:results]))
        return cls(opcode, tuple(operands), tuple(written), tuple(re.findall(r"%\w+", " ".join(operands[results:]))))


class Ptx:
    """The PTX of one kernel."""

    def __init__(self, symbol: str, directives: str, body: str) -> None:
        self.parameter = f"{symbol}_param_0"
        self.directives = directives
        self.declarations = re.findall(r"^\s*\.(?!reg|pragma)\w.*", body, re.MULTILINE)
        statements = re.sub(r"^\s*[.{}].*|^\$?\w+:", "", body, flags=re.MULTILINE)
        self.instructions = [PtxInstruction.of(line) for line in statements.split(";") if line.strip()]

    def launch_bounds(self) -> tuple[int, int]:
        """Return the threads of a block, and the blocks that must fit a multiprocessor."""
        threads = re.search(r"\.maxntid (\d+)", self.directives)
        blocks = re.search(r"\.minnctapersm (\d+)", self.directives)
        return int(threads[1]) if threads else 0, int(blocks[1]) if blocks else 1

    def matching(self, pattern: str) -> list[PtxInstruction]:
        """Return the instructions whose opcode has the pattern."""
        return [instruction for instruction in self.instructions if re.search(pattern, instruction.opcode)]

    @cached_property
    def constants(self) -> dict[str, set[str]]:
        """The values that each register is given, as far as they are literal; "?" for any other."""
        values: dict[str, set[str]] = {}
        for instruction in self.instructions:
            literal = instruction.opcode.startswith("mov.") and "%" not in instruction.operands[1]
            for register in instruction.written:
                values.setdefault(register, set()).add(instruction.operands[1] if literal else "?")
        return values

    def values(self, operand: str) -> set[str]:
        """Return what an operand may be, as far as that is literal; "?" for any other value."""
        return self.constants.get(operand, {"?"}) if operand.startswith("%") else {operand}

    @cached_property
    def origins(self) -> dict[str, set[int]]:
        """The offsets in the kernel's argument from which each register's value was computed, but through no memory."""
        addresses: dict[str, int] = {}  # of the argument itself, which loads take offsets from
        origins: dict[str, set[int]] = {}
        integers = [found for found in self.instructions if not re.search(FLOAT, found.opcode) and found.written]
        before = -1
        while before != (before := sum(map(len, origins.values())) + len(addresses)):
            for instruction in integers:
                self._trace(instruction, addresses, origins)
        return origins

    def _trace(self, instruction: PtxInstruction, addresses: dict[str, int], origins: dict[str, set[int]]) -> None:
        if instruction.opcode.startswith("ld.param"):
            place = self._parameter_offset(instruction.operands[1], addresses)
            width = int(re.findall(r"\d+$", instruction.opcode)[0]) // 8
            if place is not None:
                for i, register in enumerate(instruction.written):
                    origins.setdefault(register, set()).add(place + i * width)
        elif not instruction.opcode.startswith(("ld.", "atom.")):
            if instruction.opcode.startswith(("mov.", "add.", "cvta.")):
                place = self._parameter_offset("+".join(instruction.operands[1:]), addresses)
                if place is not None:
                    addresses[instruction.written[0]] = place
            found = set[int]().union(*(origins.get(register, set()) for register in instruction.read))
            for register in instruction.written if found else ():
                origins.setdefault(register, set()).update(found)

    def _parameter_offset(self, address: str, addresses: Mapping[str, int]) -> int | None:
        base, *rest = address.strip("[]").split("+")
        start = 0 if base == self.parameter else addresses.get(base)
        if start is None or not all(re.fullmatch(r"-?\d+", number) for number in rest):
            return None
        return start + sum(map(int, rest))

    def comes_from(self, instruction: PtxInstruction, fields: Mapping[str, int]) -> set[str]:
        """Return which of these fields of the argument, given where they lie, its address was computed from."""
        address = next(operand for operand in instruction.operands if operand.startswith("["))
        found = set[int]().union(*(self.origins.get(register, set()) for register in re.findall(r"%\w+", address)))
        return {field for field, offset in fields.items() if offset in found}


def read_ptx(text: str) -> dict[str, Ptx]:
    """Return the kernels of a PTX file by their symbol."""
    text = re.sub(r"//.*", "", text)
    entries = re.finditer(r"\.entry (\w+)\((?:[^)]*)\)([^{]*)\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return {entry[1]: Ptx(entry[1], entry[2], entry[3]) for entry in entries}


CONVERSIONS = {"cvt.f32.f16", "cvt.f64.f32", "cvt.rn.f16.f32", "cvt.rn.f32.f64"}
"""The conversions of floating-point numbers that kernels may make: exact ones, and those to nearest even."""

ARGUMENTS = {"penalty_pass": CALL, "statistics_pass": PASS}
"""The arguments of the kernels that add."""

SCRATCH = {"penalty_pass": ("tile_sums", "group_sums", "penalties"), "statistics_pass": ("tile_sums",)}
"""Their sums that blocks share, at each level."""

COUNTERS = dict.fromkeys(ARGUMENTS, ("counters",))
"""Where they take tickets."""

COUNTS = {"penalty_pass": (), "statistics_pass": ("groups",)}
"""Where they count: integers, for which any order of atomics gives the same."""


def offsets(kernel: Kernel, table: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Return where fields of a kernel's argument lie; none, if it adds nothing."""
    if not kernel.adds:
        return {}
    known = ARGUMENTS[kernel.template].fields
    assert known is not None
    return {field: int(known[field][1]) for field in table[kernel.template]}


def ptx_faults(name: str, ptx: Ptx) -> list[str]:
    """Return what is wrong with a kernel's PTX."""
    kernel = Kernel.of(name)
    return [
        *_arithmetic_faults(kernel, ptx),
        *_conversion_faults(kernel, ptx),
        *_shuffle_faults(kernel, ptx),
        *_order_faults(kernel, ptx),
        *(f"local memory: {line.strip()}" for line in ptx.declarations if ".local" in line),
        *(f"local memory: {found}" for found in ptx.matching(r"\.local")),
        *(f"not inlined: {found}" for found in ptx.matching(r"^call")),
    ]


def _arithmetic_faults(kernel: Kernel, ptx: Ptx) -> Iterator[str]:
    """Yield where bits would differ: flushing, approximation, or a product and a sum rounded once."""
    may_fuse = kernel.squares and SIZES[kernel.weights] < 8
    for instruction in ptx.matching(FLOAT):
        opcode = instruction.opcode
        if ".ftz" in opcode:
            yield f"flushes to zero: {instruction}"
        if re.search(r"\.(approx|full)\b", opcode):
            yield f"approximates: {instruction}"
        if re.match(r"(fma|mad)\.", opcode):
            exact = opcode == "fma.rn.f64" and instruction.operands[1] == instruction.operands[2]
            if not (may_fuse and exact):
                yield f"contraction: {instruction}"
        # Without a rounding of its own, ptxas may fuse a sum with a product.
        if re.match(r"(add|sub|mul|div|sqrt)\.", opcode) and ".rn" not in opcode:
            yield f"not rounded by itself: {instruction}"


def _conversion_faults(kernel: Kernel, ptx: Ptx) -> Iterator[str]:
    """Yield conversions that round otherwise, saturate or flush, and those of float16 that are not one instruction.

    On the host the kernels convert float16 in another way, so that nothing else is said there of these instructions.
    """
    found = [each for each in ptx.matching(r"^cvt\.") if not re.fullmatch(r"cvt\.[su]\d+\.[su]\d+", each.opcode)]
    for conversion in found:
        if conversion.opcode not in CONVERSIONS:
            yield f"conversion: {conversion}"
    made = {conversion.opcode for conversion in found}
    needed = {"cvt.f32.f16": kernel.weights == "Half", "cvt.rn.f16.f32": kernel.writes and kernel.gradient == "Half"}
    for opcode, is_needed in needed.items():
        if (opcode in made) != is_needed:
            yield f"conversion: {'no' if is_needed else 'a'} {opcode}"


def _shuffle_faults(kernel: Kernel, ptx: Ptx) -> Iterator[str]:
    """Yield shuffles that not all threads of a warp are named for."""
    shuffles = ptx.matching(r"^shfl")
    for shuffle in shuffles:
        if not shuffle.opcode.startswith("shfl.sync.bfly.b32") or ptx.values(shuffle.operands[4]) != {"-1"}:
            yield f"shuffle mask: {shuffle}"
    if bool(shuffles) != kernel.adds:
        yield f"shuffle mask: {len(shuffles)} shuffles"
    for found in ptx.matching(r"^(vote|match|redux|activemask)"):
        yield f"shuffle mask: {found}"


def _order_faults(kernel: Kernel, ptx: Ptx) -> Iterator[str]:
    """Yield tickets and reads of other blocks' sums that are not ordered by one acquire-release atomic a level."""
    scratch, counters, counted = (offsets(kernel, table) for table in (SCRATCH, COUNTERS, COUNTS))
    atomics = ptx.matching(r"^(atom|red)\.")
    counts = [atomic for atomic in atomics if ptx.comes_from(atomic, counted)]
    for count in counts:
        if not {"relaxed", "gpu", "u64"} <= set(count.opcode.split(".")):
            yield f"count: {count}"
    tickets = [atomic for atomic in atomics if atomic not in counts]
    for ticket in tickets:
        ordered = {"add", "acq_rel", "gpu", "u32"} <= set(ticket.opcode.split("."))
        if not ordered or not ptx.comes_from(ticket, counters):
            yield f"ticket: {ticket}"
    if len(tickets) != len(scratch):
        yield f"ticket: {len(tickets)} atomics, not one for each of {len(scratch)} levels"
    for found in ptx.matching(r"^(membar|fence)"):
        yield f"ticket: a fence beside it: {found}"
    for found in ptx.matching(r"^ld\..*\bnc\b"):
        yield f"partial sums: {found} is not coherent"
    read = set()
    for load in ptx.matching(r"^ld\.(?!param|shared)"):
        fields = ptx.comes_from(load, scratch | counted)
        relaxed = load.opcode.startswith("ld.relaxed.gpu.")
        if relaxed:
            read |= fields
        if bool(fields) != relaxed:
            yield f"partial sums: {load} of {sorted(fields) or 'nothing that blocks share'}"
    if read != set(scratch):
        yield f"partial sums: relaxed loads of {sorted(read)} alone"


# --- SASS ---------------------------------------------------------------------------------------------------------


class SassInstruction(NamedTuple):
    """One instruction; `labels` are those before it."""

    labels: tuple[str, ...]
    opcode: str
    operands: str

    def __str__(self) -> str:
        return f"{self.opcode} {self.operands}"

    @property
    def memory(self) -> str:
        """What it does in memory that is not shared or constant: "load", "store", or ""."""
        return {"LDG": "load", "LD": "load", "STG": "store", "ST": "store"}.get(self.opcode.split(".")[0], "")

    @property
    def bytes(self) -> int:
        """The bytes of its word in memory."""
        for modifier in self.opcode.split(".")[1:]:
            if modifier in {"64", "128", "256"}:
                return int(modifier) // 8
            if modifier in {"U8", "S8", "U16", "S16"}:
                return int(modifier[1:]) // 8
        return 4

    @property
    def registers(self) -> set[int]:
        """The registers it names, with those that a wide load or store takes along."""
        named = [int(number) for number in re.findall(r"\bR(\d+)", self.operands)]
        if self.memory == "load":
            named += self.loaded
        elif self.memory == "store" and named:
            named += range(named[-1], named[-1] + self.bytes // 4)
        return set(named)

    @property
    def loaded(self) -> range:
        """The registers that a load fills."""
        first = int(re.findall(r"\bR(\d+)", self.operands)[0])
        return range(first, first + max(1, self.bytes // 4))

    @property
    def target(self) -> str | None:
        """The label it jumps to."""
        found = re.search(r"`\((\.\w+)\)", self.operands) if self.opcode.startswith("BRA") else None
        return found[1] if found else None


class Sass(NamedTuple):
    """The machine code of one kernel, and what it needs."""

    instructions: Sequence[SassInstruction]
    registers: int
    stack: int
    local: int

    def loops(self) -> list[list[SassInstruction]]:
        """Return the innermost loops, in code order, from their head to the jump back to it."""
        places = {label: i for i, found in enumerate(self.instructions) for label in found.labels}
        spans = []
        for i, instruction in enumerate(self.instructions):
            start = places.get(instruction.target or "", i + 1)
            if start < i:  # not a jump to itself, with which the code ends
                spans.append((start, i))
        innermost = [
            (start, end)
            for start, end in spans
            if not any(start <= other[0] and other[1] <= end and other != (start, end) for other in spans)
        ]
        return [list(self.instructions[start : end + 1]) for start, end in innermost]

    def main_loops(self, *, writes: bool) -> list[list[SassInstruction]]:
        """Return the loops over whole tiles: those of wide loads, and of stores if anything is written."""
        return [
            loop
            for loop in self.loops()
            if any(found.memory == "load" and found.bytes >= 16 for found in loop)
            and any(found.memory == "store" for found in loop) == writes
        ]


class Flight(NamedTuple):
    """How a loop waits for its loads: how many it makes, of how many bytes, and how often it waits for one."""

    loads: int
    bytes: int
    waits: int

    @property
    def loads_in_flight(self) -> float:
        """Loads on their way at a time, on average."""
        return self.loads / self.waits

    @property
    def bytes_in_flight(self) -> float:
        """Bytes on their way at a time, on average, for each thread."""
        return self.bytes / self.waits


def flight(loop: Sequence[SassInstruction]) -> Flight:
    """Count how often a loop waits, if loads take long and nothing else takes any time.

    Each load takes one unit of time; the instruction that first names a register of it waits until it is there. What
    was issued at the same time or before is then there too. A loop that loads ahead for its next round is counted
    rightly, for it is the second round that is counted.
    """
    now, started, loads, size = 0, 0, 0, 0
    arrives: dict[int, int] = {}
    for _ in range(2):
        started, loads, size = now, 0, 0
        for instruction in loop:
            now = max(now, *(arrives.pop(register, 0) for register in instruction.registers), 0)
            if instruction.memory == "load":
                loads, size = loads + 1, size + instruction.bytes
                arrives.update(dict.fromkeys(instruction.loaded, now + 1))
    return Flight(loads, size, max(1, now - started))


def resident_blocks(registers: int) -> int:
    """Return how many blocks of a kernel a multiprocessor of sm_90 holds: 2048 threads, 32 blocks, and the registers.

    Registers are given to a warp in lots of 256.
    """
    lot = -(-registers * 32 // 256) * 256
    return min(REGISTERS // (lot * THREADS // 32), 2048 // THREADS, 32)


def bytes_in_flight(sass: Sass, loop: Sequence[SassInstruction]) -> float:
    """Return the bytes that a multiprocessor of sm_90 full of this kernel has in flight in that loop."""
    return flight(loop).bytes_in_flight * THREADS * resident_blocks(sass.registers)


def sass_faults(name: str, sass: Sass, bounds: tuple[int, int], *, busy: bool = False) -> list[str]:
    """Return what is wrong with a kernel's machine code; if `busy`, also that too little is in flight on sm_90."""
    kernel = Kernel.of(name)
    threads, blocks = bounds
    faults = [f"local memory: {found}" for found in sass.instructions if re.match(r"(LDL|STL)\b", found.opcode)]
    if sass.stack or sass.local:
        faults.append(f"local memory: a stack of {sass.stack} bytes, {sass.local} local")
    if threads != THREADS:
        faults.append(f"launch bounds: {threads} threads")
    elif sass.registers > REGISTERS // (threads * blocks):
        faults.append(f"registers: {sass.registers} where {blocks} blocks of {threads} threads shall fit")
    loops = sass.main_loops(writes=kernel.writes)
    if not loops:
        faults.append("words: no loop of 16-byte loads")
    for loop in loops:
        faults += _loop_faults(kernel, loop)
        if busy:
            in_flight, wanted = bytes_in_flight(sass, loop) / 1024, LESS_IN_FLIGHT.get(name, IN_FLIGHT)
            if in_flight < wanted:
                faults.append(f"in flight: {in_flight:.0f} KiB on a multiprocessor, not {wanted}")
    return faults


def _loop_faults(kernel: Kernel, loop: Sequence[SassInstruction]) -> Iterator[str]:
    """Yield what is wrong in a loop over a whole tile."""
    for found in loop:
        if found.memory and found.bytes not in kernel.words(found.memory):
            yield f"words: {found} in the loop over whole tiles"
        # A load that may also be of shared memory is another, slower instruction.
        if found.opcode.startswith(("LD.", "ST.")):
            yield f"words: {found} of no known memory"
    if flight(loop).loads_in_flight < 2:
        yield f"in flight: {flight(loop)}"


def tool(name: str) -> Path:
    """Return the path of a program that an NVIDIA package from PyPI brings."""
    for file in metadata.files(f"nvidia-cuda-{name}") or ():
        if file.stem == name and file.suffix in {"", ".exe"}:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"no {name} in the package nvidia-cuda-{name}")


def read_sass(cubin: Path) -> dict[str, Sass]:
    """Return the kernels of a binary by their symbol."""
    code = subprocess.run([tool("nvdisasm"), "--print-code", cubin], capture_output=True, text=True, check=True).stdout
    usage = subprocess.run([tool("cuobjdump"), "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    found = {}
    for match in re.finditer(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) \S+ LOCAL:(\d+)", usage):
        registers, stack, local = map(int, match.groups()[1:])
        found[match[1]] = Sass(_sass_instructions(code, match[1]), registers, stack, local)
    return found


def _sass_instructions(code: str, symbol: str) -> list[SassInstruction]:
    start = code.index(f"\n.text.{symbol}:\n")
    instructions, labels = [], list[str]()
    for line in code[start : code.find("\n//-----", start)].splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels.append(label[1])
        elif found := re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line):
            instructions.append(SassInstruction(tuple(labels), found[1], found[2].strip()))
            labels = []
    return instructions


def table(kernels: Mapping[str, Sass]) -> str:
    """Return, for kernels compiled for sm_90, what they need and what they have in flight."""
    row = "{:60} {:>9} {:>6} {:>5} {:>5} {:>13}".format
    lines = [row("kernel", "registers", "blocks", "loads", "waits", "KiB in flight")]
    for name, sass in kernels.items():
        for loop in sass.main_loops(writes=Kernel.of(name).writes):
            loads, _, waits = flight(loop)
            kib = round(bytes_in_flight(sass, loop) / 1024)
            lines.append(row(name, sass.registers, resident_blocks(sass.registers), loads, waits, kib))
    return "\n".join(lines)
