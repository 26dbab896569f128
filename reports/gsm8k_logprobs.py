"""The logprob comparison inside the GSM8K part: figures, the KL of each question on a log scale, the places furthest apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from reports.template import fill
from reports.text import count

if TYPE_CHECKING:
    from markupsafe import Markup

Json = dict[str, Any]

MOST_QUESTIONS = 64
MOST_PLACES = 8
TOP, FLOOR, LEFT, WIDTH = 14.0, 132.0, 46.0, 340.0


def logprob_section(found: Any) -> Markup | None:
    """Draw `logprobs` of a GSM8K run, or nothing."""
    if not isinstance(found, dict) or not found:
        return None
    places = found.get("worst")
    worst = [place for place in places if isinstance(place, dict)] if isinstance(places, list) else []
    return fill(
        "gsm8k_logprobs.html.j2", figures=_figures(found), chart=_chart(found), worst=worst[:MOST_PLACES]
    )


def _figures(found: Json) -> list[tuple[str, str]]:
    """Return label and text of each figure that is there."""
    questions = found.get("questions")
    figures = [("Questions", count(len(questions)))] if isinstance(questions, list) else []
    if (tokens := _number(found.get("tokens"))) is not None:
        figures.append(("Tokens", count(int(tokens))))
    for name, label in (
        ("kl", "KL, nats per token"),
        ("within", "Of the other server with itself"),
        ("within_server", "Of this server with itself"),
        ("allowed", "Allowed"),
    ):
        if (value := _number(found.get(name))) is not None:
            figures.append((label, f"{value:.2g}"))
    if (agreement := _number(found.get("agreement"))) is not None:
        figures.append(("Top-1 agreement", f"{100 * agreement:.2f} %"))
    if improper := _number(found.get("improper")):
        figures.append(("Places without a distribution", count(int(improper))))
    return figures


def _chart(found: Json) -> Json | None:
    """Lay out one bar a question."""
    stated = found.get("questions")
    rows = []
    for one in stated if isinstance(stated, list) else []:
        if isinstance(one, dict):
            kl, within = _number(one.get("kl")), _number(one.get("within"))
            if kl is not None and within is not None:
                rows.append((one.get("index"), max(kl, 0.0), max(within, 0.0)))
    allowed = _number(found.get("allowed")) or 0.0
    rows = rows[:MOST_QUESTIONS]
    values = [value for _, *pair in rows for value in pair if value > 0]
    if not values:
        return None
    low = math.floor(math.log10(max(min([*values, allowed or 1.0]), 1e-12)))
    high = max(math.ceil(math.log10(max([*values, allowed]))), low + 1)

    def at(value: float) -> float:
        share = (math.log10(max(value, 1e-300)) - low) / (high - low)
        return round(FLOOR - min(max(share, 0.0), 1.0) * (FLOOR - TOP), 1)

    step = WIDTH / len(rows)
    bars = [
        {
            "name": name,
            "label": f"{kl:.2g}, with itself {within:.2g}",
            "over": kl > allowed,
            "x": round(LEFT + i * step, 1),
            "y": at(kl),
            "width": round(max(step - 1.5, 0.5), 1),
            "height": round(FLOOR - at(kl), 1),
            "within": at(within),
        }
        for i, (name, kl, within) in enumerate(rows)
    ]
    over = sum(bool(bar["over"]) for bar in bars)
    ticks = [
        {"at": at(10.0**power), "label": f"1e{power}"}
        for power in range(low, high + 1, -(-(high - low) // 4))
    ]
    summary = (
        f"{over} of {len(bars)} questions above {allowed:g}; largest {max(kl for _, kl, _ in rows):.2g}."
    )
    return {"bars": bars, "ticks": ticks, "allowed": at(allowed), "summary": summary}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return None
    return float(value)
