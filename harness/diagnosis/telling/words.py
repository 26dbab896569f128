"""A diagnosis as lines of a failure's message, and the command that repeats it. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any


def message_lines(diagnosis: Sequence[dict[str, Any]], most: int = 5) -> list[str]:
    """Return the diagnosis as lines of a failure's message."""
    lines = []
    for finding in diagnosis[:most]:
        words = finding["title"]
        if finding.get("problem"):
            words = f"of {finding['problem']}: {words}"
        if not finding["fault"]:
            more = "; ".join(finding.get("pattern", [])[:4])
            lines.append(f"{words}: {more}" if more else words)
            continue
        if finding.get("weak"):
            words = f"perhaps: {words}"
        if finding.get("strength"):
            words += f" ({finding['strength']})"
        if finding.get("alternative"):
            if len(lines) < 3:
                lines.append(f"or: {words}: {finding['evidence']}")
            continue
        words += f": {finding['evidence']}, {finding['place']}"
        if finding["bugs"]:
            words += f"; like {', '.join(map(str, finding['bugs'][:3]))}"
        if finding.get("same_as"):
            words += f"; not told apart here from {', '.join(finding['same_as'][:3])}"
        lines.append(words)
    return [f"  diagnosis  {line}" for line in lines[:most]]


def diagnose_command(candidate: str, rule: str, problem: str) -> str:
    """Return the command that repeats a diagnosis."""
    return f"harness diagnose --candidate {shlex.quote(candidate)} --rule {rule} --problem {shlex.quote(problem)}"
