"""The GPU benchmarks on NumPy in CuPy's place: that all they would run is right, and what is made of what fails."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bench import (
    gpu,
    gpu_check,
    gpu_checks,
    gpu_contenders,
    gpu_environment,
    gpu_inputs,
    gpu_models,
    gpu_peers,
    gpu_race,
    model_contenders,
    report,
    torch_contenders,
    torch_steps,
)
from bench.cases import MODES, Case, Mode
from bench.gpu_checks import Contender
from bench.gpu_race import Race, Round, Runs
from bench.model_contenders import Entry
from bench.model_inputs import Case as ModelCase
from bench.model_inputs import Model

SIZE = 2**13


class Graph(list[Callable[[], Any]]):
    """What was captured, to be run by each launch."""

    def launch(self) -> None:
        for operation in self:
            operation()


class Stream:
    """A stream that can be captured; while it is, `do` keeps what would have run."""

    graph: Graph | None = None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def begin_capture(self) -> None:
        type(self).graph = Graph()

    def end_capture(self) -> Graph:
        graph, type(self).graph = self.graph, None
        assert graph is not None
        return graph

    @classmethod
    def do(cls, operation: Callable[[], Any]) -> None:
        operation() if cls.graph is None else cls.graph.append(operation)


class Event:
    """The host's clock, for the device does nothing by itself."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass


class NumpyAsCupy(SimpleNamespace):
    """As much of CuPy as NumPy can stand in for."""

    def __init__(self) -> None:
        runtime = SimpleNamespace(memGetInfo=lambda: (self.free, 2**40))
        super().__init__(
            free=2**36,
            get_default_memory_pool=lambda: SimpleNamespace(total_bytes=lambda: 0),
            cuda=SimpleNamespace(
                Event=Event,
                Stream=lambda **_: Stream(),
                get_current_stream=Stream,
                get_elapsed_time=lambda begin, end: 1e3 * (end.seconds - begin.seconds),
                runtime=runtime,
            ),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[NumpyAsCupy]:
    """Let all GPU benchmarks find NumPy in CuPy's place, and none of the peers."""
    fake = NumpyAsCupy()
    for module in (gpu_inputs, gpu_checks, gpu_contenders, gpu_models, gpu_peers, gpu_race):
        monkeypatch.setattr(module, "cp", lambda: fake)
    for module in (gpu_inputs, gpu_peers):
        monkeypatch.setattr(module, "forget", lambda: None)
    for name in ("cutensor", "cuda_compute", "jax"):
        monkeypatch.setattr(gpu_peers, name, lambda: None)
    monkeypatch.setattr(gpu_race, "flush", lambda: None)
    monkeypatch.setattr(gpu_race, "_flush_seconds", [1e-5])
    monkeypatch.setattr(gpu_inputs, "BLOCK", 2**10)
    monkeypatch.setattr(gpu_inputs, "set_count", lambda _: 2)
    monkeypatch.setattr(gpu_contenders, "_copy", lambda a: np.copyto(a.gradient, a.weights))
    for name in ("_value_kernel", "_gradient_kernel"):
        monkeypatch.setattr(gpu_contenders, name, lambda *_: None)
    gpu_inputs.tensors.cache_clear()
    yield fake
    gpu_inputs.tensors.cache_clear()
    gpu_models.forget()


def one_percent_more(run: Callable[[Any], Any], arrays: Any) -> Any:
    return run(arrays) * 1.01


# The plan


def test_sizes_are_from_a_kilobyte_to_more_than_32_bits_count() -> None:
    cases = [planned.case for planned in gpu.plan(quick=False) if isinstance(planned.case, Case)]
    for dtype in gpu.SIZES:
        sizes = [case.elements * case.itemsize for case in cases if case.dtype == dtype]
        assert min(sizes) == 2**10
        assert 2**31 in sizes
    beyond = {(case.dtype, case.mode.write) for case in cases if case.elements > 2**32}
    assert beyond == {(dtype, write) for dtype in ("bfloat16", "float32") for write in ("nothing", "add")}
    assert all(case.elements % gpu_inputs.BLOCK == 0 for case in cases if case.elements > gpu_inputs.BLOCK)


def test_the_most_telling_comparisons_come_first_and_what_compiles_last() -> None:
    planned = gpu.plan(quick=False)
    compiled = [each.compiled for each in planned]
    assert compiled == sorted(compiled)
    assert sum(compiled) == 12 - 2
    assert {str(each.case) for each in planned[5:9]} == {
        "gpt2, value, gradient added", "gpt2, value", "small, value, gradient added", "small, value",
    }  # fmt: skip
    last = [each.case for each in planned if each.compiled]
    assert {case.dtype for case in last if isinstance(case, Case)} == {"float32", "bfloat16"}
    assert [case.model for case in last if isinstance(case, ModelCase)] == ["gpt2", "gpt2"]
    models = {each.case.model for each in planned if isinstance(each.case, ModelCase)}
    assert models == {"resnet50", "gpt2", "llama-3-8b", "dlrm", "small"}
    # No comparison twice, but what compiles in place of what has been.
    first = [each.case for each in planned if not each.compiled]
    assert len(set(first)) == len(first)
    assert set(last) <= set(first)


def test_training_steps_take_part_where_pytorch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_models, "STEPS", ())
    assert not any(isinstance(each.case, torch_steps.Case) for each in gpu.plan(quick=False))
    monkeypatch.setattr(gpu_models, "STEPS", tuple(torch_steps.CASES))
    planned = [each for each in gpu.plan(quick=False) if isinstance(each.case, torch_steps.Case)]
    assert [each.case for each in planned if not each.compiled] == torch_steps.CASES
    assert {each.case.mode for each in planned if each.compiled} == {"training step: L1 + L2 into .grad"}


