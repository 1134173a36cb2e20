"""KAdaptation: Kronecker products with factors that all layers share (He et al., 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import Attachment, MethodCard, register_method
from peftbench.methods.in_weights import changed
from peftbench.methods.targets import AUTO, Targeted

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftbench.methods.layers.kronecker_sums import KroneckerSum, SharedRules

_MOST = 32  # products, as released


@register_method("kadaptation")
@dataclass(frozen=True)
class KAdaptation(Targeted):
    """x W + s x Σ_i A_i ⊗ (u_i v_i) for queries and values, with the A_i shared by all layers."""

    num_products: int = 0  # n, must divide the widths; 0: 32, or the most below that divide them
    rank: int = 1  # t of u_i (in / n, t) and v_i (t, out / n)
    rule_rank: int = 0  # of the A_i as products of two factors; 0: whole n x n matrices
    scale: float = 160.0  # s
    dropout: float = 0.5  # on the entries of the sum
    bias: bool = False  # one for queries and values of a layer, as in the released code
    variant: str = "default"  # "released": all factors start at zero, and never move
    targets: tuple[str, ...] = (AUTO,)  # auto: q and v

    card: ClassVar[MethodCard] = MethodCard(
        title="KAdaptation",
        summary="dW = s (sum_i A_i kron u_i v_i)^T for queries and values: the n x n matrices A_i "
        "are shared by all layers, the vectors u_i and v_i are each layer's own.",
        paper="arXiv:2203.16329",
        section="3",
        reference="eric-ai-lab/PEViT@be6fb43 vision_benchmark/evaluation/model.py",
        identity_at_init=True,
        mergeable=True,
        deviations=(
            "the A_i start at N(0, 0.01^2), the u_i Xavier uniform and the v_i at zero; in the "
            "released code every factor starts at zero, so that none ever gets a gradient and a "
            "bias of each layer alone learns: variant=released",
            "the A_i are whole matrices as in the paper's equation; the released code makes each "
            "of two vectors: rule_rank=1, which variant=released takes too",
            "the change is added to the projection before its heads are cut; the released code "
            "reshapes it so that tokens, heads and images mix, which no variant has",
            "variant=released gives values the factors u and v of the queries, and counts those "
            "of their own, as the released code does, and has its bias",
            "the weights are chosen by role; the paper chooses attention by its local intrinsic "
            "dimension",
        ),
    )

    def validate(self) -> None:
        self.validate_targets()
        self.require_variant(self.variant)
        self.require(0 <= self.dropout < 1, f"dropout={self.dropout} is not in [0, 1).")
        self.require(self.rank >= 1, f"rank={self.rank}; use 1 or more.")
        for name in ("num_products", "rule_rank"):
            value = getattr(self, name)
            self.require(value >= 0, f"{name}={value} is negative.")

    @property
    def is_released(self) -> bool:
        return self.variant == "released"

    @property
    def rank_of_rules(self) -> int:
        """Of the A_i, 0 where they are whole."""
        return self.rule_rank or int(self.is_released)

    def check(self, anatomy: Anatomy) -> None:
        if not anatomy.where(Role.ATTN_IN):
            raise Unsupported(
                f"kadaptation changes queries and values, and {anatomy.finds} none. "
                f"{advice(self.name, anatomy)}"
            )
        super().check(anatomy)
        number = self.products(anatomy)
        for site, rows in self.row_blocks(anatomy):
            if site.kind is not Kind.LINEAR:
                raise Unsupported(
                    f"kadaptation changes matrices, and {site.path!r} of this {anatomy.family} "
                    f"backbone is no linear layer. {advice(self.name, anatomy)}"
                )
            sizes = {stop - start for start, stop in rows.values()}
            for size in (*sizes, site.fan_in or 1):
                if size % number:
                    raise Unsupported(
                        f"kadaptation cannot cut the {size} channels of {site.path!r} in this "
                        f"{anatomy.family} backbone into {self.num_products}. Set "
                        "method.num_products."
                    )
            if len(sizes) > 1 and self.has_bias(site):
                raise Unsupported(
                    f"kadaptation adds one bias to rows of {site.path!r} in this {anatomy.family} "
                    "backbone that are not equally many. Set method.bias=false."
                )

    def products(self, anatomy: Anatomy) -> int:
        """n: how many products are summed, and the sides of the A_i."""
        if self.num_products:
            return self.num_products
        sizes = [site.fan_in or 1 for site, _ in self.row_blocks(anatomy)]
        for _, rows in self.row_blocks(anatomy):
            sizes += [stop - start for start, stop in rows.values()]
        common = math.gcd(*sizes)
        return next(n for n in range(min(_MOST, common), 0, -1) if common % n == 0)

    def has_bias(self, site: Site) -> bool:
        """Whether a site gets the bias; one without a bias of its own does not."""
        return site.has_bias and (self.bias or self.is_released)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        from peftbench.methods.layers.kronecker_sums import (
            KroneckerSum,
            SharedRules,
            SumDesign,
        )

        targets = self.resolved(anatomy)
        number = self.products(anatomy)
        design = SumDesign(self.rank, self.scale, self.dropout, self.is_released)
        rules: dict[str, SharedRules] = {}
        for _, rows in self.row_blocks(anatomy):
            for name in (n for n in rows if n not in rules):
                rules[name] = SharedRules(number, self.rank_of_rules, self.is_released, generator)

        def change(site: Site) -> KroneckerSum:
            rows = self.rows(site, targets)
            return KroneckerSum(
                rows,
                (site.width, site.fan_in or 1),
                {name: rules[name] for name in rows},
                design,
                self.has_bias(site),
                generator,
            )

        return changed(backbone, self.sites(anatomy), change)

    def unmoved(self) -> tuple[str, ...]:
        if not self.is_released:
            return ()
        return ("*.delta.rules.*", "*.delta.left.*", "*.delta.right.*")

    def expected_params(self, anatomy: Anatomy) -> int:
        number, total = self.products(anatomy), 0
        names: set[str] = set()
        for site, rows in self.row_blocks(anatomy):
            names |= rows.keys()
            sizes = [stop - start for start, stop in rows.values()]
            # n (in / n + out / n) t for each row block
            total += sum(self.rank * ((site.fan_in or 0) + size) for size in sizes)
            total += sizes[0] if self.has_bias(site) else 0
        whole = number * number * (2 * self.rank_of_rules or number)
        return total + len(names) * whole
