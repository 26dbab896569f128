"""The counts over the problems of one rule, and the verdict that they come to. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from harness.judging.compared import Compared
from harness.problems.problem import Problem
from harness.problems.reach import extents_of, larger
from harness.records.record import RuleResult
from harness.records.ways import add_counts
from harness.running.outcome import Outcome, Status
from harness.verdict import Verdict


@dataclass
class Tally:
    """Counts over the problems of one rule, and the failures found.

    Attributes:
        result: what goes into the record.
        traps: how often each was drawn.
        misfit: why a problem was outside what the candidate declares.
        unseen: the first problem of which no comparison looked at some valid rows.
        accepted: altered copies that would have passed, by name.
        not_implemented: which stage is not, in words.
        no_memory: a problem that could not be judged for want of memory, in words.
        late: whether the time ended the drawing.
        slow: what took so long that the rule ended, in words.
        elsewhere: problems that another part of a shared run judges.
    """

    result: RuleResult
    traps: Counter[str] = field(default_factory=Counter)
    misfit: str = ""
    unseen: str = ""
    not_implemented: str = ""
    accepted: Counter[str] = field(default_factory=Counter)
    no_memory: str = ""
    late: bool = False
    slow: str = ""
    elsewhere: int = 0

    @property
    def drawn(self) -> int:
        """Problems that were judged, here or elsewhere."""
        return self.result.examples + self.elsewhere

    def add(self, outcome: Outcome, problem: Problem) -> None:
        """Count one problem that the rule says something about."""
        self.result.examples += 1
        self.traps.update(problem.traps())
        for kernel in outcome.kernels:
            self.result.kernels[kernel] = self.result.kernels.get(kernel, 0) + 1
        if outcome.status is Status.JUDGED:
            self._add_comparisons(outcome.comparisons, str(problem))
            self._note_power(outcome, problem)
            if any(c.compared for c in outcome.comparisons) and not outcome.fails:
                self.result.extents = larger(self.result.extents, outcome.extents or extents_of(problem))

    def _note_power(self, outcome: Outcome, problem: Problem) -> None:
        """Count the altered copies that would have passed, and remember the first problem of which valid rows were left out."""
        accepted = {name for c in outcome.comparisons if c.compared for name in c.accepted_altered}
        self.accepted.update(sorted(accepted))
        if outcome.unseen and not self.unseen:
            rows, experts = sum(outcome.unseen.values()), ", ".join(outcome.unseen)
            self.unseen = f"{rows} of {problem.tokens} valid rows (experts {experts}) of {problem}"

    def _add_comparisons(self, comparisons: list[Compared], problem: str) -> None:
        """Add one problem's comparisons to the rule's counts."""
        result = self.result
        compared = sum(c.compared for c in comparisons)
        result.compared += compared
        if not compared:
            result.empty += 1
        elif any(c.accepted_altered for c in comparisons if c.compared):
            result.powerless += 1
        for c in comparisons:
            add_counts(result.judged, c.judged)
            add_counts(result.oracle, c.oracle)
            if c.histogram:
                worst_at = f"{c.histogram.worst_at} of {problem}" if c.histogram.worst_at else problem
                more = replace(c.histogram, worst_at=worst_at)
                if c.stage in result.histograms:
                    result.histograms[c.stage].add(more)
                else:
                    result.histograms[c.stage] = more
            if c.worst_ratio is not None and (
                result.worst_ratio is None or c.worst_ratio > result.worst_ratio
            ):
                result.worst_ratio, result.worst_problem = c.worst_ratio, problem

    def conclude(self, wanted: int, power: float) -> None:
        """Set the rule's verdict and its reason.

        Args:
            wanted: problems that the profile asks for.
            power: the rule's, the fraction of the problems on which it must have power.
        """
        result = self.result
        with_power = result.examples - result.empty - result.powerless - len(result.failures)
        if result.failures:
            result.verdict = Verdict.FAIL
            result.reason = result.failures[0].message.splitlines()[0]
        elif result.skipped:
            result.verdict, result.reason = Verdict.PASS, f"not applicable: {result.skipped}"
        elif self.not_implemented or (self.slow and result.examples < wanted):
            judged = f"{result.examples} of {wanted} problems were judged"
            result.reason = (
                self.not_implemented or f"slow: {self.slow}; {judged} (--problem-seconds allows more)"
            )
        elif result.examples == 0:
            outside = f"outside what the candidate declares: {self.misfit}" if self.misfit else ""
            others = "they are in other parts of the run" if self.elsewhere else "the time was over"
            result.reason = f"no problem was judged: {outside or self.no_memory or others}"
        elif result.compared == 0:
            result.reason = f"nothing was compared: no valid row in any of {result.examples} problems"
        elif self.unseen:
            result.reason = f"the rule is blind: no comparison looked at {self.unseen}"
        elif with_power == 0 or (
            result.powerless > 1 and with_power < power * (result.examples - result.empty)
        ):
            # A problem here and there is degenerate (all zeros, one row); many being so means that the check is blind. A
            # single one is chance, however few problems there was time for, as long as another has power.
            result.reason = (
                f"no power: on {result.powerless} of {result.examples - result.empty} problems an altered copy of the same "
                f"output would have passed as well: {', '.join(f'{name} ({n})' for name, n in self.accepted.most_common())}"
            )
        else:
            result.verdict = Verdict.PASS
            result.reason = self._too_few(wanted)

    def _too_few(self, wanted: int) -> str:
        """Return why fewer problems were judged than the profile asks for, "" where that many were."""
        judged = f"{self.result.examples} of {wanted} problems"
        if self.elsewhere:
            return f"{judged}, the others are in other parts of the run"
        if self.result.examples >= wanted:
            return ""
        why = "before the time was over" if self.late else "are all that could be drawn in as many tries"
        return f"{judged} {why}" + (f"; {self.no_memory}" if self.no_memory else "")
