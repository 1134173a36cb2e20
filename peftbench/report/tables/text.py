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
from peftbench.report.words import commonest, first_of, magnitude, mark_of
from peftbench.results.table_files import csv_text

SHOWN = {
    MISSING: "–",
    UNSUPPORTED: "n/a",
    FAILED: "failed",
    INTERRUPTED: "interrupted",
    MIXED: "mixed",
    INCOMPLETE: "–",
}
ABSENT = {"state": MISSING, "val": pd.NA, "low": pd.NA, "high": pd.NA, "note": pd.NA}
# where Markdown takes a text for HTML, for a character by its name, or for a link
ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)|\]\(|\]:")
REPLACED = {"<": "&lt;", "&": "&amp;", "](": r"]\(", "]:": r"]\:"}


def to_text(cells: pd.DataFrame, *, width: int | None = 100) -> str:
    """Aligned plain text; a table wider than `width` continues in further blocks."""
    parts: list[str] = []
    for section in _layout(cells):
        blocks = [_aligned(block) for block in _blocks(_padded(section.grid), width)]
        notes = [*(f"[{mark}] {note}" for mark, note in section.notes), *section.remarks]
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
        notes += [f"- {remark}" for remark in section.remarks]
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
    remarks: tuple[str, ...] = ()  # what all of it is


def _layout(cells: pd.DataFrame) -> list[_Section]:
    """Cells as texts, one section for each backbone and suite, and one for one's own data sets."""
    sections: list[_Section] = []
    keyed = cells.assign(suite=cells["suite"].fillna(""))
    own = keyed["own"].fillna(False).astype(bool)
    for backbone, part in keyed[own].groupby("backbone", sort=False):
        sections.append(_of_own(str(backbone), part))
    for key, part in keyed[~own].groupby(["backbone", "suite"], sort=False):
        backbone, suite = map(str, key)
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


def _of_own(backbone: str, part: pd.DataFrame) -> _Section:
    """A row for each method, and for each data set its scores on val and test with an interval."""
    datasets = sorted(set(map(str, part["column"])))
    order, remarks = ranking(part)
    with_val = {name for name in datasets if part.loc[part["column"] == name, "val"].notna().any()}
    grid = [["method", "tuned", "with head"]]
    for name in datasets:
        grid[0] += [*([f"{name} val"] if name in with_val else []), f"{name} test", "95 % interval"]
    marks: dict[str, str] = {}
    for label in order:
        row = part[part["label"] == label]
        heads = row["params_with_head"].dropna()  # of each data set, whose classes differ
        counts = row["params_tuned"].iloc[0], heads.mean() if len(heads) else pd.NA
        line = [label, *map(magnitude, counts)]
        by_column = {str(cell["column"]): cell for cell in row.to_dict("records")}
        for name in datasets:
            cell = by_column.get(name, ABSENT)
            line += [_percent(cell["val"])] if name in with_val else []
            line += [_cell_text(cell, marks), _interval_text(cell)]
        grid.append(line)
    heading = f"{backbone} · {', '.join(datasets)}"
    done = part.loc[part["state"] == OK, "budget"]
    if budget := commonest(done.fillna("").tolist()):
        heading += f" · hyper-parameters from {budget}"
    over = sorted(set(part["over"].dropna()))
    if over:
        remarks.append(f"95 % interval: of the score on new images; it holds {' or '.join(over)}.")
    if with_val:
        remarks.append(
            "val: of runs and trials that trained on train alone; where a trial chose the settings "
            "by it, it flatters a little."
        )
    notes = [(mark, note) for note, mark in marks.items()]
    return _Section(heading, grid, notes, tuple(remarks))


def ranking(part: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The rows of one's own data sets in the order of a table, and by what they are ranked.

    By val, where every method has it on every data set: test is not for choosing.
    """
    labels = list(dict.fromkeys(map(str, part["label"])))
    datasets = set(part["column"])
    done = part[part["state"] == OK].dropna(subset="val")
    known = {str(x): rows["val"].mean() for x, rows in done.groupby("label")}
    whole = {str(x) for x, rows in done.groupby("label") if set(rows["column"]) == datasets}
    lacking = [label for label in labels if label not in whole]
    if labels and not lacking:
        several = " (mean over the data sets)" if len(datasets) > 1 else ""
        order = sorted(labels, key=lambda label: (-known[label], labels.index(label)))
        return order, [f"Ranked by val{several}, not by test."]
    every = " on every data set" if len(datasets) > 1 else ""
    return labels, [
        "Not ranked: rows rise with the tuned parameters. Test is not for choosing, and there is "
        f"no val of {first_of(lacking, 3)}{every}; phase=tune or a tuner gives it."
    ]


def _interval_text(cell: Any) -> str:
    if cell["state"] != OK or pd.isna(cell["low"]):
        return "–"
    return f"{_percent(cell['low'])}–{_percent(cell['high'])}"


def _percent(share: Any) -> str:
    return "–" if pd.isna(share) else f"{100 * share:.1f}"


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
        runs = "runs" if (cells["splits"].fillna(1) > 1).any() else "seeds"
        lines = [
            f"Test {metric} in %: mean ± sample standard deviation over {runs} (number of {runs}).",
            "tuned: parameters that the method adds or unfreezes. "
            "with head: and the classifier, mean over the data sets.",
        ]
    left_out = cells.attrs.get("left_out", [])
    if left_out:
        lines += ["", "Left out:", *(f"{bullet}{line}" for line in left_out)]
    return "\n".join(lines)
