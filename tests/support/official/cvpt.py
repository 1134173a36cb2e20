"""Cross attention to prompts between attention and MLP."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cvpt_vit": ("cvpt", {"num_tokens": 5}),
}

NAMES: tuple[tuple[str, str], ...] = (
    (r"prompt\.layer0(\d)", r"blocks.\1.block.norm2.adapter.tokens"),
)
