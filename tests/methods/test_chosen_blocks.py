"""Methods on some of the blocks of a backbone."""

from __future__ import annotations

import pytest
import torch
from support.documents import supported
from support.tiny_backbones import anatomy_of, fill, fresh, images

from peftbench.backbones.anatomy import Role
from peftbench.errors import ConfigError, Unsupported
from peftbench.methods import METHODS, apply, discover

discover()
CLASSES = 5
ON_BLOCKS = [
    (name, backbone)
    for name, backbones in supported().items()
    for backbone in ("vit", "convnext")
    if backbone in backbones and METHODS[name].takes_blocks and not METHODS[name].card.prepared
]
WHOLE = [name for name in METHODS if not METHODS[name].takes_blocks]


@pytest.mark.parametrize("name, backbone", ON_BLOCKS)
def test_only_the_first_block_is_changed_where_it_alone_is_chosen(name: str, backbone: str) -> None:
    anatomy, model = anatomy_of(backbone), fresh(backbone)
    first = anatomy.where(Role.BLOCK)[0]
    method = METHODS[name](blocks=(0,))
    tuned = apply(method, model, anatomy, CLASSES, torch.Generator().manual_seed(0))
    outside = [n for n in tuned.trainable if n not in tuned.head_params]
    assert outside
    inside = [n for n in outside if n != "cls_token"]  # which is in no block
    assert all(n.startswith(f"{first.path}.") for n in inside)
    counted = sum(tuned.trainable[n].numel() for n in outside)
    assert counted == method.expected_params(anatomy)
    assert counted <= METHODS[name]().expected_params(anatomy)
    x = images(backbone, 2)
    with torch.no_grad():
        before = tuned.model.eval()(x)
        fill({n: tuned.trainable[n] for n in outside}, seed=3)
        after = tuned.model(x)
    assert not torch.equal(before, after)
    names = set(METHODS[name]().identity()["hyperparameters"])
    assert set(method.identity()["hyperparameters"]) == names | {"blocks"}


def test_low_rank_pairs_of_two_blocks_are_two_thirds_of_those_of_three() -> None:
    anatomy = anatomy_of("vit")
    depth = anatomy.depth
    every = METHODS["lora"]().expected_params(anatomy)
    some = METHODS["lora"](blocks=tuple(range(1, depth))).expected_params(anatomy)
    assert some * depth == every * (depth - 1)


@pytest.mark.parametrize("name", WHOLE)
def test_a_method_of_the_whole_backbone_takes_no_blocks(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"method={name}: blocks=\[0\], but it is not"):
        METHODS[name](blocks=(0,))


def test_a_block_that_is_not_there_is_refused_with_those_that_are() -> None:
    anatomy = anatomy_of("vit")
    with pytest.raises(Unsupported, match=rf"block {anatomy.depth}, and this vit .* blocks 0 to"):
        METHODS["lora"](blocks=(anatomy.depth,)).check(anatomy)
    with pytest.raises(ConfigError, match="repeat one"):
        METHODS["lora"](blocks=(1, 1))


def test_the_norms_of_one_block_are_those_that_train() -> None:
    tuned = apply(
        METHODS["norm"](blocks=(0,)),
        fresh("vit"),
        anatomy_of("vit"),
        CLASSES,
        torch.Generator().manual_seed(0),
    )
    assert {n for n in tuned.unfrozen_params} == {
        f"blocks.0.norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }
