"""Records built in code: one each of PASS, FAIL, UNKNOWN and mixed. No test here needs a kernel."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from harness.records.record import (
    CandidateRun,
    Environment,
    Failure,
    Heatmap,
    Histogram,
    RuleResult,
    RunRecord,
    Skip,
)
from harness.verdict import Verdict
from tests.gsm8k.samples import make_sample  # noqa: F401  (a fixture)

EDGES = [float(e) for e in range(-20, 5)]
BIT_EQUAL = "bit equality, accumulator of 24 bits measured"
BOUND = "bound, blocked accumulator model of 64 elements"
MESSAGE = """\
out[expert 2, row 1, col 109] = -9.625, expected 0.785148 +/- 0.0135 (off by 10.4, 773.0x the bound)
  extent     755 of 21504 valid elements, 3 rows, experts [2]
  rule       MOE-GEMM-1  |error| <= gamma_512 * sum|a||b| * (1 + u_bf16) + u_bf16 * |expected|
  oracle     reference.moe.masked_grouped_gemm (float64)
  candidate  physical
  problem    experts=4 capacity=64 k=512 n=256 masked_m=[64, 0, 3, 17] seed=20394"""


def histogram(exact: int, *, above: int = 0) -> Histogram:
    body = [int(exact / 40 * 2.0 ** (-abs(i - 14) / 1.5)) if i < 20 else 0 for i in range(len(EDGES) - 1)]
    return Histogram(EDGES, [exact, *body, above])


def passing_rules(candidate: str) -> list[RuleResult]:
    return [
        RuleResult(
            rule="QUANT-SCALE-1",
            title="Every block scale is reachable from its amax under the declared arithmetic",
            candidate=candidate,
            verdict=Verdict.PASS,
            examples=200,
            compared=51_200,
            judged={"legal scales, exact mode": 51_200},
            seconds=3.25,
            worst_ratio=0.0,
            histograms={"quantize": histogram(51_200)},
        ),
        RuleResult(
            rule="MOE-GEMM-1",
            title="The masked grouped GEMM equals the exact result, or lies within its bound",
            candidate=candidate,
            verdict=Verdict.PASS,
            examples=200,
            empty=4,
            powerless=3,
            compared=4_300_800,
            judged={BIT_EQUAL: 4_295_040, BOUND: 5_760},
            seconds=64.0,
            worst_ratio=0.412,
            worst_problem="4x64x512x256:64,0,3,17:20394",
            histograms={"masked_grouped_gemm": histogram(4_295_040)},
        ),
        RuleResult(
            rule="GRAPH-1",
            title="A CUDA graph replayed with other data and another masked_m gives the eager result",
            candidate=candidate,
            verdict=Verdict.UNKNOWN,
            skipped="needs a CUDA device, found cpu",
        ),
    ]


def failing_rule(candidate: str, problems: int = 3) -> RuleResult:
    counts = [[0] * 16 for _ in range(4)]
    counts[2] = [0, 255, 250, 0, *[3] * 6, *[1] * 5, 227]
    failure = Failure(
        rule="MOE-GEMM-2",
        candidate=candidate,
        problem="4x64x512x256:64,0,3,17:20394",
        stage="masked_grouped_gemm",
        kind="illegal",
        message=MESSAGE,
        reproduce=f"harness check MOE-GEMM-2 --candidate {candidate} --problem 4x64x512x256:64,0,3,17:20394",
        place={"expert": 2, "row": 1, "col": 109},
        extent={"elements": 755, "of": 21_504, "rows": 3, "experts": [2]},
        heatmap=Heatmap(
            [str(e) for e in range(4)], [f"{16 * i}" for i in range(16)], counts, column_label="k block"
        ),
        diagnosis=[
            {
                "fault": "input global scale inverted on expert 2",
                "confidence": 0.97,
                "evidence": [
                    "multiplying expert 2 by 7.25 explains every element",
                    "no other expert differs",
                ],
                "thread": "https://example.org/issues/1",
            }
        ],
    )
    crash = Failure(
        rule="MOE-GEMM-2",
        candidate=candidate,
        problem="1x128x16x8:1:7",
        stage="masked_grouped_gemm",
        kind="crash",
        message="child process ended by signal 11 (SIGSEGV) after 0.8 s",
        reproduce=f"harness check MOE-GEMM-2 --candidate {candidate} --problem 1x128x16x8:1:7",
    )
    return RuleResult(
        rule="MOE-GEMM-2",
        title="Rows past masked_m never change a valid row",
        candidate=candidate,
        verdict=Verdict.FAIL,
        reason="755 of 21,504 elements are illegal",
        examples=200,
        compared=21_504,
        judged={BIT_EQUAL: 21_504},
        seconds=12.5,
        worst_ratio=773.0,
        worst_problem="4x64x512x256:64,0,3,17:20394",
        histograms={"masked_grouped_gemm": histogram(20_749, above=755)},
        failures=[failure, crash, *[failure] * problems][: max(problems, 2)],
    )


def environment() -> Environment:
    return Environment(
        python="3.12.4",
        platform="Linux 6.8 x86_64",
        cpu_count=2,
        packages={"torch": "2.8.0", "hypothesis": "6.130.1", "numpy": "2.1.0"},
        git_commit="0123456789abcdef0123456789abcdef01234567",
        git_dirty=True,
    )


def base(verdict: Verdict) -> RunRecord:
    return RunRecord(
        run_id="20250102-030405-check",
        created="2025-01-02T03:04:05+00:00",
        command=["harness", "check", "--candidate", "eager", "--profile", "standard"],
        verdict=verdict,
        harness_version="0.1.0",
        profile="standard",
        seed=20394,
        seconds=83.0,
        environment=environment(),
        candidates=[
            CandidateRun(
                "eager",
                ran=True,
                declared={"arithmetic": "exact", "accumulator_bits": 24, "deterministic": True},
                measured={"accumulator_bits": 24},
            ),
            CandidateRun("flashinfer-cutedsl", reason="needs sm_100, found no CUDA device"),
            CandidateRun(
                "vllm-cutedsl", reason="package vllm is not installed: pip install 'fp4-moe-harness[vllm]'"
            ),
        ],
        traps={"empty expert": 57, "tie at a midpoint": 31, "outlier block": 12},
        skips=[Skip("races", "needs compute-sanitizer"), Skip("deepep", "needs compute-sanitizer")],
    )


@pytest.fixture
def passed() -> RunRecord:
    record = base(Verdict.PASS)
    record.rules = passing_rules("eager")
    return record


@pytest.fixture
def failed() -> RunRecord:
    record = base(Verdict.FAIL)
    record.rules = [*passing_rules("eager"), failing_rule("eager")]
    return record


@pytest.fixture
def unknown() -> RunRecord:
    record = base(Verdict.UNKNOWN)
    record.command = ["harness", "check", "--candidate", "flashinfer-cutedsl"]
    record.candidates = [
        CandidateRun("flashinfer-cutedsl", requested=True, reason="needs sm_100, found no CUDA device")
    ]
    record.reason = "flashinfer-cutedsl was asked for and cannot run here: needs sm_100, found no CUDA device"
    record.traps = {}
    record.skips = []
    return record


@pytest.fixture
def mixed() -> RunRecord:
    record = base(Verdict.FAIL)
    record.reason = "physical gives illegal elements under MOE-GEMM-2 (773x the bound, expert 2)"
    record.interrupted = True
    measured = {"accumulator_bits": 13, "accumulates": "truncating, 64 elements an instruction"}
    record.candidates.insert(
        1,
        CandidateRun(
            "physical",
            requested=True,
            ran=True,
            declared={"accumulator_bits": 24, "alignments": {"k": 16, "n": 8}},
            measured=measured,
            missing_stages=["silu_mul_quantize_grouped"],
        ),
    )
    unjudged = RuleResult(
        rule="MOE-ALPHA-1",
        title="Alpha is applied per expert",
        candidate="physical",
        verdict=Verdict.UNKNOWN,
        reason="the comparison had no power on any example",
        examples=20,
        powerless=20,
    )
    known = failing_rule("physical", 2)
    known.rule, known.verdict = "STRIDE-1", Verdict.PASS
    for failure in known.failures:
        failure.kind, failure.known_issue = "known", "https://example.org/issues/12"
    record.rules = [
        *passing_rules("eager"),
        *passing_rules("physical"),
        unjudged,
        failing_rule("physical", 14),
        known,
    ]
    record.traps["subnormal scale"] = 2
    record.missing_traps = ["subnormal scale", "all-zero expert"]
    record.known_failures = [
        {
            "rule": "STRIDE-1",
            "candidate": "physical",
            "versions": ">=0.1,<0.2",
            "issue": "https://example.org/issues/12",
            "date": "2025-01-01",
        }
    ]
    record.errors = ["worker gw1 ended without a record\nTraceback (most recent call last):\n  MemoryError"]
    return record


class Elements(HTMLParser):
    """What a browser makes of a page: elements with attributes, the text outside style and script, what was not closed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "hr", "wbr", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data


