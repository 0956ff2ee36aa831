"""Regressions between two reports: what counts as slower, in reports of every kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import compare, report

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "bench" / "results" / "2026-11-21-cpu-xeon-2cores.json"

HEAD = {
    "schema": 1,
    "date": "2026-01-02",
    "machine": {"cpu": "Example", "cores": 2, "os": "Linux", "kernel": "6.1"},
    "versions": {"python": "3.12", "numpy": "2.3", "blas": "any", "gpureg": "0.1"},
    "commit": "0123456",
    "uncommitted_changes": False,
}


def entry(median: float, spread: float = 0.01, *, role: str = "gpureg", **facts: Any) -> dict[str, Any]:
    seconds = {"min": 0.0, "p10": median * (1 - spread), "median": median, "p90": median * (1 + spread), "max": 9.0}
    known = {"mode": "value, L1", "dtype": "float32", "elements": 1024, "contender": "any", "rounds": 9}
    return known | {"role": role, "seconds": seconds, "to_gpureg": 1.0, "to_limit": 5.0} | facts


def write(folder: Path, name: str, *entries: dict[str, Any], **head: Any) -> str:
    path = folder / name
    path.write_text(json.dumps(HEAD | head | {"entries": entries}))
    return str(path)


def run(folder: Path, old: list[dict[str, Any]], new: list[dict[str, Any]], *arguments: str) -> int:
    return compare.main([write(folder, "old.json", *old), write(folder, "new.json", *new), *arguments])


@pytest.mark.parametrize(
    ("old", "new", "verdict", "status"),
    [
        (entry(1.0), entry(1.0), "the same", 0),
        (entry(1.0), entry(1.09), "the same", 0),
        (entry(1.0), entry(1.11), "slower", 1),
        (entry(1.0), entry(0.92), "the same", 0),
        (entry(1.0), entry(0.9), "faster", 0),
        # More than a tenth slower, but the fast end of the new is not slower than the slow end of the old.
        (entry(1.0, 0.2), entry(1.3, 0.2), "within the spread", 0),
        (entry(1.0, 0.2), entry(1.6, 0.2), "slower", 1),
        (entry(1.0, 0.2), entry(0.8, 0.2), "within the spread", 0),
    ],
)
def test_what_becomes_of_a_case(
    old: Any, new: Any, verdict: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, [old], [new]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("value, L1, float32, 1024 elements  ")
    assert lines[3].endswith(f"  {verdict}")
    assert lines[-1] == f"1 times compared, {status} slower by more than 10%"


def test_the_threshold_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [entry(1.0)], [entry(1.2)], "--threshold", "1.25") == 0
    assert run(tmp_path, [entry(1.0)], [entry(1.2)], "--threshold", "1.15") == 1
    assert "1 slower by more than 15%" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(tmp_path, [entry(1.0)], [entry(1.2)], "--threshold", "0.9")
    assert compare.THRESHOLD == 1.1


def test_ratio_and_spread() -> None:
    (change,) = compare.compared({"entries": [entry(2.0, 0.1)]}, {"entries": [entry(3.0, 0.2, to_limit=10.0)]})[0]
    assert (change.old, change.new, change.ratio, change.to_limit) == (2.0, 3.0, 1.5, 2.0)
    assert change.low == pytest.approx(2.4 / 2.2)
    assert change.high == pytest.approx(3.6 / 1.8)


def test_only_gpureg_is_compared_and_only_with_the_same_case(tmp_path: Path) -> None:
    models = [entry(1.0, model="gpt2", tensors=148), entry(1.0, model="small", tensors=5000)]
    dtypes = [entry(1.0, dtype=dtype, elements=elements) for dtype in ("float16", "float64") for elements in (1, 2)]
    old = [*models, *dtypes, entry(1.0), entry(1.0, mode="value, L2"), entry(1.0, role="limit")]
    new = [each | {"seconds": each["seconds"] | {"median": 1.0}} for each in reversed(old[:-1])]
    assert run(tmp_path, old, [*new, entry(9.0, role="limit"), entry(9.0, role="best")]) == 0
    slow = [entry(2.0, model="small", tensors=5000) if each.get("model") == "small" else each for each in new]
    assert run(tmp_path, old, slow) == 1


def test_a_case_that_is_missing_in_the_new_report_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [entry(1.0), entry(1.0, elements=7)], [entry(1.0)]) == 1
    assert "value, L1, float32, 7 elements: not in the new report" in capsys.readouterr().out
    assert run(tmp_path, [entry(1.0)], [entry(1.0), entry(1.0, elements=7)]) == 0


def test_the_greatest_ratio_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = [entry(1.0, elements=size) for size in (1, 2, 3)]
    run(tmp_path, old, [entry(median, elements=size) for size, median in ((1, 1.0), (2, 1.3), (3, 1.1))])
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[3:6]] == ["2", "3", "1"]


def test_times_of_the_host_in_a_report_of_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = entry(1.0, host_seconds=1e-5, end_to_end_seconds=2e-5)
    assert run(tmp_path, [old], [old]) == 0
    assert "3 times compared" in capsys.readouterr().out
    assert run(tmp_path, [old], [old | {"host_seconds": 1.2e-5}]) == 1
    assert "elements, on the host" in capsys.readouterr().out.splitlines()[3]
    assert run(tmp_path, [old], [old | {"end_to_end_seconds": 3e-5}]) == 1
    assert "elements, end to end" in capsys.readouterr().out.splitlines()[3]
    # Older reports have not all of them.
    assert run(tmp_path, [old], [entry(1.0, host_seconds=1e-5)]) == 0


def test_reports_that_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path, "good.json", entry(1.0))
    for other in (
        write(tmp_path, "other.json", entry(1.0, elements=7)),
        write(tmp_path, "schema.json", entry(1.0), schema=0),
        str(tmp_path / "missing.json"),
    ):
        assert compare.main([good, other]) == 2
    assert "no case in common" in capsys.readouterr().err


def test_a_committed_report_is_as_fast_as_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(COMMITTED), str(COMMITTED)]) == 0
    cases = [each for each in report.load(COMMITTED)["entries"] if each["role"] == "gpureg"]
    assert f"{len(cases)} times compared, 0 slower" in capsys.readouterr().out
