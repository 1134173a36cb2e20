"""Networks beside a frozen backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from peftbench.backbones.anatomy import Anatomy, Role, Site
from peftbench.backbones.copies import weightless_copy
from peftbench.errors import Unsupported, WeightsError
from peftbench.methods import surgery

ALEXNET_SIDE = 64  # pixels; of smaller images its poolings leave nothing


class AlexNetTrunk(nn.Module):
    """The convolutions of AlexNet and the average pool behind them."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 9216) from images (B, 3, H, W)."""
        size = tuple(max(side, ALEXNET_SIDE) for side in x.shape[-2:])
        if size != x.shape[-2:]:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        pooled: Tensor = self.pool(self.features(x))
        return pooled.flatten(1)


class BackboneTrunk(nn.Module):
    """The first layers of a timm backbone, up to its intermediate output number `index`."""

    def __init__(self, trunk: nn.Module, index: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """(B, D_side) from images (B, 3, H, W): the mean over positions, prefix tokens left out."""
        intermediate: Tensor = self.trunk.forward_intermediates(  # type: ignore[operator]
            x,
            indices=[self.index],
            norm=False,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )[0]
        return intermediate.mean((2, 3))


class SideTuned(nn.Module):
    """A frozen backbone whose feature is blended with that of a network beside it."""

    def __init__(
        self,
        backbone: nn.Module,
        head: str,
        side: nn.Module,
        projection: nn.Linear,
        alpha: float,
        at_head: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head  # path of the classifier inside the backbone
        self.at_head = at_head  # blend what the classifier receives, not timm's feature before it
        self.side = side
        self.projection = projection
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits of images (B, 3, H, W)."""
        if self.at_head:
            return self._blended_at_head(x)
        features = self.backbone.forward_features(x)  # type: ignore[operator]
        pooled = self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        share = self.alpha.sigmoid()
        blended = share * pooled + (1 - share) * self.projection(self.side(x))
        logits: Tensor = self.backbone.get_submodule(self.head)(blended)
        return logits

    def _blended_at_head(self, x: Tensor) -> Tensor:
        share, beside = self.alpha.sigmoid(), self.projection(self.side(x))

        def blend(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            (feature,) = args  # (B, D), or a map (B, D, 1, 1)
            return (share * feature + (1 - share) * beside.view(feature.shape),)

        with surgery.watched(self.backbone, [self.head], before=lambda path: blend):
            logits: Tensor = self.backbone(x)
        return logits


def is_feature_before_head(backbone: nn.Module, anatomy: Anatomy) -> bool:
    """Whether the classifier receives what timm calls the feature in front of it.

    Nothing that learns may lie between the two, as the norm of a head or its hidden layer does.
    """
    model = weightless_copy(backbone).eval()
    size = (1, anatomy.channels, anatomy.image_size, anatomy.image_size)
    image = torch.empty(size, device="meta", dtype=next(model.parameters()).dtype)
    called: set[str] = set()

    def begun(path: str) -> Callable[..., None]:
        return lambda module, args: called.add(path)

    learning = [
        path
        for path, module in model.named_modules()
        if path and [*module.parameters(recurse=False)]  # the model itself runs only as a whole
    ]
    with surgery.watched(model, learning, before=begun), torch.no_grad():
        try:
            features = model.forward_features(image)  # type: ignore[operator]
            model.forward_head(features, pre_logits=True)  # type: ignore[operator]
        except (RuntimeError, TypeError):  # of a model whose feature is no vector
            return False
        before = set(called)
        model(image)
    return called - before == {anatomy.head}


def first_layers(backbone: nn.Module, anatomy: Anatomy, left_out: Iterable[Site]) -> BackboneTrunk:
    """A trainable copy of what comes before `left_out`, with the weights of the backbone.

    Raises:
        Unsupported: timm cannot cut this model behind exactly these blocks.
    """
    wanted = anatomy.num_params - sum(s.num_params for s in left_out)
    # timm numbers intermediate outputs by block, by stage, or from the stem on
    for index in range(anatomy.depth):
        trial = weightless_copy(backbone)
        if not _cut(trial, index, anatomy):
            break
        if sum(p.numel() for p in trial.parameters()) == wanted:
            trunk = copy.deepcopy(backbone)
            _cut(trunk, index, anatomy)
            return BackboneTrunk(trunk, index)
    raise Unsupported(
        f"sidetune with side=backbone copies the first blocks, and timm cannot cut this "
        f"{anatomy.family} backbone behind them. Use method.side=alexnet."
    )


def _cut(model: nn.Module, index: int, anatomy: Anatomy) -> bool:
    """Remove what follows intermediate output number `index`; False where there is none."""
    prune = getattr(model, "prune_intermediate_layers", None)
    if prune is None:
        return False
    try:
        prune([index], prune_norm=True, prune_head=True)
    except AssertionError:
        return False
    paths = dict(model.named_modules()).keys()
    for site in anatomy.where(Role.AFTER):  # such as the norm of a head that stays
        if site.path in paths:
            surgery.replace(model, site.path, nn.Identity())
    return True


def random_trunk(generator: torch.Generator) -> nn.Sequential:
    """AlexNet's convolutions with PyTorch's initial values, drawn from `generator`."""
    with torch.device("meta"):  # draws nothing from the global generator
        features = alexnet(weights=None).features
    features = features.to_empty(device="cpu")
    for module in features:
        if isinstance(module, nn.Conv2d):
            draw(module, generator)
    return features


def imagenet_trunk() -> nn.Sequential:
    """AlexNet's convolutions as torchvision pretrained them.

    Raises:
        WeightsError: the file is neither in the cache of torch.hub nor within reach.
    """
    with torch.device("meta"):
        features = alexnet(weights=None).features
    source, prefix = AlexNet_Weights.IMAGENET1K_V1, "features."
    try:
        state = source.get_state_dict(progress=False, check_hash=True, weights_only=True)
        own = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        features.load_state_dict(own, assign=True)
    except (OSError, RuntimeError, EOFError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise WeightsError(
            f"method=sidetune with weights=imagenet needs {source.url}, which cannot be had "
            f"({reason[:120]}). Run once with a network, copy the file into "
            f"{torch.hub.get_dir()}/checkpoints, or use method.weights=random."
        ) from e
    return features


def draw(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's own distribution for weights and biases: uniform in ±1/sqrt(fan-in)."""
    bound = 1 / math.sqrt(layer.weight[0].numel())  # Kaiming uniform with a = sqrt(5)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
