"""What pressing, keys and a narrow screen do to the part of the page about single images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.seen_images import add_run, folder, listed, write_classes

from peftbench.report import build
from peftbench.results.store import ResultsStore
from peftbench.spec import DatasetSpec, Phase

EVIL = "<img src=x onerror=document.title='owned'>"
ODD = '"><svg onload=document.title="owned">.png'
MANY = 200
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of three classes, of which one has a hostile name, and one of two hundred."""
    home = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(home / "cache"))
        few = write_classes(home / "few", {EVIL: 10, "cat": 15, "dog": 10})
        for path in sorted((few / "dog").iterdir()):
            path.rename(path.with_name(f"{path.stem}{ODD}"))
        store = ResultsStore(home / "of few")
        dataset, listing = folder(few)
        assert listing.test.labels == (0, 0, 1, 1, 1, 2, 2)
        said = [0, 1, 1, 2, 2, 2, 0]
        add_run(store, dataset, listing.test.labels, said, [0.9, 0.8, 0.7, 0.6, 0.65, 0.5, 0.4])
        add_run(store, dataset, listing.test.labels, [1, 1, 1, 1, 0, 0, 0], method="bias")
        many = {f"{number:03d} a bird with a long name": 3 for number in range(MANY)}
        other = ResultsStore(home / "of many")
        dataset, listing = folder(write_classes(home / "many", many, side=(8, 8)))
        labels = listing.test.labels
        assert len(labels) == MANY
        add_run(other, dataset, labels, [(label + label % 3) % MANY for label in labels])
        parted = ResultsStore(home / "of folds")
        root = str(write_classes(home / "parted", {"cat": 6, "dog": 3}))
        for fold, lr in enumerate((1e-2, 1e-3, 1e-2)):
            spec = DatasetSpec("folder", reader="folder", root=root, folds=3, fold=fold)
            dataset, listing = listed(spec)
            assert listing.test.labels == (0, 0, 1)
            said, sure = [0, int(fold == 1), fold % 2], [0.9, 0.6 + fold / 10, 0.5]
            tuning = {"tuner": "grid", "trials": 2, "epochs": 1, "val_top1": 0.5}
            for phase in (Phase.TUNE, Phase.FINAL):
                told = {"tuning": tuning, "recipe": {"lr": lr}, "phase": phase}
                add_run(parted, dataset, listing.test.labels, said, sure, **told)
        return {
            "few": build(store.root, parts=("page",)).paths[0],
            "many": build(other.root, parts=("page",)).paths[0],
            "folds": build(parted.root, parts=("page",)).paths[0],
        }


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a page; afterwards nothing was requested, logged or thrown, and no name ran."""
    found, said, asked = [], [], []

    def open_page(name: str, width: int = 1400, **settings: Any) -> Any:
        size = {"width": width, "height": 900}
        page = browser.new_context(viewport=size, offline=True, **settings).new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[name].as_uri())
        found.append(page)
        return page

    yield open_page
    titles = [page.title() for page in found]
    for page in found:
        page.context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:image/jpeg")} == {
        path.as_uri() for name, path in pages.items() if any(path.as_uri() == url for url in asked)
    }
    assert all(title.startswith("peftbench: ") for title in titles)


def told(page: Any) -> list[str]:
    """Alternative texts of the pictures that are shown."""
    return page.locator("#cell-pictures img").evaluate_all("all => all.map(one => one.alt)")


def test_pressing_a_cell_shows_its_pictures_with_pointer_and_keyboard(opened: Open) -> None:
    page = opened("few")
    assert "42.9 % of 7 test images right" in page.locator("#images-finding").inner_text()
    assert "Always saying cat" in page.locator("#images-finding").inner_text()
    assert page.locator("#cell-title").inner_text() == "The most confident of 4 mistakes"
    assert len(told(page)) == 4 and "said cat, 80 %" in told(page)[0]
    cell = page.locator('#matrix [data-cell="1,2"]')
    assert cell.get_attribute("aria-label") == "cat taken for dog: 2 images"
    cell.click()
    assert page.locator("#cell-title").inner_text() == "cat taken for dog: 2 images"
    assert [alt.rpartition(": ")[2] for alt in told(page)] == [
        "is cat, said dog, 65 %",
        "is cat, said dog, 60 %",
    ]
    cell = page.locator('#matrix [data-cell="1,2"]')
    assert cell.get_attribute("aria-pressed") == "true"
    assert cell.evaluate("node => node === document.activeElement")  # the focus stays
    page.locator('#matrix [data-cell="2,2"]').focus()
    page.keyboard.press("Enter")
    assert page.locator("#cell-title").inner_text() == "dog, told right: 1 image"
    page.get_by_role("button", name="all mistakes").click()
    assert len(told(page)) == 4
    page.locator("#confusions button").first.click()
    assert page.locator("#cell-title").inner_text() == "cat taken for dog: 2 images"


def test_another_method_may_be_chosen_and_its_run_has_its_commands(opened: Open) -> None:
    page = opened("few")
    first = page.locator("#commands code").all_inner_texts()
    assert first[0].startswith("peftbench predict ") and first[0].endswith(" PATH")
    assert first[1].startswith("peftbench export ")
    page.locator("#images-row").select_option(label="bias")
    assert "28.6 % of 7" in page.locator("#images-finding").inner_text()
    assert page.locator("#commands code").all_inner_texts() != first
    heads = page.locator("#classes thead button").all_inner_texts()
    assert heads == ["class", "train", "val", "test", "precision", "recall", "most often taken for"]
    page.locator("#classes thead button", has_text="test").click()
    assert page.locator("#classes tbody th").first.inner_text() == "cat"  # it has most


@pytest.mark.parametrize("width", [1400, 420])
def test_all_folds_are_looked_at_together_or_one_by_one(opened: Open, width: int) -> None:
    page = opened("folds", width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    options = page.locator("#images-run option").all_inner_texts()
    assert options == ["0, all 3 folds", "0, fold 0", "0, fold 1", "0, fold 2"]
    finding = page.locator("#images-finding")
    # a cat is taken for a dog in fold 1, a dog for a cat in folds 0 and 2
    assert "linear, seed 0, all 3 folds: 66.7 % of 9 test images right" in finding.inner_text()
    assert "Each image was tested once" in finding.inner_text()
    assert "Learning rates 0.001 to 0.01, chosen on val of each fold" in finding.inner_text()
    assert page.locator("#cell-title").inner_text() == "The most confident of 3 mistakes"
    said = [alt.rpartition(": ")[2] for alt in told(page)]
    assert said[0] == "is cat, said dog, 70 %" and len(said) == 3
    page.locator('#matrix [data-cell="1,0"]').click()
    assert page.locator("#cell-title").inner_text() == "dog taken for cat: 2 images"
    assert len(set(told(page))) == 2
    assert page.locator("#val tbody tr").count() == 3
    assert page.locator("#val tbody tr").nth(1).inner_text().split()[:2] == ["1", "0.001"]
    assert page.locator("#classes thead button").all_inner_texts()[:2] == ["class", "test"]
    ids = page.locator("#commands").inner_text()
    page.locator("#images-run").select_option(label="0, fold 1")
    assert "fold 1: 66.7 % of 3 test images right" in finding.inner_text()
    assert "Learning rate 0.001, chosen on val among 2 trials" in finding.inner_text()
    assert page.locator("#classes thead button").all_inner_texts()[:2] == ["class", "train"]
    alone = page.locator("#commands code").first.inner_text()
    assert alone.split()[2] in ids
    assert [alt.rpartition(": ")[2] for alt in told(page)] == ["is cat, said dog, 70 %"]


def test_names_of_classes_and_files_stay_text(opened: Open) -> None:
    page = opened("few")
    assert EVIL in page.locator("#classes").inner_text()
    assert page.locator("#images img[src=x], #images svg[onload]").count() == 0
    page.locator('#matrix [data-cell="2,0"]').click()
    assert ODD in told(page)[0] and f"said {EVIL}" in told(page)[0]


@pytest.mark.parametrize("width", [1400, 420])
def test_two_hundred_classes_scroll_inside_their_boxes(opened: Open, width: int) -> None:
    page = opened("many", width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#images").bounding_box()["height"] < 5 * 900
    assert page.locator("#confusions li").count() == 20
    assert "and 113 rarer ones" in page.locator("#confusions").inner_text()
    assert page.locator("#classes tbody tr").count() == 200
    # a third of the classes is told right, the others are taken for the next or the one after it
    assert page.locator("#cell-title").inner_text() == "The most confident of 133 mistakes"
    canvas = page.locator("#matrix canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.locator("#matrix-place").inner_text() == (
        "001 a bird with a long name taken for 002 a bird with a long name: 1 image"
    )
    page.keyboard.press("Enter")
    assert len(told(page)) == 1 and "is 001 a bird" in told(page)[0]
    box = canvas.bounding_box()
    side = box["width"] / MANY
    page.locator("#matrix").evaluate("node => node.scrollTo(0, 0)")
    canvas.click(position={"x": 4.5 * side, "y": 2.5 * side})
    title = page.locator("#cell-title").inner_text()
    assert title.startswith("002 a bird with a long name taken for 004 ")


def test_the_matrix_follows_the_colours_of_the_page(opened: Open) -> None:
    page = opened("many", color_scheme="dark")
    drawn = "document.querySelector('#matrix canvas').toDataURL()"
    dark = page.evaluate(drawn)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"before => {drawn} !== before", arg=dark)
