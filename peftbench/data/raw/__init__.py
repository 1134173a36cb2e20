"""VTAB-1k from the archives that the data sets are published as, without TensorFlow."""

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
