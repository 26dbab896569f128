"""DeepEP as it is installed, on two GPUs: drawn problems, every way to call it, many calls, planted faults, a killed rank."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.candidates import load_candidate, support_of
from harness.candidates.over_ranks import DeepEp
from harness.candidates.with_experts import WithExperts
from harness.faults.named import plant
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.ranks.errors import RankLostError
from harness.running.judge import Judge
from harness.running.outcome import Outcome
from reference.logfmt import decode_logfmt, encode_logfmt, legal_logfmt
from reference.routing import Dispatched
from tests.ranks.planted import FAULTS, brought_back, carries, caught_and_named, needed

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available()
    or importlib.util.find_spec("deep_ep") is None
    or bool(DeepEp(2).support().reason),
    reason="needs deep_ep and two GPUs, or one that HARNESS_SHARE_GPU=1 has two ranks share",
)
PROBLEMS = (  # small ones first: a diagnosis of the others takes seconds
    "4x6x16x16:3*4:normal:57",
    "6x3x16x16:3*6:normal:1",
    "8x24x128x64:24*8:normal:5",
    "6x9x256x128:9*6:normal:1",
    "8x40x128x128:3*8:normal:2",
    "4x20x128x64:5,0,7,20:normal:0",
)
LAST_GPU = torch.cuda.device_count() - 1
CALLS = 500  # of dispatch, and as many of combine


@pytest.fixture(scope="module")
def candidate() -> Iterator[DeepEp]:
    over = DeepEp(2)
    yield over
    over.close()


def drawn(seed: int) -> str:
    """A problem of 8 to 256 experts, 0 to 128 tokens of a rank, hidden 2,048 to 8,192, top-k 1 to 8."""
    draw = random.Random(seed)
    experts, capacity = draw.choice((2, 4, 8, 16, 32, 64, 128, 256)), draw.choice((1, 8, 24, 48, 100, 128))
    hidden = draw.choice((2048, 7168)) if experts * capacity <= 4096 else 2048
    whole = ":whole_layer" if draw.random() < 0.4 else ""
    return f"{experts}x{capacity}x{hidden}x16:{draw.randint(0, capacity)}*{experts}:normal:{seed}{whole}"


def judged(candidate: DeepEp, rule: str, problems: list[str]) -> list[Outcome]:
    judge = Judge(candidate, threads=1, probe=False)
    outcomes = [judge.judge(rule, problem) for problem in problems]
    other = [
        f"{problem}: {one.status} {one.error[-300:]}"
        for problem, one in zip(problems, outcomes, strict=True)
        if one.status != "judged"
    ]
    assert other == []
    return outcomes


@pytest.mark.parametrize(("rule", "count"), [("DISPATCH", 300), ("COMBINE", 200), ("EP", 40), ("ROUTE", 20)])
def test_drawn_problems_pass(candidate: DeepEp, rule: str, count: int) -> None:
    problems = [drawn(seed) for seed in range(count)]
    if rule == "EP":
        problems = [problem for problem in problems if "whole" not in problem]
    started = time.monotonic()
    wrong = [one for one in judged(candidate, rule, problems) if one.illegal]
    print(f"{rule}: {len(problems)} problems, {time.monotonic() - started:.0f} s")
    assert wrong == []


def test_the_extents_that_are_promised_are_drawn(candidate: DeepEp) -> None:
    layers = [LayerProblem(parse_problem(drawn(seed)), candidate.traits) for seed in range(300)]
    assert {layer.hidden for layer in layers} >= {2048, 2560, 4096, 5120, 6144, 7168, 8192}
    assert {layer.topk for layer in layers} == set(range(1, 9))
    assert max(layer.max_tokens for layer in layers) == 128
    assert min(count for layer in layers for count in layer.counts) == 0
    assert {layer.experts for layer in layers} >= {8, 256}


def by_source(received: list[Dispatched]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return every rank's rows in order of expert, source rank and token, as bytes, with their scales."""
    found = []
    for got in received:
        expert, row = (got.source[..., 0] >= 0).nonzero(as_tuple=True)
        source = got.source[expert, row]
        order = ((expert * 64 + source[:, 0]) * 4096 + source[:, 1]).argsort()
        expert, row = expert[order], row[order]
        scales = got.masked_m if got.scales is None else got.scales.view(torch.uint8)[expert, row]
        found.append((got.x.view(torch.uint8)[expert, row], scales, source[order]))
    return found


