"""The frozen part of a network: found where what follows needs nothing else."""

from __future__ import annotations

import pytest
import torch
from support.tiny_backbones import TINY, anatomy_of, images
from support.tiny_tuned import start
from torch import Tensor, nn

from peftbench.run.prefix import Suffix, activations_of, digest_of, find_prefix
from peftbench.training.activations import Activations, RowLayout
from peftbench.training.device import Compute, autocast

CPU = torch.device("cpu")
EXACT = Compute(CPU, torch.float32)
HALF = Compute(CPU, torch.bfloat16)
PAIRS = [
    (method, backbone)
    for method in ("linear", "mlp", "partial")
    for backbone in TINY
    # read by code of their own: nothing is kept, or what lies further in front
    if backbone not in ("ghostnet", "revcol")
    if method != "partial" or anatomy_of(backbone).depth
]
MANY = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("compute", [EXACT, HALF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_what_follows_the_prefix_gives_the_outputs_of_the_whole_model_bit_for_bit(
    method: str, backbone: str, compute: Compute
) -> None:
    tuned = start(method, backbone)
    prefix = find_prefix(tuned.model, tuned.train, images(backbone, 2), compute)
    assert prefix is not None
    others = images(backbone, 5, seed=3)
    with torch.no_grad(), autocast(compute):
        kept = activations_of(tuned.model, prefix, others)
        rest = Suffix(tuned.model, prefix)
        torch.testing.assert_close(rest(Activations(kept)), tuned.model(others), rtol=0, atol=0)
        torch.testing.assert_close(rest(others), tuned.model(others), rtol=0, atol=0)
    assert prefix.head is None if method == "partial" else prefix.head is not None


@pytest.mark.parametrize("method", ["full", "bias", "lora", "vpt_deep"])
def test_a_method_that_changes_the_first_layers_has_no_prefix(method: str) -> None:
    tuned = start(method, "vit")
    assert find_prefix(tuned.model, tuned.train, images("vit", 2), EXACT) is None


def test_a_network_beside_the_backbone_gets_the_images_and_the_kept_features() -> None:
    tuned = start("sidetune", "vit", side="backbone")
    prefix = find_prefix(tuned.model, tuned.train, images("vit", 2), EXACT)
    assert prefix is not None and prefix.needs_images
    others = images("vit", 3, seed=5)
    with torch.no_grad():
        kept = Activations(activations_of(tuned.model, prefix, others), others)
        outputs = Suffix(tuned.model, prefix)(kept)
        torch.testing.assert_close(outputs, tuned.model(others), rtol=0, atol=0)


def test_a_block_that_hands_on_what_it_read_ends_the_prefix_though_it_makes_no_difference_yet() -> (
    None
):
    """B is zero at the start, so that blocks without their traces would give the same outputs."""
    first, second = (start("dtl", "vit", gather_blocks=[i], add_blocks=[1]) for i in range(2))
    assert find_prefix(first.model, first.train, images("vit", 2), EXACT) is None
    prefix = find_prefix(second.model, second.train, images("vit", 2), EXACT)
    assert prefix is not None and prefix.path == "blocks.0"


def test_gradients_behind_the_prefix_are_those_of_the_whole_model() -> None:
    tuned = start("partial", "vit")
    prefix = find_prefix(tuned.model, tuned.train, images("vit", 2), EXACT)
    assert prefix is not None
    x = images("vit", 4, seed=1)
    tuned.model.eval()
    tuned.model(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in tuned.trainable.items() if p.grad is not None}
    tuned.model.zero_grad()
    Suffix(tuned.model, prefix)(
        Activations(activations_of(tuned.model, prefix, x))
    ).square().sum().backward()
    assert len(expected) == len(tuned.trainable)
    for name, parameter in tuned.trainable.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0)


def test_layers_that_draw_random_numbers_are_no_part_of_a_prefix() -> None:
    tuned = start("linear", "vit")  # with drop-path and dropout in every block
    frozen = find_prefix(tuned.model, lambda: tuned.train("method"), images("vit", 2), EXACT)
    drawing = find_prefix(tuned.model, lambda: tuned.train("train"), images("vit", 2), EXACT)
    assert frozen is not None and frozen.path == "head_drop"
    assert drawing is None  # of what is in front of the first block is too little


class Skipping(nn.Module):
    """A frozen layer that an input goes around, and a layer that trains."""

    def __init__(self, skip: float) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 4, 3, padding=1)
        self.frozen.requires_grad_(False)
        self.trained = nn.Linear(4, 2)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S)."""
        around = self.skip * x.mean((1, 2, 3))[:, None]
        return self.trained(self.frozen(x).mean((2, 3)) + around)


def test_what_goes_around_the_prefix_is_not_forgotten() -> None:
    straight, around = Skipping(0.0), Skipping(1e-3)
    one = find_prefix(straight, straight.train, MANY[:2], EXACT)
    other = find_prefix(around, around.train, MANY[:2], EXACT)
    assert one is not None and not one.needs_images
    assert other is not None and other.needs_images


class Normed(nn.Module):
    """A batch norm without parameters that uses the statistics of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 4, 3)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.trained = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S)."""
        return self.trained(self.norm(self.frozen(x)).mean((2, 3)))


def test_a_norm_over_the_batch_ends_the_prefix_and_the_search_leaves_its_statistics() -> None:
    model = Normed()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    prefix = find_prefix(model, model.train, MANY[:2], EXACT)
    assert prefix is not None and prefix.path == "frozen"
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_entry_is_named_by_every_tensor_of_its_prefix_and_by_none_behind_it() -> None:
    def named(change: str = "") -> str:
        tuned = start("partial", "vit")
        prefix = find_prefix(tuned.model, tuned.train, images("vit", 2), EXACT)
        assert prefix is not None
        if change:
            with torch.no_grad():
                tuned.model.get_parameter(change).view(-1)[0] += 1
        return digest_of(tuned.model, prefix)

    plain = named()
    assert named() == plain
    for inside in ("patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.mlp.fc2.bias"):
        assert named(inside) != plain, inside
    for behind in ("blocks.1.mlp.fc2.bias", "norm.weight", "head.weight"):
        assert named(behind) == plain, behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["tokens", "channels first", "channels last", "features"])
def test_activations_come_back_from_bytes_as_they_lay_in_memory(
    kind: str, dtype: torch.dtype
) -> None:
    values = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    if kind == "channels last":
        values = values.contiguous(memory_format=torch.channels_last)
    elif kind != "channels first":
        values = values.flatten(2) if kind == "tokens" else values.flatten(1)
    layout = RowLayout.of(values[:1])
    rows = layout.to_bytes(values)
    assert rows.shape == (3, 40 * values.element_size()) and rows.dtype == torch.uint8
    back = layout.to_values(rows)
    assert torch.equal(back, values) and back.dtype == dtype
    assert back[1].stride() == values[1].stride()
