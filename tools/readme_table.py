"""Writes the tables and the figures of the README from the records of its sweeps.

python tools/readme_table.py results
"""

from __future__ import annotations

import sys
from pathlib import Path

from peftbench.report import figures, tables
from peftbench.results.frame import csv_text, frame, read_table, select
from peftbench.results.store import ResultsStore

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "mini"  # the part of a sweep that the repository keeps
START, END = "<!-- table:start -->\n", "<!-- table:end -->"
BACKBONES = ("vit_mini", "efficientnet_lite0")
CONDITIONS = ("recipe=short", "phase=final", "suite=mini", "status=OK")


def rendered(table_path: Path) -> str:
    """The Markdown between the markers, from a table of runs."""
    return tables.to_markdown(tables.summary(read_table(table_path))).rstrip() + "\n"


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
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    after = rest.split(END, 1)[1]
    text = before + START + rendered(KEPT / "table.csv") + END + after
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
