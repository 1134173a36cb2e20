"""Changes of the weight and the bias of a linear layer that are made of both (Ni et al., 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery

LORA_MUL_VPT_ADD, LORA_ADD, VPT_ADD = "lora_mul_vpt_add", "lora_add", "vpt_add"


class ResidualLinear(surgery.Delta):
    """a(x) = dW x + db beside a frozen layer W x + b, by `kind`.

    lora_mul_vpt_add: dW = W * (w_down w_up), db = b * b_change + W (prompt_down prompt_up);
    lora_add: dW = w_down w_up, db = b_change; vpt_add: dW = 0, db = W (prompt_down prompt_up).
    """

    def __init__(self, base: nn.Module, kind: str, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        weight = base.get_parameter("weight")
        width, fan_in = weight.shape
        self.kind = kind
        self.frozen = (base,)  # in a tuple: it is no part of this module
        if kind != VPT_ADD:
            self.w_down = nn.Parameter(torch.zeros(width, rank))
            self.w_up = nn.Parameter(torch.empty(rank, fan_in))
            nn.init.xavier_uniform_(self.w_up, generator=generator)
        if kind == LORA_ADD or (kind == LORA_MUL_VPT_ADD and self._bias() is not None):
            self.b = nn.Parameter(torch.zeros(width))
        if kind != LORA_ADD:
            self.prompt_down = nn.Parameter(torch.zeros(fan_in, rank))
            self.prompt_up = nn.Parameter(torch.empty(rank, 1))
            nn.init.xavier_uniform_(self.prompt_up, generator=generator)

    def _weight(self) -> Tensor:
        """(width, fan_in) of the frozen layer, in the type of what trains."""
        own = next(self.parameters())
        return self.frozen[0].get_parameter("weight").to(own.dtype)

    def _bias(self) -> Tensor | None:
        return dict(self.frozen[0].named_parameters(recurse=False)).get("bias")

    def add_to_output(self, y: Tensor, x: Tensor) -> Tensor:
        bias = self.bias_delta()
        if self.kind == VPT_ADD:
            return y + bias.to(y.dtype)
        if self.kind == LORA_ADD:
            return y + F.linear(F.linear(x, self.w_up), self.w_down, bias).to(y.dtype)
        return y + F.linear(x, self.weight_delta(), bias).to(y.dtype)

    def weight_delta(self) -> Tensor:
        if self.kind == VPT_ADD:
            return torch.zeros_like(self._weight())
        product = self.w_down @ self.w_up
        return self._weight() * product if self.kind == LORA_MUL_VPT_ADD else product

    def bias_delta(self) -> Tensor:
        """(width,), what is added to the bias."""
        if self.kind == LORA_ADD:
            return self.b
        change = (self._weight() @ (self.prompt_down @ self.prompt_up)).squeeze(1)
        bias = self._bias()
        if self.kind == LORA_MUL_VPT_ADD and bias is not None:
            change = change + bias.to(change.dtype) * self.b
        return change


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Fold every change into the weight and the bias of its layer, in float64."""
    for module in list(model.modules()):
        if isinstance(module, surgery.DeltaLayer) and isinstance(module.delta, ResidualLinear):
            bias = module.base.get_parameter("bias")
            bias.copy_(bias.double() + surgery.in_float64(module.delta).bias_delta())
    surgery.bake_deltas(model)
