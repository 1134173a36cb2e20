"""A method on a backbone: what it changed, what trains, and what one task stores of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftbench.backbones.accepted import dtype_of
from peftbench.backbones.anatomy import Anatomy
from peftbench.errors import ConfigError, NoEffect, Unsupported
from peftbench.methods import surgery
from peftbench.methods.base import Attachment, Method, Preparation, StepHook, parameters_of
from peftbench.methods.layers.heads import on_maps, on_rows, silent_head, take_over
from peftbench.methods.layers.neighbours import NearestNeighbours
from peftbench.methods.layers.packing import PackedTensor
from peftbench.methods.layers.passes import MethodObjective
from peftbench.methods.layers.solvable import Solvable
from peftbench.methods.layers.sparse import SparseDelta

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Tuned:
    """A backbone with a method and a head, ready to fit. Tensors are named as in `model`."""

    method: Method
    model: nn.Module
    anatomy: Anatomy
    method_params: dict[str, nn.Parameter]  # added by the method
    unfrozen_params: dict[str, nn.Parameter]  # of the backbone
    head_params: dict[str, nn.Parameter]
    changing_buffers: dict[str, Tensor]  # running statistics that training updates
    fixed: dict[str, Tensor]  # frozen tensors of the task, such as random directions
    train_modules: tuple[nn.Module, ...]
    frozen_modules: tuple[nn.Module, ...]  # inside those, and in eval mode
    touched: tuple[str, ...]
    regulariser: Callable[[], Tensor] | None
    notes: tuple[str, ...]
    after_step: StepHook | None = None
    objective: MethodObjective | None = None  # in place of the task's loss

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Every tensor that an optimiser step may change."""
        return {**self.method_params, **self.unfrozen_params, **self.head_params}

    def train(self, frozen_mode: str = "method") -> None:
        """Put what trains in train mode and everything else in eval mode.

        With `frozen_mode="train"` everything is in train mode, as in most released codes, so that
        dropout and drop-path of the frozen layers act. Only batch norms that do not train stay in
        eval mode: their statistics belong to the backbone.
        """
        self.model.train(frozen_mode == "train")
        for module in self.model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        for module in self.train_modules:
            module.train()
        if frozen_mode != "train":
            for module in self.frozen_modules:
                module.eval()

    def state(self) -> dict[str, Tensor]:
        """All that one task needs besides the pretrained backbone."""
        return {name: tensor.detach() for name, tensor in self._stored().items()}

    def stored(self) -> dict[str, Tensor]:
        """What a finished task stores: tensors of few bits are packed.

        They are named as in a model of `Method.stored_as`.
        """
        if self.method.stored_as(self.anatomy) != self.method:
            return self.method.stored_state(self.model, self.state())
        state = self.state()
        for path, module in self._packed().items():
            del state[f"{path}.{module.packs}"]
            state |= {f"{path}.{name}": tensor for name, tensor in module.pack().items()}
        return state

    @torch.no_grad()
    def load_stored(self, stored: dict[str, Tensor]) -> None:
        """Take over what `stored` gave of such a model; names and shapes are those of it."""
        state = dict(stored)
        parts = {}
        for path, module in self._packed().items():
            own = [name for name in state if name.rpartition(".")[0] == path]
            parts[path] = {name.rpartition(".")[2]: state.pop(name) for name in own}
            state[f"{path}.{module.packs}"] = module.get_parameter(module.packs).detach()
        self.load_state(state)
        for path, module in self._packed().items():
            module.unpack(parts[path])

    def _packed(self) -> dict[str, PackedTensor]:
        """The modules whose parameter is stored in another form, by path."""
        named = self.model.named_modules()
        found = {path: module for path, module in named if isinstance(module, PackedTensor)}
        return {path: m for path, m in found.items() if f"{path}.{m.packs}" in self.trainable}

    @property
    def heads(self) -> tuple[str, ...]:
        """Paths of the classifiers that train."""
        return tuple(head.path for head in self.anatomy.heads if not head.auxiliary)

    def solve(self, *given: Solvable) -> None:
        """Compute the head of a method that takes no steps; each of several of what it sees."""
        for path, seen in zip(self.heads, given, strict=True):
            head = self.model.get_submodule(path)
            rows = on_rows(head)
            self.method.solve(rows, seen)
            take_over(head, rows)
        self._renew()

    def make_room(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Let a head that holds training images hold as many as `shapes`, by name, announce."""
        for path, head in self.model.named_modules():
            shape = shapes.get(f"{path}.bank")
            if isinstance(head, NearestNeighbours) and shape:
                head.resize(shape[0])
                self._renew()

    def _renew(self) -> None:
        """Hold the tensors that the model has now, in place of those that it had."""
        for name in self.head_params:
            self.head_params[name] = self.model.get_parameter(name)
        for name in self.changing_buffers:
            self.changing_buffers[name] = self.model.get_buffer(name)

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy what `state` holds; its names and shapes must be exactly those of this model."""
        own = self._stored()
        if own.keys() != state.keys():
            differing = sorted(own.keys() ^ state.keys())
            raise ValueError(f"the tuned tensors differ in {len(differing)} names: {differing[:3]}")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name}: {tuple(state[name].shape)} for {tuple(tensor.shape)}")
        for path, module in self.model.named_modules():
            if isinstance(module, SparseDelta):
                module.check_index(state[f"{path}.index"])
        for name, tensor in own.items():  # only now: a refused state changes nothing
            tensor.copy_(state[name])
        for module in self._packed().values():
            module.load_full()

    def _stored(self) -> dict[str, Tensor]:
        """The tensors of `state` as the model holds them now; moving it makes new buffers."""
        model = self.model
        parameters = {name: model.get_parameter(name) for name in self.trainable}
        buffers = {name: model.get_buffer(name) for name in self.changing_buffers}
        return {**parameters, **buffers, **_named(model, self.fixed)}


