"""Which files are opened at all, and how a file's format is told."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gpureg import checkpoints
from tests.checkpoints.samples import SAMPLES, read


def refusal(path: Path) -> str:
    """Return what is said of a path that is not read."""
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_error_is_a_value_error() -> None:
    assert issubclass(checkpoints.CheckpointError, ValueError)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "gone.npy"
    assert refusal(path) == f"{path} cannot be read: No such file or directory"


def test_names_are_shown_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[2J"
    assert refusal(path) == f"{str(path)!r} cannot be read: No such file or directory"
    assert "cannot be read: " in refusal(Path("a\0b"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    for name in SAMPLES:
        (tmp_path / name).touch()
        assert refusal(tmp_path / name) == f"{tmp_path / name}, byte 0: the file is empty"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.npy"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # so that this test does not wait either if it fails
    try:
        assert "cannot be read: a directory, pipe or device, not a regular file" in refusal(path)
    finally:
        os.close(writer)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_devices_are_not_opened(device: str) -> None:
    assert f"{device} cannot be read: a directory, pipe or device" in refusal(Path(device))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "w.npy").write_bytes(SAMPLES["a.npy"])
    (tmp_path / "link.npy").symlink_to("w.npy")
    assert [entry.name for entry in checkpoints.read(tmp_path / "link.npy")] == ["link"]
    (tmp_path / "a.npy").symlink_to("b.npy")
    (tmp_path / "b.npy").symlink_to("a.npy")
    assert refusal(tmp_path / "a.npy").endswith("a.npy cannot be read: Too many levels of symbolic links")
    (tmp_path / "loop").symlink_to("loop")
    assert "Too many levels" in refusal(tmp_path / "loop")


def test_an_unreadable_file_says_so() -> None:
    """Whoever is root may read everything; so the file is read by a process that has become nobody."""
    code = """if True:
        import os, sys
        from gpureg import checkpoints
        if os.geteuid() == 0:
            os.seteuid(65534)
        for path in sys.argv[1:]:
            try:
                checkpoints.read(path)
            except checkpoints.CheckpointError as error:
                print(error)
    """
    with tempfile.TemporaryDirectory() as name:
        file, folder = Path(name, "w.npy"), Path(name, "folder")
        file.write_bytes(SAMPLES["a.npy"])
        folder.mkdir()
        Path(name).chmod(0o755)
        for closed in (file, folder):
            closed.chmod(0)
        paths = [file, folder, folder / "w.npy"]
        done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [f"{path} cannot be read: Permission denied" for path in paths]


def test_a_folder_without_checkpoints_says_so(tmp_path: Path) -> None:
    (tmp_path / "w.npy").write_bytes(SAMPLES["a.npy"])
    assert refusal(tmp_path) == f"{tmp_path} has no .safetensors file; of a folder with others, give one of them"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_contents_tell_the_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / "checkpoint"
    assert [entry.shape for entry in read(path, SAMPLES[name])] == [
        e.shape for e in read(tmp_path / name, SAMPLES[name])
    ]


@pytest.mark.parametrize(
    "contents", [b"x", b"hello, world; this is a text", bytes(100), b"\x89PNG\r\n\x1a\n" + bytes(9)]
)
def test_other_files_are_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "a").write_bytes(contents)
    assert "a, byte 0: this begins as no format that is read: safetensors, .npy" in refusal(tmp_path / "a")


def test_a_name_must_be_unicode_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.npy")
    path.write_bytes(SAMPLES["a.npy"])
    assert "the name '\\udcff' is no Unicode text" in refusal(path)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "w.npy").write_bytes(SAMPLES["a.npy"])
    assert [entry.source.path for entry in checkpoints.read(str(tmp_path / "w.npy"))] == [tmp_path / "w.npy"]
