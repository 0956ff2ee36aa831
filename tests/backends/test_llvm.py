"""What is the LLVM backend's own: where it can be used, code for other processors, memory it touches, shared work."""

import platform
import subprocess
import sys
import threading
from typing import Any

import llvmlite.binding as llvmlite
import numpy as np
import pytest

import gpureg
from gpureg import backends, threads
from gpureg.arithmetic import TILE_BYTES
from gpureg.backends import Leaf, llvm
from gpureg.backends.llvm import PIECE_TILES, LlvmPlan, SmallPlan, backend
from tests import reference
from tests.helpers import DTYPES, LAYOUTS, Array, assert_bits, content, raw, regularizer, sizes, values
from tests.reference import Rule

BOTH = Rule(l1=0.1, l2=0.3)
COEFFICIENTS = regularizer(BOTH).coefficients
FLOAT64 = np.dtype(np.float64)
PIECE = PIECE_TILES * TILE_BYTES


@pytest.fixture(autouse=True)
def _llvm() -> Any:
    before = gpureg.get_num_threads()
    backends.set_backend("llvm")
    yield
    backends.set_backend(None)
    gpureg.set_num_threads(before)


# Where it can be used ------------------------------------------------------------------------------------------------


def test_it_can_be_used_where_tests_run() -> None:
    assert backend.unusable() is None
    assert backends.load("llvm") is backend


def unusable() -> str | None:
    reason: str | None = llvm._unusable.__wrapped__()
    return reason


def test_without_llvmlite_it_says_what_to_install() -> None:
    script = """
import sys
sys.modules["llvmlite"] = None
import gpureg
from gpureg.backends import llvm
print(llvm.backend.unusable())
assert gpureg.get_backend() == "numpy"
assert gpureg.l1_loss(__import__("numpy").ones(3)) == 3.0
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "llvmlite is not installed: pip install 'gpureg[cpu]'\n"
    assert found.stderr == ""


@pytest.mark.parametrize("error", [OSError("no LLVM here\nand more"), ModuleNotFoundError("no", name="llvmlite.ir")])
def test_a_broken_llvmlite_says_how_it_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr(llvm, "import_module", fail)
    assert unusable() == f"llvmlite fails to import: {str(error).partition(chr(10))[0]}"


def test_where_memory_cannot_be_executed_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(llvmlite, "check_jit_execution", fail)
    assert unusable() == "machine code cannot be made here: Permission denied"


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "arm64"])
def test_processors_without_float16_cannot_use_it(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(llvmlite, "get_host_cpu_features", lambda: {"sse2": True, "f16c": False})
    x86 = "the processor has no instructions for float16 (F16C)"
    assert unusable() == (None if machine == "arm64" else x86)


# Other processors ----------------------------------------------------------------------------------------------------


X86 = {"AVX2": ("haswell", "+avx2,+fma,+f16c"), "AVX without FMA": ("ivybridge", "+avx,+f16c")}


@pytest.mark.skipif(
    platform.machine().lower() not in {"x86_64", "amd64"}, reason="these are processors of the kind x86"
)
@pytest.mark.parametrize("processor", X86)
def test_code_for_other_processors_gives_the_same_bits(processor: str) -> None:
    name, features = X86[processor]
    script = f"""
import llvmlite.binding as llvm
llvm.get_host_cpu_name = lambda: {name!r}
llvm.get_host_cpu_features = lambda: type("Features", (dict,), {{"flatten": lambda _: {features!r}}})(f16c=True)
from gpureg import backends, selftest
assert selftest.run(backends.load("llvm")).failed == ()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# Memory --------------------------------------------------------------------------------------------------------------


