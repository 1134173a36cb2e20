"""Cross attention to prompts at the ends of a block."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cvpt_insert1_vit": ("cvpt", {"num_tokens": 3, "insert": 1}),
    "cvpt_insert5_vit": ("cvpt", {"num_tokens": 3, "insert": 5}),
}

NAMES: tuple[tuple[str, str], ...] = ((r"prompt\.layer0(\d)", r"blocks.\1.adapter.tokens"),)
