"""The table of runs: one row a run, failures kept, derived from the records and never edited."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from peftbench.errors import ConfigError, StoreError
from peftbench.registry import unknown_name
from peftbench.results.privacy import public_text
from peftbench.results.record import Cost, RunRecord, Status
from peftbench.results.store import ResultsStore, current, write_atomic
from peftbench.untrusted import guarded, printable, printable_lines, unguarded

DEFAULT_PROTOCOL = "peftbench"  # of records from before protocols had names
_AGAIN = "Write it again with `peftbench report`."
SPLIT_OF_PHASE = {"final": "test", "tune": "val"}
REPORTED = ("test/", "val/", "last_epoch/")  # metrics of the data set itself; others are of shifts
# which list of a few-shot set trains is not among them: it varies as the seed does
DATA_SETTINGS = ("shots", "keep_repeats", "final_trains_on", "shifts")


@dataclass(frozen=True)
class Column:
    """One column of the table; a missing value is `pd.NA` in every dtype."""

    name: str
    dtype: str  # a nullable pandas dtype: string, Int64, Float64 or boolean
    meaning: str


COLUMNS = (
    Column("schema", "Int64", "version of the record"),
    Column("run_id", "string", "digest of the declared identity"),
    Column("status", "string", "how the run ended: OK, UNSUPPORTED, ..."),
    Column("error", "string", "reason where the status is not OK"),
    Column("method", "string", "registered name"),
    Column("method_version", "Int64", "version of its behaviour"),
    Column("hyperparameters", "string", "of the method, as rank=8,alpha=8.0"),
    Column("backbone", "string", "short title, or the timm name where it has none"),
    Column("backbone_tag", "string", "timm name with its tag; other weights are added in brackets"),
    Column("dataset", "string", "name of the data set"),
    Column("suite", "string", "suite it belongs to"),
    Column("suite_version", "Int64", "version of the suite"),
    Column("group", "string", "group within the suite"),
    Column("shots", "Int64", "training images of each class, in few-shot sets"),
    Column("seed", "Int64", "seed of head, method and order of images"),
    Column("phase", "string", "tune reports val, final reports test"),
    Column("protocol", "string", "named set of choices; records without one have the default"),
    Column("recipe", "string", "name of the recipe"),
    Column("recipe_settings", "string", "every other field of the recipe, as lr=0.001,epochs=100"),
    Column("epochs", "Int64", "of training"),
    Column("lr", "Float64", "learning rate of the recipe, for lr_reference_batch if that is set"),
    Column("weight_decay", "Float64", "of the recipe"),
    Column("batch_size", "Int64", "images of one step"),
    Column("preprocessing", "string", "as normalisation=checkpoint,resize=squash"),
    Column("image_size", "Int64", "asked for; missing means the size of the checkpoint"),
    Column("drop_path", "Float64", "stochastic depth rate of the parts that train"),
    Column("precision", "string", "asked for; dtype is what it became"),
    Column("selection", "string", "which epoch is reported: last, or best_on_test, which flatters"),
    Column("selected_epoch", "Int64", "epoch that is reported where it was selected"),
    Column("top1_last", "Float64", "accuracy after the last epoch where another is reported"),
    Column("tuner", "string", "search that chose hyper-parameters; missing where none did"),
    Column("trials", "Int64", "trainings of that search for this method and data set"),
    Column("trial_epochs", "Int64", "epochs of each of them"),
    Column("split", "string", "split that the next five columns are measured on"),
    Column("top1", "Float64", "accuracy as a fraction"),
    Column("mean_per_class", "Float64", "mean of the accuracies of the classes, a fraction"),
    Column("loss", "Float64", "mean cross-entropy in nats"),
    Column("ece", "Float64", "expected calibration error, a fraction"),
    Column("num_images", "Int64", "images of the split"),
    Column("params_method", "Int64", "parameters that the method adds"),
    Column("params_head", "Int64", "parameters of the classifier"),
    Column("params_unfrozen", "Int64", "backbone parameters that the method trains"),
    Column("params_backbone", "Int64", "parameters of the backbone without any classifier"),
    Column("params_tuned", "Int64", "params_method + params_unfrozen; the head is not in it"),
    Column("stored_bytes", "Int64", "size of the file that holds one tuned task"),
    Column("train_images_per_second", "Float64", "throughput of training"),
    Column("step_ms", "Float64", "median duration of a training step after warm-up"),
    Column("latency_ms_batch1", "Float64", "inference of one image, as trained"),
    Column("latency_ms_batch", "Float64", "inference of latency_batch_size images, as trained"),
    Column("latency_batch_size", "Int64", "images of that batch"),
    Column("merged_latency_ms_batch1", "Float64", "inference of one image, after merging"),
    Column("merged_latency_ms_batch", "Float64", "inference of the batch, after merging"),
    Column("forward_gmacs", "Float64", "1e9 multiply-adds of one image"),
    Column("peak_bytes", "Int64", "device memory on a GPU, resident set on a CPU"),
    Column("seconds_load", "Float64", "wall time of loading"),
    Column("seconds_train", "Float64", "wall time of training"),
    Column("seconds_evaluate", "Float64", "wall time of evaluation"),
    Column("seconds_total", "Float64", "wall time of the run"),
    Column("processes", "Int64", "that trained together"),
    Column("resumed", "Int64", "times that training was taken up from a checkpoint"),
    Column("merge_max_logit_diff", "Float64", "largest logit difference after merging"),
    Column("backbone_sha256", "string", "of the backbone tensors that were loaded"),
    Column("manifest", "string", "hash of the files and splits of the data set"),
    Column("train_images", "Int64", "images that trained"),
    Column("classes", "Int64", "classes of the data set"),
    Column("git_commit", "string", "of the code"),
    Column("git_dirty", "boolean", "whether the code differed from that commit"),
    Column("peftbench", "string", "version"),
    Column("torch", "string", "version"),
    Column("timm", "string", "version"),
    Column("host", "string", "name of the machine"),
    Column("device", "string", "that trained"),
    Column("dtype", "string", "arithmetic of the forward pass"),
    Column("limit", "Int64", "at most this many images of each split; missing means all"),
    Column("data_settings", "string", "what the data set is asked beyond its defaults: shots=4"),
    Column("shift_metrics", "string", "on shifted test sets, as imagenet_a/top1=0.4"),
    Column("started", "string", "ISO 8601, UTC"),
    Column("finished", "string", "ISO 8601, UTC"),
)
DTYPES = {column.name: column.dtype for column in COLUMNS}
ORDER = ("backbone", "suite", "dataset", "method", "hyperparameters", "recipe", "seed", "run_id")


EPOCH_COLUMNS = (
    Column("run_id", "string", "digest of the declared identity"),
    Column("epoch", "Int64", "counted from 1"),
    Column("loss", "Float64", "mean training loss over the images of the epoch"),
    Column("accuracy", "Float64", "training accuracy over the epoch, a fraction"),
    Column("lr", "Float64", "learning rate at the last step"),
    Column("seconds", "Float64", "wall time of the epoch"),
)


@dataclass(frozen=True)
class Written:
    """Files that were written, and a line for each that could not be."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def frame(source: ResultsStore | Iterable[RunRecord]) -> pd.DataFrame:
    """One row a run with the columns, order and dtypes of `COLUMNS`, failures kept.

    Rows are sorted by `ORDER`. Of several records of one run id, the current one counts. A store
    gives a `StoreWarning` for each broken file.
    """
    records = source.records(history=False) if isinstance(source, ResultsStore) else source
    rows = map(itemgetter(*DTYPES), map(_row, current(records)))
    values = list(zip(*rows, strict=True)) or [()] * len(DTYPES)
    columns = zip(DTYPES.items(), values, strict=True)
    table = pd.DataFrame(
        {
            name: _array(column, dtype, _lines if name == "error" else None)
            for (name, dtype), column in columns
        }
    )
    return table.sort_values(list(ORDER), kind="stable", ignore_index=True)


