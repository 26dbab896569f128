"""The side of DeepEP that Python sees, with a stand-in whose kernels are gloo: options, layouts, handles, sizes, refusals."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.candidates import load_candidate, support_of
from harness.candidates.out_of_contract import out_of_contract
from harness.candidates.over_ranks import SHARE_GPU, DeepEp, OverRanks
from harness.faults.named import plant
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.ranks.collectives import Sizes
from harness.ranks.deepep_build import HIDDEN_SIZES, find_build
from harness.ranks.errors import NoBuildError, RankError
from harness.running.judge import Judge
from tests.ranks.planted import FAULTS, brought_back, carries, caught_and_named

PROBLEMS = ("4x6x16x16:3*4:normal:57", "6x3x16x16:3*6:normal:1", "3x5x16x16:2*3:normal:3")


@pytest.fixture(scope="module")
def candidate(stand_in: None) -> Iterator[OverRanks]:
    over: OverRanks = load_candidate("on_cpu:OnCpu")
    yield over
    over.close()


@pytest.fixture(scope="module")
def fork(stand_in: None) -> Iterator[OverRanks]:
    """SGLang's fork as it was measured, whose mistakes the stand-in makes."""
    over: OverRanks = load_candidate("on_cpu:OnCpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAND_IN", "fork")
        over.start_ranks()
    yield over
    over.close()


def test_the_rules_pass_whatever_the_widths_and_the_ways_to_call(candidate: OverRanks) -> None:
    judge = Judge(candidate, threads=1, probe=False)
    layers = [LayerProblem(parse_problem(problem), candidate.traits) for problem in PROBLEMS]
    assert {layer.hidden for layer in layers} == {2048, 2560, 5120}
    for problem in PROBLEMS:
        for rule in ("DISPATCH", "COMBINE", "EP"):
            outcome = judge.judge(rule, problem)
            assert outcome.status == "judged", outcome
            assert not outcome.illegal, outcome


@pytest.mark.parametrize("topk", [9, 11])
def test_tokens_may_have_more_experts_than_problems_draw(candidate: OverRanks, topk: int) -> None:
    over, simulated = brought_back(candidate, topk), brought_back(load_candidate("eager"), topk)
    assert all(map(torch.equal, over, simulated))


@pytest.mark.parametrize("style", ["plain", "hook", "asynchronous", "zero copy"])
def test_every_way_to_call_gives_the_same(candidate: OverRanks, style: str) -> None:
    assert style in candidate._styles
    x = [torch.arange(rows * 2048).view(rows, 2048).bfloat16() for rows in (3, 0)]
    ids = [torch.tensor([[0, 1], [-1, 1], [1, -1]]), torch.empty(0, 2, dtype=torch.int64)]
    weights = [torch.full(rows.shape, 0.5) for rows in ids]
    kept, candidate._styles = candidate._styles, (style,)
    try:
        received = candidate.dispatch(x, ids, 2, 3)
        out = candidate.combine([got.x for got in received], received, ids, weights)
    finally:
        candidate._styles = kept
    assert [got.masked_m.tolist() for got in received] == [[1], [3]]
    assert torch.equal(out[0], torch.cat((x[0][:1], x[0][1:] / 2)))
    assert out[1].shape == (0, 2048)


REFUSED = [
    (Sizes(4, 3000, 2, 2), "deep_ep takes a hidden size of"),
    (Sizes(1028, 2048, 2, 2), "too many tokens: deep_ep takes 1024 of a rank, got 1028"),
    (Sizes(1024, 8192, 256, 2), "too many tokens: .* the one Buffer of a process was made with"),
    (Sizes(3, 2048, 2, 2), r"deep_ep needs ranks \* max_tokens to be a multiple of 4, got 2 \* 3"),
    (Sizes(4, 2048, 2, 12), "deep_ep takes a top-k of 1 to 11, got 12"),
]


@pytest.mark.parametrize(("sizes", "reason"), REFUSED)
def test_what_the_kernels_do_not_take_is_a_reason(candidate: OverRanks, sizes: Sizes, reason: str) -> None:
    """On every rank, so that none waits for another."""
    given = {
        "x": torch.zeros(1, sizes.hidden).bfloat16(),
        "topk_idx": torch.full((1, sizes.topk), -1),
    }
    with pytest.raises(RankError, match=f"rank 0: {reason}.*rank 1: {reason}"):
        candidate._ranks().call("dispatch", sizes, [given, given])


@pytest.mark.parametrize(
    ("fault", "rule"), [("fp8_scale_rounded_up", "DISPATCH"), ("weights_applied_twice", "COMBINE")]
)
def test_planted_faults_are_caught(candidate: OverRanks, fault: str, rule: str) -> None:
    judge = Judge(plant(candidate, fault), threads=1, probe=False)
    assert any(judge.judge(rule, problem).illegal for problem in PROBLEMS)


