"""Reports of benchmarks: what is taken from raw data, what never is, and that no figure differs from its file."""

import copy
import dataclasses
import json
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import gpu, gpu_check, gpu_contenders, gpu_environment, model_contenders, report, torch_contenders
from bench.cases import MODES, Case
from bench.gpu_race import Race, Round
from bench.model_inputs import CASES, SMALL_BYTES

ROOT = Path(__file__).parent.parent
NAME = "2026-01-02-cpu-example"
README = f"before\n<!-- bench:begin {NAME} -->\nold\n<!-- bench:end -->\nafter\n"
SECRETS = ("secret-host", "secret-user", "secret-branch", "secret-project", "6.1.2")


def measured(role: str, seconds: list[float], mode: str = "value, L1") -> dict[str, Any]:
    facts = {"mode": mode, "contender": f"{role}(w)", "role": role, "dtype": "float32", "elements": 2**26}
    return {
        "name": f"test_single[{role}]",
        "fullname": f"/home/secret-user/bench/test_single.py::test_single[{role}]",
        "extra_info": facts | {"moved_bytes": 2**28, "sets": 2, "calls": 1},
        "stats": {"data": seconds, "rounds": len(seconds)},
    }


RAW: dict[str, Any] = {
    "machine_info": {
        "node": "secret-host",
        "machine": "x86_64",
        "python_version": "3.12.1",
        "python_build": ["main", "/home/secret-user/python"],
        "release": "6.1.2-secret-host",
        "system": "Linux",
        "cpu": {"brand_raw": "Example CPU @ 3.00GHz", "python_version": "3.12.1"},
        "gpureg": {
            "versions": {"gpureg": "0.1.0", "numpy": "2.3.0", "blas": "openblas 0.3"},
            "cores": 4,
            "cache_bytes": 2**25,
            "memory_bytes": 2**34,
            "folder": "/home/secret-user",
        },
    },
    "commit_info": {"id": "0123456789abcdef", "dirty": False, "branch": "secret-branch", "project": "secret-project"},
    "datetime": "2026-01-02T03:04:05+00:00",
    "benchmarks": [
        measured("gpureg", [0.02, 0.02, 0.08]),
        measured("best", [0.01, 0.01, 0.04]),
        measured("naive", [0.06, 0.05, 0.24]),
        measured("limit", [0.004, 0.005, 0.004]),
        measured("limit", [0.002, 0.02, 0.02]),
    ],
}


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """Return the report of the raw data, as a file."""
    (tmp_path / "raw.json").write_text(json.dumps(RAW))
    path = tmp_path / f"{NAME}.json"
    assert report.main([str(tmp_path / "raw.json"), "-o", str(path)]) == 0
    return path


def entry(role: str) -> Any:
    return next(e for e in report.summarise(RAW)["entries"] if e["role"] == role)


def changed(keys: str, value: Any) -> Any:
    """Return the raw data with what lies under the keys replaced, or removed if the value is None."""
    raw = copy.deepcopy(RAW)
    *path, last = (int(key) if key.isdigit() else key for key in keys.split("."))
    place: Any = raw
    for key in path:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return raw


def test_schema(committed: Path) -> None:
    written = json.loads(committed.read_text())
    assert written["schema"] == 1
    assert written["date"] == "2026-01-02"
    assert written["machine"] == {
        "cpu": "Example CPU @ 3.00GHz",
        "architecture": "x86_64",
        "cores": 4,
        "cache_mib": 32,
        "memory_gib": 16,
        "os": "Linux",
        "kernel": "6.1",
    }
    assert written["versions"] == {"python": "3.12.1", "numpy": "2.3.0", "blas": "openblas 0.3", "gpureg": "0.1.0"}
    assert (written["commit"], written["uncommitted_changes"]) == ("0123456789abcdef", False)
    assert written["entries"][0] == {
        "mode": "value, L1",
        "contender": "gpureg(w)",
        "dtype": "float32",
        "role": "gpureg",
        "elements": 2**26,
        "sets": 2,
        "calls": 1,
        "bytes": 2**28,
        "rounds": 3,
        "seconds": {"min": 0.02, "p10": 0.02, "median": 0.02, "p90": 0.068, "max": 0.08},
        "gb_per_s": 13.42,
        "to_gpureg": 1.0,
        "to_limit": 5.0,
    }
    # Every figure of an entry is explained.
    assert set(written["entries"][0]) - set(written["legend"]) == {"dtype", "elements", "calls"}
    assert written["columns"] == report.COLUMNS
    assert report.load(committed) == written


