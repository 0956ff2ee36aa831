"""Scopes of names: of variables, as a user opens them, and of operations, which TensorFlow makes unique beside them."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np

_ROOT_NAME = re.compile(r"^[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*$")
_NESTED_NAME = re.compile(r"^[A-Za-z0-9_.\\/>-]*$")


def check_name(name: str, *, root: bool) -> None:
    """Refuse a name that TensorFlow would, in its words."""
    kind, pattern = ("root scope", _ROOT_NAME) if root else ("scope", _NESTED_NAME)
    if not pattern.match(name):
        raise ValueError(
            f"'{name}' is not a valid {kind} name. A {kind} name has to match the following pattern: {pattern.pattern}"
        )


def unique_name(names: dict[str, int], name: str) -> str:
    """Return a name that was not given before: with a number if it was; upper and lower case are one.

    `names` has the next number of each name that was asked for.

    >>> names: dict[str, int] = {}
    >>> [unique_name(names, name) for name in ("conv", "conv", "Conv", "conv_1", "fc")]
    ['conv', 'conv_1', 'Conv_2', 'conv_1_1', 'fc']
    """
    key = name.lower()
    number = names.get(key, int(_is_numbered(names, key)))
    while number and (f"{key}_{number}" in names or _is_numbered(names, f"{key}_{number}")):
        number += 1
    names[key] = number + 1
    return f"{name}_{number}" if number else name


def _is_numbered(names: dict[str, int], key: str) -> bool:
    """Return whether a name was given to another one, with a number: that is not written down for each."""
    base, _, number = key.rpartition("_")
    return number.isdecimal() and number[0] != "0" and int(number) < names.get(base, 0)


class Reuse(Enum):
    """The type of `AUTO_REUSE`."""

    AUTO_REUSE = 1


AUTO_REUSE: Final = Reuse.AUTO_REUSE
"""As `reuse`: a variable that is there is returned, another is made."""


@dataclass(eq=False)
class VariableScope:
    """An open scope: what `variable_scope` gives, and takes to open the scope again.

    A scope that is opened by this object again, wherever that is, keeps its regularizer, initializer, dtype and
    `reuse`; one that is opened by its name inherits those of the scope around.

    Attributes
    ----------
    name
        The prefix of the variables' names, without the last slash.
    reuse
        False where variables are made, True where they must be there, or `AUTO_REUSE`.
    regularizer, initializer, dtype
        What `get_variable` takes where it is given none.
    original_name_scope
        The prefix of other names, made unique when the scope was first opened; it ends in a slash.
    """

    name: str = ""
    reuse: Reuse | bool = False
    regularizer: Any = None
    initializer: Any = None
    dtype: Any = np.float32
    original_name_scope: str = ""

    def reuse_variables(self) -> None:
        """Let no more variables be made: all must be there from now on."""
        self.reuse = True

    def set_regularizer(self, regularizer: Any) -> None:
        """Set the regularizer of variables that are made from now on."""
        self.regularizer = regularizer


class Scopes(threading.local):
    """Where a thread is in a graph: the variable scope that is open, and the scope of other names.

    Those of a scope whose name had to be made unique are forgotten with it: nothing can come back to it, and a script
    that opens it in each step would fill the memory.
    """

    def __init__(self, names: dict[str, int]) -> None:
        self.current = VariableScope()
        self.opened: dict[str, int] = {}
        """How often each variable scope was opened, as far as that counts for the next default name."""
        self._names = names
        self._prefix = ""

    def unique_name(self, name: str) -> str:
        """Return a name within the scope that is open, made unique."""
        return unique_name(self._names, self._prefix + name)

    @contextmanager
    def name_scope(self, name: str) -> Iterator[str]:
        """Open a scope of names other than variables', made unique, and return its prefix."""
        check_name(name, root=not self._prefix)
        names, prefix = self._names, self._prefix
        unique = self.unique_name(name)
        self._names = names if unique == prefix + name else {}
        self._prefix = f"{unique}/"
        try:
            yield self._prefix
        finally:
            self._names, self._prefix = names, prefix

    @contextmanager
    def variable_scope(self, scope: VariableScope) -> Iterator[VariableScope]:
        """Open a variable scope under the name of the one around; default names within it start anew each time."""
        around = self.current
        self.opened[scope.name] = self.opened.get(scope.name, 0) + 1
        self.current = scope
        try:
            yield scope
        finally:
            self.current = around
            for name in self.opened:
                if name.startswith(f"{scope.name}/"):
                    self.opened[name] = 0

    @contextmanager
    def reopened(self, scope: VariableScope) -> Iterator[VariableScope]:
        """Open a variable scope once more; what was counted in it is forgotten after it."""
        around, opened = self.current, self.opened
        opened[scope.name] = opened.get(scope.name, 0) + 1
        self.opened = dict(opened)
        self.current = scope
        try:
            yield scope
        finally:
            self.current, self.opened = around, opened

    def unique_variable_scope(self, name: str) -> str:
        """Return a default name, with a number where a scope of that name was opened in the current one."""
        prefix = f"{self.current.name}/" if self.current.name else ""
        number, unique = 0, name
        while self.opened.get(prefix + unique, 0):
            number += 1
            unique = f"{name}_{number}"
        return unique
