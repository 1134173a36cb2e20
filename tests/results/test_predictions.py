"""Promises of stored predictions about the files that they are of."""

from __future__ import annotations

import io

import numpy as np
import pytest

from peftbench.errors import StoreError
from peftbench.results.predictions import has_names, without_names
from peftbench.results.store import ResultsStore

RUN = "0123456789abcdef"
ROWS = {"classes": [1, 0], "confidence": [1, 1], "margin": [1, 1], "labels": [1, 1]}


def test_predictions_keep_the_paths_of_the_images_that_are_files(tmp_path):
    store = ResultsStore(tmp_path)
    names = ("cats/Ü 1.png", "dogs/\udce9.png")  # a byte that is no UTF-8, as Python reads it
    path = store.save_predictions("lora", RUN, names=names, **ROWS)
    assert store.load_predictions("lora", RUN).names == names
    with np.load(path) as arrays:  # as others read it
        assert arrays["names"].tolist() == list(names)
    store.save_predictions("lora", RUN, **ROWS)
    assert store.load_predictions("lora", RUN).names is None


def test_paths_that_would_be_too_long_or_too_many_are_left_out(tmp_path):
    store = ResultsStore(tmp_path)
    store.save_predictions("lora", RUN, names=("a" * 1025, "b"), **ROWS)
    assert store.load_predictions("lora", RUN).names is None
    # 17,000 times 1,000 characters of four bytes are more than 64 MiB
    many = {name: np.ones(17_000) for name in ROWS}
    store.save_predictions("lora", RUN, names=["a" * 1000] * 17_000, **many)
    assert store.load_predictions("lora", RUN).names is None


def test_paths_must_be_one_for_each_image(tmp_path):
    with pytest.raises(StoreError, match="arrays of one length"):
        ResultsStore(tmp_path).save_predictions("lora", RUN, names=("a",), **ROWS)


def test_leaving_names_out_changes_nothing_else():
    plain, named = io.BytesIO(), io.BytesIO()
    np.savez_compressed(plain, labels=np.arange(3), margin=np.ones(3))
    np.savez_compressed(named, labels=np.arange(3), margin=np.ones(3), names=np.array(["a"] * 3))
    assert (has_names(plain.getvalue()), has_names(named.getvalue())) == (False, True)
    assert without_names(named.getvalue()) == without_names(plain.getvalue()) == plain.getvalue()
