"""The requests of the load sweep: questions so many at a time, at random places among others. load.py plans and judges."""

from __future__ import annotations

import asyncio
import random
from itertools import cycle
from typing import TYPE_CHECKING

from harness.gsm8k.load import Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.client import Exchange
    from harness.gsm8k.load import Probe
    from harness.gsm8k.questions import Asker, Planned
    from harness.gsm8k.settings import Gsm8kSettings
    from harness.gsm8k.task import Question
    from harness.records.parts.gsm8k import Gsm8kSample

AFTER_DEAD_S = 1.0
"""How long the cause of a dead wave is looked for: its verdict must not wait for answers of a slow server."""
LEAST_ANSWERS = 5
"""Answers one after another in which that cause can be found at all."""
SLOWER = 10.0
"""A wave is given up after so many times the slowest answer of the run, and `LEAST_S` more."""
LEAST_S = 10.0


class Waves:
    """Asks questions in waves of a size."""

    def __init__(self, asker: Asker, questions: Sequence[Question], seed: int, slowest_s: float) -> None:
        self._asker = asker
        self._questions = {question.index: question for question in questions}
        self._random = random.Random(seed)
        company = list(questions)
        self._random.shuffle(company)
        self._company = cycle(company)
        self._limit_s = LEAST_S + SLOWER * slowest_s

    async def ask(self, size: int, targets: Sequence[int]) -> list[bool | None]:
        """Ask wave by wave; see `load.Ask`. What is left of a wave is filled with other questions."""
        right: list[bool | None] = []
        for start in range(0, len(targets), size):
            right += await self._wave(size, targets[start : start + size])
        return right

    async def _wave(self, size: int, targets: Sequence[int]) -> list[bool | None]:
        members = [self._questions[index] for index in targets]
        others = (question for question in self._company if question.index not in targets)
        # A run of no more questions than a wave of targets has no other company than they.
        spare = others if len(self._questions) > len(set(targets)) else cycle(members)
        wave = [*enumerate(members), *((None, next(spare)) for _ in range(size - len(members)))]
        self._random.shuffle(wave)
        asked = [(place, question, asyncio.ensure_future(self._one(question))) for place, question in wave]
        try:
            await asyncio.wait([task for *_, task in asked], timeout=self._limit_s)
        finally:
            for *_, task in asked:
                task.cancel()
        right: list[bool | None] = [None] * len(members)
        for place, question, task in asked:
            if place is not None and task.done() and not task.cancelled():
                right[place] = self._judge(question, task.result())
        return right

    async def _one(self, question: Question) -> Exchange:
        return await self._asker.ask(self._asker.prompt(question))

    def _judge(self, question: Question, exchange: Exchange) -> bool | None:
        """Return whether any extractor finds the answer right; None without one, or with one that needed a retry.

        A retry is sent when the wave is over: what it brings says nothing about the wave.
        """
        if exchange.reply is None or exchange.attempts > 1:
            return None
        judged = self._asker.judged(question, exchange.reply)
        return judged["strict"] or judged["flexible"] or judged["numeric"]


async def sweep_load(
    asker: Asker,
    planned: Sequence[Planned],
    samples: Sequence[Gsm8kSample],
    settings: Gsm8kSettings,
    *,
    dead: bool,
) -> Probe:
    """Run the sweep and return its record.

    Args:
        asker: of the server that is judged.
        planned: all of the run.
        samples: what the run has answered, in the order asked; of repeats the first.
        settings: of the run. Smoke mode asks alone only, unless the probes were asked for.
        dead: the smoke wave has failed. Its other requests were abandoned and may still be running.
    """
    answered = [s for s in samples if s["error"] is None]
    first = {s["index"]: s["strict"] or s["flexible"] or s["numeric"] for s in answered}
    found = Sweep(min(settings.concurrency, len(planned)), first)
    if not found.possible:
        return {"ran": False, "reason": f"{len(first)} answered questions are too few"}
    latencies = [s["latency_s"] or 0.0 for s in answered]
    hurried = dead and not settings.probe
    if hurried and LEAST_ANSWERS * min(latencies) > AFTER_DEAD_S:
        reason = f"a dead server that takes {min(latencies):.1f} s an answer is asked no more without --probe"
        return {"ran": False, "reason": reason}
    questions = [p.question for p in planned if p.repeat == 0]
    waves = Waves(asker, questions, settings.seed, max(latencies))
    try:
        async with asyncio.timeout(AFTER_DEAD_S if hurried else None):
            if dead:
                await asyncio.sleep(1.5 * min(latencies))
            more = dead or settings.probe or settings.mode == "full"
            await found.run(waves.ask, waves=more, dead=dead)
    except TimeoutError:
        pass
    return found.as_json()
