"""A GSM8K result in lines of plain text, for the terminal, JUnit and the step summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.records.parts.gsm8k import Gsm8kRun


def lines(run: Gsm8kRun) -> list[str]:
    """Return the result in lines of plain text: accuracies, counts, classes, how answers ended, errors, notes."""
    said = []
    for name in ("strict", "flexible", "numeric"):
        interval, accuracy = run.intervals.get(name), run.accuracy_by(name)
        if interval and accuracy is not None:
            low, high = interval
            said.append(f"{name:9} {accuracy:.4f} ({low:.4f} to {high:.4f})")
    counted = f"{run.answered:,} of {run.questions:,} questions answered, {run.unanswered:,} unanswered"
    not_asked = f", {run.not_asked:,} not asked" if run.not_asked else ""
    # No requests where the canary answered in process.
    asked = (
        f"; {run.requests.sent:,} requests in {run.seconds.get('requests') or 0.0:.1f} s"
        if run.requests
        else ""
    )
    said.append(f"{counted}{not_asked}{asked}")
    if (other := run.against) and (ends := other.accuracy_interval) and other.accuracy is not None:
        named = f"against   {other.accuracy:.4f} ({ends[0]:.4f} to {ends[1]:.4f}) {other.metric}"
        said.append(f"{named}, {other.answered:,} answered by {other.model} at {other.server.get('url')}")
    if run.classes:
        said.append("classes: " + ", ".join(f"{name} {n:,}" for name, n in run.classes.items()))
    if set(run.finish_reasons) - {"stop"}:
        said.append("ended by: " + ", ".join(f"{name} {n:,}" for name, n in run.finish_reasons.items()))
    if (compared := run.decisions.logprobs) and compared.reason not in run.reason:
        said.append(f"logprobs: {compared.label}: {compared.reason}")
    if (load := run.decisions.load) and load.reason not in run.reason:
        said.append(f"load: {load.reason}")
    for error in run.errors:
        lost = f", {error.gave_up} given up" if error.gave_up else ""
        said.append(f"error, {error.count} times{lost}: {error.error}")
    said += [f"note: {note}" for note in (*run.notes, *run.task.get("notes", []))]
    return said
