"""Every kernel compiles for every architecture without a warning, and its PTX keeps the promises of the arithmetic.

Each fault that the gate is there for is planted in a copy of the sources, and must be found.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from gpureg import compiler
from gpureg.backends import Mode
from gpureg.compiler import KERNELS, OPTIONS, CompilerError, penalty_pass, proximal_step, statistics_pass
from tests.kernels.build import ARCHITECTURES, PREFIXES, build, build_all
from tests.kernels.inspect_code import ptx_faults


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_keeps_its_promises(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    programs = build_all(architecture, tmp_path_factory)
    assert [compiled.program.log for compiled in programs] == [""] * len(PREFIXES)
    kernels = {name: ptx for compiled in programs for name, ptx in compiled.ptx().items()}
    assert kernels.keys() == set(KERNELS)
    assert {name: faults for name, ptx in kernels.items() if (faults := ptx_faults(name, ptx))} == {}


SUMS = penalty_pass("float32", "float32", Mode.VALUE, l1=True, l2=True)
GRADIENT = penalty_pass("float32", "float32", Mode.GRADIENT, l1=True, l2=True)
STATISTICS = statistics_pass("float32")
HALF = penalty_pass("float16", "float16", Mode.ACCUMULATE, l1=True, l2=True)


class Plant(NamedTuple):
    """A fault: the kernel to see it in, the beginning of what is found, and the change of a source or of options."""

    kernel: str
    found: str
    file: str = ""
    old: str = ""
    new: str = ""
    options: tuple[str, ...] = OPTIONS


def option(old: str, new: str) -> tuple[str, ...]:
    """Return the options with one replaced."""
    assert old in OPTIONS
    return tuple(new if given == old else given for given in OPTIONS)


CONTRACTED = option("--fmad=false", "--fmad=true")
FETCH_ADD = "__nv_atomic_fetch_add(counter, parts, __NV_ATOMIC_ACQ_REL, __NV_THREAD_SCOPE_DEVICE)"
RELAXED_LOAD = """__longlong_as_double(__nv_atomic_load_n(
      reinterpret_cast<long long*>(from), __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE))"""
COUNT = """if (count) __nv_atomic_fetch_add(places[i], count, __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE);"""
LOADED = "load_relaxed(sums + i)"
TO_HALF, OF_HALF = "cvt.rn.f16.f32 %0", "cvt.f32.f16 %0"
INSTRUCTION = 'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));'

PLANTS = {
    "flush to zero": Plant(GRADIENT, "flushes to zero", options=option("--ftz=false", "--ftz=true")),
    "contraction in a gradient": Plant(GRADIENT, "not rounded by itself", options=CONTRACTED),
    "contraction left to ptxas": Plant(SUMS, "not rounded by itself", options=CONTRACTED),
    "fused squares of float64": Plant(
        penalty_pass("float64", "float64", Mode.VALUE, l1=False, l2=True),
        "contraction", "penalty.cu", "sizeof(Weight) < 8 ? __fma_rn", "true ? __fma_rn",
    ),
    "fused, but not a square": Plant(SUMS, "contraction", "penalty.cu", "__fma_rn(x, x,", "__fma_rn(x, fabs(x),"),
    "approximate division": Plant(
        proximal_step("float32"), "approximates", options=option("--prec-div=true", "--prec-div=false")
    ),
    "float16 rounded to zero": Plant(HALF, "conversion: cvt.rz", "float16.cuh", TO_HALF, "cvt.rz.f16.f32 %0"),
    "float16 rounded up": Plant(HALF, "conversion: cvt.rp", "float16.cuh", TO_HALF, "cvt.rp.f16.f32 %0"),
    "float16 between 0 and 1": Plant(HALF, "conversion: cvt.rn.sat", "float16.cuh", TO_HALF, "cvt.rn.sat.f16.f32 %0"),
    "float16 of flushed numbers": Plant(
        HALF, "conversion: cvt.rn.ftz", "float16.cuh", TO_HALF, "cvt.rn.ftz.f16.f32 %0"
    ),
    "float16 loaded between 0 and 1": Plant(
        HALF, "conversion: cvt.sat", "float16.cuh", OF_HALF, "cvt.sat.f32.f16 %0"
    ),
    "float16 of the wrong bits": Plant(
        HALF, "conversion: no cvt.rn.f16.f32", "float16.cuh", INSTRUCTION, "bits = __float_as_uint(value) >> 13;"
    ),
    "float16 by another instruction, proximal": Plant(
        proximal_step("float16"), "conversion: cvt.rz", "float16.cuh", TO_HALF, "cvt.rz.f16.f32 %0"
    ),
    "float32 rounded to zero": Plant(
        penalty_pass("float64", "float32", Mode.GRADIENT, l1=True, l2=True),
        "conversion: cvt.rz", "element.cuh", "to = static_cast<float>(x)", "to = __double2float_rz(x)",
    ),
    "coefficients rounded down": Plant(
        GRADIENT, "conversion: cvt.rm", "penalty.cu",
        "static_cast<C>(tensor.l1 * strength * upstream)", "__double2float_rd(tensor.l1 * strength * upstream)",
    ),
    "half a warp shuffles": Plant(SUMS, "shuffle mask", "tree.cuh", "0xffffffffu, mine.abs", "0xffffu, mine.abs"),
    "who is there shuffles": Plant(
        SUMS, "shuffle mask", "tree.cuh", "0xffffffffu, mine.abs", "__activemask(), mine.abs"
    ),
    "a plain ticket": Plant(SUMS, "ticket: 0 atomics", "tree.cuh", FETCH_ADD, "(*counter)++"),
    "a relaxed ticket": Plant(SUMS, "ticket", "tree.cuh", "ACQ_REL", "RELAXED"),
    "a ticket for one block": Plant(
        SUMS, "ticket", "tree.cuh", FETCH_ADD, FETCH_ADD.replace("SCOPE_DEVICE", "SCOPE_BLOCK")
    ),
    "a costly fence": Plant(
        SUMS, "ticket: a fence", "tree.cuh",
        "    shared.ticket = __nv", "    __threadfence();\n    shared.ticket = __nv",
    ),
    "a level without a ticket": Plant(SUMS, "ticket: 2 atomics", "penalty.cu", "if (groups > 1)", "if (false)"),
    "partial sums through the read-only cache": Plant(
        SUMS, "partial sums: ld.global.nc", "tree.cuh", RELAXED_LOAD, "__ldg(from)"
    ),
    "partial sums read plainly": Plant(SUMS, "partial sums: ld.global", "tree.cuh", LOADED, "sums[i]"),
    "partial sums of a block": Plant(
        SUMS, "partial sums", "tree.cuh", "__NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE))",
        "__NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_BLOCK))",
    ),
    "a count that is no atomic": Plant(
        STATISTICS, "partial sums: ld.global", "statistics.cu", COUNT, "if (count) *places[i] += count;"
    ),
    "a count of a block": Plant(
        STATISTICS, "count", "statistics.cu", COUNT, COUNT.replace("SCOPE_DEVICE", "SCOPE_BLOCK")
    ),
    "a count with a fence": Plant(STATISTICS, "count", "statistics.cu", COUNT, COUNT.replace("RELAXED", "ACQ_REL")),
    "half a warp counts": Plant(
        STATISTICS, "shuffle mask", "statistics.cu", "0xffffffffu, counts", "0xffffu, counts"
    ),
    "fused squares of float64, statistics": Plant(
        statistics_pass("float64"), "contraction", "statistics.cu", "sizeof(Weight) < 8 ? __fma_rn", "true ? __fma_rn"
    ),
    "groups without a ticket": Plant(
        STATISTICS, "ticket: 0 atomics", "statistics.cu",
        "if (!is_last(call.counters + index, 1, members, shared)) return;", "if (tile != first) return;",
    ),
    "an array in local memory": Plant(
        SUMS, "local memory", "penalty.cu", "return {abs[0],", "return {abs[threadIdx.x % COUNT],"
    ),
    "a function that is called": Plant(
        SUMS, "not inlined", "penalty.cu", "__forceinline__ double penalty(", "__noinline__ double penalty("
    ),
}  # fmt: skip


def planted(plant: Plant) -> dict[str, str]:
    """Return the sources with the fault in them."""
    sources = compiler.sources()
    if plant.file:
        assert plant.old in sources[plant.file]
        sources[plant.file] = sources[plant.file].replace(plant.old, plant.new)
    return sources


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_a_planted_fault_is_found(plant: Plant, tmp_path: Path) -> None:
    compiled = build([plant.kernel], tmp_path, sources=planted(plant), options=plant.options)
    (ptx,) = compiled.ptx().values()
    assert any(fault.startswith(plant.found) for fault in ptx_faults(plant.kernel, ptx)), ptx_faults(plant.kernel, ptx)


def test_the_kernels_that_faults_are_planted_in_have_none(tmp_path: Path) -> None:
    for kernel in {plant.kernel for plant in PLANTS.values()}:
        (ptx,) = build([kernel], tmp_path).ptx().values()
        assert ptx_faults(kernel, ptx) == []


def test_a_warning_is_found(tmp_path: Path) -> None:
    warns = Plant(SUMS, "", "penalty.cu", "  __shared__ Shared shared;", "  __shared__ Shared shared; int unused;")
    assert "never referenced" in build([SUMS], tmp_path, sources=planted(warns)).program.log


def test_a_kernel_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match="no_such_type"):
        build(["proximal_step<no_such_type>"], tmp_path)
