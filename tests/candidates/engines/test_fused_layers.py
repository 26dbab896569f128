"""Arguments of FlashInfer's fused layers are read back, padded or not; and what they are told beside the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.candidates import layouts
from harness.candidates.engines.engine import EngineChangedError
from harness.candidates.engines.fused_layers import FusedLayer, of_cutedsl, of_trtllm
from harness.candidates.engines.loader import Shard
from harness.candidates.traits import Traits
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from reference.layout import swizzle_128x4, unswizzle_128x4
from reference.loading import load_experts
from reference.weight_rows import CUTEDSL_TURN, TRTLLM_TURN, in_turns, shuffled

HIDDEN, INTER = 64, 96
SHARD = Shard((0, 1, 2, 3), HIDDEN, INTER, True, 2, 1, 1, 0)  # the second rank of two
HERE = {"num_experts": 4, "local_expert_offset": 2}


@pytest.fixture(scope="module")
def wanted() -> dict[str, Tensor]:
    """masked_moe's arguments of the second rank."""
    layer = LayerProblem(parse_problem(f"4x8x{HIDDEN}x{INTER}:8,4,0,1:normal:6"), Traits(device="cpu"))
    assert (layer.hidden, layer.inter) == (HIDDEN, INTER)
    return load_experts(layer.checkpoint(), range(2, 4))


def matrices(wanted: dict[str, Tensor], turn: int) -> list[tuple[Tensor, Tensor]]:
    """w1 and w2 with linear block scales as an engine would hand them over: padded to 128, up first, in turns."""
    found = []
    for name, rows, columns in (("w1", 2 * INTER, HIDDEN), ("w2", HIDDEN, INTER)):
        scale = unswizzle_128x4(wanted[f"{name}_blockscale"].view(torch.uint8), rows, columns // 16)
        parts = []
        for part, width in ((wanted[name], 64), (scale, 8)):
            halves = part.chunk(2, 1)[::-1] if name == "w1" else (part,)
            whole = [pad(half, (0, width - half.shape[2], 0, 128 - half.shape[1])) for half in halves]
            parts.append(in_turns(*whole, turn) if name == "w1" else whole[0])
        found.append(tuple(parts))
    return found


def trtllm(wanted: dict[str, Tensor], up: float = 1.0, **other: Any) -> FusedLayer:
    layer = FusedLayer()
    given = {}
    for number, (codes, scale) in enumerate(matrices(wanted, TRTLLM_TURN), 1):
        given[f"gemm{number}_weights"] = shuffled(codes)
        given[f"gemm{number}_weights_scale"] = swizzle_128x4(shuffled(scale)).view(torch.float8_e4m3fn)
    tokens = torch.zeros(1, 128)
    layer.quantize(tokens, wanted["input_global_scale"][0])
    layer.run(
        hidden_states=tokens, output1_scale_gate_scalar=wanted["w1_alpha"], output2_scale_scalar=wanted["w2_alpha"],
        output1_scale_scalar=wanted["w1_alpha"] * up * wanted["a2_global_scale"], **given, **HERE | {"local_num_experts": 2} | other,
    )  # fmt: skip
    return layer


def cutedsl(wanted: dict[str, Tensor], **other: Any) -> FusedLayer:
    layer = FusedLayer().made(**HERE | {"num_local_experts": 2} | other)
    given = {}
    for number, (codes, scale) in enumerate(matrices(wanted, CUTEDSL_TURN), 1):
        given |= {f"w{number}_weight": codes, f"w{number}_weight_sf": layouts.scales(scale)}
    tokens = torch.zeros(1, 128)
    layer.quantize(tokens, wanted["input_global_scale"][:1])
    layer.run(
        x=tokens, w1_alpha=wanted["w1_alpha"], w2_alpha=wanted["w2_alpha"],
        fc2_input_scale=wanted["a2_global_scale"], **given,
    )  # fmt: skip
    return layer


def test_both_layers_arguments_are_read_back_byte_for_byte(wanted: dict[str, Tensor]) -> None:
    for found in (
        of_trtllm(trtllm(wanted), wanted["a2_global_scale"], SHARD),
        of_cutedsl(cutedsl(wanted), SHARD),
    ):
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            given, right = (each.contiguous().view(torch.uint8) for each in (found[name], value))
            assert torch.equal(given, right), name


def test_an_alpha_of_its_own_for_up_is_kept(wanted: dict[str, Tensor]) -> None:
    alpha = of_trtllm(trtllm(wanted, up=2.0), wanted["a2_global_scale"], SHARD)["w1_alpha"]
    assert torch.equal(alpha[:, 0], wanted["w1_alpha"])
    assert torch.allclose(alpha[:, 1], wanted["w1_alpha"] * 2, rtol=2.0**-22)


def test_a_kernel_that_is_told_of_other_experts_is_refused(wanted: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="local_expert_offset must be 2 on rank 1, got 0"):
        of_trtllm(trtllm(wanted, local_expert_offset=0), wanted["a2_global_scale"], SHARD)
    with pytest.raises(ValueError, match="num_experts must be 4 on rank 1, got 2"):
        of_cutedsl(cutedsl(wanted, num_experts=2), SHARD)


def test_padding_that_changes_the_result_is_refused(wanted: dict[str, Tensor]) -> None:
    layer = cutedsl(wanted)
    layer.given["w1_weight"] = layer.given["w1_weight"] | 0x22
    of_cutedsl(layer, SHARD)  # w2 has zeros there
    layer.given["w2_weight"] = layer.given["w2_weight"] | 0x22
    with pytest.raises(ValueError, match="only pad are not zero"):
        of_cutedsl(layer, SHARD)


def test_an_argument_of_another_name_is_a_changed_engine(wanted: dict[str, Tensor]) -> None:
    layer = cutedsl(wanted)
    layer.given["w1_scales"] = layer.given.pop("w1_weight_sf")
    with pytest.raises(EngineChangedError, match="called without w1_weight_sf"):
        of_cutedsl(layer, SHARD)
    with pytest.raises(EngineChangedError, match="called without input_global_scale, gemm1_weights"):
        of_trtllm(FusedLayer(), wanted["a2_global_scale"], SHARD)


def test_swizzled_block_scales_of_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="linear E4M3 block scales of 16 elements of the tokens"):
        FusedLayer().quantize(torch.zeros(1, 64), torch.ones(1), is_sf_swizzled_layout=True)
