"""Shows that a change of the code changed nothing that a user or a file can see.

    python tools/sameness.py ids                         # run ids that results/mini has
    python tools/sameness.py sweep OUT                   # OUT/sameness.json, about 4 minutes
    python tools/sameness.py compare BEFORE.json AFTER.json

Every difference is one line on stdout, and the exit status is then 1. Two sweeps can be compared
where one machine made them with one set of packages: the arithmetic is float32 on one thread of a
CPU, so the same code gives the same bits. All that a sweep does goes through the command line,
which stays while what lies behind it moves.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MINI = ROOT / "results" / "mini"
BACKBONES = "vit_mini,efficientnet_lite0"  # of results/mini

# Fields of a record, and why two runs of the same code differ there; `*` is any key or place in a
# list. A stand-in takes the place of each value, so that its presence and its type still count.
VARYING = {
    "started": "a date",
    "finished": "a date",
    "cost.device": "the processor of the host",
    "cost.train_images_per_second": "a time",
    "cost.step_ms": "a time",
    "cost.latency_ms_batch1": "a latency",
    "cost.latency_ms_batch": "a latency",
    "cost.merged_latency_ms_batch1": "a latency",
    "cost.merged_latency_ms_batch": "a latency",
    "cost.latency_ms_batch1_iqr": "a spread",
    "cost.latency_ms_batch_iqr": "a spread",
    "cost.merged_latency_ms_batch1_iqr": "a spread",
    "cost.merged_latency_ms_batch_iqr": "a spread",
    "cost.step_ms_without_data": "a time",
    "cost.seconds_load": "a time",
    "cost.seconds_train": "a time",
    "cost.seconds_evaluate": "a time",
    "cost.seconds_total": "a time",
    "cost.seconds_saved": "a time",
    "cost.peak_bytes": "a peak of memory",
    "history.*.seconds": "a time",
    "provenance.host": "the host",
    "provenance.platform": "the host",
    "provenance.driver": "the host",
    "provenance.python": "a version",
    "provenance.peftbench": "a version",
    "provenance.versions.*": "a version",
    "provenance.preprocessing.backend": "a version",
    "provenance.git_commit": "the commit",
    "provenance.git_dirty": "the commit",
}
# What a record has or lacks by chance: whether a like run was timed before it, on a calm machine,
# whether the machine counts its energy, and which activations had been computed.
PASSING = frozenset(
    {
        "cost.latency_measured",
        "cost.energy_joules",
        "cost.frozen_until",
        "cost.activations_found",
        "cost.activations_computed",
        "cost.seconds_saved",
    }
)
DISTURBED = re.compile(r"(?:step_ms|latency|merged latency): disturbed, ")

# The page leaves out runs on a part of the images, so the reported copies do not say they are such.
LIMIT = "spec.dataset.limit"

SHORT = (
    *("seed=0", "recipe.epochs=2", "recipe.warmup_epochs=1", "dataset.limit=64"),
    *("precision=float32", "threads=1", "device=cpu", "checkpoint.minutes=null", "quiet=true"),
    *("hydra.launcher.gpus=0", "hydra.launcher.jobs=1", "hydra.launcher.jobs_per_process=100"),
)
CONVOLUTIONAL = ("backbone.name=test_resnet", "backbone.pretrained=false", "backbone.image_size=64")
SWEEPS = (
    ("dataset=mini/digits,mini/sprites_location",),
    # has no weights to fetch; `vpt_pad` is for convolutional nets alone
    ("method=vpt_pad,bias,lora", "dataset=mini/digits", *CONVOLUTIONAL),
)
PRINTED = (
    ("list", "methods", "--long"),
    *(("list", what) for what in ("backbones", "datasets", "protocols", "experiments", "tables")),
    ("run", "--cfg", "job", "method=lora", "experiments=mini"),
)
PLANNED = re.compile(
    r"^([0-9a-f]{16})  (?:done|to run|unsupported) +(\S+) x (\S+) x (\S+), seed (\d+)", re.M
)


# ---- what is compared


def normalised(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record, or a card, with stand-ins for all that `VARYING` names."""
    changed: dict[str, Any] = _normalised(record, "", str(record["run_id"]))
    return changed


