"""Promises of the page that only a browser can keep, in a headless Chromium where one is found."""

from __future__ import annotations

import pytest
from own_runs import own_data

from peftbench.report.page import render
from peftbench.report.view import Views
from peftbench.results.frame import epochs, frame
from peftbench.results.record import Status
from peftbench.results.store import ResultsStore

EVIL = "<script>document.title='owned'<_script>"  # a slash cannot be in the name of a folder

# Means over s/a and s/b (equal scores): ssf 0.55, lora 0.70, full 0.65, linear 0.50; resnet has
# linear alone. lora beats full with fewer parameters, so the frontier is linear, ssf, lora.
SCORES = {"linear": (0, 0.50), "ssf": (900, 0.55), "lora": (40_000, 0.70), "full": (10**7, 0.65)}


@pytest.fixture(scope="module")
def report(tmp_path_factory, make_record):
    store = ResultsStore(tmp_path_factory.mktemp("results"))
    for method, (tuned, score) in SCORES.items():
        for dataset in ("s/a", "s/a_data_set_with_a_long_name"):
            for seed in range(2):
                cost = {"seconds_train": 10.0 + seed, "peak_bytes": 2**20 * (100 + tuned % 7)}
                curve = [0.2, 0.5, score]
                extra = {"tuned": tuned, "history": curve, **cost}
                store.add(make_record(method, dataset, seed, score, **extra))
    for method in ("linear", EVIL):
        other = {"mean_per_class": 0.3}
        store.add(make_record(method, "s/a", 0, 0.4, backbone="resnet", tuned=0, metrics=other))
    store.add(make_record("bias", "s/a", 0, status=Status.ERROR, error=f"boom {'x' * 300} {EVIL}"))
    records = store.scan().records
    path = store.root / "report.html"
    path.write_text(render(Views(frame(records)), epochs(records), store), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, report):
    """Opens the page at a width; afterwards nothing was requested, logged or thrown."""
    contexts, asked, said, expected = [], [], [], set()

    def open_page(width=1280, height=900, path=report, **settings):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        expected.add(path.as_uri())
        return page

    yield open_page
    titles = [context.pages[0].title() for context in contexts]
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) == expected
    assert all(title.startswith("peftbench: ") for title in titles)  # no name of a method ran


BODY = "(getComputedStyle(document.body))"


def test_ones_own_data_opens_ranked_by_val(opened, tmp_path, make_record):
    store = ResultsStore(tmp_path)
    for method, test, val in (("linear", 0.9, 0.5), ("lora", 0.7, 0.8)):
        tuning = {"tuner": "grid", "val_top1": val}
        store.add(make_record(method, top1=test, tuning=tuning, **own_data("birds")))
    records = store.scan().records
    path = tmp_path / "report.html"
    path.write_text(render(Views(frame(records)), epochs(records), store), encoding="utf-8")
    page = opened(path=path)
    assert methods(page) == ["lora", "linear"] and column(page, "board", 3) == ["80.0", "50.0"]
    assert "Ranked by val, not by test." in page.locator("#board-remark").inner_text()
    page.get_by_role("button", name="birds").first.click()
    assert methods(page) == ["linear", "lora"]


def column(page, table, number):
    return page.locator(f"#{table} tbody tr > :nth-child({number})").all_inner_texts()


def methods(page, table="board"):
    return [text.strip() for text in column(page, table, 1)]


BY_SCORE = ["lora", "full", "ssf", "linear", "bias"]  # bias has no score, so it is last


def test_column_heads_sort_both_ways_with_pointer_and_keyboard(opened):
    page = opened()
    assert methods(page) == BY_SCORE
    head = page.locator("#board th", has=page.get_by_role("button", name="tuned parameters"))
    head.get_by_role("button").click()
    assert methods(page) == ["linear", "ssf", "lora", "full", "bias"]
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator("#board [aria-sort]").count() == 1
    page.keyboard.press("Enter")  # the head keeps the focus
    assert methods(page) == ["full", "lora", "ssf", "linear", "bias"]
    assert head.get_attribute("aria-sort") == "descending"
    page.locator("#heat").get_by_role("button", name="method", exact=True).click()
    assert methods(page, "heat") == ["bias", "full", "linear", "lora", "ssf"]
    assert column(page, "heat", 2) == ["–", "65.0", "50.0", "70.0", "55.0"]


