"""`peftbench dashboard`: a W&B workspace with the charts that compare methods."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from peftbench.errors import ConfigError
from peftbench.loggers import require
from peftbench.loggers.base import LoggerSettings
from peftbench.loggers.wandb import has_key, server_url
from peftbench.tasks import CLASSIFICATION

METHOD = "method.name"  # in the configuration of a run


@dataclass(frozen=True)
class Bars:
    """Mean and deviation of a value of the summary, one bar a method."""

    title: str
    value: str

    def __str__(self) -> str:
        return f"{self.title}: bars of {self.value} by {METHOD}, mean and standard deviation"


@dataclass(frozen=True)
class Points:
    """Two values of the summary against each other, with the best value up to each abscissa."""

    title: str
    x: str
    y: str
    log_x: bool = True

    def __str__(self) -> str:
        scale = " (logarithmic)" if self.log_x else ""
        return f"{self.title}: points of {self.y} against {self.x}{scale}, with the front"


@dataclass(frozen=True)
class Curves:
    """A value of every epoch, one line a method."""

    title: str
    value: str

    def __str__(self) -> str:
        return f"{self.title}: curves of {self.value} over epoch by {METHOD}"


Panel = Bars | Points | Curves
SCORE, MEAN = (metric.name for metric in CLASSIFICATION.scores[:2])

SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Accuracy by method": (
        Bars("Test accuracy", f"test/{SCORE}"),
        Bars("Mean accuracy of the classes", f"test/{MEAN}"),
        Bars("Validation accuracy of tuning runs", f"val/{SCORE}"),
    ),
    "Pareto": (
        Points("Accuracy and tuned parameters", "parameters/tuned", f"test/{SCORE}"),
        Points("Accuracy and size of a stored task", "parameters/stored_bytes", f"test/{SCORE}"),
        Points("Accuracy and training time", "cost/seconds_train", f"test/{SCORE}"),
    ),
    "Cost": (
        Bars("Training time in seconds", "cost/seconds_train"),
        Bars("Peak memory in bytes", "cost/peak_bytes"),
        Bars("Latency of one image in ms", "cost/latency_ms_batch1"),
        Bars("Multiply-adds of one image in 1e9", "cost/forward_gmacs"),
    ),
    "Training": (
        Curves("Training loss", "train/loss"),
        Curves("Training accuracy", "train/accuracy"),
    ),
}


def describe(settings: LoggerSettings, name: str) -> str:
    """What `create` would make, one line a panel."""
    where = f"{settings.entity}/{settings.project}" if settings.entity else settings.project
    lines = [f"workspace {name!r} in {where} at {server_url()}"]
    for section, panels in SECTIONS.items():
        lines += [f"  {section}", *(f"    {panel}" for panel in panels)]
    return "\n".join(lines) + "\n"


def create(settings: LoggerSettings, name: str) -> str:
    """Make the workspace on the server; its address.

    Raises:
        ConfigError: wandb-workspaces or a key is missing, or the server refuses.
    """
    require("wandb_workspaces", "peftbench dashboard")
    if not has_key():
        raise ConfigError(
            f"peftbench dashboard found no key for {server_url()}. Run `wandb login` or set "
            "WANDB_API_KEY; --dry-run needs none."
        )
    import wandb

    try:
        entity = settings.entity or wandb.Api().default_entity or ""
        return str(workspace(settings, name, entity).save().url)
    except Exception as e:  # its packages raise whatever their transport does
        raise ConfigError(
            f"{server_url()} did not take the workspace: {' '.join(str(e).split())}. Check "
            "--entity, --project and the network."
        ) from e


def workspace(settings: LoggerSettings, name: str, entity: str) -> Any:
    """The workspace as an object of wandb-workspaces, on this side of the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is written for an older pydantic
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws

        def chart(panel: Panel) -> Any:
            if isinstance(panel, Bars):
                return wr.BarPlot(
                    title=panel.title,
                    metrics=[wr.Metric(panel.value)],  # bars show the last value by themselves
                    groupby=wr.Config(METHOD),
                    groupby_aggfunc="mean",
                    groupby_rangefunc="stddev",
                )
            if isinstance(panel, Points):
                return wr.ScatterPlot(
                    title=panel.title,
                    x=wr.SummaryMetric(panel.x),
                    y=wr.SummaryMetric(panel.y),
                    log_x=panel.log_x,
                    running_ymax=True,
                )
            return wr.LinePlot(
                title=panel.title,
                x="epoch",
                y=[panel.value],
                groupby=wr.Config(METHOD),
                groupby_aggfunc="mean",
            )

        sections = [
            ws.Section(name=section, panels=[chart(p) for p in panels], is_open=True)
            for section, panels in SECTIONS.items()
        ]
        return ws.Workspace(entity=entity, project=settings.project, name=name, sections=sections)
