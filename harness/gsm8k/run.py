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
from pathlib import Path
from typing import Any

from harness.gsm8k.against import Against, against_what
from harness.gsm8k.asking import Asking
from harness.gsm8k.credentials import Redactor
from harness.gsm8k.decision import full_decision
from harness.gsm8k.load import load_decision, with_load
from harness.gsm8k.logprobs.run import check_recording
from harness.gsm8k.outcome import combine, counted
from harness.gsm8k.path import accuracy_path
from harness.gsm8k.payload import MAX_STOP
from harness.gsm8k.preflight import ADVICE, unreachable
from harness.gsm8k.questions import answer_limit, answers_fit, plan
from harness.gsm8k.serve import serving
from harness.gsm8k.settings import Gsm8kSettings, allow_files, check_output
from harness.gsm8k.setups import setup_of
from harness.gsm8k.task import Task, load_task, reads_hub
from harness.records.environment import describe_environment
from harness.records.parts.gsm8k import (
    Decision,
    Gsm8kDecisions,
    Gsm8kRequests,
    Gsm8kResumed,
    Gsm8kRun,
    Gsm8kServer,
    Gsm8kTask,
)
from harness.records.record import RunRecord
from harness.version import __version__


def run(settings: Gsm8kSettings, command: list[str]) -> RunRecord:
    """Ask, judge and write `record.json`. Raises what `judged` does, and OSError where it cannot be written."""
    record = judged(settings, command)
    record.write(settings.out / "record.json")
    return record


def judged(settings: Gsm8kSettings, command: list[str]) -> RunRecord:
    """Ask, judge and return the record, which is not written yet.

    Raises:
        UsageError: something the user has to correct, before anything is written to the output folder's record.
    """
    started, created = time.monotonic(), datetime.now(UTC)
    settings.check()
    check_output(settings.out)
    allow_files(settings.concurrency)
    if (away := _away(settings)) and reads_hub(settings.task, settings.dataset):
        decision, interrupted = Decision("UNKNOWN", "infra", away), False
        found = unasked_run(settings, decision)
    else:
        asking, decision, found = _asked_run(settings, away)
        interrupted = asking.interrupted
    record = RunRecord(
        run_id=uuid.uuid4().hex,
        created=created.isoformat(timespec="seconds"),
        command=command,
        verdict=decision.verdict,
        reason=f"gsm8k: {decision.label}: {decision.reason}",
        harness_version=__version__,
        seed=settings.seed,
        interrupted=interrupted,
        environment=describe_environment("server", devices=False),
    )
    record.seconds = time.monotonic() - started
    record.gsm8k_run = replace(found, seconds={"total": record.seconds, **found.seconds})
    return record


def _away(settings: Gsm8kSettings) -> str:
    """Return why a server that nobody waits for cannot be asked, "" where all can. Takes seconds at most.

    Looked at before the task's data, which from the hub may take half a minute to fail.
    """
    if not settings.ready_s and (why := unreachable(settings.endpoint)):
        return f"{settings.endpoint.display}: {why}{ADVICE}"
    if settings.against and not settings.wait_ready and (why := unreachable(settings.against)):
        return f"--against {settings.against.display}: {why}{ADVICE}"
    return ""


def _asked_run(settings: Gsm8kSettings, away: str) -> tuple[Asking, Decision, Gsm8kRun]:
    """Load the task, do everything that needs a server, and decide; nothing is asked where one is `away`."""
    task = load_task(
        settings.task,
        dataset=settings.dataset,
        fewshot=settings.fewshot,
        num_fewshot=settings.num_fewshot,
        chat=settings.chat,
        fewshot_as_multiturn=settings.multiturn,
        system_instruction=settings.system_instruction,
    )
    planned = plan(task, settings)
    against = against_what(settings, task, setup_of(task_facts(task), settings_facts(task, settings)))
    check_recording(task, settings)
    asking = Asking(settings, task, planned, against.counts(task.stop))
    decision, decisions = against.refusal(), Gsm8kDecisions()
    if decision is None:
        asking.not_ready = away
        if not away:
            with serving(settings, _redactor(settings)) as served:
                asyncio.run(asking.main(served))
        against = against.of_server(asking.dialect.refused)
        decision, decisions = decide(asking, against)
    found = served_run(asking, decision, decisions)
    return asking, decision, replace(found, notes=[*against.notes(found.model), *found.notes])


