"""Sensitivity-aware parameter-efficient tuning (He et al., 2023, ICCV, arXiv 2303.08566)."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peftbench.backbones.anatomy import Anatomy, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    Preparation,
    TrainingImages,
    register_method,
)
from peftbench.methods.in_weights import InWeights
from peftbench.methods.layers.units import Unit, matrices, vectors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftbench.methods.layers.sensitivity import Rule
    from peftbench.methods.surgery import Delta

CLASS_TOKEN = "class_token"  # label of the one tensor that is no unit; it always trains
TOKEN_ATTRIBUTE = "cls_token"  # its name in timm's models
STRUCTURED, WHOLE = "structured", "whole"  # what a structure says of a matrix, of a vector
_REFERENCE = "ziplab/SPT@e385f67 engine.py, model/vision_transformer_timm.py"
_DEVIATIONS = (
    "a fused projection is as many matrices as it has parts, q, k and v",
    "sensitive entries are values that are added to frozen weights, as released; so are those of a "
    "bias that is a part of a fused one",
    "entries of norms that are too few to train the norm are counted in the budget and do not "
    "train, as released",
    "the random classifier whose loss measures sensitivity is the one that training starts from",
    "dropout acts on what the new layers read; the released drop-path beside it is left out",
    "images are batches of 64 at most of the train split, in eval mode without augmentation",
    "without images, as in a plan, the structured form on the last matrices that the budget pays "
    "for stands in",
)


@dataclass(frozen=True)
class SensitivityAware(Method):
    """What both structured forms share; which matrix has it, the training images decide."""

    budget: float = 0.4  # numbers that may train, in units; the paper has 0.2 to 1.0
    rank: int = 8  # r
    alpha: float = 10.0  # a matrix with P / alpha sensitive entries becomes structured
    beta: float = 5.0  # a vector with a 1 / beta of sensitive entries trains whole
    unit: float = 1e6
    batches: int = 16  # of images that are looked at
    whole_vectors: bool = True
    dropout: float = 0.1  # on what the new layers read
    # what the images decided: "LABEL=structured", "LABEL=whole" or "LABEL=NUMBER of entries";
    # empty: decide
    structure: tuple[str, ...] = ()

    def validate(self) -> None:
        for key in ("budget", "alpha", "beta", "unit"):
            value = getattr(self, key)
            self.require(value > 0, f"{key}={value}; use a number above 0.")
        for key in ("rank", "batches"):
            value = getattr(self, key)
            self.require(value >= 1, f"{key}={value}; use 1 or more.")
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        for text in self.structure:
            label, _, what = text.partition("=")
            fits = what in (STRUCTURED, WHOLE) or (what.isdecimal() and int(what) > 0)
            self.require(bool(label) and fits, f"structure has {text!r}, not LABEL=NUMBER.")
        labels = [text.partition("=")[0] for text in self.structure]
        self.require(len(set(labels)) == len(labels), "structure names a tensor twice.")

    @abstractmethod
    def budgeted(self, matrix: Unit) -> int:
        """Numbers that a structured matrix counts against the budget, P."""

    @abstractmethod
    def trained(self, matrix: Unit) -> int:
        """Numbers that train in a structured matrix."""

    @abstractmethod
    def structured_delta(
        self,
        rows: Mapping[str, tuple[int, int]],
        fan_in: int,
        width: int,
        generator: torch.Generator,
    ) -> Delta:
        """The structured change of row blocks of one layer."""

    def check(self, anatomy: Anatomy) -> None:
        found = matrices(anatomy)
        if not found:
            raise Unsupported(
                f"{self.name} tunes linear layers in blocks, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)}"
            )
        called = {site.path: site.called for site in anatomy.sites}
        unseen = [unit.path for unit in found if not called[unit.path]]
        if unseen and self._reads_input:
            way = "Set method.dropout=0." if self.card.mergeable else advice(self.name, anatomy)
            raise Unsupported(
                f"{self.name} reads the input of each matrix, but {anatomy.family} backbones never "
                f"call {unseen[0]!r}. {way}"
            )
        sizes = {unit.label: unit.size for unit in (*found, *vectors(anatomy))}
        for label, what in self._settled():
            if label != CLASS_TOKEN and label not in sizes:
                raise Unsupported(
                    f"{self.name} has a structure with {label!r}, which this {anatomy.family} "
                    "backbone lacks. Use the structure of a run on this backbone."
                )
            if what.isdecimal() and int(what) > sizes.get(label, 0):
                raise Unsupported(
                    f"{self.name} has a structure with {what} entries of {label!r}, of which this "
                    f"{anatomy.family} backbone has {sizes.get(label, 0)}. Use fewer."
                )

    @property
    def _reads_input(self) -> bool:
        """Whether the change of a layer is more than one of its weight."""
        return self.dropout > 0

    def _settled(self) -> Iterator[tuple[str, str]]:
        for text in self.structure:
            label, _, what = text.partition("=")
            yield label, what

    def _structure(self, anatomy: Anatomy) -> dict[str, str]:
        """What is done with each tensor, by label; without images the stand-in."""
        if self.structure:
            return dict(self._settled())
        left = self.budget * self.unit
        chosen: dict[str, str] = {}
        for matrix in reversed(matrices(anatomy)):
            left -= self.budgeted(matrix)
            if chosen and left < 0:
                break
            chosen[matrix.label] = STRUCTURED
        return chosen

    def settled(self, facts: Mapping[str, Any]) -> SensitivityAware:
        found = facts.get("structure", ())
        return dataclasses.replace(self, structure=tuple(map(str, found))) if found else self

    def prepare(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Preparation:
        from peftbench.methods.layers import sensitivity

        linear, rest = matrices(anatomy), vectors(anatomy)
        found = self._sensitivity(backbone, anatomy, images, generator)
        structure, facts = dict(self._settled()), {}
        if not structure:
            token = _class_token(backbone)
            rule = self._rule(0 if token is None else token.numel())
            chosen = sensitivity.choose(found, linear, rest, rule, self.budget)
            structure = {} if token is None else {CLASS_TOKEN: WHOLE}
            for unit in (*linear, *rest):
                what = _what(unit, chosen.on[unit.label], rule)
                if what:
                    structure[unit.label] = what
            facts = {"top_k": chosen.top_k, "size": chosen.size}
        index = {
            unit.label: sensitivity.entries(unit, found[unit.label], int(structure[unit.label]))
            for unit in (*linear, *rest)
            if structure.get(unit.label, "").isdecimal()
        }
        texts = [f"{label}={what}" for label, what in structure.items()]
        return Preparation(index, {**facts, "structure": texts})

    def _rule(self, always: int) -> Rule:
        from peftbench.methods.layers.sensitivity import Rule

        return Rule(
            self.budgeted, self.alpha, self.beta, self.whole_vectors, self.unit, always=always
        )

    def _sensitivity(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Sums over batches of squared gradients of the cross-entropy, flat, by label."""
        from peftbench.methods.layers import selection

        units = (*matrices(anatomy), *vectors(anatomy))
        tensors = {
            (unit.path, unit.attribute): backbone.get_submodule(unit.path).get_parameter(
                unit.attribute
            )
            for unit in units
        }

        def losses() -> Iterator[Tensor]:
            shown = (backbone, anatomy, images, generator)
            return selection.cross_entropies(*shown, most=self.batches)

        parts = selection.gradients(backbone, [*tensors.values()], losses)
        summed = selection.total([g.square() for g in part] for part in parts)
        squares = dict(zip(tensors, summed, strict=True))
        return {
            unit.label: squares[unit.path, unit.attribute][unit.start : unit.stop].flatten()
            for unit in units
        }

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return self.attach_prepared(backbone, anatomy, generator, Preparation({}))

    def attach_prepared(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        prepared: Preparation,
    ) -> Attachment:
        from peftbench.methods import surgery
        from peftbench.methods.layers.sparse import SparseDelta

        plan = _Plan(self._structure(anatomy), prepared.tensors)
        whole = {
            f"{unit.path}.{unit.attribute}": backbone.get_submodule(unit.path).get_parameter(
                unit.attribute
            )
            for unit in vectors(anatomy)
            if plan.trains_in_place(unit)
        }
        token = _class_token(backbone)
        if CLASS_TOKEN in plan.structure and token is not None:
            whole[TOKEN_ATTRIBUTE] = token
        biases: dict[str, Delta] = {}
        for path, units in _by_path(vectors(anatomy)).items():
            index = plan.index([unit for unit in units if unit.is_linear])
            if index is not None:
                shape = backbone.get_submodule(path).get_parameter("bias").shape
                biases[path] = SparseDelta(index, shape)
        surgery.add_bias_deltas(backbone, biases)
        changed = _by_path(u for u in matrices(anatomy) if u.label in plan.structure)
        sites = {site.path: site for site in anatomy.sites if site.path in changed}
        deltas, notes = surgery.add_deltas(
            backbone,
            sites.values(),
            lambda site: self._delta(site, changed[site.path], plan, generator),
        )
        new = (*deltas.values(), *biases.values())
        sparse = [m for each in new for m in each.modules() if isinstance(m, SparseDelta)]
        return Attachment(
            backbone,
            (*(p for each in new for p in each.parameters()), *whole.values()),
            touched=tuple(dict.fromkeys((*deltas, *biases, *whole))),
            train_modules=new,
            notes=notes,
            fixed=tuple(each.index for each in sparse),
        )

    def _delta(
        self, site: Site, units: list[Unit], plan: _Plan, generator: torch.Generator
    ) -> Delta:
        """The change of one layer: low-rank on some of its parts, sparse on others."""
        from peftbench.methods.layers.sensitive import SumDelta
        from peftbench.methods.layers.sparse import SparseDelta

        assert site.fan_in is not None
        deltas: list[Delta] = []
        rows = {
            unit.label.split(".", 1)[1]: (unit.start, unit.stop)
            for unit in units
            if plan.structure[unit.label] == STRUCTURED
        }
        if rows:
            deltas.append(self.structured_delta(rows, site.fan_in, site.width, generator))
        index = plan.index(units)
        if index is not None:
            deltas.append(SparseDelta(index, (site.width, site.fan_in)))
        return deltas[0] if len(deltas) == 1 else SumDelta(*deltas)

    def expected_params(self, anatomy: Anatomy) -> int:
        units = {unit.label: unit for unit in (*matrices(anatomy), *vectors(anatomy))}
        total = 0
        for label, what in self._structure(anatomy).items():
            if what.isdecimal():
                total += int(what)
            elif label == CLASS_TOKEN:
                total += anatomy.tokens.width if anatomy.tokens else 0
            else:
                unit = units[label]
                total += self.trained(unit) if what == STRUCTURED else unit.size
        return total


