"""A layer over simulated ranks against the same layer computed token by token in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.expert_parallel import ExpertParallel, masked_moe_input, slice_of_width
from harness.candidates.layer_stages import KernelStages
from harness.candidates.protocol import traits_of
from harness.faults.named import load_named
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from reference.e2m1 import unpack_e2m1
from reference.fp8_tokens import dequantize_fp8_tokens
from reference.loading import load_experts, tensor_name
from reference.moe import silu_mul
from reference.nvfp4 import Nvfp4Tensor, decode_blocks, dequantize_nvfp4, quantize_nvfp4
from reference.routing import Dispatched

TOPK = 2


def made(problem: str = "4x24x128x64:24*4:normal:7", ranks: int = 2) -> LayerProblem:
    layer = LayerProblem(parse_problem(problem), traits_of(load_named("eager")))
    layer.ranks, layer.counts, layer.topk = ranks, [5, 8, 0, 3][:ranks], TOPK
    return layer


def weight(checkpoint: dict[str, Tensor], expert: int, projection: str) -> Tensor:
    packed, scale, second = (
        checkpoint[tensor_name(expert, projection, kind)]
        for kind in ("weight", "weight_scale", "weight_scale_2")
    )
    return decode_blocks(unpack_e2m1(packed), scale) * second.double()


def through_nvfp4(x: Tensor, scale_dec: Tensor) -> Tensor:
    quantized = quantize_nvfp4(x.unsqueeze(0), scale_dec.reciprocal().reshape(1))
    return dequantize_nvfp4(Nvfp4Tensor(quantized.codes, quantized.block_scale, scale_dec.reshape(1)))[0]


def token_by_token(
    candidate: Any, checkpoint: dict[str, Tensor], x: Tensor, ids: Tensor, weights: Tensor, transport: str
) -> Tensor:
    """The layer with nothing batched, swizzled or sharded: checkpoint values times tokens.

    FP8 tokens are those that the candidate sends: an E4M3 value often lies on the midpoint of two E2M1 codes, so that
    another legal float32 scale would send the second quantization to other codes.
    """
    experts = sorted({int(name.split(".")[1]) for name in checkpoint})
    largest = max(checkpoint[tensor_name(e, p, "input_scale")] for e in experts for p in ("gate", "up"))
    arrived = x
    if transport == "fp8":
        (got,) = candidate.dispatch(
            [x], [torch.zeros(len(x), 1, dtype=torch.int64)], 1, len(x), transport="fp8"
        )
        values = dequantize_fp8_tokens(got.x[0], got.scales[0], torch.bfloat16)
        arrived = torch.empty_like(x).index_copy_(0, got.source[0, :, 1], values)
    out = torch.zeros(x.shape, dtype=torch.float64)
    for row, token in enumerate(arrived):
        operand = through_nvfp4(token, largest)
        for expert, share in zip(ids[row].tolist(), weights[row].tolist(), strict=True):
            if expert < 0:
                continue
            gate_up = torch.cat([weight(checkpoint, expert, p) @ operand for p in ("gate", "up")]).bfloat16()
            middle = through_nvfp4(
                silu_mul(gate_up).bfloat16(), checkpoint[tensor_name(expert, "down", "input_scale")]
            )
            out[row] += share * (weight(checkpoint, expert, "down") @ middle).bfloat16().double()
    return out


@pytest.mark.parametrize("transport", ["bf16", "fp8", "nvfp4"])
@pytest.mark.parametrize("sharding", ["experts", "width"])
@pytest.mark.parametrize("name", ["eager", "physical"])
def test_a_layer_over_ranks_is_the_layer(name: str, sharding: str, transport: str) -> None:
    layer = made()
    checkpoint, x = layer.checkpoint(), layer.tokens(layer.hidden)
    candidate = load_named(name)
    parallel = ExpertParallel(candidate, checkpoint, ranks=2, sharding=sharding, transport=transport)
    got = parallel(x, layer.topk_idx, layer.topk_weights)
    assert [len(out) for out in got] == layer.counts
    for tokens, ids, weights, out in zip(x, layer.topk_idx, layer.topk_weights, got, strict=True):
        wanted = token_by_token(candidate, checkpoint, tokens, ids, weights, transport)
        # one bf16 rounding of the sum, and codes of the intermediate that float32 sums may send to a neighbour
        assert (out.double() - wanted).norm() <= 0.02 * wanted.norm()
        assert wanted.norm() > 0


@pytest.mark.parametrize("transport", ["bf16", "fp8", "nvfp4"])
def test_ranks_change_no_bit_when_whole_experts_are_sharded(transport: str) -> None:
    layer = made(ranks=4)
    checkpoint, x = layer.checkpoint(), layer.tokens(layer.hidden)
    many = ExpertParallel(load_named("physical"), checkpoint, ranks=4, transport=transport)
    one = ExpertParallel(load_named("physical"), checkpoint, transport=transport)
    together = one([torch.cat(x)], [torch.cat(layer.topk_idx)], [torch.cat(layer.topk_weights)])
    assert torch.equal(torch.cat(many(x, layer.topk_idx, layer.topk_weights)), together[0])


def test_a_candidate_without_layer_stages_gets_the_references() -> None:
    layer = made()
    checkpoint = layer.checkpoint()
    arguments = (layer.tokens(layer.hidden), layer.topk_idx, layer.topk_weights)
    eager = load_named("eager")
    bare = ExpertParallel(KernelStages(eager), checkpoint, ranks=2)
    for one, other in zip(
        bare(*arguments), ExpertParallel(eager, checkpoint, ranks=2)(*arguments), strict=True
    ):
        assert torch.equal(one, other)
    ids, weights = bare.route(layer.logits[0], TOPK)
    assert ids.shape == weights.shape == (5, TOPK)


def test_slices_of_width_add_up() -> None:
    checkpoint = made().checkpoint()
    parts = [slice_of_width(checkpoint, rank, 2) for rank in range(2)]
    for name, axis in (("up", 0), ("down", 1)):
        whole = weight(checkpoint, 1, name)
        assert torch.equal(torch.cat([weight(part, 1, name) for part in parts], axis), whole)
    loaded = load_experts(parts[1], range(4))
    assert loaded["w1"].shape == (4, 64, 64)
    with pytest.raises(ValueError, match="not a multiple of 3 ranks"):
        slice_of_width(checkpoint, 0, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"ranks": 3}, "3 ranks do not divide 4 experts"),
        ({"sharding": "rows"}, "one of experts, width"),
    ],
)
def test_bad_layouts_are_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertParallel(load_named("eager"), made().checkpoint(), **words)  # type: ignore[arg-type]


def test_wrong_calls_are_refused() -> None:
    layer = made()
    parallel = ExpertParallel(load_named("eager"), layer.checkpoint(), ranks=2)
    with pytest.raises(ValueError, match="tokens of 2 ranks, got 1"):
        parallel(layer.tokens(layer.hidden)[:1], layer.topk_idx[:1], layer.topk_weights[:1])
    bare = Dispatched(torch.zeros(1, 4, 64, dtype=torch.uint8), torch.zeros(1), torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="carries scales"):
        masked_moe_input(bare, "nvfp4", torch.ones(1))
