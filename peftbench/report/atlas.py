"""What is known of each method with its defaults before anybody runs it: the method atlas.

`make docs` writes the file: places and costs counted on a standard backbone, the latency that
`benchmarks/atlas_latency.py` measured, what papers print, and our own scores on the embedded data
sets. Reading it needs neither torch nor a method.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("atlas.json")
NONE = "–"
# role of a site -> words; a site of a norm may also be the entry of a branch
WORDS: Mapping[str, str] = {
    "embed": "embedding",
    "block": "block",
    "norm": "norm",
    "attn_entry": "entry of attention",
    "mlp_entry": "entry of the MLP",
    "norm+attn_entry": "norm before attention",
    "norm+mlp_entry": "norm before the MLP",
    "attn_in": "queries, keys, values",
    "attn_out": "attention output",
    "mlp_in": "first MLP layer",
    "mlp_out": "second MLP layer",
    "token_mix_in": "first token-mixing layer",
    "token_mix_out": "second token-mixing layer",
    "spatial_conv": "spatial convolution",
    "point_conv": "1 x 1 convolution",
    "after": "behind the blocks",
    "whole": "everything",
    "head": "beside the backbone",
    "other": "other layers",
}
FOLDS, STAYS, HEAD_ONLY = "folds", "stays", "head"
FOLDING: Mapping[str, str] = {FOLDS: "yes", STAYS: "no", HEAD_ONLY: NONE}
WEIGHTS: Mapping[str, str] = {
    "sup_in21k_orig": "ViT-B_16.npz",
    "sup_in21k_augreg": "AugReg weights of ImageNet-21k",
    "sup_in21k": "supervised on ImageNet-21k, and the source does not tell which file",
}


@dataclass(frozen=True)
class MeasuredRatio:
    """Seconds of a forward pass over those of the plain backbone, in turns in one process."""

    ratio: float  # median
    low: float  # least and greatest of the turns
    high: float


@dataclass(frozen=True)
class PublishedMean:
    """What a paper prints for ViT-B/16 on VTAB-1k; percent as text, empty where it prints none."""

    row: str  # as the source calls it
    weights: str  # as in `results/published`
    flat: str  # mean of the 19 tasks
    groups: str  # mean of the means of the three groups
    computed: tuple[str, ...]  # which of the two is worked out here of the printed tasks
    epoch: str  # whose score is reported, where it is known
    source: str


@dataclass(frozen=True)
class OwnMean:
    """Our mean over the embedded data sets on one backbone, percent."""

    mean: float
    deviation: float | None  # over seeds
    seeds: int
    tasks: int


@dataclass(frozen=True)
class AtlasEntry:
    """A method with its default hyper-parameters; `None` where something is not known."""

    key: str  # changes with the method's identity and its code
    backbone: str  # the first of the standard ones that takes it; empty where none does
    sites: Mapping[str, int] = field(default_factory=dict)  # how many, by role
    tuned: int | None = None  # parameters without the head
    stored_bytes: int | None = None  # of the tensors in the file of a task, without the head
    head_bytes: int | None = None
    kept_bytes: int | None = None  # activations of a batch
    kept_bytes_full: int | None = None  # of full fine-tuning on the same backbone
    folding: str = STAYS
    remarks: tuple[str, ...] = ()  # why something is not known
    latency: MeasuredRatio | None = None
    published: tuple[PublishedMean, ...] = ()
    own: Mapping[str, OwnMean] = field(default_factory=dict)  # by backbone

    @property
    def kept(self) -> str:
        """Kept activations over those of full fine-tuning."""
        if self.kept_bytes is None or not self.kept_bytes_full:
            return NONE
        percent = 100 * self.kept_bytes / self.kept_bytes_full
        return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"

    @property
    def places(self) -> str:
        """Where it acts, in words, each with the number of sites."""
        if self.tuned is None:  # it was not attached
            return NONE
        if not self.sites:
            return "the head alone"
        return "; ".join(
            words_of(role) + (f" ({count})" if count > 1 else "")
            for role, count in self.sites.items()
        )

    @property
    def slower(self) -> str:
        """How many times as long as the plain backbone's a forward pass takes, unmerged."""
        return NONE if self.latency is None else f"{self.latency.ratio:.2f}"


@dataclass(frozen=True)
class Atlas:
    """Every method, and what the numbers are of."""

    classes: int  # of the head
    batch: int  # images whose activations are kept
    measured: Mapping[str, str]  # machine, arithmetic and dates of the latencies; may be empty
    entries: Mapping[str, AtlasEntry]  # by name


