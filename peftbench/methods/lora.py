"""Low-rank adaptation (Hu et al., 2022, §4.1, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Role, Site
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
}


class LowRankDelta(surgery.Delta):
    """scale · B A on chosen row blocks of a weight; A random, B zero."""

    def __init__(
        self,
        rows: Mapping[str, tuple[int, int]],
        fan_in: int,
        width: int,
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.rows = dict(rows)
        self.width = width
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        bound = 1 / math.sqrt(fan_in)  # Kaiming uniform with a = sqrt(5)
        for name, (start, stop) in rows.items():
            a = torch.empty(rank, fan_in).uniform_(-bound, bound, generator=generator)
            self.a[name] = nn.Parameter(a)
            self.b[name] = nn.Parameter(torch.zeros(stop - start, rank))

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        x = self.dropout(x)
        for name, (start, stop) in self.rows.items():
            change = F.linear(F.linear(x, self.a[name]), self.b[name])
            y[..., start:stop] += self.scale * change
        return y

    def of_weight(self) -> Tensor:
        changes = [
            F.pad(self.scale * self.b[name] @ self.a[name], (0, 0, start, self.width - stop))
            for name, (start, stop) in self.rows.items()
        ]
        return torch.stack(changes).sum(0)


@register_method("lora")
@dataclass(frozen=True)
class LoRA(Method):
    """W + (alpha / rank) B A on the weight of each target."""

    rank: int = 8  # r in §4.1
    alpha: float = 8.0  # the update is scaled by alpha / r
    targets: tuple[str, ...] = ("q", "v")  # §4.2 adapts W_q and W_v; timm fuses q, k and v
    dropout: float = 0.0  # on the input of A

    card: ClassVar[MethodCard] = MethodCard(
        title="LoRA",
        paper="arXiv:2106.09685",
        section="4.1-4.2",
        reference="microsoft/LoRA@4c03338; for vision JieShibo/PETL-ViT@026e4f1 binary_adapter",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "one pair on the fused projection, as in NOAH, has as many parameters as separate "
            "pairs on q and v but is another model: targets=[qkv]",
        ),
    )

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(bool(self.targets), f"targets is empty; choose among {', '.join(TARGETS)}.")
        unknown = [t for t in self.targets if t not in TARGETS]
        self.require(not unknown, f"unknown targets {unknown}; choose among {', '.join(TARGETS)}.")
        self.require(
            len(set(self.targets)) == len(self.targets)
            and not ("qkv" in self.targets and {"q", "k", "v"} & set(self.targets)),
            f"targets {list(self.targets)} name one weight twice.",
        )

    def check(self, anatomy: Anatomy) -> None:
        found = {t for site in anatomy.sites for t in self.rows(site, tuple(TARGETS))}
        absent = [t for t in self.targets if t not in found]
        if absent:
            other = ", ".join(t for t in TARGETS if t in found)
            advice = (
                f"They have {other}: set method.targets."
                if other
                else "They have no other target either: use method=bias, partial or full."
            )
            raise Unsupported(
                f"lora targets {', '.join(absent)}, which {anatomy.family} backbones do not have. "
                f"{advice}"
            )

        unseen = [s.path for s in anatomy.sites if not s.called and self.rows(s, self.targets)]
        if self.dropout and unseen:
            raise Unsupported(
                f"lora with dropout needs the input of each target, but {anatomy.family} backbones "
                f"never call {unseen[0]!r}. Set method.dropout=0."
            )

    def rows(self, site: Site, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
        """Which rows of the site's weight each target names: {target: (start, stop)}."""
        rows = {}
        for target in targets:
            if TARGETS[target] is not site.role or site.fan_in is None or not site.channels_last:
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
        sites = [site for site in anatomy.sites if self.rows(site, self.targets)]

        def delta(site: Site) -> LowRankDelta:
            assert site.fan_in is not None
            return LowRankDelta(
                self.rows(site, self.targets),
                site.fan_in,
                site.width,
                self.rank,
                self.alpha / self.rank,
                self.dropout,
                generator,
            )

        deltas, parametrized = surgery.add_deltas(backbone, sites, delta)
        notes = []
        if parametrized:
            notes.append(
                f"{len(parametrized)} weights are parametrized because their modules are never "
                "called; training forms their full gradient"
            )
        return Attachment(
            backbone,
            tuple(p for d in deltas.values() for p in d.parameters()),
            touched=tuple(deltas),
            train_modules=tuple(deltas.values()),
            notes=tuple(notes),
        )

    def merge(self, model: nn.Module) -> nn.Module:
        surgery.bake_deltas(model)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        total = 0
        for site in anatomy.sites:
            for start, stop in self.rows(site, self.targets).values():
                total += self.rank * ((site.fan_in or 0) + stop - start)
        return total
