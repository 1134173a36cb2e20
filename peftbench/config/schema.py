"""What the configuration of a run may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from peftbench.loggers import LoggerSettings
from peftbench.spec import (
    BackboneSpec,
    DatasetSpec,
    PreprocessingSpec,
    Protocol,
    Recipe,
    Selection,
)
from peftbench.training.saving import CheckpointPolicy

DATA_DIR = "${data_dir}"  # root of a data set that is looked for by its name


@dataclass
class TunerConfig:
    """Schema of `tuner`; none of it is part of a run's identity, what it chooses is."""

    name: str = "none"  # or "grid", "optuna"
    space: dict[str, Any] = field(default_factory=dict)  # key -> values, or low, high, log, integer
    trials: int | None = None  # of each cell; needed by optuna, all points of a grid by default
    pruner: str = "none"  # or "median", "halving": what stops hopeless trials of optuna
    look_at: list[float] = field(default_factory=lambda: [0.25, 0.5])  # shares of their epochs
    startup: int = 4  # trials before median stops any
    reduction: int = 3  # of so many trials, halving lets one go on
    seed: int = 0  # of the trials' runs and of what is drawn
    grid: str | None = None  # instead of a space: each method's own grid from conf/grid/NAME.yaml


@dataclass
class RunConfig:
    """Schema of the composed configuration; every key has a type."""

    method: Any = MISSING
    backbone: BackboneSpec = field(default_factory=lambda: BackboneSpec(name=MISSING))
    dataset: DatasetSpec = field(default_factory=lambda: DatasetSpec(name=MISSING, reader=MISSING))
    preprocessing: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    recipe: Recipe = field(default_factory=Recipe)
    by_dataset: Any = None  # rows of an overlay's table, by the name of the data set in its suite
    selection: Selection = field(default_factory=Selection)
    protocol: str = Protocol.name
    seeds: tuple[int, ...] = Protocol.seeds
    average: str = Protocol.average
    parameters: str = Protocol.parameters
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    experiments: Any = None
    tuner: TunerConfig = field(default_factory=TunerConfig)
    tuning: str = ""  # JSON: how the hyper-parameters of a final run were chosen, for its record
    looks: dict[int, float | None] = field(default_factory=dict)  # of a trial that may be stopped
    processes: int = 1  # of one run, on as many GPUs
    checkpoint: CheckpointPolicy = field(default_factory=lambda: CheckpointPolicy(minutes=30.0))
    micro_batch: int | None = None  # images in memory at a time, where a batch does not fit
    cache: str = "auto"  # activations of what is frozen are computed once and kept; or "off"
    cache_gigabytes: float = 10.0  # that they may take in the user's cache
    latency: str = "auto"  # known ones are taken over and new ones measured; or "off"
    one_pass: str = ""  # JSON: rates and decays of trials that train in one pass with this one
    compile: bool = False  # the training, by `torch.compile`
    seed: int = 0
    phase: str = "final"
    precision: str = "auto"
    results_dir: str = "results"
    data_dir: str | None = None  # folder for all public data sets; `dataset.root` is one's own
    device: str = "auto"
    threads: int | None = None
    force: bool = False
    quiet: bool = False  # say nothing of one's own images; a sweep has said it for its jobs
