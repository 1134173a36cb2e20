"""Which weights methods of the weight space change: targets by name, such as q or fc1.

Registers no method.
"""

from __future__ import annotations

from collections.abc import Mapping

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.in_weights import InWeights
from peftbench.methods.layers.slices import RowBlock

# target -> role of its sites; q, k and v may be row blocks of one fused projection
TARGETS: Mapping[str, Role] = {
    "q": Role.ATTN_IN,
    "k": Role.ATTN_IN,
    "v": Role.ATTN_IN,
    "qkv": Role.ATTN_IN,  # one change of the whole fused projection
    "proj": Role.ATTN_OUT,
    "fc1": Role.MLP_IN,
    "fc2": Role.MLP_OUT,
    "conv": Role.SPATIAL_CONV,  # larger than 1 x 1, depthwise and grouped ones too
    "pointwise": Role.POINT_CONV,
}
AUTO = "auto"  # what `targets` says by default


class Targeted(InWeights):
    """A method with the hyper-parameter `targets`."""

    targets: tuple[str, ...]

    def validate_targets(self) -> None:
        """Raise `ConfigError` for targets that are unknown or name one weight twice."""
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
        if "qkv" in described:  # rows that cannot be told apart are adapted as one
            described |= {"q", "k", "v"}
        absent = [t for t in self.resolved(anatomy) if t not in described]
        if not anatomy.sites:
            raise Unsupported(
                f"{self.name} needs to know the weights, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)} Or tell where they are: backbone.anatomy=FILE."
            )
        if absent:
            other = ", ".join(t for t in TARGETS if t in described)
            hint = (
                f"They have {other}: set method.targets."
                if other
                else f"They have no other target either. {advice(self.name, anatomy)}"
            )
            raise Unsupported(
                f"{self.name} targets {', '.join(absent)}, which {anatomy.family} backbones do not "
                f"have. {hint}"
            )

    def resolved(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The targets, with `auto` replaced by what it means on this backbone."""
        if self.targets != (AUTO,):
            return self.targets
        if anatomy.where(Role.ATTN_IN):
            return self.in_attention(anatomy)
        if anatomy.where(Role.MLP_IN):
            return ("fc1", "fc2")
        return tuple(t for t in ("conv", "pointwise") if anatomy.where(TARGETS[t]))

    def in_attention(self, anatomy: Anatomy) -> tuple[str, ...]:
        """What `auto` means where there is attention."""
        named = {part for site in anatomy.where(Role.ATTN_IN) for part in site.parts}
        # a deformable convolution has values alone
        return tuple(t for t in ("q", "v") if t in named) or ("q", "v")

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Sites of the targets; a module with two roles counts once."""
        resolved = self.resolved(anatomy)
        return tuple(s for s in anatomy.sites if self.rows(s, resolved))

    def row_blocks(self, anatomy: Anatomy) -> tuple[tuple[Site, dict[str, RowBlock]], ...]:
        """Each site with the rows of its targets."""
        resolved = self.resolved(anatomy)
        return tuple((site, self.rows(site, resolved)) for site in self.sites(anatomy))

    def rows(self, site: Site, targets: tuple[str, ...]) -> dict[str, RowBlock]:
        """Which rows of the site's weight each target names: {target: (start, stop)}."""
        rows = {}
        for target in targets:
            if TARGETS[target] is not site.role or site.kind not in (Kind.LINEAR, Kind.CONV):
                continue
            if target in site.parts:
                size = site.width // len(site.parts)
                start = site.parts.index(target) * size
                rows[target] = (start, start + size)
            elif site.role is Role.ATTN_IN and not site.parts:
                rows = {"qkv": (0, site.width)}  # which rows are whose does not show
            elif not site.parts or (target == "qkv" and len(site.parts) == 3):
                rows[target] = (0, site.width)
        return rows


class EveryMatrix(Targeted):
    """A method that by default changes each matrix of attention and MLP apart: q, k, v, ..."""

    def in_attention(self, anatomy: Anatomy) -> tuple[str, ...]:
        found = {t for site in anatomy.sites for t in self.rows(site, tuple(TARGETS))}
        every = ("q", "k", "v", "proj", "fc1", "fc2")
        named = tuple(t for t in every if t in found)
        return named if {"q", "k", "v"} & found else ("qkv", *named)
