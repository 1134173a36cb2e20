"""Weight changes made of distances between points, and their sparse forms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftbench.methods.layers.reweighting import Reweighting, in_rows
from peftbench.methods.layers.slices import RowBlock

KERNELS = (0.1, -0.1)  # frozen coefficients of the distances that are summed


class KernelChange(Reweighting):
    """ΔW[b, a] = Σ_g c_g ‖in_g[a] - out_g[b]‖ on row blocks of a weight.

    With a threshold, entries below that quantile of their sizes are dropped, and the others are
    multiplied by their own size, which counts as a constant in the backward pass. `mixes` adds
    alpha softmax(ΔW / gamma) over the outputs and beta in front of that.
    """

    def __init__(
        self,
        rows: Mapping[str, RowBlock],
        shape: tuple[int, int],
        rank: int,
        threshold: float | None,
        mixes: bool,
        generator: torch.Generator,
    ) -> None:
        """`shape`: outputs and inputs of the weight; `rank`: numbers of a point in all kernels."""
        super().__init__()
        self.rows = dict(rows)
        self.width, fan_in = shape
        self.threshold = threshold
        self.register_buffer("coefficients", torch.tensor(KERNELS), persistent=False)
        self.inputs = nn.ParameterDict()
        self.outputs = nn.ParameterDict()
        self.alpha = nn.ParameterDict()
        self.gamma = nn.ParameterDict()
        self.beta = nn.ParameterDict()
        for name, (start, stop) in rows.items():
            for held, count in ((self.inputs, fan_in), (self.outputs, stop - start)):
                size = (len(KERNELS), count, rank // len(KERNELS))
                bound = 1 / math.sqrt(math.prod(size[1:]))  # Kaiming uniform with a = sqrt(5)
                points = torch.empty(size).uniform_(-bound, bound, generator=generator)
                held[name] = nn.Parameter(points)
            if mixes:
                self.alpha[name] = nn.Parameter(torch.ones(1))
                self.gamma[name] = nn.Parameter(torch.ones(1))
                self.beta[name] = nn.Parameter(torch.zeros(1))

    def changed_weight(self, weight: Tensor) -> Tensor:
        changes = {name: self._matrix(name).mT for name in self.rows}
        change = in_rows(changes, self.rows, self.width)
        return weight + change.view_as(weight).to(weight.dtype)

    def _matrix(self, name: str) -> Tensor:
        """K (in, out) of one row block."""
        # products would lose the small distances
        given, made = self.inputs[name], self.outputs[name]
        exact = given.dtype if given.dtype is torch.float64 else torch.float32
        distances = torch.cdist(
            given.to(exact), made.to(exact), compute_mode="donot_use_mm_for_euclid_dist"
        )
        coefficients = self.get_buffer("coefficients").view(-1, 1, 1)
        matrix = (coefficients * distances).sum(0)
        if name in self.alpha:
            mixed = (matrix / self.gamma[name]).softmax(-1)
            matrix = matrix + self.alpha[name] * mixed + self.beta[name]
        if self.threshold is None:
            return matrix
        size = matrix.detach().abs()
        least = torch.quantile(size.flatten(), self.threshold)
        return matrix * (size * (size > least))
