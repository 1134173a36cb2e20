"""The pages of the documentation: their links lead somewhere, and their Python blocks run."""

from __future__ import annotations

import configparser
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image
from support.documents import FENCE, MARK, PAGES, ROOT, Block, blocks, prose_of, text_of
from support.tiny_backbones import TINY, fresh
from support.tiny_runs import short_timings, tiny_spec
from timm.models import VisionTransformer

import peftbench
from peftbench.errors import Unsupported
from peftbench.methods import METHODS, discover
from peftbench.results.store import ResultsStore
from peftbench.run import experiment
from peftbench.run.export import export

every_page = pytest.mark.parametrize("page", PAGES)
REGISTERED = r'@register_method\("(\w+)"\)'
LANGUAGES = {"sh", "python", "yaml", "ini", "text"}


# ------------------------------------------------------------------- form


def test_the_readme_is_short_and_shows_a_first_run_on_its_first_screen() -> None:
    lines = text_of("README.md").splitlines()
    assert 150 <= len(lines) <= 200
    assert any(line.startswith("peftbench run ") for line in lines[:60])


@every_page
def test_every_block_names_its_language(page: str) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES
    # blocks by indentation would be read by no test
    assert not re.search(r"\n\n {4}(?! *[-*\d])", prose_of(page))
    assert text_of(page).count("```") == 2 * len(FENCE.findall(text_of(page)))


@every_page
def test_a_block_that_no_test_runs_says_why(page: str) -> None:
    marked = [block for block in blocks(page) if block.not_run is not None]
    assert all(len(block.not_run or "") > 5 for block in marked)
    assert {block.language for block in marked} <= {"sh", "python"}
    # a mark that stands before anything else marks nothing
    shown = re.findall(r"`<!-- not run.*?-->`", prose_of(page))
    assert len(MARK.findall(prose_of(page))) == len(marked) + len(shown)


def test_the_change_log_has_the_sections_of_keep_a_changelog() -> None:
    text = text_of("CHANGELOG.md")
    versions = re.findall(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, re.M)
    assert versions[0] == (peftbench.__version__, "unreleased")
    assert len(versions) == len(re.findall("^## ", text, re.M))
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for part in text.split("\n## ")[1:]:
        sections = re.findall("^### (.+)$", part, re.M)
        assert sections == [name for name in order if name in sections]


def test_the_citation_file_is_one_and_names_this_version() -> None:
    cited = yaml.safe_load(text_of("CITATION.cff"))
    # required by the schema of version 1.2.0, and nothing that is not known of this software
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    optional = {"type", "abstract", "version", "license", "keywords"}
    assert cited.keys() <= {"cff-version", "message", "title", "authors"} | optional
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert cited["authors"] == [{"name": "The peftbench authors"}]
    assert cited["version"] == peftbench.__version__
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    assert cited["license"] == settings["metadata"]["license"]


def test_the_readme_counts_and_names_the_methods() -> None:
    discover()
    built_in = [n for n in METHODS if METHODS[n].__module__.startswith("peftbench.methods.")]
    assert f"{len(built_in)} methods" in text_of("README.md")
    assert f"{len(built_in)} methods" in text_of("CITATION.cff")
    section = text_of("README.md").split("\n## Methods\n")[1].split("\n## ")[0]
    tuners = [name for name in built_in if name.startswith("hf_")]  # which have a page
    assert all(f"`{name}`" in section for name in built_in if name not in tuners)
    assert f"And {len(tuners)} [`hf_*`](docs/hf-peft.md)." in " ".join(section.split())


# ------------------------------------------------------------------- links and names


