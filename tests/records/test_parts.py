"""The parts of a record: what a command gives to it comes back as the same, and what is left out of the JSON is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.records.parts.canary import CanaryFacts, CanaryLine, CanaryPart, CanaryRun
from harness.records.parts.compile import CaseResult, CompileBaseline, CompileChange, CompileRun
from harness.records.parts.gsm8k import (
    ONLY_SERVED,
    Decision,
    Gsm8kDecisions,
    Gsm8kError,
    Gsm8kRepeat,
    Gsm8kRequests,
    Gsm8kRun,
    Gsm8kSpread,
    PathPoint,
)
from harness.records.parts.mutants import (
    ControlCount,
    FalseAlarm,
    FalseAlarmCount,
    KillMatrix,
    MinimalProblem,
    MutantFault,
    MutantScore,
    MutantsRun,
    PlantingResult,
    SelfTest,
)
from harness.records.parts.races import KernelHunt, MutationResult, RacesRun
from harness.records.parts.replay import ReplayedCall, ReplayRun
from harness.records.parts.sharing import Answer, ExplainedFailure, ShardCandidate, ShardPart, Sharing
from harness.records.record import RunRecord, load_record
from harness.verdict import Verdict
from tests.records.kept_records import RECORDS

SERVED = Gsm8kRun(
    verdict="FAIL",
    qualifier="dead",
    interval=[0.0, 0.1],
    repeats=[Gsm8kRepeat(0, 2, 1)],
    spread=Gsm8kSpread([0.5, 1.0], 0.75, 0.35, 0.5),
    path=[PathPoint(1, 1, 1.0, 0.2, 1.0)],
    requests=Gsm8kRequests(3, 2, 1, 1),
    errors=[Gsm8kError("HTTP 500", "broken", 1, 0)],
    seconds={"total": 2.0, "ready": None},
    task={"name": "gsm8k", "stop": ["Question:"]},
    decisions=Gsm8kDecisions(smoke=Decision("FAIL", "dead", "0 of 32 right", {"questions": 32})),
)
FAULT = MutantFault(
    "output_scaled", plantings=[PlantingResult("output_scaled", "GEMM", "killed")], minimal=MinimalProblem()
)
PARTS = {
    "gsm8k_run": [SERVED, replace(SERVED, path=[], requests=None, errors=[])],
    "canary_part": [
        CanaryPart(
            64,
            runs=[CanaryRun(**vars(SERVED), candidate="eager", ready_seconds=1.5)],
            controls=[
                CanaryRun("UNKNOWN", "infra", "exited with 64", candidate="eager+x", reproduce="harness")
            ],
        ),
        CanaryPart(
            8,
            table=[
                CanaryLine("eager", "variant", "eager", accuracy=1.0, interval=[0.9, 1.0], asked=8, verdict="PASS"),
                CanaryLine("x", "fault", "eager+x", 4, facts=CanaryFacts("gemm"), error="raised ValueError: no"),
            ],
        ),
    ],
    "mutants_run": [
        MutantsRun("physical", "quick", score=MutantScore(1, 1, share=1.0), faults=[FAULT],
                   matrix=KillMatrix(["output_scaled"], ["GEMM", "QUANT"], [[3, None]]), complete=True),
        MutantsRun("physical", "quick"),
        MutantsRun(controls=FalseAlarmCount(2, 2, controls={"eager": ControlCount(2, 50, 1)}, rules={"GEMM": {"examples": 2}},
                                            false_alarms=[FalseAlarm("eager", "GEMM")])),
        MutantsRun(self_test=SelfTest(passed=True, seconds=1.0)),
        MutantsRun(),
    ],
    "compile_run": [
        CompileRun("FAIL", "spills", {"flashinfer-python": "9.9"}, CompileBaseline("b.json"), 1, 1,
                   [CompileChange("masked_gemm@sm_100a", "spills", "16 bytes", bad=True)],
                   [CaseResult("compiled", registers=50, features={"mbarrier": 4}, case="masked_gemm@sm_100a", origin="edge")]),
        CompileRun(warning="the cache cannot be written"),
    ],
    "races_run": [
        RacesRun(16, mutate=True, kernels=[
            KernelHunt("128x128", 16, {"3": "deadlock: x"}, 9, 1, [256, 0], 2.0, [MutationResult("fence", "no fence")])
        ]),
    ],
    "replay_run": [
        ReplayRun("cap", "earlier", "fast", "a GPU", ["line 6 is torn"], ["rank 0: other w1"], [
            ReplayedCall(0, 3, 18, "masked_grouped_gemm", 17, "", Verdict.FAIL, "= 1, legal is 2", 1792, 8, 0.3,
                         [{"fault": "alpha_twice"}], 0.1, True, ["a"]),
            ReplayedCall(1, None, 1, "deep_ep.Buffer.low_latency_combine"),
        ]),
        ReplayRun("cap"),
    ],
    "sharing_part": [Sharing(4, ["0", "1"], tasks=9, rerun=1), Sharing(shards=3, shard=2, missing=["shard 2 of 3"])],
    "shard_part": [
        ShardPart(2, 3, ["eager"], ["GEMM"], problem_seconds=60.0, found=[
            ShardCandidate("eager", {"traits": {}}, [Answer("GEMM", "1x1x16x16:1:normal:0", ["masked_moe"], [{"status": "judged"}])],
                           [ExplainedFailure("GEMM", "1x1x16x16:1:normal:0", [{"fault": "x"}])], [{"rule": "GEMM"}]),
        ]),
    ],
}  # fmt: skip
CASES = [(name, part) for name, parts in PARTS.items() for part in parts]


def record(name: str, part: object) -> RunRecord:
    made = RunRecord("run", "now", [])
    setattr(made, name, part)
    return made


@pytest.mark.parametrize(("name", "part"), CASES)
def test_a_part_comes_back_from_the_file_as_it_was_given(name: str, part: object, tmp_path: Path) -> None:
    written = record(name, part)
    written.write(tmp_path / "record.json")
    read = load_record(tmp_path)
    assert getattr(read, name) == part
    assert read == written
    assert json.loads(written.to_json()) == json.loads(record(name, getattr(read, name)).to_json())


def test_a_part_that_is_none_is_absent() -> None:
    for name, (first, *_) in PARTS.items():
        made = record(name, first)
        setattr(made, name, None)
        assert made == RunRecord("run", "now", [])


def test_what_a_part_leaves_out() -> None:
    served, here = (part.to_json() for part in PARTS["gsm8k_run"])
    assert served.keys() - here.keys() == set(ONLY_SERVED)
    checked, table = (part.to_json() for part in PARTS["canary_part"])
    assert "table" not in checked
    assert set(checked["controls"][0]) == {"candidate", "reproduce", "verdict", "qualifier", "reason"}
    assert set(checked["runs"][0]) == {*served, "candidate", "reproduce", "ready_seconds"}
    measured, broken = table["table"]
    assert measured.keys() - broken.keys() == {
        "accuracy", "interval", "asked", "verdict", "qualifier", "seconds",
    }  # fmt: skip
    whole, cut, controls, self_test, nothing = (part.to_json() for part in PARTS["mutants_run"])
    assert (whole["score"]["killed"], cut["score"]) == (1, {})
    assert (list(controls), list(self_test), nothing) == (["controls"], ["self_test"], {})
    compiled, warned = (part.to_json() for part in PARTS["compile_run"])
    assert ("warning" in compiled, "warning" in warned) == (False, True)
    assert set(compiled["cases"][0]) == {"case", "origin", "guard", "status", "registers", "features"}


@pytest.mark.parametrize(
    ("sharing", "words"),
    [
        (Sharing(2, tasks=34), "2 workers; 34 tasks"),
        (Sharing(2, ["0", "3"], tasks=34), "2 workers on GPUs 0, 3; 34 tasks"),
        (Sharing(1, ["MIG-1"]), "1 worker on GPU MIG-1"),
        (
            Sharing(16, nodes=2, tasks=1200, rerun=3),
            "16 workers on 2 nodes of a Ray cluster; 1,200 tasks; 3 judged again after a worker was lost",
        ),
        (Sharing(1, shards=3, shard=2, missing=["a part"]), "shard 2 of 3; 1 worker; a part"),
        (Sharing(3, shards=3), "3 shards merged; 3 workers"),
    ],
)
def test_how_a_run_was_shared_is_one_line(sharing: Sharing, words: str) -> None:
    assert str(sharing) == words


@pytest.mark.parametrize(
    ("name", "file"), [("gsm8k_run", "gsm8k_pass"), ("gsm8k_run", "gsm8k_dead"), ("mutants_run", "mutants")]
)
def test_a_part_that_an_earlier_version_wrote_is_written_the_same_again(name: str, file: str) -> None:
    kept = load_record(RECORDS / f"{file}.json")
    part = getattr(kept, name).to_json()
    for fault in part.get("faults", []):
        assert fault.pop("threads") == [], "younger than that record"
    for name_of_younger in ("load", "live", "logprobs"):
        assert part.get("decisions", {}).pop(name_of_younger, None) is None
    assert part == getattr(kept, name.removesuffix("_run"))


def test_the_record_keeps_what_this_version_does_not_know(tmp_path: Path) -> None:
    made = RunRecord("run", "now", [], canary={"questions": 3, "colour": "red"})
    made.write(tmp_path / "record.json")
    read = load_record(tmp_path)
    assert read.canary == {"questions": 3, "colour": "red"}
    assert read.canary_part == read.canary_stage == CanaryPart(3)
