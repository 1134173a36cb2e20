"""Promises of the reader of Hugging Face sets: splits, columns, labels, hashes, errors; offline."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as Encoded
from PIL import Image

from peftbench import data, network
from peftbench.data import hub
from peftbench.data.listing import Listing
from peftbench.errors import DataError, PeftbenchError
from peftbench.spec import BackboneSpec, DatasetSpec, Phase, Preprocessing, RunSpec

CLASSES = ClassLabel(names=["dog", "cat"])  # not in the order of their bytes


def spec(place: Path | str, **changes: Any) -> DatasetSpec:
    return replace(DatasetSpec(name="hf", reader="hf", hub=str(place)), **changes)


def read(place: Path | str, **changes: Any) -> Listing:
    return data.READERS["hf"](spec(place, **changes))


def refused(place: Path | str, **changes: Any) -> str:
    """The one-line message with which a set is refused."""
    with pytest.raises(PeftbenchError) as caught:
        read(place, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png(number: int) -> bytes:
    """An encoded picture of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def cells(first: int, count: int) -> list[dict[str, object]]:
    return [{"bytes": png(number), "path": None} for number in range(first, first + count)]


def table(first: int, labels: Sequence[object], kind: object = CLASSES, **more: object) -> Dataset:
    """Pictures from number `first` on with these labels."""
    columns = {"image": cells(first, len(labels)), "label": list(labels)}
    features = {"image": Encoded(), "label": kind}
    columns |= {name: column for name, (column, _) in more.items()}  # type: ignore[misc,attr-defined]
    features |= {name: feature for name, (_, feature) in more.items()}  # type: ignore[misc,attr-defined]
    return Dataset.from_dict(columns, features=Features(features))


def write(folder: Path, splits: Mapping[str, Dataset]) -> Path:
    """Each split as one parquet file, named as on the hub."""
    folder.mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """6 train, 2 validation and 4 test images of two classes."""
    splits = {
        "train": table(0, [0, 1, 0, 1, 0, 1]),
        "validation": table(6, [0, 1]),
        "test": table(8, [0, 0, 1, 1]),
    }
    return write(tmp_path / "pets", splits)


