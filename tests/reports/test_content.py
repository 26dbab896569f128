"""What the page says about each kind of run: golden texts, section by section."""

from __future__ import annotations

import re
from html import unescape

import pytest

from harness.records.record import CandidateRun, Failure, Heatmap, Histogram, RuleResult, RunRecord
from harness.verdict import Verdict
from reports import candidates, environment, errors, failures, known, margins, rules, skips, summary, traps
from reports.html import render


def text(markup: object) -> str:
    """The words of some markup, without what only a browser sees."""
    without_drawings = re.sub(r"(?s)<svg.*?</svg>|<wbr>", "", str(markup))
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", without_drawings)).split())


def rows(markup: object) -> list[str]:
    found = re.findall(r"(?s)<tr .*?</tr>", str(markup))
    return [text(re.sub(r'(?s)<span class="label".*?</span>', "", row)) for row in found]


def test_verdict_and_reason_come_first(passed, failed, unknown, mixed):
    starts = {
        "PASS Every rule that ran passed: 4,352,000 elements compared by 2 rules.": passed,
        "FAIL 1 of 3 rule results failed; the first is MOE-GEMM-2 on eager.": failed,
        "UNKNOWN flashinfer-cutedsl was asked for and cannot run here: needs sm_100, found no CUDA device": unknown,
        "FAIL physical gives illegal elements under MOE-GEMM-2 (773x the bound, expert 2)": mixed,
    }
    for expected, record in starts.items():
        page = render(record)
        heading = re.search(r"(?s)<h1>.*?</h1>", page)
        assert heading is not None
        assert text(heading[0]) == expected
        assert f"<title>{record.verdict}: 20250102-030405-check</title>" in page


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"verdict": Verdict.FAIL, "missing_traps": ["a", "b"]}, "2 traps were drawn too rarely."),
        ({"verdict": Verdict.FAIL, "errors": ["worker ended\nTraceback"]}, "worker ended"),
        ({"verdict": Verdict.UNKNOWN}, "Nothing was judged."),
        ({"verdict": Verdict.FAIL}, "The record gives no reason."),
    ],
)
def test_reason_is_found_where_the_record_has_none(change, expected):
    assert summary.reason(RunRecord(run_id="r", created="", command=[], **change)) == expected


def test_summary_of_a_mixed_run(mixed):
    assert text(summary.header(mixed)) == (
        "FP4 MoE correctness report FAIL physical gives illegal elements under MOE-GEMM-2 (773x the bound, expert 2) "
        "The run was interrupted. What follows is what it had found by then. "
        "Look at first: MOE-GEMM-2 on physical , masked_grouped_gemm, expert 2, row 1, col 109. "
        "input global scale inverted on expert 2 multiplying expert 2 by 7.25 explains every element "
        "no other expert differs Reported before as https://example.org/issues/1 . "
        "Where: 755 of 21,504 elements, as the map shows, problem 4x64x512x256:64,0,3,17:20394 "
        "out[expert 2, row 1, col 109] = -9.625, expected 0.785148 +/- 0.0135 (off by 10.4, 773.0x the bound) "
        "Where the errors sit, expert by k block 755 illegal elements in 14 of 64 cells. "
        "expert 2, k block 16: 255 expert 2, k block 32: 250 expert 2, k block 240: 227 expert 2, k block 64: 3 "
        "expert 2, k block 80: 3 To see it: "
        "harness check MOE-GEMM-2 --candidate physical --problem 4x64x512x256:64,0,3,17:20394 Copy "
        "Covered 5 of 7 rules pass 99.9 % of 8,747,008 elements had one legal value Stayed free 0.1 % had an interval "
        "Not judged GRAPH-1: needs a CUDA device, found cpu MOE-ALPHA-1: the comparison had no power on any example not run here: flashinfer-cutedsl, vllm-cutedsl "
        "traps drawn too seldom: subnormal scale, all-zero expert "
        "Rules 5 PASS, 1 FAIL, 1 UNKNOWN Skipped 4 Elements compared 8,747,008 Examples 1,220 Powerless examples 26 "
        "Failing problems 14 Known failures 2 Missing traps 2 Duration 1 min 23 s Device cpu "
        "Commit 0123456789ab + changes Profile standard Seed 20394 "
        "PASS eager FAIL physical NOT RUN flashinfer-cutedsl NOT RUN vllm-cutedsl "
        "This run: harness check --candidate eager --profile standard Copy"
    )


