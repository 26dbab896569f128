"""FP8 tokens and the quantizing transports, against numpy in float32, the order in which DeepEP's kernels compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.e2m1 import unpack_e2m1
from reference.e4m3 import decode_e4m3
from reference.fp8_tokens import (
    amax_of_channels,
    dequantize_fp8_tokens,
    legal_fp8_values,
    quantize_fp8_tokens,
)
from reference.nvfp4 import decode_blocks
from reference.routing import dispatch


def tokens(rows: int, hidden: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, hidden, generator=generator) * torch.exp2(
        torch.randint(-20, 12, (rows, 1), generator=generator).float()
    )
    x[0] = 0
    x[1, :128] = 1e-6
    return x.bfloat16()


def kernel_order(x: Tensor) -> tuple[np.ndarray, Tensor]:
    """scale = amax * float32(1/448), value = e4m3(x * (448 / amax)), every step in float32."""
    groups = x.float().numpy().reshape(len(x), -1, 128)
    amax = np.maximum(np.abs(groups).max(-1), np.float32(1e-4))
    scale = amax * np.float32(1 / 448)
    scaled = groups * (np.float32(448) / amax)[..., None]
    return scale, torch.from_numpy(scaled).clamp(-448, 448).to(torch.float8_e4m3fn).reshape(x.shape)


def test_scales_are_amax_over_448_with_a_floor() -> None:
    """FP8-1: within two float32 roundings of what a kernel stores; the floor is 1e-4."""
    x = tokens(64, 256)
    _, scale = quantize_fp8_tokens(x)
    stored, _ = kernel_order(x)
    assert scale.dtype == torch.float32
    assert scale.shape == (64, 2)
    np.testing.assert_allclose(scale.numpy(), stored, rtol=2.0**-23, atol=0)
    assert scale[0, 0] == scale[1, 0] == np.float32(np.float32(1e-4) / 448)


def test_rounded_scales_are_the_smallest_power_of_two_that_is_not_smaller() -> None:
    """FP8-1: round_scale."""
    x = torch.zeros(4, 128)
    x[:, 5] = torch.tensor([448.0, 449.0, 447.0, 448 * 2.0**-7])
    _, scale = quantize_fp8_tokens(x, round_scale=True)
    assert scale.flatten().tolist() == [1.0, 2.0, 1.0, 2.0**-7]


def test_values_follow_from_the_stored_scale_and_saturate() -> None:
    """FP8-2: kernel's and definition's values lie within the legal ends; halves and neighbours of them do not."""
    x = tokens(64, 256, seed=3)
    values, scale = quantize_fp8_tokens(x)
    low, high = legal_fp8_values(x, scale)
    assert ((low <= decode_e4m3(values)) & (decode_e4m3(values) <= high)).all()
    stored, kernel = kernel_order(x)
    low, high = legal_fp8_values(x, torch.from_numpy(stored))
    got = decode_e4m3(kernel).double()
    assert ((low <= got) & (got <= high)).all()
    assert (low != high).float().mean() < 0.01
    up = decode_e4m3(
        torch.where(kernel.view(torch.uint8) & 0x7F < 0x7E, kernel.view(torch.uint8) + 1, 0)
    ).double()
    assert ((up < low) | (up > high)).float().mean() > 0.98
    # the largest value of a group above the floor becomes 448
    above = amax_of_channels(x) > 1.1e-4
    assert above.float().mean() > 0.5
    assert (decode_e4m3(values).abs().view(64, 2, 128).amax(-1)[above] == 448).all()
    back = dequantize_fp8_tokens(values, scale)
    error = (back - x.double()).abs().view(64, 2, 128)
    assert (error <= (amax_of_channels(x) / 448).unsqueeze(-1) * 16 + 1e-30).all()


@pytest.mark.parametrize("width", [64, 130])
def test_channels_come_in_groups_of_128(width: int) -> None:
    """FP8-1: another width is refused."""
    with pytest.raises(ValueError, match="multiple of 128"):
        quantize_fp8_tokens(torch.zeros(2, width))


def test_what_a_transport_carries() -> None:
    """DISPATCH-3: every row holds the sender's quantization of its own token; padding is poison."""
    x = [tokens(5, 256, 1), tokens(3, 256, 2)]
    ids = [torch.tensor([[0, 3], [1, -1], [2, 0], [3, 1], [-1, -1]]), torch.tensor([[0, 1], [0, 2], [3, 0]])]
    gs = torch.tensor([2688 / 64], dtype=torch.float32)
    fp8 = dispatch(x, ids, 4, 5, transport="fp8")
    fp4 = dispatch(x, ids, 4, 5, transport="nvfp4", global_scale_enc=gs)
    plain = dispatch(x, ids, 4, 5)
    assert plain[0].scales is None
    for rank in range(2):
        assert torch.equal(plain[rank].source, fp8[rank].source)
        assert torch.equal(plain[rank].source, fp4[rank].source)
        assert fp8[rank].x.dtype == torch.float8_e4m3fn
        assert fp4[rank].x.dtype == torch.uint8
        for place, rows in enumerate(plain[rank].masked_m.tolist()):
            sent = plain[rank].x[place, :rows]
            values, scales = quantize_fp8_tokens(sent)
            assert fp8[rank].scales is not None
            assert torch.equal(fp8[rank].x[place, :rows].view(torch.uint8), values.view(torch.uint8))
            assert torch.equal(fp8[rank].scales[place, :rows], scales)
            assert fp8[rank].scales[place, rows:].isnan().all()
            assert fp4[rank].scales is not None
            decoded = decode_blocks(unpack_e2m1(fp4[rank].x[place, :rows]), fp4[rank].scales[place, :rows])
            step = decode_e4m3(fp4[rank].scales[place, :rows]).double().repeat_interleave(16, -1)
            scaled = sent.double() * gs.double()
            inside = (scaled.abs() <= 6 * step) & (step > 0)
            assert ((decoded - scaled).abs()[inside] <= step[inside]).all()
            assert inside.float().mean() > 0.3
            assert (fp4[rank].x[place, rows:] == 0xFF).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"transport": "fp4"}, "one of bf16, fp8, nvfp4"),
        ({"transport": "nvfp4"}, "needed there"),
        ({"transport": "fp8", "global_scale_enc": torch.ones(1)}, "belongs to transport 'nvfp4'"),
        ({"transport": "nvfp4", "global_scale_enc": torch.ones(4)}, "one value"),
    ],
)
def test_transports_refuse_what_they_cannot_carry(words: dict[str, object], message: str) -> None:
    """DISPATCH-3: an unknown transport, a missing or a superfluous scale, one scale per expert."""
    with pytest.raises(ValueError, match=message):
        dispatch([tokens(4, 128)], [torch.zeros(4, 1, dtype=torch.int64)], 4, 4, **words)  # type: ignore[arg-type]
