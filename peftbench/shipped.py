"""Data folders that stand at the top of a clone and inside the package of a wheel."""

from __future__ import annotations

from pathlib import Path

from peftbench.errors import ConfigError

PACKAGE = Path(__file__).parent


def folder(installed: str, clone: str, marker: str) -> Path:
    """`PACKAGE/installed`, or `clone` beside the package, whichever holds the file `marker`.

    Raises:
        ConfigError: neither does, so a part of the installation is missing.
    """
    places = (PACKAGE / installed, PACKAGE.parent / clone)
    for place in places:
        if (place / marker).is_file():
            return place
    raise ConfigError(
        f"{clone}/{marker} is neither in {places[0]} nor in {places[1]}: the installation is "
        "incomplete. Install peftbench again."
    )
