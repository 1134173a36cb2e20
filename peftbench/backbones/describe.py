"""The anatomy of a backbone, confirmed by a probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from peftbench.backbones.anatomy import (
    GENERIC,
    STEM,
    Anatomy,
    Family,
    Head,
    Kind,
    Role,
    Site,
    Tokens,
)
from peftbench.backbones.classifier import heads_of, prefixes
from peftbench.backbones.corrections import NONE, Corrections
from peftbench.backbones.inference import NOTHING, Inferred, LeftOut, infer
from peftbench.backbones.kinds import kernel_size, kind_of, norm_layout
from peftbench.backbones.patterns import match
from peftbench.backbones.probe import probe
from peftbench.errors import ConfigError, Unsupported

BORDER = 5  # by which images are enlarged to see whether a model takes other sizes, in pixels
QUICK = 128  # side of the images at which inference looks at a model that takes them, in pixels


def describe(
    backbone: nn.Module,
    image_size: int,
    corrections: Corrections = NONE,
    look: bool = True,
) -> Anatomy:
    """The anatomy of a timm model with a classifier.

    Sites are declared by the family of the model's class and confirmed by one forward pass of a
    weightless copy, which gives widths and shows modules that are never called. The sites of a
    class without a family, of a variant that lacks a role of its family, and of any backbone that
    is corrected are inferred; see `peftbench.backbones.inference`. A model without values, or one
    that cannot be watched, has none: methods that need none still work.

    Args:
        image_size: side of the images that it takes, in pixels.
        corrections: roles that are told.
        look: whether to infer; an undescribed backbone has no sites without.

    Raises:
        Unsupported: the model has no classifier.
        ConfigError: the model cannot be copied, which the probe and merging need, or gives two
            outputs while it trains.
    """
    from peftbench.backbones.families import family_of

    family = family_of(backbone)
    heads = heads_of(backbone)
    of_heads = prefixes(heads)
    declared = list(_declare(backbone, family))
    shapes, channels = probe(
        backbone, [site.path for site in declared] or [heads[0].path], image_size
    )
    late = _late_entries(declared, shapes)
    sites = tuple(
        _site(backbone, family, site, shapes.get(site.path))
        for site in declared
        if (site.path, site.role) not in late
    )
    optional = family.optional | {Role.ATTN_ENTRY, Role.MLP_ENTRY}
    missing = set(family.inside) - {site.role for site in sites} - optional
    blocks = [site for site in sites if site.role is Role.BLOCK]
    looked = None
    if missing or not sites or not corrections.is_empty:
        # no description, or a variant with other modules, or one that is told
        looked = NOTHING
        if look:
            looked = _look(backbone, image_size, channels, heads, corrections)
        family, sites = replace(GENERIC, name=_named(backbone, looked)), looked.sites
    takes_more = looked is None or _takes(backbone, heads[0].path, image_size + 2 * BORDER)
    norms = _norms(backbone, of_heads)
    head_params = sum(
        p.numel() for name, p in backbone.named_parameters() if name.startswith(of_heads)
    )
    return Anatomy(
        family=family.name,
        sites=sites,
        depth=looked.depth if looked else len(blocks),
        head=heads[0].path,
        head_width=heads[0].width,
        tokens=looked.tokens if looked else _tokens(backbone, family, blocks),
        num_params=sum(p.numel() for p in backbone.parameters()) - head_params,
        bias_attributes=family.bias_attributes,
        position_biases=family.position_biases,
        num_biases=_count(backbone, family.bias_attributes, of_heads),
        num_position_biases=_count(backbone, family.position_biases, of_heads),
        image_size=image_size,
        norms=tuple(norms),
        num_norm_params=sum(norms.values()),
        channels=channels,
        head_on_maps=heads[0].on_maps,
        more_heads=heads[1:],
        size_refusal=family.size_refusal
        or ("" if takes_more else f"it was built for {image_size} pixels"),
        inferred=bool(looked and looked.sites),
        uncovered=looked.uncovered if looked else _uncovered(backbone, sites),
        left_out=tuple((o.path, o.role.value, o.reason) for o in looked.left_out) if looked else (),
    )


def _look(
    backbone: nn.Module,
    image_size: int,
    channels: int,
    heads: tuple[Head, ...],
    corrections: Corrections,
) -> Inferred:
    """What inference finds; nothing in a model without values, or one that it cannot watch."""
    if any(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers())):
        return NOTHING
    paths = tuple(head.path for head in heads)
    for size in dict.fromkeys((min(QUICK, image_size), image_size)):
        looked = _watched(backbone, size, channels, paths, corrections)
        if looked.left_out and not looked.sites:
            continue
        if size == image_size or looked.tokens is None:
            return looked
        embed = next((s.path for s in looked.sites if s.role is Role.EMBED), None)
        shapes = probe(backbone, [embed], image_size)[0] if embed else {}
        if embed in shapes and len(shapes[embed]) == 4 and looked.tokens.grid is not None:
            grid = (int(shapes[embed][-2]), int(shapes[embed][-1]))
            return replace(looked, tokens=replace(looked.tokens, grid=grid))
    return looked


def _watched(
    backbone: nn.Module,
    image_size: int,
    channels: int,
    heads: tuple[str, ...],
    corrections: Corrections,
) -> Inferred:
    """What inference finds at this size; nothing, with the reason, where the model defies it.

    Its code is somebody's, and methods that need no sites work whatever it does.
    """
    try:
        return infer(backbone, image_size, channels, heads, corrections)
    except ConfigError:
        raise
    except Exception as e:
        text = (str(e).strip() or type(e).__name__).splitlines()[0][:120]
        return replace(NOTHING, left_out=(LeftOut("*", Role.BLOCK, f"looking ended in: {text}"),))


def _takes(backbone: nn.Module, head: str, image_size: int) -> bool:
    """Whether a model takes images of another size than it was built for."""
    try:
        probe(backbone, [head], image_size)
    except Exception:  # whatever its code does with them
        return False
    return True


def _named(backbone: nn.Module, looked: Inferred) -> str:
    """The class of the model, or the name of what nothing is known of."""
    return type(backbone).__name__ if looked.sites else GENERIC.name


def _uncovered(backbone: nn.Module, sites: tuple[Site, ...]) -> tuple[str, ...]:
    """Convolutions inside the blocks that their family does not describe."""
    known = {site.path for site in sites}
    blocks = [site.path for site in sites if site.role is Role.BLOCK]
    return tuple(
        path
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d)
        and path not in known
        and any(path.startswith(f"{block}.") for block in blocks)
    )


@dataclass(frozen=True)
class _Declared:
    """A site as its family declares it, before the probe."""

    path: str
    role: Role
    depth: int
    stage: int


def _declare(backbone: nn.Module, family: Family) -> Iterator[_Declared]:
    """The declared sites in depth order."""
    if not family.blocks:
        return
    modules = {p: m for p, m in backbone.named_modules() if p and not isinstance(m, nn.Identity)}
    for role, patterns in family.stem.items():
        for path in _matching(patterns, modules):
            if _fits(role, modules[path]):
                yield _Declared(path, role, STEM, 0)
    blocks = [
        path for path in modules if any(match(pattern, [path]) for pattern in patterns_of(family))
    ]
    transitions = _matching(family.transitions, modules)
    stages: list[str] = []
    for depth, block in enumerate(blocks):
        stage = _stage_of(block)
        if stage not in stages:
            stages.append(stage)
            for path in _before_stage(family, transitions, stages):
                for site, role in _around(path, Role.TRANSITION, family.in_transition, modules):
                    yield _Declared(site, role, depth, len(stages) - 1)
        for site, role in _around(block, Role.BLOCK, family.inside, modules):
            yield _Declared(site, role, depth, stages.index(stage))
    for path in _matching(family.after, modules):
        yield _Declared(path, Role.AFTER, len(blocks), max(0, len(stages) - 1))


def patterns_of(family: Family) -> tuple[str, ...]:
    """The patterns of its blocks."""
    return (family.blocks, *family.more_blocks)


def _before_stage(family: Family, transitions: list[str], stages: list[str]) -> list[str]:
    """Those of `transitions` that stand in front of the last of `stages`."""
    if family.transitions_in_order:
        return transitions[len(stages) - 2 : len(stages) - 1] if len(stages) > 1 else []
    return [path for path in transitions if path.rpartition(".")[0] == stages[-1]]


def _stage_of(block: str) -> str:
    """The path of a block's stage, beside whose parts transitions stand: Swin's layers.1."""
    return block.rpartition(".")[0].removesuffix(".blocks").removesuffix(".layers")


def _matching(patterns: tuple[str, ...], modules: Mapping[str, nn.Module]) -> list[str]:
    """Paths of the modules that fit one of `patterns`, pattern by pattern."""
    return [path for pattern in patterns for path in match(pattern, list(modules))]


def _around(
    path: str,
    role: Role,
    inside: Mapping[Role, tuple[str, ...]],
    modules: Mapping[str, nn.Module],
) -> Iterator[tuple[str, Role]]:
    """A site, and the sites that its family declares inside it."""
    yield path, role
    for inner_role, names in inside.items():
        for inner in (f"{path}.{name}" for name in names):
            if inner in modules and _fits(inner_role, modules[inner]):
                yield inner, inner_role


def _fits(role: Role, module: nn.Module) -> bool:
    """Whether a module is of the kind its role says; the same name differs between variants."""
    if role in (Role.NORM, Role.TRANSITION_NORM):
        return "Norm" in type(module).__name__
    if role is Role.TRANSITION_CONV:
        return isinstance(module, nn.Conv2d)
    if role in (Role.SPATIAL_CONV, Role.POINT_CONV):
        point = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        return isinstance(module, nn.Conv2d) and point == (role is Role.POINT_CONV)
    return True


def _late_entries(
    declared: list[_Declared], shapes: dict[str, torch.Size]
) -> set[tuple[str, Role]]:
    """Norms declared as the entry of a branch which are called behind it, as in post-norm blocks.

    `shapes` is in the order of calls.
    """
    order = {path: index for index, path in enumerate(shapes)}
    late = set()
    for entry, inside in ((Role.ATTN_ENTRY, Role.ATTN_OUT), (Role.MLP_ENTRY, Role.MLP_OUT)):
        ends = {site.depth: order.get(site.path, -1) for site in declared if site.role is inside}
        late |= {
            (site.path, site.role)
            for site in declared
            if site.role is entry
            and "norm" in site.path
            and order.get(site.path, -1) > ends.get(site.depth, -1) >= 0
        }
    return late


def _site(
    backbone: nn.Module, family: Family, declared: _Declared, shape: torch.Size | None
) -> Site:
    path, role = declared.path, declared.role
    module = backbone.get_submodule(path)
    weight = getattr(module, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.ndim >= 2
    channels_last = _channels_last(module, family, shape)
    if isinstance(weight, Tensor):
        width = weight.shape[0]
    elif shape is not None:
        width = shape[-1] if channels_last else shape[1]
    else:
        raise Unsupported(
            f"{type(backbone).__name__}: the {role} {path!r} has no weight and is never called, "
            "so its width is unknown. Correct its family in backbones/families.py."
        )
    parts = (family.parts or {}).get(_inside(path, family), ())
    return Site(
        path=path,
        role=role,
        depth=declared.depth,
        stage=declared.stage,
        width=width,
        fan_in=weight[0].numel() if matrix and isinstance(weight, Tensor) else None,
        channels_last=channels_last,
        called=shape is not None,
        parts=parts,
        num_params=sum(p.numel() for p in module.parameters()),
        kind=kind_of(module),
        has_bias=getattr(module, "bias", None) is not None,
        is_map=not family.tokens or role is Role.EMBED,
        in_channels=module.in_channels if isinstance(module, nn.Conv2d) else None,
        kernel_size=kernel_size(module),
    )


def _inside(path: str, family: Family) -> str:
    """The part of `path` behind the block that it is in."""
    names = path.split(".")
    for pattern in patterns_of(family):
        depth = pattern.count(".") + 1
        if match(pattern, [".".join(names[:depth])]):
            return ".".join(names[depth:])
    return path


def _channels_last(module: nn.Module, family: Family, shape: torch.Size | None) -> bool:
    """Layout is a property of the module, not of the family: read off the type, else tried."""
    if isinstance(module, nn.Linear):
        return True
    if isinstance(module, nn.Conv2d | _BatchNorm):
        return False
    weight = getattr(module, "weight", None)
    if kind_of(module) is Kind.NORM and isinstance(weight, Tensor) and weight.ndim == 1:
        tried = norm_layout(module, len(weight), len(shape) if shape is not None else 4)
        if tried is not None:
            return tried
    return family.channels_last


def _tokens(backbone: nn.Module, family: Family, blocks: list[Site]) -> Tokens | None:
    if not family.tokens:
        return None
    pooled = getattr(backbone, "global_pool", "")
    if getattr(backbone, "attn_pool", None) is not None:
        pooled = "map"
    return Tokens(
        num_prefix=int(getattr(backbone, "num_prefix_tokens", 0)),
        width=blocks[0].width,
        pooled=str(pooled),
        accepts_more=not family.token_refusal,
        refusal=family.token_refusal,
        grid=_grid(backbone),
        counted=family.token_count,
    )


def _grid(backbone: nn.Module) -> tuple[int, int] | None:
    size = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    return (int(size[0]), int(size[1])) if size is not None else None


def _count(backbone: nn.Module, attributes: tuple[str, ...], of_heads: tuple[str, ...]) -> int:
    return sum(
        parameter.numel()
        for name, parameter in backbone.named_parameters()
        if name.rpartition(".")[2] in attributes and not name.startswith(of_heads)
    )


def _norms(backbone: nn.Module, of_heads: tuple[str, ...]) -> dict[str, int]:
    """Paths of the norms outside the classifier and how many parameters each has."""
    sizes = {}
    for path, module in backbone.named_modules():
        inside_head = f"{path}.".startswith(of_heads)
        if kind_of(module) in (Kind.NORM, Kind.BATCH_NORM) and not inside_head:
            own = sum(p.numel() for p in module.parameters(recurse=False))
            if own:
                sizes[path] = own
    return sizes
