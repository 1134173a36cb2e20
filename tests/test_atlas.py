"""The method atlas: its columns against sums worked out by hand, and where they come from."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

import atlas_counts  # noqa: E402 - in the tools
import atlas_latency  # noqa: E402 - in the benchmarks
import atlas_page  # noqa: E402

from peftbench.methods import METHODS, discover  # noqa: E402
from peftbench.report import atlas  # noqa: E402
from peftbench.report.atlas import Atlas, AtlasEntry, MeasuredRatio, PublishedMean  # noqa: E402

WIDTH, BLOCKS, TOKENS, CLASSES, BATCH = 768, 12, 197, 100, 32  # of ViT-B/16 and the atlas
HEAD = 4 * (WIDTH + 1) * CLASSES  # bytes of weights and biases


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    discover()
    yield
    torch.set_num_threads(threads)


def test_lora_has_the_numbers_of_two_pairs_of_matrices_a_block() -> None:
    entry = atlas.read().entries["lora"]
    # rank 8 on queries and values, each a down- and an up-projection
    tuned = BLOCKS * 2 * 8 * (WIDTH + WIDTH)
    assert (entry.backbone, dict(entry.sites)) == ("ViT-B/16", {"attn_in": BLOCKS})
    assert (entry.tuned, entry.stored_bytes, entry.head_bytes) == (tuned, 4 * tuned, HEAD)
    assert entry.folding == atlas.FOLDS
    assert entry.places == "queries, keys, values (12)"


def test_linear_touches_nothing_and_keeps_what_its_head_reads() -> None:
    entry = atlas.read().entries["linear"]
    assert (dict(entry.sites), entry.tuned, entry.stored_bytes) == ({}, 0, 0)
    assert (entry.head_bytes, entry.folding, entry.places) == (
        HEAD,
        atlas.HEAD_ONLY,
        "the head alone",
    )
    # the class token is a view of all tokens, which stay; log-softmax and numbers of the classes
    # of each image, and over how many images the loss is a mean
    features, loss = 4 * BATCH * TOKENS * WIDTH, BATCH * (4 * CLASSES + 8) + 4
    assert entry.kept_bytes == features + loss


def test_full_fine_tuning_trains_a_whole_vit_and_is_what_activations_are_compared_with() -> None:
    entry = atlas.read().entries["full"]
    block = 2 * 2 * WIDTH  # two norms
    block += WIDTH * 3 * WIDTH + 3 * WIDTH + WIDTH * WIDTH + WIDTH
    block += 2 * WIDTH * 4 * WIDTH + 4 * WIDTH + WIDTH
    embedding = 16 * 16 * 3 * WIDTH + WIDTH + WIDTH + TOKENS * WIDTH
    tuned = embedding + BLOCKS * block + 2 * WIDTH
    assert (entry.tuned, entry.stored_bytes, entry.head_bytes) == (tuned, 4 * tuned, HEAD)
    assert (entry.places, entry.kept) == ("everything", "100 %")


@pytest.mark.parametrize("name", ["linear", "bias"])
def test_what_the_file_says_of_a_method_is_what_is_counted_now(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = atlas.read().entries
    full = known["full"].kept_bytes
    monkeypatch.setattr(atlas_counts, "kept_by_full", lambda home: full)
    counted = atlas_counts.counted(METHODS[name]())
    plain = dataclasses.replace(known[name], latency=None, published=(), own={})
    assert counted == plain, "run `make docs`, or python tools/atlas_page.py --recount"


def test_what_a_batch_keeps_is_the_same_with_and_without_storage() -> None:
    small = [atlas_counts.planned(METHODS["lora"](), "vit_mini", d) for d in ("meta", "cpu")]
    without, real = small
    assert atlas_counts.kept_by(without) == atlas_counts.kept_with_storage(real) > 0


def test_a_method_that_vit_refuses_is_counted_on_a_convolutional_network() -> None:
    home, reasons = atlas_counts.home_of(METHODS["vpt_pad"]())
    assert home == "ResNet-50"
    assert len(reasons) == 1 and reasons[0].startswith(
        "not on ViT-B/16: vpt_pad enlarges the image"
    )


def test_a_method_that_nobody_foresaw_has_empty_cells_and_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("needs real weights\nand more")

    monkeypatch.setattr(atlas_counts, "planned", fails)
    entry = atlas_counts.counted(METHODS["lora"]())
    assert (entry.tuned, entry.kept, atlas.size(entry.stored_bytes)) == (None, "–", "–")
    assert entry.remarks == ("cannot be attached without weights: needs real weights",)
    text = atlas_page.page(Atlas(100, 32, {}, {"new": entry}))
    assert "| `new` | ViT-B/16 | the head alone | – | – | – | – | yes | – |" not in text
    assert "| `new` | ViT-B/16 | – | – | – | – | – | yes | – |" in text
    assert atlas.words_of("gate_in+norm") == "gate in and norm"


def test_the_key_of_a_method_changes_with_its_settings() -> None:
    kind = METHODS["lora"]
    assert atlas_counts.key_of(kind()) == atlas_counts.key_of(kind(rank=8))
    assert atlas_counts.key_of(kind()) != atlas_counts.key_of(kind(rank=4))


def test_both_averages_of_vtab_are_those_of_the_printed_tasks() -> None:
    linear, *_ = atlas_page.published_means()["linear"]
    # VPT, table 13: sums of 7, 4 and 8 tasks
    natural = (63.4 + 85.0 + 63.2 + 97.0 + 86.3 + 36.6 + 51.0) / 7
    specialized = (78.5 + 87.5 + 68.6 + 74.0) / 4
    structured = (34.3 + 30.6 + 33.2 + 55.4 + 12.5 + 20.0 + 9.6 + 19.2) / 8
    flat = (7 * natural + 4 * specialized + 8 * structured) / 19
    assert (linear.row, linear.weights) == ("VPT: Linear", "sup_in21k_orig")
    assert linear.flat == f"{flat:.2f}"
    assert linear.groups == f"{(natural + specialized + structured) / 3:.2f}"
    assert linear.computed == ("flat", "groups")


def test_a_printed_average_stands_as_printed() -> None:
    ssf, *_ = atlas_page.published_means()["ssf"]
    assert (ssf.flat, ssf.computed, ssf.weights) == ("73.10", ("groups",), "sup_in21k_augreg")
    assert atlas_page.computed({"cifar100": 50.0}) == {}  # 18 tasks are missing


def test_weights_are_in_tables_of_their_own_and_averages_in_columns_of_their_own() -> None:
    means = (
        PublishedMean("A", "sup_in21k_orig", "70.1", "", (), "last epoch", "a paper"),
        PublishedMean("B*", "sup_in21k_augreg", "", "75.2", ("groups",), "", "a paper"),
    )
    entries = {"m": AtlasEntry("k", "ViT-B/16", published=means)}
    _, orig, augreg = atlas_page.page(Atlas(100, 32, {}, entries)).split("\n### ")
    assert "| method | row of the source | flat | groups | epoch | source |" in orig
    assert (
        "| `m` | A | 70.1 | – | last epoch | a paper |" in orig and "B" not in orig.split("\n")[4]
    )
    assert "| `m` | B\\* | – | *75.2* | – | a paper |" in augreg


def runs(scores: list[tuple[str, int, float]], **other: Any) -> pd.DataFrame:
    columns = {"method": "linear", "method_version": 1, "hyperparameters": "", "backbone": "b"}
    rows = [{"dataset": d, "seed": s, "top1": t} for d, s, t in scores]
    return pd.DataFrame(rows).assign(**{**columns, **other})


def test_our_mean_is_over_all_data_sets_of_each_seed() -> None:
    complete = [("x", 0, 0.5), ("y", 0, 0.7), ("x", 1, 0.6), ("y", 1, 0.8)]
    linear = METHODS["linear"]()
    mean = atlas_page.own_of(linear, runs(complete))["b"]
    # 60 and 70 percent: 5 off the mean each, so a standard deviation of sqrt(50)
    assert (mean.mean, mean.deviation, mean.seeds, mean.tasks) == (65.0, 7.07, 2, 2)
    assert atlas_page.own_of(linear, runs(complete[:3])) == {}
    assert atlas_page.own_of(linear, runs(complete, method_version=0)) == {}
    assert atlas_page.own_of(METHODS["lora"](), runs(complete, method="lora")) == {}


def row(method: str, ratio: float, key: str = "k") -> dict[str, Any]:
    span = {"ratio": ratio, "low": 0.9, "high": 1.5, "measured": f"2026-12-0{len(method)}T01:00"}
    return {"method": method, "key": key, "backbone": "ViT-B/16", **span}


def test_latencies_are_those_of_the_machine_that_measured_most(tmp_path: Path) -> None:
    for device, rows in {"old": [row("a", 1.1)], "new": [row("a", 1.2), row("bb", 1.3)]}.items():
        named = {each["method"]: each for each in rows}
        content = {"device": device, "dtype": "float32", "threads": 1, "rows": named}
        (tmp_path / f"atlas_{device}.json").write_text(json.dumps(content))
    about, ratios = atlas_page.latencies(tmp_path)
    assert ratios["a", "k", "ViT-B/16"] == MeasuredRatio(1.2, 0.9, 1.5)
    said = atlas.about_latency(Atlas(100, 32, about, {}))
    assert said == "new, 1 thread, float32, one image, 2026-12-01 to 2026-12-02"
    assert atlas_page.latencies(tmp_path / "none") == ({}, {})
    assert AtlasEntry("k", "ViT-B/16").slower == "–"


def test_measuring_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measured(method: Any, home: str, repeats: int) -> dict[str, Any]:
        asked.append(method.name)
        return {**row(method.name, 1.0, atlas_counts.key_of(method)), "backbone": home}

    monkeypatch.setattr(atlas_latency, "measured", measured)
    path = atlas_latency.main(["lora", "--output", str(tmp_path)])
    assert atlas_latency.main(["lora", "linear", "--output", str(tmp_path)]) == path
    assert asked == ["lora", "linear"]
    content = json.loads(path.read_text())
    content["rows"]["lora"]["key"] = "of another version"
    path.write_text(json.dumps(content))
    atlas_latency.main(["lora", "linear", "--output", str(tmp_path)])
    atlas_latency.main(["linear", "--again", "--output", str(tmp_path)])
    assert asked[2:] == ["lora", "linear"]


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    entry = dataclasses.replace(
        atlas.read().entries["lora"], latency=MeasuredRatio(1.2, 1.0, 1.4), remarks=("a", "b")
    )
    about = {"device": "d", "dtype": "float32", "threads": "1", "first": "2026", "last": "2026"}
    content = Atlas(100, 32, about, {"lora": entry, "none": AtlasEntry("k", "")})
    (tmp_path / "atlas.json").write_text(atlas.written(content), encoding="utf-8")
    assert atlas.read(tmp_path / "atlas.json") == content
    assert atlas.read(tmp_path / "missing.json").entries == {}
