"""One pytest process of the suites: the candidate's session, the record, and how a rule's verdict becomes a test's.

Made by suite_session.py when a suite first asks for its candidate.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.problems.profiles import find_profile
from harness.records.new import new_record
from harness.records.record import CandidateRun, RuleResult, RunRecord
from harness.rules import find_rules
from harness.running.check import open_candidate
from harness.running.gpus import visible_gpus
from harness.running.known_failures import default_path, load_known_failures
from harness.running.rules import judge_rules
from harness.running.runner import InternalError
from harness.running.settings import RunSettings
from harness.verdict import Verdict

# How a failed test starts that is no FAIL of the candidate; suite_session.py counts them.
UNKNOWN_MARK = "UNKNOWN: "
INTERNAL_MARK = "INTERNAL ERROR: "


class SuiteRun:
    """The state of one pytest process that runs the suites."""

    def __init__(self, config: pytest.Config) -> None:
        self.name: str = config.getoption("--moe-candidate") or "eager"
        self._option = config.getoption
        self._started = time.monotonic()
        self.record: RunRecord = new_record(self._option("--moe-profile"), self._option("--moe-seed"))
        self.record.command = ["pytest", *sys.argv[1:]]
        path = self._option("--moe-known-failures")
        self._known = load_known_failures(Path(path) if path else default_path())
        _one_gpu_per_worker(config)
        run = CandidateRun(self.name, requested=True)
        self._session = open_candidate(run, self.record, threads=_threads(config))
        self._not_run = run.reason

    def judge(self, rule_id: str) -> None:
        """Run one rule; fail the test on FAIL and on UNKNOWN, skip it where the rule says nothing about the candidate."""
        if self._session is None:
            pytest.fail(f"{UNKNOWN_MARK}{self.name} cannot run here: {self._not_run}", pytrace=False)
        profile = find_profile(self._option("--moe-profile"))
        settings = RunSettings(profile, self._option("--moe-seed"), candidate=self.name)
        try:
            (found,) = judge_rules(
                self._session,
                find_rules([rule_id]),
                settings,
                known=self._known,
                rule_seconds=self._option("--moe-rule-seconds"),
            )
        except InternalError as error:
            self.record.errors.append(str(error))
            # without its context: the message has the trace of the process in which it showed
            message = f"{INTERNAL_MARK}a defect of the harness, not of {self.name}: {error}"
            raise pytest.fail.Exception(message, pytrace=False) from None
        found.keep(self.record)
        self.record.seconds = time.monotonic() - self._started
        if found.skipped or found.result is None:
            pytest.skip(found.skipped)
        _conclude(found.result)

    def close(self) -> None:
        """End the candidate's process."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _conclude(result: RuleResult) -> None:
    if result.verdict is Verdict.FAIL:
        messages = "\n\n".join(f.message for f in result.failures if f.kind != "known") or result.reason
        pytest.fail(messages, pytrace=False)
    if result.verdict is Verdict.UNKNOWN:
        pytest.fail(f"{UNKNOWN_MARK}{result.reason}", pytrace=False)


def _threads(config: pytest.Config) -> int:
    """Share the processors among xdist's workers: each using all of them makes every worker slower than one alone."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(config, "workerinput") else 0


def _one_gpu_per_worker(config: Any) -> None:
    """Give worker gwN the N-th visible GPU, in the environment that the candidate's process inherits."""
    if not hasattr(config, "workerinput"):
        return
    number = int(config.workerinput["workerid"].removeprefix("gw"))
    if visible := visible_gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
