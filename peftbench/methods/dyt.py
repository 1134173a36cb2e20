"""Dynamic tuning: tokens that skip the MLP (Zhao et al., 2024, arXiv 2403.11808)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    parameters_of,
    register_method,
)
from peftbench.methods.layers.design import Design

if TYPE_CHECKING:
    import torch
    from torch import nn

LAYERS = (Role.MLP_IN, Role.MLP_OUT)
TOLERANCE = 1e-3  # of a layer that must treat each token alone


@register_method("dyt")
@dataclass(frozen=True)
class DynamicTuning(Method):
    """An adapter beside each MLP for all tokens, and a router that lets some skip the MLP."""

    bottleneck: int = 8  # h
    scale: float = 1.0  # s
    dropout: float = 0.1  # on the bottleneck
    target_ratio: float = 0.5  # of patch tokens that take the MLP
    ratio_weight: float = 2.0  # of the term that keeps the ratio
    temperature: float = 5.0  # of the routers while they train
    threshold: float = 0.5  # of the probability above which a token takes the MLP

    card: ClassVar[MethodCard] = MethodCard(
        title="DyT",
        summary="y + m(y) MLP(LN y) + s W_up relu(W_down y): a bottleneck for all tokens beside "
        "each MLP, which a patch token skips (m = 0) unless sigmoid(w y + b) > 0.5.",
        paper="arXiv:2403.11808",
        section="3.2-3.4",
        reference="NUS-HPC-AI-Lab/Dynamic-Tuning@d1744f0 models/vision_transformer_IN21K.py, "
        "models/losses.py, engine_finetune.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "the ratio of tokens is that of the images that are in memory together, as it is on "
            "each device in the released code",
            "both passes of a step are one pass over the batch and its copy, so that a head that "
            "normalises batches would see both",
            "the released minimum of tokens is zero, where it says nothing, and is left out; so is "
            "the mixture of adapters of section 3.5",
            "outside plain ViTs the placement is ours",
        ),
        look=("#009E73", "v"),
        dynamic=True,
    )

    @property
    def design(self) -> Design:
        """What the adapters have in common."""
        return Design(activation="relu", dropout=self.dropout, scale=self.scale)

    def validate(self) -> None:
        self.require(self.bottleneck >= 1, f"bottleneck={self.bottleneck}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(self.ratio_weight >= 0, f"ratio_weight={self.ratio_weight} is negative.")
        self.require(self.temperature > 0, f"temperature={self.temperature} is not positive.")
        for key in ("target_ratio", "threshold"):
            value = getattr(self, key)
            self.require(0 <= value <= 1, f"{key}={value} is not in [0, 1].")

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """The entries of the MLPs."""
        return anatomy.where(Role.MLP_ENTRY)

    def check(self, anatomy: Anatomy) -> None:
        sites = self.sites(anatomy)
        why = ""
        if not sites:
            why = f"{anatomy.finds} none"
        for site in sites:
            if not site.called or not site.channels_last or site.kind is not Kind.NORM:
                why = f"{site.path!r} of this {anatomy.family} backbone is no such norm"
            elif not _mlp_path(anatomy, site):
                why = f"what follows {site.path!r} of this {anatomy.family} backbone is none"
        if why:
            raise Unsupported(
                f"dyt lets tokens skip an MLP that stands behind a norm of tokens, and {why}. "
                f"{advice(self.name, anatomy)}"
            )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        """An MLP that looks at neighbours cannot be left out for one token."""
        import copy

        import torch

        known: set[type] = set()
        for site in self.sites(anatomy):
            path = _mlp_path(anatomy, site)
            module = backbone.get_submodule(path)
            weight = next(module.parameters(), None)
            if type(module) in known or weight is None or weight.is_meta:
                continue
            known.add(type(module))
            x = torch.linspace(-1, 1, 6 * site.width).reshape(1, 6, site.width).to(weight)
            with torch.no_grad():
                mlp = copy.deepcopy(module).eval()
                try:
                    whole, part = mlp(x), mlp(x[:, 1:3])
                    alone = torch.allclose(whole[:, 1:3], part, TOLERANCE, TOLERANCE)
                except Exception:  # it wants more than tokens
                    alone = False
            if not alone:
                raise Unsupported(
                    f"dyt lets tokens skip an MLP, and {path!r} of this {anatomy.family} backbone "
                    f"does not treat each token alone. {advice(self.name, anatomy)}"
                )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers import dispatch, stream
        from peftbench.methods.layers.bottleneck import Bottleneck

        dispatching = dispatch.Dispatching()
        kept = {}
        for site in self.sites(anatomy):
            path, kept[site.path] = _mlp_path(anatomy, site), dispatch.KeptTokens()
            mlp = dispatch.DispatchedMLP(backbone.get_submodule(path), kept[site.path])
            surgery.replace(backbone, path, mlp)

        def make(site: Site) -> nn.Module:
            prefix = 0 if site.is_map or anatomy.tokens is None else anatomy.tokens.num_prefix
            bottleneck = Bottleneck(self.design, site.width, self.bottleneck, True, generator)
            router = dispatch.Router(
                site.width, prefix, self.temperature, self.threshold, generator
            )
            return dispatch.RoutedAdapter(bottleneck, router, kept[site.path], dispatching)

        adapters = stream.add_to_stream(
            backbone, anatomy, (Role.MLP_ENTRY,), stream.ReadPoint.STREAM, make
        )
        return Attachment(
            backbone,
            parameters_of(*adapters.values()),
            touched=tuple(adapters),
            train_modules=tuple(adapters.values()),
            objective=dispatch.DispatchObjective(dispatching, self.target_ratio, self.ratio_weight),
        )

    def expected_params(self, anatomy: Anatomy) -> int:
        h = self.bottleneck
        widths = [site.width for site in self.sites(anatomy)]
        return sum(2 * h * width + h + width + width + 1 for width in widths)


def _mlp_path(anatomy: Anatomy, entry: Site) -> str:
    """The module that holds the layers of the MLP behind `entry` and nothing of its block besides.

    Empty where there is none.
    """
    block = anatomy.where(Role.BLOCK, depths=(entry.depth,))[0].path
    layers = anatomy.where(*LAYERS, depths=(entry.depth,))
    if {site.role for site in layers} != set(LAYERS):
        return ""
    if any(site.kind is not Kind.LINEAR or not site.channels_last for site in layers):
        return ""
    shared: list[str] = []
    for names in zip(*(site.path.split(".")[:-1] for site in layers), strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    path = ".".join(shared)
    return path if path.startswith(f"{block}.") else ""