@dataclass(frozen=True)
class _Plan:
    """What is done with each tensor, and at which entries."""

    structure: Mapping[str, str]
    chosen: Mapping[str, Tensor]  # flat indices by label; the first ones where there are none

    def trains_in_place(self, unit: Unit) -> bool:
        return unit.is_whole and self.structure.get(unit.label) == WHOLE

    def index(self, units: Iterable[Unit]) -> Tensor | None:
        """Entries of one tensor that get values of their own, of all its units."""
        import torch

        found = []
        for unit in units:
            what = self.structure.get(unit.label, "")
            if what == WHOLE and not unit.is_whole:
                what = str(unit.size)  # of a bias that is a part of a fused one
            if what.isdecimal():
                first = unit.start * unit.columns
                stand_in = torch.arange(first, first + int(what))
                found.append(self.chosen.get(unit.label, stand_in))
        return torch.cat(found) if found else None


def _what(unit: Unit, on: int, rule: Rule) -> str:
    """What the number of its sensitive entries makes of a tensor; empty: nothing trains."""
    if unit.attribute == "weight" and unit.is_linear:
        return STRUCTURED if rule.is_structured(unit, on) else str(on or "")
    if rule.is_whole(unit, on):
        return WHOLE
    return str(on or "") if unit.is_linear else ""


