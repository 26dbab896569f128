"""One pytest process of the suites: the candidate's session, the record, and how a rule's verdict becomes a test's.

Imported by harness.pytest_plugin when a suite first asks for its candidate.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from harness.candidates import ALL_STAGES
from harness.problems.profiles import find_profile
from harness.records.new import new_record
from harness.records.record import CandidateRun, RuleResult, RunRecord, Skip
from harness.rules import find_rules
from harness.running.check import CheckRequest, open_session
from harness.running.known_failures import apply_known_failures, default_path, load_known_failures
from harness.running.runner import InternalError, RunSettings, run_rule
from harness.running.session import CandidateStartError, Session
from harness.verdict import Verdict

# How a failed test starts that is no FAIL of the candidate; the plugin counts them.
UNKNOWN_MARK = "UNKNOWN: "
INTERNAL_MARK = "INTERNAL ERROR: "


class SuiteRun:
    """The state of one pytest process that runs the suites."""

    def __init__(self, config: pytest.Config) -> None:
        self.name: str = config.getoption("--candidate") or "eager"
        self._option = config.getoption
        self._started = time.monotonic()
        self._session: Session | None = None
        self._not_run = ""
        self.record: RunRecord = new_record(self._option("--profile"), self._option("--harness-seed"))
        run = CandidateRun(self.name, requested=True)
        self.record.candidates.append(run)
        path = self._option("--known-failures")
        self._known = load_known_failures(Path(path) if path else default_path())
        request = CheckRequest(
            [self.name], [], find_profile(self._option("--profile")), threads=_threads(config)
        )
        _one_gpu_per_worker(config)
        try:
            self._session = open_session(self.name, request)
        except CandidateStartError as error:
            run.reason = self._not_run = str(error)
            return
        described = self._session.describe()
        run.ran, run.declared, run.measured = True, described["traits"], described["measured"]
        run.missing_stages = [s for s in ALL_STAGES if s not in described["stages"]]
        self.record.environment.device = described["traits"]["device"]

    def judge(self, rule_id: str) -> None:
        """Run one rule; fail the test on FAIL and on UNKNOWN, skip it where the rule says nothing about the candidate."""
        if self._session is None:
            pytest.fail(f"{UNKNOWN_MARK}{self.name} cannot run here: {self._not_run}", pytrace=False)
        rule = find_rules([rule_id])[0]
        missing = [stage for stage in rule.stages if stage not in self._session.describe()["stages"]]
        if missing:
            self._skip(rule.id, f"the candidate has no {', '.join(missing)}")
        seconds = self._option("--rule-seconds")
        deadline = time.monotonic() + seconds if seconds else float("inf")
        profile = find_profile(self._option("--profile"))
        settings = RunSettings(profile, self._option("--harness-seed"), deadline, None, self.name)
        try:
            result, traps = run_rule(rule, self._session, settings)
        except InternalError as error:
            self.record.errors.append(str(error))
            # without its context: the message has the trace of the process in which it showed
            message = f"{INTERNAL_MARK}a defect of the harness, not of {self.name}: {error}"
            raise pytest.fail.Exception(message, pytrace=False) from None
        self.record.known_failures += apply_known_failures([result], self._known)
        self.record.rules.append(result)
        for trap, count in traps.items():
            self.record.traps[trap] = self.record.traps.get(trap, 0) + count
        self.record.seconds = time.monotonic() - self._started
        self._conclude(result)

    def _conclude(self, result: RuleResult) -> None:
        if result.skipped:
            self._skip(result.rule, result.skipped)
        if result.verdict is Verdict.FAIL:
            messages = "\n\n".join(f.message for f in result.failures if f.kind != "known") or result.reason
            pytest.fail(messages, pytrace=False)
        if result.verdict is Verdict.UNKNOWN:
            pytest.fail(f"{UNKNOWN_MARK}{result.reason}", pytrace=False)

    def _skip(self, rule_id: str, reason: str) -> None:
        self.record.skips.append(Skip(f"{rule_id} on {self.name}", reason))
        pytest.skip(reason)

    def close(self) -> None:
        """End the candidate's process."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _threads(config: pytest.Config) -> int:
    """Share the processors among xdist's workers: each using all of them makes every worker slower than one alone."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(config, "workerinput") else 0


def _one_gpu_per_worker(config: Any) -> None:
    """Give worker gwN the N-th visible GPU, in the environment that the candidate's process inherits."""
    if not hasattr(config, "workerinput"):
        return
    number = int(config.workerinput["workerid"].removeprefix("gw"))
    visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    if not visible:
        visible = [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
