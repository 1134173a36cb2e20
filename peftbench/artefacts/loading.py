"""The backbone of an exported task, and whole models: checked before anything of them is made."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from torch import Tensor, nn

from peftbench.artefacts import card as cards
from peftbench.artefacts import task_file as files
from peftbench.artefacts import tensors
from peftbench.backbones.hashes import hash_checkpoint
from peftbench.backbones.load import load as load_backbone
from peftbench.backbones.names import check_name
from peftbench.backbones.shipped import SHIPPED
from peftbench.errors import ConfigError, NoEffect, Unsupported, WeightsError
from peftbench.spec import BackboneSpec
from peftbench.untrusted import check_plain_file, printable


def backbone_of(card: dict[str, Any], folder: Path, checkpoint: str | Path | None) -> nn.Module:
    """The backbone that a task was tuned on, with a classifier of as many classes.

    A place that the card names is never opened, and code that it names never imported: they are
    somebody else's.
    """
    spec = cards.backbone(card)
    if spec.factory is not None:
        raise WeightsError(
            f"{folder} was tuned on a backbone that {printable(spec.factory)} builds, and code "
            "that a folder names is not run. Build the backbone, and use peftbench.attach on it."
        )
    if checkpoint is not None:
        file = Path(checkpoint).expanduser()
        _check_file(file, spec, folder)
        spec = dataclasses.replace(spec, checkpoint=str(file))
    elif spec.checkpoint is not None:
        raise WeightsError(
            f"{folder} was tuned on the weights in {printable(spec.checkpoint)} (SHA-256 "
            f"{spec.checkpoint_sha256[:12]}), which are not part of it. Give their file: "
            f"peftbench.load({str(folder)!r}, checkpoint=PATH); or use peftbench.attach on the "
            "backbone in memory."
        )
    with named(folder):
        _check_memory(spec)
        # with two classes, as a run loads it: random weights are drawn in the same order
        model = load_backbone(spec, 2).model
    if hasattr(model, "num_classes"):
        model.num_classes = len(card["classes"])  # type: ignore[assignment]
    return model


def _check_file(file: Path, spec: BackboneSpec, folder: Path) -> None:
    """Refuse a file of weights that is not the one of the card, before anything reads it."""
    try:
        check_plain_file(file)
    except FileNotFoundError as e:
        raise WeightsError(f"checkpoint={file} does not exist. Give the file's path.") from e
    except (OSError, ValueError) as e:
        raise WeightsError(f"checkpoint={file} cannot be read: {e}. Give another file.") from e
    if not spec.checkpoint_sha256:  # of named weights; `attach` compares their tensors
        return
    sha256 = hash_checkpoint(file)
    if sha256 != spec.checkpoint_sha256:
        raise WeightsError(
            f"{folder} was tuned on the weights in {printable(str(spec.checkpoint))} with SHA-256 "
            f"{spec.checkpoint_sha256[:12]}, and {file} has {sha256[:12]}. Give that file."
        )


def _check_memory(spec: BackboneSpec) -> None:
    """Refuse a backbone that this machine has no room for, before anything is made or fetched."""
    model = load_backbone(spec, 2, device="meta").model
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    free = psutil.virtual_memory().available
    if needed > free:
        raise WeightsError(
            f"backbone {spec.name} takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of "
            "memory are free. Load it where there is more."
        )


@contextlib.contextmanager
def named(folder: Path) -> Iterator[None]:
    """What a card asks for and cannot be had, with the folder that it stands in."""
    try:
        yield
    except (ConfigError, Unsupported, NoEffect, WeightsError) as e:
        raise WeightsError(f"{folder}: {printable(str(e))}") from e
    except (AssertionError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as e:
        reason = printable((str(e).strip() or type(e).__name__).splitlines()[0])[:160]
        raise WeightsError(f"{folder} does not describe a model of timm: {reason}.") from e


def load_merged(card: dict[str, Any], folder: Path) -> nn.Module:
    architecture, num_classes, known = cards.construction(card)
    options: dict[str, Any] = {"pretrained": False, "num_classes": num_classes, **known}
    path = folder / files.MERGED
    with named(folder):
        check_name(BackboneSpec(architecture, pretrained=False))
        if architecture in SHIPPED:
            raise ConfigError(f"{architecture!r} is no architecture of timm.")
        with torch.device("meta"):  # what it would take is known before it is made
            planned = timm.create_model(architecture, **options)
        try:
            state = tensors.read(path, planned.state_dict())
        except FileNotFoundError as e:
            raise WeightsError(f"{path} does not exist. Export the run again.") from e
        except (OSError, ValueError) as e:
            raise WeightsError(f"{path} cannot be read ({e}). Export the run again.") from e
        model = timm.create_model(architecture, **options)
        model.load_state_dict(state, strict=True)
    check_finite(state, path)
    return model.eval()


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    name = tensors.not_finite(state)
    if name is not None:
        raise WeightsError(f"{path}: {name} holds values that are not finite. Export again.")