def _normalised(value: Any, path: str, run_id: str) -> Any:
    if isinstance(value, Mapping):
        below = f"{path}." if path else ""
        return {
            key: _normalised(item, f"{below}{key}", run_id)
            for key, item in value.items()
            if below + key not in PASSING
        }
    if path == "notes":
        return [note for note in value if not DISTURBED.match(note)]
    if isinstance(value, list):
        return [_normalised(item, f"{path}.{i}", run_id) for i, item in enumerate(value)]
    if any(fnmatchcase(path, pattern) for pattern in VARYING):
        return stand_in(value, path, run_id)
    return value


def stand_in(value: Any, path: str, run_id: str) -> Any:
    """What takes the place of a value that varies: of its type, and the same at all times.

    Numbers differ from run to run and from field to field, so that a table which shows one in the
    place of another is another table. A missing value stays missing.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return False  # a report leaves out what is dirty
    drawn = int(hashlib.sha256(f"{run_id} {path}".encode()).hexdigest()[:8], 16)
    if isinstance(value, int):
        return 100_000_000 + drawn % 100_000_000
    if isinstance(value, float):
        return 1.0 + drawn % 9_000 / 1_000
    if path in ("started", "finished"):
        return "2000-01-01T00:00:00+00:00"
    return "0" * 40 if path == "provenance.git_commit" else "stand-in"


def written(content: Mapping[str, Any]) -> str:
    """The text of a record's file."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line for each field of a record and for each file that two sweeps do not share."""
    lines = []
    for run_id in _keys(before["records"], after["records"]):
        old, new = (dict(_leaves(side["records"].get(run_id), "")) for side in (before, after))
        name = _name(before["records"].get(run_id) or after["records"][run_id])
        if not old or not new:
            lines.append(f"{run_id} ({name}): only {'after' if new else 'before'}")
            continue
        lines += [f"{run_id} ({name}) {line}" for line in _changes(old, new)]
    return [*lines, *(f"file {line}" for line in _changes(before["files"], after["files"]))]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in _keys(old, new):
        if key not in new or key not in old:
            yield f"{key}: only {'after' if key in new else 'before'}"
        elif json.dumps(old[key]) != json.dumps(new[key]):  # 1 and 1.0 are two texts
            yield f"{key}: {json.dumps(old[key])} became {json.dumps(new[key])}"


def _keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys((*old, *new)))


def _name(record: Mapping[str, Any]) -> str:
    spec = record["spec"]
    return f"{spec['method']['name']} x {spec['backbone']['name']} x {spec['dataset']['name']}"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value by its path; an empty list or mapping is a value."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value


# ---- the sweep


def sweep(out: Path) -> None:
    """Train, report from copies with stand-ins, and write `out/sameness.json`.

    Raises:
        FileExistsError: `out` holds something, of which old runs would be taken for new ones.
        subprocess.CalledProcessError: a command failed.
        ValueError: a record is not laid out as records are.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty. Give a new folder.")
    results, copies = out.resolve() / "results", out.resolve() / "copies"
    for chosen in SWEEPS:
        told(f"sweep {' '.join(chosen)}")
        arguments = ("run", "-m", "experiments=mini", *chosen, *SHORT, f"results_dir={results}")
        peftbench(*arguments, output=sys.stderr)
    told("copies")
    records = {}
    for path in sorted((results / "runs").glob("*/*.json")):
        record = copied(path, copies / path.relative_to(results))
        records[record["run_id"]] = record
    told("tables, statistics, page")
    place = ("--results-dir", str(copies))
    printed = {"report": peftbench("report", *place, "--only", "tables", "--only", "page")}
    peftbench("report", "vpt_table1", "--published-only", *place)
    for arguments in (*PRINTED, ("list", "runs", *place)):
        told(f"peftbench {' '.join(arguments)}")
        printed[" ".join(a for a in arguments if a not in place)] = peftbench(*arguments)
    files = {
        str(path.relative_to(copies)): digest(path.read_bytes())
        for path in sorted(copies.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    # what a command prints names the folder
    texts = {name: text.replace(str(copies), "OUT") for name, text in printed.items()}
    (out / "printed").mkdir()
    for name, text in texts.items():
        (out / "printed" / f"{name}.txt").write_text(text, encoding="utf-8")
        files[f"printed/{name}"] = digest(text.encode())
    content = {"varying": VARYING, "records": records, "files": files}
    (out / "sameness.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    told(f"{len(records)} records and {len(files)} files in {out / 'sameness.json'}")


def copied(path: Path, to: Path) -> dict[str, Any]:
    """The normalised record of a file, which is copied with its artefacts for the report."""
    record = normalised(_read(path))
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(written(_whole(record)), encoding="utf-8")
    artefacts, card = path.with_suffix(""), to.with_suffix("") / "card.json"
    if artefacts.is_dir():
        shutil.copytree(artefacts, card.parent)
    if card.is_file():
        card.write_text(written(normalised(_read(card))), encoding="utf-8")
    return record


def _read(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    if text != written(content):
        raise ValueError(f"{path} is not JSON that is indented by one.")
    return content


def _whole(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as of a run on all images; see `LIMIT`."""
    spec = record["spec"]
    return {**record, "spec": {**spec, "dataset": {**spec["dataset"], "limit": None}}}


