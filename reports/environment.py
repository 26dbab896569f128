"""Where the run took place: machine, versions, commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.template import fill
from reports.text import count

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord


def section(record: RunRecord) -> Markup | None:
    """Draw the environment; what was not recorded is left out."""
    where = record.environment
    tree = {True: " with uncommitted changes", False: ", clean", None: ", state of the tree not known"}[
        where.git_dirty
    ]
    sharing = record.sharing_part
    rows = [
        ("Python", where.python),
        ("Platform", where.platform),
        ("CPU count", count(where.cpu_count) if where.cpu_count else ""),
        ("Device", where.device),
        ("GPUs", ", ".join(where.gpus)),
        ("Judged by", str(sharing) if sharing else ""),
        ("CUDA", where.cuda),
        ("Driver", where.driver),
        ("Commit", where.git_commit + tree if where.git_commit else ""),
        ("Harness", record.harness_version),
    ]
    packages = sorted(where.packages.items(), key=lambda item: (item[0].lower(), item[0]))
    return fill("environment.html.j2", rows=[row for row in rows if row[1]], packages=packages)
