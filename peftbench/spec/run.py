"""One run: method x backbone x data set x recipe x seed, whose canonical form is its identity."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from peftbench.canonical import (
    IDENTITY_VERSION,
    declared,
    digest,
    plain_dict,
)
from peftbench.errors import ConfigError
from peftbench.spec.inputs import FOUND_BY, TOLD, BackboneSpec, DatasetSpec, PreprocessingSpec
from peftbench.spec.training import BEST_ON_TEST, WHOLE_BY_INPUT, Protocol, Recipe, Selection
from peftbench.tasks import CLASSIFICATION, Metric, Task


class Phase(StrEnum):
    """`TUNE` trains on train and reports val; `FINAL` trains on train+val and reports test."""

    TUNE = "tune"
    FINAL = "final"


class Precision(StrEnum):
    """Arithmetic of the forward pass. Trainable weights are float32 in every case."""

    AUTO = "auto"  # bfloat16 autocast where the device is faster with it, else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


SPLIT_OF_PHASE: Mapping[str, str] = {Phase.FINAL: "test", Phase.TUNE: "val"}  # reported


class DeclaredMethod(typing.Protocol):
    """What a run knows of its method, which stands above it."""

    @property
    def name(self) -> str: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class RunSpec:
    """One run: method x backbone x data set x recipe x seed, in one phase."""

    method: DeclaredMethod
    backbone: BackboneSpec
    dataset: DatasetSpec
    preprocessing: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    phase: Phase = Phase.FINAL
    precision: Precision = Precision.AUTO
    selection: Selection = field(default_factory=Selection)
    protocol: Protocol = field(default_factory=Protocol)
    # of a trial: (epoch after which val is looked at, score without which it stops there)
    looks: tuple[tuple[int, float | None], ...] = ()
    shifts: tuple[DatasetSpec, ...] = ()  # where to find `dataset.shifts`, which are the identity
    task: Task = CLASSIFICATION  # identity and recorded only where it is another

    def __post_init__(self) -> None:
        if self.looks and self.phase is not Phase.TUNE:
            raise ConfigError(f"looks={dict(self.looks)} is for trials, which see val: phase=tune.")
        if any(epoch < 1 for epoch, _ in self.looks):
            raise ConfigError(f"looks={dict(self.looks)}: epochs count from 1.")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} is negative. Use 0 or a positive integer.")
        if self.seed >= 2**63:
            raise ConfigError(f"seed={self.seed} is too large. Use at most {2**63 - 1}.")

        self._check_metric()

    def _check_metric(self) -> None:
        """Raise `ConfigError` for a metric that the task or the data set has not.

        What the task is judged by in any case is no declaration: it is left out.
        """
        metric, classes = self.judged_by, self.dataset.facts.classes
        if metric.classes is not None and classes not in (None, metric.classes):
            others = [m.name for m in self.task.scores if m.classes in (None, classes)]
            raise ConfigError(
                f"selection.metric={metric.name} is defined for {metric.classes} classes, and "
                f"{self.dataset.name} has {classes}. Use one of: {', '.join(others)}."
            )
        if self.selection.metric == self.task.score.name:
            object.__setattr__(self, "selection", dataclasses.replace(self.selection, metric=None))

    @property
    def judged_by(self) -> Metric:
        """What chooses trials and epochs of this run, and what tables show of it."""
        return self.task.metric(self.selection.metric)

    def train_size(self, size: int) -> int | None:
        """Side of the squares that training pictures are kept in whole, for an input of `size`.

        `None` where the recipe does not crop.

        Raises:
            ConfigError: they would be smaller than the input.
        """
        ratio = WHOLE_BY_INPUT.get(self.recipe.augmentation)
        if ratio is None:
            return None
        chosen = self.preprocessing.train_size
        if chosen is not None and chosen < size:
            raise ConfigError(
                f"preprocessing.train_size={chosen} is smaller than the input of {size} pixels. "
                f"Use {size} or more, or null for {round(ratio * size)}."
            )
        return round(ratio * size) if chosen is None else chosen

    @property
    def selects_on_test(self) -> bool:
        """Whether test chooses the epoch; never while tuning, which does not see test."""
        return self.phase is Phase.FINAL and self.selection.rule == BEST_ON_TEST

    def identity(self) -> dict[str, Any]:
        """The declared identity as plain JSON values; equal identities mean equal runs."""
        backbone = declared(self.backbone)
        dataset = declared(self.dataset)
        del backbone["title"], dataset["root"], dataset["facts"]
        for key in (*FOUND_BY, *TOLD):
            dataset.pop(key, None)
        if self.backbone.checkpoint is not None:
            backbone.update(checkpoint=None, pretrained=False)
        named = self.backbone.pretrained and self.backbone.factory is None  # draws no weights
        if named or self.backbone.checkpoint is not None:
            del backbone["seed"]
        recipe = self.recipe.canonical()
        del recipe["name"]
        chosen = self._where_given()
        if self.selects_on_test:
            chosen["selection"] = declared(self.selection)
        elif self.selection.metric is not None:
            chosen["selection"] = {"metric": self.selection.metric}
        return plain_dict(
            {
                "identity_version": IDENTITY_VERSION,
                "method": self.method.identity(),
                "backbone": backbone,
                "dataset": dataset,
                "preprocessing": declared(self.preprocessing),
                "recipe": recipe,
                "seed": self.seed,
                "phase": self.phase,
                "precision": self.precision,
                **chosen,
            }
        )

    @property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits of SHA-256 over the canonical identity."""
        return digest(self.identity())

    def describe(self) -> dict[str, Any]:
        """Everything declared, names and paths included, for the record."""
        return plain_dict(
            {
                "method": self.method.identity(),
                "backbone": declared(self.backbone),
                "dataset": {k: v for k, v in declared(self.dataset).items() if k != "facts"},
                "preprocessing": declared(self.preprocessing),
                "recipe": self.recipe.canonical(),
                "seed": self.seed,
                "phase": self.phase,
                "precision": self.precision,
                "selection": declared(self.selection),
                "protocol": dataclasses.asdict(self.protocol),
                **self._where_given(),
            }
        )

    def _where_given(self) -> dict[str, Any]:
        """Looks and task; empty by default, so that runs from before there were any keep ids."""
        looks = {"looks": self.looks} if self.looks else {}
        return looks | ({} if self.task == CLASSIFICATION else {"task": self.task.name})

    def __str__(self) -> str:
        backbone = self.backbone.title or self.backbone.name
        data = self.dataset
        split = "" if data.fold is None else f", fold {data.fold} of {data.folds}"
        split += f", split {data.split_seed}" if data.split_seed else ""
        text = f"{self.method.name} x {backbone} x {data.called}{split}, seed {self.seed}"
        return text if self.phase is Phase.FINAL else f"{text}, {self.phase}"
