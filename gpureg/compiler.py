"""The CUDA kernels as binaries for one GPU architecture: compiled by NVRTC, with or without a GPU, and kept on disk.

Each kernel is compiled alone when it is first needed, for the device's own architecture, without flush-to-zero and
without contraction, so that it gives the bits of `docs/arithmetic.md`. NVRTC is reached through NVIDIA's
`cuda.bindings` or else through CuPy.

A binary is kept in `$GPUREG_CACHE_DIR`, else in the user's cache folder, under a name that depends on all that it was
made from. An entry that is not whole is made anew, and a folder that cannot be used only means that nothing is kept.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gpureg
from gpureg import arithmetic, driver
from gpureg.backends import Mode

TYPES = {"float16": "Half", "bfloat16": "BFloat16", "float32": "float", "float64": "double"}
"""The C++ type of elements, by the name of their NumPy dtype."""


def penalty_pass(weights: str, gradient: str, mode: Mode, *, l1: bool, l2: bool) -> str:
    """Return the kernel that passes over weights and gradient of these dtypes, with the sums that L1 and L2 need.

    The dtype of a gradient that is not touched does not matter, nor do the terms where no value is asked for. With
    neither term a value is zero, but still needs a kernel that says so.

    >>> penalty_pass("float16", "float32", Mode.ACCUMULATE, l1=True, l2=False)
    'penalty_pass<Half, float, ACCUMULATE, true, false>'
    """
    if mode is Mode.VALUE:
        gradient = weights
    with_abs, with_squares = (l1 or not l2, l2) if mode is not Mode.GRADIENT else (False, False)
    terms = f"{str(with_abs).lower()}, {str(with_squares).lower()}"
    return f"penalty_pass<{TYPES[weights]}, {TYPES[gradient]}, {mode.name}, {terms}>"


def proximal_step(weights: str) -> str:
    """Return the kernel that takes the proximal step on weights of this dtype.

    >>> proximal_step("bfloat16")
    'proximal_step<BFloat16>'
    """
    return f"proximal_step<{TYPES[weights]}>"


def statistics_pass(weights: str) -> str:
    """Return the kernel that makes the statistics of weights of this dtype.

    >>> statistics_pass("float16")
    'statistics_pass<Half>'
    """
    return f"statistics_pass<{TYPES[weights]}>"


KERNELS = (
    *dict.fromkeys(
        penalty_pass(weights, gradient, mode, l1=l1, l2=l2)
        for weights in TYPES
        for gradient in (weights, "float32")
        for mode in Mode
        for l1, l2 in ((True, False), (False, True), (True, True))
    ),
    *map(proximal_step, TYPES),
    *map(statistics_pass, TYPES),
)
"""All kernels there are: the instantiations of the templates in `kernels/`, as C++ names them."""

_FILES = {"penalty_pass": "penalty.cu", "proximal_step": "proximal.cu", "statistics_pass": "statistics.cu"}

OPTIONS = (
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    f"-DGPUREG_TILE_BYTES={arithmetic.TILE_BYTES}",
    f"-DGPUREG_ROW_BYTES={arithmetic.ROW_BYTES}",
)
"""What NVRTC is told, but for the architecture."""

_OLDEST = (12, 8)  # the first NVRTC with the atomics of kernels/tree.cuh


class CompilerError(RuntimeError):
    """A kernel that cannot be compiled here, and why; `log` is what NVRTC said, if it came to that."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
        if log:
            self.add_note(log)


class Kernel(NamedTuple):
    """A kernel for one architecture: the binary that holds it, and the symbol it has there."""

    cubin: bytes
    symbol: str


class Program(NamedTuple):
    """What NVRTC makes of a source: a binary, the symbols of the kernels asked for, its PTX and its warnings."""

    cubin: bytes
    symbols: tuple[str, ...]
    ptx: str
    log: str


class Nvrtc(Protocol):
    """NVIDIA's runtime compiler, in whichever way it is reached."""

    @property
    def version(self) -> tuple[int, int]:
        """Return the version of CUDA it comes from."""

    def build(self, file: str, sources: Mapping[str, str], options: Sequence[str], kernels: Sequence[str]) -> Program:
        """Compile kernels of `file`, which may include the other sources; raise CompilerError with the log."""


