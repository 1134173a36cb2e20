"""Tables, figures and a page made from the records of a results folder, and from nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from peftbench.errors import StoreError
from peftbench.report.names import slug
from peftbench.results.atomic import write_atomic
from peftbench.results.store import ResultsStore, Scan

if TYPE_CHECKING:
    import pandas as pd

    from peftbench.report.comparison import Comparison
    from peftbench.report.figures.beside import Beside
    from peftbench.report.view import Views
    from peftbench.results.table_files import Written

TABLES, FIGURES, PAGE = "tables", "figures", "page"
PARTS = (TABLES, FIGURES, PAGE)


@dataclass(frozen=True)
class Report:
    """What to print, and the files that were written."""

    text: str
    paths: tuple[Path, ...] = ()
    broken: tuple[StoreError, ...] = ()  # files in the store that are not readable records


def build(
    root: Path | str,
    where: Sequence[str] = (),
    *,
    out: Path | str | None = None,
    metric: str = "top1",
    limited: bool = False,
    best_on_test: bool = False,
    dirty: bool = False,
    formats: Sequence[str] = ("png", "pdf", "svg"),
    kinds: Collection[str] | None = None,
    style: str = "text",
    parts: Collection[str] = PARTS,
    experiment: str | None = None,
    published: bool = False,
    incomplete: bool = False,
) -> Report:
    """Tables, figures and page of the runs below `root`, which need no accelerator and no data.

    `out/table.csv` and `out/table.parquet` hold every run, `out/statistics.md` and
    `out/statistics.csv` intervals, ranks and tests where two methods can be compared. `where` (such
    as `backbone=vit_mini`) narrows the printed table, the statistics, the figures and the page,
    which then have names of their own. `out` is `root` unless given. With `best_on_test` the table
    shows the runs that selected the epoch on test as well, in rows of their own; figures and page
    never do. With `limited`, runs on a part of the images count as well, but for the page, and with
    `dirty` those whose code differed from its commit. `formats` and `kinds`
    (`report.figures.KINDS`) choose among the figures; no `formats` means no figures. `style` is
    "text" for a reader, who also learns of files and problems, or "markdown" or "csv" for the table
    alone. `parts` are what is written. With `experiment` the tables of papers that it measures are
    written to `out/tables` and stand in front: with what the papers print below each row if
    `published`, and with averages over rows with holes, marked, if `incomplete`.

    Raises:
        UnknownName: there is no such experiment or table, column or value.
    """
    from peftbench.report import papers, statistics, tables
    from peftbench.report.view import Views
    from peftbench.results.frame import committed, epochs, frame, public_table, select
    from peftbench.results.table_files import write_table

    root = Path(root)
    folder = root if out is None else Path(out)
    layouts = [] if experiment is None else papers.layouts(experiment)
    store = ResultsStore(root)
    scan = store.scan()
    notes = [f"Unreadable: {error}" for error in scan.broken]
    if not scan.records:
        command = f"-m experiments={layouts[0].experiment}" if layouts else "method=linear"
        hint = f"No runs in {root / 'runs'} yet. Run: peftbench run {command}"
        return Report("\n".join([*notes, hint]), broken=scan.broken)
    everything = frame(scan.records)
    chosen = public_table(select(everything, where))
    matching = len(chosen)
    left_out: list[str] = []
    if not dirty:
        chosen, left_out = committed(chosen)
    name = slug("__".join(where)) if where else ""
    paths: list[Path] = []
    front = printed = ""
    if TABLES in parts:
        written = write_table(public_table(everything), folder)
        made = papers.build(
            layouts,
            everything,
            scan.records,
            folder,
            papers.Options(tuple(where), best_on_test, limited, incomplete, dirty),
            published=published,
            style="csv" if style == "csv" else "md",
        )
        paths += [*written.paths, *made.paths]
        notes += written.notes
        front = made.text
        if experiment is not None and not layouts:
            notes.append(f"No table of a paper is described for experiment {experiment}.")
    if chosen.empty:
        notes += [f"Left out: {line}." for line in left_out]
        if not matching:
            notes.append(f"No run has {' and '.join(where)}: {len(everything)} runs, no figure.")
        return Report(_text(front, paths, notes), tuple(paths), scan.broken)
    views = Views(chosen, tuple(left_out))
    begun = None  # figures take longest, so that they begin first
    if FIGURES in parts and formats:
        from peftbench.report.figures import KINDS
        from peftbench.report.figures.beside import Beside, Order

        order = Order(
            root=str(root),
            where=list(where),
            dirty=dirty,
            place=str(folder / "figures" / name),
            formats=list(formats),
            kinds=list(KINDS if kinds is None else kinds),
            metric=metric,
            limited=limited,
        )
        begun = Beside(order, views, epochs(scan.records))
    with contextlib.nullcontext() if begun is None else contextlib.closing(begun):
        if TABLES in parts:
            view = views.view(metric, limited=limited, best_on_test=best_on_test)
            found = statistics.comparisons(view, store)
            stem = folder / (f"statistics_{name}" if name else "statistics")
            paths += _statistics(found, stem, tables.SCORES[metric])
            if style == "text" or not front:
                styles = {"markdown": tables.to_markdown, "csv": tables.to_csv}
                printed = styles.get(style, tables.to_text)(view.cells)
        page = folder / (f"report_{name}.html" if name else "report.html")
        if PAGE in parts:
            _page(views, scan, store, page)
        if begun is not None:
            drawn = _finished(begun, chosen)
            paths += drawn.paths
            notes += drawn.notes
    if PAGE in parts:
        paths.append(page)
    text = front + printed
    text = _text(text, paths, notes) if style == "text" else text.rstrip("\n")
    return Report(text, tuple(paths), scan.broken)


def _statistics(found: Sequence[Comparison], stem: Path, metric: str) -> list[Path]:
    from peftbench.report import statistics

    if not found:
        return []
    texts = {"md": statistics.to_markdown(found, metric=metric), "csv": statistics.to_csv(found)}
    paths = []
    for suffix, text in texts.items():
        paths.append(Path(f"{stem}.{suffix}"))  # a dot in the stem is not a suffix
        write_atomic(paths[-1], partial(_write, text=text))
    return paths


def _finished(begun: Beside, table: pd.DataFrame) -> Written:
    from peftbench.results.table_files import Written

    figures = begun.finish()
    drawn = {figure.backbone for figure in figures}
    notes = [
        f"No figure for {backbone}: no method has all data sets yet."
        for backbone in sorted(set(map(str, table["backbone"].dropna())) - drawn)
    ]
    return Written(tuple(path for figure in figures for path in figure.paths), tuple(notes))


def _page(views: Views, scan: Scan, store: ResultsStore, path: Path) -> None:
    from peftbench.report.page import render
    from peftbench.results.frame import epochs
    from peftbench.results.privacy import public_text

    html = render(
        views, epochs(scan.records), store, broken=[public_text(str(e)) for e in scan.broken]
    )
    write_atomic(path, partial(_write, text=html))


def _text(table: str, paths: Sequence[Path], notes: Sequence[str]) -> str:
    """The table, what went wrong, and the files."""
    written = "\n".join(["Written:", *(f"  {path}" for path in paths)]) if paths else ""
    parts = [table.rstrip("\n"), "\n".join(notes), written]
    return "\n\n".join(part for part in parts if part)


def _write(file: IO[bytes], text: str) -> None:
    file.write(text.encode("utf-8", "backslashreplace"))  # lone surrogates of file names
