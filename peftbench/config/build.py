"""From configuration groups and overrides to a `RunSpec`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from peftbench import loggers, methods
from peftbench.backbones import corrections
from peftbench.backbones.hashes import hash_checkpoint
from peftbench.config.choices import catalogue, in_data_dir
from peftbench.config.schema import RunConfig
from peftbench.errors import ConfigError
from peftbench.loggers import LoggerSettings
from peftbench.protocols import rule_of
from peftbench.registry import unknown_name
from peftbench.spec import (
    LAST,
    BackboneSpec,
    DatasetFacts,
    DatasetSpec,
    Phase,
    Precision,
    Protocol,
    RunSpec,
    Selection,
)
from peftbench.untrusted import printable

if TYPE_CHECKING:
    from peftbench.data.sources import Source


def identify_now(dataset: DatasetSpec) -> DatasetSpec:
    """As `data.identify`, whose imports names and keys that are refused need not wait for."""
    from peftbench import data

    return data.identify(dataset)


def build(
    cfg: DictConfig,
    identify: Callable[[DatasetSpec], DatasetSpec] = identify_now,
    hash_file: Callable[[Path], str] = hash_checkpoint,
    written: Any = None,
) -> RunSpec:
    """The run that a composed configuration declares, with the hashes that are its identity.

    `identify` and `hash_file` read the files of the data set and of a local checkpoint; runs that
    are built one after another may share what they found. `written` are the values of `cfg`, none
    resolved, of a caller that has them.

    Raises:
        ConfigError: a value that no field accepts.
        DataError: the data set cannot be found.
        WeightsError: a local checkpoint cannot be found.
    """
    _check_keys(cfg)
    method = OmegaConf.to_object(cfg.method)
    if not isinstance(method, methods.Method):
        raise ConfigError(
            "method is not a registered method: its YAML must begin with "
            "'defaults: [/schema/method/NAME@_here_]'."
        )
    method.check_installed()
    if cfg.backbone.get("factory") is not None:
        cfg = cfg.copy()
        cfg.backbone.name = cfg.backbone.factory  # whatever stood there was of another backbone
        written = None
    missing = sorted(_missing(OmegaConf.to_container(cfg) if written is None else written))
    if missing:
        raise ConfigError(
            f"{missing[0]} has no value. Give it on the command line: {missing[0]}=VALUE"
        )
    backbone: BackboneSpec = OmegaConf.to_object(cfg.backbone)  # type: ignore[assignment]
    if backbone.factory is not None and not backbone.pretrained:
        raise ConfigError(
            f"backbone.pretrained=false, but which weights there are says {backbone.factory}. "
            "Leave it out."
        )
    if backbone.checkpoint is not None:
        sha256 = hash_file(Path(backbone.checkpoint))
        backbone = dataclasses.replace(backbone, checkpoint_sha256=sha256)
    if backbone.anatomy:
        backbone = dataclasses.replace(backbone, anatomy=corrections.text_of(backbone.anatomy))
    backbone = dataclasses.replace(backbone, title=_title(backbone))
    dataset: DatasetSpec = OmegaConf.to_object(cfg.dataset)  # type: ignore[assignment]
    for key, name in (("name", dataset.name), ("title", dataset.title or "-")):
        if not name.strip() or printable(name) != name:
            raise ConfigError(
                f"dataset.{key}='{printable(name)}' is what tables would call it. Use a name of "
                "printable characters, or leave it out."
            )
    return RunSpec(
        method=method,
        backbone=backbone,
        dataset=identify(dataset),
        shifts=tuple(_shift(name, cfg.data_dir) for name in dataset.shifts),
        preprocessing=OmegaConf.to_object(cfg.preprocessing),  # type: ignore[arg-type]
        recipe=OmegaConf.to_object(cfg.recipe),  # type: ignore[arg-type]
        seed=cfg.seed,
        phase=_member(Phase, "phase", cfg.phase),
        precision=_member(Precision, "precision", cfg.precision),
        selection=_selection(cfg),
        protocol=Protocol(cfg.protocol, tuple(cfg.seeds), cfg.average, cfg.parameters),
        looks=tuple(sorted(cfg.looks.items())),
    )


def _missing(values: Any, path: str = "") -> Iterator[str]:
    """The keys that `???` stands behind; interpolations are left to those that read them."""
    if values == "???":
        yield path
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _missing(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, list):
        for i, value in enumerate(values):
            yield from _missing(value, f"{path}[{i}]")


def dataset_specs(data_dir: str | None) -> dict[str, DatasetSpec]:
    """Every configured data set by its name, looked for in `data_dir`; nothing is read.

    Raises:
        ConfigError: a file has keys that no data set has.
    """
    specs = {}
    for name, entry in catalogue("dataset").items():
        if "defaults" in entry:
            continue  # made of another one by Hydra alone
        plain = in_data_dir(entry, data_dir)
        try:
            facts = DatasetFacts(**plain.pop("facts", {}))
            specs[name] = DatasetSpec(**plain, facts=facts)
        except TypeError as e:
            raise ConfigError(f"dataset={name}: {e}. Remove that key from its file.") from e
    return specs


def sources() -> dict[str, Source]:
    """Where data sets come from, by name; `ConfigError` where a file makes no sense."""
    from peftbench.data.sources import source_of

    return {name: source_of(name, entry) for name, entry in catalogue("source").items()}


def _shift(name: str, data_dir: str | None) -> DatasetSpec:
    known = {n: s for n, s in dataset_specs(data_dir).items() if s.reader == "shift"}
    if name not in known:
        raise unknown_name("data set in dataset.shifts", name, known)
    return known[name]


def logger_settings(cfg: DictConfig) -> LoggerSettings:
    """The logger that a composed configuration declares, which is no part of its run.

    Raises:
        ConfigError: no such logger, a value that it does not take, or a package that is missing.
    """
    settings: LoggerSettings = OmegaConf.to_object(cfg.logger)  # type: ignore[assignment]
    loggers.check(settings)
    return settings


def _selection(cfg: DictConfig) -> Selection:
    """The rule that chooses the epoch; one that looks at test must be the protocol's own."""
    selection: Selection = OmegaConf.to_object(cfg.selection)  # type: ignore[assignment]
    rules = {name: rule_of(entry) for name, entry in catalogue("protocol").items()}
    if selection.rule not in (LAST, rules.get(cfg.protocol, LAST)):
        declaring = [name for name, rule in rules.items() if rule == selection.rule]
        raise ConfigError(
            f"selection.rule={selection.rule} flatters, and protocol={cfg.protocol} does not "
            f"declare it. Use selection.rule={LAST}, or a protocol that does: "
            f"{', '.join(declaring)}."
        )
    return selection


