"""Distribution-aware visual prompt tuning (Ren et al., 2025, arXiv 2505.23694)."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    Preparation,
    TrainingImages,
    register_method,
)
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.proxies import ProxyBlock, Sights

CLASS_TOKENS = ("cls", "query", "key")
PROXIES = ("vpt", "query", "key")
CRITERIA = ("proxyanchor", "proxynca")
# whose biases may train too, by name -> role of their sites
BIASES = {
    "q": Role.ATTN_IN,
    "k": Role.ATTN_IN,
    "v": Role.ATTN_IN,
    "proj": Role.ATTN_OUT,
    "fc1": Role.MLP_IN,
    "fc2": Role.MLP_OUT,
    "norm1": Role.ATTN_ENTRY,
    "norm2": Role.MLP_ENTRY,
    "norm": Role.AFTER,
}


@register_method("da_vpt")
@dataclass(frozen=True)
class DistributionAwarePrompts(Method):
    """Deep prompts, of which those of some blocks stand for groups of classes."""

    proxy_prompts: int = 20  # in the blocks of `proxy_layers`
    other_prompts: int = 20  # in all others
    proxy_layers: tuple[int, ...] = (-3, -1)  # the first and the last of them; from the end if < 0
    mask: bool = True  # the queries of prompts see patch tokens alone
    prompt_norm: str = "l2"  # of each prompt before it is used; or "none"
    cls_type: str = "query"  # what of the class token is compared: itself ("cls"), query or key
    proxy_for_cls: str = "vpt"  # with what: the prompts, or the mean of their queries or keys
    proxy_for_patches: str = "vpt"  # the same for patch tokens
    patch_weight: float = 0.05
    cls_weight: float = 0.05
    proxy_scale: float = 5.0  # of normalised proxies
    alpha: float = 32.0
    delta: float = 0.1
    criterion: str = "proxyanchor"  # or "proxynca"
    mapping: tuple[int, ...] = ()  # the proxy of each class; () is found in the training images
    train_biases: tuple[str, ...] = ()  # keys of `BIASES`; DA-VPT+ trains those of k and v
    dropout: float = 0.0  # on the prompts

    card: ClassVar[MethodCard] = MethodCard(
        title="DA-VPT",
        summary="deep prompts, and L + mean over the last blocks of w_patch M(patches, prompts) + "
        "w_cls M(query of the class token, prompts): a proxy-anchor loss M in which each prompt "
        "stands for a group of similar classes.",
        paper="arXiv:2505.23694",
        section="3.2-3.4",
        reference="Noahsark/DA-VPT@1a5ac60 models/vpt.py, models/criterion.py, train.py, params.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "the proxy of a class is found as in the released code: k-means, here scikit-learn's "
            "with ten starts, of the layer-normalised mean of what the classifier reads of ten "
            "images of each class in the plain network; with no more classes than proxies each "
            "class has its own",
            "with fewer classes than proxies the released code takes as many proxies as classes; "
            "here their number stays, so that a stored task needs no images",
            "the released code can group classes again in later epochs; here they keep their proxy",
            "the metric loss is that of the images that are in memory together",
            "patch tokens are compared by the mean of what a block takes whatever patch_type says, "
            "as in the released code, so that there is no such option",
            "prompts start as in VPT and follow all prefix tokens, registers included",
        ),
        look=("#E69F00", "d"),
        prepared=True,
        needs_classes=True,
    )

    def validate(self) -> None:
        for key in ("proxy_prompts", "other_prompts"):
            self.require(getattr(self, key) >= 1, f"{key}={getattr(self, key)}; use 1 or more.")
        self.require(
            len(self.proxy_layers) == 2,
            f"proxy_layers={list(self.proxy_layers)}; give the first and the last block.",
        )
        for key, known in (
            ("prompt_norm", ("none", "l2")),
            ("cls_type", CLASS_TOKENS),
            ("proxy_for_cls", PROXIES),
            ("proxy_for_patches", PROXIES),
            ("criterion", CRITERIA),
        ):
            if getattr(self, key) not in known:
                raise unknown_name(f"{key} of method={self.name}:", getattr(self, key), known)
        for key in ("patch_weight", "cls_weight"):
            self.require(getattr(self, key) >= 0, f"{key}={getattr(self, key)} is negative.")
        for key in ("proxy_scale", "alpha"):
            self.require(getattr(self, key) > 0, f"{key}={getattr(self, key)} is not positive.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        known_proxies = range(self.proxy_prompts)
        self.require(
            all(proxy in known_proxies for proxy in self.mapping),
            f"mapping={list(self.mapping)} names proxies beyond {self.proxy_prompts - 1}.",
        )
        for bias in self.train_biases:
            if bias not in BIASES:
                raise unknown_name(f"train_biases of method={self.name}:", bias, BIASES)

    def depths(self, anatomy: Anatomy) -> range:
        """Blocks whose prompts are proxies."""
        first, last = (d if d >= 0 else max(0, anatomy.depth + d) for d in self.proxy_layers)
        return range(first, last + 1)

    @property
    def projections(self) -> set[str]:
        """Whether queries or keys are compared: "q", "k"."""
        kinds = {self.proxy_for_patches} if self.patch_weight else set()
        kinds |= {self.proxy_for_cls, self.cls_type} if self.cls_weight else set()
        return {kind[0] for kind in kinds if kind in ("query", "key")}

    def check(self, anatomy: Anatomy) -> None:
        tokens = anatomy.tokens
        if tokens is None or not tokens.accepts_more:
            reason = "exchange no tokens alone" if tokens is None else tokens.refusal
            raise Unsupported(
                f"da_vpt adds tokens, but blocks of {anatomy.family} backbones take none: "
                f"{reason}. {advice(self.name, anatomy)}"
            )
        if self.cls_weight and not tokens.num_prefix:
            raise Unsupported(
                f"da_vpt compares the class token, which this {anatomy.family} backbone has not. "
                "Set method.cls_weight=0."
            )
        depths = self.depths(anatomy)
        if not depths or depths[-1] >= anatomy.depth:
            raise Unsupported(
                f"da_vpt has proxies in blocks {list(self.proxy_layers)}, and this "
                f"{anatomy.family} backbone has {anatomy.depth}. Set method.proxy_layers."
            )
        for depth in depths:
            found = {p for site in self._seen(anatomy, depth) for p in site.parts if site.called}
            if self.projections - found:
                raise Unsupported(
                    f"da_vpt compares queries or keys, which block {depth} of this "
                    f"{anatomy.family} backbone does not show. Set method.cls_type=cls, "
                    "method.proxy_for_cls=vpt and method.proxy_for_patches=vpt."
                )
        for bias in self.train_biases:
            sites = self._biased(anatomy, bias)
            if not sites or not all(site.has_bias for site in sites):
                raise Unsupported(
                    f"da_vpt trains the biases of {bias}, which {anatomy.family} backbones lack. "
                    "Set method.train_biases."
                )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        """A block must take a mask of attention."""
        for site in anatomy.where(Role.BLOCK) if self.mask else ():
            forward = backbone.get_submodule(site.path).forward
            if "attn_mask" not in inspect.signature(forward).parameters:
                raise Unsupported(
                    f"da_vpt masks the attention of prompts, and the block {site.path!r} of this "
                    f"{anatomy.family} backbone takes no mask. Set method.mask=false."
                )

    def _seen(self, anatomy: Anatomy, depth: int) -> tuple[Site, ...]:
        """Projections of a block that give queries or keys."""
        sites = anatomy.where(Role.ATTN_IN, depths=(depth,))
        return tuple(site for site in sites if {"q", "k"} & set(site.parts))

    def _biased(self, anatomy: Anatomy, bias: str) -> tuple[Site, ...]:
        """Sites whose bias, or a part of it, a key of `BIASES` means."""
        sites = anatomy.where(BIASES[bias])
        if bias in ("q", "k", "v"):
            return tuple(site for site in sites if bias in site.parts and site.called)
        return tuple(site for site in sites if site.has_bias)

    def prepare(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Preparation:
        import torch

        mapping = self.mapping
        if not mapping:
            from peftbench.methods.layers.proxies import class_features, grouped

            seed = int(torch.randint(2**31, (), generator=generator))
            features = class_features(backbone, anatomy.head, images)
            mapping = grouped(features, self.proxy_prompts, seed)
        return Preparation(
            {"mapping": torch.tensor(mapping)},
            {"classes": len(mapping), "proxies": len(set(mapping))},
        )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return self._attach(backbone, anatomy, generator, self.mapping)

    def attach_prepared(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        prepared: Preparation,
    ) -> Attachment:
        mapping = tuple(prepared.tensors["mapping"].tolist())
        return self._attach(backbone, anatomy, generator, mapping)

    def _attach(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        mapping: tuple[int, ...],
    ) -> Attachment:
        """As `attach`, with the proxy of each class, of which () trains nothing but prompts."""
        from peftbench.methods import surgery
        from peftbench.methods.layers import proxies

        sights = proxies.Sights()
        biases = self._free_biases(backbone, anatomy)
        if self.projections:
            self._watch_projections(backbone, anatomy, sights)
        blocks = {}
        for site in anatomy.where(Role.BLOCK):
            module = backbone.get_submodule(site.path)
            blocks[site.path] = self._block(module, site, anatomy, generator, sights)
            surgery.replace(backbone, site.path, blocks[site.path])
        metric = proxies.ProxyLoss(
            self.proxy_scale, self.alpha, self.delta, over_images=self.criterion == "proxyanchor"
        )
        kinds = self.cls_type, self.proxy_for_patches, self.proxy_for_cls
        weights = self.patch_weight, self.cls_weight
        objective = proxies.ProxyObjective(sights, mapping, metric, kinds, weights)
        return Attachment(
            backbone,
            (*(block.prompts for block in blocks.values()), *biases.values()),
            touched=(*blocks, *biases),
            train_modules=tuple(block.dropout for block in blocks.values()),
            objective=objective if mapping and any(weights) else None,
        )

    def _block(
        self,
        module: nn.Module,
        site: Site,
        anatomy: Anatomy,
        generator: torch.Generator,
        sights: Sights,
    ) -> ProxyBlock:
        """A block with its prompts, which start as those of VPT."""
        import torch

        from peftbench.methods.layers import proxies

        assert anatomy.tokens is not None  # `check` has refused feature maps
        is_proxy = site.depth in self.depths(anatomy)
        patch = next(s.fan_in for s in anatomy.where(Role.EMBED) if s.fan_in is not None)
        bound = math.sqrt(6 / (patch + site.width))
        prompts = torch.empty(self.proxy_prompts if is_proxy else self.other_prompts, site.width)
        prompts.uniform_(-bound, bound, generator=generator)
        return proxies.ProxyBlock(
            module,
            prompts,
            proxies.PromptUse(
                anatomy.tokens.num_prefix, self.mask, self.prompt_norm == "l2", self.dropout
            ),
            sights if is_proxy else None,
        )

    def _watch_projections(self, backbone: nn.Module, anatomy: Anatomy, sights: Sights) -> None:
        """Let the projections of blocks with proxies tell their queries and keys."""
        from peftbench.methods import surgery
        from peftbench.methods.layers.proxies import SeenProjection

        for depth in self.depths(anatomy):
            for site in self._seen(anatomy, depth):
                size = site.width // len(site.parts)
                rows = {
                    part: (i * size, (i + 1) * size)
                    for i, part in enumerate(site.parts)
                    if part in self.projections
                }
                seen = SeenProjection(backbone.get_submodule(site.path), rows, sights)
                surgery.replace(backbone, site.path, seen)

    def _free_biases(self, backbone: nn.Module, anatomy: Anatomy) -> dict[str, nn.Parameter]:
        """The biases that train, by the paths of their modules.

        Of some parts of a fused projection it is what is added to theirs, from zero.
        """
        from peftbench.methods import surgery
        from peftbench.methods.layers.proxies import RowShift

        freed = {}
        for site, rows in self._bias_rows(anatomy).items():
            module = backbone.get_submodule(site.path)
            if sum(stop - start for start, stop in rows) == site.width:
                freed[site.path] = module.get_parameter("bias")
                continue
            shift = RowShift(rows)
            surgery.replace(backbone, site.path, surgery.OutputAdapter(module, shift))
            freed[site.path] = shift.shift
        return freed

    def _bias_rows(self, anatomy: Anatomy) -> dict[Site, list[tuple[int, int]]]:
        """Which rows of the bias of each site train, (start, stop)."""
        rows: dict[Site, list[tuple[int, int]]] = {}
        for bias in BIASES:
            for site in self._biased(anatomy, bias) if bias in self.train_biases else ():
                is_part = bias in ("q", "k", "v")
                size = site.width // len(site.parts) if is_part else site.width
                start = site.parts.index(bias) * size if is_part else 0
                rows.setdefault(site, []).append((start, start + size))
        return rows

    def expected_params(self, anatomy: Anatomy) -> int:
        depths = self.depths(anatomy)
        prompts = sum(
            (self.proxy_prompts if site.depth in depths else self.other_prompts) * site.width
            for site in anatomy.where(Role.BLOCK)
        )
        rows = (pair for pairs in self._bias_rows(anatomy).values() for pair in pairs)
        return prompts + sum(stop - start for start, stop in rows)
