"""Where a method acts and what it costs, counted on a standard backbone without weights."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from peftbench.artefacts import task_file
from peftbench.backbones.anatomy import Anatomy
from peftbench.backbones.kernels import is_fused_faster
from peftbench.canonical import digest
from peftbench.cli.method_pages import anatomy_of
from peftbench.errors import PeftbenchError
from peftbench.methods import METHODS, Method, Tuned
from peftbench.methods.layers.neighbours import NearestNeighbours
from peftbench.report.atlas import FOLDS, HEAD_ONLY, STAYS, AtlasEntry
from peftbench.run.activations import counting_kept
from peftbench.run.profile import planned_step
from peftbench.run.simulation import step_cost
from peftbench.run.step import Step, StepPlan
from peftbench.spec import BackboneSpec, DatasetSpec, Recipe, RunSpec
from peftbench.training.device import Compute

# in the order in which they are tried: a method that ViT refuses is for convolutions
BACKBONES: Mapping[str, str] = {
    "ViT-B/16": "vit_base_patch16_224",
    "ResNet-50": "resnet50",
    "ConvNeXt-B": "convnext_base",
    "Swin-B": "swin_base_patch4_window7_224",
}
CLASSES, BATCH = 100, 32
CPU = Compute(torch.device("cpu"), torch.float32)
ITEM = {"head": "head", "": "whole"}  # paths that are no sites


@dataclass(frozen=True)
class Stored:
    """Bytes of the tensors in the file of a task."""

    method: int
    head: int


def key_of(method: Method) -> str:
    """What changes whenever the method's identity or the module that declares it does."""
    kind = type(method)
    module = inspect.getmodule(kind)
    try:
        code = inspect.getsource(module) if module else ""
    except OSError:  # declared where there is no file
        code = ""
    facts = {
        "identity": method.identity(),
        "entry": repr(getattr(kind, "entry", None)),
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }
    return str(digest(facts))[:16]


def home_of(method: Method) -> tuple[str, tuple[str, ...]]:
    """The first backbone that takes `method`, by its title, and why those before it do not."""
    reasons = []
    for title, name in BACKBONES.items():
        try:
            method.check(anatomy_of(name))
        except PeftbenchError as e:
            reasons.append(f"not on {title}: {e}")
            continue
        return title, tuple(reasons)
    return "", tuple(reasons)


def counted(method: Method) -> AtlasEntry:
    """All that is counted of `method`; where a count fails, a remark says why."""
    key = key_of(method)
    home, reasons = home_of(method)
    if not home:
        return AtlasEntry(key, "", remarks=reasons)
    anatomy = anatomy_of(BACKBONES[home])
    remarks = list(reasons)
    facts: dict[str, Any] = {"folding": folding(method, anatomy)}
    try:
        plan = planned(method, BACKBONES[home])
    except Exception as e:  # a method nobody has seen yet must not stop the others
        remarks.append(f"cannot be attached without weights: {_first_line(e)}")
        return AtlasEntry(key, home, remarks=tuple(remarks), **facts)
    facts["sites"] = roles_of(plan.tuned, anatomy)
    trained = (*plan.tuned.method_params.values(), *plan.tuned.unfrozen_params.values())
    facts["tuned"] = sum(p.numel() for p in trained)
    if any(isinstance(module, NearestNeighbours) for module in plan.tuned.model.modules()):
        remarks.append("its head grows with the training images; counted with one a class")
    if method.card.solved:
        remarks.append("takes no training steps")
    else:
        try:
            facts["kept_bytes"] = kept_by(plan)
        except Exception as e:
            remarks.append(f"its kept activations cannot be counted: {_first_line(e)}")
        else:
            facts["kept_bytes_full"] = kept_by_full(home)
    try:
        stored = stored_of(plan.tuned)
    except Exception as e:
        remarks.append(f"its file cannot be written without weights: {_first_line(e)}")
    else:
        facts |= {"stored_bytes": stored.method, "head_bytes": stored.head}
    return AtlasEntry(key, home, remarks=tuple(remarks), **facts)


