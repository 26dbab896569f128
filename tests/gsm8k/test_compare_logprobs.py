"""Two sources compared: the verdict for each way in which the second may differ, and what the record keeps of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pytest

from harness.gsm8k.logprobs.ask import Form
from harness.gsm8k.logprobs.compare import LogprobComparison, compare_logprobs
from harness.gsm8k.logprobs.divergence import Position
from harness.gsm8k.logprobs.passes import Forms, Passes
from harness.gsm8k.task import Question
from harness.records.from_json import read_part
from harness.records.parts.gsm8k import Gsm8kRun
from harness.records.parts.gsm8k_logprobs import Gsm8kLogprobs

QUESTIONS = [Question(100 + i, f"question {i}", str(i), prompt=f"Q{i}", reference=f" {i}") for i in range(32)]
BOTH = Forms(Form("echo", 20), Form("answer", 20))
PLACES = 8
VOCABULARY = [f"t{i}" for i in range(6)]
Change = Callable[[int, int, list[float]], list[float]]
"""(index of the question, place, logits) to other logits."""


@cache
def base(index: int, place: int) -> list[float]:
    drawn = random.Random(f"{index} {place}")
    return [2 * drawn.gauss(0, 1) for _ in VOCABULARY]


@dataclass
class Fake:
    """A source whose logits are a function of question and place, with noise of its own and a change."""

    change: Change = lambda index, place, logits: logits
    noise: float = 0.0
    seed: int = 0
    forms: Forms = BOTH
    error: Callable[[int], str] = lambda index: ""
    tokens: Callable[[int, int], str] = lambda index, place: f" {index}.{place}"
    asked: int = 0

    async def prepare(self, question: Question) -> Forms:
        return self.forms

    async def passes(self, questions: Sequence[Question]) -> dict[int, Passes]:
        self.asked += len(questions)
        rng = random.Random(f"{self.seed} {self.asked}")
        found = {}
        for q in questions:
            passes = [{kind: self._read(q.index, rng) for kind in self.forms.given} for _ in range(2)]
            found[q.index] = Passes(*passes, error=self.error(q.index))
        return found

    def _read(self, index: int, rng: random.Random) -> list[Position]:
        found = []
        for place in range(PLACES):
            logits = self.change(index, place, base(index, place))
            logits = [x + self.noise * rng.gauss(0, 1) for x in logits]
            most = max(logits)
            total = most + math.log(sum(math.exp(x - most) for x in logits))
            shares = dict(zip(VOCABULARY, (x - total for x in logits), strict=True))
            token = self.tokens(index, place)
            found.append(Position(token, {**shares, token: -9.0}))
        return found


def compared(server: Fake, against: Fake | None = None, **options: float | bool) -> LogprobComparison:
    return asyncio.run(compare_logprobs(server, against or Fake(seed=1), QUESTIONS, **options))


def shifted(by: float, where: Callable[[int, int], bool] = lambda index, place: True) -> Change:
    def change(index: int, place: int, logits: list[float]) -> list[float]:
        return [x + by * (i == 0) for i, x in enumerate(logits)] if where(index, place) else logits

    return change


def no_numbers(index: int, place: int, logits: list[float]) -> list[float]:
    return [math.nan] * len(logits) if (index, place) == (103, 7) else logits


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1])
def test_the_same_server_passes_on_all_questions(noise):
    found = compared(Fake(noise=noise, seed=2), Fake(noise=noise, seed=1))
    decision, part = found.decision(), found.part()
    assert decision.label == "PASS"
    assert len(part.questions) == 32
    assert part.tokens == 32 * 2 * PLACES
    assert part.kl == pytest.approx(part.within, rel=0.4, abs=1e-12)
    assert part.agreement == 1.0 if noise == 0 else part.agreement > 0.9
    assert f"over {part.tokens:,} tokens of 32 questions" in decision.reason


def test_a_difference_everywhere_fails_as_soon_as_seventeen_questions_show_it():
    found = compared(Fake(shifted(1.0)))
    decision = found.decision()
    assert decision.label == "FAIL (logprobs)"
    assert len(found.questions) == 24, "blocks of eight"
    assert "24 of 24 questions further apart than allowed" in decision.reason
    assert "; furthest at ' " in decision.reason
    assert found.part().worst[0].kl >= found.part().worst[-1].kl > 0
    assert len(compared(Fake(shifted(1.0)), whole=True).questions) == 32


def test_a_difference_within_what_is_allowed_passes():
    ill = Fake(shifted(0.02))
    assert compared(ill).decision().label == "PASS"
    assert compared(ill, allowed=1e-6).decision().label == "FAIL (logprobs)"
    assert compared(Fake(shifted(1.0)), allowed=1.0).decision().label == "PASS"


def test_a_difference_that_drowns_in_the_servers_own_noise_passes():
    assert compared(Fake(shifted(0.1), noise=0.3, seed=2), Fake(noise=0.3, seed=1)).decision().label == "PASS"


def test_a_few_questions_far_apart_fail_if_they_are_so_again():
    ill = Fake(shifted(3.0, lambda index, place: index % 8 == 0 and place == 3))
    found = compared(ill)
    decision = found.decision()
    assert decision.label == "FAIL (logprobs)"
    assert "4 questions far apart, and as many when all were asked again" in decision.reason
    assert ill.asked == 64


def test_a_few_questions_far_apart_only_once_are_unknown():
    ill = Fake()
    ill.change = shifted(3.0, lambda index, place: index % 8 == 0 and place == 3 and ill.asked <= 32)
    decision = compared(ill).decision()
    assert decision.label == "UNKNOWN (undecided)"
    assert "not so many when all were asked again" in decision.reason


def test_a_server_that_differs_from_itself_is_named():
    decision = compared(Fake(noise=0.5)).decision()
    assert decision.label == "FAIL (logprobs)"
    assert "; the server differs from itself by 0." in decision.reason


def test_one_place_without_a_distribution_fails_at_once():
    found = compared(Fake(no_numbers))
    decision = found.decision()
    assert decision.label == "FAIL (logprobs)"
    assert "no distribution at 4 places" in decision.reason, "two passes of the reference and of the answer"
    assert len(found.questions) == 8
    json.dumps(dataclasses.asdict(found.part()), allow_nan=False)


def test_a_reference_without_a_distribution_decides_nothing():
    decision = compared(Fake(), Fake(no_numbers)).decision()
    assert decision.label == "UNKNOWN (unlike)"
    assert "the server compared with gives no distribution in question 103" in decision.reason


def test_another_tokenizer_cannot_be_compared():
    other = Fake(tokens=lambda index, place: f" {index}.{place}" if place < 5 else "x")
    found = compared(other)
    assert found.decision().label == "UNKNOWN (unlike)"
    assert "question 100 is other tokens for the two servers, from place 5 on" in found.decision().reason
    own = Forms(None, Form("answer", 20))
    answers = compared(dataclasses.replace(other, forms=own), Fake(seed=1, forms=own))
    assert answers.decision().label == "PASS", "own answers may be other texts: compared up to there"
    assert answers.part().tokens == 32 * 6


@pytest.mark.parametrize(
    ("forms", "label", "said"),
    [
        (Forms(refused="echo: HTTP 400"), "UNKNOWN (logprobs)", "the server gives none (echo: HTTP 400)"),
        (Forms(answer=Form("answer", 5)), "PASS", f"{32 * PLACES} tokens"),
    ],
)
def test_what_both_give_is_compared(forms, label, said):
    decision = compared(Fake(forms=forms)).decision()
    assert decision.label == label
    assert said in decision.reason


def test_questions_without_an_answer_are_left_out_or_decide_nothing():
    few = compared(Fake(error=lambda index: "HTTP 500" if index == 105 else ""))
    assert few.decision().label == "PASS"
    assert few.part().lost == {"HTTP 500": 1}
    many = compared(Fake(error=lambda index: "HTTP 500" if index % 2 else "")).decision()
    assert many.label == "UNKNOWN (infra)"
    assert "16 of 32 questions without logprobs: HTTP 500" in many.reason


def test_too_few_questions_decide_nothing():
    found = asyncio.run(compare_logprobs(Fake(), Fake(), QUESTIONS[:8]))
    assert found.decision().label == "UNKNOWN (undecided)"
    assert "8 questions compared, at least 17 decide" in found.decision().reason


def test_the_record_keeps_the_comparison_and_reads_records_without_one():
    part = compared(Fake(shifted(1.0))).part()
    run = json.loads(json.dumps(Gsm8kRun(logprobs=part).to_json() | {"requests": None}))
    assert "logprobs" not in run, "there is none where the questions were answered in this process"
    stated = json.loads(json.dumps(dataclasses.asdict(part)))
    assert read_part(Gsm8kLogprobs, stated, "gsm8k.logprobs") == part
    assert read_part(Gsm8kRun, {"verdict": "PASS"}, "gsm8k").logprobs is None
