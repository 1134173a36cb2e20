"""Visual prompts: where they stand, what they start from, who sees them."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny_backbones import anatomy_of, fill, fresh, images, randomise
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.backbones.anatomy import Role
from peftbench.backbones.describe import describe
from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS, Tuned, apply, discover
from peftbench.methods.layers import swin_prompts

discover()
TOKENS = 3
DEPTHS = pytest.mark.parametrize("method", ["vpt_deep", "vpt_shallow"])


def _apply(backbone: str, method: str, **options: object) -> Tuned:
    """A prompted tiny backbone in float64 and eval mode, its prompts far from zero."""
    made = METHODS[method](num_tokens=TOKENS, **options)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(made, fresh(backbone), anatomy_of(backbone), 7, generator)
    fill(tuned.trainable, seed=2)
    tuned.model.double().eval()
    return tuned


def _inputs(model: nn.Module, paths: list[str], x: Tensor) -> list[Tensor]:
    """What the modules at `paths` receive when `model` sees `x`."""
    received: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: received.update({path: args[0]})
        )
        for path in paths
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [received[path] for path in paths]


@DEPTHS
@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("vit", {}),
        ("vit_average", {}),
        ("vit_average", {"pool_prompts": True}),
        ("vit_map", {}),
        ("swin", {}),  # four windows in its first stage
        ("swin", {"pool_prompts": True}),
    ],
)
def test_an_image_does_not_see_its_batch(method: str, backbone: str, options: dict) -> None:
    tuned = _apply(backbone, method, **options)
    x = images(backbone, 4, dtype=torch.float64)
    with torch.no_grad():
        together = tuned.model(x)
        alone = torch.cat([tuned.model(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@DEPTHS
@pytest.mark.parametrize(("backbone", "prefix"), [("vit", 1), ("vit_registers", 5)])
def test_prompts_follow_the_prefix_tokens(method: str, backbone: str, prefix: int) -> None:
    x = images(backbone, 2, dtype=torch.float64)
    (bare,) = _inputs(fresh(backbone).double(), ["blocks.0"], x)
    tuned = _apply(backbone, method)
    prompts = tuned.method_params["blocks.0.prompts.tokens"].detach().expand(2, -1, -1)
    (entered,) = _inputs(tuned.model, ["blocks.0.block"], x)
    expected = torch.cat((bare[:, :prefix], prompts, bare[:, prefix:]), dim=1)
    torch.testing.assert_close(entered, expected, rtol=0, atol=1e-12)


@DEPTHS
@pytest.mark.parametrize("backbone", ["eva_fused", "eva_split"])
def test_prompts_are_not_rotated_and_patches_by_their_own_angles(
    method: str, backbone: str
) -> None:
    """The blocks of timm, told angles of which those of prompts rotate by nothing: sin 0, cos 1."""
    x = images(backbone, 2, dtype=torch.float64)
    bare = fresh(backbone).double()
    (stream,) = _inputs(bare, ["blocks.0"], x)
    angles = bare.rope.get_embed((4, 4))  # of 16 patches: sines beside cosines
    half = angles.shape[1] // 2
    none = torch.cat((torch.zeros(TOKENS, half), torch.ones(TOKENS, half)), 1).to(angles)
    angles = torch.cat((none, angles))
    tuned = _apply(backbone, method)
    left = []
    tuned.model.get_submodule("blocks.1").register_forward_hook(lambda *call: left.append(call[2]))
    with torch.no_grad():
        tuned.model(x)
        for depth in range(2):
            prompts = tuned.method_params.get(f"blocks.{depth}.prompts.tokens")
            if prompts is not None:
                old = TOKENS if depth else 0
                new = prompts.expand(2, -1, -1)
                stream = torch.cat((stream[:, :1], new, stream[:, 1 + old :]), dim=1)
            stream = bare.get_submodule(f"blocks.{depth}")(stream, rope=angles)
    expected = torch.cat((stream[:, :1], stream[:, 1 + TOKENS :]), dim=1)
    torch.testing.assert_close(left[0], expected, rtol=0, atol=1e-12)


def test_prompts_behind_rotated_tokens_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"leaves only tokens in front alone. Set method.loc"):
        METHODS["vpt_deep"](location="append").check(anatomy_of("eva_fused"))


@DEPTHS
def test_appended_prompts_follow_all_tokens_and_end_with_the_blocks(method: str) -> None:
    x = images("vit_registers", 2, dtype=torch.float64)
    tuned = _apply("vit_registers", method, location="append")
    paths = ["blocks.0", "blocks.0.block", "blocks.1", "blocks.1.block", "norm"]
    bare, first, between, second, read = _inputs(tuned.model, paths, x)
    assert torch.equal(first[:, :-TOKENS], bare)
    for depth, entered in enumerate((first, second)):
        name = f"blocks.{depth}.prompts.tokens"
        if name in tuned.method_params:
            prompts = tuned.method_params[name].detach().expand(2, -1, -1)
            assert torch.equal(entered[:, -TOKENS:], prompts)
    assert torch.equal(second[:, :-TOKENS], between[:, :-TOKENS])
    assert [t.shape[1] for t in (bare, first, between, second, read)] == [21, 24, 24, 24, 21]


@DEPTHS
@pytest.mark.parametrize("pool_prompts", [False, True])
@pytest.mark.parametrize("backbone", ["vit", "vit_registers", "vit_average", "vit_map"])
def test_appended_prompts_give_the_same_as_prepended_ones(
    backbone: str, pool_prompts: bool, method: str
) -> None:
    """Attention and every read-out here are blind to the order of tokens."""
    x = images(backbone, 2, dtype=torch.float64)
    options = {"pool_prompts": pool_prompts}
    prepended, appended = (
        _apply(backbone, method, location=location, **options).model(x)
        for location in ("prepend", "append")
    )
    torch.testing.assert_close(prepended, appended, rtol=0, atol=1e-12)


def test_deep_prompts_replace_those_of_the_block_before_and_shallow_ones_flow_on() -> None:
    x = images("vit", 2, dtype=torch.float64)
    deep = _apply("vit", "vpt_deep")
    between, second = _inputs(deep.model, ["blocks.1", "blocks.1.block"], x)
    prompts = deep.method_params["blocks.1.prompts.tokens"].detach().expand(2, -1, -1)
    assert torch.equal(second[:, 1 : 1 + TOKENS], prompts)
    assert torch.equal(second[:, :1], between[:, :1])
    assert torch.equal(second[:, 1 + TOKENS :], between[:, 1 + TOKENS :])
    assert second.shape == between.shape

    shallow = _apply("vit", "vpt_shallow")
    between, second = _inputs(shallow.model, ["blocks.1", "blocks.1.block"], x)
    assert torch.equal(second, between)
    assert second.shape[1] == 1 + TOKENS + 16


@DEPTHS
@pytest.mark.parametrize("backbone", ["vit_average", "vit_map"])
def test_a_read_out_over_tokens_sees_prompts_only_if_asked(method: str, backbone: str) -> None:
    x = images(backbone, 2, dtype=torch.float64)
    outputs = {}
    for pool_prompts in (False, True):
        model = _apply(backbone, method, pool_prompts=pool_prompts).model
        (read,) = _inputs(model, ["norm"], x)
        assert read.shape[1] == 16 + TOKENS * pool_prompts
        outputs[pool_prompts] = model(x)
    assert (outputs[True] - outputs[False]).abs().max() > 1e-3


@DEPTHS
def test_a_class_token_read_out_is_the_same_either_way(method: str) -> None:
    x = images("vit", 2, dtype=torch.float64)
    first, second = (_apply("vit", method, pool_prompts=p).model(x) for p in (False, True))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("patch", "width", "bound"), [(16, 768, 0.0625), (16, 1024, 0.05786), (14, 1280, 0.05667)]
)
def test_prompts_start_uniform_with_the_bound_of_the_released_code(
    patch: int, width: int, bound: float
) -> None:
    """sqrt(6 / (3 patch^2 + D)) on ViT-B/16, ViT-L/16 and ViT-H/14; depth does not matter."""
    model = VisionTransformer(
        img_size=2 * patch, patch_size=patch, embed_dim=width, depth=1, num_heads=16, num_classes=5
    )
    generator = torch.Generator().manual_seed(0)
    method = METHODS["vpt_deep"](num_tokens=50)
    tuned = apply(method, model, describe(model, 2 * patch), 5, generator)
    tokens = tuned.method_params["blocks.0.prompts.tokens"].detach()
    assert tokens.shape == (50, width)
    # 50 D draws come within a thousandth of the bound, which is given to four digits
    assert tokens.abs().max().item() == pytest.approx(bound, rel=2e-3)
    assert tokens.mean().abs() < 0.02 * bound
    assert tokens.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_projected_prompts_start_with_the_bound_of_their_own_width() -> None:
    """The projection is Kaiming normal over its outputs, its bias that of a linear layer."""
    width, learned = 24, 64
    generator = torch.Generator().manual_seed(0)
    method = METHODS["vpt_shallow"](num_tokens=200, project_width=learned)
    tuned = apply(method, fresh("vit"), anatomy_of("vit"), 7, generator)
    tokens, weight, bias = (p.detach() for p in tuned.method_params.values())
    assert tokens.abs().max().item() == pytest.approx(math.sqrt(6 / (3 * 4**2 + learned)), rel=1e-2)
    assert weight.shape == (width, learned)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / width), rel=0.1)
    assert 0 < bias.abs().max() <= 1 / math.sqrt(learned)


def test_prompts_of_all_swin_stages_start_with_the_bound_of_the_first() -> None:
    """sqrt(6 / (3 4^2 + 128)) on Swin-B, also where the stage is 256 wide."""
    model = SwinTransformer(img_size=32, embed_dim=128, depths=(1, 1), num_heads=(4, 8))
    generator = torch.Generator().manual_seed(0)
    tuned = apply(METHODS["vpt_deep"](num_tokens=50), model, describe(model, 32), 5, generator)
    shapes = {name: tuple(p.shape) for name, p in tuned.method_params.items()}
    assert shapes == {
        "layers.0.blocks.0.prompts.tokens": (50, 128),
        "layers.1.blocks.0.prompts.tokens": (50, 256),
    }
    for tokens in tuned.method_params.values():
        assert tokens.abs().max().item() == pytest.approx(0.18464, rel=2e-3)
        assert tokens.std().item() == pytest.approx(0.18464 / math.sqrt(3), rel=0.02)


class NoPrompts(nn.Module):
    """Zero prompts of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, batch: int) -> Tensor:
        return torch.empty(batch, 0, self.width)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"img_size": 32}, (32, 32)),  # shifted in both stages
        ({"img_size": 20}, (20, 20)),  # 10 x 10 and 5 x 5 tokens, padded to windows of 4
        ({"img_size": 8}, (8, 8)),  # windows as large as the map or larger
        ({"img_size": 12, "always_partition": True}, (12, 12)),
        ({"img_size": 16, "window_size": (2, 4)}, (16, 16)),
        ({"img_size": 16, "strict_img_size": False}, (24, 20)),  # masks follow the image
    ],
)
def test_a_swin_without_prompts_is_the_one_of_timm(
    options: dict, size: tuple[int, int], deep: bool
) -> None:
    kwargs = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "num_heads": (2, 4)} | options
    model = SwinTransformer(depths=(2, 2), num_classes=5, **kwargs)
    anatomy = describe(randomise(model, seed=0).eval(), options["img_size"])
    model.double()
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    expected = model(x)
    blocks = anatomy.where(Role.BLOCK)[: None if deep else 1]
    prompts = {block.depth: NoPrompts(block.width) for block in blocks}
    swin_prompts.insert(model, anatomy, prompts, pool_prompts=True)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