def anchors(page: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    plain = (re.sub(r"\[(.+?)\]\(.*?\)|[`*]", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def links(page: str) -> Iterator[tuple[str, str]]:
    """Relative links of a page: a path from the top of the repository, and an anchor or ""."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        leads = (ROOT / page).parent / path if path else ROOT / page
        yield leads.resolve().relative_to(ROOT).as_posix(), anchor


@every_page
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page: str) -> None:
    for target, anchor in links(page):
        assert (ROOT / target).exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(target), f"{page}: {target}#{anchor}"


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, waiting = set[str](), ["docs/index.md"]
    while waiting:
        page = waiting.pop()
        if page in PAGES and page not in seen:
            seen.add(page)
            waiting += [target for target, _ in links(page)]
    assert seen == set(PAGES)


def test_the_index_leads_to_every_page_of_docs_directly() -> None:
    pages = {page for page in PAGES if page.startswith("docs/")} - {"docs/index.md"}
    assert pages <= {target for target, _ in links("docs/index.md")}


@every_page
def test_paths_of_the_repository_that_a_page_names_exist(page: str) -> None:
    named = re.findall(
        r"`((?:peftbench|tests|tools|conf|benchmarks|experiments)/[^`\s]*)`", text_of(page)
    )
    placeholders = re.compile(r"[<A-Z*]|attention")
    for path in named:
        if not placeholders.search(path):
            assert (ROOT / path).exists(), f"{page}: {path}"


@every_page
def test_extras_that_a_page_installs_exist(page: str) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    named = set(re.findall(r"pip install '(?:peftbench|\.)\[(\w+)\]'", text_of(page)))
    assert named <= set(settings["options.extras_require"])


def test_everything_public_has_a_row_on_the_page_of_the_python_api() -> None:
    page = text_of("docs/python-api.md")
    assert all(f"`pb.{name}" in page for name in peftbench.__all__)
    listed = text_of("docs/stability.md").split("`peftbench.__all__`: ")[1].split("|")[0]
    assert re.findall(r"`(\w+)`", listed) == sorted(peftbench.__all__)


# ------------------------------------------------------------------- Python blocks


def tiny(name: str, **options: Any) -> VisionTransformer:
    """A ViT of a few thousand parameters for the images of a ViT-B/16."""
    return VisionTransformer(
        patch_size=32, embed_dim=12, depth=2, num_heads=3, num_classes=options["num_classes"]
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a results folder of two tiny runs, and one of them exported."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch, short_timings():
        patch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        store = ResultsStore(folder / "results")
        for method in ("lora", "ssf"):
            spec = tiny_spec(method, recipe={"epochs": 1})
            record = experiment.run(spec, store, experiment.RunOptions(device="cpu", threads=1))
            assert record.status == "OK", record.error
        export(spec.run_id, store.root, folder / "exports" / "digits")
    Image.new("L", (8, 8)).save(folder / "digit.png")
    return folder


def python_blocks(page: str) -> list[Block]:
    return [b for b in blocks(page) if b.language == "python" and b.not_run is None]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)])
def test_python_blocks_run_one_after_another(
    page: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discover()
    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained=False, **options: (
            tiny(name, **options) if pretrained else create(name, pretrained=False, **options)
        ),
    )
    own_registry(monkeypatch)
    monkeypatch.chdir(results)
    module = types.ModuleType(re.sub(r"\W", "_", page))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with torch.random.fork_rng(devices=[]):
        for block in python_blocks(page):
            lines = "\n" * (block.line - 1) + block.code  # so that a traceback has its line
            exec(compile(lines, page, "exec"), module.__dict__)


def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What blocks register is forgotten again; somebody may have typed it in as well."""
    shown = {name for page in PAGES for name in re.findall(REGISTERED, text_of(page))}
    kept = {name: METHODS[name] for name in METHODS if name not in shown}
    monkeypatch.setattr(METHODS, "_entries", kept)


def test_the_method_of_the_documentation_does_what_its_page_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_registry(monkeypatch)
    (block,) = python_blocks("docs/add-a-method.md")
    module = types.ModuleType("their_method")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(block.code, module.__dict__)
    tuned = peftbench.tune(fresh("vit"), "attention", image_size=TINY["vit"].image_size)
    # 2 blocks of width 24: projections to 3 x 24 and to 24 channels, with biases
    counted = sum(p.numel() for p in tuned.tuned.unfrozen_params.values())
    assert counted == 2 * ((24 + 1) * 72 + (24 + 1) * 24)
    assert counted == tuned.tuned.method.expected_params(tuned.tuned.anatomy)
    with pytest.raises(Unsupported, match="Use method=full"):
        peftbench.tune(fresh("convnext"), "attention", image_size=TINY["convnext"].image_size)


def test_python_is_shown_where_it_is_promised() -> None:
    pages = {page for page in PAGES if python_blocks(page)}
    assert {"README.md", "docs/python-api.md", "docs/report.md", "docs/add-a-method.md"} <= pages
