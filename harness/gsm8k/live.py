"""`--against URL`: the same questions to two live servers at the same time, until one verdict is shown.

The judged server is the one of `--base-url`, the reference that of `--against`. A pair is lost where only the reference
is right. Pairs count in the seed's order, each only when all before it are in: those that come first are the short
answers, which are no random sample.

PASS: a drop of the allowed size is refuted; FAIL: so is every drop up to it. Each is wrong in `ALPHA` of the runs at most.
Half of that is spent by e-values (`sequential.py`), which after every `LOOK` pairs may end the run. The other half is that
of the usual interval after the last question, which sees more than a test that had to be right at every look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.gsm8k.client import Client, Limits
from harness.gsm8k.decision import full_decision
from harness.gsm8k.dialect import Dialect
from harness.gsm8k.judgement import CONFIDENCE, MAX_DROP
from harness.gsm8k.outcome import counted
from harness.gsm8k.preflight import NotReadyError, Server, find_server
from harness.gsm8k.questions import Asker, answers_fit, sample_of
from harness.gsm8k.sequential import drop_above, drop_below, drop_interval
from harness.gsm8k.setups import differences, refused_fields
from harness.gsm8k.statistics import MOST_QUESTIONS, Interval, paired_interval
from harness.records.parts.gsm8k import Decision, Gsm8kRun, Gsm8kServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.gsm8k.credentials import Endpoint
    from harness.gsm8k.errors import RequestError
    from harness.gsm8k.questions import Planned
    from harness.gsm8k.settings import Gsm8kSettings
    from harness.gsm8k.task import Task
    from harness.records.parts.gsm8k import Gsm8kSample

LOOK = 32
ALPHA = (1 - CONFIDENCE) / 2
HALF = ALPHA / 2

Samples = dict[tuple[int, int], "Gsm8kSample"]


@dataclass
class Pairs:
    """Counts of the pairs that are in, and whether they have decided."""

    max_drop: float
    n: int = 0
    lost: int = 0
    gained: int = 0
    word: str = ""

    def add(self, *, here: bool, there: bool) -> None:
        """Count one pair; look after every `LOOK` of them. What was decided first stays."""
        self.n += 1
        self.lost += there and not here
        self.gained += here and not there
        if self.n % LOOK == 0 and not self.word:
            self.word = early_word(self.lost, self.gained, self.n, self.max_drop)


def early_word(lost: int, gained: int, n: int, max_drop: float) -> str:
    """Return PASS, FAIL, or nothing where the run has to go on."""
    if drop_below(lost, gained, n, max_drop) >= 1 / HALF:
        return "PASS"
    return "FAIL" if drop_above(lost, gained, n, max_drop) >= 1 / HALF else ""


def last_word(lost: int, gained: int, n: int, max_drop: float) -> str:
    """Return PASS, FAIL, or nothing where neither is shown after the last question."""
    ends = paired_interval(lost, gained, n, 1 - 2 * HALF)
    return "PASS" if ends.low > -max_drop else "FAIL" if ends.high < -max_drop else ""


class Reference:
    """The second server: its client, its answers, and the comparison as it stands."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Gsm8kSettings,
        task: Task,
        planned: Sequence[Planned],
        on_new_error: Callable[[RequestError], None],
    ) -> None:
        self.settings = settings
        self.task = task
        self.planned = planned
        self.samples: Samples = {}
        self.pairs = Pairs(MAX_DROP if settings.max_drop is None else settings.max_drop)
        self.server: Server | None = None
        limits = Limits(settings.timeout, settings.retry_seconds)
        self.client = Client(
            endpoint,
            settings.api_key,
            settings.concurrency,
            limits,
            settings.stream,
            on_new_error,
            settings.hidden,
        )
        self.unanswered = 0
        self._asker: Asker | None = None
        self._next = 0

    async def find(self, say: Callable[[str], None]) -> Server:
        """Find the server.

        Raises:
            NotReadyError: it cannot be asked; the text says that it is this one.
        """
        s = self.settings
        try:
            self.server = await find_server(self.client, s.against_model, s.wait_ready, say)
        except NotReadyError as error:
            raise NotReadyError(f"--against {error}") from None
        self._asker = Asker(self.client, self.task, s, self.server.model)
        return self.server

    async def ask(self, planned: Planned, order: int) -> Gsm8kSample:
        """Ask one question, the `order`-th of the run."""
        if self._asker is None:
            raise RuntimeError("Reference.ask: find the server first")
        exchange = await self._asker.ask(self._asker.prompt(planned.question))
        return sample_of(self.task, planned, exchange, order)

    def take(
        self, planned: Planned, sample: Gsm8kSample, judged: Mapping[tuple[int, int], Gsm8kSample]
    ) -> bool:
        """Keep an answer and count the pairs that are in by now; True as soon as they have decided.

        Args:
            planned: what was asked.
            sample: the answer.
            judged: samples of the judged server, by question and repeat, this question's among them.
        """
        self.samples[planned.key] = sample
        self.unanswered += sample["error"] is not None
        metric = self.settings.metric
        while not self.pairs.word and self._next < len(self.planned):
            key = self.planned[self._next].key
            here, there = judged.get(key), self.samples.get(key)
            if here is None or there is None:
                break
            self._next += 1
            if here["error"] is None and there["error"] is None:
                self.pairs.add(here=_right(here, metric), there=_right(there, metric))
        return bool(self.pairs.word)

    @property
    def dialect(self) -> Dialect:
        """What this server takes in a request."""
        return self._asker.dialect if self._asker else Dialect()

    @property
    def notes(self) -> list[str]:
        """What was found out about this server on the way, in words."""
        notes = (*self.dialect.notes, *(self.server.notes if self.server else ()))
        return [f"--against: {note}" for note in notes]

    def decision(self, refused: Sequence[str] = ()) -> Decision:
        """Judge the comparison, after the last pair. `refused`: fields that the judged server takes in no request."""
        reference = self._own_decision()
        if reference.qualifier == "infra":
            return replace(reference, reason=f"--against: {reference.reason}", details={})
        if reference.word == "FAIL":
            found = f"the server of --against is {reference.label} itself ({reference.reason})"
            return Decision("UNKNOWN", "undecided", f"{found}: there is nothing to compare with")
        judged = judge_pairs(self.pairs)
        if unlike := differences(refused_fields(refused), refused_fields(self.dialect.refused)):
            shown = f"not judged, the setups are unlike ({'; '.join(unlike)}): {judged.reason}"
            return replace(judged, word="UNKNOWN", qualifier="unlike", reason=shown)
        return judged

    def _own_decision(self) -> Decision:
        s = self.settings
        samples = list(self.samples.values())
        fit = answers_fit(self.task, s)
        return full_decision(
            samples,
            expect=s.expect,
            max_unanswered=s.max_unanswered,
            limits=s.limits,
            metric=s.metric,
            compared=True,
            answers_fit=fit,
            stop=self.task.stop,
        )

    def as_run(self) -> Gsm8kRun:
        """Return what the record holds of this server's answers."""
        samples = [sample for _, sample in sorted(self.samples.items(), key=lambda item: item[0][::-1])]
        s, server, own = self.settings, self.server, self._own_decision()
        return replace(
            counted(samples, len(self.planned), s.metric),
            verdict=own.word,
            qualifier=own.qualifier,
            reason=own.reason,
            requests=self.client.requests,
            errors=self.client.errors.lines(),
            server=Gsm8kServer(
                url=self.client.endpoint.display,
                model=server.model if server else s.against_model or "",
                version=server.version if server else "",
                **({"refused": self.dialect.refused} if self.dialect.refused else {}),
            ),
        )


