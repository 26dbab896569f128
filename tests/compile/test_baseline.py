"""What counts as worse than before, what is only different, and files that are no baseline."""

from __future__ import annotations

import json

import pytest

from harness.compile.baseline import (
    SHARED_LIMIT,
    SHIPPED,
    Baseline,
    compare,
    is_slower,
    load_baseline,
    write_baseline,
)
from harness.compile.case import parse_case
from harness.records.parts.compile import CompileResult
from harness.verdict import UsageError

# Does not compile in flashinfer-python 0.7.2.post1: docs/compile.md, "Found".
BROKEN = {"moe_gemm2@*,out=float16"}
REFUSED = CompileResult("refused", "ValueError: no")
FAILED = CompileResult("failed", "RuntimeError: no")


def kinds(changes):
    return [(change.kind, change.bad) for change in changes]


def test_the_same_result_is_no_change(entry, compiled):
    assert compare(entry(), compiled(), compiled()) == []
    assert compare(entry(), compiled(seconds=9.0, ptx_digest="cd", ptx_lines=7), compiled()) == []
    assert compare(entry(guard=True), REFUSED, REFUSED) == []
    assert compare(entry(guard=True), REFUSED, compiled()) != []


def test_what_was_broken_and_still_is_is_listed_and_no_news(entry):
    assert kinds(compare(entry(), FAILED, FAILED)) == [("still broken", False)]


@pytest.mark.parametrize(
    "now", [FAILED, CompileResult("crashed", "SIGABRT"), CompileResult("timeout", "300 s")]
)
@pytest.mark.parametrize("before", ["compiled", "refused"])
def test_what_ends_in_an_error_now_is_broken(entry, compiled, now, before):
    (change,) = compare(entry(), now, compiled() if before == "compiled" else REFUSED)
    assert (change.kind, change.bad) == ("broken", True)
    assert now.reason in change.text
    assert f"was {before}" in change.text


def test_between_refused_and_compiled_only_the_loss_is_bad(entry, compiled):
    assert kinds(compare(entry(), REFUSED, compiled())) == [("refused now", True)]
    assert kinds(compare(entry(), compiled(), REFUSED)) == [("compiles now", False)]
    assert kinds(compare(entry(), compiled(), FAILED)) == [("compiles now", False)]
    assert kinds(compare(entry(), REFUSED, FAILED)) == [("refused now", False)]
    assert kinds(compare(entry(), CompileResult("refused", "other"), REFUSED)) == [("reason", False)]


@pytest.mark.parametrize("before", [None, REFUSED, "compiled"])
def test_a_guard_that_compiles_is_bad_with_and_without_a_baseline(entry, compiled, before):
    before = compiled() if before == "compiled" else before
    found = kinds(compare(entry(guard=True), compiled(), before))
    assert ("guard lost", True) in found
    assert [kind for kind, bad in found if bad] == ["guard lost"]
    # A guard that compiled by mistake and is refused again is repaired.
    assert kinds(compare(entry(guard=True), REFUSED, compiled())) == [("refused now", False)]


def test_cases_that_the_baseline_does_not_have(entry, compiled):
    assert kinds(compare(entry(), compiled(), None)) == [("new", False)]
    assert kinds(compare(entry(), FAILED, None)) == [("broken", True)]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {"stack_bytes": 8}, [("spills", True)]),
        ({}, {"stack_bytes": 8, "spill_bytes": 16}, [("spills", True)]),
        ({"stack_bytes": 64}, {"stack_bytes": 64, "spill_bytes": 4}, [("spills", True)]),
        ({"stack_bytes": 8, "spill_bytes": 16}, {}, [("spills", False)]),
        ({"spill_bytes": None}, {"spill_bytes": 0}, []),
        ({}, {"shared_bytes": SHARED_LIMIT}, [("shared memory", False)]),
        ({}, {"shared_bytes": SHARED_LIMIT + 1}, [("shared memory", True), ("shared memory", False)]),
        ({}, {"registers": 51}, [("registers", False)]),
        ({}, {"threads": 256}, [("threads", False)]),
        ({}, {"code_bytes": 25_000}, []),
        ({}, {"code_bytes": 25_001}, [("code", False)]),
        ({}, {"features": {"mbarrier": 41}}, []),
        ({}, {"features": {"mbarrier": 40, "multimem": 1}}, [("features", False)]),
        ({}, {"effort": 601.0, "cpu_seconds": 2.0}, [("slower", True)]),
        ({}, {"effort": 599.0, "cpu_seconds": 2.0}, []),
        ({"effort": 30.0, "cpu_seconds": 0.1}, {"effort": 90.0, "cpu_seconds": 0.3}, []),
    ],
)
def test_numbers(entry, compiled, before, now, expected):
    assert kinds(compare(entry(), compiled(**now), compiled(**before))) == expected


def test_a_slower_machine_is_no_slower_compiler(compiled):
    assert not is_slower(compiled(cpu_seconds=5.0, effort=310.0), compiled(cpu_seconds=1.0, effort=300.0))
    assert is_slower(compiled(cpu_seconds=1.1, effort=700.0), compiled(cpu_seconds=1.0, effort=300.0))
    assert not is_slower(compiled(), compiled(effort=0.0))


def test_a_written_baseline_is_read_back(tmp_path, compiled):
    path = tmp_path / "b.json"
    written = Baseline({"a": "1"}, "2025-01-02", {"y": compiled(), "x": REFUSED})
    write_baseline(path, written)
    assert load_baseline(path) == written
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "versions": {}, "made": "", "results": {"a": {"status": "no"}}}',
             '{"format": 1, "versions": {}, "made": "", "results": {"a": {"status": "compiled", "colour": 1}}}'],
)  # fmt: skip
def test_a_file_that_is_no_baseline_is_bad_usage(tmp_path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no baseline of harness compile"):
        load_baseline(path)
    path.write_text('{"format": 99}')
    with pytest.raises(UsageError, match="format 99, expected 1"):
        load_baseline(path)


def test_the_shipped_baseline_covers_the_matrix_and_has_nothing_broken():
    from harness.compile.matrix import matrix

    shipped = load_baseline(SHIPPED)
    assert {"flashinfer-python", "nvidia-cutlass-dsl"} <= set(shipped.versions)
    assert "/" not in "".join(r.reason for r in shipped.results.values() if "input" not in r.reason)
    entries = {str(e.case): e for e in matrix()}
    assert set(shipped.results) == set(entries)
    for name, result in shipped.results.items():
        assert parse_case(name)
        if entries[name].case.shape in BROKEN:
            assert result.status == "failed"
        else:
            assert result.status == ("refused" if entries[name].guard else "compiled"), f"{name}: {result}"
    assert json.loads(SHIPPED.read_text())["made"]