def peftbench(*arguments: str, output: IO[str] | None = None) -> str:
    """What a command of this clone prints; nothing where it goes to `output`.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PEFTBENCH_", "HYDRA_"))}
    done = subprocess.run(
        [sys.executable, "-m", "peftbench", *arguments],
        cwd=ROOT,
        env={**kept, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"},
        stdout=subprocess.PIPE if output is None else output,
        text=True,
        check=True,
    )
    return done.stdout or ""


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def told(line: str) -> None:
    """Say how far it is."""
    print(f"sameness: {line}", file=sys.stderr, flush=True)


# ---- run ids


def changed_ids(folder: Path) -> tuple[int, list[str]]:
    """How many run ids a folder of results has, and a line for each that is another one now.

    Those of records are computed from their specs, those of a `table.csv` by planning
    `experiments/mini.yaml` again.
    """
    records = sorted((folder / "runs").glob("*/*.json"))
    found, lines = _ids_of_records(records)
    rows = [] if records else _rows(folder / "table.csv")
    planned: dict[tuple[str, ...], str] = {}
    for settings in sorted({row["preprocessing"] for row in rows}):
        planned |= _planned_ids(settings)
    for row in rows:
        key = tuple(row[name] for name in ("method", "backbone", "dataset", "seed"))
        now = planned.get((row["preprocessing"], *key))
        if now != row["run_id"]:
            lines.append(f"{' x '.join(key[:3])}, seed {key[3]}: {row['run_id']}, now {now}")
    return found + len(rows), lines


def _ids_of_records(paths: Sequence[Path]) -> tuple[int, list[str]]:
    from peftbench.results.identity import run_id_of

    lines = []
    for path in paths:
        record = json.loads(path.read_bytes())
        now = run_id_of(record["spec"])
        if now != record["run_id"]:
            lines.append(f"{_name(record)}: {record['run_id']}, now {now}")
    return len(paths), lines


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _planned_ids(preprocessing: str) -> dict[tuple[str, ...], str]:
    """Run ids of `experiments/mini.yaml` with settings such as `resize=squash`, by them as well.

    The settings are those of the table: the interpolation had another default when it was made.
    """
    told(f"peftbench plan with {preprocessing}, about a minute")
    settings = (f"preprocessing.{setting}" for setting in preprocessing.split(","))
    # there are no results where a file is, so that every job is one to run
    plan = peftbench(
        *("plan", "experiments=mini", f"backbone={BACKBONES}", *settings),
        f"results_dir={MINI / 'table.csv'}",
    )
    return {(preprocessing, *key): run_id for key, run_id in ids_of_plan(plan).items()}


def ids_of_plan(text: str) -> dict[tuple[str, ...], str]:
    """Run ids by method, backbone, data set and seed, from what `peftbench plan` prints."""
    return {tuple(key): run_id for run_id, *key in PLANNED.findall(text)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    ids = commands.add_parser("ids", help="compute run ids again")
    ids.add_argument("folder", type=Path, nargs="?", default=MINI, help="results; results/mini")
    sweeping = commands.add_parser("sweep", help="train every method shortly, and report")
    sweeping.add_argument("out", type=Path, help="a new folder")
    comparing = commands.add_parser("compare", help="what two sweeps do not share")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "sweep":
        sweep(options.out)
        return 0
    if options.command == "ids":
        count, lines = changed_ids(options.folder)
        what = f"{count} run ids"
    else:
        before, after = (json.loads(p.read_bytes()) for p in (options.before, options.after))
        lines = differences(before, after)
        what = f"{len(before['records'])} records and {len(before['files'])} files"
    print("\n".join(lines) if lines else f"{what} are the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
