"""`harness identify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

from harness.cli import complete
from harness.verdict import ExitCode

if TYPE_CHECKING:
    from harness.records.finding import Finding
    from harness.running.outcome import Description


@click.command("identify")
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    required=True,
    metavar="NAME",
    shell_complete=complete.candidates,
    help="Built-in name or package.module:attribute; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print findings and fingerprint as JSON.")
def identify_command(candidates: tuple[str, ...], as_json: bool) -> int:
    """Say what a candidate computes: formulas, roundings, order along k, epilogue, as found through its own stages.

    Every `check` does this first. Exits with 1 where something is otherwise than the contract fixes it and not declared so
    (the rule DECLARED), 2 where a candidate cannot run here.
    """
    from harness.candidates.errors import CandidateStartError
    from harness.running.session import open_session

    codes, found = [], {}
    for name in candidates:
        try:
            session = open_session(name)
        except CandidateStartError as error:
            click.echo(f"{name} cannot run here: {error}", err=True)
            codes.append(ExitCode.UNKNOWN)
            continue
        try:
            found[name] = session.describe()
        finally:
            session.close()
        codes.append(_code(found[name]))
    if as_json:
        click.echo(json.dumps({name: _plain(described) for name, described in found.items()}, indent=2))
    else:
        click.echo("\n\n".join(_page(name, described) for name, described in found.items()))
    return ExitCode.FAIL if ExitCode.FAIL in codes else max(codes)


def _code(described: Description) -> ExitCode:
    return ExitCode.FAIL if any(_wrong(f, described) for f in described.findings) else ExitCode.PASS


def _wrong(finding: Finding, described: Description) -> bool:
    return finding.deviates and finding.named not in described.declared.deviations


def _plain(described: Description) -> dict[str, object]:
    return {"findings": [asdict(f) for f in described.findings], "fingerprint": described.fingerprint}


def _page(name: str, described: Description) -> str:
    """Return what was found, stage by stage; what it rests on stands below the points that it settles."""
    lines = [f"{name}, fingerprint {described.fingerprint}" if described.fingerprint else name]
    for (stage, evidence), findings in groupby(described.findings, lambda f: (f.stage, f.evidence)):
        if stage not in lines:
            lines += ["", stage]
        lines += [line for finding in findings for line in _lines(finding, described)]
        if evidence:
            lines.append(f"    by {evidence}")
    if not described.findings:
        lines += ["", "nothing could be asked"]
    notes = [f"  {what}: {words}" for what, words in described.measured.items() if words.startswith("not ")]
    return "\n".join([*lines, *(["", "not found"] if notes else []), *notes])


def _lines(finding: Finding, described: Description) -> list[str]:
    """Return an answer, then what it is not told apart from, and where another holds."""
    found = finding.found or "not known"
    if finding.deviates:
        how = "not declared" if _wrong(finding, described) else "declared"
        found = click.style(f"{found} ({how}; the contract has {finding.fixed})", fg="red")
    lines = [f"  {finding.point:<28} {found}"]
    if finding.alike:
        lines.append(f"  {'':<28} not told apart: {', '.join(finding.alike)}")
    return lines + [f"  {'':<28} {mode}" for mode in finding.modes]
