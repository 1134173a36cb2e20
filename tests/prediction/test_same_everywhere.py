"""One prediction of each picture: recorded, by the command, in Python, exported, merged, by timm.

For pictures of every kind, squashed and cropped, at 64 and 224 pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from support.pictures import CLASSES, KINDS, WHITE, run_spec, write
from support.tiny_runs import short_timings
from timm.data import create_transform, resolve_model_data_config

import peftbench as pb
from peftbench import data
from peftbench.cli.main import main
from peftbench.data import TestSplit
from peftbench.prediction.predictor import Prediction
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.export import export
from peftbench.spec import Phase, Preprocessing

RUNS: dict[str, dict[str, Any]] = {
    "squash at 64": dict(backbone="test_vit", size=64, method="lora", interpolation="bicubic"),
    "crop at 224": dict(
        backbone="test_vit",
        size=224,
        method="lora",
        resize="crop",
        crop_fraction=0.9,
        interpolation="bicubic",
    ),
    "crop at 64": dict(
        backbone="test_convnext",
        size=64,
        method="bias",
        resize="crop",
        crop_fraction=0.875,
        interpolation="bilinear",
    ),
    "squash at 224": dict(backbone="test_resnet", size=224, method="full", interpolation="lanczos"),
}
WAYS = ("command", "run", "exported", "merged", "timm", "merged in memory")
ROUNDING = 1e-5  # between batches of another size, and weights that were merged or not


@dataclass(frozen=True)
class Said:
    """What was said of each test picture by its name, as (class, probability)."""

    ways: dict[str, dict[str, tuple[str, float]]]
    squares: dict[str, np.ndarray]  # (S, S, 3) uint8, as the run read them
    size: int
    folder: Path  # of the test pictures' data
    whole: Path  # the merged model
    run: Any  # the loaded run


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module", params=RUNS)
def said(
    request: pytest.FixtureRequest, kinds: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Said]:
    """One run, and what each way of using it says."""
    root = tmp_path_factory.mktemp("runs")
    with short_timings() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(root / "cache"))
        spec = run_spec(kinds, **RUNS[request.param])
        store = ResultsStore(root / "results")
        record = experiment.run(spec, store)
        assert record.status is Status.OK, record.error
        saved = store.load_predictions(spec.method.name, record.run_id)
        assert saved is not None and saved.names is not None
        classes = [CLASSES[number] for number in saved.classes]
        recorded = dict(
            zip(saved.names, zip(classes, saved.confidence.tolist(), strict=True), strict=True)
        )
        task = export(record.run_id, store.root, root / "task")
        whole = export(record.run_id, store.root, root / "whole", merged=True)
        table = root / "rows.csv"
        with pytest.raises(SystemExit) as exit:
            main(["predict", str(whole), str(kinds / "test"), "--csv", str(table)])
        assert exit.value.code == 0
        loaded = pb.load(record.run_id[:8], results_dir=store.root)
        exported = pb.load(task)
        paths = {name: kinds / name for name in saved.names}
        ways = {
            "recorded": recorded,
            "command": _of_table(table, kinds),
            "run": _told(paths, loaded.predict(list(paths.values()))),
            "exported": _told(paths, [exported.predict(path) for path in paths.values()]),
            "merged": _told(paths, pb.load(whole).predict(list(paths.values()))),
            "merged in memory": _told(paths, pb.merge(loaded).predict(list(paths.values()))),
            "timm": _by_readme(whole, paths),
        }
        yield Said(ways, _squares(spec), spec.backbone.image_size, kinds, whole, loaded)


def _of_table(path: Path, root: Path) -> dict[str, tuple[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        Path(row["file"]).relative_to(root).as_posix(): (
            row["class_1"],
            float(row["probability_1"]),
        )
        for row in rows
    }


def _told(paths: dict[str, Path], found: list[Prediction]) -> dict[str, tuple[str, float]]:
    return {name: (one.class_name, one.probability) for name, one in zip(paths, found, strict=True)}


def _code(folder: Path, first: str) -> str:
    """The block of Python in a README that begins with this line."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    (block,) = [block for block in blocks if block.startswith(first)]
    return block