def test_choices_narrow_every_part_of_the_page(opened):
    page = opened()
    assert page.locator("#scatter .point").count() == 4
    page.locator("#search").fill("lor, ssf")
    assert methods(page) == methods(page, "heat") == ["lora", "ssf"]
    assert page.locator("#scatter .point").count() == page.locator("#curves .curve").count() == 2
    shown = page.locator(".method:visible").all()
    assert [part.get_attribute("data-method") for part in shown] == ["lora", "ssf"]
    page.locator("#search").fill("")
    assert column(page, "board", 3)[0] == "40.0k"
    page.locator("#head").check()
    assert column(page, "board", 3)[0] == "40.1k"  # and the 100 of the head
    page.locator("#backbone").select_option("resnet")
    assert methods(page) == ["linear", EVIL] or methods(page) == [EVIL, "linear"]
    assert "40.0 %" in page.locator("#finding").inner_text()
    page.locator("#metric").select_option("mean_per_class")
    assert "30.0 %" in page.locator("#finding").inner_text()
    page.locator("#search").fill("of no method")
    assert "No row is complete" in page.locator("#finding").inner_text()
    page.locator("#backbone").select_option("vit_mini")  # none of whose runs has the other metric
    assert page.locator("#metric").is_hidden()
    page.reload()
    check_curves(page)


def test_the_leaderboard_of_a_suite_with_groups_does_not_scroll_sideways(
    browser, tmp_path, make_record
):
    store = ResultsStore(tmp_path)
    groups = {"s/a": "natural", "s/b": "specialized", "s/c": "structured", "s/d": "structured"}
    cost = {"peak_bytes": 2**28, "kept_bytes": 2**27, "seconds_train": 33.0}
    for method in ("adapter_houlsby", "linear"):
        for dataset, group in groups.items():
            for seed in range(2):
                extra = {"group": group, "latency_ms_batch1": 2.5, "latency_batch_size": 64}
                store.add(make_record(method, dataset, seed, 0.5 + 0.1 * seed, **cost, **extra))
    records = store.scan().records
    path = tmp_path / "report.html"
    path.write_text(render(Views(frame(records)), epochs(records), store), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(path.as_uri())
    assert "kept, MiB" in page.locator("#board thead").inner_text()
    box = "document.querySelector('#leaderboard .scroll')"
    assert page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")
    page.close()


def test_points_tell_of_themselves_to_pointer_and_keyboard(opened):
    page = opened()
    steps = page.locator("#scatter .frontier").get_attribute("d")
    assert steps.count("V") == 2  # up to ssf and up to lora; full is beaten
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator('#scatter .point[data-label="ssf"] .mark').hover()
    assert "ssf" in tip.inner_text() and "55.0 % ± 0.0 (n = 2)" in tip.inner_text()
    assert "tuned parameters: 900" in tip.inner_text()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.locator('#scatter .point[data-label="lora"]').focus()
    assert "70.0 %" in tip.inner_text()
    page.keyboard.press("Enter")
    assert page.url.endswith("#method-lora") and page.locator("#method-lora").is_visible()
    page.locator("#price").select_option("train_time")
    full = page.locator('#scatter .point[data-label="full"] .mark')
    full.evaluate("mark => mark.scrollIntoView({block: 'center'})")  # not below the menu
    for _ in range(100):  # the page may still be on its way there
        full.hover(force=True)  # its interval crosses it
        if "full" in tip.inner_text():
            break
        page.wait_for_timeout(50)
    assert "training, s: 10.5 (10.0 to 11.0)" in tip.inner_text()


def check_curves(page):
    chip = page.locator("#chips").get_by_role("button", name="lora")
    assert page.locator("#curves .curve").count() == 4
    chip.focus()
    page.keyboard.press("Space")
    assert chip.get_attribute("aria-pressed") == "false"
    assert page.locator("#curves .curve").count() == 3
    page.get_by_role("button", name="hide all").click()
    assert "Every curve is hidden" in page.locator("#curves").inner_text()
    page.get_by_role("button", name="show all").click()
    page.locator("#quantity").select_option("loss")
    assert page.locator("#curves .curve").count() == 4


def test_a_phone_shows_the_page_without_scrolling_sideways_light_and_dark(opened):
    page = opened(390, 844, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert methods(page) == BY_SCORE
    right = page.locator("#board tbody tr").first.locator("> :nth-child(3)").bounding_box()
    assert right["x"] + right["width"] <= 390  # method, score and parameters stand side by side
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours = page.evaluate("(({color, backgroundColor}) => [color, backgroundColor])" + BODY)
        ink, paper = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
        assert (ink < paper) == (scheme == "light")


def test_without_script_the_rest_of_the_page_is_there(browser, report):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#unscripted").is_visible()
    assert page.locator("#method-lora table").is_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="cells.csv").click()
    assert download.value.path().read_text().startswith("backbone,suite,method,")
    context.close()
