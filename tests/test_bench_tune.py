"""The variants of the kernels: patches that fit, bits that are the same, and what is read off their machine code."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import report, tune, tune_gpu, variants
from bench.cases import MODES, Case
from bench.gpu_race import Race, Round
from bench.roofline import ARCHITECTURES, CHIPS, Facts
from bench.variants import ADD32, BOTH16, SHIPPED, VALUE32, VARIANTS, PatchError, Variant
from gpureg import compiler
from gpureg.arithmetic import tile_size
from gpureg.backends import cuda
from gpureg.compiler import Program
from tests.helpers import DTYPES
from tests.host_cuda import Build, Library, library
from tests.kernels.fake_cupy import FakeCupy, installed
from tests.kernels.inspect_code import Kernel

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"

NAMED = {variant.name: variant for variant in (SHIPPED, *VARIANTS)}


# Patches


def test_every_patch_belongs_to_a_variant_and_each_variant_has_its_own() -> None:
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    used = {name for variant in VARIANTS for name in variant.patches or (variant.name,)}
    assert used == {file.stem for file in variants.FOLDER.glob("*.patch")}
    assert SHIPPED.sources(compiler.sources()) == compiler.sources()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_patch_fits_the_kernels_as_they_are(variant: Variant) -> None:
    sources = compiler.sources()
    changed = variant.sources(sources)
    assert changed != sources
    assert {"penalty.cu", "tree.cuh", "element.cuh"} <= changed.keys()
    assert set(variant.kernels) <= set(SHIPPED.kernels) <= set(compiler.KERNELS)


def test_a_variant_of_several_patches_has_them_all() -> None:
    lean = NAMED["lean-gradient"]
    whole = compiler.sources()
    for name in lean.patches or ():
        whole = variants.patched(whole, (variants.FOLDER / f"{name}.patch").read_text(), name)
    assert lean.sources(compiler.sources()) == whole
    changed = "".join(whole.values())
    assert all(each in changed for each in ("with_sign(c1, x)", "cvt.rn.bf16.f32", "MODE == VALUE ? 4"))


PATCH = "--- a/kernels/x.cu\n+++ b/kernels/x.cu\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n@@ -9 +9 @@\n-nine\n+9\n"
NEW = "--- /dev/null\n+++ b/kernels/new.cuh\n@@ -0,0 +1 @@\n+it\n"


def test_hunks_are_found_wherever_they_are() -> None:
    sources = {"x.cu": "zero\none\ntwo\n\nnine\n", "y.cu": "one\ntwo\n"}
    assert variants.patched(sources, PATCH + NEW, "it") == {
        "x.cu": "zero\none\n2\n\n9\n",
        "y.cu": "one\ntwo\n",
        "new.cuh": "it\n",
    }
    assert sources["x.cu"].startswith("zero\none\ntwo")


@pytest.mark.parametrize(
    "sources",
    [{"x.cu": "one\ntwo\n"}, {"x.cu": "one\ntwo\none\ntwo\nnine\n"}, {"y.cu": "one\ntwo\nnine\n"}],
    ids=["a hunk is missing", "a hunk is there twice", "the file is missing"],
)
def test_a_patch_that_does_not_fit_is_refused(sources: dict[str, str]) -> None:
    with pytest.raises(PatchError, match=r"old\.patch does not fit x\.cu"):
        variants.patched(sources, PATCH, "old")


def test_a_file_that_is_there_is_not_made_anew() -> None:
    with pytest.raises(PatchError, match=r"does not fit new\.cuh"):
        variants.patched({"new.cuh": "there\n"}, NEW, "old")


# Bits, by the kernels on the host: all but the instructions that only a GPU has

STAND_INS = {
    "hint.cuh": """#pragma once
