"""A report in a real browser: readable, usable, accessible, silent, and closed to every network.

Every test also fails if the browser wrote anything to its console (a violation of the page's own policy, for example),
opened a dialog, or asked for anything but the file (conftest.py).
"""

from __future__ import annotations

import pytest

from reports.html import write_report
from tests.browser.pages import FOLD_OPEN, broken_words, violations

pytestmark = pytest.mark.browser


def test_the_verdict_and_its_reason_are_seen_first(show, state):
    opened = show(state)
    heading = opened.page.locator("h1")
    box = heading.bounding_box()
    assert box["y"] + box["height"] < 300
    assert heading.locator(".badge").inner_text().strip() == state.verdict
    assert heading.locator(".reason").inner_text().strip()
    assert opened.page.title().startswith(f"{state.verdict}: ")


def test_a_failure_can_be_seen_and_repeated_from_the_first_screen(show, record_of):
    opened = show(record_of("fail"))
    failure = next(f for rule in record_of("fail").rules for f in rule.failures)
    command = opened.page.locator(".first .command code").first
    assert command.inner_text() == failure.reproduce
    assert command.bounding_box()["y"] < 900
    opened.page.locator(".first a").first.click()
    assert opened.page.locator("#failure-1").bounding_box()["y"] < 900


@pytest.mark.parametrize(("scheme", "width"), [("light", 400), ("dark", 1280)])
def test_contrast_landmarks_and_names_pass_axe(show, state, scheme, width):
    opened = show(state, width=width, color_scheme=scheme)
    opened.page.evaluate(FOLD_OPEN)
    assert violations(opened.page) == []


@pytest.mark.parametrize("width", [320, 400])
def test_no_page_scrolls_sideways(show, state, width):
    opened = show(state, width=width)
    assert opened.overflow <= 0
    opened.page.evaluate(FOLD_OPEN)
    assert opened.overflow <= 0


@pytest.mark.parametrize("width", [1280, 400])
def test_tables_never_break_words_into_letters(show, state, width):
    opened = show(state, width=width)
    opened.page.evaluate(FOLD_OPEN)
    assert broken_words(opened.page) == []


def test_the_copy_button_copies_the_command(show, record_of):
    opened = show(record_of("fail"), permissions=["clipboard-read", "clipboard-write"])
    block = opened.page.locator(".first .command").first
    block.locator("button").click()
    block.locator("button", has_text="Copied").wait_for()
    assert opened.page.evaluate("navigator.clipboard.readText()") == block.locator("code").inner_text()


def test_the_keyboard_reaches_content_and_buttons(show, record_of):
    opened = show(record_of("fail"), permissions=["clipboard-read", "clipboard-write"])
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator(".first button.copy").first.focus()
    page.keyboard.press("Enter")
    page.locator(".first button.copy", has_text="Copied").wait_for()
    summary = page.locator("details.failure > summary").first
    was_open = page.locator("details.failure").first.get_attribute("open")
    summary.focus()
    page.keyboard.press("Space")
    assert page.locator("details.failure").first.get_attribute("open") != was_open


def test_questions_are_filtered_and_searched(show, record_of):
    page = show(record_of("gsm8k")).page
    shown = page.locator(".gsm8k-group > details:visible")
    assert shown.count() == 60
    search, choice = page.get_by_label("Search"), page.get_by_label("Class")
    search.fill("ZEPPELINS")
    assert shown.count() == 1
    assert page.locator("output").inner_text() == "1 question"
    search.fill("no such words anywhere")
    assert shown.count() == 0
    search.fill("")
    choice.select_option("!right")
    wrong = shown.count()
    assert 0 < wrong < 60
    assert page.locator(".gsm8k-group.right:visible").count() == 0
    choice.select_option("")
    assert shown.count() == 60


def test_1319_questions_are_under_3_megabytes_and_20_000_elements(show, whole_gsm8k, tmp_path):
    """What a browser's time to open the page and to filter it depends on."""
    path = write_report(whole_gsm8k, tmp_path)
    assert path.stat().st_size < 3_000_000
    page = show(path).page
    assert page.locator(".gsm8k-group > details").count() == 1319
    assert page.evaluate("document.querySelectorAll('*').length") < 20_000
    page.get_by_label("Search").fill("zeppelins")
    assert page.locator("output").inner_text() == "1 question"


def test_everything_is_readable_without_script(show, state):
    opened = show(state, java_script_enabled=False)
    page = opened.page
    assert page.locator("h1 .badge").inner_text().strip() == state.verdict
    assert page.locator("button.copy:visible").count() == 0
    assert page.locator("form:visible").count() == 0
    for failure in [f for rule in state.rules for f in rule.failures][:1]:
        assert failure.reproduce in page.locator("main").text_content()
    for sample in (state.gsm8k or {}).get("samples", [])[:1]:
        assert str(sample["question"])[:60] in page.locator("main").text_content()


def test_it_prints_with_folded_parts_and_without_buttons(show, record_of):
    page = show(record_of("mixed"), color_scheme="dark").page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    page.emulate_media(media="print")
    assert page.locator("nav").bounding_box() is None
    assert page.locator("button.copy:visible").count() == 0
    assert page.locator("details.failure pre.message").first.bounding_box()["height"] > 10
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")


def test_it_opens_from_disk_with_an_awkward_path(show, record_of, tmp_path):
    path = write_report(record_of("pass"), tmp_path / "a b#ü%?&")
    assert show(path).page.locator("h1 .badge").inner_text().strip() == "PASS"
