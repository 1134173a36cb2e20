"""GPU hours of experiments, estimated from multiply-adds.

One run costs epochs x training images x passes, and each evaluation its images x one pass. A pass
is the forward pass of the backbone; training everything takes three (forward, and gradients of
activations and weights), training a part beside frozen weights two, training a head one. Hours are
at a sustained 100 TFLOP/s, a third of what an A100 has in bfloat16; there ViT-B/16 trains all of
itself at 950 images a second. Nothing here is a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftbench.config.build import dataset_specs
from peftbench.config.choices import aliases_of, catalogue, method_of
from peftbench.protocols import rules_of
from peftbench.spec import TRAIN_ONLY, DatasetSpec, Recipe
from peftbench.sweep.experiments import Sweep

MACS_PER_SECOND = 100e12 / 2  # a multiply-add is two operations
SECONDS_PER_RUN = 20.0  # start of a process, loading, latencies
# 1e9 multiply-adds of one image of 224 pixels; ViT: L blocks of 12 N D^2 + 2 N^2 D, Swin-B,
# ConvNeXt-B and ResNet-50 as their papers print them
GMACS = {
    "vit_base_patch16_224": 17.6,
    "vit_large_patch16_224": 61.6,
    "vit_huge_patch14_224": 167.3,
    "swin_base_patch4_window7_224": 15.4,
    "convnext_base": 15.4,
    "resnet50": 4.1,
}
PASSES = {"linear": 1.0, "mlp": 1.0, "full": 3.0, "partial": 1.2, "sidetune": 1.1}
# prompts lengthen the sequence of 197 tokens: by 61, the mean of the searched lengths 1 to 200
PASSES |= {"vpt_shallow": 2.6, "vpt_deep": 2.6}
BESIDE_FROZEN = 2.0


def hours(sweep: Sweep, known: Known | None = None) -> tuple[float, float]:
    """Hours of trials and final runs together, and of the final runs alone.

    Args:
        known: of several sweeps, what one has read for all.
    """
    cells = sweep.cells()
    known = Known.now() if known is None else known
    seeds = len(sweep) / len(cells)
    budgets = {method: sweep.budget(method) for method in sweep.axes["method"]}
    trials = finals = 0.0
    for cell in cells:
        one = ExpectedRun(sweep, cell, known)
        trials += budgets[cell["method"]] * one.seconds(final=False)
        finals += seeds * one.seconds(final=True)
    return (trials + finals) / 3600, finals / 3600


Catalogue = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Known:
    """The configured choices that say how much a run computes, read once for all cells."""

    datasets: Mapping[str, DatasetSpec]
    backbones: Catalogue
    aliases: Mapping[str, str]  # of backbones
    protocols: Catalogue
    recipes: Catalogue
    suites: Catalogue  # what protocols change for a suite

    @classmethod
    def now(cls) -> Known:
        """As the files are now."""
        return cls(
            dataset_specs(None),
            catalogue("backbone"),
            aliases_of("backbone"),
            catalogue("protocol"),
            catalogue("recipe"),
            catalogue("suite"),
        )


class ExpectedRun:
    """What one cell of a sweep computes."""

    def __init__(self, sweep: Sweep, cell: Mapping[str, str], known: Known) -> None:
        protocol = cell.get("protocol") or sweep.choice("protocol") or "peftbench"
        rules = rules_of(protocol, known.protocols[protocol])
        chosen = sweep.choice("recipe") or rules.recipe
        name = str(cell.get("dataset") or sweep.choice("dataset"))
        self.dataset = known.datasets[name]
        overlay = known.suites.get(f"{protocol}/{name.partition('/')[0]}", {})
        recipe = {**known.recipes[chosen], **overlay.get("recipe", {})}
        plain = {k: v for k, v in recipe.items() if not str(v).startswith("${")}
        self.recipe = Recipe(**plain)
        self.selection = rules.selection
        asked = {**overlay.get("dataset", {}), **sweep.body.get("dataset", {})}
        self.train_only = TRAIN_ONLY in (
            asked.get("final_trains_on"),
            self.dataset.final_trains_on,
        )
        self.shots = int(cell.get("dataset.shots", 0))
        self.shifted = sum(
            (known.datasets[s].facts.test or 0) * (75 if s == "imagenet_c" else 1)
            for s in asked.get("shifts", ())
        )
        backbone = str(cell.get("backbone") or sweep.choice("backbone"))
        tag = known.backbones[known.aliases.get(backbone, backbone)]["name"]
        self.macs = 1e9 * GMACS[tag.partition(".")[0]]
        self.passes = PASSES.get(method_of(cell["method"]), BESIDE_FROZEN)

    def seconds(self, final: bool) -> float:
        """Of one final run, or of one trial."""
        facts: Any = self.dataset.facts
        train = facts.train if not self.shots else self.shots * facts.classes
        if final and not self.train_only:
            train += facts.val
        reported = facts.test if final else facts.val
        looks = len(self.selection.epochs(self.recipe.total_epochs)) if final else 0
        forward = reported * max(1, looks) + (self.shifted if final else 0)
        images = self.recipe.total_epochs * train * self.passes + forward
        return SECONDS_PER_RUN + images * self.macs / MACS_PER_SECOND


def rounded(value: float) -> str:
    """Two significant digits: no more is known."""
    if value < 10:
        return f"{value:.1f}"
    digits = len(str(int(value))) - 2
    return f"{round(value, -digits):.0f}"
