"""How values become text, and what hostile text can do to the page: nothing."""

from __future__ import annotations

import copy
import unicodedata
from dataclasses import fields, is_dataclass
from enum import Enum
from html.parser import HTMLParser

import pytest

from reports import text
from reports.html import SCRIPTS, STYLESHEETS, render, write_report

ATTACK = (
    "<script>alert(1)</script></style></pre></title>--><img src=x onerror=alert(1)>\"' onload='x {{ 7*7 }} {% x %} &lt; "
    "\x00\x07\x1b[31m\x7f\x9b\r\u202egnp.exe\u2066\u200b\ufeff\ud800\udfff\U000e0041 "
)


def test_hidden_characters_become_visible_escapes():
    assert text.visible("a\x00\x1b\r\n\t\x9b") == "a\\x00\\x1b\\r\n\t\\x9b"
    assert text.visible("\u202e\u2066\u200b\ufeff") == "\\u202e\\u2066\\u200b\\ufeff"
    assert text.visible("\ud800 \U000e0041") == "\\ud800 \\U000e0041"


def test_ordinary_text_of_any_language_stays():
    for words in ("naïve 2⁻³", "漢字かな", "שלום", "한국어", "🙂"):
        assert text.visible(words) == words


def test_every_control_format_and_surrogate_character_is_escaped_or_harmless():
    categories = {"Cc", "Cs", "Zl", "Zp"}
    allowed = {"\n", "\t"}
    for code in range(0x110000):
        character = chr(code)
        hidden = unicodedata.category(character) in categories
        hidden |= unicodedata.bidirectional(character) in {
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        }
        if hidden and character not in allowed:
            assert text.visible(character).isascii(), hex(code)


def test_clip_says_how_much_it_cut():
    assert text.clip("x" * 5, 5) == "xxxxx"
    assert (
        text.clip("<" + "x" * 1_000_000, 3) == '&lt;xx <span class="cut">[999,998 more characters cut]</span>'
    )
    assert text.clip_plain("x" * 9, 4) == "xxx…"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (51_200, "51,200"), (-1_000, "-1,000"), (10**20, "1.000e+20"), (10**400, "over 10^300")],
)
def test_count(value, expected):
    assert text.count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0.00 s"),
        (9.999, "10.00 s"),
        (12.34, "12.3 s"),
        (59.999, "60.0 s"),
        (64, "1 min 04 s"),
        (7800, "2 h 10 min"),
        (float("nan"), "not known"),
    ],
)
def test_duration(value, expected):
    assert text.duration(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "no bound"),
        (0.0, "0 (exact)"),
        (0.9137, "0.914"),
        (1.0, "1"),
        (0.99992, "1 - 8.0e-05"),
        (1.0000001, "1 + 1.0e-07"),
        (773.02, "773"),
        (51200.4, "51,200"),
        (float("inf"), "infinite"),
        (float("nan"), "not a number"),
    ],
)
def test_ratio(value, expected):
    assert text.ratio(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "none"),
        (True, "yes"),
        (1024, "1,024"),
        (0.1, "0.1"),
        ([1, "b"], "1, b"),
        ([], "none"),
        ({"k": 16}, "k 16"),
        ({"a": [1]}, '{"a": [1]}'),
        ({}, "{}"),
    ],
)
def test_plain(value, expected):
    assert text.plain(value) == expected


def test_only_plain_https_addresses_become_links():
    assert text.linked("https://a.example/b?c=1#d").startswith(
        '<a href="https://a.example/b?c=1#d" rel="noreferrer'
    )
    for other in (
        "javascript:alert(1)",
        "http://a.example",
        "https://a.example/\u202e",
        'https://a.example/"x',
        "see https://a.example",
    ):
        assert "<a" not in text.linked(other)


def worsen(value, attack):
    """The same structure with every string, keys included, replaced by the attack."""
    if isinstance(value, Enum) or value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return attack
    if is_dataclass(value):
        for field in fields(value):
            setattr(value, field.name, worsen(getattr(value, field.name), attack))
        return value
    if isinstance(value, dict):
        return {f"{attack} {number}": worsen(item, attack) for number, item in enumerate(value.values())}
    return [worsen(item, attack) for item in value]


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag != "wbr":  # how many depends on the text, which may be broken after its separators
            self.seen.append((tag, tuple(sorted(name for name, _ in attrs))))


@pytest.mark.parametrize("name", ["passed", "failed", "unknown", "mixed"])
def test_hostile_text_in_every_field_shows_as_text(name, request, tmp_path):
    record = worsen(request.getfixturevalue(name), ATTACK)
    page = write_report(record, tmp_path).read_bytes().decode("utf-8")
    assert not [c for c in page if text.visible(c) != c]
    tags = {tag for tag, _ in Tags(page).seen}
    assert "img" not in tags
    assert page.count("<script>") == page.count("</script>") == len(SCRIPTS)
    assert page.count("</style>") == len(STYLESHEETS)
    assert not [names for _, names in Tags(page).seen if any(n.startswith("on") for n in names)]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert "\\u202egnp.exe" in page


def test_hostile_text_changes_no_element_of_the_page(mixed):
    # As long as the attack, so that the same strings are clipped.
    mild = worsen(copy.deepcopy(mixed), "m" * len(ATTACK))
    assert Tags(render(worsen(mixed, ATTACK))).seen == Tags(render(mild)).seen


def test_a_megabyte_in_every_field_stays_a_small_page(mixed):
    page = render(worsen(mixed, "W" * 1_000_000))
    assert len(page) < 1_500_000
    assert "more characters cut]" in page
    assert "W" * 12_001 not in page
