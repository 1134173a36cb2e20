"""Pickles that were made to harm: nothing runs, hangs, fills the memory or ends the process."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from peftbench.backbones.checkpoints import files as checkpoint
from peftbench.backbones.checkpoints import pickles
from peftbench.backbones.checkpoints.containers import _storage
from peftbench.backbones.checkpoints.pickled import Refused
from peftbench.errors import WeightsError

START = b"\x80\x04"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _read(pickled: bytes) -> Any:
    return pickles.read(io.BytesIO(START + pickled), _storage)


def _refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        checkpoint.read(path)
    line = str(caught.value)
    assert line.isprintable() and line.endswith(".")
    return line


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("torch.hub", "load", b")"),
        ("numpy.testing._private.utils", "runstring", b")"),
        ("torch", "os.system", b")"),
        ("torch", "Os.system", b")"),
        ("numpy", "load", b")"),
        ("torch.nn", "Module.__init_subclass__", b")"),
        ("argparse.os", "system", b")"),
        ("builtins", "eval", b")"),
        ("nt", "system", b")"),
        ("posix", "system", b")"),
        ("runpy", "run_path", b")"),
        ("importlib", "import_module", b")"),
        ("__main__", "<lambda>", b")"),
        ("somewhere", "\u202ename", b")"),
        ("functools", "partial", _global("os", "system") + b"\x85"),
        ("copyreg", "_reconstructor", _global("os", "system") + b"\x85"),
        ("torch._tensor", "_rebuild_from_type_v2", b"(" + _global("os", "system") + b"NNNt"),
        (
            "torch._tensor",
            "_rebuild_from_type_v2",
            b"(" + _global("torch.hub", "load") + b"N)Nt",
        ),
        ("builtins", "getattr", b"(K\x01" + _text("real") + b"t"),
    ],
)
def test_a_call_of_a_function_is_refused(module: str, name: str, arguments: bytes) -> None:
    with pytest.raises(Refused, match="holds code"):
        _read(_global(module, name) + arguments + b"R.")


@pytest.mark.parametrize(
    "pickled",
    [
        b"(" + _text("id") + b"ios\nsystem\n.",
        b"(" + _global("os", "system") + b"o.",
        _global("os", "system") + b")\x81.",
        _global("os", "system") + b")}\x92.",
        b"\x82\x01.",
        b"\x83\x01\x00.",
        b"\x84\x01\x00\x00\x00.",
        b"\x97.",
    ],
    ids=["INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"],
)
def test_instructions_that_make_objects_make_none(pickled: bytes) -> None:
    with pytest.raises(Refused):
        _read(pickled)


@pytest.mark.parametrize(
    "arguments",
    [b")", b"(NNNNNt", b"(K\x01K\x01K\x01K\x01NNt", b"(NJ\xff\xff\xff\xff)))Nt"],
)
@pytest.mark.parametrize(
    "function", ["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"]
)
def test_tensors_of_wrong_arguments_are_damage(function: str, arguments: bytes) -> None:
    with pytest.raises(ValueError, match=r"damaged|no shape"):
        _read(_global("torch._utils", function) + arguments + b"R.")


def test_keys_nested_in_depth_and_doubling_are_not_walked_through() -> None:
    """Python's own hash of the first ends the process, that of the second takes 2 ** 60 steps."""
    assert _read(b"})" + b"\x85" * 200_000 + b"K\x01s.") == {}
    assert _read(b"})" + b"2\x86" * 60 + b"K\x01s.") == {}


def test_numbers_that_collide_are_no_keys() -> None:
    """Equal hashes make a dictionary quadratic."""
    colliding = [2**61 - 1, 2 * (2**61 - 1)]
    assert len({hash(n) for n in colliding}) == 1
    assert _read(pickle.dumps({**dict.fromkeys(colliding, 1), 3: 4, "a": 5})[2:]) == {3: 4, "a": 5}


def test_a_shape_that_doubles_is_not_written_out(tmp_path: Path) -> None:
    doubled = b")" + b"2\x86" * 60
    with pytest.raises(ValueError, match="whole numbers"):
        _read(_global("torch._utils", "_rebuild_tensor_v2") + b"(NK\x00" + doubled + b")NNtR.")