def _by_path(units: Iterable[Unit]) -> dict[str, list[Unit]]:
    grouped: dict[str, list[Unit]] = {}
    for unit in units:
        grouped.setdefault(unit.path, []).append(unit)
    return grouped


def _class_token(backbone: nn.Module) -> nn.Parameter | None:
    """The class token of a timm model, by timm's name for it."""
    from torch import nn

    found = getattr(backbone, TOKEN_ATTRIBUTE, None)
    return found if isinstance(found, nn.Parameter) else None


@register_method("spt_lora")
@dataclass(frozen=True)
class SPTLoRA(InWeights, SensitivityAware):
    """Matrices with many sensitive entries get B A, the others train these entries alone."""

    card: ClassVar[MethodCard] = MethodCard(
        title="SPT-LoRA",
        paper="arXiv:2303.08566",
        section="3.2-3.3",
        reference=_REFERENCE,
        identity_at_init=True,
        mergeable=True,
        prepared=True,
        deviations=_DEVIATIONS,
        summary="Squared gradients on training images say which entries are sensitive; within a "
        "budget, matrices with many of them get W + B A, and of all others these entries train.",
        look=("#999933", "^"),
    )

    def budgeted(self, matrix: Unit) -> int:
        return self.rank * (matrix.columns + matrix.rows)

    def trained(self, matrix: Unit) -> int:
        return self.budgeted(matrix)

    def structured_delta(
        self,
        rows: Mapping[str, tuple[int, int]],
        fan_in: int,
        width: int,
        generator: torch.Generator,
    ) -> Delta:
        from peftbench.methods.layers.low_rank import LowRankDelta

        return LowRankDelta(rows, (width, fan_in), self.rank, 1.0, self.dropout, generator)


