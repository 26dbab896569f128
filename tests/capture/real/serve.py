"""FlashInfer's, SGLang's and vLLM's own functions on a CPU, captured with faults planted where FlashInfer launches its kernels.

`serve.py ENGINE FOLDER FAULT...` runs one layer for each fault ("healthy": none; "prequantized": none, and tokens that
come quantized) and captures it into FOLDER/FAULT. Above the launch everything is the packages' own: argument checks,
allocations, layouts, views, and what an engine does in between.
"""

import importlib
import runpy
import sys
from pathlib import Path

import torch

from harness.candidates import layouts, sglang_cutedsl, vllm_cutedsl
from harness.candidates.engines.engine import BLACKWELL, Engine
from harness.capture.hook import install_taps
from harness.capture.session import Session
from harness.capture.settings import CaptureSettings
from harness.faults.named import load_named

MODULES = {"sglang": sglang_cutedsl.MODULE, "vllm": vllm_cutedsl.MODULES[0]}
CANDIDATES = {"sglang": sglang_cutedsl.SglangCuteDsl, "vllm": vllm_cutedsl.VllmCuteDsl}


class Launches:
    """Stands where FlashInfer calls compiled code.

    Attributes:
        kernels: a candidate that computes what is launched.
    """

    kernels = None

    def build_and_load(self):
        return self

    def silu_and_mul_scaled_nvfp4_experts_quantize(self, output, scales, x, gs, mask, silu, recipe):
        """Fill the buffers of the grouped quantizer: csrc/nv_internal/tensorrt_llm/thop/fp4Quantize.cpp:205."""
        experts = len(mask)
        stage = self.kernels.silu_mul_quantize_grouped if silu else self.kernels.quantize_grouped
        packed, block_scale = stage(x.view(experts, -1, x.shape[1]), mask, gs)
        output.copy_(packed.permute(2, 0, 1).reshape(output.shape))
        bytes_of = block_scale.permute(5, 2, 4, 0, 1, 3).contiguous().view(scales.dtype)
        scales.copy_(bytes_of.reshape(scales.shape))

    def compiled(self, **options):
        assert options["sf_vec_size"] == 16
        return self.gemm

    def gemm(self, **given):
        """Run the masked GEMM as its launch gets it: weights' scales are an address, whatever the view's shape."""
        t = {name.removesuffix("_tensor_gpu"): value for name, value in given.items()}
        scales = [s if s.ndim == 6 else layouts.as_mma(s.view(torch.uint8)) for s in (t["sfa"], t["sfb"])]
        alpha = None if t["alpha"] is None else t["alpha"].reshape(-1)
        self.kernels.masked_grouped_gemm(t["a"], scales[0], t["b"], scales[1], t["c"], t["masked_m"], alpha)
        return t["c"]


def replaced(launches):
    """Put the launches in place, and tell FlashInfer that a CPU is a B200."""
    quantizers, activation, wrapper, blackwell = map(
        importlib.import_module,
        (
            "flashinfer.quantization.fp4_quantization", "flashinfer.activation",
            "flashinfer.gemm.kernels.grouped_gemm_masked_wrapper", "flashinfer.gemm.kernels.grouped_gemm_masked_blackwell",
        ),
    )  # fmt: skip
    for module in (quantizers, activation, wrapper, blackwell):
        module.get_compute_capability = lambda _: BLACKWELL
    wrapper.get_num_sm = blackwell.get_num_sm = lambda _: 148
    quantizers.gen_fp4_quantization_sm100_module = lambda: launches
    blackwell.get_cute_dsl_compiled_masked_gemm_kernel = launches.compiled


def quantized(arguments):
    """Return a layer's arguments with tokens that a dispatch has quantized."""
    (x, _), masked_m, scale = (
        arguments[name] for name in ("hidden_states", "masked_m", "input_global_scale")
    )
    pair = load_named("physical").quantize_grouped(x, masked_m, scale)
    return {**arguments, "hidden_states": pair, "input_global_scale": None}


def main(name, folder, *faults):
    torch.set_num_threads(1)
    session = Session(CaptureSettings(folder))
    install_taps(session)
    session.resting = lambda: None  # it captures again, into another folder
    launches = Launches()
    replaced(launches)
    engine, candidate = Engine(name, (MODULES[name],)), CANDIDATES[name]()
    arguments = runpy.run_path(str(Path(__file__).parents[1] / "engine" / "serve.py"))["loaded"](0)
    with engine.running():
        for fault in faults:
            healthy = fault in ("healthy", "prequantized")
            launches.kernels = load_named("physical" if healthy else f"physical+{fault}")
            session.settings, session.idle = CaptureSettings(f"{folder}/{fault}"), False
            session._begin_anew()
            candidate.masked_moe(**(quantized(arguments) if fault == "prequantized" else arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
