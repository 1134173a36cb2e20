"""From configuration groups and overrides to a `RunSpec`."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf

from peftbench import data, loggers, methods, shipped
from peftbench.backbones.load import hash_checkpoint
from peftbench.config import foreign
from peftbench.data.sources import Source, source_of
from peftbench.errors import ConfigError
from peftbench.loggers import LoggerSettings
from peftbench.registry import unknown_name
from peftbench.spec import (
    LAST,
    BackboneSpec,
    DatasetFacts,
    DatasetSpec,
    Phase,
    Precision,
    PreprocessingSpec,
    Protocol,
    Recipe,
    RunSpec,
    Selection,
)
from peftbench.sweep.tuning.cells import TunerConfig
from peftbench.training.checkpoint import Saving
from peftbench.untrusted import printable

_log = logging.getLogger(__name__)

DATA_DIR = "${data_dir}"  # root of a data set that is looked for by its name


@dataclass
class RunConfig:
    """Schema of the composed configuration; every key has a type."""

    method: Any = MISSING
    backbone: BackboneSpec = field(default_factory=lambda: BackboneSpec(name=MISSING))
    dataset: DatasetSpec = field(default_factory=lambda: DatasetSpec(name=MISSING, reader=MISSING))
    preprocessing: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    recipe: Recipe = field(default_factory=Recipe)
    by_dataset: Any = None  # rows of an overlay's table, by the name of the data set in its suite
    selection: Selection = field(default_factory=Selection)
    protocol: str = Protocol.name
    seeds: tuple[int, ...] = Protocol.seeds
    average: str = Protocol.average
    parameters: str = Protocol.parameters
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    experiments: Any = None
    tuner: TunerConfig = field(default_factory=TunerConfig)
    tuning: str = ""  # JSON: how the hyper-parameters of a final run were chosen, for its record
    looks: dict[int, float | None] = field(default_factory=dict)  # of a trial that may be stopped
    processes: int = 1  # of one run, on as many GPUs
    checkpoint: Saving = field(default_factory=lambda: Saving(minutes=30.0))
    micro_batch: int | None = None  # images in memory at a time, where a batch does not fit
    seed: int = 0
    phase: str = "final"
    precision: str = "auto"
    results_dir: str = "results"
    data_dir: str | None = None  # folder for all public data sets; `dataset.root` is one's own
    device: str = "auto"
    threads: int | None = None
    force: bool = False
    quiet: bool = False  # say nothing of one's own images; a sweep has said it for its jobs


def config_dir() -> Path:
    """The folder with `config.yaml`: inside an installed package, or at the top of a clone."""
    return shipped.folder("conf", "conf", "config.yaml")


def config_dirs() -> list[Path]:
    """Folders searched for configuration groups, in order of precedence.

    The working directory's own `conf/`, then ours, then those of installed method packages.
    """
    ours = config_dir()
    local = Path.cwd() / "conf"
    folders = [ours, *methods.discover()]
    if os.path.isdir(local) and not local.samefile(ours):
        folders.insert(1, local)
    return folders


def group_dirs(group: str) -> list[Path]:
    """Folders whose YAML files are the choices of `group`."""
    if group == "experiments":
        parents = dict.fromkeys((config_dir().parent, Path.cwd()))
        return [p / group for p in parents if os.path.isdir(p / group)]
    return [folder / group for folder in config_dirs() if os.path.isdir(folder / group)]


class PeftbenchSearchPath(SearchPathPlugin):
    """Lets Hydra find configurations outside our own folder, and `experiments/` as a group."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_dirs()[1:]:
            search_path.append("peftbench", f"file://{folder}")
        for folder in group_dirs("experiments"):
            search_path.append("peftbench", f"file://{folder.parent}")


