"""`peftbench profile`: what methods cost, without training, data or weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.tiny_runs import files_below

from peftbench.cli.exit import OK, UNSUPPORTED, USAGE
from peftbench.methods import METHODS
from peftbench.run import peak
from peftbench.run.profile import planned_step
from peftbench.run.simulation import step_cost
from peftbench.spec import BackboneSpec, DatasetSpec, Recipe, RunSpec
from peftbench.training.device import Compute

SMALL = ("backbone=vit_mini", "backbone.image_size=12", "recipe.batch_size=2", "precision=float32")


def rows(cli, *arguments: str) -> list[dict]:
    done = cli("profile", "--json", *arguments)
    assert (done.status, done.err) == (OK, "")
    return json.loads(done.out)


def test_counts_need_no_run_and_leave_no_file(cli, work: Path) -> None:
    lora, linear = rows(cli, "--meta", "method=lora,linear", *SMALL)
    assert files_below(work) == []
    assert [row["method"] for row in (lora, linear)] == ["lora", "linear"]
    # 6 blocks x (q, v) x rank 8 x (128 inputs + 128 outputs)
    assert (lora["params_method"], linear["params_method"]) == (6 * 2 * 8 * (128 + 128), 0)
    assert {row["params_head"] for row in (lora, linear)} == {128 * 100 + 100}
    # the class token is a view of both tokens; logarithms, labels, and what the sum is divided by
    assert linear["kept_bytes"] == 2 * 4 * (2 * 128 + 100) + 2 * 8 + 4
    assert lora["kept_bytes"] > linear["kept_bytes"]
    assert lora["estimated_peak_bytes"] > linear["estimated_peak_bytes"]
    assert lora["step_ms"] is linear["latency_ms_batch1"] is None


def test_every_measured_number_is_there_without_meta(
    cli, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(peak, "can_measure", lambda: True)
    monkeypatch.setattr(peak, "measured_peak", lambda *a, **k: asked.append((a, k)) or 123)
    full, adapter = rows(cli, "method=full,adapter", "dataset=mini/digits", *SMALL)
    assert [(a[0].method.name, a[1:], k) for a, k in asked] == [
        (name, (2, 10), {"dtype": "float32"}) for name in ("full", "adapter")
    ]
    assert {row["classes"] for row in (full, adapter)} == {10}
    assert full["step_over_full"] == 1.0
    assert adapter["step_over_full"] == pytest.approx(adapter["step_ms"] / full["step_ms"])
    assert adapter["measured_peak_bytes"] == 123
    assert [name for name, value in full.items() if value is None] == []
    # adapters do not merge
    assert [name for name, value in adapter.items() if value is None] == [
        name for name in full if name.startswith("merged_")
    ]


def test_a_huge_model_is_planned_without_its_weights(cli) -> None:
    arguments = ("--meta", "method=linear", "backbone=vit_huge_patch14_224", "precision=float32")
    (row,) = rows(cli, *arguments)
    width, tokens, depth = 1280, 257, 32
    inner = depth * (12 * width**2 + 13 * width)  # blocks with biases and norms
    ends = 14 * 14 * 3 * width + width + width + tokens * width + 2 * width
    assert row["params_backbone"] == inner + ends
    products = depth * (tokens * 12 * width**2 + 2 * tokens**2 * width)
    products += (tokens - 1) * 14 * 14 * 3 * width + width * 100
    assert row["forward_gmacs"] == pytest.approx(products / 1e9, rel=1e-9)
    assert row["estimated_peak_bytes"] > 4 * row["params_backbone"]


def test_a_table_names_what_it_is_of_and_why_a_row_is_missing(cli) -> None:
    done = cli("profile", "--meta", "method=linear,vpt_pad", *SMALL)
    assert (done.status, done.err) == (OK, "")
    heading, linear, refused, about = done.out.splitlines()
    assert heading.split()[:6] == ["METHOD", "BACKBONE", "ADDED", "UNFROZEN", "HEAD", "STORED"]
    assert linear.split()[:5] == ["linear", "vit_mini", "0", "0", "12,900"]
    assert refused.startswith("vpt_pad on vit_mini: vpt_pad enlarges the image")
    assert about.startswith("vit_mini: images of 12 pixels, batch of 2, head of 100 classes")
    assert cli("profile", "--meta", "method=vpt_pad", *SMALL).status == UNSUPPORTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("method=lorra",), "lora"),
        (("backbone=vit_smal_patch16_224",), "vit_small_patch16_224"),
        (("--mta",), "--mta is no option of `peftbench profile`. It has --meta, --json."),
        (("recipe.batch_siz=3",), "batch_size"),
        (("dataset=hf",), "Leave it out"),
    ],
)
def test_what_is_mistyped_is_told_in_one_line(cli, arguments, message: str) -> None:
    done = cli("profile", "--meta", *arguments)
    assert (done.status, done.out) == (USAGE, "")
    assert message in done.err and done.err.count("\n") == 1


def test_without_arguments_it_says_how_it_is_used(cli) -> None:
    assert cli("profile").status == USAGE
    shown = cli("profile", "--help")
    assert shown.status == OK and "--meta" in shown.out


@pytest.mark.slow
@pytest.mark.skipif(not peak.can_measure(), reason="the system tells no peak of a process")
@pytest.mark.parametrize("method", ["full", "linear", "ssf"])
def test_an_estimate_is_within_a_tenth_of_what_a_process_takes(method: str) -> None:
    spec = RunSpec(
        METHODS[method](),
        BackboneSpec("vit_mini"),
        DatasetSpec("none", "mini"),
        recipe=Recipe(batch_size=64),
    )
    compute = Compute(torch.device("cpu"), torch.float32)
    estimated = step_cost(planned_step(spec, 100), 64, compute).peak_bytes
    assert estimated == pytest.approx(peak.measured_peak(spec, 64, 100), rel=0.1)
