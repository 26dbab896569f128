"""What the commands print: progress while a run goes on, and its end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from harness.records.parts.canary import CanaryRun
from harness.records.record import CandidateRun, RuleResult, RunRecord, Skip
from harness.rules import Rule
from harness.running.check import Progress
from harness.verdict import Verdict

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.UNKNOWN: "yellow"}


class TerminalProgress(Progress):
    """One line a rule; on a terminal the current rule's count is updated in place."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = 0.0

    def candidate(self, run: CandidateRun) -> None:
        """Print the candidate's name with what was measured, or why it does not run."""
        if not run.ran:
            click.echo(f"{run.name}: not run: {run.reason}", err=True)
            return
        click.echo(f"{run.name}:", err=True)
        for what, words in run.measured.items():
            click.echo(f"  {what}: {words}", err=True)

    def rule(self, rule: Rule, done: int, wanted: int) -> None:
        """Update the line of the rule that is running."""
        if self._live and time.monotonic() > self._last + 0.1:
            self._last = time.monotonic()
            click.echo(f"\r  {rule.id:<11} {done}/{wanted}\x1b[K", err=True, nl=False)

    def finished(self, result: RuleResult) -> None:
        """Print a rule's verdict."""
        start = "\r\x1b[K" if self._live else ""
        if result.skipped:
            click.echo(f"{start}  {result.rule:<11} -        not applicable: {result.skipped}", err=True)
            return
        word = click.style(f"{result.verdict.value:<8}", fg=_COLOURS[result.verdict])
        ratio = "" if result.worst_ratio is None else f", worst error {result.worst_ratio:.3g} of its bound"
        counts = f"{result.examples} problems, {result.compared:,} elements{ratio}, {result.seconds:.1f} s"
        click.echo(f"{start}  {result.rule:<11} {word} {counts}", err=True)
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


def print_summary(record: RunRecord, paths: dict[str, Path]) -> None:
    """Print the verdict, its reason, and where the files are."""
    click.secho(f"{record.verdict.value}: {record.reason}", fg=_COLOURS[record.verdict], bold=True)
    for what, path in paths.items():
        click.echo(f"{what}: {path}")