def inputs(candidate: DeepEp, hidden: int, tokens: int, experts: int, topk: int) -> tuple[list[Tensor], ...]:
    generator, device = torch.Generator().manual_seed(hidden + tokens), candidate.traits.device
    counts = (tokens, tokens // 2)
    x = [torch.randn(count, hidden, generator=generator).bfloat16().to(device) for count in counts]
    ids = [torch.rand(count, experts, generator=generator).topk(topk).indices.to(device) for count in counts]
    return x, ids, [torch.rand(count, topk, generator=generator).to(device) for count in counts]


def called(
    candidate: DeepEp, given: tuple[list[Tensor], ...], experts: int, tokens: int, transport: str
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[Tensor]]:
    x, ids, weights = given
    scale = torch.tensor([500.0], device=x[0].device) if transport == "nvfp4" else None
    received = candidate.dispatch(x, ids, experts, tokens, transport=transport, global_scale_enc=scale)
    y = []
    for got in received:  # an output is a function of its expert and its token
        expert, row = (got.source[..., 0] >= 0).nonzero(as_tuple=True)
        rank, token = got.source[expert, row].T
        rows = torch.zeros(*got.x.shape[:2], x[0].shape[1], dtype=torch.bfloat16, device=x[0].device)
        rows[expert, row] = torch.cat(x)[rank * len(x[0]) + token] * (expert + 1)[:, None]
        y.append(rows / 512)  # small enough for LogFMT
    by = candidate.traits.combine_transports
    return by_source(received), [
        out for name in by for out in candidate.combine(y, received, ids, weights, transport=name)
    ]


def test_every_way_to_call_gives_the_same(candidate: DeepEp) -> None:
    given = inputs(candidate, 2048, 48, 8, 4)
    kept = candidate._styles
    assert {"plain", "hook", "asynchronous", "zero copy", "one rank late", "guarded", "graph"} <= set(kept)
    try:
        for transport in candidate.traits.transports:
            results = {}
            for style in kept:
                candidate._styles = (style,)
                results[style] = called(candidate, given, 8, 48, transport)
            for style, (rows, out) in results.items():
                for got, wanted in zip(rows, results["plain"][0], strict=True):
                    assert all(map(torch.equal, got, wanted)), (transport, style)
                assert all(map(torch.equal, out, results["plain"][1])), (transport, style)
    finally:
        candidate._styles = kept


@pytest.mark.parametrize("topk", [1, 8, 9, 10, 11])
def test_tokens_may_have_up_to_eleven_experts(candidate: DeepEp, topk: int) -> None:
    over, simulated = brought_back(candidate, topk), brought_back(load_candidate("eager-cuda"), topk)
    assert all(map(torch.equal, over, simulated))


def test_a_thousand_calls_of_two_sizes_give_the_same(candidate: DeepEp) -> None:
    sizes = ((2048, 32, 8, 4), (7168, 16, 16, 8))
    given = [inputs(candidate, *size) for size in sizes]
    wanted = {}
    for call in range(CALLS):
        which, transport = call // 5 % 2, candidate.traits.transports[call % 2]
        _, tokens, experts, _ = sizes[which]
        rows, out = called(candidate, given[which], experts, tokens, transport)
        first_rows, first_out = wanted.setdefault((which, transport), (rows, out))
        for got, first in zip(rows, first_rows, strict=True):
            assert all(map(torch.equal, got, first)), call
        assert all(map(torch.equal, out, first_out)), call
    assert len(wanted) == 4


def test_rows_come_back_in_logfmt_as_its_definition_says(candidate: DeepEp) -> None:
    """Rows of one expert with a weight of 1: what arrives is seen as it is, rounded to bfloat16."""
    if "logfmt" not in candidate.traits.combine_transports:
        pytest.skip("this build has no logfmt")
    device, count = candidate.traits.device, 512
    generator = torch.Generator().manual_seed(0)
    octaves = torch.arange(2 * count).unsqueeze(1) % 24
    x = (torch.randn(2 * count, 2048, generator=generator) / 16 * torch.exp2(-octaves)).bfloat16().to(device)
    ids = [torch.full((count, 1), rank, device=device) for rank in range(2)]
    received = candidate.dispatch([x[:count], x[count:]], ids, 2, count)

    def back(y: list[Tensor]) -> Tensor:
        ones = [torch.ones(count, 1, device=device)] * 2
        return torch.cat(candidate.combine(y, received, ids, ones, transport="logfmt"))

    got, rows = back([got.x for got in received]), encode_logfmt(x)
    assert bool(rows.coded.all())
    low, high = legal_logfmt(x)
    one, same = (high - low) < 1e-3 * high.abs(), got == decode_logfmt(rows).bfloat16()
    print(
        f"{float(one.double().mean()):.3%} have one code; {float(same.double().mean()):.3%} are the definition's"
    )
    assert bool(((got >= low.bfloat16()) & (got <= high.bfloat16())).all())
    assert float(same.double().mean()) > 0.98
    with_nan = [got.x.clone() for got in received]
    for y in with_nan:
        y[:, :, 5] = torch.nan
    assert bool((back(with_nan)[:, 5] == 0).all())


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named(candidate: DeepEp, name: str) -> None:
    fault = FAULTS[name]
    if not carries(candidate, fault):
        pytest.skip(f"this build has no {needed(fault)}")
    kept = candidate.traits
    if needed(fault) == "nvfp4":  # a build that has it may have mistakes of its own in FP8
        candidate.keep_to(("nvfp4",))
    try:
        where, named = caught_and_named(candidate, name, PROBLEMS)
    finally:
        candidate.traits = kept
    assert where, "it is not caught"
    assert {name, *fault.same_as} & set(named), (where, named)


@pytest.mark.parametrize("experts", ["eager-cuda", "humming-masked"])
def test_the_experts_of_another_candidate_are_judged_on_what_arrived(candidate: DeepEp, experts: str) -> None:
    """Few shapes: Humming compiles a kernel for each."""
    both = WithExperts(candidate, load_candidate(experts))
    if reason := support_of(both).reason:
        pytest.skip(reason)
    problems = [f"8x24x2048x128:{rows}*8:normal:{seed}" for seed, rows in enumerate((24, 3, 24, 9, 24, 1))]
    outcomes = judged(both, "EP", problems)
    assert [one.illegal for one in outcomes if one.illegal] == []
    stages = {stage.stage for one in outcomes for stage in one.comparisons}
    assert {"dispatch.bf16.x", "dispatch.fp8.x", "combine", "layer"} <= stages, stages
    assert any(stage.startswith("experts of rank 1: ") for stage in stages)
    compared = sum(stage.compared for one in outcomes for stage in one.comparisons)
    print(f"{experts}: {compared:,} elements, {sorted(stages)}")
    faulty = judged(plant(both, "output_scaled"), "EP", problems[:2])
    wrong = {stage.stage for one in faulty for stage in one.illegal}
    assert any(stage.startswith("experts of rank ") for stage in wrong)
    assert not any(stage.startswith(("dispatch", "combine")) for stage in wrong)


def lost(over: DeepEp, which: signal.Signals) -> float:
    """Send rank 1 a signal amid calls; return the seconds until the call has ended."""
    x, ids, _ = inputs(over, 2048, 8, 8, 2)
    over.dispatch(x, ids, 8, 8)
    pids = over._ranks().pids
    threading.Timer(0.3, os.kill, (pids[1], which)).start()
    started = time.monotonic()
    with pytest.raises(RankLostError, match="rank 1 of 2"):  # noqa: PT012 - the calls go on until it is lost
        while time.monotonic() - started < 30:
            over.dispatch(x, ids, 8, 8)
    seconds = time.monotonic() - started
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    return seconds


def test_a_rank_that_is_killed_or_stopped_ends_the_call_ten_times_out_of_ten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other one's kernel waits for it, without a time limit of its own."""
    monkeypatch.setenv("HARNESS_CALL_SECONDS", "8")
    over, free = DeepEp(2), torch.cuda.mem_get_info(LAST_GPU)[0]
    try:
        seconds = [lost(over, signal.SIGSTOP if number % 5 == 4 else signal.SIGKILL) for number in range(10)]
    finally:
        over.close()
    print(f"ended after {min(seconds):.1f} to {max(seconds):.1f} s")
    assert max(seconds) < 20
    assert torch.cuda.mem_get_info(LAST_GPU)[0] > free - (1 << 30), "memory of a GPU is not given back"
