"""Methods that choose what trains by looking at the training images: GPS."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_backbones import anatomy_of, fill, fresh, images
from support.tiny_tuned import start
from torch import Tensor

from peftbench.artefacts import task_file
from peftbench.errors import ConfigError, WeightsError
from peftbench.methods import METHODS, apply
from peftbench.methods.layers import selection
from peftbench.methods.layers.sparse import SparseDelta


class Batches:
    """Sixteen tiny images in two batches of four classes."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for seed in range(2):
            yield images("vit", 8, seed=seed), torch.arange(8) % 4


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# ------------------------------------------------------------------- what chooses


def test_the_contrastive_loss_of_four_rows_is_the_formula() -> None:
    """Two classes on the axes, temperature 1: rows of one class are 1 alike, others 0.

    Each anchor has one positive, and a share of e / (e + 1 + 1) for it.
    """
    rows = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 3.0], [0.0, 1.0]])
    loss = selection.supervised_contrastive(rows, torch.tensor([0, 0, 1, 1]), 1.0)
    assert float(loss) == pytest.approx(-math.log(math.e / (math.e + 2)))


def test_an_anchor_without_another_of_its_class_is_left_out() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = selection.supervised_contrastive(rows, torch.tensor([0, 0, 1]), 1.0)
    assert float(loss) == pytest.approx(-math.log(math.e / (math.e + 1)))


def test_the_largest_magnitudes_of_each_row_are_chosen_in_order() -> None:
    tensor = torch.tensor([[1.0, -5.0, 3.0], [0.0, 0.5, -0.25]])
    assert selection.largest_in_rows(tensor, 2).tolist() == [1, 2, 4, 5]
    assert selection.largest_in_rows(tensor, 9).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_crop_holds_values_of_its_image_and_follows_the_generator() -> None:
    """Of an image that rises from left to right, a crop rises or, mirrored, falls."""
    ramp = torch.linspace(0, 1, 16).expand(6, 3, 16, 16)
    first, again = (selection.crop_and_flip(ramp, seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == ramp.shape
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    slopes = first.diff(dim=-1)
    rising, falling = (slopes >= -1e-6).all((1, 2, 3)), (slopes <= 1e-6).all((1, 2, 3))
    assert (rising | falling).all() and rising.any() and falling.any()


@pytest.mark.parametrize("loss", ["contrastive", "cross_entropy"])
def test_what_gps_chooses_depends_on_images_and_seed_alone_and_leaves_the_backbone(
    loss: str,
) -> None:
    method, anatomy, backbone = METHODS["gps"](loss=loss), anatomy_of("vit"), fresh("vit")
    backbone.get_submodule("norm").requires_grad_(False)
    before = {n: (p.clone(), p.requires_grad) for n, p in backbone.named_parameters()}
    first, second = (method.prepare(backbone, anatomy, Batches(), seed(3)) for _ in range(2))
    assert first.facts == second.facts and first.facts["batches"] == 2
    assert all(torch.equal(t, second.tensors[n]) for n, t in first.tensors.items())
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.grad is None
        assert parameter.requires_grad == before[name][1]


# ------------------------------------------------------------------- what trains


def test_gps_counts_one_weight_and_one_bias_of_each_output_on_vit_b() -> None:
    """12 blocks of 3 + 1 + 4 + 1 times 768 outputs, and the 768 of the patch embedding."""
    from peftbench.backbones.describe import describe
    from peftbench.backbones.load import load
    from peftbench.spec import BackboneSpec

    loaded = load(BackboneSpec("vit_base_patch16_224", pretrained=False), 2, device="meta")
    anatomy = describe(loaded.model, loaded.image_size)
    assert METHODS["gps"]().expected_params(anatomy) == 83_712 + 83_712
    assert METHODS["gps"](per_row=2).expected_params(anatomy) == 3 * 83_712


def test_decay_moves_chosen_entries_towards_their_pretrained_values_and_no_others() -> None:
    tuned = start("gps", "vit")
    fill(tuned.trainable, seed=2)
    method, x = tuned.method, images("vit", 2)
    before = fresh("vit").get_parameter("blocks.0.mlp.fc1.weight").detach()
    values = tuned.model.get_parameter("blocks.0.mlp.fc1.parametrizations.weight.0.delta.values")
    large = float(values.detach().abs().sum())
    optimizer = torch.optim.AdamW(tuned.trainable.values(), lr=0.1, weight_decay=1.0)
    tuned.model(x).sum().mul(0).backward()
    optimizer.step()
    assert float(values.detach().abs().sum()) == pytest.approx(0.9 * large, rel=1e-5)
    merged = method.merge(tuned.model).get_parameter("blocks.0.mlp.fc1.weight")
    changed = (merged != before).sum(1)
    assert changed.tolist() == [1] * len(before)


def test_entries_and_places_alone_are_stored_and_a_wrong_place_is_refused(tmp_path: Path) -> None:
    method, anatomy = METHODS["gps"](), anatomy_of("vit")
    prepared = method.prepare(fresh("vit"), anatomy, Batches(), seed())
    tuned = apply(method, fresh("vit"), anatomy, 7, seed(), prepared)
    fill(tuned.trainable, seed=2)
    task_file.save(tuned, tmp_path, {})
    stored = load_file(tmp_path / task_file.TASK)
    chosen = anatomy_of("vit").num_params
    assert sum(t.numel() for t in stored.values()) < chosen / 10
    again = apply(method, fresh("vit"), anatomy, 7, seed(5))
    task_file.load(again, tmp_path)
    x = images("vit", 3)
    with torch.no_grad():
        assert torch.equal(again.model.eval()(x), tuned.model.eval()(x))
    name = next(n for n in stored if n.endswith(".index"))
    for wrong, reason in ((10**6, "is none of the"), (int(stored[name][1]), "one entry twice")):
        broken = stored[name].clone()
        broken[0] = wrong
        save_file(stored | {name: broken}, tmp_path / task_file.TASK)
        with pytest.raises(WeightsError, match=reason):
            task_file.load(again, tmp_path)


def test_a_sparse_change_is_the_same_beside_a_layer_and_inside_its_weight() -> None:
    delta = SparseDelta(torch.tensor([1, 5]), (2, 3))
    with torch.no_grad():
        delta.values.copy_(torch.tensor([2.0, -1.0]))
    assert delta.weight_delta().tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, -1.0]]
    y = delta.add_to_output(torch.ones(1, 2), torch.tensor([[1.0, 10.0, 100.0]]))
    assert y.tolist() == [[21.0, -99.0]]


@pytest.mark.parametrize("options", [{"per_row": 0}, {"loss": "triplet"}, {"temperature": 0.0}])
def test_gps_refuses_what_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method=gps"):
        METHODS["gps"](**options)
