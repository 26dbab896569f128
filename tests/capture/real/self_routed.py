"""FlashInfer's own trtllm_fp4_block_scale_moe on a CPU, captured: it routes itself, as METHOD says or as a mistaken kernel does.

`self_routed.py FOLDER CASE...`, a case being "METHOD" or "METHOD as MISTAKE", captured into FOLDER/CASE.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import flashinfer_routed
from harness.candidates.cutedsl_support import import_quietly
from harness.candidates.eager import EagerKernels
from harness.candidates.flashinfer_routed import FlashInferFusedTrtllm
from harness.capture.hook import _tap_everywhere
from harness.capture.session import Session
from harness.capture.settings import CaptureSettings
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.problems.problem import parse_problem
from tests.candidates import fused_launches
from tests.capture.real.routing_kernels import METHODS, route

PROBLEM = "v2:8x20x256x128:20,0,7,3,3,9,0,1:normal:1"


class Routes(fused_launches._Trtllm):
    """The compiled layer, which is given logits: it takes the arguments for what `mistaken` says."""

    def __init__(self, kept: fused_launches.FusedLaunches) -> None:
        super().__init__(kept)
        self.mistaken: dict[str, Any] = {}

    def trtllm_fp4_block_scale_moe(self, *positional: Any, **named: Any) -> list[Tensor]:
        names = fused_launches.parameters_of(fused_launches.CORE, "trtllm_fp4_block_scale_moe_op")
        given = dict(zip(names, positional, strict=False)) | named
        ids, weights = route(given["routing_logits"], given["routing_bias"], given | self.mistaken)
        return super().trtllm_fp4_block_scale_moe(
            **{**given, "topk_ids": ids.int(), "topk_weights": weights.bfloat16().float()}
        )


def main(folder: str, *cases: str) -> None:
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    kept = fused_launches.replace_launches(patch)
    core, routes = import_quietly(fused_launches.CORE), Routes(kept)
    patch.setattr(core, "get_trtllm_moe_sm100_module", lambda: routes)
    session = Session(CaptureSettings(folder))
    _tap_everywhere(session, core)
    candidate = FlashInferFusedTrtllm(device="cpu")
    fused_launches.EagerKernels = lambda **named: EagerKernels(unrounded=candidate.unrounded, **named)  # type: ignore[misc, assignment]
    context = Context(candidate, parse_problem(PROBLEM), Known.declared(candidate.traits))
    given = arguments(context)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(given["topk_idx"]), given["num_experts"], generator=generator) * 2
    bias = torch.randn(given["num_experts"], generator=generator) / 4
    load, asked = flashinfer_routed.load_fused, {}

    def itself(**named: Any) -> Any:
        named = {name: value for name, value in named.items() if name not in ("topk_ids", "routing_bias")}
        return core.trtllm_fp4_block_scale_moe(
            routing_logits=logits, routing_bias=asked["bias"], **{**named, **asked["given"]}
        )

    patch.setattr(
        flashinfer_routed, "load_fused", lambda name: itself if name == candidate.function else load(name)
    )
    for case in cases:
        method, _, mistake = case.partition(" as ")
        number, biased, options = METHODS[method]
        asked |= {"bias": bias if biased else None, "given": {"routing_method_type": number, **options}}
        routes.mistaken = {}
        if mistake:
            other, _, more = METHODS.get(mistake, (number, False, {}))
            routes.mistaken = (
                {"routing_method_type": other, **more} if mistake in METHODS else {"without": mistake}
            )
        session.settings, session.idle = CaptureSettings(str(Path(folder) / case)), False
        session._begin_anew()
        candidate.routed_moe(**given)


if __name__ == "__main__":
    main(*sys.argv[1:])
