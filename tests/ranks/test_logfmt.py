"""COMBINE where rows come back in LogFMT: right kernels pass, every mistake is caught, in one process and over real ranks."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor

from harness.candidates import load_candidate
from harness.candidates.eager import Eager
from harness.candidates.over_ranks import OverRanks
from harness.candidates.physical import Physical
from harness.emulation.logfmt import decode_by_kernel, encode_by_kernel
from harness.faults.fault import BY_LOGFMT, all_faults
from harness.faults.named import plant
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.ranks.errors import RankError
from harness.running.judge import Judge
from harness.running.outcome import Outcome
from harness.verdict import UsageError
from reference import routing
from reference.logfmt import LogFmt, encode_logfmt

PROBLEMS = (
    "4x6x1024x16:3*4:normal:57:whole_layer",
    "6x9x256x128:9*6:normal:1",
    "8x24x512x64:24*8:normal:5:whole_layer",
)
NAMES = (
    "step of next block", "rounded towards zero", "nearest logarithm", "sign lost", "code off by one",
    "no code for zero", "signs of next block", "extremes of 64 channels", "range not clipped", "large rows coded",
    "each block for itself", "never coded", "512 levels",
)  # fmt: skip
OVER_RANKS = "4x6x16x16:3*4:normal:57"
BOTH = ("bf16", "logfmt")


def fault_of(name: str) -> str:
    return f"logfmt_{name.replace(' ', '_')}"


class Declared:
    """The stages of a built-in candidate, which declares that its combine takes LogFMT."""

    def __init__(self, base: Any, change: Callable[[LogFmt], LogFmt] | None = None) -> None:
        self._base, self._change = base, change
        self.traits = dataclasses.replace(base.traits, combine_transports=BOTH)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def combine(
        self, y: Any, dispatched: Any, topk_idx: Any, topk_weights: Any, *, transport: str = "bf16"
    ) -> list[Tensor]:
        given = dispatched, topk_idx, topk_weights
        if transport == "bf16" or self._change is None:
            found: list[Tensor] = self._base.combine(y, *given, transport=transport)
            return found
        rows = [decode_by_kernel(self._change(encode_by_kernel(part))) for part in y]
        return [out.bfloat16() for out in routing.combine(rows, *given)]


def judged(candidate: Any, problem: str) -> Outcome:
    outcome = Judge(candidate, threads=1, probe=False).judge("COMBINE", problem)
    assert outcome.status == "judged", outcome
    assert [one.stage for one in outcome.comparisons] == ["combine", "combine.logfmt"]
    return outcome


@pytest.fixture(scope="module")
def wrong(stand_in: None) -> dict[str, Callable[[LogFmt], LogFmt]]:
    known: dict[str, Callable[[LogFmt], LogFmt]] = importlib.import_module("wrong_logfmt").WRONG
    assert set(known) == set(NAMES)
    return known


def test_every_mistake_has_a_fault_in_the_catalog() -> None:
    faults = [fault for fault in all_faults().values() if fault.needs == BY_LOGFMT]
    assert {fault.name for fault in faults} == {fault_of(name) for name in NAMES}
    with pytest.raises(UsageError, match="it is about combine by logfmt, and the candidate combines by bf16"):
        plant(Eager(), faults[0].name)


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_of_a_kernel_is_caught_and_named(
    wrong: dict[str, Callable[[LogFmt], LogFmt]], name: str
) -> None:
    """In float32, as kernels make it: the catalog's model of it is in float64."""
    candidate = Declared(Physical(), wrong[name])
    assert {one.stage for one in judged(candidate, PROBLEMS[1]).illegal} == {"combine.logfmt"}
    named = Judge(candidate, threads=1, probe=False).diagnose("COMBINE", PROBLEMS[1], "harness diagnose")
    assert [one["fault"] for one in named] == [fault_of(name)]


@pytest.mark.parametrize("base", [Eager, Physical])
def test_right_kernels_pass_and_most_is_coded_and_known(base: type) -> None:
    """COMBINE-3."""
    for problem in PROBLEMS:
        outcome = judged(Declared(base()), problem)
        assert not outcome.illegal
        back = outcome.comparisons[1]
        assert back.accepted_altered == []
        assert 0 < back.judged["within what LogFMT leaves open"] < 0.05 * back.compared


def test_the_problems_have_rows_that_are_coded_and_rows_that_are_not() -> None:
    shares = []

    def seen(rows: LogFmt) -> LogFmt:
        held = rows.plain[~rows.plain.isnan().all(-1)]  # no padding
        shares.append(float(encode_logfmt(held).coded.double().mean()))
        return rows

    for problem in PROBLEMS:
        judged(Declared(Physical(), seen), problem)
    assert len(shares) > len(PROBLEMS)
    assert all(0.3 < share < 0.9 for share in shares), shares


def test_infinities_and_nan_come_back_as_they_are() -> None:
    assert not judged(Declared(Physical()), PROBLEMS[2] + "+output_specials").illegal


def test_a_fault_of_combine_is_caught_and_named_there_too() -> None:
    candidate = plant(Declared(Eager()), "weights_applied_twice")
    outcome = judged(candidate, PROBLEMS[1])
    assert {one.stage for one in outcome.illegal} == {"combine", "combine.logfmt"}
    found = Judge(candidate, threads=1, probe=False).diagnose("COMBINE", PROBLEMS[1], "harness diagnose")
    assert found[0]["fault"] == "weights_applied_twice"


@pytest.fixture(scope="module")
def over(stand_in: None) -> Iterator[OverRanks]:
    """deep_ep with a mistake in LogFMT; tests/ranks/test_deepep.py has the right one."""
    candidate: OverRanks = load_candidate("on_cpu:OnCpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAND_IN", NAMES[0])
        candidate.start_ranks()
    yield candidate
    candidate.close()


@pytest.mark.parametrize("style", ["plain", "hook", "asynchronous", "zero copy"])
def test_a_mistake_is_caught_over_real_ranks(over: OverRanks, style: str) -> None:
    """The kernels refuse zero copy of rows that they encode: it is called otherwise."""
    assert over.traits.combine_transports == BOTH
    assert LayerProblem(parse_problem(OVER_RANKS), over.traits).ranks == 2
    over._styles = (style,)
    assert [one.stage for one in judged(over, OVER_RANKS).illegal] == ["combine.logfmt"]
    if style == "plain":
        found = Judge(over, threads=1, probe=False).diagnose("COMBINE", OVER_RANKS, "harness diagnose")
        assert found[0]["fault"] == fault_of(NAMES[0])


def test_a_transport_that_combine_lacks_is_refused() -> None:
    candidate = load_candidate("eager-gloo")
    candidate._carried = candidate.traits.transports, ("bf16",)
    with pytest.raises(RankError, match="combine: eager-gloo has no transport 'logfmt'"):
        candidate._check_back("logfmt", 128)
    with pytest.raises(ValueError, match="combine: transport must be one of bf16, logfmt, got 'fp8'"):
        candidate._check_back("fp8", 128)
