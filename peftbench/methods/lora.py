"""Low-rank adaptation (Hu et al., 2022, §4.1, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods import surgery
from peftbench.methods.base import Attachment, Method, MethodCard, register_method

# target -> role of its sites; q, k and v may be row blocks of one fused projection
TARGETS: Mapping[str, Role] = {
    "q": Role.ATTN_IN,
    "k": Role.ATTN_IN,
    "v": Role.ATTN_IN,
    "qkv": Role.ATTN_IN,  # one pair on the whole fused projection
    "proj": Role.ATTN_OUT,
    "fc1": Role.MLP_IN,
    "fc2": Role.MLP_OUT,
    "conv": Role.SPATIAL_CONV,  # larger than 1 x 1, depthwise and grouped ones too
    "pointwise": Role.POINT_CONV,
}
AUTO = "auto"  # what `targets` says by default


class LowRankDelta(surgery.Delta):
    """scale · B A on chosen row blocks of a weight; A random, B zero."""

    def __init__(
        self,
        rows: Mapping[str, tuple[int, int]],
        shape: tuple[int, int],
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.width, fan_in = shape  # of the weight: outputs, inputs
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        bound = 1 / math.sqrt(fan_in)  # Kaiming uniform with a = sqrt(5)
        for name, (start, stop) in rows.items():
            a = torch.empty(rank, fan_in).uniform_(-bound, bound, generator=generator)
            self.a[name] = nn.Parameter(a)
            self.b[name] = nn.Parameter(torch.zeros(stop - start, rank))

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        x = self.dropout(x)
        for name, (start, stop) in self.rows.items():
            change = F.linear(F.linear(x, self.a[name]), self.b[name])
            y[..., start:stop] += self.scale * change
        return y

    def weight_delta(self) -> Tensor:
        changes = [
            F.pad(self.scale * self.b[name] @ self.a[name], (0, 0, start, self.width - stop))
            for name, (start, stop) in self.rows.items()
        ]
        return torch.stack(changes).sum(0)


class LowRankConvDelta(surgery.Delta):
    """scale · B A on the kernel of a convolution, read as a matrix (out, in / groups · k · k).

    Without groups it runs as a convolution with the kernels of A to `rank` channels and a 1 x 1
    convolution with B. Groups share A; there the small kernel B A is formed, which for a depthwise
    convolution is as cheap.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        target: str,
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.target = target
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding = conv.padding
        self.same = isinstance(conv, Conv2dSame)  # pads by the size of its input
        shape = (rank, *conv.weight.shape[1:])
        bound = 1 / math.sqrt(math.prod(shape[1:]))  # Kaiming uniform with a = sqrt(5)
        a = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        self.a = nn.ParameterDict({target: a})
        self.b = nn.ParameterDict({target: torch.zeros(conv.weight.shape[0], rank)})

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        x = self.dropout(x)
        if self.same:
            kernel = self.a[self.target].shape[-2:]
            x = pad_same(x, list(kernel), list(self.stride), list(self.dilation))
        if self.groups == 1:
            hidden = self._convolve(x, self.a[self.target])
            return y + self.scale * F.conv2d(hidden, self.b[self.target][:, :, None, None])
        return y + self._convolve(x, self.weight_delta())

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """With the stride, padding and groups of the frozen layer."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return F.conv2d(x, kernel, None, *geometry)  # type: ignore[arg-type]

    def weight_delta(self) -> Tensor:
        a, b = self.a[self.target], self.b[self.target]
        return (self.scale * b @ a.flatten(1)).unflatten(1, a.shape[1:])


@register_method("lora")
@dataclass(frozen=True)
class LoRA(Method):
    """W + (alpha / rank) B A on the weight of each target."""

    rank: int = 8  # r in §4.1
    alpha: float = 8.0  # the update is scaled by alpha / r
    # auto: q and v where there is attention (§4.2; timm fuses q, k and v), fc1 and fc2 in other
    # nets with an MLP in each block, all convolutions elsewhere
    targets: tuple[str, ...] = (AUTO,)
    dropout: float = 0.0  # on the input of A

    card: ClassVar[MethodCard] = MethodCard(
        title="LoRA",
        summary="W + (alpha / r) B A in place of the weight W of each target, with A (r x inputs) "
        "random and B (outputs x r) zero at the start.",
        paper="arXiv:2106.09685",
        section="4.1-4.2",
        reference="microsoft/LoRA@4c03338; for vision JieShibo/PETL-ViT@026e4f1 binary_adapter",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "one pair on the fused projection, as in NOAH, has as many parameters as separate "
            "pairs on q and v but is another model: targets=[qkv]",
            "outside attention the targets are ours; a convolution gets B A on its kernel, read as "
            "a matrix, and groups share A",
        ),
        look=("#0072B2", "o"),
    )

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(bool(self.targets), f"targets is empty; choose among {', '.join(TARGETS)}.")
        unknown = [t for t in self.targets if t not in TARGETS and self.targets != (AUTO,)]
        self.require(not unknown, f"unknown targets {unknown}; choose among {', '.join(TARGETS)}.")
        self.require(
            len(set(self.targets)) == len(self.targets)
            and not ("qkv" in self.targets and {"q", "k", "v"} & set(self.targets)),
            f"targets {list(self.targets)} name one weight twice.",
        )

    def check(self, anatomy: Anatomy) -> None:
        described = {t for site in anatomy.sites for t in self.rows(site, tuple(TARGETS))}
        absent = [t for t in self.resolved(anatomy) if t not in described]
        if not anatomy.sites:
            raise Unsupported(
                f"lora needs to know the weights, and family {anatomy.family!r} describes none. "
                "Use method=bias, norm or full, or describe the class in backbones/families.py."
            )
        if absent:
            other = ", ".join(t for t in TARGETS if t in described)
            advice = (
                f"They have {other}: set method.targets."
                if other
                else "They have no other target either: use method=bias, partial or full."
            )
            raise Unsupported(
                f"lora targets {', '.join(absent)}, which {anatomy.family} backbones do not have. "
                f"{advice}"
            )

        unseen = [s.path for s in self.sites(anatomy) if not s.called]
        if self.dropout and unseen:
            raise Unsupported(
                f"lora with dropout needs the input of each target, but {anatomy.family} backbones "
                f"never call {unseen[0]!r}. Set method.dropout=0."
            )

    def resolved(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The targets, with `auto` replaced by what it means on this backbone."""
        if self.targets != (AUTO,):
            return self.targets
        if anatomy.where(Role.ATTN_IN):
            return ("q", "v")
        if anatomy.where(Role.MLP_IN):
            return ("fc1", "fc2")
        return tuple(t for t in ("conv", "pointwise") if anatomy.where(TARGETS[t]))

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Sites of the targets; a module with two roles counts once."""
        return tuple(s for s in anatomy.sites if self.rows(s, self.resolved(anatomy)))

    def rows(self, site: Site, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Which rows of the site's weight each target names: {target: (start, stop)}."""
        rows = {}
        for target in targets:
            if TARGETS[target] is not site.role or site.kind not in (Kind.LINEAR, Kind.CONV):
                continue
            if target in site.parts:
                size = site.width // len(site.parts)
                start = site.parts.index(target) * size
                rows[target] = (start, start + size)
            elif not site.parts or (target == "qkv" and len(site.parts) == 3):
                rows[target] = (0, site.width)
        return rows

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        scale = self.alpha / self.rank

        def delta(site: Site) -> surgery.Delta:
            rows = self.rows(site, self.resolved(anatomy))
            module = backbone.get_submodule(site.path)
            if isinstance(module, nn.Conv2d):
                (target,) = rows
                return LowRankConvDelta(module, target, self.rank, scale, self.dropout, generator)
            assert site.fan_in is not None
            shape = (site.width, site.fan_in)
            return LowRankDelta(rows, shape, self.rank, scale, self.dropout, generator)

        deltas, notes = surgery.add_deltas(backbone, self.sites(anatomy), delta)
        return Attachment(
            backbone,
            tuple(p for d in deltas.values() for p in d.parameters()),
            touched=tuple(deltas),
            train_modules=tuple(deltas.values()),
            notes=notes,
        )

    def merge(self, model: nn.Module) -> nn.Module:
        surgery.bake_deltas(model)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        total = 0
        for site in self.sites(anatomy):
            for start, stop in self.rows(site, self.resolved(anatomy)).values():
                total += self.rank * ((site.fan_in or 0) + stop - start)
        return total
