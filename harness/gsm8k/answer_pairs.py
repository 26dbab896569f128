"""Comparing answers to the same requests: their texts, and which of them are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.gsm8k.statistics import mcnemar_mid_p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.client import Exchange
    from harness.gsm8k.questions import Asker
    from harness.gsm8k.task import Question

SHOWN = 160


def same(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """Compare the answers to one request."""
    texts = [e.reply.text or "" for e in exchanges if e.reply]
    different = next((i for t in texts[1:] if (i := _first_difference(texts[0], t)) is not None), None)
    return {
        "asked": len(exchanges),
        "answered": len(texts),
        "same": None if len(texts) < 2 else different is None,
        "distinct": len(set(texts)),
        "first_difference": different,
        "answers": [text[:SHOWN] for text in dict.fromkeys(texts)],
        "errors": sorted({str(e.error) for e in exchanges if e.error}),
    }


def _first_difference(a: str, b: str) -> int | None:
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def compared(
    asker: Asker, targets: list[Question], alone: dict[int, Exchange], found: dict[int, Exchange]
) -> dict[str, Any]:
    """Compare later answers with those alone or before, question by question; right means by value."""
    both = [(q, alone[q.index].reply, found[q.index].reply) for q in targets]
    pairs = [(q, a, b) for q, a, b in both if a is not None and b is not None]
    right = [(asker.judged(q, a)["numeric"], asker.judged(q, b)["numeric"]) for q, a, b in pairs]
    lost, gained = sum(a and not b for a, b in right), sum(b and not a for a, b in right)
    p = min(1.0, 2 * min(mcnemar_mid_p(lost, gained), mcnemar_mid_p(gained, lost))) if pairs else None
    return {
        "compared": len(pairs),
        "unanswered": len(both) - len(pairs),
        "same_text": sum(a.text == b.text for _, a, b in pairs),
        "right_alone": sum(a for a, _ in right),
        "right": sum(b for _, b in right),
        "lost": lost,
        "gained": gained,
        "p": p,
    }
