"""Requests beside the task: does the server answer the same request the same way, and prompts of any length?

Sanity and determinism (two requests) are part of every run. `--probe` adds repeats and prompt lengths. How many requests
are in flight is the sweep's concern (load.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.client import Exchange
    from harness.gsm8k.questions import Asker, Planned
    from harness.gsm8k.task import Question

SANITY_TOKENS = 64
TARGETS = 4
REPEATS = 4
LONG_CHARACTERS = 24_000
SHOWN = 160

Probe = dict[str, Any]


class Sanity:
    """Two byte-identical short requests. Started from the pool as two steps, so that they wait for no answer of the wave."""

    def __init__(self, asker: Asker, question: Question) -> None:
        self._asker = asker
        self._question = question
        self._exchanges: list[Exchange] = []

    async def ask(self) -> Probe | None:
        """Ask once; return the probe's result after the second time."""
        exchange = await self._asker.ask(self._asker.prompt(self._question), SANITY_TOKENS)
        self._exchanges.append(exchange)
        if len(self._exchanges) < 2:
            return None
        return {"ran": True, "index": self._question.index, **_same(self._exchanges)}


async def run_probes(
    asker: Asker, planned: Sequence[Planned], journaled: dict[str, Probe]
) -> dict[str, Probe]:
    """Run the suite of `--probe`, except what the journal holds; the caller journals what is returned."""
    targets = [p.question for p in planned if p.repeat == 0][:TARGETS]
    results: dict[str, Probe] = {}
    if "repeats" not in journaled:
        results["repeats"] = _same([await _ask(asker, targets[0]) for _ in range(REPEATS)])
    if "lengths" not in journaled:
        results["lengths"] = await _lengths(asker, targets)
    return results


def notes(probes: dict[str, Probe]) -> list[str]:
    """Return what the probes found out, in words, most serious first."""
    said = []
    for kind, lengths in probes.get("lengths", {}).items():
        if isinstance(lengths, dict) and lengths["answered"] and lengths["degenerate"] == lengths["answered"]:
            said.append(f"every answer to a {kind} prompt is degenerate")
    for name in ("sanity", "repeats"):
        probe = probes.get(name, {})
        if probe.get("same") is False:
            said.append(
                f"the same request at temperature 0 gave {probe['distinct']} different answers in {probe['answered']} "
                f"(from character {probe['first_difference']} on): expect flip noise"
            )
    return list(dict.fromkeys(said))


async def _ask(asker: Asker, question: Question) -> Exchange:
    return await asker.ask(asker.prompt(question))


def _same(exchanges: Sequence[Exchange]) -> Probe:
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


async def _lengths(asker: Asker, targets: list[Question]) -> Probe:
    """Ask with a short prompt (no examples) and a long one (the examples many times); count degenerate answers."""
    result: Probe = {}
    for kind in ("short", "long"):
        prompts = [_resized(asker.prompt(q), q.question, kind) for q in targets]
        exchanges = await asyncio.gather(*(asker.ask(prompt) for prompt in prompts))
        judged = [asker.judged(q, e.reply) for q, e in zip(targets, exchanges, strict=True) if e.reply]
        result[kind] = {
            "asked": len(exchanges),
            "answered": len(judged),
            "characters": sum(len(str(p)) for p in prompts) // max(1, len(prompts)),
            "right": sum(j["numeric"] for j in judged),
            "degenerate": sum(_is_degenerate(j["class"]) for j in judged),
            "errors": sorted({str(e.error) for e in exchanges if e.error}),
        }
    return result


def _is_degenerate(name: str | None) -> bool:
    from harness.gsm8k.classify import DEGENERATE

    return name in set(map(str, DEGENERATE))


def _resized(prompt: str | list[dict[str, str]], question: str, kind: str) -> str | list[dict[str, str]]:
    """Return the prompt without its examples, or with its examples repeated up to a length."""
    if isinstance(prompt, list):
        last = prompt[-1:]
        before = [m for m in prompt[:-1] if m["role"] != "system"]
        size = max(1, sum(len(m["content"]) for m in before))
        return last if kind == "short" or not before else before * (LONG_CHARACTERS // size + 1) + last
    at = prompt.rfind(question)
    if at < 0:
        return prompt
    line = prompt.rfind("\n\n", 0, at)
    examples, own = prompt[: line + 2 if line >= 0 else 0], prompt[line + 2 if line >= 0 else 0 :]
    if kind == "short":
        return own
    filler = examples or own + " ...\n\n"
    return filler * (LONG_CHARACTERS // max(1, len(filler)) + 1) + own
