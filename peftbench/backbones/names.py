"""Names of backbones, and which weights they mean; timm is asked for those that it has."""

from __future__ import annotations

from functools import cache

from peftbench.backbones.known import of_name
from peftbench.backbones.models.registry import register_all
from peftbench.backbones.shipped import SHIPPED
from peftbench.errors import UnknownName, WeightsError
from peftbench.registry import unknown_name
from peftbench.spec import BackboneSpec


def check_name(spec: BackboneSpec) -> None:
    """Refuse a name that does not say exactly which weights it means.

    timm maps bare and legacy names silently to one of several checkpoints (the legacy
    `vit_base_patch16_224_in21k` became AugReg weights), so only `architecture.tag` is accepted
    where hub weights are asked for.
    """
    name = spec.name
    if spec.factory is not None:
        return
    if name in SHIPPED or ("." in name and of_name(name)):
        return
    import timm
    from timm.models._registry import _deprecated_models

    register_all()
    architecture, _, tag = name.partition(".")
    deprecated = timm.models.is_model(architecture) and architecture not in _architectures()
    if deprecated or not timm.models.is_model(architecture):
        if deprecated or architecture.removesuffix("_in21k") in _architectures():
            stem = architecture.removesuffix("_in21k").removesuffix("_in22k")
            successor = str(_deprecated_models.get(architecture) or "").partition(".")[0]
            candidates = [
                *timm.list_pretrained(f"{stem}.*"),
                *(timm.list_pretrained(f"{successor}.*") if successor else ()),
            ] or timm.list_pretrained(f"{stem}*")[:8]
            advice = (
                f"Use one of: {', '.join(dict.fromkeys(candidates))}."
                if candidates
                else "`peftbench list backbones` shows the configured ones."
            )
            raise UnknownName(
                f"Backbone {name!r} is a legacy name that does not say which weights it means. "
                f"{advice}"
            )
        known = [*SHIPPED, *_architectures()]
        # the pages of timm's weights write timm/NAME.TAG, and its API hf-hub:timm/NAME.TAG
        bare = name.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
        if bare != name and bare.partition(".")[0] in known:
            raise UnknownName(
                f"Unknown backbone {name!r}. Names are written without what stands in front: "
                f"backbone.name={bare}."
            )
        error = unknown_name("backbone", name, known)
        raise UnknownName(
            str(error).partition(" Known:")[0] + " `peftbench list backbones` shows the configured "
            "ones; any timm name with its tag works too."
        )
    candidates = list(_tagged(architecture))
    if tag and name not in candidates:
        raise unknown_name(f"pretrained tag of {architecture!r}:", name, candidates)
    if not spec.pretrained or spec.checkpoint is not None:
        return
    if not tag:
        if not candidates:
            raise WeightsError(
                f"timm has no pretrained weights for {name!r}. Set backbone.pretrained=false for "
                "seeded random weights, or backbone.checkpoint=PATH for your own."
            )
        raise UnknownName(
            f"Backbone {name!r} lacks its pretrained tag, and different tags are different "
            f"weights. Use one of: {', '.join(candidates)}."
        )


@cache
def _tagged(architecture: str) -> tuple[str, ...]:
    """The pretrained weights of an architecture; timm looks through all that it has."""
    import timm

    return tuple(timm.list_pretrained(f"{architecture}.*"))


@cache
def _architectures() -> frozenset[str]:
    import timm

    return frozenset(timm.list_models())