@register_method("spt_adapter")
@dataclass(frozen=True)
class SPTAdapter(SensitivityAware):
    """Matrices with many sensitive entries get an adapter beside them."""

    card: ClassVar[MethodCard] = MethodCard(
        title="SPT-Adapter",
        paper="arXiv:2303.08566",
        section="3.2-3.3",
        reference=_REFERENCE,
        identity_at_init=True,
        mergeable=False,
        prepared=True,
        deviations=(
            *_DEVIATIONS,
            "as released, the budget counts an adapter as if it read as many inputs as it has "
            "outputs",
            "the last bias of an adapter on keys is there as released; the softmax cancels it, so "
            "it stays zero",
        ),
        summary="As SPT-LoRA, with W x + up gelu(down x) in place of low-rank changes: squared "
        "gradients on training images choose matrices and entries within a budget.",
        look=("#999933", "v"),
    )

    @property
    def _reads_input(self) -> bool:
        return True

    def unmoved(self) -> tuple[str, ...]:
        structured = [label for label, what in self._settled() if what == STRUCTURED]
        has_keys = not self.structure or any(label.endswith(".k") for label in structured)
        return ("*.up.k.bias",) if has_keys else ()

    def budgeted(self, matrix: Unit) -> int:
        return 2 * matrix.rows * self.rank + self.rank + matrix.rows

    def trained(self, matrix: Unit) -> int:
        return self.rank * (matrix.columns + matrix.rows) + self.rank + matrix.rows

    def structured_delta(
        self,
        rows: Mapping[str, tuple[int, int]],
        fan_in: int,
        width: int,
        generator: torch.Generator,
    ) -> Delta:
        from peftbench.methods.layers.sensitive import AdapterDelta

        return AdapterDelta(rows, fan_in, width, self.rank, self.dropout, generator)
