"""The top of the page (verdict, reason, key figures, what ran, the command) and its last line."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.from_json import RecordError
from harness.verdict import Verdict
from reports.diagnosis import read
from reports.replay import FIRST_ILLEGAL
from reports.template import fill
from reports.text import clip_plain, count, duration
from reports.view import candidate_word, failure_groups, is_skipped

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord


def page_title(record: RunRecord) -> str:
    """Return the title of the browser's tab, verdict first so that it survives being cut."""
    return f"{record.verdict}: {clip_plain(record.run_id, 60)}"


def header(record: RunRecord) -> Markup:
    """Draw the top of the page."""
    return fill(
        "summary.html.j2",
        record=record,
        reason=reason(record),
        figures=figures(record),
        candidates=[(c, candidate_word(record, c)) for c in record.candidates],
        command=shlex.join(record.command),
        first=first_failure(record),
    )


@dataclass(frozen=True)
class First:
    """The failure to look at first: where it stands on the page, its likely cause, and how to see it."""

    anchor: str
    what: str
    reproduce: str
    cause: str = ""
    place: str = ""
    threads: tuple[str, ...] = ()


def first_failure(record: RunRecord) -> First | None:
    """Return the first new failure, one with a diagnosis before one without; None where everything new passes."""
    new = [(g, f) for g in failure_groups(record) for f in g.shown if f.kind != "known"]
    if not new:
        return _first_illegal(record)
    found = [(group, failure, read(failure.diagnosis)) for group, failure in new]
    group, failure, diagnosis = next(
        (f for f in found if f[2] and any(one.fault for one in f[2].findings)), found[0]
    )
    what = f"{group.result.rule} on {group.result.candidate}"
    cause = next((one for one in diagnosis.findings if one.fault), None) if diagnosis else None
    if cause is None:
        return First(group.anchor, what, failure.reproduce)
    return First(group.anchor, what, failure.reproduce, cause.title, cause.place, tuple(cause.threads[:3]))


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
    what = illegal[0].place
    if cause is None:
        return First(FIRST_ILLEGAL, what, "")
    return First(FIRST_ILLEGAL, what, cause.command, cause.title, cause.place, tuple(cause.threads[:3]))


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
        ("Skipped", count(n) if (n := len(record.rules) - len(judged) + len(record.skips)) else ""),
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
