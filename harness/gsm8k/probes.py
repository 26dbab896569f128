"""Requests beside the task: does the server answer the same request the same way, alone and in company?

Sanity and determinism (two requests) are part of every run. `--probe` adds repeats, batch sizes and prompt lengths:
bugs at batch size 1 only and at batch size 256 only are both on record, and a run at one concurrency sees one of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from harness.gsm8k.statistics import mcnemar_mid_p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.client import Exchange
    from harness.gsm8k.questions import Asker, Planned
    from harness.gsm8k.task import Question

SANITY_TOKENS = 64
TARGETS = 16
WAVES = (8, 32, 128)
REPEATS = 4
LONG_CHARACTERS = 24_000
SHOWN = 160
SURPRISE = 0.01

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
    others = [p.question for p in planned if p.repeat == 0][TARGETS:]
    results: dict[str, Probe] = {}
    if "repeats" not in journaled:
        results["repeats"] = _same([await _ask(asker, targets[0]) for _ in range(REPEATS)])
    if "batches" not in journaled:
        results["batches"] = await _batches(asker, targets, others)
    if "lengths" not in journaled:
        results["lengths"] = await _lengths(asker, targets[: max(1, TARGETS // 4)])
    return results


def notes(probes: dict[str, Probe]) -> list[str]:
    """Return what the probes found out, in words, most serious first."""
    said = [
        f"accuracy changes with concurrency: {wave['right']} of {wave['compared']} right in waves of {wave['size']}, "
        f"{wave['right_alone']} alone (two-sided mid-p {wave['p']:.1g})"
        for wave in probes.get("batches", {}).get("waves", [])
        if wave["p"] is not None and wave["p"] < SURPRISE
    ]
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


async def _batches(asker: Asker, targets: list[Question], others: list[Question]) -> Probe:
    """Ask the same requests one at a time and among 8, 32 and 128 at once; compare texts and right answers."""
    alone = {q.index: await _ask(asker, q) for q in targets}
    waves = []
    for size in WAVES:
        found: dict[int, Exchange] = {}
        for start in range(0, len(targets), size):
            members = targets[start : start + size]
            company = (others * (size // max(1, len(others)) + 1))[: size - len(members)]
            exchanges = await asyncio.gather(*(_ask(asker, q) for q in (*members, *company)))
            found |= {q.index: e for q, e in zip(members, exchanges, strict=False)}
        waves.append({"size": size, **_compared(asker, targets, alone, found)})
    return {"targets": [q.index for q in targets], "waves": waves}


def _compared(
    asker: Asker, targets: list[Question], alone: dict[int, Exchange], found: dict[int, Exchange]
) -> dict[str, Any]:
    """Compare the answers in a wave with those alone, question by question; right means by value."""
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
