"""Prompts that stand for groups of classes, and the metric loss that pulls tokens towards them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftbench.methods import surgery
from peftbench.methods.layers.passes import ObjectiveInput, in_backward

NORM_EPS = 1e-6  # of prompts that are normalised before use
MOST_PER_CLASS = 10  # images that a class is represented by, as in the released code


@dataclass
class BlockSight:
    """What one block saw of a pass."""

    stream: Tensor  # (B, prefix + p + N, D), what it took
    num_prefix: int
    prompts: Tensor  # (p, D) as they were used
    projected: dict[str, Tensor] = field(default_factory=dict)  # "q", "k" -> (B, tokens, D)

    def class_token(self, kind: str) -> Tensor:
        """(B, D) of the first prefix token, its query or its key."""
        values = self.stream if kind == "cls" else self.projected[kind[0]]
        return values[:, 0]

    def proxies(self, kind: str) -> Tensor:
        """(p, D): the prompts, or the mean over images of their queries or keys."""
        if kind == "vpt":
            return self.prompts
        start = self.num_prefix
        return self.projected[kind[0]][:, start : start + len(self.prompts)].mean(0)

    def patches(self) -> Tensor:
        """(B, D): the mean of the patch tokens."""
        return self.stream[:, self.num_prefix + len(self.prompts) :].mean(1)


class Sights:
    """Collects what blocks see while an objective asks for it."""

    def __init__(self) -> None:
        self._blocks: list[BlockSight] | None = None

    @contextlib.contextmanager
    def collecting(self) -> Iterator[list[BlockSight]]:
        """Inside, blocks with proxies add what they see."""
        self._blocks = []
        try:
            yield self._blocks
        finally:
            self._blocks = None

    def open(self) -> list[BlockSight] | None:
        """Where to add; `None` where nobody asks, also while a block computes again."""
        return None if in_backward() else self._blocks


class SeenProjection(surgery.Around):
    """A projection of attention whose queries and keys are collected."""

    def __init__(
        self, base: nn.Module, rows: Mapping[str, tuple[int, int]], sights: Sights
    ) -> None:
        super().__init__()
        self.base = base
        self.rows = dict(rows)  # "q", "k" -> (start, stop) in its output
        self.sights = sights

    def forward(self, x: Tensor) -> Tensor:
        """What the projection makes of x (B, N, D)."""
        out: Tensor = self.base(x)
        blocks = self.sights.open()
        if blocks:
            for part, (start, stop) in self.rows.items():
                blocks[-1].projected[part] = out[..., start:stop]
        return out


class RowShift(nn.Module):
    """Adds numbers that train to some channels of an output: a part of its bias."""

    def __init__(self, rows: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.rows = tuple(rows)  # (start, stop)
        self.shift = nn.Parameter(torch.zeros(sum(stop - start for start, stop in rows)))

    def forward(self, y: Tensor) -> Tensor:
        """y (B, N, D) with the numbers added to its rows."""
        index = torch.cat([torch.arange(*pair, device=y.device) for pair in self.rows])
        whole = y.new_zeros(y.shape[-1]).index_copy(0, index, self.shift.to(y.dtype))
        return y + whole


@dataclass(frozen=True)
class PromptUse:
    """How blocks take their prompts."""

    num_prefix: int  # tokens in front of them
    masked: bool  # whether the queries of prompts see patch tokens alone
    normalised: bool  # to length one, before they are used
    dropout: float


class ProxyBlock(nn.Module):
    """A block that takes prompts behind the prefix tokens; they are gone behind it."""

    def __init__(
        self,
        block: nn.Module,
        prompts: Tensor,
        use: PromptUse,
        sights: Sights | None,
    ) -> None:
        super().__init__()
        self.block = block
        self.prompts = nn.Parameter(prompts)
        self.use = use
        self.dropout = nn.Dropout(use.dropout)
        self.sights = sights  # of a block whose prompts are proxies

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """x: (B, prefix + N, D), and so is what comes out."""
        prompts: Tensor = self.prompts
        if self.use.normalised:
            prompts = F.normalize(prompts, dim=-1, eps=NORM_EPS)
        start, stop = self.use.num_prefix, self.use.num_prefix + len(prompts)
        own = self.dropout(prompts.expand(len(x), -1, -1)).to(x.dtype)
        x = torch.cat((x[:, :start], own, x[:, start:]), dim=1)
        blocks = None if self.sights is None else self.sights.open()
        if blocks is not None:
            blocks.append(BlockSight(x, start, prompts))
        if self.use.masked:
            kwargs["attn_mask"] = self._mask(x)
        out: Tensor = self.block(x, *args, **kwargs)
        return torch.cat((out[:, :start], out[:, stop:]), dim=1)

    def _mask(self, x: Tensor) -> Tensor:
        """(tokens, tokens), added to the products of queries and keys."""
        tokens, start = x.shape[1], self.use.num_prefix
        stop = start + len(self.prompts)
        mask = x.new_zeros(tokens, tokens)
        mask[start:stop, :stop] = -torch.inf
        return mask


@dataclass(frozen=True)
class ProxyLoss:
    """How tokens are compared with proxies: proxy-anchor, or proxy-NCA."""

    scale: float  # of the proxies, once they are normalised
    alpha: float
    delta: float
    over_images: bool  # sums run over images for each proxy; else over proxies for each image

    def __call__(self, samples: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
        """() of samples (B, D) with proxies (p, D); labels (B,) say whose each sample is."""
        similar = F.normalize(samples, dim=-1) @ (F.normalize(proxies, dim=-1) * self.scale).T
        own = F.one_hot(labels, len(proxies)).bool()
        axis = 0 if self.over_images else 1
        near = _log_one_plus(-self.alpha * (similar - self.delta), own, axis)
        far = _log_one_plus(self.alpha * (similar + self.delta), ~own, axis)
        return near.mean() + far.mean()


def _log_one_plus(values: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """log(1 + sum of exp of those of values (B, p) that are chosen) along an axis; 0 of none."""
    kept = values.masked_fill(~chosen, -torch.inf)
    one = torch.zeros_like(kept.select(axis, 0).unsqueeze(axis))
    return torch.cat((kept, one), dim=axis).logsumexp(axis)


class ProxyObjective:
    """The task's loss, and the mean over blocks of two metric losses with their proxies."""

    def __init__(
        self,
        sights: Sights,
        mapping: Sequence[int],
        metric: ProxyLoss,
        kinds: tuple[str, str, str],
        weights: tuple[float, float],
    ) -> None:
        self.sights = sights
        self.mapping = tuple(mapping)  # class -> proxy
        self.metric = metric
        self.kinds = kinds  # of class tokens, of the proxies of patches, of those of class tokens
        self.weights = weights  # of patches, of class tokens

    def __call__(self, batch: ObjectiveInput) -> tuple[Tensor, Tensor]:
        """What is minimised, (), and the outputs (B, C)."""
        classes = batch.classes()
        with self.sights.collecting() as blocks:
            outputs = batch.outputs()
        labels = torch.tensor(self.mapping, device=classes.device)[classes]
        of_class, for_patches, for_classes = self.kinds
        terms = []
        for block in blocks:
            term = outputs.new_zeros(())
            if self.weights[0]:
                patches = block.patches()
                term = term + self.weights[0] * self.metric(
                    patches, block.proxies(for_patches), labels
                )
            if self.weights[1]:
                term = term + self.weights[1] * self.metric(
                    block.class_token(of_class), block.proxies(for_classes), labels
                )
            terms.append(term)
        return batch.loss(outputs) + torch.stack(terms).mean(), outputs