def compile(kernel: str, architecture: str) -> Kernel:  # noqa: A001 - as in `re`: always compiler.compile
    """Return one of `KERNELS` for an architecture, "sm_90" say, from the cache or newly compiled.

    Raises `CompilerError` where there is no NVRTC, or none that knows the architecture.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}")
    texts, nvrtc = sources(), find_nvrtc()
    options = (*OPTIONS, f"--gpu-architecture={architecture}")
    entry = _Entry.of(sorted(texts.items()), options, kernel, nvrtc.version, gpureg.__version__)
    found = entry.read()
    if found is None:
        try:
            program = nvrtc.build(_FILES[kernel.partition("<")[0]], texts, options, [kernel])
        except CompilerError as error:
            version = "NVRTC {}.{}".format(*nvrtc.version)
            message = f"{version} does not compile {kernel} for {architecture}: {error}"
            raise CompilerError(message, error.log) from None
        found = Kernel(program.cubin, program.symbols[0])
        entry.write(found)
    return found


def unusable() -> str | None:
    """Return why kernels cannot be compiled here, in one line that says what to install; None if they can."""
    try:
        find_nvrtc()
    except CompilerError as error:
        return str(error)
    return None


def sources() -> dict[str, str]:
    """Return the text of each file in `kernels/`, by its name."""
    from importlib import resources  # noqa: PLC0415 - slow to import, and only a GPU needs it

    installed = resources.files("gpureg") / "kernels"
    # In a source tree, and so in an editable installation, they lie beside the package.
    folder = installed if installed.is_dir() else Path(gpureg.__file__).parent.parent / "kernels"
    if not folder.is_dir():
        raise CompilerError(f"this installation of gpureg lacks its kernels, {installed}: install it again")
    return {
        file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith((".cu", ".cuh"))
    }


@functools.cache
def find_nvrtc() -> Nvrtc:
    """Return the NVRTC of this machine; raise CompilerError where there is none to use."""
    reasons, found = [], driver.find()
    ways: tuple[tuple[str, Callable[[], Nvrtc]], ...] = (("cuda.bindings", _CudaBindings), ("CuPy", _CuPy))
    for name, way in ways:
        try:
            nvrtc = way()
        except ModuleNotFoundError:
            reasons.append(f"{name} is not installed")
        except Exception as error:  # whatever keeps a library from loading
            reasons.append(f"{name} finds none: {_first_line(str(error))}")
        else:
            if nvrtc.version < _OLDEST:
                reasons.append("{} finds {}.{}, older than {}.{}".format(name, *nvrtc.version, *_OLDEST))
            elif isinstance(found, driver.Driver) and nvrtc.version[0] > found.cuda[0]:
                reasons.append(
                    "{} finds {}.{}, but the driver runs CUDA {}.{}".format(name, *nvrtc.version, *found.cuda)
                )
            else:
                return nvrtc
    extra = driver.extra(found) or "cuda13"
    raise CompilerError(f"no NVRTC to compile the kernels: pip install 'gpureg[{extra}]' ({'; '.join(reasons)})")


class _CudaBindings:
    """NVRTC through NVIDIA's own bindings: each function returns its status, and what it gives after it."""

    def __init__(self) -> None:
        self._nvrtc = import_module("cuda.bindings.nvrtc")
        major, minor = self._call("Version")
        self.version = (int(major), int(minor))

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._nvrtc, f"nvrtc{function}")(*arguments)
        if int(status):
            reason = self._nvrtc.nvrtcGetErrorString(status)[1].decode()
            raise CompilerError(f"nvrtc{function} failed: {reason}")
        return values[0] if len(values) == 1 else values

    def _read(self, what: str, program: Any) -> bytes:
        # NVRTC writes into the buffer that it is given.
        buffer = bytes(self._call(f"Get{what}Size", program))
        self._call(f"Get{what}", program, buffer)
        return buffer

    def build(self, file: str, sources: Mapping[str, str], options: Sequence[str], kernels: Sequence[str]) -> Program:
        headers = [name for name in sources if name != file]
        texts = [sources[name].encode() for name in headers]
        arguments = sources[file].encode(), file.encode(), len(headers), texts, [name.encode() for name in headers]
        program = self._call("CreateProgram", *arguments)
        try:
            for kernel in kernels:
                self._call("AddNameExpression", program, kernel.encode())
            try:
                self._call("CompileProgram", program, len(options), [option.encode() for option in options])
            except CompilerError as error:
                raise _refused(self._read("ProgramLog", program)) from error
            return Program(
                self._read("CUBIN", program),
                tuple(self._call("GetLoweredName", program, kernel.encode()).decode() for kernel in kernels),
                _text(self._read("PTX", program)),
                _text(self._read("ProgramLog", program)),
            )
        finally:
            self._call("DestroyProgram", program)


