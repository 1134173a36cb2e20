"""From values to the texts of a page: what each renderer writes in its own notation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftbench.report.papers.description import ACCURACIES, PARAMETERS, TOTAL, WINS, PaperColumn
from peftbench.report.papers.model import BASELINE, PUBLISHED, PaperCell, Table
from peftbench.report.tables.cells import OK
from peftbench.report.tables.text import SHOWN
from peftbench.report.words import mark_of

ROW, PRINTED, DIFFERENCE = "row", "published", "difference"  # kinds of lines
SIGN = {TOTAL: "×"}
EMPTY = {**SHOWN, BASELINE: "–"}


@dataclass(frozen=True)
class Text:
    """One place of the page: `78.5 ± 0.2 (5) [a]`."""

    value: str
    spread: str = ""
    n: str = ""
    marks: tuple[str, ...] = ()

    @property
    def plain(self) -> str:
        """Without marks."""
        spread = f" ± {self.spread}" if self.spread else ""
        return f"{self.value}{spread}{f' ({self.n})' if self.n else ''}"


@dataclass(frozen=True)
class PageLine:
    """One line of the page; lines of published numbers and differences follow their row."""

    label: Text
    kind: str
    texts: tuple[Text, ...]


@dataclass(frozen=True)
class TablePage:
    """A table as texts. `headings` and `columns` stand over each other, label column excluded."""

    name: str
    title: str
    headings: tuple[tuple[str, int], ...]  # text and the number of columns below it
    columns: tuple[Text, ...]
    unique_columns: tuple[Text, ...]  # for notations without headings over several columns
    blocks: tuple[tuple[str, tuple[PageLine, ...]], ...]
    notes: tuple[tuple[str, str], ...]  # mark and text
    remarks: tuple[str, ...]
    published_only: bool = False


@dataclass(frozen=True)
class _Draft:
    """A line before its remarks have marks."""

    label: str
    kind: str
    texts: tuple[Text, ...]
    notes: tuple[tuple[str, ...], ...]  # of each text
    label_notes: tuple[str, ...] = ()


def lay_out(table: Table, *, published: bool = False) -> TablePage:
    """The page of a table. With `published` each row has two more: printed, and the difference.

    A remark that all cells of a column or of a line share stands at its title.
    """
    drafts = [_drafts(table, b, published=published) for b in range(len(table.blocks))]
    over_columns = _shared_by_columns([draft for block in drafts for draft in block])
    marks: dict[str, str] = {}
    columns = tuple(
        Text(column.title, marks=_marks(notes, marks))
        for column, notes in zip(table.columns, over_columns, strict=True)
    )
    blocks = [
        (block.title, tuple(_line(draft, over_columns, marks) for draft in lines))
        for block, lines in zip(table.blocks, drafts, strict=True)
    ]
    warning = "Published numbers only, nothing here was measured: " if table.published_only else ""
    return TablePage(
        name=table.paper.name,
        title=f"{warning}{table.paper.title}",
        headings=_headings(table.columns),
        columns=columns,
        unique_columns=tuple(
            replace(column, value=title)
            for column, title in zip(columns, unique_titles(table.columns), strict=True)
        ),
        blocks=tuple(blocks),
        notes=tuple((mark, note) for note, mark in marks.items()),
        remarks=(*_units(table), *table.paper.notes, *table.remarks),
        published_only=table.published_only,
    )


def unique_titles(columns: Sequence[PaperColumn]) -> list[str]:
    """Titles of columns, with the heading above where a title alone is not unique."""
    count = Counter(column.title for column in columns)
    return [
        f"{column.heading}: {column.title}"
        if column.heading and count[column.title] > 1
        else column.title
        for column in columns
    ]


def value_text(column: PaperColumn, value: float) -> str:
    """A value of the column with its decimals and its sign."""
    return f"{value:.{column.decimals}f}{SIGN.get(column.kind, '')}"


def cell_text(column: PaperColumn, cell: PaperCell) -> Text:
    """A cell without its marks."""
    if cell.state == PUBLISHED and cell.printed is not None:
        return Text(f"{cell.printed.text}{SIGN.get(column.kind, '')}")
    if cell.value is None or cell.state != OK:
        return Text(EMPTY[cell.state])
    spread = "" if cell.sd is None else f"{cell.sd:.{column.decimals}f}"
    return Text(value_text(column, cell.value), spread, "" if cell.n is None else str(cell.n))


def difference_text(column: PaperColumn, cell: PaperCell) -> str:
    """Measured minus published with its sign, empty where one of them is missing."""
    if cell.difference is None:
        return ""
    decimals = max(column.decimals, 0 if column.kind == WINS else 1)
    rounded = round(cell.difference, decimals) + 0.0  # no minus zero
    return f"{rounded:+.{decimals}f}".replace("-", "−")


def _drafts(table: Table, b: int, *, published: bool) -> list[_Draft]:
    """The lines of a block."""
    drafts = []
    for row in table.blocks[b].rows:
        pairs = list(zip(table.columns, row.cells, strict=True))
        texts = tuple(cell_text(column, cell) for column, cell in pairs)
        notes = tuple(cell.notes for cell in row.cells)
        drafts.append(_Draft(row.title, ROW, texts, notes, row.notes))
        if not published or all(cell.printed is None for cell in row.cells):
            continue
        printed = tuple(Text(_printed_text(column, cell)) for column, cell in pairs)
        notes = tuple(() if c.printed is None else c.printed.notes for c in row.cells)
        drafts.append(_Draft(PRINTED, PRINTED, printed, notes))
        if any(cell.difference is not None for cell in row.cells):
            gaps = tuple(Text(difference_text(column, cell)) for column, cell in pairs)
            drafts.append(_Draft(DIFFERENCE, DIFFERENCE, gaps, ((),) * len(gaps)))
    return drafts


def _printed_text(column: PaperColumn, cell: PaperCell) -> str:
    return "" if cell.printed is None else f"{cell.printed.text}{SIGN.get(column.kind, '')}"


def _shared_by_columns(drafts: Sequence[_Draft]) -> list[tuple[str, ...]]:
    """For each column, the remarks on all its texts, where lines of one kind have remarks."""
    noted = [draft for draft in drafts if any(draft.notes)]
    return [
        _shared([draft.notes[c] for draft in noted if _says(draft.texts[c])])
        if len({draft.kind for draft in noted}) == 1
        else ()
        for c in range(len(drafts[0].texts) if drafts else 0)
    ]


def _line(draft: _Draft, over: Sequence[tuple[str, ...]], marks: dict[str, str]) -> PageLine:
    rest = [
        [note for note in notes if note not in shared]
        for notes, shared in zip(draft.notes, over, strict=True)
    ]
    mine = _shared([notes for notes, text in zip(rest, draft.texts, strict=True) if _says(text)])
    label = Text(draft.label, marks=_marks((*draft.label_notes, *mine), marks))
    texts = [
        replace(text, marks=_marks([note for note in notes if note not in mine], marks))
        for text, notes in zip(draft.texts, rest, strict=True)
    ]
    return PageLine(label, draft.kind, tuple(texts))


def _shared(notes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Remarks that all of several places have."""
    if len(notes) < 2:
        return ()
    return tuple(note for note in notes[0] if all(note in other for other in notes))


