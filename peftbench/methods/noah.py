"""Neural prompt search (Zhang, Zhou and Liu, 2022, arXiv 2206.04673)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peftbench.backbones.anatomy import Anatomy, Kind, Role, Site, Tokens
from peftbench.errors import Unsupported
from peftbench.methods.alternatives import advice
from peftbench.methods.base import (
    Attachment,
    Method,
    MethodCard,
    Preparation,
    TrainingImages,
    parameters_of,
    register_method,
)
from peftbench.methods.layers.evolution import Evolution, Space, Subnet

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

KINDS = ("prompts", "lora", "adapters")


@register_method("noah")
@dataclass(frozen=True)
class NOAH(Method):
    """Each block has as many prompts, ranks and hidden units as a search on the images found."""

    prompts: tuple[int, ...] = ()  # of each block; all three empty: search
    lora: tuple[int, ...] = ()  # ranks
    adapters: tuple[int, ...] = ()  # hidden units
    widths: tuple[int, ...] = (1, 5, 10)  # that the search chooses among
    depths: tuple[int, ...] = (3, 6, 9, 12)  # numbers of first blocks that have any
    budget: float = 0.64  # most parameters of a subnet, in millions
    held_out: float = 0.2  # share of the train split that scores subnets
    supernet_epochs: int = 500
    supernet_lr: float = 5e-4
    supernet_decay: float = 1e-4
    rounds: int = 15
    population: int = 50
    parents: int = 10  # the best so far, of which children are made
    crossed: int = 25  # children of two parents in each round
    mutated: int = 25  # children of one
    width_rate: float = 0.2  # how often a mutation draws a width anew
    depth_rate: float = 0.4
    dropout: float = 0.1  # on what B A reads, and on hidden units

    card: ClassVar[MethodCard] = MethodCard(
        title="NOAH",
        paper="arXiv:2206.04673",
        section="3.2-3.3",
        reference="ZhangYuanhan-AI/NOAH@e9c55f3 model/supernet_vision_transformer_timm.py",
        identity_at_init=False,
        mergeable=False,
        prepared=True,
        deviations=(
            "the search is a part of preparing a run: it holds out a share of each batch of the "
            "train split, and its seconds and passes are in the record",
            "prompts in front of the first block and their position embedding are left out: the "
            "released code counts them, and the first block takes them away unread",
            "the budget counts what trains; the released limit counts those too",
            "the supernet is as wide as the largest width, and learns without dropout, with a "
            "cosine schedule and one random subnet a step",
            "B starts at zero and adapters at Xavier's values; the released initialiser of the "
            "whole model overwrites both",
            "a read-out that averages tokens leaves prompts out; a class token is not changed by "
            "that",
            "of subnets that score alike the smaller one is taken",
            "without images, as in a plan, the widest subnet of one width that the budget pays "
            "for stands in",
        ),
        summary="In each block p_i prompts, a low-rank change of r_i ranks of the projection of "
        "attention and an adapter of h_i units behind the MLP; a supernet and an evolution under "
        "a budget choose all p, r and h.",
        look=("#661100", "*"),
    )

    def validate(self) -> None:
        given = [bool(getattr(self, kind)) for kind in KINDS]
        self.require(
            all(given) or not any(given),
            "give all of prompts, lora and adapters, or none of them to search.",
        )
        same = len({len(getattr(self, kind)) for kind in KINDS}) == 1
        self.require(same, "prompts, lora and adapters name different numbers of blocks.")
        wide = all(width >= 0 for kind in KINDS for width in getattr(self, kind))
        some = any(width for kind in KINDS for width in getattr(self, kind))
        self.require(wide and (some or not any(given)), "give widths of 0 or more, and some above.")
        for key in ("widths", "depths"):
            values = getattr(self, key)
            self.require(bool(values) and min(values) >= 1, f"{key}={list(values)}; use 1 or more.")
        for key in ("supernet_epochs", "population", "parents"):
            self.require(getattr(self, key) >= 1, f"{key}={getattr(self, key)}; use 1 or more.")
        for key in ("rounds", "crossed", "mutated"):
            self.require(getattr(self, key) >= 0, f"{key}={getattr(self, key)}; use 0 or more.")
        for key in ("budget", "supernet_lr"):
            self.require(getattr(self, key) > 0, f"{key}={getattr(self, key)}; use more than 0.")
        self.require(0 < self.held_out < 1, f"held_out={self.held_out} is not in (0, 1).")
        for key in ("dropout", "width_rate", "depth_rate"):
            self.require(0 <= getattr(self, key) <= 1, f"{key}={getattr(self, key)} is no share.")
        self.require(self.dropout < 1, "dropout=1 leaves nothing.")

    def check(self, anatomy: Anatomy) -> None:
        tokens = anatomy.tokens
        if tokens is None or not anatomy.where(Role.ATTN_IN) or not anatomy.where(Role.MLP_OUT):
            raise Unsupported(
                f"noah needs tokens, attention and an MLP in each block, and {anatomy.finds} not "
                f"all of them. {advice(self.name, anatomy)}"
            )
        if not tokens.accepts_more:
            raise Unsupported(
                f"noah adds tokens, but {anatomy.family} backbones take no more: {tokens.refusal}. "
                f"{advice(self.name, anatomy)}"
            )
        places = [s for s in anatomy.where(Role.ATTN_IN, Role.MLP_OUT) if not s.called]
        if places:
            raise Unsupported(
                f"noah reads the input of layers, but {anatomy.family} backbones never call "
                f"{places[0].path!r}. {advice(self.name, anatomy)}"
            )
        if self.prompts and len(self.prompts) != anatomy.depth:
            raise Unsupported(
                f"noah has widths of {len(self.prompts)} blocks, and this {anatomy.family} "
                f"backbone has {anatomy.depth}. Set method.prompts, method.lora, method.adapters."
            )
        space = self._space(anatomy)
        least = Subnet(*([(min(space.widths),) * min(space.depths)] * 3))
        if not self.prompts and self._size(least, anatomy) > self.budget * 1e6:
            raise Unsupported(
                f"noah has budget={self.budget}, and the smallest subnet of this {anatomy.family} "
                f"backbone has {self._size(least, anatomy):,} parameters. Set method.budget."
            )

    @property
    def looks_at_images(self) -> bool:
        return not self.prompts

    def settled(self, facts: Mapping[str, Any]) -> NOAH:
        if not all(kind in facts for kind in KINDS):
            return self
        prompts, lora, adapters = (tuple(map(int, facts[kind])) for kind in KINDS)
        return dataclasses.replace(self, prompts=prompts, lora=lora, adapters=adapters)

    def prepare(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        images: TrainingImages,
        generator: torch.Generator,
    ) -> Preparation:
        import copy
        import random
        import time

        import torch

        from peftbench.methods.layers import searching

        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        head = searching.classifier(backbone, anatomy.head_width, images, generator)
        model, space = copy.deepcopy(backbone), self._space(anatomy)
        full = Subnet(*([(max(space.widths),) * anatomy.depth] * 3))
        attached, choose = self._build(model, anatomy, full, generator)
        model.to(next(backbone.parameters())).eval()
        supernet = searching.Supernet(
            model,
            anatomy.head,
            head,
            list(attached.trainable),
            choose,
            searching.Halves(images, self.held_out),
        )
        began = time.perf_counter()  # in eval mode: a dropout would draw from no generator of ours
        supernet.train(space, self.supernet_epochs, self.supernet_lr, self.supernet_decay, rng)
        trained = time.perf_counter()
        best, scores = self._evolution.best(
            space, lambda s: self._size(s, anatomy), int(self.budget * 1e6), supernet.score, rng
        )
        facts = {
            **{kind: list(widths) for kind, widths in zip(KINDS, best.kinds, strict=True)},
            "held_out_accuracy": scores[best],
            "subnets_scored": len(scores),
            "images_forward": supernet.counted.forward,
            "images_backward": supernet.counted.backward,
            "seconds_supernet": trained - began,
            "seconds_search": time.perf_counter() - trained,
        }
        return Preparation({}, facts)

    def attach(
        self, backbone: nn.Module, anatomy: Anatomy, generator: torch.Generator
    ) -> Attachment:
        return self._build(backbone, anatomy, self._subnet(anatomy), generator)[0]

    def attach_prepared(
        self,
        backbone: nn.Module,
        anatomy: Anatomy,
        generator: torch.Generator,
        prepared: Preparation,
    ) -> Attachment:
        return self.attach(backbone, anatomy, generator)  # the subnet trains anew

    def _build(
        self, backbone: nn.Module, anatomy: Anatomy, subnet: Subnet, generator: torch.Generator
    ) -> tuple[Attachment, Callable[[Subnet], None]]:
        """A subnet on a backbone, and what narrows it."""
        import torch
        from torch import nn

        from peftbench.methods import surgery
        from peftbench.methods.layers import supernet as layers

        device = next(backbone.parameters()).device
        adapters: dict[int, layers.SlicedAdapter] = {}
        for site in anatomy.where(Role.MLP_OUT):
            hidden = subnet.adapters[site.depth]
            if hidden:
                adapter = layers.SlicedAdapter(site.width, hidden, self.dropout, generator)
                adapters[site.depth] = adapter.to(device)
                plus = surgery.ResidualAdapter(backbone.get_submodule(site.path), adapter)
                surgery.replace(backbone, site.path, plus)

        def low_rank(site: Site) -> surgery.Delta:
            assert site.fan_in is not None
            shape = (site.width, site.fan_in)
            return layers.SlicedLowRank(subnet.lora[site.depth], shape, self.dropout, generator)

        projections = [s for s in _projections(anatomy) if subnet.lora[s.depth]]
        deltas, notes = surgery.add_deltas(backbone, projections, low_rank)
        blocks, touched = [], []
        for site, number in zip(anatomy.where(Role.BLOCK), subnet.prompts, strict=True):
            tokens = torch.empty(number, _tokens(anatomy).width)
            nn.init.trunc_normal_(tokens, std=0.02, generator=generator)
            base = backbone.get_submodule(site.path)
            block = layers.SlicedPromptBlock(base, tokens.to(device) if number else None)
            surgery.replace(backbone, site.path, block)
            blocks.append(block)
            touched.append(site.path)
        by_depth = {site.depth: deltas[site.path] for site in projections}

        def choose(narrower: Subnet) -> None:
            layers.choose_prompts(blocks, narrower.prompts)
            for depth, adapter in adapters.items():
                adapter.use(narrower.adapters[depth])
            for depth, delta in by_depth.items():
                assert isinstance(delta, layers.SlicedLowRank)
                delta.use(narrower.lora[depth])

        choose(subnet)
        new = (*adapters.values(), *deltas.values())
        prompts = [block.tokens for block in blocks if block.tokens is not None]
        attachment = Attachment(
            backbone,
            (*prompts, *parameters_of(*new)),
            touched=(*touched, *deltas),
            train_modules=new,
            notes=notes,
        )
        return attachment, choose

    def expected_params(self, anatomy: Anatomy) -> int:
        return self._size(self._subnet(anatomy), anatomy)

    def _size(self, subnet: Subnet, anatomy: Anatomy) -> int:
        """Parameters of a subnet of as many blocks or fewer."""
        width = _tokens(anatomy).width
        total = sum(subnet.prompts) * width
        for site in _projections(anatomy):
            rank = subnet.lora[site.depth] if site.depth < len(subnet.lora) else 0
            total += rank * ((site.fan_in or 0) + site.width)
        for site in anatomy.where(Role.MLP_OUT):
            hidden = subnet.adapters[site.depth] if site.depth < len(subnet.adapters) else 0
            total += 2 * site.width * hidden + hidden + site.width if hidden else 0
        return total

    def _subnet(self, anatomy: Anatomy) -> Subnet:
        """What is given or was found; without images the stand-in."""
        if self.prompts:
            return Subnet(self.prompts, self.lora, self.adapters)
        uniform = [Subnet(*([(w,) * anatomy.depth] * 3)) for w in sorted(self.widths)]
        small = [s for s in uniform if self._size(s, anatomy) <= self.budget * 1e6]
        return small[-1] if small else uniform[0]

    def _space(self, anatomy: Anatomy) -> Space:
        """Depths beyond the last block are the last block."""
        depths = sorted({min(depth, anatomy.depth) for depth in self.depths})
        return Space(tuple(sorted(set(self.widths))), tuple(depths), anatomy.depth)

    @property
    def _evolution(self) -> Evolution:
        return Evolution(
            self.rounds,
            self.population,
            self.parents,
            self.crossed,
            self.mutated,
            self.width_rate,
            self.depth_rate,
        )


def _tokens(anatomy: Anatomy) -> Tokens:
    assert anatomy.tokens is not None  # `check` has refused feature maps
    return anatomy.tokens


def _projections(anatomy: Anatomy) -> tuple[Site, ...]:
    """The fused projection of each attention, or all that it is apart."""
    return tuple(site for site in anatomy.where(Role.ATTN_IN) if site.kind is Kind.LINEAR)
