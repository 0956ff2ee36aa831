"""From a public call to the launch: the CUDA backend as it is, over a CuPy whose GPU runs the kernels on the host."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gpureg
from gpureg import backends, compiler, driver, selftest
from gpureg.arithmetic import tile_size
from gpureg.backends import cuda
from gpureg.driver import Driver
from tests import helpers
from tests.helpers import DTYPES, Array, content, gradient_dtypes, raw
from tests.kernels.fake_cupy import Device, FakeCupy, Stream, on_device, read_only

REG = gpureg.L1L2(l1=0.3, l2=0.7)
NUMPY = backends.load("numpy")


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "permuted": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "at odd addresses": lambda a: helpers.LAYOUTS["misaligned"].place(a).array,
    "fields of records": lambda a: helpers.LAYOUTS["field of records"].place(a).array,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_public_calls_have_numpys_bits_whatever_the_layout(cupy: FakeCupy, dtype: str, layout: Any) -> None:
    w: Array = layout(content("wide", 30 * 40 * 21, dtype).reshape(30, 40, 21))
    device = on_device(cupy, w)
    with read_only(device):
        for mine, theirs in [
            (REG(device), REG(w)),
            (REG.activity(device), REG.activity(w)),
            (REG.grad(device), REG.grad(w)),
            *zip(REG.value_and_grad(device), REG.value_and_grad(w), strict=True),
            (gpureg.l1_loss(device, dtype="float64"), gpureg.l1_loss(w, dtype="float64")),
            (gpureg.l2_loss(device, dtype="bfloat16"), gpureg.l2_loss(w, dtype="bfloat16")),
        ]:
            assert isinstance(mine, cupy.ndarray)
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
            assert np.array_equal(raw(mine.get()), raw(theirs))
        for into in gradient_dtypes(dtype):
            for other in LAYOUTS.values():
                grad: Array = other(content("weights", w.size, into, seed=1).reshape(w.shape))
                device_grad, grad = on_device(cupy, grad), grad.copy()
                value = REG.accumulate_grad(device, device_grad)
                assert raw(value.get()) == raw(REG.accumulate_grad(w, grad))
                assert np.array_equal(raw(device_grad.get()), raw(grad))
    assert REG.prox_(device, 0.01) is device
    assert np.array_equal(raw(device.get()), raw(REG.prox_(w.copy(), 0.01)))


def test_one_tensor_is_one_launch_of_the_kernel_it_needs(cupy: FakeCupy) -> None:
    w = cupy.array(content("weights", 3 * tile_size(4) + 5, "float32"))
    gpureg.L1(0.1)(w)
    gpureg.HalvedL2(0.1).grad(w)
    gpureg.L2(0.1).accumulate_grad(w, cupy.zeros(w.shape, np.float32))
    gpureg.L1L2(0.0, 0.0).value_and_grad(w)
    gpureg.L1(0.1).prox_(w, 1.0)
    assert cupy.launches == [
        ("penalty_pass<float, float, VALUE, true, false>", 4),
        ("penalty_pass<float, float, GRADIENT, false, false>", 4),
        ("penalty_pass<float, float, ACCUMULATE, false, true>", 4),
        ("penalty_pass<float, float, VALUE_AND_GRADIENT, true, false>", 4),
        ("proximal_step<float>", 4),
    ]


def test_the_self_test_passes(cupy: FakeCupy) -> None:
    assert gpureg.xp() is cupy
    backend = backends.load("cuda")
    assert backend.unusable() is None
    known = selftest.golden()
    for dtype in selftest.dtypes().values():
        for name, digest in selftest.digests(backend, dtype):
            assert digest == known[name], name


@pytest.mark.parametrize("dtype", DTYPES)
def test_scratch_is_a_thousandth_of_the_weights(cupy: FakeCupy, dtype: str) -> None:
    w = cupy.array(content("weights", 2**23 // DTYPES[dtype].itemsize, dtype))
    grad = cupy.zeros(w.shape, w.dtype)
    before = cupy.allocated
    REG.accumulate_grad(w, grad)
    assert cupy.allocated - before < w.nbytes / 1000 + 2**20
    again = cupy.allocated
    REG.accumulate_grad(w, grad)
    assert cupy.allocated - again < w.nbytes / 1000 + 64  # no counters any more


def test_counters_are_kept_by_device_and_stream_and_thread(cupy: FakeCupy) -> None:
    w = cupy.array(np.ones(10, np.float32))
    REG(w)
    kept = dict(cuda._Stream._counters)
    assert list(kept) == [(0, 0, 0)]
    REG(w)
    assert cuda._Stream._counters == kept  # the very same
    cupy.stream = Stream(77)
    REG(w)
    with Device(1):
        far = cupy.array(np.ones(10, np.float32))
    REG(far)  # the current device is another
    assert list(cuda._Stream._counters) == [(0, 0, 0), (0, 77, 0), (1, 77, 0)]
    assert not any(each.get().any() for each in cuda._Stream._counters.values())


def test_the_default_stream_of_each_thread_has_its_own_counters(cupy: FakeCupy) -> None:
    w = cupy.array(np.ones(10, np.float32))
    cupy.stream = Stream(2)  # which is the same in all threads
    found: list[dict[tuple[int, ...], Any]] = []

    def call() -> None:
        REG(w)
        found.append(cuda._thread.counters)

    for _ in range(3):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert [[key[:2] for key in counters] for counters in found] == 3 * [[(0, 2)]]
    assert len({key for counters in found for key in counters}) == 3  # though threads that ended lend their identity
    assert cuda._Stream._counters == {}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_counters_of_a_failed_launch_are_forgotten(cupy: FakeCupy, error: type[BaseException]) -> None:
    w = cupy.array(np.ones(10, np.float32))
    REG(w)

    def fail(*_: Any) -> None:
        raise error("the launch failed")

    cupy.launch, right = fail, cupy.launch
    with pytest.raises(error, match="the launch failed"):
        REG(w)
    assert cuda._Stream._counters == {}
    cupy.launch = right
    assert REG(w).get() == REG(np.ones(10, np.float32))


def test_each_device_gets_kernels_of_its_own_architecture(cupy: FakeCupy) -> None:
    host = content("weights", 5000, "float32")
    with Device(1):
        far = cupy.array(host)
    for w in (cupy.array(host), far, cupy.array(host)):
        value, grad = REG.value_and_grad(w)
        assert grad.device.id == w.device.id
        assert raw(value.get()) == raw(REG(host))
        assert np.array_equal(raw(grad.get()), raw(REG.grad(host)))


@pytest.mark.parametrize("step", [1, 2])
def test_all_passes_run_on_the_device_of_the_weights(cupy: FakeCupy, step: int) -> None:
    host = content("weights", 5000, "float32")
    with Device(1):
        w, grad = cupy.array(host)[::step], cupy.zeros(5000, np.float32)[::step]
    with read_only(w):
        REG.accumulate_grad(w, grad)
    assert REG.prox_(w, 0.01) is w
    assert np.array_equal(raw(grad.get()), raw(REG.grad(host[::step])))
    assert np.array_equal(raw(w.get()), raw(REG.prox_(host.copy()[::step], 0.01)))


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_captured_call_keeps_all_that_its_replays_use(cupy: FakeCupy, dtype: str, step: int) -> None:
    size = 4 * tile_size(DTYPES[dtype].itemsize) + 10
    hosts = [content("wide", size, dtype, seed=seed)[::step] for seed in range(2)]
    w, grad, moved = (on_device(cupy, hosts[0]) for _ in range(3))
    out = on_device(cupy, content("weights", size, "float32")[::step])
    with cupy.capture() as graph:
        value = REG.accumulate_grad(w, grad)
        rounded = gpureg.l1_loss(w, dtype="bfloat16")
        gpureg.l2_loss(w, dtype="bfloat16")  # which nobody wants to know
        REG.grad(w, out)
        REG.prox_(moved, 0.01)
    assert cupy.launches == []
    assert cuda._Stream._counters == {}  # a graph's counters are its own
    sums, shrunk = hosts[0].copy(), hosts[0].copy()
    for host in (*hosts, hosts[0]):
        w[...] = cupy.array(host)
        REG(w)  # which may use what nobody keeps
        with read_only(w):
            graph.replay()
        assert raw(value.get()) == raw(REG.accumulate_grad(host, sums))
        assert raw(rounded.get()) == raw(gpureg.l1_loss(host, dtype="bfloat16"))
        for mine, theirs in ((grad, sums), (out, REG.grad(host, np.zeros(host.shape, np.float32)))):
            assert np.array_equal(raw(mine.get()), raw(theirs))
        assert np.array_equal(raw(moved.get()), raw(REG.prox_(shrunk, 0.01)))


def test_what_cannot_be_used_says_why(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    w = cupy.array(np.ones(3, np.float32))
    for found, reason in [
        ("no NVIDIA driver", "no NVIDIA driver"),
        (Driver((11, 8), ("K80",)), "runs CUDA 11.8, but 12.0 or later is needed"),
    ]:
        cuda._unusable.cache_clear()
        monkeypatch.setattr(driver, "find", lambda found=found: found)
        with pytest.raises(RuntimeError, match=f"CuPy arrays cannot be computed on here: .*{reason}"):
            REG(w)
    assert gpureg.xp() is np
    monkeypatch.setattr(driver, "find", lambda: Driver((13, 0), ("H200",)))
    monkeypatch.setattr(compiler, "unusable", lambda: "no NVRTC to compile the kernels")
    cuda._unusable.cache_clear()
    with pytest.raises(RuntimeError, match="no NVRTC"):
        REG(w)


def test_arrays_that_share_memory_are_refused(cupy: FakeCupy) -> None:
    buffer = cupy.array(np.arange(100, dtype=np.float32))
    with pytest.raises(ValueError, match="grad shares memory with w"):
        REG.accumulate_grad(buffer[:60], buffer[40:])
    REG.accumulate_grad(buffer[::2], buffer[1::2])
    with pytest.raises(TypeError, match="grad is of numpy, but w is of cupy"):
        REG.accumulate_grad(buffer, np.zeros(100, np.float32))
    with Device(1):
        far = cupy.array(np.zeros(100, np.float32))
    with pytest.raises(ValueError, match="grad is on cuda:1, but w is on cuda:0"):
        REG.accumulate_grad(buffer, far)


def misaligned(cupy: FakeCupy, array: NDArray[Any]) -> Any:
    """Return a device array at an address that is no multiple of 16 bytes."""
    view = cupy.empty(array.size + 1, array.dtype)[1:]
    view[...] = cupy.array(array)
    return view


@pytest.mark.parametrize("dtype", DTYPES)
def test_misaligned_views_have_the_same_bits(cupy: FakeCupy, dtype: str) -> None:
    w, grad = content("wide", 40_000, dtype), content("weights", 40_000, dtype)
    for weights, gradient in [
        (misaligned(cupy, w), cupy.array(grad)),
        (cupy.array(w), misaligned(cupy, grad)),
        (misaligned(cupy, w), misaligned(cupy, grad)),
    ]:
        expected = grad.copy()
        assert raw(REG.accumulate_grad(weights, gradient).get()) == raw(REG.accumulate_grad(w, expected))
        assert np.array_equal(raw(gradient.get()), raw(expected))
