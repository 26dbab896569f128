"""Runs and what changed between them, in words: for the history and for a report that knows what came before it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reports.text import clip_plain, count

if TYPE_CHECKING:
    from harness.records.changes import EnvironmentChange
    from harness.records.history import History, HistoryRun, Standing

_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d[0-9:.+Z-]*\Z")
CHANGES_SHOWN = 12


def run_date(run: HistoryRun) -> str:
    """Return when a run was, to the minute; its id where it does not say."""
    return moment(run.created) or clip_plain(run.run_id, 25)


def moment(created: str) -> str:
    """Return an ISO time to the minute, anything else as it is."""
    return created[:16].replace("T", " ") if _ISO.match(created) else clip_plain(created, 25)


def changed_between(history: History, standing: Standing) -> str:
    """Return what changed from the last good run to the first that was not: versions, and the commit."""
    if standing.good is None:
        return ""
    commits = [clip_plain(history.runs[n].commit[:10], 10) for n in (standing.good, standing.since)]
    commit = f"commit {commits[0] or 'none'} → {commits[1] or 'none'}" if commits[0] != commits[1] else ""
    words = [word for word in (changes_in_words(standing.changes), commit) if word]
    return ", ".join(words) or "nothing that is recorded"


def changes_in_words(changes: list[EnvironmentChange]) -> str:
    """Return changed versions as "torch 2.12 → 2.13, driver added 580.1"."""
    words = []
    for change in changes[:CHANGES_SHOWN]:
        name, before, after = (clip_plain(v, 60) for v in (change.name, change.before, change.after))
        if not before:
            words.append(f"{name} {after} (new)")
        else:
            words.append(f"{name} {before} → {after}" if after else f"{name} {before} (gone)")
    if len(changes) > CHANGES_SHOWN:
        words.append(f"{count(len(changes) - CHANGES_SHOWN)} more")
    return ", ".join(words)
