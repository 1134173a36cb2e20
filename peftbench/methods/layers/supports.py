"""GLoRA's support tensors: changes of a weight and a bias, each of one of several kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftbench.methods.layers.paths import KINDS, SupportPath
from peftbench.methods.layers.reweighting import Reweighting


class SupportChange(Reweighting):
    """W + W ⊙ A + B and b + b ⊙ D + E + W C, each of A to E of the kind that a path names.

    Where `shapes` holds the tensors of every kind, those off the path get a gradient of zero. With
    `draws`, each pass of training takes a path by chance.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        path: SupportPath,
        rank: int,
        draws: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.path, self.rank, self.draws = path, rank, draws
        self.supports = nn.ParameterDict()
        for name, shape in shapes.items():
            value = torch.zeros(shape)
            if name.endswith("_up"):  # Xavier uniform; all else starts at zero
                bound = math.sqrt(6 / sum(shape))
                value.uniform_(-bound, bound, generator=generator)
            self.supports[name] = nn.Parameter(value)

    def changed_weight(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        scaled, added = self._matrix("a", flat), self._matrix("b", flat)
        return (flat + flat * scaled + added).view_as(weight)

    def changed_bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        if bias is None:
            return None
        flat = weight.flatten(1)
        moved = bias + bias * self._vector("d", flat) + self._vector("e", flat)
        if "c_down" in self.supports:
            moved = moved + flat @ self._matrix("c", flat).expand(flat.shape[1], 1).squeeze(1)
        return moved

    def _matrix(self, letter: str, like: Tensor) -> Tensor:
        """A support that broadcasts with a matrix: A, B (out, in), C (in, 1); else zero ()."""
        tensors = dict(self.supports.items())
        down, up = tensors.get(f"{letter}_down"), tensors.get(f"{letter}_up")
        if down is None:
            return like.new_zeros(())
        rank = self.path.rank(letter, self.rank)
        forms = {"vector": down[:, :1], "constant": down[:1, :1]}
        if up is not None:
            forms["lora"] = down[:, :rank] @ up[:rank]
        return self._chosen(letter, forms)

    def _vector(self, letter: str, like: Tensor) -> Tensor:
        """D or E (out,) or one number for all (1,); else zero ()."""
        if letter not in self.supports:
            return like.new_zeros(())
        values = self.supports[letter]
        return self._chosen(letter, {"vector": values, "constant": values[:1]})

    def _chosen(self, letter: str, forms: Mapping[str, Tensor]) -> Tensor:
        """The form of a support that the path names, or chance.

        The others are added times zero, so that a drawn path needs no branch, and every tensor has
        a gradient.
        """
        kinds = KINDS[letter]
        forms = {kind: form for kind, form in forms.items() if kind in kinds}
        if self.draws and self.training:
            drawn = torch.randint(len(kinds), (1,), device=next(iter(forms.values())).device)
            return torch.stack(
                torch.broadcast_tensors(
                    *(form * (drawn == kinds.index(kind)) for kind, form in forms.items())
                )
            ).sum(0)
        chosen = self.path.kind(letter)
        result = sum(0.0 * form.sum() for kind, form in forms.items() if kind != chosen)
        return forms[chosen] + result if chosen in forms else torch.as_tensor(result)
