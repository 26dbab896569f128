"""The page as a file: complete, self-contained, the same bytes for the same record, closed to every network."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from harness.records.record import RunRecord, load_record
from reports import sections
from reports.html import render, write_report
from reports.sections import SECTIONS, Section
from reports.template import fill

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "col"}
RECORDS = ["passed", "failed", "unknown", "mixed"]


class Page(HTMLParser):
    """A page as a browser would see it: elements with attributes, text, and whether every element was closed."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.words: list[str] = []
        self.unbalanced: list[str] = []
        self.stack: list[str] = []
        self.feed(page)
        self.close()
        self.unbalanced += self.stack

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag):
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()
        else:
            self.unbalanced.append(f"/{tag}")

    def handle_data(self, data):
        if self.stack and self.stack[-1] in self.raw:
            self.raw[self.stack[-1]][-1] += data
        elif data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(params=RECORDS)
def record(request: pytest.FixtureRequest) -> RunRecord:
    return request.getfixturevalue(request.param)


def test_page_is_well_formed_with_unique_ids_and_anchors_that_exist(record):
    page = Page(render(record))
    assert page.unbalanced == []
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert [name for name, times in ids.items() if times > 1] == []
    targets = [a["href"] for _, a in page.elements if (a.get("href") or "").startswith("#")]
    targets += [f"#{a['aria-labelledby']}" for _, a in page.elements if "aria-labelledby" in a]
    assert [target for target in targets if target[1:] not in ids] == []


def test_page_has_landmarks_and_headings_in_order(record):
    page = Page(render(record))
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.all(landmark)) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_same_record_gives_the_same_bytes(record, tmp_path):
    first = render(record)
    assert render(copy.deepcopy(record)) == first
    record.write(tmp_path / "record.json")
    assert render(load_record(tmp_path)) == first


def test_rendering_does_not_change_the_record(record):
    before = record.to_json()
    render(record)
    assert record.to_json() == before


def test_policy_allows_exactly_the_inline_styles_and_scripts(record):
    page = Page(render(record))
    policies = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    policy = dict(part.split(" ", 1) for part in policies[0].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in policies[0]
    for tag in ("style", "script"):
        digests = [hashlib.sha256(source.encode()).digest() for source in page.raw[tag]]
        assert policy[f"{tag}-src"].split() == [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]


def test_page_loads_nothing(record):
    page = Page(render(record))
    for tag in (
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "video",
        "audio",
        "source",
        "base",
        "form",
        "image",
    ):
        assert page.all(tag) == []
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "style", "action", "background", "ping", "xlink:href"} & set(
            attributes
        ), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag != "a":
            assert (attributes.get("href") or "#").startswith("#"), tag
    for style in page.raw["style"]:
        assert "@import" not in style
        assert re.findall(r"url\((?!\"#)", style) == []
    for script in page.raw["script"]:
        assert not re.search(r"https?:|fetch|XMLHttpRequest|import|eval|innerHTML", script)


def test_policy_comes_before_everything_that_it_governs(record):
    page = render(record)
    assert page.index("Content-Security-Policy") < min(page.index("<style>"), page.index("<script>"))


def test_written_file_is_the_rendered_page(record, tmp_path):
    path = write_report(record, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert path.read_bytes() == render(record).encode()


def test_sections_without_data_leave_no_heading_and_no_entry(unknown):
    page = Page(render(unknown))
    entries = [a["href"] for a in page.all("a") if a["href"] != "#main"]
    assert entries == ["#candidates", "#environment"]
    assert [a["id"] for a in page.all("section")] == ["candidates", "environment"]


def test_a_new_section_needs_one_function_and_one_line(passed, monkeypatch):
    def draw(record: RunRecord):
        return fill("errors.html.j2", errors=["six of <six>"], left_off=0) if record.gsm8k else None

    monkeypatch.setattr(sections, "SECTIONS", (*SECTIONS, Section("gsm8k", "GSM8K", draw)))
    assert "GSM8K" not in Page(render(passed)).text
    passed.gsm8k = {"correct": 6}
    page = Page(render(passed))
    assert "#gsm8k" in [a["href"] for a in page.all("a")]
    assert "six of <six>" in page.words


def test_an_empty_record_renders():
    page = Page(render(RunRecord(run_id="", created="", command=[])))
    assert page.unbalanced == []
    assert "Nothing was judged." in page.text
