"""The state of an unfinished training on disk, and its exact continuation."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftbench.errors import ConfigError
from peftbench.training.world import ALONE, World

FORMAT = 1
ASKED_EVERY = 20  # steps; several processes must agree, which costs a message


class Stateful(Protocol):
    """What can be put aside and taken up again."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


@dataclass(frozen=True)
class Saving:
    """How often the state of a training is saved; schema of `checkpoint`, no identity of a run."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for key in ("minutes", "steps"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"checkpoint.{key}={value}; use a positive value, or null.")

    def to(self, path: Path, world: World) -> Checkpoints | None:
        """What saves to `path`; `None` where nothing is saved."""
        if self.minutes is None and self.steps is None:
            return None
        return Checkpoints(path, self.minutes, self.steps, world)


NO_SAVING = Saving()


class Checkpoints:
    """Keeps one file with the latest state of a run.

    Args:
        path: the file; it appears whole or not at all.
        minutes: between two states; `None` saves none by the clock.
        steps: between two states; `None` saves none by the count.
    """

    def __init__(
        self,
        path: Path,
        minutes: float | None = None,
        steps: int | None = None,
        world: World = ALONE,
    ) -> None:
        self.path = path
        self.identity: dict[str, Any] = {"format": FORMAT}
        self.minutes = minutes
        self.steps = steps
        self.world = world
        self.resumed = 0  # times that this run was taken up
        self.note: str | None = None  # why a file that is there was not taken up
        self._saved = time.monotonic()

    def belongs_to(self, **identity: str) -> None:
        """Only a state that was saved under the same identity is taken up."""
        self.identity.update(identity)

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps; the same answer in every process."""
        if self.steps is not None and step % self.steps == 0:
            return True
        if self.minutes is None or (not self.world.alone and step % ASKED_EVERY):
            return False
        return bool(self.world.told(time.monotonic() - self._saved >= 60 * self.minutes))

    def save(self, parts: Mapping[str, Stateful]) -> None:
        """Write the state of all parts; each process adds its random numbers."""
        random = self.world.collect(random_state())
        self._saved = time.monotonic()
        if not self.world.leads:
            return
        tensors: dict[str, Tensor] = {}
        state = {name: part.state_dict() for name, part in parts.items()}
        skeleton = _take_tensors({"parts": state, "random": random}, "", tensors)
        head = {"identity": self.identity, "resumed": self.resumed, "state": skeleton}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            save_file(tensors, str(temporary), metadata={"peftbench": json.dumps(head)})
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self, parts: Mapping[str, Stateful]) -> bool:
        """Give every part its state back; false where there is none that fits.

        With another number of processes the random numbers go on from new seeds: the order of the
        images and their augmentation are as they were, dropout is not.
        """
        found = self.world.told(self._read() if self.world.leads else None)
        if found is None:
            return False
        head, tensors = found
        state = _put_tensors(head["state"], tensors)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        if len(state["random"]) == self.world.size:
            set_random_state(state["random"][self.world.rank])
        self.resumed = head["resumed"] + 1
        return True

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        if not self.path.is_file():
            return None
        try:
            with safe_open(str(self.path), framework="pt") as file:
                head = json.loads((file.metadata() or {})["peftbench"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, KeyError, ValueError, SafetensorError) as e:
            self.note = f"started anew: {self.path} cannot be read ({type(e).__name__}: {e})"
            return None
        if head["identity"] != self.identity:
            differing = sorted(
                key
                for key in head["identity"].keys() | self.identity.keys()
                if head["identity"].get(key) != self.identity.get(key)
            )
            self.note = f"started anew: {self.path} has another {', '.join(differing)}"
            return None
        return head, tensors


def random_state() -> dict[str, Any]:
    """The generators that dropout and drop-path draw from."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Continue the generators from `random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"][0])


def _take_tensors(value: Any, path: str, into: dict[str, Tensor]) -> Any:
    """`value` as JSON, with the name of each tensor in its place."""
    if isinstance(value, Tensor):
        into[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, np.ndarray):
        into[path] = torch.from_numpy(value.copy())
        return {"array": path}
    if isinstance(value, dict):
        items = [[key, _take_tensors(v, f"{path}/{key}", into)] for key, v in value.items()]
        return {"items": items}  # keys may be numbers, as those of an optimiser
    if isinstance(value, list | tuple):
        return [_take_tensors(v, f"{path}/{i}", into) for i, v in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: {type(value).__name__} has no place in a checkpoint")


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return tensors[value["array"]].numpy()
    return {key: _put_tensors(item, tensors) for key, item in value["items"]}
