"""Which kernels there are, where their sources lie, how NVRTC is reached, and what is kept of what it makes."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from subprocess import PIPE, Popen
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import gpureg
from gpureg import arithmetic, compiler, driver
from gpureg.backends import Mode
from gpureg.compiler import (
    KERNELS,
    OPTIONS,
    TYPES,
    CompilerError,
    Kernel,
    Program,
    penalty_pass,
    proximal_step,
    statistics_pass,
)
from tests.test_import import HEAVY, loaded_by

ROOT = Path(__file__).parent.parent
KERNEL = penalty_pass("float32", "float32", Mode.VALUE, l1=True, l2=True)


class FakeNvrtc:
    """An NVRTC that makes a binary of whatever it is given, and counts how often."""

    version = (13, 4)

    def __init__(self) -> None:
        self.built: list[str] = []

    def build(self, file: str, sources: Mapping[str, str], options: Sequence[str], kernels: Sequence[str]) -> Program:
        self.built += kernels
        cubin = repr((file, sorted(sources), options)).encode() + bytes(range(256)) * 16
        return Program(cubin, tuple(f"symbol of {kernel}" for kernel in kernels), "ptx", "")


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeNvrtc:
    """Compile with a fake, into an empty cache."""
    fake = FakeNvrtc()
    monkeypatch.setattr(compiler, "find_nvrtc", lambda: fake)
    monkeypatch.setenv("GPUREG_CACHE_DIR", str(tmp_path / "cache"))
    return fake


@pytest.fixture
def found_anew() -> Iterator[None]:
    """Look for NVRTC in this test, whatever others found."""
    compiler.find_nvrtc.cache_clear()
    yield
    compiler.find_nvrtc.cache_clear()


def entries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").iterdir())


# --- The kernels and their sources


def test_the_list_of_kernels() -> None:
    expected = [f"proximal_step<{weights}>" for weights in ("Half", "BFloat16", "float", "double")]
    for weights in ("Half", "BFloat16", "float", "double"):
        for terms in ("true, false", "false, true", "true, true"):
            expected.append(f"penalty_pass<{weights}, {weights}, VALUE, {terms}>")
            for gradient in {weights, "float"}:
                for mode in ("VALUE_AND_GRADIENT", "ACCUMULATE"):
                    expected.append(f"penalty_pass<{weights}, {gradient}, {mode}, {terms}>")
        expected += [f"penalty_pass<{weights}, {gradient}, GRADIENT, false, false>" for gradient in {weights, "float"}]
        expected.append(f"statistics_pass<{weights}>")
    assert sorted(KERNELS) == sorted(expected)
    assert len(KERNELS) == 69


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("weights", TYPES)
def test_every_call_has_its_kernel(weights: str, mode: Mode) -> None:
    for gradient in {weights, "float32"}:
        for l1, l2 in ((True, True), (True, False), (False, True), (False, False)):
            kernel = penalty_pass(weights, gradient, mode, l1=l1, l2=l2)
            assert kernel in KERNELS
            if mode is not Mode.GRADIENT:
                *_, sums_abs, sums_squares = re.findall(r"\w+", kernel)
                assert (sums_abs == "true") >= l1
                assert (sums_squares == "true") >= l2
    assert proximal_step(weights) in KERNELS
    assert statistics_pass(weights) in KERNELS


def test_an_unknown_kernel_is_refused(nvrtc: FakeNvrtc) -> None:
    with pytest.raises(ValueError, match="unknown kernel"):
        compiler.compile("penalty_pass<int, int, VALUE, true, true>", "sm_90")
    assert not nvrtc.built


def test_the_sources_define_what_is_named() -> None:
    sources = compiler.sources()
    for kernel in KERNELS:
        template = kernel.partition("<")[0]
        assert f"{template}(" in sources[compiler._FILES[template]]
    modes = re.findall(r"enum Mode \{([^}]*)\}", sources["penalty.cu"])[0]
    assert [mode.strip() for mode in modes.split(",")] == [mode.name for mode in Mode]
    included = {name for text in sources.values() for name in re.findall(r'#include "(.*)"', text)}
    assert included <= sources.keys()


def test_the_sources_are_those_of_the_source_tree() -> None:
    files = {file.name: file.read_text() for file in (ROOT / "kernels").iterdir() if file.suffix in {".cu", ".cuh"}}
    assert compiler.sources() == files


@pytest.mark.parametrize("installed", [True, False])
def test_an_installation_has_its_own_sources(tmp_path: Path, installed: bool) -> None:
    shutil.copytree(ROOT / "gpureg", tmp_path / "gpureg", ignore=shutil.ignore_patterns("__pycache__"))
    if installed:
        shutil.copytree(ROOT / "kernels", tmp_path / "gpureg" / "kernels")
    code = "from gpureg import compiler; print(*sorted(compiler.sources()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    if installed:
        assert result.stdout.split() == sorted(compiler.sources())
    else:
        assert "CompilerError: this installation of gpureg lacks its kernels" in result.stderr.splitlines()[-1]


def test_the_distributions_take_the_kernels_along() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"] == {"kernels": "gpureg/kernels"}
    assert "/kernels" in build["sdist"]["include"]


def test_options_forbid_what_would_change_bits() -> None:
    assert {"--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--std=c++17"} <= set(OPTIONS)
    assert f"-DGPUREG_TILE_BYTES={arithmetic.TILE_BYTES}" in OPTIONS
    assert f"-DGPUREG_ROW_BYTES={arithmetic.ROW_BYTES}" in OPTIONS


def test_nothing_is_imported_before_it_is_needed() -> None:
    assert "gpureg.compiler" not in loaded_by("import gpureg; gpureg.L1()(numpy.ones(3))")
    assert not loaded_by("import gpureg.compiler") & (HEAVY | {"tempfile", "importlib.resources"})


# --- The cache


def test_a_kernel_is_compiled_once(nvrtc: FakeNvrtc, tmp_path: Path) -> None:
    first = compiler.compile(KERNEL, "sm_90")
    assert first.symbol == f"symbol of {KERNEL}"
    assert b"--gpu-architecture=sm_90" in first.cubin
    assert compiler.compile(KERNEL, "sm_90") == first
    assert nvrtc.built == [KERNEL]
    assert len(entries(tmp_path)) == 1


def flipped(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize(
    "spoil",
    [
        flipped,
        lambda data: data.replace(b"symbol of", b"symbol on", 1),
        lambda data: b"0" * 64 + data[64:],
        lambda data: data[:-1],
        lambda data: data[:70],
        lambda data: data[:64],
        lambda data: data[:10],
        lambda _: b"",
        lambda data: data + b"\0",
        lambda _: b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.",
    ],
    ids=["bit", "symbol", "checksum", "byte short", "no binary", "no symbol", "no checksum", "empty", "long", "pickle"],
)  # fmt: skip
def test_a_spoilt_entry_is_made_anew(nvrtc: FakeNvrtc, tmp_path: Path, spoil: Any) -> None:
    first = compiler.compile(KERNEL, "sm_90")
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(spoil(whole))
    assert compiler.compile(KERNEL, "sm_90") == first
    assert nvrtc.built == [KERNEL] * 2
    assert entries(tmp_path) == [entry]
    assert entry.read_bytes() == whole


def test_an_entry_is_of_no_use_in_another_place(nvrtc: FakeNvrtc, tmp_path: Path) -> None:
    compiler.compile(KERNEL, "sm_90")
    (other,) = entries(tmp_path)
    mine = compiler.compile(KERNEL, "sm_80")
    (entry,) = set(entries(tmp_path)) - {other}
    shutil.copy(other, entry)
    assert compiler.compile(KERNEL, "sm_80") == mine
    assert len(nvrtc.built) == 3


def test_all_that_matters_changes_the_entry(nvrtc: FakeNvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled_anew(kernel: str = KERNEL, architecture: str = "sm_90") -> bool:
        before = len(nvrtc.built), len(entries(tmp_path))
        compiler.compile(kernel, architecture)
        compiler.compile(kernel, architecture)
        return (len(nvrtc.built), len(entries(tmp_path))) == (before[0] + 1, before[1] + 1)

    compiler.compile(KERNEL, "sm_90")
    assert compiled_anew(architecture="sm_80")
    assert compiled_anew(kernel=proximal_step("float32"))
    monkeypatch.setattr(compiler, "OPTIONS", (*OPTIONS, "--ftz=true"))
    assert compiled_anew()
    monkeypatch.setattr(nvrtc, "version", (13, 5), raising=False)
    assert compiled_anew()
    monkeypatch.setattr(gpureg, "__version__", "99")
    assert compiled_anew()
    sources = compiler.sources()
    monkeypatch.setattr(compiler, "sources", lambda: {**sources, "tree.cuh": sources["tree.cuh"] + " "})
    assert compiled_anew()
    monkeypatch.setattr(compiler, "sources", lambda: {**sources, "more.cuh": ""})
    assert compiled_anew()
    assert not compiled_anew()


PROCESS = """
import sys
from gpureg import compiler
from tests.test_compiler import KERNEL, FakeNvrtc
fake = FakeNvrtc()
compiler.find_nvrtc = lambda: fake
sys.stdin.read()  # until all have started
for round in range(200):
    kernel = compiler.compile(KERNEL, f"sm_{round}")
    assert f"sm_{round}".encode() in kernel.cubin and len(kernel.cubin) > 4096
