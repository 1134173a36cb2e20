"""Parts of installed packages: one of each kind is registered and found."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import ROOT

PARTS = {
    "families": """
from peftbench.backbones.anatomy import Family
from peftbench.backbones.families import register_family

register_family(Family(name="vgg", classes=("VGG",), blocks="features.*", inside={}, stem={}))
""",
    "figures": """
from matplotlib.figure import Figure
from peftbench.report.figures import register_figure

@register_figure("blank_{score}", by_suite=True)
def blank(of):
    figure = Figure()
    figure.subplots().set_title(f"{len(of.views.table)} runs")
    return figure
""",
    "launchers": """
from dataclasses import dataclass
from peftbench.sweep.launchers.base import PLUGINS, JobLauncher, QueueConfig, register_launcher

@dataclass
class EchoConfig(QueueConfig):
    _target_: str = f"{PLUGINS}.EchoLauncher"
    greeting: str = "hello"

@register_launcher("echo", EchoConfig)
class EchoLauncher(JobLauncher):
    def __init__(self, **options):
        self.options = EchoConfig(**options)

    def work(self, jobs, store):
        print(self.options.greeting, len(jobs), "jobs")
""",
}
DRAWN = """
import pandas as pd
from peftbench.report.figures import KINDS, all_figures
from peftbench.report.view import Views
print(list(KINDS)[-1])
table = pd.DataFrame({"backbone": ["b", "b"], "suite": ["s", "t"]})
kinds = ["blank_{score}"]
for _, stem, figure in all_figures(Views(table), pd.DataFrame(), kinds=kinds):
    print(stem, figure.axes[0].get_title())
"""
DESCRIBED = """
import timm
from peftbench.backbones.families import FAMILIES, family_of
print("vgg" in FAMILIES, family_of(timm.create_model("resnet18")).name)
print(family_of(timm.create_model("vgg11")).name, "vgg" in FAMILIES)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with one package, which adds a part of each kind."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "their_parts").mkdir()
    (folder / "their_parts" / "__init__.py").write_text("")
    info = folder / "their_parts-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 0.1\n")
    groups = []
    for kind, code in PARTS.items():
        (folder / "their_parts" / f"{kind}.py").write_text(code)
        groups.append(f"[peftbench.{kind}]\nmine = their_parts.{kind}\n")
    (info / "entry_points.txt").write_text("\n".join(groups))
    return folder


def told(site: Path, work: Path, *arguments: str) -> list[str]:
    """What a fresh Python with the packages of `site` prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=work,
        env={"PYTHONPATH": f"{site}:{ROOT}", "PATH": "", "HOME": str(work)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_family_of_an_installed_package_describes_its_backbones(
    site: Path, tmp_path: Path
) -> None:
    assert told(site, tmp_path, "-c", DESCRIBED) == ["False resnet", "vgg True"]


def test_a_figure_of_an_installed_package_is_drawn_behind_ours_for_each_suite(
    site: Path, tmp_path: Path
) -> None:
    assert told(site, tmp_path, "-c", DRAWN) == [
        "blank_{score}",
        "blank_accuracy_b_s 1 runs",
        "blank_accuracy_b_t 1 runs",
    ]


def test_a_launcher_of_an_installed_package_gets_the_jobs_of_a_sweep(
    site: Path, tmp_path: Path
) -> None:
    sweep = ("run", "-m", "method=linear,bias", "seed=0,1", "hydra/launcher=echo")
    lines = told(site, tmp_path, "-m", "peftbench", *sweep, "hydra.launcher.greeting=got")
    assert lines[-1] == "got 4 jobs"


def test_a_name_that_is_taken_is_refused() -> None:
    from peftbench.backbones.families import FAMILIES, register_family
    from peftbench.report.figures import register_figure

    vit = FAMILIES["vit"]
    assert register_family(vit) is vit  # the same one again
    with pytest.raises(ValueError, match="family 'vit' is registered twice"):
        register_family(dataclasses.replace(vit, classes=("Other",)))
    with pytest.raises(ValueError, match="figure 'calibration' is registered twice"):
        register_figure("calibration")(lambda of: None)
