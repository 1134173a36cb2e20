"""Promises of a run about the pictures that it reports: their names, and how they were read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from support.tiny_runs import tiny_spec, write_images

from peftbench import data
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import DatasetSpec, Phase, Precision, Preprocessing


def test_predictions_of_a_folder_name_its_files_and_those_of_arrays_name_none(
    store: ResultsStore, tmp_path: Path
) -> None:
    root = write_images(tmp_path / "pets")
    own = DatasetSpec("pets", reader="folder", suite="own", root=str(root))
    for dataset, files in ((own, True), (tiny_spec().dataset, False)):
        spec = tiny_spec(dataset=data.identify(dataset))
        record = experiment.run(spec, store)
        found = store.load_predictions("linear", record.run_id)
        assert found is not None
        if not files:
            assert found.names is None and found.numbers is None
            continue
        assert found.numbers is not None
        every = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
        assert tuple(every[number] for number in found.numbers) == found.names
        size = Preprocessing(size=12, mean=(0.5,) * 3, std=(0.5,) * 3)
        assert found.names == data.load(spec.dataset, Phase.FINAL, size).report.names
        for name, label in zip(found.names, found.labels.tolist(), strict=True):
            assert (root / name).is_file() and Path(name).parent.name == ("cat", "dog")[label]


def test_the_card_of_a_run_says_how_wide_pictures_were_read_and_in_which_arithmetic(
    store: ResultsStore, tmp_path: Path
) -> None:
    root = write_images(tmp_path / "scans")
    plain = DatasetSpec("scans", reader="folder", suite="own", root=str(root))
    for levels in (None, [0, 2**10 - 1]):  # a picture of ten bits of sixteen is added
        if levels is not None:
            wide = np.linspace(0, 1000, 48).reshape(6, 8).astype(np.uint16)
            Image.fromarray(wide).save(root / "cat" / "wide.png")
        spec = tiny_spec(dataset=data.identify(plain), precision=Precision.BFLOAT16)
        record = experiment.run(spec, store)
        assert record.provenance is not None
        assert record.provenance.data.get("levels") == levels
        card = json.loads((store.artefacts(record) / "card.json").read_text(encoding="utf-8"))
        assert card["provenance"]["data"].get("levels") == levels
        assert card["dtype"] == "bfloat16"
