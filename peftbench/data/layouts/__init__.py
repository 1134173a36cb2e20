"""Layouts in which people have public data sets on their disks, by name."""

from peftbench.data.layouts import archives, cifar, classes, lists  # noqa: F401  # register theirs
from peftbench.data.layouts.base import LAYOUTS, Contents, Layout, Match, Rows, match

__all__ = ["LAYOUTS", "Contents", "Layout", "Match", "Rows", "match"]
