"""A run's candidates at the workers that a command line asks for, and what its record says of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from harness.records.parts.sharing import ShardPart, Sharing
from harness.records.record import RunRecord
from harness.rules import Rule
from harness.running.known_failures import KnownFailure
from harness.running.session import Session
from harness.running.settings import RunSettings
from harness.running.shared.asked import AskedSharing
from harness.running.shared.crew import Crew
from harness.running.shared.local import LocalWorker, share_of_threads
from harness.running.shared.plan import Plan
from harness.running.shared.session import SharedSession
from harness.running.shared.shards import ShardSession


def open_shared(name: str, asked: AskedSharing, *, threads: int = 0, memory_gib: float = 0) -> SharedSession:
    """Load a candidate at every worker.

    Args:
        name: as on a command line.
        asked: for which workers.
        threads: of torch in each of them; 0 shares the processors out.
        memory_gib: limit of each process's data segment, 0 for none.

    Raises:
        CandidateStartError: it cannot run here, or not at every worker.
        UsageError: there is no such candidate, or no such cluster.
    """
    if asked.ray:
        from harness.running.shared.cluster import ray_workers

        nodes_workers, nodes = ray_workers(asked.ray, name, threads=threads, memory_gib=memory_gib)
        return SharedSession(Crew(nodes_workers, nodes=nodes))
    threads = threads or share_of_threads(asked.workers)
    gpus = asked.gpus or [""]
    workers = [
        LocalWorker(name, gpus[number % len(gpus)], threads=threads, memory_gib=memory_gib)
        for number in range(asked.workers)
    ]
    return SharedSession(Crew(workers))


class SharedRun:
    """How the candidates of one run are shared, and what becomes of that in its record.

    Args:
        asked: who is to judge.
        candidates: names that were asked for.
        rules: of the run.
        all_rules: no rule was selected.
        known: list of known failures.
    """

    def __init__(
        self,
        asked: AskedSharing,
        candidates: Sequence[str],
        rules: Sequence[Rule],
        *,
        all_rules: bool,
        known: Sequence[KnownFailure],
    ) -> None:
        self._asked, self._rules, self._known = asked, rules, known
        self._sharing = Sharing(gpus=asked.gpus)
        self._part: ShardPart | None = None
        if asked.shard:
            ids = [rule.id for rule in rules]
            self._part = ShardPart(asked.shard.number, asked.shard.of, list(candidates), ids, all_rules)

    def prepared(self, session: Session, settings: RunSettings, *, limited: bool) -> Session:
        """Return the session that rules are judged through: of one shard, or with its tasks planned.

        Where the time is `limited` all are planned now, before it runs.
        """
        plan = Plan(session.describe(), settings, self._asked.shard)
        if isinstance(session, SharedSession):
            session.prepare(plan, self._rules, settings.profile.problem_seconds, limited=limited)
            for rule in self._rules if limited else ():
                plan.all_of(rule)
        if self._part is None:
            return session
        shape = asdict(settings.shape) if settings.shape else None
        self._part = replace(self._part, problem_seconds=settings.profile.problem_seconds, shape=shape)
        return ShardSession(session, plan)

    def through(self, session: Session, judged: Session, name: str) -> None:
        """Note what became of a candidate: of its session and of what `prepared` made of that."""
        if isinstance(session, SharedSession):
            self._sharing = replace(
                self._sharing,
                workers=max(self._sharing.workers, session.crew.size),
                nodes=max(self._sharing.nodes, session.crew.nodes),
                tasks=self._sharing.tasks + session.tasks,
                rerun=self._sharing.rerun + session.crew.rerun,
            )
        if self._part is not None and isinstance(judged, ShardSession):
            found = judged.found(name, self._known)
            self._part = replace(self._part, found=[*self._part.found, found])

    def broken(self, words: str) -> None:
        """Note why a candidate was not judged to the end."""
        self._sharing = replace(self._sharing, missing=[*self._sharing.missing, words])

    def keep(self, record: RunRecord) -> None:
        """Write it into the record; nothing where one worker judged all."""
        sharing = self._sharing
        if self._part is not None:
            number, of = self._part.number, self._part.of
            judged = sum(rule.examples for rule in record.rules)
            words = (
                f"shard {number} of {of}, {judged:,} problems: a part of a run; "
                "`harness report --merge` makes one record of all parts"
            )
            sharing = replace(sharing, shards=of, shard=number, missing=[*sharing.missing, words])
            record.shard_part = self._part
        if self._part is not None or self._asked.several:
            record.sharing_part = sharing
