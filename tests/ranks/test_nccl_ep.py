"""The side of NCCL EP that Python sees, with a stand-in whose kernels are gloo: tags, order of rows, handles, refusals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.candidates import load_candidate, support_of
from harness.candidates.left_out import out_of_contract
from harness.candidates.over_ranks import OverRanks
from harness.faults.named import plant
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.ranks.collectives import Sizes
from harness.ranks.errors import NoBuildError, RankError, RankLostError
from harness.ranks.nccl_ep import TAG_CHANNELS, read_tags, tags_of
from harness.ranks.nccl_ep_build import MOST_TOKENS, STAGED, TRANSPORTS, find_version
from harness.running.judge import Judge
from reference.fp8_tokens import quantize_fp8_tokens
from tests.ranks.signatures import classes_of, folder_of, others

STAND_IN = Path(__file__).parent / "stand_in/nccl/ep"
PROBLEMS = ("4x6x16x16:3*4:normal:57", "6x3x16x16:3*6:normal:4", "3x5x16x16:2*3:normal:2")


@pytest.fixture(scope="module")
def candidate(stand_in: None) -> Iterator[OverRanks]:
    over: OverRanks = load_candidate("on_cpu:NcclOnCpu")
    yield over
    over.close()


def test_the_rules_pass_whatever_the_widths_and_the_ways_to_call(candidate: OverRanks) -> None:
    judge = Judge(candidate, threads=1, probe=False)
    layers = [LayerProblem(parse_problem(problem), candidate.traits) for problem in PROBLEMS]
    assert {layer.hidden for layer in layers} == {2048, 2560, 4096}
    for problem in PROBLEMS:
        for rule in ("DISPATCH", "COMBINE", "EP"):
            outcome = judge.judge(rule, problem)
            assert outcome.status == "judged", outcome
            assert not outcome.illegal, outcome


@pytest.mark.parametrize("style", ["plain", STAGED])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_way_to_call_gives_the_same(candidate: OverRanks, style: str, transport: str) -> None:
    """Among it a rank without tokens, tokens without an expert, and FP8 of values that a tag could spoil."""
    assert style in candidate._styles
    x = [torch.arange(rows * 2048).view(rows, 2048).bfloat16() for rows in (3, 0)]
    ids = [torch.tensor([[0, 1], [-1, -1], [1, -1]]), torch.empty(0, 2, dtype=torch.int64)]
    weights = [torch.full(rows.shape, 0.5) for rows in ids]
    kept, candidate._styles = candidate._styles, (style,)
    try:
        received = candidate.dispatch(x, ids, 2, 3, transport=transport)
        out = candidate.combine(
            [torch.full((1, 6, 2048), rank + 1.0).bfloat16() for rank in (0, 1)], received, ids, weights
        )
    finally:
        candidate._styles = kept
    assert [got.masked_m.tolist() for got in received] == [[1], [2]]
    assert received[1].source[0, :2].tolist() == [[0, 0], [0, 2]]
    assert [row[0].item() for row in out[0]] == [1.5, 0, 1]
    assert out[1].shape == (0, 2048)
    if transport == "bf16":
        assert torch.equal(received[1].x[0, :2], x[0][::2])


def test_rows_go_back_by_their_source_in_whatever_order_they_lie(candidate: OverRanks) -> None:
    """Sums of rows that all differ, over calls in each of which the stand-in lays the rows in another order."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(16, 2048, generator=generator).bfloat16() for _ in range(2)]
    ids = [torch.rand(16, 4, generator=generator).argsort(1) for _ in range(2)]
    weights = [torch.rand(16, 4, generator=generator) for _ in range(2)]
    received = candidate.dispatch(x, ids, 4, 16)
    wanted = [
        sum(w[:, slot, None] * t.float() for slot in range(4)).bfloat16()  # type: ignore[union-attr]
        for t, w in zip(x, weights, strict=True)
    ]
    for _ in range(3):
        out = candidate.combine([got.x for got in received], received, ids, weights)
        assert all(torch.equal(got, right) for got, right in zip(out, wanted, strict=True))


def test_a_row_that_never_arrived_is_missed(candidate: OverRanks) -> None:
    x, ids = [torch.ones(2, 2048).bfloat16()] * 2, [torch.tensor([[0], [1]])] * 2
    received = candidate.dispatch(x, ids, 2, 2)
    received[0].source[0, 1] = -1
    out = candidate.combine([got.x for got in received], received, ids, [torch.ones(2, 1)] * 2)
    assert [bool(rows.isnan().any()) for rows in out] == [False, True]


