"""Where things are in one tiny backbone of each family, counted by hand from its constructor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from support.counted_sites import ROLES, SHAPE
from support.tiny_backbones import NUM_CLASSES, TINY, anatomy_of, fresh, images
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from peftbench.backbones import families
from peftbench.backbones.anatomy import STEM, Anatomy, Role
from peftbench.backbones.classifier import heads_of
from peftbench.backbones.copies import weightless_copy
from peftbench.backbones.describe import describe, match
from peftbench.backbones.models.architectures import ARCHITECTURES
from peftbench.errors import Unsupported

# backbone -> (prefix tokens, width, read-out, whether blocks take more tokens)
TOKENS: Mapping[str, tuple[int, int, str, bool]] = {
    "vit": (1, 24, "token", True),
    "vit_registers": (5, 24, "token", True),
    "vit_average": (0, 24, "avg", True),
    "vit_map": (0, 24, "map", True),
    "beit": (1, 24, "avg", False),
    "eva_fused": (1, 24, "avg", False),
    "eva_split": (1, 24, "avg", False),
    "mixer": (0, 16, "avg", False),
}

# true biases outside the classifier
BIASES: Mapping[str, int] = {
    "vit": 11 * 2 * 24 + 2 * 24,
    "vit_average": 11 * 2 * 24 + 2 * 24,
    # blocks of width 12 and 24; the norm behind the patches and the last one; the patches; the
    # norm of the patch merging, which has no bias of its own
    "swin": 11 * (2 * 12 + 24) + 12 + 24 + 12 + 48,
    "beit": 10 * 2 * 24 + 2 * 24,  # no key bias
    "eva_fused": 10 * 2 * 24 + 2 * 24,
    # depthwise, norm and second layer of the MLP: one width each; first layer: four
    "convnext": 7 * (8 + 12 + 2 * 16 + 24) + 2 * 8 + (8 + 12) + (12 + 16) + (16 + 24) + 24,
}


@pytest.fixture(params=list(TINY))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_family_classifier_and_stages(name: str) -> None:
    anatomy = anatomy_of(name)
    head, width, stages = SHAPE[name]
    assert anatomy.family == TINY[name].family
    assert (anatomy.head, anatomy.head_width) == (head, width)
    blocks = anatomy.where(Role.BLOCK)
    assert [b.stage for b in blocks] == stages
    assert [b.depth for b in blocks] == list(range(anatomy.depth))
    assert anatomy.depth == len(stages)


def test_roles(name: str) -> None:
    assert Counter(site.role for site in anatomy_of(name).sites) == ROLES[name]


def test_tokens(name: str) -> None:
    tokens = anatomy_of(name).tokens
    if name not in TOKENS:
        assert tokens is None
        return
    assert tokens is not None
    found = (tokens.num_prefix, tokens.width, tokens.pooled, tokens.accepts_more)
    assert found == TOKENS[name]
    assert bool(tokens.refusal) != tokens.accepts_more


def test_parameters_are_counted_without_the_classifier(name: str) -> None:
    anatomy, model = anatomy_of(name), fresh(name)
    total = sum(p.numel() for p in model.parameters())
    assert anatomy.num_params == total - (anatomy.head_width + 1) * NUM_CLASSES
    if name in BIASES:
        assert anatomy.num_biases == BIASES[name]
    tables = {"swin": 49 * (2 + 2 + 3), "beit": 2 * (49 + 3) * 3}.get(name, 0)
    assert anatomy.num_position_biases == tables


def test_sites_agree_with_what_a_forward_pass_does(name: str) -> None:
    """Whether it is called, its width and the axis of its channels, seen on the real model."""
    model = fresh(name)
    shapes: dict[str, torch.Size] = {}

    def note(path: str) -> None:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            shapes.setdefault(path, output.shape)

        model.get_submodule(path).register_forward_hook(hook)

    sites = anatomy_of(name).sites
    for path in {site.path for site in sites}:
        note(path)
    with torch.no_grad():
        model(images(name, 3))
    for site in sites:
        assert site.called == (site.path in shapes)
        module = model.get_submodule(site.path)
        assert site.num_params == sum(p.numel() for p in module.parameters())
        if site.called and len(shapes[site.path]) > 2:
            assert shapes[site.path][-1 if site.channels_last else 1] == site.width
        if isinstance(module, nn.Linear):
            assert (site.width, site.fan_in) == (module.out_features, module.in_features)
        if isinstance(module, nn.Conv2d):
            taps = module.kernel_size[0] * module.kernel_size[1]
            assert site.fan_in == module.in_channels // module.groups * taps
        if site.role in (Role.BLOCK, Role.NORM):
            assert site.fan_in is None


@pytest.mark.parametrize("name", ["swin_v2", "beit", "eva_fused"])
def test_projections_whose_weight_is_only_read_are_found(name: str) -> None:
    fused = anatomy_of(name).where(Role.ATTN_IN)
    assert fused and not any(site.called for site in fused)
    assert all(site.parts == ("q", "k", "v") for site in fused)
    others = [s for s in anatomy_of(name).sites if s.role is not Role.ATTN_IN]
    assert all(site.called for site in others)


def test_split_projections_name_their_one_part() -> None:
    sites = anatomy_of("eva_split").where(Role.ATTN_IN, depths=[1])
    assert [(s.path, s.parts, s.called) for s in sites] == [
        (f"blocks.1.attn.{part}_proj", (part,), True) for part in "qkv"
    ]


def test_layout_is_a_property_of_the_module() -> None:
    """The same roles are linear layers in one ConvNeXt and 1 x 1 convolutions in the other."""
    for name, expected in (("convnext", True), ("convnext_conv", False)):
        anatomy = anatomy_of(name)
        inside = anatomy.where(Role.MLP_IN, Role.MLP_OUT)
        assert {s.channels_last for s in inside} == {expected}
        assert {s.channels_last for s in anatomy.where(Role.NORM) if s.depth >= 0} == {expected}
        assert {s.channels_last for s in anatomy.where(Role.SPATIAL_CONV)} == {False}
        assert {s.fan_in for s in anatomy.where(Role.SPATIAL_CONV)} == {49}
    assert {s.channels_last for s in anatomy_of("swin").where(Role.BLOCK)} == {True}


def test_a_transition_belongs_to_the_block_that_it_leads_to() -> None:
    transition = anatomy_of("swin").where(Role.TRANSITION)
    assert [(s.path, s.depth, s.stage) for s in transition] == [("layers.1.downsample", 2, 1)]
    transitions = anatomy_of("convnext").where(Role.TRANSITION)
    assert [(s.depth, s.stage) for s in transitions] == [(1, 1), (2, 2), (4, 3)]


def test_where_keeps_depth_order_and_filters(name: str) -> None:
    anatomy = anatomy_of(name)
    depths = [s.depth for s in anatomy.sites]
    assert depths == sorted(depths)
    assert all(s.depth == STEM for s in anatomy.where(Role.EMBED))
    for site in anatomy.where(*Role, depths=range(1)):
        assert site.depth == 0
    assert anatomy.where(*Role) == anatomy.sites


def test_describing_leaves_the_model_alone(name: str) -> None:
    model = fresh(name).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    assert describe(model, TINY[name].image_size) == anatomy_of(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_an_unknown_class_without_values_has_no_sites_and_everything_that_needs_none() -> None:
    anatomy = describe(weightless_copy(fresh("regnet")), 32)
    assert (anatomy.family, anatomy.sites, anatomy.depth, anatomy.tokens) == (
        "generic",
        (),
        0,
        None,
    )
    assert anatomy.num_params > 0 and anatomy.num_biases > 0


class Wider(VisionTransformer):
    """A subclass outside timm."""


def test_a_subclass_belongs_to_the_family_of_its_base() -> None:
    options = dict(img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    assert describe(Wider(**options), 16).family == "vit"


def test_the_name_of_a_class_alone_is_not_enough() -> None:
    impostor = type("VisionTransformer", (nn.Module,), {})
    assert families.family_of(impostor()).name == "generic"


def test_every_family_has_a_tiny_backbone_which_the_contract_suite_takes() -> None:
    families_tested = {tiny.family for tiny in TINY.values()}
    described = {family.name for family in families.every_family()} - {"generic"}
    assert families_tested == {*described, "RegNet"}  # one that inference has to look at


def test_every_family_names_classes_that_timm_has_or_we() -> None:
    import timm.models

    own = {size.kind for size in ARCHITECTURES.values()}
    for family in map(families.FAMILIES.__getitem__, families.FAMILIES):
        assert all(cls in own or hasattr(timm.models, cls) for cls in family.classes)


def _vit(cls: type[nn.Module] = VisionTransformer, **options: object) -> nn.Module:
    return cls(
        **dict(img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
        | options
    )


def test_a_variant_that_its_family_does_not_describe_is_looked_at() -> None:
    anatomy = describe(_vit(block_fn=ParallelScalingBlock), 16)
    assert (anatomy.family, anatomy.known_by, anatomy.depth) == ("VisionTransformer", "inferred", 1)
    assert anatomy.head_width == 8


@pytest.mark.parametrize("model", [_vit(num_classes=0), nn.Linear(2, 2)], ids=["none", "no timm"])
def test_a_model_without_a_classifier_is_refused(model: nn.Module) -> None:
    with pytest.raises(Unsupported, match="no single classifier"):
        heads_of(model)


def test_patterns_match_name_by_name() -> None:
    paths = ["blocks.0", "blocks.10", "blocks.0.norm", "layer1.0", "layer1.0.bn1", "stem.0"]
    assert match("blocks.*", paths) == ["blocks.0", "blocks.10"]
    assert match("layer*.*", paths) == ["layer1.0"]
    assert match("stem.0", paths) == ["stem.0"]
    assert match("norm", paths) == []


def test_a_weightless_copy_shares_nothing_and_keeps_ties() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    twin = weightless_copy(model)
    assert all(t.is_meta for t in (*twin.parameters(), *twin.buffers()))
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert twin[0].weight is twin[1].weight
    assert isinstance(twin[2].running_mean, Tensor)


def test_an_anatomy_is_a_value() -> None:
    assert isinstance(anatomy_of("vit"), Anatomy)
    assert hash(anatomy_of("vit")) == hash(describe(fresh("vit"), 16))