def test_nothing_that_names_a_person_or_a_machine_is_taken(committed: Path) -> None:
    assert all(secret in json.dumps(RAW) for secret in SECRETS)
    written = committed.read_text()
    assert not any(secret in written for secret in SECRETS)
    assert not re.search(r"[/\\]home|\.py", written)


@pytest.mark.parametrize(
    "keys", ["machine_info.cpu.brand_raw", "machine_info.gpureg.versions.blas", "benchmarks.0.extra_info.contender"]
)
@pytest.mark.parametrize("path", ["/home/secret-user", "see /opt/x", r"C:\users", "~/x", "../x"])
def test_a_path_where_it_does_not_belong_is_refused(keys: str, path: str) -> None:
    with pytest.raises(report.ReportError, match="not what belongs there"):
        report.summarise(changed(keys, path))


def test_percentiles() -> None:
    raw = changed("benchmarks", [measured("gpureg", [n / 10 for n in range(11, 0, -1)]), measured("limit", [0.1] * 11)])
    seconds = report.summarise(raw)["entries"][0]["seconds"]
    assert seconds == {"min": 0.1, "p10": 0.2, "median": 0.6, "p90": 1.0, "max": 1.1}


def test_ratios_are_medians_of_the_ratios_in_each_round() -> None:
    # The third round ran while the machine was four times slower: for both, and so the ratio stays.
    assert entry("best")["to_gpureg"] == 0.5
    assert entry("naive")["to_gpureg"] == 3.0
    # Here the ratios of the medians would be 0.5 and 0.75.
    assert report.ratio([1.0, 2.0, 12.0], [4.0, 1.0, 4.0]) == 2.0
    assert report.ratio([2.0, 3.0, 4.0], [1.0, 4.0, 5.0]) == 0.8


def test_the_limit_is_the_one_of_the_lowest_median() -> None:
    limits = [e for e in report.summarise(RAW)["entries"] if e["role"] == "limit"]
    assert [e["to_limit"] for e in limits] == [1.0, 4.0]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("machine_info.gpureg", None, r"machine_info\.gpureg is missing"),
        ("machine_info.gpureg.cores", 0, r"cores is 0, not a positive number"),
        ("benchmarks", [], "benchmarks is empty"),
        ("benchmarks.1.extra_info.mode", None, r"benchmarks\[1\]\.extra_info\.mode is missing"),
        ("benchmarks.1.extra_info.role", "winner", r"role is 'winner'"),
        ("benchmarks.1.stats.data", [], r"benchmarks\[1\]\.stats\.data is \[\]"),
        ("benchmarks.1.stats.data", [0.1, -0.1, 0.1], r"benchmarks\[1\]\.a round is -0\.1"),
        ("benchmarks.1.stats.data", [0.1, 0.1], "not timed in turn"),
        ("benchmarks.0.extra_info.role", "other", "expected gpureg once and a limit"),
        ("commit_info.id", "main; secret", "commit_info.id is 'main; secret'"),
    ],
)
def test_malformed_raw_data_is_an_error_that_says_where(keys: str, value: Any, message: str) -> None:
    with pytest.raises(report.ReportError, match=message):
        report.summarise(changed(keys, value))


