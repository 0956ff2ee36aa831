"""`make gpu-check` without a GPU: a report is always written, and what failed, hung or did not run is no success."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import gpu, gpu_check, gpu_contenders, gpu_environment, gpu_inputs, gpu_parts, report
from bench.cases import MODES, Case, Mode
from bench.gpu_checks import Contender
from bench.gpu_parts import Finished, Options, Processes, failed, passed
from bench.gpu_race import Race, Round

ROOT = Path(__file__).parent.parent
OPTIONS = Options(quick=False, commit=None)


def finished(output: str, status: int | None = 0, errors: str = "") -> Finished:
    return Finished(status, output, errors, 1.0)


class Said:
    """Processes that have already said what they had to say."""

    def __init__(self, *answers: Finished, scratch: Path = ROOT) -> None:
        self.answers = list(answers)
        self.commands: list[tuple[str, ...]] = []
        self.scratch = scratch

    def left(self) -> float:
        return 100.0

    def run(self, *command: str, limit: float | None = None) -> Finished:  # noqa: ARG002
        self.commands.append(command)
        return self.answers.pop(0)

    python = run


def ask(part: Callable[..., Any], *answers: Finished, **options: Any) -> Any:
    return part(Said(*answers), OPTIONS._replace(**options))


# The command


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put parts of one's own in place of those there are."""
    chosen: dict[str, Any] = {}
    monkeypatch.setattr(gpu_check, "PARTS", chosen)
    monkeypatch.setattr(gpu_check, "LIMITS", dict.fromkeys(["a", "b", "c"], 10.0))
    return chosen


def main(tmp_path: Path, *arguments: str) -> tuple[int, Any]:
    output = tmp_path / "deep" / "report.json"
    status = gpu_check.main(["--output", str(output), *arguments])
    return status, json.loads(output.read_text())


