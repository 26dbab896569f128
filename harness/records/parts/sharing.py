"""`record.sharing` and `record.shard`, as `record.sharing_part` and `record.shard_part`: a run shared among several (ARCHITECTURE.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sharing:
    """Who judged the problems of a run.

    Attributes:
        workers: that judged at the same time; of merged shards: of all of them together.
        gpus: one for each worker, as CUDA_VISIBLE_DEVICES names it; empty without GPUs, or on a cluster.
        nodes: machines of the Ray cluster, 0 without one.
        tasks: ranges of problems that were handed out; 0 where one worker judged all.
        rerun: tasks that were judged again because the worker that had them was lost.
        shards: parts that were merged, or that this record is one of; 0 for neither.
        shard: which of them this record is, 0 for none.
        missing: why this is not the whole run, in sentences: such a run does not pass.
    """

    workers: int = 1
    gpus: list[str] = field(default_factory=list)
    nodes: int = 0
    tasks: int = 0
    rerun: int = 0
    shards: int = 0
    shard: int = 0
    missing: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds: every field."""
        return asdict(self)

    def __str__(self) -> str:
        parts = []
        if self.shards:
            parts.append(
                f"shard {self.shard} of {self.shards}" if self.shard else f"{self.shards} shards merged"
            )
        where = f" on {self.nodes} node{'s' * (self.nodes != 1)} of a Ray cluster" if self.nodes else ""
        where += f" on GPU{'s' * (len(self.gpus) != 1)} {', '.join(self.gpus)}" if self.gpus else ""
        parts.append(f"{self.workers} worker{'s' * (self.workers != 1)}{where}")
        if self.tasks:
            parts.append(f"{self.tasks:,} tasks")
        if self.rerun:
            parts.append(f"{self.rerun:,} judged again after a worker was lost")
        return "; ".join([*parts, *self.missing])


@dataclass(frozen=True)
class Answer:
    """What a shard's candidate answered about one problem.

    Attributes:
        rule: id of the rule.
        problem: as a string.
        without: stages that were taken to be missing.
        outcomes: one each time that it was asked, harness.running.outcome.Outcome without what is at its default.
    """

    rule: str
    problem: str
    without: list[str] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ExplainedFailure:
    """Which known faults explain a failing problem of a shard."""

    rule: str
    problem: str
    diagnosis: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ShardCandidate:
    """What a shard found out about one candidate: enough to read its part of a run again.

    Attributes:
        name: of the candidate.
        description: harness.running.outcome.Description, as JSON.
        answers: about every problem that was judged here.
        explained: its failing problems.
        known: entries of the list of known failures that name it, each with `applies` and `where`.
    """

    name: str
    description: dict[str, Any]
    answers: list[Answer] = field(default_factory=list)
    explained: list[ExplainedFailure] = field(default_factory=list)
    known: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ShardPart:
    """One shard of a run: what was asked of the whole run, and the answers to its own problems.

    Attributes:
        number, of: which one, from 1, of how many.
        candidates: names that were asked for; empty for every built-in one.
        rules: ids of the rules.
        all_rules: no rule was selected.
        problem_seconds: limit of a problem.
        shape: harness.problems.shapes.ModelShape as JSON, None for drawn shapes.
        found: about each candidate that ran.
    """

    number: int
    of: int
    candidates: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    all_rules: bool = True
    problem_seconds: float = 0.0
    shape: dict[str, Any] | None = None
    found: list[ShardCandidate] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what the record holds: every field."""
        return asdict(self)
