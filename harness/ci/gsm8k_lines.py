"""A GSM8K result in lines of plain text, for the terminal, JUnit and the step summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lines(stage: Mapping[str, Any]) -> list[str]:
    """Return the result in lines of plain text: accuracies, counts, classes, errors with their counts, notes."""
    said = []
    for name in ("strict", "flexible", "numeric"):
        interval = (stage.get("intervals") or {}).get(name)
        if interval and stage.get(f"accuracy_{name}") is not None:
            low, high = interval
            said.append(f"{name:9} {stage[f'accuracy_{name}']:.4f} ({low:.4f} to {high:.4f})")
    counted = f"{stage['answered']:,} of {stage['questions']:,} questions answered, {stage['unanswered']:,} unanswered"
    not_asked = f", {stage['not_asked']:,} not asked" if stage["not_asked"] else ""
    requests = stage.get("requests")  # none where the canary answered in process
    asked = f"; {requests['sent']:,} requests in {stage['seconds']['requests']:.1f} s" if requests else ""
    said.append(f"{counted}{not_asked}{asked}")
    if stage["classes"]:
        said.append("classes: " + ", ".join(f"{name} {n:,}" for name, n in stage["classes"].items()))
    for error in stage.get("errors") or []:
        lost = f", {error['gave_up']} given up" if error["gave_up"] else ""
        said.append(f"error, {error['count']} times{lost}: {error['error']}")
    notes = [*(stage.get("notes") or []), *(stage["task"].get("notes") or [])]
    said += [f"note: {note}" for note in notes]
    return said
