"""GLoRA: five supports for each layer, of kinds to choose (Chavan et al., 2023, 2306.07967)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    MethodCard,
    register_method,
)
from peftbench.methods.in_weights import InWeights, changed
from peftbench.methods.layers.paths import EVERYTHING, FULL, LETTERS, Shapes, SupportPath

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.supports import SupportChange

PLACES = {
    "qkv": Role.ATTN_IN,
    "proj": Role.ATTN_OUT,
    "fc1": Role.MLP_IN,
    "fc2": Role.MLP_OUT,
    "conv": Role.SPATIAL_CONV,
    "pointwise": Role.POINT_CONV,
}


@register_method("glora")
@dataclass(frozen=True)
class GLoRA(InWeights):
    """W + W ⊙ A + B and b + b ⊙ D + E + W C, with A to E of the kinds that a path names."""

    rank: int = 4  # of supports of the kind lora
    path: str = FULL  # kinds of A/B/C/D/E: lora or lora_2, vector, constant, none
    # places with another path, as PLACE:PATH. PLACE is qkv, proj, fc1, fc2, conv or pointwise, in
    # every block, or in one as 3.fc1; the last that fits counts
    paths: tuple[str, ...] = ()
    random_paths: bool = False  # each layer draws a path in every pass of training
    variant: str = "default"  # "released": tensors off the path are there, and stay as they are

    card: ClassVar[MethodCard] = MethodCard(
        title="GLoRA",
        summary="W + W * A + B and b + b * D + E + W C in each layer, with A, B and C low-rank, a "
        "vector, a constant or nothing, D and E a vector, a constant or nothing.",
        paper="arXiv:2306.07967",
        section="2.2-2.3, eq. 10",
        reference="Arnav0400/ViT-Slim@0fed674 GLoRA/layer.py",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "no evolution: the released code trains all supports with random paths "
            "(random_paths=true), and then searches the path of each layer by its accuracy on "
            "images held out. Here a path is a hyper-parameter, so that its search is that of any "
            "other: compare paths on val, and give those that were found as paths",
            "without a path the released code draws one in evaluation too; here random_paths "
            "acts in training alone, and evaluation takes the path that is given",
            "only tensors on the path are made; the released code keeps all: variant=released",
            "a layer without a bias has none of C, D and E, so that all of it folds",
            "outside attention and MLP the layers are ours; a convolution is changed as a matrix",
        ),
    )

    def validate(self) -> None:
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        self.require_variant(self.variant)
        for key, text in (("path", self.path), *(("paths", each) for each in self.paths)):
            place, _, kinds = text.rpartition(":")
            depth, _, name = place.rpartition(".")
            known = not place or (name in PLACES and (not depth or depth.isdecimal()))
            self.require(
                known and bool(place) == (key == "paths"),
                f"{key} has {text!r}; use PLACE:PATH in paths, with PLACE of "
                f"{', '.join(PLACES)}, or such a name behind the number of a block, as 3.fc1.",
            )
            try:
                SupportPath.parse(kinds, self.rank)
            except ValueError as e:
                self.require(False, f"{key}: {e}.")

    def path_of(self, site: Site) -> SupportPath:
        """The kinds of the supports of one site."""
        text = self.path
        for each in self.paths:
            place, _, kinds = each.rpartition(":")
            depth, _, name = place.rpartition(".")
            if PLACES[name] is site.role and (not depth or int(depth) == site.depth):
                text = kinds
        return SupportPath.parse(text, self.rank)

    @property
    def keeps_all(self) -> bool:
        """Whether tensors off the path are made."""
        return self.random_paths or self.variant == "released"

    def shapes(self, site: Site) -> Shapes:
        """Of the tensors of a site."""
        path = EVERYTHING if self.keeps_all else self.path_of(site)
        return path.shapes(site.width, site.fan_in or 1, site.has_bias, self.rank)

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """The layers of attention and MLP; where there are none, the convolutions of blocks."""
        inside = (Role.ATTN_IN, Role.ATTN_OUT, Role.MLP_IN, Role.MLP_OUT)
        found = anatomy.where(*inside) or anatomy.where(Role.SPATIAL_CONV, Role.POINT_CONV)
        sites = {s.path: s for s in found if s.kind in (Kind.LINEAR, Kind.CONV)}
        return tuple(site for site in sites.values() if self.shapes(site))

    def check(self, anatomy: Anatomy) -> None:
        if not self.sites(anatomy):
            raise Unsupported(
                f"glora needs to know the weights of blocks, and {anatomy.finds} none with a path "
                f"other than none. {advice(self.name, anatomy)}"
            )

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.supports import SupportChange

        def change(site: Site) -> SupportChange:
            path = self.path_of(site)
            return SupportChange(self.shapes(site), path, self.rank, self.random_paths, generator)

        return changed(backbone, self.sites(anatomy), change)

    def unmoved(self) -> tuple[str, ...]:
        if not self.keeps_all or self.random_paths:
            return ()
        texts = (self.path, *(each.rpartition(":")[2] for each in self.paths))
        paths = [SupportPath.parse(text, self.rank) for text in texts]
        still = []
        for letter in LETTERS:
            kinds = {path.kind(letter) for path in paths}
            if letter in "abc":
                still += [f"{letter}_up"] if "lora" not in kinds else []
                still += [f"{letter}_down"] if kinds == {"none"} else []
            elif kinds == {"none"}:
                still.append(letter)
        return tuple(f"*.supports.{name}" for name in still)

    def expected_params(self, anatomy: Anatomy) -> int:
        sites = self.sites(anatomy)
        return sum(math.prod(shape) for site in sites for shape in self.shapes(site).values())
