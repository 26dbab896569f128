"""The command line. Each command lives in its own module, imported when it is called: `--help` loads no torch."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

import click
from click.shell_completion import CompletionItem

from harness.cli.parsing import NearestGroup, with_our_numbers
from harness.ending import by_sigterm, sigterm_interrupts
from harness.extras import MissingExtraError, accept_no_numpy
from harness.records.command_line import called_with
from harness.records.whole_files import FULL
from harness.streams import guard_streams, leave
from harness.terminal import colour, one_line
from harness.verdict import ExitCode, UsageError

COMMANDS = {
    "check": "run the rules on candidates and write a report",
    "identify": "say what a candidate computes, as found through its own stages",
    "deepep": "the rules about dispatch and combine over ranks that are processes",
    "gsm8k": "the end-to-end gate on a served model",
    "canary": "a small MoE model that solves word problems through a candidate",
    "mutants": "plant every known fault and see which rule kills it",
    "reproduce": "repeat a failure of a record, or write it as a plain script",
    "diagnose": "name the known fault that explains a failure",
    "replay": "judge what `python -m harness.capture` recorded of a running engine, stage by stage",
    "compile": "cross-compile the CuTe DSL kernels for Blackwell, without one",
    "races": "run the interpreted kernel under many schedules, intact and with planted mistakes",
    "bench": "say how long references and judged problems take on this machine",
    "list": "list candidates, rules, profiles, traps, shapes, faults and the bugs behind them",
    "doctor": "say what can run on this machine, and why the rest cannot",
    "report": "draw the report of a record again, compare two records, or draw the history of many",
}


class LazyGroup(NearestGroup):
    """A group whose commands are imported when they are needed, their help lines being known here."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return [*COMMANDS]  # `list` is a module here once that command was imported

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"harness.cli.{name}")
        command: click.Command = getattr(module, f"{name}_command")
        return with_our_numbers(command)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that complete a word, without importing any command."""
        names = [
            CompletionItem(name, help=words)
            for name, words in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fp4-moe-harness")
def harness() -> None:
    """Correctness and accuracy validation for FP4 mixture-of-experts kernels.

    Exit codes: 0 PASS, 1 FAIL, 2 UNKNOWN, 64 bad usage, 70 internal error, 130 interrupted, 143 ended by SIGTERM.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with one of the codes of harness.verdict.ExitCode."""
    guard_streams()
    leave(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    accept_no_numpy()
    with sigterm_interrupts(), called_with(arguments):
        code = _run(arguments)
        return ExitCode.TERMINATED if code == ExitCode.INTERRUPTED and by_sigterm() else code


def _run(arguments: list[str] | None) -> int:  # noqa: PLR0911 - one for each way to end
    """Run a command. Frameworks have other ideas of exit codes (click exits 2 on bad usage, Python 1 on an error)."""
    try:
        result: Any = harness.main(args=arguments, prog_name="harness", standalone_mode=False, color=colour())
    except (click.ClickException, UsageError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"harness: {one_line(message)}", err=True)
        return ExitCode.USAGE
    except click.exceptions.Exit as error:
        return error.exit_code
    except MissingExtraError as error:
        click.echo(f"UNKNOWN: {error}", err=True)
        return ExitCode.UNKNOWN
    except (KeyboardInterrupt, click.Abort):
        click.echo("harness: interrupted", err=True)
        return ExitCode.INTERRUPTED
    except OSError as error:
        if error.errno not in FULL:
            return _internal()
        where = f" ({error.filename})" if error.filename else ""
        click.echo(f"UNKNOWN: the disk is full: {error.strerror}{where}", err=True)
        return ExitCode.UNKNOWN
    except Exception:  # noqa: BLE001 - the last line of defence: an error of ours must not look like a FAIL
        return _internal()
    return int(result) if isinstance(result, int) else ExitCode.PASS


def _internal() -> ExitCode:
    traceback.print_exc()
    click.echo("harness: internal error: this is a defect of the harness, not of the candidate", err=True)
    return ExitCode.INTERNAL
