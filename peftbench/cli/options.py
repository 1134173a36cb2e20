"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_results(parser: argparse.ArgumentParser) -> None:
    """Where records are."""
    parser.add_argument("--results-dir", default="results")


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Which rows count."""
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE[,VALUE]",
        help="rows with these values only; may be given several times",
    )


def add_metric(parser: argparse.ArgumentParser) -> None:
    """By which metric."""
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="of all runs: top1, mean_per_class, f1_macro, auroc; each by the one that it declares "
        "(selection.metric) unless given",
    )


def add_dirty(parser: argparse.ArgumentParser) -> None:
    """Whether runs of changed code count."""
    parser.add_argument(
        "--dirty", action="store_true", help="also runs whose code differed from its commit"
    )


def add_destination(parser: argparse.ArgumentParser) -> None:
    """Where to upload to."""
    parser.add_argument("--project", default="peftbench")
    parser.add_argument("--entity", help="user or team; else the default of the account")
