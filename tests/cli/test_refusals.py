"""A command that cannot be carried out is refused in one line and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_runs import QUICK, files_below

LEGACY = (
    "peftbench: Backbone 'vit_base_patch16_224_in21k' is a legacy name that does not say which "
    "weights it means. Use one of: vit_base_patch16_224."
)

# arguments after `peftbench run`, and the beginning of what is said
REFUSED = {
    "method": (
        ["method=loar"],
        "peftbench: Unknown method 'loar'. Did you mean: lora, glora, linear?",
    ),
    "method in a list": (
        ["-m", "method=linear,loar"],
        "peftbench: Unknown method 'loar'. Did you mean: lora, glora, linear?",
    ),
    "method by number": (["method=1"], "peftbench: Unknown method '1'. Known: adapter, "),
    "backbone": (
        ["backbone=vit_b17"],
        "peftbench: Unknown backbone 'vit_b17'. Did you mean: vit_b16, ",
    ),
    "dataset": (
        ["dataset=mini/digit"],
        "peftbench: Unknown dataset 'mini/digit'. Did you mean: mini/digits, mini/clipart12? ",
    ),
    "recipe": (["recipe=shrt"], "peftbench: Unknown recipe 'shrt'. Did you mean: short? Known: "),
    "experiment": (
        ["-m", "experiments=demoo"],
        "peftbench: Unknown experiments 'demoo'. Did you mean: demo? Known: ",
    ),
    "backbone as its page writes it": (
        ["backbone.name=timm/vit_tiny_patch16_224.augreg_in21k", "dataset=mini/digits"],
        "peftbench: Unknown backbone 'timm/vit_tiny_patch16_224.augreg_in21k'. Names are written "
        "without what stands in front: backbone.name=vit_tiny_patch16_224.augreg_in21k.",
    ),
    "key to search over": (
        ["tuner=grid", "tuner.space.method.rank=[2,4]", "method=lora"],
        "peftbench: Unknown key in tuner.space: 'method'. Known: recipe. To search over another "
        "key, put + in front: +tuner.space.method.",
    ),
    "key": (["sede=1"], "peftbench: Unknown key 'sede'. Did you mean: seed, seeds? Known: "),
    "key of a method": (
        ["method=lora", "method.rnk=4"],
        "peftbench: Unknown key in method: 'rnk'. Did you mean: rank? "
        "Known: alpha, blocks, dropout, rank, targets.",
    ),
    "added key": (
        ["+sede=1", *QUICK],
        "peftbench: Unknown key 'sede'. Did you mean: seed, seeds? ",
    ),
    "added key of a method": (["method=lora", "+method.rnk=4"], "peftbench: "),
    "type": (
        ["seed=one"],
        "peftbench: seed: Value 'one' of type 'str' could not be converted to Integer.",
    ),
    "type in a method": (
        ["method=lora", "method.rank=four"],
        "peftbench: method.rank: Value 'four' of type 'str' could not be converted to Integer.",
    ),
    "rank": (["method=lora", "method.rank=0"], "peftbench: method=lora: rank=0; use 1 or more."),
    "legacy tag": (["backbone.name=vit_base_patch16_224_in21k"], LEGACY),
    "bare name": (
        ["backbone.name=vit_base_patch16_224"],
        "peftbench: Backbone 'vit_base_patch16_224' lacks its pretrained tag, and different tags "
        "are different weights. Use one of: vit_base_patch16_224.",
    ),
    "architecture": (
        ["backbone.name=resnet5o"],
        "peftbench: Unknown backbone 'resnet5o'. Did you mean: resnet",
    ),
    "absent checkpoint": (
        ["backbone.checkpoint=absent.safetensors"],
        "peftbench: backbone.checkpoint=absent.safetensors does not exist. Give the path of a "
        ".safetensors, .npz or .pth file.",
    ),
    "word": (
        ["lora"],
        "peftbench: 'lora' is no override. Write KEY=VALUE, for example method=lora. "
        "See `peftbench run --help`.",
    ),
    "malformed": (["method=["], "peftbench: 'method=[' is no valid override: "),
    "list without -m": (["seed=0,1"], "peftbench: "),
    "optimiser": (
        ["recipe.optimizer=adamww"],
        "peftbench: Unknown recipe.optimizer 'adamww'. Did you mean: adamw",
    ),
    "schedule": (
        ["recipe.schedule=wave"],
        "peftbench: Unknown recipe.schedule 'wave'. Known: constant, cosine.",
    ),
    "epochs": (["recipe.epochs=0"], "peftbench: recipe.epochs=0; use 1 or more."),
    "rate": (["recipe.lr=nan"], "peftbench: "),
    "root": (
        ["dataset=folder"],
        "peftbench: Data set 'folder' needs a folder. Set dataset.root to ",
    ),
    "absent root": (["dataset=folder", "dataset.root=nowhere"], "peftbench: The data set root "),
    "root with odd letters": (
        ["dataset=folder", "dataset.root=no where (1)=x's"],
        "peftbench: The data set root ",
    ),
    "no name": (["dataset.name=''"], "peftbench: dataset.name='' is what tables would call it."),
    "blank name": (["dataset.name=' '"], "peftbench: dataset.name=' ' is what tables would call"),
    "text that is none": (
        ["logger.project=a=b"],
        "peftbench: 'logger.project=a=b' is no valid override: its value does not parse. Quotes "
        "make it a text: ",
    ),
    "hub": (["dataset=hf"], "peftbench: Data set 'hf' needs dataset.hub=ORG/NAME, a set of "),
    "absent hub": (
        ["dataset=hf", "dataset.hub=org/name"],
        "peftbench: dataset.hub=org/name is not in the local cache and HF_HUB_OFFLINE is set. ",
    ),
    "phase": (
        ["phase=fianl"],
        "peftbench: Unknown phase 'fianl'. Did you mean: final? Known: final, tune.",
    ),
    "precision": (["precision=half"], "peftbench: Unknown precision 'half'."),
    "gpu": (
        ["device=cuda"],
        "peftbench: device='cuda' was asked for, but CUDA is not available. Use cpu.",
    ),
    "device": (
        ["device=tpu0"],
        "peftbench: device='tpu0' is no device. Use auto, cpu, cuda or cuda:N.",
    ),
    "threads": (["threads=0"], "peftbench: "),
    "preprocessing": (
        ["preprocessing.normalisation=xyz"],
        "peftbench: Unknown preprocessing.normalisation 'xyz'. "
        "Known: checkpoint, imagenet, inception, none.",
    ),
    "resize": (
        ["preprocessing.resize=x"],
        "peftbench: Unknown preprocessing.resize 'x'. Known: crop, squash.",
    ),
    "interpolation": (
        ["preprocessing.interpolation=cubic"],
        "peftbench: Unknown preprocessing.interpolation 'cubic'. Did you mean: bicubic? ",
    ),
    "limit": (["dataset.limit=0"], "peftbench: dataset.limit=0 keeps no image."),
    "image size": (["backbone.image_size=0"], "peftbench: backbone.image_size=0 is not a positive"),
    "launcher": (
        ["-m", "hydra.launcher.jobz=2"],
        "peftbench: Unknown key in hydra.launcher: 'jobz'. Did you mean: jobs? ",
    ),
    "pickle of a configuration": (
        ["--experimental-rerun=config.pickle"],
        "peftbench: --experimental-rerun would read a pickle, which can run code. Give the ",
    ),
    "config dir": (["--config-dir", "nowhere"], "peftbench: Additional config directory "),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_command_is_refused_in_one_line_and_leaves_nothing(
    cli, work: Path, arguments: list[str], message: str
) -> None:
    done = cli("run", *arguments)
    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith(message)
    assert len(done.err.splitlines()) == 1
    assert "Traceback" not in done.err
    assert files_below(work) == []


SWEEPS = {
    "plan": ["method=loar", "recipe.optimizer=adamww", "recipe.lr=nan"],
    "run -m": [
        "seed=one",
        "method=partial method.num_blocks=0,1",
        "phase=fianl",
        "recipe.optimizer=adamww",
        "backbone.name=vit_base_patch16_224",
        "recipe.lr=nan",
        "device=cuda",
    ],
}


@pytest.mark.parametrize(
    ("command", "arguments"), [(c, a) for c, choices in SWEEPS.items() for a in choices]
)
def test_a_bad_sweep_is_refused_before_anything_starts(
    cli, work: Path, command: str, arguments: str
) -> None:
    done = cli(*command.split(), *arguments.split())
    assert done.status == 2
    assert done.err.startswith("peftbench: ")
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert files_below(work) == []


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_a_file_in_place_of_the_results_folder_is_named(cli, work: Path, sweep: list[str]) -> None:
    (work / "taken").write_text("mine")
    done = cli("run", *sweep, "results_dir=taken")
    assert done.status == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("peftbench: ")
    assert "taken" in done.err
    assert (work / "taken").read_text() == "mine"
    assert files_below(work) == ["taken"]


def test_weights_that_cannot_be_read_are_named(cli, work: Path) -> None:
    (work / "weights.pth").write_bytes(b"not weights")
    done = cli("run", "backbone.checkpoint=weights.pth", "dataset.limit=4")
    assert done.status == 1  # what is in a file is seen when the run opens it, so this is a record
    assert done.out == ""
    first, second = done.err.splitlines()
    assert "ERROR: weights.pth cannot be read as weights (" in first
    assert first.endswith(
        "(it is no file of torch, numpy or safetensors). The file is incomplete, damaged or of "
        "another kind; fetch it again or convert it to safetensors."
    )
    assert (work / second.strip()).is_file()


def test_a_half_written_safetensors_file_is_named(cli, work: Path) -> None:
    (work / "weights.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    done = cli("run", "backbone.checkpoint=weights.safetensors", "dataset.limit=4")
    assert done.status == 1
    assert "ERROR: weights.safetensors cannot be read as weights (" in done.err.splitlines()[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["list", "bogus"],
        ["list"],
        ["report", "--bogus"],
        ["run", "--bogus"],
    ],
    ids=" ".join,
)
def test_an_unknown_command_or_option_has_status_2(cli, work: Path, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert "peftbench" in done.err.splitlines()[-1]
    assert files_below(work) == []


def test_a_status_that_does_not_exist_is_refused(cli) -> None:
    done = cli("list", "runs", "--status", "fine")
    assert done.status == 2
    assert done.err == (
        "peftbench: Unknown status 'fine'. Use one of: failed, OK, UNSUPPORTED, NO_EFFECT, "
        "DIVERGED, OUT_OF_MEMORY, TIMEOUT, INTERRUPTED, ERROR.\n"
    )
    done = cli("list", "methods", "--status", "OK")
    assert done.status == 2
    assert done.err == (
        "peftbench: --status belongs to `peftbench list runs`, not to `list methods`.\n"
    )


def test_a_condition_that_is_none_is_refused(cli, work: Path) -> None:
    cli("run", "method=partial", "method.num_blocks=99")
    done = cli("report", "--where", "methd=lora")
    assert done.status == 2
    assert done.err.startswith("peftbench: Unknown column 'methd'. Did you mean: method")
    assert len(done.err.splitlines()) == 1
