"""Two canaries compared over HTTP by their logprobs: the same one, one with a broken expert, one with other arithmetic."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
import torch
from aiohttp.test_utils import TestServer

from harness.canary import load_canary
from harness.canary.logprob_source import InProcess
from harness.canary.server import make_app
from harness.gsm8k.client import Client
from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.logprobs.ask import Form, LogprobServer
from harness.gsm8k.logprobs.compare import LogprobComparison, compare_logprobs
from harness.gsm8k.logprobs.evidence import needed
from harness.gsm8k.logprobs.passes import Live
from harness.gsm8k.task import Question, load_task

ANSWER_TOKENS = 3


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """As few and as short ones as can decide."""
    return sorted(load_task("gsm_canary").questions, key=lambda q: len(q.prompt + q.reference))[: needed()]


@pytest.fixture(scope="module")
def broken():
    """One of eight experts of one layer gives nothing."""
    found = load_canary()
    experts = found.model.experts[2]
    experts.down = experts.down.clone()
    experts.down[3] = 0.0
    return found


def compared(canaries: tuple, questions: list[Question], *, chat: bool = False) -> LogprobComparison:
    """The first canary compared with the second."""

    async def main() -> LogprobComparison:
        async with AsyncExitStack() as open_ones:
            sources = []
            for canary in canaries:
                server = await open_ones.enter_async_context(TestServer(make_app(canary.engine(), "canary")))
                endpoint = parse_base_url(f"http://127.0.0.1:{server.port}/v1")
                client = await open_ones.enter_async_context(Client(endpoint))
                asked = LogprobServer(client, "canary", chat=chat, stop=("\n\n", "Question:"))
                sources.append(Live(asked, ANSWER_TOKENS))
            return await compare_logprobs(*sources, questions)

    return asyncio.run(main())


@pytest.mark.long
def test_the_same_canary_passes(canary, questions) -> None:
    found = compared((canary, canary), questions)
    part, decision = found.part(), found.decision()
    assert decision.label == "PASS", decision.reason
    assert part.forms == {"reference": "echo, top 20", "answer": "answer, top 20"}
    assert (part.agreement, part.improper) == (1.0, 0)
    assert part.kl < 1e-8
    assert part.tokens > 17 * (30 + ANSWER_TOKENS)


@pytest.mark.long
def test_a_broken_expert_fails(canary, broken, questions) -> None:
    found = compared((broken, canary), questions)
    decision = found.decision()
    assert decision.label == "FAIL (logprobs)", decision.reason
    assert "17 of 17 questions further apart than allowed" in decision.reason
    assert found.part().kl > 0.1


def test_chat_is_compared_as_completions_are(canary, broken) -> None:
    few = load_task("gsm_canary", chat=True).questions[:2]
    found = compared((broken, canary), few, chat=True)
    assert found.part().forms == {"reference": "prompt_logprobs, top 20", "answer": "answer, top 20"}
    assert all(q.kl > 0.01 for q in found.questions)
    completions = compared((broken, canary), load_task("gsm_canary").questions[:2])
    ours, theirs = found.part().kl_by, completions.part().kl_by
    assert ours["reference"] == pytest.approx(theirs["reference"], rel=1e-3)


@pytest.mark.long
def test_rounding_of_another_type_is_seen_and_allowed(canary, questions) -> None:
    found = compared((load_canary(dtype=torch.bfloat16), canary), questions)
    assert found.decision().label == "PASS", found.decision().reason
    assert 1e-8 < found.part().kl < 1e-5


@pytest.mark.long
def test_in_process_it_is_what_the_server_says(canary, broken, questions) -> None:
    stop = ("\n\n", "Question:")
    sources = [InProcess(one, stop, ANSWER_TOKENS) for one in (broken, canary)]
    here = asyncio.run(compare_logprobs(*sources, questions[:4])).part()
    there = compared((broken, canary), questions[:4]).part()
    assert here.tokens == there.tokens
    assert here.kl_by == pytest.approx(there.kl_by, rel=1e-3)
    assert asyncio.run(sources[0].prepare(questions[0])).reference == Form("echo", 20)
