"""Data sets are made ready from archives, verified file by file, and described."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import trees
import web
from PIL import Image
from scipy.io import loadmat, savemat
from test_public import GAPS, TREES, drop_line
from trees import SIZE, small

from peftbench import data
from peftbench.config.build import dataset_specs, sources
from peftbench.data import manifest, prepare, public, raw
from peftbench.data.download import RemoteFile
from peftbench.data.layouts import LAYOUTS
from peftbench.data.raw import RAW
from peftbench.data.sources import Archive, Source, source_of
from peftbench.errors import ConfigError, DataError, UnknownName
from peftbench.spec import DatasetSpec, Phase

pytestmark = pytest.mark.usefixtures("forked_matlab")  # flowers, dogs and cars have such lists

EMPTY: dict[str, Source] = {}


def packed(folder: Path, archive: Path, *names: str) -> bytes:
    """A tar of a folder, or of some of what is in it."""
    with tarfile.open(archive, "w") as tar:
        for name in names or ("",):
            tar.add(folder / name, arcname=f"{folder.name}/{name}".rstrip("/"))
    return archive.read_bytes()


def archive_of(site: web.Site, path: str, **options: object) -> Archive:
    content = site.files[path]
    file = RemoteFile(
        url=site.address + path,
        name=path.strip("/"),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )
    return Archive(file, **options)


def flowers(tmp_path: Path) -> dict[str, bytes]:
    """The three files that Oxford Flowers is given out as."""
    folder = tmp_path / "made" / "flowers"
    trees.flowers(folder)
    images = packed(folder, tmp_path / "jpg.tar", "jpg")
    lists = {f"/{name}": (folder / name).read_bytes() for name in ("imagelabels.mat", "setid.mat")}
    return {"/102flowers.tar": images, **lists}


def flower_source(site: web.Site) -> dict[str, Source]:
    archives = (
        archive_of(site, "/102flowers.tar", strip="flowers"),
        archive_of(site, "/imagelabels.mat", unpack=False),
        archive_of(site, "/setid.mat", unpack=False),
    )
    return {"oxford_flowers": Source("oxford_flowers", "Flowers", "oxford_flowers", archives)}


def test_a_data_set_is_fetched_unpacked_checked_and_listed(tmp_path: Path) -> None:
    here = tmp_path / "data"
    spec = small("fgvc/oxford_flowers", here)
    with web.serving(flowers(tmp_path)) as site:
        known = flower_source(site)
        assert prepare.plan(spec, here, known, None) == (
            f"fgvc/oxford_flowers: would fetch 3 files "
            f"({sum(map(len, site.files.values())) / 1e9:.2f} GB): Flowers"
        )
        ready = prepare.prepare(spec, here, known)
        assert len(site.asked) == 3
        again = prepare.prepare(spec, here, known)  # there already
        assert len(site.asked) == 3
    assert ready.home == again.home == here / "oxford_flowers"
    assert ready.remarks == ("from Flowers",)
    (made,) = ready.manifests
    assert (made.sizes(), made.present()) == (trees.COUNTS, {"train": 3, "val": 3, "test": 3})
    assert (made.name, made.layout) == ("fgvc/oxford_flowers", "flowers")
    splits = data.load(data.identify(spec), Phase.FINAL, SIZE)
    expected = [pixels.tobytes() for pixels, _ in trees.together(["train", "val"])]
    assert sorted(image.tobytes() for image in splits.train.images) == sorted(expected)
    assert prepare.verify(spec) == "fgvc/oxford_flowers: train 6, val 3, test 6, intact"
    assert "would be checked and listed" in prepare.plan(spec, here, known, None)


def test_an_interrupted_preparation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "data"
    spec = small("fgvc/oxford_flowers", here)
    linked = prepare.put

    def interrupted(path: Path, place: Path) -> None:
        raise KeyboardInterrupt

    with web.serving(flowers(tmp_path)) as site:
        known = flower_source(site)
        monkeypatch.setattr(prepare, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(spec, here, known)
        assert (here / "oxford_flowers" / "jpg").is_dir()  # unpacked, and the lists are missing
        monkeypatch.setattr(prepare, "put", linked)
        assert prepare.prepare(spec, here, known).manifests[0].sizes() == trees.COUNTS
        assert len(site.asked) == 3


def test_what_cannot_be_reached_says_what_to_do_by_hand(tmp_path: Path) -> None:
    here = tmp_path / "data"
    spec = small("fgvc/oxford_flowers", here)
    with web.serving(flowers(tmp_path)) as site:
        known = flower_source(site)
        files = site.files
    with pytest.raises(prepare.Manual) as caught:
        prepare.prepare(spec, here, known)
    text = str(caught.value)
    assert "Connection refused" in text
    assert f"Put these files into {here}/downloads/oxford_flowers and run the command" in text
    assert f"  setid.mat ({len(files['/setid.mat']):,} bytes) from http://127.0.0.1" in text
    assert not (here / "oxford_flowers").exists()
    for name, content in files.items():  # a person does so
        (here / "downloads" / "oxford_flowers" / name.strip("/")).write_bytes(content)
    assert prepare.prepare(spec, here, known).manifests[0].sizes() == trees.COUNTS


def test_what_only_a_person_may_fetch_fails_with_the_steps(tmp_path: Path) -> None:
    birds = small("fgvc/nabirds", tmp_path)
    with pytest.raises(prepare.Manual, match="has to be fetched by hand:\nNABirds is given out"):
        prepare.prepare(birds, tmp_path, sources())
    with pytest.raises(UnknownName, match=r"source of fgvc/nabirds: 'cub'\."):
        prepare.prepare(birds, tmp_path, sources(), source="cub")
    with pytest.raises(DataError, match="fgvc/nabirds is not built from raw archives"):
        prepare.prepare(birds, tmp_path, sources(), raw=tmp_path)


def test_a_prepared_folder_builds_what_archives_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def build(task: str, folder: Path, target: Path) -> tuple[str, ...]:
        asked.append((task, folder))
        trees.vtab1k(target)
        return ("a note",)

    monkeypatch.setattr(raw, "build", build)
    for task in ("caltech101", "retinopathy"):
        spec = small(f"vtab/{task}", tmp_path)
        with pytest.raises(prepare.Manual, match=r"by hand:\n[^$]*--raw DIR"):
            prepare.prepare(spec, tmp_path, sources())
        with pytest.raises(DataError, match=f"vtab/{task} is not built from raw archives"):
            prepare.prepare(spec, tmp_path, sources(), source="vtab1k_dump", raw=tmp_path)
        done = prepare.prepare(spec, tmp_path, sources(), raw=tmp_path / "tfds")
        assert done.remarks[:2] == (f"from {tmp_path / 'tfds'}", "a note")
        assert asked.pop() == (task, tmp_path / "tfds")


def test_a_folder_that_was_not_made_here_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "oxford_flowers").mkdir()
    (tmp_path / "oxford_flowers" / "notes.txt").write_text("mine")
    spec = small("fgvc/oxford_flowers", tmp_path)
    told = pytest.raises(DataError, match="was not made from Flowers")
    with web.serving(flowers(tmp_path)) as site, told:
        prepare.prepare(spec, tmp_path, flower_source(site))
    assert [p.name for p in (tmp_path / "oxford_flowers").iterdir()] == ["notes.txt"]


def test_every_data_set_names_sources_that_there_are() -> None:
    known = sources()
    named = set()
    for name, spec in dataset_specs(None).items():
        mine = spec.facts.built_from + spec.facts.prepared_from
        assert bool(mine) == (spec.reader in ("public", "shift")), name
        named |= set(mine)
        for source in (known[other] for other in spec.facts.prepared_from):
            if source.name != "vtab1k_dump":  # unpacks where the data set is looked for
                assert Path(source.folder).name in spec.facts.folders, name
    assert named == set(known)
    for source in known.values():
        assert "{" not in source.steps(Path("here")), source.name
        for archive in source.archives:
            assert archive.file.sha256 or archive.file.md5 or source.name == "vtab1k_dump"


def test_sources_of_raw_archives_are_of_tasks_that_can_be_built() -> None:
    specs = dataset_specs(None)
    built = {name.partition("/")[2] for name, spec in specs.items() if spec.facts.built_from}
    assert built == set(RAW)


def test_sources_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="neither files nor manual steps"):
        source_of("a", {"title": "A", "folder": "a"})
    with pytest.raises(ConfigError, match=r"folder '\.\./a' is not below"):
        source_of("a", {"title": "A", "folder": "../a", "manual": "-"})
    with pytest.raises(ConfigError, match=r"source a: .*'colour'.* Correct its file"):
        source_of("a", {"title": "A", "folder": "a", "colour": "red"})


def shorten_image(folder: Path) -> Path:
    path = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".bin"))[
        3 % 2
    ]
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize(("name", "place", "layout", "write"), TREES)
def test_verify_passes_a_good_tree_and_names_a_truncated_image(
    tmp_path: Path, name: str, place: str, layout: str, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / place
    folder.parent.mkdir(parents=True, exist_ok=True)
    write(folder)
    spec = small(name, tmp_path)
    prepare.prepare(spec, tmp_path, EMPTY)
    assert prepare.verify(spec).endswith("intact")
    path = shorten_image(folder)
    with pytest.raises(DataError, match=r"is not intact: .*has changed") as caught:
        prepare.verify(spec)
    assert f"{path} ({path.stat().st_size:,} bytes) has changed" in str(caught.value)


def other_label(path: Path) -> None:
    """The first label becomes that of another class of the tree."""
    lines = path.read_text().splitlines()
    name, _, label = lines[0].rpartition(" ")
    others = {line.rpartition(" ")[2] for line in lines} - {label}
    path.write_text("\n".join([f"{name} {min(others)}", *lines[1:]]) + "\n")


def json_list(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        listed = json.loads(path.read_text())
        change(listed)
        path.write_text(json.dumps(listed))

    return spoil


def relabel(listed: dict[str, object]) -> None:
    first, *rest = listed
    listed[first] = next(listed[name] for name in rest if listed[name] != listed[first])


@dataclass(frozen=True)
class SpoiledList:
    """A tree, the list in it that somebody spoils, and what `verify` says of it then."""

    name: str
    place: str
    write: Callable[[Path], None]
    path: str
    spoil: Callable[[Path], None]
    message: str


LISTS = [
    SpoiledList("vtab/svhn", "svhn", trees.vtab1k, "test.txt", drop_line, "test has 5 images in"),
    SpoiledList(
        "vtab/svhn", "svhn", trees.vtab1k, "train800.txt", other_label, "does not hold the classes"
    ),
    SpoiledList("vtab/svhn", "svhn", trees.vtab1k, "test.txt", other_label, "in test has label"),
    SpoiledList(
        "fgvc/nabirds", "nabirds", lambda f: trees.vpt_json(f, "images", GAPS),
        "val.json", json_list(lambda d: d.pop(next(iter(d)))), "val has 2 images in",
    ),
    SpoiledList(
        "fgvc/nabirds", "nabirds", lambda f: trees.vpt_json(f, "images", GAPS),
        "train.json", json_list(relabel), "in train has label",
    ),
    SpoiledList(
        "fgvc/cub200", "CUB_200_2011", lambda f: trees.cub(f, (1, 2, 10), str),
        "images.txt", drop_line, "and not all are the same",
    ),
    SpoiledList(
        "fgvc/cub200", "CUB_200_2011", lambda f: trees.cub(f, (1, 2, 10), str),
        "image_class_labels.txt", other_label, "has label",
    ),
    SpoiledList(
        "fewshot/pets", "oxford-pets", lambda f: trees.fewshot(f, "images"),
        "annotations/test_meta.list", drop_line, "are published",
    ),
    SpoiledList(
        "fewshot/pets", "oxford-pets", lambda f: trees.fewshot(f, "images"),
        "annotations/train_meta.list.num_shot_2.seed_1", other_label, "in train 1 has label",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", LISTS, ids=lambda case: f"{case.name}-{case.path}")
def test_verify_names_a_list_that_lost_a_line_or_changed_a_label(
    tmp_path: Path, case: SpoiledList
) -> None:
    case.write(tmp_path / case.place)
    spec = small(case.name, tmp_path)
    prepare.prepare(spec, tmp_path, EMPTY)
    assert prepare.verify(spec).endswith("intact")
    path = tmp_path / case.place / case.path
    case.spoil(path)
    with pytest.raises(DataError) as caught:
        prepare.verify(spec)
    text = str(caught.value)
    assert text.startswith(f"{case.name} is not intact: {path} (")
    assert case.message in text
    # and no run starts on it
    with pytest.raises(DataError):
        data.identify(prepare.variants(spec)[0])


Variables = dict[str, np.ndarray]


def matlab(change: Callable[[Variables], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        variables = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
        change(variables)
        savemat(path, variables)

    return spoil


def cut(*names: str, axis: int) -> Callable[[Path], None]:
    """The first row of each variable is left out."""
    return matlab(lambda v: v.update({n: np.delete(v[n], 0, axis) for n in names}))


def replaced(name: str) -> Callable[[Path], None]:
    """The first label of a variable becomes the last one, which is of another class."""
    return matlab(lambda v: v[name].put(0, v[name].flat[-1]))


def recast(variables: Variables) -> None:
    annotations = variables["annotations"]
    annotations["class"][0, 0] = annotations["class"][0, -1]


def fewer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[2 + 32 * 32 * 3 :])


def other_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1] = content[1 - 32 * 32 * 3 - 2]  # the fine label of the first row, of the last
    path.write_bytes(bytes(content))


FLOWERS = ("fgvc/oxford_flowers", "oxford_flowers", trees.flowers)
DOGS = ("fgvc/stanford_dogs", "stanford_dogs", lambda f: trees.dogs(f, "."))
CARS = ("fgvc/stanford_cars", "stanford_cars", trees.cars)
CIFAR = ("cifar100", "cifar-100-binary", trees.cifar_binary)
BINARY = [
    (*FLOWERS, "setid.mat", cut("trnid", axis=1)),
    (*FLOWERS, "imagelabels.mat", replaced("labels")),
    (*DOGS, "train_list.mat", cut("file_list", "labels", axis=0)),
    (*DOGS, "test_list.mat", replaced("labels")),
    (*CARS, "devkit/cars_train_annos.mat", cut("annotations", axis=1)),
    (*CARS, "cars_test_annos_withlabels.mat", matlab(recast)),
    (*CIFAR, "test.bin", fewer),
    (*CIFAR, "train.bin", other_byte),
]


@pytest.mark.parametrize(("name", "place", "write", "path", "spoil"), BINARY)
def test_verify_names_a_binary_list_that_lost_a_row_or_changed_a_label(
    tmp_path: Path,
    name: str,
    place: str,
    write: Callable[[Path], None],
    path: str,
    spoil: Callable[[Path], None],
) -> None:
    write(tmp_path / place)
    spec = small(name, tmp_path)
    prepare.prepare(spec, tmp_path, EMPTY)
    before = public.read_public(spec)
    spoil(tmp_path / place / path)
    with pytest.raises(DataError) as caught:
        prepare.verify(spec)
    assert str(caught.value).startswith(f"{name} is not intact: {tmp_path / place / path} (")
    with pytest.raises(DataError):  # the data did change, and no run starts on it
        data.identify(replace(spec, manifest=before.manifest))


def test_verify_names_an_image_that_left_its_class_folder_or_the_tree(tmp_path: Path) -> None:
    names = ("1", "2", "10")
    folder = tmp_path / "stanford_cars"
    trees.imagefolder(folder, {"train": ["train", "val"], "val": ["test"]}, names)
    spec = small("fgvc/stanford_cars", tmp_path)
    prepare.prepare(spec, tmp_path, EMPTY)
    for path in (folder / "val" / "1" / "0.JPEG", folder / "val" / "10" / "5.JPEG"):
        shutil.move(path, folder / "val" / "2" / path.name)  # a label changed
        with pytest.raises(DataError, match=f"not intact: {path} is missing"):
            prepare.verify(spec)
        (folder / "val" / "2" / path.name).unlink()  # a line removed
        with pytest.raises(DataError, match=f"not intact: {path} is missing"):
            prepare.verify(spec)
        pixels = trees.together(["test"])[int(path.stem)][0]
        trees.save(pixels, path)
        assert prepare.verify(spec).endswith("intact")


def test_files_of_several_lists_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.fewshot(tmp_path / "oxford-pets", "images", shots=1)
    shutil.move(tmp_path / "oxford-pets" / "annotations", tmp_path / "one")
    trees.fewshot(tmp_path / "oxford-pets", "images", shots=2)
    for path in (tmp_path / "one").iterdir():
        shutil.move(path, tmp_path / "oxford-pets" / "annotations" / path.name)
    spec = small("fewshot/pets", tmp_path)
    prepare.prepare(spec, tmp_path, EMPTY)
    read: list[Path] = []
    plain = manifest.file_digest
    monkeypatch.setattr(manifest, "file_digest", lambda path: read.append(path) or plain(path))
    assert prepare.verify(spec).count("intact") == 2
    # 15 images, 2 x 3 lists of train, one of val and one of test
    assert len(read) == len(set(read)) == 15 + 6 + 2


def test_an_image_that_changed_is_seen_whatever_its_times_say(tmp_path: Path) -> None:
    trees.vtab1k(tmp_path / "svhn")
    spec = small("vtab/svhn", tmp_path)
    prepare.prepare(spec, tmp_path, EMPTY)
    path = tmp_path / "svhn" / "images" / "test" / "000002.jpg"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"000002\.jpg .* has changed"):
        prepare.verify(spec)


def test_a_prepared_data_set_that_changed_stops_a_run(tmp_path: Path) -> None:
    trees.vtab1k(tmp_path / "svhn")
    spec = small("vtab/svhn", tmp_path)
    prepare.prepare(spec, tmp_path, EMPTY)
    known = data.identify(spec)
    trees.save(np.zeros((32, 32, 3), np.uint8), tmp_path / "svhn/images/test/000001.jpg")
    told = r"is not what it was when it was prepared: the bytes of images/test/000001.jpg in test"
    with pytest.raises(DataError, match=told):
        data.identify(spec)
    prepare.prepare(spec, tmp_path, EMPTY)  # taken as it is now
    assert data.identify(spec).manifest != known.manifest


def test_a_manifest_is_text_that_is_checked_when_it_is_read(tmp_path: Path) -> None:
    trees.vtab1k(tmp_path / "svhn")
    spec = small("vtab/svhn", tmp_path)
    (made,) = prepare.prepare(spec, tmp_path, EMPTY).manifests
    path = tmp_path / "svhn" / ".peftbench" / "vtab-svhn.json"
    assert manifest.Manifest.from_text(path.read_text(), "here") == made
    listed = json.loads(path.read_text())
    assert listed["sizes"] == {"train": 6, "val": 3, "test": 6}
    assert listed["classes_present"] == {"train": 3, "val": 3, "test": 3}
    assert set(listed["lists"]) == {
        "train800.txt", "val200.txt", "test.txt", "train800val200.txt",
    }  # fmt: skip
    first = tmp_path / "svhn" / "images" / "train800" / "000000.jpg"
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert listed["splits"]["train"][0] == ["images/train800/000000.jpg", 0, digest]
    lines = [
        f"{split}\t{name}\t{label}\t{digest}\n"
        for split, rows in listed["splits"].items()
        for name, label, digest in rows
    ]
    rollup = hashlib.sha256("".join(sorted([*lines, "classes\t3\n"])).encode()).hexdigest()
    assert listed["rollup"] == rollup == data.identify(spec).manifest
    for change in (
        lambda text: text.replace('000000.jpg", 0', '000000.jpg", 1', 1),
        lambda text: text[:-20],
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"rollup"', '"roll"'),
    ):
        path.write_text(change(path.read_text()))
        with pytest.raises(DataError, match=r"The manifest .*vtab-svhn\.json is damaged: .*again"):
            prepare.verify(spec)
        manifest.write(made, tmp_path / "svhn", spec)


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path: Path) -> None:
    trees.vtab1k(tmp_path / "svhn")
    with pytest.raises(DataError, match=r"has no manifest .* peftbench data prepare vtab/svhn"):
        prepare.verify(small("vtab/svhn", tmp_path))
    with pytest.raises(DataError, match="vtab/dtd is not in"):
        prepare.verify(small("vtab/dtd", tmp_path))
    (tmp_path / "svhn" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"is incomplete: .* test\.txt is missing"):
        prepare.verify(small("vtab/svhn", tmp_path))


def test_data_that_cannot_be_written_to_has_its_manifest_in_the_cache(
    tmp_path: Path, cache: Path
) -> None:
    trees.vtab1k(tmp_path / "svhn")
    (tmp_path / "svhn" / ".peftbench").write_text("in the way")
    spec = small("vtab/svhn", tmp_path)
    prepare.prepare(spec, tmp_path, EMPTY)
    assert len(list((cache / "manifests").rglob("vtab-svhn.json"))) == 1
    assert prepare.verify(spec).endswith("intact")


def test_few_shot_sets_have_a_manifest_for_each_number_of_shots(tmp_path: Path) -> None:
    folder = tmp_path / "oxford-pets"
    trees.fewshot(folder, "images", shots=2)
    shutil.move(folder / "annotations", tmp_path / "two")
    trees.fewshot(folder, "images", shots=1)
    for path in (tmp_path / "two").iterdir():
        shutil.move(path, folder / "annotations" / path.name)
    spec = small("fewshot/pets", tmp_path)
    ready = prepare.prepare(spec, tmp_path, EMPTY)
    assert [made.suite for made in ready.manifests] == ["fewshot_1shot", "fewshot_2shot"]
    assert [made.sizes()["train 0"] for made in ready.manifests] == [3, 6]
    assert prepare.verify(spec).count("intact") == 2


def test_shift_sets_are_prepared_and_verified_too(tmp_path: Path) -> None:
    names = ("n01", "n02", "n10")
    trees.imagefolder(tmp_path, {"imagenet-a": ["test"]}, names)
    spec = small("imagenet_a", tmp_path)
    (made,) = prepare.prepare(spec, tmp_path, EMPTY).manifests
    assert (made.sizes(), made.class_names) == ({"test": 6}, names)
    assert prepare.verify(spec) == "imagenet_a: test 6, intact"
    gone = sorted((tmp_path / "imagenet-a").rglob("*.JPEG"))[0]
    gone.unlink()
    with pytest.raises(DataError, match=rf"{gone} is missing"):
        prepare.verify(spec)


def test_ones_own_folder_is_prepared_like_any_other(make_folder) -> None:
    root = make_folder({"cat": 10, "dog": 10})
    spec = DatasetSpec("folder", reader="folder", root=str(root))
    (made,) = prepare.prepare(spec, root, EMPTY).manifests
    assert made.layout == "class folders"
    assert prepare.verify(spec) == "folder: train 14, val 2, test 4, intact"
    # another split of the same folder is another data set, not a changed one
    assert data.identify(replace(spec, split_seed=1)).manifest != made.rollup
    shutil.copy(root / "cat" / "000.png", root / "cat" / "new.png")
    with pytest.raises(DataError, match="is not intact: "):
        prepare.verify(spec)


def test_images_that_do_not_decode_are_all_named_before_a_run(make_folder) -> None:
    root = make_folder({"cat": 10, "dog": 10})
    for name, size in (("cat/003.png", 30), ("dog/001.png", 0)):
        (root / name).write_bytes((root / name).read_bytes()[:size])
    spec = DatasetSpec("folder", reader="folder", root=str(root))
    with pytest.raises(DataError) as caught:
        prepare.prepare(spec, root, EMPTY)
    text = str(caught.value)
    assert text.startswith("folder has 2 of 20 images that cannot be decoded. Cannot decode image")
    assert str(root / "cat/003.png") in text and str(root / "dog/001.png") in text
    assert not (root / ".peftbench" / "folder.json").exists()
    prepare.prepare(spec, root, EMPTY, decode=False)
    with pytest.raises(DataError, match="2 of 20 images that cannot be decoded"):
        prepare.verify(spec, decode=True)


def test_images_that_are_handled_in_a_special_way_are_counted(make_folder) -> None:
    root = make_folder({"cat": 10, "dog": 10})
    plain = Image.open(root / "cat" / "000.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    plain.convert("CMYK").save(root / "cat" / "c.jpg")
    plain.convert("P").save(root / "cat" / "p.png")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(root / "cat" / "w.png")
    plain.save(root / "dog" / "r.jpg", exif=exif)
    plain.save(root / "dog" / "g.gif", save_all=True, append_images=[plain.rotate(90)])
    plain.convert("RGBA").save(root / "dog" / "t.png")
    spec = DatasetSpec("folder", reader="folder", root=str(root))
    assert prepare.prepare(spec, root, EMPTY).remarks == (
        "1 images are CMYK and become RGB, first cat/c.jpg",
        "1 images are animated; their first frame is read, first dog/g.gif",
        "1 images are transparent and lie on white, first dog/t.png",
        "1 images are turned upright, as their EXIF tag says, first dog/r.jpg",
        "1 images have 16 bits a pixel and are scaled to 8, first cat/w.png",
        "1 images have a palette and become RGB, first cat/p.png",
    )


def test_the_card_comes_from_the_manifest(tmp_path: Path) -> None:
    trees.vtab1k(tmp_path / "kitti")
    spec = small("vtab/kitti", tmp_path)
    spec = replace(spec, facts=replace(spec.facts, classes=4))
    assert prepare.described(replace(spec, root=str(tmp_path / "no"))) == (
        "# vtab/kitti: KITTI, distance of the closest vehicle\n\n"
        "Not on this machine. Suite vtab1k, version 1; group structured.\n\n"
        "* Licence: not verified\n"
        f"* Source: {spec.facts.source}\n"
        "* Published: classes 4, train 6, val 3, test 6\n"
        f"* {spec.facts.oddities[0]}\n\n"
        "peftbench data prepare vtab/kitti\n"
    )
    prepare.prepare(spec, tmp_path, EMPTY)
    shutil.rmtree(tmp_path / "kitti" / "images")  # nothing else is looked at
    text = prepare.described(spec)
    assert "* Layout: vtab1k\n* Stored as: jpg 15\n" in text
    assert f"* {spec.facts.oddities[0]}\n" in text
    assert "| train | 6 | 3 of 4 | 3 |\n| val | 3 | 3 of 4 | 3 |\n| test | 6 | 3 of 4 | 3 |" in text
    assert "| **4 classes** | **6** | **3** | **6** |" in text


def test_all_layouts_are_verified() -> None:
    assert {layout for _, _, layout, _ in TREES} | {"fewshot"} == set(LAYOUTS)


def test_a_list_of_paths_and_labels_is_prepared_with_its_images(make_folder) -> None:
    root = make_folder({"a": 10, "b": 10})
    rows = [f"{path.relative_to(root)},{path.parent.name}\n" for path in sorted(root.glob("*/*"))]
    table = root / "labels.csv"
    table.write_text("".join(["path,label\n", *rows]))
    spec = DatasetSpec("folder", reader="folder", root=str(table))
    (made,) = prepare.prepare(spec, root, EMPTY).manifests
    assert (made.layout, set(made.lists)) == ("list of paths and labels", {"labels.csv"})
    assert prepare.verify(spec) == "folder: train 14, val 2, test 4, intact"
    table.write_text("".join(["path,label\n", *rows[1:]]))
    with pytest.raises(DataError, match=rf"not intact: {table} .* has changed: a/000\.png is no"):
        prepare.verify(spec)
