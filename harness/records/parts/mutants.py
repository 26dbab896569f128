"""`record.mutants`, as `record.mutants_run`: planted faults and the rules that kill them (harness/mutants/README.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

KILLED, SURVIVED, NOT_JUDGED, NOT_PLANTED = "killed", "survived", "not judged", "not planted"


@dataclass
class PlantingResult:
    """One planting under one rule; filled in while it is judged.

    Attributes:
        planting: for example "alpha_of_neighbour@3".
        rule: id of the rule that judged it.
        status: KILLED, SURVIVED, NOT_JUDGED or NOT_PLANTED.
        examples: problems judged, up to and with the one that killed it.
        seconds: spent on judging them.
        problem: the one that killed it.
        how: "illegal", "contract", "raised" or "crashed".
        message: what the rule said, one line; for the last two statuses the reason.
    """

    planting: str
    rule: str = ""
    status: str = NOT_JUDGED
    examples: int = 0
    seconds: float = 0.0
    problem: str = ""
    how: str = ""
    message: str = ""


@dataclass(frozen=True)
class MutantScore:
    """What the plantings add up to; `share` is killed / judged plantings, None where none was judged."""

    faults: int = 0
    killed: int = 0
    survived: int = 0
    not_judged: int = 0
    not_planted: int = 0
    plantings: int = 0
    plantings_killed: int = 0
    share: float | None = None
    median_examples: float | None = None
    most_examples: int | None = None
    median_seconds: float | None = None
    judging_seconds: float = 0.0


@dataclass(frozen=True)
class MinimalProblem:
    """The smallest problem that shows a fault, with its command; `reproduced`: it fails for a fresh mutant too."""

    rule: str = ""
    problem: str = ""
    command: str = ""
    message: str = ""
    reproduced: bool = False


@dataclass(frozen=True)
class MutantFault:
    """One planted fault with what the catalog says of it (harness.faults.fault.Fault).

    Attributes:
        name, title, category, stages, bugs, killed_by, effect, random_data, simulated, same_as: of the catalog.
        threads: of the bugs.
        planted_in: candidate, "" where it was not planted.
        judged_by: rule.
        status: the worst of its plantings'.
        reason: why it was not killed.
        examples, seconds: medians of the killed plantings.
        plantings: each form.
        minimal: with `--matrix`; None where it was not shrunk.
    """

    name: str
    title: str = ""
    category: str = ""
    stages: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    killed_by: str = ""
    effect: str = ""
    random_data: bool = True
    simulated: str = ""
    same_as: list[str] = field(default_factory=list)
    planted_in: str = ""
    judged_by: str = ""
    status: str = ""
    reason: str = ""
    examples: float | None = None
    seconds: float | None = None
    plantings: list[PlantingResult] = field(default_factory=list)
    minimal: MinimalProblem | None = None


@dataclass(frozen=True)
class KillMatrix:
    """Faults by rules: `cells` are forms killed, None where not judged; `examples` problems a cell.

    `powerless`: rules that kill nothing; `not_applicable`: rule to reason.
    """

    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    cells: list[list[int | None]] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    examples: int = 0
    powerless: list[str] = field(default_factory=list)
    not_applicable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class UpstreamData:
    """A data set of other projects' tests."""

    name: str = ""
    title: str = ""


@dataclass(frozen=True)
class UpstreamCriterion:
    """A criterion of another project: whether it accepts the healthy candidate, by data; which faults it misses, by case."""

    name: str = ""
    title: str = ""
    source: str = ""
    accepts_candidate: dict[str, bool] = field(default_factory=dict)
    missed: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class UpstreamTable:
    """What criteria of other projects miss. A case is "DATA FORM"; `missed_by_all` counts those that accept the candidate."""

    data: list[UpstreamData] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    criteria: list[UpstreamCriterion] = field(default_factory=list)
    missed_by_all: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleFailure:
    """A problem on which something that ought to be right fails a rule: the candidate that faults are planted in."""

    rule: str = ""
    problem: str = ""
    message: str = ""