def test_nothing_beyond_an_array_is_touched() -> None:
    """Arrays end, and begin, where memory does that may not be touched."""
    script = """
import ctypes, mmap
import ml_dtypes, numpy as np
import gpureg
from gpureg import backends
page = mmap.PAGESIZE
room = 40 * page
libc = ctypes.CDLL(None, use_errno=True)
def guarded():
    memory = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for at in (start, start + page + room):
        assert libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), 0) == 0
    return np.frombuffer(memory, np.uint8)[page:-page]
weights, gradients = guarded(), guarded()
gpureg.set_backend("llvm")
for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
    for into in {np.dtype(dtype), np.dtype(np.float32)}:
        itemsize = np.dtype(dtype).itemsize
        row = 2048 // itemsize
        for size in (1, 15, 16, 17, 31, 33, 63, 65, row - 1, row + 1, 5 * row + 7, 16 * row, 17 * row + 3):
            for end in (True, False):
                w = weights[-size * itemsize :] if end else weights[: size * itemsize]
                g = gradients[-size * into.itemsize :] if end else gradients[: size * into.itemsize]
                w, g = w.view(dtype), g.view(into)
                for reg in (gpureg.L1(0.1), gpureg.L2(0.1), gpureg.L1L2(0.1, 0.2), gpureg.L1L2()):
                    reg(w)
                    reg.grad(w, g)
                    reg.value_and_grad(w, g)
                    reg.accumulate_grad(w, g)
                    reg.prox_(w, 0.1)
                backends.cpu().statistics([w], 0.1)
print("untouched")
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout == "untouched\n", (found.returncode, found.stderr)


# Work ----------------------------------------------------------------------------------------------------------------


def test_one_small_tensor_in_order_takes_the_short_way() -> None:
    def plan(w: Array) -> type:
        return type(backend.plan([Leaf(w, COEFFICIENTS)]))

    assert plan(np.ones(PIECE // 4, np.float32)) is SmallPlan
    assert plan(np.ones(PIECE // 4 + 1, np.float32)) is LlvmPlan
    assert plan(np.ones((4, 4))[:, ::2]) is LlvmPlan
    assert type(backend.plan([])) is type(backend.plan([Leaf(np.ones(1), COEFFICIENTS)] * 2)) is LlvmPlan


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_tensor_and_a_gradient_in_another_order(dtype: str) -> None:
    w = content("wide", 35, dtype).reshape(5, 7)
    grad = LAYOUTS["Fortran"].place(content("weights", 35, dtype, seed=1).reshape(5, 7)).array
    added = reference.gradient(values(w), dtype, BOTH, into=dtype, add_to=values(grad))
    plan = backend.plan([Leaf(w, COEFFICIENTS)])
    assert isinstance(plan, SmallPlan)
    found = plan.accumulate(FLOAT64, plan.bind([grad]))
    assert_bits(found.total, reference.value(values(w), dtype, BOTH), "float64")
    assert_bits(grad, added, dtype)


def _shares(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list to which work is added that is handed to threads."""
    shared: list[Any] = []
    right = threads.share

    def share(work: Any, worker: Any) -> None:
        shared.append(list(work))
        right(shared[-1], worker)

    monkeypatch.setattr(threads, "share", share)
    return shared


