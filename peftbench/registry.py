"""A small registry: register, look up with suggestions, list."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from peftbench.errors import UnknownName

T = TypeVar("T")

MAX_LISTED = 40  # a longer list of known names hides the suggestions


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a `name` that is not among `known`, with the closest matches first."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean: {', '.join(close)}?" if close else ""
    if close and len(names) > MAX_LISTED:
        return UnknownName(f"Unknown {kind} {name!r}.{hint}")
    return UnknownName(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


class Registry(Generic[T]):
    """Names and what they stand for, filled at import and then only read."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that stores the object under `name`; a taken name raises `ValueError`."""

        def store(entry: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and taken is not entry:
                raise ValueError(
                    f"{self.kind} {name!r} is registered twice: {_origin(taken)} and "
                    f"{_origin(entry)}. Rename one of them."
                )
            self._entries[name] = entry
            return entry

        return store

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def entries(self) -> tuple[T, ...]:
        """What is registered, in the order in which it was."""
        return tuple(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


def _origin(entry: object) -> str:
    module = getattr(entry, "__module__", "?")
    return f"{module}.{getattr(entry, '__qualname__', repr(entry))}"
