"""What `describe` finds in a backbone that is named: kept where it is known, else of a model.

Anatomies of the usual backbones lie in a file of the package. Those that inference found, which
runs the model, are kept in the user's cache, under a name made of all that they depend on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.backbones import known
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.corrections import parsed
from peftbench.caches import cache_dir
from peftbench.canonical import digest
from peftbench.spec import BackboneSpec

if TYPE_CHECKING:
    from torch import nn


def anatomy_of(spec: BackboneSpec) -> Anatomy:
    """The anatomy of a backbone at its image size; no weights are read.

    Raises:
        PeftbenchError: there is no such backbone, or not at this size.
    """
    for one in known.of_name(spec.name) if not spec.anatomy else ():
        if spec.image_size in (None, one.image_size):
            return one
    return described(spec)


def described(spec: BackboneSpec) -> Anatomy:
    """As `anatomy_of`, of a model that is built for it."""
    from peftbench.backbones.load import load

    loaded = load(dataclasses.replace(spec, checkpoint=None), 2, device="meta")
    return of_model(spec, loaded.model, loaded.image_size)


def of_model(spec: BackboneSpec, model: nn.Module, image_size: int) -> Anatomy:
    """The anatomy of the model that `spec` names, which may be without values.

    Args:
        image_size: side of the images that it takes, in pixels.
    """
    from peftbench.backbones.describe import describe
    from peftbench.backbones.load import load

    found = describe(model, image_size, look=False)
    if found.sites and not spec.anatomy:
        return found
    # inference runs a model, which needs values, though none that were trained
    random = dataclasses.replace(spec, pretrained=False, checkpoint=None, checkpoint_sha256="")
    if spec.factory is not None:  # a function of one's own may change under its name
        return describe(load(random, 2).model, image_size, parsed(spec.anatomy))
    path = _file(random, image_size)
    kept = _read(path)
    if kept is None:
        kept = describe(load(random, 2).model, image_size, parsed(spec.anatomy))
        _write(path, kept)
    return kept


def _file(spec: BackboneSpec, image_size: int) -> Path:
    """Where the anatomy of a backbone is kept: named after all that it depends on."""
    from importlib.metadata import version

    from peftbench.backbones.load import construction

    architecture, options = construction(spec)
    facts = {
        "architecture": architecture,
        "options": {key: str(value) for key, value in options.items()},
        "image_size": image_size,
        "corrections": spec.anatomy,
        "origin": known.origin(),
        "torch": version("torch"),
        "code": _code(),
    }
    return cache_dir() / "anatomies" / f"{digest(facts)}.json"


def _code() -> str:
    """A hash of the code that finds anatomies."""
    here = Path(__file__).parent
    own = [here / f"{name}.py" for name in ("anatomy", "describe", "kinds", "probe")]
    files = [*own, *sorted((here / "inference").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(path: Path) -> Anatomy | None:
    """What is kept; `None` where there is nothing, or what cannot be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return known.thawed(content["rest"], content["sites"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, anatomy: Anatomy) -> None:
    """Keep it; a folder that cannot be written to costs the next run its time, and no more."""
    rest = dataclasses.asdict(anatomy)
    sites = [list(site.values()) for site in rest.pop("sites")]
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump({"rest": rest, "sites": sites}, file)
        os.replace(name, path)
