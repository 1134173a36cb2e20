"""Exported folders that somebody else may have written: refused in one line, without harm."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.mutation import COPIES, mutations
from torch import nn

import peftbench as pb
from peftbench import api
from peftbench.artefacts import task_file as files
from peftbench.artefacts.loading import backbone_of, load_merged
from peftbench.backbones.hashes import hash_checkpoint, hash_tensors
from peftbench.backbones.load import construction
from peftbench.backbones.load import load as load_backbone
from peftbench.errors import ConfigError, PeftbenchError, WeightsError
from peftbench.methods import METHODS
from peftbench.run import export as exporting
from peftbench.spec import BackboneSpec

SPEC = BackboneSpec("vit_mini", image_size=12, title="vit_mini")
CLASSES = ["a", "b", "c"]
PIXELS = {"size": 12, "resize": "squash", "interpolation": "bicubic", "mean": [0.5] * 3}


def card_of(tuned: pb.TunedModel, sha256: str, spec: BackboneSpec = SPEC) -> dict[str, Any]:
    """The card that a run writes."""
    return {
        "run_id": "0123456789abcdef",
        "spec": {
            "method": tuned.tuned.method.identity(),
            "backbone": {
                "name": spec.name,
                "pretrained": spec.pretrained,
                "checkpoint": spec.checkpoint,
                "checkpoint_sha256": spec.checkpoint_sha256,
                "image_size": spec.image_size,
                "drop_path": 0.0,
                "seed": 0,
                "title": spec.title,
            },
            "dataset": {"name": "folder", "manifest": "0" * 64, "root": "/home/somebody/pictures"},
        },
        "method_card": {"title": "LoRA", "paper": "arXiv:2106.09685"},
        "classes": list(CLASSES),
        "metrics": {"test/top1": 0.5},
        "provenance": {
            "peftbench": "0.1",
            "host": "a-machine-of-somebody",
            "backbone_sha256": sha256,
            "backbone_source": spec.checkpoint or spec.name,
            "preprocessing": {**PIXELS, "std": [0.5] * 3},
        },
    }


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tuned task on the shipped backbone."""
    folder = tmp_path_factory.mktemp("task")
    model = load_backbone(SPEC, 2).model
    sha256 = hash_tensors(model)
    tuned = pb.tune(model, "lora", len(CLASSES), image_size=12)
    files.save(tuned.tuned, folder, {"kind": "task", **card_of(tuned, sha256)})
    return folder


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, task: Path) -> Path:
    """The folder of a whole model."""
    folder = tmp_path_factory.mktemp("merged")
    model = pb.merge(pb.load(task))
    architecture, options = construction(SPEC)
    built = {"architecture": architecture, "num_classes": len(CLASSES), "kwargs": options}
    card = {**read(task), "kind": "merged", "timm": built}
    (folder / "card.json").write_text(json.dumps(card))
    save_file({k: t.detach().clone() for k, t in model.state_dict().items()}, folder / files.MERGED)
    return folder


