"""Arrays by name, as models keep them: mappings, nested or not, and pairs; and whether they are still the same."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class Named:
    """Names and arrays in order, and the mappings they came from, if they did: to see when one is replaced."""

    def __init__(self, given: Mapping[str, Any] | Iterable[tuple[str, Any]], what: str) -> None:
        # Each mapping with the names and what it held.
        self._held: list[tuple[Mapping[str, Any], list[str], list[Any]]] = []
        self.pairs: list[tuple[str, Any]] = []
        pairs = self._flattened(given, "", what) if isinstance(given, Mapping) else _pairs(given, what)
        seen: set[str] = set()
        for name, array in pairs:
            if name in seen:
                raise ValueError(f"{what} has two arrays named {name!r}; each must have a name of its own")
            seen.add(name)
            self.pairs.append((name, array))

    def _flattened(self, mapping: Mapping[str, Any], prefix: str, what: str) -> Iterator[tuple[str, Any]]:
        for key, value in self._hold(mapping):
            name = f"{prefix}{_checked(key, what)}"
            if isinstance(value, Mapping):
                yield from self._flattened(value, f"{name}/", what)
            else:
                yield name, value

    def _hold(self, mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Return what a mapping holds, and remember it."""
        items = list(mapping.items())
        self._held.append((mapping, [key for key, _ in items], [value for _, value in items]))
        return items

    def is_current(self) -> bool:
        """Return whether the mappings still hold the very same arrays; what came as pairs always is."""
        return all(
            list(mapping) == names and all(map(operator.is_, mapping.values(), held))
            for mapping, names, held in self._held
        )


def _pairs(given: Any, what: str) -> Iterator[tuple[str, Any]]:
    try:
        pairs = iter(given)
    except TypeError:
        raise TypeError(f"{what} must be a mapping or an iterable of (name, array), not {given!r:.200}") from None
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{what} must be a mapping or an iterable of (name, array); one item is {pair!r:.200}")
        yield _checked(pair[0], what), pair[1]


def _checked(name: Any, what: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} has the name {name!r}; names must be strings")
    return name


def look_up(given: Any, names: list[str], what: str) -> list[Any]:
    """Return the arrays of these names out of a mapping, nested or not, or pairs; an error lists what is missing."""
    if type(given) is dict and list(given) == names:
        return list(given.values())
    mapping = given if isinstance(given, Mapping) else dict(Named(given, what).pairs)
    if all(map(mapping.__contains__, names)):
        found = list(map(mapping.__getitem__, names))
        if type(mapping) is not dict and not all(map(operator.is_, found, map(mapping.__getitem__, names))):
            raise ValueError(f"{what} makes new arrays whenever asked, and what is written to them would be lost")
        return found
    flat = dict(Named(mapping, what).pairs)
    if missing := [name for name in names if name not in flat]:
        listed = ", ".join(map(repr, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        advice = "; give None for a tensor that is to be left out" if what == "grads" else ""
        raise ValueError(f"{what} lacks {listed}{advice}")
    return [flat[name] for name in names]
