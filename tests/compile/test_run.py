"""From results to a verdict: cache, measuring again, conclusions."""

from __future__ import annotations

import pytest

from harness.candidates.support import unsupported
from harness.compile.baseline import Baseline
from harness.compile.pool import StartError
from harness.compile.run import MEASURED_AGAIN, CompileRequest, Progress, run_compile
from harness.records.parts.compile import CompileResult
from harness.verdict import Verdict


class FakePool:
    """Answers from a list of results for each case, one a run; the last one again and again."""

    def __init__(self, answers, error=None):
        self.answers = {case: list(results) for case, results in answers.items()}
        self.error = error
        self.compiled = []

    def __call__(self, _jobs, _timeout, _keep):
        return self

    def run(self, cases, finished):
        for case in cases:
            self.compiled.append(case)
            left = self.answers[case]
            finished(case, left.pop(0) if len(left) > 1 else left[0])
        if self.error:
            raise self.error


@pytest.fixture
def request_for(tmp_path):
    def make(entries, baseline=None, **options):
        return CompileRequest(
            entries,
            jobs=1,
            timeout=1.0,
            cache=tmp_path / "cache",
            baseline=baseline,
            baseline_name="b.json",
            **options,
        )

    return make


def before(entries_and_results):
    return Baseline(
        {"flashinfer-python": "9.8"}, "2025-01-02", {str(e.case): r for e, r in entries_and_results}
    )


def test_a_second_run_compiles_nothing(request_for, entry, compiled, find):
    entries = [entry(m=1), entry(m=2)]
    pool = FakePool({e.case: [compiled()] for e in entries})
    baseline = before([(e, compiled()) for e in entries])
    first = run_compile(request_for(entries, baseline), Progress(), find, pool)
    second = run_compile(request_for(entries, baseline), Progress(), find, pool)
    assert len(pool.compiled) == 2
    assert first.results == second.results
    assert (first.part.cached, second.part.cached) == (0, 2)
    assert second.verdict is Verdict.PASS
    assert second.reason == "2 compiled, as in b.json (flashinfer-python 9.8)"
    for again in ({"fresh": True}, {"keep": "somewhere"}):
        run_compile(request_for(entries, baseline, **again), Progress(), find, pool)
    assert len(pool.compiled) == 6


def test_what_seems_slower_is_measured_again_and_the_best_counts(request_for, entry, compiled, find):
    noisy, slow, fine = entry(m=1), entry(m=2), entry(m=3)
    seems = compiled(cpu_seconds=3.0, effort=900.0)
    pool = FakePool(
        {noisy.case: [seems, compiled(effort=310.0)], slow.case: [seems], fine.case: [compiled()]}
    )
    baseline = before([(e, compiled()) for e in (noisy, slow, fine)])
    outcome = run_compile(request_for([noisy, slow, fine], baseline), Progress(), find, pool)
    assert [pool.compiled.count(e.case) for e in (noisy, slow, fine)] == [2, MEASURED_AGAIN, 1]
    assert outcome.verdict is Verdict.FAIL
    assert [(c.case, c.kind) for c in outcome.part.changes if c.bad] == [(str(slow.case), "slower")]
    assert outcome.results[noisy].effort == 310.0
    # The cache has the measurements of all tries: the next run needs none.
    again = run_compile(request_for([noisy, slow, fine], baseline), Progress(), find, pool)
    assert len(pool.compiled) == 2 + MEASURED_AGAIN + 1
    assert again.verdict is Verdict.FAIL


def test_nothing_to_compile_with_is_unknown(request_for, entry, find):
    missing = lambda: (unsupported("flashinfer-python is not installed"), find()[1])  # noqa: E731
    outcome = run_compile(request_for([entry()]), Progress(), missing, FakePool({}))
    assert (outcome.verdict, outcome.reason) == (
        Verdict.UNKNOWN,
        "nothing was compiled: flashinfer-python is not installed",
    )
    assert run_compile(request_for([]), Progress(), find, FakePool({})).verdict is Verdict.UNKNOWN


def test_everything_broken_as_before_is_unknown_not_pass(request_for, entry, find):
    failed = CompileResult("failed", "no")
    outcome = run_compile(
        request_for([entry()], before([(entry(), failed)])),
        Progress(),
        find,
        FakePool({entry().case: [failed]}),
    )
    assert (outcome.verdict, outcome.reason) == (
        Verdict.UNKNOWN,
        "nothing compiled, as in the baseline (1 failed)",
    )


@pytest.mark.parametrize(("ours", "verdict"), [(True, Verdict.UNKNOWN), (False, Verdict.FAIL)])
def test_workers_that_cannot_start(request_for, entry, find, ours, verdict):
    error = StartError("ImportError: no", ours=ours)
    outcome = run_compile(
        request_for([entry()]), Progress(), find, FakePool({entry().case: [CompileResult("failed")]}, error)
    )
    assert outcome.verdict is verdict
    assert outcome.reason == "flashinfer-python 9.9.0, nvidia-cutlass-dsl 9.8.0: ImportError: no"


def test_an_interrupted_run_says_how_far_it_was_and_a_failure_found_by_then_counts(
    request_for, entry, compiled, find
):
    first, second = entry(m=1), entry(m=2)
    pool = FakePool(
        {first.case: [compiled()], second.case: [CompileResult("failed", "no")]}, KeyboardInterrupt()
    )
    outcome = run_compile(request_for([first, entry(m=3)]), Progress(), find, FakePool(
        {first.case: [compiled()], entry(m=3).case: [compiled()]}, KeyboardInterrupt()))  # fmt: skip
    assert outcome.interrupted
    assert outcome.verdict is Verdict.UNKNOWN
    assert outcome.reason.startswith("interrupted after 2 of 2 cases")
    outcome = run_compile(request_for([first, second], fresh=True), Progress(), find, pool)
    assert (outcome.interrupted, outcome.verdict) == (True, Verdict.FAIL)


def test_changes_are_in_the_record_the_bad_ones_first_and_what_is_gone_only_for_the_whole_matrix(
    request_for, entry, compiled, find
):
    better, worse, gone = entry(m=1), entry(m=2), entry(m=3)
    baseline = before([(better, CompileResult("refused", "no")), (worse, compiled()), (gone, compiled())])
    pool = FakePool({better.case: [compiled()], worse.case: [CompileResult("refused", "tile")]})
    outcome = run_compile(request_for([better, worse], baseline, whole=True), Progress(), find, pool)
    assert [c.kind for c in outcome.part.changes] == ["refused now", "compiles now", "gone"]
    assert outcome.verdict is Verdict.FAIL
    assert str(worse.case) in outcome.reason
    part = run_compile(request_for([better, worse], baseline), Progress(), find, pool)
    assert [c.kind for c in part.part.changes] == ["refused now", "compiles now"]


def test_the_part_goes_into_a_record_and_comes_back(request_for, entry, compiled, find, tmp_path):
    from harness.records.record import RunRecord, load_record

    outcome = run_compile(request_for([entry()]), Progress(), find, FakePool({entry().case: [compiled()]}))
    record = RunRecord("r", "now", ["harness"])
    record.compile_run = outcome.part
    record.write(tmp_path / "record.json")
    assert load_record(tmp_path).compile_run == outcome.part
    assert outcome.part.cases[0].case == str(entry().case)
