"""A real browser for reports: headless Chromium from the system, offline, with everything it complains about collected."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from harness.records.record import RunRecord, load_record
from harness.verdict import Verdict
from reports.html import write_report

RECORDS = Path(__file__).parent.parent / "records" / "kept"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, started once."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    # make test-browser asks for the browser: skipping everything would look like passing.
    give_up = pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip
    if path is None:
        give_up("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    if (
        importlib.util.find_spec("playwright") is None
        or importlib.util.find_spec("axe_playwright_python") is None
    ):
        give_up(
            "playwright or axe-playwright-python is not installed: pip install 'fp4-moe-harness[browser]'"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's sandbox needs rights that a container lacks; the pages are our own.
        browser = driver.chromium.launch(executable_path=path, chromium_sandbox=False, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A report in a tab, and what the browser said about it: console messages, errors, dialogs, requests."""

    page: Any
    path: Path
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def overflow(self) -> int:
        """Pixels that the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Write the report of a record (or take a finished file), open it, and fail at the end if the browser complained."""
    contexts, tabs = [], []

    def show(source: RunRecord | Path, *, width: int = 1100, **options: Any) -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        path = source if isinstance(source, Path) else write_report(source, tmp_path / str(len(tabs)))
        opened = Opened(page, path)
        page.on("console", lambda message: opened.problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: opened.problems.append(f"error: {error}"))
        page.on(
            "dialog", lambda dialog: (opened.problems.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(path.as_uri())
        tabs.append(opened)
        return opened

    yield show
    complaints = [problem for tab in tabs for problem in tab.problems]
    strange = [url for tab in tabs for url in tab.requests if url.split("#")[0] != tab.path.as_uri()]
    for context in contexts:
        context.close()
    assert complaints == []
    assert strange == []


def golden(name: str) -> RunRecord:
    """Return a record that a real run left."""
    return load_record(RECORDS / f"{name}.json")


def samples(count: int) -> list[dict[str, Any]]:
    """Return questions as a run records them, in several classes, with the texts of real ones."""
    models = [*(golden("gsm8k_pass").gsm8k or {})["samples"], *(golden("gsm8k_dead").gsm8k or {})["samples"]]
    longer = " ".join(str(model["answer"]) for model in models[:12])[:1600]
    found = []
    for index in range(count):
        model = models[(index * 7) % len(models)] if index % 9 == 0 else models[index % 32]
        found.append({**model, "index": index, "repeat": 0, "answer": f"{model['answer']} {longer}\n#### 7"})
    found[count // 2]["question"] = "How many zeppelins are in the hangar?"
    return found


def gsm8k(count: int) -> RunRecord:
    """Return a GSM8K run of this many questions."""
    from harness.gsm8k.decision import full_decision
    from harness.gsm8k.outcome import counted
    from harness.gsm8k.path import accuracy_path
    from harness.records.parts.gsm8k import Gsm8kDecisions, Gsm8kRequests

    record, asked = golden("gsm8k_pass"), samples(count)
    decision = full_decision(asked, min_accuracy=0.5)
    record.verdict, record.reason = decision.verdict, decision.reason
    kept = record.gsm8k_run
    assert kept is not None
    record.gsm8k_run = replace(
        counted(asked, count, "strict"),
        verdict=kept.verdict,
        reason=decision.reason,
        path=accuracy_path(asked, "strict"),
        requests=Gsm8kRequests(sent=count, answered=count),
        task=kept.task,
        server=kept.server,
        settings=kept.settings,
        decisions=Gsm8kDecisions(full=decision),
    )
    return record


def canary() -> RunRecord:
    """Return a check with the canary: two runs, and the table of faults."""
    from harness.faults.bugs import all_bugs, threads_of

    def run(name: str, candidate: str) -> dict[str, Any]:
        return {
            **(golden(name).gsm8k or {}),
            "candidate": candidate,
            "reproduce": f"harness canary run {candidate}",
        }

    faults = list(dict.fromkeys(fault for bug in all_bugs().values() for fault in bug.faults))[:30]
    lines = [
        {
            "name": "bf16",
            "kind": "variant",
            "accuracy": 0.996,
            "interval": [0.99, 1.0],
            "asked": 500,
            "verdict": "PASS",
        }
    ]
    for number, name in enumerate(faults):
        bugs = [bug.id for bug in all_bugs().values() if name in bug.faults]
        facts = {
            "title": f"What {name} does",
            "effect": "collapse",
            "killed_by": "GEMM",
            "bugs": bugs,
            "threads": threads_of(bugs),
        }
        share = number / len(faults)
        line = {
            "accuracy": share,
            "interval": [share, min(1.0, share + 0.05)],
            "asked": 500,
            "verdict": "FAIL",
        }
        lines.append({"name": name, "kind": "fault", "facts": facts, **line})
    record = golden("pass")
    record.canary = {
        "runs": [run("gsm8k_pass", "eager")],
        "controls": [run("gsm8k_dead", "eager+input_scale_inverted")],
        "table": lines,
    }
    return record


def mutants() -> RunRecord:
    """Return a run of planted faults with survivors, a kill matrix, other projects' criteria and a self-test."""
    record = golden("mutants")
    found = record.mutants or {}
    columns = [f"RULE-{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    names = [f"a_fault_with_a_long_name_{number}" for number in range(60)]
    cells = [[(row * column) % 5 % 4 or None for column in range(26)] for row in range(60)]
    cases = ["upstream everywhere", "upstream weakest", "calibrated everywhere"]
    criteria = [
        {"name": f"criterion {n}", "title": "cosine above 0.97", "source": "flashinfer tests/moe/test_fused_moe.py",
         "accepts_candidate": {"upstream": n > 0}, "missed": dict.fromkeys(cases, names[: 3 * n])}
        for n in range(4)
    ]  # fmt: skip
    record.mutants = {
        **found,
        "survivors": [found["faults"][0]["plantings"][0] | {"status": "survived"}],
        "matrix": {"rows": names, "columns": columns, "cells": cells, "forms": ["everywhere", "weakest"],
                   "examples": 10, "powerless": ["RULE-A"], "not_applicable": {"GRAPH": "needs a CUDA device"}},
        "upstream": {"data": [{"name": "upstream", "title": "scales of 1"}], "cases": cases, "faults": names,
                     "criteria": criteria, "missed_by_all": {case: [] for case in cases}},
        "self_test": {"passed": True, "rules": [], "broken": [
            {"name": "a bound too wide", "what": "twice the bound", "rule": "GEMM", "how": "planted faults live",
             "detected": True, "planted": 9, "noticed": 4}]},
    }  # fmt: skip
    return record


def races() -> RunRecord:
    """Return a race hunt with a race, a survivor, and mistakes that were caught."""
    from harness.records.parts.races import KernelHunt, MutationResult, RacesRun

    caught = [
        MutationResult(
            f"wait-{n}", f"wait {n} on an mbarrier returns at once", "wrong values", "late", 1, "9 differ"
        )
        for n in range(30)
    ]
    caught += [
        MutationResult("no-fence-0", "the fence before a TMA store is missing", schedules=17),
        MutationResult(
            "wait-31", "a wait returns at once", schedules=17, benign="it only keeps the CTA alive"
        ),
    ]
    hunts = [
        KernelHunt("128x128-cluster-2x2", 16, {"3": "wrong values: 128 of 262144 elements differ"}, 98_816, 0,
                   [256, 129, 0, 1], 218.0, caught),
        KernelHunt("256x128-pair", 16, {}, 98_816, 7, [256, 129, 0, 1], 142.0, caught[:30]),
    ]  # fmt: skip
    record = golden("pass")
    record.command, record.rules = ["harness", "races", "--mutate"], []
    record.verdict, record.reason = Verdict.FAIL, "128x128-cluster-2x2: schedule 3"
    record.races_run = RacesRun(16, mutate=True, kernels=hunts)
    return record


KEPT = ("pass", "quick", "fail", "neighbour", "unknown", "mixed", "gsm8k_dead")


def replayed() -> RunRecord:
    """Return a replayed capture of many layers, compared with a baseline, with illegal calls in one of them."""
    from harness.records.parts.replay import ReplayedCall, ReplayRun

    stages = ("quantize_grouped", "masked_grouped_gemm", "silu_mul_quantize_grouped", "masked_moe")
    calls = [
        ReplayedCall(0, layer, 4 * layer + n, stage, compared=1792, error=0.1 * 1.1**n, distance=0.0)
        for layer in range(60)
        for n, stage in enumerate(stages)
    ]
    for call in calls[121:124]:
        call.verdict, call.illegal, call.error, call.regressed = Verdict.FAIL, 900, None, True
        call.words = "masked_grouped_gemm[expert 0, row 4, col 5] = -0.789, the only legal value is -0.2324\n  extent     all"
    calls[121].diagnosis = [
        {"fault": "alpha_twice", "title": "The product is multiplied by alpha twice", "bugs": ["vllm#1"]}
    ]
    record = golden("pass")
    record.command, record.rules = ["harness", "replay", "cap"], []
    record.verdict, record.reason = (
        Verdict.FAIL,
        "first illegal: rank 0, layer 30, call 121, masked_grouped_gemm",
    )
    record.replay_run = ReplayRun(
        "cap", "before", "fast", "NVIDIA B200", ["line 6 is torn"], ["rank 0: other w1"], calls
    )
    return record


STATES: dict[str, Callable[[], RunRecord]] = {
    **{name: lambda name=name: golden(name) for name in KEPT},
    "gsm8k": lambda: gsm8k(60),
    "canary": canary,
    "mutants": mutants,
    "races": races,
    "replay": replayed,
}
"""Every kind of page."""


@pytest.fixture(params=list(STATES))
def state(request: pytest.FixtureRequest) -> RunRecord:
    """Each kind of page in turn."""
    return STATES[request.param]()


@pytest.fixture
def record_of() -> Callable[[str], RunRecord]:
    """A page by name, as in `STATES`."""
    return lambda name: STATES[name]()


@pytest.fixture
def whole_gsm8k() -> RunRecord:
    """A run of all 1,319 questions with answers of about 400 tokens, none right: wrong ones are shown at more length."""
    record = gsm8k(1319)
    for sample in (record.gsm8k or {})["samples"]:
        sample["class"] = "wrong number"
    return record
