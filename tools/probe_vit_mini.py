"""Linear probe of the shipped `vit_mini` weights against the same architecture with random weights.

    python tools/probe_vit_mini.py [--card peftbench/backbones/weights/vit_mini.md]

Frozen class-token features after the final norm; a linear head trained on train and val, reported
on test. Nothing is tuned on test: two recipes are fixed below, the same for both backbones. The
plain one is what `method=linear` does; the other standardises each feature first, which helps
random features far more than learned ones.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pretrain_vit_mini import ARCHITECTURE, PROBE_END, PROBE_START, WEIGHTS, write_atomically
from safetensors.torch import load_file
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftbench import data
from peftbench.spec import DatasetSpec, Phase, Preprocessing

SEEDS = (0, 1, 2)
PLAIN_EPOCHS, PLAIN_BATCH, PLAIN_LR, PLAIN_DECAY = 100, 64, 5e-3, 1e-4
STANDARDISED_STEPS, STANDARDISED_LR, STANDARDISED_DECAY = 500, 2e-2, 1e-2
PREPROCESSING = Preprocessing(size=48, mean=(0.5,) * 3, std=(0.5,) * 3)


@dataclass(frozen=True)
class Row:
    """Test accuracies in per cent, one for each seed."""

    recipe: str
    task: str
    chance: float
    random: tuple[float, ...]
    pretrained: tuple[float, ...]


@torch.no_grad()
def features(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """Class tokens after the final norm: (N, 128)."""
    backbone.eval()
    parts = [backbone((part.permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5) for part in images.split(250)]
    return torch.cat(parts)


def plain(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int) -> float:
    """Test accuracy in per cent of a linear head on the features as they are, in mini-batches."""
    inputs, targets = train
    torch.manual_seed(seed)
    head = torch.nn.Linear(inputs.shape[1], int(targets.max()) + 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=PLAIN_LR, weight_decay=PLAIN_DECAY)
    steps = PLAIN_EPOCHS * math.ceil(len(targets) / PLAIN_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(PLAIN_EPOCHS):
        for rows in torch.randperm(len(targets)).split(PLAIN_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(head(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    return accuracy(head, test)


def standardised(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int) -> float:
    """The same on standardised features, with full batches."""
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    inputs, targets = (train[0] - mean) / std, train[1]
    torch.manual_seed(seed)
    head = torch.nn.Linear(inputs.shape[1], int(targets.max()) + 1)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=STANDARDISED_LR, weight_decay=STANDARDISED_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STANDARDISED_STEPS)
    for _ in range(STANDARDISED_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(head(inputs), targets).backward()
        optimizer.step()
        schedule.step()
    return accuracy(head, ((test[0] - mean) / std, test[1]))


@torch.no_grad()
def accuracy(head: torch.nn.Linear, test: tuple[Tensor, Tensor]) -> float:
    """Per cent of the test features that the head classifies correctly."""
    return 100.0 * float((head(test[0]).argmax(1) == test[1]).float().mean())


RECIPES = {"plain": plain, "standardised": standardised}


def measure(weights: Path) -> list[Row]:
    """Probes every task of the mini suite. The random backbone is drawn again for each seed."""
    pretrained = VisionTransformer(**ARCHITECTURE)
    pretrained.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    rows = []
    for task in data.mini_tasks():
        spec = data.identify(DatasetSpec(name=task, reader="mini"))
        splits = data.load(spec, Phase.FINAL, PREPROCESSING)
        assert isinstance(splits.report, data.TestSplit)
        held = splits.report.open_once()
        pixels = [torch.tensor(part.images).float() for part in (splits.train, held)]
        labels = [torch.tensor(part.labels) for part in (splits.train, held)]

        def backbone_features(backbone: VisionTransformer) -> list[tuple[Tensor, Tensor]]:
            inputs = [features(backbone, part) for part in pixels]  # noqa: B023
            return list(zip(inputs, labels, strict=True))  # noqa: B023

        shipped = backbone_features(pretrained)
        random = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            random.append(backbone_features(VisionTransformer(**ARCHITECTURE)))
        rows += [
            Row(
                name,
                task,
                100.0 / splits.num_classes,
                tuple(probe(*random[i], seed) for i, seed in enumerate(SEEDS)),
                tuple(probe(*shipped, seed) for seed in SEEDS),
            )
            for name, probe in RECIPES.items()
        ]
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown, mean and standard deviation over seeds."""

    def shown(values: tuple[float, ...]) -> str:
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"

    lines = [
        "| head | task | chance | random weights | `vit_mini` | gain |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.recipe):
        gain = statistics.mean(row.pretrained) - statistics.mean(row.random)
        lines.append(
            f"| {row.recipe} | `{row.task}` | {row.chance:.1f} | {shown(row.random)} "
            f"| {shown(row.pretrained)} | {gain:+.1f} |"
        )
    return "\n".join(lines)


def write_into_card(card: Path, text: str) -> None:
    """Replaces what lies between the probe markers of `card`."""
    old = card.read_text(encoding="utf-8")
    before, rest = old.split(PROBE_START)
    after = rest.split(PROBE_END)[1]
    intro = (
        "Frozen class-token features, linear head trained on train and val, test accuracy in per\n"
        f"cent, mean and standard deviation over {len(SEEDS)} seeds of the head (and the random\n"
        "backbone). Plain: the features as they are, which is what `method=linear` does.\n"
        "Standardised: each feature scaled first, which helps random features most.\n\n"
        "    python tools/probe_vit_mini.py \\\n"
        "        --card peftbench/backbones/weights/vit_mini.md\n\n"
    )
    new = f"{before}{PROBE_START}\n{intro}{text}\n{PROBE_END}{after}"
    write_atomically(card, new.encode("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS / "vit_mini.safetensors")
    parser.add_argument("--card", type=Path, default=None, help="write the table into this card")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    set_fused_attn(False)
    text = table(measure(arguments.weights))
    print(text)
    if arguments.card is not None:
        write_into_card(arguments.card, text)


if __name__ == "__main__":
    main()
