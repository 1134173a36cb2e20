"""Networks beside a frozen backbone, and methods that choose by looking at images."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dtl_plus_swin": ("dtl", {"rank": 3, "fusion_size": 3, "add_blocks": [1, 2, 3]}),
    "dtl_plus_vit": ("dtl", {"rank": 3, "fusion_size": 3}),
    "dtl_vit": ("dtl", {"rank": 2, "beta": 3.0}),
    "hst_vit": ("hst", {"side_widths": [8, 12, 16, 20], "side_heads": [2, 3, 4, 5]}),
}

NAMES: tuple[tuple[str, str], ...] = (
    (r"(.*blocks\.\d)\.dtl\.(a|b)", r"\1.gather.\2"),
    (r"(layers\.\d\.)?dtl\.fusion\.weight", r"\1blocks.0.fusion.weight"),  # shared by a stage
    (r"blocks\.(\d+)\.hst_(meta\S*)", r"backbone.blocks.\1.\2"),
    (r"hst\.(.+\.)(q|k|v|proj)\.(\w+)", r"side.\1attn.\2.\3"),
    (r"hst\.(.+)", r"side.\1"),
    # of the blocks around which hst stands; no other of these files has a backbone tensor
    (r"backbone\.blocks\.(\d+)\.(norm\d\..+)", r"backbone.blocks.\1.block.\2"),
)

ELSEWHERE: dict[str, str] = {
    "gps_vit": "test_side.py",
    "lst_module": "test_side.py",
    "module_noah_subnet": "test_noah_subnets.py",
    "module_noah_subnet_rise": "test_noah_subnets.py",
    "spt_lora_vit": "test_side.py",
}