def test_deep_swin_prompts_are_thrown_away_and_shallow_ones_pass_patch_merging() -> None:
    x = images("swin", 2, dtype=torch.float64)
    paths = ["layers.0.blocks.1", "layers.1.downsample", "layers.1.blocks.0", "norm"]
    for received in _inputs(_apply("swin", "vpt_deep").model, paths, x):
        assert isinstance(received, Tensor) and received.ndim == 4
    *carried, read = _inputs(_apply("swin", "vpt_shallow").model, paths, x)
    shapes = [(tuple(c.tokens.shape), tuple(c.prompts.shape)) for c in carried]
    assert shapes == [
        ((2, 8, 8, 12), (2, TOKENS, 12)),
        ((2, 8, 8, 12), (2, TOKENS, 12)),
        ((2, 4, 4, 24), (2, TOKENS, 24)),
    ]
    assert read.shape == (2, 4, 4, 24)


@pytest.mark.parametrize(
    ("options", "found"),
    [({"project_width": 4}, "project_width=4"), ({"location": "append"}, "location=append")],
)
@DEPTHS
def test_swin_refuses_what_has_no_meaning_there(method: str, options: dict, found: str) -> None:
    with pytest.raises(Unsupported, match=rf"^{method} has {found}, .* swin .*\.$"):
        METHODS[method](**options).check(anatomy_of("swin"))


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [
        ("vpt_deep", {"location": "below"}, "location='below'"),
        ("vpt_shallow", {"location": "add"}, "location='add'"),
        ("vpt_shallow", {"location": "below", "project_width": 4}, "project_width=4"),
        ("vpt_shallow", {"location": "below", "pool_prompts": True}, "pool_prompts=true"),
        ("vpt_shallow", {"location": "below", "dropout": 0.1}, "dropout=0.1"),
        ("vpt_pad", {"num_tokens": 0}, "num_tokens=0"),
    ],
)
def test_options_that_contradict_the_location_are_refused(
    method: str, options: dict, found: str
) -> None:
    with pytest.raises(ConfigError, match=f"^method={method}: .*{found}"):
        METHODS[method](**options)