def test_splits_labels_and_pixels_are_those_of_the_table(pets: Path) -> None:
    own = Preprocessing(size=9, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest")
    tune = data.load(spec(pets), Phase.TUNE, own)
    assert tune.class_names == ("dog", "cat")
    assert tune.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert tune.report.names == ("validation/000000", "validation/000001")
    for row, image in enumerate(tune.train.images):
        stored = Image.open(io.BytesIO(png(row))).resize((9, 9), Image.Resampling.NEAREST)
        assert np.array_equal(image, np.asarray(stored))
    final = data.load(spec(pets), Phase.FINAL, own)
    assert final.report.names == tuple(f"test/00000{row}" for row in range(4))
    assert len(final.train) == 8


def test_the_manifest_is_the_hash_of_names_labels_bytes_and_splits_wherever_it_lies(
    pets: Path, tmp_path: Path
) -> None:
    rows = {"train": [0, 1, 0, 1, 0, 1], "validation": [0, 1], "test": [0, 0, 1, 1]}
    lines, number = ["parameters\t0.1\t0.2\t0\n"], 0
    for split, labels in rows.items():
        for row, label in enumerate(labels):
            digest = hashlib.sha256(png(number)).hexdigest()
            part = "val" if split == "validation" else split
            lines.append(f"{part}\t{split}/{row:06d}\t{label}\t{digest}\n")
            number += 1
    expected = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert data.identify(spec(pets)).manifest == expected
    first = 0
    arrow = DatasetDict()
    for split, labels in rows.items():
        arrow[split] = table(first, labels)
        first += len(labels)
    arrow.save_to_disk(tmp_path / "arrow")
    assert data.identify(spec(tmp_path / "arrow")).manifest == expected


def test_how_a_set_is_found_is_no_part_of_a_run(pets: Path) -> None:
    class Nothing:
        """A method as far as identities ask for one."""

        def identity(self) -> dict[str, object]:
            return {"name": "nothing"}

    def run(dataset: DatasetSpec) -> RunSpec:
        return RunSpec(Nothing(), BackboneSpec("vit_mini"), dataset)  # type: ignore[arg-type]

    plain = DatasetSpec(name="hf", reader="hf", manifest="0" * 64)
    named = replace(
        plain, hub="ORG/NAME", config_name="a", revision="b", image_column="c", label_column="d",
        train_split="e", val_split="f", test_split="g",
    )  # fmt: skip
    assert run(named).run_id == run(plain).run_id
    assert run(replace(plain, manifest="1" * 64)).run_id != run(plain).run_id
    assert run(named).describe()["dataset"]["hub"] == "ORG/NAME"
    assert "hub" not in run(plain).describe()["dataset"]  # as in records from before it


def test_what_was_found_is_told(pets: Path) -> None:
    assert data.describe(read(pets)) == [
        f"pets: 12 images of 2 classes in {pets} (image column 'image', label column 'label', "
        "splits train, test, validation). Split as given: train 6, val 2, test 4."
    ]


def test_unchanged_tables_are_hashed_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = data.identify(spec(pets))
    monkeypatch.setattr(hub.TablePictures, "_stored", lambda *_: pytest.fail("hashed again"))
    assert data.identify(spec(pets)) == known


SIZES = {"train": 6, "validation": 2, "test": 4}


@pytest.mark.parametrize(
    ("sizes", "changes", "expected"),
    [
        (SIZES, {}, {"train": "train", "val": "validation", "test": "test"}),
        ({"train": 6, "dev": 2, "test": 4}, {}, {"train": "train", "val": "dev", "test": "test"}),
        ({"train": 6, "test": 4, "extra": 9}, {}, {"train": "train", "test": "test"}),
        # validation is reported, so val is cut from train
        ({"train": 6, "dev": 2}, {"test_split": "dev"}, {"train": "train", "test": "dev"}),
        (SIZES, {"test_split": "validation"}, {"train": "train", "test": "validation"}),
        ({"a": 6, "b": 4}, {"train_split": "a", "test_split": "b"}, {"train": "a", "test": "b"}),
        ({"everything": 6}, {}, {"all": "everything"}),
        (SIZES, {"train_split": "train", "test_split": "train"}, {"all": "train"}),
    ],
)  # fmt: skip
def test_splits_are_chosen_by_their_usual_names_or_as_asked(sizes, changes, expected) -> None:
    assert hub.choose_splits(sizes, spec("X", **changes), "X") == expected


@pytest.mark.parametrize(
    ("sizes", "changes", "expected"),
    [
        (
            {"train": 6000, "validation": 2},
            {},
            "X has train (6,000), validation (2), but no test split. Report another one with "
            "dataset.test_split=validation, or cut all three from one with "
            "dataset.train_split=train dataset.test_split=train.",
        ),
        ({"a": 1, "test": 1}, {}, "X has a (1), test (1), but no train split. Name one with "),
        ({**SIZES, "dev": 1}, {}, "X has splits validation and dev. Say with dataset.val_split "),
        (SIZES, {"val_split": "test"}, "X: dataset.val_split=test is train or test as well."),
        (SIZES, {"test_split": "tset"}, "in dataset.test_split of X: 'tset'. Did you mean: test"),
    ],
)
def test_splits_that_are_missing_or_ambiguous_are_refused(sizes, changes, expected: str) -> None:
    with pytest.raises(PeftbenchError) as caught:
        hub.choose_splits(sizes, spec("X", **changes), "X")
    assert expected in str(caught.value)


def test_a_missing_val_is_cut_from_train_and_one_split_is_cut_into_three(tmp_path: Path) -> None:
    both = {"train": table(0, [0, 1] * 10), "test": table(20, [0, 1])}
    listing = read(write(tmp_path / "both", both))
    assert (len(listing.train), len(listing.val), len(listing.test)) == (18, 2, 2)
    assert all(name.startswith("train/") for name in listing.train.names + listing.val.names)
    alone = read(write(tmp_path / "alone", {"train": table(0, [0, 1] * 10)}))
    assert (len(alone.train), len(alone.val), len(alone.test)) == (14, 2, 4)
    assert "Split drawn here: train 14, val 2, test 4" in data.describe(alone)[0]


@pytest.mark.parametrize(
    ("labels", "kind", "names", "numbers"),
    [
        ([10, 9, 10, 9], Value("int64"), ("9", "10"), (1, 0, 1, 0)),
        (["ö", "z", "Z", "ö"], Value("string"), ("Z", "z", "ö"), (2, 1, 0, 2)),
        ([True, False, True, True], Value("bool"), ("False", "True"), (1, 0, 1, 1)),
    ],
)
def test_labels_without_names_are_numbered_in_their_order(
    tmp_path: Path, labels, kind, names, numbers
) -> None:
    parts = {name: table(4 * i, labels, kind) for i, name in enumerate(("train", "val", "test"))}
    listing = read(write(tmp_path / "set", parts))
    assert listing.class_names == names
    assert listing.test.labels == numbers


def test_columns_are_asked_for_where_there_are_several(tmp_path: Path) -> None:
    fine = ([0, 1, 0, 1], ClassLabel(names=["a", "b"]))
    second = (cells(50, 4), Encoded())
    splits = {
        name: table(i * 4, [1, 0, 1, 0], CLASSES, fine_label=fine, thumbnail=second)
        for i, name in enumerate(("train", "val", "test"))
    }
    place = write(tmp_path / "set", splits)
    columns = "image (Image), label (ClassLabel), fine_label (ClassLabel), thumbnail (Image)."
    assert refused(place) == (
        f"{place} has 2 image columns. Name one with dataset.image_column; its columns are "
        f"{columns}"
    )
    assert "has 2 label columns. Name one with dataset.label" in refused(
        place, image_column="image"
    )
    listing = read(place, image_column="thumbnail", label_column="fine_label")
    assert listing.class_names == ("a", "b")
    assert listing.test.labels == (0, 1, 0, 1)
    assert listing.test.digests[0] == hashlib.sha256(png(50)).hexdigest()
    text = refused(place, image_column="label", label_column="label")
    assert "column 'label' holds ClassLabel and no images" in text
    text = refused(place, image_column="image", label_column="image")
    assert "column 'image' holds Image; a label is one integer or one word" in text
    assert "Did you mean: image" in refused(place, image_column="imge")


def test_a_table_without_images_lists_its_columns(tmp_path: Path) -> None:
    texts = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    place = write(tmp_path / "texts", {"train": texts})
    assert refused(place) == (
        f"{place} has no image column. Name one with dataset.image_column; its columns are "
        "text (string), label (int64)."
    )


def test_hidden_and_missing_labels_are_refused(tmp_path: Path) -> None:
    splits = {"train": table(0, [0, 1] * 2), "test": table(4, [-1, -1, 0])}
    text = refused(write(tmp_path / "hidden", splits))
    assert "2 of 3 labels of split test are -1, which is how hidden labels are written" in text
    assert "dataset.test_split=NAME" in text
    splits = {"train": table(0, [0, None] * 2), "test": table(4, [0, 1])}
    assert "train/000001 has no label in column 'label'" in refused(write(tmp_path / "no", splits))


@pytest.mark.parametrize("second", [["cat", "dog"], ["dog", "bird"], ["dog", "cat", "bird"]])
def test_files_that_name_classes_in_another_order_are_refused(tmp_path: Path, second) -> None:
    kind = ClassLabel(names=second)
    splits = {"train": table(0, [0, 1] * 6), "test": table(20, [0, 1] * 3, kind)}
    text = refused(write(tmp_path / "set", splits))
    wrong = 2 if len(second) == 3 else int(second[0] == "dog")
    assert "column 'label' of test" in text and f"calls class {wrong} {second[wrong]!r}" in text
    other = ("'dog'", "'cat'", "nothing")[wrong]
    assert f"other files or the card of the set call it {other}: labels would be swapped" in text


def test_shards_of_one_split_are_held_together_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"train": table(0, [0, 1] * 6), "test": table(20, [0, 1])})
    odd = table(40, [0, 1] * 3, ClassLabel(names=["cat", "dog"]))
    odd.to_parquet(str(folder / "train-00001-of-00002.parquet"))
    assert "labels would be swapped" in refused(folder)