class _CuPy:
    """NVRTC through CuPy's bindings, which raise an error of their own. CuPy's compiler always flushes to zero."""

    def __init__(self) -> None:
        self._nvrtc = import_module("cupy.cuda").nvrtc
        major, minor = self._nvrtc.getVersion()
        self.version = (int(major), int(minor))

    def build(self, file: str, sources: Mapping[str, str], options: Sequence[str], kernels: Sequence[str]) -> Program:
        headers = [name for name in sources if name != file]
        texts = [sources[name].encode() for name in headers]
        program = self._nvrtc.createProgram(sources[file], file, texts, [name.encode() for name in headers])
        try:
            for kernel in kernels:
                self._nvrtc.addNameExpression(program, kernel)
            try:
                self._nvrtc.compileProgram(program, options)
            except self._nvrtc.NVRTCError as error:
                raise _refused(self._nvrtc.getProgramLog(program)) from error
            # CuPy takes the last byte for the end of a text; it is a zero, and the file is of words of 8 bytes.
            cubin = self._nvrtc.getCUBIN(program)
            return Program(
                cubin + bytes(-len(cubin) % 8),
                tuple(self._nvrtc.getLoweredName(program, kernel) for kernel in kernels),
                _text(self._nvrtc.getPTX(program)),
                _text(self._nvrtc.getProgramLog(program)),
            )
        finally:
            self._nvrtc.destroyProgram(program)


def _refused(output: bytes | str) -> CompilerError:
    """Return the error of a source that does not compile, or of an architecture that NVRTC does not know."""
    log = _text(output)
    return CompilerError(next((line for line in log.splitlines() if "error" in line), _first_line(log)), log)


def _text(output: bytes | str) -> str:
    """Return what NVRTC wrote, without the zero that ends it."""
    return (output.decode(errors="replace") if isinstance(output, bytes) else output).rstrip("\0").strip()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


class _Entry(NamedTuple):
    """The place of a kernel in the cache: a checksum, the symbol and the binary, in one file named by the key."""

    folder: Path | None
    key: str

    @classmethod
    def of(cls, *made_from: object) -> "_Entry":
        """Return the place of what is made from these."""
        return cls(_folder(), _sha256(repr(made_from).encode()))

    def read(self) -> Kernel | None:
        """Return the kernel, if it is there and whole."""
        if self.folder is None:
            return None
        try:
            checksum, _, body = (self.folder / self.key).read_bytes().partition(b"\n")
        except OSError:
            return None
        if checksum != self._checksum(body):
            return None
        symbol, _, cubin = body.partition(b"\n")
        return Kernel(cubin, symbol.decode())

    def write(self, kernel: Kernel) -> None:
        """Keep the kernel if that is possible. Others see the old entry or the new one, never a part of it."""
        if self.folder is None:
            return
        from tempfile import NamedTemporaryFile  # noqa: PLC0415 - slow to import, and only a GPU needs it

        body = kernel.symbol.encode() + b"\n" + kernel.cubin
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self.folder, prefix="new-", delete=False) as file:
                temporary = Path(file.name)
            try:
                temporary.write_bytes(self._checksum(body) + b"\n" + body)
                temporary.replace(self.folder / self.key)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def _checksum(self, body: bytes) -> bytes:
        # With the key, so that an entry is whole only in its own place.
        return _sha256(self.key.encode() + body).encode()


def _sha256(data: bytes) -> str:
    from hashlib import sha256  # noqa: PLC0415 - slow to import, and only a GPU needs it

    return sha256(data).hexdigest()


def _folder() -> Path | None:
    """Return the folder of the cache, which may not exist; None where there is no place for one."""
    if chosen := os.environ.get("GPUREG_CACHE_DIR"):
        return Path(chosen)
    caches = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    if caches:
        return Path(caches) / "gpureg"
    try:
        return Path.home() / ".cache" / "gpureg"
    except RuntimeError:
        return None
