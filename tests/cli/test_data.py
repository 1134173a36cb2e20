"""`peftbench data`: what it says, and how it ends."""

from __future__ import annotations

from pathlib import Path

import yaml
from support.tiny_runs import write_images


def test_a_folder_is_prepared_verified_and_described(cli, work: Path) -> None:
    root = work / "photographs"
    write_images(root, 10)
    done = cli("data", "prepare", "folder", "--root", "photographs")
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        f"folder: 2 classes, train 14, val 2, test 4 in {root}; ready\n"
        "  licence: as its owner states\n"
    )
    done = cli("data", "verify", "folder", "--root", "photographs", "--decode")
    assert (done.status, done.out) == (0, "folder: train 14, val 2, test 4, intact\n")
    card = cli("data", "card", "folder", "--root", "photographs")
    assert card.status == 0
    assert "| **2 classes** | **14** | **2** | **4** |" in card.out
    first = sorted((root / "cat").iterdir())[0]
    first.write_bytes(first.read_bytes()[:50])
    done = cli("data", "verify", "folder", "--root", "photographs")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"peftbench: folder is not intact: {first} (50 bytes) has changed")
    refused = cli("run", "method=linear", "dataset=folder", f"dataset.root={root}")
    assert refused.status == 2
    assert f"the bytes of {first.relative_to(root)} in train have changed" in refused.err


def test_suites_and_patterns_name_data_sets_and_one_failure_keeps_none_from_it(
    cli, work: Path
) -> None:
    done = cli("data", "prepare", "--dry-run", "mini", "fgvc/[cn]*")
    assert done.status == 0
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [
        "mini/clipart12", "mini/digits", "mini/sprites_location", "mini/sprites_orientation",
        "fgvc/cub200", "fgvc/nabirds",
    ]  # fmt: skip
    done = cli("data", "prepare", "fgvc/nabirds", "mini/digits")
    assert done.status == 1
    assert "mini/digits: 10 classes, train 200, val 50, test 1,000; ready\n" in done.out
    assert done.err == (
        "peftbench: fgvc/nabirds has to be fetched by hand:\n"
        "NABirds is given out after a form: https://dl.allaboutbirds.org/nabirds\n"
        "Unpack nabirds.tar.gz into data, which makes data/nabirds.\n"
        "peftbench: 1 of 2 failed: fgvc/nabirds\n"
    )
    assert not (work / "data").exists()
    card = cli("data", "card", "vtab/kitti", "--data-dir", "elsewhere")
    assert (card.status, card.out.count("Not on this machine.")) == (0, 1)


def test_names_that_stand_for_nothing_are_refused(cli, work: Path) -> None:
    done = cli("data", "verify", "vtab/kity")
    assert done.status == 2
    assert (
        "Unknown data set 'vtab/kity'. Did you mean: vtab/kitti, vtab/dtd, vtab/pets?" in done.err
    )
    done = cli("data", "verify", "mini", "--root", "x")
    assert done.status == 2
    assert "--root x is the folder of one data set, and 4 are named." in done.err
    done = cli("data", "verify", "folder")
    assert (done.status, done.err) == (
        1,
        "peftbench: folder lies in no folder. Name one with --root DIR.\n",
    )
    done = cli("data", "prepare", "hf")
    assert done.status == 1
    assert "hf is fetched, kept and checked by its own library when a run reads it" in done.err


def test_a_set_of_folders_below_the_data_dir_is_listed_prepared_and_described(
    cli, work: Path
) -> None:
    write_images(work / "elsewhere" / "garden" / "leaves", 10)
    (work / "conf" / "dataset" / "garden").mkdir(parents=True)
    entry = {"name": "garden/leaves", "reader": "folder", "root": "${data_dir}/garden/leaves"}
    path = work / "conf" / "dataset" / "garden" / "leaves.yaml"
    path.write_text(yaml.safe_dump(entry), encoding="utf-8")
    here = ("--data-dir", "elsewhere")

    def line(*arguments: str) -> str:
        listed = cli("list", "datasets", *arguments).out.splitlines()
        (found,) = (" ".join(row.split()) for row in listed if row.startswith("garden/leaves"))
        return found

    assert line(*here) == "garden/leaves - - 2 14 2 4 yes elsewhere/garden/leaves"
    assert line().endswith("no data/garden/leaves")
    assert "2 classes, train 14, val 2, test 4" in cli("data", "prepare", "garden", *here).out
    assert "| **2 classes** | **14** | **2** | **4** |" in cli("data", "card", "garden", *here).out
    planned = cli("plan", "method=linear", "dataset=garden/leaves", "data_dir=elsewhere")
    assert (planned.status, planned.err) == (0, "")
