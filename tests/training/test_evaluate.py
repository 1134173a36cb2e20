"""What a model says of the images of a split, in their order and in eval mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peftbench.spec import Preprocessing
from peftbench.training.device import Compute
from peftbench.training.evaluate import predict


class Shade(nn.Module):
    """Logits (pixel, 0) of each image, and a record of the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        first = x[:, 0, 0, 0]
        return self.dropout(torch.stack([first, torch.zeros_like(first)], dim=1))


def test_predictions_come_in_the_order_of_the_images_and_in_eval_mode() -> None:
    shades = np.array([3, 250, 7, 0, 91], dtype=np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (5, 2, 2, 3)).copy()
    model = Shade().train()
    plain = Preprocessing(size=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    compute = Compute(torch.device("cpu"), torch.float32)
    found = predict(model, images, plain, compute, batch_size=2)
    assert model.batches == [2, 2, 1]
    assert found[:, 0] == pytest.approx(shades / 255)
    assert found.dtype == np.float32
    assert not model.training
