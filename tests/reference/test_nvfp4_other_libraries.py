"""NVFP4 and MXFP4 quantization against torchao and compressed-tensors.

Both libraries compute in float32 (compressed-tensors partly in the input's own type), the reference on real numbers, so
results differ next to rounding boundaries. Each library's arithmetic is written out below in its own order. Three things
are asserted: the formula gives the library's bytes, all of them; wherever the library differs from the reference the
reason is one of those listed; and nothing is left over.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import e2m1, e4m3
from reference.e2m1 import unpack_e2m1
from reference.mxfp4 import quantize_mxfp4
from reference.nvfp4 import quantize_nvfp4

# torchao and compressed-tensors warn about torch calls of their own that are deprecated
pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.nn.functional, "ScalingType"), reason="on this torch neither can be imported"
    ),
    pytest.mark.filterwarnings("ignore:::torchao"),
    pytest.mark.filterwarnings("ignore:::compressed_tensors"),
]

TORCHAO_SMALLEST_SCALE = 2.0**-6
SCALES = [1.0, 512.0, 448.0, 855.617, 0.377]


def tokens(dtype: torch.dtype, gs: float, block: int) -> Tensor:
    """Return rows that quantizers disagree on: random, ties, wide magnitudes, underflow, saturation, zeros of both signs."""
    generator = torch.Generator().manual_seed(int(gs * 1000) + block)
    x = torch.randn(512, 256, generator=generator) * torch.exp2(
        torch.randint(-12, 12, (512, 1), generator=generator)
    )
    blocks = x.view(-1, block)
    count = len(blocks) // 4
    units = torch.exp2(torch.randint(-4, 8, (count, 1), generator=generator))
    middle = torch.tensor(e2m1.MIDPOINTS)[torch.randint(0, 7, (count, block), generator=generator)]
    middle[:, 0] = 6
    blocks[:count] = middle * units * (torch.randint(0, 2, middle.shape, generator=generator) * 2 - 1)
    halfway = torch.arange(count // 2).remainder(8) * 2 + 17
    blocks[count : count + count // 2] *= 0.01
    blocks[count : count + count // 2, 0] = 6 * halfway / 16 * units[: count // 2, 0]
    blocks[-8:] = 0
    blocks[-4:] = torch.where(torch.arange(block) % 3 == 0, -0.0, blocks[-4:])
    blocks[-16:-8] *= 1e-6
    blocks[-24:-16] *= 1e6
    return (x / gs).to(dtype)


def distance(x: Tensor, boundaries: list[float]) -> Tensor:
    """Return the relative distance of each float64 value to the nearest boundary."""
    points = torch.tensor(boundaries, dtype=torch.float64)
    above = torch.bucketize(x, points).clamp(max=len(points) - 1)
    near = [points[above], points[(above - 1).clamp(min=0)]]
    return torch.minimum(*((x - p).abs() / p for p in near))


E4M3_VALUES = e4m3.decode_e4m3(torch.arange(127, dtype=torch.uint8)).double()
E4M3_MIDPOINTS = ((E4M3_VALUES[1:] + E4M3_VALUES[:-1]) / 2).tolist()


def explained(
    x: Tensor, gs: Tensor, theirs: tuple[Tensor, Tensor], smallest: int, scale_unit: float
) -> tuple[int, int, Tensor]:
    """Compare (codes, scale bytes) with the reference.

    Args:
        x: what was quantized.
        gs: encode scale.
        theirs: the library's codes and scale bytes.
        smallest: the byte that the library stores at least.
        scale_unit: how far, relatively, its unrounded scale may lie from the real number.

    Returns:
        Scales that differ, codes that differ, and which of those have no explanation.
    """
    ours = quantize_nvfp4(x, gs)
    codes, block_scale = theirs
    real = x.double().abs().view(len(x), -1, 16).amax(-1) * gs.double() / 6
    next_to_boundary = distance(real, E4M3_MIDPOINTS) <= scale_unit
    other_scale = block_scale != ours.block_scale
    raised = (ours.block_scale < smallest) & (block_scale == smallest)
    neighbour = (block_scale.int() - ours.block_scale.int()).abs() == 1
    scale_reason = raised | (next_to_boundary & neighbour)
    # codes in a block with the same scale: the float32 quotient crossed a midpoint of E2M1
    y = x.double().abs() * gs.double() / e4m3.decode_e4m3(ours.block_scale).double().repeat_interleave(16, -1)
    other_code = codes != ours.codes
    crossed = (distance(y, list(e2m1.MIDPOINTS)) <= 2.0**-21) & ((codes.int() - ours.codes.int()).abs() == 1)
    reason = crossed | scale_reason.repeat_interleave(16, -1)
    unsigned_zero = (x == 0) & (codes == 0)  # -0.0 lost its sign
    unexplained = other_code & ~reason & ~unsigned_zero
    return (
        int(other_scale.sum()),
        int(other_code.sum()),
        unexplained | (other_scale & ~scale_reason).repeat_interleave(16, -1),
    )


def torchao_arithmetic(x: Tensor, per_tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    """nvfp4_quantize with two-level scaling: float32, division by 6 and by the scale, one reciprocal, one quotient."""
    blocks = x.float().view(len(x), -1, 16)
    unrounded = blocks.abs().amax(-1) / 6.0 / per_tensor_scale
    byte = e4m3.encode_e4m3(unrounded.clamp(min=TORCHAO_SMALLEST_SCALE))
    factor = (1.0 / per_tensor_scale) / e4m3.decode_e4m3(byte)
    codes = e2m1.encode_e2m1((blocks * factor.unsqueeze(-1)).clamp(-6, 6))
    return codes.view(x.shape), byte


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gs", SCALES)
def test_torchao_differs_only_where_its_arithmetic_says(dtype: torch.dtype, gs: float) -> None:
    """NVFP4-1, NVFP4-2: torchao clamps scales at 2^-6 and rounds four times in float32."""
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

    x, scale = tokens(dtype, gs, 16), torch.tensor(gs)
    per_tensor_scale = 1 / scale
    byte, packed = nvfp4_quantize(x, 16, per_tensor_scale)
    theirs = unpack_e2m1(packed), byte.view(torch.uint8)
    formula = torchao_arithmetic(x, per_tensor_scale)
    assert torch.equal(theirs[0], formula[0])
    assert torch.equal(theirs[1], formula[1])
    smallest = int(e4m3.encode_e4m3(torch.tensor(TORCHAO_SMALLEST_SCALE)))
    scales, codes, unexplained = explained(x, scale, theirs, smallest, 2.0**-21)
    print(f"torchao, {dtype}, {gs}: {scales} scales and {codes} codes of {x.numel()} differ, all explained")
    assert not unexplained.any()
    assert scales > 0  # the clamp at 2^-6 at least: the data reaches it


def compressed_tensors_arithmetic(x: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
    """calculate_qparams, quantize and pack: amax / 6 in x's own type, then float32 quotients."""
    blocks = x.view(len(x), -1, 16)
    sixth = blocks.abs().amax(-1) / torch.tensor(6.0, dtype=x.dtype)  # rounded to bfloat16 where x is
    stored = e4m3.encode_e4m3(gs * sixth.float())
    byte = torch.where(stored == 0, e4m3.encode_e4m3(torch.tensor(0.125)), stored)  # finfo(float8_e4m3fn).eps
    divisor = e4m3.decode_e4m3(byte) / gs
    quotient = (blocks.float() / divisor.unsqueeze(-1)).clamp(-6, 6)
    codes = e2m1.encode_e2m1(quotient)
    codes = torch.where(blocks == 0, codes & 7, codes)  # sign(-0.0) * 0 is +0
    return codes.view(x.shape), byte


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gs", SCALES)
def test_compressed_tensors_differs_only_where_its_arithmetic_says(dtype: torch.dtype, gs: float) -> None:
    """NVFP4-1, NVFP4-2: it divides amax by 6 in bfloat16, replaces scale 0 by 0.125 and loses the sign of -0.0."""
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    x, scale = tokens(dtype, gs, 16), torch.tensor([gs])
    arguments = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
        scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    blocks = x.view(len(x), -1, 16)
    block_scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments, global_scale=scale)
    values = quantize(x=x, scale=block_scale, zero_point=None, args=arguments, global_scale=scale)
    theirs = unpack_e2m1(pack_fp4_to_uint8(values)), e4m3.encode_e4m3(block_scale.float())
    formula = compressed_tensors_arithmetic(x, scale)
    assert torch.equal(theirs[1], formula[1])
    assert torch.equal(theirs[0], formula[0])
    # bfloat16 division by 6 loses up to 2^-9 of the scale, float32 2^-24
    unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-21
    zero = int(e4m3.encode_e4m3(torch.tensor(0.125)))
    was_zero = quantize_nvfp4(x, scale).block_scale == 0
    shown = theirs[0], torch.where(was_zero & (theirs[1] == zero), 0, theirs[1])
    scales, codes, unexplained = explained(x, scale, shown, 0, unit)
    unexplained &= ~was_zero.repeat_interleave(16, -1)
    print(
        f"compressed-tensors, {dtype}, {gs}: {scales} scales and {codes} codes of {x.numel()} differ, all explained"
    )
    assert not unexplained.any()
    assert int((was_zero & (theirs[1] == zero)).sum()) > 0
    # With a power of two amax / 6 keeps at least 2^-8 away from every midpoint that it does not hit: nothing shows.
    assert (scales > 0) == (gs not in {1.0, 512.0})


