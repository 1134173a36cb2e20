"""Sites that a trace shows and experiments confirm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.backbones.anatomy import COUNTED, STEM, Kind, Role, Site, Tokens
from peftbench.backbones.corrections import NONE, Corrections
from peftbench.backbones.inference import confirm
from peftbench.backbones.inference.flow import flow_of
from peftbench.backbones.inference.roles import SeenSite, attention, found
from peftbench.backbones.inference.structure import Structure, structure
from peftbench.backbones.inference.trace import Call, Trace, Use, traced
from peftbench.backbones.kinds import kernel_size, kind_of, norm_layout
from peftbench.backbones.patterns import match
from peftbench.errors import ConfigError

_MATRICES = (
    Role.EMBED,
    Role.ATTN_IN,
    Role.ATTN_OUT,
    Role.MLP_IN,
    Role.MLP_OUT,
    Role.TOKEN_MIX_IN,
    Role.TOKEN_MIX_OUT,
    Role.SPATIAL_CONV,
    Role.POINT_CONV,
    Role.TRANSITION_CONV,
)
_NORMS = (Role.NORM, Role.TRANSITION_NORM)


@dataclass(frozen=True)
class LeftOut:
    """A site that the trace shows and an experiment does not confirm."""

    path: str
    role: Role
    reason: str


@dataclass(frozen=True)
class Inferred:
    """What looking at a backbone gives."""

    sites: tuple[Site, ...]
    tokens: Tokens | None
    depth: int
    left_out: tuple[LeftOut, ...]
    uncovered: tuple[str, ...]  # layers in the blocks that are no sites


NOTHING = Inferred((), None, 0, (), ())


def infer(
    backbone: nn.Module,
    image_size: int,
    channels: int,
    heads: tuple[str, ...],
    corrections: Corrections = NONE,
) -> Inferred:
    """The confirmed sites of a backbone whose class nobody described.

    The backbone itself is not changed; its copy is run on the CPU with two images.

    Args:
        image_size: side of the images that it takes.
        channels: of the images.
        heads: paths of the classifiers.
        corrections: roles that are told; they are confirmed as the others are.

    Raises:
        ConfigError: what is told fits nothing.
        whatever the model raises where it does not take such an image.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        shape = (2, channels, image_size, image_size)
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        model = confirm.randomised(backbone, image)
        trace = traced(model, image)
        skeleton = structure(model, trace, heads)
        looked = _Looked(model, trace, skeleton, corrections)
        candidates = _corrected(found(model, trace, skeleton), trace, skeleton, corrections)
        sites, left_out = looked.sites(candidates)
        tokens = looked.tokens()
    covered = {site.path for site in sites if site.role in _MATRICES}
    uncovered = dict.fromkeys(
        use.path
        for use in trace.uses
        if skeleton.of(use.call) is not None and use.path not in covered
    )
    depth = len(skeleton.blocks)
    return Inferred(tuple(sites), tokens, depth, tuple(left_out), tuple(uncovered))


def _corrected(
    candidates: Sequence[SeenSite], trace: Trace, skeleton: Structure, corrections: Corrections
) -> list[SeenSite]:
    """The candidates with what is told in place of what was inferred.

    Raises:
        ConfigError: a pattern fits no module that is called.
    """
    called = {call.path: call for call in reversed(trace.calls)}
    called |= {use.path: use.call for use in reversed(trace.uses)}
    told = []
    for role, patterns in corrections.roles.items():
        for path in _fitting(patterns, called, f"roles.{role}"):
            block = skeleton.of(called[path])
            depth, stage = (block.depth, block.stage) if block is not None else (STEM, 0)
            told.append(SeenSite(path, role, depth, stage, "told"))
    left_out = _fitting(corrections.leave_out, called, "leave_out")
    _fitting(tuple(corrections.parts), called, "parts")
    replaced = {one.path for one in told} | set(left_out)
    kept = [one for one in candidates if one.path not in replaced]
    return sorted((*kept, *told), key=lambda one: one.depth)


def _fitting(patterns: Sequence[str], called: Mapping[str, Call], key: str) -> list[str]:
    paths = []
    for pattern in patterns:
        found_here = match(pattern, called)
        if not found_here:
            raise ConfigError(
                f"{key} of backbone.anatomy names {pattern!r}, which fits no layer that this "
                "backbone calls. `peftbench anatomy BACKBONE` shows the paths; * is one name."
            )
        paths += found_here
    return paths


