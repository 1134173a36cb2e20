"""`peftbench predict`: files, folders and patterns; what cannot be read is named and left out."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from PIL import Image
from support.command_line import Cli
from support.pictures import Finished
from support.tiny_runs import files_below

from peftbench.cli import predict as command
from peftbench.prediction.answer import Prediction
from peftbench.prediction.predictor import Predictor


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def album(work: Path) -> Path:
    """Pictures as people have them, of which one is broken."""
    places = ("a.png", "B.JPG", "deep/er/c.webp", "deep/=1+1.png", ".hidden/d.png", "Thumbs.db")
    for number, place in enumerate(places):
        path = work / "album" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
        Image.new("RGB", (40, 30), (40 * number, 90, 200)).save(path, kind)
    (work / "album" / "notes.txt").write_text("no picture")
    (work / "album" / "deep" / "half.png").write_bytes((work / "album" / "a.png").read_bytes()[:60])
    (work / "album" / "round").symlink_to(work / "album", target_is_directory=True)
    return work / "album"


READ = ["album/B.JPG", "album/a.png", "album/deep/=1+1.png", "album/deep/er/c.webp"]


def asked(finished: Finished, *arguments: str) -> list[str]:
    return [
        "predict", finished.record.run_id[:8], *arguments,
        "--results-dir", str(finished.store.root), "--device", "cpu", "--threads", "1",
    ]  # fmt: skip


def test_a_folder_is_predicted_and_what_is_broken_is_named(
    cli: Cli, finished: Finished, album: Path
) -> None:
    done = cli(*asked(finished, "album", "--top", "2", "--csv", "out/rows.csv"))
    assert done.status == 1
    *lines, last = done.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == READ
    assert last == "out/rows.csv: 4 pictures"
    broken, summary = done.err.splitlines()
    assert broken.startswith("peftbench: Cannot decode image album/deep/half.png: ")
    assert summary == "peftbench: 4 pictures predicted, 1 left out as told above"
    header, *table = rows(Path("out/rows.csv"))
    assert header == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert [row[0] for row in table] == READ
    for line, (_, first, p, second, q) in zip(lines, table, strict=True):
        assert {first, second} < {"blue", "green", "red"} and first != second
        assert 1 > float(p) >= float(q) > 0
        assert line.endswith(f": {first} {100 * float(p):.1f} %, {second} {100 * float(q):.1f} %")
    assert files_below(Path("out")) == ["rows.csv"]


def test_names_that_a_spreadsheet_would_compute_are_text(
    cli: Cli, finished: Finished, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(album / "deep")
    assert cli(*asked(finished, "=1+1.png", "--csv", "rows.csv")).status == 0
    assert rows(Path("rows.csv"))[1][0] == "'=1+1.png"


@pytest.mark.parametrize(
    ("places", "read"),
    [
        (["album/a.png"], ["album/a.png"]),
        (["album/*.png"], ["album/a.png"]),
        (["album/**/*.w*"], ["album/deep/er/c.webp"]),
        (["album/deep/er", "album/a.png", "album/deep/er/c.webp"],
         ["album/deep/er/c.webp", "album/a.png"]),
    ],
)  # fmt: skip
def test_files_folders_and_patterns_name_each_picture_once(
    cli: Cli, finished: Finished, album: Path, places: list[str], read: list[str]
) -> None:
    (album / "round").unlink()
    done = cli(*asked(finished, *places))
    assert (done.status, done.err) == (0, "")
    assert [line.partition(": ")[0] for line in done.out.splitlines()] == read


def test_what_is_named_and_not_there_is_told_and_the_others_predicted(
    cli: Cli, finished: Finished, album: Path
) -> None:
    (album / "empty").mkdir()
    os.mkfifo(album / "pipe.png")
    done = cli(*asked(finished, "gone.png", "x*.png", "album/empty", "album/pipe.png",
                      "album/notes.txt", "album/a.png"))  # fmt: skip
    assert done.status == 1
    assert [line.partition(": ")[0] for line in done.out.splitlines()] == ["album/a.png"]
    told = done.err.splitlines()
    assert told[:3] == [
        "peftbench: gone.png does not exist. Check the path.",
        "peftbench: x*.png matches no picture. Check the pattern.",
        "peftbench: album/empty has no picture in it. Check the folder.",
    ]
    assert "album/pipe.png" in told[3] and "named pipe" in told[3]
    assert "album/notes.txt" in told[4] and "it is none of" in told[4]
    assert told[5:] == ["peftbench: 1 picture predicted, 5 left out as told above"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "gone.png"], "There is no picture to predict: gone.png does not exist."),
        (["{run}", "album/notes*"], "There is no picture to predict: album/notes* matches no"),
        (["{run}", "empty"], "There is no picture to predict: empty has no picture in it."),
        (["zzzz", "album"], "Unknown run 'zzzz'. Known: "),
        (["album", "album"], "album/card.json does not exist. Give a folder that `peftbench exp"),
        (["no/where", "album"], "no/where/card.json does not exist. Give a folder that"),
        (["{run}", "album", "--top", "0"], "top=0 is no number of classes. Use 1 or more."),
        (["{run}", "album", "--csv", "taken.csv"], "taken.csv exists already. Remove it or choos"),
        (["{run}", "album", "--csv", "empty"], "empty is a folder. Name a file, such as --csv em"),
        (["{run}", "album", "--csv", "taken.csv/x"], "taken.csv/x cannot be written: "),
        (["{run}", "album", "--device", "tpu9"], "device='tpu9' is no device. Use auto, cpu, cuda"),
        (["{run}", "album", "--threads", "0"], "threads=0; use 1 or more, or null."),
        (["{run}", "album", "--checkpoint", "no.pth"], "checkpoint=no.pth does not exist. Give"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line_and_writes_nothing(
    cli: Cli, finished: Finished, album: Path, arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    Path("taken.csv").write_text("mine")
    before = files_below(Path())
    filled = [argument.format(run=finished.record.run_id) for argument in arguments]
    done = cli("predict", *filled, "--results-dir", str(finished.store.root))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"peftbench: {message}") and done.err.count("\n") == 1
    assert files_below(Path()) == before and Path("taken.csv").read_text() == "mine"


def test_without_a_readable_picture_there_is_no_table(
    cli: Cli, finished: Finished, album: Path
) -> None:
    done = cli(*asked(finished, "album/deep/half.png", "--csv", "rows.csv"))
    assert (done.status, done.out) == (1, "")
    assert done.err.endswith("peftbench: 0 pictures predicted, 1 left out as told above\n")
    assert not Path("rows.csv").exists()


def test_an_interrupted_prediction_leaves_no_table(
    cli: Cli, finished: Finished, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(predictor: Predictor, pictures: object, top: int) -> object:
        yield Prediction("red", 1.0, (("red", 1.0),))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_predictor", lambda options: finished_predictor)
    finished_predictor = type("Fake", (), {"stream": stream, "classes": ("red",)})()
    done = cli(*asked(finished, "album", "--csv", "rows.csv"))
    assert done.status == 130 and done.out == "album/B.JPG: red 100.0 %\n"
    assert not list(Path().glob("*rows.csv*"))
