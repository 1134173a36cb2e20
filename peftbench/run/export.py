"""A finished run as a folder of its own: the tuned task alone, or the merged whole model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from peftbench import api
from peftbench.artefacts import card as cards
from peftbench.artefacts import task_file
from peftbench.backbones.load import construction
from peftbench.errors import ConfigError, WeightsError
from peftbench.prediction import timm_form
from peftbench.prediction.transform import Transform
from peftbench.results.disk import explained, full_number
from peftbench.results.finished import find
from peftbench.results.store import ResultsStore
from peftbench.run.readme import model_card
from peftbench.untrusted import check_plain_file


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
    if record.cost is not None:  # for cards from before they had it
        card.setdefault("dtype", record.cost.dtype)
    name = f"{record.spec['method']['name']}-{record.run_id}{'-merged' if merged else ''}"
    folder = Path("exports") / name if out is None else Path(out)
    if folder.exists():
        raise ConfigError(f"{folder} exists already. Remove it or choose another --out.")
    model = None
    if merged:
        recorded = record.spec["backbone"].get("checkpoint")
        model = _merged(source, recorded if checkpoint is None else checkpoint)
    with _new_folder(folder) as part:
        if model is None:
            card = {"kind": "task", **card}
            check_plain_file(source / task_file.TASK)
            shutil.copyfile(source / task_file.TASK, part / task_file.TASK)
        else:
            card = {"kind": "merged", "timm": _construction(card), **card}
            card |= _fill(part, card, model)
        data = task_file.card_bytes(card)
        card = json.loads(data)  # as it leaves the machine
        (part / task_file.CARD).write_bytes(data)
        (part / "README.md").write_text(model_card(card), encoding="utf-8")
    return folder


def notes_of(folder: Path) -> list[str]:
    """What is to be known of using an exported folder without peftbench, in lines."""
    return list(task_file.read_card(folder).get("notes", []))


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


def _merged(source: Path, checkpoint: Path | str | None) -> nn.Module:
    """The plain model that computes what the task in `source` does."""
    task = api.load(source, checkpoint)
    assert isinstance(task, api.TunedModel)
    return api.merge(task)


def _fill(folder: Path, card: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Write a merged model in the form that timm reads, and read it by timm.

    Where timm would see other pictures, there is no configuration for it, so that nobody uses the
    model unawares.

    Returns:
        What the card says of it: whether timm alone predicts alike, and notes on that.
    """
    # safetensors refuses tensors that share memory
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / task_file.MERGED, metadata={"run_id": str(card["run_id"])})
    transform = Transform(cards.preprocessing(card), cards.levels(card))
    told = timm_form.config(card["timm"], model, card["classes"], transform.preprocessing)
    path = folder / timm_form.CONFIG
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    reason = timm_form.difference(folder, state, transform)
    if reason is not None:
        path.unlink()
        note = f"timm alone does not predict as the test did, because {reason}. Use peftbench "
        return {"timm_alone": False, "notes": [f"{note}predict or peftbench.load."]}
    notes = []
    if transform.levels is not None:
        notes.append(
            "timm's transform does not scale pictures of more than 8 bits. Open them as the README "
            "does, or use peftbench predict or peftbench.load."
        )
    return {"timm_alone": True, "notes": notes}


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
