"""The commands that make data sets ready, check them, and describe them."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import ConfigError, PeftbenchError
from peftbench.registry import unknown_name
from peftbench.spec import DatasetSpec
from peftbench.untrusted import printable_lines

if TYPE_CHECKING:
    from peftbench.data.prepare import Ready

PREPARE = """\
Fetch a data set from its original source where a program may, unpack it, convert it to a layout
that is read, decode every image once and write a manifest. What is on the disk already is only
checked and listed. An interrupted command goes on where it stopped.

  peftbench data prepare vtab/dtd fgvc/cub200
  peftbench data prepare vtab/clevr_count --raw /data/CLEVR_v1.0
  peftbench data prepare 'vtab/*' --source vtab1k_dump
  peftbench data prepare folder --root photographs
"""


def add_commands(commands: Any) -> None:
    """Add `data` with `prepare`, `verify` and `card`."""
    parser = commands.add_parser("data", help="make data sets ready, check them, describe them")
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    prepare = actions.add_parser(
        "prepare",
        help="fetch, unpack, convert, check and list",
        description=PREPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 all are ready, 1 some are not, 2 bad command line",
    )
    _add_names(prepare)
    prepare.add_argument("--source", metavar="SOURCE", help="another source than the preferred one")
    prepare.add_argument(
        "--raw",
        metavar="DIR",
        type=Path,
        help="original archives, unpacked, or a directory of TFDS",
    )
    prepare.add_argument("--no-decode", action="store_true", help="do not look at each image")
    prepare.add_argument("--dry-run", action="store_true", help="say what would be done")
    prepare.set_defaults(command=_prepare)

    verify = actions.add_parser(
        "verify",
        help="hold every file against the manifest",
        epilog="exit status: 0 all are intact, 1 some are not, 2 bad command line",
    )
    _add_names(verify)
    verify.add_argument("--decode", action="store_true", help="look at each image as well")
    verify.set_defaults(command=_verify)

    card = actions.add_parser("card", help="what is in a data set, as Markdown")
    _add_names(card)
    card.set_defaults(command=_card)


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="vtab/dtd, 'vtab/*', fgvc, ...")
    parser.add_argument("--data-dir", metavar="DIR", help="else PEFTBENCH_DATA, or data")
    parser.add_argument("--root", metavar="DIR", help="folder of the one data set that is named")


def chosen(names: Sequence[str], data_dir: str, root: str | None) -> list[DatasetSpec]:
    """The data sets that names, patterns ("vtab/*") and suites ("vtab") stand for, in order.

    Raises:
        UnknownName: a name stands for nothing.
        ConfigError: `root` is given for more than one.
    """
    from peftbench.config.build import dataset_specs

    known = dataset_specs(data_dir)
    specs: dict[str, DatasetSpec] = {}
    for name in names:
        matches = [
            spec
            for other, spec in known.items()
            if other == name or other.startswith(f"{name}/") or fnmatch.fnmatchcase(other, name)
        ]
        if not matches:
            raise unknown_name("data set", name, tuple(known))
        specs |= {spec.name: spec for spec in matches}
    if root is None:
        return list(specs.values())
    if len(specs) > 1:
        raise ConfigError(
            f"--root {root} is the folder of one data set, and {len(specs)} are named."
        )
    return [dataclasses.replace(spec, root=root) for spec in specs.values()]


def _each(options: argparse.Namespace, act: Callable[[DatasetSpec, Path], str]) -> int:
    """`act` on each data set; those that fail are told and do not keep the others from it."""
    data_dir = options.data_dir or os.environ.get("PEFTBENCH_DATA") or "data"
    failed = []
    specs = chosen(options.names, data_dir, options.root)
    for spec in specs:
        try:
            print(printable_lines(act(spec, Path(data_dir).expanduser())), flush=True)
        except PeftbenchError as error:
            failed.append(spec.name)
            print(f"peftbench: {printable_lines(str(error))}", file=sys.stderr, flush=True)
    if failed and len(specs) > 1:
        print(
            f"peftbench: {len(failed)} of {len(specs)} failed: {', '.join(failed)}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _prepare(options: argparse.Namespace) -> int:
    from peftbench.config.build import sources
    from peftbench.data import prepare

    def act(spec: DatasetSpec, data_dir: Path) -> str:
        if options.dry_run:
            return prepare.plan(spec, data_dir, sources(), options.source)
        ready = prepare.prepare(
            spec,
            data_dir,
            sources(),
            source=options.source,
            raw=options.raw,
            decode=not options.no_decode,
        )
        return "\n".join(_told(ready))

    return _each(options, act)


def _told(ready: Ready) -> list[str]:
    lines = []
    for prepared in ready.manifests:
        sizes = ", ".join(
            f"{split} {count:,}" for split, count in prepared.sizes().items() if count
        )
        where = f" in {ready.home}" if ready.home else ""
        name = prepared.suite if len(ready.manifests) > 1 else ready.name
        lines.append(f"{name}: {len(prepared.class_names)} classes, {sizes}{where}; ready")
    first = ready.manifests[0]
    remarks = [*ready.remarks, *first.notes, f"licence: {first.licence}"]
    return [*lines, *(f"  {remark}" for remark in dict.fromkeys(remarks))]


def _verify(options: argparse.Namespace) -> int:
    from peftbench.data import prepare

    return _each(options, lambda spec, data_dir: prepare.verify(spec, options.decode))


def _card(options: argparse.Namespace) -> int:
    from peftbench.data.prepare import described

    return _each(options, lambda spec, data_dir: described(spec))
