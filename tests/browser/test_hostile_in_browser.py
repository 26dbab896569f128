"""Hostile text in every string of a record: the browser runs none of it, loads none of it, and shows it as text."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum

import pytest

from reports.html import SCRIPTS

pytestmark = pytest.mark.browser

ATTACKS = {
    "script": "</script></style></pre></title></textarea><script>alert(1)</script><img src=x onerror=alert(2)>"
    "<svg onload=alert(3)><iframe srcdoc='<script>alert(4)</script>'>",
    "attribute": '"\' onmouseover=alert(1) style=position:fixed autofocus onfocus=alert(2) x="',
    "address": "javascript:alert(1)",
    "loads": "https://example.org/<img src=https://example.org/x.png><link rel=stylesheet href=//example.org/a.css>",
    "control": "\x00\x07\x1b[31m\x7f\x9b\r\u202egnp.exe\u2066\u200b\ufeff\ud800\udfff\U000e0041",
    "long": "W" * 1_000_000,
}
FIXED = {"kind", "verdict", "class", "word", "status"}
"""Keys whose values choose what is drawn; replaced too, by another test (tests/reports/test_text.py)."""


def poisoned(value, attack):
    """The same structure with every string but keys and words that choose a section replaced."""
    if isinstance(value, Enum) or value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return attack
    if is_dataclass(value):
        for field in fields(value):
            setattr(value, field.name, poisoned(getattr(value, field.name), attack))
        return value
    if isinstance(value, dict):
        return {key: item if key in FIXED else poisoned(item, attack) for key, item in value.items()}
    return [poisoned(item, attack) for item in value[:8]]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["mixed", "gsm8k", "canary", "mutants"])
def test_hostile_text_is_only_text(show, record_of, name, attack):
    opened = show(poisoned(record_of(name), ATTACKS[attack]), width=400)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.mouse.move(200, 300)
    assert page.evaluate("document.scripts.length") == len(SCRIPTS)
    assert page.locator("img, iframe, link, object, embed, base, [onerror], [onload], [style]").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0
    assert opened.overflow <= 0
    assert page.locator("h1 .badge").inner_text().strip() in {"PASS", "FAIL", "UNKNOWN"}
    text = page.locator("body").inner_text()
    if attack == "script":
        assert "<script>alert(1)</script>" in text
    if attack == "control":
        assert "\\u202egnp.exe" in text
        assert "\u202e" not in text


def test_a_megabyte_in_an_answer_is_cut_and_can_be_searched(show, record_of):
    record = record_of("gsm8k")
    record.gsm8k["samples"][5]["answer"] = "needle " + "W" * 1_000_000
    page = show(record, width=400).page
    page.get_by_label("Search").fill("needle")
    found = page.locator(".gsm8k-group > details:visible")
    assert found.count() == 1
    assert "cut]" in found.text_content()
