"""Anatomies that are kept in a file are those that the models have."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support.tiny_backbones import anatomy_of as tiny

from peftbench.backbones import anatomies, known
from peftbench.backbones.families import FAMILIES, register_family
from peftbench.backbones.names import check_name
from peftbench.backbones.preprocessing import image_size
from peftbench.backbones.shipped import SHIPPED
from peftbench.cli.method_pages import examples
from peftbench.config.choices import catalogue
from peftbench.spec import BackboneSpec

KNOWN = ("vit_mini", *(example.architecture for example in examples()))
CONFIGURED = {entry["name"] for entry in catalogue("backbone").values()} - SHIPPED.keys()
SMALL_DINO = BackboneSpec("vit_base_patch14_dinov2.lvd142m", image_size=224)  # as in conf/backbone


def spec_of(name: str) -> BackboneSpec:
    return BackboneSpec(name, pretrained=name == "vit_mini")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backbones that were built to be described."""
    names: list[str] = []
    describing = anatomies.described

    def counted(spec: BackboneSpec) -> object:
        names.append(spec.name)
        return describing(spec)

    monkeypatch.setattr(anatomies, "described", counted)
    return names


@pytest.mark.parametrize("name", KNOWN)
def test_a_kept_anatomy_is_that_of_the_model(name: str, built: list[str]) -> None:
    found = anatomies.anatomy_of(spec_of(name))
    assert built == []
    assert found == anatomies.described(spec_of(name))


def test_anatomies_are_read_as_they_were_written(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    kept = {name: (tiny(name),) for name in ("vit", "swin_v2", "resnet_basic", "regnet")}
    kept |= {"both": (*kept["swin_v2"], *kept["vit"])}
    file = tmp_path / "anatomies.json"
    file.write_text(known.written(kept, ["VisionTransformer"]), encoding="utf-8")
    monkeypatch.setattr(known, "FILE", file)
    for cached in (known._read, known._kept):
        cached.cache_clear()
    try:
        assert {name: known.of_name(name) for name in kept} == kept
        assert len(known._read()["anatomies"]) == 4
    finally:
        for cached in (known._read, known._kept):
            cached.cache_clear()


def test_a_configured_backbone_needs_no_timm(built: list[str]) -> None:
    for entry in catalogue("backbone").values():
        if entry["name"] in CONFIGURED and "." in entry["name"]:
            spec = BackboneSpec(entry["name"], image_size=entry.get("image_size"))
            check_name(spec)
            assert anatomies.anatomy_of(spec).image_size == image_size(spec)
    assert built == []
    kept = anatomies.anatomy_of(SMALL_DINO)
    assert kept.tokens is not None and kept.tokens.grid == (16, 16)  # of patches of 14 pixels
    assert kept == anatomies.described(dataclasses.replace(SMALL_DINO, pretrained=False))
    assert image_size(BackboneSpec(SMALL_DINO.name)) == 518  # timm's pretrained_cfg


def test_another_size_is_described_anew(built: list[str]) -> None:
    small = dataclasses.replace(spec_of("vit_mini"), image_size=24)
    tokens = anatomies.anatomy_of(small).tokens
    assert tokens is not None and tokens.grid == (2, 2)  # of patches of 12 pixels
    assert built == ["vit_mini"]


def test_the_own_size_by_its_number_is_known(built: list[str]) -> None:
    asked = dataclasses.replace(spec_of("vit_mini"), image_size=48)
    assert anatomies.anatomy_of(asked) == anatomies.anatomy_of(spec_of("vit_mini"))
    assert built == []


def test_another_version_of_timm_is_asked_itself(
    built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_timm", lambda: "0.0.1")
    anatomies.anatomy_of(spec_of("vit_mini"))
    assert built == ["vit_mini"]


@pytest.mark.parametrize(
    ("name", "counts"),
    # the class of the model, the class of another known one, a class of none of them
    [("VisionTransformer", True), ("RegNet", True), ("VGG", False)],
)
def test_a_family_that_somebody_adds_counts_where_it_could_be_that_of_a_known_backbone(
    built: list[str], monkeypatch: pytest.MonkeyPatch, name: str, counts: bool
) -> None:
    monkeypatch.setattr(FAMILIES, "_entries", dict(FAMILIES._entries))
    register_family(dataclasses.replace(FAMILIES["vit"], name="of_others", classes=(name,)))
    anatomies.anatomy_of(spec_of("vit_mini"))
    assert built == ["vit_mini"] * counts


def test_the_file_says_what_it_was_written_with() -> None:
    content = json.loads(known.FILE.read_text(encoding="utf-8"))
    assert set(content["origin"]) == {"timm", "families", "fields"}
    assert {"VisionTransformer", "ResNet", "RegNet"} <= set(content["classes"])
    assert content["names"].keys() == {*KNOWN, *CONFIGURED}
