"""The logprob comparison on planted faults, the hard ones: all of them are in benchmarks/bench_logprobs.py."""

from __future__ import annotations

import asyncio
import random

import pytest

from harness.canary import load_canary
from harness.canary.logprob_source import InProcess
from harness.gsm8k.logprobs.compare import QUESTIONS, LogprobComparison, compare_logprobs
from harness.gsm8k.logprobs.passes import Recording, record_passes
from harness.gsm8k.task import Question, load_task

pytestmark = pytest.mark.long
STOP = ("\n\n", "Question:")
ANSWER_TOKENS = 8


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    found = list(load_task("gsm_canary").questions)
    random.Random(0).shuffle(found)
    return found[:QUESTIONS]


@pytest.fixture(scope="module")
def healthy(questions) -> Recording:
    source = InProcess(load_canary(candidate="eager"), STOP, ANSWER_TOKENS)
    return asyncio.run(record_passes(source, questions, {}))


def compared(candidate: str, healthy: Recording, questions: list[Question]) -> LogprobComparison:
    source = InProcess(load_canary(candidate=candidate), STOP, ANSWER_TOKENS, twice=False)
    return asyncio.run(compare_logprobs(source, healthy, questions))


@pytest.mark.parametrize(
    "fault",
    [
        "block_scale_too_high",  # 0.990 of 200 right
        "weight_scale_of_neighbour_block",  # 0.995
        "block_scale_not_saturated",  # 0.985: NaN in a few questions, nothing in the others
        "masked_m_minus_1",  # the last token of each expert
        "weights_by_place_among_active_experts",  # only where few tokens are decoded together
    ],
)
def test_faults_that_change_few_answers_are_found(healthy, questions, fault) -> None:
    found = compared(f"eager+{fault}", healthy, questions)
    assert found.decision().label == "FAIL (logprobs)", found.decision().reason


@pytest.mark.parametrize(
    "candidate",
    ["eager", "control:rounded_reciprocals", "eager+ties_away_from_zero", "eager+silu_by_bf16_tanh"],
)
def test_right_variants_and_faults_that_change_no_answer_pass(healthy, questions, candidate) -> None:
    found = compared(candidate, healthy, questions)
    assert found.decision().label == "PASS", found.decision().reason
    assert len(found.questions) == QUESTIONS