def test_a_file_that_is_no_report_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, content in enumerate(["", "[]", "{}", '{"schema": 0}', '{"schema": 1}', json.dumps(RAW)]):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        assert report.main([str(path), "--table"]) == 2
        assert capsys.readouterr().err.startswith(f"{number}.json: ")
    assert report.main([str(tmp_path / "missing.json"), "--table"]) == 2


def test_table(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--table", str(committed)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "| float32, 2^26 weights (256 MiB) | gpureg | NumPy, best form | NumPy, as written | memory limit |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| value, L1 | 20.0 ms | 10.0 ms (0.50x) | 60.0 ms (3.0x) | 4.00 ms (0.20x) |",
    ]
    rest = " ".join(lines[3:])
    for told in ("Example CPU @ 3.00GHz, 4 cores", "NumPy 2.3.0", "at 0123456;", "2026-01-02", f"{NAME}.json"):
        assert told in rest


def test_a_table_of_another_size_is_an_error(committed: Path) -> None:
    committed.write_text(committed.read_text().replace(str(2**26), str(2**20)))
    assert report.main([str(committed), "--table"]) == 2


def test_write_and_check(committed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    check = [str(committed), "--check", str(readme)]
    assert report.main(check) == 1
    assert "README.md: its tables are not those of" in capsys.readouterr().err
    assert report.main([str(committed), "--write", str(readme)]) == 0
    assert report.main(check) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:begin")
    assert text.endswith("<!-- bench:end -->\nafter\n")
    assert "20.0 ms" in text

    readme.write_text(text.replace("20.0 ms", "19.0 ms"))
    assert report.main(check) == 1
    readme.write_text(text)
    committed.write_text(committed.read_text().replace('"median": 0.02', '"median": 0.019', 1))
    assert report.main(check) == 1


@pytest.mark.parametrize("readme", ["", README.replace("end", "stop"), README.replace(NAME, "other")])
def test_a_readme_without_the_markers_is_an_error(committed: Path, tmp_path: Path, readme: str) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert report.main([str(committed), "--check", str(tmp_path / "README.md")]) == 2
    assert report.main([str(committed), "--write", str(tmp_path / "README.md")]) == 2
    assert (tmp_path / "README.md").read_text() == readme


def test_the_same_report_draws_the_same_picture(committed: Path, tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg"):
        assert report.main([str(committed), "--figure", str(tmp_path / name)]) == 0
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    assert b"secret" not in first


@pytest.mark.parametrize(("page", "tables"), [("README.md", 2), ("docs/pytorch.md", 1)])
def test_the_tables_in_the_pages_are_those_of_committed_reports(page: str, tables: int) -> None:
    text = (ROOT / page).read_text()
    names = re.findall(r"<!-- bench:(?:begin|models|torch) (\S+) -->", text)
    assert len(names) == tables
    for name in names:
        assert report.main([str(ROOT / "bench" / "results" / f"{name}.json"), "--check", str(ROOT / page)]) == 0


def test_a_report_without_columns_has_those_of_numpy(committed: Path) -> None:
    """The first reports were written before columns were part of them."""
    written = json.loads(committed.read_text())
    with_columns = report.table(report.load(committed), NAME)
    del written["columns"]
    committed.write_text(json.dumps(written))
    assert report.table(report.load(committed), NAME) == with_columns


@pytest.mark.parametrize("columns", [{"gpureg": "gpureg"}, {"gpureg": {}}, ["gpureg"]])
def test_columns_of_no_role_are_an_error(committed: Path, columns: Any) -> None:
    committed.write_text(json.dumps(json.loads(committed.read_text()) | {"columns": columns}))
    with pytest.raises(report.ReportError, match=r"columns\.gpureg(\.role)? is missing"):
        report.load(committed)


# Whole models


def of_model(name: str, role: str, contender: str, seconds: float, mode: str = "value") -> dict[str, Any]:
    benchmark = measured(role, [seconds] * 3, mode)
    benchmark["extra_info"] |= {"model": name, "tensors": 161, "contender": contender, "elements": 25557032}
    return benchmark


MODELS = [
    of_model("resnet50", "gpureg", "gpureg.Penalty(weights, rules)()", 0.01),
    of_model("resnet50", "other", "sum(reg(w)) over all tensors", 0.05),
    of_model("resnet50", "best", "l2 * sum(np.dot(w, w)) over all tensors", 0.004),
    of_model("resnet50", "naive", "sum(l2 * np.square(w).sum()) over all tensors", 0.02),
    of_model("resnet50", "other", "torch foreach: _foreach_norm", 0.006),
    of_model("resnet50", "other", "torch foreach: _foreach_powsum", 0.005),
    of_model("resnet50", "limit", "np.dot(w, w)", 0.003),
    of_model("small", "gpureg", "gpureg.Penalty(weights, rules)()", 0.02),
    of_model("small", "limit", "np.dot(w, w)", 0.001),
]


def with_models(single: list[Any], peers: dict[str, Any]) -> Any:
    raw = changed("benchmarks", single + MODELS)
    raw["machine_info"]["gpureg"]["versions"] |= peers
    return report.summarise(raw)


def test_the_table_of_whole_models() -> None:
    written = with_models(RAW["benchmarks"], {"torch": "2.13.0", "jax": None})
    tables = report.tables(written, NAME)
    assert list(tables) == ["begin", "models"]
    lines = tables["models"].splitlines()
    assert lines[:4] == [
        "| whole models, float32, L2 | gpureg | single calls | NumPy, best form | NumPy, as written | torch foreach "
        "| memory limit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        # Of two forms of torch's the faster.
        "| resnet50 (161 tensors, 97.5 MiB): value | 10.0 ms | 50.0 ms (5.0x) | 4.00 ms (0.40x) | 20.0 ms (2.0x) "
        "| 5.00 ms (0.50x) | 3.00 ms (0.30x) |",
        "| small (161 tensors, 97.5 MiB): value | 20.0 ms | left out | left out | left out | left out "
        "| 1.00 ms (0.050x) |",
    ]
    rest = " ".join(lines[4:])
    for told in ("at least 3 rounds", "Not installed: JAX.", "PyTorch 2.13.0", f"{NAME}.json"):
        assert told in rest
    assert "Not installed: PyTorch and JAX." in report.model_table(with_models([], {"torch": None}), NAME)


STEPS = [
    of_model("gpt2", role, contender, seconds, "training step: SGD with L2")
    for role, contender, seconds in (
        ("gpureg", "gpureg.torch.attach(optimizer, gpureg.HalvedL2(decay)); SGD(fused=True).step()", 0.02),
        ("other", "torch.optim.SGD(weights, lr, weight_decay=decay, fused=True).step()", 0.01),
        ("other", "torch.optim.SGD(weights, lr, weight_decay=decay, foreach=True).step()", 0.03),
        ("limit", "np.add(g, w, out=g)", 0.005),
    )
]


def test_the_table_of_training_steps() -> None:
    written = report.summarise(changed("benchmarks", STEPS))
    assert list(report.tables(written, NAME)) == ["torch"]
    lines = report.tables(written, NAME)["torch"].splitlines()
    assert lines[:3] == [
        "| training steps of PyTorch, float32 | gpureg, attached | weight_decay, fused | weight_decay, foreach "
        "| memory limit |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| gpt2 (161 tensors, 97.5 MiB): SGD with L2 | 20.0 ms | 10.0 ms (0.50x) | 30.0 ms (1.5x) | 5.00 ms (0.25x) |",
    ]
    both = report.summarise(changed("benchmarks", MODELS + STEPS))
    assert report.tables(both, NAME) == report.tables(with_models([], {}), NAME) | report.tables(written, NAME)


def test_models_leave_the_table_and_the_picture_of_single_tensors_as_they_are(committed: Path, tmp_path: Path) -> None:
    """Not even where a model has as many weights as the table is about."""
    both = with_models(RAW["benchmarks"], {})
    for each in both["entries"]:
        each["elements"] = 2**26
    alone = report.load(committed)
    assert report.table(both, NAME) == report.table(alone, NAME)
    for name, written in {"both.svg": both, "alone.svg": alone}.items():
        report.figure(written, tmp_path / name)
    assert (tmp_path / "both.svg").read_bytes() == (tmp_path / "alone.svg").read_bytes()


def test_the_picture_has_times_and_shares_of_the_limit(committed: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    report.figure(report.load(committed), picture)
    text = picture.read_text()
    assert "<!-- milliseconds -->" in text
    assert "<!-- share of the memory limit -->" in text
    without = json.loads(committed.read_text())
    del without["entries"][0]["to_limit"]
    committed.write_text(json.dumps(without))
    with pytest.raises(report.ReportError, match=r"entries\[0\]\.to_limit is missing"):
        report.load(committed)


def test_what_is_drawn_of_a_mode() -> None:
    drawn: list[dict[str, list[float]]] = [{}, {}]
    panels = [
        SimpleNamespace(plot=lambda sizes, values, label, own=own, **_: own.update({label: [*sizes, *values]}))
        for own in drawn
    ]
    report._draw(panels, report.summarise(RAW)["entries"], report.COLUMNS)
    times, shares = drawn
    assert times["NumPy, best form"] == [2**26, 10.0]
    # The fastest pass is the limit; gpureg takes five times as long, and so reaches a fifth.
    assert shares["gpureg"] == [2**26, 0.2]
    assert shares["memory limit"] == [2**26, 1.0]


def test_entries_of_models_are_loaded_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    written = with_models([], {"torch": "2.13.0"})
    path.write_text(report.dumps(written))
    assert report.load(path) == written
    assert list(report.tables(written, NAME)) == ["models"]
    assert written["entries"][0] | {"model": "resnet50", "tensors": 161} == written["entries"][0]
    assert {"model", "tensors"} <= set(written["legend"])
    path.write_text(path.read_text().replace('"tensors": 161', '"tensors": 0'))
    with pytest.raises(report.ReportError, match=r"entries\[0\]\.tensors is 0"):
        report.load(path)


def test_models_of_one_size_are_not_compared_with_each_other() -> None:
    written = with_models([], {})
    small = [each for each in written["entries"] if each["model"] == "small"]
    assert [each["to_gpureg"] for each in small] == [1.0, 0.05]


@pytest.mark.parametrize("marked", [("begin",), ("models",), ("models", "begin")])
def test_each_table_goes_between_its_markers(tmp_path: Path, marked: tuple[str, ...]) -> None:
    data, readme = tmp_path / f"{NAME}.json", tmp_path / "README.md"
    data.write_text(report.dumps(with_models(RAW["benchmarks"], {})))
    readme.write_text("text\n".join(f"<!-- bench:{kind} {NAME} -->\n<!-- bench:end -->\n" for kind in marked))
    assert report.main([str(data), "--check", str(readme)]) == 1
    assert report.main([str(data), "--write", str(readme)]) == 0
    assert report.main([str(data), "--check", str(readme)]) == 0
    heads = {"begin": "| float32, 2^26 weights", "models": "| whole models, float32"}
    sections = re.findall(r"<!-- bench:(\w+) \S+ -->\n(.*?)<!-- bench:end -->\n", readme.read_text(), re.DOTALL)
    assert [kind for kind, _ in sections] == list(marked)
    assert all(text.startswith(heads[kind]) for kind, text in sections)
    assert readme.read_text().count("text\n") == len(marked) - 1


def test_a_marker_without_its_end_does_not_take_the_next_ones(tmp_path: Path) -> None:
    data, readme = tmp_path / f"{NAME}.json", tmp_path / "README.md"
    data.write_text(report.dumps(with_models(RAW["benchmarks"], {})))
    readme.write_text(f"<!-- bench:models {NAME} -->\n<!-- bench:begin {NAME} -->\n<!-- bench:end -->\n")
    assert report.main([str(data), "--write", str(readme)]) == 2


def test_every_contender_of_a_model_has_a_column() -> None:
    for case in CASES:
        small = dataclasses.replace(case, limit_bytes=SMALL_BYTES)
        entries = [{"role": each.role, "contender": each.name} for each in model_contenders.field(small)]
        assert len({each["contender"] for each in entries}) == len(entries)
        for each in entries:
            assert len(report.columns_of({}, [each], report.MODEL_COLUMNS)) == 1


# Reports of a GPU


PROPERTIES = {"totalGlobalMem": 2**36, "l2CacheSize": 2**25, "multiProcessorCount": 100, "major": 9, "minor": 0}
CUDA = SimpleNamespace(
    getDeviceProperties=lambda _: {"name": b"NVIDIA Example", **PROPERTIES},
    getDeviceCount=lambda: 1,
    driverGetVersion=lambda: 13020,
    runtimeGetVersion=lambda: 13010,
)
INSTALLED = {
    "cupy": SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=CUDA)),
    "gpureg.compiler": SimpleNamespace(find_nvrtc=lambda: SimpleNamespace(version=(13, 0))),
}


def say(*command: str) -> str:
    return {"git": "0123456789abcdef", "nvidia-smi": "580.65.06"}[command[0]]


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the GPU benchmarks find what a machine with a GPU has, as far as they ask without running anything."""
    monkeypatch.setattr(gpu_environment, "import_module", lambda name: INSTALLED.get(name) or import_module(name))
    monkeypatch.setattr(gpu_environment, "metadata", SimpleNamespace(version=lambda _: "2.13.0"))
    monkeypatch.setattr(gpu_environment, "_output", say)
    for kernel in ("_value_kernel", "_gradient_kernel"):
        monkeypatch.setattr(gpu_contenders, kernel, lambda *_: None)
    monkeypatch.setattr(torch_contenders, "torch", SimpleNamespace(compile=lambda function, **_: function))


def checked(folder: Path, *, compiled: bool = True, left_out: str = "nothing") -> Path:
    """Return a report as `make gpu-check` writes it: the n-th contender of a mode takes n tenths of a millisecond."""
    run = gpu.Run(gpu_environment.describe(), folder / "benchmarks.json")
    for mode in MODES:
        case = Case(mode, report.TABLE_DTYPE, report.TABLE_ELEMENTS)
        field = list(gpu_contenders.contenders(case, compiled=compiled))
        times = {each.name: 1e-4 * number for number, each in enumerate(field, 1) if left_out not in each.name}
        rounds = {name: [Round(seconds, 1e-5)] * 7 for name, seconds in times.items()}
        run._measured[case] = [each for each in field if each.name in rounds], Race(rounds, {})
    run.write()
    part = json.loads((folder / "benchmarks.json").read_text()) | {"ok": True, "reason": None, "seconds": 1.0}
    whole: dict[str, Any] = {"schema": part.pop("schema"), "parts": {"benchmarks": part}}
    gpu_check._lift(whole, "benchmarks")
    gpu_check.write(whole, folder / f"{NAME}.json")
    return folder / f"{NAME}.json"


GPU_HEAD = (
    "| float32, 2^26 weights (256 MiB) | gpureg | CuPy best | CuPy as written | cuBLAS | ReductionKernel "
    "| torch eager | torch.compile | memory limit |"
)


@pytest.mark.usefixtures("a_gpu")
def test_the_table_of_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(checked(tmp_path)), "--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        GPU_HEAD,
        "| --- |" + " ---: |" * 8,
        # The contenders' order is gpureg, CuPy in place, cuBLAS, ReductionKernel, CuPy as written, torch, the limits.
        "| value, L1 | 0.100 ms | 0.200 ms (2.0x) | 0.500 ms (5.0x) | 0.300 ms (3.0x) | 0.400 ms (4.0x) "
        "| 0.600 ms (6.0x) | 0.700 ms (7.0x) | 0.800 ms (8.0x) |",
    ]
    # Of two forms of torch's the faster; CuPy's best form of this mode has its value from cuBLAS.
    assert lines[6] == (
        "| value, gradient added | 0.100 ms | 0.200 ms (2.0x) | 0.400 ms (4.0x) | 0.200 ms (2.0x) | 0.300 ms (3.0x) "
        "| 0.500 ms (5.0x) | 0.700 ms (7.0x) | 0.800 ms (8.0x) |"
    )
    assert f"{gpu.LEGEND['columns']}." in lines


@pytest.mark.usefixtures("a_gpu")
def test_torch_is_in_the_column_of_how_it_runs() -> None:
    found = set()
    for mode in MODES:
        for each in gpu_contenders.contenders(Case(mode, "float32", 2**26), compiled=True):
            entry = {"role": each.role, "contender": each.name}
            if each.role == "other":
                labels = list(report.columns_of({"columns": gpu.COLUMNS}, [entry]))
                assert labels == ["torch.compile" if each.name.startswith("torch.compile") else "torch eager"]
                found.update(labels)
    assert found == {"torch eager", "torch.compile"}


@pytest.mark.usefixtures("a_gpu")
def test_what_a_gpu_was_measured_with(tmp_path: Path) -> None:
    written = report.load(checked(tmp_path))
    told = report.conditions(written)
    assert told.startswith("NVIDIA Example, driver 580.65.06, CUDA 13.2; ")
    assert f"; {written['machine']['cpu']}, {written['machine']['cores']} core" in told
    assert "CuPy 14.2.0, PyTorch 2.13.0, CUDA runtime 13.1, NVRTC 13.0, gpureg " in told
    assert told.endswith(f" at 0123456; {written['date']}")
    assert f"\n{told}.\n" in report.table(written, NAME)


@pytest.mark.usefixtures("a_gpu")
def test_what_a_gpu_does_not_have_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_contenders, "torch", None)
    monkeypatch.setattr(gpu_environment, "metadata", SimpleNamespace(version=dict[str, str]().__getitem__))
    monkeypatch.setattr(gpu_environment, "_output", lambda *_: "")
    table = report.table(report.load(checked(tmp_path)), NAME)
    assert "orch" not in table
    assert "None" not in table
    assert "NVIDIA Example, CUDA 13.2; " in table
    assert " at an unknown commit; " in table


@pytest.mark.usefixtures("a_gpu")
def test_a_contender_that_was_left_out_is_so_in_the_table(tmp_path: Path) -> None:
    lines = report.table(report.load(checked(tmp_path, left_out="asum(w) + ")), NAME).splitlines()
    assert lines[0] == GPU_HEAD
    assert lines[4].split(" | ")[4] == "left out"
    assert not any("left out" in line for line in (*lines[:4], *lines[5:]))
    assert "torch.compile" not in report.table(report.load(checked(tmp_path, compiled=False)), NAME).splitlines()[0]


@pytest.mark.usefixtures("a_gpu")
def test_the_picture_of_a_gpu_has_its_columns(tmp_path: Path) -> None:
    drawn = tmp_path / "picture.svg"
    assert report.main([str(checked(tmp_path)), "--figure", str(drawn)]) == 0
    text = drawn.read_text()
    for label in set(gpu.COLUMNS) - {"cuda.compute", "JAX jit"}:  # which are not installed
        assert f"<!-- {label} -->" in text
    assert "<!-- JAX jit -->" not in text
    assert "NVIDIA Example" in text
