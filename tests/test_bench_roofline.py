"""What a pass costs on paper: what is read off machine code, and the shares of the memory's time that follow."""

import pytest

from bench import roofline, variants
from bench.roofline import ARCHITECTURES, CHIPS, Facts
from bench.variants import VALUE32
from tests.kernels.inspect_code import Kernel, Sass, SassInstruction, resident_blocks


def loop(*opcodes: str, label: str = ".L_x_1") -> list[SassInstruction]:
    """Return a loop over whole tiles: two wide loads, then these, and the jump back."""
    loads = [SassInstruction((label,), "LDG.E.128", "R4, R2"), SassInstruction((), "LDG.E.128", "R8, R2+16")]
    rest = [SassInstruction((), opcode, "R20, R4, R8") for opcode in opcodes]
    return [*loads, *rest, SassInstruction((), "BRA", f"`({label})")]


def sass(*code: SassInstruction, registers: int = 64) -> Sass:
    return Sass([SassInstruction((), "MOV", "R1, R2"), *code, SassInstruction((), "EXIT", "")], registers, 0, 0)


def test_instructions_are_counted_for_each_element_by_the_unit_they_take() -> None:
    mixed = ("F2F.F64.F32", "DADD", "DFMA", "F2F.F64.F32", "FSEL", "IMAD")
    found = roofline.facts(VALUE32, sass(*loop(*mixed)), ARCHITECTURES["sm_90"])
    # Two words of 16 bytes are 8 float32, and the loop has nine instructions.
    assert found.instructions == {"conversions": 2 / 8, "float64": 2 / 8, "ALU": 1 / 8, "issued": 9 / 8}
    assert (found.registers, found.local, found.blocks, found.threads) == (64, 0, 8, 1024)
    assert (found.loads, found.kib) == (2, 2 * 16 * 1024 / 1024)
    accumulated = roofline.facts(variants.ADD32, sass(*loop(*mixed, "STG.E.128")), ARCHITECTURES["sm_90"])
    assert accumulated.instructions["conversions"] == 2 / 4  # one of the two words is the gradient's


def test_of_several_loops_the_longest_counts_and_without_any_the_piece_with_the_most_loads() -> None:
    short, long = loop("DADD"), loop("DADD", "DADD", "DADD", label=".L_x_2")
    for two in ([*short, *long], [*long, *short]):
        assert roofline.facts(VALUE32, sass(*two), ARCHITECTURES["sm_90"]).instructions["float64"] == 3 / 8
    unrolled = [*loop("DADD", "DADD")[:-1], SassInstruction((), "SHFL", "R20, R4"), *loop()[:1]]
    found = roofline.facts(VALUE32, sass(*unrolled), ARCHITECTURES["sm_90"])
    assert (found.loads, found.instructions["float64"], found.shuffles) == (2, 2 / 8, 1)


@pytest.mark.parametrize(
    ("kernel", "counts", "chip", "percent"),
    [
        # Of the peers' notes on paper: conversions and additions of float64 on an H200, and conversions on a B200.
        (VALUE32, (1, 2), "H200", (32, 16)),
        (variants.VALUE16, (1, 2), "H200", (65, 32)),
        (variants.VALUE64, (0, 3), "H200", (0, 12)),
        (variants.VALUE16, (1, 2), "B200", (91, 46)),
        (VALUE32, (1, 2), "RTX 4090", (39, 78)),
        (variants.VALUE16, (1, 2), "RTX 4090", (78, 156)),
        # A third of the elements in the same bytes.
        (variants.ADD32, (1, 2), "H200", (11, 5)),
    ],
)
def test_shares_of_the_memory_time(kernel: str, counts: tuple[int, int], chip: str, percent: tuple[int, int]) -> None:
    instructions = {"conversions": counts[0], "float64": counts[1], "ALU": 0.0, "issued": 0.0}
    found = Facts(64, 0, 8, 1024, 4, 64, 0, instructions).shares(kernel, CHIPS[chip])
    assert (round(100 * found["conversions"]), round(100 * found["float64"])) == percent


def test_what_is_within_reach() -> None:
    idle = {"conversions": 0.0, "float64": 0.0, "ALU": 0.0, "issued": 0.0}
    found = Facts(64, 0, 8, 1024, 4, 24, 0, idle)
    assert roofline.predicted_share(found, VALUE32) == 24 / 48
    # Half of what moves is read, so half as much must be on its way; of accumulation two thirds.
    assert roofline.predicted_share(found, variants.BOTH32) == 1.0
    assert roofline.predicted_share(found, variants.ADD32) == 24 / 32
    busy = found._replace(kib=100, instructions=idle | {"ALU": 100.0})
    (unit, share) = roofline.busiest(busy.shares(VALUE32, CHIPS["H200"]))
    assert unit == "ALU"
    assert roofline.predicted_share(busy, VALUE32) == 1 / share < 1


def test_blocks_that_fit() -> None:
    for registers in range(16, 256):
        assert roofline.resident_blocks(ARCHITECTURES["sm_90"], registers) == resident_blocks(registers)
    assert roofline.resident_blocks(ARCHITECTURES["sm_75"], 32) == 8  # 1,024 threads
    assert roofline.resident_blocks(ARCHITECTURES["sm_89"], 32) == 12
    assert roofline.resident_blocks(ARCHITECTURES["sm_90"], 64, shared=32768) == 6
    assert roofline.resident_blocks(ARCHITECTURES["sm_90"], 64, threads=256) == 4


def test_what_is_no_pass_has_no_bytes() -> None:
    with pytest.raises(ValueError, match="proximal_step is no pass"):
        roofline.moved(Kernel.of("proximal_step<float>"))
