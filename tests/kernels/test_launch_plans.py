"""Plans of several tensors, from their passes to the launches, over a CuPy whose GPU runs the kernels on the host."""

import gc
import itertools
from collections.abc import Iterable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest

from gpureg import backends, compiler
from gpureg.arithmetic import Coefficients, tile_size
from gpureg.backends import Mode, Results, Values, cuda
from gpureg.compiler import Kernel
from tests import host_cuda
from tests.helpers import DTYPES, Array, content, gradient_dtypes, raw
from tests.kernels.fake_cupy import Device, FakeCupy, Launch, Stream, on_device, read_only
from tests.kernels.test_launch import LAYOUTS
from tests.passes import Leaf, run

NUMPY, CUDA = backends.load("numpy"), cuda.backend
FLOAT64 = np.dtype(np.float64)
BOTH = Coefficients(0.3, 0.7, 1.4)

SCRATCH = ("tile_sums", "group_sums", "penalties", "counters")
RESULTS = ("sums", "each", "rounded")


class Tensors:
    """Tensors with gradients on the device, the same on the host, and a plan of them."""

    def __init__(self, cupy: FakeCupy, leaves: Sequence[Leaf]) -> None:
        self.host = list(leaves)
        self.weights = [on_device(cupy, leaf.weights) for leaf in leaves]
        self.gradients = [on_device(cupy, leaf.gradient) for leaf in leaves]
        coefficients = [leaf.coefficients for leaf in leaves]
        self.plan = cuda.CudaPlan([backends.Leaf(*pair) for pair in zip(self.weights, coefficients, strict=True)])

    def check(self, mine: Any, mode: Mode, dtype: np.dtype[Any] = FLOAT64, **options: Any) -> None:
        """Assert that values and gradients have the bits that NumPy makes of the same pass."""
        theirs = run(NUMPY, mode, self.host, dtype, **options)
        if mode is not Mode.GRADIENT:
            assert mine.total.dtype == dtype
            pairs = [(getattr(mine, name), getattr(theirs, name)) for name in ("total", "each", "rounded", "sums")]
            assert (mine.sums is None) == (theirs.sums is None)
            assert all(np.array_equal(raw(one.get()), raw(other)) for one, other in pairs if other is not None)
        for gradient, leaf in zip(self.gradients, self.host, strict=True):
            assert np.array_equal(raw(gradient.get()), raw(leaf.gradient))

    def accumulate(self, **options: Any) -> Values:
        return self.plan.accumulate(FLOAT64, self.plan.bind(self.gradients), **options)


def leaf_of(
    shape: int | tuple[int, ...], dtype: str, into: str | None = None, layout: str = "C", seed: int = 0
) -> Leaf:
    """Return a tensor with a gradient, of any dtypes and layout."""
    arrays = [content(name, int(np.prod(shape)), kind, seed).reshape(shape) for name, kind in
              (("wide", dtype), ("weights", into or dtype))]  # fmt: skip
    weights, gradient = map(LAYOUTS[layout], arrays)
    return Leaf(weights, BOTH, gradient.copy() if layout == "C" else gradient)


