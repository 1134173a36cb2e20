"""Anatomies that are found by looking: equal to the descriptions, and confirmed by experiments."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.tiny_backbones import TINY, anatomy_of, fresh, randomise
from support.tiny_runs import tiny_spec
from timm.layers import StdConv2d
from torch import Tensor, nn

import peftbench
from peftbench.backbones import anatomies
from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.backbones.corrections import parsed, text_of
from peftbench.backbones.describe import describe
from peftbench.backbones.inference import infer
from peftbench.errors import ConfigError, UnknownName
from peftbench.methods import METHODS, apply, discover
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.spec import BackboneSpec

discover()
NINE = ("vit", "convnext", "resnet", "swin", "swin_v2", "beit", "eva", "mixer", "efficientnet")
DESCRIBED = [name for name in TINY if TINY[name].family in NINE]


def _by_place(sites: tuple[Site, ...]) -> dict[tuple[str, Role], Site]:
    """Sites by path and role, without what is told of how they are known."""
    return {(s.path, s.role): dataclasses.replace(s, evidence="") for s in sites}


@pytest.mark.parametrize("name", DESCRIBED)
def test_inference_finds_the_sites_that_the_family_describes_and_no_others(name: str) -> None:
    described = anatomy_of(name)
    looked = infer(fresh(name), described.image_size, described.channels, (described.head,))
    assert _by_place(looked.sites) == _by_place(described.sites)
    assert looked.depth == described.depth
    assert not looked.left_out


@pytest.mark.parametrize("name", DESCRIBED)
def test_inference_finds_the_tokens_that_the_family_describes(name: str) -> None:
    described = anatomy_of(name)
    looked = infer(fresh(name), described.image_size, described.channels, (described.head,))
    if described.tokens is None:
        assert looked.tokens is None
        return
    assert looked.tokens is not None
    # a description gives the reason, an experiment what failed; and Mixer names no patch_embed,
    # of which the description takes the rows
    other = dataclasses.replace(looked.tokens, refusal=described.tokens.refusal)
    if name == "mixer":
        assert other.grid == (4, 4)  # images of 16 pixels in patches of 4
        other = dataclasses.replace(other, grid=None)
    assert other == described.tokens


class Attention(nn.Module):
    """Self-attention of one width whose fused projection lays its rows out as it is told."""

    def __init__(self, width: int, heads: int, by_head: bool) -> None:
        super().__init__()
        self.heads, self.by_head = heads, by_head
        self.to_all = nn.Linear(width, 3 * width)
        self.back = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        joint = self.to_all(x)
        if self.by_head:  # (q, k, v) of the first head, then of the next one
            q, k, v = joint.reshape(b, n, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        else:
            v, k, q = joint.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.back((weights @ v).transpose(1, 2).reshape(b, n, c))


class Unit(nn.Module):
    """A block with odd names, one layer whose result is thrown away, and one that is fused."""

    def __init__(self, width: int, by_head: bool) -> None:
        super().__init__()
        self.first = nn.LayerNorm(width)
        self.mixer = Attention(width, 2, by_head)
        self.second = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.idle = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.first(x))
        self.idle(x)
        return x + self.narrow(F.silu(self.wide(self.second(x))))


class Odd(nn.Module):
    """A small net of nobody's class with timm's interface; tokens without a class token."""

    def __init__(self, by_head: bool = False, kernel: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.patches = kernel(3, 12, 4, 4)
        self.units = nn.Sequential(*(Unit(12, by_head) for _ in range(3)))
        self.last = nn.LayerNorm(12)
        self.classify = nn.Linear(12, 5)

    def get_classifier(self) -> nn.Module:
        return self.classify

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        features: Tensor = self.last(self.units(x)).mean(1)
        return self.classify(features)


def _odd(**options: object) -> Anatomy:
    torch.manual_seed(0)
    return describe(Odd(**options).eval(), 24)  # type: ignore[arg-type]


def _paths(anatomy: Anatomy, role: Role) -> list[str]:
    return [site.path for site in anatomy.where(role)]


def test_a_class_that_nobody_described_gets_roles_whatever_its_names_are() -> None:
    anatomy = _odd()
    assert anatomy.inferred and anatomy.family == "Odd" and anatomy.depth == 3
    every = {
        Role.BLOCK: "units.{}",
        Role.ATTN_IN: "units.{}.mixer.to_all",
        Role.ATTN_OUT: "units.{}.mixer.back",
        Role.MLP_IN: "units.{}.wide",
        Role.MLP_OUT: "units.{}.narrow",
        Role.ATTN_ENTRY: "units.{}.first",
        Role.MLP_ENTRY: "units.{}.second",
    }
    for role, path in every.items():
        assert _paths(anatomy, role) == [path.format(i) for i in range(3)]
    assert _paths(anatomy, Role.EMBED) == ["patches"]
    assert _paths(anatomy, Role.AFTER) == ["last"]
    assert anatomy.tokens is not None and anatomy.tokens.grid == (6, 6)  # 24 pixels by 4
    assert anatomy.tokens.accepts_more and anatomy.tokens.num_prefix == 0


def test_rows_of_a_fused_projection_are_named_by_what_reads_them() -> None:
    assert {site.parts for site in _odd().where(Role.ATTN_IN)} == {("v", "k", "q")}
    # heads beside each other are no three blocks of rows
    assert {site.parts for site in _odd(by_head=True).where(Role.ATTN_IN)} == {()}


def test_a_norm_whose_result_is_thrown_away_is_left_out_with_the_reason() -> None:
    left_out = {(path, role): why for path, role, why in _odd().left_out}
    assert left_out == {
        (f"units.{i}.idle", "norm"): "noise there does not change what the model gives"
        for i in range(3)
    }


def test_a_kernel_that_is_standardised_is_left_out_since_no_change_of_it_folds() -> None:
    anatomy = _odd(kernel=StdConv2d)
    assert not _paths(anatomy, Role.EMBED)
    ((path, role, why),) = [row for row in anatomy.left_out if row[0] == "patches"]
    assert (path, role) == ("patches", "embed") and "computed of its weight" in why


def test_a_projection_whose_rows_cannot_be_told_apart_is_adapted_as_one() -> None:
    anatomy = _odd(by_head=True)
    method = METHODS["lora"](rank=2)
    backbone = randomise(Odd(by_head=True), seed=1).eval()
    tuned = apply(method, backbone, anatomy, None, torch.Generator().manual_seed(0))
    # A is 2 x 12 and B 36 x 2, in each of three blocks
    assert method.expected_params(anatomy) == 3 * (2 * 12 + 36 * 2)
    assert sum(p.numel() for p in tuned.method_params.values()) == 288


def test_a_model_is_not_changed_by_being_looked_at() -> None:
    model = randomise(Odd(), seed=2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    describe(model, 24)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and all(not m._forward_hooks for m in model.modules())
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_model_that_cannot_be_watched_keeps_the_methods_that_need_no_sites() -> None:
    class Closed(Odd):
        def forward(self, x: Tensor) -> Tensor:
            if not x.is_meta:
                raise RuntimeError("not while somebody looks")
            return super().forward(x)

    anatomy = describe(Closed().eval(), 24)
    assert not anatomy.sites and not anatomy.inferred and anatomy.family == "generic"
    METHODS["full"]().check(anatomy)


# ------------------------------------------------------------------- corrections


def test_a_few_lines_correct_what_was_inferred(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("roles:\n  mlp_in: units.*.mixer.back\nleave_out: [units.0.wide]\n")
    anatomy = describe(Odd().eval(), 24, parsed(text_of(str(file))))
    assert not _paths(anatomy, Role.ATTN_OUT)
    back = [f"units.{i}.mixer.back" for i in range(3)]
    assert set(_paths(anatomy, Role.MLP_IN)) == {*back, "units.1.wide", "units.2.wide"}
    told = [site for site in anatomy.where(Role.MLP_IN) if site.path in back]
    assert all(site.evidence == "told; changes the output; a change folds" for site in told)


def test_the_rows_of_a_projection_can_be_told() -> None:
    text = text_of(json.dumps({"parts": {"units.*.mixer.to_all": ["q", "k", "v"]}}))
    anatomy = describe(Odd(by_head=True).eval(), 24, parsed(text))
    assert {site.parts for site in anatomy.where(Role.ATTN_IN)} == {("q", "k", "v")}


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("rolls: {}", UnknownName, "Did you mean: roles?"),
        ("roles: {attn_inn: [a]}", UnknownName, "attn_in"),
        ("parts: {a: [w]}", UnknownName, "Known: k, q, v"),
        ("roles: [a]", ConfigError, "is a list"),
        ("leave_out: 3", ConfigError, "no list of names"),
        ("- a", ConfigError, "holds no keys"),
        ("a: [", ConfigError, "is no YAML"),
    ],
)
def test_corrections_that_make_no_sense_are_refused_in_one_line(
    content: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(content)
    with pytest.raises(kind) as caught:
        text_of(str(file))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_correction_that_fits_no_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="fits no layer"):
        describe(Odd().eval(), 24, parsed('{"roles": {"mlp_in": ["units.*.nowhere"]}}'))


def test_a_task_on_corrected_sites_is_read_back_with_them(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("leave_out: [units.0.mixer.to_all]\n")
    tuned = peftbench.tune(Odd(), "lora", rank=2, image_size=24, anatomy=file)
    assert not [n for n, p in tuned.named_parameters() if p.requires_grad and "units.0" in n]


# ------------------------------------------------------------------- what is kept


def test_what_inference_found_is_kept_and_a_broken_file_is_found_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path))
    spec = BackboneSpec("test_byobnet", pretrained=False, image_size=64)
    first = anatomies.anatomy_of(spec)
    assert first.inferred
    (file,) = (tmp_path / "anatomies").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr("peftbench.backbones.describe.infer", None)  # would end in a TypeError
        assert anatomies.anatomy_of(spec) == first
    file.write_text(file.read_text()[:-100])
    assert anatomies.anatomy_of(spec) == first


# ------------------------------------------------------------------- a run on what was inferred


def test_an_inferred_model_trains_reloads_and_merges_like_a_described_one(tmp_path: Path) -> None:
    backbone = BackboneSpec("test_byobnet", pretrained=False, image_size=32)
    store = ResultsStore(tmp_path)
    record = experiment.run(tiny_spec(METHODS["lora"](rank=2), backbone=backbone), store)
    assert record.status is Status.OK, record.error
    assert record.provenance is not None and record.provenance.sites == "inferred"
    assert peftbench.results(tmp_path)["sites"].tolist() == ["inferred"]
    tuned = peftbench.load(store.artefacts(record)).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tuned(x)
        merged = peftbench.merge(tuned)(x)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
