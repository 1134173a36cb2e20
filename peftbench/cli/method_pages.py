"""`peftbench list methods --long`: what each method does, what it costs and where it is from."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from peftbench.backbones import anatomies
from peftbench.backbones.anatomy import Anatomy, Example
from peftbench.backbones.families import every_family
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, Method, discover
from peftbench.spec import BackboneSpec

MIN_WIDTH = 40
INDENT = "    "


@dataclass(frozen=True)
class MethodPage:
    """What a reader learns about one method: a sentence and two lists of facts."""

    name: str
    title: str
    summary: str
    cost: tuple[str, ...]
    source: tuple[str, ...]
    deviations: tuple[str, ...]


def pages() -> list[MethodPage]:
    """A page for each registered method with its default hyper-parameters, by name."""
    discover()
    known = {e.title: anatomy_of(e.architecture) for e in examples()}
    return [_page(METHODS[name](), known) for name in METHODS]


def examples() -> list[Example]:
    """One architecture of each family; a count is given for the first that a method takes."""
    return [family.example for family in every_family() if family.example is not None]


def to_text(content: Sequence[MethodPage], width: int) -> str:
    """Three paragraphs for each page, wrapped at `width` columns; one deviation, others counted."""
    return "\n".join(
        _wrapped(f"{page.name} ({page.title}): {page.summary}", "", width)
        + _wrapped(f"cost: {'; '.join(page.cost)}.", INDENT, width)
        + _wrapped(f"source: {'; '.join((*page.source, *_first_deviation(page)))}.", INDENT, width)
        for page in content
    )


def to_markdown(content: Sequence[MethodPage]) -> str:
    """A section for each page, with links to papers on arXiv."""
    return "\n".join(
        f"## `{page.name}`: {page.title}\n\n{_marked_up(page.summary)}\n\n"
        f"* Cost: {'; '.join(page.cost)}.\n"
        f"* Source: {_marked_up('; '.join(page.source))}.\n"
        + "".join(f"* Differs: {_marked_up(deviation)}.\n" for deviation in page.deviations)
        for page in content
    )


@cache
def anatomy_of(name: str) -> Anatomy:
    """Anatomy of a timm architecture, built without weights."""
    return anatomies.anatomy_of(BackboneSpec(name, pretrained=False))


def _page(method: Method, known: Mapping[str, Anatomy]) -> MethodPage:
    card = method.card
    papers = () if card.paper == "none" else (f"{card.paper}, {card.section}",)
    return MethodPage(
        name=method.name,
        title=card.title,
        summary=card.summary or (inspect.getdoc(type(method)) or "").partition("\n")[0],
        cost=_cost(method, known),
        source=(*papers, f"code: {card.reference}"),
        deviations=card.deviations,
    )


def _cost(method: Method, known: Mapping[str, Anatomy]) -> tuple[str, ...]:
    """Tuned parameters, identity at the start, price at inference, frozen layers, backbones."""
    card = method.card
    defined = {title: a for title, a in known.items() if _is_defined(method, a)}
    facts = []
    for title, anatomy in list(defined.items())[:1]:
        facts.append(
            f"{method.expected_params(anatomy):,} tuned parameters on {title}, head excluded"
        )
    starts = "starts" if card.identity_at_init else "does not start"
    facts.append(f"{starts} as the pretrained function")
    if card.head_only:
        facts.append("leaves the backbone as it is")
    elif card.mergeable:
        facts.append("folds into the backbone, no cost at inference")
    else:
        facts.append("stays beside the backbone at inference")
    frozen = "no layer is frozen" if card.frozen_mode == "train" else "frozen layers in eval mode"
    facts.append(frozen)
    if len(defined) == len(known):
        return (*facts, "works with its defaults on every described family")
    families = ", ".join(anatomy.family for anatomy in defined.values())
    return (*facts, f"works with its defaults on {families or 'no family'}")


def _is_defined(method: Method, anatomy: Anatomy) -> bool:
    try:
        method.check(anatomy)
    except Unsupported:
        return False
    return True


def _first_deviation(page: MethodPage) -> tuple[str, ...]:
    if not page.deviations:
        return ()
    first, *others = page.deviations
    more = (f"and {len(others)} more, see --format markdown",) if others else ()
    return (f"differs: {first}", *more)


def _wrapped(paragraph: str, indent: str, width: int) -> str:
    return (
        textwrap.fill(
            paragraph,
            max(width, MIN_WIDTH),
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n"
    )


def _marked_up(text: str) -> str:
    """Signs of formulas are no emphasis in Markdown, and papers become links."""
    escaped = re.sub(r"([_*<\[\]])", r"\\\1", text)
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", escaped)
