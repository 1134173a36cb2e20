"""A small data set with pictures of every kind that people have, and runs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from peftbench.data import identify
from peftbench.methods import METHODS, discover
from peftbench.results.record import RunRecord
from peftbench.results.store import ResultsStore
from peftbench.spec import (
    BackboneSpec,
    DatasetSpec,
    Precision,
    PreprocessingSpec,
    Recipe,
    RunSpec,
)

discover()

CLASSES = ("blue", "green", "red")
WHITE = 2**12 - 1  # of the wide pictures: a camera of 12 bits


def _rgb(picture: Image.Image) -> Image.Image:
    return picture


def _rgba(picture: Image.Image) -> Image.Image:
    """With an alpha that falls from left to right, over colours that are no white."""
    alpha = np.linspace(0, 255, picture.width).astype(np.uint8)
    picture.putalpha(Image.fromarray(np.tile(alpha, (picture.height, 1))))
    return picture


def _palette(picture: Image.Image) -> Image.Image:
    """With a palette of which one colour is transparent."""
    few = picture.quantize(16)
    few.info["transparency"] = 0
    return few


def _grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L")


def _wide(picture: Image.Image) -> Image.Image:
    """Grey with 12 bits in use of 16."""
    levels = np.asarray(picture.convert("L")).astype(np.uint16)
    levels = levels * (WHITE // 255) + np.arange(picture.width, dtype=np.uint16) % 13
    return Image.fromarray(levels)


# how a picture of each kind is made of an RGB one, and the ending of its file
KINDS: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "rgb": (_rgb, "png"),
    "photo": (_rgb, "jpg"),
    "turned": (_rgb, "jpg"),  # by its EXIF tag
    "rgba": (_rgba, "png"),
    "palette": (_palette, "png"),
    "grey": (_grey, "png"),
    "wide": (_wide, "png"),
}


def write(root: Path) -> Path:
    """`root/{train,val,test}/<class>/<kind>-0.<ending>`, of all sizes; returns `root`."""
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for kind, (make, ending) in KINDS.items():
                path = folder / f"{kind}-0.{ending}"
                _save(make(_picture(number, generator)), path, kind)
    return root


def _picture(number: int, generator: np.random.Generator) -> Image.Image:
    """Stripes of a width and a colour of the class, in a picture of 30 to 110 pixels a side."""
    height, width = generator.integers(30, 110, 2)
    stripes = (np.arange(width) // (3 + 4 * number)) % 2 * 90 + 60
    noise = generator.integers(0, 80, (height, width, 3))
    pixels = noise + np.tile(stripes[None, :, None], (height, 1, 3))
    pixels[:, :, 2 - number] += 20
    pixels[: height // 3] //= 2  # which side is up can be seen
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _save(picture: Image.Image, path: Path, kind: str) -> None:
    if kind != "turned":
        picture.save(path)
        return
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(path, exif=exif)


def run_spec(root: Path, backbone: str, size: int, method: str, **pixels: object) -> RunSpec:
    """A run of `method` on random weights, in float32, that learns something in seconds."""
    dataset = DatasetSpec("kinds", reader="folder", suite="own", root=str(root))
    return RunSpec(
        method=METHODS[method](),
        backbone=BackboneSpec(backbone, pretrained=False, image_size=size, title=backbone),
        dataset=identify(dataset),
        preprocessing=PreprocessingSpec(**pixels),  # type: ignore[arg-type]
        recipe=Recipe(epochs=2, warmup_epochs=0, batch_size=16, lr=3e-3),
        precision=Precision.FLOAT32,
    )


@dataclass(frozen=True)
class Finished:
    """A run of lora on such pictures."""

    store: ResultsStore
    record: RunRecord
    data: Path

    @property
    def pictures(self) -> list[Path]:
        """Those of its test split, in the order of its predictions."""
        saved = self.store.load_predictions("lora", self.record.run_id)
        assert saved is not None and saved.names is not None
        return [self.data / name for name in saved.names]