def _redactor(settings: Gsm8kSettings) -> Redactor:
    """Return what takes every secret of a run out of its server's log."""
    endpoints = [settings.endpoint, *([settings.against] if settings.against else [])]
    return Redactor(settings.api_key, *settings.hidden, *(h for e in endpoints for h in e.hidden))


def decide(asking: Asking, against: Against) -> tuple[Decision, Gsm8kDecisions]:
    """Return the run's verdict, and the decisions that it came from."""
    s, smoke = asking.settings, asking.smoke
    load = load_decision(asking.probes.get("load"))
    if smoke is not None and asking.smoke_ends_it:
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
        said = logprobs if logprobs is not None and logprobs.word != "PASS" else None
        judged = _with_errors(asking, combine([found for found in (smoke, said) if found is not None]))
        return with_load(judged, load), Gsm8kDecisions(smoke, load=load, logprobs=logprobs)
    samples = asking.sorted_samples()
    full = full_decision(
        samples,
        expect=s.expect,
        min_accuracy=against.min_accuracy,
        max_unanswered=s.max_unanswered,
        limits=s.limits,
        metric=s.metric,
        compared=any(there is not None for there in (against.baseline, asking.reference, logprobs)),
        baseline=None if against.unlike_baseline else asking.baseline,
        answers_fit=answers_fit(asking.task, s),
        stop=asking.task.stop,
    )
    paired = against.compare(samples)
    live = asking.reference.decision(asking.dialect.refused) if asking.reference else None
    failed_wave = smoke if smoke is not None and smoke.word == "FAIL" and full.word != "FAIL" else None
    all_of_them = (against.unlike_preset(), full, failed_wave, paired, live, logprobs)
    judged = combine([found for found in all_of_them if found is not None])
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
        task=task_facts(asking.task),
        server=Gsm8kServer(
            url=server.url if server else s.endpoint.display,
            model=server.model if server else s.model or "",
            version=server.version if server else "",
            **({"refused": asking.dialect.refused} if asking.dialect.refused else {}),
        ),
        settings=settings_facts(asking.task, s),
        resumed=Gsm8kResumed(s.resume, asking.resumed),
        decisions=decisions,
        probes=asking.probes,
        notes=asking.notes,
        logprobs=asking.logprobs.part() if asking.logprobs else None,
        against=asking.reference.as_run() if asking.reference else None,
    )


def unasked_run(settings: Gsm8kSettings, decision: Decision) -> Gsm8kRun:
    """Return what the record holds of a run that ended before its task was loaded, but for the seconds in all."""
    return Gsm8kRun(
        verdict=decision.word,
        qualifier=decision.qualifier,
        reason=decision.reason,
        metric=settings.metric,
        requests=Gsm8kRequests(),
        task=Gsm8kTask(name=Path(settings.task).stem),
        server=Gsm8kServer(url=settings.endpoint.display, model=settings.model or "", version=""),
        settings=settings.as_json(),
        resumed=Gsm8kResumed(settings.resume),
    )


def task_facts(task: Task) -> Gsm8kTask:
    """Return what the record holds of a task."""
    return Gsm8kTask(
        name=task.name,
        version=task.version,
        hashes=task.hashes,
        generation=task.generation,
        stop=list(task.stop[:MAX_STOP]),
        num_fewshot=task.num_fewshot,
        notes=list(task.notes),
    )


def settings_facts(task: Task, settings: Gsm8kSettings) -> dict[str, Any]:
    """Return what the record holds of the settings."""
    return {**settings.as_json(), "max_tokens": answer_limit(task, settings)}
