"""Measured minus published, cell by cell, with what was done otherwise than in the paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from peftbench.errors import StoreError
from peftbench.report.papers import catalogue, protocols
from peftbench.report.papers.description import PARAMETERS, TOTAL, PaperColumn, PaperTable
from peftbench.report.papers.layout import cell_text, difference_text, unique_titles
from peftbench.report.papers.measured import differences_in, fill, with_details
from peftbench.report.papers.model import BASELINE, PaperCell, Table
from peftbench.report.papers.options import Options
from peftbench.report.tables.cells import MISSING, OK
from peftbench.report.words import counted
from peftbench.results import published
from peftbench.results.frame import frame
from peftbench.results.store import ResultsStore
from peftbench.spec import BEST_ON_TEST


class Verdict(StrEnum):
    """What a comparison of one cell says."""

    WITHIN = "within"
    MISSES = "MISSES"
    OTHER = "other protocol"  # shown, not judged
    UNJUDGED = "not judged"  # the table declares no tolerance for such columns
    NOT_MEASURED = "not measured"
    NO_VALUE = "no value"  # runs exist, but failed or cannot be averaged
    NOT_PUBLISHED = "not published"


@dataclass(frozen=True)
class CellComparison:
    """One cell of a table against the paper."""

    block: str
    row: str
    column: PaperColumn
    cell: PaperCell
    tolerance: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Reproduction:
    """A table against its paper."""

    table: Table
    comparisons: tuple[CellComparison, ...]

    def count(self, *verdicts: Verdict) -> int:
        """Cells with one of these verdicts."""
        return sum(c.verdict in verdicts for c in self.comparisons)

    @property
    def missed(self) -> bool:
        """Whether a cell of the paper's protocol is farther off than its tolerance."""
        return self.count(Verdict.MISSES) > 0

    @property
    def judged(self) -> bool:
        """Whether any cell was held against its tolerance."""
        return self.count(Verdict.WITHIN, Verdict.MISSES) > 0


@dataclass(frozen=True)
class Outcome:
    """What the command says, and what its exit status follows from."""

    text: str
    missed: bool
    judged: bool
    broken: tuple[StoreError, ...] = ()  # files in the store that are not readable records


def reproduce(
    name: str, root: Path | str, where: Sequence[str] = (), *, dirty: bool = False
) -> Outcome:
    """The table `name`, filled from the records below `root`, against its paper.

    Where the paper reports the best epoch on test, so do the runs that are compared with it. Runs
    whose code differed from its commit count with `dirty` only.

    Raises:
        UnknownName: there is no such table, column or value.
    """
    paper = catalogue.find(name)
    scan = ResultsStore(root).scan()
    options = Options(tuple(where), best_on_test=selects_on_test(paper), dirty=dirty)
    runs = with_details(frame(scan.records), scan.records, paper)
    if runs.empty:
        options = replace(options, where=())  # whose values no run could have
    comparison = compare(fill(paper, runs, options, numbers=published.read()))
    return Outcome(to_text(comparison, root), comparison.missed, comparison.judged, scan.broken)


def compare(table: Table) -> Reproduction:
    """Every cell of a table that was filled with `numbers`, and the verdict on it."""
    return Reproduction(
        table,
        tuple(
            CellComparison(
                block.title, row.title, column, cell, tolerance, _verdict(column, cell, tolerance)
            )
            for block in table.blocks
            for row in block.rows
            for column, cell in zip(table.columns, row.cells, strict=True)
            for tolerance in [table.paper.tolerance_of(column)]
        ),
    )


def _verdict(column: PaperColumn, cell: PaperCell, tolerance: float | None) -> Verdict:
    if cell.state == BASELINE:
        return Verdict.NOT_PUBLISHED
    if cell.state == MISSING:
        return Verdict.NOT_MEASURED
    if cell.state != OK:
        return Verdict.NO_VALUE
    if cell.difference is None:
        return Verdict.NOT_PUBLISHED
    if cell.differences and column.kind not in (TOTAL, PARAMETERS):
        return Verdict.OTHER
    if tolerance is None or cell.partial:
        return Verdict.UNJUDGED
    # differences of decimals are not exact: 78.5 - 78.4 is a little more than 0.1
    return Verdict.WITHIN if abs(cell.difference) <= tolerance + 1e-9 else Verdict.MISSES


