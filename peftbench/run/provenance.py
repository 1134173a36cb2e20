"""Where a number comes from: code version, library versions, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import peftbench

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "hydra-core", "pillow", "safetensors")


@cache
def versions() -> dict[str, str]:
    """Installed version of each library that can move a number."""
    installed = {}
    for library in LIBRARIES:
        try:
            installed[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


@cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of the clone this package runs from and whether it has changes; None if installed."""
    root = Path(peftbench.__file__).parent.parent
    if not (root / ".git").exists():
        return None, None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return None, None
    # what runs write must not make the code look changed
    status = _output(
        "git", "-C", str(root), "status", "--porcelain", "--", "peftbench", "conf", "experiments"
    )
    return commit, status != ""


@cache
def driver() -> str | None:
    """Version of the NVIDIA driver, None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    text = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return text.splitlines()[0].strip() if text else None


def host() -> str:
    """Network name of this machine."""
    return platform.node()


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