def test_all_parts_pass(tmp_path: Path, parts: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    parts |= {"a": lambda *_: passed(found=1), "b": lambda *_: passed()}
    status, written = main(tmp_path)
    assert (status, written["ok"]) == (0, True)
    assert written["parts"]["a"] == {"ok": True, "reason": None, "found": 1, "seconds": 0.0}
    assert written["schema"] == report.SCHEMA
    assert capsys.readouterr().out.splitlines()[-1].startswith("all parts passed")


def test_a_part_that_fails_or_breaks_fails_the_whole_and_no_other(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts |= {"a": lambda *_: failed("why"), "b": lambda *_: 1 / 0, "c": lambda *_: passed()}
    status, written = main(tmp_path)
    assert (status, written["ok"]) == (1, False)
    assert [part["ok"] for part in written["parts"].values()] == [False, False, True]
    assert written["parts"]["a"]["reason"] == "why"
    assert written["parts"]["b"]["reason"] == "ZeroDivisionError: division by zero"


def test_what_an_interruption_leaves_out_is_in_the_report(tmp_path: Path, parts: dict[str, Any]) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    parts |= {"a": lambda *_: passed(), "b": interrupted, "c": lambda *_: passed()}
    status, written = main(tmp_path)
    assert (status, written["ok"]) == (1, False)
    assert [part["reason"] for part in written["parts"].values()] == [None, "it was interrupted", "it did not run"]


def test_a_terminated_check_ends_what_it_runs_and_leaves_its_report(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    command = [sys.executable, "-m", "bench.gpu_check", "--output", str(output), "--only", "tests"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not output.exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.terminate()
    said, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (1, "")
    assert "NOT ALL PARTS PASSED" in said
    assert json.loads(output.read_text())["parts"]["tests"]["reason"] == "it was interrupted"


def test_a_part_for_which_no_time_is_left_has_failed(
    tmp_path: Path, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts |= {"a": lambda *_: passed()}
    monkeypatch.setattr(gpu_check, "SECONDS", -1.0)
    assert main(tmp_path)[1]["parts"]["a"]["reason"] == "no time was left for it"


def test_only_some_parts(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts |= {"a": lambda *_: failed("why"), "b": lambda *_: passed(), "c": lambda *_: passed()}
    status, written = main(tmp_path, "--only", "c", "--only", "b", "--quick")
    assert (status, list(written["parts"]), written["quick"]) == (0, ["b", "c"], True)


def test_arguments() -> None:
    given = gpu_check.parser().parse_args([])
    assert (given.output, given.only, given.quick) == (Path("build/gpu-check.json"), None, False)
    with pytest.raises(SystemExit):
        gpu_check.parser().parse_args(["--only", "everything"])


def test_parts_and_their_time() -> None:
    assert list(gpu_parts.PARTS) == ["environment", "check", "tests", "sanitizer", "benchmarks"]
    assert set(gpu_check.LIMITS) == set(gpu_parts.PARTS)
    assert gpu_check.SECONDS < 9 * 60
    others = sum(seconds for name, seconds in gpu_check.LIMITS.items() if name != "benchmarks")
    assert gpu_check.SECONDS - others >= 90


def test_what_belongs_to_the_whole_report_is_there_once(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts |= {
        "a": lambda *_: failed("no GPU", date="2026-01-02", machine={"gpu": None}),
        "b": lambda *_: passed(date="2026-01-03", machine={"gpu": "X"}, entries=[{"n": 1}, {"n": 2}], columns={}),
    }
    written = main(tmp_path)[1]
    assert (written["date"], written["machine"], written["columns"]) == ("2026-01-02", {"gpu": None}, {})
    assert set(written["parts"]["b"]) == {"ok", "reason", "seconds"}
    assert written["entries"] == [{"n": 1}, {"n": 2}]
    lines = (tmp_path / "deep" / "report.json").read_text().splitlines()
    assert '    {"n": 1},' in lines


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("/home/someone/gpureg/kernels/tree.cuh: wrong", "tree.cuh: wrong"),
        ("at (/opt/x/y.py) and ~/z/w.py", "at (y.py) and w.py"),
        ("12 elements/s, 1/2, a / b", "12 elements/s, 1/2, a / b"),
        (["/a/b", {"k": "/c/d"}], ["b", {"k": "d"}]),
        (3, 3),
    ],
)
def test_no_path_of_the_machine_is_published(given: Any, published: Any) -> None:
    assert gpu_check.public(given) == published


@pytest.mark.parametrize("module", [[str(ROOT / "bench" / "gpu_check.py")], ["-m", "bench.gpu_check"]])
def test_without_a_gpu_the_report_says_so(tmp_path: Path, module: list[str]) -> None:
    output = tmp_path / "report.json"
    command = [sys.executable, *module, "--output", str(output), "--only", "environment", "--commit", "0123abc-dirty"]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    written = json.loads(output.read_text())
    assert written["parts"]["environment"]["reason"]
    assert (written["commit"], written["uncommitted_changes"]) == ("0123abc", True)
    assert written["versions"]["numpy"] == np.__version__
    assert written["machine"]["gpu"] is None
    assert "bench.gpu_environment" in output.with_suffix(".log").read_text()


# Processes


def test_a_process_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    program = """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
        time.sleep(60)
    """
    start = time.monotonic()
    ended = Processes(tmp_path, 60).python("-c", textwrap.dedent(program), limit=1.5)
    assert time.monotonic() - start < 20
    assert ended.status is None
    assert "it was ended after" in ended.complaint()
    child = Path("/proc") / ended.output.strip()
    for _ in range(100):
        if not child.exists() or "State:\tZ" in (child / "status").read_text():
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the child is still there")


def test_how_a_process_ended(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 60, tmp_path / "log")
    assert processes.python("-c", "print('out')") == finished("out\n")._replace(
        seconds=pytest.approx(0, abs=60)  # type: ignore[arg-type] # any time
    )
    assert processes.python("-c", "import sys; sys.exit('why')").complaint() == "exit status 1: why"
    assert processes.python("-c", "import os; os.abort()").complaint().startswith(signal.SIGABRT.name)
    log = (tmp_path / "log").read_text()
    assert "print('out')" in log
    assert "why" in log


def test_kernels_are_compiled_for_this_check_alone(tmp_path: Path) -> None:
    said = Processes(tmp_path, 60).python("-c", "import os; print(os.environ['GPUREG_CACHE_DIR'])")
    assert Path(said.output.strip()).parent == tmp_path


# Environment, and golden checksums


def test_the_environment() -> None:
    facts = {"date": "2026-01-02", "machine": {}, "problems": []}
    assert ask(gpu_parts.environment, finished(json.dumps(facts))) == passed(date="2026-01-02", machine={})
    lacking = ask(gpu_parts.environment, finished(json.dumps(facts | {"problems": ["no a", "no b"]})))
    assert (lacking["ok"], lacking["reason"], lacking["date"]) == (False, "no a; no b", "2026-01-02")
    assert ask(gpu_parts.environment, finished("", 1, "it broke"))["reason"] == "exit status 1: it broke"


@pytest.mark.parametrize(
    ("said", "revision"),
    [
        ("0123456789abcdef", ("0123456789abcdef", False)),
        ("0123456-dirty", ("0123456", True)),
        ("", ("unversioned", True)),
        ("v1-2-g0123", ("unversioned", True)),
    ],
)
def test_the_commit(said: str, revision: tuple[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_environment, "_output", lambda *_: said)
    assert gpu_environment.revision() == revision


CUDA = {"name": "cuda", "usable": True, "reason": None, "failed": []}
NUMPY = {"name": "numpy", "usable": True, "reason": None, "failed": []}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (finished(json.dumps({"backends": [NUMPY, CUDA]})), None),
        (finished(json.dumps({"backends": [NUMPY]})), "gpureg has no backend called cuda"),
        (
            finished(json.dumps({"backends": [NUMPY, CUDA | {"usable": False, "reason": "no driver"}]})),
            "the cuda backend is not usable: no driver",
        ),
        (
            finished(json.dumps({"backends": [NUMPY, CUDA | {"failed": ["x", "y"]}]}), 1),
            "wrong bits: cuda: x; cuda: y",
        ),
        (finished(json.dumps({"backends": [NUMPY, CUDA]}) + "\n", 1, "at exit"), "exit status 1: at exit"),
        (finished("Segmentation fault", -11), "SIGSEGV: Segmentation fault"),
        (finished("", None), "it was ended after 1 s"),
    ],
)
def test_gpureg_check(answer: Finished, reason: str | None) -> None:
    assert ask(gpu_parts.check, answer)["reason"] == reason


# Tests


SOURCE = """
import pytest
def test_passes(): pass
def test_fails(): assert 1 == 2, "not /home/me/x.py"
def test_breaks(broken): pass
@pytest.fixture
def broken(): raise ValueError("in a fixture")
@pytest.mark.skip(reason="no driver")
def test_skipped(): pass
@pytest.mark.skip(reason="this GPU is the only one")
def test_too_small(): pass
@pytest.mark.xfail
def test_expected_to_fail(): assert False
"""


def test_results_of_tests(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SOURCE)
    results = tmp_path / "results.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={results}", "test_it.py"]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    went = gpu_parts.read_results(results)
    assert went.passed == ["test_passes"]
    assert went.left_out == {"test_too_small": "this GPU is the only one"}
    assert set(went.failed) == {"test_fails", "test_breaks", "test_skipped", "test_expected_to_fail"}
    assert went.failed["test_skipped"] == "skipped: no driver"
    assert went.failed["test_fails"].startswith("AssertionError: not")


RESULTS = '<testsuite><testcase name="a"/><testcase name="b">{}</testcase></testsuite>'


@pytest.mark.parametrize(
    ("results", "answer", "reason"),
    [
        (RESULTS.format(""), finished(""), None),
        (RESULTS.format('<failure message="wrong"/>'), finished("", 1), "failed: test_x.py (1 of 2)"),
        (RESULTS.format('<skipped message="no driver"/>'), finished(""), "failed: test_x.py (1 of 2)"),
        (RESULTS.format('<skipped message="this GPU is small"/>'), finished(""), None),
        (RESULTS.format(""), finished("crash at exit", -11), "failed: test_x.py (SIGSEGV: crash at exit)"),
        ("<testsuite/>", finished("", 5), "failed: test_x.py (exit status 5); no test passed"),
        (
            None,
            finished("tests/gpu/test_x.py::test_a PASSED\ntests/gpu/test_x.py::test_b \n", None),
            "failed: test_x.py (it was ended after 1 s: tests/gpu/test_x.py::test_b; "
            "last: tests/gpu/test_x.py::test_b); no test passed",
        ),
    ],
)
def test_a_file_of_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: str | None, answer: Finished, reason: str | None
) -> None:
    monkeypatch.setattr(gpu_parts, "ROOT", tmp_path)
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests" / "gpu" / "test_x.py").touch()

    class Writing(Said):
        def python(self, *command: str, limit: float | None = None) -> Finished:
            if results is not None:
                (self.scratch / "results.xml").write_text(results)
            return self.run(*command, limit=limit)

    said = Writing(answer, scratch=tmp_path)
    part: Any = gpu_parts.tests(said, OPTIONS)  # type: ignore[arg-type]
    assert part["reason"] == reason
    assert "--confcutdir=tests/gpu" in said.commands[0]


def test_gpu_tests_need_no_plugin_and_nothing_of_the_other_tests() -> None:
    """Where nothing can be fetched there may be no hypothesis, which the settings of the other tests import."""
    program = """
        import sys
        sys.modules["hypothesis"] = None
        import pytest
        sys.exit(pytest.main(sys.argv[1:]))
    """
    arguments = gpu_parts.pytest_arguments("")[2:]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments, "-q"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].split()[1] == "skipped"


# The sanitizer


CLEAN = "========= COMPUTE-SANITIZER\n{}9 passed in 12.3s\n========= ERROR SUMMARY: 0 errors\n"
RACES = "========= RACECHECK SUMMARY: {} displayed ({}, {})\n"
FOUND = "=== COMPUTE-SANITIZER\n=== Invalid __global__ write of size 4 bytes\n=== ERROR SUMMARY: 1 error\n"


@pytest.mark.parametrize(
    ("output", "status", "reason"),
    [
        (CLEAN.format(""), 0, None),
        ("9 passed in 12.3s\n" + RACES.format("0 hazards", "0 errors", "0 warnings"), 0, None),
        ("==== 9 passed, 2 warnings in 61.20s (0:01:01) ====\n========= ERROR SUMMARY: 0 errors", 0, None),
        (FOUND + "9 passed in 1s", 0, "1 errors and 0 warnings, the first: Invalid __global__ write of size 4 bytes"),
        (
            "========= Warning: Race reported\n9 passed in 1s\n" + RACES.format("1 hazard", "0 errors", "1 warning"),
            0,
            "0 errors and 1 warnings, the first: Warning: Race reported",
        ),
        ("9 passed in 1.0s", 0, "no summary of the tool: exit status 0: 9 passed in 1.0s"),
        ("========= Error: Device not supported\n9 passed in 1s", 1, "Error: Device not supported"),
        ("========= ERROR SUMMARY: 0 errors", 0, "the tests did not all pass, so the kernels may not have run"),
        ("9 skipped in 1s\n========= ERROR SUMMARY: 0 errors", 0, "the tests did not all pass"),
        ("1 failed, 8 passed in 1s\n========= ERROR SUMMARY: 0 errors", 1, "the tests did not all pass"),
        ("8 passed, 1 skipped in 1s\n========= ERROR SUMMARY: 0 errors", 0, "the tests did not all pass"),
        (CLEAN.format(""), 7, "exit status 7"),
        ("", None, "no summary of the tool: it was ended after 1 s"),
    ],
)
def test_what_a_tool_says(output: str, status: int | None, reason: str | None) -> None:
    part = gpu_parts.judge(finished(output, status))
    assert part["ok"] is (reason is None)
    assert reason is None or part["reason"].startswith(reason)


def test_every_tool_first_shows_that_it_sees_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "find_sanitizer", lambda: "sanitizer")
    racy = RACES.format("1 hazard", "1 error", "0 warnings")
    answers = [each for tool in gpu_parts.TOOLS for each in (racy if tool == "racecheck" else FOUND, CLEAN.format(""))]
    said = Said(*map(finished, answers))
    part: Any = gpu_parts.sanitizer(said, OPTIONS)  # type: ignore[arg-type]
    assert part["ok"], part
    assert set(part["tools"]) == {"memcheck", "racecheck", "synccheck", "initcheck"}
    assert [command[2] for command in said.commands] == [tool for tool in gpu_parts.TOOLS for _ in range(2)]
    blind = ask(gpu_parts.sanitizer, *[finished(CLEAN.format(""))] * 4)
    assert blind["tools"]["memcheck"]["reason"] == "it does not see a fault that is there: it found nothing"
    unsupported = ask(gpu_parts.sanitizer, *[finished("========= Error: Device not supported\n", 255)] * 4)
    assert "does not see a fault that is there: Error: Device not supported" in unsupported["reason"]
    assert ask(gpu_parts.sanitizer, finished(FOUND), finished(CLEAN.format("")), quick=True)["ok"]


