"""VTAB-1k without TensorFlow, from published archives or from what TensorFlow Datasets prepared."""

from __future__ import annotations

from peftbench.data.raw import (  # noqa: F401  # register theirs
    camelyon,
    cifar,
    clevr,
    dmlab,
    dsprites,
    folders,
    kitti,
    listed,
    smallnorb,
    sun397,
    svhn,
)
from peftbench.data.raw.base import RAW, Raw, RawSplit
from peftbench.data.raw.writing import LEFT_OUT, build

__all__ = ["LEFT_OUT", "RAW", "Raw", "RawSplit", "build"]