def test_the_copies_that_a_pickle_asks_for_are_not_made() -> None:
    values, text = list(range(50)), "\x01" * 400
    copied = _read(
        pickle.dumps(values)[2:-1]
        + b"\x940"
        + b"]"
        + 9 * (_global("builtins", "list") + b"h\x00\x85Ra")
        + b"."
    )
    assert copied == [values] * 9 and len({id(copy) for copy in copied}) == 1
    encoded = (
        _text(text)
        + b"\x940]"
        + 9 * (_global("_codecs", "encode") + b"h\x00" + _text("latin1") + b"\x86Ra")
        + b"."
    )
    assert len({id(copy) for copy in _read(encoded)}) == 1


def test_instructions_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_INSTRUCTIONS", 100)
    assert _read(b"N" * 90 + b".") is None
    with pytest.raises(ValueError, match="more than 100 instructions"):
        _read(b"N" * 200 + b".")


def test_arrays_that_share_their_bytes_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "ALWAYS_ALLOWED", 0)
    path, array = tmp_path / "weights.pkl", np.ones(1000, np.float32)
    path.write_bytes(pickle.dumps({str(i): array for i in range(3)}))
    assert len(checkpoint.read(path)) == 3
    path.write_bytes(pickle.dumps({str(i): array for i in range(100)}))
    assert "400,000 bytes and the file" in _refusal(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_that_share_a_storage_without_end_are_refused(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "ALWAYS_ALLOWED", 0)
    path, tensor = tmp_path / "weights.pth", torch.ones(100_000)
    content = {str(i): tensor[i:] for i in range(100)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert "bytes and the file" in _refusal(path)


def test_a_storage_is_read_once_for_all_its_tensors(tmp_path: Path) -> None:
    path, whole = tmp_path / "weights.pth", torch.arange(12.0)
    torch.save({"a": whole[:4], "b": whole[2:].view(5, 2), "c": whole.view(3, 4).t()}, path)
    table = checkpoint.read(path)
    read = {name: entry.read() for name, entry in table.items()}
    assert torch.equal(read["b"], whole[2:].view(5, 2))
    assert torch.equal(read["c"], whole.view(3, 4).t())
    assert len({t.untyped_storage().data_ptr() for t in read.values()}) == 1


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (torch.eye(3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.empty(3, 3, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (torch.zeros(3, dtype=torch.complex64).conj(), "conjugate"),
        (torch.zeros(3, dtype=torch.complex64).conj().imag, "conjugate or negative view"),
        (torch.ones(3).to(torch.float8_e4m3fnuz), "float8_e4m3fnuz"),
    ],
    ids=["sparse", "meta", "conjugate", "negative", "float8"],
)
def test_tensors_that_are_not_read_are_named(
    tmp_path: Path, tensor: torch.Tensor, named: str
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": tensor, "b": torch.ones(3)}, path)
    line = _refusal(path)
    assert named in line and "code" not in line


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.float8_e5m2],
    ids=str,
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_type_of_number_is_read(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    path, tensor = tmp_path / "weights.pth", torch.tensor([[0.0, 1.0, 1.0]]).to(dtype)
    torch.save({"a": tensor}, path, _use_new_zipfile_serialization=not legacy)
    found = checkpoint.read(path)["a"].read()
    assert found.dtype == dtype and torch.equal(found.double(), tensor.double())


def test_names_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"." * 100: torch.ones(3)}, path)
    assert "too many parts" in _refusal(path)
    monkeypatch.setattr(checkpoint, "MOST_CHARACTERS", 1000)
    torch.save({"a" * 300 + str(i): torch.ones(3) for i in range(9)}, path)
    assert "longer names" in _refusal(path)
    monkeypatch.setattr(checkpoint, "MOST_TENSORS", 5)
    path.write_bytes(save({str(i): torch.ones(3) for i in range(9)}))
    assert "more tensors" in _refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4000000000]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}',
        b"{}",
    ],
    ids=["shape", "end", "negative", "shared", "type", "overflow", "empty"],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "cannot be read as weights" in _refusal(path)


def test_a_safetensors_header_of_any_size_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", 2**24 + 1) + b"{" + bytes(100))
    assert "its header announces 16,777,217 bytes" in _refusal(path)


def test_a_pickle_that_holds_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    for pickled in (b"}q\x00X\x01\0\0\0ah\x00s.", b"]q\x00h\x00a.", b"ca\nB\n)Rq\x00h\x00b."):
        path.write_bytes(START + pickled)
        _refusal(path)
