"""The plugin in other people's sessions, and the names that its options have there and beside the suites."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fp4_moe_harness_plugin as plugin
from harness import processes

pytest_plugins = "pytester"

OWN_FOLDERS = {name: f"def double(x):\n    return 2 * x  # {name}\n" for name in plugin.PACKAGES}
OPTIONS = """
def pytest_addoption(parser):
    group = parser.getgroup("someone else's")
    for name in {names}:
        group.addoption(name, action="store_true", help="print where the time goes")
"""
TESTS = """
import harness, reference, reports, suites

def test_double(request):
    assert [each.double(2) for each in (harness, reference, reports, suites)] == [4, 4, 4, 4]
    assert request.config.getoption("--profile") and not request.config.getoption("--record")
"""


@pytest.fixture(autouse=True)
def two_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and xdist, whatever else is installed: it could have an option of the same name, or another order of tests."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "fp4_moe_harness_plugin,xdist.plugin")
    monkeypatch.setenv("PYTEST_ADDOPTS", "")


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a project whose folders are named as ours and whose options as our short ones."""
    for name, text in OWN_FOLDERS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "conftest.py").write_text(OPTIONS.format(names=["--record", "--candidate"]))
    (tmp_path / "like_profiling.py").write_text(OPTIONS.format(names=["--profile"]))
    (tmp_path / "test_double.py").write_text(TESTS)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )  # fmt: skip

    return run


def test_a_project_with_folders_and_options_of_our_names_passes_and_the_folders_are_named(
    python, tmp_path: Path
) -> None:
    words = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "like_profiling", "--profile")
    done = python(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    for name in plugin.PACKAGES:
        assert f"`{name}` is shadowed by {tmp_path / name / '__init__.py'}" in done.stdout
    assert python(*words, "-n", "1").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "pytest", "test_double.py", "--moe-candidate", "eager"),
        ("-c", "import fp4_moe_harness_plugin; fp4_moe_harness_plugin.main()", "--help"),
    ],
)
def test_what_needs_our_packages_there_is_bad_usage_by_the_name_of_the_path(
    python, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = python(*words)
    said = done.stdout + done.stderr
    assert done.returncode == 64, said
    assert f"harness: `harness` is shadowed by {tmp_path / 'harness' / '__init__.py'}" in said
    assert "Traceback" not in said


def test_a_process_of_ours_starts_there(python, tmp_path: Path) -> None:
    """And a candidate is found there, which is looked up in the current folder."""
    (tmp_path / "kernels.py").write_text(
        "from harness.candidates.eager import Eager as Moe\nprint('found')\n"
    )
    (tmp_path / "look.py").write_text(
        "from harness.candidates import load_candidate\nload_candidate('kernels:Moe')\nimport reports.html\n"
    )
    command = processes.own_module("look")
    command[5] = command[5].replace("[", f'["{tmp_path}", ', 1)
    done = python(*command[1:])
    assert (done.returncode, done.stdout) == (0, "found\n"), done.stderr


def test_doctor_names_such_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cli.doctor import _found_first

    monkeypatch.chdir(tmp_path)
    assert _found_first() == {}
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").write_text("")
    assert _found_first() == {"reports": str(tmp_path / "reports" / "__init__.py")}


def test_two_places_name_the_same_packages() -> None:
    assert plugin.PACKAGES == processes.PACKAGES


SHORT = ("--candidate", "--record", "--profile", "--harness-seed", "--rule-seconds", "--known-failures")


@pytest.fixture
def suites(pytester: pytest.Pytester) -> pytest.Pytester:
    """Suites beside a plugin, as in a checkout, and a folder of someone's own tests."""
    pytester.makepyfile(fp4_moe_harness_plugin="", **{"own/test_own": "def test_own(): pass"})
    pytester.makepyfile(
        **{
            "suites/test_seed": """
            def test_seed(request):
                assert request.config.getoption("--moe-seed") == 7
                assert request.config.getoption("--moe-candidate") == "eager"
            """
        }
    )
    return pytester


@pytest.mark.parametrize(
    ("words", "addopts", "ini"),
    [
        (("--harness-seed", "7", "--candidate=eager"), "", ""),
        (("--harness-seed=7",), "--candidate eager", ""),
        ((), "", "--harness-seed 7 --candidate eager"),
        (("--moe-seed", "7", "--moe-candidate", "eager"), "", ""),
    ],
)
def test_beside_the_suites_our_options_have_short_names(
    suites, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], addopts: str, ini: str
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", addopts)
    suites.makeini(f"[pytest]\naddopts = -p no:cacheprovider {ini}")
    result = suites.runpytest_inprocess("own", "suites/test_seed.py::test_seed", *words)
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("name", SHORT)
def test_elsewhere_the_short_names_are_nobodys(suites, name: str) -> None:
    result = suites.runpytest_inprocess("own", f"{name}=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*unrecognized arguments: {name}=1"])


def test_a_short_name_that_someone_else_has_stays_theirs(suites) -> None:
    suites.makeconftest(OPTIONS.format(names=["--candidate"]))
    words = ("--candidate", "--harness-seed", "7", "--moe-candidate", "eager")
    suites.runpytest_inprocess("suites", "-p", "no:cacheprovider", *words).assert_outcomes(passed=1)


def test_every_option_has_a_short_name() -> None:
    assert tuple(plugin._SHORT) == SHORT
