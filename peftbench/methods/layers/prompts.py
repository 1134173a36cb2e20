"""Learned tokens, and the blocks that take them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Prompts(nn.Module):
    """Learned tokens for one block: (p, d), projected to the width of the stream if d differs."""

    def __init__(self, tokens: Tensor, projection: nn.Linear | None, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens)
        self.projection = projection  # shared by all blocks
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: int) -> Tensor:
        """(batch, p, D): the prompts of each image."""
        tokens = self.learned()
        if self.projection is not None:
            tokens = self.projection(tokens)
        return self.dropout(tokens.expand(batch, -1, -1))  # another mask for each sample

    def learned(self) -> Tensor:
        """(p, d): the tokens in front of the projection."""
        return self.tokens


class MaskedPrompts(Prompts):
    """Learned tokens times masks that all blocks share: one for whole tokens, one for pieces."""

    def __init__(self, prompts: Prompts, token_mask: nn.Parameter, piece_mask: nn.Parameter):
        super().__init__(prompts.tokens.detach(), prompts.projection, prompts.dropout.p)
        self.token_mask = token_mask  # (p,)
        self.piece_mask = piece_mask  # (p, m); channel c belongs to piece c mod m

    def learned(self) -> Tensor:
        """(p, d): the masked tokens."""
        width, pieces = self.tokens.shape[1], self.piece_mask.shape[1]
        of_channels = self.piece_mask.repeat(1, -(-width // pieces))[:, :width]
        return self.tokens * self.token_mask[:, None] * of_channels


class KeyValuePrompts(nn.Module):
    """Learned keys and values (heads, t, d) of one attention; one tensor for both if shared."""

    def __init__(self, keys: Tensor, values: Tensor | None) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values) if values is not None else None

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values (heads, t, d)."""
        return self.keys, self.keys if self.values is None else self.values


class PromptedBlock(nn.Module):
    """A block that takes prompts behind the prefix tokens, or behind all tokens if `appended`.

    Removes `removed` earlier prompts in front of the block and `stripped` ones behind it.
    """

    def __init__(
        self,
        block: nn.Module,
        prompts: Prompts | None,
        num_prefix: int,
        appended: bool,
        removed: int,
        stripped: int,
    ) -> None:
        super().__init__()
        self.block = block
        self.prompts = prompts
        self.num_prefix = num_prefix
        self.appended = appended
        self.removed = removed
        self.stripped = stripped

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, N, D) tokens, the prefix first, and prompts if there are any.

        What comes out has as many prompts more as the block adds, and as many fewer as it strips.
        """
        if self.prompts is not None:
            prompts = self.prompts(x.shape[0]).to(x.dtype)
            start = self._start(x, self.removed)
            x = torch.cat((x[:, :start], prompts, x[:, start + self.removed :]), dim=1)
        x = self.block(x, *args, **kwargs)
        if self.stripped:
            start = self._start(x, self.stripped)
            x = torch.cat((x[:, :start], x[:, start + self.stripped :]), dim=1)
        return x

    def _start(self, x: Tensor, num_prompts: int) -> int:
        """Position of the first prompt in `x`, which holds `num_prompts`."""
        return x.shape[1] - num_prompts if self.appended else self.num_prefix


class PooledTokens(nn.Module):
    """Puts a mean of tokens in the place of the class token, behind the last norm.

    So a read-out of the class token reads the mean. Tokens in front of the prompts stay as they
    are but for the first.
    """

    def __init__(self, pooled: str, num_prefix: int, num_prompts: int, appended: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.num_prefix = num_prefix
        self.num_prompts = num_prompts
        self.appended = appended

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, D) tokens, prefix, prompts and patches, or prompts last; the same shape."""
        p, body = self.num_prompts, x[:, self.num_prefix :]
        if self.pooled == "prompts":
            body = body[:, -p:] if self.appended else body[:, :p]
        elif self.pooled == "patches":
            body = body[:, :-p] if self.appended else body[:, p:]
        return torch.cat((body.mean(dim=1, keepdim=True), x[:, 1:]), dim=1)