def test_one_line_a_rule_worst_first_and_open_where_it_fails(failed):
    drawn = str(rules.section(failed))
    lines = re.findall(r"(?s)<details class=\"rule-line\".*?</details>", drawn)
    assert ["open" in line.partition(">")[0] for line in lines] == [True, False, False, False]
    assert [text(line) for line in lines] == [
        (
            "FAIL MOE-GEMM-2 200 problems, 21,504 elements: one value 100 % 12.5 s Rows past masked_m never change a valid row "
            "755 of 21,504 elements are illegal 3 failing problems"
        ),
        (
            "PASS QUANT-SCALE-1 200 problems, 51,200 elements: one value 100 % 3.25 s "
            "Every block scale is reachable from its amax under the declared arithmetic"
        ),
        (
            "PASS MOE-GEMM-1 200 problems, 4,300,800 elements: one value 99.9 %, an interval 0.1 % 1 min 04 s "
            "The masked grouped GEMM equals the exact result, or lies within its bound "
            "Powerless problems 3 Empty problems 4 Worst error / bound 0.412 in problem 4x64x512x256:64,0,3,17:20394"
        ),
        (
            "SKIPPED GRAPH-1 needs a CUDA device, found cpu "
            "A CUDA graph replayed with other data and another masked_m gives the eager result"
        ),
    ]


def test_how_elements_were_judged_stands_once_in_a_legend(failed):
    drawn = rules.section(failed)
    assert rows(drawn) == [
        "Way Legal Elements Rules",
        "bit equality, accumulator of 24 bits measured one value 4,316,544 MOE-GEMM-1, MOE-GEMM-2",
        "legal scales, exact mode one value 51,200 QUANT-SCALE-1",
        "bound, blocked accumulator model of 64 elements an interval 5,760 MOE-GEMM-1",
    ]
    assert "One value: 99.9 % only one value was legal" in text(drawn)
    assert 'title="' not in str(drawn)


def test_in_which_arithmetic_dot_products_were_exact_is_one_line_of_it(passed):
    assert "exact dot products" not in text(rules.section(passed))
    passed.rules[0].oracle = {"float32, certified by the product of norms": 300}
    passed.rules[1].oracle = {"float64, certified": 100, "float32, certified by the product of norms": 600}
    assert (
        "Their exact dot products, where stages multiply: float32, certified by the product of norms 90 %, float64, certified 10 %."
        in text(rules.section(passed))
    )


def test_a_passing_run_says_what_it_covered_and_what_stayed_free(passed):
    passed.reason = "2 results on eager, all of them legal; up to experts 4; beyond that not tested"
    words = text(summary.header(passed))
    assert "PASS 2 results on eager, all of them legal Covered 2 of 2 rules pass" in words
    assert (
        "Limits up to experts 4; beyond that not tested Stayed free 0.1 % had an interval Not judged GRAPH-1"
        in words
    )


def test_a_row_of_a_failed_rule_leads_to_its_failures(failed):
    assert 'href="#failure-1"' in str(rules.section(failed))
    assert 'id="failure-1"' in str(failures.section(failed))


def test_failure_says_what_where_and_how_to_repeat_it(failed):
    drawn = str(failures.section(failed))
    # What the page shows beside the message is not repeated in it.
    lines = [
        line
        for line in failed.rules[-1].failures[0].message.splitlines()
        if not line.startswith(("  extent", "  candidate", "  problem"))
    ]
    message = "\n".join(lines).replace(">", "&gt;").replace("<", "&lt;")
    assert f'class="message">{message}</pre>' in drawn.replace("&#39;", "'")
    words = text(drawn)
    for part in (
        (
            "MOE-GEMM-2 on eager Rows past masked_m never change a valid row "
            "illegal element masked_grouped_gemm, expert 2, row 1, col 109 4x64x512x256:64,0,3,17:20394"
        ),
        "Worst element expert 2, row 1, col 109 Extent 755 of 21,504 elements rows 3 experts 2 Problem",
        (
            "Diagnosis input global scale inverted on expert 2 Evidence "
            "multiplying expert 2 by 7.25 explains every element no other expert differs Reported as https://example.org/"
        ),
        (
            "Where the errors sit, expert by k block 755 illegal elements in 14 of 64 cells. "
            "expert 2, k block 16: 255 expert 2, k block 32: 250 expert 2, k block 240: 227"
        ),
        "Reproduce harness check MOE-GEMM-2 --candidate eager --problem 4x64x512x256:64,0,3,17:20394 Copy",
        "candidate crashed masked_grouped_gemm 1x128x16x8:1:7 child process ended by signal 11 (SIGSEGV)",
    ):
        assert part in words


