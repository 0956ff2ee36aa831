"""The simulator itself: what it is built from, what it refuses, and the conversions that it brings along."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gpureg import compiler
from gpureg.backends import Mode
from tests.helpers import Array, bits
from tests.host_cuda import Build, HostCudaError, building, launch, layout, library
from tests.host_cuda.building import BuildError, Variant, build
from tests.host_cuda.cases import Calls
from tests.host_cuda.memory import Memory

FEW = Calls(passes=40, pairs=(("float16", "float32"),), modes=(Mode.ACCUMULATE,))
STEP = "proximal_step<float>"


def step_of(array: Array) -> Array:
    call = np.zeros((), layout.STEPS)
    call["single"] = array.ctypes.data, array.size, 0.5, 0.0, 0
    call["length"]["number"] = call["strength"]["number"] = 1.0
    return call


# Launches ------------------------------------------------------------------------------------------------------------


def test_a_launch_runs_a_kernel_by_its_name() -> None:
    weights = np.array([1.0, -0.25, -2.0], np.float32)
    launch(STEP, 1, step_of(weights))
    assert weights.tolist() == [0.5, 0.0, -1.5]
    launch(STEP, 1, step_of(weights).tobytes(), seed=1)
    assert weights.tolist() == [0.0, 0.0, -1.0]


def test_only_the_blocks_asked_for_run() -> None:
    weights = np.ones(3 * 8192, np.float32)
    library().launch(STEP, 3, step_of(weights), blocks=[0, 2])
    assert weights.reshape(3, 8192).mean(axis=1).tolist() == [0.5, 1.0, 0.5]


def test_bad_launches_are_refused() -> None:
    step = step_of(np.ones(1, np.float32))
    with pytest.raises(HostCudaError, match="no kernel here is called proximal_step<int>"):
        launch("proximal_step<int>", 1, step)
    with pytest.raises(HostCudaError, match=f"the argument has 4 bytes, expected {layout.STEPS.itemsize}"):
        launch(STEP, 1, b"1234")
    with pytest.raises(HostCudaError, match="a grid of no blocks"):
        launch(STEP, 0, step)


def test_launches_at_the_same_time_take_turns() -> None:
    arrays = [np.ones(10 * 8192, np.float32) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda array: launch(STEP, 10, step_of(array)), arrays)) == [None] * 8
    assert all(np.all(array == 0.5) for array in arrays)


def test_the_switch_of_ucontext_serves_as_well() -> None:
    FEW.check(library(Build(Variant.UCONTEXT, FEW.kernels())))


def test_memory_sees_writes_beside_a_buffer() -> None:
    memory = Memory()
    array = memory.empty(3, np.float32, offset=1)
    assert np.isnan(array).all()
    assert array.ctypes.data % 16 == 4
    memory.check()
    beside = np.ndarray(5, np.float32, array.base, 256)  # an element before, and one after
    beside[4] = 0
    with pytest.raises(AssertionError, match="after a buffer"):
        memory.check()
    beside[4] = np.array(-1, np.int32).view(np.float32)
    beside[0] = 0
    with pytest.raises(AssertionError, match="before a buffer"):
        memory.check()


# Building ------------------------------------------------------------------------------------------------------------


def test_a_structure_with_another_layout_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(layout.STEP.names or ())
    swapped = np.dtype([(name, layout.STEP[name]) for name in [names[1], names[0], *names[2:]]], align=True)
    monkeypatch.setitem(layout.STRUCTURES["proximal.cu"], "Step", swapped)
    with pytest.raises(BuildError, match=r"the place of Step\.weights"):
        build(Build(kernels=(STEP,)))


def test_source_that_is_wrong_is_not_built(tmp_path: Path) -> None:
    for name, text in compiler.sources().items():
        (tmp_path / name).write_text(text.replace("struct Step {", "struct Step { int more[9];"))
    with pytest.raises(BuildError, match="the size of Step"):
        build(Build(kernels=(STEP,), folder=tmp_path))


def test_without_a_compiler_the_tests_are_skipped_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "COMPILER", "no-such-compiler")
    with pytest.raises(pytest.skip.Exception, match="no-such-compiler is missing"):
        build(Build())


def test_two_processes_that_build_at_once_share_what_is_built(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from tests.host_cuda import building as b;"
        f"b.CACHE = Path({str(tmp_path)!r}); print(b.build(b.Build(kernels=({STEP!r},))))"
    )
    command = [sys.executable, "-c", program]
    root = building.HERE.parents[1]
    processes = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert [str(path) for path in tmp_path.glob("*.so")] == outputs[0].split()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_other_source_is_another_library(tmp_path: Path) -> None:
    for name, text in compiler.sources().items():
        (tmp_path / name).write_text(text)
    same = Build(kernels=(STEP,), folder=tmp_path)
    assert build(same) == build(replace(same, folder=None))
    (tmp_path / "proximal.cu").write_text(compiler.sources()["proximal.cu"] + "// another\n")
    assert build(same) != build(replace(same, folder=None))


# Conversions ---------------------------------------------------------------------------------------------------------


EVERY_16_BITS = np.arange(2**16, dtype=np.uint16)


def every_kind_of_float32() -> Array:
    """Return every upper half of a float32, with the lower halves around each change of rounding."""
    lower = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16)
    return (upper | np.array(lower, np.uint32)).ravel().view(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_number_of_16_bits_is_loaded_exactly(dtype: type) -> None:
    numbers: Array = EVERY_16_BITS.view(dtype)
    found = np.empty(numbers.size, np.float32)
    library().convert(f"load_{np.dtype(dtype).name}", numbers, found)
    assert np.array_equal(bits(found), bits(numbers.astype(np.float32)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_numbers_are_stored_rounded_to_nearest_even(dtype: type) -> None:
    numbers = every_kind_of_float32()
    found: Array = np.empty(numbers.size, dtype)
    library().convert(f"store_{np.dtype(dtype).name}", numbers, found)
    with np.errstate(all="ignore"):
        expected: Array = numbers.astype(dtype)
    assert np.array_equal(bits(found), bits(expected))


def test_midpoints_of_small_float16_are_stored_rounded_to_nearest_even() -> None:
    # Of subnormals each rounds at another place of the fraction: all midpoints, and their neighbours.
    magnitudes = np.arange(2**11, dtype=np.float64)
    midpoints = np.ldexp(magnitudes + 0.5, -24).astype(np.float32)
    numbers = np.concatenate([np.nextafter(midpoints, np.float32(side)) for side in (-1, 1)] + [midpoints, -midpoints])
    found = np.empty(numbers.size, np.float16)
    library().convert("store_float16", numbers, found)
    assert np.array_equal(bits(found), bits(numbers.astype(np.float16)))
