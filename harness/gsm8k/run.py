"""One run, in order: check, load the task, find the server, ask (the smoke wave first), probe, decide, record.

`run` returns the record and writes it; the command line prints and exits. A run that is interrupted, or whose server
goes away, still ends with a record.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.gsm8k import probes
from harness.gsm8k.client import Client, Limits
from harness.gsm8k.decision import Decision, full_decision, paired_decision, smoke_decision
from harness.gsm8k.ending_signals import EndingSignals
from harness.gsm8k.journal import Journal
from harness.gsm8k.outcome import combine, decision_json, summary
from harness.gsm8k.path import accuracy_path
from harness.gsm8k.payload import MAX_STOP
from harness.gsm8k.pool import Pool, Step
from harness.gsm8k.preflight import NotReadyError, Server, find_server
from harness.gsm8k.progress import Progress
from harness.gsm8k.questions import Asker, Planned, Sample, answer_limit, answers_fit, plan, sample_of
from harness.gsm8k.settings import Settings, allow_files, check_output
from harness.gsm8k.task import Task, load_task
from harness.records.environment import describe_environment
from harness.records.from_json import RecordError
from harness.records.record import RunRecord, load_record
from harness.verdict import UsageError
from harness.version import __version__

if TYPE_CHECKING:
    from harness.gsm8k.errors import RequestError

FIRST_ERRORS_SAID = 5
_NOT_RUN = {"ran": False, "reason": "the run ended first"}


def run(settings: Settings, command: list[str]) -> RunRecord:
    """Run the stage and write `record.json`.

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
    stage = Stage(settings, task, plan(task, settings))
    if baseline is not None:
        _refuse_other_questions(task, baseline, settings.metric)
    asyncio.run(stage.main())
    decision = stage.decide(baseline)
    record = RunRecord(
        run_id=uuid.uuid4().hex,
        created=created.isoformat(timespec="seconds"),
        command=command,
        verdict=decision.verdict,
        reason=f"gsm8k: {decision.label}: {decision.reason}",
        harness_version=__version__,
        seed=settings.seed,
        interrupted=stage.interrupted,
        environment=describe_environment("server", devices=False),
        gsm8k=stage.as_json(decision),
    )
    record.seconds = time.monotonic() - started
    if record.gsm8k is not None:
        record.gsm8k["seconds"]["total"] = record.seconds
    record.write(settings.out / "record.json")
    return record


