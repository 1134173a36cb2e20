"""Methods that look at images or labels, or train by a loss of their own, and their files."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sct_attn_vit": ("sct", {"channels": 8}),
}

NAMES: tuple[tuple[str, str], ...] = (
    (r"blocks\.(\d)\.sct_attn\.(.+)", r"blocks.\1.block.norm2.adapter.\2"),
    (r"blocks\.(\d)\.sct_mlp\.(.+)", r"blocks.\1.mlp.fc2.adapter.\2"),
    (r"blocks\.(\d)\.sct_(q|v)\.(.+)", r"blocks.\1.attn.qkv.adapter.changes.\2.\3"),
)
