"""SGLang's and vLLM's own Marlin layers on a CPU, captured with faults planted where they launch compiled code.

`marlin.py ENGINE FORMAT FOLDER FAULT...` prepares weights as the engine does, runs one layer for each fault ("healthy": none)
and captures it into FOLDER/FAULT. Above the launches everything is the engine's own.
"""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.eager import EagerKernels
from harness.candidates.engines.engine import Engine
from harness.capture.hook import _tap
from harness.capture.session import Session
from harness.capture.settings import CaptureSettings
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.problems.problem import parse_problem
from reference.marlin_layout import to_marlin
from tests.capture.real.marlin_launches import Launches

PROBLEM = "v2:4x20x256x128:20,0,7,11:normal:1"
SGLANG = "sglang.srt.layers"
VLLM = "vllm.model_executor.layers"
MODULES = {
    "sglang": (f"{SGLANG}.moe.fused_moe_triton.fused_marlin_moe", f"{SGLANG}.quantization.marlin_utils_fp4"),
    "vllm": (f"{VLLM}.fused_moe.experts.marlin_moe", f"{VLLM}.quantization.utils.marlin_utils_fp4"),
}


def repacked(b_q_weight: Tensor, size_k: int, size_n: int, num_bits: int, **_: Any) -> Tensor:
    """Stand in for gptq_marlin_repack: `(k/8, n)` int32 to `(k/16, 2n)`."""
    assert (b_q_weight.shape, num_bits) == ((size_k // 8, size_n), 4)
    return to_marlin(b_q_weight.T.contiguous().view(torch.uint8)[None])[0]


def given_of(weight_format: str) -> dict[str, Any]:
    """Return a layer's arguments as routed_moe takes them, weights `(l, n, k/2)` and linear scales among them."""
    candidate = EagerKernels(activation_format="bf16", weight_format=weight_format, k_multiple=32)
    context = Context(candidate, parse_problem(PROBLEM), Known.declared(candidate.traits))
    given = arguments(context)
    for name in ("w1", "w2"):
        blocks = given[name].shape[2] * 2 // (16 if weight_format == "nvfp4" else 32)
        swizzled = layouts.as_mma(given[f"{name}_blockscale"].view(torch.uint8))
        given[f"{name}_scale"] = layouts.block_scales_of(swizzled, given[name].shape[1], blocks)
    ids = given["topk_idx"] - given["local_expert_offset"]
    given["local"] = torch.where((ids >= 0) & (ids < len(given["w1"])), ids, -1).int()
    return given


def sglang_layer(module: Any, prepare: Any, given: dict[str, Any], weight_format: str) -> Any:
    """Return a function that runs SGLang's layer on weights that it prepared itself."""

    def held(value: Tensor) -> Any:
        return torch.nn.Parameter(value.clone(), requires_grad=False)

    nvfp4 = weight_format == "nvfp4"
    scale = torch.float8_e4m3fn if nvfp4 else torch.float8_e8m0fnu
    layer = SimpleNamespace(
        w13_weight=held(given["w1"]), w2_weight=held(given["w2"]), w13_weight_scale=held(given["w1_scale"].view(scale)),
        w2_weight_scale=held(given["w2_scale"].view(scale)), w13_weight_scale_2=held(given["w1_alpha"]),
        w2_weight_scale_2=held(given["w2_alpha"]), moe_runner_config=SimpleNamespace(is_gated=True),
        intermediate_size_per_partition=given["w1"].shape[1] // 2, params_dtype=torch.bfloat16, orig_dtype=torch.bfloat16,
    )  # fmt: skip
    prepare.marlin_make_workspace = lambda *_, **__: torch.zeros(4, dtype=torch.int)
    prepare.gptq_marlin_repack = repacked
    if nvfp4:
        prepare.prepare_moe_nvfp4_layer_for_marlin(layer, group_size=16)
    else:
        prepare.prepare_moe_mxfp4_layer_for_marlin(layer)

    def run() -> Tensor:
        factors = (layer.w13_weight_scale_2.data, layer.w2_weight_scale_2.data) if nvfp4 else (None, None)
        return module.fused_marlin_moe(
            given["hidden_states"][0], layer.w13_weight.data, layer.w2_weight.data, layer.w13_weight_scale.data,
            layer.w2_weight_scale.data, given["topk_weights"], given["topk_weights"], given["local"],
            w1_global_scale=factors[0], w2_global_scale=factors[1], workspace=layer.workspace, num_bits=4,
            routed_scaling_factor=2.5 if nvfp4 else None,
        )  # fmt: skip

    return run


def vllm_layer(module: Any, prepare: Any, given: dict[str, Any], weight_format: str, batched: bool) -> Any:
    """Return a function that runs vLLM's layer on weights that it prepared itself."""
    nvfp4 = weight_format == "nvfp4"
    x = given["hidden_states"][0]
    layer = SimpleNamespace(
        num_experts=len(given["w1"]), hidden_size=x.shape[1], params_dtype=torch.bfloat16,
        intermediate_size_per_partition=given["w1"].shape[1] // 2,
    )  # fmt: skip
    prepare.get_marlin_input_dtype = lambda *_, **__: None
    prepare.ops.gptq_marlin_repack = repacked
    if nvfp4:
        scales = [given[f"{name}_scale"].view(torch.float8_e4m3fn) for name in ("w1", "w2")]
        w1, s1, g1, w2, s2, g2 = prepare.prepare_nvfp4_moe_layer_for_marlin(
            layer, given["w1"], scales[0], given["w1_alpha"], given["w2"], scales[1], given["w2_alpha"], True
        )
    else:
        w1, w2, s1, s2, _, _ = prepare.prepare_moe_mxfp4_layer_for_marlin(
            layer, given["w1"], given["w2"], given["w1_scale"], given["w2_scale"], None, None
        )
        g1 = g2 = None
    number = module.scalar_types.float4_e2m1f.id
    named = {"global_scale1": g1, "global_scale2": g2, "workspace": torch.zeros(4, dtype=torch.int)}
    if batched:
        counts = torch.tensor([20, 0, 7, 11], dtype=torch.int32)
        rows = torch.stack([x.roll(expert, 0) for expert in range(4)]).contiguous()

        def run_batched() -> Any:
            out = torch.full_like(rows, torch.nan)
            module.batched_fused_marlin_moe(
                rows, counts, w1, w2, None, None, s1, s2, quant_type_id=number, output=out, **named
            )

        return run_batched
    total, first = given["num_experts"], given["local_expert_offset"]
    places = torch.full((total,), -1, dtype=torch.int32)
    places[first : first + len(w1)] = torch.arange(len(w1), dtype=torch.int32)

    def run() -> Any:
        module.fused_marlin_moe(
            x, w1, w2, None, None, s1, s2, given["topk_weights"], given["topk_idx"], quant_type_id=number,
            global_num_experts=total, expert_map=places, output=torch.empty_like(x), **named,
        )  # fmt: skip

    return run


def main(name: str, kind: str, folder: str, *faults: str) -> None:
    torch.set_num_threads(1)
    weight_format, _, batched = kind.partition(" ")
    engine = Engine(name, MODULES[name])
    with engine.running():
        module, prepare = map(importlib.import_module, MODULES[name])
        launches = Launches(name)
        launches.replace(module)
        session = Session(CaptureSettings(folder))
        session.resting = lambda: None
        given = given_of(weight_format)
        made = sglang_layer if name == "sglang" else vllm_layer
        run = made(module, prepare, given, weight_format, *([bool(batched)] if name == "vllm" else []))
        assert _tap(session, module)
        for fault in faults:
            launches.fault = "" if fault == "healthy" else fault
            session.settings, session.idle = CaptureSettings(str(Path(folder) / fault)), False
            session._begin_anew()
            with torch.no_grad():
                run()


if __name__ == "__main__":
    main(*sys.argv[1:])
