"""Tables, figures and a page made from the records of a results folder, and from nothing else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from peftbench.errors import StoreError
from peftbench.report.names import slug
from peftbench.report.scores import IN_FIGURE_NAMES, SCORES, check_metric
from peftbench.results.atomic import write_atomic
from peftbench.results.store import ResultsStore, Scan, uncollected

if TYPE_CHECKING:
    import pandas as pd

    from peftbench.report.comparison import Comparison
    from peftbench.report.papers.description import PaperTable
    from peftbench.report.view import Views

TABLES, FIGURES, PAGE = "tables", "figures", "page"
PARTS = (TABLES, FIGURES, PAGE)


@dataclass(frozen=True)
class ReportOptions:
    """What a report is made of, and what is written."""

    where: tuple[str, ...] = ()  # conditions on the runs, as `backbone=vit_mini`
    out: Path | str | None = None  # folder of the files; that of the results unless given
    metric: str | None = None  # of all runs; each by the one that it declares unless given
    limited: bool = False  # runs on a part of the images count as well, but for the page
    # the table shows runs that selected the epoch on test as well, in rows of their own; figures
    # and page never do
    best_on_test: bool = False
    dirty: bool = False  # runs whose code differed from its commit count as well
    formats: Sequence[str] = ("png", "pdf", "svg")  # of figures; none means no figures
    kinds: Collection[str] | None = None  # of `report.figures.KINDS`; all unless given
    # "text" for a reader, who also learns of files and problems, or "markdown" or "csv" for the
    # table alone
    style: str = "text"
    parts: Collection[str] = PARTS  # what is written
    # whose tables of papers are written to `out/tables` and stand in front
    experiment: str | None = None
    published: bool = False  # with what the papers print below each row of them
    incomplete: bool = False  # with averages over rows with holes, marked
    pictures: bool = True  # the page has small pictures of data sets that are here, and file names

    @property
    def name(self) -> str:
        """What the names of files of a narrowed report end with; empty for the whole."""
        return slug("__".join(self.where)) if self.where else ""

    def named(self, stem: str) -> str:
        """The name of a file, without its suffix."""
        return f"{stem}_{self.name}" if self.name else stem


@dataclass(frozen=True)
class Report:
    """What to print, and the files that were written."""

    text: str
    paths: tuple[Path, ...] = ()
    broken: tuple[StoreError, ...] = ()  # files in the store that are not readable records


@dataclass(frozen=True)
class Product:
    """A part of a report: what it prints, the files it wrote and what went wrong."""

    text: str = ""
    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Sources:
    """Where a report comes from and goes to."""

    store: ResultsStore
    scan: Scan  # without records where rows are enough
    folder: Path
    everything: pd.DataFrame  # one row a run, also those that the conditions leave out

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """One row an epoch of these runs."""
        from peftbench.results.frame import epochs

        return epochs(self.scan.records)


def build(root: Path | str, where: Sequence[str] = (), **choices: Any) -> Report:
    """Tables, figures and page of the runs below `root`, which need no accelerator and no data.

    `choices` are fields of `ReportOptions`. `out/table.csv` and `out/table.parquet` hold every run,
    `out/statistics.md` and `out/statistics.csv` intervals, ranks and tests where two methods can be
    compared. `where` (such as `backbone=vit_mini`) narrows the printed table, the statistics, the
    figures and the page, which then have names of their own.

    Raises:
        UnknownName: there is no such experiment or table, column or value.
    """
    from peftbench.report import papers

    options = ReportOptions(where=tuple(where), **choices)
    check_metric(options.metric)
    root = Path(root)
    folder = root if options.out is None else Path(options.out)
    layouts = [] if options.experiment is None else papers.layouts(options.experiment)
    store = ResultsStore(root)
    scan, everything = _read(store, options)
    with uncollected():
        return _built(_Sources(store, scan, folder, everything), layouts, options)


def _built(sources: _Sources, layouts: Sequence[PaperTable], options: ReportOptions) -> Report:
    """The report of what was read."""
    from peftbench.report.again import measured_again
    from peftbench.report.view import Views
    from peftbench.results.frame import committed, public_table, select

    scan, everything, where = sources.scan, sources.everything, options.where
    notes = [f"Unreadable: {error}" for error in scan.broken]
    if everything.empty:
        command = f"-m experiments={layouts[0].experiment}" if layouts else "method=linear"
        hint = f"No runs in {sources.store.root / 'runs'} yet. Run: peftbench run {command}"
        return Report("\n".join([*notes, hint]), broken=scan.broken)
    chosen = public_table(select(everything, where))
    matching = len(chosen)
    left_out: list[str] = []
    if not options.dirty:
        chosen, left_out = committed(chosen)
    front = _front(sources, layouts, options)
    notes += front.notes
    if chosen.empty:
        notes += [f"Left out: {line}." for line in left_out]
        if not matching:
            runs = f"{len(everything)} runs"
            notes.append(f"No run has {' and '.join(where)}: {runs}, no figure.")
        return Report(_text(front.text, front.paths, notes), front.paths, scan.broken)
    chosen = measured_again(chosen, sources.store, _lacking(chosen, options))
    products = _products(sources, Views(chosen, tuple(left_out), sources.store), options)
    paths = (*front.paths, *(path for one in products for path in one.paths))
    notes += [note for one in products for note in one.notes]
    printed = "".join(one.text for one in products)
    if front.text and options.style != "text":
        printed = ""  # the tables of papers stand alone
    text = front.text + printed
    text = _text(text, paths, notes) if options.style == "text" else text.rstrip("\n")
    return Report(text, paths, scan.broken)


def _read(store: ResultsStore, options: ReportOptions) -> tuple[Scan, pd.DataFrame]:
    """The records, as far as the parts of the report need more than their rows, and the rows."""
    from peftbench.results.frame import frame, stored_frame

    if options.experiment is None and set(options.parts) == {TABLES}:
        table, broken = stored_frame(store)
        return Scan((), tuple(broken)), table
    scan = store.scan()
    return scan, frame(scan.records)


def _products(sources: _Sources, views: Views, options: ReportOptions) -> list[Product]:
    """Tables, figures and page, in the order in which a reader is told of them."""
    table = _table(sources, views, options) if TABLES in options.parts else Product()
    drawn = FIGURES in options.parts and options.formats
    figures = _figures(sources, views, options) if drawn else Product()
    page = _page(sources, views, options) if PAGE in options.parts else Product()
    return [table, figures, page]


def _front(sources: _Sources, layouts: Sequence[PaperTable], options: ReportOptions) -> Product:
    """The table of every run, and the tables of papers, which stand in front."""
    from peftbench.report import papers
    from peftbench.results.frame import public_table
    from peftbench.results.table_files import write_table

    if TABLES not in options.parts:
        return Product()
    written = write_table(public_table(sources.everything), sources.folder)
    filled = papers.build(
        papers.Inputs(layouts, sources.everything, sources.scan.records),
        sources.folder,
        papers.Options(
            options.where,
            options.best_on_test,
            options.limited,
            options.incomplete,
            options.dirty,
        ),
        published=options.published,
        style="csv" if options.style == "csv" else "md",
    )
    notes = list(written.notes)
    if options.experiment is not None and not layouts:
        notes.append(f"No table of a paper is described for experiment {options.experiment}.")
    return Product(filled.text, (*written.paths, *filled.paths), tuple(notes))


def _lacking(table: pd.DataFrame, options: ReportOptions) -> list[str]:
    """The metrics that a report shows of runs that may be older than they are.

    Those of the page are all that some run has.
    """
    asked = [] if options.metric is None else [options.metric]
    if PAGE in options.parts:
        asked += [name for name in SCORES if table[name].notna().any()]
    return list(dict.fromkeys(asked))


def _table(sources: _Sources, views: Views, options: ReportOptions) -> Product:
    """The tables that are printed, one for each metric, and the files of statistics."""
    import pandas as pd

    from peftbench.report import statistics, tables

    shown, paths = list[pd.DataFrame](), list[Path]()
    for metric, of_metric in views.by_metric(options.metric):
        view = of_metric.view(metric, limited=options.limited, best_on_test=options.best_on_test)
        comparisons = statistics.comparisons(view, sources.store)
        stem = f"statistics_{IN_FIGURE_NAMES[metric]}" if shown else "statistics"
        paths += _statistics(comparisons, sources.folder / options.named(stem), SCORES[metric])
        shown.append(view.cells)
    if options.style == "csv":
        text = tables.to_csv(pd.concat(shown, ignore_index=True))
    else:
        written = tables.to_markdown if options.style == "markdown" else tables.to_text
        text = "\n".join(written(cells) for cells in shown)
    return Product(text, tuple(paths))


def _statistics(comparisons: Sequence[Comparison], stem: Path, metric: str) -> list[Path]:
    from peftbench.report import statistics

    if not comparisons:
        return []
    texts = {
        "md": statistics.to_markdown(comparisons, metric=metric),
        "csv": statistics.to_csv(comparisons),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(Path(f"{stem}.{suffix}"))  # a dot in the stem is not a suffix
        write_atomic(paths[-1], partial(_write, text=text))
    return paths


def _figures(sources: _Sources, views: Views, options: ReportOptions) -> Product:
    from peftbench.report.figures import KINDS
    from peftbench.report.figures.orders import Order, draw

    order = Order(
        place=sources.folder / "figures" / options.name,
        formats=options.formats,
        kinds=list(KINDS if options.kinds is None else options.kinds),
        metric=options.metric,
        limited=options.limited,
    )
    figures = draw(order, views, sources.epochs, sources.store)
    drawn = {figure.backbone for figure in figures}
    notes = [
        f"No figure for {backbone}: no method has all data sets yet."
        for backbone in sorted(set(map(str, views.table["backbone"].dropna())) - drawn)
    ]
    paths = tuple(path for figure in figures for path in figure.paths)
    return Product(paths=paths, notes=tuple(notes))


def _page(sources: _Sources, views: Views, options: ReportOptions) -> Product:
    from peftbench.report.page import MOST_EPOCHS, render
    from peftbench.report.page.images.parts import parts
    from peftbench.report.page.images.runs import Sources
    from peftbench.results.privacy import public_text
    from peftbench.results.table_files import write_epochs

    path = sources.folder / f"{options.named('report')}.html"
    beside: tuple[Path, ...] = ()
    if len(sources.epochs) > MOST_EPOCHS:
        beside = (write_epochs(sources.epochs, sources.folder),)
    broken = [public_text(str(error)) for error in sources.scan.broken]
    records = {record.run_id: record for record in sources.scan.records}
    images = parts(views, Sources(sources.store, records, options.pictures))
    html = render(
        views, sources.epochs, sources.store, broken=broken, metric=options.metric, images=images
    )
    write_atomic(path, partial(_write, text=html))
    return Product(paths=(path, *beside))


def _text(table: str, paths: Sequence[Path], notes: Sequence[str]) -> str:
    """The table, what went wrong, and the files."""
    written = "\n".join(["Written:", *(f"  {path}" for path in paths)]) if paths else ""
    parts = [table.rstrip("\n"), "\n".join(notes), written]
    return "\n\n".join(part for part in parts if part)


def _write(file: IO[bytes], text: str) -> None:
    file.write(text.encode("utf-8", "backslashreplace"))  # lone surrogates of file names
