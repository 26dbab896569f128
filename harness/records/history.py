"""Many runs in the order of time, as data: filled by harness/comparing/history.py, drawn by reports/history.py.

Everything is JSON-ready through `dataclasses.asdict`. Runs are named by their place in `History.runs`. Standard library
only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.records.changes import EnvironmentChange
from harness.verdict import Verdict


@dataclass(frozen=True)
class HistoryRun:
    """One record: what the list of runs shows. `link` leads to its report.html, "" without one."""

    name: str
    run_id: str
    created: str
    what: str
    candidates: str
    gpu: str
    profile: str
    verdict: Verdict
    reason: str
    seconds: float
    commit: str
    link: str = ""


@dataclass(frozen=True)
class HistoryPoint:
    """One value of a series. `low` and `high`: its 95 % interval, None without one; `bad`: its verdict was FAIL."""

    run: int
    value: float
    low: float | None = None
    high: float | None = None
    bad: bool = False


@dataclass(frozen=True)
class Series:
    """One figure over the runs, oldest first.

    `kind`: accuracy and score (shares between 0 and 1), margin (worst error over bound, illegal above 1), duration
    (seconds). `subject`: task, rule, or what took the time.
    """

    kind: str
    subject: str
    points: list[HistoryPoint] = field(default_factory=list)


@dataclass(frozen=True)
class VersionMark:
    """The first run of a line with other versions than the run before it."""

    run: int
    changes: list[EnvironmentChange]


@dataclass(frozen=True)
class Line:
    """What one candidate, or one served model, did on one kind of machine (`gpu`: names of the GPUs, else the device)."""

    who: str
    gpu: str
    marks: list[VersionMark] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)


@dataclass(frozen=True)
class Standing:
    """Something whose newest verdict is not good, and since when.

    `since` is the first of `runs` runs in a row; `good` the last good run before them, None if there was none; `changes`
    the versions that differ between those two.
    """

    part: str
    subject: str
    who: str
    gpu: str
    word: str
    bad: bool
    reason: str
    newest: int
    since: int
    runs: int
    good: int | None = None
    changes: list[EnvironmentChange] = field(default_factory=list)


@dataclass(frozen=True)
class Unreadable:
    """A file that holds no record that this version can read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class History:
    """All records below a folder. `verdicts` counts the newest verdict of everything that was judged."""

    runs: list[HistoryRun] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    standing: list[Standing] = field(default_factory=list)
    verdicts: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)
    others: int = 0

    @property
    def verdict(self) -> Verdict:
        """FAIL where the newest verdict of anything is bad, UNKNOWN where something is not judged or nothing is there."""
        if any(s.bad for s in self.standing):
            return Verdict.FAIL
        return Verdict.UNKNOWN if self.standing or not self.verdicts else Verdict.PASS

    @property
    def reason(self) -> str:
        """The state in one sentence."""
        if not self.verdicts:
            return f"{len(self.runs):,} runs, nothing was judged in them"
        if not self.standing:
            return f"all {self.verdicts:,} newest verdicts are good, over {len(self.runs):,} runs"
        bad = sum(s.bad for s in self.standing)
        counts = (
            f"{bad:,} of {self.verdicts:,} newest verdicts are bad, {len(self.standing) - bad:,} not judged"
        )
        first = self.standing[0]
        where = f"{first.subject} on {first.who}" if first.who else first.subject
        return f"{counts}; first: {where}, {first.word} since {self.runs[first.since].created[:16] or 'unknown time'}"
