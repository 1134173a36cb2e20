"""Learned keys and values that a small network makes."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from peftbench.methods.layers.drawn import as_by_default


class PrefixEncoder(nn.Module):
    """tanh(fc1(embedding)): what the prefixes of all attentions have in common."""

    def __init__(
        self, num_tokens: int, width: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_tokens, width, generator=generator))
        self.fc1 = nn.Linear(width, hidden)
        as_by_default(self.fc1, generator)

    def forward(self) -> Tensor:
        """(p, m): one row for each learned key."""
        return torch.tanh(self.fc1(self.embedding))


class EncodedPrefix(nn.Module):
    """Keys and values of one attention, from the shared encoder and a second layer of its own."""

    def __init__(
        self,
        encoder: PrefixEncoder,
        heads: tuple[int, int],
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        """With the number of `heads` and the width of each."""
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.fc2 = nn.Linear(encoder.fc1.out_features, 2 * heads[0] * heads[1])
        self.dropout = nn.Dropout(dropout)
        as_by_default(self.fc2, generator)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values (heads, p, d)."""
        keys, values = self.made()
        return self.dropout(keys), self.dropout(values)

    def made(self) -> tuple[Tensor, Tensor]:
        """Keys and values (heads, p, d) in front of dropout, in the type of the parameters.

        Not in that of autocast: what a task stores of them is then what it computed with.
        """
        device = self.fc2.weight.device.type
        known = torch.amp.is_autocast_available(device)  # not on "meta", where nothing is cast
        with torch.autocast(device, enabled=False) if known else contextlib.nullcontext():
            both = self.fc2(self.encoder()).unflatten(-1, (2, *self.heads))
        keys, values = both.permute(1, 2, 0, 3)
        return keys, values


class DirectPrefix(nn.Module):
    """Keys and values of one attention as they are learned, or as an encoder left them."""

    def __init__(self, keys: Tensor, values: Tensor, dropout: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values)
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values (heads, p, d)."""
        return self.dropout(self.keys), self.dropout(self.values)


@torch.no_grad()
def folded(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the keys and values that encoders make in place of the encoders' tensors."""
    made = {}
    for path, module in model.named_modules():
        if isinstance(module, EncodedPrefix):
            made[path] = module.made()
    kept = {n: t for n, t in state.items() if not n.startswith(tuple(f"{path}." for path in made))}
    for path, (keys, values) in made.items():
        kept |= {f"{path}.keys": keys.contiguous(), f"{path}.values": values.contiguous()}
    return kept
