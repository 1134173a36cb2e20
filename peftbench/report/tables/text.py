"""A table as text, Markdown and CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from peftbench.report.scores import SCORE, SCORES
from peftbench.report.tables.cells import (
    FAILED,
    INCOMPLETE,
    INTERRUPTED,
    MISSING,
    MIXED,
    OK,
    TASK,
    UNSUPPORTED,
)
from peftbench.report.words import commonest, magnitude, mark_of
from peftbench.results.table_files import csv_text

SHOWN = {
    MISSING: "–",
    UNSUPPORTED: "n/a",
    FAILED: "failed",
    INTERRUPTED: "interrupted",
    MIXED: "mixed",
    INCOMPLETE: "–",
}
# where Markdown takes a text for HTML, for a character by its name, or for a link
ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)|\]\(|\]:")
REPLACED = {"<": "&lt;", "&": "&amp;", "](": r"]\(", "]:": r"]\:"}


def to_text(cells: pd.DataFrame, *, width: int | None = 100) -> str:
    """Aligned plain text; a table wider than `width` continues in further blocks."""
    parts: list[str] = []
    for section in _layout(cells):
        blocks = [_aligned(block) for block in _blocks(_padded(section.grid), width)]
        notes = [f"[{mark}] {note}" for mark, note in section.notes]
        parts.append(
            "\n\n".join([section.heading, *blocks, *(["\n".join(notes)] if notes else [])])
        )
    return "\n\n".join([*parts, _closing(cells, bullet="- ")]) + "\n"


def to_markdown(cells: pd.DataFrame) -> str:
    """One pipe table for each backbone and suite, with its footnotes."""
    parts: list[str] = []
    for section in _layout(cells):
        head, *body = [[text.replace("|", r"\|") for text in row] for row in section.grid]
        rule = ["---", *["---:"] * (len(head) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
        notes = [f"- [{mark}] {note}" for mark, note in section.notes]
        parts.append(
            "\n\n".join(
                [
                    f"### {section.heading}",
                    "\n".join(lines),
                    *(["\n".join(notes)] if notes else []),
                ]
            )
        )
    return inert("\n\n".join([*parts, _closing(cells, bullet="- ")]) + "\n")


def inert(markdown: str) -> str:
    """Markdown in which names of others begin no HTML, no link and no picture."""
    return ACTIVE.sub(lambda match: REPLACED[match[0]], markdown)


def to_csv(cells: pd.DataFrame) -> str:
    """One line a cell with every digit; see `SUMMARY_COLUMNS`."""
    return csv_text(cells)


@dataclass(frozen=True)
class _Section:
    heading: str
    grid: list[list[str]]  # header first; label, two counts, then the cells
    notes: list[tuple[str, str]]  # mark and text


def _layout(cells: pd.DataFrame) -> list[_Section]:
    """Cells as texts, one section for each backbone and suite."""
    sections: list[_Section] = []
    keyed = cells.assign(suite=cells["suite"].fillna(""))
    for (backbone, suite), part in keyed.groupby(["backbone", "suite"], sort=False):
        columns = list(dict.fromkeys(part["column"]))
        grid = [["method", "tuned", "with head", *columns]]
        marks: dict[str, str] = {}
        for label, row in part.groupby("label", sort=False):
            first = row.iloc[0]
            counts = [magnitude(first[name]) for name in ("params_tuned", "params_with_head")]
            by_column = {cell["column"]: cell for cell in row.to_dict("records")}
            texts = [_cell_text(by_column[name], marks) for name in columns]
            grid.append([str(label), *counts, *texts])
        heading = f"{backbone} · {suite}" if suite else str(backbone)
        done = part.loc[(part["kind"] == TASK) & (part["state"] == OK), "budget"]
        if inputs := commonest(part["inputs"].fillna("").tolist()):
            heading += f" · input {inputs}"
        if budget := commonest(done.fillna("").tolist()):
            heading += f" · hyper-parameters from {budget}"
        sections.append(_Section(heading, grid, [(mark, note) for note, mark in marks.items()]))
    return sections


def _cell_text(cell: Any, marks: dict[str, str]) -> str:
    """`81.2 ± 0.4 (3) [a]`; a new remark takes the next free mark."""
    if cell["state"] == OK:
        text = f"{100 * cell['mean']:.1f}"
        if not pd.isna(cell["sd"]):
            text += f" ± {100 * cell['sd']:.1f}"
        text += f" ({cell['n']})"
    else:
        text = SHOWN[cell["state"]]
    if pd.isna(cell["note"]):
        return text
    notes = str(cell["note"]).split("\n")
    return f"{text} [{','.join(marks.setdefault(n, mark_of(len(marks))) for n in notes)}]"


def _blocks(grid: Sequence[Sequence[str]], width: int | None) -> list[list[list[str]]]:
    """`grid` cut between columns so that each block fits; every block starts with the labels."""
    sizes = [max(len(row[i]) for row in grid) + 2 for i in range(len(grid[0]))]
    blocks: list[list[int]] = [[0, 1, 2]]
    used = sum(sizes[:3])
    for i in range(3, len(sizes)):
        if width is not None and used + sizes[i] - 2 > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = sizes[0]
        blocks[-1].append(i)
        used += sizes[i]
    return [[[row[i] for i in block] for row in grid] for block in blocks]


def _padded(grid: Sequence[Sequence[str]]) -> list[list[str]]:
    """`grid` with spaces after unmarked cells, so that numbers line up beside marked ones."""
    marks = [[len(text) - len(text.partition(" [")[0]) for text in row] for row in grid[1:]]
    room = [0, *(max(column) for column in list(zip(*marks, strict=True))[1:])]
    rows = [
        [text + " " * max(0, r - m) for text, m, r in zip(row, mark, room, strict=True)]
        for row, mark in zip(grid[1:], marks, strict=True)
    ]
    return [list(grid[0]), *rows]


def _aligned(grid: Sequence[Sequence[str]]) -> str:
    """Labels to the left, numbers to the right."""
    sizes = [max(map(len, column)) for column in zip(*grid, strict=True)]
    head, *body = [
        row[0].ljust(sizes[0])
        + "".join(f"  {text:>{size}}" for text, size in zip(row[1:], sizes[1:], strict=True))
        for row in grid
    ]
    return "\n".join([head, "─" * len(head), *(line.rstrip() for line in body)])


def _closing(cells: pd.DataFrame, bullet: str) -> str:
    """What the numbers are, and what is not among them."""
    metric = SCORES[cells.attrs.get("metric", SCORE)]
    lines = [f"No finished final run has a test {metric} yet."]
    if len(cells):
        lines = [
            f"Test {metric} in %: mean ± sample standard deviation over seeds (number of seeds).",
            "tuned: parameters that the method adds or unfreezes. "
            "with head: and the classifier, mean over the data sets.",
        ]
    left_out = cells.attrs.get("left_out", [])
    if left_out:
        lines += ["", "Left out:", *(f"{bullet}{line}" for line in left_out)]
    return "\n".join(lines)
