"""`peftbench compare`: from a folder of pictures to a model, in as much time as is given."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from peftbench.cli.exit import FAILED, OK
from peftbench.cli.options import add_results
from peftbench.config.choices import check_choices
from peftbench.config.limits import check_number
from peftbench.tasks import CLASSIFICATION
from peftbench.untrusted import printable
from peftbench.waiting import share_cores

if TYPE_CHECKING:
    from peftbench.sweep.compare.choice import BackboneOption, Choice
    from peftbench.sweep.compare.contest import Contest
    from peftbench.sweep.compare.jobs import OwnPictures
    from peftbench.sweep.compare.standing import Leaderboard

METRICS = {m.figure.replace("_", "-"): m.name for m in CLASSIFICATION.scores}
MOST_MINUTES = 60 * 24 * 30
CPU_GMACS_PER_SECOND = 25.0  # of one core, bfloat16 or not: 20 to 40 were seen; for choosing alone
SHARE_OF_FEATURES = 0.3  # of the time that forward passes alone may take
DESCRIPTION = """\
Compare methods on your own pictures, and take one. DIR has a folder for each class, or is a .csv or
.tsv of paths and labels. Learning rates are chosen on val, every picture is tested once over five
folds as far as the time goes, and the same command goes on from what is there.
"""


def add_command(commands: Any) -> None:
    """The parser; `commands` is what `add_subparsers` returned."""
    parser = commands.add_parser(
        "compare",
        help="methods on your own pictures: which to take, and the model",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("place", metavar="DIR", help="the pictures")
    parser.add_argument("--minutes", type=float, default=15, help="that it may take (15)")
    parser.add_argument(
        "--methods", metavar="NAME[,NAME]", help="these, and majority, knn and logistic"
    )
    parser.add_argument("--backbone", metavar="NAME", help="else the best whose weights are here")
    parser.add_argument(
        "--for",
        dest="metric",
        choices=tuple(METRICS),
        default=next(iter(METRICS)),
        help="what counts (%(default)s)",
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the input")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="of the CPU")
    add_results(parser)
    parser.set_defaults(command=compare)


def compare(options: argparse.Namespace) -> int:
    """Look, choose, run, tell; the exit status says whether a method could be recommended."""
    check_number("--minutes", options.minutes, 0, MOST_MINUTES)
    check_choices("method", _asked(options))
    share_cores(os.environ)
    began = time.monotonic()
    from peftbench import data
    from peftbench.sweep.compare import jobs
    from peftbench.sweep.compare.choice import choose, is_here, size_for

    place = jobs.find(options.place)
    for line in data.describe(place.listing):
        _say(line)
    side = data.typical_side(place.listing)
    seconds = 60 * options.minutes
    choice = choose(is_here, side, _affordable(place, options, seconds))
    size = options.image_size
    if options.backbone is not None:
        from dataclasses import replace

        size = size if size is not None else size_for(options.backbone, side)
        choice = replace(choice, backbone=options.backbone, reason="as asked", better="")
    elif size is None:
        size = choice.image_size
    contest = _contest(options, place, choice.backbone, size, seconds - (time.monotonic() - began))
    first = next(iter(contest.agenda.bases.values()))
    from peftbench.backbones.preprocessing import image_size

    _say(f"Backbone {choice.backbone}: {choice.reason}.")
    for line in data.shown(side, image_size(first.backbone)):
        _say(line)
    from peftbench.cli.libraries import load_libraries

    load_libraries()
    now = contest.run()
    if now is None or now.recommended not in {one.method for one in contest.results}:
        _say("No method ended well; see the lines above.")
        return FAILED
    _tell(options, contest, now, choice)
    return OK


def _asked(options: argparse.Namespace) -> list[str]:
    """The methods that are named; none where the choice is left to the command."""
    return [] if options.methods is None else [m.strip() for m in options.methods.split(",")]


def _affordable(
    place: OwnPictures, options: argparse.Namespace, seconds: float
) -> Callable[[BackboneOption], bool]:
    """Whether a backbone's forward passes over all splits fit into a share of the time."""
    pictures = sum(len(part) for _, part in place.listing.splits()) * len(place.splits)
    cores = options.threads or os.cpu_count() or 1

    def fits(candidate: BackboneOption) -> bool:
        if options.device not in ("auto", "cpu"):
            return True
        rate = CPU_GMACS_PER_SECOND * cores
        return pictures * candidate.gmacs / rate <= SHARE_OF_FEATURES * seconds

    return fits