@torch.no_grad()
def class_features(
    model: nn.Module, head: str, images: Iterable[tuple[Tensor, Tensor]]
) -> dict[int, Tensor]:
    """What the classifier at `head` reads of a few images of each class, their mean: (D,).

    images: batches (B, 3, S, S) and their classes (B,).
    """
    seen: list[Tensor] = []
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def before(path: str) -> surgery.Hook:
        return lambda module, args: seen.append(args[0])

    with surgery.watched(model, [head], before=before):
        for batch, classes in images:
            model(batch)
            for label, row in zip(classes.tolist(), seen.pop().double().cpu(), strict=True):
                if counts.get(label, 0) < MOST_PER_CLASS:
                    counts[label] = counts.get(label, 0) + 1
                    sums[label] = sums.get(label, torch.zeros_like(row)) + row
    return {label: total / counts[label] for label, total in sorted(sums.items())}


def grouped(features: Mapping[int, Tensor], groups: int, seed: int) -> tuple[int, ...]:
    """The group of each class by k-means of its normalised features (D,); by order if few.

    A class without an image is in the first group.
    """
    from sklearn.cluster import KMeans

    count = max(features) + 1
    if count <= groups:
        return tuple(range(count))
    rows = torch.stack(list(features.values()))
    rows = F.layer_norm(rows, rows.shape[1:])
    if len(rows) <= groups:
        found = list(range(len(rows)))
    else:
        found = KMeans(groups, n_init=10, random_state=seed).fit_predict(rows.numpy()).tolist()
    groups_of = dict(zip(features, found, strict=True))
    return tuple(groups_of.get(label, 0) for label in range(count))