def _named(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Parameters and buffers of `model` by name, as it holds them now."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors.update(model.named_buffers())
    return {name: tensors[name] for name in names}


def _names_of(model: nn.Module, tensors: Iterable[Tensor]) -> list[str]:
    """Under which names `model` holds parameters and buffers (...)."""
    wanted = {id(tensor) for tensor in tensors}
    held = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in held if id(tensor) in wanted]


def _changing(attachment: Attachment, train_modules: Iterable[nn.Module]) -> list[str]:
    """Names of the buffers that training updates, without those that are rebuilt, such as masks."""
    still = {id(tensor) for tensor in attachment.fixed}
    still |= {id(b) for module in attachment.frozen_modules for b in module.buffers()}
    still |= {
        id(module.get_buffer(name))  # files have it, and nothing reads or updates it
        for module in attachment.model.modules()
        for name in getattr(module, "unread_buffers", ())
    }
    buffers = [b for module in train_modules for b in module.buffers() if id(b) not in still]
    saved = attachment.model.state_dict().keys()
    return [name for name in _names_of(attachment.model, buffers) if name in saved]


def _partial_cover(anatomy: Anatomy, attachment: Attachment) -> tuple[str, ...]:
    """A note where a method goes through the layers of the blocks, and some are no sites."""
    layers = {site.path for site in anatomy.sites if site.fan_in is not None}
    adapted = layers.intersection(attachment.touched)
    if not adapted or not anatomy.uncovered:
        return ()
    paths, some = anatomy.uncovered, anatomy.uncovered[0]
    return (
        f"{len(paths)} layers in the blocks, such as {some}, have no role that methods know and "
        f"stay as they are; {len(adapted)} are adapted",
    )


