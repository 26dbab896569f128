"""The GSM8K part of the page: everything is in it, nothing hostile gets out of it, and it stays small."""

from __future__ import annotations

import random
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.gsm8k.decision import full_decision, smoke_decision
from harness.records.record import RunRecord
from reports import gsm8k
from reports.gsm8k_charts import count_chart, interval_chart
from reports.gsm8k_text import Cut, fitted

LIMIT = 3_000_000
FRAME = 60_000
"""Bytes of the page around the section: styles, scripts, summary, environment."""

VOID = {"br", "hr", "img", "input", "link", "meta", "path", "rect", "circle"}


class Checker(HTMLParser):
    """Every tag closed in order; tags, attributes and text collected."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(markup):
    checker = Checker()
    checker.feed(str(markup))
    checker.close()
    assert checker.open == []
    assert not {"script", "style", "iframe", "img"} & set(checker.tags)
    assert not [a for a in checker.attributes if a == "style" or a.startswith("on")]
    return checker


def record(samples, **more):
    decisions = {"smoke": smoke_decision(samples[:32]), "full": full_decision(samples, min_accuracy=0.9)}
    full = decisions["full"]
    return RunRecord(
        "run",
        "2026-01-01T00:00:00Z",
        ["harness", "gsm8k"],
        verdict=full.verdict,
        gsm8k={
            "verdict": full.word,
            "qualifier": full.qualifier,
            "reason": full.reason,
            "questions": len(samples),
            "answered": full.details["answered"],
            "decisions": {name: vars(d) for name, d in decisions.items()},
            "samples": samples,
            **more,
        },
    )


@pytest.fixture
def mixed(make_sample):
    answers = ["so\n#### 18"] * 30 + ["so\n#### 17", "", None, "!" * 500, "The answer is 18"]
    samples = [make_sample(i, answer) for i, answer in enumerate(answers)]
    return [*samples, make_sample(len(samples), error="HTTP 500: out of memory")]


def test_a_record_without_gsm8k_has_no_section():
    assert gsm8k.section(RunRecord("run", "now", [])) is None


def test_every_question_is_there_with_answer_expected_and_class(mixed):
    checker = checked(gsm8k.section(record(mixed)))
    text = " ".join(" ".join(checker.text).split())
    for sample in mixed:
        assert sample["question"] in text
    for name in (
        "right",
        "wrong number",
        "empty",
        "null or reasoning only",
        "one-token flood",
        "extractors disagree",
        "unanswered",
    ):
        assert f"{name} (" in text
    assert "HTTP 500: out of memory" in text
    assert "expected 18" in text
    assert checker.tags.count("details") == len(mixed)


def test_the_page_says_what_was_decided(mixed):
    text = " ".join(checked(gsm8k.section(record(mixed))).text)
    assert "NOT DEAD" in text
    assert "floods of" in text or "unanswered" in text
    assert "exceeded" in text or "Limit" in text


def test_a_format_limit_is_shown_as_a_share_of_what_is_right(make_sample):
    samples = [
        make_sample(i, "so\n#### 18" if i < 6 else "The answer is 18" if i < 10 else "#### 17")
        for i in range(40)
    ]
    text = " ".join(" ".join(checked(gsm8k.section(record(samples))).text).split())
    assert "40.00 % (16.82 % to 68.73 %) of 10 right by any" in text


def test_the_place_of_a_request_and_what_the_reasoning_held_are_shown(make_sample):
    told = make_sample(0, None, reasoning="so\n#### 18") | {"order": 6}
    text = " ".join(" ".join(checked(gsm8k.section(record([told]))).text).split())
    assert "request 7" in text
    assert "no text, reasoning (right by value): so #### 18" in text


def test_the_filter_is_hidden_until_its_script_runs(mixed):
    markup = str(gsm8k.section(record(mixed)))
    assert '<form class="gsm8k-filter" hidden' in markup
    assert "<details hidden" not in markup


def test_two_servers_are_shown_with_what_only_one_has_right(make_sample):
    here = [make_sample(i, "so\n#### 17" if i < 3 else "so\n#### 18") for i in range(40)]
    there = [make_sample(i, "so\n#### 17" if i == 9 else "so\n#### 18") for i in range(40)]
    other = {
        "server": {"url": "http://old/v1", "model": "bf16"},
        "samples": there,
        "answered": 40,
        "accuracy_strict": 0.975,
        "intervals": {"strict": [0.87, 0.99]},
    }
    text = " ".join(checked(gsm8k.section(record(here, against=other, metric="strict"))).text)
    for part in ("Two servers", "http://old/v1", "bf16", "97.50 %", "3 lost", "1 gained"):
        assert part in text
    assert "Two servers" not in str(gsm8k.section(record(here)))


def test_the_sweep_is_a_table_of_its_sizes(make_sample):
    sizes = [
        {"size": 8, "asked": 24, "answered": 23, "right": 21},
        {"size": 128, "asked": 24, "answered": 24, "right": 0},
    ]
    samples = [make_sample(i) for i in range(40)]
    text = checked(gsm8k.section(record(samples, probes={"load": {"ran": True, "sizes": sizes}}))).text
    cells = [part.strip() for part in text if part.strip()]
    at = cells.index("The same questions at other loads")
    numbers = [cell for cell in cells[at:] if cell.isdigit()]
    assert numbers[:8] == ["8", "24", "23", "21", "128", "24", "24", "0"]


HOSTILE = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e\ud800\"'&<!--"


def test_hostile_text_stays_text_in_every_field(make_sample):
    samples = [make_sample(i, HOSTILE) for i in range(3)]
    for sample in samples:
        for name in (
            "question",
            "expected",
            "class",
            "extracted_strict",
            "extracted_numeric",
            "finish_reason",
            "reasoning",
        ):
            sample[name] = HOSTILE
    samples.append(
        {**make_sample(3, error=HOSTILE), "usage": HOSTILE, "latency_s": HOSTILE, "index": HOSTILE}
    )
    found = RunRecord(
        "run",
        "now",
        [],
        gsm8k={
            **dict.fromkeys(("verdict", "qualifier", "reason", "questions", "answered"), HOSTILE),
            "samples": samples,
            "classes": {HOSTILE: 3},
            "decisions": {HOSTILE: {"word": HOSTILE, "reason": HOSTILE, "details": HOSTILE}},
            "probes": {HOSTILE: {HOSTILE: HOSTILE}, "load": {"sizes": [{"size": HOSTILE}]}},
            "errors": [{"error": HOSTILE, "count": HOSTILE}],
            "task": {"name": HOSTILE, "hashes": {HOSTILE: HOSTILE}},
            "server": {HOSTILE: HOSTILE},
            "notes": [HOSTILE],
            "settings": {HOSTILE: HOSTILE},
            "against": {
                "server": {"url": HOSTILE, "model": HOSTILE},
                "samples": [{**sample, "answer": HOSTILE, HOSTILE: HOSTILE} for sample in samples],
                "answered": HOSTILE,
                "intervals": HOSTILE,
            },
            "metric": "class",
        },
    )
    samples[0]["class"] = "other"
    markup = gsm8k.section(found)
    checked(markup)
    assert "\x1b" not in markup
    assert "\u202e" not in markup


@pytest.mark.parametrize(
    "broken",
    [
        {"samples": None, "decisions": [], "classes": None},
        {
            "samples": [None, 3, {}],
            "decisions": {"full": {"word": "PASS", "details": {"accuracy": {"strict": 3}, "classes": [3]}}},
        },
        {
            "samples": [],
            "interval": [0.9, 0.95],
            "accuracy_strict": 0.93,
            "probes": [1],
            "errors": 3,
            "task": 4,
        },
        {
            "interval": [None, "x"],
            "decisions": {"full": {"word": "X", "details": {"min_accuracy": float("nan")}}},
        },
    ],
)
def test_a_record_of_another_version_still_gives_a_page(broken):
    checked(gsm8k.section(RunRecord("run", "now", [], gsm8k=broken)))


def answer_of(kind, generator):
    """400 tokens, about 1,600 characters."""
    if kind == "english":
        return " ".join(
            generator.choice(("apples", "costs", "so", "3*4=12", "the", "total")) for _ in range(330)
        )
    if kind == "chinese":
        return "".join(chr(generator.randrange(0x4E00, 0x9000)) for _ in range(1600))
    return "".join(generator.choice("<>&\"'\x1b\u202e\U0001f600") for _ in range(1600))


@pytest.mark.parametrize(
    ("kind", "right"), [("english", True), ("english", False), ("chinese", False), ("markup", False)]
)
def test_1319_questions_with_400_tokens_each_stay_under_3_megabytes(make_sample, kind, right):
    generator = random.Random(1)
    end = " #### 18" if right else " #### 17"
    kinds = [make_sample(i, answer_of(kind, generator) + end) for i in range(8)]
    question = "How many bolts are left in the box after that? " * 6
    samples = [{**kinds[index % 8], "index": index, "question": question} for index in range(1319)]
    page = gsm8k.section(record(samples))
    assert len(page.encode()) < LIMIT - FRAME
    checker = checked(page)
    assert checker.tags.count("details") == 1319


def test_more_repeats_than_a_page_can_hold_are_counted(make_sample):
    samples = [make_sample(index, repeat=repeat) for repeat in range(4) for index in range(1319)]
    page = gsm8k.section(record(samples))
    assert len(page.encode()) < LIMIT - FRAME
    assert "3,776 more answers are in record.json" in page


def test_long_answers_keep_head_and_tail():
    shown = fitted("a" * 600 + "b" * 600, Cut(100, 50), 10_000)
    assert str(shown) == "a" * 100 + ' <span class="cut">[1,050 cut]</span> ' + "b" * 50
    assert str(fitted("short <b>", Cut(100, 50), 10_000)) == "short &lt;b&gt;"
    assert len(fitted('"' * 5000, Cut(500, 500), 700).encode()) <= 700


def test_charts_of_little_or_odd_data():
    assert interval_chart([], []) is None
    assert count_chart("t", "s", [], []) is None
    assert count_chart("t", "s", [1.0], []).most == 1
    one = interval_chart([("strict", 1.0, 1.0, 1.0)], [])
    assert one is not None
    assert "nan" not in repr(one)
    assert sum(b.right + b.other for b in count_chart("t", "s", [0.0] * 5, [1e9]).bins) == 6


def test_style_and_script_files_need_nothing_from_outside():
    folder = Path(gsm8k.__file__).parent
    for name in ("gsm8k.css", "gsm8k.js"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "http" not in text
        assert "url(" not in text
        assert "innerHTML" not in text
