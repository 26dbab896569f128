"""The data that upstream tests of the CuteDSL path use, and the layer's output on it.

Plain normal tokens and weights, top-k routing of normal logits, so that the counts of rows are random: what SGLang's and
vLLM's test_cutedsl_moe.py construct. Their activation scales are all 1; the second data set has calibrated ones, which
differ from expert to expert, as a checkpoint's do.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates.expert_parallel import ExpertParallel
from reference.e2m1 import pack_e2m1
from reference.loading import tensor_name
from reference.nvfp4 import SCALE_RANGE, quantize_nvfp4

EXPERTS, HIDDEN, INTER, TOPK = 8, 128, 256, 2
RANKS, TOKENS = 2, 32  # of each rank
SEEDS = (42, 43)  # two batches: a fault of state shows in the second one only
DATA = {
    "upstream": "activation scales of 1 on every expert, as upstream tests have them",
    "calibrated": "activation scales that differ from expert to expert and from 1",
}


@dataclass(frozen=True)
class Batch:
    """Per rank: tokens `(tokens, hidden)` bfloat16 and router logits `(tokens, experts)` float32."""

    x: list[Tensor]
    logits: list[Tensor]


@functools.cache
def batches(device: str) -> tuple[Batch, ...]:
    """Return the batches that every mutant runs on."""
    found = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        x = [torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16().to(device) for _ in range(RANKS)]
        logits = [torch.randn(TOKENS, EXPERTS, generator=generator).to(device) for _ in range(RANKS)]
        found.append(Batch(x, logits))
    return tuple(found)


@functools.cache
def checkpoint(data: str, device: str) -> dict[str, Tensor]:
    """Return one layer's ModelOpt tensors: normal weights of deviation 0.1, quantized with a scale per matrix.

    Args:
        data: a key of DATA.
        device: torch device type.
    """
    generator = torch.Generator().manual_seed(SEEDS[0])
    found: dict[str, Tensor] = {}
    for expert in range(EXPERTS):
        w1 = (torch.randn(2 * INTER, HIDDEN, generator=generator) / 10).bfloat16()
        w2 = (torch.randn(HIDDEN, INTER, generator=generator) / 10).bfloat16()
        for projection, weight, shared in (
            ("gate", w1[:INTER], w1),
            ("up", w1[INTER:], w1),  # gate and up share a scale: the kernel has one alpha for both
            ("down", w2, w2),
        ):
            scale = shared.abs().amax().float() / SCALE_RANGE
            quantized = quantize_nvfp4(weight, 1 / scale)
            values = {
                "weight": pack_e2m1(quantized.codes),
                "weight_scale": quantized.block_scale.view(torch.float8_e4m3fn),
                "weight_scale_2": scale,
                "input_scale": torch.tensor(_input_scale(data, projection, expert)),
            }
            for kind, value in values.items():
                found[tensor_name(expert, projection, kind)] = value.to(device)
    return found


def _input_scale(data: str, projection: str, expert: int) -> float:
    """Return the decode scale of an activation: 1, or the largest value (tokens reach 5, intermediates 20) over its range."""
    if data == "upstream":
        return 1.0
    return (20 if projection == "down" else 5) / SCALE_RANGE * 2 ** (expert / EXPERTS)


def outputs(candidate: Any, data: str, transport: str, device: str) -> list[Tensor]:
    """Return a candidate's layer output of each batch, `(tokens of all ranks, hidden)` float64 on the CPU.

    Stages that the candidate lacks are the reference's.
    """
    layer = ExpertParallel(candidate, dict(checkpoint(data, device)), ranks=RANKS, transport=transport)
    found = []
    for batch in batches(device):
        routes = [layer.route(logits, TOPK) for logits in batch.logits]
        out = layer([x.clone() for x in batch.x], [ids for ids, _ in routes], [w for _, w in routes])
        found.append(torch.cat(out).double().cpu())
    return found
