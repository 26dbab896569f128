"""How far a run of rules on candidates is, and how long what is left will take."""

from __future__ import annotations

import time
from collections.abc import Callable

GROUND = 3  # rules of a candidate that must be through before its speed says something
PART = 0.25  # of the last rule's problems, where no other is left


class CheckRemaining:
    """Estimates the time left from the rules that are through.

    A rule is weighed by what it cost on the candidates before, or by the problems that it asks for where there was none;
    the candidate's own speed is its time so far over the weight of what it has behind it.

    Args:
        problems: problems that each rule asks for, by rule id, in the order of the rules.
        candidates: how many will be run.
        clock: seconds.
    """

    def __init__(
        self, problems: dict[str, int], candidates: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._problems, self._clock = problems, clock
        self._candidates_left = candidates
        self._measured: dict[str, list[float]] = {}  # seconds of each rule on the candidates before
        self._whole: list[float] = []  # seconds of each candidate that is through
        self._seconds: dict[str, float] = {}  # of the current candidate's rules that are through
        self._rules: list[str] = []
        self._started = self._at = clock()

    def candidate(self, rules: list[str]) -> None:
        """The next candidate begins, with the rules that apply to it (none: it does not run)."""
        self._close()
        self._candidates_left -= 1
        self._rules, self._seconds = rules, {}
        self._started = self._at = self._clock()

    def finished(self, rule: str) -> None:
        """A rule is through."""
        now = self._clock()
        self._seconds[rule], self._at = now - self._at, now

    def seconds(self, rule: str, part: float) -> float | None:
        """Return the seconds that are left of the whole run, or None before there is ground for an estimate.

        Args:
            rule: the one that runs.
            part: of its problems that is behind, 0 to 1.
        """
        left = [r for r in self._rules if r not in self._seconds]
        if len(self._seconds) < GROUND and not (left == [rule] and part >= PART):
            return None
        behind = sum(map(self._weight, self._seconds)) + part * self._weight(rule)
        speed = (self._clock() - self._started) / behind
        ahead = speed * (sum(map(self._weight, left)) - part * self._weight(rule))
        whole = [*self._whole, self._clock() - self._started + ahead]
        return ahead + self._candidates_left * sum(whole) / len(whole)

    def _weight(self, rule: str) -> float:
        """Return the rule's weight: all in seconds once one candidate is through, else all in problems."""
        if not self._whole:
            return float(self._problems[rule])
        known = self._measured.get(rule)
        if known:
            return sum(known) / len(known)
        each = sum(map(sum, self._measured.values())) / sum(
            self._problems[r] * len(s) for r, s in self._measured.items()
        )
        return self._problems[rule] * each

    def _close(self) -> None:
        if self._seconds:
            self._whole.append(self._at - self._started)
        for rule, seconds in self._seconds.items():
            self._measured.setdefault(rule, []).append(seconds)