def _check_keys(cfg: DictConfig) -> None:
    """Refuse keys that `+key=value` added beyond the fields of a schema."""
    top = [f.name for f in dataclasses.fields(RunConfig)]
    for key in cfg:
        if key not in top and key not in ("hydra", "tuned"):
            raise unknown_name("key", str(key), top)
    for group in (
        "method",
        "backbone",
        "dataset",
        "preprocessing",
        "recipe",
        "selection",
        "logger",
    ):
        node = cfg[group]
        kind = OmegaConf.get_type(node)
        if not isinstance(node, DictConfig) or not dataclasses.is_dataclass(kind):
            continue
        known = [f.name for f in dataclasses.fields(kind)]
        for key in node:
            if key not in known:
                raise unknown_name(f"key in {group}:", str(key), known)


def _member(kind: Any, key: str, text: str) -> Any:
    values = [str(member) for member in kind]
    if text not in values:
        raise unknown_name(key, text, values)
    return kind(text)


def _title(backbone: BackboneSpec) -> str:
    """Short name for tables: the configuration that names exactly these weights, else the tag."""
    title = backbone.name
    file = os.path.basename(backbone.checkpoint or "")
    for name, entry in catalogue("backbone").items():
        if entry.get("factory", entry.get("name")) != backbone.name:
            continue
        if entry.get("checkpoint") and os.path.basename(entry["checkpoint"]) == file:
            return name
        if not entry.get("checkpoint"):
            title = name
            break
    if backbone.checkpoint is not None:
        return f"{title} ({file})"
    return title if backbone.pretrained else f"{title} (random)"
