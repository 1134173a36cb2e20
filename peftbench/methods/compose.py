"""Several methods on one backbone, each where it stands alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from peftbench.backbones.anatomy import Anatomy
from peftbench.errors import ConfigError, NotMergeable, Unsupported
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    Preparation,
    TrainingImages,
    register_method,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@register_method("compose")
@dataclass(frozen=True)
class Compose(Method):
    """The parts are attached to one backbone and train together."""

    parts: tuple[str, ...] = ("lora", "norm")  # names of methods, each once
    settings: tuple[str, ...] = ()  # of their hyper-parameters, such as lora.rank:4

    card: ClassVar[MethodCard] = MethodCard(
        title="Composition",
        summary="The methods of a list on one backbone, each where it stands alone, trained "
        "together with one head.",
        paper="arXiv:2110.04366",
        section="3.2, composition; which parts there are is up to you",
        reference="none",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "two parts that change one weight, or that both carry changes along the stream of a "
            "block, are refused",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # what the class promises holds of its default parts; an instance promises for its own
        cards = [part.card for part in self.members]
        own = dataclasses.replace(
            type(self).card,
            identity_at_init=all(card.identity_at_init for card in cards),
            mergeable=all(card.mergeable for card in cards),
            version=type(self).card.version + sum(card.version - 1 for card in cards),
            head_only=all(card.head_only for card in cards),
            dead_at_init=any(card.dead_at_init for card in cards),
            prepared=any(card.prepared for card in cards),
            dynamic=any(card.dynamic for card in cards),
            needs_classes=any(card.needs_classes for card in cards),
            layer_decay=any(card.layer_decay for card in cards),
            frozen_mode="train" if any(c.frozen_mode == "train" for c in cards) else "eval",
        )
        object.__setattr__(self, "card", own)

    def validate(self) -> None:
        self.require(len(self.parts) > 1, f"parts={list(self.parts)}; name two methods or more.")
        self.require(
            len(set(self.parts)) == len(self.parts),
            f"parts={list(self.parts)} name a method twice.",
        )
        self.require(self.name not in self.parts, "parts name compose itself; name its parts.")
        for part in self.members:
            self.require(not part.card.solved, f"{part.name} computes its head and takes no steps.")
            self.require(
                part.takes_blocks or not self.blocks,
                f"{part.name} is not a method of single blocks. Set those of the others, as in "
                "method.settings=['lora.blocks:[-1]'].",
            )
            self.require(
                not part.card.head_only or type(part).head is not Method.head,
                f"{part.name} trains the head alone, which every part does. Leave it out.",
            )

    @cached_property
    def members(self) -> tuple[Method, ...]:
        """The parts with their hyper-parameters, in the order of `parts`."""
        from peftbench.methods.building import method_of, spelled

        values: dict[str, dict[str, Any]] = {name: {} for name in self.parts}
        for setting in self.settings:
            key, value = spelled(setting, f"method={self.name}: settings")
            part, _, field = key.partition(".")
            self.require(
                part in values and bool(field) and field not in values.get(part, {}),
                f"settings have {setting!r}; write PART.KEY:VALUE once, with a part among "
                f"{', '.join(self.parts)}.",
            )
            values[part][field] = value
        return tuple(method_of(name, given) for name, given in values.items())

    def identity(self) -> dict[str, Any]:
        """All hyper-parameters of all parts, so that no default hides in the name of a part."""
        own = super().identity()
        flat = {"parts": list(self.parts)}
        flat |= {k: v for k, v in own["hyperparameters"].items() if k == "blocks"}
        for part in self.members:
            values = part.identity()["hyperparameters"]
            flat |= {f"{part.name}.{key}": value for key, value in values.items()}
        return {**own, "hyperparameters": flat}

    @classmethod
    def fields_of(cls, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        from peftbench.methods.building import as_override

        inside = {key: value for key, value in hyperparameters.items() if "." in key}
        outside = {key: value for key, value in hyperparameters.items() if "." not in key}
        settings = [as_override(key, value) for key, value in inside.items()]
        return {**outside, **({"settings": settings} if settings else {})}

    def check_installed(self) -> None:
        for part in self.members:
            part.check_installed()

    def check(self, anatomy: Anatomy) -> None:
        for part in self.members:
            try:
                part.check(anatomy)
            except Unsupported as e:
                raise Unsupported(f"{self.name}: {e}") from None

    def rehearse(self, backbone: nn.Module, anatomy: Anatomy) -> None:
        from peftbench.methods import together

        for part in self.members:
            part.rehearse(backbone, anatomy)
        together.rehearse(self.members, backbone, anatomy)

    @property
    def looks_at_images(self) -> bool:
        return any(part.looks_at_images for part in self.members)

    def prepare(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Preparation:
        tensors: dict[str, Tensor] = {}
        facts: dict[str, Any] = {}
        for part in self.members:
            if part.looks_at_images:
                found = part.prepare(backbone, anatomy, images, generator)
                tensors |= {f"{part.name}/{key}": tensor for key, tensor in found.tensors.items()}
                facts[part.name] = dict(found.facts)
        return Preparation(tensors, facts)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return self._attach(
            backbone, anatomy, lambda part, model, left: part.attach(model, left, generator)
        )

    def attach_prepared(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        prepared: Preparation,
    ) -> Attachment:
        def attach(part: Method, model: nn.Module, left: Anatomy) -> Attachment:
            if part.name not in prepared.facts:
                return part.attach(model, left, generator)
            start = f"{part.name}/"
            own = {
                key.removeprefix(start): tensor
                for key, tensor in prepared.tensors.items()
                if key.startswith(start)
            }
            known = Preparation(own, prepared.facts[part.name])
            return part.attach_prepared(model, left, generator, known)

        return self._attach(backbone, anatomy, attach)

    def _attach(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        attach: Callable[[Method, nn.Module, Anatomy], Attachment],
    ) -> Attachment:
        from peftbench.methods import together

        order = together.ordered(self.members, backbone, anatomy)
        return together.attach(order, backbone, anatomy, attach)

    def head(self, width: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        import torch
        from torch import nn

        makers = [
            part
            for part in self.members
            if type(part).head is not Method.head
            and not isinstance(part.head(8, 2, torch.Generator()), nn.Linear)
        ]
        if len(makers) > 1:
            names = " and ".join(part.name for part in makers)
            raise ConfigError(f"method={self.name}: {names} each have a head of their own.")
        if not makers:
            return super().head(width, num_classes, generator)
        return makers[0].head(width, num_classes, generator)

    def settled(self, facts: Mapping[str, Any]) -> Method:
        from peftbench.methods.building import method_of

        known = [p.settled(facts[p.name]) if p.name in facts else p for p in self.members]
        if known == list(self.members):
            return self
        return method_of(self.name, _with_members(self, known).identity()["hyperparameters"])

    def not_identity(self, anatomy: Anatomy) -> str:
        return next(filter(None, (part.not_identity(anatomy) for part in self.members)), "")

    def offline(self) -> Method:
        return _with_members(self, (part.offline() for part in self.members))

    def unmoved(self) -> tuple[str, ...]:
        return tuple(pattern for part in self.members for pattern in part.unmoved())

    def unmergeable(self, anatomy: Anatomy) -> str:
        return next(filter(None, (part.unmergeable(anatomy) for part in self.members)), "")

    def merge(self, model: nn.Module) -> nn.Module:
        if not self.card.mergeable:
            rigid = " and ".join(part.name for part in self.members if not part.card.mergeable)
            raise NotMergeable(f"{rigid} of this composition cannot be folded into the weights.")
        from peftbench.methods import surgery

        surgery.bake_deltas(model)  # what others have around changed weights folds into them
        for part in self.members:
            model = part.merge(model)
        return model

    def expected_params(self, anatomy: Anatomy) -> int:
        return sum(part.expected_params(anatomy) for part in self.members)


def _with_members(method: Compose, members: Iterable[Method]) -> Compose:
    made = dataclasses.replace(method)
    vars(made)["members"] = tuple(members)
    return made