def test_many_failures_of_one_rule_are_counted_not_repeated(mixed):
    drawn = str(failures.section(mixed))
    assert drawn.count("<details") == 10 + 2
    assert drawn.count(" open>") == 2
    assert "4 more failing problems of this rule are in record.json." in drawn
    assert drawn.index("MOE-GEMM-2") < drawn.index("STRIDE-1"), "known failures come last"
    assert "2 known failures" in str(rules.section(mixed))


def test_copy_buttons_appear_only_with_the_script(failed):
    page = render(failed)
    assert page.count('<button type="button" class="copy" hidden>') == page.count("<button") == 5
    assert "button.hidden = false" in page


def test_candidates_that_ran_and_those_that_did_not(mixed):
    drawn = candidates.section(mixed)
    assert rows(drawn) == [
        "Property Declared Measured",
        "arithmetic exact not measured",
        "accumulator_bits 24 24",
        "deterministic yes not measured",
        "Property Declared Measured",
        "accumulator_bits 24 13 differs from the declaration",
        "alignments k 16, n 8 not measured",
        "accumulates not declared truncating, 64 elements an instruction",
        "Verdict Candidate Reason",
        "NOT RUN flashinfer-cutedsl needs sm_100, found no CUDA device",
        "NOT RUN vllm-cutedsl package vllm is not installed: pip install 'fp4-moe-harness[vllm]'",
    ]
    assert "Stages it does not have: silu_mul_quantize_grouped ." in text(drawn)


def test_a_candidate_asked_for_that_cannot_run_is_unknown(unknown):
    assert rows(candidates.section(unknown))[1] == (
        "UNKNOWN flashinfer-cutedsl needs sm_100, found no CUDA device "
        "It was asked for by name, so the run cannot pass without it."
    )


def test_missing_traps_lead_the_table(mixed):
    drawn = traps.section(mixed)
    assert "2 of 5 were drawn too rarely" in text(drawn)
    assert rows(drawn)[1:] == [
        "all-zero expert 0 missing",
        "subnormal scale 2 missing",
        "outlier block 12",
        "tie at a midpoint 31",
        "empty expert 57",
    ]


def test_skips_are_listed_by_reason(passed):
    assert text(skips.section(passed)) == (
        "needs a CUDA device, found cpu GRAPH-1 on eager needs compute-sanitizer races deepep"
    )


def test_known_failures_and_errors(mixed):
    assert rows(known.section(mixed)) == [
        "rule candidate versions issue date",
        "STRIDE-1 physical >=0.1,<0.2 https://example.org/issues/12 2025-01-01",
    ]
    assert "worker gw1 ended without a record Traceback" in text(errors.section(mixed))


def test_environment(passed):
    assert text(environment.section(passed)) == (
        "Python 3.12.4 Platform Linux 6.8 x86_64 CPU count 2 Device cpu "
        "Commit 0123456789abcdef0123456789abcdef01234567 with uncommitted changes Harness 0.1.0 "
        "Packages hypothesis 6.130.1 numpy 2.1.0 torch 2.8.0"
    )


def test_one_histogram_a_candidate_and_stage(mixed):
    drawn = str(margins.section(mixed))
    assert drawn.count('role="img"') == 2, "one value was legal wherever else"
    assert drawn.startswith('<details class="data"><summary>'), "nothing is above its bound"
    for rule in mixed.rules:
        rule.judged = {"bound of something": rule.compared}
    drawn = str(margins.section(mixed))
    assert drawn.startswith('<details class="data" open><summary>')
    assert drawn.count('role="img"') == 4
    for name in ("eager", "physical"):
        assert f"<h3>{name}</h3>" in drawn
    # The rules of one stage are added up, and the illegal elements are named in words too.
    assert "MOE-GEMM-1, MOE-GEMM-2, STRIDE-1" in drawn
    assert (
        "4,796,964 elements, 1,510 elements at or above the bound; highest bin with elements: 2⁴ and more."
        in drawn
    )
    assert drawn.count('class="bound"') == 4


def test_data_that_do_not_fit_together_are_named_and_not_drawn(passed):
    passed.rules[1].histograms = {"quantize": Histogram([0.0, 1.0], [3])}
    failure = Failure("R", "eager", "p", "s", "illegal", "m", "", heatmap=Heatmap(["0"], ["0"], [[1, 2]]))
    passed.rules.append(RuleResult("R", "title", "eager", Verdict.FAIL, failures=[failure]))
    page = render(passed)
    assert "Stage quantize: its edges and counts do not belong together" in page
    assert "heat" not in str(failures.section(passed))


def test_a_candidate_that_only_rules_mention_is_still_shown(passed):
    passed.candidates = [CandidateRun("eager")]
    passed.rules[0].candidate = "other"
    assert "<h3>other</h3>" in str(rules.section(passed))
