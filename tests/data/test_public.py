"""Public data sets: every layout gives the same tensors, and a wrong tree says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trees
from trees import SIZE, small

from peftbench import data
from peftbench.config.build import dataset_specs
from peftbench.data import public
from peftbench.data.layouts import LAYOUTS
from peftbench.errors import DataError, UnknownName
from peftbench.spec import DatasetSpec, Phase

pytestmark = pytest.mark.usefixtures("forked_matlab")  # flowers, dogs and cars have such lists

GAPS = (3, 17, 295)  # ids of classes that do not follow one another

# data set, folder below the one for all data, layout, and what writes it
TREES: list[tuple[str, str, str, Callable[[Path], None]]] = [
    ("vtab/cifar100", "vtab-1k/cifar", "vtab1k", trees.vtab1k),
    ("vtab/cifar100", "vtab/cifar100", "vtab1k", trees.vtab1k),  # V-PETL Bench
    ("vtab/smallnorb_azimuth", "smallnorb_azi", "vtab1k", trees.vtab1k),
    ("fgvc/cub200", "CUB_200_2011", "vpt_json", lambda f: trees.vpt_json(f, "images", (0, 1, 2))),
    ("fgvc/nabirds", "fgvc/nabirds", "vpt_json", lambda f: trees.vpt_json(f, "images", GAPS, True)),
    ("fgvc/stanford_dogs", "StanfordDogs", "vpt_json", lambda f: trees.vpt_json(f, "Images", GAPS)),
    ("fgvc/oxford_flowers", "OxfordFlower", "vpt_json", lambda f: trees.vpt_json(f, ".", GAPS)),
    ("fgvc/cub200", "CUB_200_2011", "cub", lambda f: trees.cub(f, (1, 2, 10), str)),
    ("fgvc/nabirds", "nabirds", "cub", lambda f: trees.cub(f, GAPS, lambda n: f"00{n:02x}-f1-4d")),
    ("fgvc/oxford_flowers", "oxford_flowers", "flowers", trees.flowers),
    ("fgvc/stanford_dogs", "stanford_dogs", "dogs", lambda f: trees.dogs(f, ".")),
    ("fgvc/stanford_dogs", "stanforddogs", "dogs", lambda f: trees.dogs(f, "lists")),
    ("fgvc/stanford_cars", "stanford_cars", "cars", trees.cars),
    (
        "fgvc/stanford_cars",
        "stanford_cars",
        "imagefolder",  # numbered classes, in the order of the numbers
        lambda f: trees.imagefolder(
            f, {"train": ["train", "val"], "val": ["test"]}, ("1", "2", "10")
        ),
    ),
    (
        "imagenet1k",
        "imagenet",
        "imagefolder",
        lambda f: trees.imagefolder(
            f, {"train": ["train"], "val": ["val"], "test": ["test"]}, ("n01", "n02", "n10")
        ),
    ),
    ("cifar100", "cifar-100-binary", "cifar_binary", trees.cifar_binary),
]
OWN_VAL = {"vtab1k", "vpt_json", "flowers"}  # layouts that say which images are val


def bag(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, bytes]]:
    """Images with their classes, in an order of their own."""
    return sorted(
        (int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)
    )


def expected(*splits: str) -> list[tuple[int, bytes]]:
    return sorted((label, pixels.tobytes()) for pixels, label in trees.together(splits))


@pytest.mark.parametrize(("name", "place", "layout", "write"), TREES)
def test_every_layout_gives_the_same_tensors(
    tmp_path: Path, name: str, place: str, layout: str, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / "all" / place
    folder.parent.mkdir(parents=True)
    write(folder)
    wanted = small(name, tmp_path / "all")
    assert public.find(wanted).layout.name == layout
    spec = data.identify(wanted)
    final = data.load(spec, Phase.FINAL, SIZE)
    assert bag(final.train.images, final.train.labels) == expected("train", "val")
    assert bag(*final.report.open_once()) == expected("test")
    assert len(final.class_names) == 3
    assert final.notes[0] == f"read as {layout}"

    tune = data.load(spec, Phase.TUNE, SIZE)
    assert (len(tune.train), len(tune.report)) == (6, 3)
    both = np.concatenate([tune.train.images, tune.report.images])
    labels = np.concatenate([tune.train.labels, tune.report.labels])
    assert bag(both, labels) == expected("train", "val")
    if layout in OWN_VAL or place == "imagenet":
        assert bag(tune.report.images, tune.report.labels) == expected("val")
    else:  # our own cut, one image of each class, and the record says so
        assert sorted(tune.report.labels) == [0, 1, 2]
        assert any("our own cut of 3" in note for note in tune.notes)

    # the folder of the set itself will do as well, and names its files in the same way
    assert data.identify(replace(wanted, root=str(folder))).manifest == spec.manifest


def test_every_layout_is_tried_and_every_data_set_names_its_own() -> None:
    assert {layout for _, _, layout, _ in TREES} | {"fewshot"} == set(LAYOUTS)
    for name, spec in dataset_specs(None).items():
        if spec.reader == "public":
            assert spec.facts.layouts and set(spec.facts.layouts) <= set(LAYOUTS), name
            assert spec.facts.folders and spec.facts.source and spec.facts.licence, name


@pytest.mark.parametrize(
    ("name", "place", "inside", "prefix"),
    [
        ("fewshot/fgvc_aircraft", "fgvc-aircraft", "images", ""),
        ("fewshot/fgvc_aircraft", "fgvc-aircraft-2013b", "data/images", ""),
        ("fewshot/food101", "few-shot/food-101", "images", "apple_pie/"),
        ("fewshot/flowers102", "oxford_flowers", "jpg", ""),  # CoOp's folder
        ("fewshot/pets", "oxford-pets", "images", "Abyssinian cat "),
        ("fewshot/stanford_cars", "standford-cars", ".", "cars_train/"),
    ],
)
def test_few_shot_lists_train_on_few_images_and_never_on_val(
    tmp_path: Path, name: str, place: str, inside: str, prefix: str
) -> None:
    trees.fewshot(tmp_path / place, inside, prefix)
    wanted = small(name, tmp_path, shots=2, shot_seed=0)
    spec = data.identify(wanted)
    assert (spec.name, spec.suite) == (name, "fewshot_2shot")
    assert data.identify(spec) == spec
    tune, final = (data.load(spec, phase, SIZE) for phase in (Phase.TUNE, Phase.FINAL))
    for splits in (tune, final):
        assert bag(splits.train.images, splits.train.labels) == expected("train")
    assert bag(tune.report.images, tune.report.labels) == expected("val")
    assert bag(*final.report.open_once()) == expected("test")


def test_the_lists_of_three_seeds_are_one_data_set(tmp_path: Path) -> None:
    trees.fewshot(tmp_path / "oxford_pets", "images", shots=1)
    runs = [
        data.identify(small("fewshot/pets", tmp_path, shots=1, shot_seed=seed))
        for seed in (0, 1, 2)
    ]
    # one manifest, so that their runs are averaged; the list is part of a run's identity
    assert len({spec.manifest for spec in runs}) == 1
    trained = [
        bag(s.images, s.labels) for s in (data.load(r, Phase.TUNE, SIZE).train for r in runs)
    ]
    assert trained[0] == trained[2] != trained[1]
    with pytest.raises(
        DataError, match=r"shot_seed=7: fewshot/pets has lists of the seeds 0, 1, 2"
    ):
        data.identify(small("fewshot/pets", tmp_path, shots=1, shot_seed=7))
    with pytest.raises(DataError, match=r"num_shot_4\.seed_0.* missing"):
        data.identify(small("fewshot/pets", tmp_path, shots=4, shot_seed=0))


def test_a_list_that_repeats_its_images_trains_on_each_once_unless_asked(tmp_path: Path) -> None:
    """The lists of Pets for one shot are like that."""
    trees.fewshot(tmp_path / "oxford_pets", "images", repeats=2, shots=1)
    once = small("fewshot/pets", tmp_path, shots=1, shot_seed=0)
    twice = replace(once, keep_repeats=True)
    kept = [data.load(spec, Phase.FINAL, SIZE) for spec in (once, twice)]
    assert [len(splits.train) for splits in kept] == [3, 6]
    assert (
        "3 of 6 lines of the training list repeat an image; each image trains" in kept[0].notes[1]
    )
    assert kept[1].notes[1].endswith("repeat an image; kept")


def message(spec: DatasetSpec) -> str:
    with pytest.raises(DataError) as caught:
        data.identify(spec)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_absent_says_where_it_was_looked_for_and_what_would_do(tmp_path: Path) -> None:
    text = message(small("vtab/dtd", tmp_path))
    assert text.startswith(
        f"vtab/dtd is not in {tmp_path}: looked for dtd, vtab-1k/dtd, vtab1k/dtd, vtab/dtd, "
        "vtab-1k/vtab-1k/dtd. What would do: the vtab-1k folder: <task>/images/ with train800.txt, "
    )
    assert "XiN0919/VTAB-1k on Hugging Face" in text
    assert "data_dir=DIR or PEFTBENCH_DATA" in text
    assert message(small("vtab/dtd", tmp_path / "no")).startswith(
        f"vtab/dtd: {tmp_path / 'no'} is no folder. What would do: "
    )
    (tmp_path / "dtd").mkdir()
    assert f"nothing known is in {tmp_path / 'dtd'} (empty)" in message(small("vtab/dtd", tmp_path))
    (tmp_path / "dtd" / "3.0.1").mkdir()
    (tmp_path / "dtd" / "3.0.1" / "dataset_info.json").write_text("{}")
    text = message(small("vtab/dtd", tmp_path))
    assert "is a folder of TensorFlow Datasets (3.0.1/dataset_info.json)" in text
    assert f"convert it: peftbench data prepare vtab/dtd --raw {tmp_path / 'dtd'}. What" in text
    assert public.whereabouts(small("vtab/dtd", tmp_path)) == "in part"
    assert public.whereabouts(small("vtab/pets", tmp_path)) == "no"


def test_what_is_there_twice_or_in_two_layouts(tmp_path: Path) -> None:
    trees.vtab1k(tmp_path / "cifar")
    shutil.copytree(tmp_path / "cifar", tmp_path / "vtab-1k" / "cifar100")
    wanted = small("vtab/cifar100", tmp_path)
    assert message(wanted) == (
        f"vtab/cifar100 is there 2 times: {tmp_path / 'cifar'} (vtab1k), "
        f"{tmp_path / 'vtab-1k' / 'cifar100'} (vtab1k). Set dataset.root to the one that is meant."
    )
    assert public.whereabouts(wanted) == "twice"
    assert data.identify(replace(wanted, root=str(tmp_path / "cifar"))).manifest
    # VPT keeps its lists inside the unpacked archive: they say more, so they win
    both = tmp_path / "CUB_200_2011"
    trees.cub(both, (1, 2, 10), str)
    trees.vpt_json(both, "images", (0, 1, 2))
    birds = small("fgvc/cub200", tmp_path)
    assert public.whereabouts(birds) == "yes (vpt_json)"
    assert public.whereabouts(replace(birds, layout="cub")) == "yes (cub)"
    with pytest.raises(UnknownName, match=r"layout of fgvc/cub200: 'cubs'\. Did"):
        public.find(replace(birds, layout="cubs"))


def change_label(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[0] = lines[0].rsplit(" ", 1)[0] + " 3"
    path.write_text("\n".join(lines) + "\n")


def drop_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda f: (f / "val200.txt").unlink(),
            "vtab/svhn is incomplete: in {f}, train800.txt, test.txt, train800val200.txt are there "
            "and val200.txt is missing for layout vtab1k. What would do: ",
        ),
        (
            lambda f: drop_line(f / "test.txt"),
            "test has 5 images in {f} (layout vtab1k), and 6 are",
        ),
        (lambda f: drop_line(f / "train800.txt"), "does not hold the classes of train800.txt and"),
        (lambda f: change_label(f / "test.txt"), "test in {f} has the label 3, and there are 3"),
        (
            lambda f: (f / "test.txt").write_text("images/test/000000.jpg,1\n"),
            "{f}/test.txt, line 1: 'images/test/000000.jpg,1' is not '<path> <label>'.",
        ),
        (
            lambda f: (f / "test.txt").write_text("images/../../../secret.jpg 1\n"),
            "'images/../../../secret.jpg' leads out of the data set.",
        ),
        (
            lambda f: (f / "images" / "test" / "000002.jpg").unlink(),
            "Cannot read {f}/images/test/000002.jpg: No such file or directory.",
        ),
    ],
    ids=("no list", "short list", "lists differ", "label", "separator", "path", "image"),
)
def test_a_spoilt_tree_is_named(tmp_path: Path, spoil: Callable[[Path], None], told: str) -> None:
    folder = tmp_path / "svhn"
    trees.vtab1k(folder)
    spoil(folder)
    assert told.format(f=folder) in message(small("vtab/svhn", tmp_path))


def test_splits_of_vpt_share_one_index_of_classes(tmp_path: Path) -> None:
    """A class that one list lacks must not shift the others."""
    folder = tmp_path / "nabirds"
    trees.vpt_json(folder, "images", GAPS)
    path = folder / "val.json"
    listed = {name: label for name, label in json.loads(path.read_text()).items() if label != 17}
    path.write_text(json.dumps(listed))
    wanted = small("fgvc/nabirds", tmp_path)
    wanted = replace(wanted, facts=replace(wanted.facts, val=2))
    listing = public.read_public(wanted)
    assert listing.class_names == ("3", "17", "295")
    assert listing.val.labels == (0, 2)
    # but a class that nothing trains is an error
    path = folder / "train.json"
    listed = {name: label for name, label in json.loads(path.read_text()).items() if label != 17}
    path.write_text(json.dumps(listed))
    facts = replace(wanted.facts, train=4)
    assert "1 classes in" in (text := message(replace(wanted, facts=facts)))
    assert "no image in train or val, first '17'" in text


def test_vtab_may_lack_classes_and_its_jpeg_copies_are_said_to_be_lossy(tmp_path: Path) -> None:
    trees.vtab1k(tmp_path / "svhn")
    wanted = small("vtab/svhn", tmp_path)
    notes = public.read_public(replace(wanted, facts=replace(wanted.facts, classes=5))).notes
    assert notes == (
        "read as vtab1k",
        "images are JPEG copies, which lose detail that the original arrays have",
        "2 of 5 classes have no training image",
    )


def test_shots_are_for_sets_that_have_lists_of_them(tmp_path: Path) -> None:
    trees.vtab1k(tmp_path / "svhn")
    assert message(small("vtab/svhn", tmp_path, shots=4)).startswith(
        "dataset.shots=4: vtab/svhn has no lists of so many images a class."
    )


def test_test_images_that_also_train_are_told_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trees.vtab1k(tmp_path / "svhn")
    images = tmp_path / "svhn" / "images"
    shutil.copy(images / "train800" / "000000.jpg", images / "test" / "000001.jpg")
    splits = data.load(small("vtab/svhn", tmp_path), Phase.FINAL, SIZE)
    told = "1 of 6 test images is byte for byte in train or val as well: results flatter."
    assert splits.notes[-1] == f"{told} Remove the copies."
    assert told in caplog.text
