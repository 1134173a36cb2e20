"""Prompts among tokens, and among keys and values."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "e2vpt_nomask_vit": ("e2vpt", {"num_tokens": 3, "num_kv_tokens": 2, "masks": False}),
    "e2vpt_vit": ("e2vpt", {"num_tokens": 4, "num_kv_tokens": 3, "pieces": 8}),
}

NAMES: tuple[tuple[str, str], ...] = (
    (r"prompt\.layer0(\d)", r"blocks.\1.prompts.tokens"),
    (r"prompt\.(token_mask|piece_mask)", r"blocks.0.prompts.\1"),  # shared by all blocks
    (r"blocks\.(\d)\.attn\.kv_prompt", r"blocks.\1.block.attn.extra.keys"),
)
