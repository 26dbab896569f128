"""The side of DeepEP's ElasticBuffer that Python sees, with a stand-in whose kernels are gloo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.candidates import load_candidate, support_of
from harness.candidates.over_gpus import DeepEpElastic
from harness.candidates.over_ranks import OverRanks
from harness.faults.named import plant
from harness.ranks.collectives import Sizes
from harness.ranks.deepep_build import ELASTIC_TRANSPORTS
from harness.ranks.errors import RankError
from harness.running.judge import Judge
from tests.ranks.signatures import classes_of, folder_of, others

STAND_IN = Path(__file__).parent / "stand_in/deep_ep"
PROBLEMS = ("4x6x16x16:3*4:normal:57", "6x3x16x16:3*6:normal:4", "3x5x16x16:2*3:normal:2")


@pytest.fixture(scope="module")
def candidate(stand_in: None) -> Iterator[OverRanks]:
    over: OverRanks = load_candidate("on_cpu:ElasticOnCpu")
    yield over
    over.close()


def test_the_rules_pass_whatever_the_widths_and_the_ways_to_call(candidate: OverRanks) -> None:
    judge = Judge(candidate, threads=1, probe=False)
    for problem in PROBLEMS:
        for rule in ("DISPATCH", "COMBINE", "EP"):
            outcome = judge.judge(rule, problem)
            assert outcome.status == "judged", outcome
            assert not outcome.illegal, outcome


@pytest.mark.parametrize("style", ["plain", "asynchronous"])
@pytest.mark.parametrize("transport", ELASTIC_TRANSPORTS)
def test_every_way_to_call_gives_the_same(candidate: OverRanks, style: str, transport: str) -> None:
    """Among it a rank without tokens, and a token without an expert."""
    assert style in candidate._styles
    x = [torch.arange(rows * 2048).view(rows, 2048).bfloat16() for rows in (3, 0)]
    ids = [torch.tensor([[0, 1], [-1, -1], [1, -1]]), torch.empty(0, 2, dtype=torch.int64)]
    weights = [torch.full(rows.shape, 0.5) for rows in ids]
    rows = [torch.full((1, 6, 2048), rank + 1.0).bfloat16() for rank in (0, 1)]
    kept, candidate._styles = candidate._styles, (style,)
    try:
        received = candidate.dispatch(x, ids, 2, 3, transport=transport)
        out = candidate.combine(rows, received, ids, weights)
    finally:
        candidate._styles = kept
    assert [got.masked_m.tolist() for got in received] == [[1], [2]]
    assert received[1].source[0, :2].tolist() == [[0, 0], [0, 2]]
    assert [row[0].item() for row in out[0]] == [1.5, 0, 1]
    assert out[1].shape == (0, 2048)
    if transport == "bf16":
        assert torch.equal(received[1].x[0, :2], x[0][::2])


@pytest.mark.parametrize(
    ("fault", "rule"),
    [("token_lost", "DISPATCH"), ("fp8_scale_rounded_up", "DISPATCH"), ("weights_applied_twice", "COMBINE")],
)
def test_planted_faults_are_caught(candidate: OverRanks, fault: str, rule: str) -> None:
    judge = Judge(plant(candidate, fault), threads=1, probe=False)
    assert any(judge.judge(rule, problem).illegal for problem in PROBLEMS)


REFUSED = [
    (Sizes(4, 3072, 2, 2), "ElasticBuffer is called with a hidden size of .*, got 3072"),
    (
        Sizes(1028, 2048, 2, 2),
        "the one ElasticBuffer of a process was made for 1 to 1024 tokens .*, got 1028 and 2",
    ),
    (Sizes(4, 2048, 2, 2, "nvfp4"), "ElasticBuffer is called with bf16, fp8, fp8-rounded, got nvfp4"),
]


@pytest.mark.parametrize(("sizes", "reason"), REFUSED)
def test_what_the_buffer_was_not_made_for_is_a_reason(
    candidate: OverRanks, sizes: Sizes, reason: str
) -> None:
    """On every rank, so that none waits for another."""
    given = {"x": torch.zeros(1, sizes.hidden).bfloat16(), "topk_idx": torch.full((1, sizes.topk), -1)}
    with pytest.raises(RankError, match=f"rank 0: {reason}.*rank 1: {reason}"):
        candidate._ranks().call("dispatch", sizes, [given, given])


def test_a_deep_ep_without_the_buffer_is_a_reason(
    candidate: OverRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deep_ep

    monkeypatch.delattr(deep_ep, "ElasticBuffer")
    reason = "this deep_ep has no ElasticBuffer whose dispatch takes do_expand: it came with 2.x"
    assert support_of(DeepEpElastic()).reason == reason


@pytest.mark.skipif(
    folder_of("deep_ep", "deep_ep/buffers", "DEEP_EP_BUFFERS") is None,
    reason="needs deep_ep 2.x, or its deep_ep/buffers named by DEEP_EP_BUFFERS",
)
def test_the_stand_in_has_the_signatures_of_the_package() -> None:
    here = {"ElasticBuffer": classes_of(STAND_IN)["ElasticBuffer"]}
    real = classes_of(folder_of("deep_ep", "deep_ep/buffers", "DEEP_EP_BUFFERS"))
    assert {"__init__", "dispatch", "combine"} <= set(here["ElasticBuffer"])
    assert others(here, real, {"ElasticBuffer.made"}) == []
