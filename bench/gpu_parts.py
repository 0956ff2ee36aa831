"""The parts of `bench/gpu_check.py`: what each runs, and how it tells from that whether it passed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent

TESTS = Path("tests/gpu")

FILE_SECONDS = 75.0
"""At most for the tests of one file, lest one that hangs takes the others' time."""

QUICK_TESTS = ("test_graphs.py", "test_sanitized.py", "test_streams.py")

SANITIZED = "test_sanitized.py"
"""The tests that run under the sanitizer."""

TOOLS = ("memcheck", "initcheck", "synccheck", "racecheck")
"""The slowest comes last, and gets the time that the others leave."""

TOO_SMALL = "this GPU"
"""How the reasons of tests begin that are skipped for want of memory or of a second GPU."""

Part = dict[str, Any]


def passed(**details: Any) -> Part:
    """Return a part that passed."""
    return {"ok": True, "reason": None, **details}


def failed(reason: str, **details: Any) -> Part:
    """Return a part that failed, and why."""
    return {"ok": False, "reason": reason, **details}


class Options(NamedTuple):
    """What the command line says to parts."""

    quick: bool
    commit: str | None


# Processes


class Finished(NamedTuple):
    """A process that ended, or was ended: its exit status is then None."""

    status: int | None
    output: str
    errors: str
    seconds: float

    def complaint(self) -> str:
        """Return in a line how it ended."""
        said = [line for line in (self.output + "\n" + self.errors).splitlines() if line.strip()]
        last = f": {said[-1].strip()[:300]}" if said else ""
        if self.status is None:
            return f"it was ended after {self.seconds:.0f} s{last}"
        how = signal.Signals(-self.status).name if self.status < 0 else f"exit status {self.status}"
        return f"{how}{last}"


class Processes:
    """Runs the processes of a part, as long as its time lasts; what they print goes into a log too."""

    def __init__(self, scratch: Path, limit: float, log: Path | None = None) -> None:
        self.scratch = scratch
        self._log = log
        self._end = time.monotonic() + limit

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def run(self, *command: str, limit: float | None = None) -> Finished:
        """Run a program, with all that it starts, until it ends or its time does."""
        seconds = max(self.left() if limit is None else min(limit, self.left()), 0.1)
        start = time.monotonic()
        output, errors = self.scratch / "output", self.scratch / "errors"
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self._environment(),
                start_new_session=True,
            )  # fmt: skip
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
        took = time.monotonic() - start
        said = [file.read_text(encoding="utf-8", errors="replace") for file in (output, errors)]
        finished = Finished(status, said[0], said[1], took)
        self._keep(command, finished)
        return finished

    def _keep(self, command: Sequence[str], finished: Finished) -> None:
        """Add a process to the log."""
        if self._log is not None:
            head = f"$ {' '.join(command)}\n{finished.status} after {finished.seconds:.1f} s"
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{head}\n{finished.output}\n{finished.errors}\n\n")

    def python(self, *arguments: str, limit: float | None = None) -> Finished:
        """Run this Python."""
        return self.run(sys.executable, *arguments, limit=limit)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "GPUREG_CACHE_DIR": str(self.scratch / "kernels"),  # so that kernels are compiled once, here and now
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
        }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started; one that the system does not let go of is left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


# The environment, and the golden checksums


def environment(processes: Processes, options: Options) -> Part:
    """Tell what the machine has; what a check needs and is not there is a failure."""
    finished = processes.python("-m", "bench.gpu_environment", *([options.commit] if options.commit else []))
    facts = _json(finished)
    if facts is None:
        return failed(finished.complaint())
    problems = facts.pop("problems")
    return failed("; ".join(problems), **facts) if problems else passed(**facts)


def check(processes: Processes, options: Options) -> Part:  # noqa: ARG001
    """Run `gpureg check`: the CUDA backend must be there and give the known bits."""
    finished = processes.python("-m", "gpureg", "check", "--json")
    said = _json(finished)
    if said is None:
        return failed(finished.complaint())
    rows = {row["name"]: row for row in said["backends"]}
    if "cuda" not in rows:
        return failed("gpureg has no backend called cuda", backends=list(rows.values()))
    if not rows["cuda"]["usable"]:
        return failed(f"the cuda backend is not usable: {rows['cuda']['reason']}", backends=list(rows.values()))
    wrong = [f"{name}: {case}" for name, row in rows.items() for case in row.get("failed", [])]
    if wrong or finished.status != 0:
        return failed(_several("wrong bits", wrong) if wrong else finished.complaint(), backends=list(rows.values()))
    return passed(backends=list(rows.values()))


def _json(finished: Finished) -> Any:
    """Return the JSON that a program printed, None if it is none."""
    try:
        return json.loads(finished.output)
    except ValueError:
        return None


def _several(what: str, things: Sequence[str]) -> str:
    """Return a line that names the first of many things."""
    more = f"; and {len(things) - 3} more" if len(things) > 3 else ""
    return f"{what}: {'; '.join(things[:3])}{more}"


