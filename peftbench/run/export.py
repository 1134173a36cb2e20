"""A finished run as a folder of its own: the tuned task alone, or the merged whole model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from peftbench import api
from peftbench.artefacts import card as cards
from peftbench.artefacts import task_file
from peftbench.backbones.load import construction
from peftbench.errors import ConfigError, WeightsError
from peftbench.registry import unknown_name
from peftbench.results.disk import explained, full_number
from peftbench.results.record import RunRecord, Status, current
from peftbench.results.store import ResultsStore
from peftbench.spec import Phase
from peftbench.tasks import Metric, task_of
from peftbench.untrusted import check_plain_file, printable

LISTED_CLASSES = 20  # names in the README of a folder; its card holds all
# what Markdown or HTML takes for markup, as references that show the character
ENTITIES = {character: f"&#{ord(character)};" for character in "\\`*[]|~$#!@"} | {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}
AUTOLINK = re.compile(r"(?:https?|ftp|mailto|xmpp):|www\.", re.IGNORECASE)


def export(
    run_id: str,
    results_dir: Path | str,
    out: Path | str | None = None,
    *,
    merged: bool = False,
    checkpoint: Path | str | None = None,
) -> Path:
    """The new folder `out` with the tuned task of a run, or with its merged model.

    `run_id` may be a unique beginning of one. Merging a run on local weights reads them where they
    were, or from `checkpoint`; nothing else in the folder says where that is.

    Raises:
        ConfigError: no such run, several, one that failed, or `out` exists.
        WeightsError: the files of the run or its backbone are missing or others than recorded.
        NotMergeable: the method cannot be folded into the weights.
    """
    store = ResultsStore(results_dir)
    record = find(store, run_id)
    source = store.artefacts(record)
    if not (source / task_file.TASK).is_file():
        raise WeightsError(
            f"{source / task_file.TASK} does not exist: the record is here without its files. Run "
            "the task again with force=true."
        )
    card = _card(source)
    name = f"{record.spec['method']['name']}-{record.run_id}{'-merged' if merged else ''}"
    folder = Path("exports") / name if out is None else Path(out)
    if folder.exists():
        raise ConfigError(f"{folder} exists already. Remove it or choose another --out.")
    state = None
    if merged:
        recorded = record.spec["backbone"].get("checkpoint")
        state = _merged_state(source, recorded if checkpoint is None else checkpoint)
    with _new_folder(folder) as part:
        if state is None:
            card = {"kind": "task", **card}
            check_plain_file(source / task_file.TASK)
            shutil.copyfile(source / task_file.TASK, part / task_file.TASK)
        else:
            card = {"kind": "merged", "timm": _construction(card), **card}
            save_file(state, part / task_file.MERGED, metadata={"run_id": record.run_id})
        data = task_file.card_bytes(card)
        card = json.loads(data)  # as it leaves the machine
        (part / task_file.CARD).write_bytes(data)
        (part / "README.md").write_text(model_card(card), encoding="utf-8")
    return folder


def find(store: ResultsStore, run_id: str) -> RunRecord:
    """The finished run whose id begins with `run_id`; `ConfigError` unless there is just one."""
    records = {record.run_id: record for record in current(store.scan().records)}
    matching = [record for key, record in records.items() if run_id and key.startswith(run_id)]
    if not matching:
        error = unknown_name("run", run_id, records)
        raise type(error)(f"{error} `peftbench list runs --results-dir {store.root}` shows more.")
    if len(matching) > 1:
        several = ", ".join(f"{r.run_id} ({r.spec['method']['name']})" for r in matching[:8])
        raise ConfigError(f"run {run_id!r} is the beginning of {len(matching)} ids: {several}.")
    (record,) = matching
    if record.status is not Status.OK:
        raise ConfigError(
            f"run {record.run_id} ended as {record.status} ({record.error}), so there is nothing "
            "to export. Run it again."
        )
    if record.spec["phase"] == Phase.TUNE:
        raise ConfigError(
            f"run {record.run_id} is a trial of a search, which keeps no weights. Export a run of "
            "phase=final."
        )
    return record


def _card(source: Path) -> dict[str, Any]:
    """The card of a run, with all that the README of an exported folder tells.

    Raises:
        WeightsError: there is none, or it lacks something.
    """
    card = {key: value for key, value in task_file.read_card(source).items() if key != "kind"}
    try:
        cards.require(card, cards.README_FIELDS)
        cards.check_numbers(card)
    except ValueError as e:
        raise WeightsError(
            f"{source / task_file.CARD} is not a readable card: {e}. Run the task again."
        ) from e
    return card


def _merged_state(source: Path, checkpoint: Path | str | None) -> dict[str, Tensor]:
    """Tensors of the plain model that computes what the task in `source` does."""
    task = api.load(source, checkpoint)
    assert isinstance(task, api.TunedModel)
    # safetensors refuses tensors that share memory
    return {name: t.detach().clone() for name, t in api.merge(task).state_dict().items()}


def _construction(card: dict[str, Any]) -> dict[str, Any]:
    """What `timm.create_model` needs to build the architecture of a task."""
    architecture, options = construction(cards.backbone(card))
    num_classes = len(card["classes"])
    return {"architecture": architecture, "num_classes": num_classes, "kwargs": options}


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that appears as `folder` when it is complete, or not at all."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        for path in part.iterdir():
            path.chmod(0o644)  # safetensors writes for the owner alone
        part.rename(folder)
    except (OSError, ValueError, SafetensorError) as e:
        if full_number(e) is not None:
            raise explained(e, folder) from e
        raise ConfigError(f"{folder} cannot be written: {e}. Choose another --out.") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def model_card(card: dict[str, Any]) -> str:
    """The README of an exported folder; no text in it is taken for Markdown or HTML."""
    spec, origin = card["spec"], card["provenance"]
    method, backbone, pixels = spec["method"], spec["backbone"], origin["preprocessing"]
    options = ", ".join(f"{k}={v}" for k, v in method["hyperparameters"].items()) or "none"
    classes = card["classes"]
    names = ", ".join(classes[:LISTED_CLASSES]) + (", ..." if len(classes) > LISTED_CLASSES else "")
    rows = {
        "method": escaped(f"{card['method_card']['title']} ({method['name']}; {options})"),
        "paper": escaped(card["method_card"]["paper"]),
        "backbone": _weights(backbone, origin["backbone_sha256"]),
        "data": f"{escaped(spec['dataset']['name'])}, manifest "
        f"{code(spec['dataset']['manifest'][:12])}",
        "classes": f"{len(classes)}: {escaped(names)}",
        **_accuracy(card["metrics"], task_of(card["spec"]).score),
        "input": f"{_input(pixels)}; mean {pixels['mean']}, standard deviation {pixels['std']}",
        "made by": f"peftbench {escaped(origin['peftbench'])}, run {code(card['run_id'])}",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    title = f"{method['name']}, {backbone.get('title') or backbone['name']}, "
    title += spec["dataset"]["name"]
    return f"# {escaped(title)}\n\n| | |\n| --- | --- |\n{table}\n## Use\n\n{_usage(card)}"


def _weights(backbone: dict[str, Any], sha256: str) -> str:
    """Which backbone a task was tuned on."""
    if backbone.get("checkpoint") is None:
        return f"{code(backbone['name'])}, SHA-256 {code(sha256)}"
    return (
        f"the weights in the file {code(cards.file_name(backbone['checkpoint']))} (SHA-256 "
        f"{code(backbone.get('checkpoint_sha256', ''))}) on the architecture of "
        f"{code(backbone['name'])}; SHA-256 of the tensors {code(sha256)}"
    )


def _input(pixels: dict[str, Any]) -> str:
    side = pixels["size"]
    how = f"{pixels['resize']} and {pixels['interpolation']}"
    return f"RGB in [0, 1], {side} x {side} pixels by {escaped(how)}"


def escaped(text: str) -> str:
    """`text` as one line of plain words in Markdown: no markup, HTML, cell, link or control."""
    plain = "".join(ENTITIES.get(character, character) for character in printable(text))
    # inside a word an underscore is a letter
    plain = re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", plain)
    return AUTOLINK.sub(lambda m: m[0][:-1] + f"&#{ord(m[0][-1])};", plain)


def code(text: str) -> str:
    """`text` as Markdown code, or as escaped words where it would end the code or a cell."""
    plain = printable(text)
    return escaped(text) if not plain or set(plain) & set("`|<") else f"`{plain}`"


def _accuracy(metrics: dict[str, float | None], score: Metric) -> dict[str, str]:
    by_split = {split: metrics.get(f"{split}/{score.name}") for split in ("test", "val")}
    return {
        f"{split} accuracy": f"{100 * value:.2f} % {score.short}"
        for split, value in by_split.items()
        if value is not None
    }


def _usage(card: dict[str, Any]) -> str:
    if card["kind"] == "merged":
        built = card["timm"]
        options = "".join(f", {key}={value!r}" for key, value in built["kwargs"].items())
        return (
            "A plain timm model; peftbench is not needed:\n\n"
            "```python\n"
            "import timm\n"
            "from safetensors.torch import load_file\n\n"
            f"model = timm.create_model({built['architecture']!r}, "
            f"num_classes={built['num_classes']}{options})\n"
            f"model.load_state_dict(load_file({task_file.MERGED!r}))\n"
            "```\n"
        )
    local = card["spec"]["backbone"].get("checkpoint") is not None
    given, source = ', checkpoint="PATH"' if local else "", "from where its name says"
    if local:
        source = "from the file above, which is not in this folder (its SHA-256 is checked)"
    return (
        f"`{task_file.TASK}` holds the tuned tensors and the head; the backbone comes {source}.\n\n"
        "```python\n"
        "import peftbench as pb\n\n"
        f'model = pb.load("FOLDER"{given})  # ready, in eval mode\n'
        'tuned = pb.attach(backbone, "FOLDER")  # or onto a bare timm backbone in memory\n'
        "backbone = pb.detach(tuned)  # for the next task\n"
        "```\n"
    )
