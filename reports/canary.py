"""The canary: its verdict through each candidate, the control that shows its power, and the table of faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

Json = dict[str, Any]


def section(record: RunRecord) -> Markup | None:
    """Draw the canary of a record, or nothing."""
    found = record.canary
    if not found:
        return None
    table = [line for line in _list(found.get("table")) if isinstance(line, dict)]
    runs = [(run, "must pass", "PASS") for run in _list(found.get("runs")) if isinstance(run, dict)]
    runs += [
        (run, "planted fault, must fail", "FAIL")
        for run in _list(found.get("controls"))
        if isinstance(run, dict)
    ]
    return fill(
        "canary.html.j2",
        runs=[
            {**_defaults(run), "role": role, "wrong": _wrong(run), "as_expected": run.get("verdict") == word}
            for run, role, word in runs
        ],
        variants=[_line(line) for line in table if line.get("kind") == "variant"],
        faults=sorted(
            (_line(line) for line in table if line.get("kind") == "fault"),
            key=lambda line: (line["accuracy"] is None, line["accuracy"] or 0.0, line["name"]),
        ),
    )


def _defaults(run: Json) -> Json:
    names = ("candidate", "verdict", "qualifier", "reason", "reproduce")
    return {
        **{name: str(run.get(name) or "") for name in names},
        **{name: run.get(name) for name in ("questions", "answered", "correct_strict")},
        "accuracy": _number(run.get("accuracy_strict")),
        "interval": _interval(run.get("interval")),
        "seconds": _number(_dict(run.get("seconds")).get("total")),
        "ready": _number(run.get("ready_seconds")),
    }


def _wrong(run: Json) -> list[Json]:
    """Return a few wrong answers: what a broken model says is the fastest clue."""
    samples = [s for s in _list(run.get("samples")) if isinstance(s, dict) and not s.get("strict")]
    return [
        {name: str(sample.get(name) or "") for name in ("question", "answer", "expected", "error")}
        for sample in samples[:3]
    ]


def _line(line: Json) -> Json:
    facts = _dict(line.get("facts"))
    return {
        "name": str(line.get("name") or ""),
        "title": str(facts.get("title") or ""),
        "effect": str(facts.get("effect") or ""),
        "killed_by": str(facts.get("killed_by") or ""),
        # Records from before threads were kept have only the bugs' ids.
        "bugs": [str(bug) for bug in _list(facts.get("threads")) or _list(facts.get("bugs"))][:20],
        "accuracy": _number(line.get("accuracy")),
        "interval": _interval(line.get("interval")),
        "asked": line.get("asked"),
        "verdict": str(line.get("verdict") or ""),
        "qualifier": str(line.get("qualifier") or ""),
        "error": str(line.get("error") or ""),
    }


def _interval(value: Any) -> tuple[float, float] | None:
    numbers = [_number(end) for end in _list(value)]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        return None
    return numbers[0], numbers[1]


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return None
    return float(value)
