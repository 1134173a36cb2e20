"""Which of several ways to compute the same a backbone takes, by what was measured.

They differ in rounding, time and memory only. All models of one run take the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Measured:
    """Unfused over fused attention of one ViT-S block, 6 heads of 64: seconds of a pass.

    Above 1 the fused kernel, `F.scaled_dot_product_attention`, is faster.
    """

    device: str
    dtype: torch.dtype
    tokens: int
    training: float  # forward and backward pass
    inference: float | None  # forward pass; None where it was not measured
    source: str


AMX = "Xeon with AMX, torch 2.15"
EPYC = "EPYC, family 25, model 17 (AVX512_BF16, no AMX), one core, torch 2.15"
ATTENTION = (
    Measured("cpu", torch.float32, 17, 1.02, None, AMX),
    Measured("cpu", torch.float32, 65, 0.99, None, AMX),
    Measured("cpu", torch.float32, 197, 1.04, None, AMX),
    Measured("cpu", torch.bfloat16, 17, 0.67, None, AMX),
    Measured("cpu", torch.bfloat16, 65, 0.68, None, AMX),
    Measured("cpu", torch.bfloat16, 197, 0.78, None, AMX),
    Measured("cpu", torch.float32, 17, 1.01, 1.01, EPYC),
    Measured("cpu", torch.float32, 50, 1.00, 1.01, EPYC),
    Measured("cpu", torch.float32, 65, 1.00, 1.03, EPYC),
    Measured("cpu", torch.float32, 197, 1.07, 1.04, EPYC),
    Measured("cpu", torch.float32, 257, 1.02, 1.05, EPYC),
    Measured("cpu", torch.float32, 577, 1.10, 1.08, EPYC),
    Measured("cpu", torch.float32, 1025, 1.27, 1.45, EPYC),
    Measured("cpu", torch.bfloat16, 17, 0.76, 0.97, EPYC),
    Measured("cpu", torch.bfloat16, 50, 0.80, 0.97, EPYC),
    Measured("cpu", torch.bfloat16, 65, 0.76, 0.94, EPYC),
    Measured("cpu", torch.bfloat16, 197, 0.84, 0.93, EPYC),
    Measured("cpu", torch.bfloat16, 257, 0.82, 0.90, EPYC),
    Measured("cpu", torch.bfloat16, 577, 0.75, 0.87, EPYC),
    Measured("cpu", torch.bfloat16, 1025, 0.87, 0.80, EPYC),
)


def is_fused_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention takes the fused kernel for a forward pass in `dtype` on `device`.

    On a CPU the geometric mean of `ATTENTION` decides. The number of tokens is not asked: it turns
    none of the rows of one dtype by more than 1 %. Where times are equal, as of few tokens in
    float32, the fused kernel keeps less for the backward pass (227 for 269 MiB, ViT-S at 224
    pixels, four images). Devices without a row take it: on a GPU it is FlashAttention or the like,
    which keeps no matrix of tokens by tokens. On "meta" operations are counted, and no counter sees
    into it.
    """
    if device.type == "meta":
        return False
    rows = [row for row in ATTENTION if (row.device, row.dtype) == (device.type, dtype)]
    return not rows or math.prod(row.training for row in rows) >= 1


@dataclass(frozen=True)
class LayoutRatios:
    """Steps of a whole network: time with channels first over that with channels last."""

    architecture: str
    float32: tuple[float, float]  # of full fine-tuning, and of a linear probe
    bfloat16: tuple[float, float]


# 8 images of 128 pixels (Swin: 4 of 224) on one core of the EPYC above
LAYOUTS = (
    LayoutRatios("resnet50", (1.20, 1.02), (1.09, 1.17)),
    LayoutRatios("resnext50_32x4d", (1.18, 1.02), (1.12, 1.13)),
    LayoutRatios("regnety_016", (1.07, 0.97), (1.14, 1.14)),
    LayoutRatios("mobilenetv3_large_100", (1.34, 1.14), (1.01, 1.37)),
    LayoutRatios("tf_efficientnet_lite0", (1.38, 1.09), (0.94, 1.41)),
    LayoutRatios("convnext_tiny", (1.01, 1.01), (1.01, 1.02)),
    LayoutRatios("swin_tiny_patch4_window7_224", (1.07, 0.99), (1.00, 1.00)),
)


def gains_from_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Whether the convolutions of `model` take images with their channels last.

    Networks of convolutions gain by `LAYOUTS`; those whose weights are matrices for the most part,
    as ConvNeXt and transformers, do not. Tensor cores of a GPU take channels last (PyTorch's
    tutorial "Channels Last Memory Format"); no GPU was measured.
    """
    if device.type not in ("cpu", "cuda"):
        return False
    convolutions = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    return convolutions > sum(p.numel() for p in model.parameters()) / 2


def choose_layout(model: nn.Module) -> None:
    """Let `model` have its channels last where that was measured to be faster.

    Not for models that leave a run: safetensors saves contiguous tensors alone.
    """
    parameter = next(model.parameters(), None)
    if parameter is not None and gains_from_channels_last(model, parameter.device):
        model.to(memory_format=torch.channels_last)


def choose_kernels(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Let `model` compute on `device`, in `dtype`, as was measured to be fastest."""
    fused = is_fused_faster(device, dtype)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010