def load(source: Path | str = "results", *, where: str | Sequence[str] = ()) -> pd.DataFrame:
    """One row a run, failures kept, from a results folder or from one table that it wrote.

    Args:
        source: a results folder, or a `.csv` or `.parquet` file made by `peftbench report`.
        where: conditions that all hold, such as `"method=lora,ssf"`; see `select`.

    Returns:
        Rows in the order of `ORDER` with the columns and dtypes of `COLUMNS`. The column `schema`
        is the version of each record.

    Raises:
        StoreError: there is nothing to read.
        ConfigError: a condition that no row can meet.
    """
    path = Path(source)
    conditions = [where] if isinstance(where, str) else list(where)
    if path.suffix in (".csv", ".parquet"):
        if not path.is_file():
            raise StoreError(f"There is no table {path}. Run: peftbench report")
        try:
            table = read_table(path)
        except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise StoreError(f"{path} is not a table of runs: {reason}. {_AGAIN}") from error
        if table["run_id"].isna().any():
            raise StoreError(f"{path} is not a table of runs: rows without run_id. {_AGAIN}")
    elif (path / "runs").is_dir():
        table = frame(ResultsStore(path))
    else:
        raise StoreError(
            f"There are no runs in {path / 'runs'}. Give a results folder, or a .csv or .parquet "
            "file that `peftbench report` wrote."
        )
    return select(table, conditions) if conditions else table


