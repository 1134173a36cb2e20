"""`peftbench list`, `export`, `push` and `dashboard`."""

from __future__ import annotations

import argparse
from typing import Any

from peftbench.cli.exit import FAILED, OK
from peftbench.cli.options import add_destination, add_results, add_rows
from peftbench.untrusted import printable, printable_lines


def add_list(commands: Any) -> None:
    """The parser of `list`; `commands` is what `add_subparsers` returned."""
    listing = commands.add_parser("list", help="what there is to choose from, and what has run")
    listing.add_argument(
        "what",
        choices=(
            *("methods", "backbones", "datasets", "protocols", "experiments", "tables", "runs"),
        ),
    )
    listing.add_argument("--status", help="runs of this status only; 'failed' for all failures")
    add_results(listing)
    listing.add_argument("--data-dir", help="datasets: where to look; else PEFTBENCH_DATA, or data")
    listing.add_argument("--long", action="store_true", help="methods: formula, cost and source")
    listing.add_argument("--format", choices=("text", "markdown"), help="of --long")
    listing.set_defaults(command=list_names)


def add_commands(commands: Any) -> None:
    """The parsers of `export`, `push` and `dashboard`."""
    export = commands.add_parser("export", help="the tuned task of a run as a folder to keep")
    export.add_argument("run_id", metavar="RUN_ID", help="or its first digits; see `list runs`")
    export.add_argument(
        "--merged", action="store_true", help="the whole model, as timm builds it, in one file"
    )
    export.add_argument("--out", metavar="DIR", help="a new folder; exports/METHOD-RUN_ID if left")
    export.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="with --merged, the local weights of the run where they lie now",
    )
    add_results(export)
    export.set_defaults(command=export_run)

    push = commands.add_parser("push", help="upload finished runs and their report to W&B")
    add_results(push)
    add_rows(push)
    add_destination(push)
    push.add_argument("--group", help="sweep of these runs; else the one that logged them")
    push.add_argument("--mode", choices=("online", "offline"), default="online")
    push.add_argument("--timeout", type=float, default=60.0, help="seconds for each run")
    push.add_argument("--force", action="store_true", help="send again what has arrived")
    push.set_defaults(command=push_runs)

    dashboard = commands.add_parser("dashboard", help="a W&B workspace that compares methods")
    add_destination(dashboard)
    dashboard.add_argument("--name", default="peftbench")
    dashboard.add_argument("--dry-run", action="store_true", help="print what would be made")
    dashboard.set_defaults(command=open_dashboard)


def list_names(options: argparse.Namespace) -> int:
    from peftbench.cli import listing

    if options.long or options.format:
        text = listing.long_text(options.what, options.long, options.format or "text")
    else:
        text = listing.text(options.what, options.results_dir, options.status, options.data_dir)
    print(printable_lines(text), end="", flush=True)  # here, where a closed pipe is caught
    return OK


def export_run(options: argparse.Namespace) -> int:
    from peftbench.run.export import export, notes_of

    folder = export(
        options.run_id,
        options.results_dir,
        options.out,
        merged=options.merged,
        checkpoint=options.checkpoint,
    )
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(printable(f"{folder}: {names}"), flush=True)
    for note in notes_of(folder):
        print(printable(note), flush=True)
    return OK


def push_runs(options: argparse.Namespace) -> int:
    from peftbench.loggers import LoggerSettings
    from peftbench.loggers.push import push

    settings = LoggerSettings(
        name="wandb",
        project=options.project,
        entity=options.entity,
        group=options.group,
        mode=options.mode,
        timeout=options.timeout,
    )
    done = push(
        options.results_dir, options.where, settings=settings, force=options.force, say=_say
    )
    total = done.sent + done.skipped + done.failed + done.left
    if not total and not done.broken:
        print(f"No such runs in {options.results_dir}. Run: peftbench run method=linear")
        return OK
    parts = [f"{done.sent} pushed", f"{done.skipped} already there"]
    parts += [f"{done.failed} failed"] if done.failed else []
    parts += [f"{done.left} not tried"] if done.left else []
    print(f"{', '.join(parts)}; {done.reports} reports pushed")
    if options.mode == "offline" and done.sent + done.reports:
        print(f"kept in {options.results_dir}/wandb; `wandb sync` uploads them")
    return OK if done.complete else FAILED


def _say(line: str) -> None:
    print(printable(line), flush=True)


def open_dashboard(options: argparse.Namespace) -> int:
    from peftbench.loggers import LoggerSettings, dashboard

    settings = LoggerSettings(name="wandb", project=options.project, entity=options.entity)
    if options.dry_run:
        print(dashboard.describe(settings, options.name), end="")
    else:
        print(dashboard.create(settings, options.name))
    return OK
