"""What jobs of a sweep share is read once, and each gets a copy of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import OmegaConf

from peftbench.sweep.read_once import ReadOnce


def test_a_file_is_read_once_whatever_it_is_composed_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_globals()
    (tmp_path / "config.yaml").write_text("defaults: [_self_, part: one]\nx: 1\n")
    (tmp_path / "part").mkdir()
    for name in ("one", "two"):
        (tmp_path / "part" / f"{name}.yaml").write_text(f"name: {name}\n")
    read: list[str] = []
    load = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda f: read.append(Path(f.name).name) or load(f))
    loader = ConfigLoaderImpl(create_config_search_path(str(tmp_path)))
    loader.repository = ReadOnce(loader.get_search_path())
    for overrides in (["x=2"], ["x=3", "part=two"], ["x=4"]):
        composed = loader.load_configuration("config", overrides, RunMode.RUN)
        assert composed.x == int(overrides[0][-1])
        assert composed.part.name == ("two" if len(overrides) == 2 else "one")
    ours = [name for name in read if name in ("config.yaml", "one.yaml", "two.yaml")]
    assert ours == ["config.yaml", "one.yaml", "two.yaml"]
