"""Matrices and vectors of a backbone's blocks, each of which a method may treat in its own way.

Loading it needs no torch. A fused projection is as many matrices as it has parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from peftbench.backbones.anatomy import STEM, Anatomy, Kind, Role, Site

# what a matrix is called where its rows have no names
NAMES: Mapping[Role, str] = {
    Role.ATTN_IN: "qkv",
    Role.ATTN_OUT: "proj",
    Role.MLP_IN: "fc1",
    Role.MLP_OUT: "fc2",
}


@dataclass(frozen=True)
class Unit:
    """Rows of one tensor of a module."""

    label: str  # such as "3.q", "3.q.bias" or "3.norm0.weight"
    path: str  # of the module
    attribute: str  # "weight" or "bias"
    start: int
    stop: int
    columns: int  # 1 of a vector
    is_whole: bool  # whether these are all rows of the tensor
    is_linear: bool  # of a linear layer, not of a norm

    @property
    def size(self) -> int:
        """Numbers in it."""
        return (self.stop - self.start) * self.columns

    @property
    def rows(self) -> int:
        """Outputs of a matrix, or the length of a vector."""
        return self.stop - self.start


def matrices(anatomy: Anatomy) -> tuple[Unit, ...]:
    """The weights of the linear layers in the blocks, in depth order."""
    return tuple(unit for site, name in _layers(anatomy) for unit in _parts(site, name, "weight"))


def vectors(anatomy: Anatomy) -> tuple[Unit, ...]:
    """The biases of those layers, and both tensors of each norm in or behind the blocks."""
    biases = [
        unit
        for site, name in _layers(anatomy)
        if site.has_bias
        for unit in _parts(site, name, "bias")
    ]
    return (*biases, *_norms(anatomy))


def _layers(anatomy: Anatomy) -> Iterator[tuple[Site, str]]:
    """Linear layers with the names that their matrices have in labels."""
    seen: set[str] = set()
    taken: dict[str, int] = {}
    for site in anatomy.where(*NAMES):
        if site.kind is not Kind.LINEAR or site.path in seen:
            continue
        seen.add(site.path)
        name = site.parts[0] if len(site.parts) == 1 else NAMES[site.role]
        label = f"{site.depth}.{name}"
        number = taken[label] = taken.get(label, -1) + 1
        yield site, label if number == 0 else f"{label}{number + 1}"


def _parts(site: Site, label: str, attribute: str) -> Iterator[Unit]:
    columns = (site.fan_in or 0) if attribute == "weight" else 1
    parts = site.parts if len(site.parts) > 1 else ()
    ending = "" if attribute == "weight" else ".bias"
    size = site.width // max(1, len(parts))
    for number, part in enumerate(parts or (label,)):
        name = f"{site.depth}.{part}" if parts else label
        begin = number * size
        yield Unit(
            f"{name}{ending}", site.path, attribute, begin, begin + size, columns, not parts, True
        )


def _norms(anatomy: Anatomy) -> Iterator[Unit]:
    """Of norms of each sample; a norm that two roles share is there once."""
    found = {
        site.path: site
        for site in anatomy.where(Role.NORM, Role.AFTER)
        if site.kind is Kind.NORM and site.depth != STEM and site.num_params
    }
    numbers: dict[int, int] = {}
    for site in found.values():
        number = numbers[site.depth] = numbers.get(site.depth, -1) + 1
        attributes = ("weight", "bias") if site.has_bias else ("weight",)
        length = site.num_params // len(attributes)
        for attribute in attributes:
            label = f"{site.depth}.norm{number}.{attribute}"
            yield Unit(label, site.path, attribute, 0, length, 1, True, False)
