"""What commands share: files that are whole or not there, and text that is harmless."""

import io
import stat
import sys
from pathlib import Path

import pytest

from gpureg.cli import common


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("layers.0.größe 東", "layers.0.größe 東"),
            ("\x1b[31m", r"\x1b[31m"),
            ("a\nb\tc\r", r"a\nb\tc\r"),
            ("\u202e\u2066\ufeff", r"\u202e\u2066\ufeff"),
            ("\x7f\x9b\ud800", r"\x7f\x9b\ud800"),
            ("", ""),
        ],
    )
    def test_printable(self, text: str, shown: str) -> None:
        assert common.printable(text) == shown

    def test_what_an_encoding_lacks_is_escaped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        file = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, "latin-1", write_through=True))
        common.write("größe 東\n")
        assert file.getvalue() == b"gr\xf6\xdfe \\u6771\n"

    def test_a_complaint_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert common.complain("report", ValueError("first\nsecond \x1b[2J")) == 2
        assert capsys.readouterr().err == "gpureg report: first; second \\x1b[2J\n"

    def test_what_is_missing_is_named(self) -> None:
        common.require("cli", json="json")
        with pytest.raises(common.UsageError, match=r"no-such cannot be imported .*; run: pip install 'gpureg\[x\]'"):
            common.require("x", no_such_module="no-such")


class TestFiles:
    def write_half(self, path: Path, failure: type[BaseException]) -> None:
        with common.replacing(path) as file:
            file.write(b"half")
            raise failure

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")
        for failure in (KeyboardInterrupt, BrokenPipeError):
            with pytest.raises(failure):
                self.write_half(path, failure)
            assert [p.name for p in tmp_path.iterdir()] == ["file"]
            assert path.read_bytes() == b"old"

    def test_a_whole_file_takes_its_place(self, tmp_path: Path) -> None:
        target, link = tmp_path / "file", tmp_path / "link"
        link.symlink_to(target)
        with common.replacing(link) as file:
            assert not target.exists()
            file.write(b"new")
        assert target.read_bytes() == b"new"
        assert link.is_symlink()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]
        ordinary = tmp_path / "ordinary"
        ordinary.touch()
        assert target.stat().st_mode == ordinary.stat().st_mode

    def test_a_device_is_written_to_not_replaced(self) -> None:
        with common.replacing(Path("/dev/null")) as file:
            file.write(b"gone")
        assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
