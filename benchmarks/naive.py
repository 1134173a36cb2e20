"""What a careful person without peftbench gets on the same splits: timm, torch and scikit-learn.

    python benchmarks/naive.py DIR [--backbone efficientnet_lite0] [--full-splits 1] [--epochs 12]

DIR is what `peftbench compare DIR` takes; train, val and test of each fold are the same. Pictures
go through timm's own transform. Rows: logistic regression on frozen features (scikit-learn's, C
from val), a linear head by AdamW (rate from val), and full tuning by AdamW (rate from val, on the
first splits alone, because it takes minutes). Prints JSON: mean over the splits in %, and the
standard error of one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from peftbench.backbones.load import load
from peftbench.data import identify
from peftbench.data.listing import Listing
from peftbench.spec import BackboneSpec, PreprocessingSpec
from peftbench.sweep.compare import jobs

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
HEAD_RATES, FULL_RATES = (3e-2, 1e-2, 3e-3), (1e-3, 3e-4, 1e-4)
HEAD_EPOCHS, BATCH = 100, 32


@dataclass(frozen=True)
class Part:
    """Pictures of a split."""

    pixels: Tensor  # (N, 3, S, S)
    labels: np.ndarray  # (N,)


@dataclass(frozen=True)
class Scores:
    """Of one row on one split, as shares."""

    top1: float
    mean_per_class: float


def rgb(path: Path) -> Image.Image:
    """As people open a picture: upright, transparency on white."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode in ("RGBA", "LA", "P"):
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def parts_of(listing: Listing, transform: Callable[[Image.Image], Tensor]) -> dict[str, Part]:
    """Train, val and test through a transform."""
    assert listing.home is not None
    found = {}
    for split, rows in listing.splits():
        paths = [listing.home.pictures.path(name) for name in rows.names]
        pixels = torch.stack([transform(rgb(path)) for path in paths if path is not None])
        found[split] = Part(pixels, np.asarray(rows.labels))
    return found


def scores(labels: np.ndarray, said: np.ndarray) -> Scores:
    return Scores(float((labels == said).mean()), float(balanced_accuracy_score(labels, said)))


@torch.inference_mode()
def outputs(model: nn.Module, pixels: Tensor, features: bool) -> np.ndarray:
    """(N, ...) logits or features."""
    model.eval()
    found = []
    for batch in pixels.split(BATCH):
        maps = model.forward_features(batch)
        found.append(model.forward_head(maps, pre_logits=features))
    return torch.cat(found).numpy()


def trained(model: nn.Module, part: Part, rate: float, epochs: int) -> nn.Module:
    """AdamW with a cosine, all parameters that require gradients."""
    torch.manual_seed(0)
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(wanted, lr=rate, weight_decay=1e-4)
    steps = epochs * -(-len(part.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    labels = torch.tensor(part.labels)
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(labels)).split(BATCH):
            if len(index) > 1:  # a batch norm is undefined on one
                optimiser.zero_grad()
                cross_entropy(model(part.pixels[index]), labels[index]).backward()
                optimiser.step()
            schedule.step()
    return model


def joined(*parts: Part) -> Part:
    return Part(
        torch.cat([part.pixels for part in parts]), np.concatenate([part.labels for part in parts])
    )


def logistic(features: dict[str, Part]) -> Scores:
    """C from val, then train and val together."""

    def fitted(part: Part, strength: float) -> object:
        model = LogisticRegression(C=strength, max_iter=1000)
        return make_pipeline(StandardScaler(), model).fit(part.pixels.numpy(), part.labels)

    val, test = features["val"], features["test"]
    best = max(
        STRENGTHS, key=lambda c: fitted(features["train"], c).score(val.pixels.numpy(), val.labels)
    )
    model = fitted(joined(features["train"], val), best)
    return scores(test.labels, model.predict(test.pixels.numpy()))


def by_rate(
    make: Callable[[], nn.Module],
    parts: dict[str, Part],
    rates: tuple[float, ...],
    epochs: int,
    said: Callable[[nn.Module, Tensor], np.ndarray],
) -> Scores:
    """The rate from val, then train and val together."""
    val, test = parts["val"], parts["test"]
    reached = {}
    for rate in rates:
        model = trained(make(), parts["train"], rate, epochs)
        reached[rate] = scores(val.labels, said(model, val.pixels)).top1
    best = max(rates, key=lambda rate: (reached[rate], -rate))
    model = trained(make(), joined(parts["train"], val), best, epochs)
    return scores(test.labels, said(model, test.pixels))


def summary(rows: list[Scores], images: int) -> dict[str, float | int]:
    """Means in %, and the standard error of top-1 over all test images."""
    top1 = float(np.mean([row.top1 for row in rows]))
    error = float(np.sqrt(top1 * (1 - top1) / images))
    mean = float(np.mean([row.mean_per_class for row in rows]))
    return {
        "top1": round(100 * top1, 1),
        "error": round(100 * error, 1),
        "mean_per_class": round(100 * mean, 1),
        "splits": len(rows),
    }


def one_split(
    listing: Listing, fresh: Callable[[], nn.Module], size: int | None, full_epochs: int
) -> dict[str, Scores]:
    """All rows on one split; full tuning where it has epochs."""
    model = fresh()
    settings = timm.data.resolve_model_data_config(model)
    if size is not None:
        settings["input_size"] = (3, size, size)
    parts = parts_of(listing, timm.data.create_transform(**settings, is_training=False))
    features = {
        name: Part(torch.tensor(outputs(model, part.pixels, True)), part.labels)
        for name, part in parts.items()
    }
    width, classes = features["train"].pixels.shape[1], len(listing.class_names)
    test = parts["test"]
    largest = np.bincount(joined(parts["train"], parts["val"]).labels).argmax()
    found = {
        "majority": scores(test.labels, np.full(len(test.labels), largest)),
        "logistic": logistic(features),
        "head": by_rate(
            lambda: nn.Linear(width, classes),
            features,
            HEAD_RATES,
            HEAD_EPOCHS,
            lambda head, x: head(x).detach().numpy().argmax(1),
        ),
    }
    if full_epochs:
        found["full"] = by_rate(
            fresh,
            parts,
            FULL_RATES,
            full_epochs,
            lambda whole, x: outputs(whole, x, False).argmax(1),
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("place", metavar="DIR")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--full-splits", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12, help="of full tuning")
    options = parser.parse_args()
    found: dict[str, list[Scores]] = defaultdict(list)
    tested: dict[str, int] = defaultdict(int)
    began = time.perf_counter()
    for number, split in enumerate(jobs.find(options.place).splits):
        listings: list[Listing] = []
        identify(split, listings.append)
        (listing,) = listings

        def fresh(classes: int = len(listing.class_names)) -> nn.Module:
            spec = BackboneSpec(options.backbone, image_size=options.image_size)
            loaded = load(spec, 2, PreprocessingSpec(), torch.device("cpu"), torch.float32)
            loaded.model.reset_classifier(classes)
            return loaded.model

        full_epochs = options.epochs if number < options.full_splits else 0
        for name, row in one_split(listing, fresh, options.image_size, full_epochs).items():
            found[name].append(row)
            tested[name] += len(listing.test)
    rows = {name: summary(found[name], tested[name]) for name in found}
    seconds = round(time.perf_counter() - began)
    print(json.dumps({"place": Path(options.place).name, "seconds": seconds, **rows}, indent=1))


if __name__ == "__main__":
    main()
