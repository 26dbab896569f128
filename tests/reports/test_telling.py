"""Which failure a report tells its reader to look at first: the one whose explanation holds for most of them."""

from __future__ import annotations

import copy

from reports import summary
from reports.diagnosis import read, telling


def found(fault, *same_as, **more):
    entry = {"fault": fault, "title": f"the title of {fault}", "same_as": list(same_as), **more}
    return read([entry])


def test_an_explanation_that_holds_for_all_is_preferred_to_one_that_is_not_told_apart():
    rules = [found("never_written", "added"), found("added"), found("never_written", "added")]
    assert telling(rules) == (1, [])


def test_what_no_rule_tells_apart_is_named():
    assert telling([found("a", "b", "c"), found("a", "b")]) == (0, ["b"])


def test_a_weak_explanation_and_a_pattern_count_for_nothing():
    assert telling([found("a", weak=True), found("b")]) == (1, [])
    assert telling([found("", pattern=["every 16th column"]), None, found("b")]) == (2, [])
    assert telling([None, found("a", weak=True)]) == (1, []), "better than nothing"
    assert telling([None, None]) == (0, [])


def test_the_first_screen_shows_that_failure(failed):
    failing = next(rule for rule in failed.rules if rule.failures)
    other = copy.deepcopy(failing)
    other.rule = "MOE-PAD"
    failing.failures, other.failures = failing.failures[:1], other.failures[:1]
    for rule, faults in ((failing, ("never_written", ["added"])), (other, ("added", []))):
        fault, same_as = faults
        rule.failures[0].diagnosis = [{"fault": fault, "title": f"it is {fault}", "same_as": same_as}]
    failed.rules.append(other)
    first = summary.first_failure(failed)
    assert first is not None
    assert (first.result.rule, first.cause.title, first.not_told_apart) == ("MOE-PAD", "it is added", [])