print(len(fake.built))
"""


def test_processes_at_once_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUREG_CACHE_DIR", str(tmp_path / "cache"))
    start, hold = os.pipe()
    command = [sys.executable, "-c", PROCESS]
    processes = [Popen(command, cwd=ROOT, text=True, stdin=start, stdout=PIPE, stderr=PIPE) for _ in range(3)]
    os.close(start)
    os.close(hold)
    results = [process.communicate(timeout=60) for process in processes]
    assert [errors for _, errors in results] == [""] * 3
    assert sum(int(built) for built, _ in results) >= 200
    assert len(entries(tmp_path)) == 200


def test_a_reader_sees_no_part_of_an_entry(nvrtc: FakeNvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.compile(KERNEL, "sm_90")
    (entry,) = entries(tmp_path)
    entry.write_bytes(b"spoilt")
    seen = []
    write = Path.write_bytes

    def look_between(path: Path, data: bytes) -> int:
        written = write(path, data[: len(data) // 2])
        seen.append((path.parent, entry.read_bytes()))
        return written + write(path, data)

    monkeypatch.setattr(Path, "write_bytes", look_between)
    assert compiler.compile(KERNEL, "sm_90") == first
    assert seen == [(entry.parent, b"spoilt")]  # in the same folder, for only there a move is at once
    assert compiler.compile(KERNEL, "sm_90") == first
    assert len(nvrtc.built) == 2


@pytest.mark.parametrize(
    "error", [OSError("no space left on device"), KeyboardInterrupt()], ids=["full", "interrupted"]
)
@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_what_cannot_be_kept_leaves_nothing(
    nvrtc: FakeNvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        if isinstance(error, OSError):
            assert compiler.compile(KERNEL, "sm_90").symbol
        else:
            with pytest.raises(KeyboardInterrupt):
                compiler.compile(KERNEL, "sm_90")
    assert entries(tmp_path) == []
    compiler.compile(KERNEL, "sm_90")
    assert nvrtc.built == [KERNEL] * 2


@pytest.mark.parametrize("place", ["a file", "a file/below", "/proc/gpureg", "\udc80"])
def test_a_folder_that_cannot_be_used_means_no_cache(
    nvrtc: FakeNvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setenv("GPUREG_CACHE_DIR", str(tmp_path / place))
    monkeypatch.chdir(tmp_path)
    assert compiler.compile(KERNEL, "sm_90") == compiler.compile(KERNEL, "sm_90")
    assert (tmp_path / "a file").read_text() == "in the way"
    assert len(nvrtc.built) == (1 if place == "\udc80" else 2)


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {"GPUREG_CACHE_DIR": "/chosen", "XDG_CACHE_HOME": "/caches"}, "/chosen"),
        ("win32", {"GPUREG_CACHE_DIR": "/chosen", "LOCALAPPDATA": "/local"}, "/chosen"),
        ("linux", {"XDG_CACHE_HOME": "/caches", "HOME": "/home/me"}, "/caches/gpureg"),
        ("linux", {"HOME": "/home/me", "LOCALAPPDATA": "/local"}, "/home/me/.cache/gpureg"),
        ("linux", {"HOME": "/home/me", "GPUREG_CACHE_DIR": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/gpureg"),
        ("win32", {"LOCALAPPDATA": "/local", "XDG_CACHE_HOME": "/caches"}, "/local/gpureg"),
    ],
)
def test_the_folder_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], folder: str
) -> None:
    for name in ("GPUREG_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert compiler._folder() == Path(folder)


def test_no_home_means_no_cache(nvrtc: FakeNvrtc, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GPUREG_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert compiler.compile(KERNEL, "sm_90") == compiler.compile(KERNEL, "sm_90")
    assert nvrtc.built == [KERNEL] * 2


# --- NVRTC


@pytest.mark.usefixtures("found_anew")
@pytest.mark.parametrize(("found", "extra"), [("no driver", "cuda13"), (driver.Driver((12, 4), ("L4",)), "cuda12")])
def test_no_nvrtc_says_what_to_install(monkeypatch: pytest.MonkeyPatch, found: driver.Driver | str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    monkeypatch.setattr(driver, "find", lambda: found)
    reason = compiler.unusable()
    assert reason is not None
    assert f"pip install 'gpureg[{extra}]'" in reason
    assert "cuda.bindings is not installed; CuPy is not installed" in reason
    assert "\n" not in reason
    with pytest.raises(CompilerError, match="pip install"):
        compiler.compile(KERNEL, "sm_90")


@pytest.mark.usefixtures("found_anew")
def test_an_nvrtc_that_is_too_old_or_broken_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("libnvrtc.so.13 is not there\nand much more")

    cupy = SimpleNamespace(nvrtc=SimpleNamespace(getVersion=lambda: (12, 6)))
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", SimpleNamespace(nvrtcVersion=missing))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cupy)
    reason = compiler.unusable()
    assert reason is not None
    assert "cuda.bindings finds none: libnvrtc.so.13 is not there;" in reason
    assert "CuPy finds 12.6, older than 12.8" in reason
    assert "\n" not in reason


class CupyNvrtc:
    """NVRTC with the calls and the errors of CuPy's bindings, and with the last byte of a binary lost as there."""

    NVRTCError = type("NVRTCError", (RuntimeError,), {})

    def __init__(self, bindings: Any) -> None:
        self.bindings = bindings

    def call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self.bindings, f"nvrtc{function}")(*arguments)
        if status:
            raise self.NVRTCError(f"NVRTC_ERROR ({status})")
        return tuple(values) if len(values) > 1 else values[0] if values else None

    def read(self, what: str, program: Any) -> bytes:
        buffer = bytes(self.call(f"Get{what}Size", program))
        self.call(f"Get{what}", program, buffer)
        return buffer[:-1]

    def getVersion(self) -> Any:  # noqa: N802
        return self.call("Version")

    def createProgram(self, source: str, name: str, headers: list[bytes], names: list[bytes]) -> Any:  # noqa: N802
        return self.call("CreateProgram", source.encode(), name.encode(), len(headers), headers, names)

    def addNameExpression(self, program: Any, name: str) -> None:  # noqa: N802
        self.call("AddNameExpression", program, name.encode())

    def compileProgram(self, program: Any, options: Sequence[str]) -> None:  # noqa: N802
        self.call("CompileProgram", program, len(options), [option.encode() for option in options])

    def getCUBIN(self, program: Any) -> bytes:  # noqa: N802
        return self.read("CUBIN", program)

    def getPTX(self, program: Any) -> bytes:  # noqa: N802
        return self.read("PTX", program)

    def getProgramLog(self, program: Any) -> str:  # noqa: N802
        return self.read("ProgramLog", program).decode()

    def getLoweredName(self, program: Any, name: str) -> str:  # noqa: N802
        return str(self.call("GetLoweredName", program, name.encode()).decode())

    def destroyProgram(self, program: Any) -> None:  # noqa: N802
        self.call("DestroyProgram", program)


