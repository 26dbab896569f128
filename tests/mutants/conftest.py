"""Faults that exist in a test only, and a run of the engine in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.faults.fault import _CATALOG, Fault, all_faults, fault
from harness.mutants.run import MutantsRequest, run_mutants
from harness.records.record import RunRecord

INVISIBLE = "changes_nothing_at_all"


@pytest.fixture
def invisible() -> Iterator[Fault]:
    """A planted fault that is none: nothing can kill it."""
    all_faults()

    @fault(
        category="gemm", stages="masked_grouped_gemm", bugs=("K00",), killed_by="LAYOUT-OUT", effect="none"
    )
    def changes_nothing_at_all(call, _) -> None:
        """Nothing goes wrong."""
        call.run()

    yield _CATALOG[INVISIBLE]
    del _CATALOG[INVISIBLE]


@pytest.fixture
def mutants():
    """Run a request in this process: the record's `mutants` and the verdict."""

    def run(**request):
        record = RunRecord("run", "now", [])
        request = {"processes": 1, "upstream": False, "seeds": 1, "profile": "quick"} | request
        verdict = run_mutants(MutantsRequest(**request), record)
        return record.mutants, verdict

    return run
