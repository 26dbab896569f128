"""The top of the page: verdict, what to look at first, since when, what was covered, key figures; and its last line."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.from_json import RecordError
from harness.verdict import Verdict
from reports.coverage import coverage
from reports.diagnosis import Finding, read, telling
from reports.failures import place_words
from reports.maps import Map, element_words, maps_of
from reports.replay import FIRST_ILLEGAL
from reports.since import Since, since
from reports.template import fill
from reports.text import clip_plain, count, duration
from reports.view import candidate_word, failure_groups, is_skipped

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.history import History
    from harness.records.record import Failure, RuleResult, RunRecord


def page_title(record: RunRecord) -> str:
    """Return the title of the browser's tab, verdict first so that it survives being cut."""
    return f"{record.verdict}: {clip_plain(record.run_id, 60)}"


def header(record: RunRecord, past: History | None = None) -> Markup:
    """Draw the top of the page: verdict, what to look at first, since when, what the run covered."""
    # What limits a PASS of rules stands by itself, below its sentence.
    is_pass = bool(record.rules) and record.verdict == Verdict.PASS
    sentence, *limits = reason(record).split("; ") if is_pass else [reason(record)]
    return fill(
        "summary.html.j2",
        record=record,
        reason=sentence,
        coverage=coverage(record, limits),
        figures=figures(record),
        candidates=[(c, candidate_word(record, c)) for c in record.candidates],
        command=shlex.join(record.command),
        first=first_failure(record, past),
    )


@dataclass(frozen=True)
class First:
    """The failure to look at first: where it stands on the page, what is wrong where, its likely cause, since when."""

    anchor: str
    message: str
    place: str
    cause: Finding | None
    not_told_apart: list[str]
    diagnose: str
    what: str = ""  # of a replayed call; the others are a rule's
    result: RuleResult | None = None
    failure: Failure | None = None
    elements: str = ""
    area: Map | None = None
    since: Since | None = None


def first_failure(record: RunRecord, past: History | None = None) -> First | None:
    """Return the new failure that tells most about the candidate that fails first; None where everything new passes."""
    new = [(g, f) for g in failure_groups(record) for f in g.shown if f.kind != "known"]
    of_first = [(g, f) for g, f in new if g.result.candidate == new[0][0].result.candidate]
    if not of_first:
        return _first_illegal(record)
    diagnoses = [read(failure.diagnosis) for _, failure in of_first]
    place, not_told_apart = telling(diagnoses)
    (group, failure), diagnosis = of_first[place], diagnoses[place]
    findings = diagnosis.findings if diagnosis else []
    return First(
        anchor=group.anchor,
        result=group.result,
        failure=failure,
        message=failure.message.partition("\n")[0],
        place=", ".join(filter(None, [failure.stage, place_words(failure)])),
        elements=element_words(failure),
        area=next(iter(maps_of(failure).own), None),
        # A known fault before a pattern without a name.
        cause=next((one for one in findings if one.fault), findings[0] if findings else None),
        not_told_apart=not_told_apart,
        diagnose=diagnosis.command if diagnosis else "",
        since=since(past, "rules", group.result.rule, group.result.candidate) if past else None,
    )


def _first_illegal(record: RunRecord) -> First | None:
    """Return the first illegal call of a replayed capture, None where there is none or the part is damaged."""
    try:
        illegal = record.replay_run.illegal if record.replay_run else []
    except RecordError:
        return None
    if not illegal:
        return None
    diagnosis = read(illegal[0].diagnosis)
    cause = next((one for one in diagnosis.findings if one.fault), None) if diagnosis else None
    return First(
        anchor=FIRST_ILLEGAL,
        what=illegal[0].place,
        message=illegal[0].words.partition("\n")[0],
        place=cause.place if cause else "",
        cause=cause,
        not_told_apart=cause.same_as if cause else [],
        diagnose=cause.command if cause else "",
    )


def footer(record: RunRecord) -> Markup:
    """Draw the last line: what wrote this, from which record."""
    return fill("footer.html.j2", record=record)


def reason(record: RunRecord) -> str:
    """Return the record's one sentence, or one made from its counts where it has none."""
    if record.reason:
        return record.reason
    judged = [rule for rule in record.rules if not is_skipped(rule)]
    named = {v: [r for r in judged if r.verdict == v] for v in Verdict}
    if record.verdict == Verdict.PASS:
        compared = sum(rule.compared for rule in judged)
        return (
            f"Every rule that ran passed: {count(compared)} elements compared by {count(len(judged))} rules."
        )
    matching = named[record.verdict]
    if matching:
        first = matching[0]
        word = "failed" if record.verdict == Verdict.FAIL else "could not judge"
        where = f"{clip_plain(first.rule, 60)} on {clip_plain(first.candidate, 60)}"
        return f"{count(len(matching))} of {count(len(judged))} rule results {word}; the first is {where}."
    if record.missing_traps:
        return f"{count(len(record.missing_traps))} traps were drawn too rarely."
    if record.errors:
        return clip_plain(record.errors[0].partition("\n")[0], 300)
    return "Nothing was judged." if record.verdict == Verdict.UNKNOWN else "The record gives no reason."


def _rules(record: RunRecord, words: Counter[Verdict]) -> str:
    """Return how many rule results had each verdict; nothing for a run that was about something else."""
    if not words:
        parts = (record.gsm8k, record.canary, record.mutants, record.compile, record.races, record.replay)
        return "" if any(part is not None for part in parts) else "none judged"
    return ", ".join(f"{count(words[v])} {v}" for v in Verdict if words[v])


def _skipped(record: RunRecord) -> int:
    """Return how many things did not run; the record names a rule that was skipped in both of its lists."""
    rules = {f"{rule.rule} on {rule.candidate}" for rule in record.rules if is_skipped(rule)}
    return len(rules | {skip.what for skip in record.skips})


def _commit(record: RunRecord) -> str:
    """Return the commit, short, with a plus for uncommitted changes."""
    where = record.environment
    return (
        clip_plain(where.git_commit[:12], 12) + (" + changes" if where.git_dirty else "")
        if where.git_commit
        else ""
    )


def figures(record: RunRecord) -> list[tuple[str, str]]:
    """Return the key figures as (name, value); what does not apply is left out."""
    judged = [rule for rule in record.rules if not is_skipped(rule)]
    words = Counter(rule.verdict for rule in judged)
    failures = [failure for rule in record.rules for failure in rule.failures]
    powerless = sum(rule.powerless for rule in judged)
    rows = [
        ("Rules", _rules(record, words)),
        ("Skipped", count(n) if (n := _skipped(record)) else ""),
        ("Elements compared", count(sum(rule.compared for rule in judged)) if judged else ""),
        ("Examples", count(sum(rule.examples for rule in judged)) if judged else ""),
        ("Powerless examples", count(powerless) if powerless else ""),
        ("Failing problems", count(n) if (n := sum(f.kind != "known" for f in failures)) else ""),
        ("Known failures", count(n) if (n := sum(f.kind == "known" for f in failures)) else ""),
        ("Missing traps", count(len(record.missing_traps)) if record.missing_traps else ""),
        ("Duration", duration(record.seconds)),
        ("Device", clip_plain(", ".join(record.environment.gpus) or record.environment.device, 80)),
        ("Commit", _commit(record)),
        ("Profile", clip_plain(record.profile, 40)),
        ("Seed", str(record.seed) if abs(record.seed) < 10**40 else "very large"),
    ]
    return [(name, value) for name, value in rows if value]