@pytest.fixture(params=["cuda.bindings", "CuPy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Reach the real NVRTC in one way or the other, with an empty cache."""
    request.getfixturevalue("found_anew")
    monkeypatch.setenv("GPUREG_CACHE_DIR", str(tmp_path / "cache"))
    if request.param == "CuPy":
        cupy = ModuleType("cupy.cuda")
        cupy.nvrtc = CupyNvrtc(import_module("cuda.bindings.nvrtc"))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cupy.cuda", cupy)
        monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    return str(request.param)


def test_a_kernel_is_compiled_and_kept(way: str, tmp_path: Path) -> None:
    compiled = compiler.compile(KERNEL, "sm_90")
    assert type(compiler.find_nvrtc()).__name__ == {"cuda.bindings": "_CudaBindings", "CuPy": "_CuPy"}[way]
    assert compiler.unusable() is None
    assert compiled.cubin.startswith(b"\x7fELF")
    assert len(compiled.cubin) % 8 == 0
    assert compiled.symbol.encode() in compiled.cubin
    assert re.fullmatch(r"_Z\w+penalty_pass\w+", compiled.symbol)
    assert compiler.compile(KERNEL, "sm_90") == compiled
    (entry,) = entries(tmp_path)
    assert entry.read_bytes().endswith(compiled.cubin)


def test_both_ways_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = import_module("cuda.bindings.nvrtc")
    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nvrtc=CupyNvrtc(nvrtc)))
    arguments = "proximal.cu", compiler.sources(), (*OPTIONS, "--gpu-architecture=sm_90"), [proximal_step("float16")]
    assert compiler._CudaBindings().build(*arguments) == compiler._CuPy().build(*arguments)


