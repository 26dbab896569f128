"""The pytest plugin: options of the suites, the candidate's session, and the exit codes of the harness.

Loaded by entry point in every pytest run of an environment that has the harness installed, so it imports nothing but
pytest and the standard library until a suite asks for something.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.records.record import RunRecord
    from harness.running.suite_run import SuiteRun


class _State:
    """What one pytest process knows about the suites: its own run, the workers' records, and the red tests."""

    def __init__(self) -> None:
        self.run: SuiteRun | None = None
        self.worker_records: list[str] = []
        self.used = False
        self.failed = 0
        self.unknown = 0
        self.internal = 0
        self.summary = ""


_STATE = pytest.StashKey[_State]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suites."""
    group = parser.getgroup("fp4 moe harness")
    group.addoption(
        "--candidate",
        metavar="NAME",
        help="candidate that the suites judge: a built-in name or package.module:attribute (default: eager)",
    )
    group.addoption("--record", metavar="FOLDER", help="write record.json and report.html of the suites here")
    group.addoption(
        "--profile", default="quick", metavar="NAME", help="quick, standard or deep (default: quick)"
    )
    group.addoption("--harness-seed", type=int, default=0, metavar="N", help="seed of the drawn problems")
    group.addoption(
        "--rule-seconds",
        type=float,
        default=0,
        metavar="S",
        help="draw no further problem of a rule after this time",
    )
    group.addoption(
        "--known-failures", metavar="FILE", help="list of known failures (default: the one of the suites)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse an unknown candidate, profile or folder before anything is collected, with the harness's own exit code."""
    config.stash[_STATE] = _State()
    option = config.getoption
    asked = (
        option("--candidate")
        or option("--record")
        or option("--profile") != "quick"
        or option("--known-failures")
        or option("--rule-seconds")
        or option("--harness-seed")
    )
    config.stash[_STATE].used = bool(asked)
    if hasattr(config, "workerinput") or not asked:
        return
    from harness.verdict import ExitCode, UsageError

    try:
        _check_options(config)
    except UsageError as error:
        pytest.exit(f"harness: {error}", returncode=ExitCode.USAGE)


def _check_options(config: pytest.Config) -> None:
    from harness.candidates import CANDIDATES
    from harness.faults.named import load_named
    from harness.problems.profiles import find_profile
    from harness.running.known_failures import load_known_failures
    from harness.verdict import UsageError

    option = config.getoption
    find_profile(option("--profile"))
    for name in ("--rule-seconds", "--harness-seed"):
        if option(name) < 0:
            raise UsageError(f"{name} must not be negative, got {option(name)}")
    if option("--candidate") and option("--candidate") not in CANDIDATES:
        try:
            load_named(option("--candidate"))
        except UsageError:
            raise
        except Exception:  # noqa: BLE001, S110 - it exists; that it does not start is the suites' to report, as UNKNOWN
            pass
    if option("--known-failures"):
        load_known_failures(Path(option("--known-failures")))
    if option("--record"):
        from harness.ci.outputs import prepare_folder

        prepare_folder(Path(option("--record")), "--record")


@pytest.fixture(scope="session")
def check_rule(request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """Return a function that judges the session's candidate by one rule."""
    from harness.running.suite_run import SuiteRun

    run = request.config.stash[_STATE].run = SuiteRun(request.config)
    yield run.judge
    run.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Mark the suites' tests with their candidate: in JUnit's properties, and for xdist's controller."""
    if "check_rule" in getattr(item, "fixturenames", ()):
        item.user_properties.append(("candidate", item.config.getoption("--candidate") or "eager"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count red tests, and those among them that are UNKNOWN; under xdist this runs on the controller."""
    if _state is None:
        return
    _state.used |= any(name == "candidate" for name, _ in report.user_properties)
    if report.failed:
        _state.failed += 1
        # not longreprtext, which begins with the worker's name under xdist
        message = str(report.longrepr).lstrip()
        _state.unknown += message.startswith("UNKNOWN: ")
        _state.internal += message.startswith("INTERNAL ERROR: ")


_state: _State | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Listen for the records of xdist's workers, where there are any."""
    global _state  # noqa: PLW0603 - pytest_runtest_logreport gets no config
    _state = session.config.stash[_STATE]
    if session.config.pluginmanager.hasplugin("dsession"):
        session.config.pluginmanager.register(_Listener(_state))


class _Listener:
    """On xdist's controller: takes the record that each worker leaves when it ends."""

    def __init__(self, state: _State) -> None:
        self._state = state

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:  # noqa: ARG002 - the hook's signature
        text = getattr(node, "workeroutput", {}).get("harness_record")
        if text:
            self._state.worker_records.append(text)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the record, and exit as the verdict says: a run that judged nothing must not look like a pass."""
    config: Any = session.config
    state: _State = config.stash[_STATE]
    if hasattr(config, "workerinput"):
        if state.run is not None:
            config.workeroutput["harness_record"] = state.run.record.to_json()
        return
    from harness.verdict import ExitCode

    if exitstatus == pytest.ExitCode.INTERRUPTED and state.used:
        session.exitstatus = ExitCode.INTERRUPTED
    if state.run is None and not state.worker_records:
        return
    record = _concluded(
        state,
        interrupted=exitstatus == pytest.ExitCode.INTERRUPTED,
        limited=bool(config.getoption("--rule-seconds")),
    )
    if config.getoption("--record"):
        from harness.ci.outputs import write_outputs

        folder = Path(config.getoption("--record"))
        record.write(folder / "record.json")
        write_outputs(record, folder, own_junit=False)
    state.summary = f"{record.verdict.value}: {record.reason}"
    if exitstatus == pytest.ExitCode.OK:
        session.exitstatus = ExitCode[record.verdict.value]
    elif exitstatus == pytest.ExitCode.TESTS_FAILED and state.failed == state.unknown + state.internal:
        session.exitstatus = ExitCode.INTERNAL if state.internal else ExitCode.UNKNOWN


def _concluded(state: _State, *, interrupted: bool, limited: bool) -> RunRecord:
    """Return the merged record of this process or of all workers, with its verdict."""
    from harness.records.merge import merge_records
    from harness.records.record import parse_record
    from harness.rules import RULE_IDS
    from harness.running.check import conclude, trap_floor

    records = [parse_record(json.loads(text), "record of a worker") for text in state.worker_records]
    record = merge_records(records or [state.run.record])  # type: ignore[union-attr]
    record.interrupted = interrupted
    # A part of the rules (-k, one file, -x) or a cut run draws what it draws.
    seen = {rule.rule for rule in record.rules} | {skip.what.split(" on ")[0] for skip in record.skips}
    partial = limited or not seen.issuperset(RULE_IDS)
    conclude(record, {} if partial else trap_floor(record))
    return record


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the verdict of the suites below pytest's own lines."""
    summary = config.stash[_STATE].summary
    if not summary:
        return
    terminalreporter.section("fp4 moe harness")
    terminalreporter.line(summary)
    if config.getoption("--record"):
        terminalreporter.line(f"report: {Path(config.getoption('--record')) / 'report.html'}")
