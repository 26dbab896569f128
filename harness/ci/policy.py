"""What fails a job: `--fail-on`. The record's verdict never changes; only the exit code of the command does."""

from __future__ import annotations

from harness.records.record import RunRecord
from harness.verdict import ExitCode, Verdict, exit_code

POLICIES = {
    "unknown": "exit 1 on FAIL and 2 on UNKNOWN (the default: what was not judged is not right)",
    "fail": "exit 1 on FAIL only; an UNKNOWN is printed and exits 0",
    "regression": "exit 1 only where something is worse than in the record given with --against",
}


def exit_under(policy: str, record: RunRecord, against: RunRecord | None = None) -> tuple[ExitCode, str]:
    """Return the exit code of a run under a policy, and a sentence where it is not the verdict's own ("" otherwise).

    Args:
        policy: a key of POLICIES.
        record: the run.
        against: an earlier run, for "regression".

    Raises:
        ValueError: "regression" without an earlier run.
    """
    own = exit_code(record.verdict)
    if record.interrupted:
        return ExitCode.INTERRUPTED, ""
    if policy == "fail" and record.verdict is Verdict.UNKNOWN:
        return ExitCode.PASS, "UNKNOWN does not fail this job: --fail-on fail"
    if policy == "regression":
        if against is None:
            raise ValueError("exit_under: policy 'regression' needs an earlier record")
        from harness.comparing.runs import compare_records

        found = compare_records(against, record)
        return (
            found.exit_code,
            f"--fail-on regression: {found.reason}; the verdict itself is {record.verdict.value}",
        )
    return own, ""
