"""How prompts pass through timm's Swin Transformer, whose blocks exchange feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Role
from peftbench.methods import surgery
from peftbench.methods.layers.attention import ExtendedAttention


class PromptedMap(NamedTuple):
    """What flows between layers where prompts live on."""

    tokens: Tensor  # (B, H, W, C)
    prompts: Tensor  # (B, p, C)


class PromptedWindowBlock(nn.Module):
    """A Swin block with prompts in front of its tokens.

    The prompts of an image are copied into each of its own windows, where they attend and are
    attended to; what comes out of the copies is averaged over the windows.
    """

    def __init__(self, block: nn.Module, prompts: nn.Module | None, keeps_prompts: bool) -> None:
        super().__init__()
        self.block: Any = block
        self.prompts = prompts  # batch size -> (B, p, C); in place of the prompts that come in
        self.keeps_prompts = keeps_prompts

    def forward(self, x: Tensor | PromptedMap) -> Tensor | PromptedMap:
        """Tokens (B, H, W, C), with prompts (B, p, C) where a block before this one keeps them."""
        tokens = x.tokens if isinstance(x, PromptedMap) else x
        if self.prompts is not None:
            prompts = self.prompts(len(tokens)).to(tokens.dtype)
        else:
            assert isinstance(x, PromptedMap)  # shallow prompts come from the block before
            prompts = x.prompts
        height, width, p = *tokens.shape[1:3], prompts.shape[1]
        block = self.block
        y = torch.cat((prompts, tokens.flatten(1, 2)), dim=1)
        y = y + block.drop_path1(self.attention(block.norm1(y), p, height, width))
        if not self.keeps_prompts:
            y, p = y[:, p:], 0
        y = y + block.drop_path2(block.mlp(block.norm2(y)))
        tokens = y[:, p:].unflatten(1, (height, width))
        return PromptedMap(tokens, y[:, :p]) if self.keeps_prompts else tokens

    def attention(self, x: Tensor, p: int, height: int, width: int) -> Tensor:
        """Shifted-window attention on x (B, p + H W, C); the values have the same shape."""
        rows, columns = self.block.window_size
        down, right = self.block.shift_size
        tokens = x[:, p:].unflatten(1, (height, width))
        tokens = torch.roll(tokens, (-down, -right), (1, 2))
        # like timm: windows that stick out are filled with zeros, which are attended to
        tokens = F.pad(tokens, (0, 0, 0, -width % columns, 0, -height % rows))
        mask = self.block.attn_mask
        if self.block.dynamic_mask:
            mask = self.block.get_attn_mask(tokens)
        down_windows, right_windows = tokens.shape[1] // rows, tokens.shape[2] // columns
        windows = tokens.unflatten(2, (right_windows, columns)).unflatten(1, (down_windows, rows))
        windows = windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, windows, area, C)
        # the batch comes first, so that no copy meets the window of another image
        copies = x[:, None, :p].expand(-1, windows.shape[1], -1, -1)
        y = self.attention_in_windows(torch.cat((copies, windows), dim=2), p, mask)
        windows = y[:, :, p:].unflatten(2, (rows, columns))
        windows = windows.unflatten(1, (down_windows, right_windows)).transpose(2, 3)
        tokens = windows.flatten(3, 4).flatten(1, 2)[:, :height, :width]
        tokens = torch.roll(tokens, (down, right), (1, 2))
        return torch.cat((y[:, :, :p].mean(1), tokens.flatten(1, 2)), dim=1)

    def attention_in_windows(self, x: Tensor, p: int, mask: Tensor | None) -> Tensor:
        """Attention inside each window of x (B, windows, p + area, C), in the same shape.

        Pairs with a prompt have no relative position and no mask (windows, area, area), and neither
        have those with learned keys where attention has any.
        """
        layer = self.block.attn
        qkv = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, heads, p + area, head width)
        extra = 0
        if isinstance(layer, ExtendedAttention):
            keys, values = layer.extra()
            extra = keys.shape[1]
            k = torch.cat((keys.to(k.dtype).expand(*k.shape[:2], -1, -1, -1), k), dim=3)
            v = torch.cat((values.to(v.dtype).expand(*v.shape[:2], -1, -1, -1), v), dim=3)
        bias = layer.relative_position_bias_table[layer.relative_position_index]
        bias = bias.permute(2, 0, 1)  # (heads, area, area)
        if mask is not None:
            bias = bias + mask[:, None]
        scores = (layer.scale * q) @ k.transpose(-2, -1) + F.pad(bias, (extra + p, 0, p, 0))
        y = layer.attn_drop(scores.softmax(dim=-1)) @ v
        return layer.proj_drop(layer.proj(y.transpose(2, 3).flatten(3)))


class PromptedMerging(nn.Module):
    """Patch merging that also widens the prompts: each counts as four equal patches."""

    def __init__(self, merging: nn.Module) -> None:
        super().__init__()
        self.merging: Any = merging

    def forward(self, x: PromptedMap) -> PromptedMap:
        """Tokens (B, H / 2, W / 2, 2 C) from (B, H, W, C), prompts (B, p, 2 C) from (B, p, C)."""
        prompts = self.merging.norm(x.prompts.repeat(1, 1, 4))
        return PromptedMap(self.merging(x.tokens), self.merging.reduction(prompts))


class PromptedNorm(nn.Module):
    """The final norm on prompts and tokens, as one row that the pooling averages over."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: PromptedMap) -> Tensor:
        """(B, 1, p + H W, C) from tokens (B, H, W, C) and prompts (B, p, C)."""
        return self.norm(torch.cat((x.prompts, x.tokens.flatten(1, 2)), dim=1))[:, None]


def insert(
    backbone: nn.Module, anatomy: Anatomy, prompts: Mapping[int, nn.Module], pool_prompts: bool
) -> tuple[str, ...]:
    """Let `prompts` (by depth) enter a Swin backbone; returns the paths that were changed.

    Prompts enter in front of their block and live until others replace them or the last block
    ends. With `pool_prompts` those of the last block live on until the read-out.
    """
    last = anatomy.depth - 1
    touched = []
    for site in anatomy.where(Role.BLOCK, Role.TRANSITION, Role.AFTER):
        module = backbone.get_submodule(site.path)
        if site.role is Role.BLOCK:
            keeps = pool_prompts if site.depth == last else site.depth + 1 not in prompts
            wrapped: nn.Module = PromptedWindowBlock(module, prompts.get(site.depth), keeps)
        elif site.role is Role.TRANSITION and site.depth not in prompts:
            wrapped = PromptedMerging(module)
        elif site.role is Role.AFTER and pool_prompts:
            wrapped = PromptedNorm(module)
        else:
            continue
        surgery.replace(backbone, site.path, wrapped)
        touched.append(site.path)
    return tuple(touched)
