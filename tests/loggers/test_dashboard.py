"""`peftbench dashboard` describes and builds the charts that compare methods."""

from __future__ import annotations

import pytest
from records import record

from peftbench.loggers import LoggerSettings, dashboard
from peftbench.loggers.base import history_row
from peftbench.loggers.wandb import summary
from peftbench.results.record import EpochRow

SETTINGS = LoggerSettings(name="wandb", project="mine", entity="team")


def test_a_dry_run_lists_every_panel_and_needs_neither_key_nor_package(cli, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    done = cli("dashboard", "--dry-run", "--entity", "team", "--project", "mine")
    assert (done.status, done.err) == (0, "")
    first, *lines = done.out.splitlines()
    assert first == "workspace 'peftbench' in team/mine at https://api.wandb.ai"
    assert [line.strip() for line in lines if line[2] != " "] == [
        "Accuracy by method",
        "Pareto",
        "Cost",
        "Training",
    ]
    assert (
        "    Accuracy and tuned parameters: points of test/top1 against parameters/tuned "
        "(logarithmic), with the front" in lines
    )
    panels = sum(map(len, dashboard.SECTIONS.values()))
    assert len([line for line in lines if line.startswith("    ")]) == panels


def test_without_a_key_no_workspace_is_made(cli) -> None:
    pytest.importorskip("wandb_workspaces")
    done = cli("dashboard")
    assert done.status == 2
    assert "no key for https://api.wandb.ai" in done.err


def test_every_value_of_a_panel_is_one_that_runs_log() -> None:
    known = set(summary(record())) | set(history_row(EpochRow(1, 1.0, 0.5, 1e-3, 1.0)))
    known |= {"test/mean_per_class", "val/top1"}  # of full records and of tuning runs
    known |= {"cost/peak_bytes", "cost/latency_ms_batch1", "cost/forward_gmacs"}
    for panels in dashboard.SECTIONS.values():
        for panel in panels:
            for name in ("x", "y", "value"):
                assert getattr(panel, name, "test/top1") in known


def test_the_workspace_has_the_panels_of_the_description() -> None:
    pytest.importorskip("wandb_workspaces")
    made = dashboard.workspace(SETTINGS, "compare", "team")
    assert (made.entity, made.project, made.name) == ("team", "mine", "compare")
    titles = {section.name: [p.title for p in section.panels] for section in made.sections}
    assert titles == {
        name: [panel.title for panel in panels] for name, panels in dashboard.SECTIONS.items()
    }
    spec = made._to_model().model_dump_json(by_alias=True)
    for text in ("Scatter Plot", "Bar Chart", "Run History Line Plot", "parameters/tuned"):
        assert text in spec


@pytest.mark.parametrize("refused", [False, True])
def test_the_address_of_a_new_workspace_is_said_and_so_is_a_refusal(
    cli, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    pytest.importorskip("wandb_workspaces")

    class Workspace:
        url = "http://server/team/peftbench?nw=1"

        def save(self) -> Workspace:
            if refused:
                raise ValueError("no such\nproject")
            return self

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(dashboard, "workspace", lambda settings, name, entity: Workspace())
    done = cli("dashboard", "--entity", "team")
    if refused:
        assert (done.status, done.out) == (2, "")
        assert "https://api.wandb.ai did not take the workspace: no such project." in done.err
    else:
        assert (done.status, done.out) == (0, f"{Workspace.url}\n")
