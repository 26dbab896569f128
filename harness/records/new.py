"""A new record: which run it is, and where and with what it takes place."""

from __future__ import annotations

import datetime as dt
import secrets

from harness.records.command_line import command_line
from harness.records.environment import describe_environment
from harness.records.record import RunRecord
from harness.version import __version__


def new_record(profile: str, seed: int) -> RunRecord:
    """Return an empty record with its identity, versions and environment."""
    now = dt.datetime.now(dt.UTC)
    return RunRecord(
        run_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        created=now.isoformat(timespec="seconds"),
        command=command_line(),
        harness_version=__version__,
        profile=profile,
        seed=seed,
        environment=describe_environment(),
    )
