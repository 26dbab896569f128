"""What follows the suites through one pytest process: options, workers' records, verdict, exit code, last lines.

The plugin (fp4_moe_harness_plugin.py) registers it as soon as a session uses the suites.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.ci.folder import held_folder
from harness.ci.outputs import write_record
from harness.ending import by_sigterm, sigterm_interrupts
from harness.problems.profiles import find_profile
from harness.records.merge import merge_records
from harness.records.record import RunRecord, parse_record
from harness.rules import RULE_IDS
from harness.running.conclusion import conclude, trap_floor
from harness.running.known_failures import load_known_failures
from harness.running.suite_run import INTERNAL_MARK, UNKNOWN_MARK, SuiteRun
from harness.verdict import ExitCode, UsageError


class SuiteSession:
    """A pytest session that uses the suites: in one process, in a worker of xdist, or in the controller of workers."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._option = config.getoption
        self._worker = hasattr(config, "workerinput")
        self._run: SuiteRun | None = None
        self._records: list[RunRecord] = []  # of workers
        self._unknown = self._internal = 0  # failed tests that are no FAIL
        self._summary = ""
        self._held = contextlib.ExitStack()

    def check_options(self) -> None:
        """Refuse what cannot be judged before anything is collected, with the harness's own exit code."""
        if self._worker:
            return
        self._held.enter_context(sigterm_interrupts())
        try:
            self._check_options()
        except UsageError as error:
            pytest.exit(f"harness: {error}", returncode=ExitCode.USAGE)

    def _check_options(self) -> None:
        find_profile(self._option("--moe-profile"))
        for name in ("--moe-rule-seconds", "--moe-seed"):
            if self._option(name) < 0:
                raise UsageError(f"{name} must not be negative, got {self._option(name)}")
        _check_candidate(self._option("--moe-candidate"))
        if known := self._option("--moe-known-failures"):
            load_known_failures(Path(known))
        if record := self._option("--moe-record"):
            way_out = "remove it"
            self._held.enter_context(held_folder(Path(record), ["pytest"], way_out, "--moe-record"))

    def check_rule(self, test: pytest.Item) -> Callable[[str], None]:
        """Return a function that judges the candidate by one rule, for one test."""
        # In JUnit's properties, too.
        test.user_properties.append(("candidate", self._option("--moe-candidate") or "eager"))
        self._run = self._run or SuiteRun(self._config)
        return self._run.judge

    def add_worker(self, found: dict[str, Any]) -> None:
        """Take what a worker found, as `pytest_sessionfinish` left it there."""
        self._records.append(parse_record(json.loads(found["record"]), "record of a worker"))
        self._unknown += found["unknown"]
        self._internal += found["internal"]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count failed tests that are no FAIL; a controller of workers gets its numbers from them."""
        if report.failed and self._run is not None:
            message = str(report.longrepr)
            self._unknown += message.startswith(UNKNOWN_MARK)
            self._internal += message.startswith(INTERNAL_MARK)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the record, and exit as the verdict says: a run that judged nothing must not look like a pass."""
        interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
        if self._run is not None:
            self._run.close()
            if self._worker:
                self._config.workeroutput["fp4_moe_harness"] = {
                    "record": self._run.record.to_json(),
                    "unknown": self._unknown,
                    "internal": self._internal,
                }
        if self._worker:
            return
        if interrupted:
            session.exitstatus = ExitCode.TERMINATED if by_sigterm() else ExitCode.INTERRUPTED
        records = self._records or ([self._run.record] if self._run else [])
        if not records:
            return
        record = _concluded(
            records, interrupted=interrupted, limited=bool(self._option("--moe-rule-seconds"))
        )
        if self._option("--moe-record"):
            write_record(record, Path(self._option("--moe-record")), own_junit=False)
        self._summary = f"{record.verdict.value}: {record.reason}"
        no_fail = session.testsfailed == self._unknown + self._internal
        if exitstatus == pytest.ExitCode.OK:
            session.exitstatus = ExitCode[record.verdict.value]
        elif exitstatus == pytest.ExitCode.TESTS_FAILED and no_fail:
            session.exitstatus = ExitCode.INTERNAL if self._internal else ExitCode.UNKNOWN

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the verdict of the suites below pytest's own lines."""
        self._held.close()
        if self._summary:
            terminalreporter.section("fp4 moe harness")
            terminalreporter.line(self._summary)
            if self._option("--moe-record"):
                terminalreporter.line(f"report: {Path(self._option('--moe-record')) / 'report.html'}")


def _check_candidate(name: str | None) -> None:
    from harness.candidates import CANDIDATES
    from harness.faults.named import load_named

    if name and name not in CANDIDATES:
        try:
            load_named(name)
        except UsageError:
            raise
        except Exception:  # noqa: BLE001, S110 - it exists; that it does not start is the suites' to report, as UNKNOWN
            pass


def _concluded(records: list[RunRecord], *, interrupted: bool, limited: bool) -> RunRecord:
    """Return the merged record of this process or of all workers, with its verdict."""
    record = merge_records(records)
    record.interrupted = interrupted
    # A part of the rules (-k, one file, -x) or a cut run draws what it draws.
    seen = {rule.rule for rule in record.rules} | {skip.what.split(" on ")[0] for skip in record.skips}
    partial = limited or not seen.issuperset(RULE_IDS)
    conclude(record, {} if partial else trap_floor(record))
    return record
