"""Protocols and their overlays: what they resolve to, against the papers and codes they cite."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from support.tiny_runs import compose

from peftbench.cli.hydra import one_line
from peftbench.config.build import build
from peftbench.config.choices import choices, config_dir
from peftbench.errors import ConfigError
from peftbench.methods import METHODS
from peftbench.methods.fact import FacTTK
from peftbench.spec import Protocol, Recipe, Selection
from peftbench.training.recipe import check_recipe

CONF = config_dir()
PROTOCOLS = sorted(path.stem for path in (CONF / "protocol").glob("*.yaml"))
OF_SUITES = sorted([*(CONF / "suite").rglob("*.yaml"), *(CONF / "tuned").glob("*/*/*.yaml")])

NATURAL = ("cifar100", "caltech101", "dtd", "flowers102", "pets", "svhn", "sun397")
SPECIALIZED = ("patch_camelyon", "eurosat", "resisc45", "retinopathy")
STRUCTURED = (
    "clevr_count",
    "clevr_distance",
    "dmlab",
    "kitti",
    "dsprites_location",
    "dsprites_orientation",
    "smallnorb_azimuth",
    "smallnorb_elevation",
)
TASKS = {
    "vtab": (*NATURAL, *SPECIALIZED, *STRUCTURED),
    "fgvc": ("cub200", "nabirds", "oxford_flowers", "stanford_dogs", "stanford_cars"),
}
OTHERS = ("fewshot", "cifar100", "imagenet1k")  # suites with overlays but without tables in them


def name_of(path: Path) -> str:
    return path.relative_to(CONF).with_suffix("").as_posix()


@pytest.fixture
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of one's own in a suite that has overlays."""
    folder = tmp_path / "conf" / "dataset" / "vtab"
    folder.mkdir(parents=True)
    entry = {"name": "vtab/own", "reader": "folder", "root": "nowhere"}
    (folder / "own.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def resolved(*overrides: str) -> DictConfig:
    """The composed configuration with every value in force; nothing is read from a data set."""
    cfg = compose(*overrides)
    OmegaConf.resolve(cfg)
    return cfg


def rows_of(name: str) -> dict[str, dict[str, Any]]:
    """The table in an overlay."""
    rows: dict[str, dict[str, Any]] = yaml.safe_load(
        (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    )["by_dataset"]
    return rows


def test_the_default_protocol_is_what_a_run_without_a_word_follows() -> None:
    spec = build(compose())
    assert spec == build(compose("protocol=peftbench"))
    assert (spec.recipe, spec.selection, spec.protocol) == (Recipe(), Selection(), Protocol())
    assert choices("protocol") == {*PROTOCOLS}


def compose_each(protocol: str, methods: Iterable[str]) -> None:
    for method in methods:
        spec = build(compose(f"protocol={protocol}", f"method={method}"))
        check_recipe(spec.recipe)
        assert spec.method.name == method
        assert spec.protocol.name == protocol
        assert spec.recipe.name == ("default" if protocol == "peftbench" else protocol)


@pytest.mark.slow  # 120 pairs; the test below composes those that have a file of their own
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_composes_with_every_method(protocol: str) -> None:
    compose_each(protocol, METHODS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_composes_with_its_own_methods_and_a_share_of_the_others(protocol: str) -> None:
    """The others are dealt out, so that every method and every protocol is composed."""
    own = [method for method in METHODS if (CONF / "tuned" / protocol / f"{method}.yaml").is_file()]
    dealt = list(METHODS)[PROTOCOLS.index(protocol) :: len(PROTOCOLS)]
    compose_each(protocol, dict.fromkeys([*own, *dealt]))


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        # reference code: optimiser, rate, decay, batch, drop_last, warm-up, its first rate, min
        ("vpt", ("adamw", 1e-3, 0.01, 384, False, 5, 0.0, 0.0)),
        ("ssf", ("adamw", 1e-3, 0.05, 64, True, 10, 1e-7, 1e-8)),
        ("fact", ("adamw", 1e-3, 1e-4, 64, True, 10, 1e-6, 1e-5)),
        ("adapter_plus", ("adamw", 1e-3, 1e-4, 64, True, 10, 1e-5, 1e-6)),
        ("vpetl", ("adamw", 1e-3, 1e-4, 64, False, 10, 1e-6, 1e-5)),
    ],
)
def test_a_protocol_optimises_as_its_code_does(protocol: str, expected: tuple) -> None:
    recipe = build(compose(f"protocol={protocol}", "method=norm")).recipe
    assert expected == (
        recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.batch_size, recipe.drop_last,
        recipe.warmup_epochs, recipe.warmup_lr, recipe.min_lr,
    )  # fmt: skip
    assert recipe.schedule_unit == "epoch"
    assert (recipe.epochs, recipe.total_epochs) == (100, 110 if protocol == "ssf" else 100)
    assert recipe.frozen_mode == ("method" if protocol == "vpt" else "train")
    assert recipe.decay == ("all" if protocol in ("fact", "vpetl") else "matrices")


@pytest.mark.parametrize(
    ("protocol", "normalisation", "interpolation", "drop_path"),
    [
        (
            Protocol("peftbench", (0, 1, 2), "mean_19", "without_head"),
            "checkpoint", "checkpoint", 0.0,
        ),
        (
            Protocol("vpt", (42, 44, 82, 100, 800), "mean_groups", "with_head"),
            "imagenet", "tf_bilinear", 0.0,
        ),
        (Protocol("ssf", (42,), "mean_19", "with_head"), "checkpoint", "bicubic", 0.0),
        (Protocol("fact", (42,), "mean_groups", "without_head"), "imagenet", "bicubic", 0.1),
        (
            Protocol("adapter_plus", (18, 45, 25), "mean_groups", "with_head"),
            "checkpoint", "tf_bilinear", 0.1,
        ),
        (Protocol("vpetl", (42,), "mean_19", "without_head"), "imagenet", "bilinear", 0.1),
    ],
    ids=lambda value: value.name if isinstance(value, Protocol) else None,
)  # fmt: skip
def test_a_protocol_prepares_and_reports_as_its_paper_does(
    protocol: Protocol, normalisation: str, interpolation: str, drop_path: float
) -> None:
    spec = build(compose(f"protocol={protocol.name}"))
    assert spec.preprocessing.normalisation == normalisation
    assert spec.preprocessing.resize == "squash"
    assert spec.preprocessing.interpolation == interpolation
    assert spec.backbone.drop_path == drop_path
    assert spec.protocol == protocol
    assert spec.describe()["protocol"] == {
        "name": protocol.name, "seeds": list(protocol.seeds),
        "average": protocol.average, "parameters": protocol.parameters,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [
        (["protocol=vpt"], []),
        (["protocol=adapter_plus"], []),
        (["protocol=ssf"], list(range(1, 111))),
        (["protocol=fact"], list(range(10, 101, 10))),
        (["protocol=vpetl", "method=bias"], [90, 100]),
        (["protocol=vpetl", "method=lora"], list(range(10, 101, 10))),
        (["protocol=vpetl", "method=full"], list(range(51, 101))),
    ],
    ids=str,
)
def test_a_protocol_looks_at_test_when_its_code_does(
    overrides: list[str], epochs: list[int]
) -> None:
    spec = build(compose(*overrides))
    assert sorted(spec.selection.epochs(spec.recipe.total_epochs)) == epochs
    assert spec.selects_on_test == bool(epochs)


@pytest.mark.parametrize(
    ("method", "optimizer", "batch", "warmup"),
    [
        ("full", "adamw", 384, 5),
        ("partial", "adamw", 384, 5),
        ("bias", "adamw", 384, 5),
        ("adapter_vpt", "adamw", 384, 5),
        ("linear", "momentum", 1024, 10),
        ("mlp", "momentum", 1024, 10),
        ("sidetune", "momentum", 1024, 10),
        ("vpt_shallow", "momentum", 128, 10),
        ("vpt_deep", "momentum", 128, 10),
        ("vpt_pad", "momentum", 128, 10),
    ],
)
def test_vpt_has_two_families_of_methods(
    method: str, optimizer: str, batch: int, warmup: int
) -> None:
    recipe = build(compose("protocol=vpt", f"method={method}")).recipe
    found = (recipe.optimizer, recipe.batch_size, recipe.warmup_epochs)
    assert found == (optimizer, batch, warmup)
    assert recipe.peak_lr == pytest.approx(recipe.lr * batch / 256)
    adamw = optimizer == "adamw"
    assert recipe.decay == ("matrices" if adamw else "all")
    assert recipe.eps == (1e-6 if adamw else None)
    if adamw:
        assert recipe.weight_decay == 0.01  # whatever the paper searched


def test_the_command_line_wins_over_every_layer(suites: None) -> None:
    overrides = ["protocol=ssf", "method=ssf", "dataset=vtab/dtd"]
    assert resolved(*overrides).recipe.lr == 5e-3
    assert resolved(*overrides, "recipe.lr=0.5").recipe.lr == 0.5
    # another recipe brings overlays of its own
    other = resolved("protocol=ssf", "recipe=short", "method=full", "dataset=vtab/dtd")
    assert (other.recipe.name, other.recipe.lr) == ("short", 1e-3)
    assert other.protocol == "ssf"


def test_layers_follow_one_another(suites: None) -> None:
    """Recipe, protocol, suite, method, method on a suite: each may change what is before it."""
    plain = resolved("protocol=ssf", "method=norm", "dataset=vtab/dtd")
    assert (plain.recipe.lr, plain.recipe.mixup) == (1e-3, 0.0)
    suite = resolved("protocol=ssf", "method=norm", "dataset=fgvc/cub200")
    assert (suite.recipe.lr, suite.recipe.mixup) == (1e-3, 0.8)
    method = resolved("protocol=ssf", "method=full", "dataset=fgvc/cub200")
    assert (method.recipe.lr, method.recipe.mixup) == (5e-5, 0.8)
    both = resolved("protocol=ssf", "method=ssf", "dataset=fgvc/cub200")
    assert (both.recipe.lr, both.recipe.mixup) == (1e-2, 0.8)
    assert both.method.variant == "released"


@pytest.mark.parametrize("path", OF_SUITES, ids=name_of)
def test_an_overlay_of_a_suite_cites_its_source_and_acts_there_only(
    path: Path, suites: None
) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# peftbench run ")
    assert lines[2].startswith("# ")
    overrides = lines[1].removeprefix("# peftbench run ").split()
    group, protocol, suite, *method = name_of(path).split("/")
    if group == "suite":
        assert method == []
    else:
        assert f"method={method[0]}" in overrides
    assert f"protocol={protocol}" in overrides or protocol == "peftbench"
    assert suite in (*TASKS, *OTHERS)
    assert any(o == f"dataset={suite}" or o.startswith(f"dataset={suite}/") for o in overrides)
    entry = yaml.safe_load(text)
    rows = entry.pop("by_dataset", {})
    if rows:
        assert set(rows) == set(TASKS[suite])
    here = OmegaConf.to_container(resolved(*overrides))
    dataset = next(o for o in overrides if o.startswith("dataset="))
    elsewhere = resolved(*(o for o in overrides if not o.startswith("dataset")))
    row = rows.get(dataset.rpartition("/")[2], {})
    for section, values in entry.items():
        for key, value in values.items():
            if str(value).startswith("${by_dataset:"):
                name, _, default = str(value)[len("${by_dataset:") : -1].partition(",")
                value = row.get(name, yaml.safe_load(default))
            assert here[section][key] == value  # type: ignore[index,call-overload]
    assert elsewhere.by_dataset is None


def group_mean(values: dict[str, float]) -> float:
    """Mean of the means of VTAB's three groups."""
    return statistics.fmean(
        statistics.fmean(values[task] for task in group)
        for group in (NATURAL, SPECIALIZED, STRUCTURED)
    )


def test_the_lengths_of_vpt_give_its_published_sizes() -> None:
    deep = {t: row["num_tokens"] for t, row in rows_of("tuned/vpt/vtab/vpt_deep").items()}
    shallow = {t: row["num_tokens"] for t, row in rows_of("tuned/vpt/vtab/vpt_shallow").items()}
    for lengths, means in ((shallow, (79.57, 28.75, 137.5)), (deep, (12.43, 52.75, 107.5))):
        for group, mean in zip((NATURAL, SPECIALIZED, STRUCTURED), means, strict=True):
            assert statistics.fmean(lengths[t] for t in group) == pytest.approx(mean, abs=0.01)
    # 12 x 768 weights a token: 0.53 M by groups, 0.56 M by tasks
    assert 12 * 768 * group_mean(deep) == pytest.approx(530_469, abs=1)
    assert 12 * 768 * statistics.fmean(deep.values()) == pytest.approx(561_691, abs=1)
    assert 768 * group_mean(shallow) == pytest.approx(62_900, abs=400)


def test_the_ranks_of_fact_give_its_published_sizes() -> None:
    tt = {t: row["rank"] for t, row in rows_of("tuned/fact/vtab/fact_tt").items()}
    tk = {t: row["rank"] for t, row in rows_of("tuned/fact/vtab/fact_tk").items()}
    # TT 2 D r + 12 L r^2, TK 2 D r + 12 L r + r^3, in thousands 37 and 69
    sizes_tt = {t: 2 * 768 * r + 144 * r * r for t, r in tt.items()}
    sizes_tk = {t: 2 * 768 * r + 144 * r + r**3 for t, r in tk.items()}
    assert group_mean(sizes_tt) == pytest.approx(36_649, abs=1)
    assert group_mean(sizes_tk) == pytest.approx(69_333, abs=1)
    scales = {row["scale"] for row in rows_of("tuned/fact/vtab/fact_tk").values()}
    assert scales <= {0.01, 0.1, 1.0, 10.0, 100.0}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["protocol=ssf", "method=ssf", "dataset=vtab/clevr_distance"],
            {"recipe.lr": 5e-2, "recipe.weight_decay": 5e-2, "backbone.drop_path": 0.1},
        ),
        (
            ["protocol=ssf", "method=ssf", "dataset=fgvc/oxford_flowers"],
            {
                "recipe.lr": 1e-2,
                "recipe.ema_decay": 0.999,
                "recipe.augmentation": "crop_flip",
                "recipe.cutmix": 1.0,
                "recipe.label_smoothing": 0.1,
                "backbone.drop_path": 0.1,
                "preprocessing.resize": "crop",
            },
        ),
        (
            ["protocol=fact", "method=fact_tk", "dataset=vtab/cifar100"],
            {"method.rank": 32, "method.scale": 0.1, "method.variant": "released"},
        ),
        (
            ["protocol=fact", "method=fact_tt", "dataset=vtab/clevr_distance"],
            {"method.rank": 4, "method.scale": 10.0},
        ),
        (
            ["protocol=vpt", "method=vpt_deep", "dataset=vtab/sun397"],
            {
                "method.num_tokens": 5,
                "recipe.lr": 25.0,
                "recipe.weight_decay": 1e-4,
                "recipe.batch_size": 128,
            },
        ),
        (
            ["protocol=vpt", "method=vpt_deep", "dataset=vtab/dmlab"],
            {"method.num_tokens": 100, "recipe.lr": 1.0, "recipe.batch_size": 64},
        ),
        (
            ["protocol=vpt", "method=vpt_deep", "dataset=vtab/pets"],
            {"method.num_tokens": 1, "recipe.lr": 1.0, "recipe.weight_decay": 1e-3},
        ),
        (
            ["protocol=adapter_plus", "method=vpt_deep", "dataset=vtab/kitti"],
            {"method.num_tokens": 100},  # its own setting; VPT's is 50
        ),
        (
            ["protocol=vpetl", "method=lora", "dataset=vtab/eurosat"],
            {"recipe.lr": 0.06, "recipe.weight_decay": 0.001, "recipe.label_smoothing": 0.1},
        ),
        (
            ["protocol=vpetl", "method=adaptformer", "dataset=vtab/dmlab"],
            {"recipe.lr": 0.009, "recipe.label_smoothing": 0.0},
        ),
        (
            ["dataset=fgvc/cub200"],
            {"recipe.augmentation": "crop_flip", "preprocessing.resize": "crop"},
        ),
        (["dataset=vtab/dtd"], {"recipe.augmentation": "none", "preprocessing.resize": "squash"}),
    ],
    ids=str,
)
def test_a_row_of_a_paper_is_resolved(
    suites: None, overrides: list[str], expected: dict[str, Any]
) -> None:
    cfg = resolved(*overrides)
    assert {key: OmegaConf.select(cfg, key) for key in expected} == expected