def to_text(reproduction: Reproduction, results: Path | str) -> str:
    """The comparison for a reader: cells, counts, differences from the paper."""
    table, paper = reproduction.table, reproduction.table.paper
    head = [f"{paper.title} ({paper.name}): measured - published", f"Paper: {paper.source}."]
    shown = [c for c in reproduction.comparisons if c.cell.difference is not None]
    parts = ["\n".join(head)]
    if shown:
        parts.append(_aligned(_lines(table, shown)))
    else:
        parts.append(_nothing(reproduction, results))
    parts.append(_summary(reproduction))
    parts.append("\n".join(_protocol(table)))
    if notes := Counter(note for c in shown for note in dict.fromkeys(c.cell.notes)):
        lines = [f"  {note} ({counted(count, 'cell')})" for note, count in notes.most_common()]
        parts.append("\n".join(["Remarks on these cells:", *lines]))
    if table.remarks:
        parts.append("\n".join(table.remarks))
    return "\n\n".join(parts) + "\n"


def selects_on_test(paper: PaperTable) -> bool:
    """Whether the protocol of the paper reports the best epoch on test, which flatters."""
    return protocols.declared(paper.protocol).selection == BEST_ON_TEST


def _lines(table: Table, shown: Iterable[CellComparison]) -> list[list[str]]:
    many = len(table.blocks) > 1
    titles = dict(zip(table.columns, unique_titles(table.columns), strict=True))
    rows = [[*(["BLOCK"] if many else []), "ROW", "COLUMN", "MEASURED", "PUBLISHED", "DIFF", ""]]
    for c in shown:
        verdict = str(c.verdict)
        if c.verdict in (Verdict.WITHIN, Verdict.MISSES):
            verdict = f"{verdict} {c.tolerance:g}"
        rows.append(
            [
                *([c.block] if many else []),
                c.row,
                titles[c.column],
                cell_text(c.column, c.cell).plain,
                c.cell.printed.text if c.cell.printed is not None else "",
                difference_text(c.column, c.cell),
                verdict,
            ]
        )
    return rows


def _nothing(reproduction: Reproduction, results: Path | str) -> str:
    paper = reproduction.table.paper
    if not reproduction.table.measured:
        return (
            f"NOTHING WAS MEASURED: {results} holds no final run that belongs into this table. "
            f"Run: peftbench run -m experiments={paper.experiment}"
        )
    return f"NOTHING CAN BE COMPARED: no cell in {results} has both a mean and a published value."


def _summary(reproduction: Reproduction) -> str:
    counts = Counter(c.verdict for c in reproduction.comparisons)
    verdicts = ", ".join(f"{counts[v]} {v}" for v in Verdict if counts[v])
    lines = [f"{len(reproduction.comparisons)} cells: {verdicts}."]
    if not reproduction.judged and reproduction.table.measured:
        lines.append(
            "No cell was measured under the protocol of the paper, so none is held against a "
            "tolerance."
        )
    return "\n".join(lines)


def _protocol(table: Table) -> list[str]:
    """What applies to the comparison beyond single cells."""
    paper = table.paper
    declared = protocols.declared(paper.protocol)
    weights = dict.fromkeys(row.weights[0] for row in paper.rows if row.weights)
    lines = [
        "Protocol of the paper",
        f"  {protocols.describe(declared)}",
        f"  checkpoint: {', '.join(weights)}",
    ]
    measured = {s for cell in table.cells for s in cell.seeds if isinstance(s, int)}
    lines.append("Differences")
    lines += [f"  {line} ({counted(count, 'cell')})" for line, count in differences_in(table)]
    if measured and measured != set(declared.seeds):
        lines.append(
            f"  seeds {', '.join(map(str, sorted(measured)))}, where the protocol has "
            f"{', '.join(map(str, declared.seeds))}"
        )
    if selects_on_test(paper):
        lines.append("  the paper reports the best epoch on test, and so do runs of its protocol")
    if any(column.kind in (TOTAL, PARAMETERS) for column in table.columns):
        heads = {"with_head": "with the head", "without_head": "without the head"}
        lines.append(
            f"  parameters: the paper counts {heads[declared.parameters]}; each column says what "
            "it counts"
        )
    lines += [f"  {line}" for line in paper.differs]
    return lines if lines[-1] != "Differences" else [*lines, "  none"]


def _aligned(grid: list[list[str]]) -> str:
    sizes = [max(map(len, column)) for column in zip(*grid, strict=True)]
    names = len(grid[0]) - 4  # three columns of numbers and the verdict follow the names
    return "\n".join(
        "  ".join(
            text.ljust(size) if i < names or i == len(row) - 1 else text.rjust(size)
            for i, (text, size) in enumerate(zip(row, sizes, strict=True))
        ).rstrip()
        for row in grid
    )
