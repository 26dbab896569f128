"""The part of the page about planted faults: what it says, and that nothing in a record breaks it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from harness.records.record import RunRecord
from reports import mutants
from reports.html import render

HOSTILE = (
    "</table></details><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e\ud800\"'&<!--"
)


class Checker(HTMLParser):
    """Every tag closed in order; tags, attributes and text collected."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "wbr":  # is never closed
            return
        self.open.append((tag, dict(attrs).get("class") == "label"))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not any(
            hidden for _, hidden in self.open
        ):  # labels of cells repeat their column on narrow screens
            self.text.append(data)


def checked(found):
    checker = Checker()
    checker.feed(str(mutants.section(RunRecord("run", "now", ["harness", "mutants"], mutants=found))))
    checker.close()
    assert checker.open == []
    assert not {"script", "style", "iframe", "img"} & set(checker.tags)
    assert not [a for a in checker.attributes if a == "style" or a.startswith("on")]
    return checker


def text_of(found):
    return " ".join(" ".join(checked(found).text).split())


def form(planting, status="killed"):
    return {"planting": planting, "rule": "GEMM", "status": status, "examples": 3, "seconds": 0.1, "problem": "1x1x16x16:1:normal:0",
            "how": "illegal", "message": "gemm[expert 0]"}  # fmt: skip


def fault(name, status="killed", reason=""):
    return {
        "name": name, "title": "The product is off", "category": "gemm", "killed_by": "GEMM", "effect": "shift", "bugs": ["H05"],
        "status": status, "reason": reason, "simulated": "", "planted_in": "physical", "examples": 1.0, "seconds": 0.02,
        "random_data": True, "plantings": [form(name, status)],
        "minimal": {"command": f"harness check --rule GEMM --candidate physical+{name} --problem 1x1x16x16:1:normal:0", "message": "m"},
    }  # fmt: skip


@pytest.fixture
def found():
    return {
        "candidate": "physical", "profile": "standard", "seeds": 5, "seed": 0, "complete": True, "seconds": 125.0,
        "score": {"faults": 4, "killed": 1, "survived": 1, "not_judged": 1, "not_planted": 1, "plantings": 14, "share": 0.5,
                  "median_examples": 1.0, "most_examples": 85, "median_seconds": 0.02},
        "survivors": [form("slips_through@weakest", "survived")],
        "faults": [fault("slips_through", "survived"), fault("output_scaled"), fault("late", "not judged", "the time was over"),
                   fault("absent", "not planted", "the candidate has no route_topk")],
        "candidate_failures": [{"rule": "MOE", "problem": "2x2x16x16:1,1:normal:9", "message": "layer[expert 1] is wrong"}],
        "matrix": {"rows": ["output_scaled", "slips_through"], "columns": ["GEMM", "WRITES"], "cells": [[3, 0], [None, 0]],
                   "forms": ["everywhere", "weakest", "seed 0"], "examples": 10, "powerless": ["WRITES"],
                   "not_applicable": {"GRAPH": "CUDA graphs need a CUDA device"}},
        "upstream": {"data": [{"name": "upstream", "title": "scales of 1"}], "cases": ["upstream everywhere", "upstream weakest"],
                     "faults": ["output_scaled", "slips_through"],
                     "criteria": [{"name": "cosine 0.97", "title": "above 0.97", "source": "flashinfer", "accepts_candidate": {"upstream": True},
                                   "missed": {"upstream everywhere": ["slips_through"], "upstream weakest": ["output_scaled", "slips_through"]}},
                                  {"name": "strict", "title": "t", "source": "s", "accepts_candidate": {"upstream": False}, "missed": {}}],
                     "missed_by_all": {"upstream everywhere": ["slips_through"], "upstream weakest": []}},
        "controls": {"examples": 100_000, "compared": 5_000_000, "controls": {"a": {}, "b": {}},
                     "false_alarms": [{"control": "split_k", "rule": "GEMM", "message": "wrong", "reproduce": "harness check"}]},
        "self_test": {"passed": False, "broken": [{"name": "wide bound", "what": "w", "rule": "GEMM", "how": "powerless", "detected": True,
                                                   "planted": 9, "noticed": 0}], "rules": []},
    }  # fmt: skip


def test_without_mutants_there_is_no_section():
    assert mutants.section(RunRecord("run", "now", [])) is None


def test_the_section_says_what_was_found_survivors_first(found):
    text = text_of(found)
    order = ["Mutation score 50 %", "Survivors", "slips_through@weakest", "The candidate itself fails",
             "the time was over", "criteria of other projects miss", "Kill matrix", "WRITES kill nothing",
             "1 false alarms in 100,000 examples over 2", "A broken check went unnoticed", "4 faults"]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "the candidate has no route_topk" in text
    assert "cosine 0.97 above 0.97 1 2 flashinfer" in text
    assert "rejects the healthy candidate too (upstream)" in text
    assert "output_scaled 3 ·" in text, "a rule that killed no form has a dot"
    assert "slips_through \N{EN DASH} ·" in text
    assert "--candidate physical+output_scaled" in text
    assert "Whole run 2 min 05 s" in text


def poisoned(value):
    if isinstance(value, dict):
        return {
            HOSTILE if not isinstance(k, str) or k in {"GRAPH", "a"} else k: poisoned(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_names_stay_text(found):
    text = text_of(poisoned(found))
    assert "<script>alert(1)</script>" in text
    assert "\x1b" not in text
    assert "\ud800" not in render(RunRecord("run", "now", [], mutants=poisoned(found)))


@pytest.mark.parametrize("value", [None, [], {}, "x", 5, float("nan"), True, [[]], [None], [{"name": None}]])
def test_fields_of_another_shape_are_left_out(found, value):
    for key in found:
        text_of({**found, key: value})
    for key in found["score"]:
        text_of({**found, "score": {**found["score"], key: value}})
    for key in ("matrix", "upstream", "controls", "self_test"):
        for inner in found[key]:
            text_of({**found, key: {**found[key], inner: value}})
    for inner in fault("a"):
        text_of({**found, "faults": [{**fault("a"), inner: value}]})


def test_an_unfinished_run_says_so(found):
    assert "The run was cut short." in text_of({**found, "complete": False})


def test_the_page_stays_small_with_a_large_catalog(found):
    names = [f"a_fault_with_a_rather_long_name_{i}" for i in range(300)]
    found["faults"] = [fault(name) | {"plantings": [form(name)] * 7} for name in names]
    found["matrix"] |= {"rows": names, "columns": [f"RULE-{i}" for i in range(26)], "cells": [[3] * 26] * 300}
    assert len(str(mutants.section(RunRecord("run", "now", [], mutants=found)))) < 1_000_000