def read(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def changed(source: Path, folder: Path, *where: str | int, to: Any) -> Path:
    """A copy of a folder with another value at `where` in its card."""
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    card = read(source)
    place: Any = card
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = to
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection is tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def refused(folder: Path, *arguments: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        pb.load(folder, *arguments)
    text = str(caught.value)
    assert "\n" not in text and "\x1b" not in text and "\u202e" not in text
    return text


def test_what_an_export_writes_is_loaded(task: Path, merged: Path) -> None:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pb.load(task)(x), pb.load(merged)(x), rtol=1e-4, atol=1e-4)
    assert pb.load(task).model.num_classes == 3


# ------------------------------------------------------------------- whole models


class Trap:
    """What it leaves behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("kwargs", "checkpoint_path"), "weights.pth", "'checkpoint_path', which no export writes"),
        (("kwargs", "pretrained"), True, "'pretrained'"),
        (("kwargs", "pretrained_cfg"), {"url": "http://127.0.0.1:9/x"}, "'pretrained_cfg'"),
        (("kwargs", "pretrained_cfg_overlay"), {"file": "weights.pth"}, "'pretrained_cfg_overlay'"),
        (("kwargs", "cache_dir"), "/tmp/x", "'cache_dir'"),
        (("kwargs", "features_only"), True, "'features_only'"),
        (("kwargs", "\x1b[31mred\u202e"), 1, r"\x1b[31mred\u202e"),
        (("kwargs", "img_size"), 10**6, "img_size is 1000000, not 1 to 4,096"),
        (("kwargs", "img_size"), [12, 12], "img_size is a list"),
        (("kwargs", "img_size"), "12", "img_size is '12'"),
        (("kwargs", "img_size"), True, "img_size is True"),
        (("kwargs", "depth"), 10**9, "depth is 1000000000, not"),
        (("kwargs", "depth"), 10**40, "a number of more than 18 digits"),
        (("kwargs", "depth"), 5, "its tensors differ in"),
        (("kwargs", "embed_dim"), 16384, "is (1, 1, 128) float32 in it, not (1, 1, 16384)"),
        (("kwargs", "num_heads"), 3, "does not describe a model of timm"),
        (("kwargs",), None, "timm.kwargs is None"),
        (("num_classes",), 10**9, "num_classes is 1000000000 and it lists 3 classes"),
        (("architecture",), "hf-hub:somebody/model", "Unknown backbone 'hf-hub:somebody/model'"),
        (("architecture",), "hf_hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        (("architecture",), "local-dir:/tmp/model", "Unknown backbone 'local-dir:/tmp/model'"),
        (("architecture",), "/etc/passwd", "Unknown backbone '/etc/passwd'"),
        (("architecture",), "http://127.0.0.1:9/x.pth", "Unknown backbone 'http"),
        (("architecture",), "vit_mini", "'vit_mini' is no architecture of timm"),
        (("architecture",), "resnet18", "unexpected keyword argument"),
        (("architecture",), 3, "timm.architecture is 3"),
        (("more",), 1, "'more', which no export writes"),
    ],
)
def test_only_known_options_build_a_whole_model(
    merged: Path, tmp_path: Path, where: tuple[str, ...], value: Any, said: str
) -> None:
    folder = changed(merged, tmp_path, "timm", *where, to=value)
    torch.save(Trap(tmp_path / "ran"), folder / "weights.pth")
    assert said in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_is_no_task_and_takes_no_weights(merged: Path, tmp_path: Path) -> None:
    model = load_backbone(SPEC, 2).model
    with pytest.raises(WeightsError, match=r"whole model, not a task\. Use peftbench\.load"):
        pb.attach(model, merged)
    with pytest.raises(ConfigError, match="Leave checkpoint out"):
        pb.load(merged, tmp_path / "weights.pth")


# ------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("kind",), "model", "its kind is 'model'"),
        (("classes",), "abc", "its classes are no list"),
        (("classes",), [], "lists 0 classes"),
        (("classes",), [1, 2, 3], "its classes are no list of names"),
        (("classes",), ["x"] * 100_001, "lists 100001 classes"),
        (("classes",), ["x"] * 100_000, "has "),
        (("classes",), ["a", "b"], "does not fit"),
        (("spec",), None, "lacks spec.backbone"),
        (("spec", "backbone"), {}, "lacks spec.backbone.name"),
        (("spec", "backbone", "name"), "hf-hub:somebody/model", "Unknown backbone"),
        (("spec", "backbone", "name"), "\x1b]0;x\x07", r"\x1b]0;x\x07"),
        (("spec", "backbone", "name"), "vit_tiny_patch16_224", "lacks its pretrained tag"),
        (("spec", "backbone", "pretrained_cfg"), {"url": "x"}, "'pretrained_cfg', which no export"),
        (("spec", "backbone", "pretrained"), "yes", "spec.backbone.pretrained is 'yes'"),
        (("spec", "backbone", "image_size"), 10**6, "image_size is 1000000, not"),
        (("spec", "backbone", "image_size"), 0, "image_size is 0"),
        (("spec", "backbone", "image_size"), 24, "was tuned on vit_mini with weights"),
        (("spec", "backbone", "drop_path"), 1.5, "drop_path is 1.5"),
        (("spec", "backbone", "seed"), 2**70, "seed has more than 64 bits"),
        (("spec", "backbone", "checkpoint"), 7, "checkpoint is 7"),
        (("spec", "backbone", "checkpoint"), "/dev/zero", "tuned on the weights in zero "),
        (("spec", "backbone", "checkpoint"), "../weights.pth", "tuned on the weights in weights.p"),
        (("spec", "backbone", "checkpoint_sha256"), "x" * 64, "is no SHA-256"),
        (("spec", "method", "name"), "loar", "Unknown method 'loar'"),
        (("spec", "method", "name"), ["lora"], "spec.method.name is a list"),
        (("spec", "method", "version"), "1", "spec.method.version is '1'"),
        (("spec", "method", "version"), 10**30, "was tuned with version 10000000000000000000 of"),
        (("spec", "method", "hyperparameters"), [], "hyperparameters is a list"),
        (("spec", "method", "hyperparameters", "rank"), 10**9, "rank' is 1000000000"),
        (("spec", "method", "hyperparameters", "rank"), 16384, "numbers, and tuned.safetensors ho"),
        (("spec", "method", "hyperparameters", "rank"), 4, "does not fit"),
        (("spec", "method", "hyperparameters", "rank"), "${oc.env:HOME}", "'${oc.env:HOME}'"),
        (("spec", "method", "hyperparameters", "rank"), {"_target_": "os.system"}, "a mapping"),
        (("spec", "method", "hyperparameters", "more"), 1, "Unknown hyper-parameter of lora: 'mo"),
        (("provenance", "backbone_sha256"), "0" * 64, "with weights 000000000000, and this"),
        (("provenance", "backbone_sha256"), None, "backbone_sha256 is None"),
        (("provenance", "preprocessing", "size"), 10**6, "size is 1000000, not"),
        (("provenance", "preprocessing", "size"), float("nan"), "size is None"),
        (("provenance", "preprocessing", "size"), 24, "image_size=24 does not suit"),
    ],
)
def test_a_field_of_a_task_is_known_by_type_and_range(
    task: Path, tmp_path: Path, where: tuple[str, ...], value: Any, said: str
) -> None:
    assert said in refused(changed(task, tmp_path, *where, to=value))


def test_layers_that_the_file_lacks_are_not_made(task: Path, tmp_path: Path) -> None:
    folder = changed(task, tmp_path, "spec", "method", "name", to="mlp")
    card = read(folder)
    card["spec"]["method"]["version"] = METHODS["mlp"].card.version
    card["spec"]["method"]["hyperparameters"] = {"num_layers": 9, "dropout": 0.1}
    (folder / "card.json").write_text(json.dumps(card))
    assert "numbers, and tuned.safetensors holds" in refused(folder)


def test_a_model_that_does_not_fit_in_memory_is_not_made(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = {"name": "vit_giant_patch14_224", "pretrained": False}
    folder = changed(task, tmp_path, "spec", "backbone", to=backbone)
    free = type("Memory", (), {"available": 2**30})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    assert "vit_giant_patch14_224 takes 3.8 GiB, and 1.0 GiB of memory are free" in refused(folder)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a readable card"),
        (b"\xff\xfe{}", "it is not UTF-8"),
        (b"[]", "it is no mapping"),
        (b"3", "it is no mapping"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b'{"spec": ' * 100_000, "it is nested too deeply"),
        (b'{"spec": {}, "classes": [1e999], "provenance": {}}', "its classes are no list of names"),
        (b'{"spec": ' + b"9" * 5000 + b"}", "not a readable card"),
        (b" " * (17 * 2**20), "more than 16 MB"),
    ],
    ids=["empty", "UTF-16", "list", "number", "deep", "deep maps", "infinity", "digits", "huge"],
)
def test_a_card_that_is_none_is_named(task: Path, tmp_path: Path, data: bytes, said: str) -> None:
    folder = changed(task, tmp_path, "kind", to="task")
    (folder / "card.json").write_bytes(data)
    assert said in refused(folder)


@pytest.mark.parametrize("name", ["card.json", "tuned.safetensors"])
def test_a_pipe_in_a_folder_is_not_waited_for(task: Path, tmp_path: Path, name: str) -> None:
    folder = changed(task, tmp_path, "kind", to="task")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "it is no plain file but a named pipe" in refused(folder)


# ------------------------------------------------------------------- tensors


def header(content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(content)) + content + data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (struct.pack("<Q", 2**62), "cut short"),
        (header(b" " * (5 * 2**20)), "its header has 5,242,880 bytes, more than"),
        (header(b"[]"), "its header is no mapping"),
        (header(b"{"), "its header is no JSON"),
        (header(b'{"a": 3}'), "says nothing that is known of 'a'"),
        (header(b'{"a": {"dtype": "C64", "shape": [1]}}'), "says nothing that is known of 'a'"),
        (header(b'{"a": {"dtype": "F32", "shape": [-1]}}'), "a side that is no size"),
        (
            header(b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4]}}'),
            "announces 4,000,000,000,000 bytes, and it has 0",
        ),
    ],
)
def test_a_header_that_lies_is_named(task: Path, tmp_path: Path, data: bytes, said: str) -> None:
    folder = changed(task, tmp_path, "kind", to="task")
    (folder / files.TASK).write_bytes(data)
    assert said in refused(folder)


Change = Callable[[dict[str, torch.Tensor]], object]
TENSORS: list[tuple[Change, str]] = [
    (lambda s: s["head.bias"].fill_(float("nan")), "head.bias holds values that are not finite"),
    (lambda s: s["head.bias"].fill_(float("inf")), "head.bias holds values that are not finite"),
    (lambda s: s.update({"head.bias": s["head.bias"].double()}), "float64 in it, not (3,) float32"),
    (lambda s: s.update({"head.bias": torch.zeros(3, 1)}), "is (3, 1) float32 in it, not (3,)"),
    (
        lambda s: s.update({"../../evil": torch.zeros(1)}),
        "its tensors differ in 1 names: ../../evi",
    ),
    (lambda s: s.update({"\x1b[2J": torch.zeros(1)}), r"names: \x1b[2J"),
    (lambda s: s.pop("head.bias"), "tuned"),
]


@pytest.mark.parametrize(("change", "said"), TENSORS)
def test_tensors_are_those_of_the_method_and_finite(
    task: Path, tmp_path: Path, change: Change, said: str
) -> None:
    folder = changed(task, tmp_path, "kind", to="task")
    state = load_file(task / files.TASK)
    change(state)
    save_file(state, folder / files.TASK)
    assert said in refused(folder)


def test_a_refused_task_leaves_the_backbone_as_it_was(task: Path, tmp_path: Path) -> None:
    model = load_backbone(SPEC, 2).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = changed(task, tmp_path, "spec", "method", "hyperparameters", "rank", to=4)
    with pytest.raises(WeightsError, match="does not fit"):
        pb.attach(model, folder)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert isinstance(pb.attach(model, task), pb.TunedModel)


# ------------------------------------------------------------------- local weights


@pytest.fixture
def local(tmp_path: Path) -> tuple[Path, Path, nn.Module]:
    """A task on weights of a file, that file, and the model in it."""
    model = load_backbone(BackboneSpec("vit_mini", pretrained=False, image_size=12), 2).model
    path = tmp_path / "secret place" / "mine.pth"
    path.parent.mkdir()
    torch.save(model.state_dict(), path)
    spec = BackboneSpec("vit_mini", True, str(path), hash_checkpoint(path), 12, title="mine.pth")
    tuned = pb.tune(copy.deepcopy(model), "lora", 3, image_size=12)
    files.save(tuned.tuned, tmp_path / "task", card_of(tuned, hash_tensors(model), spec))
    return tmp_path / "task", path, model


def test_a_task_of_local_weights_says_how_it_is_loaded(
    local: tuple[Path, Path, nn.Module], tmp_path: Path
) -> None:
    folder, path, model = local
    text = refused(folder)
    assert "weights in mine.pth (SHA-256" in text
    assert f"peftbench.load('{folder}', checkpoint=PATH)" in text and "peftbench.attach" in text
    moved = path.rename(tmp_path / "moved.pth")
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pb.load(folder, moved)(x), pb.attach(model, folder)(x))


def test_other_weights_are_refused_before_they_are_read(
    local: tuple[Path, Path, nn.Module], tmp_path: Path
) -> None:
    folder, path, _ = local
    other = tmp_path / "other.pth"
    torch.save(Trap(tmp_path / "ran"), other)
    assert f"and {other} has " in refused(folder, other)
    assert not (tmp_path / "ran").exists()
    assert "does not exist" in refused(folder, tmp_path / "none.pth")
    assert "no plain file but a folder" in refused(folder, path.parent)


def test_named_weights_may_come_from_a_file(task: Path, tmp_path: Path) -> None:
    path = tmp_path / "shipped.pth"
    torch.save(load_backbone(SPEC, 2).model.state_dict(), path)
    assert isinstance(pb.load(task, path), pb.TunedModel)


def test_a_card_tells_neither_place_nor_host(local: tuple[Path, Path, nn.Module]) -> None:
    folder, _, _ = local
    text = (folder / "card.json").read_text()
    assert "secret place" not in text and "somebody" not in text and '"mine.pth"' in text
    assert read(folder)["classes"] == CLASSES


def test_the_readme_names_the_file_of_local_weights(local: tuple[Path, Path, nn.Module]) -> None:
    folder, path, _ = local
    text = exporting.model_card({"kind": "task", **read(folder)})
    (row,) = [line for line in text.splitlines() if line.startswith("| backbone")]
    assert "`mine.pth`" in row and f"`{hash_checkpoint(path)}`" in row
    assert 'pb.load("FOLDER", checkpoint="PATH")' in text
    assert "secret place" not in text


# ------------------------------------------------------------------- Markdown


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("cat", "cat"),
        ("golden_retriever", "golden_retriever"),
        ("a|b", "a&#124;b"),
        ("`rm`", "&#96;rm&#96;"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("[x](http://y.z)", "&#91;x&#93;(http&#58;//y.z)"),
        ("**b** __c__", "&#42;&#42;b&#42;&#42; &#95;&#95;c&#95;&#95;"),
        ("a\nb", "a&#92;nb"),
        ("\u202egnp", "&#92;u202egnp"),
        ("www.a.b me@c.d", "www&#46;a.b me&#64;c.d"),
        ("&lt;", "&amp;lt;"),
        ("Löwe 虎", "Löwe 虎"),
    ],
)
def test_class_names_are_no_markup(task: Path, name: str, written: str) -> None:
    text = exporting.model_card({**read(task), "classes": [name, "b"]})
    assert f"| classes | 2: {written}, b |\n" in text


def test_a_name_of_a_data_set_is_no_markup_either(task: Path) -> None:
    card = read(task)
    card["spec"]["dataset"]["name"] = "x`|\n# y<b>"
    lines = exporting.model_card(card).splitlines()
    assert lines[0] == "# lora, vit_mini, x&#96;&#124;&#92;n&#35; y&lt;b&gt;"
    assert all(line.count("|") == 3 for line in lines if line.startswith("|") and "---" not in line)


def test_names_that_are_no_utf8_are_written_escaped() -> None:
    data = files.card_bytes({"classes": ["caf\udce9", "b"]})
    assert json.loads(data)["classes"] == ["caf\udce9", "b"]


ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 0.5, 1e308, 2**63, 10**40, float("nan"), float("inf")),
    *("", "x", "..", "\x1b[2J\u202e\n", "/etc/passwd", "https://example.org/x", "hf-hub:x/y"),
    *("${oc.env:HOME}", "caf\udce9", [], {}, [[]], {"a": {"b": None}}),
)


def altered(card: dict[str, Any], source: random.Random) -> dict[str, Any]:
    """The card with one value anywhere in it replaced, taken out or added."""
    card = copy.deepcopy(card)
    place: Any = card
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = source.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or source.random() < 0.15:
            break
        place = place[key]
    kind = source.random()
    if kind < 0.15:
        del place[key]
    elif kind < 0.25 and isinstance(place, dict):
        place[source.choice(("checkpoint_path", "pretrained_cfg", "\x1b[2J"))] = source.choice(ODD)
    else:
        place[key] = source.choice(ODD)
    return card


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["task", "merged"])
def test_damaged_cards_end_in_a_line_or_load(
    kind: str, task: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards of two kinds of damage; what several of them ask for is built once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asked: set[str] = set()

    def once(build: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(card: dict[str, Any], *rest: Any) -> Any:
            spec, origin = card["spec"], card["provenance"]
            parts = [card.get("timm"), len(card["classes"])]
            if kind == "task":
                parts += [spec["backbone"], spec["method"], origin["preprocessing"]["size"]]
                parts += [origin["backbone_sha256"]]
            if (key := json.dumps(parts)) in asked:
                raise Known
            asked.add(key)
            return build(card, *rest)

        return wrapped

    monkeypatch.setattr(api, "backbone_of", once(backbone_of))
    monkeypatch.setattr(api, "load_merged", once(load_merged))
    folder = {"task": task, "merged": merged}[kind]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card = read(folder)
    source = random.Random(3)
    cards = [*mutations(json.dumps(card).encode(), COPIES // 2, seed=8)]
    cards += [json.dumps(altered(card, source)).encode() for _ in range(COPIES // 2)]
    outcomes: Counter[str] = Counter()
    for data in cards:
        (tmp_path / "card.json").write_bytes(data)
        try:
            model = pb.load(tmp_path)
        except PeftbenchError as error:
            assert str(error).isprintable()
            outcomes["refused"] += 1
        except Known:
            outcomes["the same model again"] += 1
        else:
            assert isinstance(model, nn.Module)
            outcomes["loaded"] += 1
    assert outcomes["refused"] > COPIES / 4 and outcomes["loaded"] > 0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 500e6


class Known(Exception):
    """A model that has been built before."""