def epochs(source: ResultsStore | Iterable[RunRecord]) -> pd.DataFrame:
    """One row an epoch with the columns of `EPOCH_COLUMNS`; `run_id` leads to the table of runs."""
    records = source.records() if isinstance(source, ResultsStore) else source
    ordered = sorted(current(records), key=lambda record: record.run_id)
    rows = [{"run_id": r.run_id, **vars(epoch)} for r in ordered for epoch in r.history]
    return pd.DataFrame(
        {c.name: _array((row[c.name] for row in rows), c.dtype) for c in EPOCH_COLUMNS}
    )


def select(table: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Rows that meet every condition, each `column=value` or `column=value,value`.

    `null` stands for a missing value. `ConfigError` for a column that does not exist, and for a
    text that no row has.
    """
    chosen = pd.Series(True, index=table.index, dtype=bool)
    for condition in where:
        name, equals, text = condition.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(
                f"Condition {condition!r} is not column=value or column=value,value. "
                "Example: method=lora,linear"
            )
        if name not in table.columns:
            raise unknown_name("column", name, map(str, table.columns))
        spelled = [_spell(value) for value in table[name].array]
        known = set(spelled)
        wanted = {text} if text in known else {value.strip() for value in text.split(",")}
        if DTYPES.get(name) == "string" and known:
            known = known | (set(map(str, Status)) if name == "status" else set())
            for value in sorted(wanted - known - {"null"}):
                raise unknown_name(name, value, known - {"null"})
        chosen &= pd.Series([value in wanted for value in spelled], index=table.index, dtype=bool)
    return table[chosen].reset_index(drop=True)


def committed(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows of runs whose code can be had again, and a line about the others if there are any.

    Code that differed from its commit is nowhere kept. Runs of an installed package, which knows
    its version and no commit, count.
    """
    changed = table["git_dirty"].fillna(False).astype(bool)
    if not changed.any():
        return table, []
    several = "s" if changed.sum() > 1 else ""
    line = f"{changed.sum()} run{several} of code that differs from its commit (--dirty shows them)"
    return table[~changed].reset_index(drop=True), [line]


def public_table(table: pd.DataFrame) -> pd.DataFrame:
    """The rows as they may leave this machine: no host, and no place in the cause of a failure."""
    told = [pd.NA if value is pd.NA else public_text(value) for value in table["error"].array]
    return table.assign(
        host=_array([None] * len(table), DTYPES["host"]),
        error=_array(told, DTYPES["error"], lambda text: text),
    )


def write_table(table: pd.DataFrame, root: Path | str) -> Written:
    """`root/table.csv` and `root/table.parquet`, each replaced as a whole.

    Numbers keep every digit: `read_table` gives back an equal frame. Without pyarrow the csv file
    is written, an outdated parquet file is removed, and a note says so.
    """
    csv, parquet = Path(root) / "table.csv", Path(root) / "table.parquet"
    text = csv_text(table)
    write_atomic(csv, lambda file: file.write(text.encode()))
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        parquet.unlink(missing_ok=True)
        note = f"{parquet} was not written: pyarrow is missing. Run: pip install pyarrow"
        return Written((csv,), (note,))
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False)
    write_atomic(parquet, lambda file: file.write(buffer.getvalue()))
    return Written((csv, parquet))


