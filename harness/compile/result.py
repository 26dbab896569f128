"""Reading what compiling one case gave: it crosses a pipe, and lies in the cache, the baseline and the record."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from harness.records.parts.compile import CompileResult

STATUSES = ("compiled", "refused", "failed", "crashed", "timeout")


def result_from(stored: Any, where: str) -> CompileResult:
    """Read what `CompileResult.to_json` wrote.

    Args:
        stored: the JSON object.
        where: names the place in an error.

    Raises:
        ValueError: not such an object.
    """
    known = {f.name for f in fields(CompileResult)}
    if not isinstance(stored, dict) or stored.get("status") not in STATUSES or set(stored) - known:
        raise ValueError(
            f"{where} must be an object with a status of {', '.join(STATUSES)} and fields of "
            f"harness/records/parts/compile.py, got {stored!r:.120}"
        )
    return CompileResult(**stored)