def test_what_is_planned_fits_the_memory_of_an_h100() -> None:
    for planned in gpu.plan(quick=False):
        if isinstance(planned.case, Case):
            needed = gpu_inputs.needed_bytes(planned.case.dtype, planned.case.elements)
        else:
            needed = gpu_models.needed_bytes(planned.case)
        assert needed < 78 * 2**30, planned.case


# Tensors without room beside them


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_where_there_is_room_for_a_gradient_alone(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    monkeypatch.setattr(gpu_inputs, "LEAN_BYTES", 4 * SIZE)
    case, smaller = Case(mode, "float32", SIZE), Case(mode, "float32", SIZE // 2)
    field = list(gpu_contenders.contenders(case, compiled=True))
    assert {each.role for each in field} == {"gpureg", "best", "limit"}
    assert all("Kernel" in each.name for each in field if each.role == "best")
    assert len(list(gpu_contenders.contenders(smaller, compiled=False))) > len(field)
    given = gpu_inputs.tensors(case.dtype, case.elements)
    assert given.sets[0].scratch is given.sets[0].wide is None
    for each in field:
        if each.role != "best":
            assert each.wrong(each.run, case, given) is None


# Peers


def jit(function: Callable[..., Any], donate_argnums: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Return the function, which then overwrites what is donated, as XLA may."""

    def run(*arguments: Any) -> Any:
        result = function(*arguments)
        for number in donate_argnums:
            arguments[number].fill(np.nan)
        return result

    return run


class NumpyAsJax(SimpleNamespace):
    """As much of JAX as NumPy can stand in for."""

    def __init__(self) -> None:
        names = {name: getattr(np, name) for name in ("abs", "array", "sign", "square", "from_dlpack", "int16")}
        super().__init__(
            numpy=SimpleNamespace(**names, bfloat16=ml_dtypes.bfloat16),
            lax=SimpleNamespace(bitcast_convert_type=lambda array, dtype: array.view(dtype)),
            jit=jit,
            default_backend=lambda: "gpu",
            block_until_ready=lambda results: results,
        )


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_jax_is_right_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch, dtype: str, mode: Mode) -> None:
    monkeypatch.setattr(gpu_peers, "jax", NumpyAsJax)
    case = Case(mode, dtype, SIZE)
    (each,) = [each for each in gpu_contenders.contenders(case, compiled=True) if each.name.startswith("jax")]
    given = gpu_inputs.tensors(dtype, SIZE)
    assert each.wait is not None
    assert each.wrong(each.run, case, given) is None
    assert str(each.wrong(partial(one_percent_more, each.run), case, given)).startswith("the penalty is")
    for arrays in given.sets * 2:
        each.run(arrays)  # and again, with what was donated before
    if mode.write != "nothing":
        value = gpu_peers.DeviceJit(gpu_peers.jax(), dataclasses.replace(mode, write="nothing"))
        assert str(each.wrong(value, case, given)).startswith("the gradient is off")


@pytest.mark.usefixtures("cupy")
def test_jax_takes_no_part_in_float64_or_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "jax", NumpyAsJax)
    for dtype, compiled in (("float64", True), ("float32", False)):
        names = [each.name for each in gpu_contenders.contenders(Case(MODES[0], dtype, SIZE), compiled=compiled)]
        assert not any(name.startswith("jax") for name in names)


def reduce_into(*, d_in: Any, d_out: Any, num_items: int, op: str, h_init: Any) -> None:
    assert (op, d_in.size) == ("plus", num_items)
    d_out[0] = d_in.sum() + h_init[0]


COMPUTE = SimpleNamespace(
    reduce_into=reduce_into, OpKind=SimpleNamespace(PLUS="plus"), TransformIterator=lambda w, term: term(w)
)


def reduction(alpha: float, a: Any, modes: Any, beta: float, c: Any, no_modes: Any, **operators: Any) -> Any:
    assert (modes, no_modes, c.shape) == (("i",), (), ())
    return alpha * operators["op_A"](a).sum() + beta * 0 * c


def contraction(alpha: float, a: Any, modes: Any, b: Any, same: Any, beta: float, c: Any, no_modes: Any) -> Any:
    assert (modes, same, no_modes, c.shape) == (("i",), ("i",), (), ())
    return alpha * (a * b).sum() + beta * 0 * c


CUTENSOR = SimpleNamespace(reduction=reduction, contraction=contraction)


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("mode", MODES[:3], ids=lambda mode: mode.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_compute_and_cutensor(monkeypatch: pytest.MonkeyPatch, dtype: str, mode: Mode) -> None:
    monkeypatch.setattr(gpu_peers, "cuda_compute", lambda: COMPUTE)
    monkeypatch.setattr(gpu_peers, "cutensor", lambda: CUTENSOR)
    monkeypatch.setattr(gpu_peers, "import_module", lambda _: SimpleNamespace(OP_ABS=np.abs))
    case = Case(mode, dtype, SIZE)
    given = gpu_inputs.tensors(dtype, SIZE)
    names = ("cuda.compute",) if mode.l1 and mode.l2 else ("cuda.compute", "cupyx.cutensor")
    field = [each for each in gpu_contenders.contenders(case, compiled=True) if each.name.startswith(names)]
    assert len(field) == len(names)
    for each in field:
        assert each.wrong(each.run, case, given) is None
        assert each.wrong(partial(one_percent_more, each.run), case, given) is not None


def test_cuda_compute_gives_values_of_32_bits_and_more_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "cuda_compute", lambda: COMPUTE)
    for mode, dtype in ((MODES[-1], "float32"), (MODES[0], "bfloat16")):
        assert gpu_peers.cuda_compute_values(Case(mode, dtype, SIZE)) == {}


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise {"cupyx.cutensor": ImportError, "cuda.compute": RuntimeError}.get(name, ModuleNotFoundError)

    monkeypatch.setattr(gpu_peers, "import_module", broken)
    found = (gpu_peers.cutensor, gpu_peers.cuda_compute, gpu_peers.apex, gpu_peers.jax)
    for each in found:
        each.cache_clear()
    assert list(gpu_peers.absent()) == ["cuTENSOR through cupyx", "cuda.compute", "JAX", "apex"]
    cpu = SimpleNamespace(default_backend=lambda: "cpu")
    bare = SimpleNamespace()
    monkeypatch.setattr(
        gpu_peers,
        "import_module",
        {"cupyx.cutensor": CUTENSOR, "cuda.compute": bare, "apex.optimizers": bare, "jax": cpu}.get,
    )
    for each in found:
        each.cache_clear()
    assert list(gpu_peers.absent()) == ["cuda.compute", "JAX", "apex"]
    for each in found:
        each.cache_clear()


# Models

SMALL = [ModelCase(model, adds, limit_bytes=2**22) for model in ("resnet50", "gpt2") for adds in (False, True)]


@pytest.fixture
def capturable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a planned step be captured: all it does is kept for the launches of the graph."""
    step = model_contenders.planned

    def planned(adds: bool, case: ModelCase, model: Model) -> Entry:
        entry, total = step(adds, case, model), np.full((), np.nan)

        def run() -> Any:
            Stream.do(lambda: total.__setitem__((), entry.run()))
            return total

        return entry._replace(run=run)

    monkeypatch.setattr(gpu_models, "planned", planned)


@pytest.mark.usefixtures("cupy", "capturable")
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_contenders_over_a_model_are_right_and_a_wrong_one_is_seen(case: ModelCase) -> None:
    field = list(gpu_models.contenders(case, compiled=False))
    assert [each.name.split("(")[0] for each in field[:2]] == ["gpureg.Penalty", "CUDA graph of Penalty"]
    assert [each.role for each in field].count("gpureg") == 1
    assert {"best", "naive", "other", "limit"} <= {each.role for each in field}
    assert any(each.name.startswith("l2 * sum(cupy.dot") or "cupy.multiply" in each.name for each in field)
    models = gpu_models.sets(case)
    assert len(models) == 2
    for each in field:
        found = gpu_models._enter(case, each)
        assert isinstance(found, Runs), (each.name, found)
        assert len(found.runs) == 2
        if each.role != "limit":
            wrong = each._replace(enter=partial(_too_much, each))
            assert str(gpu_models._enter(case, wrong)).startswith("the total is")


def _too_much(contender: model_contenders.Contender, case: ModelCase, model: Model) -> Entry:
    entry = contender.enter(case, model)
    return entry._replace(run=lambda: entry.run() * 1.01)


@pytest.mark.usefixtures("cupy", "capturable")
def test_a_graph_that_does_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = SMALL[1]
    graph = list(gpu_models.contenders(case, compiled=False))[1]
    assert isinstance(gpu_models._enter(case, graph), Runs)
    monkeypatch.setattr(Graph, "launch", lambda _: None)
    assert gpu_models._enter(case, graph) is not None
    assert str(gpu_models._enter(case, graph)).startswith("the gradient of")


@pytest.mark.usefixtures("cupy")
def test_sets_of_a_model_are_apart_and_alike() -> None:
    case = SMALL[1]
    first, second = gpu_models.sets(case)
    assert gpu_models.sets(dataclasses.replace(case, adds=False)) == (first, second)
    for one, other in zip(first.weights.values(), second.weights.values(), strict=True):
        assert np.array_equal(one, other)
        assert not np.shares_memory(one, other)
        assert one.ctypes.data % 16 == next(iter(first.weights.values())).ctypes.data % 16
    exact = sum(float(np.square(w.astype(np.float64)).sum()) for w in first.weights.values())
    assert gpu_models._sum_squares(case, first) == pytest.approx(exact, rel=1e-12)
    words = first.flat.weights.view(np.uint64)
    assert gpu_models._sum_words(first.flat.weights) == sum(map(int, words)) % 2**64


@pytest.mark.usefixtures("cupy")
def test_jax_over_a_model_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "jax", NumpyAsJax)
    case = SMALL[2]
    assert not any(each.apart for each in gpu_models.contenders(case, compiled=False))
    (each,) = [each for each in gpu_models.contenders(case, compiled=True) if each.apart]
    fake = gpu_models.place(compiled=True).jax
    fake.numpy.sum = np.sum
    found = gpu_models._enter(case, each._replace(enter=lambda *_: Entry(lambda: 1.0, dict), wrong=lambda *_: None))
    assert isinstance(found, Runs)
    assert found.wait is not None


# Races


def runs_of(*seconds: float) -> Runs:
    return Runs([partial(time.sleep, each) for each in seconds])


@pytest.mark.usefixtures("cupy")
def test_what_fails_at_any_time_is_left_out_and_the_others_are_timed() -> None:
    def breaks_later() -> Runs:
        calls = iter([None])
        return Runs([lambda: next(calls)])

    def breaks() -> Runs:
        raise MemoryError("out of\nmemory")

    entrances: dict[str, Callable[[], Runs | str]] = {
        "right": lambda: runs_of(1e-4),
        "wrong": lambda: "off",
        "breaks": breaks,
        "later": breaks_later,
    }
    result = gpu_race.entered(entrances, 0.01)
    assert list(result.rounds) == ["right"]
    assert len(result.rounds["right"]) >= gpu_race.LEAST_ROUNDS
    assert result.left_out["wrong"] == "off"
    assert result.left_out["breaks"] == "MemoryError: out of"
    assert result.left_out["later"].startswith("StopIteration")


@pytest.mark.usefixtures("cupy")
def test_a_round_times_the_device_the_host_and_a_call_alone() -> None:
    (rounds,) = gpu_race.entered({"it": lambda: runs_of(2e-3, 2e-3)}, 0.0).rounds.values()
    assert len(rounds) == gpu_race.LEAST_ROUNDS
    for each in rounds:
        assert each.device >= 2e-3
        assert each.host >= 2e-3
        assert each.alone is not None
        assert each.alone >= 2e-3


@pytest.mark.usefixtures("cupy")
def test_a_call_that_takes_long_is_not_made_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_race, "ALONE_SECONDS", 1e-3)
    entrances = {"long": lambda: runs_of(2e-3), "short": lambda: Runs([int])}
    rounds = gpu_race.entered(entrances, 0.0).rounds
    assert {each.alone is None for each in rounds["long"]} == {True}
    assert {each.alone is None for each in rounds["short"]} == {False}


@pytest.mark.usefixtures("cupy")
def test_sets_of_many_tensors_are_few() -> None:
    counts = {case.model: gpu_models.set_count(case) for case in gpu_models.CASES}
    assert counts["small"] == 1
    assert counts["gpt2"] == 2


@pytest.mark.usefixtures("cupy")
def test_a_library_with_streams_of_its_own_is_waited_for() -> None:
    waited: list[list[Any]] = []

    def wait(results: list[Any]) -> None:
        waited.append(results)
        time.sleep(4e-3)

    runs = Runs([lambda: 1, lambda: 2], wait)
    (rounds,) = gpu_race.entered({"it": lambda: runs}, 0.0).rounds.values()
    assert [1, 2] in waited
    assert {len(results) for results in waited} == {1, 2}  # a round, and a call alone
    assert all(each.device >= 2e-3 and each.host < 2e-3 for each in rounds)
    assert all(each.alone is not None and each.alone >= 4e-3 for each in rounds)


@pytest.mark.usefixtures("cupy")
def test_alone_each_set_has_its_turn() -> None:
    seen: list[int] = []
    runs = Runs([partial(seen.append, number) for number in range(3)])
    gpu_race.entered({"it": lambda: runs}, 0.0)
    alone = [seen[i] for i in range(3, len(seen), 4)]
    assert set(alone) == {0, 1, 2}


# The run


def new_run(folder: Path) -> gpu.Run:
    facts = gpu_environment.describe("0123456789abcdef")
    facts["versions"]["blas"] = "any"
    return gpu.Run(facts, folder / "benchmarks.json")


@pytest.mark.usefixtures("capturable")
def test_a_run_from_the_first_comparison_to_the_tables(tmp_path: Path, cupy: NumpyAsCupy) -> None:
    run = new_run(tmp_path)
    single = Case(MODES[0], "float32", SIZE)
    run.compare(gpu.Planned(single, compiled=False), 0.0)
    run.compare(gpu.Planned(SMALL[3], compiled=False), 0.0)
    run.write()
    made = json.loads((tmp_path / "benchmarks.json").read_text())
    assert made["missing"] == {}
    assert any("cublas" in name for name in made["left_out"])
    ours = [entry for entry in made["entries"] if entry["role"] == "gpureg"]
    assert [entry.get("model") for entry in ours] == [None, "gpt2"]
    assert ours[1]["tensors"] == len(SMALL[3].parameters)
    assert ours[1]["bytes"] == 3 * 4 * SMALL[3].elements
    for entry in made["entries"]:
        assert entry["end_to_end_seconds"] > 0
        assert entry["host_seconds"] > 0
        assert set(entry) - set(made["legend"]) <= {"dtype", "elements", "calls", "role"}
    whole: dict[str, Any] = {"schema": 1, "parts": {"benchmarks": {**made, "ok": True, "reason": None, "seconds": 1.0}}}
    del whole["parts"]["benchmarks"]["schema"]
    gpu_check._lift(whole, "benchmarks")
    gpu_check.write(whole, tmp_path / "report.json")
    columns = report.model_table(report.load(tmp_path / "report.json"), "name").splitlines()[0].split(" | ")
    assert columns[1:-1] == ["gpureg", "CUDA graph", "single calls", "CuPy best", "CuPy as written"]
    cupy.free = 0
    run.compare(gpu.Planned(dataclasses.replace(single, elements=2**20), compiled=False), 0.0)
    run.compare(gpu.Planned(SMALL[0], compiled=False), 0.0)
    assert [name for name, reason in run.left_out.items() if reason.startswith("needs 4 GiB")] == [
        "value, L1, float32, 1048576 elements", "resnet50, value",
    ]  # fmt: skip


def test_a_comparison_without_gpureg_or_a_limit_is_missing_until_it_is_made(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    case = Case(MODES[0], "float32", SIZE)
    field = [Contender(role, role, len, lambda *_: None) for role in ("gpureg", "best", "limit")]
    rounds = {each.name: [Round(1.0, 1.0)] for each in field}
    run.keep(case, field, Race({"best": rounds["best"]}, {"gpureg": "wrong, see /home/someone/x"}))
    assert run.missing == {str(case): "no gpureg and no limit took part"}
    assert run.left_out == {f"{case}: gpureg": "wrong, see"}
    run.keep(case, field, Race(rounds, {}))
    assert run.missing == {}
    run.write()
    entries = json.loads((tmp_path / "benchmarks.json").read_text())["entries"]
    assert all("end_to_end_seconds" not in entry for entry in entries)  # which was not timed here


def test_time_is_kept_back_for_what_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    compared: list[tuple[str, bool]] = []

    def compare(planned: gpu.Planned, seconds: float) -> None:
        assert 0 < seconds <= 1.0
        compared.append((str(planned.case), planned.compiled))
        clock[0] += 10.0
        if not planned.compiled and len(compared) == 2:
            raise MemoryError("of /dev/x")

    monkeypatch.setattr(run, "compare", compare)
    cases = [Case(MODES[0], "float32", 2**k) for k in range(8)]
    planned = [gpu.Planned(case, compiled=number >= 6) for number, case in enumerate(cases)]
    gpu.measure(run, planned, 60.0)
    # Eight seconds for each of the two that compile; the others end when the rest is spent.
    assert [compiled for _, compiled in compared] == [False] * 5 + [True]
    assert run.missing == {
        str(cases[1]): "MemoryError: of",
        str(cases[5]): "the time ended",
        str(cases[7]): "the time ended",
    }
    clock[0], compared[:] = 0.0, []
    gpu.measure(run, planned, 20.0)  # half of it
    assert [compiled for _, compiled in compared] == [False, True]


def test_every_contender_has_a_column(monkeypatch: pytest.MonkeyPatch, cupy: NumpyAsCupy) -> None:
    monkeypatch.setattr(torch_contenders, "torch", SimpleNamespace(compile=lambda function, **_: function))
    monkeypatch.setattr(gpu_peers, "jax", NumpyAsJax)
    monkeypatch.setattr(gpu_peers, "cuda_compute", lambda: COMPUTE)
    found = set()
    for mode in MODES:
        for each in gpu_contenders.contenders(Case(mode, "float32", 2**26), compiled=True):
            labels = report.columns_of({"columns": gpu.COLUMNS}, [{"role": each.role, "contender": each.name}])
            assert len(labels) == 1 or set(labels) <= {"CuPy best", "cuBLAS", "ReductionKernel"}
            found |= set(labels)
    assert found == set(gpu.COLUMNS)
    shown = set()
    for entrant in gpu_models.contenders(SMALL[3], compiled=True):
        (label,) = report.columns_of({}, [{"role": entrant.role, "contender": entrant.name}], gpu.MODEL_COLUMNS)
        shown.add(label)
    assert shown == set(gpu.MODEL_COLUMNS)
    assert cupy.free
