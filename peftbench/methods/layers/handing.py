"""Modules that tell later ones what they read."""

from __future__ import annotations

from torch import nn


class HandingOn(nn.Module):
    """A module of which later ones see more than its output: what it read, or made of that.

    So nothing that was computed once can stand in for it, and it cannot be computed again alone:
    `run.prefix` and `training.recomputation` ask for the attribute.
    """

    hands_on: bool = True