def words_of(role: str) -> str:
    """A role, or several joined by "+", in words."""
    return WORDS.get(role) or " and ".join(
        WORDS.get(one, one.replace("_", " ")) for one in role.split("+")
    )


def size(count: int | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return NONE
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB"):
        amount /= 1000
        if amount < 1000:
            return f"{amount:.3g} {unit}"
    return f"{amount / 1000:.3g} GB"


def own_text(mean: OwnMean | None) -> str:
    """Mean and standard deviation over seeds."""
    if mean is None:
        return NONE
    spread = "" if mean.deviation is None else f" ± {mean.deviation:.1f}"
    return f"{mean.mean:.1f}{spread}"


def facts_of(atlas: Atlas, name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Headings and texts about a method, for the page; none of a method that is not there."""
    entry = atlas.entries.get(name)
    if entry is None or not entry.backbone:
        return []
    facts: list[tuple[str, tuple[str, ...]]] = [
        ("on", (f"{entry.backbone}, with default hyper-parameters",)),
        ("acts at", (entry.places,)),
    ]
    if entry.tuned is not None:
        facts.append(("trains", (f"{entry.tuned:,} parameters without the head",)))
    if entry.stored_bytes is not None:
        facts.append(("stores", (f"{size(entry.stored_bytes)} a task without the head",)))
    if entry.kept_bytes is not None:
        facts.append(("keeps", (f"{entry.kept} of the activations of full fine-tuning",)))
    if entry.folding != HEAD_ONLY:
        facts.append(("folds", (FOLDING[entry.folding],)))
    if entry.latency is not None:
        text = f"{entry.slower} times as long as the plain backbone, not folded"
        facts.append(("latency", (f"{text}; {about_latency(atlas)}",)))
    if entry.published:
        facts.append(("published", tuple(map(_printed, entry.published))))
    if entry.own:
        facts.append(
            (
                "ours",
                tuple(
                    f"{own_text(mean)} % on {backbone}, mean of the {mean.tasks} embedded data sets"
                    for backbone, mean in entry.own.items()
                ),
            )
        )
    return facts


def about_latency(atlas: Atlas) -> str:
    """What the latencies were measured on and when; empty where none was."""
    told = atlas.measured
    if not told:
        return ""
    first, last = told["first"][:10], told["last"][:10]
    dates = first if first == last else f"{first} to {last}"
    return f"{told['device']}, {told['threads']} thread, {told['dtype']}, one image, {dates}"


def _printed(mean: PublishedMean) -> str:
    """A published mean with all that it depends on."""
    both = (("flat", mean.flat, "mean of 19 tasks"), ("groups", mean.groups, "mean of 3 groups"))
    scores = [
        f"{convention} {value}{' (worked out)' if key in mean.computed else ''}"
        for key, value, convention in both
        if value
    ]
    weights = WEIGHTS.get(mean.weights, mean.weights)
    parts = [", ".join(scores), mean.row, weights, mean.epoch, mean.source]
    return "VTAB-1k, " + "; ".join(part for part in parts if part)


def read(path: Path | None = None) -> Atlas:
    """What the file of the package, or another one, holds; an empty atlas where there is none."""
    path = FILE if path is None else path
    if not path.is_file():
        return Atlas(0, 0, {}, {})
    content = json.loads(path.read_text(encoding="utf-8"))
    entries = {name: _thawed(values) for name, values in content.pop("methods").items()}
    return Atlas(**content, entries=entries)


def written(atlas: Atlas) -> str:
    """The text of the file: JSON with a method a line, without what is not known."""
    head = {k: v for k, v in dataclasses.asdict(atlas).items() if k != "entries"}
    lines = [
        f"{json.dumps(name)}: {json.dumps(_frozen(entry), ensure_ascii=False)}"
        for name, entry in sorted(atlas.entries.items())
    ]
    together = ",\n".join(lines)
    return f'{json.dumps(head)[:-1]}, "methods": {{\n{together}\n}}}}\n'


def _frozen(entry: AtlasEntry) -> dict[str, Any]:
    values = dataclasses.asdict(entry)
    return {name: value for name, value in values.items() if value not in (None, (), {}, [])}


def _thawed(values: Mapping[str, Any]) -> AtlasEntry:
    made = dict(values)
    if "latency" in made:
        made["latency"] = MeasuredRatio(**made["latency"])
    made["remarks"] = tuple(made.get("remarks", ()))
    made["published"] = tuple(
        PublishedMean(**{**mean, "computed": tuple(mean["computed"])})
        for mean in made.get("published", ())
    )
    made["own"] = {name: OwnMean(**mean) for name, mean in made.get("own", {}).items()}
    return AtlasEntry(**made)
