"""What the commands print: progress while a run goes on, and its end."""

from __future__ import annotations

import time
from pathlib import Path

import click

from harness.cli.remaining import CheckRemaining
from harness.records.parts.canary import CanaryRun
from harness.records.record import CandidateRun, RuleResult, RunRecord, Skip
from harness.records.ways import ONE, by_kind, has_interval, share
from harness.rules import Rule
from harness.running.check import CheckRequest, Progress
from harness.running.runner import wanted_problems
from harness.terminal import LiveLine, duration
from harness.verdict import Verdict

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.UNKNOWN: "yellow"}


class TerminalProgress(Progress):
    """One line a rule; on a terminal a line below them says how far the run is, and how long it will take."""

    def __init__(self) -> None:
        self._live = LiveLine()
        self._names: list[str] = []
        self._rules: list[Rule] = []
        self._number = 0  # of the candidate
        self._end = float("inf")
        self._then = ""

    def start(self, request: CheckRequest, candidates: list[str]) -> None:
        """Note what there is to do."""
        self._names, self._rules = candidates, request.rules
        problems = {
            r.id: 1 if request.problem else wanted_problems(r, request.profile) for r in request.rules
        }
        self._remaining = CheckRemaining(problems, len(candidates))
        # Of those that nobody named it is not known how many run here.
        self._about = "about" if request.candidates else "at most about"
        if request.max_seconds:
            self._end = time.monotonic() + request.max_seconds
        self._then = ", then the canary" if request.canary else ""

    def candidate(self, run: CandidateRun) -> None:
        """Print the candidate's name with what was measured, or why it does not run."""
        self._live.clear()
        self._number += 1
        missing = set(run.missing_stages)
        able = [rule.id for rule in self._rules if run.ran and not missing.intersection(rule.stages)]
        self._remaining.candidate(able)
        if not run.ran:
            click.echo(f"{run.name}: not run: {run.reason}", err=True)
            return
        click.echo(f"{run.name}:", err=True)
        for what, words in run.measured.items():
            click.echo(f"  {what}: {words}", err=True)

    def rule(self, rule: Rule, done: int, wanted: int) -> None:
        """Update the line of the rule that is running."""
        if not self._live.on:
            return
        number = 1 + self._rules.index(rule)
        words = [
            f"  {rule.id} {done}/{wanted}",
            f"rule {number}/{len(self._rules)}",
            f"candidate {self._number}/{len(self._names)}",
        ]
        left = self._remaining.seconds(rule.id, min(done / wanted, 1.0))
        if left is not None:
            left = max(0.0, min(left, self._end - time.monotonic()))
            words.append(f"{self._about} {duration(left)} left{self._then}")
        self._live.show(", ".join(words))

    def finished(self, result: RuleResult) -> None:
        """Print a rule's verdict."""
        self._live.clear()
        self._remaining.finished(result.rule)
        if result.skipped:
            click.echo(f"  {result.rule:<11} -        not applicable: {result.skipped}", err=True)
            return
        word = click.style(f"{result.verdict.value:<8}", fg=_COLOURS[result.verdict])
        counts = f"{result.examples} problems, {result.compared:,} elements{_judged(result)}, {result.seconds:.1f} s"
        click.echo(f"  {result.rule:<11} {word} {counts}", err=True)
        if result.verdict is not Verdict.PASS or result.failures:
            for failure in result.failures[:3] if result.verdict is Verdict.FAIL else []:
                click.echo("    " + failure.message.replace("\n", "\n    "), err=True)
            if not result.failures or result.verdict is not Verdict.FAIL:
                click.echo(f"    {result.reason}", err=True)

    def canary(self, run: CanaryRun) -> None:
        """Print the canary's verdict through one candidate."""
        colour = _COLOURS.get(Verdict(run.verdict)) if run.verdict in set(Verdict) else None
        click.echo(f"canary on {run.candidate}: {click.style(run.label, fg=colour)} {run.reason}", err=True)

    def skipped(self, skip: Skip) -> None:
        """Print what does not run, and why."""
        click.echo(f"{skip.what}: not run: {skip.reason}", err=True)


def _judged(result: RuleResult) -> str:
    """Return the share that had one legal value, and the worst error where an interval judged the rest."""
    kinds = by_kind(result.judged)
    one = share(kinds.get(ONE, 0), sum(kinds.values()))
    words = f", {one} with one legal value" if one else ""
    if result.worst_ratio is not None and has_interval(result.judged):
        words += f", worst error {result.worst_ratio:.3g} of its bound"
    return words


def print_summary(record: RunRecord, paths: dict[str, Path]) -> None:
    """Print the verdict, its reason, and where the files are."""
    click.secho(f"{record.verdict.value}: {record.reason}", fg=_COLOURS[record.verdict], bold=True)
    for what, path in paths.items():
        click.echo(f"{what}: {path}")


def finish(record: RunRecord, folder: Path, *, junit: Path | None = None) -> None:
    """Write the record and what is drawn from it into a folder, and print the verdict and the files."""
    from harness.ci.outputs import write_record

    print_summary(record, write_record(record, folder, junit=junit))
