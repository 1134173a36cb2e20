"""From overrides to a run: types, errors, and where configurations are found."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import hydra.errors
import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError
from support.tiny_runs import compose, write_images

from peftbench.config.build import build
from peftbench.config.choices import (
    catalogue,
    check_choices,
    choices,
    config_dir,
    config_dirs,
    group_dirs,
)
from peftbench.errors import ConfigError, DataError, UnknownName, WeightsError
from peftbench.methods import METHODS
from peftbench.methods.lora import LoRA
from peftbench.methods.vpt import VPTDeep
from peftbench.spec import Phase, Precision, RunSpec
from peftbench.sweep.tuning.cells import paper_grid


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory far from the clone."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


NAMES = ("first", "second")
GRID = "lora:\n  source: here\n  methods: [lora]\n  axes: {{method.rank: [{rank}]}}\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_method_arrives_as_its_frozen_dataclass_with_tuples() -> None:
    spec = build(compose("method=lora", "method.rank=4", "method.targets=[k,fc1]"))
    assert spec.method == LoRA(rank=4, targets=("k", "fc1"))
    assert type(spec.method) is LoRA
    assert type(spec.method.targets) is tuple
    assert hash(spec.method) == hash(LoRA(rank=4, targets=("k", "fc1")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.method.rank = 5  # type: ignore[misc]


def test_values_get_the_types_of_their_fields() -> None:
    spec = build(
        compose(
            "method=vpt_deep",
            "method.project_width=5",
            "recipe.lr=1",
            "recipe.clip_grad=2",
            "phase=tune",
            "precision=bfloat16",
        )
    )
    assert spec.method == VPTDeep(project_width=5)
    assert type(spec.recipe.lr) is float and spec.recipe.lr == 1.0
    assert type(spec.recipe.clip_grad) is float and spec.recipe.clip_grad == 2.0
    assert spec.phase is Phase.TUNE
    assert spec.precision is Precision.BFLOAT16


def test_a_built_run_holds_no_configuration_object() -> None:
    spec = build(compose("method=lora", "backbone=vit_b16"))

    def parts(value: object) -> list[object]:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return [p for f in dataclasses.fields(value) for p in parts(getattr(value, f.name))]
        return [value]

    assert not [part for part in parts(spec) if OmegaConf.is_config(part)]
    assert len({spec, build(compose("method=lora", "backbone=vit_b16"))}) == 1


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("seed=one", ValidationError),
        ("method.rank=zero", ValidationError),
        ("recipe.drop_last=perhaps", ValidationError),
        ("recipe.epochs=null", ValidationError),
        ("sede=1", (ConfigKeyError, ConfigAttributeError)),
        ("method.rnk=1", (ConfigKeyError, ConfigAttributeError)),
        ("experiments=typo", hydra.errors.MissingConfigException),
        ("method=loar", hydra.errors.MissingConfigException),
    ],
)
def test_a_wrong_key_or_value_stops_the_composition(override: str, error: type | tuple) -> None:
    with pytest.raises((hydra.errors.ConfigCompositionException, *_all(error))) as raised:
        compose("method=lora", override) if override != "method=loar" else compose(override)
    chain = [raised.value, raised.value.__cause__, raised.value.__context__]
    assert any(isinstance(link, error) for link in chain)


def _all(error: type | tuple) -> tuple:
    return error if isinstance(error, tuple) else (error,)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method=lora", "method.rank=0"],
            "method=lora: rank=0; use 1 or more.",
        ),
        (["seed=-1"], "seed=-1 is negative. Use 0 or a positive integer."),
        (["phase=fianl"], "Unknown phase 'fianl'. Did you mean: final? Known: final, tune."),
        (
            ["precision=float16"],
            "Unknown precision 'float16'. Did you mean: bfloat16, float32? "
            "Known: auto, bfloat16, float32.",
        ),
        (
            ["preprocessing.normalisation=imgnet"],
            "Unknown preprocessing.normalisation 'imgnet'. Did you mean: imagenet, inception? "
            "Known: checkpoint, imagenet, inception, none.",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(compose(*overrides))
    assert str(refused.value) == message


@pytest.mark.parametrize("lr", ["nan", "inf"])
def test_a_rate_that_is_no_number_is_refused(lr: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.lr"):
        _ = build(compose(f"recipe.lr={lr}")).run_id


@pytest.mark.parametrize("seed", [2**63, 10**25])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed={seed}"):
        build(compose(f"seed={seed}"))


def test_the_largest_seed_is_accepted() -> None:
    assert build(compose(f"seed={2**63 - 1}")).seed == 2**63 - 1


def test_a_folder_without_a_root_says_how_to_give_one() -> None:
    with pytest.raises(Exception, match=r"dataset\.root") as refused:
        build(compose("dataset=folder"))
    assert isinstance(refused.value, ConfigError | DataError)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absent.pth"
    with pytest.raises(WeightsError) as refused:
        build(compose(f"backbone.checkpoint={path}"))
    assert str(refused.value) == (
        f"backbone.checkpoint={path} does not exist. Give the path of a .safetensors, .npz or "
        ".pth file."
    )


def test_titles_name_the_weights_that_are_really_used(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights")

    def title(*overrides: str) -> str:
        return build(compose(*overrides)).backbone.title

    assert title() == "vit_mini"
    assert title("backbone=vit_b16") == "vit_b16_in21k"
    assert title("backbone.name=vit_base_patch16_224.orig_in21k") == "vit_b16_in21k"
    assert title("backbone.name=resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert title("backbone.pretrained=false") == "vit_mini (random)"
    assert title(f"backbone.checkpoint={path}") == "vit_mini (mine.pth)"


def test_unknown_choices_come_with_suggestions() -> None:
    with pytest.raises(UnknownName) as refused:
        check_choices("dataset", ["mini/digits", "mini/digit"])
    assert str(refused.value) == (
        "Unknown dataset 'mini/digit'. Did you mean: mini/digits, mini/clipart12? "
        "Your own images: dataset=folder dataset.root=PATH."
    )
    check_choices("backbone", ["vit_b16", "vit_mini"])


def test_configurations_are_found_from_any_working_directory(elsewhere: Path) -> None:
    here = build(compose("method=lora", "experiments=demo"))
    assert isinstance(here, RunSpec)
    assert (config_dir() / "config.yaml").is_file()
    assert config_dirs()[0] == config_dir()
    assert "demo" in choices("experiments")
    assert list(elsewhere.iterdir()) == []


def test_a_local_method_configuration_is_found(elsewhere: Path) -> None:
    write(
        elsewhere / "conf" / "method" / "lora_narrow.yaml",
        "defaults: [/schema/method/lora@_here_]\nrank: 1\n",
    )
    assert "lora_narrow" in choices("method")
    assert build(compose("method=lora_narrow")).method == LoRA(rank=1)
    assert build(compose("method=lora_narrow", "method.alpha=2")).method == LoRA(1, 2.0)


def test_a_local_backbone_and_data_set_have_names_in_tables(elsewhere: Path) -> None:
    write(elsewhere / "conf" / "backbone" / "small.yaml", "name: resnet18.a1_in1k\n")
    root = write_images(elsewhere / "pets")
    write(
        elsewhere / "conf" / "dataset" / "pets.yaml", f"name: pets\nreader: folder\nroot: {root}\n"
    )
    spec = build(compose("backbone=small", "dataset=pets"))
    assert str(spec) == "linear x small x pets, seed 0"


def test_a_local_experiment_is_found(elsewhere: Path) -> None:
    write(
        elsewhere / "experiments" / "mine.yaml",
        "# @package _global_\ndefaults: [{override /method: lora}]\nseed: 5\n",
    )
    assert choices("experiments") >= {"mine", "demo"}
    spec = build(compose("experiments=mine"))
    assert (spec.method.name, spec.seed) == ("lora", 5)
    assert [folder.parent for folder in group_dirs("experiments")] == [
        config_dir().parent,
        elsewhere,
    ]


def test_two_working_directories_have_each_their_own_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, name in enumerate(NAMES, 1):
        folder = tmp_path / name
        schema = "defaults: [/schema/method/lora@_here_]"
        write(folder / "conf" / "method" / "mine.yaml", f"{schema}\nrank: {rank}\n")
        write(folder / "conf" / "method" / f"{name}.yaml", f"{schema}\n")
        write(folder / "conf" / "grid" / "paper.yaml", GRID.format(rank=rank))
        write(folder / "experiments" / f"{name}.yaml", "# @package _global_\nseed: 5\n")
    found = {}
    for name in (*NAMES, "first"):
        monkeypatch.chdir(tmp_path / name)
        local = (
            {"first", "second"} & choices("method"),
            {"first", "second"} & choices("experiments"),
        )
        found[name] = (*local, catalogue("method")["mine"]["rank"])
        assert build(compose("method=mine")).method == LoRA(rank=found[name][2])
        assert paper_grid("paper", "lora").overrides() == [[f"method.rank={found[name][2]}"]]
    assert found == {"first": ({"first"}, {"first"}, 1), "second": ({"second"}, {"second"}, 2)}


def test_a_method_without_a_file_is_chosen_unless_the_working_directory_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose()  # what is registered once a process is
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))
    monkeypatch.setitem(METHODS._entries, "unfiled", LoRA)
    write(
        tmp_path / "with" / "conf" / "method" / "unfiled.yaml",
        "defaults: [/schema/method/lora@_here_]\nrank: 3\n",
    )
    (tmp_path / "without").mkdir()
    for name, rank in (("without", LoRA().rank), ("with", 3), ("without", LoRA().rank)):
        monkeypatch.chdir(tmp_path / name)
        assert build(compose("method=unfiled")).method == LoRA(rank=rank)


def test_a_method_file_without_its_schema_is_refused(elsewhere: Path) -> None:
    write(elsewhere / "conf" / "method" / "bare.yaml", "rank: 4\n")
    with pytest.raises(ConfigError) as refused:
        build(compose("method=bare"))
    assert str(refused.value) == (
        "method is not a registered method: its YAML must begin with "
        "'defaults: [/schema/method/NAME@_here_]'."
    )


def test_an_unknown_key_of_a_local_file_is_refused(elsewhere: Path) -> None:
    write(
        elsewhere / "conf" / "method" / "typo.yaml",
        "defaults: [/schema/method/lora@_here_]\nrnk: 4\n",
    )
    with pytest.raises(Exception, match="rnk"):
        compose("method=typo")


def test_the_looks_of_a_trial_are_read_as_a_search_writes_them() -> None:
    spec = build(compose("phase=tune", "+looks={2:null,1:0.4375}"))
    assert spec.looks == ((1, 0.4375), (2, None))
