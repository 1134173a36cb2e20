"""Each architecture takes its own weights, bare, wrapped and with another classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from support.timm_modules import named

from peftbench.backbones.checkpoints import fitting
from peftbench.backbones.checkpoints.conversion import Needs
from peftbench.errors import Unsupported

# of each module of timm whose names or converter differ, one that is small
SMALL = (
    *("test_vit", "test_convnext", "test_resnet", "test_byobnet", "test_nfnet", "test_mambaout"),
    *("test_efficientnet", "mobilenetv3_small_050", "ghostnet_050", "lcnet_035"),
    *("edgenext_xx_small", "mobilevit_xxs"),
)


def _takes_its_own(name: str, path: Path) -> None:
    model = timm.create_model(name, num_classes=7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.5 + 0.1 * torch.randn(tensor.shape, generator=generator))
    state = model.state_dict()  # tied tensors are equal in it
    for content in (state, {"state_dict": {f"module.{n}": t for n, t in state.items()}}):
        torch.save(content, path)
        other = timm.create_model(name, num_classes=3)
        found = fitting.fit(path, other).state
        for own in Needs.of(other).required:
            assert torch.equal(found[own], state[own]), own
        assert not any(n.startswith(Needs.of(other).head) for n in found)


@pytest.mark.parametrize("name", SMALL)
def test_an_architecture_takes_its_own_weights(name: str, tmp_path: Path) -> None:
    _takes_its_own(name, tmp_path / "weights.pth")


# parts of the names of small models, the likeliest first
SIZES = ("test_", "atto", "nano", "xxs", "_050", "tiny", "_xs", "small", "_s", "18", "26", "_b0")
MOST_NUMBERS = 6_000_000  # of a model; larger ones take a machine of CI too long


@pytest.mark.slow
@pytest.mark.parametrize("module", named(timm.list_modules()))
def test_every_module_of_timm_takes_its_own_weights(module: str, tmp_path: Path) -> None:
    def size(name: str) -> tuple[int, int]:
        return next((i for i, part in enumerate(SIZES) if part in name), 99), len(name)

    name = min(sorted(timm.list_models(module=module)), key=size)
    with torch.device("meta"):
        numbers = sum(p.numel() for p in timm.create_model(name).parameters())
    if numbers > MOST_NUMBERS:
        pytest.skip(f"{name} has {numbers:,} parameters")
    try:
        _takes_its_own(name, tmp_path / "weights.pth")
    except Unsupported as e:
        assert "has no single classifier" in str(e)
