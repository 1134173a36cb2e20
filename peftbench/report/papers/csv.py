"""Paper tables as CSV: one line a cell with every digit."""

from __future__ import annotations

from typing import Any

import pandas as pd

from peftbench.report.frames import typed_frame
from peftbench.report.papers.model import PUBLISHED, Table
from peftbench.results.columns import Column
from peftbench.results.table_files import csv_text

COLUMNS = (
    Column("table", "string", "name of the table"),
    Column("block", "string", "line above the rows"),
    Column("row", "string", "title of the row"),
    Column("method", "string", "registered name"),
    Column("heading", "string", "over several columns"),
    Column("column", "string", "title of the column"),
    Column("kind", "string", "task, mean, mean of groups, wins, total parameters or parameters"),
    Column("unit", "string", "percent, backbones, millions or tasks"),
    Column(
        "state",
        "string",
        "ok, missing, unsupported, failed, interrupted, mixed, incomplete or published",
    ),
    Column("value", "Float64", "measured; missing where the state is not ok"),
    Column("sd", "Float64", "sample standard deviation over seeds"),
    Column("n", "Int64", "seeds"),
    Column("published", "Float64", "what the paper prints"),
    Column("difference", "Float64", "measured minus published"),
    Column("source", "string", "of the published number"),
    Column("note", "string", "what a reader must know, one remark a line"),
)


def frame(table: Table, *, published: bool = False) -> pd.DataFrame:
    """One row a cell with the columns of `COLUMNS`."""
    rows: list[dict[str, Any]] = []
    for block in table.blocks:
        for row in block.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                printed = cell.printed if published or table.published_only else None
                notes = [*row.notes, *cell.notes]
                if printed is not None:
                    notes += [f"published: {n}" for n in printed.notes if n not in notes]
                rows.append(
                    {
                        "table": table.paper.name,
                        "block": block.title,
                        "row": row.title,
                        "method": row.method,
                        "heading": column.heading,
                        "column": column.title,
                        "kind": column.kind,
                        "unit": column.unit,
                        "state": cell.state,
                        "value": None if cell.state == PUBLISHED else cell.value,
                        "sd": cell.sd,
                        "n": cell.n,
                        "published": None if printed is None else printed.value,
                        "difference": None if printed is None else cell.difference,
                        "source": None if printed is None else printed.source,
                        "note": "\n".join(notes),
                    }
                )
    return typed_frame(COLUMNS, rows)


def render(table: Table, *, published: bool = False) -> str:
    """The frame as text."""
    return csv_text(frame(table, published=published))
