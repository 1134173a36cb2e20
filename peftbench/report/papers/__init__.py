"""The tables of papers, filled from records, and beside them what the papers print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from peftbench.errors import ConfigError
from peftbench.report.papers.options import Options as Options
from peftbench.results.atomic import write_atomic
from peftbench.results.record import RunRecord

if TYPE_CHECKING:
    import pandas as pd

    from peftbench.report.papers.description import PaperTable
    from peftbench.report.papers.model import Table

FORMATS = ("md", "tex", "csv", "html")


@dataclass(frozen=True)
class Built:
    """Tables as one text, and the files that were written."""

    text: str = ""
    paths: tuple[Path, ...] = ()


def layouts(experiment: str) -> list[PaperTable]:
    """The tables that an experiment measures, or the one table of that name; maybe none.

    Raises:
        UnknownName: neither an experiment nor a table is called so.
    """
    from peftbench.report.papers import catalogue

    return catalogue.of_experiment(experiment)


@dataclass(frozen=True)
class Inputs:
    """What tables of papers are filled from."""

    papers: Sequence[PaperTable]
    runs: pd.DataFrame  # made from `records`
    records: Sequence[RunRecord]


def build(
    inputs: Inputs,
    folder: Path,
    options: Options,
    *,
    published: bool = False,
    style: str = "md",
) -> Built:
    """Fill the tables of `inputs` and write them to `folder/tables`."""
    if not inputs.papers:
        return Built()
    from peftbench.report.papers.measured import fill, with_details
    from peftbench.results.published import read

    numbers = read() if published else None
    tables = [
        fill(
            paper,
            with_details(inputs.runs, inputs.records, paper),
            options,
            numbers=numbers,
        )
        for paper in inputs.papers
    ]
    return _written(tables, folder, published=published, style=style)


def build_published(experiment: str, folder: Path, *, style: str = "md") -> Built:
    """The tables of an experiment from published numbers alone, which needs no run.

    Raises:
        ConfigError: no table is described for the experiment.
        UnknownName: neither an experiment nor a table is called so.
    """
    from peftbench.report.papers.printed import published_only
    from peftbench.results.published import read

    papers = layouts(experiment)
    if not papers:
        raise ConfigError(
            f"No table of a paper is described for experiment {experiment}. "
            "See `peftbench list tables`."
        )
    numbers = read()
    tables = [published_only(paper, numbers) for paper in papers]
    return _written(tables, folder, published=False, style=style)


def _written(tables: Sequence[Table], folder: Path, *, published: bool, style: str) -> Built:
    paths = [
        path for table in tables for path in write(table, folder / "tables", published=published)
    ]
    texts = [rendered(table, style, published=published) for table in tables]
    if style == "csv":  # one head for all
        texts = [texts[0], *(text.partition("\n")[2] for text in texts[1:])]
    return Built(("" if style == "csv" else "\n").join(texts), tuple(paths))


def rendered(table: Table, kind: str, *, published: bool = False) -> str:
    """The table as "md", "tex", "csv" or "html"; with `published`, what papers print as well."""
    from peftbench.report.papers import csv, html, latex, markdown
    from peftbench.report.papers.layout import lay_out

    if kind == "csv":
        return csv.render(table, published=published)
    page = lay_out(table, published=published)
    if kind == "html":
        return html.document(html.render(page), page.title)
    return markdown.render(page) if kind == "md" else latex.render(page)


def write(table: Table, folder: Path, *, published: bool = False) -> list[Path]:
    """`folder/NAME.md`, `.tex`, `.csv` and `.html`, each replaced as a whole.

    A table of published numbers is called `NAME.published`, so that nobody takes it for measured.
    """
    name = f"{table.paper.name}.published" if table.published_only else table.paper.name
    paths = []
    for kind in FORMATS:
        path = folder / f"{name}.{kind}"
        text = rendered(table, kind, published=published)
        write_atomic(path, partial(_copy, text.encode()))
        paths.append(path)
    return paths


def _copy(data: bytes, file: IO[bytes]) -> None:
    file.write(data)