def planned(method: Method, backbone: str, device: str = "meta") -> StepPlan:
    """A training step of `method` on a backbone, by default one without storage."""
    spec = RunSpec(
        method,
        BackboneSpec(backbone, pretrained=False),
        DatasetSpec("none", "mini"),
        recipe=Recipe(batch_size=BATCH),
    )
    return planned_step(spec, CLASSES, device)


def kept_by(plan: StepPlan) -> int:
    """Bytes of activations that a batch keeps, as `peftbench profile --meta` counts them.

    Some methods compute with numbers that the meta device does not have.
    """
    try:
        return step_cost(plan, BATCH, CPU).kept_bytes
    except (NotImplementedError, RuntimeError):
        tuned = plan.tuned
        home, _ = home_of(tuned.method)
        return kept_with_storage(planned(tuned.method, BACKBONES[home], "cpu"))


def kept_with_storage(plan: StepPlan) -> int:
    """The same, of real steps of two and of three images.

    What is kept is kept for each image, or once, so both steps tell how much a batch keeps. Of one
    image, tensors are views that are copies otherwise.
    """
    fused = is_fused_faster(CPU.device, CPU.dtype)
    for module in plan.tuned.model.modules():
        if hasattr(module, "fused_attn"):  # as `step_cost` does
            setattr(module, "fused_attn", fused)  # noqa: B010
    step = Step(plan, CPU)
    weights = [*plan.tuned.model.parameters(), *plan.tuned.model.buffers()]
    found = []
    for images in (2, 3):
        x, target = step.batch(images)
        with counting_kept(weights) as kept:
            step.forward(x, target)
        found.append(kept.bytes)
        kept.storages.clear()
    two, three = found
    return two + (BATCH - 2) * (three - two)


@cache
def kept_by_full(home: str) -> int:
    """Bytes of activations that full fine-tuning keeps."""
    return step_cost(planned(METHODS["full"](), BACKBONES[home]), BATCH, CPU).kept_bytes


def folding(method: Method, anatomy: Anatomy) -> str:
    """Whether the tuned model folds into the plain backbone."""
    if method.card.head_only:
        return HEAD_ONLY
    return FOLDS if method.card.mergeable and not method.unmergeable(anatomy) else STAYS


def roles_of(tuned: Tuned, anatomy: Anatomy) -> dict[str, int]:
    """How many sites of each role the method touched, in the order of the backbone."""
    roles: dict[str, list[str]] = {}
    for site in anatomy.sites:
        roles.setdefault(site.path, []).append(str(site.role))
    order = list(dict.fromkeys("+".join(found) for found in roles.values()))
    touched = {_site(path, roles) for path in tuned.touched}  # a weight and its bias are one site
    counts = Counter("+".join(roles[p]) if p in roles else ITEM.get(p, "other") for p in touched)
    ranks = {role: rank for rank, role in enumerate(order)}
    return dict(sorted(counts.items(), key=lambda pair: ranks.get(pair[0], len(ranks))))


def _site(path: str, known: Iterable[str]) -> str:
    """The site that a touched path is, or whose parameter it names."""
    parent = path.rpartition(".")[0]
    return path if path in known or path in ITEM or parent not in known else parent


def stored_of(tuned: Tuned) -> Stored:
    """Bytes in the file of one task, which is really written, of tensors of any content."""
    heads = tuple(name.rpartition(".")[0] + "." for name in tuned.head_params)  # with its buffers
    tuned.model.to_empty(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        task_file.save(tuned, Path(folder), {})
        held = _held(Path(folder) / task_file.TASK)
    head = sum(count for name, count in held.items() if name.startswith(heads))
    return Stored(sum(held.values()) - head, head)


def _held(path: Path) -> dict[str, int]:
    """Bytes of each tensor of a file: eight bytes, and as many of JSON as they say, lead it."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
