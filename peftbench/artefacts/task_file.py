"""The file of one tuned task: safetensors of what the pretrained backbone lacks, and a card."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from peftbench.artefacts import card as cards
from peftbench.artefacts import tensors
from peftbench.errors import WeightsError
from peftbench.methods.applied import Tuned
from peftbench.results.atomic import write_atomic
from peftbench.results.disk import writing
from peftbench.untrusted import read_bounded

TASK = "tuned.safetensors"  # what one task needs besides the backbone
MERGED = "model.safetensors"  # a whole model
CARD = "card.json"


def save(tuned: Tuned, folder: Path, card: dict[str, Any]) -> int:
    """Write `tuned.safetensors` and `card.json` into `folder`; returns the bytes of the tensors."""
    path = folder / TASK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".tuned.{os.getpid()}.part"
        try:
            state = {name: tensor.cpu().contiguous() for name, tensor in tuned.stored().items()}
            save_file(state, part, metadata={"run_id": str(card.get("run_id", ""))})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    write_atomic(folder / CARD, lambda file: file.write(card_bytes(card)))
    return path.stat().st_size


def size_of(shapes: Mapping[str, tuple[int, ...]], run_id: str, packed: Container[str] = ()) -> int:
    """Bytes of the file that `save` writes of float32 tensors of these shapes, by name.

    The format is eight bytes, a header of JSON that is padded to a multiple of eight, and the
    tensors: those of float32, then the bytes of `packed` ones, in the order of their names
    (https://github.com/huggingface/safetensors).
    """
    header: dict[str, Any] = {"__metadata__": {"run_id": run_id}}
    end = 0
    for name in sorted(shapes, key=lambda name: (name in packed, name)):
        width, kind = (1, "U8") if name in packed else (4, "F32")
        begin, end = end, end + width * math.prod(shapes[name])
        header[name] = {
            "dtype": kind,
            "shape": list(shapes[name]),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


def card_bytes(card: dict[str, Any]) -> bytes:
    """The file of a card: no places, hosts or users; names that are no UTF-8 escaped."""
    shared = cards.shared(card)
    try:
        return (json.dumps(shared, indent=1, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, which file names can hold
        return (json.dumps(shared, indent=1) + "\n").encode()


def load(tuned: Tuned, folder: Path) -> None:
    """Fill a freshly attached model of `Method.stored_as` from `folder`.

    Raises:
        WeightsError: the file is missing, corrupt or belongs to another method or backbone.
    """
    path = folder / TASK
    try:
        tuned.make_room({name: each.shape for name, each in tensors.announced(path).items()})
        tuned.load_stored(tensors.read(path, tuned.stored()))
    except FileNotFoundError as e:
        raise WeightsError(f"{path} does not exist. Run the task again.") from e
    except (OSError, ValueError) as e:
        raise WeightsError(f"{path} does not fit this method and backbone: {e}.") from e


def size(folder: Path) -> int:
    """Numbers that the tuned tensors of a folder may hold, read off the header of their file.

    Each bit of a byte may be one.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    path = folder / TASK
    try:
        held = tensors.announced(path).values()
        return sum(math.prod(e.shape) * (8 if e.dtype is torch.uint8 else 1) for e in held)
    except FileNotFoundError as e:
        raise WeightsError(f"{path} does not exist. Run the task again.") from e
    except (OSError, ValueError) as e:
        raise WeightsError(f"{path} cannot be read: {e}. Export the run again.") from e


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a run or of an exported folder, its fields checked by `artefacts.card`.

    Raises:
        WeightsError: there is none, or it is not one of ours.
    """
    path = folder / CARD
    try:
        return cards.parse(read_bounded(path, cards.MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise WeightsError(
            f"{path} does not exist. Give a folder that `peftbench export` wrote."
        ) from e
    except (OSError, ValueError) as e:
        raise WeightsError(f"{path} is not a readable card: {e}. Export the run again.") from e
