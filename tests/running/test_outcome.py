"""What crosses the border of processes comes out as it went in, and what does not belong there is refused by name."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from harness.candidates.protocol import Traits
from harness.judging.compared import Compared
from harness.records.from_json import RecordError
from harness.records.record import Heatmap, Histogram
from harness.running.outcome import (
    Command,
    Description,
    Outcome,
    Status,
    WorkerSettings,
    command_from,
    outcome_from,
    settings_from,
    to_line,
)

TRAITS = Traits(device="cpu", out_dtypes=("bfloat16",), hints=({"tile": 128},))
FULL = Compared(
    "gemm", 10, 2, {"bit equality": 10}, ["zeros"], 3.5, Histogram([0.0], [1, 9], 3.5, "expert 0"), "gemm[...]",
    {"expert": 0}, {"elements": 2}, Heatmap(["0"], ["0"], [[2]]), [Heatmap(["0"], ["0"], [[2]], title="expert 0")], {"float64": 10},
)  # fmt: skip


@pytest.mark.parametrize(
    "outcome",
    [
        *(Outcome(status, "why") for status in Status),
        Outcome(Status.READY, description=Description(asdict(TRAITS), {"accumulator": "24 bits"}, ["masked_moe"])),
        Outcome(Status.JUDGED, comparisons=[FULL, Compared("quantize.codes")], unseen={"3": 7}),
        Outcome(Status.DIAGNOSED, diagnosis=[{"fault": "alpha_of_neighbour", "share": 1.0}]),
        Outcome(Status.RAISED, "ValueError: k", hidden=True),
    ],
    ids=lambda outcome: str(outcome.status),
)  # fmt: skip
def test_an_outcome_comes_out_of_a_line_as_it_went_in(outcome: Outcome) -> None:
    line = to_line(outcome)
    assert "\n" not in line
    again = outcome_from(line)
    assert to_line(again) == line
    assert again.comparisons == outcome.comparisons
    assert again.status is outcome.status


def test_traits_come_back_with_their_tuples() -> None:
    line = to_line(Outcome(Status.READY, description=Description(asdict(TRAITS))))
    description = outcome_from(line).description
    assert description is not None
    assert description.declared == TRAITS


def test_commands_and_settings_come_out_as_they_went_in() -> None:
    command = Command("GEMM", "1x1x16x16:1:normal:0", "harness diagnose ...")
    assert command_from(to_line(command)) == command
    settings = WorkerSettings("physical", 2, 0.5, probe=False, commands=3, answers=4)
    assert settings_from(to_line(settings)) == settings


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"status": "jugded"}', "outcome.status must be one of loaded, ready"),
        ('{"error": "x"}', "outcome.status is missing"),
        (
            '{"status": "judged", "comparisons": [{"stage": 3}]}',
            r"outcome.comparisons\[0\].stage must be str",
        ),
        ("[]", "outcome must be an object"),
    ],
)
def test_what_is_no_outcome_is_refused_with_the_field(line: str, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        outcome_from(line)


def test_only_illegal_elements_broken_contracts_errors_and_lost_processes_are_failures() -> None:
    failing = {status for status in Status if Outcome(status).fails}
    assert failing == {Status.CONTRACT, Status.RAISED, Status.CRASHED, Status.RANK_LOST, Status.TIMEOUT}
    assert Outcome(Status.JUDGED, comparisons=[FULL]).fails
    assert not Outcome(Status.JUDGED, comparisons=[Compared("gemm", 10)]).fails
    assert {status for status in Status if Outcome(status).lost} == {
        Status.CRASHED, Status.TIMEOUT, Status.SLOW,
        Status.RANK_LOST,
    }  # fmt: skip
