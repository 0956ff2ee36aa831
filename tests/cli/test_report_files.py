"""The pictures and the page of `gpureg report`, and names in a file that would do harm anywhere."""

import html.parser
import re
import struct
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import gpureg
from gpureg.cli import report as command
from gpureg.cli.common import printable
from gpureg.cli.reporting import page, pictures
from gpureg.cli.reporting.histogram import Histogram
from tests.checkpoints.samples import Array, npz
from tests.cli.reports import HOSTILE, Run, is_harmless, plain, strict_json
from tests.helpers import content


class Page(html.parser.HTMLParser):
    """What a page holds: its tags, its pictures, and the cells of its table, each with what it is sorted by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.rows: list[list[tuple[str, str]]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "img":
            self.pictures.append(given["src"] or "")
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append((given["data-value"] or "", ""))
            self._cell = True
        if tag == "tbody":
            self.rows.clear()
        assert not {"src", "href"} & set(given) or tag == "img"

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            value, text = self.rows[-1][-1]
            self.rows[-1][-1] = (value, text + data)


class TestHostileNames:
    @pytest.mark.parametrize("form", ["table", "csv", "markdown", "json"])
    @pytest.mark.parametrize("options", [[], ["--group"], ["--l1", "1"]])
    def test_no_control_character_is_written(self, run: Run, hostile: Path, form: str, options: list[str]) -> None:
        status, out, err = run(hostile, "--format", form, *options)
        assert (status, err) == (0, "")
        assert is_harmless(out)
        assert "evil" in out
        if form == "json":
            found = strict_json(out)
            assert HOSTILE in {row["name"] for row in found.get("tensors", found.get("groups"))}

    def test_markdown_is_one_cell(self, run: Run, hostile: Path) -> None:
        line = next(line for line in run(hostile, "--format", "markdown")[1].splitlines() if "evil" in line)
        assert len(re.findall(r"(?<!\\)\|", line)) == 11

    def test_no_markup_is_obeyed(self, on_terminal: Run, hostile: Path) -> None:
        out = on_terminal(hostile)[1]
        assert is_harmless(plain(out))
        assert "\x1b[31m" not in out
        assert "[red]" in plain(out).replace("\n", "").replace(" ", "")

    def test_complaints_are_harmless(self, run: Run, hostile: Path, tmp_path: Path) -> None:
        rules = tmp_path / "rules.toml"
        rules.write_text('[[rules]]\nmatch = "fine"\npenalty = "none"\n')
        status, _, err = run(hostile, "--rules", rules)
        assert status == 2
        assert is_harmless(err)
        assert err.count("\n") == 1

    def test_a_page_shows_them_as_text(self, run: Run, hostile: Path, tmp_path: Path) -> None:
        assert run(hostile, "--html", tmp_path / "a.html", "--plot", tmp_path / "a.svg")[0] == 0
        text = (tmp_path / "a.html").read_text()
        assert is_harmless(text)
        found = Page(text)
        assert found.tags.count("script") == 1
        assert len(found.pictures) == 3
        assert found.rows[0][0][0] == printable(HOSTILE)
        assert found.rows[0][0][1].replace("\u200b", "") == found.rows[0][0][0]
        assert "<script>alert" in found.rows[0][0][0]


class TestFiles:
    def test_page(self, run: Run, path: Path, tmp_path: Path) -> None:
        status, out, err = run(path, "--html", tmp_path / "a.html", "--l2", "0.5", "--top", "1")
        assert (status, err) == (0, "")
        assert "layers.0.weight" not in out
        text = (tmp_path / "a.html").read_text()
        found = Page(text)
        assert len(found.pictures) == 3
        assert all(source.startswith("data:image/svg+xml;base64,") for source in found.pictures)
        assert not re.search(r"(https?:)?//", re.sub(r"data:[^\"]*", "", text).replace("<!--", ""))
        assert "default-src 'none'" in text
        report = gpureg.report(path, gpureg.L2(0.5))
        assert len(found.rows) == len(report)
        for cells_of_row, row in zip(found.rows, report, strict=True):
            values = [value for value, _ in cells_of_row]
            assert values[0] == row.name
            expected = [row.sum_abs, row.l2_loss, row.rms, row.max_abs]
            assert values[4:8] == ["" if each is None else repr(each) for each in expected]
            assert values[-1] == ("" if row.penalty is None else repr(row.penalty))

    def test_page_of_numbers_that_are_not_finite(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(npz(False, a=np.array([np.nan]), b=np.array([np.inf, 1.0]), c=np.zeros(3)))
        assert run(path, "--html", tmp_path / "a.html", "--plot", tmp_path / "a.png", "--l1", "1")[0] == 0
        values = [[value for value, _ in row] for row in Page((tmp_path / "a.html").read_text()).rows]
        assert values[0][4] == "NaN"
        assert values[1][4] == "Infinity"

    @pytest.mark.parametrize("suffix", ["png", "svg", "PNG"])
    def test_picture(self, run: Run, path: Path, tmp_path: Path, suffix: str) -> None:
        before = mpl.rcParams.copy()
        file = tmp_path / f"a.{suffix}"
        assert run(path, "--plot", file)[0] == 0
        data = file.read_bytes()
        if suffix.lower() == "png":
            assert data.startswith(b"\x89PNG\r\n\x1a\n")
            assert struct.unpack(">II", data[16:24])[0] == 1200
        else:
            assert data.startswith(b"<?xml")
            run(path, "--plot", file)
            assert file.read_bytes() == data  # no date, and the same names each time
        assert mpl.rcParams.copy() == before
        assert "matplotlib.pyplot" not in sys.modules

    @pytest.mark.parametrize(
        "w", [np.array([5e-324, 1.0]), np.array([5e-324]), np.array([5e-324, 1.7976931348623157e308])]
    )
    def test_pictures_of_the_smallest_and_the_largest(self, run: Run, tmp_path: Path, w: Array) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(npz(False, w=w))
        options = ["--threshold", "1e-300", "--html", tmp_path / "a.html", "--plot", tmp_path / "a.svg"]
        status, _, err = run(path, *options)
        assert (status, err) == (0, "")

    def test_names_are_no_mathematics(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / r"$\no{$.npz"
        path.write_bytes(npz(False, **{r"$\frac$.w": np.ones(2), r"$^$.w": np.ones(2)}))
        status, _, err = run(path, "--html", tmp_path / "a.html", "--plot", tmp_path / "a.svg")
        assert (status, err) == (0, "")
        assert r"<!-- $\no{$.npz -->" in (tmp_path / "a.svg").read_text()

    @pytest.mark.parametrize("arrays", [{}, {"n": np.arange(3)}, {"w": np.zeros(3)}, {"e": np.ones((0, 2))}])
    def test_pictures_of_nothing(self, run: Run, tmp_path: Path, arrays: dict[str, Array]) -> None:
        path = tmp_path / "a.npz"
        path.write_bytes(npz(False, **arrays, i=np.arange(2)))
        assert run(path, "--html", tmp_path / "a.html", "--plot", tmp_path / "a.png")[0] == 0

    def test_an_interrupt_leaves_files_as_they_were(
        self, run: Run, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.html").write_text("old")
        before = sorted(tmp_path.iterdir())

        def interrupt(*_: object) -> str:
            raise KeyboardInterrupt

        # While weights are read, while the page is made, and when it is written and about to take its place.
        for where, name in ((command, "measure"), (page, "page"), (pictures, "panels"), (Path, "replace")):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, interrupt)
                status, out, err = run(path, "--html", tmp_path / "a.html", "--plot", tmp_path / "a.png")
            assert (status, out, err) == (130, "", "")
            assert sorted(tmp_path.iterdir()) == before
            assert (tmp_path / "a.html").read_text() == "old"


class TestPictures:
    """Labels of pictures do not overlap, nor leave the picture, however many layers there are and however named."""

    @pytest.mark.parametrize("layers", [1, 8, 100, 400])
    @pytest.mark.parametrize("name", ["encoder.layer.{}.weight", "a_rather_long_name_of_a_block_{}_of_all.kernel"])
    def test_labels(self, monkeypatch: pytest.MonkeyPatch, layers: int, name: str) -> None:
        figures: list[Any] = []
        saved = pictures._saved

        def keep(figure: Any, format: str) -> bytes:  # noqa: A002
            figures.append((figure, saved(figure, format)))
            return b""

        monkeypatch.setattr(pictures, "_saved", keep)
        arrays = {name.format(i): np.full(10, 0.1 * (i % 7)) for i in range(layers)}
        report, histogram = gpureg.report(arrays), Histogram()
        for array in arrays.values():
            histogram.add(array)
        pictures.sheet(report, histogram, "title", 1e-3, "png")
        list(pictures.panels(report, histogram, 1e-3))
        assert len(figures) == 4
        for figure, _ in figures:
            figure.set_dpi(100)
            figure.canvas.draw()
            for axes in figure.axes:
                labels = [label for label in axes.get_yticklabels() if label.get_text() and label.get_visible()]
                boxes = [label.get_window_extent() for label in labels]
                if not axes.yaxis.get_tick_params()["labelleft"]:
                    continue
                tops = sorted((box.y0, box.y1) for box in boxes)
                assert all(low >= high - 1 for (_, high), (low, _) in pairwise(tops))
                assert all(box.x0 >= 0 for box in boxes)
                legend = axes.get_legend()
                if legend is not None:
                    heading = axes.title if axes.title.get_text() else axes._left_title
                    assert legend.get_window_extent().x0 >= heading.get_window_extent().x1
            assert figure.get_figheight() < 17

    def test_layers(self) -> None:
        names = ("h.0.a.w", "h.0.b.w", "h.1.a.w", "top.w", "n")
        arrays = {name: np.full(4, 0.5) for name in names} | {"n": np.arange(3)}
        shown = pictures.layers(gpureg.report(arrays))
        assert [layer.name for layer in shown] == ["h.0", "h.1", "top"]
        assert shown[0].norm == np.sqrt(2.0)
        assert shown[0].share(lambda row: row.size) == 1.0

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_histogram_against_comparisons(self, dtype: str) -> None:
        array = content("wide", 2**16 + 77, dtype)
        special = content("NaN", 99, dtype)
        histogram = Histogram()
        for piece in (array, special):
            histogram.add(piece)
        edges, counts = histogram.bins()
        numbers = np.abs(np.concatenate([array, special]).astype(np.float64))
        numbers = numbers[(numbers > 0) & np.isfinite(numbers)]
        assert counts.sum() == numbers.size
        expected = [np.count_nonzero((low <= numbers) & (numbers < high)) for low, high in pairwise(edges)]
        assert counts.tolist() == expected
        assert counts[0] > 0
        assert counts[-1] > 0

    def test_histogram_of_nothing(self) -> None:
        histogram = Histogram()
        histogram.add(np.zeros(5))
        assert [part.size for part in histogram.bins()] == [0, 0]