def _contest(
    options: argparse.Namespace, place: OwnPictures, backbone: str, size: int | None, seconds: float
) -> Contest:
    from peftbench.config.limits import check_threads
    from peftbench.results.store import ResultsStore
    from peftbench.run import shown
    from peftbench.run.experiment import RunOptions, check
    from peftbench.sweep.compare import jobs, ladder
    from peftbench.sweep.compare.contest import Agenda, Contest
    from peftbench.training.saving import CheckpointPolicy

    check_threads(options.threads)
    shared = jobs.overrides_of(backbone, size, METRICS[options.metric])
    bases = {
        name: jobs.compose(options.place, [f"method={name}", *shared])
        for name in ladder.in_order(_asked(options) or ladder.LADDER)
    }
    for base in bases.values():
        check(base, options.device, options.threads)
    began = time.monotonic()

    def tell(line: str) -> None:
        spent = int(time.monotonic() - began)
        _say(f"[{spent // 60:3d}:{spent % 60:02d}] {line}")

    run = RunOptions(
        device=options.device,
        threads=options.threads,
        saving=CheckpointPolicy(minutes=1),
        show=shown.here(),
        activations=10 * 10**9,
        timed=False,
    )
    agenda = Agenda(place, bases, METRICS[options.metric], seconds)
    return Contest(agenda, ResultsStore(options.results_dir), run, tell)


def _tell(options: argparse.Namespace, contest: Contest, now: Leaderboard, choice: Choice) -> None:
    """Leaderboard, verdict, advice, model, commands."""
    from peftbench.sweep.compare import story
    from peftbench.sweep.compare.standing import by_class, of_methods

    place = contest.agenda.place
    names, listing = place.listing.class_names, place.listing
    counts = dict.fromkeys(names, 0)
    for _, part in listing.splits():
        for label in part.labels:
            counts[names[label]] += 1
    of_taken = of_methods(contest.results)[now.recommended]
    more = []
    if contest.too_long:
        longer = "; ".join(f"{method} {why}" for method, why in contest.too_long.items())
        more.append(f"Left out for time: {longer}. Use more --minutes.")
    done, wanted = now.row(now.recommended).splits, len(place.splits)
    if done < wanted:
        more.append(f"{done} of {wanted} splits were tested: the same command goes on.")
    for line in [
        "",
        *story.leaderboard(now),
        "",
        *story.explained(now, options.metric),
        *story.further(contest.further, wanted, place.in_folds),
        "",
        *story.verdict(now, of_methods(contest.results), METRICS[options.metric]),
    ]:
        _say(line)
    lines = story.advice(now, choice, by_class(of_taken, names), counts, more)
    if lines:
        _say("")
        _say("What would help most:")
        for line in lines:
            _say(f"  - {line}")
    folder = _exported(options, of_taken[0].run_id, now.recommended)
    _say("")
    _say(f"Model of {now.recommended} (trained on split 1): {folder}")
    _say(f"  peftbench predict {folder} PICTURES")
    _say(f"All runs: peftbench report --results-dir {options.results_dir}")


def _exported(options: argparse.Namespace, run_id: str, method: str) -> str:
    """The folder of the model; one that is there already holds the same run."""
    from pathlib import Path

    from peftbench.run.export import export

    folder = Path(options.results_dir) / "models" / f"{method}-{run_id[:8]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        export(run_id, options.results_dir, folder)
    return str(folder)


def _say(line: str) -> None:
    print(printable(line), flush=True)
