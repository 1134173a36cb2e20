"""Paths that are given as weights; loading it needs no torch."""

from __future__ import annotations

from pathlib import Path

from peftbench import untrusted
from peftbench.errors import WeightsError


def check_file(path: Path) -> None:
    """Refuse a path that names no plain file.

    Raises:
        WeightsError: it is absent, a folder, a pipe or a device, or may not be read.
    """
    try:
        untrusted.check_plain_file(path)
        with open(path, "rb"):
            pass
    except FileNotFoundError as e:
        raise WeightsError(
            f"backbone.checkpoint={shown(path)} does not exist. Give the path of a .safetensors, "
            ".npz or .pth file."
        ) from e
    except ValueError as e:
        inside = sorted(
            p.name
            for p in (path.iterdir() if path.is_dir() else ())
            if p.suffix in (".safetensors", ".pth", ".pt", ".bin", ".npz", ".ckpt")
        )
        hint = f" It holds {untrusted.printable(', '.join(inside[:3]))}." if inside else ""
        what = "is a folder" if path.is_dir() else f"cannot be used: {e}"
        raise WeightsError(
            f"backbone.checkpoint={shown(path)} {what}. Give the path of the .safetensors, .npz "
            f"or .pth file itself.{hint}"
        ) from e
    except OSError as e:
        raise WeightsError(
            f"backbone.checkpoint={shown(path)} cannot be opened ({e.strerror}). Give yourself "
            "the right to read it, or give the path of another file."
        ) from e


def shown(path: Path) -> str:
    """As a message has it."""
    return untrusted.printable(str(path))
