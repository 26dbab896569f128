"""`harness diagnose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from harness.cli import complete
from harness.cli.failures import failures_of
from harness.verdict import ExitCode, UsageError


@click.command("diagnose")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--failure", "number", default=0, show_default=True, help="Which failure of a record; 0 for all."
)
@click.option(
    "--candidate",
    metavar="NAME",
    shell_complete=complete.candidates,
    help="Built-in name or package.module:attribute.",
)
@click.option("--rule", metavar="ID", shell_complete=complete.rules, help="The rule that fails.")
@click.option("--problem", metavar="STRING", help="The problem it fails on, as a failure printed it.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole diagnosis as JSON.")
def diagnose_command(
    file: Path | None,
    number: int,
    candidate: str | None,
    rule: str | None,
    problem: str | None,
    as_json: bool,
) -> int:
    """Name the known fault that explains a failure.

    FILE is a record.json, whose failures are repeated, or a file of tensors that was written with torch.save
    (harness/diagnosis/README.md has its format). Without FILE: --candidate, --rule and --problem.

    Exits with 1 where something is wrong, explained or not, 0 where nothing is, 2 where the candidate cannot run here.
    """
    given = [candidate, rule, problem]
    if (file is None) == (not any(given)):
        raise UsageError("give FILE, or --candidate, --rule and --problem")
    if file is None:
        if not all(given):
            raise UsageError("--candidate, --rule and --problem belong together; give all three")
        todo = [(str(candidate), str(rule), str(problem))]
        return _repeat(todo, as_json=as_json)
    if file.suffix == ".json" or file.is_dir():
        return _repeat(_from_record(file, number), as_json=as_json)
    from harness.diagnosis.tensor_file import diagnose_file

    return _show([(str(file), diagnose_file(file))], as_json=as_json)


def _from_record(file: Path, number: int) -> list[tuple[str, str, str]]:
    failures = failures_of(file)
    if not failures:
        raise UsageError(f"{file} has no failure to diagnose")
    if not 0 <= number <= len(failures):
        raise UsageError(f"--failure must be 1 to {len(failures)}, or 0 for all, got {number}")
    chosen = failures[number - 1 : number] if number else failures
    return [(f.candidate, f.rule, f.problem) for f in chosen]


def _repeat(todo: list[tuple[str, str, str]], *, as_json: bool) -> int:
    """Repeat failing problems, each candidate in a process of its own, and diagnose them."""
    from harness.candidates.errors import CandidateStartError
    from harness.diagnosis.telling.words import diagnose_command as command_of
    from harness.problems.problem import parse_problem
    from harness.rules import find_rules
    from harness.running.session import Child

    for _, rule, problem in todo:
        find_rules([rule])
        parse_problem(problem)
    sessions: dict[str, Child] = {}
    found = []
    try:
        for candidate, rule, problem in todo:
            if candidate not in sessions:
                try:
                    sessions[candidate] = Child(candidate)
                except CandidateStartError as error:
                    click.echo(f"{candidate} cannot run here: {error}", err=True)
                    return ExitCode.UNKNOWN
            command = command_of(candidate, rule, problem)
            diagnosis = sessions[candidate].diagnose(rule.upper(), problem, command, 600.0)
            found.append((f"{rule} on {candidate}, problem {problem}", diagnosis))
    finally:
        for session in sessions.values():
            session.close()
    return _show(found, as_json=as_json)


def _show(found: list[tuple[str, list[dict[str, Any]]]], *, as_json: bool) -> int:
    from harness.diagnosis.telling.words import message_lines

    if as_json:
        click.echo(json.dumps([{"what": what, "diagnosis": d} for what, d in found], indent=2))
    else:
        for what, diagnosis in found:
            click.echo(what)
            click.echo("\n".join(message_lines(diagnosis, 20)) or "  nothing is wrong here")
    wrong = any(not finding.get("passed") for _, diagnosis in found for finding in diagnosis)
    return ExitCode.FAIL if wrong else ExitCode.PASS
