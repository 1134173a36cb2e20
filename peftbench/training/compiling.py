"""`torch.compile` for training, where it was asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftbench.errors import ConfigError
from peftbench.training.device import Compute

# draw from torch's generators, as without compiling
SAME_DROPOUT: dict[str, Any] = {"fallback_random": True}


def compiled(objective: nn.Module, compute: Compute) -> nn.Module:
    """What computes as `objective` does, compiled at its first steps where `compute` asks for it.

    Raises:
        ConfigError: nothing can be compiled here, for want of a compiler most of the time.
    """
    if not compute.compile:
        return objective
    try:  # within seconds, and not after the data and the weights
        torch.compile(torch.sin)(torch.ones(8, device=compute.device))
    except Exception as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise ConfigError(
            f"compile=true, but torch.compile fails on this machine: {reason} Install a C++ "
            "compiler (on a GPU, Triton too), or use compile=false."
        ) from e
    return torch.compile(objective, options=SAME_DROPOUT)  # type: ignore[return-value]
