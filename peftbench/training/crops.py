"""Crops of training pictures: where they are in the picture, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from peftbench.spec import CROP_FLIP

SCALE = (0.08, 1.0)  # of `crop_flip`: share of the picture's area
RATIO = (3 / 4, 4 / 3)  # and width by height
PART = 224 / 256  # of the short side, that `random_crop_flip` shows
AT_ONCE = 32  # images whose weights are in memory at a time
_RESIZED_CROP = v2.RandomResizedCrop(1, SCALE, RATIO)  # draws boxes only


def draw(kind: str, sizes: Sequence[tuple[int, int]], size: int) -> Tensor:
    """A box in each picture of `sizes`, (width, height), drawn from the global CPU generator.

    "crop_flip" draws torchvision's random resized crop in whole pixels of the picture.
    "random_crop_flip" draws the window of `size` pixels that VPT cuts (src/data/transforms.py) when
    the short side is resized to 256 / 224 x `size`.

    Returns:
        (B, 4) float64 left, top, width and height, as shares of the picture's width and height.
    """
    one = _resized_crop if kind == CROP_FLIP else _window
    boxes = [one(width, height, size) for width, height in sizes]
    pictures = torch.tensor([[*pair, *pair] for pair in sizes], dtype=torch.float64)
    return torch.tensor(boxes, dtype=torch.float64).view(-1, 4) / pictures.view(-1, 4)


def _resized_crop(width: int, height: int, size: int) -> tuple[float, ...]:
    picture = torch.empty((1, height, width), device="meta")
    drawn = _RESIZED_CROP.make_params([picture])
    return drawn["left"], drawn["top"], drawn["width"], drawn["height"]


def _window(width: int, height: int, size: int) -> tuple[float, ...]:
    side = PART * min(width, height)
    places = []
    for extent in (height, width):  # the order in which torchvision draws
        steps = round((extent - side) / side * size)  # pixels that the window can move
        chosen = int(torch.randint(0, steps + 1, (1,)))
        places.append((extent - side) * (chosen / steps if steps else 0.5))
    top, left = places
    return left, top, side, side


def cut(x: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The `boxes` of images, resized bicubically and with antialias, as Pillow resizes a crop.

    Boxes may end inside a pixel. Values are not clamped: bicubic overshoots at edges.

    Args:
        x: (B, 3, H, W) floating point.
        boxes: (B, 4), see `draw`.

    Returns:
        (B, 3, size, size)
    """
    left, top, width, height = boxes.double().cpu().T
    done = []
    for rows in torch.arange(len(x)).split(AT_ONCE):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        across = _weights(left[part], width[part], x.shape[-1], size, x)
        down = _weights(top[part], height[part], x.shape[-2], size, x)
        done.append(down[:, None] @ x[part] @ across[:, None].mT)
    return torch.cat(done)


def _weights(start: Tensor, length: Tensor, pixels: int, size: int, like: Tensor) -> Tensor:
    """(B, size, pixels) shares of a line's pixels in each point of its stretch; rows sum to one.

    Only pixels that the stretch (start and length as shares of the line) touches have a share.
    """
    begin, end = start * pixels, (start + length) * pixels
    step = length * pixels / size  # of the points, in pixels
    spare = 1e-4 * (end - begin)  # what rounding may have added
    centres = begin[:, None] + step[:, None] * (torch.arange(size) + 0.5)

    def on_device(values: Tensor) -> Tensor:
        return values.to(like.dtype).view(len(values), -1, 1).to(like.device, non_blocking=True)

    places = torch.arange(pixels, device=like.device, dtype=like.dtype) + 0.5
    # shrinking widens the kernel, which is the antialias
    weights = _cubic((places - on_device(centres)).abs_() / on_device(step.clamp(min=1)))
    outside = (places + 0.5 <= on_device(begin + spare)) | (places - 0.5 >= on_device(end - spare))
    weights.masked_fill_(outside, 0)
    return weights / weights.sum(-1, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2, which Pillow and torch's antialias use."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
