"""What a model says of the images of a split."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import nn

from peftbench import stopping
from peftbench.data import DecodedImages
from peftbench.spec import Preprocessing
from peftbench.tasks import CLASSIFICATION, Task
from peftbench.training.device import Compute, autocast
from peftbench.training.pixels import ModelInputs, Pixels


def predict(
    model: nn.Module,
    images: np.ndarray | DecodedImages,
    preprocessing: Preprocessing,
    compute: Compute,
    task: Task = CLASSIFICATION,
    batch_size: int = 128,
) -> np.ndarray:
    """(N, ...) outputs of uint8 `images` (N, S, S, 3) with the whole model in eval mode.

    The processes of `compute` share out the batches, which are those of one process, and all of
    them get all outputs: bit for bit what one process gets. Nothing is padded or seen twice.
    """
    pixels = Pixels(images, preprocessing.mean, preprocessing.std, compute.device, keep=False)
    return predict_inputs(model, pixels, compute, task, batch_size)


@torch.inference_mode()
def predict_inputs(
    model: nn.Module,
    inputs: ModelInputs,
    compute: Compute,
    task: Task = CLASSIFICATION,
    batch_size: int = 128,
) -> np.ndarray:
    """The same (N, ...) of what a model takes in place of the images."""
    model.eval()
    asked = torch.arange(len(inputs)).split(batch_size)[compute.world.rank :: compute.world.size]
    own: dict[int, np.ndarray] = {}
    with contextlib.closing(inputs.batches(asked)) as batches:
        for index, x in zip(asked, batches, strict=True):
            if compute.world.is_single:  # else others would wait for this one
                stopping.check()
            with autocast(compute):
                own[int(index[0])] = task.outputs(model(x)).cpu().numpy()
    outputs = {
        start: part for parts in compute.world.all_gather(own) for start, part in parts.items()
    }
    return np.concatenate([outputs[start] for start in sorted(outputs)])
