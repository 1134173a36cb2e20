"""One forward pass of a copy without weights: which modules are called, and what they give."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from peftbench.backbones.accepted import dtype_of, uncopyable
from peftbench.backbones.copies import weightless_copy
from peftbench.errors import ConfigError, Unsupported


def probe(
    backbone: nn.Module, paths: list[str], image_size: int
) -> tuple[dict[str, torch.Size], int]:
    """Output shape of each module among `paths` that one forward pass calls; and the channels.

    The image has the channels and the type that the model reads.
    """
    readings = _channels(backbone)
    if not paths:
        return {}, readings[0]
    try:
        model = weightless_copy(backbone).eval()
    except Exception as e:  # whatever an attribute of somebody's class does when it is copied
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        held = uncopyable(backbone)
        raise ConfigError(
            f"this {type(backbone).__name__} cannot be copied, which merging and the search for "
            f"its sites need{f': its attribute {held!r} says' if held else ':'} {reason}. Remove "
            "the attribute first."
        ) from e
    shapes: dict[str, torch.Size] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes.setdefault(path, output.shape)

        return hook

    for path in paths:
        model.get_submodule(path).register_forward_hook(note(path))
    failure: Exception | None = None
    for channels in readings:
        shapes.clear()
        image = torch.empty(
            1, channels, image_size, image_size, device="meta", dtype=dtype_of(backbone)
        )
        try:
            with torch.no_grad():
                output = model(image)
        except (AssertionError, RuntimeError) as e:
            failure = failure or e  # of the likeliest number of channels
            continue
        _check_output(backbone, output)
        return shapes, channels
    assert failure is not None
    raise failure


def _check_output(backbone: nn.Module, output: object) -> None:
    """Refuse a model that gives anything but one row of logits for an image."""
    own = type(backbone).__name__
    if isinstance(output, Tensor) and output.ndim == 2:
        return
    if isinstance(output, Tensor):
        pooled = getattr(backbone, "global_pool", None)
        cause = "built with global_pool=''" if pooled in ("", None) else "without pooling"
        raise Unsupported(
            f"this {own} gives {output.ndim} dimensions {tuple(output.shape)} for an image and not "
            f"one row of logits: {cause}. Build it with its own global_pool."
        )
    raise Unsupported(
        f"this {own} gives a {type(output).__name__} for an image and not one row of logits."
    )


def _channels(backbone: nn.Module) -> tuple[int, ...]:
    """Channels that the images may have, the likeliest first: those of the first convolution.

    It does not read the image itself where a stem rearranges pixels before it.
    """
    first = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    read = 3 if first is None else first.in_channels
    return (read,) if read == 3 else (read, 3)
