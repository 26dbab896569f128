"""Typed views of a record's stages beside the rules: `record.gsm8k_run`, `record.canary_part`, `record.mutants_run`.

The record keeps each stage as the JSON that the stage wrote, so that a record can hold what this version does not know.
These views read what is known. Missing fields have their defaults, unknown ones are ignored, and a field of the wrong
type raises RecordError with its name. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.records.from_json import build_from_json

T = TypeVar("T")


@dataclass(frozen=True)
class Gsm8kRun:
    """One GSM8K run, the fields of `record.gsm8k` (harness/gsm8k/README.md); shares lie between 0 and 1.

    `interval` is Wilson's of strict, `intervals` that of each extractor, `[low, high]`; `seconds` and `requests` by
    name; each sample is a dict as that README describes.
    """

    verdict: str = "UNKNOWN"
    qualifier: str = ""
    reason: str = ""
    questions: int = 0
    answered: int = 0
    unanswered: int = 0
    not_asked: int = 0
    correct_strict: int = 0
    correct_flexible: int = 0
    correct_numeric: int = 0
    accuracy_strict: float | None = None
    accuracy_flexible: float | None = None
    accuracy_numeric: float | None = None
    interval: list[float] | None = None
    intervals: dict[str, list[float] | None] = field(default_factory=dict)
    metric: str = "strict"
    classes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    repeats: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The verdict with its qualifier: FAIL (dead)."""
        return f"{self.verdict} ({self.qualifier})" if self.qualifier else self.verdict

    @property
    def task_name(self) -> str:
        """Name of the lm-eval task."""
        return str(self.task.get("name") or "gsm8k")

    @property
    def model(self) -> str:
        """Name of the model that the server stated."""
        return str(self.server.get("model") or "")

    @property
    def accuracy(self) -> float | None:
        """Share right by the extractor that counts (`metric`), of the answered questions; None where none was."""
        values = {
            "strict": self.accuracy_strict,
            "flexible": self.accuracy_flexible,
            "numeric": self.accuracy_numeric,
        }
        return values.get(self.metric, self.accuracy_strict)

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of `accuracy`."""
        ends = self.intervals.get(self.metric) or self.interval
        return (ends[0], ends[1]) if ends is not None and len(ends) == 2 else None


@dataclass(frozen=True)
class CanaryRun(Gsm8kRun):
    """The canary through one candidate: a GSM8K run with the candidate, how to repeat it, and its server's start."""

    candidate: str = ""
    reproduce: str = ""
    ready_seconds: float | None = None


@dataclass(frozen=True)
class CanaryLine:
    """One line of `harness canary table`. `kind`: "variant" (right, must pass) or "fault" (planted).

    `error` says why there is no accuracy. `facts` of a fault: category, title, effect, killed_by, bugs.
    """

    name: str
    kind: str
    candidate: str = ""
    accuracy: float | None = None
    interval: list[float] | None = None
    asked: int = 0
    verdict: str = ""
    qualifier: str = ""
    error: str = ""
    seconds: float | None = None
    facts: dict[str, Any] | None = None


@dataclass(frozen=True)
class CanaryPart:
    """The fields of `record.canary`: runs that must pass, controls with a planted fault that must fail, the table."""

    questions: int = 0
    runs: list[CanaryRun] = field(default_factory=list)
    controls: list[CanaryRun] = field(default_factory=list)
    table: list[CanaryLine] = field(default_factory=list)


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
class MutantFault:
    """One planted fault. `status`: killed, survived, not judged or not planted."""

    name: str
    title: str = ""
    category: str = ""
    killed_by: str = ""
    planted_in: str = ""
    judged_by: str = ""
    status: str = ""
    reason: str = ""
    minimal: dict[str, Any] | None = None


@dataclass(frozen=True)
class MutantsRun:
    """The fields of `record.mutants` (harness/mutants/README.md); `controls` and `self_test` as written there."""

    candidate: str = ""
    profile: str = ""
    complete: bool = False
    seconds: float = 0.0
    score: MutantScore = field(default_factory=MutantScore)
    faults: list[MutantFault] = field(default_factory=list)
    controls: dict[str, Any] | None = None
    self_test: dict[str, Any] | None = None


def read_part(kind: type[T], value: dict[str, Any] | None, where: str) -> T | None:
    """Return a stage as its type, None where the record has none; `where` starts the messages. Raises RecordError."""
    if value is None:
        return None
    built: T = build_from_json(kind, value, where)
    return built
