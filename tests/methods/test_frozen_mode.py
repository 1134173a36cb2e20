"""The mode of frozen layers while training: off as the method says, or on as released codes do."""

from __future__ import annotations

import timm
import torch
from timm.layers import DropPath
from torch import nn

from peftbench.backbones.describe import describe
from peftbench.methods import METHODS, discover
from peftbench.methods.applied import BATCH_NORMS, Tuned, apply

discover()


def tuned(method: str, architecture: str = "test_vit", **options: float) -> Tuned:
    torch.manual_seed(0)
    backbone = timm.create_model(architecture, num_classes=3, img_size=None, **options)
    size = backbone.pretrained_cfg["input_size"][-1]
    generator = torch.Generator().manual_seed(0)
    return apply(METHODS[method](), backbone, describe(backbone, size), 3, generator)


def frozen(of: Tuned) -> list[nn.Module]:
    """Modules outside what trains."""
    inside = {id(m) for module in of.train_modules for m in module.modules()}
    return [m for m in of.model.modules() if id(m) not in inside]


def test_drop_path_of_frozen_blocks_acts_only_as_in_released_codes() -> None:
    model = tuned("linear", drop_path_rate=0.5)
    images = torch.randn(8, 3, 160, 160)
    model.train()
    assert not any(m.training for m in frozen(model))
    with torch.no_grad():
        assert torch.equal(model.model(images), model.model(images))
    model.train("train")
    paths = [m for m in frozen(model) if isinstance(m, DropPath)]
    assert paths and all(m.training for m in paths)
    with torch.no_grad():
        assert not torch.equal(model.model(images), model.model(images))
    model.train("method")
    assert not any(m.training for m in frozen(model))


def test_batch_norms_that_do_not_train_keep_their_statistics() -> None:
    model = tuned("linear", "test_resnet")
    before = {name: b.clone() for name, b in model.model.named_buffers()}
    model.train("train")
    norms = [m for m in model.model.modules() if isinstance(m, BATCH_NORMS)]
    assert norms and not any(m.training for m in norms)
    with torch.no_grad():
        model.model(torch.randn(4, 3, 160, 160))
    assert all(torch.equal(b, before[name]) for name, b in model.model.named_buffers())


def test_what_trains_is_in_train_mode_either_way() -> None:
    for mode in ("method", "train"):
        model = tuned("full", "test_resnet")
        model.model.eval()
        model.train(mode)
        assert all(m.training for module in model.train_modules for m in module.modules())
        assert any(isinstance(m, BATCH_NORMS) and m.training for m in model.model.modules())