def grouped(reasons: Mapping[str, str]) -> list[Part]:
    """Return things and their reasons by reason: of many with the same one the first."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [{"reason": reason, "count": len(of), "first": of[:20]} for reason, of in names.items()]


# The tests


class Tests(NamedTuple):
    """How the tests of a file went: names of those that passed; of the others also why they did not."""

    passed: list[str]
    failed: dict[str, str]
    left_out: dict[str, str]


def tests(processes: Processes, options: Options) -> Part:
    """Run the GPU tests, a process for each file."""
    names = [file.name for file in sorted((ROOT / TESTS).glob("test_*.py"))]
    names = [name for name in names if name in QUICK_TESTS] if options.quick else names
    files: list[Part] = []
    wrong: list[str] = []
    left_out: dict[str, str] = {}
    for name in names:
        went, complaint, seconds = _file(processes, name)
        counts = {"passed": len(went.passed), "failed": len(went.failed), "left_out": len(went.left_out)}
        files.append({"file": name, **counts, "seconds": round(seconds, 1), "failures": grouped(went.failed)})
        left_out |= {f"{name}: {test}": reason for test, reason in went.left_out.items()}
        if complaint is not None:
            files[-1]["complaint"] = complaint
            wrong.append(f"{name} ({complaint})")
    details: Part = {"passed": sum(int(file["passed"]) for file in files), "files": files, "tests_left_out": left_out}
    if not details["passed"]:
        wrong.append("no test passed")
    return failed(_several("failed", wrong), **details) if wrong else passed(**details)


def _file(processes: Processes, name: str) -> tuple[Tests, str | None, float]:
    """Run the tests of a file; return how they went, what is wrong with them, and how long it took."""
    results = processes.scratch / "results.xml"
    results.unlink(missing_ok=True)
    if processes.left() <= 0:
        return Tests([], {}, {}), "no time was left for it", 0.0
    finished = processes.python(*pytest_arguments(name), "--verbose", f"--junitxml={results}", limit=FILE_SECONDS)
    try:
        went = read_results(results)
    except (OSError, ElementTree.ParseError):
        running = re.findall(r"^\S+::\S.*", finished.output, flags=re.MULTILINE)
        last = f"; last: {running[-1].split()[0]}" if running else ""
        return Tests([], {}, {}), finished.complaint() + last, finished.seconds
    if went.failed:
        return went, f"{len(went.failed)} of {len(went.failed) + len(went.passed)}", finished.seconds
    if finished.status != 0:
        return went, finished.complaint(), finished.seconds
    return went, None, finished.seconds


def pytest_arguments(name: str) -> list[str]:
    """Return how pytest runs a file of GPU tests: without what only the other tests need."""
    return ["-m", "pytest", str(TESTS / name), f"--confcutdir={TESTS}", "-p", "no:cacheprovider"]


def read_results(file: Path) -> Tests:
    """Return how tests went, from pytest's file; one that was skipped has failed, unless this GPU is too small."""
    went = Tests([], {}, {})
    for case in ElementTree.parse(file).iter("testcase"):
        name = case.get("name", "unnamed")
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            went.passed.append(name)
            continue
        message = problem.get("message") or (problem.text or "").strip() or problem.tag
        reason = message.strip().partition("\n")[0][:300]
        if problem.tag != "skipped":
            went.failed[name] = reason
        elif reason.startswith(TOO_SMALL):
            went.left_out[name] = reason
        else:
            went.failed[name] = f"skipped: {reason}"
    return went


# The sanitizer


class Verdict(NamedTuple):
    """What a tool of the sanitizer found."""

    errors: int
    warnings: int


def sanitizer(processes: Processes, options: Options) -> Part:
    """Run each tool over the tests chosen for it, which must be clean, and over a fault, which it must see."""
    program = find_sanitizer()
    if program is None:
        return failed(
            "no compute-sanitizer: it comes with the CUDA toolkit, or by pip install nvidia-cuda-sanitizer-api"
        )
    tools, wrong = {}, []
    chosen = TOOLS[:1] if options.quick else TOOLS
    for number, tool in enumerate(chosen):
        share = processes.left() / (len(chosen) - number)
        tools[tool] = _tool(processes, program, tool, share)
        if not tools[tool]["ok"]:
            wrong.append(f"{tool} ({tools[tool]['reason']})")
    return failed(_several("failed", wrong), tools=tools) if wrong else passed(tools=tools)


def find_sanitizer() -> str | None:
    """Return the sanitizer on the path, in a CUDA toolkit, or among Python's packages."""
    if (found := shutil.which("compute-sanitizer")) is not None:
        return found
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(toolkit) / "bin" for toolkit in toolkits if toolkit]
    folders += [folder for entry in sys.path if entry for folder in Path(entry).glob("nvidia/*/compute-sanitizer")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(map(str, folders)))


