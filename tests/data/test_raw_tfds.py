"""VTAB-1k from folders that TensorFlow Datasets has prepared: slices by position, VTAB's labels."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import raw_trees as trees
from PIL import Image
from raw_trees import COUNTS, Feature, rows_of

from peftbench.config.build import dataset_specs
from peftbench.data.raw import Raw, build, shards, tfds, tfrecord, writing
from peftbench.errors import DataError

Row = dict[str, Feature]


def jpeg(number: int) -> Row:
    return {"image": trees.encoded(number), "label": number % 5, "file_name": b"%d.jpg" % number}


def png(number: int) -> Row:
    return {"image": trees.encoded(number, "PNG"), "label": number % 2, "id": b"train_%d" % number}


def png_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def norb(number: int) -> Row:
    first, second = (trees.noise(number + camera)[..., 0] for camera in (0, 1000))
    return {
        "image": png_of(first),
        "image2": png_of(second),
        "label_azimuth": number % 18,
        "label_category": 4,
        "label_elevation": number % 9,
    }


def sprite_pixels(number: int) -> np.ndarray:
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[number : number + 20, 5:30] = 1
    return pixels


def sprite(number: int) -> Row:
    return {
        "image": png_of(sprite_pixels(number)),
        "label_orientation": 39 - number % 40,
        "label_x_position": 31 - number % 32,
        "value_x_position": 0.25,
    }


# depths of the closest object, on both sides of the borders, and their classes
DEPTHS = {7.25: 0, 8.0: 0, 8.01: 1, 8.5: 1, 8.51: 2, 9.0: 2, 9.01: 3, 9.5: 3, 9.51: 4, 10.0: 4,
          10.01: 5}  # fmt: skip


def scene(number: int) -> Row:
    depth = list(DEPTHS)[number % 11]
    depths = [depth + 3, depth, depth + 1, *[depth + 2] * (number % 8)]
    coordinates = [value for d in depths for value in (11.0, 0.5, d)]
    return {
        "image": trees.encoded(number, "PNG"),
        "objects/pixel_coords": coordinates,
        "objects/3d_coords": [-5.0] * len(coordinates),
        "objects/size": [1] * len(depths),
        "question_answer/question": [b"how many?", b"what?"],
    }


# types and z of objects; car, van and truck are 0, 1 and 2; and the class of such an image
STREETS: list[tuple[list[tuple[int, float]], int]] = [
    ([(0, 8.0), (1, 50.0)], 0), ([(3, 1.0), (1, 8.01)], 1), ([(2, 20.0)], 1), ([(0, 20.01)], 2),
    ([(3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0), (7, 1.0)], 3), ([], 3), ([(1, 999.0)], 2),
]  # fmt: skip


def street(number: int) -> Row:
    objects, _ = STREETS[number % 7]
    return {
        "image": trees.encoded(number, "PNG"),
        "image/file_name": b"%06d.png" % number,
        "objects/location": [value for _, z in objects for value in (-3.5, -9.0, z)],
        "objects/type": [kind for kind, _ in objects],
        "objects/bbox": [0.5] * 4 * len(objects),
    }


@dataclass(frozen=True)
class Case:
    """A task in TFDS: splits that it has, a row by its number, and what VTAB makes of that row.

    `portions` are the split, start and stop of train, val and test.
    """

    name: str
    version: str
    sizes: dict[str, int]
    portions: Sequence[tuple[str, int, int]]
    row: Callable[[int], Row] = jpeg
    label: Callable[[int], int] = lambda number: number % 5
    config: str = ""
    pixels: Callable[[int], np.ndarray] | None = None


OWN = {
    "sizes": {"test": 5, "train": 8, "validation": 4},
    "portions": [("train", 0, 8), ("validation", 0, 4), ("test", 0, 5)],
}
NINETY = {  # 90 % of 33 is 29.7
    "sizes": {"train": 33, "test": 5},
    "portions": [("train", 0, 29), ("train", 29, 33), ("test", 0, 5)],
}
SIXTY = {  # 60 % of 24 is 14.4, and 20 % is 4.8
    "sizes": {"train": 24},
    "portions": [("train", 0, 14), ("train", 14, 18), ("train", 18, 24)],
}
NORB = {
    "sizes": {"train": 7, "test": 13},
    "portions": [("train", 0, 7), ("test", 0, 6), ("test", 6, 13)],
    "row": norb,
}
SPRITES = {  # 80 % and 10 % of 41
    "sizes": {"train": 41},
    "portions": [("train", 0, 32), ("train", 32, 36), ("train", 36, 41)],
    "row": sprite,
    "pixels": lambda number: trees.grey(sprite_pixels(number) * np.uint8(255)),
}
CLEVR = {
    "sizes": {"train": 33, "validation": 11, "test": 2},
    "portions": [("train", 0, 29), ("train", 29, 33), ("validation", 0, 11)],
    "row": scene,
}
PETS = {  # 80 % of 22 is 17.6
    "sizes": {"train": 22, "test": 5},
    "portions": [("train", 0, 17), ("train", 17, 22), ("test", 0, 5)],
}
PNG = {"row": png, "label": lambda number: number % 2}

CASES = {
    "caltech101": Case("caltech101", "3.0.1", **NINETY),
    "cifar100": Case("cifar100", "3.0.2", **NINETY, **PNG),
    "clevr_count": Case("clevr", "3.1.0", **CLEVR, label=lambda n: n % 8),
    "clevr_distance": Case(
        "clevr", "3.1.0", **CLEVR, label=lambda n: list(DEPTHS.values())[n % 11]
    ),
    "dmlab": Case("dmlab", "2.0.1", **OWN),
    "dsprites_location": Case("dsprites", "2.0.0", **SPRITES, label=lambda n: (31 - n % 32) // 2),
    "dsprites_orientation": Case(
        "dsprites", "2.0.0", **SPRITES, label=lambda n: 2 * (39 - n % 40) // 5
    ),
    "dtd": Case("dtd", "3.0.1", **OWN),
    "eurosat": Case("eurosat", "2.0.0", **SIXTY, config="rgb"),
    "flowers102": Case("oxford_flowers102", "2.1.1", **OWN),
    "kitti": Case("kitti", "3.2.0", **OWN, row=street, label=lambda n: STREETS[n % 7][1]),
    "patch_camelyon": Case("patch_camelyon", "2.0.0", **OWN, **PNG),
    "pets": Case("oxford_iiit_pet", "3.2.0", **PETS),
    "resisc45": Case("resisc45", "3.0.0", **SIXTY),
    "retinopathy": Case("diabetic_retinopathy_detection", "3.0.0", **OWN, config="btgraham-300"),
    "smallnorb_azimuth": Case("smallnorb", "2.0.0", **NORB, label=lambda n: n % 18),
    "smallnorb_elevation": Case("smallnorb", "2.0.0", **NORB, label=lambda n: n % 9),
    "sun397": Case("sun397", "4.0.0", **OWN, config="tfds"),
    "svhn": Case("svhn_cropped", "3.0.0", **NINETY, **PNG),
}


def numbers(case: Case) -> dict[str, range]:
    """Numbers of the rows of each split; no two splits share one."""
    return {
        split: range(100 * i, 100 * i + count)
        for i, (split, count) in enumerate(case.sizes.items())
    }


def write(folder: Path, task: str, version: str = "") -> Path:
    case = CASES[task]
    rows = {split: [case.row(n) for n in chosen] for split, chosen in numbers(case).items()}
    return trees.tfds(folder, case.name, case.config, version or case.version, rows)


def lowered(task: str, folder: Path) -> tuple[Raw, Path]:
    """The form of a task that is found in a folder, cut into a handful of images."""
    found = tfds.folder_of(task, folder)
    assert found is not None
    raw = tfds.raw_form(task, found)
    return replace(raw, splits=functools.partial(raw.splits, counts=COUNTS)), found.folder


def make(task: str, folder: Path, target: Path) -> tuple[str, ...]:
    raw, place = lowered(task, folder)
    return writing.write(raw, place, target)


def reworded(place: Path, change: Callable[[dict], object]) -> None:
    path = place / shards.INFO
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def test_all_tasks_of_vtab_are_read() -> None:
    tasks = {name.removeprefix("vtab/") for name in dataset_specs(None) if name.startswith("vtab/")}
    assert set(CASES) == set(tfds.FORMS) == tasks
    for name, spec in dataset_specs(None).items():
        if name.startswith("vtab/"):
            assert tfds.FORMS[name.removeprefix("vtab/")].classes == spec.facts.classes


@pytest.mark.parametrize("task", CASES)
def test_a_prepared_folder_becomes_vtab_1k(tmp_path: Path, task: str) -> None:
    case, target = CASES[task], tmp_path / "out"
    write(tmp_path / "data", task)
    notes = make(task, tmp_path / "data", target)
    title = f"{case.name}/{case.config}" if case.config else case.name
    assert notes[0] == f"read from {title} {case.version} of TensorFlow Datasets"
    wanted = {
        name: list(numbers(case)[split][start:stop][:count])
        for (name, count), (split, start, stop) in zip(
            {"train800": COUNTS.train, "val200": COUNTS.val, "test": None}.items(),
            case.portions,
            strict=True,
        )
    }
    wanted["train800val200"] = wanted["train800"] + wanted["val200"]
    for name, rows in wanted.items():
        found = rows_of(target, name)
        assert [label for _, label in found] == [case.label(number) for number in rows], name
        for (path, _), number in zip(found, rows, strict=True):
            if case.pixels is None:
                assert path.read_bytes() == case.row(number)["image"]
                continue
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), case.pixels(number))


def test_every_level_of_folders_is_found(tmp_path: Path) -> None:
    place = write(tmp_path, "eurosat")
    levels = (tmp_path, place.parents[1], place.parent, place)
    for folder in levels:
        found = tfds.folder_of("eurosat", folder)
        assert found is not None
        assert (found.folder, found.title) == (place, "eurosat/rgb 2.0.0")
    reworded(place, lambda info: info.pop("configName"))
    assert tfds.folder_of("eurosat", place) == found
    # one that is being prepared, and archives, are no versions
    shutil.move(place, place.with_name("2.0.0.incompleteXYZ"))
    assert tfds.folder_of("eurosat", tmp_path) is None
    assert tfds.folder_of("nothing", tmp_path) is None
    with pytest.raises(
        DataError, match=r"eurosat is incomplete: in .*2750/ or EuroSAT/2750/ is mis"
    ):
        build("eurosat", tmp_path, tmp_path / "out")


def test_what_cannot_be_built_from_archives_asks_for_a_prepared_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        build("retinopathy", tmp_path, tmp_path / "out")
    assert str(caught.value).endswith(
        "What would do: diabetic_retinopathy_detection/btgraham-300/<version>/ of TensorFlow "
        f"Datasets, which is not in {tmp_path}."
    )
    write(tmp_path, "caltech101")
    with pytest.raises(DataError, match=r"800 images are needed from records 0 to 29 of the split"):
        build("caltech101", tmp_path, tmp_path / "out")


def test_another_version_is_told(tmp_path: Path) -> None:
    write(tmp_path, "pets", "4.0.0")
    notes = make("pets", tmp_path, tmp_path / "out")
    assert notes[0] == (
        "read from oxford_iiit_pet 4.0.0 of TensorFlow Datasets, which is not version 3.2.0 that "
        "the recipe of VPT names"
    )
    source = json.loads((tmp_path / "out" / writing.VTAB_SOURCE).read_text())
    assert tuple(source["notes"]) == notes
    assert any(note.startswith("JPEG files are copied byte for byte; Pillow") for note in notes)


def test_of_several_versions_the_complete_one_is_taken(tmp_path: Path) -> None:
    old, new = (write(tmp_path, "dtd", version) for version in ("3.0.0", "3.0.1"))
    with pytest.raises(DataError) as caught:
        build("dtd", tmp_path, tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path} holds several versions of dtd: 3.0.0, 3.0.1. Name the folder of one, such as "
        f"{new}."
    )
    assert lowered("dtd", old)[1] == old
    (new / "dtd-test.tfrecord-00001-of-00004").unlink()
    assert lowered("dtd", tmp_path)[1] == old
    (old / "dtd-test.tfrecord-00001-of-00004").unlink()
    with pytest.raises(
        DataError, match=r"dtd: 3\.0\.0 \(incomplete\), 3\.0\.1 \(incomplete\)\. Na"
    ):
        build("dtd", tmp_path, tmp_path / "out")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    place = write(tmp_path, "clevr_count")
    (place / "clevr-train.tfrecord-00003-of-00004").unlink()
    with pytest.raises(DataError) as caught:
        build("clevr_count", tmp_path, tmp_path / "out")
    assert str(caught.value) == (
        f"clevr_count is incomplete: in {place}, dataset_info.json, "
        "clevr-train.tfrecord-00000-of-00004, clevr-train.tfrecord-00001-of-00004, "
        "clevr-train.tfrecord-00002-of-00004 and 4 more are there and "
        "clevr-train.tfrecord-00003-of-00004 is missing. What would do: clevr/<version>/ of "
        "TensorFlow Datasets, with dataset_info.json and all shards."
    )
    write(tmp_path, "clevr_count")
    (place / "clevr-test.tfrecord-00003-of-00004").unlink()  # VTAB does not use that split
    make("clevr_count", tmp_path, tmp_path / "out")


def test_another_data_set_is_named(tmp_path: Path) -> None:
    place = write(tmp_path, "svhn")
    for folder in (place, place.parent):
        with pytest.raises(DataError) as caught:
            build("cifar100", folder, tmp_path / "out")
        assert str(caught.value) == (
            f"{folder} holds svhn_cropped 3.0.0 of TensorFlow Datasets, and cifar100 is asked for. "
            "Name its folder."
        )
    shutil.move(write(tmp_path, "eurosat").parent, tmp_path / "eurosat" / "all")
    reworded(tmp_path / "eurosat" / "all" / "2.0.0", lambda info: info.update(configName="all"))
    with pytest.raises(
        DataError, match=r"holds eurosat/all 2\.0\.0 of .* and eurosat/rgb is asked"
    ):
        build("eurosat", tmp_path, tmp_path / "out")


def test_lengths_are_held_against_the_shards(tmp_path: Path) -> None:
    place = write(tmp_path, "dmlab")
    reworded(place, lambda info: info["splits"][2].update(shardLengths=["0", "2", "0", "2"]))
    message = (
        r"dmlab-validation\.tfrecord-00001-of-00004 has 1 records, and dataset_info\.json beside "
        r"it says 2\. Prepare dmlab 2\.0\.1 again, or copy"
    )
    with pytest.raises(DataError, match=message):
        make("dmlab", tmp_path, tmp_path / "out")


def test_descriptions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    place = write(tmp_path, "dtd")
    whole = (place / shards.INFO).read_text()
    cases: dict[str, Callable[[dict], object]] = {
        r"stored as array_record, named .*, and only tfrecord": lambda i: i.update(
            fileFormat="array_record"
        ),
        r"and \{SPLIT\}\.x, and only": lambda i: i["splits"][0].update(
            filepathTemplate="{SPLIT}.x"
        ),
        r"names no shards of the split train; its splits are test, validation": lambda i: i[
            "splits"
        ].pop(1),
        r"names no shards of the split test; ": lambda i: i["splits"][0].pop("shardLengths"),
        r"does not describe a prepared data set: .*'\.\./a'": lambda i: i.update(name="../a"),
        r"does not describe a prepared data set: Attr": lambda i: i.update(splits=[1]),
        r"does not describe a prepared data set: Val": lambda i: i["splits"][0].update(
            shardLengths=["-1"]
        ),
    }
    for message, change in cases.items():
        (place / shards.INFO).write_text(whole)
        reworded(place, change)
        with pytest.raises(DataError, match=message):
            build("dtd", tmp_path, tmp_path / "out")
    (place / shards.INFO).write_text(whole[:-9])
    with pytest.raises(
        DataError, match=r"dataset_info\.json does not describe a prepared data set"
    ):
        build("dtd", tmp_path, tmp_path / "out")


def test_damage_is_named_where_it_is_used(tmp_path: Path) -> None:
    place = write(tmp_path, "svhn")
    path = place / "svhn_cropped-train.tfrecord-00003-of-00004"  # records 11 to 32 of train
    whole = path.read_bytes()
    places = list(tfrecord.spans(path))

    def damaged(number: int) -> None:
        at = places[number].start + 100
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])

    damaged(18)  # the first of val
    with pytest.raises(
        DataError, match=r"-00003-of-00004, record 18 at byte .*: its data do not m"
    ):
        make("svhn", tmp_path, tmp_path / "out")
    damaged(17)
    make("svhn", tmp_path, tmp_path / "out")  # VTAB-1k has no use for it
    path.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"record 21 at byte .*: the file ends inside it"):
        make("svhn", tmp_path, tmp_path / "again")
    # as complete as it says, and of another kind
    cut = place / "svhn_cropped-test.tfrecord-00001-of-00004"
    path.write_bytes(whole)
    reasons: dict[str, Row] = {
        "it has no feature label": {"image": b""},
        "the feature label does not hold int": {"image": b"", "label": b"3"},
        "the feature label holds 2 values, not one": {"image": b"", "label": [3, 4]},
    }
    for reason, row in reasons.items():
        cut.write_bytes(trees.record(trees.example(row)))
        message = rf"00001-of-00004, record 0: not as svhn_cropped of .* has it: {reason}\. Prepare"
        with pytest.raises(DataError, match=message):
            make("svhn", tmp_path, tmp_path / "again")
    cut.write_bytes(trees.record(trees.example({"image": b"", "label": 10})))
    with pytest.raises(
        DataError, match=r"record 0 of the split test has the class 10, and there a"
    ):
        make("svhn", tmp_path, tmp_path / "again")


def test_only_shards_that_are_used_are_opened(tmp_path: Path) -> None:
    place = write(tmp_path, "resisc45")
    path = place / "resisc45-train.tfrecord-00001-of-00004"
    shutil.copy(place / "resisc45-train.tfrecord-00003-of-00004", path)
    reworded(place, lambda info: info["splits"][0].update(shardLengths=["0", "16", "0", "16"]))
    (place / "resisc45-train.tfrecord-00002-of-00004").write_bytes(b"never read")
    make("resisc45", tmp_path, tmp_path / "out")


def test_records_of_other_shapes_are_refused() -> None:
    cases: list[tuple[Callable[[dict], int], Row, str]] = [
        (tfds.FORMS["clevr_count"].label, {"objects/pixel_coords": [1.0] * 4}, "holds 4 numbers"),
        (
            tfds.of_vehicles,
            {"objects/type": [1, 2], "objects/location": [1.0] * 3},
            "it has 2 types of objects and 1 locations",
        ),
        (tfds.of_vehicles, {"objects/type": [1], "objects/location": [1]}, "does not hold float"),
    ]
    for label, row, message in cases:
        with pytest.raises(ValueError, match=message):
            label(tfrecord.example(trees.example(row)))
    with pytest.raises(ValueError, match=r"\(64, 64, 3\) with values up to 255"):
        tfds.mask(png_of(sprite_pixels(3) * np.uint8(255)))
    with pytest.raises(ValueError, match=r"\(8, 8, 3\)"):
        tfds.mask(png_of(np.zeros((8, 8), dtype=np.uint8)))
    assert tfds.FORMS["clevr_distance"].label({"objects/pixel_coords": []}) == -1


def test_grey_pictures_are_read_with_three_equal_channels(tmp_path: Path) -> None:
    write(tmp_path, "smallnorb_azimuth")
    make("smallnorb_azimuth", tmp_path, tmp_path / "out")
    path, _ = rows_of(tmp_path / "out", "test")[0]
    read = np.asarray(tfds.images.decode(path, "here"))
    first = numbers(CASES["smallnorb_azimuth"])["test"][6]
    assert np.array_equal(read, trees.grey(trees.noise(first)[..., 0]))
