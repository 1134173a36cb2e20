"""What a forward pass keeps for backward, in bytes, over what it keeps when everything trains.

Both are counted exactly, so that these ratios do not depend on the machine.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.backbones.describe import describe
from peftbench.methods import METHODS, apply, discover

discover()

SIZE = 64
BUILDERS = {  # wide enough that ranks and bottlenecks are small beside the width
    "vit": lambda: VisionTransformer(
        img_size=SIZE,
        patch_size=4,
        embed_dim=384,
        depth=4,
        num_heads=6,
        num_classes=5,
        weight_init="skip",
    ),
    "resnet": lambda: ResNet(block=Bottleneck, layers=(1, 1, 1, 2), num_classes=5),
    "convnext": lambda: ConvNeXt(depths=(1, 1, 2, 1), dims=(48, 96, 192, 384), num_classes=5),
}


@cache
def kept_bytes(backbone: str, method: str) -> int:
    """Of all storages that autograd saves, each once, without parameters and buffers."""
    model = BUILDERS[backbone]()
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS[method](), model, describe(model, SIZE), 5, generator)
    tuned.train()
    model = tuned.model
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    # storages are held, so that no address is used twice
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        F.cross_entropy(model(torch.zeros(1, 3, SIZE, SIZE)), torch.tensor([0]))
    return sum(storage.nbytes() for storage in saved.values())


def test_the_count_is_that_of_a_linear_layer_worked_out_by_hand() -> None:
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    layer = nn.Linear(6, 4).requires_grad_(False)
    x = torch.ones(5, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x).exp()
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    assert sorted(kept.values()) == [4 * 5 * 4, 4 * 6 * 4]  # exp's output, the frozen weight


@pytest.mark.parametrize(
    ("backbone", "method", "bound"),
    [
        # of 16 units of tokens x width in a block, norm tuning keeps 10. What is outside the
        # blocks weighs more here than among 12 blocks: 0.01, and 0.03 for ssf
        ("vit", "adapter_plus", 0.65),
        ("vit", "convpass", 0.75),
        ("vit", "fact_tt", 0.76),
        ("vit", "lora", 0.7),
        ("vit", "repadapter", 0.76),
        ("vit", "ssf", 0.79),
        ("resnet", "adapter_plus", 0.85),
        ("resnet", "ssf", 1.0),
        ("convnext", "lora", 0.75),
        ("convnext", "ssf", 0.77),
    ],
)
def test_a_method_beside_frozen_weights_keeps_this_share_of_full_tuning_at_most(
    backbone: str, method: str, bound: float
) -> None:
    assert kept_bytes(backbone, method) <= bound * kept_bytes(backbone, "full")
