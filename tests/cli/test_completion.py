"""What a shell completes, asked as its completion script asks: through a process, with exit code 0 and without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from harness.candidates import CANDIDATES
from harness.cli import COMMANDS
from harness.faults.fault import all_faults
from harness.problems.profiles import PROFILES
from harness.rules import RULE_IDS

ASKED = """
import sys
from harness.cli import main
try:
    main()
finally:
    heavy = sorted({"torch", "hypothesis", "jinja2"} & set(sys.modules))
    print("loaded", *heavy, *sorted(m for m in sys.modules if m.startswith("harness.cli.")), file=sys.stderr)
"""
Complete = Callable[..., list[str]]


@pytest.fixture(scope="module")
def complete(environment: dict[str, str]) -> Complete:
    """Return what bash is offered for the last word of a line, and check that nothing heavy was loaded for it."""

    def ask(*words: str, loads: str = "") -> list[str]:
        line = {"COMP_WORDS": " ".join(("harness", *words)), "COMP_CWORD": str(len(words))}
        done = subprocess.run(
            [sys.executable, "-c", ASKED],
            env={**environment, **line, "_HARNESS_COMPLETE": "bash_complete"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        loaded = done.stderr.split()[1:]
        assert not {"torch", "hypothesis", "jinja2"} & set(loaded)
        assert {name for name in loaded if name.rpartition(".")[2] in COMMANDS} == (
            {f"harness.cli.{loads}"} if loads else set()
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    return ask


def test_commands_are_completed_without_importing_one(complete: Complete) -> None:
    assert complete("") == list(COMMANDS)
    assert complete("re") == [name for name in COMMANDS if name.startswith("re")]


def test_options_and_their_values_are_completed(complete: Complete) -> None:
    options = ["--profile", "--problem", "--problem-seconds"]
    assert complete("check", "--pro", loads="check") == options
    assert complete("check", "--candidate", "", loads="check") == list(CANDIDATES)
    assert complete("check", "--rule", "pad", loads="check") == [r for r in RULE_IDS if r.startswith("PAD-")]
    assert complete("mutants", "--profile", "", loads="mutants") == list(PROFILES)
    assert complete("check", "--candidate", "physical+alpha_of", loads="check") == [
        f"physical+{name}" for name in sorted(all_faults()) if name.startswith("alpha_of")
    ]


def test_every_fault_can_be_completed() -> None:
    from harness.cli import complete

    assert [item.value for item in complete.faults(None, None, "")] == sorted(all_faults())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed_and_names_the_variable(
    shell: str, environment: dict[str, str], command: list[str]
) -> None:
    done = subprocess.run(
        command,
        env={**environment, "_HARNESS_COMPLETE": f"{shell}_source"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"_HARNESS_COMPLETE={shell}_complete" in done.stdout


def test_bash_itself_completes_a_rule(environment: dict[str, str], command: list[str]) -> None:
    script = f"""
eval "$(_HARNESS_COMPLETE=bash_source {command[0]})"
COMP_WORDS=({command[0]} check --rule SHAP) COMP_CWORD=3
_harness_completion {command[0]}
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["SHAPES"], done.stderr
