"""The Triton kernels of reference/fast have the bits of the definitions, and a fault in one of them is seen.

Needs triton and a CUDA device; without one, TRITON_INTERPRET=1 runs them on a CPU, in minutes (triton 3.6 needs numpy
below 2.4 for that).
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import moe, nvfp4
from reference.fast import launch, parts
from reference.fast import moe as fast

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # NumPy's, of NaN, when interpreted
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # Triton's interpreter
]
DEVICE = "cpu" if INTERPRETED else "cuda"
MANY = 1 if INTERPRETED else 40
"""Rounds of random numbers; on a GPU a round has 2^25 of them, 10^9 in all."""
BLOCKS = 1 << (8 if INTERPRETED else 20)
SCALES = (1.0, 523.7, 2.0**-126, 2.0**127, 3e38, 2.0**-149, 0.0, torch.inf, torch.nan)


def both(x: Tensor, scale: Tensor) -> None:
    """Quantize `(groups, blocks, 16)` both ways, and compare."""
    x, scale = x.to(DEVICE), scale.to(DEVICE)
    codes = torch.empty(x.shape, dtype=torch.uint8, device=DEVICE)
    block_scale = torch.empty(x.shape[:2], dtype=torch.uint8, device=DEVICE)
    wanted, wanted_scale = codes.clone(), block_scale.clone()
    launch.quantize_blocks(x, codes, block_scale, scale)
    nvfp4._quantize_by_definition(x, wanted, wanted_scale, scale)
    assert torch.equal(block_scale, wanted_scale)
    assert torch.equal(codes, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", SCALES)
def test_every_value_of_the_narrow_types_is_quantized_alike(dtype: torch.dtype, scale: float) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).short()
    some = [bits, bits[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(1))]]
    both(torch.stack(some).view(dtype).view(2, -1, 16), torch.tensor([scale, 1.0]))


def test_scales_may_lie_apart() -> None:
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    both(x, torch.tensor([300.0, torch.nan, 77.0, torch.nan, 1.0]).to(DEVICE)[::2])


def test_bfloat16_may_begin_between_two_words() -> None:
    x = torch.randn(4 * 16 + 1, generator=torch.Generator().manual_seed(3)).bfloat16().to(DEVICE)
    both(x[1:].view(1, 4, 16), torch.tensor([300.0]))


@pytest.mark.parametrize("where", [0, 2, 200 * 16 - 1])
def test_a_nan_decides_nothing_beside_its_own_element(where: int) -> None:
    """One of two tiles has it: it goes element by element, the other two at a time."""
    x = torch.randn(200 * 16, generator=torch.Generator().manual_seed(4)).bfloat16()
    x[where] = torch.nan
    both(x.view(1, 200, 16), torch.tensor([300.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_random_numbers_are_quantized_alike(dtype: torch.dtype) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    for number in range(MANY):
        scale = torch.exp(torch.randn(2, generator=generator, device=DEVICE) * 8).clamp(1e-30, 1e30)
        x = torch.randn(2, BLOCKS, 16, generator=generator, device=DEVICE)
        x *= torch.exp2(torch.randint(-6, 7, (2, BLOCKS, 1), generator=generator, device=DEVICE).float())
        if number % 2:  # numbers with few bits, under powers of two: many ties
            x, scale = (x * 8).round() / 4, torch.exp2(torch.log2(scale).round())
        both((x / scale.view(2, 1, 1) * 100).to(dtype), scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_code_under_every_byte_is_decoded_alike(dtype: torch.dtype) -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(256, 1).to(DEVICE)
    block_scale = torch.arange(256, dtype=torch.uint8).unsqueeze(-1).to(DEVICE)
    got, largest = launch.decode_blocks(codes, block_scale, dtype)
    wanted = nvfp4._decode_by_definition(codes.cpu(), block_scale.cpu(), dtype).to(DEVICE)
    number = ~wanted.isnan()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got[number], wanted[number])
    assert torch.equal(got[number].signbit(), wanted[number].signbit())
    assert int(largest) == 0
    codes[200, 3] = 0x31
    assert int(launch.decode_blocks(codes, block_scale, dtype)[1]) == 0x31


def weights(experts: int, n: int, k: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(experts, n, k, generator=generator)
    gains = torch.exp(spread * torch.randn(experts, n, k // 16, 1, generator=generator))
    x = (x.view(experts, n, k // 16, 16) * gains).view(experts, n, k).bfloat16()
    of = nvfp4.quantize_nvfp4(x, 2688 / x.abs().amax((1, 2)).float())
    return of.codes.to(DEVICE), of.block_scale.to(DEVICE)


def products(spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the dot products of rows of experts by tensor cores, those of float64, and which tiles were doubtful."""
    counts, k, n = [33, 0, 70, 1], 528, 90
    a_codes, a_scale = weights(1, sum(counts), k, spread, 1)
    b_codes, b_scale = weights(len(counts), n, k, spread, 2)
    largest = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    a = launch.Decoded.of(a_codes[0], a_scale[0], largest)
    b = launch.Decoded.of(b_codes, b_scale, largest)
    alpha = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64, device=DEVICE)
    got, doubtful = launch.product(a, b, alpha, launch.Tiles.of(counts, a_codes.device), torch.float64)
    rows = a.values.double().split(counts)
    wanted = torch.cat([alpha[e] * rows[e] @ b.values[e].double().T for e in range(len(counts))])
    return got, wanted, doubtful


