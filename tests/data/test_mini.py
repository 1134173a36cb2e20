"""Promises of the suite inside the package."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench import data
from peftbench.data import mini, sprites
from peftbench.errors import DataError, SplitRoleError, UnknownName
from peftbench.spec import DatasetSpec, Phase, Preprocessing

COUNTS = {
    "mini/clipart12": ("natural", 12, 240, 60, 795),
    "mini/digits": ("specialized", 10, 200, 50, 1000),
    "mini/sprites_location": ("structured", 16, 320, 80, 1000),
    "mini/sprites_orientation": ("structured", 16, 320, 80, 1000),
}


def spec(task: str, **changes: object) -> DatasetSpec:
    return replace(DatasetSpec(name=task, reader="mini"), **changes)


def listing(task: str) -> data.Listing:
    return mini.read_mini(spec(task))


def archive(task: str) -> dict[str, np.ndarray]:
    with np.load(mini.ROOT / task.split("/")[1] / "images.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.mark.parametrize("task", COUNTS)
def test_splits_have_their_published_sizes(task: str) -> None:
    group, num_classes, *sizes = COUNTS[task]
    found = listing(task)
    assert (found.suite, found.suite_version, found.group) == ("mini", 1, group)
    assert len(found.class_names) == num_classes
    assert [len(part) for _, part in found.splits()] == sizes
    assert np.bincount(found.train.labels).tolist() == [20] * num_classes
    assert np.bincount(found.val.labels).tolist() == [5] * num_classes
    assert set(found.test.labels) == set(range(num_classes))


@pytest.mark.parametrize("task", COUNTS)
def test_splits_share_neither_names_nor_bytes(task: str) -> None:
    found = listing(task)
    for one, other in combinations([part for _, part in found.splits()], 2):
        assert not set(one.names) & set(other.names)
        assert not set(one.digests) & set(other.digests)
    names = [name for _, part in found.splits() for name in part.names]
    assert len(set(names)) == len(names)


def test_no_clip_art_picture_is_close_to_one_of_another_split() -> None:
    found = listing("mini/clipart12")
    stored = archive("mini/clipart12")
    starts = [0, *stored["ends"][:-1]]
    raw = stored["bytes"].tobytes()
    thumbnails = []
    for start, end in zip(starts, stored["ends"], strict=True):
        with Image.open(io.BytesIO(raw[start:end])) as picture:
            assert picture.size == (64, 64)
            tiny = picture.convert("RGB").resize((8, 8), Image.Resampling.BOX)
        thumbnails.append(np.asarray(tiny, dtype=np.int16).ravel())
    flat = np.stack(thumbnails)
    split = np.repeat([0, 1, 2], [len(part) for _, part in found.splits()])
    for row in range(len(flat)):
        others = flat[split != split[row]]
        assert np.abs(others - flat[row]).max(axis=1).min() > 3  # 3 grey levels: WebP noise


@pytest.mark.parametrize("task", COUNTS)
def test_the_rollup_hash_follows_from_names_labels_and_bytes(task: str) -> None:
    manifest = json.loads((mini.ROOT / task.split("/")[1] / "manifest.json").read_text())
    lines = [
        f"{split}\t{name}\t{label}\t{digest}\n"
        for split, rows in manifest["splits"].items()
        for name, label, digest in rows
    ]
    expected = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert data.identify(spec(task)).manifest == expected


@pytest.mark.parametrize("task", COUNTS)
def test_every_image_matches_its_hash(task: str, small: Preprocessing) -> None:
    found = listing(task)
    for split, part in found.splits():  # decoding checks each hash and raises
        assert found.decode(part, small, split).shape == (len(part), 8, 8, 3)


def test_stored_sprites_are_what_the_generator_draws() -> None:
    for target in ("location", "orientation"):
        stored = archive(f"mini/sprites_{target}")
        found = listing(f"mini/sprites_{target}")
        labels = [label for _, part in found.splits() for label in part.labels]
        names = [name for _, part in found.splits() for name in part.names]
        for row in range(0, len(labels), 7):
            factors = sprites.SpriteFactors(*stored["factors"][row].tolist())
            drawn = sprites.draw(factors)
            kept = np.unpackbits(stored["images"][row]).reshape(64, 64) * 255
            assert np.array_equal(drawn, kept)
            assert labels[row] == sprites.label_of(factors, target)
            assert names[row] == factors.name


def test_no_two_sprites_share_factors_or_pixels() -> None:
    for target in ("location", "orientation"):
        stored = archive(f"mini/sprites_{target}")
        assert len(np.unique(stored["factors"], axis=0)) == 1400
        assert len(np.unique(stored["images"], axis=0)) == 1400


def test_a_suite_is_at_most_three_megabytes() -> None:
    assert sum(path.stat().st_size for path in mini.ROOT.rglob("*")) < 3_000_000


@pytest.mark.parametrize("task", COUNTS)
def test_each_task_carries_its_notice_and_licence(task: str) -> None:
    text = data.card(spec(task))
    assert "Licence:" in text and "## Notice" in text
    group, num_classes, train, val, test = COUNTS[task]
    assert f"group {group}." in text
    assert f"| **{num_classes} classes** | **{train}** | **{val}** | **{test}** |" in text


def test_digits_are_the_scans_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    digits = datasets.load_digits()
    found = listing("mini/digits")
    stored = archive("mini/digits")["images"].reshape(-1, 8, 8)
    rows = [(name, label) for _, p in found.splits() for name, label in zip(p.names, p.labels)]  # noqa: B905
    for image, (name, label) in zip(stored, rows, strict=True):
        row = int(name.split("/")[1])
        assert label == digits.target[row]
        assert np.array_equal(image, np.round(digits.images[row] * (255 / 16)).astype(np.uint8))


def test_a_digit_at_its_own_size_is_unchanged_grey() -> None:
    own = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    splits = data.load(spec("mini/digits"), Phase.TUNE, own)
    stored = archive("mini/digits")["images"].reshape(-1, 8, 8)
    assert np.array_equal(splits.train.images, np.repeat(stored[:200, :, :, None], 3, axis=3))


def test_tuning_sees_train_and_val_and_never_test(small: Preprocessing) -> None:
    splits = data.load(spec("mini/digits"), Phase.TUNE, small)
    found = listing("mini/digits")
    assert isinstance(splits.train, data.TrainSplit) and isinstance(splits.report, data.ValSplit)
    assert splits.train.names == found.train.names
    assert splits.report.names == found.val.names
    assert splits.num_classes == 10
    assert splits.manifest == found.manifest


def test_the_final_phase_trains_on_train_and_val_and_reports_test(small: Preprocessing) -> None:
    splits = data.load(spec("mini/digits"), Phase.FINAL, small)
    found = listing("mini/digits")
    assert isinstance(splits.report, data.TestSplit)
    assert splits.train.names == found.train.names + found.val.names
    assert splits.train.labels.tolist() == [*found.train.labels, *found.val.labels]
    images, labels = splits.report.open_once()
    assert labels.tolist() == list(found.test.labels)
    assert np.array_equal(images, found.decode(found.test, small, "test"))
    with pytest.raises(SplitRoleError):
        splits.report.open_once()


def test_a_limit_keeps_that_many_images_of_each_split(small: Preprocessing) -> None:
    limited = spec("mini/sprites_location", limit=32)
    splits = data.load(limited, Phase.FINAL, small)
    assert len(splits.train) == 64 and len(splits.report) == 32
    assert np.bincount(splits.train.labels).tolist() == [4] * 16
    again = data.load(limited, Phase.FINAL, small)
    assert again.train.names == splits.train.names
    assert set(splits.train.names) < set(
        data.load(spec(limited.name), Phase.FINAL, small).train.names
    )


def test_identify_fills_the_suite_and_changes_nothing_else() -> None:
    plain = spec("mini/digits", limit=5, split_seed=3)
    known = data.identify(plain)
    assert (known.suite, known.suite_version, known.group) == ("mini", 1, "specialized")
    assert known.facts == replace(plain.facts, classes=10)
    found = {"suite": "", "suite_version": 0, "group": "", "manifest": "", "facts": plain.facts}
    assert replace(known, **found) == plain
    assert data.identify(known) == known


def test_a_manifest_that_no_longer_matches_is_refused(small: Preprocessing) -> None:
    with pytest.raises(DataError, match="the run was built for 0123456789ab"):
        data.load(spec("mini/digits", manifest="0123456789abcdef"), Phase.TUNE, small)


def test_an_unknown_task_or_reader_is_named_with_a_suggestion() -> None:
    with pytest.raises(UnknownName, match="Did you mean: mini/digits"):
        data.identify(spec("mini/digit"))
    with pytest.raises(UnknownName, match=r"Unknown data set reader 'minni'\. Did you mean: mini"):
        data.identify(DatasetSpec(name="mini/digits", reader="minni"))


def copied_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "suite" / "digits"
    folder.mkdir(parents=True)
    for path in (mini.ROOT / "digits").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(mini, "ROOT", folder.parent)
    return folder


def test_a_changed_pixel_in_the_package_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Preprocessing
) -> None:
    folder = copied_suite(tmp_path, monkeypatch)
    with np.load(folder / "images.npz") as stored:
        images = stored["images"].copy()
    images[3, 0] ^= 1
    np.savez_compressed(folder / "images.npz", images=images)
    with pytest.raises(DataError, match=r"image digits/\d+ does not match its hash. Install"):
        data.load(spec("mini/digits"), Phase.TUNE, small)


def test_an_image_moved_to_another_split_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied_suite(tmp_path, monkeypatch)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"].append(manifest["splits"]["test"].pop())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="does not match its roll-up hash"):
        data.identify(spec("mini/digits"))


def test_a_missing_archive_is_an_error_of_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Preprocessing
) -> None:
    folder = copied_suite(tmp_path, monkeypatch)
    (folder / "images.npz").unlink()
    with pytest.raises(DataError, match="Install peftbench again"):
        data.load(spec("mini/digits"), Phase.TUNE, small)


def test_importing_data_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from peftbench import data; from peftbench.spec import DatasetSpec;"
        "data.identify(DatasetSpec('mini/digits', 'mini'));"
        "assert not {'torch', 'timm', 'sklearn'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arrays_are_the_same_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Preprocessing
) -> None:
    here = data.load(spec("mini/clipart12", limit=24), Phase.TUNE, small)
    monkeypatch.chdir(tmp_path)
    there = data.load(spec("mini/clipart12", limit=24), Phase.TUNE, small)
    assert here.train.names == there.train.names
    assert np.array_equal(here.train.images, there.train.images)
