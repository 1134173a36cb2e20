"""What leaves the machine, without the places, hosts and users that it was made with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

LEFT_OUT = frozenset(("host", "hostname", "user", "username"))  # keys
PLACES = frozenset(("root", "checkpoint", "backbone_source"))  # keys of paths, relative ones too
# an absolute path in a text: /a/b.png, ~/b.png, ~user/b.png, C:\b.png, \\host\b.png, file:///b.png
ABSOLUTE = re.compile(
    r"""(?<![\w.~/\\:)\]-])
        (?:file://)?
        (?:/|~[\w-]*/|[A-Za-z]:[\\/]|\\\\)
        (?:[^\s'"<>|/\\]+[/\\]+)*
        ([^\s'"<>|/\\]+)[/\\]*""",
    re.VERBOSE,
)
STARTS = re.compile(r"(?:/|~[\w-]*/|[A-Za-z]:[\\/]|\\\\|file://)")


def public(content: Mapping[str, Any]) -> dict[str, Any]:
    """A record's or card's plain dictionary as it may leave the machine.

    Absolute paths become their last part, wherever they stand; hosts and users are dropped.
    """
    return {
        key: last_part(value) if key in PLACES and isinstance(value, str) else _public(value)
        for key, value in content.items()
        if key not in LEFT_OUT
    }


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return public(value)
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, str):
        # a path alone may have spaces in it, one in a sentence ends at the first
        return last_part(value) if STARTS.match(value) else ABSOLUTE.sub(r"\1", value)
    return value


def last_part(path: str) -> str:
    """The name at the end of a path of this or another system; `path` where there is none."""
    return PureWindowsPath(PurePath(path).name).name or path
