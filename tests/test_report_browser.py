"""The report as a person meets it: in headless Chromium, offline, by mouse, keyboard and reader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

import rich_run
from servematrix.records import FILE
from servematrix.redaction import Secrets
from servematrix.report import command

FLAGS = ("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
PLANTED = (
    "<script>window.planted=1</script><img src=x onerror=window.planted=1>\" onclick='x' </pre>"
)
CELLS = ("llama(graph=1)", "llama(graph=8)", "smollm2")
Opener = Callable[..., Page]


def chromium() -> str:
    """The browser; where there is none the tests are left out, but not in CI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no chromium: install it (Debian: apt-get install chromium)")
    if found is None:
        pytest.skip("no chromium: install it to test the report (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opener]:
    """Open the report of some runs; whatever it asks for or complains about fails the test."""
    troubles: list[str] = []
    contexts = []

    def open_(*runs: Path, scheme: str = "light", script: bool = True, width: int = 1280) -> Page:
        out = tmp_path / "report.html"
        command.write(runs or [rich_run.make(tmp_path / "run", CELLS)], out, Secrets())
        context = browser.new_context(
            color_scheme=scheme,
            java_script_enabled=script,
            viewport={"width": width, "height": 800},
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: troubles.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda asked: asked.url == out.as_uri() or troubles.append(f"request: {asked.url}"),
        )
        page.goto(out.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [
        rich_run.make(tmp_path / f"run{day}", day=day, median=98.5 - 0.1 * day, outcome=outcome)
        for day, outcome in ((21, "pass"), (22, "pass"), (23, "fail"))
    ]


def cell(page: Page, name: str):
    return page.locator(f"details[data-cell='{name}']")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_finds_its_way(opened: Opener, three: list[Path], scheme: str) -> None:
    """Names, roles, order of headings, contrast: what axe checks of WCAG, with all details open."""
    page = opened(*three, scheme=scheme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    found = Axe().run(page)
    assert found.response["violations"] == []
    assert len(found.response["passes"]) > 20, "it did look"


def test_light_and_dark_differ(opened: Opener) -> None:
    shade = "getComputedStyle(document.body).backgroundColor"
    page = opened()
    light = page.evaluate(shade)
    page.emulate_media(color_scheme="dark")
    assert (light, page.evaluate(shade)) == ("rgb(255, 255, 255)", "rgb(13, 17, 23)")


def test_the_first_screen_has_verdict_engine_gpu_versions_and_grid(opened: Opener) -> None:
    page = opened()
    for told in ("Exit 0: all verdicts pass", "sglang 0.5.16", "NVIDIA H200"):
        expect(page.get_by_text(told).first).to_be_in_viewport()
    for name in CELLS:
        expect(page.get_by_role("link", name=name)).to_be_in_viewport()
    row = page.get_by_role("row", name="smollm2")
    expect(row).to_contain_text("✓ pass")


def test_details_open_by_keyboard(opened: Opener) -> None:
    page = opened()
    summary = cell(page, "smollm2").locator("summary").first
    expect(page.get_by_text("Forward occupancy").first).not_to_be_visible()
    summary.focus()
    page.keyboard.press("Enter")
    expect(cell(page, "smollm2").get_by_text("Forward occupancy")).to_be_visible()
    expect(cell(page, "smollm2").locator("svg").first).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.localName") == "summary"


def test_a_cell_of_the_grid_leads_to_its_details(opened: Opener) -> None:
    page = opened()
    page.get_by_role("link", name="smollm2").focus()
    page.keyboard.press("Enter")
    expect(cell(page, "smollm2")).to_have_attribute("open", "")
    expect(cell(page, "smollm2").locator("summary").first).to_be_focused()
    # an address that somebody was sent
    page.goto(page.url.replace("c1-3", "c1-1"))
    expect(cell(page, CELLS[0])).to_have_attribute("open", "")


def test_filters(opened: Opener, tmp_path: Path) -> None:
    good = rich_run.make(tmp_path / "good", ["llama"])
    bad = rich_run.make(tmp_path / "bad", ["smollm2"], day=23, outcome="fail")
    page = opened(good, bad)
    shown = page.locator("output")
    expect(shown).to_have_text("2 of 2 cells shown")
    page.get_by_role("combobox", name="Verdict").select_option("fail")
    expect(shown).to_have_text("1 of 2 cells shown")
    expect(cell(page, "llama")).not_to_be_visible()
    expect(cell(page, "smollm2")).to_be_visible()
    expect(page.get_by_role("link", name="llama")).not_to_be_visible()
    page.get_by_role("combobox", name="Verdict").select_option("")
    page.get_by_role("searchbox", name="Cell").fill("LLA")
    expect(cell(page, "llama")).to_be_visible()
    expect(cell(page, "smollm2")).not_to_be_visible()
    page.get_by_role("searchbox", name="Cell").press("Enter")
    expect(cell(page, "llama")).to_be_visible()


def test_all_cells_open_and_close_at_once(opened: Opener) -> None:
    page = opened()
    page.get_by_role("button", name="Open all").click()
    assert page.locator("details[data-cell][open]").count() == len(CELLS)
    page.get_by_role("button", name="Close all").click()
    assert page.locator("details[data-cell][open]").count() == 0


def test_no_markup_of_a_model_survives(opened: Opener, tmp_path: Path) -> None:
    run = rich_run.make(tmp_path / "run", [PLANTED], text=PLANTED, engine_reason=PLANTED)
    page = opened(run)
    page.get_by_role("button", name="Open all").click()
    assert page.evaluate("window.planted") is None
    assert page.locator("img").count() == 0
    assert page.locator("[onclick]").count() == 0
    assert page.locator("script").count() == 1
    expect(page.locator("pre", has_text="a line of a server's log")).to_contain_text(PLANTED)


def test_without_scripts_everything_is_there(opened: Opener) -> None:
    page = opened(script=False)
    expect(page.get_by_role("combobox", name="Verdict")).not_to_be_visible()
    cell(page, "smollm2").locator("summary").first.click()
    expect(cell(page, "smollm2").get_by_text("End of the server's log")).to_be_visible()


def test_a_narrow_screen_scrolls_in_its_tables_only(opened: Opener) -> None:
    page = opened(width=400)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_checksum_among_the_numbers_is_broken_on_a_narrow_screen(
    opened: Opener, tmp_path: Path
) -> None:
    run = rich_run.make(tmp_path / "run", CELLS)
    lines = [json.loads(one) for one in (run / FILE).read_text().splitlines()]
    for record in lines:
        if record["kind"] == "verdict":
            record["numbers"]["checksum_questions"] = "d943c551" * 8
    (run / FILE).write_text("".join(json.dumps(one) + "\n" for one in lines))
    page = opened(run, width=400)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_trends_lead_to_their_runs(opened: Opener, three: list[Path]) -> None:
    page = opened(*three)
    expect(page.locator(".trend svg").first).to_be_visible()
    page.get_by_text("Values of settled_median").click()
    page.get_by_role("link", name="run23").last.click()
    expect(page.locator("#c3-1")).to_have_attribute("open", "")
