"""A classifier that asks the nearest training images, by their features."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

LEAST_SHARE = 1e-6  # of the votes, so that every logit is finite


def _exact(device: str) -> contextlib.AbstractContextManager[object]:
    """No autocast: similarities that are rounded to bfloat16 are often equal."""
    if not torch.amp.is_autocast_available(device):  # of tensors without storage
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


class NearestNeighbours(nn.Module):
    """Logits are logarithms of the shares of votes that the `k` most similar rows give.

    A row votes for its class with exp(cosine similarity / temperature) (Wu et al., 2018, §3.4,
    arXiv:1805.01978). It begins with one random row a class; `fill` puts training images there.
    """

    labels: Tensor

    def __init__(
        self, width: int, num_classes: int, k: int, temperature: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.num_classes, self.k, self.temperature = num_classes, k, temperature
        rows = torch.randn(num_classes, width, generator=generator)
        self.bank = nn.Parameter(normalize(rows, dim=1))
        self.register_buffer("labels", torch.arange(num_classes))

    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Ask these rows from now on; features: (N, width), labels: (N,)."""
        self.resize(len(labels))
        with torch.no_grad():
            self.bank.copy_(normalize(features, dim=1))
            self.labels.copy_(labels)

    def resize(self, rows: int) -> None:
        """Make room for so many rows, of any content."""
        if rows != len(self.bank):
            self.bank = nn.Parameter(self.bank.new_zeros(rows, self.bank.shape[1]))
            self.labels = self.labels.new_zeros(rows)

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits of features (B, width)."""
        with _exact(x.device.type):
            x = normalize(x.to(self.bank.dtype), dim=1)
            similar, rows = (x @ self.bank.T).topk(min(self.k, len(self.bank)), dim=1)
            votes = (similar / self.temperature).softmax(dim=1)
            shares = votes.new_zeros(len(x), self.num_classes)
            shares = shares.scatter_add(1, self.labels[rows], votes)
            return shares.clamp(min=LEAST_SHARE).log()