def torchao_mx_arithmetic(x: Tensor) -> tuple[Tensor, Tensor]:
    """to_mx with floor scaling: the exponent field of amax less 2, at least 2^-127; the divisor at least 2^-126."""
    blocks = x.float().view(len(x), -1, 32)
    exponent = (blocks.abs().amax(-1).view(torch.int32) >> 23 & 0xFF) - 127 - 2
    byte = (exponent.clamp(-127, 128) + 127).to(torch.uint8)
    divisor = torch.exp2((byte.double() - 127).clamp(min=-126)).float()
    return e2m1.encode_e2m1(blocks / divisor.unsqueeze(-1)).view(x.shape), byte


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_torchao_mxfp4_equals_the_reference(dtype: torch.dtype) -> None:
    """MXFP4-1, MXFP4-2, MXFP4-3: everything is a power of two and exact; only the scale 2^-127 is divided by 2^-126."""
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx

    x = tokens(dtype, 1.0, 32)
    x[:8] = (torch.randn(8, 256, generator=torch.Generator().manual_seed(9)) * 2.0**-125).to(
        dtype
    )  # subnormal scales
    block_scale, packed = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.FLOOR)
    theirs = unpack_e2m1(packed), block_scale.view(torch.uint8)
    formula = torchao_mx_arithmetic(x)
    assert torch.equal(theirs[0], formula[0])
    assert torch.equal(theirs[1], formula[1])
    ours = quantize_mxfp4(x)
    assert torch.equal(ours.block_scale, theirs[1])
    other_divisor = (ours.block_scale == 0).repeat_interleave(32, -1)
    assert torch.equal(ours.codes[~other_divisor], theirs[0][~other_divisor])
    differ = ours.codes != theirs[0]
    print(
        f"torchao MXFP4, {dtype}: {int(differ.sum())} codes of {x.numel()} differ, all in blocks of scale 2^-127"
    )
    assert int(differ.sum()) > 0
