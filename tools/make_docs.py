"""Write what is generated from the methods, or with --check say what is not current.

`--without support.md` leaves that out, which takes longer than all others.

support.md     every method on a tiny backbone of every family, really run
parameters.md  parameters of every method on the standard backbones, and what papers print
methods.md     what `peftbench list methods --long` prints
looks.csv      colour and marker of every method in figures
anatomies.json where things are in the backbones that every user asks about
atlas.md       where each method acts, what it costs and scores; also peftbench/report/atlas.json
README.md and CITATION.cff   their numbers and names of methods
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

import atlas_page  # noqa: E402 - beside this file
import printed_counts  # noqa: E402
from in_general import general  # noqa: E402
from support.tiny_backbones import TINY, anatomy_of, fill, fresh, images  # noqa: E402

from peftbench.artefacts import task_file as tuned  # noqa: E402
from peftbench.backbones import anatomies, known  # noqa: E402
from peftbench.backbones.families import classes_of  # noqa: E402
from peftbench.backbones.load import load  # noqa: E402
from peftbench.backbones.shipped import SHIPPED  # noqa: E402
from peftbench.cli import method_pages  # noqa: E402
from peftbench.config.choices import catalogue  # noqa: E402
from peftbench.errors import NotMergeable, Unsupported  # noqa: E402
from peftbench.methods import METHODS, Method, Tuned, apply, discover  # noqa: E402
from peftbench.report import atlas  # noqa: E402
from peftbench.spec import BackboneSpec  # noqa: E402

DOCS = ROOT / "docs"
LOOKS = ROOT / "peftbench" / "report" / "figures" / "looks.csv"
START, END = "<!-- methods:start -->\n", "<!-- methods:end -->"  # around the names in the README
CLASSES = 5
# a merged model differs by the rounding of its weights, a reloaded one by the order of sums
MERGED, RELOADED = 1e-4, 1e-5  # relative to the largest logit, float32

GENERATED = "<!-- written by `make docs`; do not edit -->\n"


@dataclass(frozen=True)
class Outcome:
    """What one method did on one tiny backbone."""

    supported: bool
    remark: str = ""  # why not, or what a user must know


def support() -> str:
    """The matrix of methods and families as Markdown."""
    discover()
    outcomes = {
        (name, backbone): outcome(METHODS[name](), backbone)
        for name in METHODS
        for backbone in TINY
    }
    outcomes = {
        (name, backbone): Outcome(o.supported, general(o.remark, name, anatomy_of(backbone).family))
        for (name, backbone), o in outcomes.items()
    }
    remarks = list(dict.fromkeys(o.remark for o in outcomes.values() if o.remark))
    columns = [backbone.replace("_", " ") for backbone in TINY]
    lines = [
        GENERATED + "# Methods and backbone families",
        "",
        "Each cell is the result of attaching the method with its default hyper-parameters to a",
        "tiny random backbone of the family, one forward and backward pass, a step, saving,",
        "reloading into a fresh backbone and, where the method promises it, merging; outputs are",
        "compared. ● works, ◐ works with a remark, – is refused with a reason before anything is",
        "changed. Numbers lead to the remark or reason below. For one model of every module of",
        "timm see [every-module.md](every-module.md).",
        "",
        "| method | " + " | ".join(columns) + " |",
        "| --- |" + " :---: |" * len(columns),
    ]
    for name in METHODS:
        cells = [_cell(outcomes[name, backbone], remarks) for backbone in TINY]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += ["", "## Remarks and reasons", ""]
    lines += [f"{i}. {remark}" for i, remark in enumerate(remarks, 1)]
    return "\n".join(lines) + "\n"


def _cell(found: Outcome, remarks: Sequence[str]) -> str:
    number = f"<sup>{remarks.index(found.remark) + 1}</sup>" if found.remark else ""
    mark = ("◐" if found.remark else "●") if found.supported else "–"
    return mark + number


def outcome(method: Method, backbone: str) -> Outcome:
    """Run everything that a user of the pair relies on.

    Raises:
        AssertionError: the pair works, but not as the method's card says.
    """
    try:
        trained = _attach(method, backbone)
    except Unsupported as e:
        return Outcome(False, str(e))
    _step(trained, images(backbone, 4))
    fill(trained.trainable | trained.changing_buffers, seed=1)
    x = images(backbone, 2)
    with torch.no_grad():
        expected = trained.model.eval()(x)
    assert expected.shape == (2, CLASSES) and expected.isfinite().all()
    with tempfile.TemporaryDirectory() as folder:
        tuned.save(trained, Path(folder), {})
        again = _attach(trained.method.stored_as(trained.anatomy), backbone)
        tuned.load(again, Path(folder))
    _assert_close(again, x, expected, RELOADED)
    remarks = [note for note in trained.notes if "weights are parametrized" not in note]
    if any("weights are parametrized" in note for note in trained.notes):
        remarks.append("runs inside the weights, because their modules are never called")
    if method.card.mergeable:
        merged = copy.deepcopy(trained)
        try:
            model = method.merge(merged.model)
        except NotMergeable:
            assert method.unmergeable(anatomy_of(backbone)), "a note says it before training"
        else:
            with torch.no_grad():
                error = (model.eval()(x) - expected).abs().max() / expected.abs().max()
            assert error <= MERGED, f"{method.name} on {backbone}: merging moves logits by {error}"
    return Outcome(True, " ".join(remarks))


def _attach(method: Method, backbone: str) -> Tuned:
    generator = torch.Generator().manual_seed(0)
    return apply(method, fresh(backbone), anatomy_of(backbone), CLASSES, generator)


def _step(trained: Tuned, x: torch.Tensor) -> None:
    torch.manual_seed(0)
    trained.train()
    parameters = list(trained.trainable.values())
    F.cross_entropy(trained.model(x), torch.arange(len(x)) % CLASSES).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    torch.optim.SGD(parameters, lr=1e-3).step()


def _assert_close(
    trained: Tuned, x: torch.Tensor, expected: torch.Tensor, tolerance: float
) -> None:
    with torch.no_grad():
        error = (trained.model.eval()(x) - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{trained.method.name}: differs by {error}"


# the settings whose counts the literature prints, with the name of the row
SETTINGS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("full", "full", {}),
    ("linear", "linear", {}),
    ("partial-1", "partial", {"num_blocks": 1}),
    ("partial-2", "partial", {"num_blocks": 2}),
    ("partial-4", "partial", {"num_blocks": 4}),
    ("partial, last stage", "partial", {"unit": "stage"}),
    ("partial, last 2 stages", "partial", {"unit": "stage", "num_blocks": 2}),
    ("bias", "bias", {}),
    ("bias, as released", "bias", {"variant": "released"}),
    ("norm", "norm", {}),
    ("sidetune", "sidetune", {}),
    ("adapter of VPT, reduction 8", "adapter_vpt", {"reduction": 8}),
    ("adapter of VPT, reduction 64", "adapter_vpt", {"reduction": 64}),
    ("adapter of VPT, reduction 256", "adapter_vpt", {"reduction": 256}),
    ("adapter, width 8", "adapter", {"bottleneck": 8}),
    ("AdaptFormer, width 8", "adaptformer", {"bottleneck": 8}),
    ("AdaptFormer, width 64", "adaptformer", {"bottleneck": 64}),
    ("Adapter+, width 8", "adapter_plus", {"bottleneck": 8}),
    ("Convpass, width 8", "convpass", {"bottleneck": 8}),
    ("RepAdapter, width 8", "repadapter", {"bottleneck": 8}),
    ("VPT-shallow, 1 token", "vpt_shallow", {"num_tokens": 1}),
    ("VPT-deep, 1 token", "vpt_deep", {"num_tokens": 1}),
    ("VPT-deep, 50 tokens", "vpt_deep", {"num_tokens": 50}),
    ("VPT pad, 5 pixels", "vpt_pad", {"num_tokens": 5}),
    ("SSF", "ssf", {}),
    ("SSF, as released", "ssf", {"variant": "released"}),
    ("FacT-TT, rank 4", "fact_tt", {"rank": 4}),
    ("FacT-TT, rank 8", "fact_tt", {"rank": 8}),
    ("FacT-TT, rank 16", "fact_tt", {"rank": 16}),
    ("FacT-TK, rank 8", "fact_tk", {"rank": 8}),
    ("FacT-TK, rank 16", "fact_tk", {"rank": 16}),
    ("FacT-TK, rank 32", "fact_tk", {"rank": 32}),
    ("LoRA, rank 8", "lora", {"rank": 8}),
    ("LoRA, rank 16", "lora", {"rank": 16}),
)
BACKBONES: dict[str, str] = {
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-L/16": "vit_large_patch16_224",
    "ViT-H/14": "vit_huge_patch14_224",
    "Swin-B": "swin_base_patch4_window7_224",
    "ConvNeXt-B": "convnext_base",
    "ResNet-50": "resnet50",
}
HEAD_CLASSES = 100


def parameters() -> str:
    """Counts on the standard backbones, and beside what papers print."""
    discover()
    counted = {title: method_pages.anatomy_of(name) for title, name in BACKBONES.items()}
    heads = {title: (a.head_width + 1) * HEAD_CLASSES for title, a in counted.items()}
    lines = [
        GENERATED + "# Parameters that train",
        "",
        f"In each cell without the head, then with a linear head of {HEAD_CLASSES} classes, which",
        "has " + ", ".join(f"{n:,} on {title}" for title, n in heads.items()) + ".",
        "The closed forms that give these numbers are compared with counted tensors in the tests.",
        "",
        "| setting | " + " | ".join(BACKBONES) + " |",
        "| --- |" + " ---: |" * len(BACKBONES),
    ]
    for title, name, options in SETTINGS:
        method = METHODS[name](**options)
        cells = []
        for backbone, anatomy in counted.items():
            try:
                method.check(anatomy)
            except Unsupported:
                cells.append("–")
                continue
            count = method.expected_params(anatomy)
            cells.append(f"{count:,}<br>{count + heads[backbone]:,}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "## What papers print", "", *printed_counts.conventions(), ""]
    lines += [
        "| method | backbone | tasks | convention | printed | ours, same convention | source |",
        "| --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    for row in printed_counts.ROWS:
        ours = printed_counts.ours(row, counted[row.backbone])
        lines.append(
            f"| {row.title} | {row.backbone} | {row.tasks} | {row.convention} | {row.printed} | "
            f"{ours} | {row.source} |"
        )
    return "\n".join(lines) + "\n"


def methods() -> str:
    """What each method is, costs and comes from."""
    return (
        GENERATED + "# Methods\n\nEach with its definition, its cost and its source; counts are "
        "those of the default hyper-parameters. The [atlas](atlas.md) has all in one table.\n\n"
        + method_pages.to_markdown(method_pages.pages())
    )


def looks() -> str:
    """The table of colours and markers that figures read, which load no method."""
    discover()
    cards = {name: METHODS[name].card for name in METHODS}
    rows = [(name, *card.look) for name, card in cards.items() if card.look is not None]
    return "".join(f"{','.join(row)}\n" for row in [("method", "colour", "marker"), *rows])


def known_anatomies() -> str:
    """Anatomies of the configured backbones, and of those that `list methods --long` counts for."""
    sizes: dict[str, list[int | None]] = {"vit_mini": []}  # beside their own
    sizes |= {example.architecture: [] for example in method_pages.examples()}
    for entry in catalogue("backbone").values():
        if entry["name"] == "vit_mini" or entry["name"] not in SHIPPED:  # others are installed
            sizes.setdefault(entry["name"], []).append(entry.get("image_size"))
    specs = {
        name: [
            BackboneSpec(name, name == "vit_mini", image_size=size)
            for size in dict.fromkeys((None, *others))
        ]
        for name, others in sizes.items()
    }
    models = [load(each[0], 2, device="meta").model for each in specs.values()]
    return known.written(
        {name: tuple(map(anatomies.described, each)) for name, each in specs.items()},
        classes=[name for model in models for name in classes_of(model)],
    )


def readme() -> str:
    """The README with the number and the names of the methods."""
    discover()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = _counted(text, "It has").split(START)
    _, after = rest.split(END)
    own = [name for name in METHODS if not name.startswith("hf_")]
    listed = "By name: " + ", ".join(f"`{name}`" for name in own) + "."
    listed += f" And {len(METHODS) - len(own)} [`hf_*`](docs/hf-peft.md)."
    return before + START + textwrap.fill(listed, 105, break_on_hyphens=False) + "\n" + END + after


def citation() -> str:
    """The citation file with the number of the methods."""
    discover()
    return _counted((ROOT / "CITATION.cff").read_text(encoding="utf-8"), "backbones:")


def _counted(text: str, lead: str) -> str:
    """The text with the number of methods behind `lead`."""
    return re.sub(rf"{lead} \d+ methods", f"{lead} {len(METHODS)} methods", text)


def documents() -> dict[Path, Callable[[], str]]:
    """What makes the text of each generated document, in the order in which they are read."""
    known_methods = cache(atlas_page.made)
    return {
        known.FILE: known_anatomies,  # first: other documents read it
        DOCS / "methods.md": methods,
        DOCS / "parameters.md": parameters,
        DOCS / "support.md": support,
        LOOKS: looks,
        atlas.FILE: lambda: atlas.written(known_methods()),
        DOCS / "atlas.md": lambda: atlas_page.page(known_methods()),
        ROOT / "README.md": readme,
        ROOT / "CITATION.cff": citation,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if not current")
    made = documents()
    names = [path.name for path in made]
    parser.add_argument("--without", nargs="*", default=(), choices=names, metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are tiny
    stale = []
    for path, make in made.items():
        if path.name in arguments.without:
            continue
        text = make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    if arguments.check and stale:
        print(f"not current: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
