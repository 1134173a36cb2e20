"""`peftbench report`, `advise` and `reproduce`."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from peftbench.cli.exit import FAILED, NOTHING, OK
from peftbench.cli.options import add_dirty, add_metric, add_results, add_rows
from peftbench.errors import ConfigError
from peftbench.untrusted import printable, printable_lines


def add_commands(commands: Any) -> None:
    """Their parsers; `commands` is what `add_subparsers` returned."""
    _add_report(commands)
    _add_advise(commands)
    _add_reproduce(commands)


def _add_report(commands: Any) -> None:
    """Tables, figures and page."""
    report = commands.add_parser("report", help="tables, figures and a page from the recorded runs")
    add_results(report)
    add_rows(report)
    report.add_argument(
        "experiment",
        nargs="?",
        metavar="EXPERIMENT",
        help="write the tables of its paper as well, as .md, .tex, .csv and .html",
    )
    report.add_argument(
        "--published", action="store_true", help="what the paper prints, below each row"
    )
    report.add_argument(
        "--published-only",
        action="store_true",
        help="the tables of EXPERIMENT from published numbers alone; nothing in them is measured",
    )
    report.add_argument(
        "--incomplete",
        action="store_true",
        help="averages of paper tables over rows with holes, marked",
    )
    report.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    report.add_argument(
        "--best-on-test",
        action="store_true",
        help="rows of their own for runs that selected the epoch on test, as some papers did",
    )
    report.add_argument(
        "--limited",
        action="store_true",
        help="also runs on a part of the images (dataset.limit), in rows of their own",
    )
    report.add_argument("--no-figures", action="store_true")
    report.add_argument(
        "--no-pictures",
        action="store_true",
        help="a page to be shared: without small pictures of your images and names of their files",
    )
    report.add_argument(
        "--only",
        choices=("tables", "figures", "page"),
        action="append",
        help="one part; may be given several times; all three unless given",
    )
    report.set_defaults(command=make_report)
    add_metric(report)
    add_dirty(report)


def _add_advise(commands: Any) -> None:
    """Methods under a budget."""
    advise = commands.add_parser("advise", help="methods to take under a budget, from the records")
    advise.add_argument("--max-params", metavar="N", help="tuned parameters, as 1M or 300k")
    advise.add_argument("--max-latency", metavar="TIME", help="of one image, as 5ms")
    advise.add_argument("--max-memory", metavar="SIZE", help="peak of training, as 8GB or 8GiB")
    for name in ("dataset", "backbone"):
        advise.add_argument(
            f"--{name}", action="append", default=[], metavar="NAME[,NAME]", help="these only"
        )
    advise.add_argument("--results-dir", default="results", help="or a table.csv or table.parquet")
    advise.set_defaults(command=give_advice)
    add_metric(advise)
    add_dirty(advise)


def _add_reproduce(commands: Any) -> None:
    """Measured beside published."""
    reproduce = commands.add_parser(
        "reproduce",
        help="measured - published, cell by cell",
        description="Compare what was measured with what a paper prints, cell by cell.",
        epilog="exit status: 0 every cell under the protocol of the paper is within its tolerance, "
        "1 one is not, 2 bad command line, 3 nothing could be judged",
    )
    reproduce.add_argument("table", metavar="TABLE", help="see `peftbench list tables`")
    add_results(reproduce)
    add_rows(reproduce)
    reproduce.set_defaults(command=reproduce_table)
    add_dirty(reproduce)


def make_report(options: argparse.Namespace) -> int:
    from peftbench import report

    if options.published_only:
        return _report_published(options)
    if options.experiment is None and (options.published or options.incomplete):
        raise ConfigError(
            "--published and --incomplete are for the tables of a paper. Name their experiment: "
            "peftbench report EXPERIMENT. See `peftbench list tables`."
        )
    formats = () if options.no_figures else ("png", "pdf", "svg")
    built = report.build(
        options.results_dir,
        where=options.where,
        metric=options.metric,
        best_on_test=options.best_on_test,
        limited=options.limited,
        dirty=options.dirty,
        formats=formats,
        pictures=not options.no_pictures,
        style=options.format,
        experiment=options.experiment,
        published=options.published,
        incomplete=options.incomplete,
        parts=report.PARTS if options.only is None else options.only,
    )
    print(printable_lines(built.text))
    for error in built.broken if options.format != "text" else ():
        print(f"peftbench: {printable(str(error))}", file=sys.stderr)
    return FAILED if built.broken else OK


def give_advice(options: argparse.Namespace) -> int:
    from pathlib import Path

    from peftbench.cli import units
    from peftbench.report import advice
    from peftbench.report.again import measured_again
    from peftbench.report.scores import check_metric
    from peftbench.results.frame import committed, load
    from peftbench.results.store import ResultsStore

    check_metric(options.metric)

    budget = advice.Budget(
        params=None if options.max_params is None else units.count(options.max_params),
        latency_ms=None if options.max_latency is None else units.milliseconds(options.max_latency),
        memory_bytes=None if options.max_memory is None else units.byte_count(options.max_memory),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs, left_out = load(options.results_dir), list[str]()
    for warning in caught:
        print(f"peftbench: {printable(str(warning.message))}", file=sys.stderr)
    if not options.dirty:
        runs, left_out = committed(runs)
    folder = Path(options.results_dir)
    if options.metric is not None and folder.is_dir():
        runs = measured_again(runs, ResultsStore(folder), [options.metric])
    advised = advice.advise(
        runs,
        budget,
        datasets=options.dataset,
        backbones=options.backbone,
        metric=options.metric,
        store=ResultsStore(folder) if folder.is_dir() else None,
    )
    print(printable_lines(advice.to_text(advised, budget)), end="", flush=True)
    for line in left_out:
        print(f"Left out: {line}.", flush=True)
    return OK if any(one.chosen for one in advised) else FAILED


def _report_published(options: argparse.Namespace) -> int:
    from pathlib import Path

    from peftbench.report import papers

    if options.experiment is None:
        raise ConfigError(
            "--published-only is for the tables of a paper. Name their experiment: "
            "peftbench report EXPERIMENT --published-only. See `peftbench list tables`."
        )
    style = "csv" if options.format == "csv" else "md"
    built = papers.build_published(options.experiment, Path(options.results_dir), style=style)
    print(built.text, end="")
    if options.format == "text":
        print("\n".join(["", "Written:", *(f"  {path}" for path in built.paths)]))
    return OK


def reproduce_table(options: argparse.Namespace) -> int:
    from peftbench.report.papers.reproduce import reproduce

    outcome = reproduce(options.table, options.results_dir, options.where, dirty=options.dirty)
    print(printable_lines(outcome.text), end="")
    for error in outcome.broken:
        print(f"peftbench: {printable(str(error))}", file=sys.stderr)
    if outcome.missed or outcome.broken:
        return FAILED
    return OK if outcome.judged else NOTHING
