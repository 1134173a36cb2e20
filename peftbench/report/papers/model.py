"""A table as every renderer gets it: values with their seeds, and what papers print beside them."""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.report.papers.description import PaperColumn, PaperTable
from peftbench.report.tables.cells import MISSING

# Further states of a cell: in a table of published numbers, and wins of the row that they are over.
PUBLISHED, BASELINE = "published", "baseline"


@dataclass(frozen=True)
class Printed:
    """One published number."""

    value: float
    text: str  # its digits in the source, or as many as the column has where it was computed
    source: str
    notes: tuple[str, ...] = ()  # what sets it apart from the others of its table


@dataclass(frozen=True)
class PaperCell:
    """One place of a table, in the unit of its column."""

    state: str
    value: float | None = None
    sd: float | None = None  # sample standard deviation over seeds
    seeds: tuple[int | None, ...] = ()
    notes: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()  # from the protocol of the paper
    partial: bool = False  # over a part of its data sets, since that was asked for
    printed: Printed | None = None

    @property
    def n(self) -> int | None:
        """Number of seeds, where the cell is a mean over some."""
        return len(self.seeds) or None

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        if self.value is None or self.printed is None or self.state == PUBLISHED:
            return None
        return self.value - self.printed.value


@dataclass(frozen=True)
class TableRow:
    """Cells in the order of the columns."""

    title: str
    method: str | None
    cells: tuple[PaperCell, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableBlock:
    """Rows below one line."""

    title: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Table:
    """A filled table."""

    paper: PaperTable
    columns: tuple[PaperColumn, ...]
    blocks: tuple[TableBlock, ...]
    remarks: tuple[str, ...] = ()  # what a reader must know of the whole table
    published_only: bool = False

    @property
    def cells(self) -> tuple[PaperCell, ...]:
        return tuple(cell for block in self.blocks for row in block.rows for cell in row.cells)

    @property
    def measured(self) -> bool:
        """Whether any cell holds something other than nothing."""
        return not self.published_only and any(
            cell.state not in (MISSING, BASELINE) for cell in self.cells
        )
