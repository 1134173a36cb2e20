"""`peftbench list` and `peftbench plan`: they tell, and change nothing."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from support.tiny_runs import QUICK, compose, cpu_of, files_below, tiny_spec, write_images

from peftbench import data
from peftbench.backbones.anatomy import GENERIC
from peftbench.backbones.families import FAMILIES, every_family
from peftbench.backbones.models.architectures import ARCHITECTURES
from peftbench.cli import method_pages
from peftbench.config.build import build
from peftbench.config.choices import catalogue, config_dir
from peftbench.methods import METHODS
from peftbench.report.tables import cells as tables
from peftbench.report.tables.text import to_csv, to_markdown, to_text
from peftbench.results.frame import frame
from peftbench.results.record import Cost, Parameters, Provenance, RunRecord, Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.sweep.launchers import base as launcher
from peftbench.sweep.plan import Estimates


def test_list_methods_names_each_method_with_paper_and_hyperparameters(cli, work: Path) -> None:
    done = cli("list", "methods")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["METHOD", "TITLE", "PAPER", "HYPER-PARAMETERS"]
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    lora = next(line for line in lines if line.startswith("lora "))
    assert lora.split() == [
        "lora",
        "LoRA",
        "arXiv:2106.09685",
        "rank=8",
        "alpha=8.0",
        "targets=[auto]",
        "dropout=0.0",
    ]
    linear = next(line for line in lines if line.startswith("linear "))
    assert linear.split()[-1] == "none"
    assert files_below(work) == []


@pytest.fixture(scope="module")
def content() -> list[method_pages.MethodPage]:
    return method_pages.pages()


def facts_of(content: list[method_pages.MethodPage], name: str) -> method_pages.MethodPage:
    return next(page for page in content if page.name == name)


def test_every_built_in_method_has_a_summary_of_one_sentence() -> None:
    for name in METHODS:
        if METHODS[name].__module__.startswith("peftbench.methods."):
            summary = METHODS[name].card.summary
            assert summary.endswith(".") and "\n" not in summary, name


def test_the_example_of_each_family_is_of_that_family() -> None:
    assert {family.name for family in every_family()} == {*FAMILIES, GENERIC.name}
    for family in every_family():
        assert family.example is not None, family.name
        found = method_pages.anatomy_of(family.example.architecture)
        described = family is not GENERIC  # of which the example is one that has to be looked at
        assert found.family == (family.name if described else "RegNet")


def test_pages_say_what_each_method_costs(content: list[method_pages.MethodPage]) -> None:
    assert [page.name for page in content] == list(METHODS)
    assert facts_of(content, "lora").cost[:4] == (
        # 12 blocks, rank 8, two targets of 768 x 768
        f"{12 * 8 * 2 * (768 + 768):,} tuned parameters on ViT-B/16, head excluded",
        "starts as the pretrained function",
        "folds into the backbone, no cost at inference",
        "frozen layers in eval mode",
    )
    every = "works with its defaults on every described family"
    assert facts_of(content, "partial").cost[4] == every
    assert facts_of(content, "full").cost[3:] == ("no layer is frozen", every)
    assert facts_of(content, "linear").cost[:3] == (
        "0 tuned parameters on ViT-B/16, head excluded",
        "starts as the pretrained function",
        "leaves the backbone as it is",
    )
    assert facts_of(content, "vpt_deep").cost[1:3] == (
        "does not start as the pretrained function",
        "stays beside the backbone at inference",
    )


def test_list_methods_long_gives_each_method_three_paragraphs(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch, content: list[method_pages.MethodPage]
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    done = cli("list", "methods", "--long")
    assert (done.status, done.err) == (0, "")
    assert all(len(line) <= 72 for line in done.out.splitlines())
    blocks = done.out.rstrip("\n").split("\n\n")
    assert len(blocks) == len(content)
    for text, page in zip(blocks, content, strict=True):
        card = METHODS[page.name].card
        lines = text.splitlines()
        starts = [
            line.split()[0] for line in lines[1:] if line.startswith("    ") and line[4] != " "
        ]
        assert starts == ["cost:", "source:"], text
        flat = " ".join(text.split())
        assert flat.startswith(
            f"{page.name} ({card.title}): {' '.join(card.summary.split())} cost:"
        )
        paper = "" if card.paper == "none" else f"{card.paper}, {card.section}; "
        assert f" source: {paper}code: {card.reference}" in flat
        assert ("differs: " in flat) == bool(card.deviations)
    assert files_below(work) == []


def test_list_methods_as_markdown_has_a_section_with_all_deviations_of_each(cli) -> None:
    done = cli("list", "methods", "--long", "--format", "markdown")
    assert (done.status, done.err) == (0, "")
    sections = done.out.split("## ")[1:]
    assert [s.partition(":")[0] for s in sections] == [f"`{name}`" for name in METHODS]
    for section, name in zip(sections, METHODS, strict=True):
        assert section.count("* Differs: ") == len(METHODS[name].card.deviations)
    lora = next(s for s in sections if s.startswith("`lora`"))
    assert "\n* Source: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685), 4.1-4.2; " in lora


@pytest.mark.parametrize(
    "words",
    [("backbones", "--long"), ("runs", "--format", "text"), ("methods", "--format", "text")],
)
def test_long_lists_are_of_methods_only(cli, words: tuple[str, ...]) -> None:
    done = cli("list", *words)
    assert (done.status, done.out) == (2, "")
    assert "`peftbench list methods --long [--format markdown]`" in done.err


def test_a_pipe_that_closes_early_is_no_failure(work: Path) -> None:
    command = [sys.executable, "-m", "peftbench", "list", "runs"]  # which loads no torch
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=600)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_list_backbones_names_weights_and_aliases(cli) -> None:
    done = cli("list", "backbones")
    assert (done.status, done.err) == (0, "")
    table, others, last = done.out.split("\n\n")
    rows = dict(line.split(maxsplit=1) for line in table.splitlines()[1:])
    files = {path.stem for path in (config_dir() / "backbone").glob("*.yaml")}
    assert rows.keys() == files
    assert rows["vit_b16"] == "= vit_b16_in21k"
    assert rows["vit_b16_in21k"] == "vit_base_patch16_224.orig_in21k"
    assert rows["vit_s14_saliency"].startswith("ViT-S/14 fine-tuned for saliency, not DINOv2; ")
    named = set(re.findall(r"\w+", others))
    assert ARCHITECTURES.keys() <= named and "arXiv:2207.14284" in others
    assert last == "any timm tag: backbone.name=ARCHITECTURE.TAG\n"


def test_list_datasets_says_what_they_hold_whether_they_are_here_and_where_to_get_them(
    cli, work: Path
) -> None:
    lists = ("train800.txt", "val200.txt", "train800val200.txt", "test.txt")
    for name in lists:
        (work / "all" / "vtab-1k" / "dtd").mkdir(parents=True, exist_ok=True)
        (work / "all" / "vtab-1k" / "dtd" / name).write_text("")
    (work / "all" / "imagenet-a").mkdir()
    (work / "all" / "nabirds").mkdir()
    (work / "all" / "nabirds" / "train.json").write_text("{}")
    done = cli("list", "datasets", "--data-dir", "all")
    assert (done.status, done.err) == (0, "")
    header, *lines, last = done.out.splitlines()
    assert header.split()[:8] == [
        "DATASET",
        "SUITE",
        "GROUP",
        "CLASSES",
        "TRAIN",
        "VAL",
        "TEST",
        "HERE",
    ]
    assert last.startswith("looked in all: data_dir=DIR or PEFTBENCH_DATA names the folder ")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert rows.keys() == catalogue("dataset").keys()
    assert rows["mini/digits"] == "mini specialized 10 200 50 1000 shipped -"
    assert rows["folder"].endswith("your own images: dataset=folder dataset.root=PATH")
    assert rows["hf"].endswith("image set of the Hugging Face hub: dataset=hf dataset.hub=ORG/NAME")
    here = "vtab1k natural 47 800 200 1880 yes (vtab1k) the original archives; JPEG copies in"
    assert rows["vtab/dtd"].startswith(here)
    assert rows["vtab/pets"].startswith("vtab1k natural 37 800 200 3669 no the original archives")
    assert rows["fgvc/nabirds"].startswith("fgvc - 555 21536 2393 24633 in part the archive")
    assert rows["fewshot/pets"].startswith("fewshot - 37 1-16 a class 736 3669 no ")
    assert rows["imagenet_a"].startswith("imagenet_shift - 200 - - 7500 yes (imagenet-a) ")


def test_list_experiments_asks_their_questions_and_says_what_they_cost(cli, work: Path) -> None:
    (work / "experiments").mkdir()
    text = yaml.safe_dump({"hydra": {"sweeper": {"params": {"seed": "range(7)"}}}})
    (work / "experiments" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    done = cli("list", "experiments")
    assert (done.status, done.err) == (0, "")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in done.out.splitlines()}
    files = {path.stem for path in (config_dir().parent / "experiments").glob("*.yaml")}
    assert rows.keys() == {"EXPERIMENT", "mine", *files}
    assert rows["EXPERIMENT"] == "RUNS GPU HOURS QUESTION TABLE"
    assert rows["mine"] == "7 - - -"  # a file without a head is counted all the same
    assert rows["demo"] == (
        "16 0 do tuning methods differ on two small sets of real images? none of a paper"
    )
    assert rows["vpt_table1"].startswith("1680 + 18432 trials 1100 which of 14 ways of tuning ")


def test_list_runs_of_an_empty_folder_says_so(cli, work: Path) -> None:
    done = cli("list", "runs", "--results-dir", "nowhere")
    assert (done.status, done.out, done.err) == (0, "no runs of that kind in nowhere\n", "")
    assert files_below(work) == []


def record(number: int, status: Status, **fields: object) -> RunRecord:
    spec = {
        "method": {"name": "lora", "version": 1, "hyperparameters": {}},
        "backbone": {"name": "vit_mini", "title": "vit_mini"},
        "dataset": {"name": "mini/digits"},
        "recipe": {},
        "seed": number,
        "phase": "final",
    }
    return RunRecord(f"{number:016x}", spec, status, **fields)  # type: ignore[arg-type]


@pytest.fixture
def recorded(work: Path) -> ResultsStore:
    store = ResultsStore(work / "results")
    store.add(record(1, Status.OK, metrics={"test/top1": 0.5}))
    store.add(record(2, Status.DIVERGED, error="the loss is nan."))
    store.add(record(3, Status.UNSUPPORTED, error="no tokens."))
    store.path("lora", "4" * 16).write_text("{}")
    return store


def test_list_runs_shows_results_failures_and_broken_files(cli, recorded: ResultsStore) -> None:
    done = cli("list", "runs")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["RUN", "STATUS", "METHOD", "BACKBONE", "DATASET", "SEED"]
    rows = [line.split() for line in lines[1:]]
    common = ["lora", "vit_mini", "mini/digits"]
    assert rows[0] == ["0000000000000001", "OK", *common, "1", "50.0", "%", "test", "top-1"]
    assert rows[1] == ["0000000000000002", "DIVERGED", *common, "2", "the", "loss", "is", "nan."]
    assert rows[2] == ["0000000000000003", "UNSUPPORTED", *common, "3", "no", "tokens."]
    assert rows[3][:2] == ["?", "BROKEN"]
    assert str(recorded.path("lora", "4" * 16).relative_to(recorded.root.parent)) in lines[4]


def test_list_runs_says_which_fold_was_tested(cli, work: Path) -> None:
    store = ResultsStore(work / "results")
    for number in (1, 2):
        made = record(number, Status.OK, metrics={"test/top1": 0.5})
        parted = {"name": "pets", "reader": "folder", "folds": 5, "fold": number}
        store.add(dataclasses.replace(made, spec={**made.spec, "dataset": parted}))
    _, *lines = cli("list", "runs").out.splitlines()
    assert [line.partition("vit_mini")[2].split("  ")[1].strip() for line in lines] == [
        "pets, fold 1 of 5",
        "pets, fold 2 of 5",
    ]


@pytest.mark.parametrize(
    ("status", "seeds"),
    [("failed", ["2"]), ("ok", ["1"]), ("UNSUPPORTED", ["3"]), ("error", [])],
)
def test_list_runs_filters_by_status(
    cli, recorded: ResultsStore, status: str, seeds: list[str]
) -> None:
    done = cli("list", "runs", "--status", status)
    rows = [line.split() for line in done.out.splitlines() if line[0] == "0"]
    assert [row[5] for row in rows] == seeds


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(experiment, "run", refuse)
    monkeypatch.setattr("peftbench.sweep.launchers.pool.Pool", refuse)


def test_plan_counts_what_is_unsupported_and_to_run(cli, work: Path, nothing_runs) -> None:
    done = cli("plan", "method=linear,vpt_deep", "backbone=vit_mini,resnet50_in1k", *QUICK)
    assert (done.status, done.err) == (0, "")
    assert files_below(work) == []
    lines = done.out.splitlines()
    assert [line[16:31] for line in lines[:4]] == [
        "  to run       ",
        "  to run       ",
        "  to run       ",
        "  unsupported  ",
    ]
    assert lines[3][31:].startswith(
        "vpt_deep x resnet50_in1k x mini/digits, seed 0: vpt_deep needs a token stream, but the "
        "blocks of resnet backbones exchange feature maps."
    )
    assert lines[4] == "4 jobs: 0 done, 1 unsupported, 3 to run"
    assert lines[5].startswith("about ") and lines[5].endswith(" kB on disk")
    assert lines[6] == "no estimate: none of these kinds of jobs has run here before"


def test_plan_knows_what_is_done_what_failed_and_how_long_it_took(
    cli, work: Path, nothing_runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ResultsStore(work / "results")
    base = build(compose(*QUICK))
    ids = []
    for seed, status in ((0, Status.OK), (1, Status.OUT_OF_MEMORY), (2, None)):
        spec = dataclasses.replace(base, seed=seed)
        ids.append(spec.run_id)
        if status is not None:
            store.add(
                RunRecord(
                    spec.run_id,
                    spec.describe(),
                    status,
                    error=None if status is Status.OK else "no room.",
                    metrics={"test/top1": 0.5} if status is Status.OK else {},
                    cost=Cost("cpu", "float32", seconds_total=7.0, seconds_train=1.0),
                    provenance=Provenance("0", "3", {}, None, None, "here", "linux", 1),
                )
            )
    before = files_below(work)
    cpu_of(monkeypatch, amx=False)
    done = cli("plan", "seed=0,1,2", *QUICK, "hydra.launcher.jobs=2")
    assert (done.status, done.err) == (0, "")
    title = "linear x vit_mini x mini/digits, seed"
    assert done.out.splitlines() == [
        f"{ids[0]}  done         {title} 0",
        f"{ids[1]}  again (OUT_OF_MEMORY)  {title} 1, about 7 s: no room.",
        f"{ids[2]}  to run       {title} 2, about 7 s",
        "3 jobs: 1 done, 0 unsupported, 2 to run (1 failed before)",
        # linear probes leave their records and heads
        "about 80.0 kB on disk",
        # 14 s are 0.004 hours
        "estimated 0.00 hours of one slot, 0.00 on each of 2 slots, from earlier runs of 2 of "
        "these jobs' kinds",
        "precision=auto is float32 on this machine's CPU (no AMX)",
    ]
    assert files_below(work) == before


def test_an_estimate_multiplies_what_an_epoch_takes_and_nothing_else() -> None:
    """Seven seconds with two epochs in one of them: 6 + 100 * 0.5 for 100 epochs, not 350."""
    cost = Cost("cpu", "float32", seconds_total=7.0, seconds_train=1.0)
    origin = Provenance("0", "3", {}, None, None, "here", "linux", 1)
    short = tiny_spec(recipe={"epochs": 2})
    record = RunRecord(short.run_id, short.describe(), Status.OK, cost=cost, provenance=origin)
    estimate = Estimates([record])
    assert estimate(short) == 7.0
    assert estimate(tiny_spec(recipe={"epochs": 100})) == 56.0
    assert estimate(tiny_spec("bias")) is None


def test_a_plan_needs_no_data_and_says_what_is_missing_and_how_to_get_it(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_of(monkeypatch, amx=False)
    before = files_below(work)
    sets = "dataset=vtab/dtd,mini/digits,vtab/svhn"
    done = cli("plan", sets, "data_dir=nowhere", "recipe=short")
    assert (done.status, done.err) == (0, "")
    first, second, third, *rest = done.out.splitlines()
    unknown = "-" * 16  # the files are a part of the id
    assert first == f"{unknown}  no data      linear x vit_mini x vtab/dtd, seed 0"
    assert third == f"{unknown}  no data      linear x vit_mini x vtab/svhn, seed 0"
    assert second.endswith("  to run       linear x vit_mini x mini/digits, seed 0")
    assert rest[0] == "3 jobs: 0 done, 0 unsupported, 3 to run"
    at = rest.index("2 data sets not here, whose runs get their ids with the files:")
    for name, line in zip(("vtab/dtd", "vtab/svhn"), rest[at + 1 :], strict=False):
        assert line.startswith(f"  {name}: {work / 'nowhere'} is no folder. What would do: ")
        assert f"peftbench data prepare {name} fetches it or says how." in line
    assert files_below(work) == before
    # and nothing runs on half of its data
    refused = cli("run", "-m", sets, "data_dir=nowhere", "recipe=short")
    assert refused.status == 2 and "vtab/dtd: " in refused.err
    assert files_below(work) == before


@pytest.mark.parametrize(
    ("cpu", "words", "said"),
    [
        ({"amx": False}, (), "is float32 on this machine's CPU (no AMX)"),
        ({"amx": True}, (), "is bfloat16 on this machine's CPU (AMX)"),
        (
            {"amx": False, "avx512_bf16": True},
            (),
            "is bfloat16 on this machine's CPU (AVX512_BF16)",
        ),
        (
            {"amx": True, "ONEDNN_MAX_CPU_ISA": "AVX2"},
            (),
            "is float32 on this machine's CPU (AMX is hidden by ONEDNN_MAX_CPU_ISA=AVX2)",
        ),
        (
            {"amx": False, "PEFTBENCH_CPU_PRECISION": "bfloat16"},
            (),
            "is bfloat16 on this machine's CPU (PEFTBENCH_CPU_PRECISION=bfloat16)",
        ),
        (
            {"amx": True},
            ("hydra/launcher=slurm",),
            "is decided on the node that a job runs on",
        ),
        ({"amx": True}, ("precision=float32",), None),
        ({"amx": True}, ("precision=auto,bfloat16",), "is bfloat16 on this machine's CPU (AMX)"),
    ],
)
@pytest.mark.usefixtures("work", "nothing_runs")
def test_plan_says_what_auto_comes_to_here(
    cli,
    monkeypatch: pytest.MonkeyPatch,
    cpu: dict[str, Any],
    words: tuple[str, ...],
    said: str | None,
) -> None:
    cpu_of(monkeypatch, **cpu)
    done = cli("plan", "seed=0,1", *QUICK, *words)
    assert (done.status, done.err) == (0, "")
    lines = [line for line in done.out.splitlines() if line.startswith("precision=")]
    assert lines == ([] if said is None else [f"precision=auto {said}"])


def test_plan_of_an_experiment_lists_every_job(cli, work: Path, nothing_runs) -> None:
    (work / "experiments").mkdir()
    sweep = {"method": "linear,lora", "seed": "range(2)"}
    text = yaml.safe_dump({"hydra": {"sweeper": {"params": sweep}}})
    (work / "experiments" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    done = cli("plan", "experiments=mine")
    assert done.status == 0
    assert done.out.splitlines()[-4] == "4 jobs: 0 done, 0 unsupported, 4 to run"
    assert files_below(work) == ["experiments", "experiments/mine.yaml"]


def test_jobs_share_what_is_composed_and_read_for_them(
    cli, work: Path, nothing_runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: object, **options: object) -> object:
            counts[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    count(ConfigLoaderImpl, "load_configuration")
    count(data, "identify")
    count(launcher, "hash_checkpoint")
    write_images(work / "pets")
    (work / "weights.pth").write_bytes(b"never opened by a plan, but part of the identity")
    files = ("dataset=folder", "dataset.root=pets", "backbone.checkpoint=weights.pth")
    done = cli("plan", *files, "method=linear,lora", "seed=0,1,2", "recipe.lr=1e-2,1e-3")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[12] == "12 jobs: 0 done, 0 unsupported, 12 to run"
    # a configuration of the sweep and one of each method, whatever is set in it
    assert counts == {"load_configuration": 3, "identify": 1, "hash_checkpoint": 1}


def test_one_run_under_two_names_is_one_job(cli, nothing_runs) -> None:
    done = cli("plan", "backbone=vit_b16,vit_b16_in21k", "method=linear")
    assert done.status == 0
    assert [line for line in done.out.splitlines() if line.startswith("1 job")]


def test_plan_without_overrides_is_help_and_status_2(cli) -> None:
    done = cli("plan")
    assert done.status == 2
    assert (done.out + done.err).startswith("usage: peftbench plan OVERRIDES...")


def test_report_of_an_empty_folder_says_what_to_run(cli, work: Path) -> None:
    done = cli("report", "--results-dir", "nowhere")
    assert (done.status, done.err) == (0, "")
    assert done.out == "No runs in nowhere/runs yet. Run: peftbench run method=linear\n"
    assert files_below(work) == []


@pytest.fixture
def finished(work: Path) -> ResultsStore:
    """Two methods on one data set: enough for a table and a figure."""
    store = ResultsStore(work / "results")
    for number, method in enumerate(("linear", "lora"), start=1):
        good = record(number, Status.OK, metrics={"test/top1": 0.5, "test/num_images": 10.0})
        spec = good.spec | {"method": {"name": method, "version": 1, "hyperparameters": {}}}
        counts = Parameters(method=number, head=10, unfrozen=0, backbone=100, stored_bytes=400)
        store.add(dataclasses.replace(good, spec=spec, parameters=counts))
    return store


def test_report_without_figures_draws_none(cli, work: Path, finished: ResultsStore) -> None:
    done = cli("report", "--no-figures")
    assert (done.status, done.err) == (0, "")
    assert (work / "results" / "table.csv").is_file()
    assert not (work / "results" / "figures").exists()


def test_report_draws_a_figure_of_each_backbone(cli, work: Path, finished: ResultsStore) -> None:
    done = cli("report")
    assert (done.status, done.err) == (0, "")
    path = "results/figures/accuracy_vs_parameters_vit_mini.png"
    assert (work / path).is_file()
    assert f"  {path}\n" in done.out


@pytest.mark.parametrize("name", ["csv", "markdown", "text"])
def test_report_prints_the_table_in_the_format_that_was_asked_for(
    cli, finished: ResultsStore, name: str
) -> None:
    cells = tables.summary(frame(finished))
    expected = {"csv": to_csv, "markdown": to_markdown, "text": to_text}
    done = cli("report", "--no-figures", "--format", name)
    assert done.status == 0
    assert expected[name](cells).strip() in done.out


def test_protocols_stand_side_by_side(cli) -> None:
    done = cli("list", "protocols")
    assert (done.status, done.err) == (0, "")
    head, *rows = [re.split(r" {2,}", line) for line in done.out.splitlines()]
    found = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    assert found.keys() == {"adapter_plus", "fact", "peftbench", "ssf", "vpetl", "vpt"}
    assert found["vpt"] == {
        "RECIPE": "vpt",
        "PIXELS": "imagenet, squash, tf_bilinear",
        "EPOCH REPORTED": "last",
        "SEEDS": "42,44,82,100,800",
        "AVERAGE": "mean_groups",
        "PARAMETERS": "with_head",
    }
    # those whose authors reported the best epoch on test
    assert {n for n, row in found.items() if row["EPOCH REPORTED"] == "best_on_test"} == {
        *("ssf", "fact", "vpetl")
    }
    assert found["peftbench"]["PIXELS"].startswith("checkpoint")  # what nothing says is the default


def test_jobs_that_differ_in_their_seeds_are_built_once_unless_more_is_made_of_it(
    cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, ...]] = []
    building = launcher.JobLauncher._built

    def counted(self: Any, overrides: tuple[str, ...]) -> Any:
        built.append(overrides)
        return building(self, overrides)

    monkeypatch.setattr(launcher.JobLauncher, "_built", counted)
    done = cli("plan", "seed=0,1,2", "method=linear,bias", *QUICK)
    assert len(built) == 2
    # as jobs that are planned alone
    alone = [cli("plan", f"seed={seed}", "method=bias", *QUICK).out.split()[0] for seed in (1, 2)]
    ids = {line.partition("  ")[2]: line.split()[0] for line in done.out.splitlines()[:6]}
    assert [ids[f"to run       bias x vit_mini x mini/digits, seed {s}"] for s in (1, 2)] == alone
    built.clear()
    varied = cli("plan", "seed=1,2", "recipe.epochs=${seed}", "recipe.warmup_epochs=0")
    assert len(built) == 2
    assert len({line.split()[0] for line in varied.out.splitlines()[:2]}) == 2
