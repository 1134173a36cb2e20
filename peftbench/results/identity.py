"""The identity of a recorded run, computed again from what its record declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbench.canonical import IDENTITY_VERSION, digest
from peftbench.spec import BEST_ON_TEST, FOUND_BY, TOLD, Phase

# what a record tells beside the identity: a name, a place, what a protocol says about reporting
BESIDE = {"backbone": ("title",), "dataset": ("root", *FOUND_BY, *TOLD), "recipe": ("name",)}


def run_id_of(spec: Mapping[str, Any]) -> str:
    """The `run_id` that belongs to the `spec` of a record; see `RunSpec.identity`.

    Raises:
        ValueError: it is not the spec of a run.
    """
    missing = [name for name in ("method", *BESIDE) if not isinstance(spec.get(name), dict)]
    if missing:
        raise ValueError(f"its spec declares no {', '.join(missing)}")
    identity = {name: value for name, value in spec.items() if name != "protocol"}
    for part, names in BESIDE.items():
        identity[part] = {k: v for k, v in spec[part].items() if k not in names}
    backbone = identity["backbone"]
    local = backbone.get("checkpoint") is not None
    named = backbone.get("pretrained") and backbone.get("factory") is None
    if local or named:
        backbone.pop("seed", None)
    if local:
        backbone.update(checkpoint=None, pretrained=False)
    selection = identity.pop("selection", None) or {}
    if selection.get("rule") == BEST_ON_TEST and spec.get("phase") == Phase.FINAL:
        identity["selection"] = selection
    elif selection.get("metric") is not None:
        identity["selection"] = {"metric": selection["metric"]}
    return digest({**identity, "identity_version": IDENTITY_VERSION})
