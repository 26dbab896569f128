"""Mutants: the score, survivors first, the kill matrix, what upstream criteria miss, controls, and the self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

Json = dict[str, Any]

MOST_FAULTS = 400
MOST_COLUMNS = 60
NAMES_SHOWN = 60


def section(record: RunRecord) -> Markup | None:
    """Draw the mutants of a record, or nothing."""
    found = record.mutants
    if not found:
        return None
    faults = [_fault(f) for f in _dicts(found.get("faults"))]
    return fill(
        "mutants.html.j2",
        candidate=str(found.get("candidate") or ""),
        profile=str(found.get("profile") or ""),
        seeds=_number(found.get("seeds")),
        complete=bool(found.get("complete")),
        figures=_figures(_dict(found.get("score")), _number(found.get("seconds"))),
        survivors=[_planting(r) for r in _dicts(found.get("survivors"))][:MOST_FAULTS],
        reasons=_reasons(faults),
        candidate_failures=[
            {name: str(f.get(name) or "") for name in ("rule", "problem", "message")}
            for f in _dicts(found.get("candidate_failures"))[:20]
        ],
        faults=faults[:MOST_FAULTS],
        left_off=max(0, len(faults) - MOST_FAULTS),
        matrix=_matrix(_dict(found.get("matrix"))),
        upstream=_upstream(_dict(found.get("upstream"))),
        controls=_controls(_dict(found.get("controls"))),
        self_test=_self_test(_dict(found.get("self_test"))),
    )


def _figures(score: Json, seconds: float | None) -> list[tuple[str, str, float | None]]:
    """Return the key figures as (name, how to print it, value)."""
    share = _number(score.get("share"))
    return [
        ("Planted faults killed", "count", _number(score.get("killed"))),
        ("Survived", "count", _number(score.get("survived"))),
        ("Not judged", "count", _number(score.get("not_judged"))),
        ("Not planted", "count", _number(score.get("not_planted"))),
        ("Forms judged", "count", _number(score.get("plantings"))),
        ("Mutation score", "percent", None if share is None else 100 * share),
        ("Examples to the kill, median", "number", _number(score.get("median_examples"))),
        ("Most", "count", _number(score.get("most_examples"))),
        ("Seconds to the kill, median", "number", _number(score.get("median_seconds"))),
        ("Whole run", "duration", seconds),
    ]


def _fault(fault: Json) -> Json:
    names = (
        "name",
        "title",
        "category",
        "killed_by",
        "effect",
        "status",
        "reason",
        "simulated",
        "planted_in",
    )
    minimal = _dict(fault.get("minimal"))
    return {
        **{name: str(fault.get(name) or "") for name in names},
        # Records from before threads were kept have only the bugs' ids.
        "bugs": [str(bug) for bug in _list(fault.get("threads")) or _list(fault.get("bugs"))][:20],
        "examples": _number(fault.get("examples")),
        "seconds": _number(fault.get("seconds")),
        "random_data": fault.get("random_data") is not False,
        "command": str(minimal.get("command") or ""),
        "message": str(minimal.get("message") or ""),
        "plantings": [_planting(r) for r in _dicts(fault.get("plantings"))[:40]],
    }


def _planting(result: Json) -> Json:
    return {
        **{
            name: str(result.get(name) or "")
            for name in ("planting", "rule", "status", "problem", "how", "message")
        },
        "examples": _number(result.get("examples")),
        "seconds": _number(result.get("seconds")),
    }


def _reasons(faults: list[Json]) -> list[tuple[str, str, list[str]]]:
    """Return (status, reason, names) of the faults that were not judged or not planted, one line a reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        if fault["status"] in {"not judged", "not planted"}:
            found.setdefault((fault["status"], fault["reason"]), []).append(fault["name"])
    return [(status, reason, names) for (status, reason), names in found.items()]


def _matrix(matrix: Json) -> Json | None:
    columns = [str(c) for c in _list(matrix.get("columns"))][:MOST_COLUMNS]
    cells = [_list(row) for row in _list(matrix.get("cells"))]
    rows = [
        (str(name), [_number(value) for value in row[: len(columns)]])
        for name, row in zip(_list(matrix.get("rows")), cells, strict=False)
    ]
    if not rows or not columns:
        return None
    return {
        "columns": columns,
        "rows": rows[:MOST_FAULTS],
        "forms": [str(form) for form in _list(matrix.get("forms"))],
        "examples": _number(matrix.get("examples")),
        "powerless": [str(rule) for rule in _list(matrix.get("powerless"))],
        "not_applicable": [(str(k), str(v)) for k, v in _dict(matrix.get("not_applicable")).items()],
        "kills": [sum(1 for _, values in rows if i < len(values) and values[i]) for i in range(len(columns))],
    }


def _upstream(table: Json) -> Json | None:
    criteria = _dicts(table.get("criteria"))
    if not criteria:
        return None
    cases = [str(case) for case in _list(table.get("cases"))][:8]
    return {
        "cases": cases,
        "data": [(str(d.get("name")), str(d.get("title"))) for d in _dicts(table.get("data"))],
        "faults": len(_list(table.get("faults"))),
        "criteria": [
            {
                **{name: str(c.get(name) or "") for name in ("name", "title", "source")},
                "rejects": [str(data) for data, ok in _dict(c.get("accepts_candidate")).items() if not ok],
                "missed": [[str(n) for n in _list(_dict(c.get("missed")).get(case))] for case in cases],
            }
            for c in criteria[:40]
        ],
        "by_all": [[str(n) for n in _list(_dict(table.get("missed_by_all")).get(case))] for case in cases],
        "names_shown": NAMES_SHOWN,
    }


def _controls(controls: Json) -> Json | None:
    if not controls:
        return None
    alarms = _dicts(controls.get("false_alarms"))
    return {
        "examples": _number(controls.get("examples")),
        "compared": _number(controls.get("compared")),
        "controls": len(_dict(controls.get("controls"))),
        "count": len(alarms),
        "alarms": [
            {name: str(a.get(name) or "") for name in ("control", "rule", "message", "reproduce")}
            for a in alarms[:20]
        ],
    }


def _self_test(test: Json) -> Json | None:
    if not test:
        return None
    return {
        "passed": bool(test.get("passed")),
        "groups": [
            (
                title,
                wanted,
                [
                    {
                        **{name: str(f.get(name) or "") for name in ("name", "what", "rule", "how")},
                        "detected": bool(f.get("detected")),
                        "planted": _number(f.get("planted")),
                        "noticed": _number(f.get("noticed")),
                    }
                    for f in _dicts(test.get(key))[:200]
                ],
            )
            for title, key, wanted in (("Broken checks", "broken", True), ("Rules", "rules", False))
        ],
    }


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: Any) -> list[Json]:
    return [item for item in _list(value) if isinstance(item, dict)]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < 1e15 else None  # NaN and infinity too
