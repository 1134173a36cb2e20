"""SSF: scale and shift every operation's output (Lian et al., 2022, arXiv 2210.08823)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import NotMergeable, Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    parameters_of,
    register_method,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

_NORMS = (Role.NORM, Role.TRANSITION_NORM, Role.AFTER)
_OPERATIONS = (
    Role.EMBED,
    Role.SPATIAL_CONV,
    Role.POINT_CONV,
    Role.TRANSITION_CONV,
    Role.ATTN_IN,
    Role.ATTN_OUT,
    Role.MLP_IN,
    Role.MLP_OUT,
    Role.TOKEN_MIX_IN,  # a shift behind TOKEN_MIX_OUT is cancelled by every later layer norm
)
# attention keeps its queries, keys and values, and an activation what it reads
_KEPT = (Role.ATTN_IN, Role.MLP_IN, Role.TOKEN_MIX_IN)


@register_method("ssf")
@dataclass(frozen=True)
class SSF(Method):
    """A scale and a shift for each channel behind every linear, convolution and norm."""

    std: float = 0.02  # scales start at N(1, std^2), shifts at N(0, std^2); 0 is the identity
    variant: str = "default"  # "released": as the official code places the pairs

    card: ClassVar[MethodCard] = MethodCard(
        title="SSF",
        summary="y = gamma * op(x) + beta for each channel behind every linear, convolution and "
        "norm; folds into their weights.",
        paper="arXiv:2210.08823",
        section="3.2, eq. 3-4",
        reference="dongzelian/SSF@e94e0e7 models",
        identity_at_init=False,  # scales and shifts start with noise of 0.02
        mergeable=True,
        deviations=(
            "downsampling layers get their pairs too; the released code leaves them out by a "
            "mistake: variant=released",
            "on ConvNeXt the last pair stands behind the last norm, where it folds; the released "
            "code puts it in front of the pooling, where it does not, and trains that norm: "
            "variant=released",
            "nets with BatchNorm get one pair behind each of them, folded with the statistics "
            "of pretraining (ours)",
            "Mixer gets no pair behind the second layer of token mixing, whose shift every later "
            "layer norm cancels (ours)",
            "the released code keeps the frozen blocks in train mode, with a drop-path chosen for "
            "each data set",
        ),
        look=("#CC79A7", "D"),
    )

    def validate(self) -> None:
        self.require(self.std >= 0, f"std={self.std} is negative.")
        self.require_variant(self.variant)

    def check(self, anatomy: Anatomy) -> None:
        if not anatomy.sites:
            raise Unsupported(
                f"ssf needs to know the operations, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)} Or tell where they are: backbone.anatomy=FILE."
            )
        unseen = [site.path for site in self.sites(anatomy) if not site.called]
        if unseen:
            raise Unsupported(
                f"ssf scales the output of {unseen[0]!r}, which {anatomy.family} backbones read as "
                f"a weight and never call. {advice(self.name, anatomy)}"
            )

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Sites behind which a pair stands."""
        norms = tuple(s for s in anatomy.where(*_NORMS) if s.kind in (Kind.NORM, Kind.BATCH_NORM))
        inside = [site for site in norms if site.role is not Role.AFTER]
        if any(site.kind is Kind.BATCH_NORM for site in inside):
            operations: tuple[Site, ...] = ()  # a pair behind the norm says as much
        else:
            operations = anatomy.where(*_OPERATIONS)
        sites = (*operations, *norms)
        if self.variant == "default":
            return sites
        if anatomy.family == "convnext":  # in front of the pooling and of the norm behind it
            blocks = anatomy.where(Role.BLOCK)
            sites = (*(s for s in sites if s.role is not Role.AFTER), blocks[-1])
        skipped = (Role.TRANSITION_NORM, Role.TRANSITION_CONV)
        return tuple(site for site in sites if site.role not in skipped)

    def unfrozen(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """The norm that the released code trains on ConvNeXt, since its name is in the head."""
        if self.variant == "default" or anatomy.family != "convnext":
            return ()
        return tuple(s for s in anatomy.where(Role.AFTER) if s.kind is Kind.NORM)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.scale_shift import ScaleShift, add_pair

        pairs = {}
        for site in self.sites(anatomy):
            pair = ScaleShift(
                site.width, site.channels_last, self.std, generator, site.role in _KEPT
            )
            pairs[site.path] = pair
            add_pair(backbone, site, pair)
        norms = [backbone.get_submodule(site.path) for site in self.unfrozen(anatomy)]
        return Attachment(
            backbone,
            parameters_of(*pairs.values(), *norms),
            touched=(*pairs, *(site.path for site in self.unfrozen(anatomy))),
            train_modules=tuple(pairs.values()),
        )

    def unmergeable(self, anatomy: Anatomy) -> str:
        rigid = next((site for site in self.sites(anatomy) if not site.has_bias), None)
        if rigid is None:
            return ""
        lacks = "bias" if rigid.num_params else "weight and bias of its own"
        return f"ssf puts a pair behind {rigid.path!r}, which has no {lacks} to take it"

    def merge(self, model: nn.Module) -> nn.Module:
        """W' = diag(gamma) W, b' = gamma b + beta; the same for the affine of a norm."""
        from peftbench.methods.layers.scale_shift import fold, is_foldable, pairs_of

        for path, base, _ in pairs_of(model):
            if not is_foldable(base):
                lacks = "bias" if hasattr(base, "weight") else "weight and bias of its own"
                raise NotMergeable(
                    f"ssf cannot fold the pair behind {path!r} ({type(base).__name__}), which has "
                    f"no {lacks} to take it. Keep the pairs."
                )
        fold(model)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        pairs = sum(2 * site.width for site in self.sites(anatomy))
        return pairs + sum(site.num_params for site in self.unfrozen(anatomy))