@pytest.mark.parametrize("spread", [0.0, 0.7, 2.0])
def test_products_are_exact(spread: float) -> None:
    got, wanted, doubtful = products(spread)
    assert torch.equal(got, wanted)
    assert bool(doubtful.any()) is (spread > 0.5)


def test_a_chunk_that_is_certain_by_mistake_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "LIMIT", float("inf"))
    got, wanted, _ = products(2.0)
    assert not torch.equal(got, wanted)


def layer() -> dict[str, Any]:
    w1, w1_scale = weights(4, 96, 272, 0.0, 3)
    w2, w2_scale = weights(4, 272, 48, 0.0, 4)
    x = torch.randn(4, 20, 272, generator=torch.Generator().manual_seed(5)).bfloat16()
    return {
        "hidden_states": x.to(DEVICE), "input_global_scale": torch.linspace(300, 500, 4, device=DEVICE),
        "w1": w1, "w1_blockscale": w1_scale, "w1_alpha": torch.linspace(1e-6, 3e-6, 4, device=DEVICE),
        "w2": w2, "a2_global_scale": torch.linspace(30, 60, 4, device=DEVICE), "w2_blockscale": w2_scale,
        "w2_alpha": torch.linspace(1e-4, 3e-4, 4, device=DEVICE),
        "masked_m": torch.tensor([7, 0, 7, 1], device=DEVICE),
    }  # fmt: skip


def layers() -> tuple[Tensor, Tensor]:
    """Return the valid rows of a layer by the kernels, and without them."""
    of = layer()
    counts, valid = of["masked_m"].tolist(), moe.valid_rows(of["masked_m"], 20)
    got = fast.masked_moe(
        (of["hidden_states"][valid],), of["input_global_scale"], (of["w1"], of["w1_blockscale"], of["w1_alpha"]),
        (of["w2"], of["w2_blockscale"], of["w2_alpha"]), of["a2_global_scale"], counts, "silu",
    )  # fmt: skip
    wanted = moe.masked_moe(**{name: value.cpu() for name, value in of.items()})
    return got.cpu(), wanted[valid.cpu()]


def test_packed_weights_are_refused() -> None:
    of = layer()
    with pytest.raises(ValueError, match="got 255; packed bytes need unpack_e2m1"):
        fast.masked_moe(
            (of["hidden_states"][:, 0],), of["input_global_scale"],
            (of["w1"] | 0xF0, of["w1_blockscale"], of["w1_alpha"]), (of["w2"], of["w2_blockscale"], of["w2_alpha"]),
            of["a2_global_scale"], [1, 1, 1, 1], "silu",
        )  # fmt: skip


def test_the_layer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for elements in (1, 1 << 28):  # one expert at a time, and all
        monkeypatch.setattr(fast, "_ELEMENTS", elements)
        got, wanted = layers()
        assert torch.equal(got, wanted)


def test_torch_alone_gives_the_same() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(256, 1).to(DEVICE)
    block_scale = torch.arange(256, dtype=torch.uint8).unsqueeze(-1).to(DEVICE)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        wanted = nvfp4.decode_blocks(codes, block_scale, dtype)
        with launch.torch_alone():
            got = nvfp4.decode_blocks(codes, block_scale, dtype)
        assert torch.equal(got.nan_to_num(1e9), wanted.nan_to_num(1e9))
    with launch.torch_alone():
        got, wanted = layers()
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_products_in_torch_alone_are_exact(spread: float) -> None:
    """Rows in two parts by tensor cores, and in float64 where those leave them open: none, some, all."""
    counts, k, n = [33, 0, 70, 1], 4128, 90
    a_codes, a_scale = weights(1, sum(counts), k, spread, 1)
    b_codes, b_scale = weights(len(counts), n, k, spread, 2)
    a = nvfp4.decode_blocks(a_codes[0], a_scale[0], torch.bfloat16), a_scale[0]
    b = nvfp4.decode_blocks(b_codes, b_scale, torch.bfloat16), b_scale
    of_row = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(DEVICE)
    got = parts.products(a, b, counts, of_row)
    rows = a[0].double().split(counts)
    wanted = torch.cat([rows[e] @ b[0][e].double().T for e in range(len(counts))])
    assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "groups",
    [
        [(slice(2, 3), slice(0, 7)), (slice(0, 1), slice(7, 14)), (slice(3, 4), slice(14, 15))],
        [(slice(0, 1), slice(0, 7)), (slice(2, 3), slice(7, 14))],
    ],
    ids=["the weights of another expert", "one left out"],
)
def test_a_group_of_experts_that_is_taken_for_another_is_seen(
    groups: list[tuple[slice, slice]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "_groups", lambda *_: groups)
    got, wanted = layers()
    assert not torch.equal(got, wanted)
