"""`peftbench anatomy`: which layers of a backbone methods address, and how that is known."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from typing import Any

from peftbench.backbones.anatomy import Anatomy, Site
from peftbench.cli.exit import OK
from peftbench.cli.listing import columns
from peftbench.spec import BackboneSpec

HEADER = ("role", "path", "sites", "shape", "called", "confirmed by")


def add_command(commands: Any) -> None:
    """The parser of `anatomy`; `commands` is what `add_subparsers` returned."""
    parser = commands.add_parser(
        "anatomy",
        help="which layers of a backbone methods address",
        description="Show the layers of a backbone that methods address, their roles, and how they "
        "are known: described for its class, or inferred by looking at the model and confirmed by "
        "experiments. No weights are read.",
    )
    parser.add_argument(
        "backbone", metavar="BACKBONE", help="a name of `list backbones` or of timm"
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the input")
    parser.add_argument("--anatomy", metavar="FILE", default="", help="YAML that corrects roles")
    parser.add_argument("--long", action="store_true", help="a row for each site")
    parser.set_defaults(command=show)


def show(options: argparse.Namespace) -> int:
    """Print the table, what was left out with its reason, and what no site covers."""
    from peftbench.backbones.anatomies import anatomy_of
    from peftbench.backbones.corrections import text_of

    spec = BackboneSpec(
        _configured(options.backbone),
        pretrained=False,
        image_size=options.image_size,
        anatomy=text_of(options.anatomy) if options.anatomy else "",
    )
    print(text(spec.name, anatomy_of(spec), options.long), end="")
    return OK


def _configured(name: str) -> str:
    """The name of timm behind one of `list backbones`, else the name itself."""
    from peftbench.config.choices import catalogue

    entry = catalogue("backbone").get(name)
    return name if entry is None else str(entry["name"])


def text(name: str, anatomy: Anatomy, long: bool = False) -> str:
    """What `peftbench anatomy` prints of one backbone."""
    known = "inferred" if anatomy.inferred else f"described as {anatomy.family}"
    if not anatomy.sites:
        known = "no layer is known: methods that need none work"
    lines = f"{name}: {known}; {anatomy.depth} blocks, input {anatomy.image_size} px.\n"
    if anatomy.sites:
        lines += columns([HEADER, *_rows(anatomy.sites, long)])
    if anatomy.tokens is not None:
        takes = "take more" if anatomy.tokens.accepts_more else "take more in front of the patches"
        if not anatomy.tokens.accepts_more and not anatomy.tokens.counted:
            takes = f"take no more: {anatomy.tokens.refusal}"
        rows = anatomy.tokens.grid
        order = f"patches in {rows[0]} rows of {rows[1]}" if rows else "patches in no known order"
        lines += f"Tokens: {anatomy.tokens.num_prefix} in front of the patches, {order}; {takes}.\n"
    for path, role, reason in _alike(anatomy.left_out):
        lines += f"Left out: {path} as {role}: {reason}.\n"
    if anatomy.uncovered:
        paths = list(dict.fromkeys(map(_pattern, anatomy.uncovered)))
        lines += f"No site in the blocks: {', '.join(paths[:12])}{' ...' * (len(paths) > 12)}.\n"
    return lines


def _rows(sites: Iterable[Site], long: bool) -> Iterator[tuple[object, ...]]:
    """Cells of the table; sites that differ in numbers alone share a row unless `long`."""
    groups: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        path = site.path if long else _pattern(site.path)
        groups.setdefault((str(site.role), path), []).append(site)
    for (role, path), alike in groups.items():
        one = alike[0]
        shapes = list(dict.fromkeys(map(_shape, alike)))
        more = f" ... {shapes[-1]}" if len(shapes) > 1 else ""
        parts = f" ({', '.join(one.parts)})" if one.parts else ""
        called = "yes" if all(site.called for site in alike) else "no"
        evidence = one.evidence or "described; " + ("called" if one.called else "read as a weight")
        yield role, path, len(alike), f"{shapes[0]}{more}{parts}", called, evidence


def _shape(site: Site) -> str:
    """Outputs x inputs of a matrix, else the channels."""
    return f"{site.width} x {site.fan_in}" if site.fan_in else str(site.width)


def _pattern(path: str) -> str:
    return re.sub(r"\d+(?=\.|$)", "*", path)


def _alike(left_out: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((_pattern(path), role, why) for path, role, why in left_out))