def test_splits_saved_with_other_names_are_refused(tmp_path: Path) -> None:
    swapped = table(20, [0, 1], ClassLabel(names=["cat", "dog"]))
    place = tmp_path / "saved"
    DatasetDict({"train": table(0, [0, 1] * 6), "test": swapped}).save_to_disk(str(place))
    assert "column 'label' of split test is not that of the others" in refused(place)


def test_a_pipe_in_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"train": table(0, [0, 1] * 6), "test": table(20, [0, 1])})
    os.mkfifo(folder / "train-00001.parquet")
    assert "train-00001.parquet: it is no plain file but a named pipe" in refused(folder)


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    splits = {"train": table(0, [0, 0]), "test": table(2, [0, 1])}
    text = refused(write(tmp_path / "set", splits))
    assert "Class 'cat' is in test but not in train of" in text


def test_a_broken_image_is_named_and_never_skipped(tmp_path: Path, small: Preprocessing) -> None:
    train = {"bytes": b"no picture", "path": "x.png"}
    columns = {"image": [*cells(0, 3), train], "label": [0, 1, 0, 1]}
    features = Features({"image": Encoded(), "label": CLASSES})
    broken = Dataset.from_dict(columns, features=features)
    place = write(
        tmp_path / "set", {"train": broken, "val": table(4, [0, 1]), "test": table(6, [1])}
    )
    with pytest.raises(DataError, match=r"Cannot decode image train/000003 of .*set: .* Repair it"):
        data.load(spec(place), Phase.TUNE, small)
    columns["image"][3] = None  # type: ignore[call-overload]
    empty = Dataset.from_dict(columns, features=features)
    place = write(tmp_path / "gap", {"train": empty, "test": table(6, [1])})
    assert (
        refused(place) == f"{place}: train/000003 has no image. Remove the row from the data set."
    )


