"""The canary's questions in this process: what `harness canary serve` and `harness gsm8k` do together, without HTTP.

Task, prompts, scores, classes and decisions are those of `harness gsm8k`; only the transport is left out.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.canary.part import MAX_TOKENS, MIN_ACCURACY
from harness.gsm8k.client import Exchange
from harness.gsm8k.decision import full_decision, smoke_decision
from harness.gsm8k.judgement import EXPECT
from harness.gsm8k.outcome import combine, counted
from harness.gsm8k.payload import MAX_STOP, Reply
from harness.gsm8k.questions import Planned, plan, sample_of
from harness.gsm8k.settings import Gsm8kSettings
from harness.gsm8k.task import Task, load_task
from harness.records.parts.gsm8k import Decision, Gsm8kDecisions, Gsm8kRun, Gsm8kServer, Gsm8kTask

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.canary.generate import Engine
    from harness.records.parts.gsm8k import Gsm8kSample
    from harness.records.record import RunRecord

BATCH = 256  # requests in the engine at once


class HasEngine(Protocol):
    """A loaded canary."""

    def engine(self) -> Engine:
        """Return a new engine."""


def answer_questions(canary: HasEngine, task: Task, planned: Iterable[Planned]) -> list[Gsm8kSample]:
    """Return the samples of all planned questions, decoded in one running batch of at most BATCH.

    Args:
        canary: a loaded canary.
        task: of `harness.gsm8k.task.load_task`.
        planned: what to ask, in order.
    """
    engine = canary.engine()
    waiting = list(planned)[::-1]
    running: dict[int, tuple[Planned, str, float]] = {}
    samples = []
    while waiting or running:
        while waiting and len(running) < BATCH:
            one = waiting.pop()
            number = engine.add(
                one.question.prompt or "", max_new_tokens=MAX_TOKENS, stop=list(task.stop[:MAX_STOP])
            )
            running[number] = (one, "", time.monotonic())
        for step in engine.step():
            one, text, started = running[step.number]
            text += step.text
            running[step.number] = (one, text, started)
            if step.finish_reason is not None:
                del running[step.number]
                reply = Reply(text, None, step.finish_reason, step.prompt_tokens, step.new_tokens)
                exchange = Exchange(reply, None, 1, time.monotonic() - started)
                samples.append(sample_of(task, one, exchange))
    return sorted(samples, key=lambda sample: sample["index"])


def run_in_process(
    canary: HasEngine, name: str, *, questions: int, unseen: bool = False, seed: int = 0
) -> RunRecord:
    """Ask and judge, and return a record with the run under `gsm8k`.

    Args:
        canary: a loaded canary.
        name: of the candidate, for the record.
        questions: how many of the test set.
        unseen: ask the problems of families that were never trained on.
        seed: of the choice of questions.

    Raises:
        UsageError: more questions than there are.
    """
    from harness.records.new import new_record

    record = new_record("", seed)
    started = time.monotonic()
    found = run_questions(canary, name, questions=questions, unseen=unseen, seed=seed)
    record.seconds = time.monotonic() - started
    seconds = {"total": record.seconds, "requests": record.seconds, "ready": None}
    record.gsm8k_run = replace(found, seconds=seconds)
    record.verdict = Decision(found.verdict, "", "").verdict
    record.reason = f"canary on {name}: {found.reason}"
    return record


def run_questions(
    canary: HasEngine, name: str, *, questions: int, unseen: bool = False, seed: int = 0
) -> Gsm8kRun:
    """Ask and judge; without the seconds, and without what only a server has."""
    from harness.gsm8k.credentials import parse_base_url

    task = load_task("gsm_canary_unseen" if unseen else "gsm_canary")
    settings = Gsm8kSettings(
        endpoint=parse_base_url("http://in-process/v1"),
        out=Path(os.devnull),
        task=task.name,
        questions=min(questions, len(task.questions)) if unseen else questions,
        seed=seed,
        max_tokens=MAX_TOKENS,
        min_accuracy=MIN_ACCURACY,
    )
    planned = plan(task, settings)
    wave, rest = [p for p in planned if p.wave], [p for p in planned if not p.wave]
    samples = answer_questions(canary, task, wave)
    judged: dict[str, Any] = {"expect": EXPECT, "answers_fit": task.answers_fit, "stop": task.stop}
    smoke = smoke_decision(samples, **judged)
    full = None
    if smoke.word != "FAIL":
        samples = sorted(samples + answer_questions(canary, task, rest), key=lambda s: s["index"])
        full = full_decision(samples, min_accuracy=MIN_ACCURACY, **judged)
    decision = combine([full or smoke])
    return replace(
        counted(samples, len(planned), "strict"),
        verdict=decision.word,
        qualifier=decision.qualifier,
        reason=decision.reason,
        task=Gsm8kTask(name=task.name, version=task.version, hashes=task.hashes, generation=task.generation),
        server=Gsm8kServer(url="", model=f"canary-256/{name}", version=""),
        settings=settings.as_json(),
        decisions=Gsm8kDecisions(smoke, full),
    )