@cache
def register() -> None:
    """Tell Hydra the schemas, the search path and the launcher; once a process."""
    from peftbench.sweep.launchers.base import register_launcher

    methods.discover()
    store = ConfigStore.instance()
    store.store(name="schema", node=_writable(RunConfig))
    store.store(group="schema", name="tuner", node=TunerConfig)
    for name in methods.METHODS:
        store.store(group="schema/method", name=name, node=_writable(methods.METHODS[name]))
        # a method without a YAML of its own is chosen by name all the same
        if not any((f / "method" / f"{name}.yaml").is_file() for f in config_dirs()):
            store.store(group="method", name=name, node=_writable(methods.METHODS[name]))
    Plugins.instance().register(PeftbenchSearchPath)
    OmegaConf.register_new_resolver("suite_of", _suite_of)
    OmegaConf.register_new_resolver("method_of", method_of)
    OmegaConf.register_new_resolver("by_dataset", _by_dataset)
    register_launcher()


def _suite_of(dataset: str) -> str:
    """The suite in the name of a data set: "vtab" of "vtab/dtd"; else the name itself."""
    return dataset.partition("/")[0]


def method_of(choice: str) -> str:
    """The method that a choice is a row of: "mlp" of "mlp/5"; else the choice itself."""
    return choice.partition("/")[0]


def pinned(choice: str) -> frozenset[str]:
    """Keys that a choice of method fixes in its file: `{"method.num_layers"}` of "mlp/5"."""
    entry = catalogue("method").get(choice, {})
    return frozenset(f"method.{key}" for key in entry if key != "defaults")


