"""`harness races`: exit codes, the table's words, and what the catalog of mistakes finds in a kernel."""

from __future__ import annotations

import pytest

from harness.candidates.support import supported, unsupported
from harness.cli import run
from harness.races.hunt import Caught, HuntResult, describe
from harness.races.mutations import ARGUMENT_MUTATIONS, mutations_of
from tests.interpreter import pipeline


def test_where_the_kernel_cannot_run_the_verdict_is_unknown_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(
        "harness.candidates.cutedsl_on_cpu.cpu_support", lambda _: unsupported("no such package")
    )
    assert run(["races"]) == 2
    assert "UNKNOWN: no such package" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--schedules", "0"], ["--kernel", "64x64"]])
def test_bad_usage_is_64(monkeypatch, capsys, options):
    monkeypatch.setattr("harness.candidates.cutedsl_on_cpu.cpu_support", lambda _: supported())
    assert run(["races", *options]) == 64
    assert capsys.readouterr().err.startswith("harness: ")


@pytest.mark.parametrize(
    ("result", "code", "words"),
    [
        (HuntResult("128x128", 2, caught=[Caught("fence", "no fence", "wrong values", "late", 1, "", "")]), 0, "1 planted mistakes, all caught"),
        (HuntResult("128x128", 2, caught=[Caught("fence", "no fence", "", "", 3, "", "")]), 1, "survived: 128x128: fence"),
        (HuntResult("128x128", 2, caught=[Caught("wait", "no wait", "", "", 3, "", "keeps the CTA alive")]), 0, "0 planted mistakes"),
        (HuntResult("128x128", 2, differing={"2": "deadlock: x"}), 1, "128x128: schedule 2"),
        (HuntResult("128x128", 2, wrong=5), 1, "5 elements are not the exact result"),
    ],
)  # fmt: skip
def test_a_race_or_a_survivor_is_a_fail(monkeypatch, capsys, tmp_path, result, code, words):
    monkeypatch.setattr("harness.candidates.cutedsl_on_cpu.cpu_support", lambda _: supported())
    monkeypatch.setattr("harness.races.hunt.hunt", lambda *_, **__: result)
    assert run(["races", "--kernel", "128x128", "--mutate", "--out", str(tmp_path)]) == code
    assert words in capsys.readouterr().out
    assert (tmp_path / "races.json").exists()


def test_a_row_says_survived_only_where_something_had_to_be_seen():
    assert "SURVIVED of 3 schedules" in " ".join(
        describe(Caught("fence", "no fence", "", "", 3, "", "")).split()
    )
    assert "no effect of 3 schedules" in " ".join(describe(Caught("wait", "", "", "", 3, "", "why")).split())


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
