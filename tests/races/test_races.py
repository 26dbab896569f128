"""`harness races`: exit codes, the table's words, and what the catalog of mistakes finds in a kernel."""

from __future__ import annotations

import pytest

from harness.candidates.support import supported, unsupported
from harness.cli import run
from harness.races.hunt import describe
from harness.races.mutations import ARGUMENT_MUTATIONS, mutations_of
from harness.records.parts.races import KernelHunt, MutationResult, RacesRun
from harness.records.record import load_record
from tests.interpreter import pipeline


def test_where_the_kernel_cannot_run_the_verdict_is_unknown_with_the_reason(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "harness.candidates.cutedsl_on_cpu.cpu_support", lambda _: unsupported("no such package")
    )
    assert run(["races", "--out", str(tmp_path)]) == 2
    assert "UNKNOWN: no such package" in capsys.readouterr().out
    assert load_record(tmp_path).reason == "no such package"


@pytest.mark.parametrize("options", [["--schedules", "0"], ["--kernel", "64x64"]])
def test_bad_usage_is_64(monkeypatch, capsys, options):
    monkeypatch.setattr("harness.candidates.cutedsl_on_cpu.cpu_support", lambda _: supported())
    assert run(["races", *options]) == 64
    assert capsys.readouterr().err.startswith("harness: ")


@pytest.mark.parametrize(
    ("result", "code", "words"),
    [
        (KernelHunt("128x128", 2, caught=[MutationResult("fence", "no fence", "wrong values", "late", 1, "", "")]), 0, "1 planted mistakes, all caught"),
        (KernelHunt("128x128", 2, caught=[MutationResult("fence", "no fence", "", "", 3, "", "")]), 1, "survived: 128x128: fence"),
        (KernelHunt("128x128", 2, caught=[MutationResult("wait", "no wait", "", "", 3, "", "keeps the CTA alive")]), 0, "0 planted mistakes"),
        (KernelHunt("128x128", 2, differing={"2": "deadlock: x"}), 1, "128x128: schedule 2"),
        (KernelHunt("128x128", 2, wrong=5), 1, "5 elements are not the exact result"),
    ],
)  # fmt: skip
def test_a_race_or_a_survivor_is_a_fail(monkeypatch, capsys, tmp_path, result, code, words):
    monkeypatch.setattr("harness.candidates.cutedsl_on_cpu.cpu_support", lambda _: supported())
    monkeypatch.setattr("harness.races.hunt.hunt", lambda *_, **__: result)
    assert run(["races", "--kernel", "128x128", "--mutate", "--out", str(tmp_path)]) == code
    assert words in capsys.readouterr().out
    record = load_record(tmp_path)
    assert record.races_run == RacesRun(16, mutate=True, kernels=[result])
    assert ">Races<" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_hunt_keeps_the_kernels_that_are_done(monkeypatch, capsys, tmp_path):
    found = [KernelHunt("128x128", 2)]

    def hunt(*_, **__):
        if not found:
            raise KeyboardInterrupt
        return found.pop()

    monkeypatch.setattr("harness.candidates.cutedsl_on_cpu.cpu_support", lambda _: supported())
    monkeypatch.setattr("harness.races.hunt.hunt", hunt)
    assert run(["races", "--schedules", "2", "--out", str(tmp_path)]) == 130
    assert "UNKNOWN: interrupted after 1 of 4 kernels" in capsys.readouterr().out
    record = load_record(tmp_path)
    assert record.interrupted
    assert record.races_run == RacesRun(2, kernels=[KernelHunt("128x128", 2)])


def test_a_row_says_survived_only_where_something_had_to_be_seen():
    assert "SURVIVED of 3 schedules" in " ".join(
        describe(MutationResult("fence", "no fence", "", "", 3, "", "")).split()
    )
    assert "no effect of 3 schedules" in " ".join(
        describe(MutationResult("wait", "", "", "", 3, "", "why")).split()
    )


def test_every_mutation_changes_the_text_and_finds_each_kind_of_place():
    ptx = pipeline.text()
    found = mutations_of(ptx)
    names = [m.name for m in found]
    assert len(names) == len(set(names))
    assert {
        "wait-0",
        "no-commit-0",
        "no-scale-copy-0",
        "no-fence-0",
        "no-free-0",
        "no-barrier-0",
        "expect-less",
    } <= set(names)
    assert all(m.ptx(ptx) != ptx for m in found if m.ptx)
    assert [m for m in found if m.arguments] == list(ARGUMENT_MUTATIONS)


def test_only_waits_outside_every_loop_may_be_without_effect():
    """Loops are those of compiled kernels, between a label $L__BB and a branch back to it."""
    wait = "mbarrier.try_wait.parity.shared.b64 P{0}, [%r{0}], 0;\n"
    ptx = f"$L__BB0_1:\n{wait.format(1)}@%p1 bra $L__BB0_1;\n{wait.format(2)}ret;\n"
    assert [bool(m.benign) for m in mutations_of(ptx) if m.name.startswith("wait")] == [False, True]
