"""Promises of a run about the names of the images that it reports."""

from __future__ import annotations

from pathlib import Path

from support.tiny_runs import tiny_spec, write_images

from peftbench import data
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import DatasetSpec, Phase, Preprocessing


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
            assert found.names is None
            continue
        size = Preprocessing(size=12, mean=(0.5,) * 3, std=(0.5,) * 3)
        assert found.names == data.load(spec.dataset, Phase.FINAL, size).report.names
        for name, label in zip(found.names, found.labels.tolist(), strict=True):
            assert (root / name).is_file() and Path(name).parent.name == ("cat", "dog")[label]