def test_images_beside_a_table_are_read_and_missing_ones_named(tmp_path: Path, make_folder) -> None:
    root = make_folder({"cat": 4, "dog": 4})
    listing = read(root)  # `datasets` lists their paths
    assert listing.class_names == ("cat", "dog")
    digests = {d for _, part in listing.splits() for d in part.digests}
    files = {hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.png")}
    assert digests == files
    # no more than two fields says that these are images
    linked = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "gone.png"}] * 2
    (tmp_path / "linked").mkdir()
    rows = pa.table({"picture": linked, "class": ["a", "b"] * 2})
    pq.write_table(rows, tmp_path / "linked" / "train.parquet")
    text = refused(tmp_path / "linked")
    assert "the image of train/000001 is not stored in the table, and gone.png cannot" in text


def test_a_set_that_cannot_be_reached_fails_at_once_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits: list[float] = []
    text = refused("org/name")
    assert text == (
        "dataset.hub=org/name is not in the local cache and HF_HUB_OFFLINE is set. Run once with "
        "a network, or set dataset.hub to a folder of its parquet files."
    )
    for variable in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)

    def unreachable(address: tuple[str, int], timeout: float) -> None:
        waits.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(network.socket, "create_connection", unreachable)
    assert "and huggingface.co is out of reach (timed out). Run once" in refused("org/name")
    assert len(waits) == 1 and waits[0] <= 5  # seconds, all that there is to wait for


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("mnist", "dataset.hub=mnist is neither a folder nor of the form ORG/NAME."),
        ("./nowhere", "dataset.hub=./nowhere is neither a folder nor of the form ORG/NAME."),
        (__file__, "is a file, not a folder. Give the folder of the parquet or arrow files"),
        ("", "Data set 'hf' needs dataset.hub=ORG/NAME"),
    ],
)
def test_what_is_no_set_is_refused(place: str, expected: str) -> None:
    assert expected in refused(place)


def test_scripts_are_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("open('ran', 'w')\nraise SystemExit('ran')\n")
    text = refused(folder)
    assert "is read by a script, and code that comes with a data set is never run" in text
    assert "dataset.revision=refs/convert/parquet" in text


def test_a_broken_or_empty_folder_is_one_line(tmp_path: Path, pets: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "cannot be read: " in refused(tmp_path / "empty")
    (pets / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    assert "cannot be read: " in refused(pets)
    assert "Name one with dataset.config_name" in refused(pets, config_name="other")


def test_a_missing_package_is_named_with_its_command(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refused(pets) == (
        "Data set 'hf' needs the package datasets. Install it: pip install 'peftbench[hf]'."
    )


def test_rows_with_one_value_of_a_column_stay_in_one_split(tmp_path: Path) -> None:
    owners = [f"owner {row // 2}" for row in range(20)]
    column = (owners, Value("string"))
    root = write(tmp_path / "pets", {"train": table(0, [0, 1] * 10, owner=column)})
    listing = read(root, group_column="owner")
    of_parts = [
        {owners[int(name.rpartition("/")[2])] for name in part.names}
        for _, part in listing.splits()
    ]
    assert sum(map(len, of_parts)) == 10 == len(set.union(*of_parts))
    assert "'owenr'. Did you mean: owner" in refused(root, group_column="owenr")
    gaps = table(0, [0, 1] * 10, owner=([*owners[:-1], None], Value("string")))
    assert "row 19 of all has no value in column 'owner'" in refused(
        write(tmp_path / "gaps", {"train": gaps}), group_column="owner"
    )
