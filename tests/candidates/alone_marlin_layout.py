"""Marlin's order of weights and scales against both engines' own functions, in a process of its own (test_alone)."""

from __future__ import annotations

import pytest
import torch

from harness.candidates.engines.engine import Engine
from reference.e2m1 import pack_e2m1
from reference.marlin_layout import BIAS, scales_to_marlin, to_marlin
from tests.reference.test_marlin_layout import ROWS, K, drawn


@pytest.mark.parametrize("name", ["sglang", "vllm"])
def test_it_is_what_the_engines_make(name: str) -> None:
    """LAYOUT-6: permuted scales and factors of both engines; codes by vLLM's definition of the order."""
    inside = {
        "sglang": "sglang.srt.layers.quantization",
        "vllm": "vllm.model_executor.layers.quantization.utils",
    }
    general, fp4 = (f"{inside[name]}.marlin_utils{end}" for end in ("", "_fp4"))
    engine = Engine(name, (fp4,))
    with engine.running():
        permute = engine.get(f"{general}:marlin_permute_scales")
        process = engine.get(f"{fp4}:nvfp4_marlin_process_scales")
        powers = engine.get(f"{fp4}:mxfp4_marlin_process_scales")
        factor = engine.get(f"{fp4}:nvfp4_marlin_process_global_scale")
        given = torch.arange(8, 127, dtype=torch.uint8).repeat(9)[: ROWS * 4].view(1, ROWS, 4)
        stored = process(permute(given[0].view(torch.float8_e4m3fn).bfloat16().T.contiguous(), K, ROWS, 16))
        stored = stored[0] if isinstance(stored, tuple) else stored
        assert torch.equal(stored.view(torch.uint8), scales_to_marlin(given, "e4m3")[0])
        two = drawn(1, ROWS, 2, most=200) + 20
        stored = powers(permute(two[0].view(torch.float8_e8m0fnu).bfloat16().T.contiguous(), K, ROWS, 32))
        assert torch.equal(stored.view(torch.uint8), scales_to_marlin(two, "e8m0")[0])
        assert float(factor(torch.tensor([0.25]).bfloat16())) == 0.25 * BIAS
        if name == "vllm":
            test = f"{general}_test"
            codes = drawn(ROWS, K, most=16)
            words = engine.get(f"{test}:marlin_weights")(
                codes.T.contiguous(), K, ROWS, 4, engine.get(f"{test}:get_weight_perm")(4)
            )
            assert torch.equal(words, to_marlin(pack_e2m1(codes)[None])[0])
