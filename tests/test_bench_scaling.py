"""Cost against elements, tensors, threads and shards: what is checked before it is timed, and the model through it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpureg
from bench import report, scaling
from bench.cases import Case, Mode
from bench.race import Race, WrongError
from bench.scaling import ADD, ONE_SUM, VALUE

MOST = 2**16
"""Elements of the largest tensor."""


@pytest.fixture
def arrays() -> scaling.Arrays:
    return scaling.Arrays(2**18)


def test_every_axis_begins_with_one_and_doubles(arrays: scaling.Arrays) -> None:
    made = scaling.axes(arrays)
    assert list(made) == list(scaling.AXES)
    assert list(made["elements"][VALUE]) == [4**k for k in range(10)]
    assert list(made["tensors"][ADD]) == [4**k for k in range(6)]  # of 256 elements at least
    assert list(made["threads"][VALUE]) == list(range(1, gpureg.get_num_threads() + 1))
    assert list(made["shards"][ONE_SUM]) == [1, 4, 16]  # of a tile at least
    scaling.check(arrays, made)


def test_what_is_called_is_what_it_says(arrays: scaling.Arrays) -> None:
    whole = float(gpureg.L1L2(VALUE.l1, VALUE.l2)(arrays.weights))
    assert float(arrays.one(VALUE, arrays.weights.size)()) == whole
    assert float(arrays.several(VALUE, 16)()) == pytest.approx(whole, rel=2.0**-22)
    assert float(arrays.shards(16)()) == float(gpureg.l1_loss(arrays.weights, dtype="float64"))
    assert not arrays.gradient.any()
    arrays.one(ADD, 100)()
    assert np.count_nonzero(arrays.gradient) == np.count_nonzero(arrays.weights[:100])
    arrays.gradient[...] = 0
    arrays.several(ADD, 4)()
    assert np.count_nonzero(arrays.gradient) == np.count_nonzero(arrays.weights)


def test_threads_are_as_many_as_before_afterwards() -> None:
    before = gpureg.get_num_threads()
    assert scaling.on(before + 3, gpureg.get_num_threads)() == before + 3
    assert gpureg.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        scaling.on(before + 3, lambda: 1 / 0)()
    assert gpureg.get_num_threads() == before


@pytest.mark.parametrize(
    ("axis", "mode", "place", "message"),
    [
        ("elements", VALUE, 256, "256 elements: the penalty is"),
        ("tensors", VALUE, 16, "tensors: not all give the same total"),
        ("threads", VALUE, 1, "threads: not all give the same bits"),
        ("shards", ONE_SUM, 4, "shards: not all give the same bits"),
    ],
)
def test_a_wrong_point_is_an_error(
    arrays: scaling.Arrays, monkeypatch: pytest.MonkeyPatch, axis: str, mode: Mode, place: int, message: str
) -> None:
    monkeypatch.setattr(gpureg, "get_num_threads", lambda: 2)
    made = scaling.axes(arrays)
    right = made[axis][mode][place]
    made[axis][mode][place] = lambda: float(right()) * (1 + 2.0**-20)
    with pytest.raises(WrongError, match=message):
        scaling.check(arrays, made)


def entry(axis: str, mode: Mode, place: int, seconds: float, moved: int) -> dict[str, Any]:
    quantiles = dict.fromkeys(report.PERCENTILES, seconds)
    return {"axis": axis, "mode": mode.name, "place": place, "bytes": moved, "rounds": 9, "seconds": quantiles}


def made_by_the_model() -> list[dict[str, Any]]:
    """Return points that cost 10 us a call, 4 GB a second, 1 us a tensor and 20 us a shard."""
    call, speed = 1e-5, 4e9
    sizes = [4**k for k in range(12)]
    moved = 4 * 2**22
    found = [entry("elements", mode, n, call + 4 * n / speed, 4 * n) for mode in (ONE_SUM, VALUE) for n in sizes]
    found += [entry("tensors", VALUE, n, call + moved / speed + 1e-6 * (n - 1), moved) for n in (1, 16, 256)]
    found += [entry("threads", VALUE, n, call + moved * 2 / n / speed, moved) for n in (1, 2)]
    found += [entry("shards", ONE_SUM, n, call + moved / speed + 2e-5 * (n - 1), moved) for n in (1, 4, 64)]
    return [*found, entry("limit", VALUE, 2**22, moved / 8e9, moved)]


def test_the_model_is_found_from_the_ends_and_fits_what_it_made() -> None:
    entries = made_by_the_model()
    found = scaling.model(entries)
    assert found.keys() == {ONE_SUM.name, VALUE.name}
    # The smallest point has a byte's time besides the call's.
    assert found[VALUE.name] == {"call": 1.0e-05, "gb_per_s": pytest.approx(4.0, rel=1e-3), "tensor": 1e-06}
    assert found[ONE_SUM.name]["shard"] == 2e-05
    for each in entries:
        if each["axis"] != "limit":
            predicted = scaling.predicted(found[each["mode"]], each, threads=2)
            assert predicted == pytest.approx(each["seconds"]["median"], rel=2e-3), each


def test_more_tensors_that_cost_nothing_make_no_negative_number() -> None:
    entries = [each for each in made_by_the_model() if each["axis"] != "tensors"]
    entries += [entry("tensors", VALUE, n, seconds, 4 * MOST) for n, seconds in ((1, 0.02), (16, 0.01))]
    assert scaling.model(entries)[VALUE.name]["tensor"] == 0.0


def timed(runs: dict[str, list[Any]], seconds: float, rounds: int) -> Race:
    """Return times without calling anything: 1 ms for each character of what is timed."""
    assert (seconds, rounds) == (0.25, 3)
    assert all(len(calls) == 1 for calls in runs.values())
    return Race({name: [1e-3 * len(name)] * rounds for name in runs}, dict.fromkeys(runs, 1))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scaling, "timed", timed)
    monkeypatch.setattr(scaling, "PARTED", MOST)
    path = tmp_path / "scaling.json"
    arguments = ["--output", str(path), "--elements", str(MOST), "--seconds", "0.25", "--rounds", "3"]
    assert scaling.main([*arguments, "--commit", "0123456"]) == 0
    return path


def test_a_report_and_its_picture(written: Path, tmp_path: Path) -> None:
    found = scaling.load(written)
    assert found["commit"] == "0123456"
    assert {each["axis"] for each in found["entries"]} == {*scaling.AXES, "limit"}
    assert set(found["entries"][0]) - set(found["legend"]) == {"place"}
    for each in found["entries"]:
        elements = each["place"] if each["axis"] == "elements" else MOST
        mode = next(mode for mode in (ONE_SUM, VALUE, ADD) if mode.name == each["mode"])
        assert each["bytes"] == Case(mode, "float32", elements).moved_bytes
    for name in ("first.svg", "second.svg"):
        assert scaling.main(["--figure", str(tmp_path / name), str(written)]) == 0
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    for label in (ONE_SUM.name, VALUE.name, ADD.name, f"memory limit, {ADD.name}"):
        assert f"<!-- {label} -->".encode() in first


def test_what_is_no_report_is_refused(written: Path, tmp_path: Path) -> None:
    picture = str(tmp_path / "x.svg")
    good = json.loads(written.read_text())
    for number, wrong in enumerate(
        [[], {}, good | {"schema": 0}, good | {"entries": [{"axis": "x"}]}, {**good, "model": 0}]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({k: v for k, v in wrong.items() if v} if isinstance(wrong, dict) else wrong))
        assert scaling.main(["--figure", picture, str(path)]) == 2
    assert scaling.main(["--figure", picture, str(tmp_path / "missing.json")]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["--figure", "x.svg"], ["--output", "x.json", "x.json"], ["--output", "x.json", "--elements", "5000000"],
        ["--output", "x.json", "--elements", "1024"],
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(arguments)
