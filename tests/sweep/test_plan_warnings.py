"""A plan says what a run will lack, before hours go into it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from support.tiny_runs import tiny_spec

from peftbench.results.store import ResultsStore
from peftbench.spec import BackboneSpec
from peftbench.sweep.jobs import Job
from peftbench.sweep.plan import entries

DINOV3 = BackboneSpec("vit_small_patch16_dinov3", pretrained=False)  # its qkv has no bias


@pytest.mark.parametrize(
    ("method", "backbone", "note"),
    [
        ("ssf", DINOV3, "does not merge on this backbone: ssf .*'blocks.0.attn.qkv', which has no"),
        ("repadapter", DINOV3, "does not merge on this backbone: repadapter .*'blocks.0.attn.qkv'"),
        ("lora", DINOV3, None),
        ("ssf", tiny_spec().backbone, None),
        ("mlp", tiny_spec().backbone, None),  # of which no card promises it
    ],
)
def test_a_plan_says_before_training_that_a_run_will_not_merge(
    method: str, backbone: BackboneSpec, note: str | None, tmp_path: Path
) -> None:
    spec = dataclasses.replace(tiny_spec(method), backbone=backbone)
    (entry,) = entries([Job((), spec)], ResultsStore(tmp_path))
    assert entry.state == "to run"
    if note is None:
        assert entry.note == ""
    else:
        assert re.search(note, entry.note)
