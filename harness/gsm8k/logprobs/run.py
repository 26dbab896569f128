"""`--logprobs` as a part of a run: with `--against URL` or `--logprobs-baseline FILE` a comparison, else a recording."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from harness.gsm8k.client import Client, Limits
from harness.gsm8k.credentials import clean_fields
from harness.gsm8k.dialect import Dialect
from harness.gsm8k.logprobs.ask import LogprobServer
from harness.gsm8k.logprobs.compare import ALLOWED, QUESTIONS, LogprobComparison, compare_logprobs
from harness.gsm8k.logprobs.passes import Live, Source, read_recording, record_passes
from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.credentials import Endpoint
    from harness.gsm8k.questions import Planned
    from harness.gsm8k.settings import Gsm8kSettings
    from harness.gsm8k.task import Task

RECORDING = "logprobs.json"

Asked = tuple[str, Dialect]
"""The name of a server's model, and what the server takes in a request."""


def about(task: Task, settings: Gsm8kSettings) -> dict[str, Any]:
    """Return what two recordings must agree in to be of the same texts."""
    return {
        "task": task.name,
        "prompts": task.hashes["prompts"],
        "chat": settings.chat,
        "extra_body": clean_fields(settings.extra_body),
    }


def check_recording(task: Task, settings: Gsm8kSettings) -> None:
    """Refuse a recording of other prompts now, not after the last answer.

    Raises:
        UsageError: it cannot be read, or is of something else.
    """
    if settings.logprobs_baseline is None:
        return
    there, here = read_recording(settings.logprobs_baseline).about, about(task, settings)
    if unlike := [name for name, value in here.items() if there.get(name) != value]:
        raise UsageError(
            f"--logprobs-baseline {settings.logprobs_baseline}: recorded with another {', '.join(unlike)}; record again "
            "with the options of this run"
        )


async def run_logprobs(
    task: Task,
    planned: Sequence[Planned],
    settings: Gsm8kSettings,
    asked: Asked,
    against_asked: Asked | None = None,
) -> LogprobComparison | None:
    """Compare, or record where there is nothing to compare with.

    Args:
        task: what is asked.
        planned: the questions of the run, in its order.
        settings: of the run.
        asked: the judged server's model, and what it takes in a request.
        against_asked: those of the server of `--against URL`.

    The requests have clients of their own: a form that a server refuses is no error of the run.
    """
    questions = [p.question for p in planned if p.repeat == 0][:QUESTIONS]
    async with AsyncExitStack() as clients:

        async def live(endpoint: Endpoint, model: str, dialect: Dialect) -> Live:
            limits = Limits(settings.timeout, settings.retry_seconds)
            client = Client(endpoint, settings.api_key, settings.concurrency, limits, hidden=settings.hidden)
            await clients.enter_async_context(client)
            return Live(LogprobServer(client, model, chat=settings.chat, stop=task.stop, dialect=dialect))

        server = await live(settings.endpoint, *asked)
        against: Source
        if settings.against is not None and against_asked is not None:
            against = await live(settings.against, *against_asked)
        elif settings.logprobs_baseline is not None:
            against = read_recording(settings.logprobs_baseline)
        else:
            recording = await record_passes(server, questions, about(task, settings))
            recording.write(settings.out / RECORDING)
            return None
        allowed = ALLOWED if settings.max_kl is None else settings.max_kl
        return await compare_logprobs(server, against, questions, allowed=allowed)
