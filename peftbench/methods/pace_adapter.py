"""LoRAmul and VPTadd: the adapter of PACE (Ni et al., 2024, arXiv 2409.17137)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import NotMergeable, Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, register_method
from peftbench.methods.in_weights import changed
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

KINDS = ("lora_mul_vpt_add", "lora_add", "vpt_add")
_LINEARS = (Role.ATTN_IN, Role.ATTN_OUT, Role.MLP_IN, Role.MLP_OUT)


@register_method("pace_adapter")
@dataclass(frozen=True)
class PaceAdapter(Method):
    """A change of weight and bias at every linear layer of the blocks, made of both."""

    rank: int = 10  # r; the released commands take 10 for VTAB and 18 for few shots
    kind: str = "lora_mul_vpt_add"  # "lora_add" or "vpt_add" are its parts

    card: ClassVar[MethodCard] = MethodCard(
        title="LoRAmul+VPTadd",
        summary="W x + b + a(x) at every linear layer of the blocks, a(x) = (W * (W_down W_up)) x "
        "+ b * c + W (p_down p_up): a product with the weight and the bias, and a prompt behind "
        "the weight; trained with recipe.consistency=pace it is PACE.",
        paper="arXiv:2409.17137",
        section="4, baseline LoRA_mul+VPT_add",
        reference="MaxwellYaoNi/PACE@9fee345 Vision/pace/residual_adapters.py",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "the released code also adapts linear layers outside blocks, such as Swin's merging",
            "on Mixer the layers of token mixing stay as they are: every later norm would cancel "
            "a constant for all channels of a token",
        ),
        look=("#0072B2", "P"),
    )

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        if self.kind not in KINDS:
            raise unknown_name(f"kind of method={self.name}:", self.kind, KINDS)

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Linear layers of the blocks; a module with two roles counts once."""
        found = [site for site in anatomy.where(*_LINEARS) if site.kind is Kind.LINEAR]
        return tuple({site.path: site for site in found}.values())

    def check(self, anatomy: Anatomy) -> None:
        sites = self.sites(anatomy)
        if not sites:
            raise Unsupported(
                f"pace_adapter needs linear layers in the blocks, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)}"
            )
        unseen = [site.path for site in sites if not site.called]
        if unseen:
            raise Unsupported(
                f"pace_adapter changes the output of {unseen[0]!r}, which {anatomy.family} "
                f"backbones read as a weight and never call. {advice(self.name, anatomy)}"
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.residual_linear import ResidualLinear

        def delta(site: Site) -> ResidualLinear:
            module = backbone.get_submodule(site.path)
            return ResidualLinear(module, self.kind, self.rank, generator)

        return changed(backbone, self.sites(anatomy), delta)

    def unmergeable(self, anatomy: Anatomy) -> str:
        rigid = next((site for site in self.sites(anatomy) if not site.has_bias), None)
        if rigid is None:
            return ""
        return (
            f"pace_adapter adds a constant to the output of {rigid.path!r}, which has no bias to "
            "take it"
        )

    def merge(self, model: nn.Module) -> nn.Module:
        from peftbench.methods import surgery
        from peftbench.methods.layers.residual_linear import fold

        for path, module in model.named_modules():
            if isinstance(module, surgery.DeltaLayer) and module.base.bias is None:
                raise NotMergeable(
                    f"pace_adapter cannot fold what it adds to the bias of {path!r}, which has "
                    "none. Keep it beside the layer."
                )
        fold(model)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        r, total = self.rank, 0
        for site in self.sites(anatomy):
            fan_in = site.fan_in or 0
            if self.kind != "vpt_add":
                total += r * (fan_in + site.width)
            if self.kind == "lora_add" or (self.kind == "lora_mul_vpt_add" and site.has_bias):
                total += site.width
            if self.kind != "lora_add":
                total += r * (fan_in + 1)
        return total