def test_few_elements_are_no_work_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    gpureg.set_num_threads(2)
    shared = _shares(monkeypatch)
    one = np.ones(8 * PIECE // 4 - 8000, np.float32)
    many = [Leaf(np.ones(64, np.float32), COEFFICIENTS) for _ in range(1000)]
    scattered = [Leaf(np.ones((3, 2 * 300), np.float32)[:, ::2], COEFFICIENTS) for _ in range(20)]
    for leaves in ([Leaf(one, COEFFICIENTS)], many, scattered):
        run_all(leaves)
    assert shared == []


def test_work_for_threads_is_of_like_size(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _shares(monkeypatch)
    large = [Leaf(np.ones(20 * PIECE // 4 + 1, np.float32), COEFFICIENTS)]
    many = [Leaf(np.ones(100, np.float16), COEFFICIENTS) for _ in range(20_000)]
    mixed = [*many[:300], *large, Leaf(np.ones((2, 2 * PIECE))[:, ::2], COEFFICIENTS)]
    for leaves in (large, many, mixed):
        for number in (1, 2, 3):
            gpureg.set_num_threads(number)
            shared.clear()
            plan = backend.plan(leaves)
            assert isinstance(plan, LlvmPlan)
            plan.value(FLOAT64)
            if number == 1:
                assert shared == []
                continue
            (units,) = shared
            pieces = plan._table.pieces
            assert [start for start, _ in units] == [0, *(stop for _, stop in units[:-1])]
            assert units[-1][1] == pieces.size
            work = [int((pieces["size"][a:b] * (TILE_BYTES // pieces["tile"][a:b])).sum()) for a, b in units]
            assert max(work) <= max(2 * PIECE, sum(work) // (number * 4))


def run_all(leaves: list[Leaf], strength: float = 0.7) -> list[Array]:
    """Return what passes of every mode make of leaves."""
    plan = backend.plan(leaves)
    grads = [np.ones_like(leaf.weights) for leaf in leaves]
    plan.gradient(plan.bind(grads), strength=strength)
    first = [grad.copy() for grad in grads]
    value = plan.accumulate(FLOAT64, plan.bind(grads), strength=strength)
    both = plan.value(FLOAT64, strength=strength, sums=True)
    return [*first, *grads, value.each, value.rounded, both.each, both.sums, np.array([value.total, both.total])]


def mixed(seed: int) -> list[Leaf]:
    """Return tensors of every dtype: empty, small, of several pieces, dense and not."""
    leaves = []
    for index, dtype in enumerate(DTYPES):
        tile = sizes(dtype)["tile"]
        for size in (0, 3, 700, tile + 1, 40 * tile + 3):
            w = content("wide", 2 * size, dtype, seed=seed + index)
            leaves += [Leaf(w[:size], COEFFICIENTS), Leaf(w[::2], regularizer(Rule(l1=0.1)).coefficients)]
    return leaves


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_plan_may_be_used_by_several_threads_at_once(number: int) -> None:
    gpureg.set_num_threads(number)
    leaves = mixed(1)
    expected = run_all(leaves)
    plan = backend.plan(leaves)
    found: list[tuple[Any, ...]] = []

    def passes() -> None:
        for _ in range(5):
            grads = [np.ones_like(leaf.weights) for leaf in leaves]
            value = plan.accumulate(FLOAT64, plan.bind(grads), strength=0.7)
            found.append((value.total, *(raw(grad).tobytes() for grad in grads)))

    workers = [threading.Thread(target=passes) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(found)) == 1
    count = len(leaves)
    assert len(found) == 20
    total, *grads = found[0]
    assert grads != [raw(grad).tobytes() for grad in expected[:count]]
    assert total == expected[-1][0]


def test_many_threads_may_be_the_first_to_need_the_code() -> None:
    script = """
import threading, numpy, gpureg
gpureg.set_backend("llvm")
w = numpy.ones(1000, numpy.float32)
found, start = [], threading.Barrier(8)
def work():
    start.wait()
    found.append(gpureg.L1L2(0.5, 0.25).accumulate_grad(w, numpy.zeros_like(w)))
workers = [threading.Thread(target=work) for _ in range(8)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
assert found == [750.0] * 8, found
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("small", [True, False])
def test_gradients_that_moved_need_no_new_look(small: bool) -> None:
    leaves = [Leaf(np.full(5, 2.0, np.float32), COEFFICIENTS)]
    if not small:
        leaves += [Leaf(np.full(PIECE + 7, -1.0, np.float32), COEFFICIENTS), Leaf(np.ones((3, 2)).T, COEFFICIENTS)]
    old, new, other = ([np.zeros_like(leaf.weights) for leaf in leaves] for _ in range(3))
    plan = backend.plan(leaves)
    moved = plan.bind(old).moved(np.array([grad.__array_interface__["data"][0] for grad in new], np.int64))
    assert moved is not None
    plan.gradient(moved)
    plan.gradient(plan.bind(other))
    assert all(not grad.any() for grad in old)
    assert all(np.array_equal(raw(a), raw(b)) for a, b in zip(new, other, strict=True))


def test_gradients_that_are_gathered_must_be_looked_at_anew() -> None:
    plan = backend.plan([Leaf(np.ones(4), COEFFICIENTS)])
    bound = plan.bind([np.zeros(8)[::2]])
    assert bound.moved(np.zeros(1, np.int64)) is None
    assert bound.keeps_arrays


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", [Leaf(np.ones(3), COEFFICIENTS), Leaf(np.ones((3, 2))[:, 0], COEFFICIENTS)])
def test_values_are_of_the_types_that_backends_return(leaf: Leaf) -> None:
    for dtype in DTYPES.values():
        found = backend.plan([leaf]).value(dtype, sums=True)
        assert type(found.total) is dtype.type
        assert (found.each.dtype, found.each.shape) == (np.float64, (1,))
        assert (found.rounded.dtype, found.rounded.shape) == (np.float32, (1,))
        assert (found.sums.dtype, found.sums.tolist()) == (np.float64, [[3.0, 3.0]])
    assert backend.plan([leaf]).value(FLOAT64).sums is None


def test_what_is_not_wanted_is_not_summed_up() -> None:
    """Squares overflow where nobody asks for them; a sum that is not wanted is +0.0."""
    w = np.full(10, 1e300)
    plan = backend.plan([Leaf(w, gpureg.L1(0.5).coefficients)])
    assert plan.value(FLOAT64).total == 5e300
    assert plan.value(FLOAT64, sums=True).sums.tolist() == [[1e301, np.inf]]


@pytest.mark.parametrize("number", [1, 2])
def test_gradients_are_kept_where_they_are_gathered(number: int) -> None:
    leaves = [Leaf(np.ones((300, 2)), COEFFICIENTS)] * number
    plan = backend.plan(leaves)
    assert not plan.bind([np.zeros((300, 2)) for _ in leaves]).keeps_arrays
    bound = plan.bind([np.zeros((300, 4))[:, ::2] for _ in leaves])
    assert bound.keeps_arrays
    plan.gradient(bound)


def test_weights_need_not_be_kept_by_the_caller() -> None:
    plans = [backend.plan([Leaf(np.full(100, float(i)), COEFFICIENTS)]) for i in range(50)]
    plans += [backend.plan([Leaf(np.full(100, float(i)), COEFFICIENTS)] * 2) for i in range(50)]
    found = [float(plan.value(FLOAT64, sums=True).sums[0, 0]) for plan in plans]
    assert found == [100.0 * i for i in range(50)] * 2


def test_a_proximal_step_of_a_large_tensor_is_shared_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    gpureg.set_num_threads(3)
    shared = _shares(monkeypatch)
    w = content("wide", 3 * PIECE // 4 + 5, "float32")
    other = w.copy()
    backend.proximal_plan([Leaf(w, COEFFICIENTS)]).take([0.01])
    backends.load("numpy").proximal_plan([Leaf(other, COEFFICIENTS)]).take([0.01])
    assert np.array_equal(raw(w), raw(other))
    assert [len(work) for work in shared] == [4]


def test_statistics_of_large_tensors_are_shared_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    gpureg.set_num_threads(2)
    shared = _shares(monkeypatch)
    few = [np.ones(64, np.float32)] * 1000
    large = np.ones(16 * PIECE // 4 + 1, np.float32)
    backend.statistics([*few, large[: PIECE // 4]], 0.5)
    assert shared == []
    (*_, found) = backend.statistics([*few, large], 0.5)
    assert (found.size, found.sum_abs) == (large.size, large.size)
    assert len(shared) == 1
    assert len(shared[0]) == 16
