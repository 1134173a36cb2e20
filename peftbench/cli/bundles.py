"""The commands that move runs between results folders: `export-results` and `import-results`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from peftbench.cli.exit import FAILED, OK
from peftbench.cli.options import add_results, add_rows
from peftbench.errors import ConfigError
from peftbench.untrusted import printable


def add_commands(commands: Any) -> None:
    """Their parsers; `commands` is what `add_subparsers` returned."""
    export = commands.add_parser(
        "export-results",
        help="runs as one file to share: rows, configurations, cards",
        description="Write runs as one zip file: rows, records with their configurations, cards.",
    )
    add_results(export)
    add_rows(export)
    export.add_argument("--out", metavar="FILE", help="peftbench-results-DIGEST.zip unless given")
    export.add_argument(
        "--predictions", action="store_true", help="predictions of each test image as well"
    )
    export.add_argument(
        "--names", action="store_true", help="with --predictions, the names of the files too"
    )
    export.set_defaults(command=_export_results)

    imports = commands.add_parser(
        "import-results",
        help="take in the runs of such a file, after checking them",
        description="Take the runs of a bundle into a results folder: all of them or, where "
        "anything does not fit, none.",
    )
    imports.add_argument("bundle", metavar="FILE")
    add_results(imports)
    imports.add_argument(
        "--keep", action="store_true", help="where a run has another result here, keep that one"
    )
    imports.add_argument("--dry-run", action="store_true", help="check and say; write nothing")
    imports.set_defaults(command=_import_results)


def _export_results(options: argparse.Namespace) -> int:
    from peftbench.results.bundles.outgoing import export_results

    if options.names and not options.predictions:
        raise ConfigError("--names is about predictions of single images. Add --predictions.")
    exported = export_results(
        options.results_dir,
        options.out,
        options.where,
        predictions=options.predictions,
        names=options.names,
    )
    print(
        printable(f"{exported.path}: {_runs(exported.runs)}, digest {exported.digest}"), flush=True
    )
    for error in exported.broken:
        print(f"peftbench: {printable(str(error))}", file=sys.stderr)
    return FAILED if exported.broken else OK


def _import_results(options: argparse.Namespace) -> int:
    from peftbench.results.bundles.incoming import import_results

    done = import_results(
        options.bundle, options.results_dir, keep=options.keep, dry_run=options.dry_run
    )
    verb = "would be added" if options.dry_run else "added"
    parts = [f"{_runs(len(done.added))} {verb} to {options.results_dir}"]
    parts += [f"{len(done.present)} already there"] if done.present else []
    parts += [f"{len(done.kept)} kept as they are here"] if done.kept else []
    print(printable(f"{', '.join(parts)}; digest {done.digest}"), flush=True)
    return OK


def _runs(number: int) -> str:
    return f"{number} {'run' if number == 1 else 'runs'}"
