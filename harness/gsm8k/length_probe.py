"""Does an answer depend on the length of its prompt? Without examples, as it is, and behind many examples.

A kernel was right up to 5,500 tokens and wrong above (TensorRT-LLM#15295); five examples are 700.
"""

from __future__ import annotations

import asyncio
from itertools import cycle
from typing import TYPE_CHECKING, Any

from harness.gsm8k.answer_pairs import compared
from harness.gsm8k.classify import DEGENERATE

if TYPE_CHECKING:
    from harness.gsm8k.client import Exchange
    from harness.gsm8k.questions import Asker
    from harness.gsm8k.task import Question

TARGETS = 8
CHARACTERS_OF_A_TOKEN = 3.5
"""Where the server does not count tokens."""

Prompt = str | list[dict[str, str]]


async def run(asker: Asker, targets: list[Question], others: list[Question], tokens: int) -> dict[str, Any]:
    """Ask some targets with each length of prompt; count right and degenerate answers, compare with the prompt as it is."""
    targets = targets[:TARGETS]
    plain = {q.index: asker.prompt(q) for q in targets}
    found = {"plain": await _ask(asker, targets, plain)}
    counted = [
        (_size(plain[index]), e.reply.prompt_tokens)
        for index, e in found["plain"].items()
        if e.reply and e.reply.prompt_tokens
    ]
    rate = sum(size for size, _ in counted) / sum(n for _, n in counted) if counted else CHARACTERS_OF_A_TOKEN
    blocks = [_solved(asker.prompt(q), q) for q in others]
    prompts = {
        "short": {q.index: _split(plain[q.index], q.question)[1] for q in targets},
        "plain": plain,
        "long": {q.index: _longer(plain[q.index], q, blocks, int(tokens * rate)) for q in targets},
    }
    for kind in ("short", "long"):
        found[kind] = await _ask(asker, targets, prompts[kind])
    result = {kind: _counts(asker, targets, prompts[kind], found[kind]) for kind in prompts}
    result["long"] |= {"against_plain": compared(asker, targets, found["plain"], found["long"])}
    return result


def notes(probe: dict[str, Any], surprise: float) -> list[str]:
    """Return what was found, in words, where chance explains it with less than this probability."""
    said = []
    for kind, counts in probe.items():
        if counts["answered"] and counts["degenerate"] == counts["answered"]:
            said.append(f"every answer to a {kind} prompt is degenerate")
        if not counts["answered"] and counts["errors"]:
            said.append(
                f"no {kind} prompt of {counts['characters']:,} characters was answered: {counts['errors'][0]}"
            )
    found = probe.get("long", {}).get("against_plain")
    if found and found["p"] is not None and found["p"] < surprise:
        lengths = [probe[kind]["tokens"] or probe[kind]["characters"] for kind in ("long", "plain")]
        unit = "tokens" if probe["long"]["tokens"] else "characters"
        said.append(
            f"accuracy changes with the length of the prompt: {found['right']} of {found['compared']} right with "
            f"{lengths[0]:,} {unit}, {found['right_alone']} with {lengths[1]:,} (two-sided mid-p {found['p']:.1g})"
        )
    return said


async def _ask(asker: Asker, targets: list[Question], prompts: dict[int, Prompt]) -> dict[int, Exchange]:
    exchanges = await asyncio.gather(*(asker.ask(prompts[q.index]) for q in targets))
    return {q.index: e for q, e in zip(targets, exchanges, strict=True)}


def _counts(
    asker: Asker, targets: list[Question], prompts: dict[int, Prompt], found: dict[int, Exchange]
) -> dict[str, Any]:
    replies = [(q, reply) for q in targets if (reply := found[q.index].reply)]
    judged = [asker.judged(q, reply) for q, reply in replies]
    counted = [reply.prompt_tokens for _, reply in replies if reply.prompt_tokens]
    return {
        "asked": len(found),
        "answered": len(judged),
        "characters": sum(map(_size, prompts.values())) // max(1, len(prompts)),
        "tokens": sum(counted) // len(counted) if counted else None,
        "right": sum(j["numeric"] for j in judged),
        "degenerate": sum(j["class"] in set(map(str, DEGENERATE)) for j in judged),
        "errors": sorted({str(e.error) for e in found.values() if e.error}),
    }


def _size(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(m["content"]) for m in prompt)


def _split(prompt: Prompt, question: str) -> tuple[Prompt, Prompt]:
    """Return the examples of a prompt and its own question; without examples the first is empty."""
    if isinstance(prompt, list):
        return [m for m in prompt[:-1] if m["role"] != "system"], prompt[-1:]
    at = prompt.rfind(question)
    line = prompt.rfind("\n\n", 0, at) if at >= 0 else -1
    return (prompt[: line + 2], prompt[line + 2 :]) if line >= 0 else ("", prompt)


def _solved(prompt: Prompt, question: Question) -> Any:
    """Return what a question adds to a longer prompt: its examples, where it has none itself with its answer."""
    examples, own = _split(prompt, question.question)
    if examples:
        return examples
    if isinstance(own, list):
        return [*own, {"role": "assistant", "content": question.expected}]
    return f"{own} {question.expected}\n\n"


def _longer(prompt: Prompt, question: Question, blocks: list[Any], size: int) -> Any:
    """Return the prompt behind these blocks of examples, up to a size in characters; none that holds its question."""
    examples, own = _split(prompt, question.question)
    others = [block for block in blocks if question.question not in str(block)]
    before: Any = examples
    added = cycle(others)
    while others and _size(before) + _size(own) < size:
        before = next(added) + before
    return before + own