@pytest.mark.usefixtures("way")
def test_a_source_that_does_not_compile_shows_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = compiler.sources()
    broken = sources["penalty.cu"].replace("ROWS", "NO_SUCH_NAME;", 1)
    monkeypatch.setattr(compiler, "sources", lambda: {**sources, "penalty.cu": broken})
    with pytest.raises(CompilerError) as refused:
        compiler.compile(KERNEL, "sm_90")
    message = str(refused.value)
    assert re.match(
        rf"NVRTC \d+\.\d+ does not compile {re.escape(KERNEL)} for sm_90: penalty\.cu\(\d+\): error", message
    )
    assert "\n" not in message
    assert "NO_SUCH_NAME" in refused.value.log
    assert refused.value.__notes__ == [refused.value.log]
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("way")
def test_an_unknown_architecture_is_said_in_one_line() -> None:
    with pytest.raises(CompilerError, match=r"does not compile .* for sm_1: .*invalid value for --gpu-architecture"):
        compiler.compile(KERNEL, "sm_1")


def test_other_failures_of_nvrtc_are_named() -> None:
    with pytest.raises(CompilerError, match="nvrtcGetCUBINSize failed: NVRTC_ERROR_INVALID"):
        compiler._CudaBindings()._call("GetCUBINSize", None)


def test_a_kernel_is_a_binary_and_a_symbol() -> None:
    assert Kernel(b"binary", "symbol") == (b"binary", "symbol")
