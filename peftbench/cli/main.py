"""The command line: compose, build a run, hand it over, choose an exit status."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from peftbench import stopping
from peftbench._version import __version__
from peftbench.cli import anatomy, bundles, compare, data, predict, report, runs
from peftbench.cli.exit import FAILED, OK, USAGE
from peftbench.cli.profile import profile
from peftbench.cli.run import plan, run
from peftbench.errors import DiskFull, PeftbenchError
from peftbench.results.disk import explained, full_number
from peftbench.results.guard import Busy
from peftbench.untrusted import printable


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `peftbench` and `python -m peftbench`; always exits."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    stopping.listen()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that it cannot encode ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _dispatch(arguments)
    except (Busy, DiskFull) as e:
        _tell(str(e))
        status = FAILED
    except PeftbenchError as e:
        _tell(str(e))
        status = USAGE
    except KeyboardInterrupt:
        _tell("interrupted; the same command continues")
        status = stopping.exit_status()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `peftbench ... | head`
        status = OK
    except Exception as e:
        if full_number(e) is None:
            raise
        _tell(str(explained(e)))
        status = FAILED
    sys.exit(status)


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be a file on the disk that is full
        print(f"peftbench: {printable(line)}", file=sys.stderr, flush=True)


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if "=" in first or first in ("-m", "--multirun"):
        return run(arguments)
    if first == "run":
        return run(arguments[1:])
    if first == "plan":
        return plan(arguments[1:])
    if first == "profile":
        return profile(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments or ["--help"])
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peftbench",
        description="Compare every way of tuning a pretrained vision backbone.",
    )
    parser.add_argument("--version", action="version", version=f"peftbench {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # listed here for --help; they hand their arguments to Hydra before this parser sees them
    commands.add_parser("run", help="one run, or with -m a sweep", add_help=False)
    commands.add_parser("plan", help="what a sweep would do, without doing it", add_help=False)
    commands.add_parser("profile", help="what methods cost, without training", add_help=False)

    compare.add_command(commands)
    data.add_commands(commands)
    runs.add_list(commands)
    anatomy.add_command(commands)
    report.add_commands(commands)
    predict.add_commands(commands)
    runs.add_commands(commands)
    bundles.add_commands(commands)
    return parser
