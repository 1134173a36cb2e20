"""The commands that move runs between results folders."""

from __future__ import annotations

from pathlib import Path

from support.tiny_runs import files_below, tiny_spec

from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore


def test_runs_go_out_of_one_folder_and_into_another(cli, work: Path) -> None:
    for seed in range(2):
        spec = tiny_spec(seed=seed)
        record = RunRecord(spec.run_id, spec.describe(), Status.OK, metrics={"test/top1": 0.5})
        ResultsStore("results").add(record)
    done = cli("export-results", "--where", "seed=1", "--out", "a.zip")
    assert done.status == 0 and done.out.startswith("a.zip: 1 run, digest ")
    digest = done.out.split()[-1]
    done = cli("import-results", "a.zip", "--results-dir", "new", "--dry-run")
    assert (done.status, done.out) == (0, f"1 run would be added to new; digest {digest}\n")
    assert not (work / "new").exists()
    done = cli("import-results", "a.zip", "--results-dir", "new")
    assert (done.status, done.out) == (0, f"1 run added to new; digest {digest}\n")
    assert ResultsStore("new").get(spec.run_id) == record
    done = cli("import-results", "a.zip", "--results-dir", "results")
    assert done.out == f"0 runs added to results, 1 already there; digest {digest}\n"


def test_what_is_no_bundle_is_refused_in_one_line(cli, work: Path) -> None:
    done = cli("import-results", "b.zip", "--results-dir", "new")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("peftbench: b.zip cannot be read as a bundle of results: No such")
    (work / "results" / "runs" / "lora").mkdir(parents=True)
    (work / "results" / "runs" / "lora" / "half.json").write_text("{")
    before = files_below(work)
    done = cli("export-results")
    assert (done.status, files_below(work)) == (2, before)
    assert done.err.startswith("peftbench: No run is there in results/runs")


def test_names_of_pictures_without_their_predictions_are_refused(cli) -> None:
    done = cli("export-results", "--names")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "peftbench: --names is about predictions of single images. Add --predictions.\n"
    )