class _Looked:
    """A traced copy with what its experiments share."""

    def __init__(
        self, model: nn.Module, trace: Trace, skeleton: Structure, corrections: Corrections
    ) -> None:
        self.model, self.trace, self.skeleton = model, trace, skeleton
        paths = [path for path, _ in model.named_modules()]
        self.told_parts = {
            path: names
            for pattern, names in corrections.parts.items()
            for path in match(pattern, paths)
        }
        self.uses: dict[str, list[Use]] = {}
        for use in trace.uses:
            self.uses.setdefault(use.path, []).append(use)
        self.calls: dict[str, Call] = {}
        for call in trace.calls:
            self.calls.setdefault(call.path, call)
        self.attentions = {
            use.path: known
            for block in skeleton.blocks
            if (known := attention(model, trace, block)) is not None
            for use in known.entering
        }

    def sites(self, candidates: Sequence[SeenSite]) -> tuple[list[Site], list[LeftOut]]:
        """Those of `candidates` that pass, and the others with what they fail."""
        outputs = dict(self._outputs(candidates))
        effects = confirm.effects(self.model, self.trace, outputs)
        sites, left_out = [], []
        for one in candidates:
            if not effects.get(one.path, False):
                made: Site | str = "noise there does not change what the model gives"
            else:
                made = self._site(one)
            if isinstance(made, Site):
                sites.append(made)
            else:
                left_out.append(LeftOut(one.path, one.role, made))
        return sites, left_out

    def _outputs(self, candidates: Sequence[SeenSite]) -> Iterator[tuple[str, Tensor]]:
        for one in candidates:
            if one.path in self.uses:
                yield one.path, self.uses[one.path][0].result
            elif (call := self.calls.get(one.path)) is not None and call.result is not None:
                yield one.path, call.result

    def _site(self, one: SeenSite) -> Site | str:
        """The site of a candidate, or why it is none."""
        module = self.model.get_submodule(one.path)
        parts: tuple[str, ...] = ()
        called = True
        evidence = "changes the output"
        layout: bool | None
        if one.role in _MATRICES:
            uses = self.uses[one.path]
            own = [use.own for use in uses]
            if not all(use.plain for use in uses):
                return "what it applies is computed of its weight, as a standardised kernel is"
            if any(own) and not all(own):
                return "its weight is also read past it"
            called = all(own)
            if called and not confirm.folds(module, uses[0]):
                return "a change of its weight is not that change beside it"
            layout = not isinstance(module, nn.Conv2d)
            width = int(module.get_parameter("weight").shape[0])
            if one.role is Role.ATTN_IN and (
                idle := confirm.idle_rows(self.model, self.trace, uses[0], layout)
            ):
                return f"{idle} of its {width} rows change nothing"
            if one.path in self.told_parts:
                parts = self.told_parts[one.path]
            elif one.role is Role.ATTN_IN and one.path in self.attentions:
                parts = confirm.parts(self.attentions[one.path], uses[0], layout)
            evidence += (
                "; a change folds" if called else "; its weight is read and it is not called"
            )
        else:
            call = self.calls[one.path]
            assert call.result is not None
            called = call.single
            if kind_of(module) in (Kind.NORM, Kind.BATCH_NORM):
                weight = getattr(module, "weight", None)
                if isinstance(weight, Tensor) and weight.ndim != 1:
                    return "its scales are no vector of channels"
                width = len(weight) if isinstance(weight, Tensor) else 0
                layout = norm_layout(module, width, call.result.ndim) if width else None
            elif isinstance(module, nn.Linear | nn.Conv2d):
                width = int(module.weight.shape[0])
                layout = isinstance(module, nn.Linear)
            else:
                width, layout = self._channels(call)
            if layout is None:
                return "which of its axes are channels does not show"
        weight = getattr(module, "weight", None)
        matrix = isinstance(weight, Tensor) and weight.ndim >= 2
        return Site(
            path=one.path,
            role=one.role,
            depth=one.depth,
            stage=one.stage,
            width=width,
            fan_in=weight[0].numel() if matrix and isinstance(weight, Tensor) else None,
            channels_last=layout,
            called=called,
            parts=parts,
            num_params=sum(p.numel() for p in module.parameters()),
            kind=kind_of(module),
            has_bias=getattr(module, "bias", None) is not None,
            evidence=f"{one.why}; {evidence}",
            is_map=self._is_map(one.path),
            in_channels=module.in_channels if isinstance(module, nn.Conv2d) else None,
            kernel_size=kernel_size(module),
        )

    def _is_map(self, path: str) -> bool:
        """Whether the module, or the block it lies in, reads maps."""
        call = self.calls.get(path) or (self.uses[path][0].call if path in self.uses else None)
        block = self.skeleton.of(call) if call is not None else None
        shape = block.call.shape if block is not None else () if call is None else call.shape
        return len(shape) == 4

    def tokens(self) -> Tokens | None:
        """The token stream between the blocks; `None` where they exchange maps."""
        blocks = self.skeleton.blocks
        results = [block.call.result for block in blocks]
        if not blocks or any(r is None or r.ndim != 3 for r in results):
            return None
        shapes = {tuple(r.shape) for r in results if r is not None}
        shapes |= {block.call.shape for block in blocks}
        _, count, width = blocks[0].call.shape if len(blocks[0].call.shape) == 3 else (0, 0, 0)
        grid = self._grid()
        prefix = max(0, count - math.prod(grid)) if grid else 0
        declared = getattr(self.model, "num_prefix_tokens", prefix)
        prefix = declared if isinstance(declared, int) else prefix
        pooled = getattr(self.model, "global_pool", "")
        pooled = pooled if isinstance(pooled, str) else ""
        if getattr(self.model, "attn_pool", None) is not None:
            pooled = "map"
        refusal = counted = ""
        if len(shapes) > 1:
            refusal = "their number or width changes from block to block"
        elif not all(block.call.first and block.call.single for block in blocks):
            refusal = "blocks take or give more than one tensor"
        else:
            assert self.trace.image is not None
            paths = [block.path for block in blocks]
            more = confirm.more_tokens(self.model, paths, prefix, self.trace.image[:1])
            refusal = more.reason
            if refusal:
                image = self.trace.image[:1]
                raised = confirm.more_tokens(self.model, paths, prefix, image, COUNTED)
                counted = COUNTED if raised.accepted else ""
        assert self.trace.image is not None
        image = self.trace.image.detach()
        if len(shapes) > 1:
            grid = None  # of some blocks at most
        if grid and not confirm.row_major(self.model, blocks[0].path, prefix, grid, image):
            grid = None
        return Tokens(
            num_prefix=prefix,
            width=width,
            pooled=pooled,
            accepts_more=not refusal,
            refusal=refusal,
            grid=grid,
            counted=counted,
        )

    def _grid(self) -> tuple[int, int] | None:
        """Rows and columns of what the layer that reads the image gives."""
        reading = next((use for use in self.trace.uses if not use.source.near), None)
        if reading is None or reading.result.ndim != 4:
            return None
        rows, columns = reading.result.shape[-2:]
        return int(rows), int(columns)

    def _channels(self, call: Call) -> tuple[int, bool | None]:
        """How many channels a module gives, and whether they are last; `None` if unclear."""
        result = call.result
        assert result is not None
        flow = flow_of(result)
        if flow is None or result.ndim < 2:
            return 0, None
        layers = [self.model.get_submodule(path) for path in flow.near]
        widths = {int(layer.get_parameter("weight").shape[0]) for layer in layers}
        last, first = result.shape[-1] in widths, result.shape[1] in widths
        layout: bool | None = None
        if result.ndim == 2 or last != first:
            layout = result.ndim == 2 or last
        else:  # both axes are as wide, or several tensors lie beside each other
            layout = self._read_as(call)
            if layout is None and all(isinstance(layer, nn.Linear) for layer in layers):
                layout = True
            elif layout is None and all(isinstance(layer, nn.Conv2d) for layer in layers):
                layout = False
        return int(result.shape[-1 if layout else 1]), layout

    def _read_as(self, call: Call) -> bool | None:
        """Whether what reads a module's result has its channels last: a layer or a norm."""
        for use in self.trace.uses:
            if use.given is call.result:
                return not isinstance(self.model.get_submodule(use.path), nn.Conv2d)
        for other in self.trace.calls:
            module = self.model.get_submodule(other.path)
            weight = getattr(module, "weight", None)
            is_norm = kind_of(module) in (Kind.NORM, Kind.BATCH_NORM)
            if other.given is call.result and is_norm and isinstance(weight, Tensor):
                return norm_layout(module, len(weight), len(other.shape))
        return None