def test_scales_a_unit_off_are_those_of_the_named_fault(candidate: OverRanks) -> None:
    """Senders divide in their own way: most float32 scales are not the model's to the bit."""
    assert (
        caught_and_named(candidate, "fp8_scale_of_neighbour", PROBLEMS[:1])[1][0] == "fp8_scale_of_neighbour"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_caught_and_named(candidate: OverRanks, name: str) -> None:
    """tests/gpu/test_deepep.py has the same around the kernels."""
    assert carries(candidate, FAULTS[name])
    where, named = caught_and_named(candidate, name, (*PROBLEMS, "8x8x128x64:8*8:normal:5"))
    assert where
    assert {name, *FAULTS[name].same_as} & set(named)


def test_the_conversion_of_the_fork_is_named_first(fork: OverRanks) -> None:
    judge = Judge(fork, threads=1, probe=False)
    outcome = judge.judge("DISPATCH", "1x1x16x16:0:normal:0")
    assert [one.stage for one in outcome.illegal] == ["dispatch.nvfp4.codes"], (
        "one expert's scales are in place"
    )
    found = judge.diagnose("DISPATCH", "1x1x16x16:0:normal:0", "harness diagnose")
    assert found[0]["fault"] == "nvfp4_dispatch_codes_by_logarithm"
    assert found[0]["title"].startswith("E2M1 by truncation and logarithm: thresholds 0.5, 1, sqrt 2,")
    assert "gain 0.90" in found[0]["title"]


def test_the_scales_of_the_fork_are_wrong_from_the_second_expert_on(fork: OverRanks) -> None:
    fork.traits = dataclasses.replace(fork.traits, transports=("bf16", "fp8"))
    judge = Judge(fork, threads=1, probe=False)
    outcome = judge.judge("DISPATCH", "8x48x16x16:3*8:normal:2")
    scale = next(one for one in outcome.illegal if one.stage == "dispatch.fp8.scale")
    wrong = {int(e) for e in re.findall(r"\d+", scale.message.partition("experts [")[2].partition("]")[0])}
    assert {1, 2, 3, 5, 6, 7} >= wrong >= {1, 5}, "each rank's first expert is right"
    found = judge.diagnose("DISPATCH", "8x48x16x16:3*8:normal:2", "harness diagnose")
    assert [one["fault"] for one in found] == ["fp8_scale_stride_of_whole_tiles"]


def test_both_mistakes_of_the_fork_are_named(fork: OverRanks) -> None:
    fork.traits = dataclasses.replace(fork.traits, transports=("bf16", "fp8", "nvfp4"))
    judge = Judge(fork, threads=1, probe=False)
    assert judge.judge("DISPATCH", PROBLEMS[1]).illegal
    found = judge.diagnose("DISPATCH", PROBLEMS[1], "harness diagnose")
    assert {one["fault"] for one in found} == {
        "nvfp4_dispatch_codes_by_logarithm",
        "fp8_scale_stride_of_whole_tiles",
    }


def build_of(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what is found where the package is this text."""
    folder.joinpath("deep_ep.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "deep_ep", raising=False)
    importlib.invalidate_caches()
    try:
        return find_build()
    finally:
        sys.modules.pop("deep_ep", None)


UPSTREAM = """
class Buffer:
    def low_latency_dispatch(self, x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts, use_fp8=True,
                             async_finish=False, return_recv_hook=False): ...
    def low_latency_combine(self, x, topk_idx, topk_weights, handle, zero_copy=False, async_finish=False,
                            return_recv_hook=False, out=None): ...
"""


def test_a_build_is_read_from_its_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = build_of(tmp_path, "__version__ = '1.2.1'" + UPSTREAM, monkeypatch)
    assert build.version == "1.2.1"
    assert build.transports == ("bf16", "fp8")
    assert build.styles == ("plain", "hook", "asynchronous", "zero copy")


def test_what_a_build_lacks_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_of(tmp_path, UPSTREAM, monkeypatch)
    traits = DeepEp().traits
    sys.modules.pop("deep_ep", None)
    assert traits.transports == ("bf16", "fp8")
    assert traits.hidden_sizes == HIDDEN_SIZES
    assert out_of_contract(traits) == ["dispatch by nvfp4"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "raise ImportError('undefined symbol: _ZN3c10')",
            "deep_ep cannot be imported: ImportError: undefined symbol",
        ),
        ("import nccl_of_another_version", "it was built for another torch or CUDA"),
        ("assert False, 'Invalid NCCL versions'", "deep_ep cannot be imported: AssertionError: Invalid NCCL"),
        ("class Buffer: ...", "this deep_ep has no Buffer with low_latency_dispatch"),
    ],
)
def test_a_package_that_cannot_be_used_is_a_reason(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoBuildError, match=reason):
        build_of(tmp_path, text, monkeypatch)


def test_one_gpu_only_is_a_reason_unless_ranks_may_share_it(
    candidate: OverRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SHARE_GPU, raising=False)
    monkeypatch.setattr(type(candidate), "gpus", staticmethod(lambda: 1))
    reason = "needs 2 GPUs, one for each rank, and torch sees 1; HARNESS_SHARE_GPU=1 has them take turns"
    assert support_of(candidate).reason == reason
    monkeypatch.setenv(SHARE_GPU, "1")
    assert support_of(candidate).ok
    monkeypatch.setattr(type(candidate), "gpus", staticmethod(lambda: 0))
    assert support_of(candidate).reason == "needs 2 GPUs, one for each rank, and torch sees 0"
