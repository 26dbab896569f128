"""One run, in order: check, load the task, ask (asking.py), decide, record.

`run` returns the record and writes it; the command line prints and exits. A run that is interrupted, or whose server
goes away, still ends with a record.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.gsm8k import probes
from harness.gsm8k.asking import Asking
from harness.gsm8k.decision import full_decision, paired_decision
from harness.gsm8k.load import load_decision, with_load
from harness.gsm8k.logprobs.run import check_recording
from harness.gsm8k.outcome import combine, counted
from harness.gsm8k.path import accuracy_path
from harness.gsm8k.payload import MAX_STOP
from harness.gsm8k.questions import answer_limit, answers_fit, plan
from harness.gsm8k.settings import Gsm8kSettings, allow_files, check_output
from harness.gsm8k.task import Task, load_task
from harness.records.environment import describe_environment
from harness.records.from_json import RecordError
from harness.records.parts.gsm8k import (
    Decision,
    Gsm8kDecisions,
    Gsm8kResumed,
    Gsm8kRun,
    Gsm8kServer,
    Gsm8kTask,
)
from harness.records.record import RunRecord, load_record
from harness.verdict import UsageError
from harness.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.counts import Sample


def run(settings: Gsm8kSettings, command: list[str]) -> RunRecord:
    """Ask, judge and write `record.json`.

    Raises:
        UsageError: something the user has to correct, before anything is written to the output folder's record.
    """
    started, created = time.monotonic(), datetime.now(UTC)
    settings.check()
    check_output(settings.out)
    allow_files(settings.concurrency)
    baseline = _baseline(settings)
    task = load_task(
        settings.task,
        dataset=settings.dataset,
        fewshot=settings.fewshot,
        num_fewshot=settings.num_fewshot,
        chat=settings.chat,
        fewshot_as_multiturn=settings.multiturn,
        system_instruction=settings.system_instruction,
    )
    check_recording(task, settings)
    asking = Asking(settings, task, plan(task, settings))
    if baseline is not None:
        _refuse_other_questions(task, baseline, settings.metric)
    asyncio.run(asking.main())
    decision, decisions = decide(asking, baseline)
    record = RunRecord(
        run_id=uuid.uuid4().hex,
        created=created.isoformat(timespec="seconds"),
        command=command,
        verdict=decision.verdict,
        reason=f"gsm8k: {decision.label}: {decision.reason}",
        harness_version=__version__,
        seed=settings.seed,
        interrupted=asking.interrupted,
        environment=describe_environment("server", devices=False),
    )
    found = served_run(asking, decision, decisions)
    record.seconds = time.monotonic() - started
    record.gsm8k_run = replace(found, seconds={"total": record.seconds, **found.seconds})
    record.write(settings.out / "record.json")
    return record


def decide(asking: Asking, baseline: Sequence[Sample] | None) -> tuple[Decision, Gsm8kDecisions]:
    """Return the run's verdict, and the decisions that it came from."""
    s, smoke = asking.settings, asking.smoke
    load = load_decision(asking.probes.get("load"))
    if smoke is not None and smoke.word == "FAIL":
        return with_load(smoke, load), Gsm8kDecisions(smoke, load=load)
    if asking.interrupted:
        found = f"interrupted after {len(asking.samples):,} of {len(asking.planned):,} questions"
        cut = Decision("UNKNOWN", "undecided", f"{found}; --resume goes on from here")
        return cut, Gsm8kDecisions(smoke)
    if asking.not_ready:
        return Decision("UNKNOWN", "infra", asking.not_ready), Gsm8kDecisions(smoke)
    logprobs = asking.logprobs.decision() if asking.logprobs else None
    if s.mode == "smoke":
        smoke = smoke or asking.judge_wave()
        judged = smoke if logprobs is None or logprobs.word == "PASS" else combine([smoke, logprobs])
        return with_load(_with_errors(asking, judged), load), Gsm8kDecisions(
            smoke, load=load, logprobs=logprobs
        )
    samples = asking.sorted_samples()
    full = full_decision(
        samples,
        expect=s.expect,
        min_accuracy=s.min_accuracy,
        max_unanswered=s.max_unanswered,
        limits=s.limits,
        metric=s.metric,
        has_baseline=baseline is not None or asking.reference is not None,
        answers_fit=answers_fit(asking.task, s),
    )
    paired = None
    if baseline is not None:
        paired = paired_decision(samples, baseline, max_drop=s.max_drop, metric=s.metric)
    live = asking.reference.decision() if asking.reference else None
    judged = combine([decision for decision in (full, paired, live, logprobs) if decision is not None])
    decisions = Gsm8kDecisions(smoke, full, paired, load, live, logprobs)
    return with_load(_with_errors(asking, judged), load), decisions


def _with_errors(asking: Asking, decision: Decision) -> Decision:
    """Name the commonest error in the reason of an infra verdict."""
    lines = asking.client.errors.lines()
    if decision.qualifier != "infra" or not lines:
        return decision
    reason = f"{decision.reason}; mostly: {lines[0].error} ({lines[0].count} times)"
    return replace(decision, reason=reason)


def served_run(asking: Asking, decision: Decision, decisions: Gsm8kDecisions) -> Gsm8kRun:
    """Return what the record holds of a run over HTTP, but for the seconds in all."""
    s, server = asking.settings, asking.server
    return replace(
        counted(asking.sorted_samples(), len(asking.planned), s.metric),
        verdict=decision.word,
        qualifier=decision.qualifier,
        reason=decision.reason,
        path=accuracy_path(
            [asking.samples[p.key] for p in asking.planned if p.key in asking.samples], s.metric
        ),
        requests=asking.client.requests,
        errors=asking.client.errors.lines(),
        seconds={"requests": asking.asking_s, "ready": server.ready_s if server else None},
        task=Gsm8kTask(
            name=asking.task.name,
            version=asking.task.version,
            hashes=asking.task.hashes,
            generation=asking.task.generation,
            stop=list(asking.task.stop[:MAX_STOP]),
            num_fewshot=asking.task.num_fewshot,
            notes=list(asking.task.notes),
        ),
        server=Gsm8kServer(
            url=s.endpoint.display,
            model=server.model if server else s.model or "",
            version=server.version if server else "",
        ),
        settings={**s.as_json(), "max_tokens": answer_limit(asking.task, s)},
        resumed=Gsm8kResumed(s.resume, asking.resumed),
        decisions=decisions,
        probes=asking.probes,
        notes=probes.notes(asking.probes),
        logprobs=asking.logprobs.part() if asking.logprobs else None,
        against=asking.reference.as_run() if asking.reference else None,
    )


def _baseline(settings: Gsm8kSettings) -> Sequence[Sample] | None:
    """Return the samples of the baseline record.

    Raises:
        UsageError: it cannot be read, or holds no GSM8K samples.
    """
    if settings.baseline is None:
        return None
    try:
        baseline = load_record(settings.baseline).gsm8k_run
    except RecordError as error:
        raise UsageError(f"--baseline {error}") from None
    if baseline is None or not any(s.get("error") is None for s in baseline.samples):
        raise UsageError(f"--baseline {settings.baseline}: holds no answered GSM8K question")
    return baseline.samples


def _refuse_other_questions(task: Task, baseline: Sequence[Sample], metric: str) -> None:
    """Refuse a baseline of other data now, not after the last answer."""
    unjudged = [
        {"index": q.index, "question": q.question, "error": None, "class": "", metric: False}
        for q in task.questions
    ]
    paired_decision(unjudged, baseline, metric=metric)