@pytest.fixture
def elements() -> Callable[[str], Elements]:
    """Parse a page."""

    def parse(page: str) -> Elements:
        parser = Elements()
        parser.feed(page)
        parser.close()
        parser.unbalanced += parser.open
        return parser

    return parse


HOSTILE = (
    '</script><script>alert(1)</script><img src=x onerror=alert(1)> " onclick="alert(1) \' | `a` ``` [x](javascript:1) '
    "@everyone https://evil.example \x00\x1b[31m\u202ereversed\u2066 \ud800 {{ 7 * 7 }} \n# heading\n| a | b |"
)


@pytest.fixture
def hostile() -> Callable[[Any], Any]:
    """Put hostile text into every free string of parsed JSON: what has a fixed set of words stays as it is."""
    fixed = {"verdict", "kind", "status", "created"}

    def fill(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: fill(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [fill(v, key) for v in value]
        return value + HOSTILE if isinstance(value, str) and key not in fixed else value

    return fill


@pytest.fixture
def is_harmless(elements: Callable[[str], Elements]) -> Callable[[str], None]:
    """Check that a page of hostile strings is a page: nothing of them is markup, hidden, or loaded."""

    def check(page: str) -> None:
        parsed = elements(page)
        assert parsed.unbalanced == []
        for tag, attributes in parsed.found:
            assert tag not in {"img", "iframe", "link", "form", "object", "base"}, tag
            assert not [name for name in attributes if name.startswith("on") or name in {"src", "style"}], tag
            link = attributes.get("href") or "#"
            assert not re.match(r"[a-z]+:|//", link, re.IGNORECASE), link
        assert "alert(1)" in parsed.text, "shown as text"
        assert "{{ 7 * 7 }}" in parsed.text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
        page.encode("utf-8")

    return check
