"""`peftbench predict`: what the model of a run, or of an exported folder, says of pictures."""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from peftbench.cli.exit import FAILED, OK
from peftbench.cli.options import add_results
from peftbench.errors import ConfigError, DataError, WeightsError
from peftbench.untrusted import guarded, printable
from peftbench.waiting import share_cores

if TYPE_CHECKING:
    from peftbench.prediction.answer import Prediction
    from peftbench.prediction.predictor import Predictor


def add_commands(commands: Any) -> None:
    """The parser of `predict`; `commands` is what `add_subparsers` returned."""
    parser = commands.add_parser(
        "predict",
        help="classes of pictures, by the model of a run or an export",
        description="Say the likeliest classes of pictures, by a tuned model.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a folder of `export`, or the first digits of a run id"
    )
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="a picture, a folder of pictures, or a pattern"
    )
    parser.add_argument("--top", type=int, default=5, help="classes to name of each picture (5)")
    parser.add_argument("--csv", metavar="FILE", help="write a row for each picture, too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="the local weights of the run where they lie now"
    )
    add_results(parser)
    parser.set_defaults(command=predict)


def predict(options: argparse.Namespace) -> int:
    """Refuse what makes no sense before a model is loaded; then predict whatever can be read."""
    from peftbench.config.limits import check_threads
    from peftbench.data import given
    from peftbench.prediction.answer import check_top

    check_top(options.top)
    check_threads(options.threads)
    table = None if options.csv is None else _new_file(Path(options.csv))
    named = given.pictures(options.paths)
    if not named.pictures:
        raise ConfigError(f"There is no picture to predict: {named.problems[0]}")
    _check_model(options)
    predictor = _predictor(options)
    for problem in named.problems:
        _tell(str(problem))
    with tempfile.TemporaryFile() as rows:
        done, broken = _all(predictor, named.pictures, options.top, rows)
        if table is not None and done:
            _write(table, rows, min(options.top, len(predictor.classes)))
    failures = broken + len(named.problems)
    if table is not None and done:
        print(printable(f"{table}: {_count(done)}"), flush=True)
    if failures:
        _tell(f"{_count(done)} predicted, {failures:,} left out as told above")
    return FAILED if failures else OK


def _new_file(path: Path) -> Path:
    """Where a table will be; `ConfigError` if something is there, or nothing can be written."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Name a file, such as --csv {path / 'rows.csv'}.")
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists already. Remove it or choose another --csv.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be written: {there} takes no file. Choose another --csv.")
    return path


def _is_folder(model: str) -> bool:
    """Whether `MODEL` is the path of a folder, and not the beginning of a run id."""
    path = Path(model).expanduser()
    return len(path.parts) > 1 or path.exists()


def _check_model(options: argparse.Namespace) -> None:
    """Refuse a model that is not there before the libraries are loaded, which takes seconds."""
    from peftbench.results.finished import find
    from peftbench.results.store import ResultsStore

    if not _is_folder(options.model):
        find(ResultsStore(options.results_dir), options.model)
    elif not (card := Path(options.model).expanduser() / "card.json").is_file():
        raise WeightsError(
            f"{card} does not exist. Give a folder that `peftbench export` wrote, or the first "
            "digits of a run id."
        )


def _predictor(options: argparse.Namespace) -> Predictor:
    """The model that was asked for, on its device."""
    share_cores(os.environ)
    import torch

    from peftbench import api
    from peftbench.training.device import choose_device

    device = choose_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if _is_folder(options.model):
        model = api.load(Path(options.model).expanduser(), options.checkpoint)
    else:
        model = api.load(options.model, options.checkpoint, results_dir=options.results_dir)
    predictor: Predictor = model.to(device).predictor
    return predictor


def _all(
    predictor: Predictor, pictures: Sequence[Path], top: int, rows: IO[bytes]
) -> tuple[int, int]:
    """Predict pictures and print what is said; counts of those that could be read, and not.

    Args:
        rows: takes a line of CSV for each that could.
    """
    from tqdm import tqdm

    from peftbench.data.files import readable

    done = 0
    answers = predictor.stream(pictures, top)
    with tqdm(total=len(pictures), unit="picture", disable=None) as bar:
        for path, answer in zip(pictures, answers, strict=True):
            name = readable(str(path))
            if isinstance(answer, DataError):
                with bar.external_write_mode(file=sys.stderr):
                    _tell(str(answer))
            else:
                with bar.external_write_mode(file=sys.stdout):
                    print(printable(f"{name}: {_told(answer)}"), flush=True)
                rows.write(_row([name, *(cell for pair in answer.top for cell in pair)]))
                done += 1
            bar.update()
    return done, len(pictures) - done


def _told(answer: Prediction) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in answer.top)


def _row(cells: Sequence[str | float]) -> bytes:
    """A line of CSV in which no spreadsheet finds a formula; numbers have nine digits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        [f"{cell:.9g}" if isinstance(cell, float) else guarded(cell) for cell in cells]
    )
    return text.getvalue().encode("utf-8", "backslashreplace")


def _write(path: Path, rows: IO[bytes], ranks: int) -> None:
    """The table, whole or not at all."""
    from peftbench.results.atomic import write_atomic

    header = ["file"]
    for rank in range(1, ranks + 1):
        header += [f"class_{rank}", f"probability_{rank}"]
    rows.seek(0)

    def write(file: IO[bytes]) -> None:
        file.write(_row(header))
        shutil.copyfileobj(rows, file)

    write_atomic(path, write)


def _count(number: int) -> str:
    return f"{number:,} picture{'' if number == 1 else 's'}"


def _tell(line: str) -> None:
    print(f"peftbench: {printable(line)}", file=sys.stderr, flush=True)
