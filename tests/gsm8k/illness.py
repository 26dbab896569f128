"""What an ill model does to its answers, for fault_server.py: rules, each with an effect and when it applies.

A rule is {"effect": name, ...conditions}; the first whose conditions all hold decides, and without one the answer stays.

Effects: wrong (fluent text, another number), flood, empty, null, reasoning (no text, the answer as reasoning), unmarked
(the right number without "####"), runs_on (a right answer that goes on to the token limit), cut (at the token limit,
before the answer), other (the answer to the question before), past_stop (goes on behind a stop string), filtered (right,
and ended by neither itself nor the limit).

Conditions: in_flight [least, most] (the most requests in flight while this one was), requests [after, until] (by the
server's count), seconds [after, until] (since its first request), longer (characters of the prompt), seen (times that
the same body came before), share (of the questions, by hash), chance (of the requests), grows (requests after which the
chance has grown from 0 to 1).
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from dataclasses import dataclass

FLOOD = "!" * 400
MORE = "She then thinks about the apples and about the boxes and about what is left of the day. "


@dataclass(frozen=True)
class Answer:
    text: str | None
    finish: str = "stop"
    reasoning: str | None = None


@dataclass(frozen=True)
class Request:
    """What conditions look at."""

    question: str
    prompt_length: int
    number: int
    peak: int
    seen: int
    second: float
    limit: int


class Illness:
    def __init__(self, rules: list[dict], seed: int = 0) -> None:
        self.rules = rules
        self.random = random.Random(seed)
        self.peaks: dict[int, int] = {}
        self.seen: Counter[str] = Counter()
        self.started: float | None = None
        self.before = "It is 1.\n#### 1"

    def enters(self, number: int, in_flight: int) -> None:
        """Count who is in flight during each request that runs."""
        if self.started is None:
            self.started = time.monotonic()
        self.peaks[number] = 0
        self.peaks = {other: max(peak, in_flight) for other, peak in self.peaks.items()}

    def leaves(self, number: int) -> None:
        self.peaks.pop(number, None)  # gone where a test handed the server on in between

    def answer(
        self, text: str, question: str, prompt: object, body: bytes, number: int, limit: int
    ) -> Answer:
        """Return what becomes of an answer."""
        key = hashlib.sha256(body).hexdigest()
        second = time.monotonic() - (self.started or 0.0)
        length, peak = len(str(prompt)), self.peaks.get(number, 1)
        request = Request(question, length, number, peak, self.seen[key], second, limit)
        self.seen[key] += 1
        rule = next((rule for rule in self.rules if self.applies(rule, request)), None)
        answer = Answer(text) if rule is None else EFFECTS[rule["effect"]](text, self.before, limit)
        self.before = text
        return answer

    def applies(self, rule: dict, request: Request) -> bool:
        return all(
            CONDITIONS[name](value, request, self.random) for name, value in rule.items() if name != "effect"
        )


def within(ends: list, value: float) -> bool:
    return ends[0] <= value <= (float("inf") if ends[1] is None else ends[1])


def share_of(question: str) -> float:
    return int(hashlib.sha256(b"ill" + question.encode()).hexdigest()[:8], 16) / 2**32


CONDITIONS = {
    "in_flight": lambda ends, request, draw: within(ends, request.peak),
    "requests": lambda ends, request, draw: within([ends[0] + 1, ends[1]], request.number),
    "seconds": lambda ends, request, draw: within(ends, request.second),
    "longer": lambda length, request, draw: request.prompt_length > length,
    "seen": lambda times, request, draw: request.seen >= times,
    "share": lambda share, request, draw: share_of(request.question) < share,
    "chance": lambda chance, request, draw: draw.random() < chance,
    "grows": lambda requests, request, draw: draw.random() < request.number / requests,
}

EFFECTS = {
    "wrong": lambda text, before, limit: Answer(" She counts them all.\n#### 123456789"),
    "flood": lambda text, before, limit: Answer(FLOOD, "length"),
    "empty": lambda text, before, limit: Answer(""),
    "null": lambda text, before, limit: Answer(None),
    "reasoning": lambda text, before, limit: Answer(None, reasoning=text.strip()),
    "unmarked": lambda text, before, limit: Answer(text.replace("#### ", "So the answer is ") + "."),
    "runs_on": lambda text, before, limit: Answer(
        text + "\n" + (MORE * (limit // 16))[: 4 * limit], "length"
    ),
    "cut": lambda text, before, limit: Answer(text[: len(text) // 3], "length"),
    "past_stop": lambda text, before, limit: Answer(text + "\n\nQuestion: What is 2 + 2?\nAnswer: 4"),
    "filtered": lambda text, before, limit: Answer(text, "content_filter"),
    "other": lambda text, before, limit: Answer(before),
}
