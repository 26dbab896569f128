"""GSM8K: the verdict on a served model, its accuracy with intervals, classes, times, probes, and every question."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.gsm8k_charts import Estimate, count_chart, interval_chart, path_chart
from reports.gsm8k_logprobs import logprob_section
from reports.gsm8k_text import MOST_SHOWN, OTHER, PAGE_BUDGET, QUESTION, RIGHT, fitted
from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

Json = dict[str, Any]

MOST_CHANGED = 20
CHANGED_BUDGET = 1_500
"""Questions of a kind, and bytes of one, that are shown of a comparison of two servers; the record holds them all."""

RIGHT_CLASS = "right"
UNANSWERED = "unanswered"


@dataclass(frozen=True)
class Shown:
    """One question as the page shows it; `question` and `answer` are escaped and cut."""

    name: str
    question: Markup
    answer: Markup | None
    sample: Json


@dataclass(frozen=True)
class Group:
    """The questions of one class."""

    anchor: str
    name: str
    total: int
    shown: list[Shown]


def section(record: RunRecord) -> Markup | None:
    """Draw the GSM8K part of a record, or nothing."""
    found = record.gsm8k
    if not found:
        return None
    samples = [s for s in _list(found.get("samples")) if isinstance(s, dict)]
    decisions = {k: d for k, d in _dict(found.get("decisions")).items() if isinstance(d, dict)}
    details = _dict(decisions.get("full", decisions.get("smoke", {})).get("details"))
    groups = _groups(samples)
    return fill(
        "gsm8k.html.j2",
        found={"qualifier": "", **found},
        decisions=[(name, d) for name, d in decisions.items() if d.get("word")],
        accuracy=_accuracy(found, details, decisions),
        path=_path(found, details, decisions),
        classes=_classes(found, details, {group.name: group.anchor for group in groups}),
        charts=_charts(samples),
        probes=[(str(k), v) for k, v in _dict(found.get("probes")).items() if v],
        notes=[str(note) for note in _list(found.get("notes"))],
        loads=_loads(found),
        servers=_servers(found),
        changed=_changed(found, samples),
        logprobs=logprob_section(found.get("logprobs")),
        errors=[{"gave_up": None, **e} for e in _list(found.get("errors")) if isinstance(e, dict)],
        settings=_settings(found),
        groups=groups,
        left_off=len(samples) - sum(len(group.shown) for group in groups),
        total=sum(len(group.shown) for group in groups),
    )


def _accuracy(found: Json, details: Json, decisions: dict[str, Json]) -> Any:
    """Lay out the accuracies by the three extractors, with the thresholds that judged them."""
    estimates: list[Estimate] = []
    for name, stated in _dict(details.get("accuracy")).items():
        share, low, high = (_number(_dict(stated).get(key)) for key in ("share", "low", "high"))
        if share is not None and low is not None and high is not None:
            estimates.append((str(name)[:12], share, low, high))
    interval = _list(found.get("interval"))
    if not estimates and len(interval) == 2 and None not in (ends := [_number(v) for v in interval]):
        share = _number(found.get("accuracy_strict"))
        if share is not None:
            estimates.append(("strict", share, float(ends[0] or 0), float(ends[1] or 0)))
    return interval_chart(estimates, _thresholds(details, decisions))


def _thresholds(details: Json, decisions: dict[str, Json]) -> list[tuple[str, float]]:
    """Return the accuracies that judged the run, by name."""
    thresholds = []
    for name, label in (("min_accuracy", "minimum"), ("expect", "expected")):
        value = _number(details.get(name))
        if value is not None and 0 <= value <= 1 and (label == "minimum" or "full" not in decisions):
            thresholds.append((label, value))
    return thresholds


def _path(found: Json, details: Json, decisions: dict[str, Json]) -> Any:
    """Lay out the running accuracy; nothing for records from before it was kept."""
    points = []
    for point in _list(found.get("path")):
        n, *rest = (_number(_dict(point).get(key)) for key in ("n", "share", "low", "high"))
        if n is None or None in rest:
            continue
        share, low, high = (value or 0.0 for value in rest)
        points.append((int(n), share, low, high))
    return path_chart(points, _thresholds(details, decisions))


def _classes(found: Json, details: Json, anchors: dict[str, str]) -> list[Json]:
    """Return one row a class: count, share, interval, limit; from the counts alone where no decision was reached."""
    rated = [r for r in _list(details.get("classes")) if isinstance(r, dict)]
    if not rated:
        rated = [{"name": k, "count": v} for k, v in _dict(found.get("classes")).items()]
    rows = []
    for rate in rated:
        keys = ("count", "judged", "of", "share", "low", "high", "limit")
        row = {key: _number(rate.get(key)) for key in keys}
        if row["count"] or row["judged"] or rate.get("exceeded"):
            name = str(rate.get("name"))
            width = f"{120 * min(1.0, max(0.0, row['share'] or 0.0)):.1f}"
            rows.append(
                {
                    **row,
                    "name": name,
                    "exceeded": bool(rate.get("exceeded")),
                    "raised": bool(rate.get("raised")),
                    "apart": row["of"] is not None and row["of"] != _number(details.get("answered")),
                    "anchor": anchors.get(name),
                    "width": width,
                }
            )
    return rows


def _charts(samples: list[Json]) -> list[Any]:
    """Lay out time and length of the answers."""

    def figures(of: Any) -> tuple[list[float], list[float]]:
        sides: tuple[list[float], list[float]] = ([], [])
        for sample in samples:
            value = _number(of(sample))
            if value is not None and value >= 0 and not sample.get("error"):
                sides[sample.get("class") != RIGHT_CLASS].append(value)
        return sides

    charts = [
        count_chart("Time of an answer", "s", *figures(lambda s: s.get("latency_s"))),
        count_chart("Time to the first token", "s", *figures(lambda s: s.get("ttft_s"))),
        count_chart(
            "Length of an answer",
            "tokens",
            *figures(lambda s: _dict(s.get("usage")).get("completion_tokens")),
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _servers(found: Json) -> list[Json]:
    """Return the judged server and that of `--against`, with their accuracies; nothing without a second one."""
    other = _dict(found.get("against"))
    rows = []
    for name, run in (("judged", found), ("reference", other)):
        server = _dict(run.get("server"))
        row: Json = {"name": name, "url": server.get("url"), "model": server.get("model")}
        for metric in ("strict", "flexible", "numeric"):
            ends = [_number(end) for end in _list(_dict(run.get("intervals")).get(metric))]
            share = _number(run.get(f"accuracy_{metric}"))
            row[metric] = (
                (share, *ends) if share is not None and len(ends) == 2 and None not in ends else None
            )
        rows.append({**row, "answered": _number(run.get("answered"))})
    return rows if other else []


def _changed(found: Json, samples: list[Json]) -> list[tuple[str, list[tuple[Shown, Shown]]]]:
    """Return the questions that only one of two servers has right, each with both answers: lost ones, gained ones."""
    metric = str(found.get("metric"))
    others = {
        str(s.get("index")): s
        for s in _list(_dict(found.get("against")).get("samples"))
        if isinstance(s, dict)
    }
    changed: dict[str, list[tuple[Shown, Shown]]] = {"lost": [], "gained": []}
    for sample in samples:
        other = others.get(str(sample.get("index")))
        if (
            other is None
            or sample.get("error")
            or other.get("error")
            or sample.get(metric) == other.get(metric)
        ):
            continue
        pairs = changed["gained" if sample.get(metric) else "lost"]
        if len(pairs) < MOST_CHANGED:
            pairs.append(
                (
                    _shown(sample, CHANGED_BUDGET, repeated=False),
                    _shown(other, CHANGED_BUDGET, repeated=False),
                )
            )
    return [(name, pairs) for name, pairs in changed.items() if pairs]


def _loads(found: Json) -> list[Json]:
    """Return the sizes of the load sweep."""
    sizes = _dict(_dict(found.get("probes")).get("load")).get("sizes")
    return [size for size in _list(sizes) if isinstance(size, dict)]


def _settings(found: Json) -> list[tuple[str, Json]]:
    """Return what was run against what, for the table at the end."""
    task, server = _dict(found.get("task")), _dict(found.get("server"))
    rows = [("Server", server), ("Task", {k: v for k, v in task.items() if not isinstance(v, dict)})]
    rows += [(name.capitalize(), v) for name, v in task.items() if isinstance(v, dict)]
    rows += [
        (name.capitalize(), _dict(found.get(name))) for name in ("settings", "requests", "seconds", "spread")
    ]
    return [(str(name), values) for name, values in rows if values]


def _groups(samples: list[Json]) -> list[Group]:
    """Return the questions by class, the rarest classes of trouble first and the right ones last."""
    by_class: dict[str, list[Json]] = {}
    for sample in samples:
        name = UNANSWERED if sample.get("error") else str(sample.get("class") or "not classified")
        by_class.setdefault(name, []).append(sample)
    ordered = sorted(by_class.items(), key=lambda item: (item[0] == RIGHT_CLASS, len(item[1]), item[0]))
    room = MOST_SHOWN
    kept: list[tuple[str, int, list[Json]]] = []
    for name, members in ordered:
        members.sort(key=lambda s: (_number(s.get("index")) or 0.0, _number(s.get("repeat")) or 0.0))
        kept.append((name, len(members), members[:room]))
        room -= len(kept[-1][2])
    budget = PAGE_BUDGET // max(1, sum(len(members) for _, _, members in kept))
    repeated = any(s.get("repeat") for s in samples)
    return [
        Group(f"gsm8k-class-{number}", name, total, [_shown(s, budget, repeated=repeated) for s in members])
        for number, (name, total, members) in enumerate(kept, start=1)
        if members
    ]


def _shown(sample: Json, budget: int, *, repeated: bool) -> Shown:
    sample = {"error": None, "reasoning": None, **sample}
    name = str(sample.get("index"))[:20]
    if repeated:
        name += f" (repeat {str(sample.get('repeat'))[:20]})"
    question = fitted(str(sample.get("question") or ""), QUESTION, max(300, budget // 2))
    answer = sample.get("answer")
    if answer is None:
        return Shown(name, question, None, sample)
    cut = RIGHT if sample.get("class") == RIGHT_CLASS else OTHER
    return Shown(name, question, fitted(str(answer), cut, max(300, budget)), sample)


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    number = float(value) if abs(value) < 1e300 else math.inf
    return number if math.isfinite(number) else None