def apply(
    method: Method,
    backbone: nn.Module,
    anatomy: Anatomy,
    num_classes: int | None,
    generator: torch.Generator,
    prepared: Preparation | None = None,
) -> Tuned:
    """Attach `method` and a new head to `backbone` in place; `None` classes keep the classifier.

    With what the method `prepared`, if it did; without it a method that has to look at images
    starts elsewhere, for a stored task to overwrite.

    Raises:
        ConfigError: the classifier is to be kept, and the method makes one of its own.
        Unsupported: the method is not defined on this backbone.
        NoEffect: the method touched nothing.
    """
    if prepared is not None:
        method = method.settled(prepared.facts)
    method.check(anatomy)
    method.rehearse(backbone, anatomy)
    first = next(backbone.parameters())
    device, dtype = first.device, dtype_of(backbone)
    heads = _heads(method, backbone, anatomy, num_classes, generator)
    backbone.eval()
    head_ids = {id(p) for p in parameters_of(*heads)}
    original_ids = {id(p) for p in backbone.parameters()} - head_ids
    if prepared is None:
        attachment = method.attach(backbone, anatomy, generator)
    else:
        attachment = method.attach_prepared(backbone, anatomy, generator, prepared)
    if not attachment.trainable and not method.card.head_only:
        raise NoEffect(
            f"{method.name} changed nothing on this backbone (family {anatomy.family}): it found "
            "none of its sites."
        )
    model = attachment.model
    surgery.freeze_except(model, (*attachment.trainable, *parameters_of(*heads)))
    chosen = {id(p) for p in attachment.trainable}
    names = {id(p): name for name, p in model.named_parameters()}
    outside = [i for i in chosen | head_ids if i not in names]
    if outside:
        raise NoEffect(f"{method.name} declared {len(outside)} parameters outside the model.")
    train_modules = (*attachment.train_modules, *heads)
    fixed = _names_of(model, attachment.fixed)
    buffers = _changing(attachment, train_modules)
    model.to(device, dtype)  # new tensors are drawn in float32 on the CPU
    parameters = dict(model.named_parameters())  # moving to the meta device makes new objects

    def pick(ids: set[int]) -> dict[str, nn.Parameter]:
        return {name: parameters[name] for i, name in names.items() if i in ids}

    return Tuned(
        method=method,
        model=model,
        anatomy=anatomy,
        method_params=pick(chosen - original_ids),
        unfrozen_params=pick(chosen & original_ids),
        head_params=pick(head_ids),
        changing_buffers={n: model.get_buffer(n) for n in buffers},
        fixed=_named(model, fixed),
        train_modules=train_modules,
        frozen_modules=attachment.frozen_modules,
        touched=attachment.touched,
        regulariser=attachment.regulariser,
        notes=(
            *_notes(method, anatomy, num_classes),
            *attachment.notes,
            *_partial_cover(anatomy, attachment),
        ),
        after_step=attachment.after_step,
        objective=attachment.objective,
    )


def _heads(
    method: Method,
    backbone: nn.Module,
    anatomy: Anatomy,
    num_classes: int | None,
    generator: torch.Generator,
) -> list[nn.Module]:
    """The classifiers that train: new ones of the method in their places, or those that are there.

    An auxiliary classifier is set to zero beside new ones.
    """
    if num_classes is None:
        if not isinstance(method.head(anatomy.head_width or 1, 2, torch.Generator()), nn.Linear):
            raise ConfigError(f"method={method.name} makes a head of its own. Give num_classes.")
        return [backbone.get_submodule(head.path) for head in anatomy.heads]
    made = []
    for head in anatomy.heads:
        if not head.width:
            raise Unsupported(
                f"the classifier {head.path!r} is a {_kind(backbone, head.path)}, and only linear "
                "layers and 1 x 1 convolutions can be replaced. In Python, leave num_classes out "
                "to keep it."
            )
        if head.auxiliary:
            surgery.replace(backbone, head.path, silent_head(head.width, num_classes))
            continue
        new = method.head(head.width, num_classes, generator)
        made.append(on_maps(new) if head.on_maps else new)
        surgery.replace(backbone, head.path, made[-1])
    return made


def _kind(backbone: nn.Module, path: str) -> str:
    return type(backbone.get_submodule(path)).__name__


def _notes(method: Method, anatomy: Anatomy, num_classes: int | None) -> list[str]:
    """What is to be known of merging, and of a backbone with several classifiers."""
    own = [repr(head.path) for head in anatomy.heads if not head.auxiliary]
    beside = [repr(head.path) for head in anatomy.heads if head.auxiliary]
    notes = []
    reason = method.unmergeable(anatomy)
    if method.card.mergeable and reason:
        notes.append(f"trains, but does not merge on this backbone: {reason}")
    other = method.not_identity(anatomy)
    if other:
        notes.append(f"does not start as the pretrained function: {other}")
    if len(own) > 1:
        notes.append(
            f"this backbone combines the logits of {len(own)} classifiers ({', '.join(own)}), in "
            "the place of each of which is a head of its own"
        )
    if beside and num_classes is not None:
        notes.append(
            f"the auxiliary classifier {', '.join(beside)} is zero, so that the logits are those "
            f"of {', '.join(own)}"
        )
    return notes
