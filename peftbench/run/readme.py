"""The README of an exported folder; no text in it is taken for Markdown or HTML."""

from __future__ import annotations

import re
from typing import Any

from peftbench.artefacts import card as cards
from peftbench.run.usage import usage
from peftbench.spec import called
from peftbench.tasks import Metric, judged_by
from peftbench.untrusted import printable

LISTED_CLASSES = 20  # names in the README of a folder; its card holds all
# what Markdown or HTML takes for markup, as references that show the character
ENTITIES = {character: f"&#{ord(character)};" for character in "\\`*[]|~$#!@"} | {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}
AUTOLINK = re.compile(r"(?:https?|ftp|mailto|xmpp):|www\.", re.IGNORECASE)


def model_card(card: dict[str, Any]) -> str:
    """The README of an exported folder; no text in it is taken for Markdown or HTML."""
    spec, origin = card["spec"], card["provenance"]
    method, backbone, pixels = spec["method"], spec["backbone"], origin["preprocessing"]
    options = ", ".join(f"{k}={v}" for k, v in method["hyperparameters"].items()) or "none"
    classes = card["classes"]
    names = ", ".join(classes[:LISTED_CLASSES]) + (", ..." if len(classes) > LISTED_CLASSES else "")
    rows = {
        "method": escaped(f"{card['method_card']['title']} ({method['name']}; {options})"),
        "paper": escaped(card["method_card"]["paper"]),
        "backbone": _weights(backbone, origin["backbone_sha256"]),
        "data": f"{escaped(called(spec['dataset']))}, manifest "
        f"{code(spec['dataset']['manifest'][:12])}",
        "classes": f"{len(classes)}: {escaped(names)}",
        **_scores(card["metrics"], judged_by(card["spec"])),
        "input": f"{_input(pixels)}; mean {pixels['mean']}, standard deviation {pixels['std']}",
        "made by": f"peftbench {escaped(origin['peftbench'])}, run {code(card['run_id'])}",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    title = f"{method['name']}, {backbone.get('title') or backbone['name']}, "
    title += called(spec["dataset"])
    return f"# {escaped(title)}\n\n| | |\n| --- | --- |\n{table}\n## Use\n\n{usage(card)}"


def _weights(backbone: dict[str, Any], sha256: str) -> str:
    """Which backbone a task was tuned on."""
    if backbone.get("checkpoint") is None:
        return f"{code(backbone['name'])}, SHA-256 {code(sha256)}"
    return (
        f"the weights in the file {code(cards.file_name(backbone['checkpoint']))} (SHA-256 "
        f"{code(backbone.get('checkpoint_sha256', ''))}) on the architecture of "
        f"{code(backbone['name'])}; SHA-256 of the tensors {code(sha256)}"
    )


def _input(pixels: dict[str, Any]) -> str:
    side = pixels["size"]
    how = f"{pixels['resize']} and {pixels['interpolation']}"
    return f"RGB in [0, 1], {side} x {side} pixels by {escaped(how)}"


def escaped(text: str) -> str:
    """`text` as one line of plain words in Markdown: no markup, HTML, cell, link or control."""
    plain = "".join(ENTITIES.get(character, character) for character in printable(text))
    # inside a word an underscore is a letter
    plain = re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", plain)
    return AUTOLINK.sub(lambda m: m[0][:-1] + f"&#{ord(m[0][-1])};", plain)


def code(text: str) -> str:
    """`text` as Markdown code, or as escaped words where it would end the code or a cell."""
    plain = printable(text)
    return escaped(text) if not plain or set(plain) & set("`|<") else f"`{plain}`"


def _scores(metrics: dict[str, float | None], score: Metric) -> dict[str, str]:
    by_split = {split: metrics.get(f"{split}/{score.name}") for split in ("test", "val")}
    return {
        f"{split} {score.figure.replace('_', ' ')}": f"{100 * value:.2f} % {score.short}"
        for split, value in by_split.items()
        if value is not None
    }
