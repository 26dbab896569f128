"""The pytest plugin and the way into the command `harness`: what is loaded wherever this package is installed.

It stands beside the packages, in none of them, because another project's folder `harness` may be what that name means
to Python. A session that has nothing to do with the suites gets its options and one line about such a folder; the
harness is imported only where the suites are used. pytest is imported by pytest alone: the command needs none of it.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker

if TYPE_CHECKING:
    import pytest

    from harness.running.suite_session import SuiteSession

PACKAGES = ("harness", "reference", "reports", "suites")
USAGE = 64  # harness.verdict.ExitCode.USAGE, where the harness cannot be imported

_HERE = Path(__file__).resolve().parent
_SESSION = "fp4_moe_harness_session"
# Each option, the short name that it has beside the suites, and what pytest is told of it.
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "--moe-candidate": (
        "--candidate",
        {"metavar": "NAME", "help": "what the suites judge: a built-in name or package.module:attribute (eager)"},
    ),
    "--moe-record": (
        "--record",
        {"metavar": "FOLDER", "help": "write record.json and report.html of the suites here"},
    ),
    "--moe-profile": (
        "--profile",
        {"metavar": "NAME", "default": "quick", "help": "quick, standard or deep (quick)"},
    ),
    "--moe-seed": (
        "--harness-seed",
        {"metavar": "N", "type": int, "default": 0, "help": "seed of the drawn problems"},
    ),
    "--moe-rule-seconds": (
        "--rule-seconds",
        {"metavar": "S", "type": float, "default": 0, "help": "draw no further problem of a rule after this time"},
    ),
    "--moe-known-failures": (
        "--known-failures",
        {"metavar": "FILE", "help": "list of known failures (the one of the suites)"},
    ),
}  # fmt: skip
_SHORT = {short: name for name, (short, _) in _OPTIONS.items()}

_ADVICE = (
    f"Python finds that before the one in {_HERE}; rename it, or keep its folder out of sys.path "
    "(PYTHONPATH; `python -m pytest` adds the current folder, `pytest` does not)"
)

hookimpl = HookimplMarker("pytest")


def main() -> None:
    """Run the command `harness`, or say what stands in its place; exits with the codes of harness.verdict."""
    found = {
        name: place for name, place in shadowed().items() if name != "suites"
    }  # no command imports those
    if found:
        sys.stderr.write(f"harness: {_sentence(found)}: {_ADVICE}\n")
        raise SystemExit(USAGE)
    from harness.cli import main as command_line

    command_line()


def shadowed() -> dict[str, str]:
    """Return which packages of ours `import` does not find, and the path that it finds in their place."""
    found = {}
    for name in PACKAGES:
        try:
            spec = importlib.util.find_spec(name)
        except Exception:  # noqa: BLE001, S112 - someone's own finder, or a module without a spec: not ours to judge
            continue
        # A folder without __init__.py gives way to ours, but for an installation that is found by a hook at the end.
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
        place = next(filter(None, places), None)
        if place and Path(place).resolve() != _HERE / name / "__init__.py":
            found[name] = place
    return found


def _sentence(found: dict[str, str]) -> str:
    return ", ".join(f"`{name}` is shadowed by {place}" for name, place in found.items())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suites."""
    group = parser.getgroup("fp4 moe harness")
    for name, (_, told) in _OPTIONS.items():
        group.addoption(name, **told)


@hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Iterator[None]:
    """Take the short names of our options where our suites are named and nobody else, conftests included, has them."""
    result = yield
    if any(word.partition("=")[0] in _SHORT for word in args):
        known, unknown = parser.parse_known_and_unknown_args(args, copy.copy(early_config.option))
        named = [
            *known.file_or_dir,
            *unknown,
        ]  # up to pytest 8 some of the words without a dash are in `unknown`
        if any(_is_ours(word, early_config, pyargs=known.pyargs) for word in named):
            free = [word for word in unknown if word.partition("=")[0] in _SHORT]
            for number, word in enumerate(args):
                if word in free:
                    name, equals, value = word.partition("=")
                    args[number] = _SHORT[name] + equals + value
    return result


def _is_ours(word: str, config: pytest.Config, *, pyargs: bool) -> bool:
    """Return whether a word of the command line names tests in our suites, in a checkout or where they are installed."""
    name = word.partition("::")[0].partition("[")[0]
    if pyargs and name.partition(".")[0] == "suites":
        return "suites" not in shadowed()
    path = (config.invocation_params.dir / name).resolve()
    plugin = Path(__file__).name
    return any(f.name == "suites" and (f.parent / plugin).is_file() for f in (path, *path.parents))


def pytest_configure(config: pytest.Config) -> None:
    """Offer the suites their fixture; refuse unknown candidates, profiles and folders before anything is collected."""
    import pytest

    class Fixtures:
        @pytest.fixture
        def check_rule(self, request: pytest.FixtureRequest) -> Callable[[str], None]:
            """Return a function that judges the session's candidate by one rule."""
            return _session(request.config).check_rule(request.node)

    config.pluginmanager.register(Fixtures(), "fp4_moe_harness_fixtures")
    asked = any(config.getoption(name) != told.get("default") for name, (_, told) in _OPTIONS.items())
    if asked or any(_is_ours(word, config, pyargs=config.option.pyargs) for word in config.args):
        _session(config).check_options()


def _session(config: pytest.Config) -> SuiteSession:
    """Return what follows the suites in this session; from the first call on it takes part in the session."""
    found: SuiteSession | None = config.pluginmanager.get_plugin(_SESSION)
    if found is None:
        if places := shadowed():
            import pytest

            pytest.exit(f"harness: {_sentence(places)}: {_ADVICE}", returncode=USAGE)
        from harness.running.suite_session import SuiteSession

        found = SuiteSession(config)
        config.pluginmanager.register(found, _SESSION)
    return found


@hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:  # noqa: ARG001 - the hook's signature
    """Take the record that a worker of xdist leaves when it ends."""
    found = getattr(node, "workeroutput", {}).get("fp4_moe_harness")
    if found:
        _session(node.config).add_worker(found)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name what stands in the place of our packages: a line, no warning, which `-W error` would make a failure."""
    if found := shadowed():
        terminalreporter.line(f"fp4-moe-harness: {_sentence(found)}; this session cannot run our suites")
