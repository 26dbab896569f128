"""`record.canary`, as `record.canary_part`: the canary through candidates, and the table of faults (harness/canary/README.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from harness.records.parts.gsm8k import Gsm8kRun

_OWN = ("candidate", "reproduce", "ready_seconds")
_NOT_SERVED = ("candidate", "reproduce", "verdict", "qualifier", "reason")
_MEASURED = ("accuracy", "interval", "asked", "verdict", "qualifier", "seconds")


@dataclass(frozen=True)
class CanaryRun(Gsm8kRun):
    """The canary through one candidate: a GSM8K run with the candidate, how to repeat it, and its server's start.

    `ready_seconds`: until the server listened; None where it never did, and then nothing was asked.
    """

    candidate: str = ""
    reproduce: str = ""
    ready_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds; of a server that never listened no more than who, how, and why not."""
        if self.ready_seconds is None:
            return {name: getattr(self, name) for name in _NOT_SERVED}
        return {name: getattr(self, name) for name in _OWN} | super().to_json()


@dataclass(frozen=True)
class CanaryFacts:
    """What the catalog says of a fault: `bugs` are ids, `threads` the bugs' threads; `killed_by` is a rule."""

    category: str = ""
    title: str = ""
    effect: str = ""
    killed_by: str = ""
    bugs: list[str] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CanaryLine:
    """One line of `harness canary table`.

    Attributes:
        name: fault, or words for a variant.
        kind: "variant" (right, must pass) or "fault" (planted).
        candidate: full name, fault included.
        ranks, shard, transport: as `harness canary serve` takes them.
        facts: of a fault.
        error: why there is no accuracy: the candidate cannot run it or raised.
        accuracy, interval: share of right answers with Wilson's 95 % interval.
        asked: questions answered.
        verdict, qualifier: as of a GSM8K run.
        seconds: in all.
    """

    name: str
    kind: str
    candidate: str = ""
    ranks: int = 1
    shard: str = "experts"
    transport: str = "bf16"
    facts: CanaryFacts | None = None
    error: str = ""
    accuracy: float | None = None
    interval: list[float] | None = None
    asked: int = 0
    verdict: str = ""
    qualifier: str = ""
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds; with an error nothing was measured, and those fields are left out."""
        found = asdict(self)
        for name in _MEASURED if self.error else ():
            del found[name]
        return found


@dataclass(frozen=True)
class CanaryPart:
    """Runs that must pass, controls with a planted fault that must fail, and the table of `harness canary table`."""

    questions: int = 0
    runs: list[CanaryRun] = field(default_factory=list)
    controls: list[CanaryRun] = field(default_factory=list)
    table: list[CanaryLine] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds; the table is left out where there is none."""
        found: dict[str, Any] = {
            "questions": self.questions,
            "runs": [run.to_json() for run in self.runs],
            "controls": [run.to_json() for run in self.controls],
        }
        return found | ({"table": [line.to_json() for line in self.table]} if self.table else {})
