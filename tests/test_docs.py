"""The documents and the code agree: rule ids, suites, commands, links, profile figures; nothing names one machine."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from pathlib import Path

import click
import pytest

from harness.cli import LazyGroup
from harness.problems.profiles import PROFILES
from harness.rules import RULE_IDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("harness/**/*.md")])
REFERENCE_ID = re.compile(r"\b[A-Z][A-Z0-9]*-\d+\b")
ROW = re.compile(r"^\| `([A-Z0-9-]+)` \| (.+) \| (.+) \| (\S+) \|$", re.MULTILINE)


def documented_rules():
    """Id to the file that its row names."""
    rows = ROW.findall((ROOT / "docs/rules.md").read_text())
    assert len({row[0] for row in rows}) == len(rows), "an id has two rows"
    return {row[0]: row[3] for row in rows}


def reference_ids():
    """Every id on a "Rule:" or "Rules:" line of a docstring in reference/."""
    found = set()
    for path in (ROOT / "reference").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                for lines in re.findall(r"Rules?: (.*?)(?:Source:|Derivation:|\n\n|\Z)", text, re.DOTALL):
                    found |= set(REFERENCE_ID.findall(lines))
    return found


def docstrings_of_tests(folder):
    """(path relative to the repository, docstring) of every test function below a folder."""
    for path in sorted((ROOT / folder).rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield str(path.relative_to(ROOT)), ast.get_docstring(node) or ""


def test_the_reference_names_ids_at_all():
    assert {"E2M1-1", "NVFP4-4", "QUANT-3", "GEMM-2", "MOE-2", "COMBINE-2"} <= reference_ids()


def test_every_rule_is_documented_and_every_documented_rule_exists():
    code = set(RULE_IDS) | reference_ids()
    documents = set(documented_rules())
    assert documents - code == set(), "docs/rules.md has rows for rules that do not exist"
    assert code - documents == set(), "docs/rules.md lacks rows"


def test_every_rule_about_candidates_has_one_suite_test():
    tests = [(path, text.partition(":")[0]) for path, text in docstrings_of_tests("suites")]
    counts = Counter(rule for _, rule in tests)
    assert counts == Counter(RULE_IDS)
    documented = documented_rules()
    assert {rule: path for path, rule in tests} == {rule: documented[rule] for rule in RULE_IDS}


def test_a_suite_test_judges_the_rule_that_it_names():
    for path in (ROOT / "suites").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                rule = (ast.get_docstring(node) or "").partition(":")[0]
                judged = [
                    c.args[0].value
                    for c in ast.walk(node)
                    if isinstance(c, ast.Call) and getattr(c.func, "id", "") == "check_rule"
                ]
                assert judged == [rule], f"{path.name}: {node.name}"


def test_every_rule_of_the_reference_has_a_test_in_the_file_that_its_row_names():
    tested = {}
    for path, text in docstrings_of_tests("tests"):
        for rule in REFERENCE_ID.findall(text.partition(":")[0]):
            tested.setdefault(rule, set()).add(path)
    missing = {
        rule: path
        for rule, path in documented_rules().items()
        if rule not in RULE_IDS and path not in tested.get(rule, set())
    }
    assert missing == {}


def fenced_lines(path):
    """Lines of the code blocks without a language, and of shell blocks: what a reader types."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
        if language in {"", "sh", "bash", "console"}:
            yield from block.replace("\\\n", " ").splitlines()


def commands_in(path):
    """Commands of a document as (document, words without leading assignments and comments)."""
    for line in fenced_lines(path):
        if typed := re.match(r"(?:[A-Z_]+=\S* )*((?:harness|make|pytest) .*)", line):
            yield path.name, shlex.split(typed[1], comments=True)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_documents_exist(path):
    for name, words in commands_in(path):
        check = {"harness": check_harness, "make": check_make, "pytest": check_pytest}[words[0]]
        check(name, words[1:])


def check_harness(document, words):
    """Parse a command of a document as the command line does, without running it."""
    command = LazyGroup("harness")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(click.Command("harness")), words[0])
        assert found, f"{document}: harness {words[0]}"
        command, words = found, words[1:]
    try:
        command.make_context("harness", list(words))
    except click.exceptions.NoArgsIsHelpError:
        pass
    except click.UsageError as error:
        pytest.fail(f"{document}: {' '.join(words)}: {error.format_message()}")


def check_make(document, words):
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        assert word in targets, f"{document}: make {word}"


def check_pytest(document, words):
    plugin = (ROOT / "fp4_moe_harness_plugin.py").read_text()
    own = {"-n", "-q", "-x", "-m", "--junitxml", "--pyargs"}
    for word in words:
        if word.startswith("-"):
            option = word.partition("=")[0]
            assert option in own or f'"{option}"' in plugin, f"{document}: pytest {option}"
        elif word in {"suites", "tests"} or word.startswith(("examples/", "tests/")):
            assert (ROOT / word).exists(), f"{document}: pytest {word}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_of_documents_fit_beside_each_other(path):
    """But for rows of tables, which cannot be broken."""
    lines = enumerate(path.read_text().splitlines(), start=1)
    assert [number for number, line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/bounds.md",
        "docs/rules.md",
        "docs/commands.md",
        "docs/runners.md",
        "docs/limits.md",
        "docs/self-test.md",
    ],
)
def test_files_that_documents_name_exist(name):
    text = (ROOT / name).read_text()
    named = re.findall(r"\b(?:reference|harness|suites|tests|reports|examples|docs)/[\w./-]*\w", text)
    for path in named:
        assert (ROOT / path).exists() or path.endswith("NAME.py"), f"{name} names {path}"


def test_the_profile_table_is_the_code():
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+) \((\d+)\) \|(.*)\|$", (ROOT / "docs/commands.md").read_text(), re.MULTILINE
    )
    table = {}
    for name, examples, least, rest in rows:
        experts, capacity, k, n, work = (cell.split()[0] for cell in rest.split("|")[:5])
        table[name] = tuple(map(int, (examples, least, experts, capacity, k, n, work)))
    assert table == {
        p.name: (p.examples, p.least, p.experts, p.capacity, p.k, p.n, p.work) for p in PROFILES.values()
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_no_machine(path):
    of_a_machine = re.compile(
        r"(?<![\w./])/(?:home|root|Users|mnt|work|tmp|opt)\b|\b(?:\d{1,3}\.){3}\d{1,3}\b"
    )
    private = [
        m[0] for m in of_a_machine.finditer(path.read_text()) if not m[0].startswith(("127.0.", "0.0.0"))
    ]
    assert private == []


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 195 <= text.count("\n") <= 205
