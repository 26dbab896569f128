"""A fault of dispatch or combine planted around ranks that are processes: whether it is caught, and what a diagnosis names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.faults.fault import Fault, all_faults
from harness.faults.named import plant
from harness.running.judge import Judge

FAULTS = {name: fault for name, fault in all_faults().items() if fault.category in {"dispatch", "combine"}}


def needed(fault: Fault) -> str:
    """The transport without which a candidate cannot have a fault, "" where any will do."""
    return next((name for name in ("nvfp4", "logfmt") if fault.name.startswith(name)), "")


def carries(candidate: Any, fault: Fault) -> bool:
    """Whether a candidate has the transport that a fault is about."""
    has = {"", *candidate.traits.transports, *candidate.traits.combine_transports}
    return needed(fault) in has


def caught_and_named(candidate: Any, name: str, problems: Sequence[str]) -> tuple[str, list[str]]:
    """Return the first problem on which a planted fault is caught and named, and what the diagnosis names there.

    On some problems another fault does the very same. Where it is named on none, the last one on which it is caught; ""
    where there is none.
    """
    fault, judge = FAULTS[name], Judge(plant(candidate, name), threads=1, probe=False)
    where, found = "", []
    for problem in problems:
        if not judge.judge(fault.killed_by, problem).illegal:
            continue
        where = problem
        found = [one["fault"] for one in judge.diagnose(fault.killed_by, problem, "harness diagnose")]
        if {name, *fault.same_as} & set(found):
            break
    return where, found


def brought_back(candidate: Any, topk: int) -> list[Tensor]:
    """Return the sums of two ranks whose tokens go to `topk` of 16 experts; each expert multiplies by a number of its own."""
    generator, device = torch.Generator().manual_seed(topk), candidate.traits.device
    x = [torch.randn(tokens, 2048, generator=generator).bfloat16().to(device) for tokens in (48, 31)]
    ids = [torch.rand(len(rows), 16, generator=generator).topk(topk).indices.to(device) for rows in x]
    weights = [torch.rand(len(rows), topk, generator=generator).to(device) for rows in x]
    received = candidate.dispatch(x, ids, 16, 48)
    factors = torch.arange(1, 9, device=device).view(-1, 1, 1) / 8
    y = [(got.x.float() * factors).bfloat16() for got in received]
    found: list[Tensor] = candidate.combine(y, received, ids, weights)
    return found
