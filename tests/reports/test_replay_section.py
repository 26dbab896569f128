"""The section about a replayed capture: errors along the layers, the way to the first illegal stage, hostile text."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.records.parts.replay import ReplayedCall, ReplayRun
from harness.records.record import RunRecord
from harness.verdict import Verdict
from reports import replay
from reports.html import render

STAGES = ("quantize_grouped", "masked_grouped_gemm", "silu_mul_quantize_grouped", "masked_grouped_gemm")


def layer_calls(layer: int) -> list[ReplayedCall]:
    first = 5 * layer
    calls = [
        ReplayedCall(0, layer, first + n, stage, first, error=0.1 / (n + 1), compared=64, distance=0.01)
        for n, stage in enumerate(STAGES, 1)
    ]
    return [*calls, ReplayedCall(0, layer, first, "masked_moe", error=0.15, compared=64)]


def record(*, layers: int = 6, wrong: int | None = 4, **more: object) -> RunRecord:
    calls = [call for layer in range(layers) for call in layer_calls(layer)]
    made = RunRecord(
        "r", "now", ["harness", "replay", "cap"], Verdict.PASS if wrong is None else Verdict.FAIL
    )
    if wrong is not None:
        call = calls[5 * wrong + 1]
        call.verdict, call.words, call.illegal, call.error = Verdict.FAIL, "= 1, legal is 2", 9, 2.5
        call.diagnosis = [{"fault": "alpha_twice", "title": "Alpha <twice>", "bugs": ["vllm#1"]}]
    made.replay_run = ReplayRun("cap", calls=calls, **more)  # type: ignore[arg-type]
    return made


def test_a_stages_error_is_drawn_over_the_layers_and_leads_to_what_was_found() -> None:
    drawn = str(replay.section(record()))
    assert re.findall(r"<figcaption><strong>(.*?)</strong>", drawn)[:5] == [
        "quantize_grouped", "masked_grouped_gemm", "silu_mul_quantize_grouped", "masked_grouped_gemm, call 2",
        "masked_moe",
    ]  # fmt: skip
    gemm = drawn.split("<figure")[2]
    heights = [float(y) for y in re.findall(r'cy="(.*?)"', gemm)]
    assert len(heights) == 6, "one mark a layer"
    assert heights.index(min(heights)) == 4, "the wrong layer is highest"
    assert re.findall(r'<a href="#(.*?)" aria-label=".*?"><circle', gemm) == ["illegal-1"]
    assert "illegal in 1, first in layer 4" in gemm
    assert drawn.count('href="#illegal-1"') == 3, "two marks, and the row of the table"
    assert 'id="illegal-1"' in drawn
    assert "Alpha &lt;twice&gt;" in drawn


def test_the_top_of_the_page_leads_to_the_first_illegal_stage() -> None:
    page = render(record())
    first = page[page.index("Look at first:") : page.index("This run:")]
    assert '<a href="#illegal-1">rank 0, layer 4, call 22, masked_grouped_gemm</a>' in first
    assert '<p class="cause"><strong>Alpha &lt;twice&gt;</strong></p>' in first
    assert "Look at first" not in render(record(wrong=None))
    assert "none judged" not in page


def test_a_baseline_has_charts_of_its_own_and_what_is_not_as_it_was() -> None:
    drawn = str(replay.section(record(baseline="before", changes=["rank 0, layer 1: other w1"])))
    assert drawn.count("<figure") == 9, "five errors, four distances"
    assert "rank 0, layer 1: other w1" in drawn
    assert "Distance from the baseline" not in str(replay.section(record(wrong=None, layers=0)))


def test_calls_of_no_layer_and_without_figures_are_in_the_table_only() -> None:
    made = RunRecord("r", "now", [])
    call = ReplayedCall(
        0, None, 1, "flashinfer.cute_dsl_fused_moe", verdict=Verdict.UNKNOWN, words="not judged"
    )
    made.replay_run = ReplayRun("cap", calls=[call])
    drawn = str(replay.section(made))
    assert "<figure" not in drawn
    assert "not judged" in drawn
    assert replay.section(RunRecord("r", "now", [])) is None


def test_an_error_that_is_not_finite_and_an_exact_result_stay_on_the_axis() -> None:
    made = record(layers=3, wrong=None)
    assert made.replay is not None
    made.replay["calls"][0]["error"] = 0.0
    made.replay["calls"][5] |= {"error": None, "verdict": "FAIL"}
    chart = str(replay.section(made)).split("<figure")[1]
    heights = [float(y) for y in re.findall(r'cy="(.*?)"', chart)]
    assert heights[0] == max(heights) == 134
    assert heights[1] == min(heights) == 18
    assert "not finite, FAIL" in chart


def test_hostile_text_stays_text_and_a_damaged_part_costs_its_section(
    hostile: Callable[[object], dict[str, object]], is_harmless: Callable[[str], None]
) -> None:
    made = record(baseline="b", changes=["x"], torn=["t"])
    made.replay = hostile(made.replay)
    page = render(made)
    assert ">Replay<" in page
    is_harmless(page)
    made.replay = {"folder": "x", "calls": [{"rank": "one"}]}
    assert "record.replay.calls[0].rank must be int" in render(made)
