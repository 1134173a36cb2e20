"""Writes the table and figure of the README and the tables of `docs/results.md`.

python tools/readme_table.py results
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from peftbench.report import figures
from peftbench.report.tables import cells as tables
from peftbench.report.tables.text import to_markdown
from peftbench.results.frame import frame, select
from peftbench.results.store import ResultsStore
from peftbench.results.table_files import csv_text, read_table

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "mini"  # the part of a sweep that the repository keeps
START, END = "<!-- table:start -->\n", "<!-- table:end -->"
BACKBONES = ("vit_mini", "efficientnet_lite0")  # in the order of the columns of the README
CONDITIONS = ("recipe=short", "phase=final", "suite=mini", "status=OK")
EMPTY = "–"


def full_tables(runs: pd.DataFrame) -> str:
    """A table for each backbone with every data set and average, as Markdown."""
    return to_markdown(tables.summary(runs)).rstrip() + "\n"


def compact_table(runs: pd.DataFrame) -> str:
    """A line for each method: what it trains, and its mean over all tasks, on each backbone.

    Methods rise with the parameters that they train on the first backbone; those that are not
    defined there come last.
    """
    cells = tables.summary(runs)
    cells = cells[cells["kind"] == tables.MEAN_OF_TASKS]
    by_backbone = {
        name: {row["label"]: row for row in cells[cells["backbone"] == name].to_dict("records")}
        for name in BACKBONES
    }
    first, *_ = BACKBONES
    tuned = {label: int(row["params_tuned"]) for label, row in by_backbone[first].items()}
    labels = sorted(
        {str(label) for rows in by_backbone.values() for label in rows},
        key=lambda label: (tuned.get(label, sys.maxsize), label),
    )
    head = ["method"]
    for name in BACKBONES:
        head += [f"{name}: trains", "accuracy"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for label in labels:
        pairs = [_pair(by_backbone[name].get(label)) for name in BACKBONES]
        lines.append([f"`{label}`", *[text for pair in pairs for text in pair]])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _pair(cell: Mapping[str, Any] | None) -> tuple[str, str]:
    """Trained parameters, and mean and standard deviation in percent."""
    if cell is None or cell["state"] != tables.OK:
        return EMPTY, EMPTY
    mean, deviation = (100 * float(cell[key]) for key in ("mean", "sd"))
    return _magnitude(int(cell["params_tuned"])), f"{mean:.1f} ± {deviation:.1f}"


def _magnitude(number: int) -> str:
    """Three digits: 768, 36.9k, 1.25M."""
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return str(number)


def with_table(page: str, table: str) -> str:
    """The text of a page with `table` between its markers."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return before + START + table + END + after


PAGES = {"README.md": compact_table, "docs/results.md": full_tables}


def main() -> None:
    runs = select(frame(ResultsStore(Path(sys.argv[1]))), CONDITIONS)
    present = [b for b in BACKBONES if b in set(runs["backbone"])]
    runs = select(runs, (f"backbone={','.join(present)}",))
    KEPT.mkdir(parents=True, exist_ok=True)
    runs["host"] = None  # the record keeps it; the repository has no use for it
    (KEPT / "table.csv").write_text(csv_text(runs), encoding="utf-8")
    for backbone in present:
        figure = figures.accuracy_against_parameters(select(runs, (f"backbone={backbone}",)))
        figures.save(figure, KEPT / f"accuracy_vs_parameters_{backbone}", ("png",))
    kept = read_table(KEPT / "table.csv")
    for name, render in PAGES.items():
        page = ROOT / name
        text = with_table(page.read_text(encoding="utf-8"), render(kept))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
