"""Globs over choices, such as `method=glob(*)`, which Hydra expands without `mini/digits`."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from peftbench.config.choices import choices
from peftbench.errors import ConfigError


def written_out(override: Override) -> str:
    """The text of an override, with the sorted names in place of a glob.

    Rows of a method, such as `mlp/5`, are among them only if the glob has a slash.

    Raises:
        ConfigError: a glob that matches nothing.
    """
    pattern = override.value()
    if not isinstance(pattern, Glob):
        return override.input_line or ""
    group = override.key_or_group
    names = sorted(choices(group))
    kept = names
    if group == "method" and not any("/" in text for text in pattern.include):
        kept = [name for name in names if "/" not in name]
    matching = pattern.filter(kept)
    if not matching:
        raise ConfigError(f"{override.input_line} matches nothing. Known: {', '.join(names)}.")
    return f"{group}={','.join(matching)}"


def all_written_out(overrides: Sequence[str]) -> list[str]:
    """The texts of overrides, each as `written_out`.

    Raises:
        ConfigError: a glob that matches nothing.
        OverrideParseException: a text is no override.
    """
    return [written_out(one) for one in OverridesParser.create().parse_overrides(list(overrides))]
