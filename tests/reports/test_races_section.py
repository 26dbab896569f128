"""The section about races, and a part that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

from harness.records.parts.races import KernelHunt, MutationResult, RacesRun
from harness.records.record import RunRecord
from harness.verdict import Verdict
from reports import races
from reports.html import render

CAUGHT = MutationResult(
    "wait-0", "a wait returns at once", "wrong values", "late", 1, "9 of 64 elements differ"
)
SURVIVOR = MutationResult("no-fence-0", "the fence is <missing>", schedules=17)
BENIGN = MutationResult(
    "wait-9", "a wait returns at once", schedules=17, benign="it only keeps the CTA alive"
)
FOUND = RacesRun(
    16, mutate=True, kernels=[
        KernelHunt("128x128", 16, {"3": "deadlock: nobody can go on"}, 98_816, 0, [256, 129, 0, 1], 61.0, [CAUGHT, SURVIVOR]),
        KernelHunt("256x128-pair", 16, {}, 98_816, 0, [256, 129, 0, 1], 2.5, [CAUGHT, BENIGN]),
    ]
)  # fmt: skip


def record(found: RacesRun) -> RunRecord:
    made = RunRecord("r", "now", ["harness", "races"], Verdict.FAIL)
    made.races_run = found
    return made


def rows(markup: object) -> list[str]:
    found = re.findall(r"(?s)<tr .*?</tr>", re.sub(r'(?s)<span class="label".*?</span>', "", str(markup)))
    return [
        " ".join(unescape(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<svg.*?</svg>", "", row))).split())
        for row in found
    ]


def test_kernels_races_and_what_became_of_each_mistake() -> None:
    drawn = str(races.section(record(FOUND)))
    found = rows(drawn)
    assert "128x128 FAIL 98,816 0 1 1 of 2 1 min 01 s" in found
    assert "256x128-pair PASS 98,816 0 0 1 of 2 2.50 s" in found
    assert "deadlock: nobody can go on" in drawn
    assert found[-4] == "no-fence-0 the fence is <missing> 128x128 survived none of 17", (
        "the survivor stands first"
    )
    assert (
        "wait-9 a wait returns at once 256x128-pair no effect none of 17 it only keeps the CTA alive" in found
    )
    assert "wait-0 a wait returns at once 128x128 wrong values late 9 of 64 elements differ" in found


def test_a_hunt_without_mistakes_speaks_of_none() -> None:
    drawn = str(races.section(record(RacesRun(16, kernels=[KernelHunt("128x128", 16, elements=5)]))))
    assert "istake" not in drawn
    assert races.section(RunRecord("r", "now", [])) is None


def test_the_page_has_the_section_and_hostile_text_stays_text(
    hostile: Callable[[object], dict[str, object]], is_harmless: Callable[[str], None]
) -> None:
    made = record(FOUND)
    made.races = hostile(made.races)
    page = render(made)
    assert ">Races<" in page
    assert "none judged" not in page
    is_harmless(page)


def test_a_part_that_is_damaged_costs_its_section_and_says_which_field() -> None:
    made = record(FOUND)
    made.races = {"kernels": [{"kernel": 7}]}
    made.compile = {"cases": 3}
    page = render(made)
    assert "record.races.kernels[0].kernel must be str, got 7" in page
    assert "record.compile.cases must be a list, got int" in page
