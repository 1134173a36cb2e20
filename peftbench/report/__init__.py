"""Tables and figures made from the records of a results folder, and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from peftbench.errors import StoreError
from peftbench.results.store import ResultsStore


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
    formats: Sequence[str] = ("png", "pdf", "svg"),
    style: str = "text",
    experiment: str | None = None,
    published: bool = False,
    incomplete: bool = False,
) -> Report:
    """Tables and figures of the runs below `root`, which need no accelerator and no data.

    `out/table.csv` and `out/table.parquet` hold every run, `out/statistics.md` and
    `out/statistics.csv` intervals, ranks and tests where two methods can be compared. `where`
    (such as `backbone=vit_mini`) narrows the printed table, the statistics and the figures, which
    then have names of their own. `out` is `root` unless given. With `best_on_test` the table shows
    the runs that selected the epoch on test as well, in rows of their own; figures never do. No
    `formats` means no figures. `style` is "text" for a reader, who also learns of files and
    problems, or "markdown" or "csv" for the table alone. With `experiment` the tables of papers
    that it measures are written to `out/tables` and stand in front: with what the papers print
    below each row if `published`, and with averages over rows with holes, marked, if `incomplete`.

    Raises:
        UnknownName: there is no such experiment or table, column or value.
    """
    from peftbench.report import figures, papers, statistics, tables
    from peftbench.results.frame import frame, select, write_table
    from peftbench.results.store import write_atomic

    root = Path(root)
    folder = root if out is None else Path(out)
    layouts = [] if experiment is None else papers.layouts(experiment)
    scan = ResultsStore(root).scan()
    problems = [f"Unreadable: {error}" for error in scan.broken]
    if not scan.records:
        command = f"-m experiments={layouts[0].experiment}" if layouts else "method=linear"
        hint = f"No runs in {root / 'runs'} yet. Run: peftbench run {command}"
        return Report("\n".join([*problems, hint]), broken=scan.broken)
    everything = frame(scan.records)
    chosen = select(everything, where)
    written = write_table(everything, folder)
    paths = list(written.paths)
    notes = [*problems, *written.notes]
    made = papers.build(
        layouts,
        everything,
        scan.records,
        folder,
        papers.Options(tuple(where), best_on_test, limited, incomplete),
        published=published,
        style="csv" if style == "csv" else "md",
    )
    paths += made.paths
    if experiment is not None and not layouts:
        notes.append(f"No table of a paper is described for experiment {experiment}.")
    if chosen.empty:
        notes.append(f"No run has {' and '.join(where)}: {len(everything)} runs, no figure.")
        return Report(_text(made.text, paths, notes), tuple(paths), scan.broken)
    cells = tables.summary(chosen, metric=metric, limited=limited, best_on_test=best_on_test)
    found = statistics.comparisons(
        chosen, ResultsStore(root), metric=metric, limited=limited, best_on_test=best_on_test
    )
    if found:
        name = f"statistics_{_slug('__'.join(where))}" if where else "statistics"
        texts = {
            "md": statistics.to_markdown(found, metric=tables.SCORES[metric]),
            "csv": statistics.to_csv(found),
        }
        for suffix, text in texts.items():
            paths.append(folder / f"{name}.{suffix}")
            write_atomic(paths[-1], partial(_write, text=text))
    place = folder / "figures"
    if where:
        place /= _slug("__".join(where))
    for backbone in sorted(set(chosen["backbone"].dropna())) if formats else ():
        part = chosen[chosen["backbone"] == backbone]
        if not figures.drawable(part, metric=metric, limited=limited):
            notes.append(f"No figure for {backbone}: no method has all data sets yet.")
            continue
        figure = figures.accuracy_against_parameters(part, metric=metric, limited=limited)
        name = "accuracy" if metric == "top1" else metric
        stem = place / f"{name}_vs_parameters_{_slug(backbone)}"
        paths += figures.save(figure, stem, formats)
    if style == "text":
        text = _text(made.text + tables.to_text(cells), paths, notes)
    elif made.text:
        text = made.text.rstrip("\n")
    else:
        text = (tables.to_markdown if style == "markdown" else tables.to_csv)(cells).rstrip("\n")
    return Report(text, tuple(paths), scan.broken)


def _text(table: str, paths: Sequence[Path], notes: Sequence[str]) -> str:
    """The table, what went wrong, and the files."""
    written = "\n".join(["Written:", *(f"  {path}" for path in paths)])
    parts = [table.rstrip("\n"), "\n".join(notes), written]
    return "\n\n".join(part for part in parts if part)


def _write(file: IO[bytes], text: str) -> None:
    file.write(text.encode())


def _slug(text: str) -> str:
    """`text` as a file name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("._") or "all"