def test_a_missing_sanitizer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert ask(gpu_parts.sanitizer)["reason"].startswith("no compute-sanitizer")


def test_the_sanitizer_is_found_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia" / "cu13" / "compute-sanitizer" / "compute-sanitizer"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    found = gpu_parts.find_sanitizer()
    assert found is not None
    assert Path(found).name == "compute-sanitizer"


def test_there_is_a_fault_for_every_tool() -> None:
    kernels = (ROOT / "tests" / "gpu" / "kernels.cu").read_text()
    assert all(f"void {tool}(" in kernels for tool in gpu_parts.TOOLS)


# The benchmarks


@pytest.mark.parametrize(
    ("kept", "answer", "reason"),
    [
        ({"entries": [{"n": 1}], "missing": {}}, finished(""), None),
        ({"entries": [{"n": 1}], "missing": {"x": "late"}}, finished("", 1), "missing: x (late)"),
        ({"entries": [{"n": 1}], "missing": {}}, finished("", None), "it was ended after 1 s"),
        ({"entries": [], "missing": {}}, finished("", 0), "exit status 0"),
        (None, finished("", 1, "no CuPy"), "exit status 1: no CuPy"),
    ],
)
def test_benchmarks(tmp_path: Path, kept: Any, answer: Finished, reason: str | None) -> None:
    if kept is not None:
        (tmp_path / "benchmarks.json").write_text(json.dumps({"schema": 1, **kept}))
    said = Said(answer, scratch=tmp_path)
    part: Any = gpu_parts.benchmarks(said, Options(quick=True, commit="0123abc"))  # type: ignore[arg-type]
    assert part["reason"] == reason
    assert part.get("entries", []) == (kept or {}).get("entries", [])
    assert said.commands[0][-3:] == ("--quick", "--commit", "0123abc")