def _by_readme(whole: Path, paths: dict[str, Path]) -> dict[str, tuple[str, float]]:
    """What the code of the README says that does without peftbench."""
    code = _code(whole, "import numpy as np\nimport timm\n").replace("FOLDER", str(whole))
    before, with_picture, after = code.partition("with torch.inference_mode()")
    scope: dict[str, Any] = {}
    exec(before, scope)
    found = {}
    for name, path in paths.items():
        exec((with_picture + after).replace("PICTURE", str(path)), scope)
        best = scope["probabilities"].argmax()
        found[name] = (scope["classes"][best], scope["probabilities"][best].item())
    return found


def _squares(spec: Any) -> dict[str, np.ndarray]:
    """The test pictures as the pipeline of runs gives them, from a store of pixels of its own."""
    cfg = spec.preprocessing
    wanted = Preprocessing(
        size=spec.backbone.image_size,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        interpolation=cfg.interpolation,
        resize=cfg.resize,
        crop_fraction=cfg.crop_fraction or 1.0,
    )
    report = data.load(spec.dataset, Phase.FINAL, wanted).report
    assert isinstance(report, TestSplit)
    return dict(zip(report.names, report.open_once().images, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_says_of_each_picture_what_was_recorded(said: Said, way: str, kind: str) -> None:
    recorded, found = said.ways["recorded"], said.ways[way]
    assert found.keys() == recorded.keys() == said.squares.keys()
    names = [name for name in recorded if Path(name).name.startswith(f"{kind}-")]
    assert len(names) == len(CLASSES)
    assert [found[name][0] for name in names] == [recorded[name][0] for name in names]
    np.testing.assert_allclose(
        [found[name][1] for name in names], [recorded[name][1] for name in names], atol=ROUNDING
    )


def test_other_pixels_would_be_seen(said: Said) -> None:
    """Probabilities of different pictures differ by far more than what is let through."""
    told = sorted(probability for _, probability in said.ways["recorded"].values())
    assert told[-1] - told[0] > 1000 * ROUNDING
    assert np.median(np.diff(told)) > 5 * ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_the_run_bit_for_bit(said: Said, kind: str) -> None:
    model = timm.create_model(f"local-dir:{said.whole}", pretrained=True)
    settings = resolve_model_data_config(model)
    by_timm = create_transform(**settings, is_training=False, normalize=False)
    normalised = create_transform(**settings, is_training=False)
    scope: dict[str, Any] = {}
    code = _code(said.whole, "import numpy").replace("FOLDER", str(said.whole))
    exec(code.partition("with torch")[0], scope)
    opened: Callable[[Path], Any] = scope["opened"]
    names = [name for name in said.squares if Path(name).name.startswith(f"{kind}-")]
    assert names
    for name in names:
        square, path = said.squares[name], said.folder / name
        assert square.shape == (said.size, said.size, 3)
        assert np.array_equal(said.run.transform.pixels(path), square)
        assert np.array_equal(np.asarray(by_timm(opened(path))).transpose(1, 2, 0), square)
        torch.testing.assert_close(
            normalised(opened(path)), said.run.transform(path), rtol=0, atol=2e-6
        )


def test_the_range_of_wide_pictures_is_kept_with_the_model(said: Said) -> None:
    levels = said.run.transform.levels
    assert (levels.black, levels.white) == (0, WHITE)
    text = (said.whole / "README.md").read_text()
    assert f"more than 8 bits: 0 is black and {WHITE} white" in text


def test_what_the_readme_shows_of_peftbench_runs(said: Said) -> None:
    picture = said.folder / next(iter(said.squares))
    scope: dict[str, Any] = {}
    code = _code(said.whole, "import peftbench as pb\n").replace("FOLDER", str(said.whole))
    exec(code.replace('"PICTURE"', repr(str(picture))), scope)
    best = said.ways["recorded"][picture.relative_to(said.folder).as_posix()]
    assert scope["found"].class_name == best[0]