def test_a_border_surrounds_the_image() -> None:
    """Bands are in [0, 1) before the ImageNet normalisation; those above reach over corners."""
    method = METHODS["vpt_pad"](num_tokens=TOKENS)
    generator = torch.Generator().manual_seed(0)
    tuned = apply(method, fresh("resnet_basic"), anatomy_of("resnet_basic"), 7, generator)
    rows = tuned.method_params["conv1.top_bottom"].detach()
    columns = tuned.method_params["conv1.left_right"].detach()
    assert (rows.shape, columns.shape) == ((3, 6, 38), (3, 32, 6))
    for band in (rows, columns):
        assert 0 <= band.min() < 0.05 and 0.95 < band.max() < 1
        assert band.mean().item() == pytest.approx(0.5, abs=0.03)
    x = images("resnet_basic", 2)
    (read,) = _inputs(tuned.model, ["conv1.stem"], x)
    assert read.shape == (2, 3, 38, 38)
    assert torch.equal(read[:, :, 3:-3, 3:-3], x)
    green = (0.456, 0.224)  # ImageNet mean and standard deviation
    for image in read[:, 1]:
        torch.testing.assert_close(image[0], (rows[1, 0] - green[0]) / green[1])
        torch.testing.assert_close(image[-1], (rows[1, -1] - green[0]) / green[1])
        torch.testing.assert_close(image[3:-3, 0], (columns[1, :, 0] - green[0]) / green[1])
        torch.testing.assert_close(image[3:-3, -1], (columns[1, :, -1] - green[0]) / green[1])


