"""The anatomy of a backbone that nobody described, by looking at it.

A forward pass of a copy with random weights is watched (`trace`, `flow`), which shows the residual
blocks (`structure`) and what each layer does (`roles`). Each role is confirmed by an experiment
(`confirm`); what is not confirmed is left out with its reason.
"""

from __future__ import annotations

from peftbench.backbones.inference.infer import NOTHING, Inferred, LeftOut, infer

__all__ = ["NOTHING", "Inferred", "LeftOut", "infer"]
