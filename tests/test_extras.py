"""Without an extra, whatever needs it says which one is missing and how to get it; the rest does not notice."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from harness.cli import run
from harness.extras import DISTRIBUTION, EXTRAS, MissingExtraError, install_hint, missing, require
from harness.records.parts.canary import CanaryPart
from harness.records.record import RunRecord, load_record
from tests import layer_checks as checks
from tests.test_layers import LIGHT, ROOT, harness, users

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SMALL = "1x4x32x32:2:normal:1"
CANARY = "the canary needs lm-eval, aiohttp, tenacity, safetensors, tokenizers, which are not installed"
HOW = "run: pip install 'fp4-moe-harness[{}]'"

# What has no use without its package, so that it may import it when it is imported itself; nothing else imports these
# before it knows that the extra is there.
DOORS = {"harness.gsm8k.client", "harness.gsm8k.lm", "harness.gsm8k.retrying", "harness.canary.server"}

Without = Callable[[str], None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Make the modules of an extra impossible to find and to import."""

    def remove(extra: str) -> None:
        for module in EXTRAS[extra].values():
            for below in [name for name in sys.modules if name.startswith(f"{module}.")]:  # found without it
                monkeypatch.delitem(sys.modules, below)
            monkeypatch.setitem(sys.modules, module, None)

    return remove


def packages(extra: str) -> set[str]:
    """Return the distributions that an extra brings, those of the extras that it names included."""
    found = set()
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:
            found |= set().union(*(packages(named) for named in requirement.extras))
        else:
            found.add(requirement.name)
    return found


def test_the_extras_are_those_of_the_project() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert {extra: set(modules) for extra, modules in EXTRAS.items()} == {
        extra: packages(extra) for extra in EXTRAS
    }
    assert packages("all") == packages("gsm8k") | packages("canary") | packages("cutedsl")
    assert set(PROJECT["optional-dependencies"]) - set(EXTRAS) == {"all", "browser", "dev"}


def test_the_tests_have_every_package_that_no_gpu_needs() -> None:
    assert packages("gsm8k") | packages("canary") | {"numpy", "pytest-xdist", "pyyaml"} <= packages("dev")


def test_what_is_installed_is_not_missing() -> None:
    assert missing("this test", "canary") == ""
    require("this test", "canary")


def test_one_missing_package_is_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    sentence = f"this test needs tokenizers, which is not installed; run: {install_hint('canary')}"
    assert missing("this test", "canary") == sentence
    with pytest.raises(MissingExtraError, match=re.escape(sentence)):
        require("this test", "canary")


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("gsm8k --base-url http://127.0.0.1:9/v1", "gsm8k"),
        ("canary run", "canary"),
        ("canary serve", "canary"),
        ("canary table", "canary"),
        ("canary export checkpoint", "canary"),
    ],
)
def test_a_command_without_its_extra_is_unknown_and_writes_nothing(
    command: str, extra: str, without: Without, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    without(extra)
    assert run(command.split()) == 2
    out, err = capsys.readouterr()
    words = command.partition(" --")[0].removesuffix(" checkpoint")
    assert err.startswith(f"UNKNOWN: harness {words} needs lm-eval, aiohttp, tenacity")
    assert err.endswith(f"not installed; {HOW.format(extra)}\n")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["gsm8k", "canary run", "canary serve"])
def test_its_help_needs_no_extra(command: str, without: Without, capsys: pytest.CaptureFixture[str]) -> None:
    without("canary")
    assert run([*command.split(), "--help"]) == 0
    assert "Usage: harness" in capsys.readouterr().out


def test_doctor_says_what_lacks_its_extra(without: Without, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    assert "harness canary: runs here\n" in capsys.readouterr().out
    without("canary")
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("harness canary: does not run here"))
    assert line.endswith(HOW.format("canary"))


def test_ray_that_is_not_installed_is_one_line_of_bad_usage(
    without: Without, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    without("cluster")
    assert run(["check", "--candidate", "eager", "--ray", "auto"]) == 64
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"harness: --ray needs ray, which is not installed; {HOW.format('cluster')}\n")
    assert list(tmp_path.iterdir()) == []


def checked(folder: Path, *arguments: str) -> tuple[int, RunRecord]:
    code = run(["check", "--candidate", "eager", "--rule", "QUANT", "--problem", SMALL, "--no-isolate",
                "--out", str(folder), *arguments])  # fmt: skip
    return code, load_record(folder)


@pytest.mark.parametrize("asked", [["--canary"], ["--canary-questions", "8"]], ids=" ".join)
def test_a_canary_that_was_asked_for_is_unknown_and_the_rules_are_judged(
    asked: list[str], without: Without, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without("canary")
    code, record = checked(tmp_path, *asked)
    assert (code, record.verdict) == (2, "UNKNOWN")
    assert [rule.verdict for rule in record.rules] == ["PASS"]
    assert isinstance(record.canary_part, CanaryPart)
    (part,) = record.canary_part.runs
    assert (part.candidate, part.verdict) == ("eager", "UNKNOWN")
    assert f"{CANARY}; {HOW.format('canary')}" == part.reason
    assert f"canary on eager: UNKNOWN (infra) {CANARY}" in capsys.readouterr().err
    assert CANARY in record.reason


def test_a_canary_that_nobody_asked_for_is_listed_and_has_no_part_in_the_verdict(
    without: Without, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain check, but for the rules: they are drawn from anew in tests of their own."""
    without("canary")
    monkeypatch.setattr("harness.cli.check._questions", lambda *_, **__: 64)
    code, record = checked(tmp_path)
    assert (code, record.verdict) == (0, "PASS")
    assert record.canary_part is None
    (skip,) = record.skips
    assert (skip.what, skip.reason) == ("canary", f"{CANARY}; {HOW.format('canary')}")
    assert f"canary: not run: {CANARY}" in capsys.readouterr().err
    assert "the canary needs lm-eval" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", sorted(DOORS))
def test_a_module_that_is_nothing_without_its_package_says_what_it_needs(
    module: str, without: Without, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("canary")
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(
        MissingExtraError, match=r"lm-eval.* not installed; run: pip install 'fp4-moe-harness"
    ):
        importlib.import_module(module)


def test_a_model_and_a_task_say_what_they_need(without: Without) -> None:
    from harness.canary import load_canary
    from harness.gsm8k.task import load_task

    without("canary")
    with pytest.raises(MissingExtraError, match=f"{CANARY}; run"):
        load_canary()
    with pytest.raises(MissingExtraError, match=r"needs lm-eval, .*\[gsm8k\]"):
        load_task("gsm8k")


def test_nothing_else_imports_a_package_of_an_extra_at_once() -> None:
    modules = {module for extra in ("gsm8k", "canary") for module in EXTRAS[extra].values()}
    assert set().union(*(users(module, at_once=True) for module in modules)) == DOORS
    doors = {source.module for source in harness().values() if source.layer in LIGHT}
    assert checks.loaded_with(harness(), doors) & (DOORS | users("numpy", at_once=True)) == set()
