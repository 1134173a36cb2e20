"""The row of a record in the table of runs, as plain values and without pandas."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from peftbench.errors import StoreError
from peftbench.results.columns import DTYPES, METRICS, VAL
from peftbench.results.index import Row, rows_of
from peftbench.results.record import Cost, RunRecord
from peftbench.results.settings import cached_settings_text, settings_text
from peftbench.results.store import ResultsStore
from peftbench.spec import OWN_READERS, DatasetSpec, called

# of the values of a row: beside the columns, what the run is judged by, and the name of that
NAMES = (*DTYPES, "score", "judged_by")
DEFAULT_PROTOCOL = "peftbench"  # of records from before protocols had names
USUALLY_SEARCHED = ("recipe.lr", "recipe.weight_decay")
REPORTED = ("test/", "val/", "last_epoch/")  # metrics of the data set itself; others are of shifts
# which list of a few-shot set trains is not among them: it varies as the seed does
DATA_SETTINGS = ("shots", "keep_repeats", "final_trains_on", "shifts")
# the same of one's own images; which fold is test, and how the split was drawn, vary as seeds do
OWN_SETTINGS = ("folds", "group_column", "group_copies")
FRACTIONS = {
    f.name: f.default for f in dataclasses.fields(DatasetSpec) if f.name.endswith("_fraction")
}

_IN_ORDER = itemgetter(*NAMES)


def stored_rows(store: ResultsStore) -> tuple[list[Row], list[StoreError]]:
    """The values of `NAMES` of every readable record, and an error for each broken file."""
    return rows_of(store, NAMES, values_of)


def values_of(record: RunRecord) -> Row:
    """The values of `NAMES` of a record."""
    return tuple(_IN_ORDER(_row(record)))


def _row(record: RunRecord) -> dict[str, Any]:
    """The plain values of `NAMES`."""
    spec, parameters = record.spec, record.parameters
    cost, origin = record.cost, record.provenance
    method, backbone, dataset, recipe = (
        _mapping(spec.get(key)) for key in ("method", "backbone", "dataset", "recipe")
    )
    metrics = {name: record.reported(name) for name in METRICS}
    versions = origin.versions if origin else {}
    tuning = _mapping(record.tuning)
    manifest = (origin and origin.data.get("manifest")) or dataset.get("manifest")
    return {
        "schema": record.schema,
        "run_id": record.run_id,
        "status": str(record.status),
        "error": record.error,
        "method": method.get("name"),
        "method_version": method.get("version"),
        "hyperparameters": cached_settings_text(_mapping(method.get("hyperparameters"))),
        "backbone": backbone.get("title") or backbone.get("name"),
        "backbone_tag": _tag(backbone),
        **_data(dataset, manifest),
        "seed": spec.get("seed"),
        "phase": spec.get("phase"),
        "protocol": _mapping(spec.get("protocol")).get("name") or DEFAULT_PROTOCOL,
        "recipe": recipe.get("name"),
        "recipe_settings": cached_settings_text({k: v for k, v in recipe.items() if k != "name"}),
        "epochs": recipe.get("epochs"),
        "lr": recipe.get("lr"),
        "weight_decay": recipe.get("weight_decay"),
        "batch_size": recipe.get("batch_size"),
        "preprocessing": cached_settings_text(_mapping(spec.get("preprocessing"))),
        "image_size": backbone.get("image_size"),
        "input_size": origin and origin.preprocessing.get("size"),
        "sites": origin and origin.sites,
        "drop_path": backbone.get("drop_path"),
        "precision": spec.get("precision"),
        "selection": record.selection,
        "selection_metric": record.judged_by.name,
        "selected_epoch": record.selected_epoch,
        "top1_last": record.metrics.get("last_epoch/top1"),
        "tuner": tuning.get("tuner"),
        "trials": tuning.get("trials"),
        "trial_epochs": tuning.get("epochs"),
        "searched": _searched(tuning),
        "split": record.split,
        **metrics,
        **_val(record, tuning),
        "params_method": parameters and parameters.method,
        "params_head": parameters and parameters.head,
        "params_unfrozen": parameters and parameters.unfrozen,
        "params_backbone": parameters and parameters.backbone,
        "params_tuned": parameters and parameters.method + parameters.unfrozen,
        "stored_bytes": parameters and parameters.stored_bytes,
        **_cost(cost),
        "merge_max_logit_diff": _mapping(record.merge).get("max_logit_difference"),
        "backbone_sha256": origin and origin.backbone_sha256,
        "manifest": manifest,
        "train_images": origin and origin.data.get("train_images"),
        "classes": origin and origin.data.get("classes"),
        "git_commit": origin and origin.git_commit,
        "git_dirty": origin and origin.git_dirty,
        "peftbench": origin and origin.peftbench,
        "torch": versions.get("torch"),
        "timm": versions.get("timm"),
        "host": origin and origin.host,
        "shift_metrics": settings_text(
            {k: v for k, v in record.metrics.items() if not k.startswith(REPORTED)}
        ),
        "started": record.started,
        "finished": record.finished,
        "score": record.score,
        "judged_by": record.judged_by.short,
    }


def _cost(cost: Cost | None) -> dict[str, Any]:
    return {f.name: cost and getattr(cost, f.name) for f in dataclasses.fields(Cost)}


def _val(record: RunRecord, tuning: Mapping[str, Any]) -> dict[str, Any]:
    """Scores on val: of the run, else of the trial that chose its hyper-parameters.

    A trial that was stopped before its end has none.
    """
    if record.stopped_epoch is not None:
        return dict.fromkeys(VAL)
    own = {name: record.metrics.get(f"val/{name.removeprefix('val_')}") for name in VAL}
    return {name: tuning.get(name) if value is None else value for name, value in own.items()}


def _searched(tuning: Mapping[str, Any]) -> str | None:
    """What a search chose; records from before it was said have what searches choose by default."""
    keys = tuning.get("searched", USUALLY_SEARCHED) if tuning.get("tuner") else ()
    texts = [key for key in keys if isinstance(key, str)] if isinstance(keys, list | tuple) else []
    return ",".join(texts) or None


def _data(dataset: Mapping[str, Any], manifest: Any) -> dict[str, Any]:
    own = dataset.get("reader") in OWN_READERS
    return {
        "dataset": called(dataset) or None,
        **{name: dataset.get(name) for name in ("suite", "suite_version", "group", "shots")},
        **{k: dataset.get(k) if own else None for k in ("split_seed", "folds", "fold")},
        # what tells one's own data sets apart; of older records the hash that holds splits as well
        "content": (dataset.get("content") or manifest) if own else None,
        "limit": dataset.get("limit"),
        "data_settings": settings_text(_asked(dataset)),
    }


def _asked(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """What a data set is asked beyond its defaults."""
    asked = {k: dataset[k] for k in DATA_SETTINGS if k in dataset}
    if dataset.get("reader") in OWN_READERS:
        asked |= {k: dataset[k] for k in OWN_SETTINGS if k in dataset}
        asked |= {k: dataset[k] for k, v in FRACTIONS.items() if dataset.get(k, v) != v}
    return asked


def _tag(backbone: Mapping[str, Any]) -> str | None:
    """Exact weights that were asked for, as one text."""
    name = backbone.get("name")
    if backbone.get("checkpoint"):
        return f"{name} (file {str(backbone.get('checkpoint_sha256', ''))[:8]})"
    if backbone.get("pretrained") is False:
        return f"{name} (random, seed {backbone.get('seed', 0)})"
    return name


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