def read_table(path: Path | str) -> pd.DataFrame:
    """The frame in a `.csv` or `.parquet` file made by `write_table`, every bit of it.

    A column that an older table lacks is missing in every row.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        stored = pd.read_parquet(path)
        return stored.reindex(columns=list(DTYPES)).astype(DTYPES)
    raw = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8")
    blank = [None] * len(raw)
    return pd.DataFrame(
        {
            name: _array(
                (_parse(value, dtype) for value in raw.get(name, blank)),
                dtype,
                _lines if name == "error" else None,
            )
            for name, dtype in DTYPES.items()
        }
    )


def settings_text(values: Mapping[str, Any]) -> str:
    """`{"rank": 8, "roles": ["qkv"]}` as `rank=8,roles=[qkv]`, as on Hydra's command line."""
    return ",".join(f"{name}={_setting(value)}" for name, value in values.items())


def settings_of(text: str) -> dict[str, str]:
    """The names and the spelled values in what `settings_text` made."""
    return dict(_pairs(text))


@lru_cache(maxsize=100_000)  # of many runs, few have settings of their own
def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs: list[str] = []
    depth, quoted, start = 0, False, 0
    for i, letter in enumerate(text):
        if letter == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (letter in "[{") - (letter in "]}")
            if letter == "," and depth == 0:
                pairs.append(text[start:i])
                start = i + 1
    pairs.append(text[start:])
    parted = (pair.partition("=") for pair in pairs)
    return tuple((name, value) for name, _, value in parted if name)


def _settings(values: Mapping[str, Any]) -> str:
    """`settings_text`, from memory where these values were spelled before."""
    try:
        return _spelled(orjson.dumps(values))
    except TypeError:  # what it cannot write, such as halves of surrogate pairs
        return settings_text(values)


@lru_cache(maxsize=100_000)
def _spelled(values: bytes) -> str:
    return settings_text(orjson.loads(values))


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_setting(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_setting, value)) + "]"
    if isinstance(value, str) and value and not set(value) & set(',=[]{}:"\\ \n'):
        return value
    return json.dumps(value)  # null, true, 8.0 with every digit, and texts that need quotes