BELOW = {"location": "below", "num_tokens": TOKENS}


@pytest.mark.parametrize("backbone", ["vit", "vit_map", "swin", "beit", "convnext", "efficientnet"])
def test_channels_below_the_image_matter_only_through_their_planes(backbone: str) -> None:
    bare = fresh(backbone).double()
    method = METHODS["vpt_shallow"](**BELOW)
    generator = torch.Generator().manual_seed(0)
    model = apply(method, fresh(backbone), anatomy_of(backbone), 5, generator).model.double().eval()
    planes = next(p for name, p in model.named_parameters() if name.endswith(".planes"))
    x = images(backbone, 2, dtype=torch.float64)
    with torch.no_grad():
        features = model.forward_features(x)
        assert (features - bare.forward_features(x)).abs().max() > 1e-6
        planes.zero_()
        torch.testing.assert_close(model.forward_features(x), bare.forward_features(x))


def test_a_kernel_below_is_drawn_with_the_fans_of_all_its_planes() -> None:
    """sqrt(6 / ((3 + 5 + 64) 7^2)) on ResNet-50; its batch norm trains as in the released code."""
    model = ResNet(block=BasicBlock, layers=(1, 1, 1, 1), num_classes=5)
    generator = torch.Generator().manual_seed(0)
    method = METHODS["vpt_shallow"](location="below", num_tokens=5)
    pretrained = model.conv1.weight.detach().clone()
    tuned = apply(method, model, describe(model, 64), 5, generator)
    assert set(tuned.method_params) == {"conv1.planes", "conv1.channels"}
    assert set(tuned.unfrozen_params) == {"conv1.conv.weight", "bn1.weight", "bn1.bias"}
    assert torch.equal(tuned.unfrozen_params["conv1.conv.weight"], pretrained)
    planes = tuned.method_params["conv1.planes"].detach()
    assert planes.shape == (64, 5, 7, 7)
    assert planes.abs().max().item() == pytest.approx(0.041239, rel=2e-3)
    assert planes.std().item() == pytest.approx(0.041239 / math.sqrt(3), rel=0.02)
    channels = tuned.method_params["conv1.channels"].detach()
    assert channels.shape == (5, 64, 64)
    assert 0 <= channels.min() < 0.001 and 0.999 < channels.max() < 1
    tuned.train()
    assert [n for n, m in tuned.model.named_modules() if m.training and "bn" in n] == ["bn1"]
    (read,) = _inputs(tuned.model, ["conv1.conv"], images("resnet_basic", 2).repeat(1, 1, 2, 2))
    assert read.shape == (2, 8, 64, 64)
    mean, deviation = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    for image in read:
        torch.testing.assert_close(image[3:], (channels - mean) / deviation)


