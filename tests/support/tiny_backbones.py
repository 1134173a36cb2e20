"""Backbones small enough to test every pair: timm's own classes, one for each family or more.

All are random and none is zero anywhere, since a zero bias or a zero layer scale would hide a
mistake. Stochastic layers are present, so that a wrong mode shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.ghostnet import GhostNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.describe import describe
from peftbench.backbones.models.g_ghost import GGhostRegNet
from peftbench.backbones.models.hat_net import HATNet
from peftbench.backbones.models.hornet import HorNet
from peftbench.backbones.models.internimage import InternImage, PostNormInternImage
from peftbench.backbones.models.revcol import RevCol
from support.copies import Copies

NUM_CLASSES = 5  # of the classifier that the backbones come with


@dataclass(frozen=True)
class Tiny:
    """How to build one tiny backbone, and at which image size it works."""

    build: Callable[[], nn.Module]
    image_size: int
    family: str


_vit = partial(
    VisionTransformer,
    img_size=16,
    patch_size=4,
    embed_dim=24,
    depth=2,
    num_heads=3,
    num_classes=NUM_CLASSES,
    drop_path_rate=0.1,
    proj_drop_rate=0.1,
)
_swin = dict(
    img_size=16,
    patch_size=2,
    window_size=4,
    embed_dim=12,
    depths=(2, 1),
    num_heads=(2, 3),
    num_classes=NUM_CLASSES,
    drop_path_rate=0.1,
)
_convnext = partial(
    ConvNeXt,
    depths=(1, 1, 2, 1),
    dims=(8, 12, 16, 24),
    ls_init_value=1.0,
    num_classes=NUM_CLASSES,
    drop_path_rate=0.1,
)
_resnet = partial(ResNet, num_classes=NUM_CLASSES, drop_path_rate=0.1)
_eva = partial(
    Eva,
    img_size=16,
    patch_size=4,
    embed_dim=24,
    depth=2,
    num_heads=3,
    use_rot_pos_emb=True,
    num_classes=NUM_CLASSES,
    drop_path_rate=0.1,
)
_hornet = partial(
    HorNet,
    depths=(1, 1, 2, 1),
    base_dim=16,
    num_classes=NUM_CLASSES,
    drop_path_rate=0.1,
)
_internimage = dict(
    channels=8,
    depths=(1, 1, 2, 1),
    groups=(2, 4, 4, 8),
    num_classes=NUM_CLASSES,
    drop_path_rate=0.1,
)


def _efficientnet() -> nn.Module:
    return EfficientNet(
        decode_arch_def(
            [
                ["cn_r1_k3_s1_e1_c8_skip"],  # plain convolution
                ["er_r1_k3_s2_e2_c12"],  # fused expansion
                ["ir_r1_k3_s2_e2_c16_se0.25", "ir_r1_k3_s1_e2_c16_se0.25"],
                ["ds_r1_k3_s1_c16"],  # depthwise separable
            ]
        ),
        num_classes=NUM_CLASSES,
        num_features=32,
        stem_size=8,
        drop_path_rate=0.1,
    )


def _regnet() -> nn.Module:
    cfg = RegNetCfg(depth=4, w0=8, wa=12.0, wm=1.5, group_size=4, stem_width=8)
    return RegNet(cfg, num_classes=NUM_CLASSES, drop_path_rate=0.1)


TINY: Mapping[str, Tiny] = {
    "vit": Tiny(_vit, 16, "vit"),
    "vit_registers": Tiny(
        partial(_vit, reg_tokens=4, init_values=1.0, qk_norm=True, pre_norm=True), 16, "vit"
    ),
    "vit_average": Tiny(partial(_vit, class_token=False, global_pool="avg"), 16, "vit"),
    "vit_map": Tiny(partial(_vit, class_token=False, global_pool="map"), 16, "vit"),
    "swin": Tiny(partial(SwinTransformer, **_swin), 16, "swin"),
    "swin_v2": Tiny(partial(SwinTransformerV2, **_swin), 16, "swin_v2"),
    "beit": Tiny(
        partial(
            Beit,
            img_size=16,
            patch_size=4,
            embed_dim=24,
            depth=2,
            num_heads=3,
            init_values=1.0,
            use_abs_pos_emb=False,
            use_rel_pos_bias=True,
            num_classes=NUM_CLASSES,
            drop_path_rate=0.1,
        ),
        16,
        "beit",
    ),
    "eva_fused": Tiny(_eva, 16, "eva"),
    "eva_split": Tiny(
        partial(_eva, qkv_fused=False, mlp_ratio=8 / 3, swiglu_mlp=True, scale_mlp=True), 16, "eva"
    ),
    "convnext": Tiny(_convnext, 32, "convnext"),
    "convnext_conv": Tiny(partial(_convnext, conv_mlp=True), 32, "convnext"),
    "resnet_basic": Tiny(
        partial(_resnet, block=BasicBlock, layers=(1, 1, 1, 2), channels=(8, 12, 16, 24)),
        32,
        "resnet",
    ),
    "resnet_bottleneck": Tiny(
        partial(_resnet, block=Bottleneck, layers=(1, 1, 1, 2), channels=(4, 6, 8, 12)),
        32,
        "resnet",
    ),
    "efficientnet": Tiny(_efficientnet, 32, "efficientnet"),
    "mixer": Tiny(
        partial(
            MlpMixer,
            img_size=16,
            patch_size=4,
            num_blocks=2,
            embed_dim=16,
            num_classes=NUM_CLASSES,
            drop_path_rate=0.1,
        ),
        16,
        "mixer",
    ),
    "regnet": Tiny(_regnet, 32, "RegNet"),
    "hornet": Tiny(_hornet, 32, "hornet"),
    "hornet_gf": Tiny(partial(_hornet, filters=(None, None, (4, 3), (2, 2))), 32, "hornet"),
    "revcol": Tiny(
        partial(
            RevCol,
            channels=(8, 12, 16, 24),
            layers=(1, 1, 2, 1),
            num_subnet=2,
            num_classes=NUM_CLASSES,
            drop_path_rate=0.1,
        ),
        32,
        "revcol",
    ),
    "internimage": Tiny(partial(InternImage, **_internimage), 32, "internimage"),
    "internimage_post_norm": Tiny(
        partial(PostNormInternImage, **_internimage, layer_scale=1.0), 32, "internimage_post_norm"
    ),
    "hat_net": Tiny(
        partial(
            HATNet,
            dims=(8, 16, 24, 32),
            head_dim=8,
            depths=(1, 1, 2, 1),
            expansions=(4, 4, 3, 3),
            grid_sizes=(4, 2, 2, 1),
            ds_ratios=(4, 2, 2, 1),
            num_classes=NUM_CLASSES,
            drop_path_rate=0.1,
        ),
        64,  # at 32 one pooled position is left, and attention has no choice
        "hat_net",
    ),
    "g_ghost": Tiny(
        partial(
            GGhostRegNet,
            layers=(1, 2, 3, 1),
            widths=(8, 16, 24, 32),
            group_width=8,
            num_classes=NUM_CLASSES,
        ),
        32,
        "g_ghost",
    ),
    "ghostnet": Tiny(
        partial(
            GhostNet,
            [[[3, 16, 16, 0, 1]], [[3, 48, 24, 0, 2]], [[5, 72, 40, 0.25, 2]]],
            width=0.5,
            num_classes=NUM_CLASSES,
        ),
        32,
        "ghostnet",
    ),
}


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], seed: int) -> None:
    """Overwrite named tensors with seeded noise; nothing is left zero or tiny.

    Magnitudes are uniform in [0.5, 1.5) with a random sign, times 1/sqrt(fan-in) for matrices and
    0.7 for vectors. Running variances are positive, counters of batches stay.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        magnitude = torch.rand(tensor.shape, generator=generator) + 0.5
        sign = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
        if name.endswith("running_var"):
            tensor.copy_(magnitude)
            continue
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        tensor.copy_(magnitude * sign * (fan_in**-0.5 if fan_in > 1 else 0.7))


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """`model` with all its parameters and running statistics filled from `seed`."""
    statistics = {n: b for n, b in model.named_buffers() if ".running_" in f".{n}"}
    fill(dict(model.named_parameters()) | statistics, seed)
    return model


@cache
def _template(name: str) -> tuple[nn.Module, Anatomy]:
    tiny = TINY[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomise(tiny.build(), seed=list(TINY).index(name)).eval()
    for module in model.modules():  # plain attention computes the same and is faster on a CPU
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model, describe(model, tiny.image_size)


@cache
def _copies(name: str) -> Copies:
    return Copies(_template(name)[0])


def fresh(name: str) -> nn.Module:
    """A new copy of the tiny backbone `name`, always with the same random weights."""
    return _copies(name)()


def anatomy_of(name: str) -> Anatomy:
    """The anatomy of the tiny backbone `name`."""
    return _template(name)[1]


def images(name: str, batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(batch, 3, side, side) noise of the size that the tiny backbone `name` takes.

    Strong, so that random weights let the difference between two images through.
    """
    side = TINY[name].image_size
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(batch, 3, side, side, generator=generator).to(dtype)
