"""`harness mutants --controls` and `--self-test`: whether the rules leave right candidates alone, and broken checks are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from harness.cli.output import finish
from harness.records.parts.mutants import FalseAlarmCount, MutantsRun, SelfTest
from harness.terminal import LiveLine, Remaining, duration
from harness.verdict import ExitCode, Verdict, exit_code


def run_checks(
    *, controls: bool, self_test: bool, examples: int, seed: int, jobs: int, max_seconds: float, folder: Path
) -> int:
    """Judge the controls, the broken checks, or both, and write record and report.

    Returns:
        0 no false alarm and every broken check detected; 1 otherwise; 2 nothing, or not everything, was judged in time.
    """
    from harness.records.new import new_record

    record = new_record("", seed)
    found = MutantsRun()
    record.mutants_run = found
    try:
        if controls:
            counted = _count(examples, seed, jobs, max_seconds)
            record.mutants_run = found = replace(found, controls=counted)
            record.seconds += counted.seconds
        if self_test:
            examined = _examine()
            record.mutants_run = found = replace(found, self_test=examined)
            record.seconds += examined.seconds
    except KeyboardInterrupt:
        record.interrupted, record.reason = True, "interrupted"
        finish(record, folder)
        return ExitCode.INTERRUPTED
    record.verdict, record.reason = _verdict(found)
    finish(record, folder)
    return exit_code(record.verdict)


def _count(examples: int, seed: int, jobs: int, max_seconds: float) -> FalseAlarmCount:
    from harness.mutants.false_alarms import count_false_alarms

    live, remaining = LiveLine(), Remaining()

    def progress(done: int, wanted: int) -> None:
        left = remaining.seconds(done, wanted)
        words = f", about {duration(left)} left" if left else ""
        live.show(f"controls: {done:,} of {wanted:,} examples{words}")

    found = count_false_alarms(examples, seed, jobs, max_seconds, progress)
    live.clear()
    for alarm in found.false_alarms[:10]:
        click.secho(f"false alarm: {alarm.rule} on {alarm.control}: {alarm.message}", fg="red")
        click.echo(f"  {alarm.reproduce}")
    click.echo(
        f"controls: {len(found.false_alarms)} false alarms in {found.examples:,} examples over "
        f"{len(found.controls)} right candidates, {found.compared:,} elements compared"
    )
    return found


def _examine() -> SelfTest:
    from harness.mutants.self_test import run_self_test

    live = LiveLine()
    found = run_self_test(lambda name: live.show(f"self-test: {name}", now=True))
    live.clear()
    for check in found.broken:
        if check.detected:
            click.echo(f"  {check.name:<30} {check.how}")
        else:
            click.secho(f"  {check.name:<30} NOT DETECTED: it looks like a check with power", fg="red")
    for rule in found.rules:
        if rule.detected:
            click.secho(f"rule {rule.name}: {rule.how}", fg="red")
    planted = sum(rule.planted for rule in found.rules)
    click.echo(
        f"self-test: {sum(c.detected for c in found.broken)} of {len(found.broken)} broken checks detected; "
        f"{sum(not r.detected for r in found.rules)} of {len(found.rules)} rules have the power that they claim "
        f"({planted:,} probes)"
    )
    return found


def _verdict(found: MutantsRun) -> tuple[Verdict, str]:
    controls, self_test = found.controls, found.self_test
    if controls and controls.false_alarms:
        first = controls.false_alarms[0]
        return (
            Verdict.FAIL,
            f"{len(controls.false_alarms)} false alarms; first: {first.rule} on {first.control}",
        )
    if self_test and not self_test.passed:
        missed = [c.name for c in self_test.broken if not c.detected]
        blind = [r.name for r in self_test.rules if r.detected]
        words = [
            f"broken checks not detected: {', '.join(missed)}" if missed else "",
            f"rules without the power that they claim: {', '.join(blind)}" if blind else "",
        ]
        return Verdict.FAIL, "; ".join(word for word in words if word)
    if controls and controls.examples < controls.wanted:
        return (
            Verdict.UNKNOWN,
            f"{controls.examples:,} of {controls.wanted:,} examples before the time was over",
        )
    parts = []
    if controls:
        parts.append(f"no false alarm in {controls.examples:,} examples")
    if self_test:
        parts.append(f"all {len(self_test.broken)} broken checks detected")
    return Verdict.PASS, ", ".join(parts)