def _by_dataset(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    """What an overlay's table has under `key` for the run's data set: `${by_dataset:key}`."""
    rows = _root_.by_dataset or {}
    row = rows.get(str(_root_.dataset.name).rpartition("/")[2], {})
    if key not in row and default is None:
        known = [name for name in map(str, rows) if key in rows[name]]
        raise ConfigError(
            f"recipe={_root_.recipe.name} has no value for dataset={_root_.dataset.name} in its "
            f"table of {key}. Give it on the command line, or use one of: {', '.join(known)}."
        )
    return row.get(key, default)


def _writable(cls: type) -> DictConfig:
    """A schema of a frozen dataclass that configurations may still fill."""
    node: DictConfig = OmegaConf.structured(cls)
    _unlock(node)
    return node


def _unlock(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, False)
    for key in node:
        child = None if OmegaConf.is_missing(node, str(key)) else node[str(key)]
        if isinstance(child, DictConfig):
            _unlock(child)


def build(
    cfg: DictConfig,
    identify: Callable[[DatasetSpec], DatasetSpec] = data.identify,
    hash_file: Callable[[Path], str] = hash_checkpoint,
) -> RunSpec:
    """The run that a composed configuration declares, with the hashes that are its identity.

    `identify` and `hash_file` read the files of the data set and of a local checkpoint; runs that
    are built one after another may share what they found.

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
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(
            f"{missing[0]} has no value. Give it on the command line: {missing[0]}=VALUE"
        )
    backbone: BackboneSpec = OmegaConf.to_object(cfg.backbone)  # type: ignore[assignment]
    if backbone.checkpoint is not None:
        sha256 = hash_file(Path(backbone.checkpoint))
        backbone = dataclasses.replace(backbone, checkpoint_sha256=sha256)
    backbone = dataclasses.replace(backbone, title=_title(backbone))
    dataset: DatasetSpec = OmegaConf.to_object(cfg.dataset)  # type: ignore[assignment]
    if not dataset.name.strip() or printable(dataset.name) != dataset.name:
        raise ConfigError(
            f"dataset.name='{printable(dataset.name)}' is what tables would call it. Use a name of "
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


def dataset_specs(data_dir: str | None) -> dict[str, DatasetSpec]:
    """Every configured data set by its name, looked for in `data_dir`; nothing is read.

    Raises:
        ConfigError: a file has keys that no data set has.
    """
    specs = {}
    for name, entry in catalogue("dataset").items():
        if "defaults" in entry:
            continue  # made of another one by Hydra alone
        plain = {k: v for k, v in entry.items() if not str(v).startswith(("${", "???"))}
        if entry.get("root") == DATA_DIR:
            plain["root"] = data_dir
        try:
            facts = DatasetFacts(**plain.pop("facts", {}))
            specs[name] = DatasetSpec(**plain, facts=facts)
        except TypeError as e:
            raise ConfigError(f"dataset={name}: {e}. Remove that key from its file.") from e
    return specs


def sources() -> dict[str, Source]:
    """Where data sets come from, by name; `ConfigError` where a file makes no sense."""
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
    own = catalogue("protocol").get(cfg.protocol, {}).get("selection", {}).get("rule", LAST)
    if selection.rule not in (LAST, own):
        declaring = [
            name
            for name, entry in catalogue("protocol").items()
            if entry.get("selection", {}).get("rule") == selection.rule
        ]
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
        if entry.get("name") != backbone.name:
            continue
        if entry.get("checkpoint") and os.path.basename(entry["checkpoint"]) == file:
            return name
        if not entry.get("checkpoint"):
            title = name
            break
    if backbone.checkpoint is not None:
        return f"{title} ({file})"
    return title if backbone.pretrained else f"{title} (random)"


def catalogue(group: str) -> dict[str, dict[str, Any]]:
    """Every configuration of a group by its name ("mini/digits"), as plain YAML; aliases left out.

    An alias holds a defaults list and nothing else.
    """
    return {name: e for name, e in _entries(group).items() if e.keys() != {"defaults"}}


def aliases_of(group: str) -> dict[str, str]:
    """Other names of configurations, and what they stand for."""
    return {
        name: str(entry["defaults"][0])
        for name, entry in _entries(group).items()
        if entry.keys() == {"defaults"}
    }


@cache
def _read(group: str) -> tuple[dict[str, dict[str, Any]], dict[str, ConfigError]]:
    """The choices of a group by name, and what is wrong with files that are none.

    Folders of the working directory may be somebody else's, so what is wrong there is told, and
    refused where it is asked for.

    Raises:
        ConfigError: a file that peftbench or an installed package comes with is broken.
    """
    found: dict[str, dict[str, Any]] = {}
    wrong: dict[str, ConfigError] = {}
    for folder in group_dirs(group):
        # below experiments/ are the tables that they measure
        pattern = "*.yaml" if group == "experiments" else "**/*.yaml"
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                continue
            try:
                found[name] = foreign.read_of_group(group, path)
            except ConfigError as error:
                if not is_local(folder):
                    raise
                wrong.setdefault(name, error)
    if wrong:
        first = next(iter(wrong.values()))
        more = f" {len(wrong) - 1} more files there are left out too." if len(wrong) > 1 else ""
        _log.warning("peftbench: left out: %s%s", first, more)
    return found, wrong


def is_local(folder: Path) -> bool:
    """Whether a folder of a group is one of the working directory, and not ours."""
    local = [Path.cwd() / "conf", Path.cwd() / "experiments"]
    ours = (config_dir(), config_dir().parent / "experiments")
    return any(folder.is_relative_to(place) for place in local) and not any(
        folder.is_relative_to(place) for place in ours
    )


def _entries(group: str) -> dict[str, dict[str, Any]]:
    return _read(group)[0]


def choices(group: str) -> set[str]:
    """Names that `group=NAME` accepts, aliases included."""
    names = set(_entries(group))
    if group == "method":
        names |= set(methods.METHODS)
    return names


def check_choices(group: str, chosen: Iterable[str]) -> None:
    """Raise `UnknownName` with suggestions for a name that `group` does not have."""
    known = choices(group)
    for name in chosen:
        if name in _read(group)[1]:
            raise _read(group)[1][name]
        if name not in known:
            error = unknown_name(group, name, known)
            hint = {
                "backbone": " Any timm tag works too: backbone.name=TAG.",
                "dataset": " Your own images: dataset=folder dataset.root=PATH.",
            }.get(group, "")
            raise type(error)(f"{error}{hint}")
