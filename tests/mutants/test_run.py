"""A whole request in one process: verdicts, what the record holds, the matrix, the smallest problem."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.mutants import matrix
from harness.mutants.bench import Batch, Bench
from harness.mutants.minimal import minimal_problem
from harness.mutants.run import MutantsRequest, chosen_faults, plantings
from harness.problems.problem import parse_problem
from harness.records.parts.mutants import KILLED, NOT_PLANTED, SURVIVED, PlantingResult
from harness.verdict import UsageError, Verdict

ROOT = Path(__file__).parents[2]


def test_all_killed_is_pass_and_the_record_holds_what_its_document_says(mutants):
    found, verdict = mutants(faults=("alpha_of_neighbour", "output_scaled"), seeds=2)
    assert verdict is Verdict.PASS
    score = found["score"]
    assert (score["faults"], score["killed"], score["plantings"], score["plantings_killed"]) == (2, 2, 8, 8)
    assert score["share"] == 1.0
    assert 1 <= score["median_examples"] <= 5
    assert found["survivors"] == []
    assert found["complete"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    document = (ROOT / "harness/mutants/README.md").read_text()
    words = set(re.findall(r"`(\w+)`", document[document.index("## record.mutants") :]))
    (fault, _), form = found["faults"], found["faults"][0]["plantings"][0]
    assert set(found) | set(score) | set(fault) | set(form) <= words


def test_a_survivor_is_fail_and_stands_first(mutants, invisible):
    found, verdict = mutants(faults=("output_scaled", invisible.name), seeds=0)
    assert verdict is Verdict.FAIL
    assert [(f["name"], f["status"]) for f in found["faults"]] == [
        (invisible.name, "survived"),
        ("output_scaled", "killed"),
    ]
    assert [s["planting"] for s in found["survivors"]] == [invisible.name, f"{invisible.name}@weakest"]
    assert (found["score"]["survived"], found["score"]["share"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"max_seconds": 1e-6}, "not judged", "the time was over"),
        ({"candidate": "faulty:Doubled"}, "not judged", "the candidate itself fails GEMM"),
        ({"candidate": "stages:OnlyQuantizes"}, "not planted", "the candidate has no masked_grouped_gemm"),
    ],
)
def test_what_cannot_be_judged_is_unknown_with_the_reason(mutants, monkeypatch, request_, status, reason):
    monkeypatch.chdir(ROOT / "tests/candidates")
    monkeypatch.syspath_prepend(ROOT / "tests/mutants")
    found, verdict = mutants(faults=("output_scaled",), seeds=0, **request_)
    assert verdict is Verdict.UNKNOWN
    assert found["faults"][0]["status"] == status
    assert found["faults"][0]["reason"].startswith(reason)


def test_faults_are_chosen_by_name_and_category():
    assert [f.name for f in chosen_faults(MutantsRequest(faults=("output_scaled",)))] == ["output_scaled"]
    routing = chosen_faults(MutantsRequest(categories=("routing",)))
    assert routing
    assert {f.category for f in routing} == {"routing"}
    with pytest.raises(UsageError, match="unknown category 'rooting'; known: scales"):
        chosen_faults(MutantsRequest(categories=("rooting",)))
    fault = chosen_faults(MutantsRequest(faults=("output_scaled",)))[0]
    assert plantings(fault, 2) == [
        "output_scaled",
        "output_scaled@weakest",
        "output_scaled@0",
        "output_scaled@1",
    ]


def result(planting, rule, status):
    return PlantingResult(planting, rule, status)


def test_the_matrix_counts_kills_and_names_rules_that_kill_nothing():
    scored = {
        "a": [result(form, "GEMM", KILLED) for form in ("a", "a@weakest", "a@0", "a@1")],
        "b": [result(form, "QUANT", KILLED) for form in ("b", "b@weakest", "b@0")],
    }
    batches = [
        Batch([result("a", "QUANT", SURVIVED), result("b", "QUANT", KILLED)], []),
        Batch([result("a", "MOE", KILLED), result("a@0", "MOE", SURVIVED), result("b", "MOE", SURVIVED)], []),
        Batch([result("a", "WRITES", SURVIVED), result("b", "WRITES", SURVIVED)], []),
        Batch([PlantingResult("a", "GRAPH", NOT_PLANTED, message="needs CUDA")], []),
    ]
    found = matrix.kill_matrix(["a", "b"], scored, batches)
    assert found.rows == ["a", "b"]
    assert found.columns == ["QUANT", "GEMM", "MOE", "WRITES"]
    assert found.cells == [[0, 3, 1, 0], [3, None, 0, 0]]
    assert found.powerless == ["WRITES"]
    assert found.not_applicable == {"GRAPH": "needs CUDA"}


def test_the_smallest_problem_is_shrunk_and_fails_again():
    found = minimal_problem(Bench("physical", "quick"), "output_scaled", "GEMM")
    assert found.reproduced
    problem = parse_problem(found.problem)
    assert (problem.experts, problem.capacity, problem.hidden, problem.inter) == (1, 1, 16, 16)
    assert found.command == (
        f"harness check --rule GEMM --candidate physical+output_scaled --problem {found.problem}"
    )
