"""What differs between two runs, as data: filled by harness/comparing/runs.py, drawn by reports/compare.py.

Everything is JSON-ready through `dataclasses.asdict`. "Before" is the first record of `harness report A B`, "after" the
second. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from harness.verdict import ExitCode, Verdict, exit_code


class Direction(StrEnum):
    """Where a change leads. Only a REGRESSION makes a comparison FAIL; CHANGED is neither better nor worse."""

    REGRESSION = "regression"
    IMPROVEMENT = "improvement"
    CHANGED = "changed"
    SAME = "same"


@dataclass(frozen=True)
class VerdictChange:
    """One thing that both runs judged, with what each found.

    `part`: run, candidates, rules, gsm8k, canary, canary control, canary fault, mutants, controls or self-test.
    `before` and `after` are that part's words: PASS, FAIL, UNKNOWN, SKIPPED, "killed", "survived".
    `reason` and `reproduce` are those of the worse one.
    """

    part: str
    subject: str
    candidate: str
    direction: Direction
    before: str
    after: str
    reason: str = ""
    reproduce: str = ""


@dataclass(frozen=True)
class MarginChange:
    """Worst error over bound of one rule on one candidate; above 1 is illegal. `factor` is after / before.

    `same_problems`: both runs drew the same problems, so that the difference is the candidate's own.
    """

    rule: str
    candidate: str
    before: float
    after: float
    factor: float | None
    same_problems: bool
    problem: str = ""


@dataclass(frozen=True)
class Estimate:
    """An accuracy between 0 and 1 with its 95 % interval, over `answered` questions."""

    share: float
    low: float
    high: float
    answered: int


@dataclass(frozen=True)
class AccuracyChange:
    """An accuracy before and after. `difference` is after - before with its 95 % interval `low` to `high`.

    `paired`: on the `questions` that both runs answered, of which `lost` are now wrong and `gained` now right. Otherwise
    the interval is Newcombe's of two independent shares, and `why_not_paired` says what kept them apart.
    `seen`: smallest drop that this comparison would find, None if it would find none.
    """

    part: str
    subject: str
    candidate: str
    metric: str
    direction: Direction
    before: Estimate
    after: Estimate
    difference: float
    low: float
    high: float
    paired: bool
    questions: int
    lost: int = 0
    gained: int = 0
    p: float | None = None
    seen: float | None = None
    words: str = ""
    why_not_paired: str = ""


@dataclass(frozen=True)
class TimingChange:
    """Seconds before and after. `work` says over how much, where that differs ("150 problems, now 40")."""

    what: str
    candidate: str
    before: float
    after: float
    work: str = ""


@dataclass(frozen=True)
class CoverageChange:
    """How much a rule compared, where it fell or rose so far that its verdict means something else."""

    rule: str
    candidate: str
    before: int
    after: int


@dataclass(frozen=True)
class EnvironmentChange:
    """One fact about where the runs took place; "" where a run does not have it."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class OneSided:
    """Something that only one of the two runs judged. `side`: before or after."""

    side: str
    part: str
    subject: str
    candidate: str
    word: str


@dataclass(frozen=True)
class RunIdentity:
    """Which run a side of the comparison is. `link` leads to its report.html from the output folder, "" without one."""

    name: str
    run_id: str
    created: str
    verdict: Verdict
    reason: str
    link: str = ""


@dataclass(frozen=True)
class RecordComparison:
    """Two runs, or two folders of runs. Lists are ordered worst first; what is the same is only counted.

    `still_bad` lists what is FAIL (or survived) in both; `unchanged` maps a part to how many things have which word.
    """

    before: list[RunIdentity]
    after: list[RunIdentity]
    verdicts: list[VerdictChange] = field(default_factory=list)
    still_bad: list[VerdictChange] = field(default_factory=list)
    unchanged: dict[str, dict[str, int]] = field(default_factory=dict)
    accuracies: list[AccuracyChange] = field(default_factory=list)
    margins: list[MarginChange] = field(default_factory=list)
    margins_same: int = 0
    coverage: list[CoverageChange] = field(default_factory=list)
    timings: list[TimingChange] = field(default_factory=list)
    timings_same: int = 0
    environment: list[EnvironmentChange] = field(default_factory=list)
    environment_same: int = 0
    one_sided: list[OneSided] = field(default_factory=list)
    compared: int = 0

    @property
    def regressions(self) -> list[VerdictChange | AccuracyChange]:
        """Everything that is worse and counts."""
        return self._toward(Direction.REGRESSION)

    @property
    def improvements(self) -> list[VerdictChange | AccuracyChange]:
        """Everything that is better."""
        return self._toward(Direction.IMPROVEMENT)

    def _toward(self, direction: Direction) -> list[VerdictChange | AccuracyChange]:
        found: list[VerdictChange | AccuracyChange] = [v for v in self.verdicts if v.direction is direction]
        return found + [a for a in self.accuracies if a.direction is direction]

    @property
    def verdict(self) -> Verdict:
        """FAIL with a regression, UNKNOWN where the runs have nothing in common, else PASS."""
        if self.regressions:
            return Verdict.FAIL
        return Verdict.PASS if self.compared else Verdict.UNKNOWN

    @property
    def exit_code(self) -> ExitCode:
        """What `harness report A B` exits with."""
        return exit_code(self.verdict)

    @property
    def reason(self) -> str:
        """The comparison in one sentence."""
        worse, better = len(self.regressions), len(self.improvements)
        if not self.compared and not worse:
            return "the runs have no rule on a common candidate, no GSM8K task, no canary and no planted fault in common"
        same = sum(sum(words.values()) for words in self.unchanged.values())
        counts = (
            f"{_number(worse, 'regression')}, {_number(better, 'improvement')}, {same:,} verdicts unchanged"
        )
        return counts + (f" ({len(self.still_bad):,} of them still bad)" if self.still_bad else "")


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
