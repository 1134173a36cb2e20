"""What of a record or a card stays on this machine: absolute paths, names of users and hosts.

Everything that leaves it (bundles, exported folders, pages, tables, uploads) goes through
`public`. What is part of a run's identity stays as it is, so that the run id can be computed again
on the other side.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from peftbench.results.identity import BESIDE
from peftbench.spec.naming import HOMES

HIDDEN = frozenset(("host", "hostname", "node", "user", "username", "login", "email"))
PLACES = frozenset(("root", "checkpoint", "hub", "backbone_source", "data_dir", "results_dir"))
VERBATIM = frozenset(("classes", "method_card", "metrics", "run_id", "schema"))  # no machine
# accounts and machines that many have; replacing these words would only spoil sentences
COMMON = frozenset(
    (
        *("root", "user", "users", "admin", "ubuntu", "debian", "runner", "jovyan", "nobody"),
        *("host", "localhost", "linux", "node", "test", "data", "home", "work", "peftbench"),
    )
)
SHORTEST = 3  # letters of a name that is looked for in sentences

_CLAUSE = r"(?:(?![.:,)] )[^\n'\"<>|;])"  # of a sentence: what a path with spaces may go on over
_END = r"[^\s'\"<>|;,/\\]*"
_PATTERN = re.compile(
    rf"""
    (?P<url>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]+://[^\s'"<>]+)
    | (?P<place>
        (?<![\w.~/\\+@-])(?:[\w.+-]+@)?[\w.-]+:(?=/[^/\s])/(?:{_CLAUSE}*/)?{_END}  # host:/path
        | (?<![\w.~/\\-])/(?=[^\s])(?:{_CLAUSE}*/)?{_END}
        | (?<![\w/])~(?:[A-Za-z_][\w.-]*)?/(?:{_CLAUSE}*/)?{_END}
        | (?<![A-Za-z0-9])[A-Za-z]:[\\/](?:{_CLAUSE}*[\\/])?{_END}
        | \\\\[^\\\s]+\\(?:{_CLAUSE}*\\)?{_END}
    )
    """,
    re.VERBOSE,
)
_WHOLE = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\|file:|(?:[\w.+-]+@)?[\w.-]{2,}:/[^/]")


def public(content: Mapping[str, Any]) -> dict[str, Any]:
    """The plain dictionary of a record or a card without what it tells of this machine.

    Absolute paths are cut to their last part, fields that name a host or a user are empty, and such
    names are taken out of sentences. `run_id_of` of its spec, the names of the classes, and every
    number stay; doing it twice changes nothing more.
    """
    cleaner = _Cleaner(content)
    return {
        key: _public_spec(value, cleaner)
        if key == "spec" and isinstance(value, Mapping)
        else cleaner.value(key, value)
        for key, value in content.items()
    }


def public_text(text: str) -> str:
    """A sentence without absolute paths and without the names of this machine and its user."""
    return _Cleaner({}).text(text)


def is_absolute(text: str) -> bool:
    """Whether a text is a path that tells where on some machine a file lies."""
    return _WHOLE.match(text) is not None


def last_part(place: str) -> str:
    """What a path ends with: `cats` of `/data/cats/`; `~` of a folder that is named after a user.

    Anything but an absolute path stays as it is.
    """
    if not is_absolute(place):
        return place
    windows = "\\" in place or re.match(r"[A-Za-z]:/", place) is not None
    path = (PureWindowsPath if windows else PurePosixPath)(place)
    named_after_user = path.parent.name in HOMES or str(path) == str(Path.home())
    return "~" if named_after_user or path.name.startswith("~") else path.name or "/"


def identified_paths(spec: Mapping[str, Any]) -> list[str]:
    """Absolute paths among what makes the run id, which `public` therefore leaves."""
    parts = {
        name: {k: v for k, v in part.items() if k not in BESIDE.get(name, ()) and k != "checkpoint"}
        if isinstance(part, Mapping)
        else part
        for name, part in spec.items()
        if name != "protocol"
    }
    return [text for text in _texts(parts) if is_absolute(text)]


class _Cleaner:
    """Takes the places and names that one record knows out of its values."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        provenance = content.get("provenance")
        host = provenance.get("host") if isinstance(provenance, Mapping) else None
        self.names = _names_pattern((*_here(), *((host,) if isinstance(host, str) else ())))
        # a path with spaces ends nowhere in a sentence, unless it is known from elsewhere
        known = {place for place in _places(content) if is_absolute(place) and " " in place}
        self.known = sorted(known, key=len, reverse=True)

    def value(self, key: str, value: Any) -> Any:
        """The public form of what stands under `key`."""
        if key in VERBATIM:
            return value
        if key in HIDDEN:
            return "" if isinstance(value, str) else None
        if isinstance(value, str):
            return last_part(value) if key in PLACES and is_absolute(value) else self.text(value)
        if isinstance(value, Mapping):
            return {name: self.value(str(name), item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value("", item) for item in value]
        return value

    def text(self, text: str) -> str:
        """A sentence without paths and names."""
        for place in self.known:
            text = text.replace(place, last_part(place))
        if "/" in text or "\\" in text:
            text = _PATTERN.sub(_cut, text)
        if self.names is None or " " not in text:  # one word is a setting
            return text
        return self.names.sub("...", text)


def _public_spec(spec: Mapping[str, Any], cleaner: _Cleaner) -> dict[str, Any]:
    """Only what is not identity is changed; a local checkpoint is its hash, not its path."""
    beside = {**BESIDE, "backbone": (*BESIDE["backbone"], "checkpoint")}
    return {
        name: {k: cleaner.value(k, v) if k in beside[name] else v for k, v in part.items()}
        if name in beside and isinstance(part, Mapping)
        else cleaner.value(name, part)
        if name == "protocol"
        else part
        for name, part in spec.items()
    }


def _cut(match: re.Match[str]) -> str:
    url = match["url"]
    if url is None:
        return last_part(match["place"])
    if url.startswith("file:"):
        return last_part("/" + url.removeprefix("file:").lstrip("/"))
    scheme, _, rest = url.partition("://")
    address, slash, path = rest.partition("/")
    return f"{scheme}://{address.rpartition('@')[2]}{slash}{path}"  # a password may stand before @


def _places(content: Mapping[str, Any]) -> Iterable[str]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _places(value)
        elif key in PLACES and isinstance(value, str):
            yield value


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


@cache
def _here() -> tuple[str, ...]:
    """Names of this machine and of who is logged in."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account without a name, as in some containers
        user = ""
    return (platform.node(), user, Path.home().name)


@cache
def _names_pattern(names: tuple[str, ...]) -> re.Pattern[str] | None:
    wanted = {name for full in names for name in (full, full.partition(".")[0])}
    telling = sorted(
        (name for name in wanted if len(name) >= SHORTEST and name.lower() not in COMMON),
        key=lambda name: (-len(name), name),
    )
    if not telling:
        return None
    joined = "|".join(map(re.escape, telling))
    return re.compile(rf"(?<![\w-])(?:{joined})(?:\.\w[\w-]*)*(?![\w-])")  # with a domain
