"""Test sets that a trained model is measured on without further training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trees
from support.tiny_runs import short_timings, tiny_spec
from trees import SIZE

from peftbench import data
from peftbench.config.build import dataset_specs
from peftbench.data.shifts import ALEXNET, SEVERITIES
from peftbench.errors import DataError
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment, robustness
from peftbench.spec import DatasetSpec, Phase
from peftbench.tasks import CLASSIFICATION

WNIDS = ("n01", "n02", "n10")


def shift(name: str, root: Path, classes: int, test: int) -> DatasetSpec:
    spec = dataset_specs(str(root))[name]
    return replace(spec, facts=replace(spec.facts, classes=classes, test=test))


def write(folder: Path, names: tuple[str, ...], each: int = 1) -> None:
    """The first test images of the classes, in folders of these names."""
    for label, name in enumerate(names):
        rows = [pixels for pixels, own in trees.items()["test"] if own == label]
        for number in range(each):
            trees.save(rows[number], folder / name / f"some picture {number}.JPEG")


def sure_of(column: int):
    """A model of three classes that always says one of them."""
    return lambda images: np.eye(3, dtype=np.float32)[[column] * len(images)]


def test_classes_that_a_shift_lacks_cannot_be_answered(tmp_path: Path) -> None:
    """ImageNet-A has 200 of the 1,000 classes; the logits of the others are left out."""
    write(tmp_path / "imagenet-a" / "inner", ("n01", "n10"), each=2)
    spec = shift("imagenet_a", tmp_path, classes=2, test=4)
    (part,) = data.load_shift(spec, WNIDS, SIZE)
    assert part.classes.tolist() == [0, 2]
    assert part.labels.tolist() == [0, 0, 1, 1]
    assert part.images[1:3].tolist() == [
        trees.items()["test"][1][0].tolist(),
        trees.items()["test"][2][0].tolist(),
    ]

    def model(images: data.DecodedImages) -> np.ndarray:
        # sure of the absent class, then of the first: right on the two images of n01
        return np.array([[1, 9, 0]] * len(images), dtype=np.float32)

    found = robustness.measure(spec, [part], model, CLASSIFICATION)
    assert (found["imagenet_a/top1"], found["imagenet_a/num_images"]) == (0.5, 4.0)


def test_numbered_folders_count_the_sorted_classes(tmp_path: Path) -> None:
    write(tmp_path / "imagenet-v2", ("0", "1", "2"))
    (part,) = data.load_shift(shift("imagenet_v2", tmp_path, 3, 3), WNIDS, SIZE)
    assert part.classes.tolist() == part.labels.tolist() == [0, 1, 2]


def test_the_mean_corruption_error_is_relative_to_alexnet(tmp_path: Path) -> None:
    for corruption in ALEXNET:
        for severity in SEVERITIES:
            write(tmp_path / "ImageNet-C" / corruption / severity, WNIDS)
    write(tmp_path / "ImageNet-C" / "spatter" / "1", WNIDS)  # one of four that do not count
    spec = shift("imagenet_c", tmp_path, 3, 3)
    parts = list(data.load_shift(spec, WNIDS, SIZE))
    assert len(parts) == 15 * 5
    found = robustness.measure(spec, parts, sure_of(0), CLASSIFICATION)
    # one of three images is right, whatever was done to it
    expected = np.mean([(2 / 3) / error for error in ALEXNET.values()])
    assert found["imagenet_c/mce"] == pytest.approx(expected)
    assert found["imagenet_c/fog/3/top1"] == pytest.approx(1 / 3)
    # of three classes one has the F1 of precision 1 / 3 and recall 1, the others 0
    by_f1 = robustness.measure(spec, parts, sure_of(0), CLASSIFICATION, "f1_macro")
    assert by_f1["imagenet_c/fog/3/f1_macro"] == pytest.approx(0.5 / 3)
    assert by_f1["imagenet_c/f1_macro"] == pytest.approx(0.5 / 3)
    assert {name: by_f1[name] for name in found} == found
    assert len(by_f1) == len(found) + 15 * 5 + 1
    (tmp_path / "ImageNet-C" / "fog" / "5").rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"lacks 1 of 75 folders, first fog/5\."):
        list(data.load_shift(spec, WNIDS, SIZE))


def test_a_shift_that_is_not_as_published_is_refused(tmp_path: Path) -> None:
    spec = shift("imagenet_r", tmp_path, 3, 3)
    with pytest.raises(DataError, match=r"imagenet_r is not in .* Get it: github hendrycks"):
        list(data.load_shift(spec, WNIDS, SIZE))
    write(tmp_path / "imagenet-r", ("n01", "n02", "n11"))
    with pytest.raises(DataError, match=r"1 of 3 class folders .* first 'n11'"):
        list(data.load_shift(spec, WNIDS, SIZE))
    with pytest.raises(DataError, match=r"imagenet_r has 3 images .* and 4 are published"):
        list(data.load_shift(shift("imagenet_r", tmp_path, 3, 4), (*WNIDS, "n11"), SIZE))
    with pytest.raises(DataError, match=r"dataset=imagenet1k dataset\.shifts=\[imagenet_r\]"):
        data.identify(spec)


def test_a_run_on_imagenet_records_its_shifts_without_training_on_them(tmp_path: Path) -> None:
    parts = {"train": ["train", "val"], "val": ["test"]}
    trees.imagefolder(tmp_path / "imagenet", parts, WNIDS)
    write(tmp_path / "imagenet-a", ("n02", "n10"), each=2)
    dataset = replace(trees.small("imagenet1k", tmp_path), shifts=("imagenet_a",))
    spec = replace(
        tiny_spec("linear"),
        dataset=data.identify(dataset),
        shifts=(shift("imagenet_a", tmp_path, 2, 4),),
    )
    with short_timings():
        record = experiment.run(
            spec, ResultsStore(tmp_path / "results"), experiment.RunOptions(device="cpu")
        )
        tuned = experiment.run(
            replace(spec, phase=Phase.TUNE),
            ResultsStore(tmp_path / "results"),
            experiment.RunOptions(device="cpu"),
        )
    assert (record.status, tuned.status) == (Status.OK, Status.OK)
    assert record.metrics["imagenet_a/num_images"] == 4.0
    assert record.metrics["test/num_images"] == 6.0
    assert "read as imagefolder" in record.notes
    assert not any(name.startswith("imagenet_a") for name in tuned.metrics)
    # what a model is tested on besides is part of the run
    assert replace(spec, dataset=replace(spec.dataset, shifts=())).run_id != spec.run_id