def _tool(processes: Processes, program: str, tool: str, seconds: float) -> Part:
    """Run one tool: the fault first, for a tool that sees nothing has nothing to say."""
    start = time.monotonic()
    fault = processes.run(*_under(program, tool), "-m", "tests.gpu.faults", tool, limit=0.6 * seconds)
    seen = read_verdict(fault.output)
    if seen is None or not seen.errors + seen.warnings:
        how = _trouble(fault.output) or fault.complaint() if seen is None else "it found nothing"
        return failed(f"it does not see a fault that is there: {how}")
    left = seconds - (time.monotonic() - start)
    finished = processes.run(*_under(program, tool), *pytest_arguments(SANITIZED), limit=left)
    return judge(finished) | {"seconds": round(time.monotonic() - start, 1)}


def _under(program: str, tool: str) -> list[str]:
    """Return how this Python is run under a tool. Errors of the driver's functions are CuPy's affair and PyTorch's."""
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [program, "--tool", tool, "--target-processes", "all", "--launch-timeout", "60", *options, sys.executable]


def judge(finished: Finished) -> Part:
    """Return whether a tool found nothing, in tests that did run."""
    found, count = read_verdict(finished.output), read_passed(finished.output)
    if found is None:
        return failed(_trouble(finished.output) or f"no summary of the tool: {finished.complaint()}", passed=count)
    details = {"errors": found.errors, "warnings": found.warnings, "passed": count}
    if found.errors or found.warnings:
        what = f"{found.errors} errors and {found.warnings} warnings"
        return failed(f"{what}, the first: {_first_report(finished.output)}", **details)
    if not count:
        return failed(f"the tests did not all pass, so the kernels may not have run: {finished.complaint()}", **details)
    if finished.status != 0:
        return failed(finished.complaint(), **details)
    return passed(**details)


def read_verdict(output: str) -> Verdict | None:
    """Return what the tool's last lines say, None if they are not there."""
    errors = re.findall(r"^=+ ERROR SUMMARY: (\d+) errors?", output, flags=re.MULTILINE)
    hazards = re.findall(
        r"^=+ RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)", output, flags=re.MULTILINE
    )
    if not errors and not hazards:
        return None
    return Verdict(sum(map(int, errors)) + sum(int(e) for e, _ in hazards), sum(int(w) for _, w in hazards))


def read_passed(output: str) -> int:
    """Return how many tests passed by pytest's closing line; 0 unless all did."""
    closing = re.findall(r"^=* ?(\d+) passed(.*) in [\d.:]+s", output, flags=re.MULTILINE)
    if len(closing) != 1 or re.search(r"failed|error|skipped|deselected|xfailed|xpassed", closing[0][1]):
        return 0
    return int(closing[0][0])


_OF_OTHERS = re.compile(r"COMPUTE-SANITIZER|.*SUMMARY|\d+ |test session|short test|FAILURES|ERRORS|warnings summary")
"""What begins lines of `===` that are no report of the tool: its own frame, and pytest's headings."""


def _reports(output: str) -> Iterator[str]:
    for line in output.splitlines():
        said = re.fullmatch(r"=+ (\S.*)", line)
        if said and not _OF_OTHERS.match(said[1]):
            yield said[1].strip(" =")


def _first_report(output: str) -> str:
    return next(_reports(output), "not shown")[:300]


def _trouble(output: str) -> str | None:
    """Return why the tool itself did not come to its summary, if it says so."""
    said = dict.fromkeys(line for line in _reports(output) if line.startswith(("Error", "Fatal", "Internal")))
    return "; ".join(said)[:300] or None


# The benchmarks


def benchmarks(processes: Processes, options: Options) -> Part:
    """Run the benchmarks in the time that is left; what they measured before they ended is kept."""
    results = processes.scratch / "benchmarks.json"
    seconds = max(processes.left() - 25, 5)  # to start, and to end the comparison that is under way
    arguments = ["-m", "bench.gpu", "--output", str(results), "--seconds", f"{seconds:.0f}"]
    arguments += ["--quick"] if options.quick else []
    arguments += ["--commit", options.commit] if options.commit else []
    finished = processes.python(*arguments)
    try:
        report = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return failed(finished.complaint())
    missing = report.pop("missing")
    report.pop("schema")
    details = {**report, "comparisons_missing": grouped(missing)}
    if finished.status is None or finished.status < 0 or not report["entries"]:
        return failed(finished.complaint(), **details)
    if missing:
        return failed(_several("missing", [f"{case} ({reason})" for case, reason in missing.items()]), **details)
    return passed(**details) if finished.status == 0 else failed(finished.complaint(), **details)


PARTS: dict[str, Callable[[Processes, Options], Part]] = {
    "environment": environment,
    "check": check,
    "tests": tests,
    "sanitizer": sanitizer,
    "benchmarks": benchmarks,
}
"""All parts, in their order."""