def _right(sample: Gsm8kSample, metric: str) -> bool:
    return (
        sample["strict"] if metric == "strict" else sample["flexible" if metric == "flexible" else "numeric"]
    )


def judge_pairs(pairs: Pairs) -> Decision:
    """Return the decision of a comparison after its last pair."""
    lost, gained, n = pairs.lost, pairs.gained, pairs.n
    if n == 0:
        return Decision("UNKNOWN", "undecided", "no question was answered by both servers")
    early = bool(pairs.word)
    word = pairs.word or last_word(lost, gained, n, pairs.max_drop)
    drops = drop_interval(lost, gained, n, HALF)
    ends = Interval(-drops.high, -drops.low) if early else paired_interval(lost, gained, n, 1 - 2 * HALF)
    details: dict[str, Any] = {
        "n": n,
        "lost": lost,
        "gained": gained,
        "difference": (gained - lost) / n,
        "interval": [ends.low, ends.high],
        "max_drop": pairs.max_drop,
        "alpha": ALPHA,
        "early": early,
    }
    compared = (
        f"{100 * (gained - lost) / n:+.2f} points against the other server ({100 * ends.low:+.2f} to "
        f"{100 * ends.high:+.2f}; {lost} lost, {gained} gained of {n:,}{', enough to decide' if early else ''})"
    )
    allowed = f"a drop of {100 * pairs.max_drop:g} points"
    if word == "PASS":
        return Decision("PASS", "", f"{compared}: {allowed} is excluded", details)
    if word == "FAIL":
        return Decision("FAIL", "accuracy", f"{compared}: more than {allowed} is shown", details)
    needed = _questions_to_decide(pairs)
    details["questions_to_decide"] = needed
    more = (
        f"about {needed:,} questions with these shares would decide"
        if needed
        else "no number of questions would"
    )
    return Decision(
        "UNKNOWN", "undecided", f"{compared}: {allowed} is neither shown nor excluded; {more}", details
    )


def _questions_to_decide(pairs: Pairs) -> int | None:
    """Return how many questions would decide if they went on like these, to a tenth; None if no number does."""
    times = 1.0
    while pairs.n * times < MOST_QUESTIONS:
        times *= 1.1
        lost, gained, n = (round(count * times) for count in (pairs.lost, pairs.gained, pairs.n))
        if last_word(lost, gained, n, pairs.max_drop):
            return n
    return None