@pytest.mark.parametrize("round_scale", [False, True])
def test_tags_survive_the_way_exactly(round_scale: bool) -> None:
    for rank in (0, 1, 15, 16, 63):
        tags = tags_of(rank, MOST_TOKENS, TAG_CHANNELS)
        wanted = torch.tensor([[rank, token] for token in range(MOST_TOKENS)])
        counts = torch.tensor([MOST_TOKENS])
        assert torch.equal(read_tags(tags[None], None, counts)[0], wanted)
        values, scales = quantize_fp8_tokens(tags, round_scale=round_scale)
        assert torch.equal(values.float()[:, :6], tags.float()[:, :6])
        assert torch.equal(read_tags(values[None], scales[None, :, 0], counts)[0], wanted)


def test_a_tag_that_cannot_be_read_says_so() -> None:
    tags = tags_of(3, 5, 512)
    tags[0, 0], tags[1, 2], tags[2, 1] = 446.0, -1.0, torch.nan
    source = read_tags(tags[None], None, torch.tensor([4]))
    assert source[0].tolist() == [[-1, -1], [-1, -1], [-1, -1], [3, 3], [-1, -1]]


REFUSED = [
    (Sizes(4, 2304, 2, 2), "nccl.ep takes a hidden size that is a multiple of 512, got 2304"),
    (Sizes(1028, 2048, 2, 2), "too many tokens or none: 1 to 1024 of a rank are sent by nccl.ep, got 1028"),
    (Sizes(4, 2048, 2, 3), "nccl.ep takes a top-k of 1 to 2 for 2 experts, got 3"),
    (
        Sizes(4, 2048, 2, 2, "nvfp4"),
        "nccl.ep has no nvfp4 dispatch that is called here: bf16, fp8, fp8-rounded",
    ),
]


@pytest.mark.parametrize(("sizes", "reason"), REFUSED)
def test_what_the_kernels_do_not_take_is_a_reason(candidate: OverRanks, sizes: Sizes, reason: str) -> None:
    """On every rank, so that none waits for another."""
    given = {"x": torch.zeros(1, sizes.hidden).bfloat16(), "topk_idx": torch.full((1, sizes.topk), -1)}
    with pytest.raises(RankError, match=f"rank 0: {reason}.*rank 1: {reason}"):
        candidate._ranks().call("dispatch", sizes, [given, given])


@pytest.mark.parametrize(
    ("fault", "rule"),
    [("token_lost", "DISPATCH"), ("fp8_scale_rounded_up", "DISPATCH"), ("weights_applied_twice", "COMBINE")],
)
def test_planted_faults_are_caught(candidate: OverRanks, fault: str, rule: str) -> None:
    judge = Judge(plant(candidate, fault), threads=1, probe=False)
    assert any(judge.judge(rule, problem).illegal for problem in PROBLEMS)


def test_what_is_called_and_what_is_not_is_said(candidate: OverRanks) -> None:
    assert out_of_contract(candidate.traits) == ["dispatch by nvfp4"]
    assert candidate.warning.endswith(
        "bf16, fp8, fp8-rounded; plain, staged, one rank late; rows are put in order"
    )  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        ("bare", "this nccl.ep has no Handle.complete"),
        (
            "other",
            "nccl.ep cannot be loaded: RuntimeError: libnccl_ep.so: undefined symbol: ncclCommQueryProperties; it",
        ),
    ],
)
def test_a_package_that_cannot_be_used_is_a_reason(
    stand_in: None, build: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", build)
    for name in [name for name in sys.modules if name.partition(".")[0] == "nccl"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(NoBuildError, match=reason):
        find_version()


def test_what_the_first_call_lacks_is_why_the_ranks_do_not_start(
    stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "uncompiled")
    over: OverRanks = load_candidate("on_cpu:NcclOnCpu")
    with pytest.raises(RankLostError, match="RuntimeError: NVCC compile failed"):
        over.start_ranks()


def test_one_gpu_only_is_a_reason(candidate: OverRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(candidate), "gpus", staticmethod(lambda: 1))
    assert support_of(candidate).reason == "needs 2 GPUs, one for each rank, and torch sees 1"


@pytest.mark.skipif(
    folder_of("nccl-extensions", "nccl/ep", "NCCL_EP_SOURCE") is None,
    reason="needs nccl-extensions, or its nccl/ep named by NCCL_EP_SOURCE",
)
def test_the_stand_in_has_the_signatures_of_the_package() -> None:
    folder = folder_of("nccl-extensions", "nccl/ep", "NCCL_EP_SOURCE")
    here = classes_of(STAND_IN)
    assert {"Group", "GroupConfig", "Handle", "Tensor", "DispatchConfig", "CombineOutputs"} <= set(here)
    assert others(here, classes_of(folder), {"Group.alive"}) == []
