"""Known faults are named, with place, strength and evidence, from the calls of a rule that fails."""

from __future__ import annotations

import pytest

from harness.diagnosis.diagnose import diagnose_problem
from harness.faults.fault import all_faults
from harness.faults.named import plant
from harness.identification.measure import measure
from harness.running.judge import Judge
from tests.diagnosis.conftest import whole_way


@pytest.mark.parametrize(
    ("rule", "fault", "base"),
    [
        ("GEMM", "alpha_of_neighbour@7", "physical"),
        ("GEMM", "alpha_of_neighbour@weakest", "eager"),
        ("GEMM", "weight_nibbles_swapped@3", "control:shuffled_accumulation"),
        ("QUANT", "codes_truncated@weakest", "physical"),
        ("QUANT", "global_scale_inverted@2", "control:rounded_reciprocals_unknown"),
        ("ACT", "gate_and_up_swapped@4", "control:exact_arithmetic"),
        ("POW2", "global_scale_stale", "physical"),
        ("INPUTS", "alpha_folded_in_place", "physical"),
        ("WRITES", "stores_before_the_output", "eager"),
        ("REPEAT", "row_overwritten_now_and_then", "physical"),
        ("ROUTE", "negative_logits_misrouted@1", "physical"),
        ("DISPATCH", "rows_one_off@2", "eager"),
        ("COMBINE", "weights_dropped@2", "physical"),
    ],
)
def test_a_planted_fault_is_the_first_finding_and_explains_everything(diagnosed, rule, fault, base) -> None:
    first, *others = diagnosed(rule, fault, base=base)
    name = fault.partition("@")[0]
    assert name in {first["fault"], *first.get("same_as", ())}
    assert first["explained"] == 1
    assert first["evidence"].startswith(f"reproduces 100 % of {first['elements']:,} illegal elements")
    assert all(other["fault"] for other in others), "nothing may be left unexplained"


@pytest.mark.parametrize(
    ("rule", "fault", "base", "problem"),
    [
        # Of two slots, swapped weights look like experts in the order of the other right implementation.
        ("ROUTE", "weights_of_neighbour_slot@6003320", "eager", "4x32x128x128:32,24,32,32:normal:6239"),
        # Rows of ranks in turn lie nearer to the order of source ranks than to that of arrival.
        (
            "DISPATCH",
            "rank_rows_interleaved@6001340",
            "physical",
            "4x32x128x128:16,16,32,32:grid:5082:subnormal_scales+zero_expert",
        ),
        # An expert loses its only token: nothing is left of it but a wrong count.
        ("DISPATCH", "token_lost@6003620", "physical", "4x32x128x128:32*4:normal:97103"),
        # A large problem, of which a few rows are looked at first; they do not hold the row that the values came from.
        pytest.param(
            "REPEAT",
            "row_overwritten_now_and_then@8000980",
            "physical",
            "4x128x512x256:97,97,128,86:normal:43801",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_looks_like_something_else_at_first_is_found(rule, fault, base, problem, probe) -> None:
    candidate = plant(base, fault)
    judge = Judge(candidate, probe=probe)
    assert any(c.illegal for c in judge.judge(rule, problem).comparisons)
    known = measure(candidate, probe=False).known
    first, *others = diagnose_problem(candidate, known, rule, problem, seconds=120.0)
    # Weak evidence that several faults give is said to be that.
    alike = first["also"] if first.get("weak") else first.get("same_as", ())
    assert fault.partition("@")[0] in {first["fault"], *alike}
    assert first["explained"] == 1
    assert all(other["fault"] for other in others)


def test_a_rule_that_compares_nothing_has_no_diagnosis() -> None:
    from harness.faults.named import load_named

    judge = Judge(load_named("physical"), probe=False)  # on the CPU: no graphs
    assert judge.diagnose("GRAPH", "2x16x64x64:16,9:normal:1", "") == []


def test_a_right_candidate_has_no_diagnosis() -> None:
    from harness.faults.named import load_named

    judge = Judge(load_named("physical"))
    for rule in ("GEMM", "QUANT", "MOE", "REPEAT", "DISPATCH"):
        (finding,) = judge.diagnose(rule, "2x16x64x64:16,9:normal:1", "")
        assert finding["passed"] > 1
        assert not finding["fault"]


@whole_way
def test_the_finding_says_where_how_strong_and_which_threads_had_the_same_cause(diagnosed) -> None:
    first = diagnosed("GEMM", "output_scaled@3")[0]
    fault = all_faults()["output_scaled"]
    assert first["title"] == fault.title
    assert first["category"] == "gemm"
    assert first["strength"].startswith("x")
    assert first["place"] == "expert 0, all rows (masked_grouped_gemm)"
    assert first["where"] == {"masked_grouped_gemm": {"experts": [0], "rows": list(range(32))}}
    assert all("#" in thread or "/" in thread for thread in first["bugs"])
    assert first["command"] == "the command"


@whole_way
def test_two_faults_of_different_stages_are_told_apart(diagnosed) -> None:
    found = diagnosed("PIPELINE", "block_scale_rounded_up@4", "alpha_of_neighbour@3")
    assert {"block_scale_rounded_up", "alpha_of_neighbour"} <= {
        name for f in found if not f.get("alternative") for name in (f["fault"], *f.get("same_as", ()))
    }
    assert all(f["fault"] for f in found)


def test_two_faults_of_one_stage_leave_what_has_both_unexplained(diagnosed) -> None:
    found = diagnosed("GEMM", "output_tiles_transposed@4", "alpha_of_neighbour@3")
    assert {"output_tiles_transposed", "alpha_of_neighbour"} <= {f["fault"] for f in found}
    assert found[-1]["fault"] == ""
    assert "the other" in found[-1]["title"]
    explained = sum(f["elements"] for f in found if not f.get("alternative"))
    assert explained == round(found[0]["elements"] / found[0]["explained"])


def test_a_strength_outside_the_catalog_is_measured(users_layer, probe) -> None:
    judge = Judge(users_layer.OutputScaled(), probe=probe)
    first = judge.diagnose("MOE", "4x32x128x128:32,30,32,17:normal:5", "")[0]
    assert (first["fault"], first["strength"]) == ("output_scaled", "x0.3 = 3/10 (measured)")
    assert first["explained"] == 1


def test_a_checkpoint_that_should_have_been_refused_is_a_finding_of_its_own(diagnosed) -> None:
    (first,) = diagnosed("LOAD", "up_scale_2_ignored")
    assert first["fault"] == "up_scale_2_ignored"
    assert first["evidence"].endswith("illegal elements of what should have been refused")


def test_a_finding_that_rests_on_one_value_says_that_its_evidence_is_weak(diagnosed) -> None:
    first = diagnosed("QUANT", "block_scale_too_high@weakest", problem="1x4x32x32:2:grid:1")[0]
    assert first["explained"] == 1
    assert first["weak"].startswith("only 1 change of value")
    assert first["weak"] in first["evidence"]
    assert "weak" not in diagnosed("QUANT", "block_scale_too_high@3")[0]
