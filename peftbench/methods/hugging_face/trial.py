"""Whether a tuner of `peft` takes the modules that a method hands it, found by trying copies."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.errors import NotMergeable, Unsupported
from peftbench.methods import surgery
from peftbench.methods.hugging_face.adapter import (
    injected,
    line_of,
    on_cpu,
    on_pretrained,
    quiet,
)
from peftbench.methods.hugging_face.declared import DeclaredTuner

MERGED = 1e-3  # of the largest output, by which folding may move one in float32
POSITIONS = (2, 3)  # rows and columns of the maps that a linear layer is shown


def rehearse(method: DeclaredTuner, backbone: nn.Module, anatomy: Anatomy) -> None:
    """Try the tuner on a copy of one module of each shape among the method's sites.

    Each is run forward and backward with random tuned weights, then folded.

    Raises:
        ConfigError: a setting makes no sense to `peft`.
        Unsupported: `peft` refuses a module, a layer gives none of its tensors a gradient, or
            folding it gives another function.
    """
    try:
        _rehearse(method, backbone, anatomy)
    except Unsupported as e:
        raise Unsupported(
            f"{method.name} does not fit {anatomy.family} backbones so: {e} Set method.targets or "
            "its other settings."
        ) from e


def _rehearse(method: DeclaredTuner, backbone: nn.Module, anatomy: Anatomy) -> None:
    """Its reasons alone."""
    chosen = _different(method.sites(anatomy), backbone)
    modules = {site.path: backbone.get_submodule(site.path) for site in chosen}
    if any(tensor.is_meta for module in modules.values() for tensor in module.parameters()):
        return  # without storage there is nothing to try
    originals = {path: on_cpu(module) for path, module in modules.items()}
    copies = {path: copy.deepcopy(module) for path, module in originals.items()}
    second = [site.path for site in chosen if site.role is Role.MLP_OUT]
    tuner = injected(method, copies, second, seed=0)
    _check_count(method, dataclasses.replace(anatomy, sites=tuple(chosen)), tuner.model)
    generator = torch.Generator().manual_seed(0)
    for site in chosen:
        original = originals[site.path]
        layer = tuner.model.get_submodule(site.path)
        layer = on_pretrained(layer, original, copy.deepcopy(original)).eval()
        surgery.freeze_except(original, ())
        for x in _inputs(site, originals[site.path], anatomy, generator):
            try:
                with quiet():
                    _try(method, site, layer, x)
            except Unsupported:
                raise
            except Exception as e:  # whatever a layer raises for an input of another shape
                raise Unsupported(
                    f"the layer that peft makes of {site.path!r} does not take its "
                    f"input {tuple(x.shape)}: {line_of(e)}"
                ) from e


def _check_count(method: DeclaredTuner, anatomy: Anatomy, model: nn.Module) -> None:
    """Refuse settings that `peft` made fit in silence, which shows in what it trains."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = method.expected_params(anatomy)
    if trained != expected and not method.options:
        raise Unsupported(
            f"peft changes these settings to fit the layers: it trains {trained:,} numbers in "
            f"place of {expected:,}."
        )


def _different(sites: tuple[Site, ...], backbone: nn.Module) -> list[Site]:
    """One site of each kind of module."""
    found: dict[tuple[object, ...], Site] = {}
    for site in sites:
        module = backbone.get_submodule(site.path)
        shapes = tuple(tuple(p.shape) for p in module.parameters())
        key = (type(module), shapes, getattr(module, "stride", None), site.role is Role.MLP_OUT)
        found.setdefault(key, site)
    return list(found.values())


def _inputs(
    site: Site, module: nn.Module, anatomy: Anatomy, generator: torch.Generator
) -> list[Tensor]:
    """Small inputs of the shapes that the module sees in its backbone."""
    if isinstance(module, nn.Conv2d):
        side = 2 * max(module.kernel_size) + 2
        return [torch.randn(2, module.in_channels, side, side, generator=generator)]
    width = site.fan_in or site.width
    tokens = torch.randn(2, 5, width, generator=generator)
    attends = site.role in (Role.ATTN_IN, Role.ATTN_OUT)
    if not isinstance(module, nn.Linear) and not site.channels_last:
        return [torch.randn(2, width, *POSITIONS, generator=generator)]
    if anatomy.tokens is not None or not site.is_map:
        return [tokens]
    # attention cuts maps into windows of tokens, or reads them as they are
    grid = torch.randn(2, *POSITIONS, width, generator=generator)
    return [tokens, grid] if attends else [grid]


def _try(method: DeclaredTuner, site: Site, layer: nn.Module, x: Tensor) -> None:
    """Run, differentiate and fold one layer; `layer` is left with random tuned weights."""
    trained = [p for p in layer.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise)
    output = layer(x)
    found = torch.autograd.grad(output.square().sum(), trained, allow_unused=True)
    if not any(gradient is not None and gradient.any() for gradient in found):
        raise Unsupported(f"no tensor that peft adds to {site.path!r} gets a gradient.")
    if not method.entry.merges:
        return
    holder = nn.Sequential(copy.deepcopy(layer))
    try:
        folded = method.merge(holder)(x)
    except NotMergeable as e:
        reason = str(e).replace(repr("0"), repr(site.path))
        raise Unsupported(reason) from e
    with torch.no_grad():
        error = (folded - output).abs().max() / output.abs().max()
    if not error <= MERGED:
        raise Unsupported(
            f"folded into {site.path!r}, what peft computes differs by {error:.1g} of the largest "
            "output."
        )
