"""Small models of timm's architectures without a zero or a neutral tensor anywhere."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from peftbench.backbones.checkpoints.conversion import Needs

State = dict[str, Tensor]
VIT = "vit_tiny_patch16_224"
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def small_model(name: str = VIT, seed: int = 0, **options: object) -> nn.Module:
    """The architecture with random weights around 0.5 and a classifier of three classes."""
    built = timm.create_model(name, num_classes=3, **options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in built.parameters():
            tensor.copy_(0.5 + 0.2 * torch.randn(tensor.shape, generator=generator))
    return built


def body_of(built: nn.Module) -> State:
    """The tensors that a model needs from a file, by their names."""
    needs = Needs.of(built)
    return {name: needs.tensors[name] for name in needs.required}
