"""The identity of a run: what changes it, what does not, and that it never drifts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import compose, tiny_spec, write_images

from peftbench.config.build import build
from peftbench.errors import ConfigError
from peftbench.methods import METHODS
from peftbench.methods.lora import LoRA
from peftbench.results.identity import run_id_of
from peftbench.spec import (
    FOUND_BY,
    TOLD,
    BackboneSpec,
    DatasetFacts,
    DatasetSpec,
    Phase,
    Precision,
    PreprocessingSpec,
    Protocol,
    Recipe,
    RunSpec,
    Selection,
)

LITERAL = RunSpec(
    method=LoRA(rank=4, alpha=8.0, targets=("q", "v")),
    backbone=BackboneSpec(name="vit_base_patch16_224.orig_in21k", title="vit_b16_in21k"),
    dataset=DatasetSpec(
        name="mini/digits",
        reader="mini",
        suite="mini",
        suite_version=1,
        group="specialized",
        manifest="5eed" * 16,
    ),
    preprocessing=PreprocessingSpec(interpolation="bicubic"),  # the default before "checkpoint"
    recipe=Recipe(name="short", epochs=30, warmup_epochs=3),
    seed=1,
)

# The identity of LITERAL, written out. A change of this text or of the id makes every recorded run
# of every user a stranger: it needs a reason, and a new IDENTITY_VERSION or card version.
IDENTITY = """
{"backbone":{"checkpoint":null,"checkpoint_sha256":"","drop_path":0.0,"image_size":null,
"name":"vit_base_patch16_224.orig_in21k","pretrained":true},
"dataset":{"group":"specialized","limit":null,
"manifest":"5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed",
"name":"mini/digits","reader":"mini","split_seed":0,"suite":"mini","suite_version":1,
"test_fraction":0.2,"val_fraction":0.1},
"identity_version":1,
"method":{"hyperparameters":{"alpha":8.0,"dropout":0.0,"rank":4,"targets":["q","v"]},
"name":"lora","version":1},
"phase":"final","precision":"auto",
"preprocessing":{"interpolation":"bicubic","normalisation":"checkpoint","resize":"squash"},
"recipe":{"batch_size":64,"clip_grad":null,"epochs":30,"flip":false,"label_smoothing":0.0,
"lr":0.001,"min_lr":1e-05,"momentum":0.9,"optimizer":"adamw","schedule":"cosine",
"warmup_epochs":3,"warmup_lr":1e-06,"weight_decay":0.0001},
"seed":1}
"""


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, tuple):
        return (*value, "x")
    assert value is None, value
    return 7


def with_field(value: Any, field: str) -> Any:
    """A copy of a frozen value with another `field`, unchecked: only its identity matters."""
    copy = dataclasses.replace(value)
    object.__setattr__(copy, field, other(getattr(value, field)))
    return copy


def test_the_identity_of_a_literal_run_is_what_it_always_was() -> None:
    assert LITERAL.identity() == json.loads(IDENTITY)
    compact = IDENTITY.replace("\n", "")
    assert hashlib.sha256(compact.encode()).hexdigest()[:16] == "5f5070c74886040c"
    assert LITERAL.run_id == "5f5070c74886040c"


def test_the_order_in_which_a_run_is_put_together_does_not_matter() -> None:
    fields = {f.name: getattr(LITERAL, f.name) for f in dataclasses.fields(LITERAL)}
    fields["method"] = LoRA(targets=["q", "v"], alpha=8.0, rank=4)  # type: ignore[arg-type]
    again = RunSpec(**dict(reversed(fields.items())))
    assert again == LITERAL
    assert again.run_id == LITERAL.run_id


def test_equal_runs_have_one_id_whether_a_number_was_written_as_8_or_8_0() -> None:
    written = dataclasses.replace(LITERAL, method=LoRA(rank=4, alpha=8, targets=("q", "v")))
    assert written == LITERAL
    assert written.run_id == LITERAL.run_id


def test_a_composed_run_has_the_id_of_the_run_built_by_hand(tmp_path: Path) -> None:
    overrides = [
        "method=lora",
        "method.rank=4",
        "seed=3",
        "recipe.lr=3e-3",
        f"results_dir={tmp_path}",
    ]
    one = build(compose(*overrides))
    two = build(compose(*reversed(overrides), "device=cpu", "threads=1", "force=true"))
    by_hand = RunSpec(
        method=LoRA(rank=4),
        backbone=BackboneSpec("vit_mini"),
        dataset=one.dataset,
        recipe=Recipe(lr=0.003),
        seed=3,
    )
    assert one.run_id == two.run_id == by_hand.run_id


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field.name) for name in METHODS for field in dataclasses.fields(METHODS[name])],
)
def test_every_hyperparameter_is_part_of_the_identity(name: str, field: str) -> None:
    method = METHODS[name]()
    spec = dataclasses.replace(LITERAL, method=method)
    other_method = with_field(method, field)
    if (name, field) == ("compose", "settings"):  # of its parts, which it knows
        other_method = METHODS[name](settings=("lora.rank:3",))
    changed = dataclasses.replace(LITERAL, method=other_method)
    assert changed.run_id != spec.run_id


def test_the_version_of_a_method_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = LITERAL.run_id
    monkeypatch.setattr(LoRA, "card", dataclasses.replace(LoRA.card, version=LoRA.card.version + 1))
    assert LITERAL.run_id != before


def test_two_methods_without_hyperparameters_have_different_ids() -> None:
    assert tiny_spec("linear").run_id != tiny_spec("full").run_id


@pytest.mark.parametrize(
    "field",
    ["name", "pretrained", "checkpoint_sha256", "image_size", "drop_path"],
)
def test_every_field_of_the_backbone_is_part_of_the_identity(field: str) -> None:
    changed = dataclasses.replace(LITERAL, backbone=with_field(LITERAL.backbone, field))
    assert changed.run_id != LITERAL.run_id


def test_the_seed_of_random_weights_is_part_of_the_identity_only_where_it_is_read() -> None:
    def run_id(**fields: Any) -> str:
        backbone = dataclasses.replace(LITERAL.backbone, **fields)
        return dataclasses.replace(LITERAL, backbone=backbone).run_id

    assert run_id(pretrained=False, seed=1) != run_id(pretrained=False, seed=0)
    assert run_id(seed=1) == run_id(seed=0)


@pytest.mark.parametrize(
    "field",
    [
        f.name
        for f in dataclasses.fields(DatasetSpec)
        if f.name not in ("root", "facts", *FOUND_BY, *TOLD)
    ],
)
def test_every_field_of_the_data_set_is_part_of_the_identity(field: str) -> None:
    changed = dataclasses.replace(LITERAL, dataset=with_field(LITERAL.dataset, field))
    assert changed.run_id != LITERAL.run_id


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PreprocessingSpec)])
def test_every_field_of_the_preprocessing_is_part_of_the_identity(field: str) -> None:
    changed = dataclasses.replace(LITERAL, preprocessing=with_field(LITERAL.preprocessing, field))
    assert changed.run_id != LITERAL.run_id


@pytest.mark.parametrize("augmentation", ["crop_flip", "random_crop_flip"])
def test_crops_of_whole_pictures_are_other_runs_than_crops_of_their_middle(
    augmentation: str,
) -> None:
    spec = dataclasses.replace(LITERAL, recipe=Recipe(augmentation=augmentation))
    recipe = spec.identity()["recipe"]
    assert (recipe["augmentation"], recipe["flip"]) == (augmentation, True)
    assert recipe["crops"] == "whole pictures"
    assert run_id_of(json.loads(json.dumps(spec.describe()))) == spec.run_id


@pytest.mark.parametrize(
    ("augmentation", "train_size", "size", "expected"),
    [
        ("none", None, 224, None),
        ("flip", 300, 224, None),
        ("none", 100, 224, None),  # not read
        ("crop_flip", None, 224, 384),
        ("crop_flip", None, 48, 82),
        ("random_crop_flip", None, 224, 256),
        ("crop_flip", 256, 224, 256),
        ("random_crop_flip", 224, 224, 224),
    ],
)
def test_training_pictures_are_kept_whole_where_the_recipe_crops(
    augmentation: str, train_size: int | None, size: int, expected: int | None
) -> None:
    spec = dataclasses.replace(
        LITERAL,
        recipe=Recipe(augmentation=augmentation),
        preprocessing=PreprocessingSpec(train_size=train_size),
    )
    assert spec.train_size(size) == expected


def test_whole_pictures_smaller_than_the_input_are_refused() -> None:
    spec = dataclasses.replace(
        LITERAL,
        recipe=Recipe(augmentation="crop_flip"),
        preprocessing=PreprocessingSpec(train_size=223),
    )
    with pytest.raises(ConfigError) as refused:
        spec.train_size(224)
    assert str(refused.value) == (
        "preprocessing.train_size=223 is smaller than the input of 224 pixels. "
        "Use 224 or more, or null for 384."
    )
    with pytest.raises(ConfigError, match="train_size=0 is not a positive size"):
        PreprocessingSpec(train_size=0)


def test_by_default_the_checkpoint_says_how_images_are_prepared() -> None:
    plain = dataclasses.replace(LITERAL, preprocessing=PreprocessingSpec())
    assert "train_size" not in plain.describe()["preprocessing"]  # it came later
    assert plain.identity()["preprocessing"] == {
        "interpolation": "checkpoint", "normalisation": "checkpoint", "resize": "squash",
    }  # fmt: skip


# checkpoints trade time for memory and change no number: tests/training/test_recomputation.py
NO_IDENTITY = {"name", "checkpointing"}


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(Recipe) if f.name not in NO_IDENTITY]
)
def test_every_field_of_the_recipe_is_part_of_the_identity(field: str) -> None:
    changed = dataclasses.replace(LITERAL, recipe=with_field(LITERAL.recipe, field))
    assert changed.run_id != LITERAL.run_id


LATER = [f for f in dataclasses.fields(Recipe) if f.metadata.get("later")]
LATER_OF_DATA = [f.name for f in dataclasses.fields(DatasetSpec) if f.metadata.get("later")]


@pytest.mark.parametrize("field", LATER_OF_DATA)
def test_a_later_field_of_the_data_set_is_recorded_only_where_it_is_used(field: str) -> None:
    written = dataclasses.replace(LITERAL, dataset=with_field(LITERAL.dataset, field))
    assert field not in LITERAL.describe()["dataset"]
    assert field in written.describe()["dataset"]
    assert "facts" not in written.describe()["dataset"]


def test_a_field_that_came_later_is_left_out_where_it_has_its_default() -> None:
    """The rule by which recorded runs keep their ids: see `peftbench.canonical.later`."""
    first = set(json.loads(IDENTITY)["recipe"]) | {"name"}
    assert {f.name for f in dataclasses.fields(Recipe)} - {f.name for f in LATER} == first - {
        "flip"  # taken in by `augmentation`
    }
    for field in (f for f in LATER if f.name not in NO_IDENTITY):
        written = dataclasses.replace(LITERAL, recipe=with_field(LITERAL.recipe, field.name))
        assert LITERAL.identity()["recipe"].keys() == first - {"name"}
        assert field.name in written.identity()["recipe"]
        # records leave it out as well, so that old and new ones are one row of a table
        assert field.name not in LITERAL.describe()["recipe"]
        assert field.name in written.describe()["recipe"]


def test_a_mirrored_run_has_the_id_from_when_that_was_a_switch() -> None:
    identity = json.loads(IDENTITY)
    identity["recipe"]["flip"] = True
    recipe = dataclasses.replace(LITERAL.recipe, augmentation="flip")
    assert dataclasses.replace(LITERAL, recipe=recipe).identity() == identity


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"phase": Phase.TUNE}, {"precision": Precision.FLOAT32}],
    ids=lambda change: next(iter(change)),
)
def test_seed_phase_and_precision_are_part_of_the_identity(change: dict[str, Any]) -> None:
    assert dataclasses.replace(LITERAL, **change).run_id != LITERAL.run_id


def test_names_for_people_are_no_part_of_the_identity() -> None:
    renamed = dataclasses.replace(
        LITERAL,
        backbone=dataclasses.replace(LITERAL.backbone, title="my favourite"),
        recipe=dataclasses.replace(LITERAL.recipe, name="another name"),
        dataset=dataclasses.replace(
            LITERAL.dataset, root="/somewhere/else", layout="vtab1k", facts=DatasetFacts("Digits")
        ),
    )
    assert renamed.run_id == LITERAL.run_id


def test_the_bytes_of_a_checkpoint_are_its_identity_and_its_path_is_not(tmp_path: Path) -> None:
    first, moved, second = (tmp_path / name for name in ("a.pth", "b.pth", "c.pth"))
    first.write_bytes(b"weights")
    moved.write_bytes(b"weights")
    second.write_bytes(b"other weights")
    ids = [build(compose(f"backbone.checkpoint={path}")).run_id for path in (first, moved, second)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    # local weights replace pretrained ones, so whether those were asked for changes nothing
    without = build(compose(f"backbone.checkpoint={first}", "backbone.pretrained=false"))
    assert without.run_id == ids[0]


def test_a_moved_image_folder_keeps_its_runs_and_a_changed_image_does_not(tmp_path: Path) -> None:
    root = write_images(tmp_path / "before")
    before = build(compose("dataset=folder", f"dataset.root={root}"))
    moved = root.rename(tmp_path / "after")
    after = build(compose("dataset=folder", f"dataset.root={moved}"))
    assert after.run_id == before.run_id
    assert after.dataset.root != before.dataset.root

    image = sorted(moved.rglob("*.png"))[0]
    image.write_bytes(sorted(moved.rglob("*.png"))[1].read_bytes())
    assert build(compose("dataset=folder", f"dataset.root={moved}")).run_id != before.run_id


@pytest.mark.parametrize(
    "override",
    [
        "results_dir=elsewhere",
        "device=cpu",
        "threads=1",
        "force=true",
        "recipe=default",
        "protocol=peftbench",
        "seeds=[5]",
        "average=mean_groups",
        "parameters=with_head",
    ],
)
def test_where_and_how_a_run_is_executed_is_no_part_of_its_identity(override: str) -> None:
    assert build(compose(override)).run_id == build(compose()).run_id


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"backbone": BackboneSpec("vit_mini", checkpoint="w.pth", checkpoint_sha256="ab", seed=3)},
        {"backbone": BackboneSpec("vit_mini", pretrained=False, seed=3, title="t")},
        {"phase": Phase.TUNE, "selection": Selection("best_on_test")},
        {"selection": Selection("best_on_test", every=10), "protocol": Protocol("fact")},
        {"recipe": Recipe(name="ssf", mixup=0.8, cooldown_epochs=10)},
    ],
)
def test_a_record_tells_its_run_id_by_itself(change: dict[str, Any]) -> None:
    spec = dataclasses.replace(LITERAL, **change)
    assert run_id_of(json.loads(json.dumps(spec.describe()))) == spec.run_id
