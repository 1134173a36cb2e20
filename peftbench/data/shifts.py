"""Sets that a model trained on ImageNet-1k is tested on without further training.

Their class folders are those of ImageNet, or numbers that count its sorted classes. Where there
are folders for 200 classes only, the logits of the others are left out, as SSF does
(validate_ood.py). ImageNet-C has a folder for each corruption and severity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from peftbench.data import images
from peftbench.data.files import FilePictures
from peftbench.data.layouts.classes import class_folders, images_of
from peftbench.data.listing import Home, Listing, SplitList, read_dataset, rollup_of
from peftbench.data.public import Absent, Ambiguous
from peftbench.data.rows import take
from peftbench.data.tree import folders
from peftbench.errors import DataError
from peftbench.spec import DatasetSpec, Preprocessing

SEVERITIES = ("1", "2", "3", "4", "5")

# corruptions that count, with AlexNet's error as a fraction (Hendrycks and Dietterich, 2019; SSF
# utils/mce_utils.py)
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


@read_dataset("shift")
def read_shift(spec: DatasetSpec) -> NoReturn:
    """Always `DataError`: nothing can be trained on it."""
    raise _test_only(spec)


def _test_only(spec: DatasetSpec) -> DataError:
    return DataError(
        f"{spec.name} holds test images only. Train on ImageNet and test on both: "
        f"dataset=imagenet1k dataset.shifts=[{spec.name}]"
    )


class DecodedImages:
    """Images that are decoded when they are read; a million of them would fill a disk."""

    waits, dtype = True, np.dtype(np.uint8)

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.preprocessing = preprocessing
        self.shape = (len(paths), preprocessing.size, preprocessing.size, 3)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """(N, S, S, 3) uint8."""
        return take(self, np.arange(len(self))[rows])

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        """Decode the images at `index` (B,) into `out` (B, S, S, 3) uint8, in threads."""

        def decode(place: int) -> None:
            path = self.paths[index[place]]
            picture = images.decode(path, str(path))
            out[place] = images.to_square(picture, self.preprocessing)

        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            for _ in pool.map(decode, range(len(index))):
                pass


@dataclass(frozen=True, eq=False)
class ShiftSet:
    """Test images of one shift, with the classes of the model that they may be."""

    name: str  # "imagenet_a", or "imagenet_c/fog/3"
    images: DecodedImages
    labels: np.ndarray  # (N,) int64, positions in `classes`
    classes: np.ndarray  # numbers of the model's classes; the logits of others are left out


def load_shift(
    spec: DatasetSpec, class_names: Sequence[str], preprocessing: Preprocessing
) -> Iterator[ShiftSet]:
    """The parts of a shift set: one, or 75 of ImageNet-C.

    Args:
        spec: the shift set; `spec.root` is its folder or the one for all data.
        class_names: of the data set that the model was trained on, in the order of its logits.
        preprocessing: as of the test images of that data set.

    Raises:
        DataError: it is absent, incomplete, or has classes that the model does not know.
    """
    for name, place in _places(spec, find_shift(spec)).items():
        yield _part(spec, name, place, class_names, preprocessing)


def list_shift(spec: DatasetSpec) -> Listing:
    """The images of a shift set, all of them hashed; nothing of it trains.

    Raises:
        DataError: it is absent or incomplete.
    """
    home = find_shift(spec)
    pictures = FilePictures(home)
    class_names: tuple[str, ...] = ()
    covered = {}
    for name, place in _places(spec, home).items():
        folder, classes = _inside(place)
        rows = images_of(home, folder, classes)
        _check_counts(spec, name, folder, classes, rows)
        class_names = class_names or classes
        names = tuple(path for path, _ in rows)
        split = name.removeprefix(f"{spec.name}/") if corrupted(spec) else "test"
        labels = tuple(label for _, label in rows)
        covered[split] = SplitList(names, labels, pictures.digests(names))
    nothing = SplitList((), (), ())

    def refuse(part: SplitList, preprocessing: Preprocessing, split: str) -> np.ndarray:
        raise _test_only(spec)

    return Listing(
        title=spec.facts.title,
        suite=spec.suite,
        suite_version=spec.suite_version,
        group=spec.group,
        licence=spec.facts.licence,
        source=f"{spec.facts.source}; read from {home}",
        notice="",
        class_names=class_names,
        train=nothing,
        val=nothing,
        test=covered.get("test", nothing),
        manifest=rollup_of(covered, ""),
        decode=refuse,
        home=Home(home, "class folders", pictures, covered=covered),
    )


def _places(spec: DatasetSpec, home: Path) -> dict[str, Path]:
    """Folders of a shift set by the name of their part: one, or 75 of ImageNet-C."""
    if not corrupted(spec):
        return {spec.name: home}
    places = {f"{c}/{s}": home / c / s for c in ALEXNET for s in SEVERITIES}
    lacking = [name for name, place in places.items() if not place.is_dir()]
    if lacking:
        raise DataError(
            f"{spec.name}: {home} lacks {len(lacking)} of {len(places)} folders, first "
            f"{lacking[0]}. Its mean counts {len(ALEXNET)} corruptions in {len(SEVERITIES)} "
            "severities; unpack them all."
        )
    return {f"{spec.name}/{name}": place for name, place in places.items()}


def corrupted(spec: DatasetSpec) -> bool:
    """Whether the set has corruptions and severities, and a mean corruption error."""
    return spec.name == "imagenet_c"


def find_shift(spec: DatasetSpec) -> Path:
    """The folder of a shift set."""
    root = Path(spec.root).expanduser().absolute() if spec.root else None
    known = [root / name for name in spec.facts.folders] if root is not None else []
    folders = [folder for folder in known if folder.is_dir()]
    if len(folders) > 1:
        raise Ambiguous(
            f"{spec.name} is there {len(folders)} times: {', '.join(map(str, folders))}. Keep one."
        )
    if folders:
        return folders[0]
    kind = "<corruption>/<severity>/<class>/" if corrupted(spec) else "<class>/"
    raise Absent(
        f"{spec.name} is not in {root}: looked for {', '.join(spec.facts.folders)}, with the "
        f"images in {kind}. Get it: {spec.facts.source}. peftbench data prepare {spec.name} "
        "fetches it or says how. data_dir=DIR or PEFTBENCH_DATA names the folder."
    )


def whereabouts(spec: DatasetSpec) -> str:
    """Whether a shift set is on this machine, judged by the name of its folder."""
    try:
        return f"yes ({find_shift(spec).name})"
    except Ambiguous:
        return "twice"
    except Absent:
        return "no"


def _part(
    spec: DatasetSpec,
    name: str,
    folder: Path,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
) -> ShiftSet:
    folder, classes = _inside(folder)
    number = {class_name: i for i, class_name in enumerate(class_names)}
    if all(class_name.isdecimal() for class_name in classes):
        number = {str(i): i for i in range(len(class_names))}
    strange = [class_name for class_name in classes if class_name not in number]
    if strange:
        raise DataError(
            f"{name}: {len(strange)} of {len(classes)} class folders in {folder} are no classes of "
            f"the training set, first {strange[0]!r}. Both must be named as ImageNet's synsets."
        )
    rows = images_of(folder, folder, classes)
    _check_counts(spec, name, folder, classes, rows)
    return ShiftSet(
        name,
        DecodedImages([folder / path for path, _ in rows], preprocessing),
        np.asarray([label for _, label in rows], dtype=np.int64),
        np.asarray([number[class_name] for class_name in classes], dtype=np.int64),
    )


def _inside(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder of the class folders, and their names; archives often hold one folder more."""
    inner = folders(folder)
    if len(inner) == 1 and folders(inner[0]):
        folder = inner[0]
    return folder, class_folders(folder)


def _check_counts(
    spec: DatasetSpec,
    name: str,
    folder: Path,
    classes: Sequence[str],
    rows: Sequence[tuple[str, int]],
) -> None:
    for what, count, expected in (
        ("class folders", len(classes), spec.facts.classes),
        ("images", len(rows), spec.facts.test),
    ):
        if expected is not None and count != expected:
            raise DataError(
                f"{name} has {count:,} {what} in {folder}, and {expected:,} are published. It is "
                "incomplete or another version."
            )
