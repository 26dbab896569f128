"""The whole catalog: every fault killed by the rule that it names, in every form; the full matrix (make test-all)."""

from __future__ import annotations

import pytest

from harness.mutants.run import MutantsRequest, run_mutants
from harness.records.record import RunRecord
from harness.verdict import Verdict

pytestmark = pytest.mark.long


def test_every_fault_is_killed_in_every_form_and_every_rule_kills_something():
    record = RunRecord("run", "now", [])
    verdict = run_mutants(MutantsRequest(matrix=True), record)
    found = record.mutants
    assert [s["planting"] for s in found["survivors"]] == []
    assert {f["name"]: f["reason"] for f in found["faults"] if f["status"] != "killed"} == {}
    assert verdict is Verdict.PASS
    score = found["score"]
    assert score["faults"] >= 70
    assert score["share"] == 1.0
    assert score["median_examples"] <= 20
    # A mutant that raises shows a fault that does not fit the stage, unless the mistake is one about memory's end.
    raised = {f["name"] for f in found["faults"] for p in f["plantings"] if p["how"] == "raised"}
    assert raised == set()
    assert found["matrix"]["powerless"] == []
    unshrunk = [f["name"] for f in found["faults"] if not (f["minimal"] or {}).get("reproduced")]
    assert unshrunk == []
    for criterion in found["upstream"]["criteria"]:
        assert all(criterion["accepts_candidate"].values()), criterion["name"]
        assert criterion["missed"]["upstream weakest"], "each of them misses something that the rules kill"
