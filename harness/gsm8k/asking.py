"""Everything of a run that needs the server: find it, ask (the smoke wave first), judge the wave, probe, keep a journal."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from harness.gsm8k import probes
from harness.gsm8k.client import Client, Limits
from harness.gsm8k.credentials import clean_fields, clean_shell
from harness.gsm8k.decision import smoke_decision
from harness.gsm8k.dialect import Dialect
from harness.gsm8k.ending_signals import EndingSignals
from harness.gsm8k.journal import Journal
from harness.gsm8k.live import Reference
from harness.gsm8k.logprobs.run import run_logprobs
from harness.gsm8k.payload import MAX_STOP
from harness.gsm8k.pool import Pool, Step
from harness.gsm8k.preflight import NotReadyError, Server, find_server
from harness.gsm8k.progress import Progress
from harness.gsm8k.questions import Asker, Planned, answer_limit, answers_fit, sample_of
from harness.gsm8k.reasoning import Reasoning
from harness.gsm8k.serve import LOG, ServedCommand
from harness.gsm8k.sweep import sweep_load

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from harness.gsm8k.counts import Counts
    from harness.gsm8k.errors import RequestError
    from harness.gsm8k.logprobs.compare import LogprobComparison
    from harness.gsm8k.settings import Gsm8kSettings
    from harness.gsm8k.task import Task
    from harness.records.parts.gsm8k import Decision, Gsm8kSample

FIRST_ERRORS_SAID = 5
_NOT_RUN = {"ran": False, "reason": "the run ended first"}


class Asking:
    """The state of one run between the first look at the server and the decision."""

    def __init__(
        self, settings: Gsm8kSettings, task: Task, planned: list[Planned], baseline: Counts | None = None
    ) -> None:
        self.settings = settings
        self.task = task
        self.planned = planned
        self.baseline = baseline
        self.samples: dict[tuple[int, int], Gsm8kSample] = {}
        self.probes: dict[str, Any] = {"sanity": dict(_NOT_RUN)}
        self.smoke: Decision | None = None
        self.logprobs: LogprobComparison | None = None
        self.not_ready = ""
        self.interrupted = False
        self.resumed = 0
        self.asking_s = 0.0
        self.server: Server | None = None
        self.dialect = Dialect()
        self._pool = Pool(settings.concurrency)
        self._progress = Progress(len(planned), settings.metric)
        self._wave_left = {p.key for p in planned if p.wave}
        self._unanswered = 0
        self._orders = count()
        self._decided = False
        self.client = Client(
            settings.endpoint,
            settings.api_key,
            settings.concurrency,
            Limits(settings.timeout, settings.retry_seconds),
            settings.stream,
            self._say_error,
            settings.hidden,
        )
        self.reference: Reference | None = None
        if settings.against is not None:
            self.reference = Reference(settings.against, settings, task, planned, self._say_error)
        self._errors_said = 0
        self._refusals_journaled = 0
        self._journal: Journal | None = None

    async def main(self, served: ServedCommand | None = None) -> None:
        """Do everything that needs the server, which `served` runs or others do.

        Ctrl-C and SIGTERM end it early and leave the rest to the decision.
        """
        with EndingSignals(self._interrupt, asyncio.current_task()):
            try:
                async with self.client, self.reference.client if self.reference else nullcontext():
                    await self._while_it_runs(self._with_server(), served)
            except NotReadyError as error:
                self.not_ready = str(error)
            except asyncio.CancelledError:
                if not self.interrupted:
                    raise
            finally:
                self._progress.close()
                if self._journal is not None:
                    self._journal.close()

    async def _while_it_runs(self, work: Coroutine[Any, Any, None], served: ServedCommand | None) -> None:
        """Do the work; a server that was started here and ends before it is a NotReadyError."""
        if served is None:
            await work
            return
        working, ending = asyncio.ensure_future(work), asyncio.ensure_future(served.end())
        try:
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (working, ending):
                if not task.done():
                    task.cancel()
            await asyncio.wait({working, ending})
        if not working.cancelled():
            working.result()
        elif not ending.cancelled():
            for line in served.tail():
                self._progress.say(f"{LOG}: {line}")
            raise NotReadyError(ending.result())

    def _interrupt(self) -> None:
        self.interrupted = True

    async def _with_server(self) -> None:
        settings = self.settings
        self.server = await find_server(self.client, settings.model, settings.ready_s, self._progress.say)
        if self.reference is not None:
            await self.reference.find(self._progress.say)
        asker = Asker(self.client, self.task, settings, self.server.model)
        self.dialect = asker.dialect
        self._journal = Journal.open(settings.out, self._binding(self.server), resume=settings.resume)
        self.dialect.refused += self._journal.found.refused
        self._refusals_journaled = len(self.dialect.refused)
        for name in ("record.json", "report.html", "junit.xml"):
            (settings.out / name).unlink(
                missing_ok=True
            )  # if this run is killed, an older verdict must not stand
        started = time.monotonic()
        try:
            await self._pool.run(self._steps(asker, self._journal))
            await self._sweep(asker)
            await self._logprobs(self.server.model)
            if settings.probe and not self._pool.stopped:
                known = self._journal.found.probes
                done = await probes.run_probes(asker, self.planned, known, settings.probe_tokens)
                for name, result in done.items():
                    self._add_probe(name, result)
        finally:
            self.asking_s = time.monotonic() - started

    def _steps(self, asker: Asker, journal: Journal) -> list[Step]:
        """Return what is left to ask: the wave, behind it the two requests of the sanity check, then the rest."""
        self.probes |= journal.found.probes
        left = []
        for planned in self.planned:
            sample = journal.found.samples.get(planned.key)
            other = journal.found.against.get(planned.key)
            if sample is None or (self.reference is not None and other is None):
                left.append(planned)
            else:
                self.resumed += 1
                self._take(planned, {**sample, "wave": planned.wave}, other, journaled=True)
        if self._pool.stopped or self._decided:
            return []
        sent = [order for s in self.samples.values() if (order := s.get("order")) is not None]
        self._orders = count(max(sent, default=-1) + 1)  # a resumed run goes on counting
        steps: list[Step] = [partial(self._ask, asker, p) for p in left]
        if "sanity" not in journal.found.probes:
            sanity = probes.Sanity(asker, self.planned[0].question)
            behind = sum(p.wave for p in left)
            steps[behind:behind] = [partial(self._check_sanity, sanity)] * 2
        return steps

    async def _ask(self, asker: Asker, planned: Planned) -> None:
        order = next(self._orders)
        question = asker.ask(asker.prompt(planned.question))
        other = None
        if self.reference is None:
            exchange = await question
        else:
            exchange, other = await asyncio.gather(question, self.reference.ask(planned, order))
        self._pool.later(lambda: self._take(planned, sample_of(self.task, planned, exchange, order), other))

    async def _check_sanity(self, sanity: probes.Sanity) -> None:
        next(self._orders)  # so that the number of a question's request is its place among all requests
        result = await sanity.ask()
        if result is not None:
            self._add_probe("sanity", result)

    async def _sweep(self, asker: Asker) -> None:
        """Ask at other loads, unless the journal has it or the run ended for want of a server."""
        dead = self._pool.stopped == "smoke"
        if not self.settings.sweep or "load" in self.probes or (self._pool.stopped and not dead):
            return
        if dead and self.smoke is not None:
            self._progress.say(f"{self.smoke.label}; is it the load?")
        asked = [self.samples[p.key] for p in self.planned if p.key in self.samples and p.repeat == 0]
        result = await sweep_load(asker, self.planned, asked, self.settings, dead=dead)
        self._add_probe("load", result)

    async def _logprobs(self, model: str) -> None:
        """Compare or record logprobs, unless the run ended for want of a server or the model is dead."""
        if self.settings.logprobs and not self._pool.stopped:
            other = self.reference.server if self.reference else None
            against = (other.model, self.reference.dialect) if self.reference and other else None
            asked = (model, self.dialect)
            self.logprobs = await run_logprobs(self.task, self.planned, self.settings, asked, against)

    def _add_probe(self, name: str, result: dict[str, Any]) -> None:
        self.probes[name] = result
        if self._journal is not None:
            self._journal.write("probe", {"name": name, "result": result})

    def _take(
        self,
        planned: Planned,
        sample: Gsm8kSample,
        other: Gsm8kSample | None = None,
        *,
        journaled: bool = False,
    ) -> None:
        """Keep one finished question, and stop the run when it is dead, decided, or over its error budget."""
        if not journaled and sample["error"] is None and self._journal is not None:
            if len(self.dialect.refused) > self._refusals_journaled:
                self._journal.write("refused", self.dialect.refused)
                self._refusals_journaled = len(self.dialect.refused)
            self._journal.write("sample", sample)
        self.samples[planned.key] = sample
        self._unanswered += sample["error"] is not None
        self._progress.add(sample, journaled=journaled)
        if planned.key in self._wave_left:
            self._wave_left.discard(planned.key)
            if not self._wave_left:
                self.smoke = self.judge_wave()
                if self.smoke_ends_it:
                    self._pool.stop("smoke")
        unanswered = self._unanswered
        if self.reference is not None and other is not None:
            unanswered = max(
                unanswered, self._take_other(self.reference, planned, other, journaled=journaled)
            )
        if unanswered > self.settings.max_unanswered * len(self.planned):
            self._pool.stop("infra")

    @property
    def smoke_ends_it(self) -> bool:
        """Whether the wave says enough. Where only the format is wrong the rest says what the model is worth."""
        return self.smoke is not None and self.smoke.word == "FAIL" and self.smoke.qualifier != "format"

    def _take_other(
        self, reference: Reference, planned: Planned, other: Gsm8kSample, *, journaled: bool
    ) -> int:
        """Keep the answer of `--against`, and end the run when the comparison is decided; return its unanswered ones."""
        if not journaled and other["error"] is None and self._journal is not None:
            self._journal.write("against", other)
        decided = reference.take(planned, other, self.samples)
        # What else is judged needs every question; and the wave is judged whole.
        if decided and self.settings.may_stop_early and not self._wave_left:
            self._decided = True
            self._pool.end()
        return reference.unanswered

    @property
    def notes(self) -> list[str]:
        """What was found out about the servers on the way, in words, most serious first."""
        found = [
            *probes.notes(self.probes),
            *self.dialect.notes,
            *(self.server.notes if self.server else ()),
        ]
        return found + (self.reference.notes if self.reference else [])

    def judge_wave(self) -> Decision:
        """Judge the smoke wave, as far as it was asked."""
        s = self.settings
        wave = [sample for sample in self.sorted_samples() if sample["wave"]]
        return smoke_decision(
            wave,
            expect=s.expect,
            max_unanswered=s.max_unanswered,
            limits=s.limits,
            metric=s.metric,
            answers_fit=answers_fit(self.task, s),
            baseline=self.baseline,
            stop=self.task.stop,
        )

    def sorted_samples(self) -> list[Gsm8kSample]:
        """Return what was asked, by repeat and place in the data."""
        return [sample for _, sample in sorted(self.samples.items(), key=lambda item: item[0][::-1])]

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
                # Left out at their defaults, so that journals of before they existed go on.
                **({"reasoning": s.reasoning.value} if s.reasoning is not Reasoning.KEEP else {}),
                **({"extra_body": clean_fields(s.extra_body)} if s.extra_body else {}),
            },
            "url": f"--serve {clean_shell(s.serve)}" if s.serve else server.url,
            "model": server.model,
            "server_version": server.version,
            **self._binding_of_reference(),
        }

    def _binding_of_reference(self) -> dict[str, Any]:
        """Return the second server, where there is one: journals of before there could be one go on."""
        server = self.reference.server if self.reference else None
        return {} if server is None else {"against": {"url": server.url, "model": server.model}}

    def _say_error(self, error: RequestError) -> None:
        self._errors_said += 1
        if self._errors_said <= FIRST_ERRORS_SAID:
            self._progress.say(f"a request failed: {error}")
