"""`peftbench export`: a finished run as a folder, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from support.command_line import Cli
from support.rounding import assert_alike
from support.tiny_runs import digits, files_below, short_timings, tiny_spec

import peftbench as pb
from peftbench.results.record import RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run import export as exporting
from peftbench.spec import Phase, PreprocessingSpec

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass(frozen=True)
class Runs:
    """A store with one run of each method, and one that failed."""

    root: Path
    ids: dict[str, str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("runs")
    with short_timings() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(root / "cache"))
        store = ResultsStore(root / "results")
        specs = [tiny_spec(m, dataset=digits(12)) for m in ("lora", "bias", "mlp")]
        ids = {spec.method.name: experiment.run(spec, store).run_id for spec in specs}
        spec = tiny_spec("full")
        failed = RunRecord(spec.run_id, spec.describe(), Status.DIVERGED, error="it blew up.")
        store.add(failed)
        trial = experiment.run(tiny_spec(phase=Phase.TUNE), store)
        yield Runs(store.root, ids | {"failed": failed.run_id, "trial": trial.run_id})


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def test_a_beginning_of_the_run_id_is_enough(cli: Cli, runs: Runs, work: Path) -> None:
    done = cli("export", runs.ids["lora"][:6], "--results-dir", str(runs.root))
    folder = Path("exports") / f"lora-{runs.ids['lora']}"
    assert (done.status, done.err) == (0, "")
    assert done.out == f"{folder}: README.md, card.json, tuned.safetensors\n"
    assert files_below(work / "exports") == [
        folder.name,
        *(f"{folder.name}/{name}" for name in ("README.md", "card.json", "tuned.safetensors")),
    ]
    card = _card(folder)
    assert (card["kind"], card["run_id"]) == ("task", runs.ids["lora"])
    source = ResultsStore(runs.root).artefacts(("lora", runs.ids["lora"]))
    assert (folder / "tuned.safetensors").read_bytes() == (
        source / "tuned.safetensors"
    ).read_bytes()
    assert pb.load(folder)(X).shape == (4, 10)


def test_a_merged_model_is_loaded_without_peftbench(cli: Cli, runs: Runs, work: Path) -> None:
    done = cli(
        "export", runs.ids["lora"], "--merged", "--out", "whole", "--results-dir", str(runs.root)
    )
    assert (done.status, done.err) == (0, "")
    assert done.out == "whole: README.md, card.json, config.json, model.safetensors\n"
    built = _card(work / "whole")["timm"]
    model = timm.create_model(
        built["architecture"], num_classes=built["num_classes"], **built["kwargs"]
    ).eval()
    model.load_state_dict(load_file("whole/model.safetensors"), strict=True)
    expected = pb.load(ResultsStore(runs.root).artefacts(("lora", runs.ids["lora"])))(X)
    assert_alike(model(X), expected)
    assert_alike(model(X), pb.load("whole")(X))


def test_the_code_in_the_readme_of_a_merged_model_runs(cli: Cli, runs: Runs, work: Path) -> None:
    cli("export", runs.ids["bias"], "--merged", "--out", "whole", "--results-dir", str(runs.root))
    text = (work / "whole" / "README.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert [block.partition("\n")[0] for block in blocks] == [
        "import peftbench as pb",
        "import timm",
        "import json",  # as an older timm builds it
    ]
    Image.new("RGB", (9, 7), "red").save("red.png")
    scope: dict[str, Any] = {"timm": timm}
    for block in blocks:
        exec(block.replace("FOLDER", "whole").replace("PICTURE", "red.png"), scope)
        assert not scope["model"].training
        assert_alike(scope["model"](X), pb.load("whole")(X))
    assert scope["classes"] == [str(digit) for digit in range(10)]


def test_timm_alone_is_refused_where_it_would_see_other_pixels(
    cli: Cli, work: Path, tmp_path: Path
) -> None:
    store = ResultsStore(tmp_path / "tf")
    pixels = PreprocessingSpec(interpolation="tf_bilinear")
    run_id = experiment.run(tiny_spec("bias", preprocessing=pixels), store).run_id
    done = cli("export", run_id, "--merged", "--out", "whole", "--results-dir", str(store.root))
    note = (
        "timm alone does not predict as the test did, because it has no tf_bilinear, which resizes "
        "without antialias. Use peftbench predict or peftbench.load."
    )
    assert (done.status, done.err) == (0, "")
    assert done.out == f"whole: README.md, card.json, model.safetensors\n{note}\n"
    text = (work / "whole" / "README.md").read_text()
    assert note in text and "create_transform" not in text
    with pytest.raises(FileNotFoundError, match=r"config\.json"):  # and nobody does it unawares
        timm.create_model("local-dir:whole", pretrained=True)
    scope: dict[str, Any] = {}
    exec(text.split("```python\n")[2].partition("```")[0].replace("FOLDER", "whole"), scope)
    assert_alike(scope["model"](X), pb.load("whole")(X))


def test_the_readme_says_what_the_task_is(cli: Cli, runs: Runs, work: Path) -> None:
    cli("export", runs.ids["lora"], "--out", "task", "--results-dir", str(runs.root))
    text, card = (work / "task" / "README.md").read_text(), _card(work / "task")
    assert text.startswith("# lora, vit_mini, mini/digits\n")
    assert f"`vit_mini`, SHA-256 `{card['provenance']['backbone_sha256']}`" in text
    assert "rank=8" in text and "arXiv:2106.09685" in text
    assert "| classes | 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |" in text
    assert f"| test accuracy | {100 * card['metrics']['test/top1']:.2f} % top-1 |" in text
    assert "12 x 12 pixels by squash and bicubic; mean [0.5, 0.5, 0.5]" in text
    assert 'pb.load("FOLDER")' in text and runs.ids["lora"] in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zzzz"], "peftbench: Unknown run 'zzzz'. Known: "),
        ([""], "peftbench: Unknown run ''. Known: "),
        (
            ["{failed}"],
            "peftbench: run {failed} ended as DIVERGED (it blew up.), so there is nothing ",
        ),
        (["{trial}"], "peftbench: run {trial} is a trial of a search, which keeps no weights."),
        (["{mlp}", "--merged"], "peftbench: MLP head (mlp) cannot be folded into the weights.\n"),
        (["{lora}", "--out", "taken"], "peftbench: taken exists already. Remove it or choose "),
        (["{lora}", "--out", "file/below"], "peftbench: file/below cannot be written: "),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    cli: Cli, runs: Runs, work: Path, arguments: list[str], message: str
) -> None:
    (work / "taken").mkdir()
    (work / "file").touch()
    before = files_below(work)
    asked = [argument.format(**runs.ids) for argument in arguments]
    done = cli("export", *asked, "--results-dir", str(runs.root))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(message.format(**runs.ids)) and done.err.count("\n") == 1
    assert files_below(work) == before


def test_a_beginning_of_two_run_ids_is_refused(cli: Cli, runs: Runs, tmp_path: Path) -> None:
    store = ResultsStore(tmp_path / "two")
    record = ResultsStore(runs.root).get(runs.ids["lora"])
    assert record is not None
    for run_id in ("ab01", "ab02"):
        store.add(dataclasses.replace(record, run_id=run_id))
    done = cli("export", "ab", "--results-dir", str(store.root))
    assert done.status == 2
    assert done.err == (
        "peftbench: run 'ab' is the beginning of 2 ids: ab01 (lora), ab02 (lora).\n"
    )
    done = cli("export", "ab02", "--results-dir", str(store.root))
    assert done.status == 2
    assert "the record is here without its files. Run the task again with force=true." in done.err


def test_an_interrupted_export_leaves_nothing(
    cli: Cli, runs: Runs, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(card: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "model_card", interrupt)
    done = cli("export", runs.ids["lora"], "--out", "task", "--results-dir", str(runs.root))
    assert done.status == 130
    assert files_below(work) == []