template <class Word>
__device__ __forceinline__ Word read_hinted(const Word* from) { return *from; }
template <class Word>
__device__ __forceinline__ void write_hinted(Word* to, Word word) { *to = word; }
"""
}
"""Files of patches in which every line is an instruction of a GPU."""

INSTRUCTIONS = {
    r"  asm volatile\(\"bar\.sync.*\n": "  host::barrier({__FILE__, __LINE__});\n",
    r"(?<=constexpr int HALVES = )2": "1",
    r"  __shared__ Shared halves.*\n.*\n": "  __shared__ Shared shared;\n",
    r"  asm\(\"cvt\.rn\.bf16\.f32.*\n": """  const unsigned bits = __float_as_uint(x);
  to.bits = static_cast<unsigned short>(x != x ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
""",
}
"""Single instructions of a GPU, as patterns, and what the host has for them; it runs half a block as a block."""

ON_THE_HOST = [variant for variant in VARIANTS if variant.name != "bulk-copy"]


def host_library(sources: dict[str, str], kernels: tuple[str, ...], folder: Path) -> Library:
    """Return the kernels of these sources built for the host."""
    for name, text in sources.items():
        for pattern, instead in INSTRUCTIONS.items():
            text = re.sub(pattern, instead, text)  # noqa: PLW2901 - changed as often as patterns match
        (folder / name).write_text(STAND_INS.get(name, text))
    return library(Build(kernels=kernels, folder=folder))


class OnHost:
    """A CuPy without a GPU, whose launches run on the host what a variant is to launch."""

    def __init__(self, built: Library) -> None:
        self.built = built
        self.grids: list[tuple[int, int]] = []

    def load(self, variant: Variant, name: str) -> Callable[..., None]:
        def launch(grid: tuple[int], block: tuple[int, int], arguments: Any) -> None:
            assert block == (cuda.THREADS, variant.tiles)
            self.grids.append((grid[0], variant.tiles))
            self.built.launch(name, grid[0] * variant.tiles, arguments[0][0], seed=len(self.grids))

        return launch


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Library], OnHost]]:
    """Return what lets variants be launched on the host, with a device that holds three blocks at a time."""
    caches = tune_gpu.inputs, tune_gpu.expected
    for cached in caches:
        cached.cache_clear()

    def use(built: Library) -> OnHost:
        on_host = OnHost(built)
        monkeypatch.setattr(tune_gpu, "load", on_host.load)
        return on_host

    monkeypatch.setattr(tune_gpu, "most_blocks", lambda _: 3)
    with installed(FakeCupy(lambda *_: pytest.fail("not a variant's launch"))):
        yield use
    for cached in caches:
        cached.cache_clear()


def few_sizes(tiles: int, dtype: str) -> list[list[int]]:
    tile = tile_size(DTYPES[dtype].itemsize)
    return [[tiles * tile + 5], [*(tile + number for number in range(100)), 64, 5, 100, 8, 0]]


@pytest.mark.parametrize("variant", ON_THE_HOST, ids=lambda variant: variant.name)
def test_a_variant_has_the_bits_of_numpy(
    variant: Variant, host: Callable[[Library], OnHost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several_groups = variant.group != cuda.GROUP or variant.one_wave or variant.tiles > 1
    monkeypatch.setattr(tune_gpu, "sizes", partial(few_sizes, 130 if several_groups else 3))
    kernels = variant.kernels[:1] if several_groups else variant.kernels
    on_host = host(host_library(variant.sources(compiler.sources()), kernels, tmp_path))
    for name in kernels:
        case = tune_gpu.case_of(name)
        assert tune_gpu.wrong_bits(name, tune_gpu.Loaded(variant), len, case, None) is None  # type: ignore[arg-type]
    assert len(on_host.grids) == 6 * len(kernels)
    if variant.one_wave:
        assert {grid for grid, _ in on_host.grids} == {3}
    elif several_groups:
        assert on_host.grids[0] == (-(-131 // variant.tiles), variant.tiles)


@pytest.mark.parametrize(
    ("kernel", "right", "wrong"),
    [
        (VALUE32, "abs[lane] = abs[2 * lane] + abs[2 * lane + 1]", "abs[lane] = abs[lane] + abs[lane + count]"),
        (ADD32, "g = static_cast<C>(load(gradient)) + g", "g = static_cast<C>(load(gradient)) - g"),
    ],
    ids=["a sum", "a gradient"],
)
def test_a_variant_of_other_bits_is_not_timed(
    kernel: str,
    right: str,
    wrong: str,
    host: Callable[[Library], OnHost],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune_gpu, "sizes", partial(few_sizes, 3))
    sources = compiler.sources()
    assert right in sources["penalty.cu"]
    sources["penalty.cu"] = sources["penalty.cu"].replace(right, wrong)
    host(host_library(sources, (kernel,), tmp_path))
    said = tune_gpu.wrong_bits(kernel, tune_gpu.Loaded(SHIPPED), len, tune_gpu.case_of(kernel), None)  # type: ignore[arg-type]
    assert str(said).startswith("other bits than NumPy's in calls [")


def test_the_host_counts_the_groups_of_a_variant_while_it_is_launched_and_no_longer() -> None:
    before = cuda.GROUP, cuda._kernel
    for name, group in (("group-32", 32), ("group-1024", 1024), ("rows-4", before[0])):
        loaded = tune_gpu.Loaded(NAMED[name])
        with loaded.active():
            assert (cuda.GROUP, cuda._kernel) == (group, loaded.kernel)
            changed = NAMED[name].sources(compiler.sources())["tree.cuh"]
            assert re.search(r"constexpr int GROUP = (\w+);", changed)[1] in {str(group), "THREADS"}  # type: ignore[index]
        assert (cuda.GROUP, cuda._kernel) == before


# What machine code says


def compiled(name: str, kernel: str) -> Facts:
    (entry,) = tune.inspected([dataclasses.replace(NAMED[name], kernels=(kernel,))], ["sm_90"])
    return Facts(**{field: entry[field] for field in Facts._fields})


def test_a_tile_brought_by_one_copy_is_on_its_way_as_a_whole() -> None:
    found = compiled("bulk-copy", VALUE32)
    assert found.kib == 32 * found.blocks
    assert found.instructions["float64"] == 2.0


def test_a_tile_that_is_loaded_at_once_needs_no_loop() -> None:
    found = compiled("rows-16", VALUE32)
    assert found.loads == 16
    assert found.instructions["conversions"] == 1.0


def test_two_tiles_are_a_block_of_twice_the_threads() -> None:
    found = compiled("two-tiles", VALUE32)
    assert found.threads == 256 * found.blocks


@pytest.mark.parametrize(
    ("variant", "kernel", "check"),
    [
        (
            "integer-conversion",
            variants.L1_16,
            lambda new, old: new.instructions["conversions"] == 0.0 < old.instructions["conversions"],
        ),
        ("sign-by-bits", BOTH16, lambda new, old: new.instructions["ALU"] < 0.75 * old.instructions["ALU"]),
        ("store-instruction", BOTH16, lambda new, old: new.kib > old.kib),
        ("half-shuffles", VALUE32, lambda new, old: new.shuffles == 0.6 * old.shuffles),
        ("needed-sums", variants.L1_32, lambda new, old: new.shuffles < old.shuffles),
        ("blocks-8", variants.VALUE16, lambda new, old: new.blocks == 8 > old.blocks),
    ],
)
def test_variants_do_to_the_machine_code_what_they_are_for(
    variant: str, kernel: str, check: Callable[[Facts, Facts], bool]
) -> None:
    assert check(compiled(variant, kernel), compiled("shipped", kernel))


def test_no_variant_is_compiled_for_what_lacks_its_instructions() -> None:
    assert not list(tune.inspected([NAMED["bulk-copy"]], ["sm_75", "sm_80", "sm_89"]))


# Tables


def known(variant: Variant, kernel: str, architecture: str = "sm_90") -> dict[str, Any]:
    counts = {"conversions": 1.0, "float64": 2.0, "ALU": 0.1, "issued": 3.0}
    return tune._entry(variant, kernel, architecture, Facts(96, 0, 5, 640, 8, 80.0, 120, counts))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Return a report of machine code that is the same for all."""
    entries = [known(variant, variant.kernels[0]) for variant in VARIANTS]
    entries += [known(SHIPPED, kernel, architecture) for kernel in SHIPPED.kernels for architecture in ARCHITECTURES]
    facts = {"date": "2026-01-02", "commit": "0123456", "uncommitted_changes": False}
    versions = {"versions": {"gpureg": "0.1", "nvrtc": "13.5", "cupy": None}}
    path = tmp_path / "sass.json"
    path.write_text(report.dumps(tune.sass_report(entries, facts | versions)))
    return path


def page(folder: Path) -> Path:
    path = folder / "page.md"
    kinds = ("shipped", "variants", "chips")
    path.write_text("text\n".join(f"<!-- bench:{kind} sass -->\nold\n<!-- bench:end -->\n" for kind in kinds))
    return path


def test_tables_of_what_was_not_measured_yet(kept: Path, tmp_path: Path) -> None:
    path = page(tmp_path)
    assert tune.main(["--check", str(path), str(kept)]) == 1
    assert tune.main(["--write", str(path), str(kept)]) == 0
    assert tune.main(["--check", str(path), str(kept)]) == 0
    text = path.read_text()
    lines = [
        line for line in text.splitlines() if line.startswith(tuple(f"| {variant.name} |" for variant in VARIANTS))
    ]
    assert len(lines) == len(VARIANTS)
    for line, variant in zip(lines, VARIANTS, strict=True):
        cells = line.strip("| ").split(" | ")
        assert cells[:3] == [variant.name, variant.what, variant.prediction]
        assert cells[3].endswith("96 registers, 640 threads, 80 KiB in flight, 120 shuffles")
        assert cells[5:] == ["not measured yet", "open"]
    assert "| value, float32 | 96 | 640 | 80 | 32% | 16% | 1% | 12% | 1.00 |" in text
    assert re.search(r"^\| RTX 4090 \| float64 78% \| float64 156% \|", text, re.MULTILINE)
    assert "NVRTC 13.5, sm_90." in text
    assert text.count("text\n") == 2


def measured(folder: Path, variant: Variant) -> Path:
    case = tune_gpu.case_of(variant.kernels[0])
    head = {
        "schema": 1, "date": "2026-01-02", "commit": "0123456", "uncommitted_changes": False,
        "machine": {"cpu": "any", "cores": 2, "os": "Linux", "kernel": "6.1"},
        "versions": {"python": "3", "numpy": "2", "blas": "any", "gpureg": "0"},
    }  # fmt: skip
    facts = {"mode": case.mode.name, "dtype": case.dtype, "elements": case.elements, "rounds": 9}
    numbers = {"seconds": {"median": 1.0}, "to_gpureg": 0.8, "to_limit": 1.25}
    entries = [facts | numbers | {"contender": variant.name, "role": "other"}]
    entries.append(entries[0] | {"mode": "value, L2"})
    left_out = {f"{tune_gpu.case_of(VALUE32)}: two-tiles": "other bits than NumPy's in calls [1] of 9"}
    path = folder / "gpu.json"
    path.write_text(json.dumps(head | {"left_out": left_out, "entries": entries}))
    return path


def test_tables_of_what_was_measured(kept: Path, tmp_path: Path) -> None:
    path, timed = page(tmp_path), measured(tmp_path, NAMED["lean-gradient"])
    assert tune.main(["--write", str(path), str(kept), str(timed)]) == 0
    results = {
        line.split(" | ")[0]: line.split(" | ")[5] for line in path.read_text().splitlines() if " | open" in line
    }
    assert results["| lean-gradient"] == "1.250 of the shipped speed, 0.800 of the limit"
    assert results["| two-tiles"] == "other bits than NumPy's in calls [1] of 9"
    assert results["| rows-4"] == "left out"


def test_files_that_are_not_as_expected(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = page(tmp_path)
    for number, content in enumerate(["", "[]", "{}", '{"entries": [{}]}']):
        wrong = tmp_path / f"{number}.json"
        wrong.write_text(content)
        assert tune.main(["--write", str(path), str(wrong)]) == 2
    lacking = json.loads(kept.read_text())
    lacking["entries"] = lacking["entries"][1:]
    kept.write_text(json.dumps(lacking))
    assert tune.main(["--write", str(path), str(kept)]) == 2
    assert "run --sass again" in capsys.readouterr().err
    for arguments in (["--write", str(path)], [], ["--sass", str(kept)], ["--write", str(path), "a", "b", "c"]):
        with pytest.raises(SystemExit):
            tune.main(arguments)


def test_the_tables_of_the_page_are_those_of_the_committed_report() -> None:
    (name,) = set(re.findall(r"<!-- bench:(?:shipped|variants|chips) (\S+) -->", PAGE.read_text()))
    assert tune.main(["--check", str(PAGE), str(ROOT / "bench" / "results" / f"{name}.json")]) == 0
    assert PAGE.read_text().count("not measured yet") > len(VARIANTS)


def test_machine_code_is_read_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "VARIANTS", (dataclasses.replace(NAMED["evict-first"], kernels=(VALUE32,)),))
    monkeypatch.setattr(tune, "SHIPPED", dataclasses.replace(SHIPPED, kernels=(VALUE32,)))
    monkeypatch.setattr(tune, "ARCHITECTURES", {name: ARCHITECTURES[name] for name in ("sm_75", "sm_90")})
    output = tmp_path / "sass.json"
    assert tune.main(["--sass", "--architectures", "sm_75", "sm_90", "--output", str(output)]) == 0
    entries = tune.load(output)["entries"]
    assert [(entry["variant"], entry["architecture"]) for entry in entries] == [
        ("shipped", "sm_75"), ("shipped", "sm_90"), ("evict-first", "sm_90"),
    ]  # fmt: skip
    for entry in entries:
        assert entry["local"] == 0
        assert entry["instructions"]["float64"] == 2.0
        assert set(entry["shares"]) == {
            name for name, chip in CHIPS.items() if chip.architecture == entry["architecture"]
        }
        assert ("reach" in entry) == (entry["architecture"] == "sm_90")
    assert len(capsys.readouterr().out.splitlines()) == 3


# Timing


def test_each_kernel_is_timed_with_all_that_are_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = SimpleNamespace(compute_capability="80")
    monkeypatch.setattr(tune_gpu, "cp", lambda: SimpleNamespace(cuda=SimpleNamespace(Device=lambda: device)))
    raced: dict[str, list[str]] = {}

    def race(case: Case, field: list[Any], seconds: float) -> Race:
        assert seconds == 1.0
        raced[str(case)] = [each.name for each in field]
        if case.dtype == "float64":
            raise MemoryError("too small")
        return Race({each.name: [Round(1e-3 * (i + 1), 1e-5)] * 7 for i, each in enumerate(field)}, {})

    monkeypatch.setattr(tune_gpu, "race", race)
    output = tmp_path / "gpu.json"
    assert tune.main(["--output", str(output), "--seconds", str(len(SHIPPED.kernels))]) == 1
    assert len(raced) == len(SHIPPED.kernels)
    value = raced[str(tune_gpu.case_of(VALUE32))]
    assert value[0] == "shipped"
    assert "rows-4" in value
    assert "evict-first" in value
    assert "bulk-copy" not in value  # which needs sm_90
    assert "terms-once" not in value  # which is for gradients
    written = json.loads(output.read_text())
    assert list(written["missing"].values()) == ["MemoryError: too small"]
    ours = [entry["contender"] for entry in written["entries"] if entry["role"] == "gpureg"]
    assert ours == ["shipped"] * (len(SHIPPED.kernels) - 1)
    slower = next(entry for entry in written["entries"] if entry["contender"] == "rows-4")
    assert slower["to_gpureg"] > 1
    assert report.load(output)["columns"]["shipped"] == {"role": "gpureg"}


def test_without_a_gpu_each_kernel_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cupy() -> Any:
        raise ModuleNotFoundError("No module named 'cupy'")

    monkeypatch.setattr(tune_gpu, "cp", no_cupy)
    output = tmp_path / "gpu.json"
    assert tune.main(["--output", str(output)]) == 1
    written = json.loads(output.read_text())
    assert set(written["missing"].values()) == {"ModuleNotFoundError: No module named 'cupy'"}
    assert len(written["missing"]) == len(SHIPPED.kernels)


def test_every_kernel_that_is_tried_has_its_own_comparison() -> None:
    cases = [tune_gpu.case_of(kernel) for kernel in SHIPPED.kernels]
    assert len(set(cases)) == len(cases)
    assert {case.elements * case.itemsize for case in cases} == {2**28}
    assert {case.mode for case in cases} <= set(MODES)


def test_a_kernel_is_loaded_from_the_patched_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[Any, ...]] = []
    loaded: list[bytes] = []

    def build(*given: Any) -> Program:
        built.append(given)
        return Program(b"binary", ("symbol",), "", "")

    module = SimpleNamespace(load=loaded.append, get_function=lambda symbol: (symbol, loaded[-1]))
    fake = SimpleNamespace(
        cuda=SimpleNamespace(
            Device=lambda: SimpleNamespace(compute_capability="90", attributes={"MultiProcessorCount": 132}),
            function=SimpleNamespace(Module=lambda: module),
            driver=SimpleNamespace(occupancyMaxActiveBlocksPerMultiprocessor=lambda *given: sum(given)),
        )
    )
    monkeypatch.setattr(tune_gpu, "cp", lambda: fake)
    monkeypatch.setattr(compiler, "find_nvrtc", lambda: SimpleNamespace(build=build))
    assert tune_gpu.load(NAMED["streaming"], VALUE32) == ("symbol", b"binary")
    ((file, sources, options, kernels),) = built
    assert (file, kernels) == ("penalty.cu", [VALUE32])
    assert sources == NAMED["streaming"].sources(compiler.sources())
    assert set(options) == {*compiler.OPTIONS, "--gpu-architecture=sm_90"}
    assert tune_gpu.most_blocks(SimpleNamespace(ptr=2)) == 132 * (2 + 128)