def _says(text: Text) -> bool:
    """Whether a place holds something."""
    return text.value not in ("", "–")


def _marks(notes: Sequence[str], marks: dict[str, str]) -> tuple[str, ...]:
    """Marks of remarks; a new remark takes the next free one."""
    return tuple(marks.setdefault(note, mark_of(len(marks))) for note in notes)


def _headings(columns: Sequence[PaperColumn]) -> tuple[tuple[str, int], ...]:
    """Neighbours of one heading together."""
    headings: list[tuple[str, int]] = []
    for column in columns:
        if headings and headings[-1][0] == column.heading:
            headings[-1] = (column.heading, headings[-1][1] + 1)
        else:
            headings.append((column.heading, 1))
    return tuple(headings)


def _units(table: Table) -> list[str]:
    """What the numbers are."""
    lines = [f"Layout: {table.paper.source}."]
    kinds = {column.kind for column in table.columns}
    if kinds & set(ACCURACIES) and not table.published_only:
        lines.append(
            "Test top-1 accuracy in %: mean ± sample standard deviation over seeds "
            "(number of seeds)."
        )
    elif kinds & set(ACCURACIES):
        lines.append("Top-1 accuracy in %, as printed.")
    lines += [
        f"{column.title}: {_meaning(column)}"
        for column in table.columns
        if column.kind in (WINS, TOTAL, PARAMETERS)
    ]
    return list(dict.fromkeys(lines))


def _meaning(column: PaperColumn) -> str:
    size = len(column.tasks)
    if column.kind == WINS:
        return f"data sets on which the row is better than {column.against}."
    if column.kind == TOTAL:
        return (
            f"what all {size} tasks need together, heads included, as a multiple of the backbone."
        )
    head = "with the head" if column.head else "without the head"
    return f"millions of parameters that train, {head}, mean over {column.average}."
