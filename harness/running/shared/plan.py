"""Which problems a run judges where none fails, and which of them are whose. Imports no torch.

What is drawn follows from the rule, the seed, the profile and what the candidate declares. Only a failing problem changes
what comes after it, and that is for whoever reads the outcomes in order (harness.running.shared.session).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

from harness.rules import Rule
from harness.running.outcome import Description, Outcome, Status
from harness.running.runner import RuleRun
from harness.running.settings import RunSettings
from harness.verdict import UsageError


@dataclass(frozen=True)
class Shard:
    """One of several runs that share the problems of one run: `number` of `of`, from 1.

    Raises:
        UsageError: there is no such shard.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UsageError(f"--shard: expected I/N with 1 <= I <= N, for example 2/3, got {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_shard(text: str) -> Shard:
    """Return the shard that `I/N` names. Raises UsageError where it names none."""
    numbers = text.split("/")
    if len(numbers) != 2 or not all(n.isascii() and n.isdigit() and len(n) < 7 for n in numbers):
        raise UsageError(f"--shard: expected I/N, for example 2/3, got {text!r}")
    return Shard(*map(int, numbers))


class _Noted:
    """A session that judges nothing and notes what it is asked."""

    def __init__(self, described: Description) -> None:
        self.left_out: dict[str, str] = {}
        self.problems: list[str] = []
        self._described = described

    def describe(self) -> Description:
        return self._described

    def judge(self, _rule: str, problem: str, _seconds: float) -> Outcome:
        self.problems.append(problem)
        return Outcome(Status.ELSEWHERE)

    def diagnose(self, *_: object) -> list[dict[str, object]]:
        return []

    def close(self) -> None:
        pass


class Plan:
    """The problems of each rule in the order in which one run judges them.

    Args:
        described: the candidate.
        settings: of the run.
        shard: whose problems `own` returns; None for all.
    """

    def __init__(self, described: Description, settings: RunSettings, shard: Shard | None = None) -> None:
        self._described, self._shard = described, shard
        self._settings = replace(settings, deadline=float("inf"), progress=lambda *_: None)
        self._planned: dict[str, dict[str, int]] = {}

    def able(self, rule: Rule) -> bool:
        """Return whether the candidate has the stages that a rule needs."""
        return set(rule.stages) <= set(self._described.stages)

    def all_of(self, rule: Rule) -> list[str]:
        """Return the problems of a rule."""
        return [*self._numbers(rule)]

    def own(self, rule: Rule) -> list[str]:
        """Return those of them that belong to the shard."""
        return [problem for problem in self._numbers(rule) if self.owns(rule, problem)]

    def owns(self, rule: Rule, problem: str) -> bool:
        """Return whether a problem is the shard's own.

        One that is not planned is whoever's that asks: it is drawn because another one could not be judged.
        """
        return self._shard is None or self.owner(rule, problem, self._shard.of) in (self._shard.number, 0)

    def owner(self, rule: Rule, problem: str, shards: int) -> int:
        """Return the number of the shard that judges a problem, 0 where it is not planned.

        They take turns, beginning with another one in each rule: so each gets its part of the costly problems, which come
        last, and of the rules that have few.
        """
        number = self._numbers(rule).get(problem)
        return 0 if number is None else (number + zlib.crc32(rule.id.encode())) % shards + 1

    def _numbers(self, rule: Rule) -> dict[str, int]:
        if rule.id not in self._planned:  # once: that takes as long as drawing its problems
            noted = _Noted(self._described)
            RuleRun(rule, noted, self._settings).draw()
            self._planned[rule.id] = {problem: number for number, problem in enumerate(noted.problems)}
        return self._planned[rule.id]
