"""The three verdicts, how they combine, and the exit codes of the command line.

Imports nothing heavy: the command line and the pytest plugin read it before torch is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum, StrEnum


class Verdict(StrEnum):
    """PASS: something was compared, all of it legal, with power. FAIL: an illegal element. UNKNOWN: not judged."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"


class ExitCode(IntEnum):
    """What every command and every pytest session of the harness exits with."""

    PASS = 0
    FAIL = 1
    UNKNOWN = 2
    USAGE = 64
    INTERNAL = 70
    INTERRUPTED = 130
    TERMINATED = 143


_SEVERITY = {Verdict.PASS: 0, Verdict.UNKNOWN: 1, Verdict.FAIL: 2}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of several verdicts (FAIL, then UNKNOWN, then PASS); UNKNOWN when there is none."""
    return max(verdicts, key=_SEVERITY.__getitem__, default=Verdict.UNKNOWN)


def exit_code(verdict: Verdict) -> ExitCode:
    """Return the exit code of a run that ended with this verdict."""
    return ExitCode[verdict.value]


class UsageError(Exception):
    """Input that the user has to correct. The command line prints it in one line and exits 64."""


def unknown_name(
    what: str, name: str, known: Iterable[str], *, also: str = "", listing: str = ""
) -> UsageError:
    """Return the error for a name that is none of the known ones: the nearest of them, then all.

    Args:
        what: what was named, for example "rule".
        name: as the user wrote it.
        known: the names that there are.
        also: what may stand in place of a name, added to the list.
        listing: in place of the list, where it would be too long: a sentence on where it is to be seen.
    """
    names = list(known)
    by_fold = {each.casefold(): each for each in names}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.4)
    hint = f"did you mean {by_fold[near[0]]!r}? " if near else ""
    all_of_them = listing or f"Known: {', '.join(names)}{f', or {also}' if also else ''}"
    return UsageError(f"unknown {what} {name!r}: {hint}{all_of_them}")
