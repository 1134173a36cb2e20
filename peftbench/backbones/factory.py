"""Models that a function of the user's builds: `backbone.factory=MODULE:FUNCTION`.

Importing the module runs its code, as that of a plugin, so the name is taken from the configuration
alone, which is the user's, and never from a card of somebody else.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from torch import nn

from peftbench.backbones.accepted import check_model
from peftbench.errors import ConfigError
from peftbench.spec import BackboneSpec


def build(spec: BackboneSpec, num_classes: int) -> nn.Module:
    """What the function of `spec` gives for `num_classes=N`, and where asked `drop_path_rate=P`.

    Raises:
        ConfigError: the function cannot be imported, fails, or gives no model that can be tuned.
        Unsupported: the model has no single classifier.
    """
    assert spec.factory is not None
    asked = f"backbone.factory={spec.factory}"
    try:
        function = pkgutil.resolve_name(spec.factory)
    except Exception as e:  # whatever the module does when it is imported
        raise ConfigError(
            f"{asked} cannot be imported ({_reason(e)}). Install its package, or put its folder on "
            "PYTHONPATH."
        ) from e
    options: dict[str, Any] = {"num_classes": num_classes}
    if spec.drop_path > 0:
        options["drop_path_rate"] = spec.drop_path
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    try:
        model = function(**options)
    except Exception as e:
        raise ConfigError(
            f"{asked} failed when called with {given} ({_reason(e)}). It must take these by name "
            "and return a model."
        ) from e
    try:
        check_model(model)
    except ConfigError as e:
        raise ConfigError(f"{asked}: {e}") from e
    assert isinstance(model, nn.Module)
    return model


def _reason(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
