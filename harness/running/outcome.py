"""What crosses the border between a run and the process of its candidate, in both directions. Imports no torch.

One JSON object a line; a candidate in this process gives and takes the same values, so that it makes no difference where
it lives.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from harness.candidates.protocol import Traits
from harness.judging.compared import Compared
from harness.records.finding import Finding
from harness.records.from_json import build_from_json


class Status(StrEnum):
    """What kind of answer an outcome is."""

    LOADED = "loaded"  # the candidate is there, and is measured next
    READY = "ready"  # it can be judged: `description`
    FAILED = "failed"  # it cannot run here, or did not start: `error`
    USAGE = "usage"  # there is no such candidate: `error`
    JUDGED = "judged"  # `comparisons`, `unseen`, `extents`
    NOT_APPLICABLE = "not applicable"  # the rule says nothing about the candidate: `error`
    CONTRACT = "contract"  # a stage returned something that the contract does not allow: `error`
    RAISED = "raised"  # a stage raised: `error`
    NOT_IMPLEMENTED = (
        "not implemented"  # NotImplementedError from a stage that never returned: `stage`, `error`
    )
    NO_MEMORY = "no memory"  # for judging, the candidate has not raised it: `error`
    CRASHED = "crashed"  # the process or its GPU is gone: `error`
    RANK_LOST = "rank lost"  # a rank of the candidate died or hangs: `error`
    TIMEOUT = "timeout"  # no answer, and the process hangs: `error`
    SLOW = "slow"  # no answer, and the process does not hang: `error`
    DIAGNOSED = "diagnosed"  # `diagnosis`
    ELSEWHERE = "elsewhere"  # not asked here: the problem belongs to another part of a shared run
    KEPT = "kept"  # the calls of a failing problem are in a file, or `error` says why not
    INTERNAL = "internal"  # a defect of the harness: its trace in `error`


@dataclass(frozen=True)
class Description:
    """A candidate that can be judged: its declared traits, what was measured through it, and its stages.

    `findings` and `fingerprint`: what was found of its arithmetic (harness.identification). `device_bytes` is the free memory of its GPU, 0 where its tensors live elsewhere.
    """

    traits: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    device_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    fingerprint: str = ""

    @property
    def declared(self) -> Traits:
        """The traits as what they are: JSON has made lists of their tuples."""
        return traits_from(self.traits)


@dataclass(frozen=True)
class Outcome:
    """One answer of the process that a candidate lives in.

    Attributes:
        status: of which kind.
        error: why there is nothing better, in words.
        description: of a candidate that is ready.
        comparisons: of one rule on one problem.
        unseen: valid rows that no comparison looked at, by expert number as a string.
        extents: how far the problem reached, where the rule does not take its extents as they are.
        diagnosis: known faults that explain a failure (harness.diagnosis).
        hidden: a stage raised, and the rule went on as if it had not.
        stage: the one that is not implemented.
        kernels: that ran, in words, where the candidate tells (harness.candidates.witness).
        seconds: that judging took, where somebody else than the asker measured them; 0 where nobody did.
    """

    status: Status
    error: str = ""
    description: Description | None = None
    comparisons: list[Compared] = field(default_factory=list)
    unseen: dict[str, int] = field(default_factory=dict)
    extents: dict[str, int] = field(default_factory=dict)
    diagnosis: list[dict[str, Any]] = field(default_factory=list)
    hidden: bool = False
    stage: str = ""
    kernels: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def illegal(self) -> list[Compared]:
        """The comparisons that found illegal elements."""
        return [one for one in self.comparisons if one.illegal]

    @property
    def fails(self) -> bool:
        """Whether this is a failure of the candidate."""
        failures = {Status.CONTRACT, Status.RAISED, Status.CRASHED, Status.RANK_LOST, Status.TIMEOUT}
        return bool(self.illegal) or self.status in failures

    @property
    def lost(self) -> bool:
        """Whether the process is of no use any more."""
        return self.status in {Status.CRASHED, Status.RANK_LOST, Status.TIMEOUT, Status.SLOW}


@dataclass(frozen=True)
class WorkerSettings:
    """What a candidate's process is started with.

    Attributes:
        candidate: its name, as on a command line.
        threads: of torch, 0 for its own choice.
        memory_gib: limit of the process's data segment, 0 for none.
        probe: measure the candidate before it is judged.
        commands: descriptor of the pipe that commands come from.
        answers: descriptor of the pipe that outcomes go to.
    """

    candidate: str
    threads: int = 0
    memory_gib: float = 0
    probe: bool = True
    commands: int = -1
    answers: int = -1


@dataclass(frozen=True)
class Command:
    """What a candidate's process is asked: to judge a rule on a problem, or why it fails there.

    `diagnose` is the command line that repeats the diagnosis; "" asks for a judgement. `likely`: faults that it tests in
    any case. `without`: stages that are taken to be missing. `keep`: the file that the failing calls are to be kept in, with `each` before every call.
    """

    rule: str
    problem: str
    diagnose: str = ""
    without: list[str] = field(default_factory=list)
    keep: str = ""
    each: bool = False
    likely: list[str] = field(default_factory=list)


Message = Outcome | WorkerSettings | Command


def to_line(message: Message) -> str:
    """Return a message as one line of JSON."""
    return json.dumps(asdict(message))


def outcome_from(line: str | bytes) -> Outcome:
    """Return the outcome that a line holds. Raises RecordError where it is none."""
    outcome: Outcome = build_from_json(Outcome, json.loads(line), "outcome")
    return outcome


def command_from(line: str) -> Command:
    """Return the command that a line holds. Raises RecordError where it is none."""
    command: Command = build_from_json(Command, json.loads(line), "command")
    return command


def settings_from(line: str) -> WorkerSettings:
    """Return the settings that a line holds. Raises RecordError where it is none."""
    settings: WorkerSettings = build_from_json(WorkerSettings, json.loads(line), "settings")
    return settings


def traits_from(described: dict[str, Any]) -> Traits:
    """Return the traits that JSON describes, its lists as the tuples that they were."""
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in described.items()}
    values["shapes"] = tuple(map(tuple, values.get("shapes", ())))
    return Traits(**values)
