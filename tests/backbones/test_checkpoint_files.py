"""Files of weights: what is data loads, nothing runs, nothing explodes, and the line says why."""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from peftbench.backbones.checkpoints import files as checkpoint
from peftbench.backbones.checkpoints import fitting, pickles
from peftbench.backbones.checkpoints.pickled import Refused, Storage
from peftbench.backbones.hashes import hash_checkpoint
from peftbench.backbones.load import load
from peftbench.errors import WeightsError
from peftbench.spec import BackboneSpec

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}


def _model(name: str = "vit_tiny_patch16_224", seed: int = 0, **options: object) -> nn.Module:
    model = timm.create_model(name, num_classes=3, **{**TINY, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def _state(seed: int = 0) -> dict[str, Tensor]:
    return {n: t for n, t in _model(seed=seed).state_dict().items() if not n.startswith("head.")}


def _fits(path: Path, state: dict[str, Tensor]) -> bool:
    found = fitting.fit(path, _model(seed=9)).state
    return found.keys() == state.keys() and all(torch.equal(t, state[n]) for n, t in found.items())


def _refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        fitting.fit(path, _model())
    line = str(caught.value)
    assert line.isprintable() and line.endswith(".")
    return line


@dataclass
class _Settings:
    rate: float
    where: Path


class _Numbers(dict):  # type: ignore[type-arg]
    """As the configurations of several libraries: a dictionary of a class of its own."""


BESIDES: dict[str, object] = {
    "namespace": argparse.Namespace(lr=1e-3, data=Path("data"), nested=argparse.Namespace(a=1)),
    "numpy number": np.float64(81.2),
    "numpy integer": np.int64(3),
    "numpy array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "random state": np.random.RandomState(0).get_state(),
    "path": Path("a/b"),
    "date": datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC),
    "default dictionary": collections.defaultdict(list, {"a": [1]}),
    "ordered": collections.OrderedDict(a=1),
    "counter": collections.Counter("aab"),
    "a set": {1, 2},
    "a class of the script": _Settings(0.1, Path("x")),
    "a dictionary of a class": _Numbers(a=1, b=_Numbers(c=2)),
    "a type": torch.float32,
    "a size": torch.Size([1, 2]),
    "a device": torch.device("cpu"),
    "complex": 1 + 2j,
    "a reference to a class": {"callback": nn.Linear},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", BESIDES.values(), ids=BESIDES.keys())
def test_data_beside_the_weights_do_not_stand_in_the_way(
    tmp_path: Path, beside: object, legacy: bool
) -> None:
    path, state = tmp_path / "weights.pth", _state()
    content = {"args": beside, "model": state, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert _fits(path, state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickles_is_read(tmp_path: Path, protocol: int) -> None:
    path, state = tmp_path / "weights.pth", _state()
    content = {"model": state, "args": BESIDES["namespace"], "best": np.float32(0.5)}
    torch.save(content, path, pickle_protocol=protocol)
    assert _fits(path, state)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_of_numpy_arrays_is_read(tmp_path: Path, protocol: int) -> None:
    path, state = tmp_path / "weights.pkl", _state()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
    assert _fits(path, state)


def test_parameters_views_and_half_precision_are_read(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", _state()
    wide = torch.randn(16, 24)
    state["blocks.0.attn.qkv.weight"] = wide[:8].t()  # a transposed part of a storage
    saved = {**state, "norm.weight": nn.Parameter(state["norm.weight"])}
    saved["cls_token"] = state["cls_token"].half()
    torch.save(saved, path)
    found = fitting.fit(path, _model(seed=9)).state
    torch.testing.assert_close(found["blocks.0.attn.qkv.weight"], wide[:8].t())
    torch.testing.assert_close(found["norm.weight"], state["norm.weight"])
    assert torch.equal(found["cls_token"], state["cls_token"].half())


def test_a_whole_pickled_model_is_read_without_its_class(tmp_path: Path) -> None:
    path, model = tmp_path / "model.pth", _model()
    torch.save({"model": model}, path)
    try:
        assert _fits(path, _state())
    except WeightsError as e:  # where a module of it holds a function, it is named
        assert "holds code" in str(e)


class _Call:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("place", ["beside", "inside", "deeper"])
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, "system"),
        (builtins.eval, "eval"),
        (builtins.exec, "exec"),
        (builtins.__import__, "__import__"),
        (subprocess.Popen, "subprocess.Popen"),
        (os.remove, "remove"),
        (torch.load, "torch.serialization.load"),
        (timm.create_model, "create_model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_is_refused_by_its_name_and_not_made(
    tmp_path: Path, function: Callable[..., object], named: str, place: str
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    trace.write_text("there")
    call = _Call(
        function, f"open({str(trace)!r}, 'w')" if function is not os.remove else str(trace)
    )
    content: dict[object, object] = {"model": _state()}
    if place == "beside":
        content["args"] = call
    elif place == "inside":
        content["args"] = argparse.Namespace(a=[(call,)])
    else:
        content[("args", 1)] = {"deeper": [call]}
    torch.save(content, path)
    line = _refusal(path)
    assert "holds code" in line and named in line
    assert trace.read_text() == "there"


def test_a_pickle_that_changes_a_class_is_refused(tmp_path: Path) -> None:
    """BUILD on a class would set attributes of it for the whole process."""
    pickled = b"cargparse\nNamespace\n}S'__eq__'\nI1\nsb."
    with pytest.raises(Refused, match=r"it changes argparse\.Namespace"):
        pickles.read(io.BytesIO(pickled), lambda _: Storage("", "", 0))
    assert argparse.Namespace(a=1) == argparse.Namespace(a=1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    assert "TorchScript" in _refusal(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b'{"weight_map": {"a": "b"}}', "JSON"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x1f\x8b" + bytes(64), "gzip"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert named in _refusal(path)


def test_a_folder_is_named_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"is a folder.*It holds model\.safetensors"):
        hash_checkpoint(tmp_path / "snapshot")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsError, match="named pipe"):
        hash_checkpoint(tmp_path / "pipe.pth")


# ------------------------------------------------------------------- sizes


def _npz(path: Path, sides: int, packed: bool = True) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else 0) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (sides,)}
        )
        with archive.open("embedding/kernel.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(sides * 4 // 2**20):
                file.write(bytes(2**20))


def test_an_npz_that_unpacks_to_much_more_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    _npz(path, 80 * 2**20)  # 320 MB of zeros in 0.3 MB
    assert path.stat().st_size < 2**20
    assert "unpacks to" in _refusal(path)


def test_an_npz_whose_header_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cls.npy", header.getvalue() + bytes(64))
    assert "announces" in _refusal(path)


def _repacked(
    path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]
) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            change(archive, info, data)


def test_packed_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(_state(), path)
    _repacked(path, lambda z, i, d: z.writestr(i.filename, d, zipfile.ZIP_DEFLATED))
    assert "packed members" in _refusal(path)


def test_a_storage_that_is_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(_state(), path)
    _repacked(path, lambda z, i, d: z.writestr(i.filename, d[:4] if "/data/" in i.filename else d))
    assert "needs" in _refusal(path)


def test_a_tensor_that_repeats_its_storage_is_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", _state()
    state["pos_embed"] = torch.zeros(1).expand(10**9)
    torch.save(state, path)
    assert "its storage only 1 numbers" in _refusal(path)


def test_a_pickle_that_doubles_itself_is_refused(tmp_path: Path) -> None:
    inner: dict[str, object] = {"a": torch.zeros(2)}
    for _ in range(30):
        inner = {"a": inner, "b": inner}
    torch.save(inner, tmp_path / "weights.pth")
    assert "more tensors" in _refusal(tmp_path / "weights.pth")


def test_damaged_numbers_are_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(_state(), path)
    data = bytearray(path.read_bytes())
    place = data.index(_state()["norm.weight"].numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert "checksum" in _refusal(path)


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, kind: str, value: float) -> None:
    path, state = tmp_path / f"weights{kind}", _state()
    state["blocks.1.mlp.fc1.weight"][0, 0] = value
    torch.save(state, path) if kind == ".pth" else save_file(state, path)
    line = _refusal(path)
    assert "blocks.1.mlp.fc1.weight" in line and "NaN or infinity" in line


def test_a_classifier_that_is_no_number_does_not_matter(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", _state()
    torch.save({**state, "head.weight": torch.full((5, 8), torch.nan)}, path)
    assert _fits(path, state)


def test_the_table_of_a_file_has_full_names(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": {"b": torch.ones(2, 3)}, "c": [{"d": torch.zeros(4)}]}, path)
    table = checkpoint.read(path)
    assert {n: e.shape for n, e in table.items()} == {"a.b": (2, 3), "c.0.d": (4,)}
    assert torch.equal(table["a.b"].read(), torch.ones(2, 3))


def test_notes_reach_the_backbone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    torch.save({"model": {**model.state_dict(), "mask_token": torch.zeros(1, 1, 4)}}, path)
    notes = load(BackboneSpec("test_vit", checkpoint=str(path), image_size=64), 2).notes
    assert any("a mask token (mask_token)" in note for note in notes)
    assert any("pos_embed was resampled from (1, 5, 64) to (1, 17, 64)" in note for note in notes)