def test_a_data_set_that_the_paper_did_not_use_is_refused_until_a_value_is_given(
    suites: None,
) -> None:
    overrides = ["protocol=fact", "method=fact_tk", "dataset=vtab/own"]
    with pytest.raises(InterpolationResolutionError) as raised:
        resolved(*overrides)
    assert one_line(raised.value).startswith(
        "recipe=fact has no value for dataset=vtab/own in its table of rank. Give it on the "
        "command line, or use one of: "
    )
    cfg = resolved(*overrides, "method.rank=8", "method.scale=1")
    assert OmegaConf.to_object(cfg.method) == FacTTK(rank=8, scale=1.0, variant="released")


def test_a_protocol_of_ones_own_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "conf" / "protocol"
    folder.mkdir(parents=True)
    (folder / "ours.yaml").write_text(
        "# @package _global_\ndefaults: [{override /recipe: short}]\nprotocol: ours\n"
        "selection: {rule: best_on_test, every: 5}\nseeds: [7]\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    spec = build(compose("protocol=ours"))
    assert (spec.protocol.name, spec.protocol.seeds, spec.recipe.name) == ("ours", (7,), "short")
    assert spec.selection == Selection("best_on_test", every=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, r"seeds=\[\]; give one or more"),
        ({"seeds": (-1,)}, r"seeds=\[-1\]; give one or more, 0 or positive\."),
        ({"average": "mean"}, "Unknown average 'mean'"),
        ({"parameters": "head"}, "Unknown parameters 'head'"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(Protocol(), **change)
