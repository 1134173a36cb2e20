"""Methods of maps, prompts and prefixes, and their official files."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mona_swin": ("mona", {"bottleneck": 16}),
}

NAMES: tuple[tuple[str, str], ...] = (
    (
        r"(layers\.\d\.blocks\.\d)\.mona_attn\.(.+)",
        r"\1.base.block.norm2.adapter.\2",
    ),
    (r"(layers\.\d\.blocks\.\d)\.mona_mlp\.(.+)", r"\1.adapter.\2"),
)

ELSEWHERE: dict[str, str] = {
    "mona_module": "test_tokens.py",
}
