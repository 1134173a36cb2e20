"""Methods that look at images or labels, or train by a loss of their own, and their files."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from peftbench.spec import Recipe

# with losses of their own, which test_losses.py compares
DYT: dict[str, dict[str, Any]] = {
    "dyt_eval_vit": {"bottleneck": 4, "target_ratio": 0.7},
    "dyt_train_vit": {"bottleneck": 6, "scale": 0.1, "target_ratio": 0.5, "dropout": 0.0},
}

DA_VPT: dict[str, Any] = {
    "proxy_prompts": 4,
    "other_prompts": 3,
    "proxy_layers": [2, 3],
    "mapping": [0, 2, 1, 3, 2],
}

# the recipe that makes the loss of a file
RECIPES: dict[str, Recipe] = {
    "pace_fast_vit": Recipe(
        consistency="fast", consistency_weight=0.2, consistency_noise=0.8, epochs=1
    ),
    "pace_vit": Recipe(consistency="pace", consistency_weight=0.5, consistency_noise=1.0),
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "da_vpt_vit": ("da_vpt", DA_VPT),
    "pace_fast_vit": ("pace_adapter", {"kind": "lora_add", "rank": 2}),
    "pace_vit": ("pace_adapter", {"rank": 3}),
    "sct_attn_vit": ("sct", {"channels": 8}),
    **{name: ("dyt", options) for name, options in DYT.items()},
}


def give_draws(model: nn.Module, noise: dict[str, Tensor]) -> None:
    """Let the routers take the draws of Exp(1) of a file."""
    for block in range(len(noise) // 2):
        router: Any = model.get_submodule(f"blocks.{block}.block.norm2.adapter.router")
        pair = noise[f"blocks.{block}.e1"], noise[f"blocks.{block}.e2"]
        router.draw = lambda z, pair=pair: tuple(each.to(z) for each in pair)


INJECT = {"dyt_train_vit": give_draws}

NAMES: tuple[tuple[str, str], ...] = (
    (r"blocks\.(\d)\.dyt_adapter\.(.+)", r"blocks.\1.block.norm2.adapter.bottleneck.\2"),
    (r"blocks\.(\d)\.dyt_router\.(.+)", r"blocks.\1.block.norm2.adapter.router.\2"),
    (r"prompt\.layer0(\d)", r"blocks.\1.prompts"),
    (r"(blocks\.\d\..+)\.pace_(\w+)", r"\1.delta.\2"),
    (r"blocks\.(\d)\.sct_attn\.(.+)", r"blocks.\1.block.norm2.adapter.\2"),
    (r"blocks\.(\d)\.sct_mlp\.(.+)", r"blocks.\1.mlp.fc2.adapter.\2"),
    (r"blocks\.(\d)\.sct_(q|v)\.(.+)", r"blocks.\1.attn.qkv.adapter.changes.\2.\3"),
)
