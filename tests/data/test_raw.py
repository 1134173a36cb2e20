"""VTAB-1k from raw archives: the order of TensorFlow Datasets, VTAB's labels, every true format."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import raw_trees as trees
from make_raw_order import GOLDEN, KEYS, devkit, digest
from PIL import Image
from raw_trees import COUNTS, Expected, rows_of
from trees import SIZE

from peftbench import data
from peftbench.config.build import dataset_specs
from peftbench.data.raw import (
    LEFT_OUT,
    RAW,
    Raw,
    build,
    clevr,
    dsprites,
    kitti,
    smallnorb,
    sun397,
    svhn,
    tfrecord,
    writing,
)
from peftbench.data.raw.base import Records, SplitCounts, cut_one, cut_own, cut_tail
from peftbench.data.raw.order import shuffled
from peftbench.errors import DataError, UnknownName
from peftbench.spec import Phase

pytestmark = pytest.mark.usefixtures("forked_matlab")  # flowers and SVHN are given out in it

TFDS = json.loads(GOLDEN.read_text(encoding="utf-8"))
LISTS = {"train800": 6, "val200": 3, "test": None}


@pytest.mark.parametrize("name", KEYS)
def test_the_order_is_that_of_tensorflow_datasets(name: str) -> None:
    split, keys = KEYS[name]
    order = shuffled(split, keys()).tolist()
    golden = TFDS["orders"][name]
    assert (len(order), order[:20]) == (golden["count"], golden["first"])
    assert digest(order) == golden["sha256"]


def test_the_plain_order_of_these_tests_is_that_of_tensorflow_datasets_too() -> None:
    for name in ("smallnorb_test", "kitti", "bytes"):
        split, keys = KEYS[name]
        rows = [trees.Row(key, number, b"") for number, key in enumerate(keys())]
        order = [row.label for row in trees.ordered(split, rows)]
        assert digest(order) == TFDS["orders"][name]["sha256"]


def test_the_val_images_of_clevr_end_as_vpt_publishes_them() -> None:
    # vtab_trainval_splits.json of VPT, made with TensorFlow Datasets 4.4
    split, keys = KEYS["clevr"]
    names = keys()
    ends = [names[row] for row in shuffled(split, names)[63_195:63_200]]
    numbers = ("059928", "006608", "021164", "054142", "047496")
    assert ends == [f"CLEVR_train_{number}.png" for number in numbers]


def test_a_key_that_comes_twice_is_named() -> None:
    with pytest.raises(DataError, match=r"split train holds the record 'b\.png' twice"):
        shuffled("train", ["a.png", "b.png", "c.png", "b.png"])


def test_videos_are_split_as_tensorflow_datasets_splits_them() -> None:
    rand, mapping = devkit()
    parts = kitti.by_video([int(n) for n in rand.split(",")], mapping.splitlines())
    for split, golden in TFDS["kitti_videos"].items():
        ids = parts[split]
        assert (len(ids), ids[:20]) == (golden["count"], golden["first"]), split
        assert digest(ids) == golden["sha256"], split


# Labels, by hand from section 2 of the protocols: every bin at its edges.


def test_labels_of_dsprites() -> None:
    assert [dsprites.location(x) for x in (0, 1, 2, 3, 29, 30, 31)] == [0, 0, 1, 1, 14, 15, 15]
    by_step = [dsprites.orientation(step) for step in range(40)]
    assert by_step[:10] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert by_step[-5:] == [14, 14, 14, 15, 15]
    assert [by_step.count(label) for label in range(16)] == [3, 2] * 8


def test_labels_of_smallnorb_and_svhn() -> None:
    assert [smallnorb.azimuth(v) for v in (0, 2, 34, 36, 33)] == [0, 1, 17, 18, -1]
    assert [smallnorb.elevation(v) for v in (0, 8)] == [0, 8]
    assert [svhn.digit(v) for v in (1, 9, 10, 0, 11)] == [1, 9, 0, -1, -1]


def test_labels_of_clevr() -> None:
    assert [clevr.count([9.0] * n) for n in (2, 3, 10, 11)] == [-1, 0, 7, 8]
    edges = {
        0.5: 0, 7.99: 0, 8.0: 0, 8.01: 1, 8.5: 1, 8.51: 2, 9.0: 2, 9.01: 3, 9.5: 3, 9.51: 4,
        10.0: 4, 10.01: 5, 100.0: 5,
    }  # fmt: skip
    for depth, label in edges.items():
        assert clevr.distance([depth + 3, depth, depth + 1]) == label, depth
    # beyond the outer limits there is no class, and what float32 rounds to a border stays below it
    assert clevr.distance([0.0]) == clevr.distance([]) == -1
    assert clevr.distance([100.5]) == 6
    assert clevr.distance([8.0 + 1e-9]) == 0


def test_labels_of_kitti() -> None:
    edges = {-99.0: 0, 8.0: 0, 8.01: 1, 20.0: 1, 20.01: 2, 999.0: 2, 999.5: 3, -100.0: -1}
    for z, label in edges.items():
        assert kitti.vehicle_distance(trees.kitti_line("Van", z)) == label, z
    assert kitti.vehicle_distance("") == 3
    others = "".join(
        trees.kitti_line(kind, 1.0)
        for kind in ("Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
    )
    assert kitti.vehicle_distance(others) == 3
    assert kitti.vehicle_distance(others + trees.kitti_line("Truck", 9.0)) == 1
    with pytest.raises(ValueError, match="3 fields in 'Car 0 0', not 15"):
        kitti.vehicle_distance("Car 0 0\n")


# Split arithmetic at the true sizes, from sections 1.1 and 1.2.


def records(split: str, count: int) -> Records:
    order = np.argsort(shuffled(split, range(count)))  # the label of a record is its place
    return Records("here", split, range(count), count, lambda row: int(order[row]), lambda row: b"")


def test_portions_are_those_of_vtab() -> None:
    one = cut_one(records("train", 27_000), 60, 20, SplitCounts())  # EuroSAT
    assert one["train800"].labels == tuple(range(800))
    assert one["val200"].labels == tuple(range(16_200, 16_400))
    assert one["test"].labels == tuple(range(21_600, 27_000))
    tail = cut_tail(records("train", 73_257), records("test", 26_032), 90, SplitCounts())  # SVHN
    assert tail["train800"].labels == tuple(range(800))
    assert tail["val200"].labels == tuple(range(65_931, 66_131))
    assert tail["test"].labels == tuple(range(26_032))
    parts = (
        records(split, n) for split, n in (("train", 6_347), ("validation", 423), ("test", 711))
    )
    own = cut_own(parts, SplitCounts())  # KITTI
    assert own["val200"].labels == tuple(range(200))
    assert [len(split.labels) for split in own.values()] == [800, 200, 711]


def test_too_few_records_are_an_error() -> None:
    message = r"here: 200 images are needed from records 1,790 to 1,989 of the split train"
    with pytest.raises(DataError, match=message):
        cut_tail(records("train", 1_989), records("test", 5), 90, SplitCounts(train=800, val=200))
    with pytest.raises(DataError, match=r"1 images are needed from records 0 to 0 of the split te"):
        cut_tail(records("train", 2_000), records("test", 0), 90, SplitCounts())


# Whole archives.


def small_devkit() -> tuple[tuple[str, str], dict[str, list[int]]]:
    """Thirty images of ten videos, and the splits that the function held against TFDS makes."""
    order = [1 + 7 * image % 30 for image in range(30)]
    lines = [f"2011_09_26 2011_09_26_drive_{n % 10:04d}_sync {n:010d}" for n in range(30)]
    parts = {k: list(v) for k, v in kitti.by_video(order, lines).items()}
    return (",".join(map(str, order)), "\n".join(lines)), parts


def write_kitti(folder: Path) -> Expected:
    texts, parts = small_devkit()
    return trees.kitti(folder, parts, texts)


def write_clevr_distance(folder: Path) -> Expected:
    borders = (8.0, 8.5, 9.0, 9.5, 10.0)
    return trees.clevr(folder, lambda depths: sum(min(depths) > border for border in borders))


WRITERS: dict[str, Callable[[Path], Expected]] = {
    "cifar100": trees.cifar100,
    "clevr_count": lambda f: trees.clevr(f, lambda depths: len(depths) - 3),
    "clevr_distance": write_clevr_distance,
    "dmlab": trees.dmlab,
    "dsprites_location": lambda f: trees.dsprites(f, 4, lambda x: x // 2),
    "dsprites_orientation": lambda f: trees.dsprites(f, 3, lambda step: 2 * step // 5),
    "dtd": trees.dtd,
    "eurosat": lambda f: trees.class_folders(f, "2750", trees.CLASSES["eurosat"], 3),
    "flowers102": trees.flowers102,
    "kitti": write_kitti,
    "patch_camelyon": trees.patch_camelyon,
    "pets": trees.pets,
    "resisc45": lambda f: trees.class_folders(f, "NWPU-RESISC45", trees.CLASSES["resisc45"], 1),
    "smallnorb_azimuth": lambda f: trees.smallnorb(f, 2, 2),
    "smallnorb_elevation": lambda f: trees.smallnorb(f, 1, 1),
    "svhn": trees.svhn,
}
h5py = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="h5py is optional")


def lowered(task: str, **changes: object) -> Raw:
    """The raw form of a task, cut into a handful of images."""
    raw = RAW[task]
    return replace(raw, splits=functools.partial(raw.splits, counts=COUNTS, **changes))


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[h5py] if t == "patch_camelyon" else []) for t in WRITERS]
)
def test_a_raw_archive_becomes_vtab_1k(tmp_path: Path, task: str) -> None:
    folder, target = tmp_path / "raw", tmp_path / "vtab" / task
    folder.mkdir()
    wanted = WRITERS[task](folder)
    raw = lowered(task)
    assert writing.write(raw, folder, target) == raw.notes
    wanted = {**wanted, "train800val200": wanted["train800"] + wanted["val200"]}
    for name, rows in wanted.items():
        found = rows_of(target, name)
        assert [label for _, label in found] == [row.label for row in rows], name
        for number, ((path, _), row) in enumerate(zip(found, rows, strict=True)):
            assert path.parent == target / "images" / name
            assert path.stem == f"{number:06d}"
            if isinstance(row.content, bytes):
                assert path.suffix in (".jpg", ".png")
                assert path.read_bytes() == row.content
            else:
                assert path.suffix == ".png"
                with Image.open(path) as image:
                    assert np.array_equal(np.asarray(image), row.content)
        assert len(list((target / "images" / name).iterdir())) == len(rows)
    union = rows_of(target, "train800val200")
    both = rows_of(target, "train800") + rows_of(target, "val200")
    assert all(a.samefile(b) for (a, _), (b, _) in zip(union, both, strict=True))
    assert not list(target.parent.glob(".*"))
    assert set(WRITERS) | {"sun397"} == set(RAW)


@h5py
def test_both_files_of_dsprites_give_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    trees.dsprites(folder, 4, lambda x: x // 2)
    writing.write(lowered("dsprites_location"), folder, tmp_path / "npz")
    trees.dsprites_hdf5(folder)
    writing.write(lowered("dsprites_location"), folder, tmp_path / "hdf5")
    made = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "npz", tmp_path / "hdf5")
    ]
    assert made[0] == made[1]
    assert len(made[0]) == 2 * (COUNTS.train + COUNTS.val) + 5 + 5  # test; four lists and one more


def test_every_task_of_vtab_is_built_or_left_out_with_a_reason() -> None:
    tasks = {name.removeprefix("vtab/") for name in dataset_specs(None) if name.startswith("vtab/")}
    assert set(RAW) | set(LEFT_OUT) == tasks
    assert all(raw.notes and raw.about and raw.needs for raw in map(RAW.__getitem__, RAW))
    with pytest.raises(
        DataError, match=r"retinopathy cannot be built from its archive: its images"
    ):
        build("retinopathy", Path("raw"), Path("target"))
    with pytest.raises(UnknownName, match=r"Unknown raw task 'dsprites'"):
        build("dsprites", Path("raw"), Path("target"))


def test_the_built_folder_is_read(tmp_path: Path) -> None:
    folder, target = tmp_path / "raw", tmp_path / "vtab" / "pets"
    folder.mkdir()
    wanted = trees.pets(folder)
    writing.write(lowered("pets"), folder, target)
    spec = dataset_specs(str(tmp_path))["vtab/pets"]
    facts = replace(spec.facts, train=6, val=3, test=len(wanted["test"]))
    spec = data.identify(replace(spec, facts=facts))
    final = data.load(spec, Phase.FINAL, SIZE)
    labels = [row.label for row in wanted["train800"] + wanted["val200"]]
    assert final.train.labels.tolist() == labels
    assert data.load(spec, Phase.TUNE, SIZE).report.labels.tolist() == labels[6:]
    _, tested = final.report.open_once()
    assert tested.tolist() == [row.label for row in wanted["test"]]
    assert final.notes[:2] == ("read as vtab1k", RAW["svhn"].notes[0])


# Interruptions.


@dataclasses.dataclass
class Stopping:
    """Splits of a raw form that counts its images and stops once."""

    raw: Raw
    stop: int
    made: int = 0

    def splits(self, folder: Path) -> dict:
        def counted(image: Callable, position: int) -> object:
            if self.made == self.stop:
                self.stop = -1
                raise KeyboardInterrupt
            self.made += 1
            return image(position)

        return {
            name: replace(split, image=functools.partial(counted, split.image))
            for name, split in self.raw.splits(folder).items()
        }


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    trees.svhn(folder)
    raw = lowered("svhn")
    writing.write(raw, folder, tmp_path / "whole")
    stopping = Stopping(raw, stop=8)
    halting = replace(raw, splits=stopping.splits)
    part = tmp_path / ".svhn.part"
    with pytest.raises(KeyboardInterrupt):
        writing.write(halting, folder, tmp_path / "svhn")
    assert len(list(part.glob("images/*/*.png"))) == 8
    assert not list(part.glob("*.txt")) and not (tmp_path / "svhn").exists()
    # a process that was killed while it wrote
    (part / "images" / "val200" / ".000002.png.77.tmp").write_bytes(b"half")
    writing.write(halting, folder, tmp_path / "svhn")
    assert stopping.made == 6 + 3 + 7  # none was made twice
    assert tree(tmp_path / "svhn") == tree(tmp_path / "whole")
    assert not part.exists()


def test_what_another_build_left_is_not_mixed_in(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    trees.svhn(folder)
    trees.cifar100(folder)
    stopping = Stopping(lowered("svhn"), stop=2)
    with pytest.raises(KeyboardInterrupt):
        writing.write(replace(stopping.raw, splits=stopping.splits), folder, tmp_path / "out")
    with pytest.raises(DataError, match=r"\.out\.part is what a build of another task .* cifar100"):
        writing.write(lowered("cifar100"), folder, tmp_path / "out")


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    trees.svhn(tmp_path)
    for name in ("folder", "link"):
        target = tmp_path / name
        target.mkdir() if name == "folder" else target.symlink_to(tmp_path / "nowhere")
        with pytest.raises(DataError, match=rf"{name} is there already, and svhn would be written"):
            writing.write(lowered("svhn"), tmp_path, target)
        assert not list(tmp_path.glob(".*.part"))


def test_files_are_copied_where_hard_links_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    folder = tmp_path / "raw"
    folder.mkdir()
    wanted = trees.svhn(folder)
    writing.write(lowered("svhn"), folder, tmp_path / "svhn")
    first, _ = rows_of(tmp_path / "svhn", "train800val200")[0]
    assert first.stat().st_nlink == 1
    with Image.open(first) as image:
        assert np.array_equal(np.asarray(image), wanted["train800"][0].content)


def test_a_disk_error_says_where_it_stopped_and_that_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    trees.pets(folder)
    for path in (folder / "images").glob("*test_*.jpg"):
        path.unlink()
    message = (
        r"pets stopped at .*British_Shorthair_test_\d\.jpg: No such file.* kept in .*pets\.part"
    )
    with pytest.raises(DataError, match=message):
        writing.write(lowered("pets"), folder, tmp_path / "pets")


# Archives that are not what they should be.


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "CLEVR_val_scenes.json").touch()
    with pytest.raises(DataError) as caught:
        build("clevr_count", tmp_path, tmp_path / "out")
    text = str(caught.value)
    assert text.startswith(
        f"clevr_count is incomplete: in {tmp_path}, scenes/CLEVR_val_scenes.json "
    )
    assert "images/train/ or CLEVR_v1.0/images/train/" in text
    assert "What would do: CLEVR_v1.0 as it unpacks" in text and "\n" not in text
    with pytest.raises(DataError, match=r"dmlab-test\.tfrecord\* are missing"):
        build("dmlab", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"nowhere is no folder\. What would do: SVHN"):
        build("svhn", tmp_path / "nowhere", tmp_path / "out")


def test_too_small_an_archive_is_named(tmp_path: Path) -> None:
    trees.svhn(tmp_path)
    with pytest.raises(
        DataError, match=r"train_32x32\.mat: 800 images are needed from records 0 t"
    ):
        build("svhn", tmp_path, tmp_path / "out")


def test_a_label_out_of_range_names_its_record(tmp_path: Path) -> None:
    trees.clevr(tmp_path, len)
    path = tmp_path / "CLEVR_v1.0" / "scenes" / "CLEVR_val_scenes.json"
    scenes = json.loads(path.read_text())
    scenes["scenes"][2] = trees.scene("CLEVR_val_000002.png", [9.0] * 11)
    path.write_text(json.dumps(scenes))
    message = (
        r"record 'CLEVR_val_000002\.png' of the split validation has the class 8, and .* are 8"
    )
    with pytest.raises(DataError, match=message):
        writing.write(lowered("clevr_count"), tmp_path, tmp_path / "out")
    scenes["scenes"].pop()
    path.write_text(json.dumps(scenes))
    with pytest.raises(DataError, match=r"describes 4, first difference CLEVR_val_000004\.png"):
        writing.write(lowered("clevr_count"), tmp_path, tmp_path / "out")
    path.write_text("{}")
    with pytest.raises(DataError, match=r"holds no scenes of CLEVR"):
        writing.write(lowered("clevr_count"), tmp_path, tmp_path / "out")


def test_a_damaged_dsprites_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / trees.DSPRITES

    def fails(message: str) -> None:
        with pytest.raises(DataError, match=message):
            writing.write(lowered("dsprites_location"), tmp_path, tmp_path / "out")
        shutil.rmtree(tmp_path / ".out.part", ignore_errors=True)

    factors = np.zeros((41, 6), dtype=np.int64)
    np.savez(path, imgs=np.full((41, 64, 64), 255, dtype=np.uint8), latents_classes=factors)
    fails("holds the value 255, and masks hold 0 and 1")
    np.savez(path, imgs=np.zeros((40, 64, 64), dtype=np.uint8), latents_classes=factors)
    fails(r"imgs is uint8 \(40, 64, 64\), and 41 images are labelled")
    np.savez(path, imgs=np.zeros((41, 64, 64), dtype=object), latents_classes=factors)
    fails(r"imgs.npy holds Python objects")
    np.savez(path, latents_classes=np.array([{}]), imgs=factors)
    fails(r"is not the published file: latents_classes.npy holds Python objects")
    np.savez(path, latents_classes=factors.astype(float), imgs=factors)
    fails(r"latents_classes is float64 \(41, 6\)")
    np.savez(path, latents_classes=factors + 32, imgs=factors)
    fails(r"has the class 16, and there are 16 from 0 on")
    trees.dsprites(tmp_path, 4, lambda x: x)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("imgs.npy").header_offset
    raw[start + 3000] ^= 255
    path.write_bytes(raw)
    fails(r"Cannot unpack .*\.npz into|is not the published file")


def test_a_damaged_matrix_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    whole = trees.matrix(np.arange(24, dtype=np.int32).reshape(2, 12))
    path.write_bytes(whole)
    assert smallnorb.read_matrix(path).tolist() == np.arange(24).reshape(2, 12).tolist()
    for damaged in (whole[:-4], whole[:9], b"\0" + whole[1:], whole + b"1234"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.mat is no whole matrix of SmallNORB"):
            smallnorb.read_matrix(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.mat is empty"):
        smallnorb.read_matrix(path)
    packed = tmp_path / "a.mat.gz"
    packed.write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(DataError, match=r"Cannot unpack .*a\.mat\.gz into"):
        smallnorb.read_matrix(packed)


def test_checksums_and_messages_of_tfrecord() -> None:
    # the check value of CRC-32C, and vectors of RFC 3720, B.4
    assert tfrecord.crc32c(b"123456789") == 0xE3069283
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA
    assert tfrecord.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert tfrecord.crc32c(bytes(range(32))) == 0x46DD794E
    generator = np.random.default_rng(0)
    for length in (0, 1, 127, 128, 129, 159, 160, 161, 1023, 1024, 1025, 9001):
        raw = generator.bytes(length)
        assert tfrecord.masked(tfrecord.crc32c(raw)) == trees.checksum(raw), length
    features = {"label": -3, "image": b"\x00\xff" * 200, "filename": "ä".encode()}
    for packed in (True, False):
        message = trees.example(features, packed)
        assert tfrecord.example(message) == {name: [value] for name, value in features.items()}
    lists = {
        "floats": [0.5, -8.25, 1e-3],
        "one": 7.5,
        "none": [],
        "ints": [-1, 300],
        "b": [b"", b"x"],
    }
    for packed in (True, False):
        found = tfrecord.example(trees.example(lists, packed))
        assert found["floats"] == [0.5, -8.25, float(np.float32(1e-3))]
        assert (found["one"], found["none"]) == ([7.5], [])
        assert (found["ints"], found["b"]) == ([-1, 300], [b"", b"x"])
    with pytest.raises(ValueError, match="a number is cut short"):
        content = trees.field(2, trees.field(1, b"\0" * 7))
        entry = trees.field(1, b"floats") + trees.field(2, content)
        tfrecord.example(trees.field(1, trees.field(1, entry)))
    for cut in (1, 3, 100):
        with pytest.raises(ValueError, match="cut short"):
            tfrecord.example(message[:-cut])
    with pytest.raises(ValueError, match="wire type 3"):
        tfrecord.example(b"\x0b")


def test_damaged_records_are_named(tmp_path: Path) -> None:
    trees.dmlab(tmp_path)
    path = tmp_path / "dmlab-validation.tfrecord"
    whole = path.read_bytes()
    second = 16 + int.from_bytes(whole[:8], "little")
    damages = {
        "its length does not match its checksum": bytes([whole[0] ^ 1]) + whole[1:],
        "its data do not match their checksum": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        "its length is cut short": whole[: second + 5],
        "the file ends inside it": whole[:-3],
    }
    for reason, damaged in damages.items():
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"validation\.tfrecord, record \d at byte .*{reason}"):
            writing.write(lowered("dmlab"), tmp_path, tmp_path / "out")
    for features in (
        {"label": 1, "filename": b"a"},
        {"label": b"1", "filename": b"a", "image": b""},
    ):
        path.write_bytes(trees.record(trees.example(features)))
        with pytest.raises(DataError, match=r"byte 12: no record of DMLab"):
            writing.write(lowered("dmlab"), tmp_path, tmp_path / "out")
    image = {"label": 1, "filename": b"a", "image": b"GIF89a"}
    records = (trees.example({**image, "filename": b"%d" % n}) for n in range(4))
    path.write_bytes(b"".join(map(trees.record, records)))
    with pytest.raises(DataError, match=r"begins with b'GIF89a', which is neither JPEG nor PNG"):
        writing.write(lowered("dmlab"), tmp_path, tmp_path / "out")


def test_without_h5py_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    for need in RAW["patch_camelyon"].needs:
        (tmp_path / need).touch()
    with pytest.raises(
        DataError, match=r"needs h5py\. Install it with: pip install 'peftbench\[da"
    ):
        build("patch_camelyon", tmp_path, tmp_path / "out")


def test_other_archives_that_do_not_fit_are_named(tmp_path: Path) -> None:
    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        "cifar100": (lambda f: trees.put(f / "test.bin", b"123"), r"test\.bin has 3 bytes"),
        "pets": (
            lambda f: trees.put(f / "annotations" / "test.txt", "a 1\n"),
            r"test\.txt, line 1: 'a 1' is not '<name> <breed> <species> <number>'",
        ),
        "dtd": (
            lambda f: trees.put(f / "dtd" / "labels" / "train1.txt", "banded/a.jpg\n"),
            r"the lists name 6 textures, and 47 are published",
        ),
        "eurosat": (lambda f: (f / "2750" / "Lake").mkdir(), r"has 11 class folders, and 10 are"),
        "kitti": (
            lambda f: trees.put(f / "mapping" / "train_rand.txt", "1,99"),
            r"train_rand\.txt and train_mapping\.txt do not map images to videos",
        ),
        "svhn": (
            lambda f: trees.savemat(f / "test_32x32.mat", {"y": [[1]], "X": np.zeros((2, 2))}),
            r"X is float64 \(2, 2\), not the 32x32 images of 1 labels",
        ),
        "flowers102": (
            lambda f: trees.savemat(f / "imagelabels.mat", {"labels": [1, 2]}),
            r"setid\.mat: trnid names image 3 of 2",
        ),
    }
    for task, (damage, message) in cases.items():
        folder = tmp_path / task
        folder.mkdir()
        WRITERS[task](folder)
        damage(folder)
        with pytest.raises(DataError, match=message):
            writing.write(lowered(task), folder, tmp_path / "out" / task)


# Sun397, whose images are encoded again.


def sun_tree(folder: Path) -> dict[str, list[str]]:
    places = ("/a/abbey", "/b/bar", "/c/church/outdoor")
    names = {
        "tr": [f"{place}/sun_{n:03d}.jpg" for place in places for n in range(3)],
        "va": [f"{place}/sun_{n:03d}.jpg" for place in places for n in (3, 4)],
        "te": [f"{place}/sun_{n:03d}.jpg" for place in places for n in (5,)],
    }
    for part, listed in names.items():
        for number, name in enumerate(listed):
            trees.put(folder / "SUN397" / name[1:], trees.encoded(number))
        extra = [*listed, sun397.IGNORED[0]] if part == "tr" else listed
        trees.put(folder / f"sun397_tfds_{part}.txt", "".join(f"{name}\n" for name in extra))
    return names


def test_sun397(tmp_path: Path) -> None:
    names = sun_tree(tmp_path)
    writing.write(lowered("sun397", classes=3), tmp_path, tmp_path / "out")
    places = sorted({name.rpartition("/")[0] for name in names["tr"]})
    for part, split, listed in (("tr", "train", "train800"), ("te", "test", "test")):
        rows = [trees.Row(n, places.index(n.rpartition("/")[0]), b"") for n in names[part]]
        wanted = trees.ordered(split, rows)[: LISTS[listed]]
        assert [label for _, label in rows_of(tmp_path / "out", listed)] == [
            row.label for row in wanted
        ]
    with pytest.raises(DataError, match=r"the lists name 3 places, and 397 are published"):
        writing.write(lowered("sun397"), tmp_path, tmp_path / "again")


def test_large_pictures_of_sun397_are_shrunk(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    ramp = np.broadcast_to(np.linspace(0, 255, 600, dtype=np.uint8)[None, :, None], (400, 600, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(path, quality=100)
    with Image.open(io.BytesIO(sun397.shrunk(path))) as image:
        assert image.size == (424, 283)  # 600 and 400 times sqrt(1/2), rounded
        line = np.asarray(image.convert("L"))[141].astype(int)
    assert np.abs(line - np.linspace(0, 255, 424)).max() <= 3
    # by hand: pixel centres 0.5 and 2.5 fall between two pixels each
    pixels = np.arange(0, 80, 10, dtype=np.uint8).reshape(2, 4, 1).repeat(3, axis=2)
    assert sun397.bilinear(pixels, (2, 1), 2.0)[..., 0].tolist() == [[25, 45]]
    # shrinking to a third takes the middle pixel, where a widening filter would mix all
    spikes = np.array([0, 255, 0, 90, 7, 90], dtype=np.uint8).reshape(1, 6, 1).repeat(3, axis=2)
    assert sun397.bilinear(spikes, (2, 1), 3.0)[..., 0].tolist() == [[255, 7]]


def test_importing_stays_light() -> None:
    code = "import sys, peftbench.data.raw; print({'scipy', 'h5py', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
