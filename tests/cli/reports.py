"""What the tests of `gpureg report` and `gpureg diff` share: a checkpoint, a hostile name, and how output is read."""

import json
import re
import subprocess
import time
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints.samples import Array
from tests.helpers import content

WEIGHTS: Mapping[str, Array] = {
    "embed.weight": content("weights", 300, "float32").reshape(30, 10),
    "layers.0.weight": np.array([[3.0, -4.0], [0.0, 1e-4]]),
    "layers.0.bias": np.zeros(2, np.float32),
    "layers.1.weight": np.array([[1.0, 2.0], [2.0, 4.0]]),
    "layers.1.bias": np.full(2, 0.5, np.float32),
    "steps": np.arange(3),
}

HOSTILE = '\x1b[2J\x1b]0;owned\x07evil\r\n\u202e\x9b31m[red]$x^2$|`a`"><img src=x></td><script>alert(1)</script>'
"""A name that would clear a terminal, begin other lines, turn text around, be markup, or run."""

LARGE = 2**34
"""Bytes of a file of zeros, which take seconds to go through."""

Run = Callable[..., tuple[int, str, str]]
"""What runs a command and returns its exit status, its output and its complaints."""


def plain(text: str) -> str:
    """Return text without colours and weights of letters, and no other control sequences."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def strict_json(text: str) -> Any:
    """Read JSON as its standard has it, without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    return re.split(r" {2,}", line.strip())


def is_harmless(text: str) -> bool:
    """Return whether no character of a text but ends of lines is one that a terminal obeys."""
    return not any(unicodedata.category(letter) in ("Cc", "Cf") and letter != "\n" for letter in text)


def wait_until_reading(process: subprocess.Popen[bytes], path: Path) -> None:
    """Wait until a process has mapped a file: then it is up, and an interrupt meets the command, not Python."""
    for _ in range(600):
        if path.name in Path(f"/proc/{process.pid}/maps").read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} was not read within 30 seconds")
