"""DeepEP's calls: what a rank received against what the captured ranks sent, and sums against what their experts gave.

Calls of different ranks belong together by their turn. Where not every rank was captured, or one has more calls than
another, a rank is judged against itself: its own tokens at its own experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.cases.observation import Observed
from harness.judging.comparison import Comparison
from harness.judging.quantize import QuantizerInput, judge_quantized
from harness.problems.rows import Rows
from harness.ranks.deepep_results import received, sources
from harness.ranks.spreading import in_order
from harness.replay.captured import Captured, NotJudgedError, Process
from harness.rules.dispatch import Exchange, judge_received
from harness.rules.logfmt import judge_logfmt_combined
from harness.rules.routing import judge_combined
from reference.formats import Coded
from reference.legal import Arithmetic
from reference.routing import NO_EXPERT, Dispatched

DISPATCH, COMBINE = COLLECTIVES = ("dispatch", "combine")


class Exchanges:
    """The dispatches and combines of a capture, those of all ranks together.

    Args:
        processes: of the capture.
    """

    def __init__(self, processes: list[Process]) -> None:
        self._turns: dict[tuple[str, str, int], int] = {}
        self._calls: dict[tuple[str, int], dict[int, Captured]] = {}
        for process in processes:
            number: Counter[str] = Counter()
            for call in process.calls:
                if call.stage in COLLECTIVES:
                    turn = number[call.stage]
                    number[call.stage] += 1
                    self._turns[_name(call)] = turn
                    self._calls.setdefault((call.stage, turn), {})[process.rank] = call
        self._most = {stage: _same_of_all(processes, stage) for stage in COLLECTIVES}

    def judge(self, rank: int, call: Captured, arithmetic: Arithmetic) -> list[Comparison]:
        """Judge one rank's call.

        Raises:
            NotJudgedError: it was asked for something that has no rule.
        """
        together = self._together(rank, call)
        if call.stage == COMBINE:
            return _judge_combine(rank, together)
        return _judge_dispatch(rank, together, arithmetic)

    def observed(self, rank: int, call: Captured) -> Observed | None:
        """Return the call of all ranks as one, for a diagnosis; None where not every rank was captured."""
        together = self._together(rank, call)
        inputs = [one.inputs for one in together.values()]
        if call.stage == COMBINE:
            handles = [given["handle"] for given in inputs]
            if len(together) < handles[0][1].shape[1]:
                return None
            dispatched = [_without_rows(sources(*handle[:2])) for handle in handles]
            arguments: dict[str, Any] = {
                "y": [given["x"] for given in inputs], "dispatched": dispatched,
                "topk_idx": [given["topk_idx"].long() for given in inputs],
                "topk_weights": [given["topk_weights"] for given in inputs],
                "transport": "logfmt" if inputs[0].get("use_logfmt") else "bf16",
            }  # fmt: skip
            return Observed(COMBINE, arguments, [one.outputs["combined"] for one in together.values()])
        got = [_dispatched(given, one.outputs) for given, one in zip(inputs, together.values(), strict=True)]
        if len(together) < _ranks(together[rank].outputs):
            return None
        arguments = {
            "x": [given["x"] for given in inputs], "topk_idx": [given["topk_idx"].long() for given in inputs],
            "experts": inputs[0]["num_experts"], "max_tokens": inputs[0]["num_max_dispatch_tokens_per_rank"],
            "transport": _transport(inputs[0]), "global_scale_enc": inputs[0].get("x_global_scale"),
        }  # fmt: skip
        return Observed(DISPATCH, arguments, [in_order(one) for one in got])

    def _together(self, rank: int, call: Captured) -> dict[int, Captured]:
        """Return the calls that belong together by rank: those of all, or this one."""
        found = self._calls[call.stage, self._turns[_name(call)]]
        alone = {rank: call}
        if not self._most[call.stage] or sorted(found) != list(range(len(found))):
            return alone
        handle = call.inputs["handle"] if call.stage == COMBINE else call.outputs["handle"]
        same = len({_sizes(one) for one in found.values()}) == 1 and len(found) == handle[1].shape[1]
        return dict(sorted(found.items())) if same else alone


def _name(call: Captured) -> tuple[str, str, int]:
    return call.stage, call.folder.name, call.number


def _same_of_all(processes: list[Process], stage: str) -> bool:
    """Return whether every process that made calls of a stage made as many, and is the only one of its rank."""
    counts = [(process.rank, sum(call.stage == stage for call in process.calls)) for process in processes]
    made = [(rank, count) for rank, count in counts if count]
    return len({count for _, count in made}) == 1 and len({rank for rank, _ in made}) == len(made)


def _sizes(call: Captured) -> tuple[Any, ...]:
    given = call.line["inputs"]
    if call.stage == COMBINE:
        return tuple(given["x"]["shape"])
    return given["x"]["shape"][1], given["num_experts"], given["num_max_dispatch_tokens_per_rank"]


def _ranks(outputs: Mapping[str, Any]) -> int:
    return int(outputs["handle"][1].shape[1])


def _transport(given: Mapping[str, Any]) -> str:
    if given.get("use_nvfp4"):
        if given.get("x_global_scale") is None or given.get("use_ue8m0"):
            raise NotJudgedError("dispatch: NVFP4 is judged with x_global_scale and E4M3 block scales")
        return "nvfp4"
    if not given.get("use_fp8", False):
        return "bf16"
    if given.get("use_ue8m0"):
        return "fp8-ue8m0"
    return "fp8-rounded" if given.get("round_scale") else "fp8"


def _dispatched(given: Mapping[str, Any], got: Mapping[str, Any]) -> Dispatched:
    values, scales = received(got["recv"], _transport(given), given["x"].shape[1])
    source = sources(*got["handle"][:2])
    return Dispatched(values, got["count"].to(torch.int32), source, scales)


def _without_rows(source: Tensor) -> Dispatched:
    """Return what combine reads of a dispatch: where each row came from."""
    return Dispatched(source[..., 0], (source[..., 0] >= 0).sum(1).to(torch.int32), source)


def _judge_dispatch(rank: int, together: dict[int, Captured], arithmetic: Arithmetic) -> list[Comparison]:
    given = {sender: call.inputs for sender, call in together.items()}
    mine = given[rank]
    outputs, transport = together[rank].outputs, _transport(mine)
    got = _dispatched(mine, outputs)
    local = len(got.masked_m)
    first = rank * local
    ids = [_owned(one["topk_idx"].long(), first, local) for one in given.values()]
    if len(given) < _ranks(outputs):
        got = _rows_of(got, rank, mine["num_max_dispatch_tokens_per_rank"])
    sent = Exchange(
        len(given), local, mine["num_max_dispatch_tokens_per_rank"], [len(one["x"]) for one in given.values()]
    )

    def quantized(what: QuantizerInput, stored: Coded, rows: Rows) -> list[Comparison]:
        scale = mine["x_global_scale"].reshape(-1).float().expand(local)
        return judge_quantized(
            "dispatch.nvfp4", what, stored.codes, stored.block_scale, scale, rows, arithmetic
        )

    counts, *others = judge_received(
        transport, sent, [one["x"] for one in given.values()], ids, [got], quantized
    )
    # Numbers of rows are equal or not; that zeros are right too, where nobody sent anything, takes no power away.
    return [replace(counts, accepted_altered=[]), *others]


def _owned(ids: Tensor, first: int, local: int) -> Tensor:
    """Return ids as a rank numbers its own experts, -1 for those of others."""
    return torch.where((ids >= first) & (ids < first + local), ids - first, NO_EXPERT)


def _rows_of(got: Dispatched, rank: int, max_tokens: int) -> Dispatched:
    """Return what came from one rank only, its rows first, that rank numbered 0."""
    from_it = got.source[..., 0] == rank
    order = torch.argsort((~from_it).to(torch.int8), dim=1, stable=True)[:, :max_tokens]
    counts = from_it.sum(1).to(torch.int32)

    def taken(part: Tensor) -> Tensor:
        raw = part.view(torch.uint8) if part.element_size() == 1 else part
        index = order.unsqueeze(-1).expand(-1, -1, part.shape[2])
        return raw.gather(1, index).view(part.dtype)

    source = taken(got.source)
    source[..., 0] = torch.where(source[..., 0] == rank, 0, -1)
    scales = None if got.scales is None else taken(got.scales)
    return Dispatched(taken(got.x), counts, source, scales)


def _judge_combine(rank: int, together: dict[int, Captured]) -> list[Comparison]:
    given = {one: call.inputs for one, call in together.items()}
    mine = given[rank]
    ranks, local = mine["handle"][1].shape[1], len(mine["x"])
    ids, weights = mine["topk_idx"].long(), mine["topk_weights"].float()
    here = (ids == NO_EXPERT) | (_owned(ids, rank * local, local) != NO_EXPERT)
    kept = torch.ones(len(ids), dtype=torch.bool) if len(given) == ranks else here.all(1)
    if not bool(kept.any()):
        return [Comparison(COMBINE)]
    nothing = mine["x"].new_zeros(1).expand(mine["x"].shape)
    y = [given[one]["x"] if one in given else nothing for one in range(ranks)]
    dispatched = []
    for one in range(ranks):
        source = (
            sources(*given[one]["handle"][:2]) if one in given else torch.full((*nothing.shape[:2], 2), -1)
        )
        dispatched.append(_without_rows(torch.where(source[..., :1] == rank, source, -1)))
    before = [ids[:0]] * rank, [weights[:0]] * rank  # other ranks' tokens are judged where they are combined
    token = torch.arange(len(ids))
    rows = Rows(torch.full_like(token, rank), token, ranks, len(ids), expert_name="rank", row_name="token")
    judge = judge_logfmt_combined if mine.get("use_logfmt") else judge_combined
    return [
        judge(
            together[rank].outputs["combined"][kept], rows.only(kept), y, dispatched, [*before[0], ids],
            [*before[1], weights], kept,
        )
    ]  # fmt: skip
