"""Conv-Adapter: convolutions beside convolutions (Chen et al., 2024, arXiv 2208.07463)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import STEM, Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, Method, MethodCard, parameters_of, register_method
from peftbench.registry import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.behind import Passed
    from peftbench.methods.layers.conv_adapter import Geometry, GroupedConvAdapter

PLACEMENTS = ("conv_parallel", "conv_sequential", "residual_parallel", "residual_sequential")
ON_ATTENTION = (7, 7)  # the kernel where no convolution gives one


@dataclass(frozen=True)
class AdapterPlace:
    """Where one adapter stands, and its sizes."""

    site: Site
    in_channels: int
    hidden: int
    out_channels: int
    kernel_size: tuple[int, int]

    @property
    def num_params(self) -> int:
        area = self.kernel_size[0] * self.kernel_size[1]
        first = self.in_channels * area + self.hidden
        return first + self.hidden * self.out_channels + 2 * self.out_channels


@register_method("conv_adapter")
@dataclass(frozen=True)
class ConvAdapter(Method):
    """A grouped convolution, an activation and a 1 x 1 convolution, scaled by channel."""

    reduction: int = 8  # gamma: channels that each hidden channel reads
    placement: str = "conv_parallel"  # one of `PLACEMENTS`
    activation: str = "auto"  # relu in nets with batch norms, gelu in others; or a name
    kernel_size: int | None = None  # where no convolution gives it; None: the block's own, or 7
    variant: str = "default"  # "released": what else the official code trains

    card: ClassVar[MethodCard] = MethodCard(
        title="Conv-Adapter",
        summary="conv(x) + alpha * W_up act(W_g x) with W_g a convolution of the same size whose "
        "hidden channels read gamma channels each, and alpha a scale by channel.",
        paper="arXiv:2208.07463",
        section="3",
        reference="Hhhhhhao/Conv-Adapter@97e1fc87 models/tuning_modules/conv_adapter.py",
        identity_at_init=False,
        mergeable=False,
        deviations=(
            "the released code trains every layer norm of ConvNeXt and Swin too, except those of "
            "ConvNeXt's stem and downsampling, and puts a batch norm that trains behind ResNet: "
            "variant=released",
            "starts with PyTorch's defaults and alpha = 1, as released, so not at the pretrained "
            "function",
            "where a batch norm follows the convolution the sum stands behind it and its "
            "activation, as in the released ResNet; in nets with layer norms directly behind the "
            "convolution",
            "the released code has the parallel placements only, and on EfficientNet an adapter "
            "of 1 x 1 beside each block: placement=residual_parallel kernel_size=1. The "
            "sequential ones add what the adapter makes of the sum's other term, which could not "
            "be verified",
            "the released basic block of ResNet cannot run; here each of its convolutions is "
            "adapted",
            "reduction is lowered to a divisor of the channels where it is none",
        ),
        look=("#009E73", "h"),
    )

    def validate(self) -> None:
        from peftbench.methods.layers.design import ACTIVATIONS

        self.require(self.reduction >= 1, f"reduction={self.reduction}; use 1 or more.")
        for key, value, known in (
            ("placement", self.placement, PLACEMENTS),
            ("activation", self.activation, ("auto", *ACTIVATIONS)),
        ):
            if value not in known:
                raise unknown_name(f"{key} of method=conv_adapter:", value, known)
        self.require(
            self.kernel_size is None or (self.kernel_size >= 1 and self.kernel_size % 2 == 1),
            f"kernel_size={self.kernel_size}; use an odd number, or null.",
        )
        self.require_variant(self.variant)

    @property
    def _at_blocks(self) -> bool:
        return self.placement.startswith("residual")

    @property
    def _is_parallel(self) -> bool:
        return self.placement.endswith("parallel")

    def check(self, anatomy: Anatomy) -> None:
        blocks = anatomy.where(Role.BLOCK)
        if not blocks or not all(block.is_map for block in blocks):
            what = "exchange tokens" if blocks else "are not known"
            raise Unsupported(
                f"conv_adapter needs feature maps, but the blocks of this {anatomy.family} "
                f"backbone {what}. {advice(self.name, anatomy)}"
            )
        on_convolutions = bool(_convolutions(anatomy))
        if self._at_blocks:
            if not self.places(anatomy):
                raise Unsupported(
                    f"conv_adapter with placement={self.placement} needs blocks that give one map, "
                    f"and {anatomy.finds} none. Set method.placement=conv_parallel."
                )
        elif not on_convolutions and not self._is_parallel:
            raise Unsupported(
                f"conv_adapter with placement={self.placement} stands behind a convolution, and "
                f"{anatomy.finds} none. Set method.placement=residual_sequential."
            )
        elif not self.places(anatomy):
            raise Unsupported(
                f"conv_adapter stands beside convolutions or attention on maps, and "
                f"{anatomy.finds} none. Set method.placement=residual_parallel."
            )
        elif on_convolutions and self.kernel_size is not None:
            raise Unsupported(
                f"conv_adapter with placement={self.placement} takes the kernel of each "
                f"convolution of this {anatomy.family} backbone, and kernel_size="
                f"{self.kernel_size} is set. Set method.kernel_size=null."
            )

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        """Refuse blocks that read another width than that of the block in front of them."""
        if self.placement != "residual_parallel":
            return
        seen = self._passed(backbone, anatomy)
        for place in self.places(anatomy):
            path = place.site.path
            read, given = seen.reads.get(path), seen.gives.get(path)
            channels = -1 if place.site.channels_last else 1
            if read is None or given is None or read[channels] != place.in_channels:
                raise Unsupported(
                    f"conv_adapter with placement=residual_parallel cannot tell what {path!r} of "
                    f"this {anatomy.family} backbone reads. Set method.placement="
                    "residual_sequential."
                )

    def places(self, anatomy: Anatomy) -> tuple[AdapterPlace, ...]:
        """Every adapter and its sizes."""
        if self._at_blocks:
            return tuple(
                self._place_at(
                    block,
                    _width_in_front(anatomy, block) if self._is_parallel else block.width,
                    self._kernel_of_block(anatomy, block),
                )
                for block in anatomy.where(Role.BLOCK)
                if block.called
            )
        convolutions = _convolutions(anatomy)
        if not convolutions:
            size = self.kernel_size
            kernel = ON_ATTENTION if size is None else (size, size)
            return tuple(
                self._place_at(site, site.width, kernel) for site in anatomy.where(Role.ATTN_ENTRY)
            )
        if self._is_parallel:
            return tuple(
                self._place_at(site, site.in_channels or site.width, site.kernel_size or (1, 1))
                for site in convolutions
            )
        return tuple(  # what follows keeps the size of the map, which an even kernel cannot
            self._place_at(site, site.width, site.kernel_size or (1, 1))
            for site in convolutions
            if all(length % 2 for length in site.kernel_size or ())
        )

    def _place_at(self, site: Site, in_channels: int, kernel: tuple[int, int]) -> AdapterPlace:
        shared = max(d for d in range(1, self.reduction + 1) if in_channels % d == 0)
        return AdapterPlace(site, in_channels, in_channels // shared, site.width, kernel)

    def _kernel_of_block(self, anatomy: Anatomy, block: Site) -> tuple[int, int]:
        if self.kernel_size is not None:
            return (self.kernel_size, self.kernel_size)
        own = [
            site.kernel_size
            for site in anatomy.where(Role.SPATIAL_CONV, depths=(block.depth,))
            if site.kernel_size is not None and all(length % 2 for length in site.kernel_size)
        ]
        return max(own, default=ON_ATTENTION)

    def _unfrozen(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """The norms that the released code trains, since their names have "norm" in them."""
        if self.variant == "default":
            return ()
        roles = (Role.NORM, Role.TRANSITION_NORM, Role.AFTER)
        norms = tuple(site for site in anatomy.where(*roles) if site.kind is Kind.NORM)
        if not _convolutions(anatomy):
            return norms
        return tuple(n for n in norms if n.depth != STEM and n.role is not Role.TRANSITION_NORM)

    def _has_last_norm(self, anatomy: Anatomy) -> bool:
        """Whether a batch norm stands behind the last block, as in the released ResNet."""
        return self.variant == "released" and anatomy.family == "resnet"

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from torch import nn

        from peftbench.methods import surgery
        from peftbench.methods.layers import frozen_conv

        unfrozen = [backbone.get_submodule(site.path) for site in self._unfrozen(anatomy)]
        places = self.places(anatomy)
        seen = self._passed(backbone, anatomy)
        if not all(place.site.channels_last for place in places):
            frozen_conv.keep_no_inputs(backbone)  # an adapted map is no output of an activation
        adapters = self._insert(backbone, anatomy, places, seen, generator)
        added: list[nn.Module] = list(adapters.values())
        touched = [*adapters, *(site.path for site in self._unfrozen(anatomy))]
        if self._has_last_norm(anatomy):
            last = anatomy.where(Role.BLOCK)[-1]
            norm = nn.BatchNorm2d(last.width)
            block = backbone.get_submodule(last.path)
            surgery.replace(backbone, last.path, surgery.OutputAdapter(block, norm))
            added.append(norm)
            touched.append(last.path)
        return Attachment(
            backbone,
            parameters_of(*added, *unfrozen),
            touched=tuple(touched),
            train_modules=tuple(added),
        )

    def _passed(self, backbone: nn.Module, anatomy: Anatomy) -> Passed:
        from peftbench.methods.layers.behind import passed

        paths = [place.site.path for place in self.places(anatomy)]
        convolutions = () if self._at_blocks or not _convolutions(anatomy) else paths
        return passed(backbone, anatomy, convolutions, paths)

    def _insert(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        places: tuple[AdapterPlace, ...],
        seen: Passed,
        generator: torch.Generator,
    ) -> dict[str, nn.Module]:
        """New adapters in their places, by the path of what each stands at."""
        from peftbench.methods import surgery
        from peftbench.methods.layers import conv_adapter as layers
        from peftbench.methods.layers import stream
        from peftbench.methods.layers.beside import Beside

        device = next(backbone.parameters()).device
        activation = self._activation(anatomy)

        def make(place: AdapterPlace) -> GroupedConvAdapter:
            geometry = self._geometry(backbone, place, seen)
            adapter = layers.GroupedConvAdapter(
                (place.in_channels, place.hidden, place.out_channels),
                geometry,
                activation,
                place.site.channels_last,
                generator,
            )
            return adapter.to(device)

        if not self._at_blocks and not _convolutions(anatomy):
            by_path = {place.site.path: place for place in places}
            return stream.add_to_stream(
                backbone,
                anatomy,
                (Role.ATTN_ENTRY,),
                stream.ReadPoint.BRANCH,
                lambda site: make(by_path[site.path]),
            )
        adapters: dict[str, nn.Module] = {}
        for place in places:
            path = place.site.path
            adapter = adapters[path] = make(place)
            end = seen.ends.get(path, path)
            if not self._is_parallel:
                behind = backbone.get_submodule(end)
                surgery.replace(backbone, end, surgery.ResidualAdapter(behind, adapter))
            elif end == path:
                base = backbone.get_submodule(path)
                surgery.replace(backbone, path, Beside(base, adapter))
            else:
                change = layers.CarriedChange()
                base = backbone.get_submodule(path)
                surgery.replace(backbone, path, layers.ChangeSource(base, adapter, change))
                behind = backbone.get_submodule(end)
                surgery.replace(backbone, end, layers.ChangeSum(behind, change))
        return adapters

    def _geometry(self, backbone: nn.Module, place: AdapterPlace, seen: Passed) -> Geometry:
        """How the adapter of a place goes over its map."""
        from torch import nn

        from peftbench.methods.layers.conv_adapter import Geometry, geometry_of

        rows, columns = place.kernel_size
        padding = (rows // 2, columns // 2)
        module = backbone.get_submodule(place.site.path)
        if self._is_parallel and isinstance(module, nn.Conv2d):
            return geometry_of(module)
        stride = (1, 1)
        if self.placement == "residual_parallel":
            first = 1 if place.site.channels_last else 2
            read, given = seen.reads[place.site.path], seen.gives[place.site.path]
            stride = (-(-read[first] // given[first]), -(-read[first + 1] // given[first + 1]))
        return Geometry(place.kernel_size, stride, padding)

    def _activation(self, anatomy: Anatomy) -> str:
        if self.activation != "auto":
            return self.activation
        kinds = {site.kind for site in anatomy.where(Role.NORM)}
        return "relu" if Kind.BATCH_NORM in kinds else "gelu"

    def expected_params(self, anatomy: Anatomy) -> int:
        adapters = sum(place.num_params for place in self.places(anatomy))
        norms = sum(site.num_params for site in self._unfrozen(anatomy))
        last = 2 * anatomy.where(Role.BLOCK)[-1].width if self._has_last_norm(anatomy) else 0
        return adapters + norms + last


def _convolutions(anatomy: Anatomy) -> tuple[Site, ...]:
    """Convolutions larger than 1 x 1 in the blocks and between stages."""
    return tuple(
        site
        for site in anatomy.where(Role.SPATIAL_CONV, Role.TRANSITION_CONV)
        if site.kind is Kind.CONV and site.called and site.kernel_size not in (None, (1, 1))
    )


def _width_in_front(anatomy: Anatomy, block: Site) -> int:
    """Channels that a block reads where each one reads what the one in front gives."""
    if anatomy.where(Role.TRANSITION, depths=(block.depth,)):
        return block.width
    earlier = anatomy.where(Role.BLOCK, depths=range(block.depth))
    if earlier:
        return earlier[-1].width
    stem = anatomy.where(Role.EMBED, Role.NORM, depths=(STEM,))
    return stem[-1].width if stem else block.width