def mixed(layouts: Sequence[str] = ("C",)) -> list[Leaf]:
    """Return tensors for four launches, with one that is a launch of its own: empty, small, of tiles and groups."""
    pairs = [("float16", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")]
    shapes = [(7, 5, 3), (1, 1, 1), (31, 40, 50), (0, 2, 3), (3, 30, 50), (50, 41, 40), (2, 2, 2)]
    leaves = [leaf_of(shape, *pair, layout, i) for i, (shape, pair, layout) in
              enumerate(zip(shapes * 3, itertools.cycle(pairs), itertools.cycle(layouts)))]  # fmt: skip
    return [*leaves, leaf_of((3, 20, 100), "float64")]


def random_leaves(seed: int, count: int) -> list[Leaf]:
    """Return tensors of all dtypes, layouts and sizes."""
    rng, leaves = np.random.default_rng(seed), []
    for i in range(count):
        dtype, layout = str(rng.choice(list(DTYPES))), str(rng.choice(list(LAYOUTS)))
        tile, small = tile_size(DTYPES[dtype].itemsize), cuda.SMALL // DTYPES[dtype].itemsize
        sizes = [0, 1, 2, 99, small - 1, small, small + 1, 3000, tile - 1, tile, tile + 1, 2 * tile + 7]
        odds = np.array([5, 5, 5, 5, 5, 5, 5, 4, 1, 1, 1, 1])
        size = int(rng.choice(sizes, p=odds / odds.sum()))
        shape = (1, size, 1) if size % 3 else (3, 1, size // 3)
        leaf = leaf_of(shape, dtype, str(rng.choice(gradient_dtypes(dtype))), layout, i)
        leaves.append(leaf._replace(coefficients=Coefficients(rng.integers(0, 3) / 8, rng.integers(0, 3) / 8, 0.3)))
    return leaves


FACTORS = (1.0, 0.7, np.array(-1.3), np.array(0.7, np.float32), np.array(0.0))


@pytest.mark.parametrize("count", [*range(1, 10), 33, 100, 300])
def test_random_plans_have_numpys_bits_in_pass_after_pass(cupy: FakeCupy, count: int) -> None:
    tensors, rng = Tensors(cupy, random_leaves(count, count)), np.random.default_rng(count)
    plan, bound = tensors.plan, tensors.plan.bind(tensors.gradients)
    pairs = {(leaf.weights.dtype, leaf.gradient.dtype) for leaf in tensors.host}
    with read_only(*tensors.weights):
        for _ in range(2):
            host: dict[str, Any] = {name: FACTORS[rng.integers(len(FACTORS))] for name in ("strength", "upstream")}
            factors = {name: each if isinstance(each, float) else cupy.array(each) for name, each in host.items()}
            dtype = DTYPES[str(rng.choice(list(DTYPES)))]
            options: dict[str, Any] = {"divisor": int(rng.integers(1, 9)), "sums": bool(rng.integers(2))}
            mine = plan.value(dtype, strength=factors["strength"], **options)
            tensors.check(mine, Mode.VALUE, dtype, strength=host["strength"], **options)
            launches = len(cupy.launches)
            plan.gradient(bound, **factors)
            tensors.check(None, Mode.GRADIENT, **host)
            assert len(cupy.launches) - launches == len(pairs)
            tensors.check(plan.accumulate(dtype, bound, **factors), Mode.ACCUMULATE, dtype, **host)
            values = plan.value_and_gradient(dtype, bound, **factors)
            tensors.check(values, Mode.VALUE_AND_GRADIENT, dtype, **host)


def test_no_tensor_at_all_is_zero(cupy: FakeCupy) -> None:
    values = run(CUDA, Mode.VALUE, [], np.dtype(np.float32))
    assert values.total.get() == 0
    assert values.each.size == 0
    assert cupy.launches == []


def test_tensors_that_a_warp_reads_at_once_share_blocks(cupy: FakeCupy) -> None:
    sizes = [256, 257, 1, 0, 255, tile_size(2), 2, 3, 256, 5, 6]  # 9 of at most 512 bytes, 2 of one tile
    for count, blocks in [(11, 2 + 3), (10, 2 + 2), (5, 1 + 1), (4, 1 + 1), (2, 1 + 1), (1, 1)]:
        tensors = Tensors(cupy, [leaf_of(size, "float16") for size in sizes[:count]])
        tensors.check(tensors.plan.value(FLOAT64), Mode.VALUE)
        assert cupy.launches.pop() == ("penalty_pass<Half, Half, VALUE, true, true>", blocks)


def test_tensors_of_several_tiles_come_first_and_values_in_the_order_given(cupy: FakeCupy) -> None:
    tile = tile_size(8)
    sizes = [tile, 3 * tile, 5, tile - 1, (cuda.GROUP + 2) * tile, 64, 2 * tile + 1, 0, tile]
    tensors = Tensors(cupy, [leaf_of(size, "float64", seed=i) for i, size in enumerate(sizes)])
    tensors.check(tensors.accumulate(), Mode.ACCUMULATE)
    assert [blocks for _, blocks in cupy.launches] == [1 + 3 + 1 + cuda.GROUP + 2 + 3 + 1 + 1]


@pytest.mark.parametrize(("count", "size"), [(1500, 300), (1100, tile_size(2) + 1)])
def test_counters_grow_with_tensors_and_groups(cupy: FakeCupy, count: int, size: int) -> None:
    one = leaf_of(size, "float16")
    leaf = Leaf(on_device(cupy, one.weights), BOTH)
    for number in (3, count, 3):
        mine, theirs = (run(backend, Mode.VALUE, [each] * number, FLOAT64) for backend, each in
                        ((CUDA, leaf), (NUMPY, one)))  # fmt: skip
        assert raw(mine.total.get()) == raw(theirs.total)
        assert np.array_equal(raw(mine.each.get()), raw(theirs.each))
    (counters,) = cuda._Stream._counters.values()
    assert not counters.get().any()


# Memory --------------------------------------------------------------------------------------------------------------


Used = dict[str, tuple[int, int]]
"""The memory that a launch used, by what for: its address and size."""


def recorded(cupy: FakeCupy, launch: Launch = host_cuda.launch) -> list[Used]:
    """Return what the launches to come will have used."""
    found: list[Used] = []

    def run_recorded(name: str, grid: int, argument: Array) -> None:
        inside = {key: cupy.memory_at(int(argument[0][key])) for key in (*SCRATCH, *RESULTS)}
        found.append({key: (memory.ptr, memory.bytes.size) for key, memory in inside.items()})
        launch(name, grid, argument)

    cupy.launch = run_recorded
    return found


def memories(launches: Iterable[Used], names: Sequence[str]) -> set[tuple[int, int]]:
    """Return the memory that launches used for something."""
    return {used[name] for used in launches for name in names}


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [([2**25], "float16"), ([2**23], "float64"), ([300] * 20_000, "float16"), ([20_000] * 500, "float16")],
    ids=["large", "large of float64", "many of 600 bytes", "many of two tiles"],
)
def test_scratch_of_any_sizes_is_a_thousandth_of_the_weights(cupy: FakeCupy, sizes: list[int], dtype: str) -> None:
    memory = cupy.empty(sum(sizes), dtype)
    starts = np.cumsum(sizes) - sizes
    weights = [memory[start : start + size] for start, size in zip(starts.tolist(), sizes, strict=True)]
    launches, before = recorded(cupy, lambda *_: None), cupy.allocated
    values = run(CUDA, Mode.VALUE, [Leaf(each, BOTH) for each in weights])
    results, tables = 8 * (4 * len(sizes) + 4), len(sizes) * (cuda.TENSOR.itemsize + cuda.PLACE.itemsize + 2 * 4)
    scratch = [size for _, size in memories(launches, SCRATCH)]
    assert values.each.size == len(sizes)
    assert sum(scratch) < memory.nbytes / 1000 + 2**20
    assert cupy.allocated - before <= sum(scratch) + results + tables  # and there is no more


def test_tables_are_copied_once_for_each_stream_and_gradients(cupy: FakeCupy) -> None:
    tensors = Tensors(cupy, mixed())
    others = [on_device(cupy, leaf.gradient) for leaf in tensors.host]
    bound = tensors.plan.bind(tensors.gradients)
    with_tables = 3  # launches

    def uploads(gradients: Any, stream: int, mode: Mode = Mode.ACCUMULATE) -> int:
        before, cupy.stream = cupy.uploads, Stream(stream)
        if mode is Mode.VALUE:
            tensors.plan.value(FLOAT64)
        else:
            tensors.plan.accumulate(FLOAT64, gradients)
        return cupy.uploads - before

    assert uploads(bound, 0) == 3 * with_tables
    assert uploads(bound, 0) == 0
    assert uploads(bound, 7) == 3 * with_tables
    assert uploads(bound, 0) == uploads(bound, 7) == 0
    moved = bound.moved(np.array([other.data.ptr for other in others]))
    assert uploads(moved, 0) == with_tables  # where tensors lie
    assert uploads(moved, 0) == uploads(bound, 0) == 0
    assert uploads(tensors.plan.bind(others), 0) == with_tables
    assert uploads(None, 0, Mode.VALUE) > 0
    assert uploads(None, 0, Mode.VALUE) == 0


def test_a_pass_is_made_ready_once_for_each_mode_and_stream(cupy: FakeCupy) -> None:
    tensors = Tensors(cupy, mixed())
    bound = tensors.plan.bind(tensors.gradients)
    moved = bound.moved(np.array([gradient.data.ptr for gradient in tensors.gradients]))
    assert moved is not None
    launches = len(bound.launches)
    for stream, gradients, expected in ((0, bound, launches), (0, bound, 0), (7, moved, launches), (0, moved, 0)):
        cupy.stream = Stream(stream)
        with mock.patch.object(tensors.plan, "_ready", wraps=tensors.plan._ready) as ready:
            tensors.plan.accumulate(FLOAT64, gradients)
        assert ready.call_count == expected
    with mock.patch.object(tensors.plan, "_ready", wraps=tensors.plan._ready) as ready:
        tensors.plan.gradient(bound)
    assert ready.call_count == launches


def test_gradients_that_moved_have_the_bits_of_those_bound_anew(cupy: FakeCupy) -> None:
    tensors = Tensors(cupy, mixed())
    bound = tensors.plan.bind(tensors.gradients)
    places = [(bound, tensors.gradients)]
    for _ in range(2):
        gradients = [on_device(cupy, leaf.gradient) for leaf in tensors.host]
        moved = bound.moved(np.array([gradient.data.ptr for gradient in gradients]))
        assert moved is not None
        places.append((moved, gradients))
    for last, tensors.gradients in places:
        for leaf, gradient in zip(tensors.host, tensors.gradients, strict=True):
            leaf.gradient[...] = gradient.get()
        tensors.check(tensors.plan.accumulate(FLOAT64, last), Mode.ACCUMULATE)


def test_gradients_to_be_copied_are_not_told_by_their_addresses(cupy: FakeCupy) -> None:
    tensors = Tensors(cupy, mixed())
    places = np.array([gradient.data.ptr for gradient in tensors.gradients])
    bound = tensors.plan.bind(tensors.gradients)
    assert bound.moved(places + 8) is not None
    assert bound.moved(places + 1) is None  # at odd addresses
    strided = Tensors(cupy, mixed(["C", "strided"]))
    assert strided.plan.bind(strided.gradients).moved(places) is None


@pytest.mark.parametrize("layouts", [["C"], list(LAYOUTS)], ids=["side by side", "all layouts"])
def test_all_that_launches_use_is_there_when_they_are_made(cupy: FakeCupy, layouts: list[str]) -> None:
    tensors, launches = Tensors(cupy, mixed(layouts)), recorded(cupy)
    with read_only(*tensors.weights):
        for _ in range(2):
            tensors.check(tensors.accumulate(strength=cupy.array(0.5)), Mode.ACCUMULATE, strength=0.5)
            gc.collect()
    assert len(launches) == 2 * 4
    assert not any(place in cupy.live for place, _ in memories(launches, SCRATCH))  # but it is gone then


def test_calls_on_two_streams_share_neither_scratch_nor_counters_nor_results(cupy: FakeCupy) -> None:
    one, other = (Tensors(cupy, [leaf_of(size, "float32") for size in (5, 40_000, 9000)]) for _ in range(2))
    found: list[Values] = []

    def launch(name: str, grid: int, argument: Array) -> None:
        if not found:  # while the first launch is in progress
            cupy.stream = Stream(2)
            found.append(Results(None, None, None))
            found[0] = other.plan.value(FLOAT64)
            cupy.stream = Stream(1)
        host_cuda.launch(name, grid, argument)

    cupy.stream, launches = Stream(1), recorded(cupy, launch)
    one.check(one.plan.value(FLOAT64), Mode.VALUE)
    other.check(found[0], Mode.VALUE)
    first, second = (memories([used], (*SCRATCH, *RESULTS)) for used in launches)
    assert not first & second


@pytest.mark.parametrize("several", [False, True])
def test_a_call_between_the_launches_of_another_on_its_stream_disturbs_nothing(cupy: FakeCupy, several: bool) -> None:
    pairs = [("float32", "float32"), ("float16", "float32")]
    outer = Tensors(cupy, [leaf_of(8 + i, *pairs[i % 2], seed=i) for i in range(6)])
    other = Tensors(cupy, [leaf_of(8 + i, *pairs[several and i % 2], seed=9 + i) for i in range(6)])
    other.accumulate()
    run(NUMPY, Mode.ACCUMULATE, other.host)
    found: list[Values] = []

    def launch(name: str, grid: int, argument: Array) -> None:
        host_cuda.launch(name, grid, argument)
        cupy.launch = host_cuda.launch
        found.append(other.accumulate())

    cupy.launch = launch
    outer.check(outer.accumulate(), Mode.ACCUMULATE)
    other.check(found[0], Mode.ACCUMULATE)
    assert len(found) == 1


# Failures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layouts", [["C"], ["C", "strided"]], ids=["side by side", "strided"])
def test_a_call_without_enough_memory_makes_no_launch(cupy: FakeCupy, layouts: list[str]) -> None:
    tensors, empty = Tensors(cupy, mixed(layouts)), cupy.empty
    plan, bound = tensors.plan, tensors.plan.bind(tensors.gradients)
    before = [raw(gradient.get()) for gradient in tensors.gradients]
    for number in itertools.count():
        left = iter(range(number))

        def limited(shape: Any, dtype: Any = np.float64, left: Any = left) -> Any:
            if next(left, None) is None:
                raise MemoryError("out of memory")
            return empty(shape, dtype)

        cupy.empty = limited  # type: ignore[method-assign]
        try:
            values = plan.accumulate(FLOAT64, bound)
        except MemoryError:
            assert cupy.launches == []
            assert all(
                np.array_equal(raw(one.get()), other) for one, other in zip(tensors.gradients, before, strict=True)
            )
        else:
            break
    cupy.empty = empty  # type: ignore[method-assign]
    assert number > 3
    tensors.check(values, Mode.ACCUMULATE)


def test_a_kernel_that_cannot_be_compiled_leaves_all_as_it_was(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, compiled = Tensors(cupy, mixed(["C", "strided"])), compiler.compile
    before = [raw(gradient.get()) for gradient in tensors.gradients]

    def compile_one(name: str, architecture: str) -> Kernel:
        if "Half" not in name:
            raise RuntimeError("the kernel does not compile")
        return compiled(name, architecture)

    monkeypatch.setattr(compiler, "compile", compile_one)
    with pytest.raises(RuntimeError, match="the kernel does not compile"):
        tensors.accumulate()
    assert cupy.launches == []
    assert all(np.array_equal(raw(one.get()), other) for one, other in zip(tensors.gradients, before, strict=True))
    monkeypatch.setattr(compiler, "compile", compiled)
    tensors.check(tensors.accumulate(), Mode.ACCUMULATE)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("number", [0, 2])
def test_calls_after_a_failed_launch_are_right(cupy: FakeCupy, error: type[BaseException], number: int) -> None:
    tensors = Tensors(cupy, mixed())
    tensors.plan.value(FLOAT64)
    left = iter(range(number))

    def launch(_: str, __: int, argument: Array) -> None:
        # As if the launch had ended half-way.
        place = int(argument[0]["counters"])
        memory = cupy.memory_at(place)
        memory.bytes[place - memory.ptr :] = 1
        if next(left, None) is None:
            raise error("the launch failed")

    cupy.launch = launch
    with pytest.raises(error, match="the launch failed"):
        tensors.plan.value(FLOAT64)
    cupy.launch = host_cuda.launch
    tensors.check(tensors.plan.value(FLOAT64), Mode.VALUE)


# Capture -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_replays_take_weights_and_factors_of_the_moment(cupy: FakeCupy, dtype: str) -> None:
    tensors, launches = Tensors(cupy, mixed()), recorded(cupy)
    strength, upstream = (cupy.array(np.array(0.7, kind)) for kind in (dtype, "float32"))
    tensors.plan.value(FLOAT64)
    bound = tensors.plan.bind(tensors.gradients)
    tensors.plan.gradient(bound)
    run(NUMPY, Mode.GRADIENT, tensors.host)
    before = cupy.uploads, len(cupy.launches)
    with cupy.capture() as graph:
        values = tensors.plan.accumulate(np.dtype(np.float32), bound, strength=strength, upstream=upstream)
        value = tensors.plan.value(np.dtype(np.float16), divisor=3, sums=True)
    assert (cupy.uploads, len(cupy.launches)) == before
    del bound, tensors.plan
    gc.collect()
    other = Tensors(cupy, mixed())
    for seed, factor in enumerate((0.5, -1.25, 0.0, 3.1)):
        launches.clear()
        other.plan.value(FLOAT64)
        others = memories(launches, SCRATCH)
        for w, leaf in zip(tensors.weights, tensors.host, strict=True):
            leaf.weights[...] = content("wide", leaf.weights.size, leaf.weights.dtype.name, seed).reshape(w.shape)
            w[...] = cupy.array(leaf.weights)
        strength[...] = factor
        launches.clear()
        with read_only(*tensors.weights):
            graph.replay()
        assert not others & memories(launches, SCRATCH)
        host = {"strength": strength.get(), "upstream": upstream.get()}
        tensors.check(values, Mode.ACCUMULATE, np.dtype(np.float32), **host)
        tensors.check(value, Mode.VALUE, np.dtype(np.float16), divisor=3, sums=True)


def test_tables_of_a_pass_made_ready_before_are_kept_for_replays(cupy: FakeCupy) -> None:
    tensors, _ = Tensors(cupy, mixed()), recorded(cupy)
    cupy.stream = Stream(5)
    tensors.plan.value(FLOAT64)
    with cupy.capture(5) as graph:  # of the very same pass on the same stream
        values = tensors.plan.value(FLOAT64)
    del tensors.plan
    gc.collect()
    for _ in range(2):
        graph.replay()
        tensors.check(values, Mode.VALUE)


def test_a_factor_is_kept_for_replays(cupy: FakeCupy) -> None:
    tensors = Tensors(cupy, [leaf_of(40_000, "float32")])
    bound = tensors.plan.bind(tensors.gradients)
    with cupy.capture() as graph:  # of one tensor, which needs no call before
        strength, upstream = cupy.empty((), np.float64), cupy.empty(2, np.float32)[1]
        strength.fill(0.25)
        upstream.fill(-3.0)
        values = tensors.plan.accumulate(FLOAT64, bound, strength=strength, upstream=upstream)
        del strength, upstream, bound, tensors.plan
    gc.collect()
    for _ in range(2):
        graph.replay()
        tensors.check(values, Mode.ACCUMULATE, strength=0.25, upstream=-3.0)


def test_captures_of_one_plan_share_scratch_and_no_results(cupy: FakeCupy) -> None:
    tensors, launches = Tensors(cupy, mixed()), recorded(cupy)
    tensors.plan.value(FLOAT64)
    captured, used = [], []
    for stream in (5, 6):
        with cupy.capture(stream) as graph:
            captured.append((graph, tensors.plan.value(FLOAT64, strength=float(stream))))
    for graph, _ in captured:
        launches.clear()
        graph.replay()
        used.append([memories(launches, names) for names in (SCRATCH, RESULTS)])
    for stream, (_, values) in zip((5, 6), captured, strict=True):
        tensors.check(values, Mode.VALUE, strength=float(stream))
    (scratch, results), (same, others) = used
    assert scratch == same
    assert len(scratch) == 1
    assert not results & others


@pytest.mark.parametrize("grows", [False, True])
def test_captures_that_need_more_scratch_or_less_share_none_that_is_gone(cupy: FakeCupy, grows: bool) -> None:
    # Of gradients in two dtypes there are two launches, which take turns with places for sums; a value is one launch.
    tensors = Tensors(cupy, [leaf_of(40_000, "float16", into, seed=1) for into in ("float16", "float32")])
    bound = tensors.plan.bind(tensors.gradients)
    tensors.plan.value(FLOAT64)
    launches = recorded(cupy)
    with cupy.capture() as graph:
        if not grows:
            tensors.plan.value(FLOAT64)
        first = tensors.plan.accumulate(FLOAT64, bound)
        second = tensors.plan.value(FLOAT64)
    del tensors.plan
    gc.collect()
    for _ in range(2):
        graph.replay()
        tensors.check(first, Mode.ACCUMULATE)
        tensors.check(second, Mode.VALUE)
    assert len(memories(launches, SCRATCH)) == 1 + grows


@pytest.mark.parametrize("layouts", [["C"], ["C", "strided"]], ids=["not called before", "strided"])
def test_tables_that_cannot_be_copied_while_capturing_say_so(cupy: FakeCupy, layouts: list[str]) -> None:
    tensors = Tensors(cupy, mixed(layouts))
    if "strided" in layouts:
        tensors.plan.value(FLOAT64)
    with cupy.capture(), pytest.raises(RuntimeError, match=r"make the same call once before, .*side by side"):
        tensors.plan.value(FLOAT64)


def test_a_plan_of_another_device_than_the_current_one(cupy: FakeCupy) -> None:
    with Device(1):
        tensors, strength = Tensors(cupy, mixed(list(LAYOUTS))), cupy.array(0.5)
    tensors.check(tensors.accumulate(strength=strength), Mode.ACCUMULATE, strength=0.5)
    assert {key[0] for key in cuda._Stream._counters} <= {1}
