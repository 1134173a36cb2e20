"""The pages of the documentation and the blocks of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md", "SECURITY.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
FENCE = re.compile(r"```([a-z]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!-- *not run(.*?)-->")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int  # of its first line of code
    language: str
    code: str
    not_run: str | None  # why no test runs it; None where one does

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, each with the reason in a comment on the line before it."""
    text = text_of(page)
    for found in FENCE.finditer(text):
        before = text[: found.start()]
        mark = MARK.fullmatch(before.rstrip("\n").rpartition("\n")[2])
        reason = mark.group(1).strip(" :") if mark else None
        yield Block(page, before.count("\n") + 2, found.group(1), found.group(2), reason)


def prose_of(page: str) -> str:
    """The text of a page without its blocks."""
    return FENCE.sub("", text_of(page))


def written(block: Block, folder: Path) -> Path | None:
    """The file in `folder` that a block of YAML is: its first line names it, `# conf/x/y.yaml`."""
    name = re.match(r"# ((?:conf|experiments)/\S+\.yaml)\n", block.code)
    if block.language != "yaml" or name is None:
        return None
    path = folder / name.group(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.code, encoding="utf-8")
    return path


def commands(block: Block) -> list[str]:
    """The lines of a block of shell without comments and without what is empty."""
    lines = [re.sub(r"(^|\s+)#.*$", "", line) for line in block.code.splitlines()]
    return [line for line in lines if line]


def supported() -> dict[str, frozenset[str]]:
    """The tiny backbones on which each method works, as the table of `docs/support.md` says."""
    table = [line for line in text_of("docs/support.md").splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    backbones = [title.replace(" ", "_") for title in head[1:]]
    return {
        row[0].strip("`"): frozenset(
            backbone
            for backbone, mark in zip(backbones, row[1:], strict=True)
            if not mark.startswith("–")
        )
        for row in rows
    }
