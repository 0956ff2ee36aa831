"""What only a fresh process can show: kernels from the disk, and errors after which a context is of no more use."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]

CALL = """
    import numpy as np
    import cupy
    import gpureg
    from gpureg import samples

    w = samples.wide(100_000, np.float32)
    regularizer = gpureg.L1L2(0.1, 0.3)
    assert float(regularizer(cupy.asarray(w))) == float(regularizer(w))
    gradient = regularizer.grad(cupy.asarray(w)).get()
    assert np.array_equal(gradient, regularizer.grad(w))
"""

NO_COMPILER = """
    from gpureg import compiler

    def refuse(*_):
        raise AssertionError("compiled, though it is on the disk")

    type(compiler.find_nvrtc()).build = refuse
"""


def run(*parts: str, cache: Path, **environment: str) -> str:
    """Run a program in a process of its own and return what it printed."""
    program = "\n".join(textwrap.dedent(part) for part in parts)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "GPUREG_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_second_process_loads_from_the_disk_unless_what_is_there_is_not_whole(tmp_path: Path) -> None:
    run(CALL, cache=tmp_path)
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(kept) == 2  # a kernel for the value, one for the gradient
    run(NO_COMPILER, CALL, cache=tmp_path)
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content[:-100])
    run(CALL, cache=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == kept.keys()
    assert all((tmp_path / name).read_bytes() != content[:-100] for name, content in kept.items())


def test_the_check_sees_a_compilation(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="compiled, though"):
        run(NO_COMPILER, CALL, cache=tmp_path)


def test_where_the_per_thread_default_stream_is_the_default(tmp_path: Path) -> None:
    run(CALL, cache=tmp_path, CUPY_CUDA_PER_THREAD_DEFAULT_STREAM="1")


MISALIGNED = """
    import numpy as np
    import cupy
    import gpureg
    from gpureg import samples

    regularizer = gpureg.L1L2(0.1, 0.3)
    for dtype in (np.float16, np.float32, np.float64):
        numbers = samples.wide(10_000, dtype)
        memory = cupy.empty(numbers.nbytes + 1, np.uint8)
        memory[1:] = cupy.asarray(numbers.view(np.uint8))
        w = cupy.ndarray(numbers.shape, dtype, memory.data + 1)
        assert float(regularizer(w)) == float(regularizer(numbers))
        gradient = regularizer.grad(w, cupy.empty(numbers.shape, dtype)).get()
        assert gradient.tobytes() == regularizer.grad(numbers).tobytes()
    print("right")
"""


def test_elements_at_odd_addresses(tmp_path: Path) -> None:
    """A device traps on a load whose address its size does not divide, and then the process has no device left."""
    assert run(MISALIGNED, cache=tmp_path) == "right\n"
