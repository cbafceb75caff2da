"""The page in a real browser: what is seen, pressed, sorted and read aloud."""

import json
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import browser
import made_report as make
import pytest
from made_store import TASKS, cell, made_grid, record, run_id
from test_reports_tables import HOSTILE

from reports import page
from reports.report import Report
from reports.tables import grid_table

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "there is a browser")
AXE = find_spec("axe_playwright_python")
KNN, LINEAR = 1, 2  # columns
OVER = """
return [...document.querySelectorAll("body *")]
  .filter((one) => !one.closest(".scroll > *, .skip, .unseen") && one.getBoundingClientRect().right > innerWidth + 1)
  .map((one) => one.outerHTML.slice(0, 90));
"""
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"


def hostile_section(store):
    """A section with missing results whose every text is hostile."""
    cells = [
        cell(store, HOSTILE, 5, {"knn": [50.0, 51.0, None]}, baseline=True),
        cell(store, "b", 6, {"knn": [None] * 3}),
    ]
    made = record(cells, "hostile", tasks={"knn": TASKS["knn"]}, title=HOSTILE, axes={HOSTILE: [5, 6]})
    made = make.documented(store, made)
    return make.section(store, made, notes=(HOSTILE,)), make.runs_of(store, made)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A whole report and a draft, each in its folder."""
    folder = tmp_path_factory.mktemp("pages")
    made = make.documented(folder / "store", made_grid(folder / "store"))
    section = make.section(folder / "store", made, make.with_others(grid_table(folder / "store", made)))
    whole = Report((section,), make.runs_of(folder / "store", made), {run_id("30", 1): "a disk fault"})
    other, runs = hostile_section(folder / "hostile")
    hostile = {name: replace(run, command=f"smog train {HOSTILE}") for name, run in runs.items()}
    draft = Report((*whole.sections, other), {**whole.runs, **hostile}, {run_id("b", 0): HOSTILE})
    reports = {"whole": whole, "draft": draft}
    return {name: make.write(folder / name, one, page.render(one)) for name, one in reports.items()}


@pytest.fixture(scope="module")
def driver():
    with browser.running() as driver:
        yield driver


@pytest.fixture
def opened(driver, pages):
    """Open one of the pages; afterwards nothing was said on the console, and nothing but the page was asked for."""

    def open_page(name="whole", width=1280, dark=False):
        browser.show(driver, pages[name], width, 900, dark)
        return driver

    driver.get_log("performance")
    driver.get_log("browser")
    yield open_page
    assert driver.get_log("browser") == []
    messages = [json.loads(one["message"])["message"] for one in driver.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
    own = {path.as_uri() for path in pages.values()}
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} - own == set()
    assert asked & own
    driver.execute_script("try { localStorage.clear() } catch {}")


def find(driver, selector):
    return driver.find_element("css selector", selector)


def all_texts(driver, selector):
    return [one.get_property("textContent").strip() for one in driver.find_elements("css selector", selector)]


def number(driver, row, column):
    """Return the button of the number in the row that starts so."""
    rows = [one for one in driver.find_elements("css selector", "#results .grid tbody tr") if one.text.startswith(row)]
    return rows[0].find_elements("css selector", "th, td")[column].find_element("css selector", "button")


def focused(driver):
    return driver.switch_to.active_element


@pytest.mark.skipif(AXE is None, reason="axe-playwright-python, which brings axe-core, is not installed")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["whole", "draft"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(opened, name, dark, width):
    driver = opened(name, width, dark)
    for details in driver.find_elements("css selector", "details"):
        driver.execute_script("arguments[0].open = true", details)
    driver.execute_script((Path(AXE.submodule_search_locations[0]) / "axe.min.js").read_text())
    for press in (lambda: None, lambda: number(driver, "100", KNN).click()):
        press()
        found = driver.execute_async_script("axe.run().then(arguments[0])")
        assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]] == []
        checked = next(one for one in found["passes"] if one["id"] == "color-contrast")
        assert len(checked["nodes"]) > 10 or name == "draft"  # behind the word DRAFT axe sees no contrast


def firsts(driver):
    return [text.split("\n")[0] for text in all_texts(driver, ".grid tbody tr > :first-child")]


SORTED = {
    "ascending": ["untrained", "raw pixels", "30", "100", "1000", "to untrained", "300 (baseline)"],
    "descending": ["raw pixels", "untrained", "300 (baseline)", "1000", "to untrained", "100", "30"],
    None: ["raw pixels", "untrained", "30", "100", "300 (baseline)", "1000", "to untrained"],
}
OTHERS = {
    "ascending": ["A et al.2", "B et al.1"],  # which look equal
    "descending": ["B et al.1", "A et al.2"],
    None: ["B et al.1", "A et al.2"],
}


@pytest.mark.parametrize("press", ["mouse", "keyboard"])
def test_three_presses_sort_up_down_and_back_within_the_parts(opened, press):
    driver = opened()
    head = driver.find_elements("css selector", ".grid thead th")[KNN]
    button = head.find_element("css selector", "button")
    for state in ("ascending", "descending", None):
        button.click() if press == "mouse" else button.send_keys(ENTER)
        assert head.get_attribute("aria-sort") == state
        assert firsts(driver) == [*SORTED[state], "Reported by others", *OTHERS[state]]


def test_numbers_sort_by_their_value_and_nothing_last(opened):
    driver = opened()
    heads = driver.find_elements("css selector", ".grid thead th")
    heads[0].find_element("css selector", "button").click()
    assert firsts(driver)[2:7] == ["30", "100", "300 (baseline)", "1000", "to untrained"]
    for ours in (["30", "100", "1000"], ["1000", "100", "30"]):  # by p, which the baseline lacks
        heads[5].find_element("css selector", "button").click()
        assert [name for name in firsts(driver)[2:7] if name != "to untrained"] == [*ours, "300 (baseline)"]
    assert [one.get_attribute("aria-sort") for one in heads] == [None] * 5 + ["descending"]


@pytest.mark.parametrize("press", ["mouse", "keyboard"])
def test_a_number_opens_its_runs_and_escape_returns(opened, press):
    driver = opened()
    button = number(driver, "1000", LINEAR)
    button.click() if press == "mouse" else button.send_keys(ENTER)
    dialog = find(driver, "dialog[open]")
    assert dialog.accessible_name == "linear top-1 (%): 1000"
    assert focused(driver).text == "Close"
    assert "in full 52.666666666666664" in dialog.text
    assert all_texts(driver, "dialog .run h3") == ["Seed 0: 52.4", "Seed 1: 52.6", "Seed 2: 53"]
    assert all_texts(driver, "dialog .run > p:first-of-type code") == [run_id("1000", seed) for seed in range(3)]
    commands = all_texts(driver, "dialog .run pre")
    assert commands[2] == "smog train recipe=demo seed=1 method.num_groups=1000"
    assert commands[3].startswith(f"smog eval linear {run_id('1000', 1)}")
    assert "commit dddddddddd" in dialog.text
    assert "commit cccccccccc+ \u00b7 2026-01-01 00:00:00 UTC" in dialog.text
    focused(driver).send_keys(ESCAPE)
    assert not driver.find_elements("css selector", "dialog[open]")
    assert focused(driver) == button


def test_the_configuration_shows_first_what_differs_from_the_baseline(opened):
    driver = opened()
    number(driver, "1000", KNN).click()
    (differing,) = all_texts(driver, "dialog .differs")
    assert differing == "method.num_groups1000 (baseline: 300)"
    names = all_texts(driver, "dialog .list th[scope=row]")
    assert names[0] == "method.num_groups"
    assert {"optim.epochs", "backbone.name", "k"} <= set(names)
    find(driver, "dialog .top button").click()
    number(driver, "300", KNN).click()
    assert all_texts(driver, "dialog .differs") == []


def test_the_dialog_keeps_the_keyboard_within(opened):
    driver = opened()
    number(driver, "100", KNN).send_keys(ENTER)
    for _ in range(12):
        focused(driver).send_keys(TAB)
        assert driver.execute_script(
            "return document.activeElement.closest('dialog') !== null || document.activeElement === document.body"
        )


def test_commands_are_copied(opened):
    driver = opened()
    driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    number(driver, "100", KNN).click()
    find(driver, "dialog .run button").click()
    copied = driver.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])")
    assert copied == "smog train recipe=demo seed=0 method.num_groups=100"
    assert all_texts(driver, "dialog .run [role=status]")[0] == "copied"


def test_hostile_texts_run_nothing(opened):
    driver = opened("draft")
    find(driver, "[aria-labelledby=hostile] .open").click()
    flat = " ".join(HOSTILE.split())
    dialog = " ".join(find(driver, "dialog[open]").text.split())
    assert f"smog train {flat}" in dialog
    assert driver.execute_script("return document.scripts.length") == 2
    assert not driver.find_elements("css selector", "main script, dialog script, main b, main i")
    shown = [" ".join(one.split()) for one in all_texts(driver, "#hostile, [aria-labelledby=hostile] .baseline th")]
    assert [one.removesuffix(" (baseline)") for one in shown] == [flat, flat]


def test_nothing_overflows_sideways(opened):
    for name, width in (("draft", 390), ("whole", 390), ("draft", 768)):
        driver = opened(name, width)
        for details in driver.find_elements("css selector", "details"):
            driver.execute_script("arguments[0].open = true", details)
        over = driver.execute_script(OVER)
        assert over == []
        assert driver.execute_script("return document.documentElement.scrollWidth") == width
        find(driver, ".open").click()
        inside = driver.execute_script(
            "const one = document.querySelector('dialog'); return one.scrollWidth - one.clientWidth"
        )
        assert inside == 0


def test_the_first_column_stays_where_a_table_is_wide(opened):
    driver = opened(width=390)
    scroll, first = find(driver, ".scroll"), find(driver, ".grid tbody td, .grid tbody th")
    before = first.rect["x"]
    driver.execute_script("arguments[0].scrollLeft = 200", scroll)
    assert driver.execute_script("return arguments[0].scrollLeft", scroll) > 50
    assert first.rect["x"] == before


def test_colours_follow_the_system_until_the_button_is_pressed(opened):
    driver = opened(dark=True)
    paper = "return getComputedStyle(document.body).backgroundColor"
    dark = driver.execute_script(paper)
    find(driver, ".theme").click()
    light = driver.execute_script(paper)
    assert (light, find(driver, ".theme").text) == ("rgb(255, 255, 255)", "Dark")
    assert dark != light
    assert driver.execute_script("return localStorage.getItem('smog-theme')") == "light"


def test_a_page_opens_in_the_colours_that_are_stored(opened, driver):
    """They are put there before the page's own script: what Chromium keeps of one file until the next is a race."""
    source = "localStorage.setItem('smog-theme', 'light')"
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    try:
        opened(dark=True)
        paper = "return getComputedStyle(document.body).backgroundColor"
        assert (driver.execute_script(paper), find(driver, ".theme").text) == ("rgb(255, 255, 255)", "Dark")
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_without_scripts_everything_can_be_read(opened):
    driver = opened()
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.refresh()
        tree = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    said = [(one.get("role", {}).get("value"), str(one.get("name", {}).get("value"))) for one in tree]
    names = [name for _, name in said]
    assert {"45.8 ± 0.6", "−0.9 [−1.9, 0.0]", "A et al., table 3"} <= set(names)
    assert not [name for role, name in said if role == "button"]
    assert any(name.startswith("Metric: Number of groups. Every seed as a circle.") for _, name in said)
    assert any("18 runs behind it" in name for name in names)


def test_a_draft_says_so_over_everything(opened):
    driver = opened("draft")
    style = driver.execute_script(
        "const one = getComputedStyle(document.body, '::before'); return [one.content, one.position, one.pointerEvents]"
    )
    assert "DRAFT" in style[0]
    assert style[1:] == ["fixed", "none"]
    assert "planned numbers are missing" in find(driver, ".warning").text
    missing = find(driver, "td.missing")
    assert missing.text.startswith("--")
    assert "gradient" in missing.value_of_css_property("background-image")


def test_a_screenshot_is_as_large_as_asked(tmp_path, pages):
    begun = time.monotonic()
    browser.screenshot(pages["whole"], tmp_path / "a.png", 640, 480, dark=True)
    content = (tmp_path / "a.png").read_bytes()
    assert (int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")) == (640, 480)
    assert time.monotonic() - begun < 60
