"""What a run covered and what stayed free, in lines: so that a PASS is not taken for more than it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.records.ways import ANY, FEW, INTERVAL, ONE, by_kind, share
from harness.verdict import Verdict
from reports.rules import all_judged
from reports.text import clip_plain, count
from reports.view import is_skipped

if TYPE_CHECKING:
    from harness.records.record import RunRecord

NAMES_SHOWN = 8


def coverage(record: RunRecord, limits: list[str]) -> list[tuple[str, list[str]]]:
    """Return lines under their headings, those without lines left out.

    Args:
        record: of the run.
        limits: what the verdict's own sentence says of how far it reaches.
    """
    judged = [rule for rule in record.rules if not is_skipped(rule)]
    passed = [rule for rule in judged if rule.verdict == Verdict.PASS]
    kinds = by_kind(all_judged(record))
    total = sum(kinds.values())
    covered = [f"{count(len(passed))} of {count(len(judged))} rules pass"] if judged else []
    if total:
        one = share(kinds.get(ONE, 0), total)
        covered.append(f"{one} of {count(total)} elements had one legal value")
    free = [f"{share(kinds[kind], total)} had {kind}" for kind in (FEW, INTERVAL, ANY) if kind in kinds]
    parts = {
        "Covered": covered,
        "Limits": [clip_plain("; ".join(limits), 600)] if limits else [],
        "Stayed free": free,
        "Not judged": _not_judged(record),
    }
    return [(title, lines) for title, lines in parts.items() if lines]


def _not_judged(record: RunRecord) -> list[str]:
    """Return what was not judged at all, or not as often as asked for."""
    reasons: dict[str, list[str]] = {}
    for rule in record.rules:
        # A PASS has a reason where it is limited, or of its known failures, which stand elsewhere.
        is_limited = rule.verdict == Verdict.UNKNOWN or (rule.verdict == Verdict.PASS and not rule.failures)
        why = rule.skipped if is_skipped(rule) else rule.reason if is_limited else ""
        if why:
            names = reasons.setdefault(why, [])
            names += [] if rule.rule in names else [rule.rule]
    lines = [f"{_some(names)}: {clip_plain(why, 160)}" for why, names in reasons.items()]
    absent = [candidate.name for candidate in record.candidates if not candidate.ran]
    lines += [f"not run here: {_some(absent)}"] if absent else []
    lines += [f"traps drawn too seldom: {_some(record.missing_traps)}"] if record.missing_traps else []
    shown = lines[:NAMES_SHOWN]
    return [*shown, *([f"{count(len(lines) - NAMES_SHOWN)} more, below"] if len(lines) > NAMES_SHOWN else [])]


def _some(names: list[str]) -> str:
    left = len(names) - NAMES_SHOWN
    said = [clip_plain(name, 60) for name in names[:NAMES_SHOWN]]
    return ", ".join([*said, *([f"{count(left)} more"] if left > 0 else [])])