def test_a_pass_is_planned_once_for_each_set(
    host: Callable[[Library], OnHost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []
    plan = cuda.CudaPlan

    def plan_and_count(leaves: Any) -> Any:
        planned.append(leaves)
        return plan(leaves)

    monkeypatch.setattr(cuda, "CudaPlan", plan_and_count)
    on_host = host(host_library(compiler.sources(), (ADD32,), tmp_path))
    arrays = [
        SimpleNamespace(
            weights=cuda.backend.from_numpy(np.ones(9000, np.float32)),
            gradient=cuda.backend.from_numpy(np.zeros(9000, np.float32)),
        )
        for _ in range(2)
    ]
    case = tune_gpu.case_of(ADD32)
    run: Any = tune_gpu.run_of(Kernel.of(ADD32), tune_gpu.Loaded(SHIPPED), case.mode)
    for each in (*arrays, *arrays):
        assert cuda.backend.to_numpy(run(each)) == pytest.approx(9000 * (case.mode.l1 + case.mode.l2))
    assert len(planned) == 2
    assert len(on_host.grids) == 4
    added = np.float32(2) * np.float32(case.mode.l1 + 2 * case.mode.l2)
    assert cuda.backend.to_numpy(arrays[1].gradient)[0] == pytest.approx(added)
