"""`flashinfer-cutedsl` against the real flashinfer-python package; only the compiled kernels are replaced (conftest)."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

from harness.candidates.flashinfer_cutedsl import HINTS, FlashInferCuteDsl
from harness.candidates.traits import ANY_ROW

pytestmark = pytest.mark.flashinfer


def test_quantize_grouped_reaches_the_kernel_and_returns_flashinfers_layouts(
    launches, gated_moe, tools
) -> None:
    x, masked_m, scale = gated_moe.x, gated_moe.masked_m, gated_moe.dense["input_global_scale"]
    packed, block_scale = FlashInferCuteDsl().quantize_grouped(x, masked_m, scale)

    (launch,) = launches.quantized
    assert torch.equal(launch.x.view(x.shape), x)
    assert launch.silu is False
    assert launch.mask is masked_m
    assert launch.scale is scale
    assert (packed.shape, packed.dtype) == ((160, 64, 3), torch.uint8)
    assert packed.stride() == (64, 1, 160 * 64)
    assert (block_scale.shape, block_scale.dtype) == ((32, 4, 2, 4, 2, 3), torch.float8_e4m3fn)
    assert block_scale.permute(5, 2, 4, 0, 1, 3).is_contiguous()
    codes, expected_scale = tools.quantize(x, scale)
    valid = gated_moe.valid()
    assert torch.equal(packed.permute(2, 0, 1)[valid], tools.pack(codes)[valid])
    memory = block_scale.permute(5, 2, 4, 0, 1, 3).reshape(3, -1)
    assert torch.equal(
        tools.unswizzle(memory, 160, 8)[valid].view(torch.uint8), expected_scale[valid].view(torch.uint8)
    )


def test_silu_mul_quantize_grouped_halves_the_width_and_takes_the_gate_first(launches, tools) -> None:
    torch.manual_seed(1)
    gate_up = torch.randn(2, 40, 128).to(torch.bfloat16)
    masked_m, scale = torch.tensor([40, 3], dtype=torch.int32), torch.tensor([100.0, 700.0])
    packed, block_scale = FlashInferCuteDsl().silu_mul_quantize_grouped(gate_up, masked_m, scale)

    assert launches.quantized[0].silu is True
    assert launches.quantized[0].scale is scale
    assert packed.shape == (40, 32, 2)
    assert block_scale.shape == (32, 4, 1, 4, 1, 2)
    gate, up = gate_up.double().chunk(2, -1)
    codes, _ = tools.quantize((gate * gate.sigmoid() * up).to(torch.bfloat16), scale)
    assert torch.equal(packed.permute(2, 0, 1)[0], tools.pack(codes)[0])
    assert torch.equal(packed.permute(2, 0, 1)[1, :3], tools.pack(codes)[1, :3])


def gemm_operands(tools, m: int = 130, n: int = 72, k: int = 192, experts: int = 2):
    torch.manual_seed(2)
    dense, physical = [], []
    for rows, scale in ((m, 300.0), (n, 90.0)):
        codes, block_scale = tools.quantize(torch.randn(experts, rows, k), torch.full((experts,), scale))
        six = tools.swizzle(block_scale).view(experts, -(-rows // 128), -(-k // 64), 32, 4, 4)
        physical += [tools.pack(codes).permute(1, 2, 0), six.permute(3, 4, 1, 5, 2, 0)]
        dense.append(tools.dequantize(codes, block_scale))
    return dense, physical, torch.tensor([m, 1], dtype=torch.int32)


@pytest.mark.parametrize(
    ("dtype", "name"), [("bfloat16", "BFloat16"), ("float16", "Float16"), ("float32", "Float32")]
)
@pytest.mark.parametrize("with_alpha", [True, False])
def test_masked_grouped_gemm_multiplies_and_stores_whole_tiles(
    launches, tools, dtype, name, with_alpha
) -> None:
    (a, b), operands, masked_m = gemm_operands(tools)
    out = torch.full((2, 130, 72), 7.0, dtype=getattr(torch, dtype)).permute(1, 2, 0)
    alpha = torch.tensor([2e-4, 3e-5]) if with_alpha else None
    FlashInferCuteDsl().masked_grouped_gemm(*operands, out, masked_m, alpha)

    expected = a @ b.transpose(1, 2) * (alpha.double().view(-1, 1, 1) if with_alpha else 1.0)
    (launch,) = launches.gemms
    assert launch.shape == (130, 72, 192, 2)
    assert (launch.c_dtype, launch.alpha) == (name, with_alpha)
    assert (launch.tiler, launch.cluster, launch.sms) == ((128, 128), (1, 1), 148)
    assert torch.equal(out.permute(2, 0, 1)[0], expected[0].to(out.dtype))
    assert torch.equal(out.permute(2, 0, 1)[1, :1], expected[1, :1].to(out.dtype))
    assert (out.permute(2, 0, 1)[1, 128:] == 7.0).all()


def test_options_of_the_gemm_reach_the_compiled_program(launches, tools) -> None:
    _, operands, masked_m = gemm_operands(tools)
    out = torch.empty(2, 130, 72).permute(1, 2, 0)
    candidate = FlashInferCuteDsl(mma_tiler_mn=(256, 128), cluster_shape_mn=(2, 1), sm_count=20)
    candidate.masked_grouped_gemm(*operands, out, masked_m)
    assert (launches.gemms[-1].tiler, launches.gemms[-1].cluster, launches.gemms[-1].sms) == (
        (256, 128),
        (2, 1),
        20,
    )
    assert candidate.traits.store_rows == ANY_ROW
    assert FlashInferCuteDsl().traits.hints == HINTS
    assert FlashInferCuteDsl().traits.store_rows == 128
    for hint in HINTS:
        FlashInferCuteDsl().masked_grouped_gemm(*operands, out, masked_m, None, **hint)
    assert [(g.tiler, g.sms) for g in launches.gemms[1:]] == [((128, 128), 4), ((128, 256), 148)]
    candidate.masked_grouped_gemm(*operands, out, masked_m, None, sm_count=30, mma_tiler_mn=[128, 128])
    assert (launches.gemms[-1].tiler, launches.gemms[-1].cluster, launches.gemms[-1].sms) == (
        (128, 128),
        (2, 1),
        30,
    )
    with pytest.raises(TypeError, match="Unsupported with"):
        FlashInferCuteDsl(mma_tiler_mn=(64, 128)).masked_grouped_gemm(*operands, out, masked_m)


@pytest.mark.parametrize("prequantized", [False, True])
def test_masked_moe_equals_the_dequantize_reference(launches, moe, activation, prequantized) -> None:
    arguments = moe.arguments(prequantized=prequantized)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    out = FlashInferCuteDsl().masked_moe(**arguments, activation=activation)

    assert (out.shape, out.dtype) == ((3, 160, 128), torch.bfloat16)
    assert torch.equal(out[moe.valid()], moe.stages(activation)["out"][moe.valid()])
    assert len(launches.quantized) == (1 if prequantized else 2)
    assert [g.shape for g in launches.gemms] == [
        (160, 128 if activation == "silu" else 64, 128, 3),
        (160, 128, 64, 3),
    ]
    assert all(
        torch.equal(value.view(torch.uint8), arguments[name].view(torch.uint8))
        for name, value in before.items()
    )


def test_a_layout_that_the_gemm_does_not_check_is_misread_without_an_error(launches, tools) -> None:
    """The reason for `reads_strides=False`: FlashInfer takes the address of `a` and ignores its strides."""
    (a, b), (packed, *rest), masked_m = gemm_operands(tools)
    out = torch.empty(2, 130, 72).permute(1, 2, 0)
    FlashInferCuteDsl().masked_grouped_gemm(packed.contiguous(), *rest, out, masked_m)
    assert not torch.equal(out.permute(2, 0, 1)[0], (a @ b.transpose(1, 2))[0].float())
    assert not FlashInferCuteDsl().traits.reads_strides


def refused(kind: str, tools) -> None:
    """Call the candidate with one wrong argument."""
    candidate = FlashInferCuteDsl()
    _, (a, a_scale, b, b_scale), masked_m = gemm_operands(tools)
    out = torch.empty(2, 130, 72).permute(1, 2, 0)
    moe = tools.make_moe("silu")
    ones = torch.ones(2)
    match kind:
        case "out with the experts innermost":
            candidate.masked_grouped_gemm(a, a_scale, b, b_scale, torch.empty(130, 72, 2), masked_m)
        case "n not a multiple of 8":
            narrow = torch.empty(2, 130, 68, dtype=torch.bfloat16).permute(1, 2, 0)
            candidate.masked_grouped_gemm(a, a_scale, b[:68], b_scale, narrow, masked_m)
        case "masked_m not at a multiple of 16 bytes":
            shifted = torch.zeros(3, dtype=torch.int32)[1:]
            candidate.masked_grouped_gemm(a, a_scale, b, b_scale, out, shifted)
        case "out in float64":
            candidate.masked_grouped_gemm(a, a_scale, b, b_scale, out.double(), masked_m)
        case "unknown option":
            candidate.masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, None, tile_m=128)
        case "k not a multiple of 16":
            candidate.quantize_grouped(torch.zeros(2, 4, 24, dtype=torch.bfloat16), masked_m, ones)
        case "x with the experts in the middle":
            candidate.quantize_grouped(
                torch.zeros(4, 2, 32, dtype=torch.bfloat16).transpose(0, 1), masked_m, ones
            )
        case "w1 of another k":
            candidate.masked_moe(**moe.arguments() | {"w1": moe.weights["w1"][..., :32]})
        case "alpha for one expert":
            candidate.masked_moe(**moe.arguments() | {"w1_alpha": torch.ones(1)})


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("out with the experts innermost", ValueError, "contiguous in the layout implied by c_major"),
        ("n not a multiple of 8", TypeError, "Unsupported with"),
        ("masked_m not at a multiple of 16 bytes", AssertionError, "16 bytes aligned"),
        ("out in float64", ValueError, "out must be bfloat16, float16 or float32, got torch.float64"),
        ("unknown option", AssertionError, "Unsupported kwargs"),
        ("k not a multiple of 16", AssertionError, "k must be multiple of 16"),
        ("x with the experts in the middle", RuntimeError, "view size is not compatible"),
        ("w1 of another k", ValueError, r"w1 must have shape \(3, 128, 64\) for 'silu', got \(3, 128, 32\)"),
        ("alpha for one expert", ValueError, r"w1_alpha must have shape \(3,\)"),
    ],
)
def test_what_is_refused_is_a_clear_error(launches, tools, kind, error, message) -> None:
    with pytest.raises(error, match=message):
        refused(kind, tools)
    assert not launches.gemms


@pytest.mark.parametrize("capability", [(9, 0), (11, 0)])
def test_the_gemm_of_other_devices_is_refused_by_the_package(launches, tools, capability) -> None:
    launches.capability = capability
    _, operands, masked_m = gemm_operands(tools)
    with pytest.raises(ValueError, match=r"SM110 is not supported|only supported on SM100"):
        FlashInferCuteDsl().masked_grouped_gemm(*operands, torch.empty(2, 130, 72).permute(1, 2, 0), masked_m)


@pytest.fixture
def blackwell(monkeypatch: pytest.MonkeyPatch, launches) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA B200")


@pytest.mark.usefixtures("blackwell")
def test_support_accepts_the_installed_package_on_blackwell() -> None:
    assert FlashInferCuteDsl().support().ok, FlashInferCuteDsl().support().reason
    assert not FlashInferCuteDsl().warning


@pytest.mark.usefixtures("blackwell")
@pytest.mark.parametrize(
    ("module", "name", "old", "new"),
    [
        ("flashinfer", "scaled_fp4_grouped_quantize", "mask", "masked_m"),
        ("flashinfer", "silu_and_mul_scaled_nvfp4_experts_quantize", "a_global_sf", "global_sf"),
        ("flashinfer.gemm", "grouped_gemm_nt_masked", "masked_m", "num_tokens"),
        ("flashinfer.gemm", "grouped_gemm_nt_masked", "sf_vec_size", "block_size"),
        ("flashinfer.gemm", "grouped_gemm_nt_masked", "kwargs", None),
    ],
)
def test_a_renamed_parameter_is_unsupported_and_not_a_type_error(monkeypatch, module, name, old, new) -> None:
    import importlib

    function = getattr(importlib.import_module(module), name)
    signature = inspect.signature(function)
    kept = [
        p if p.name != old else p.replace(name=new)
        for p in signature.parameters.values()
        if p.name != old or new
    ]

    def changed(*args, **kwargs):
        raise AssertionError("must not be called")

    changed.__signature__ = signature.replace(parameters=kept)
    monkeypatch.setattr(f"{module}.{name}", changed)
    support = FlashInferCuteDsl().support()
    assert not support
    assert f"{module}.{name} of flashinfer-python" in support.reason
    stage = {"scaled_f": "quantize_grouped", "silu_and": "silu_mul_quantize_grouped"}.get(
        name[:8], "masked_grouped_gemm"
    )
    x = torch.zeros(1, dtype=torch.bfloat16)
    arguments = (x, x, x, x, x, x) if stage == "masked_grouped_gemm" else (x, x, x)
    with pytest.raises(RuntimeError, match=f"{name} of flashinfer-python"):
        getattr(FlashInferCuteDsl(), stage)(*arguments)


@pytest.mark.usefixtures("blackwell")
def test_a_function_that_is_gone_is_unsupported(monkeypatch) -> None:
    monkeypatch.delattr("flashinfer.gemm.grouped_gemm_nt_masked")
    assert "has no function grouped_gemm_nt_masked" in FlashInferCuteDsl().support().reason


@pytest.mark.usefixtures("blackwell")
def test_parameters_in_another_order_are_unsupported(monkeypatch) -> None:
    """The adapter passes them by position, as the engines do; sgl_kernel's quantizers take (input, scale, mask)."""
    monkeypatch.setattr(
        "flashinfer.scaled_fp4_grouped_quantize", lambda a, a_global_sf, mask: (a, a_global_sf, mask)
    )
    assert "positional (a, mask, a_global_sf)" in FlashInferCuteDsl().support().reason


@pytest.mark.usefixtures("launches")
def test_the_packages_own_deprecations_are_no_failure_under_strict_warnings() -> None:
    code = "from harness.candidates.cutedsl_support import function_support as f; print(f('grouped_gemm_nt_masked').reason)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""