@dataclass(frozen=True)
class FalseAlarm:
    """A rule that fails a control, with the command that repeats it."""

    control: str = ""
    rule: str = ""
    problem: str = ""
    message: str = ""
    reproduce: str = ""


@dataclass
class ControlCount:
    """One control: examples judged, elements compared, false alarms."""

    examples: int = 0
    compared: int = 0
    false_alarms: int = 0


@dataclass(frozen=True)
class FalseAlarmCount:
    """What counting false alarms over right candidates found.

    Attributes:
        examples, wanted: judged, and asked for; an example is one rule on one problem for one control.
        seed: of the problems.
        seconds, cpu_seconds: wall-clock; of the judging processes.
        compared: elements.
        controls: by name.
        rules: by id: `examples`, `without_power` and, where there are any, `false_alarms`.
        judged: elements by how they were judged.
        traps: examples by trap.
        false_alarms: each of them.
    """

    examples: int = 0
    wanted: int = 0
    seed: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    compared: int = 0
    controls: dict[str, ControlCount] = field(default_factory=dict)
    rules: dict[str, dict[str, int]] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)
    traps: dict[str, int] = field(default_factory=dict)
    false_alarms: list[FalseAlarm] = field(default_factory=list)


@dataclass
class CheckFinding:
    """What the self-test found out about one check; filled in while it is examined.

    Attributes:
        name: of the check.
        what: its sentence.
        rule: id of the rule that it is, or stands for.
        detected: whether it was found to be without power, blind or wrong.
        how: by what; "" for a check with power.
        verdict: of an ordinary run on right candidates, the worst.
        reason: of that verdict.
        planted, noticed: probes.
        unnoticed: up to eight of those that it let pass.
        unseen: kinds of probes, with their stage, of which it noticed none.
        faults, killed: of the catalog, that its rule must kill.
    """

    name: str
    what: str = ""
    rule: str = ""
    detected: bool = False
    how: str = ""
    verdict: str = ""
    reason: str = ""
    planted: int = 0
    noticed: int = 0
    unnoticed: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    faults: int = 0
    killed: int = 0


@dataclass(frozen=True)
class SelfTest:
    """Broken checks, each of which must be detected, and the rules, none of which may be; `passed` where that is so."""

    passed: bool = False
    seconds: float = 0.0
    broken: list[CheckFinding] = field(default_factory=list)
    rules: list[CheckFinding] = field(default_factory=list)


@dataclass(frozen=True)
class MutantsRun:
    """One run of `harness mutants`.

    Attributes:
        candidate: that faults are planted in; "" for `--controls` and `--self-test`, which plant none.
        profile, seeds, seed: what was asked for: `seeds` drawn plantings a fault, `seed` of the problems.
        complete: whether the run came to its end.
        seconds: wall-clock.
        score: over all faults.
        survivors: plantings that no problem showed.
        faults: survivors first.
        candidate_failures: problems on which the candidate itself fails.
        matrix: with `--matrix`.
        upstream: unless `--no-upstream` or no layer could be run.
        controls, self_test: of the two options.
    """

    candidate: str = ""
    profile: str = ""
    seeds: int = 0
    seed: int = 0
    complete: bool = False
    seconds: float = 0.0
    score: MutantScore = field(default_factory=MutantScore)
    survivors: list[PlantingResult] = field(default_factory=list)
    faults: list[MutantFault] = field(default_factory=list)
    candidate_failures: list[RuleFailure] = field(default_factory=list)
    matrix: KillMatrix | None = None
    upstream: UpstreamTable | None = None
    controls: FalseAlarmCount | None = None
    self_test: SelfTest | None = None

    @property
    def scored(self) -> bool:
        """Whether faults were chosen and placed: an interrupt may come before, and the two options plant none."""
        return bool(self.faults) or self.complete

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds: of the two options their part alone; an empty score before there is one."""
        found = asdict(self)
        if not self.candidate:
            return {name: found[name] for name in ("controls", "self_test") if found[name] is not None}
        return found if self.scored else found | {"score": {}}
