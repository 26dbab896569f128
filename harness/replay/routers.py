"""Fused layers that route themselves: which tokens' experts and weights are known, and by which other routing a call is right.

Source: flashinfer-python 0.7.2, fused_moe/core.py (trtllm_fp4_block_scale_moe), tllm_enums.py (RoutingMethodType).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from harness.replay.captured import NotJudgedError
from reference.routing_methods import BIASED, Chosen, Routing, choose

_METHODS = {
    0: "default", 1: "renormalize", 2: "deepseek_v3", 3: "llama4", 4: "renormalize", 5: "topk", 6: "sigmoid_renorm",
    7: "minimax2", 8: "sigmoid", 9: "topk_sigmoid",
}  # fmt: skip
"""flashinfer.RoutingMethodType; 4 is softmax first, which chooses and weighs the same."""
FAULT = "routing_method_mistaken"


def routes_itself(given: Mapping[str, Any]) -> bool:
    """Return whether a call is given router logits instead of experts."""
    return given.get("routing_logits") is not None and "topk_ids" not in given


def chosen(a: Mapping[str, Any]) -> Chosen:
    """Return the experts and weights of a call's tokens.

    Raises:
        NotJudgedError: the method is not known, or no token's routing is.
    """
    logits: Tensor = a["routing_logits"]
    try:
        found = choose(logits, a["routing_bias"], routing_of(a))
    except ValueError as error:
        raise NotJudgedError(str(error)) from None
    if len(logits) and not bool(found.known.any()):
        raise NotJudgedError("the routing of every token hangs on the rounding of scores or weights")
    return found


def routing_of(a: Mapping[str, Any]) -> Routing:
    """Return how a call routes.

    Raises:
        NotJudgedError: by a method that is not known.
        ValueError: numbers that the method cannot have.
    """
    number = int(a["routing_method_type"])
    if number not in _METHODS:
        raise NotJudgedError(f"routing method {number} of flashinfer.RoutingMethodType: not judged yet")
    factor = a["routed_scaling_factor"]
    return Routing(
        _METHODS[number], a["top_k"], a["n_group"] or 0, a["topk_group"] or 0, 1.0 if factor is None else factor,
        bool(a.get("norm_topk_prob", True)),
    )  # fmt: skip


def left_out(a: Mapping[str, Any]) -> str:
    """Return in words how many tokens of a call are not judged, "" for none."""
    known = chosen(a).known
    count = len(known) - int(known.sum())
    return (
        f"{count} of {len(known)} tokens not judged: their routing hangs on the rounding of scores or weights"
        if count
        else ""
    )


def otherwise(a: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield routings that a kernel may mistake a call's for, in words, and the arguments that ask for each."""
    asked = routing_of(a)
    if a["routing_bias"] is not None:
        yield "The routing bias is ignored", {"routing_bias": None}
    if asked.factor != 1:
        yield "The factor of the routing weights is not applied", {"routed_scaling_factor": 1.0}
    if asked.groups > 1:
        yield "Groups of experts are ignored", {"n_group": 0, "topk_group": 0}
    seen = {asked.method}
    for number, method in sorted(
        _METHODS.items(), key=lambda one: one[1] in BIASED
    ):  # the simpler ones first
        if method not in seen:
            seen.add(method)
            yield f"Experts are routed by {method} instead of {asked.method}", {"routing_method_type": number}
    yield (
        "Weights are divided by their sum, or are not, the wrong way round",
        {"norm_topk_prob": not asked.normalized},
    )
