"""The identity of weights: hashes of tensors and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.backbones.checkpoints.paths import check_file

if TYPE_CHECKING:
    from torch import Tensor, nn


def hash_tensors(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors but the classifier's."""
    from peftbench.backbones.classifier import prefixes_of

    head = prefixes_of(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(head):
            continue
        take_in(digest, name, tensor)
    return digest.hexdigest()


def take_in(digest: Any, name: str, tensor: Tensor) -> None:
    """Add the name, dtype, shape and bytes of a `tensor` (...) to a digest of hashlib."""
    import torch

    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)


def hash_checkpoint(path: Path) -> str:
    """SHA-256 of a local weights file, which is its identity wherever it lies."""
    path = path.expanduser()
    check_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