def _row(record: RunRecord) -> dict[str, Any]:
    spec, parameters, cost, origin = (
        record.spec,
        record.parameters,
        record.cost,
        record.provenance,
    )
    method, backbone, dataset, recipe = (
        _mapping(spec.get(key)) for key in ("method", "backbone", "dataset", "recipe")
    )
    split = SPLIT_OF_PHASE.get(str(spec.get("phase")))
    metrics = {
        name: record.metrics.get(f"{split}/{name}")
        for name in ("top1", "mean_per_class", "loss", "ece", "num_images")
    }
    versions = origin.versions if origin else {}
    tuning = _mapping(record.tuning)
    return {
        "schema": record.schema,
        "run_id": record.run_id,
        "status": str(record.status),
        "error": record.error,
        "method": method.get("name"),
        "method_version": method.get("version"),
        "hyperparameters": _settings(_mapping(method.get("hyperparameters"))),
        "backbone": backbone.get("title") or backbone.get("name"),
        "backbone_tag": _tag(backbone),
        "dataset": dataset.get("name"),
        "suite": dataset.get("suite"),
        "suite_version": dataset.get("suite_version"),
        "group": dataset.get("group"),
        "shots": dataset.get("shots"),
        "seed": spec.get("seed"),
        "phase": spec.get("phase"),
        "protocol": _mapping(spec.get("protocol")).get("name") or DEFAULT_PROTOCOL,
        "recipe": recipe.get("name"),
        "recipe_settings": _settings({k: v for k, v in recipe.items() if k != "name"}),
        "epochs": recipe.get("epochs"),
        "lr": recipe.get("lr"),
        "weight_decay": recipe.get("weight_decay"),
        "batch_size": recipe.get("batch_size"),
        "preprocessing": _settings(_mapping(spec.get("preprocessing"))),
        "image_size": backbone.get("image_size"),
        "drop_path": backbone.get("drop_path"),
        "precision": spec.get("precision"),
        "selection": record.selection,
        "selected_epoch": record.selected_epoch,
        "top1_last": record.metrics.get("last_epoch/top1"),
        "tuner": tuning.get("tuner"),
        "trials": tuning.get("trials"),
        "trial_epochs": tuning.get("epochs"),
        "split": split,
        **metrics,
        "params_method": parameters and parameters.method,
        "params_head": parameters and parameters.head,
        "params_unfrozen": parameters and parameters.unfrozen,
        "params_backbone": parameters and parameters.backbone,
        "params_tuned": parameters and parameters.method + parameters.unfrozen,
        "stored_bytes": parameters and parameters.stored_bytes,
        **_cost(cost),
        "merge_max_logit_diff": _mapping(record.merge).get("max_logit_difference"),
        "backbone_sha256": origin and origin.backbone_sha256,
        "manifest": (origin and origin.data.get("manifest")) or dataset.get("manifest"),
        "train_images": origin and origin.data.get("train_images"),
        "classes": origin and origin.data.get("classes"),
        "git_commit": origin and origin.git_commit,
        "git_dirty": origin and origin.git_dirty,
        "peftbench": origin and origin.peftbench,
        "torch": versions.get("torch"),
        "timm": versions.get("timm"),
        "host": origin and origin.host,
        "limit": dataset.get("limit"),
        "data_settings": settings_text({k: dataset[k] for k in DATA_SETTINGS if k in dataset}),
        "shift_metrics": settings_text(
            {k: v for k, v in record.metrics.items() if not k.startswith(REPORTED)}
        ),
        "started": record.started,
        "finished": record.finished,
    }


def _cost(cost: Cost | None) -> dict[str, Any]:
    return {f.name: cost and getattr(cost, f.name) for f in dataclasses.fields(Cost)}


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


def _array(values: Iterable[Any], dtype: Any, convert: Callable[[Any], Any] | None = None) -> Any:
    convert = convert or _CONVERT[dtype]
    return pd.array([convert(value) for value in values], dtype=dtype)


# The four see a million values of a large store, so the usual case comes first.


def _integer(value: Any) -> Any:
    if isinstance(value, int | float) and -(2**63) <= value < 2**63 and int(value) == value:
        return int(value)
    return pd.NA  # also a sum that the column cannot hold; NaN is not within the range


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else pd.NA


def _boolean(value: Any) -> Any:
    return value if isinstance(value, bool) else pd.NA


def _string(value: Any) -> Any:
    """Text on one line that every file format can hold and no terminal obeys; empty is missing."""
    if value is None or value == "":
        return pd.NA
    if type(value) is str and value.isascii() and value.isprintable():
        return value
    return printable(str(value))


def _lines(value: Any) -> Any:
    """Text whose lines stay lines: the cause of a failure."""
    if type(value) is str and "\n" in value:
        return printable_lines(value)
    return _string(value)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "Int64": _integer,
    "Float64": _float,
    "boolean": _boolean,
    "string": _string,
}


def _spell(value: Any) -> str:
    """A cell as it is written in csv; `null` where it is missing."""
    if value is pd.NA or value is None:
        return "null"
    return repr(float(value)) if isinstance(value, float) else str(value)


def csv_text(table: pd.DataFrame) -> str:
    """The frame as csv with every digit; an empty field is a missing value."""
    spelled = pd.DataFrame(
        {
            name: [
                pd.NA if value is pd.NA else guarded(_spell(value)) for value in table[name].array
            ]
            for name in map(str, table.columns)
        },
        dtype=object,
    )
    return spelled.to_csv(index=False, lineterminator="\n")


def _parse(text: Any, dtype: str) -> Any:
    if not isinstance(text, str):
        return None
    if dtype == "boolean":
        return {"True": True, "False": False}.get(text)
    readers: dict[str, Callable[[str], Any]] = {
        "Int64": int,
        "Float64": float,
        "string": unguarded,
    }
    return readers[dtype](text)