class Stage:
    """The state of one run between the first look at the server and the decision."""

    def __init__(self, settings: Settings, task: Task, planned: list[Planned]) -> None:
        self.settings = settings
        self.task = task
        self.planned = planned
        self.samples: dict[tuple[int, int], Sample] = {}
        self.probes: dict[str, Any] = {"sanity": dict(_NOT_RUN)}
        self.smoke: Decision | None = None
        self.full: Decision | None = None
        self.paired: Decision | None = None
        self.not_ready = ""
        self.interrupted = False
        self.resumed = 0
        self.server: Server | None = None
        self._pool = Pool(settings.concurrency)
        self._progress = Progress(len(planned), settings.metric)
        self._wave_left = {p.key for p in planned if p.wave}
        self._unanswered = 0
        self._asking_s = 0.0
        self.client = Client(
            settings.endpoint,
            settings.api_key,
            settings.concurrency,
            Limits(settings.timeout, settings.retry_seconds),
            settings.stream,
            self._say_error,
        )
        self._errors_said = 0
        self._journal: Journal | None = None

    async def main(self) -> None:
        """Do everything that needs the server. Ctrl-C and SIGTERM end it early and leave the rest to `decide`."""
        with EndingSignals(self._interrupt, asyncio.current_task()):
            try:
                async with self.client:
                    await self._with_server()
            except NotReadyError as error:
                self.not_ready = str(error)
            except asyncio.CancelledError:
                if not self.interrupted:
                    raise
            finally:
                self._progress.close()
                if self._journal is not None:
                    self._journal.close()

    def _interrupt(self) -> None:
        self.interrupted = True

    async def _with_server(self) -> None:
        settings = self.settings
        self.server = await find_server(self.client, settings.model, settings.wait_ready, self._progress.say)
        asker = Asker(self.client, self.task, settings, self.server.model)
        self._journal = Journal.open(settings.out, self._binding(self.server), resume=settings.resume)
        for name in ("record.json", "report.html", "junit.xml"):
            (settings.out / name).unlink(
                missing_ok=True
            )  # if this run is killed, an older verdict must not stand
        started = time.monotonic()
        try:
            await self._pool.run(self._steps(asker, self._journal))
            if settings.probe and not self._pool.stopped:
                done = await probes.run_probes(asker, self.planned, self._journal.found.probes)
                for name, result in done.items():
                    self._add_probe(name, result)
        finally:
            self._asking_s = time.monotonic() - started

    def _steps(self, asker: Asker, journal: Journal) -> list[Step]:
        """Return what is left to ask: the wave, behind it the two requests of the sanity check, then the rest."""
        self.probes |= journal.found.probes
        left = []
        for planned in self.planned:
            sample = journal.found.samples.get(planned.key)
            if sample is None:
                left.append(planned)
            else:
                self.resumed += 1
                self._take(planned, sample | {"wave": planned.wave}, journaled=True)
        if self._pool.stopped:
            return []
        steps: list[Step] = [partial(self._ask, asker, p) for p in left]
        if "sanity" not in journal.found.probes:
            sanity = probes.Sanity(asker, self.planned[0].question)
            behind = sum(p.wave for p in left)
            steps[behind:behind] = [partial(self._check_sanity, sanity)] * 2
        return steps

    async def _ask(self, asker: Asker, planned: Planned) -> None:
        exchange = await asker.ask(asker.prompt(planned.question))
        self._pool.later(lambda: self._take(planned, sample_of(self.task, planned, exchange)))

    async def _check_sanity(self, sanity: probes.Sanity) -> None:
        result = await sanity.ask()
        if result is not None:
            self._add_probe("sanity", result)

    def _add_probe(self, name: str, result: dict[str, Any]) -> None:
        self.probes[name] = result
        if self._journal is not None:
            self._journal.write("probe", {"name": name, "result": result})

    def _take(self, planned: Planned, sample: Sample, *, journaled: bool = False) -> None:
        """Keep one finished question, and stop the run when it is dead or over its error budget."""
        if not journaled and sample["error"] is None and self._journal is not None:
            self._journal.write("sample", sample)
        self.samples[planned.key] = sample
        self._unanswered += sample["error"] is not None
        self._progress.add(sample, journaled=journaled)
        if planned.key in self._wave_left:
            self._wave_left.discard(planned.key)
            if not self._wave_left:
                self.smoke = self._judge_wave()
                if self.smoke.word == "FAIL":
                    self._pool.stop("smoke")
        if self._unanswered > self.settings.max_unanswered * len(self.planned):
            self._pool.stop("infra")

    def _judge_wave(self) -> Decision:
        s = self.settings
        wave = [sample for sample in self._sorted() if sample["wave"]]
        return smoke_decision(
            wave,
            expect=s.expect,
            max_unanswered=s.max_unanswered,
            limits=s.limits,
            metric=s.metric,
            answers_fit=answers_fit(self.task, s),
        )

    def decide(self, baseline: list[dict[str, Any]] | None) -> Decision:
        """Return the run's verdict."""
        s = self.settings
        if self.smoke is not None and self.smoke.word == "FAIL":
            return self.smoke
        if self.interrupted:
            found = f"interrupted after {len(self.samples):,} of {len(self.planned):,} questions"
            return Decision("UNKNOWN", "undecided", f"{found}; --resume goes on from here")
        if self.not_ready:
            return Decision("UNKNOWN", "infra", self.not_ready)
        samples = self._sorted()
        if s.mode == "smoke":
            self.smoke = self.smoke or self._judge_wave()
            return self._with_errors(self.smoke)
        self.full = full_decision(
            samples,
            expect=s.expect,
            min_accuracy=s.min_accuracy,
            max_unanswered=s.max_unanswered,
            limits=s.limits,
            metric=s.metric,
            has_baseline=baseline is not None,
            answers_fit=answers_fit(self.task, s),
        )
        decisions = [self.full]
        if baseline is not None:
            self.paired = paired_decision(samples, baseline, max_drop=s.max_drop, metric=s.metric)
            decisions.append(self.paired)
        return self._with_errors(combine(decisions))

    def _with_errors(self, decision: Decision) -> Decision:
        """Name the commonest error in the reason of an infra verdict."""
        lines = self.client.errors.lines()
        if decision.qualifier != "infra" or not lines:
            return decision
        reason = f"{decision.reason}; mostly: {lines[0].error} ({lines[0].count} times)"
        return Decision(decision.word, decision.qualifier, reason, decision.details)

    def as_json(self, decision: Decision) -> dict[str, Any]:
        """Return `record.gsm8k`."""
        samples = self._sorted()
        counts = self.client.counts
        return {
            "verdict": decision.word,
            "qualifier": decision.qualifier,
            "reason": decision.reason,
            **summary(samples, len(self.planned), self.settings.metric),
            "path": accuracy_path(
                [self.samples[p.key] for p in self.planned if p.key in self.samples], self.settings.metric
            ),
            "requests": {
                "sent": counts.sent,
                "answered": counts.answered,
                "retried": counts.retried,
                "failed": counts.failed,
            },
            "errors": self.client.errors.as_json(),
            "seconds": {
                "total": 0.0,
                "requests": self._asking_s,
                "ready": self.server.ready_s if self.server else None,
            },
            "task": {
                "name": self.task.name,
                "version": self.task.version,
                "hashes": self.task.hashes,
                "generation": self.task.generation,
                "stop": list(self.task.stop[:MAX_STOP]),
                "num_fewshot": self.task.num_fewshot,
                "notes": list(self.task.notes),
            },
            "server": {
                "url": self.settings.endpoint.display,
                "model": self.server.model if self.server else self.settings.model or "",
                "version": self.server.version if self.server else "",
            },
            "settings": {**self.settings.as_json(), "max_tokens": answer_limit(self.task, self.settings)},
            "resumed": {"flag": self.settings.resume, "samples": self.resumed},
            "decisions": {
                "smoke": decision_json(self.smoke),
                "full": decision_json(self.full),
                "paired": decision_json(self.paired),
            },
            "probes": self.probes,
            "notes": probes.notes(self.probes),
            "samples": samples,
        }

    def _binding(self, server: Server) -> dict[str, Any]:
        """Return what a journal is bound to: answers to anything else are another run's."""
        s = self.settings
        return {
            "task": self.task.name,
            "task_version": self.task.version,
            "hashes": self.task.hashes,
            "generation": {
                **self.task.generation,
                "stop": list(self.task.stop[:MAX_STOP]),
                "max_tokens": answer_limit(self.task, s),
                "chat": s.chat,
                "stream": s.stream,
            },
            "url": server.url,
            "model": server.model,
            "server_version": server.version,
        }

    def _sorted(self) -> list[Sample]:
        return [sample for _, sample in sorted(self.samples.items(), key=lambda item: item[0][::-1])]

    def _say_error(self, error: RequestError) -> None:
        self._errors_said += 1
        if self._errors_said <= FIRST_ERRORS_SAID:
            self._progress.say(f"a request failed: {error}")


def _baseline(settings: Settings) -> list[dict[str, Any]] | None:
    """Return the samples of the baseline record.

    Raises:
        UsageError: it cannot be read, or holds no GSM8K samples.
    """
    if settings.baseline is None:
        return None
    try:
        record = load_record(settings.baseline)
    except RecordError as error:
        raise UsageError(f"--baseline {error}") from None
    samples = (record.gsm8k or {}).get("samples")
    if not isinstance(samples, list) or not any(s.get("error") is None for s in samples):
        raise UsageError(f"--baseline {settings.baseline}: holds no answered GSM8K question")
    return samples


def _refuse_other_questions(task: Task, baseline: list[dict[str, Any]], metric: str) -> None:
    """Refuse a baseline of other data now, not after the last answer."""
    unjudged = [
        {"index": q.index, "question": q.question, "error": None, "class": "", metric: False}
        for q in task.questions
    ]
    paired_decision(unjudged, baseline, metric=metric)