def test_the_plan_begins_with_the_table_and_ends_with_what_takes_long() -> None:
    planned = gpu.plan(quick=False)
    first = [each.case for each in planned[: len(MODES)]]
    assert {(case.dtype, case.elements) for case in first} == {(report.TABLE_DTYPE, report.TABLE_ELEMENTS)}
    assert not any(each.compiled for each in planned[: -len(gpu.COMPILED) * len(MODES)])
    assert {case.elements for case, _ in planned} >= {2**10, 2**30}
    assert {case.dtype for case, _ in planned} == {"float16", "bfloat16", "float32", "float64"}
    assert len(gpu.plan(quick=True)) < len(planned) / 5


class NumpyAsCupy(SimpleNamespace):
    """As much of CuPy as NumPy can stand in for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = NumpyAsCupy(ReductionKernel=None, ElementwiseKernel=None)
    for module in (gpu_inputs, gpu_contenders):
        monkeypatch.setattr(module, "cp", lambda: cupy)
    monkeypatch.setattr("bench.gpu_checks.cp", lambda: cupy)
    monkeypatch.setattr(gpu_inputs, "BLOCK", 2**10)
    monkeypatch.setattr(gpu_inputs, "set_count", lambda _: 2)
    monkeypatch.setattr(gpu_inputs, "forget", lambda: None)


def run_on_numpy(case: Case) -> list[Contender]:
    """Return the contenders of a case that NumPy can run."""
    chosen = ("gpureg", "naive", "limit")
    return [
        each
        for each in [*gpu_contenders.contenders(case, compiled=False)]
        if (each.role in chosen or "out=" in each.name)
        and not any(word in each.name for word in ("copy", "Kernel", "asum"))
    ]


def one_percent_more(run: Callable[[Any], Any], arrays: Any) -> Any:
    return run(arrays) * 1.01


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_contenders_are_right_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch, dtype: str, mode: Mode) -> None:
    monkeypatch.setattr(gpu_contenders, "_value_kernel", lambda *_: None)
    monkeypatch.setattr(gpu_contenders, "_gradient_kernel", lambda *_: None)
    case = Case(mode, dtype, 2**13)
    given = gpu_inputs.tensors.__wrapped__(dtype, case.elements)
    field = run_on_numpy(case)
    assert {"gpureg", "naive"} <= {each.role for each in field}
    for each in field:
        assert each.wrong(each.run, case, given) is None, each.name
        if each.role != "limit":
            said = each.wrong(partial(one_percent_more, each.run), case, given)
            assert said is not None
            assert said.startswith("the penalty is")
        if mode.write != "nothing":
            value = gpu_contenders._gpureg(Mode("value", mode.l1, mode.l2))
            said = each.wrong(value.run, case, given)
            assert said is not None


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_sums_of_the_weights_are_exact(dtype: str) -> None:
    given = gpu_inputs.tensors.__wrapped__(dtype, 2**13)
    assert len(given.sets) == 2
    w = given.sets[1].weights.astype(np.float64)
    assert w.size == 2**13
    assert abs(np.abs(w).sum() - given.sum_abs) < 1e-12 * given.sum_abs
    assert abs((w * w).sum() - given.sum_squares) < 1e-12 * given.sum_squares
    assert len(np.unique(w.reshape(8, -1), axis=0)) == 8  # each copy is another
    assert not np.shares_memory(given.sets[0].weights, given.sets[1].weights)


def test_a_report_of_the_benchmarks_is_drawn_as_any_other(tmp_path: Path) -> None:
    """The table is about 2**26 float32 weights, of which this has a race of each mode."""
    facts = gpu_environment.describe("0123456789abcdef")
    facts["versions"]["blas"] = "any"
    run = gpu.Run(facts, tmp_path / "benchmarks.json")
    for mode in MODES:
        case = Case(mode, "float32", 2**26)
        field = [Contender(f"{role}(w)", role, len, lambda *_: None) for role in ("gpureg", "best", "naive", "limit")]
        rounds = {each.name: [Round(1e-4 * (i + 1), 1e-5)] * 7 for i, each in enumerate(field)}
        run._measured[case] = field, Race(rounds, {})
    run.write()
    made = json.loads((tmp_path / "benchmarks.json").read_text())
    assert made["entries"][0]["host_seconds"] == 1e-5
    output = tmp_path / "report.json"
    part = gpu_parts.benchmarks(Said(finished(""), scratch=tmp_path), OPTIONS)  # type: ignore[arg-type]
    whole: dict[str, Any] = {"schema": 1, "parts": {"benchmarks": {**part, "seconds": 1.0}}}
    gpu_check._lift(whole, "benchmarks")
    gpu_check.write(whole, output)
    table = report.table(report.load(output), "name")
    assert "| value, L1 | 0.100 ms | 0.200 ms (2.0x) |" in table
    assert json.loads(output.read_text())["ok"]


def test_sets_are_enough_to_time_and_few_enough_to_fit() -> None:
    assert [gpu_inputs.set_count(size) for size in (2**12, 2**26, 2**28, 2**33)] == [16, 16, 4, 1]
    assert gpu_inputs.needed_bytes("float64", 2**30) < 80 * 2**30
