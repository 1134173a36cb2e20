"""Parts of installed packages: one of each kind is registered and found."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.documents import ROOT

PARTS = {
    "families": """
from peftbench.backbones.anatomy import Example, Family
from peftbench.backbones.families import register_family

vgg = Family(name="vgg", classes=("VGG",), blocks="features.*", inside={}, stem={},
             example=Example("VGG-11", "vgg11"))
register_family(vgg)
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
    "layouts": """
from peftbench.data.files import FilePictures
from peftbench.data.layouts.base import Contents, Layout, Rows, register_layout

def read(folder, spec):
    names = {part: sorted((folder / part).iterdir()) for part in ("train", "test")}
    parts = {
        part: Rows.of([(f"{part}/{path.name}", int(path.name[0])) for path in paths])
        for part, paths in names.items()
    }
    return Contents(("a", "b"), parts, FilePictures(folder))

needs = lambda spec: ("train/", "test/", "digit_first.txt")
register_layout(Layout("digit_first", "the first digit of a name is its class", needs, read))
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
from peftbench.cli.method_pages import examples
print("vgg" in FAMILIES, family_of(timm.create_model("resnet18")).name)
print(family_of(timm.create_model("vgg11")).name, "vgg" in FAMILIES)
print([example.title for example in examples()][-3:])
"""
LEAVES = """
name: garden/leaves
reader: public
suite: garden
root: ${data_dir}
facts: {classes: 2, train: 18, val: 2, test: 4, folders: [leaves], layouts: [digit_first]}
"""


def installed(site: Path, package: str, groups: dict[str, str]) -> None:
    """Make `package` of a folder of installed packages known with its entry points."""
    info = site / f"{package}-0.1.dist-info"
    info.mkdir()
    name = package.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"[peftbench.{group}]\nmine = {module}\n" for group, module in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: one with a part of each kind, one with a data set alone."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "their_parts").mkdir()
    (folder / "their_parts" / "__init__.py").write_text("")
    for kind, code in PARTS.items():
        (folder / "their_parts" / f"{kind}.py").write_text(code)
    installed(folder, "their_parts", {kind: f"their_parts.{kind}" for kind in PARTS})
    leaves = folder / "their_data" / "conf" / "dataset" / "garden" / "leaves.yaml"
    leaves.parent.mkdir(parents=True)  # and no __init__.py
    leaves.write_text(LEAVES)
    installed(folder, "their_data", {"conf": "their_data"})
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
    examples = "['GhostNet 1.0', 'VGG-11', 'RegNetX-200MF']"
    assert told(site, tmp_path, "-c", DESCRIBED) == ["False resnet", "vgg True", examples]


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
    planned = told(site, tmp_path, "-m", "peftbench", "plan", *sweep[1:], "hydra.launcher.jobs=2")
    assert "4 jobs: 0 done, 0 unsupported, 4 to run" in planned
    assert "got 4 jobs" not in planned


# the test split, whose pictures have the colour of their class and number, and the size of train
LOAD = """
from peftbench import data
from peftbench.config.build import dataset_specs
from peftbench.config.hydra import register
from peftbench.spec import Phase, Preprocessing
register()
how = Preprocessing(size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
splits = data.load(dataset_specs("data")["garden/leaves"], Phase.FINAL, how)
test = splits.report.open_once()
print(test.labels.tolist())
print([test.images[test.labels == label][..., 0].mean().item() // 4 for label in (0, 1)])
print(len(splits.train))
"""


def test_a_data_set_of_an_installed_package_is_read_in_the_layout_of_another(
    site: Path, tmp_path: Path
) -> None:
    for part, each in (("train", 10), ("test", 2)):
        for label in (0, 1):
            for number in range(each):
                path = tmp_path / "data" / "leaves" / part / f"{label}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (100 * label, number, len(part))).save(path)
    (tmp_path / "data" / "leaves" / "digit_first.txt").write_text("")
    listed = told(site, tmp_path, "-m", "peftbench", "list", "datasets")
    (line,) = [line for line in listed if line.startswith("garden/leaves ")]
    assert "yes (digit_first)" in line
    (planned, *_) = told(site, tmp_path, "-m", "peftbench", "plan", "dataset=garden/leaves")
    assert planned.endswith("  to run       linear x vit_mini x garden/leaves, seed 0")
    assert told(site, tmp_path, "-c", LOAD) == ["[0, 0, 1, 1]", "[0.0, 25.0]", "20"]


def test_a_folder_conf_of_the_working_directory_goes_before_that_of_a_package(
    site: Path, tmp_path: Path
) -> None:
    own = tmp_path / "conf" / "dataset" / "garden" / "leaves.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("name: garden/leaves\nreader: folder\nroot: /own\n")
    show = ("run", "dataset=garden/leaves", "--cfg", "job", "-p", "dataset.root")
    assert told(site, tmp_path, "-m", "peftbench", *show) == ["/own"]
    own.unlink()
    assert told(site, tmp_path, "-m", "peftbench", *show) == ["data"]


def test_a_name_that_is_taken_is_refused() -> None:
    from peftbench.backbones.families import FAMILIES, register_family
    from peftbench.data.layouts.base import LAYOUTS, register_layout
    from peftbench.report.figures import register_figure

    vit = FAMILIES["vit"]
    assert register_family(vit) is vit  # the same one again
    with pytest.raises(ValueError, match="family 'vit' is registered twice"):
        register_family(dataclasses.replace(vit, classes=("Other",)))
    with pytest.raises(ValueError, match="figure 'calibration' is registered twice"):
        register_figure("calibration")(lambda of: None)
    imagefolder = LAYOUTS["imagefolder"]
    assert register_layout(imagefolder) is imagefolder
    with pytest.raises(ValueError, match="layout 'imagefolder' is registered twice"):
        register_layout(dataclasses.replace(imagefolder, about="another"))
