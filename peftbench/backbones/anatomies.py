"""What `describe` finds in a backbone, from the file of those that are known, else of a model."""

from __future__ import annotations

import dataclasses

from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.known import of_name
from peftbench.spec import BackboneSpec


def anatomy_of(spec: BackboneSpec) -> Anatomy:
    """The anatomy of a backbone at its image size; no weights are read.

    Raises:
        PeftbenchError: there is no such backbone, or not at this size.
    """
    for known in of_name(spec.name):
        if spec.image_size in (None, known.image_size):
            return known
    return described(spec)


def described(spec: BackboneSpec) -> Anatomy:
    """As `anatomy_of`, of a model that is built for it."""
    from peftbench.backbones.describe import describe
    from peftbench.backbones.load import load

    loaded = load(spec, 2, device="meta")
    known = describe(loaded.model, loaded.image_size)
    if known.sites:
        return known
    # nobody described it: inference runs it, which needs values, though none that were trained
    random = dataclasses.replace(spec, pretrained=False, checkpoint=None)
    loaded = load(random, 2)
    return describe(loaded.model, loaded.image_size)
