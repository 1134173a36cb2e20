"""Fonts that are fast to embed.

A PDF file embeds the characters that it uses, and to find them matplotlib takes apart the rules of
a font by which they join and move. DejaVu Sans has so many that this is most of the time of a small
figure. They are left out here; what pairs of letters are moved by stands in a table of its own.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from matplotlib.font_manager import FontProperties, findfont, fontManager

NAME = "DejaVu Sans of peftbench"
USUAL = "DejaVuSans.ttf"  # what matplotlib comes with, and takes unless told
RULES = ("GSUB", "GPOS", "GDEF")
FAMILY_NAMES = (1, 16)  # in a table of names


def for_embedding() -> Any:
    """Settings of matplotlib that find the usual font without its rules; none for another."""
    usual = findfont(FontProperties(family=["sans-serif"]))
    if Path(usual).name != USUAL:
        return {}
    _register()
    return {"font.sans-serif": [NAME, *mpl.rcParams["font.sans-serif"]]}


@functools.cache
def _register() -> tempfile.TemporaryDirectory[str]:
    """Make the fonts known to matplotlib for as long as this process lives."""
    folder = tempfile.TemporaryDirectory(prefix="peftbench-fonts-")
    for weight in ("normal", "bold"):
        source = findfont(FontProperties(family=["sans-serif"], weight=weight))
        path = Path(folder.name) / Path(source).name
        with TTFont(source, lazy=True, recalcTimestamp=False) as font:  # the same in each process
            for table in RULES:
                if table in font:
                    del font[table]
            for record in font["name"].names:
                if record.nameID in FAMILY_NAMES:
                    record.string = NAME
            font.save(path)
        fontManager.addfont(path)
    return folder  # which goes with the last reference to it