@DEPTHS
def test_prompt_dropout_differs_between_samples_and_stops_after_training(method: str) -> None:
    tuned = _apply("vit", method, dropout=0.5)
    x = images("vit", 1, dtype=torch.float64).expand(2, -1, -1, -1)
    torch.manual_seed(0)
    tuned.train()
    (entered,) = _inputs(tuned.model, ["blocks.0.block"], x)
    first, second = entered[:, 1 : 1 + TOKENS]
    assert not torch.equal(first == 0, second == 0)
    tuned.model.eval()
    (entered,) = _inputs(tuned.model, ["blocks.0.block"], x)
    prompts = tuned.method_params["blocks.0.prompts.tokens"].detach().expand(2, -1, -1)
    assert torch.equal(entered[:, 1 : 1 + TOKENS], prompts)


@DEPTHS
def test_prompt_dropout_on_swin_differs_between_samples_and_stops_after_training(
    method: str,
) -> None:
    tuned = _apply("swin", method, dropout=0.5)
    x = images("swin", 1, dtype=torch.float64).expand(2, -1, -1, -1)
    norm = ["layers.0.blocks.0.block.norm1"]
    torch.manual_seed(0)
    tuned.train()
    first, second = _inputs(tuned.model, norm, x)[0][:, :TOKENS]
    assert not torch.equal(first == 0, second == 0)
    training = [name for name, module in tuned.model.named_modules() if module.training]
    assert all(name.endswith("prompts.dropout") or name == "head.fc" for name in training)
    tuned.model.eval()
    prompts = tuned.method_params["layers.0.blocks.0.prompts.tokens"].detach()
    for image in _inputs(tuned.model, norm, x)[0]:
        assert torch.equal(image[:TOKENS], prompts)
