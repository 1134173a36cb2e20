"""Records of runs that never ran."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from peftbench.results.record import Cost, EpochRow, Parameters, Provenance, RunRecord, Status

MakeRecord = Callable[..., RunRecord]


@dataclass(frozen=True)
class _Facts:
    """What else may matter to a table, by default that of an ordinary final run."""

    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "vit_mini"
    group: str = ""
    suite: str = "mini"
    suite_version: int = 1
    manifest: str = "m0"
    weights: str | None = "w0"
    status: Status = Status.OK
    error: str | None = None
    tuned: int = 1000
    unfrozen: int = 0
    head: int = 100
    phase: str = "final"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    selection: str = "last"
    version: int = 1
    train_images: int | None = None
    shots: int | None = None
    history: Sequence[float] = ()  # train accuracy of each epoch
    data: Mapping[str, Any] = field(default_factory=dict)  # fields of the data set
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the split, beside top-1
    tuning: Mapping[str, Any] | None = None
    metric: str | None = None  # that the run declares
    classes: int | None = None


_FACTS = frozenset(f.name for f in fields(_Facts))


def _make_record(
    method: str = "lora",
    dataset: str = "digits",
    seed: int = 0,
    top1: float | None = 0.5,
    **changes: Any,
) -> RunRecord:
    """`changes` are to `_Facts`, and others to the `Cost` of a run on this machine's CPU."""
    facts = _Facts(**{name: changes.pop(name) for name in _FACTS & changes.keys()})
    ok = facts.status is Status.OK
    cost = Cost(**{"device": "cpu", "dtype": "float32", **changes})
    added = facts.tuned - facts.unfrozen
    size = 4 * (facts.tuned + facts.head)
    spec = _spec(method, dataset, seed, facts)
    split = "test" if facts.phase == "final" else "val"
    images = {"train_images": facts.train_images, "classes": facts.classes}
    measured = {"top1": top1, **facts.metrics} if ok else {}
    return RunRecord(
        run_id=hashlib.sha256(repr(spec).encode()).hexdigest()[:16],
        spec=spec,
        status=facts.status,
        error=facts.error,
        metrics={
            name if "/" in name else f"{split}/{name}": value
            for name, value in measured.items()
            if value is not None
        },
        tuning=facts.tuning and dict(facts.tuning),
        selection=facts.selection,
        parameters=Parameters(added, facts.head, facts.unfrozen, 5_000_000, size) if ok else None,
        cost=cost if ok else None,
        history=_history(facts.history) if ok else [],
        provenance=Provenance(
            *("0", "3", {}, None, None, "h", "p", 1),
            backbone_sha256=facts.weights,
            data={name: count for name, count in images.items() if count},
        ),
    )


def _history(accuracies: Sequence[float]) -> list[EpochRow]:
    return [EpochRow(i, 1 - a, a, 1e-3, 1.0) for i, a in enumerate(accuracies, 1)]


def _spec(method: str, dataset: str, seed: int, facts: _Facts) -> dict[str, Any]:
    return {
        "method": {
            "name": method,
            "version": facts.version,
            "hyperparameters": dict(facts.hyperparameters),
        },
        "backbone": {
            "name": f"{facts.backbone}.tag",
            "title": facts.backbone,
            "pretrained": True,
        },
        "dataset": {
            "name": dataset,
            "suite": facts.suite,
            "suite_version": facts.suite_version,
            "group": facts.group,
            "manifest": facts.manifest,
            "limit": facts.limit,
            "shots": facts.shots,
            **facts.data,
        },
        "recipe": {"name": "default", "lr": 1e-3, "epochs": 10, **facts.recipe},
        "seed": seed,
        "phase": facts.phase,
        "precision": "auto",
        **({"selection": {"rule": "last", "metric": facts.metric}} if facts.metric else {}),
    }


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """Builds a record from what matters to a table."""
    return _make_record


QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def _chromium(driver: Any) -> str | None:
    """An executable of Chromium, or `None`."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, names), driver.chromium.executable_path]
    return next((path for path in found if path and Path(path).exists()), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, where one is found.

    Debian: apt-get install chromium; elsewhere `playwright install chromium`, or CHROMIUM=PATH.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        path = _chromium(driver)
        if path is None:
            pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
        browser = driver.chromium.launch(executable_path=path, headless=True, args=QUIET)
        yield browser
        browser.close()
