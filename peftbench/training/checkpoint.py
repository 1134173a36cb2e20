"""The state of an unfinished training on disk, and its exact continuation."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftbench.training.world import ALONE, World
from peftbench.untrusted import check_plain_file, printable

FORMAT = 1
ASKED_EVERY = 20  # steps; several processes must agree, which costs a message


class Stateful(Protocol):
    """What can be put aside and taken up again."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


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
        self.notes: list[str] = []  # why a file that is there was not taken up, or none written
        self.trained: Mapping[str, Stateful] | None = None  # all parts, once training is over
        self._saved = time.monotonic()

    def belongs_to(self, **identity: str) -> None:
        """Only a state that was saved under the same identity is taken up."""
        self.identity.update(identity)

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps; the same answer in every process."""
        if self.steps is not None and step % self.steps == 0:
            return True
        if self.minutes is None or (not self.world.is_single and step % ASKED_EVERY):
            return False
        return bool(self.world.broadcast(time.monotonic() - self._saved >= 60 * self.minutes))

    @contextlib.contextmanager
    def saving_when_stopped(self) -> Iterator[None]:
        """Around what follows training: where that is stopped, training is not lost."""
        try:
            yield
        except KeyboardInterrupt:
            if self.trained is not None:
                self.save(self.trained, together=False)
            raise

    def save(self, parts: Mapping[str, Stateful], together: bool = True) -> None:
        """Write the state of all parts; each process adds its random numbers.

        Not `together` where others may be elsewhere, and nothing random follows.
        """
        own = random_state()
        random = self.world.all_gather(own) if together else [own]
        self._saved = time.monotonic()
        if not self.world.is_main:
            return
        tensors: dict[str, Tensor] = {}
        state = {name: part.state_dict() for name, part in parts.items()}
        skeleton = _take_tensors({"parts": state, "random": random}, "", tensors)
        head = {"identity": self.identity, "resumed": self.resumed, "state": skeleton}
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, str(temporary), metadata={"peftbench": json.dumps(head)})
            os.replace(temporary, self.path)
        except (OSError, SafetensorError) as e:  # a full disk: training is worth more than this
            note = f"its state could not be saved in {self.path.parent}: {_reason(e)}"
            if note not in self.notes:
                self.notes.append(note)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def restore(self, parts: Mapping[str, Stateful]) -> bool:
        """Give every part its state back; false where there is none that fits.

        A state of other content than these parts save is noted, and leaves them as they are.

        With another number of processes the random numbers go on from new seeds: the order of the
        images and their augmentation are as they were, dropout is not.
        """
        fresh = _copied({name: part.state_dict() for name, part in parts.items()})
        found = self.world.broadcast(self._read(fresh) if self.world.is_main else None)
        if found is None:
            return False
        state, resumed = found
        try:
            for name, part in parts.items():
                part.load_state_dict(state["parts"][name])
                if isinstance(part, torch.optim.Optimizer):
                    _check_optimizer(part)
            if len(state["random"]) == self.world.size:
                set_random_state(state["random"][self.world.rank])
        except Exception as e:  # whatever its content makes a part do
            for name, part in parts.items():
                part.load_state_dict(fresh[name])
            self.notes.append(self._anew(f"has unexpected content ({_reason(e)})"))
            return False
        self.resumed = resumed + 1
        return True

    def _read(self, fresh: Mapping[str, Any]) -> tuple[dict[str, Any], int] | None:
        """The state in the file and how often the run was resumed; `None`, noted, without one."""
        try:
            check_plain_file(self.path)
            with safe_open(str(self.path), framework="pt") as file:
                head = json.loads((file.metadata() or {})["peftbench"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found, resumed = head["identity"], head["resumed"]
            if found != self.identity:
                keys = sorted(found.keys() | self.identity.keys())
                differing = [k for k in keys if found.get(k) != self.identity.get(k)]
                self.notes.append(self._anew(f"has another {', '.join(map(str, differing))}"))
                return None
        except FileNotFoundError:
            return None
        except Exception as e:  # whatever is in the file
            self.notes.append(self._anew(f"cannot be read ({type(e).__name__}: {_reason(e)})"))
            return None
        try:
            state = _put_tensors(head["state"], tensors)
            _check_state(fresh, state, resumed)
        except Exception as e:
            self.notes.append(self._anew(f"has unexpected content ({_reason(e)})"))
            return None
        return state, resumed

    def _anew(self, reason: str) -> str:
        return f"started anew: {self.path} {printable(reason)}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the name of a file that is gone by now
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    tensors: dict[str, Tensor] = {}
    skeleton = _take_tensors(state, "", tensors)
    copied: dict[str, Any] = _put_tensors(skeleton, tensors)
    return copied


def _check_state(fresh: Mapping[str, Any], state: Any, resumed: Any) -> None:
    """Raise `ValueError` unless `state` is one that the parts of this run save.

    `fresh` is what they save before the first step: empty where training fills in, else of the same
    names, types and shapes.
    """
    if type(resumed) is not int or resumed < 0:
        raise ValueError("the number of times that it was taken up is none")
    if not isinstance(state, dict) or state.keys() != {"parts", "random"}:
        raise ValueError("it lacks the parts or the random numbers")
    _check_like(dict(fresh), state["parts"], "parts")
    here = random_state()
    if not isinstance(state["random"], list) or not state["random"]:
        raise ValueError("it lacks the random numbers")
    for each in state["random"]:
        _check_like({"cpu": here["cpu"], "cuda": []}, each, "random")


def _check_like(fresh: Any, stored: Any, path: str) -> None:
    """Raise `ValueError` where `stored` is of another kind than `fresh`, or not finite."""
    if isinstance(fresh, Tensor | np.ndarray):
        if type(stored) is not type(fresh) or stored.shape != fresh.shape:
            raise ValueError(f"{path} is not of shape {tuple(fresh.shape)}")
        if stored.dtype != fresh.dtype:
            raise ValueError(f"{path} is of another type")
    elif isinstance(fresh, dict):
        if not isinstance(stored, dict) or (fresh and stored.keys() != fresh.keys()):
            raise ValueError(f"{path} has other names")
        for key, value in fresh.items():
            _check_like(value, stored[key], f"{path}.{key}")
    elif isinstance(fresh, list):
        if not isinstance(stored, list) or (fresh and len(stored) != len(fresh)):
            raise ValueError(f"{path} is of another length")
        for index, value in enumerate(fresh):
            _check_like(value, stored[index], f"{path}.{index}")
    elif isinstance(fresh, float) and type(stored) in (int, float):
        pass
    elif fresh is not None and type(stored) is not type(fresh):
        raise ValueError(f"{path} is of another type")
    _check_finite(stored, path)


def _check_finite(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_finite(item, f"{path}.{index}")
    elif isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{path} is not finite")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} is not finite")


# what PyTorch's optimisers keep for each tensor that has had a gradient
KEPT = {"Adam": {"step", "exp_avg", "exp_avg_sq"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise `ValueError` where it got moments that are missing or of other shapes."""
    needed: set[str] = KEPT.get(type(optimizer).__name__, set())
    if needed and not optimizer.state:
        raise ValueError("the optimiser has no moments")
    for parameter, held in optimizer.state.items():
        if not isinstance(held, dict) or not needed <= held.keys():
            raise ValueError("the optimiser lacks moments")
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            moment = held.get(name)
            if moment is not None and getattr(moment, "shape", None) != parameter.shape:
                raise ValueError(f"the optimiser's {name} is of another shape")


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
